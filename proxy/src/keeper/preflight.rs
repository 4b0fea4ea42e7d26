//! What a new binary must show before a generation of it is started: that it runs, speaks our versions, and reads the
//! configuration.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use handoff::message::{LEDGER, PROTOCOL, Range};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::{Instant, timeout_at};

use super::estate;
use super::pinned::Pinned;
use super::reaper::{Child, Exit, Reaper};
use super::state::KEEPER_STATE;

/// What `proxyd --preflight TOKEN` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Passport {
    pub token: String,
    pub version: String,
    pub build: String,
    pub handoff: Range,
    pub ledger: Range,
    /// Absent in binaries that cannot go on as the keeper of another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper_state: Option<Range>,
}

impl Passport {
    pub(super) fn own(token: &str) -> Self {
        Self {
            token: token.into(),
            version: crate::version::VERSION.into(),
            build: crate::version::build().into(),
            handoff: PROTOCOL,
            ledger: LEDGER,
            keeper_state: Some(KEEPER_STATE),
        }
    }
}

impl Passport {
    /// Whether it knows what workers leave with a keeper.
    pub(super) fn knows_vaults(&self) -> bool {
        self.handoff.max >= 3
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum PreflightError {
    #[error("{path} cannot be started: {source}")]
    Start { path: String, source: io::Error },
    #[error("{path} --preflight {exit} without an answer{said}")]
    Exited { path: String, exit: Exit, said: String },
    #[error("{path} --preflight did not answer within {:.1} s", .after.as_secs_f32())]
    Silent { path: String, after: Duration },
    #[error("{path} is not a proxyd: --preflight printed {said:?}")]
    NotProxyd { path: String, said: String },
    #[error("{path} (version {version}) speaks {what} {theirs}, this keeper {ours}")]
    Versions { path: String, version: String, what: &'static str, theirs: Range, ours: Range },
    #[error("{path} does not accept the configuration:\n{mistakes}")]
    Config { path: String, mistakes: String },
}

impl PreflightError {
    /// The system does not let it be executed: a memfd that may not be run, for one.
    pub(super) fn is_forbidden(&self) -> bool {
        matches!(self, Self::Start { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// Longest wait for `--preflight` and for `check`, each.
const ANSWER: Duration = Duration::from_secs(5);

pub(super) async fn passport(pinned: &Pinned, reaper: &Reaper, deadline: Instant) -> Result<Passport, PreflightError> {
    let path = || pinned.path.display().to_string();
    let token = format!("{:016x}", fastrand::u64(..));
    let mut command = pinned.command().map_err(|source| PreflightError::Start { path: path(), source })?;
    command.args(["--preflight", &token]).stdin(Stdio::null());
    let ran =
        execute(command, reaper, deadline).await.map_err(|source| PreflightError::Start { path: path(), source })?;
    let said = ran.said();
    let exit = ran.exit.ok_or_else(|| PreflightError::Silent { path: path(), after: ran.waited })?;
    let Ok(passport) = serde_json::from_slice::<Passport>(&ran.out) else {
        return Err(match (exit, said.is_empty()) {
            (Exit::Status(0), false) => PreflightError::NotProxyd { path: path(), said },
            _ => PreflightError::Exited {
                path: path(),
                exit,
                said: if said.is_empty() { said } else { format!(": {said}") },
            },
        });
    };
    if passport.token != token {
        return Err(PreflightError::NotProxyd { path: path(), said });
    }
    let (version, path) = (passport.version.clone(), path());
    for (what, theirs, ours) in
        [("hand-over protocol", passport.handoff, PROTOCOL), ("ledger layout", passport.ledger, LEDGER)]
    {
        if theirs.common(ours).is_none() {
            return Err(PreflightError::Versions { path, version, what, theirs, ours });
        }
    }
    Ok(passport)
}

/// Whether this binary can go on as the keeper from what is in the file, and what it is. Changes nothing.
pub(super) async fn can_go_on(pinned: &Pinned, estate: OwnedFd, reaper: &Reaper) -> Result<Passport, String> {
    let token = format!("{:016x}", fastrand::u64(..));
    let mut command = pinned.command().map_err(|error| error.to_string())?;
    command.args(["--preflight", &token, "--state", "0"]).stdin(Stdio::from(estate));
    let ran = execute(command, reaper, Instant::now() + ANSWER).await.map_err(|error| error.to_string())?;
    match ran.exit {
        Some(Exit::Status(0)) if ran.said().contains(&token) => {
            serde_json::from_slice(&ran.out).map_err(|error| format!("its answer cannot be read: {error}"))
        }
        Some(Exit::Status(USAGE)) => Err("it is of a version that cannot take over from a running keeper".into()),
        Some(exit) => Err(format!("its preflight with our state {exit}: {}", ran.said())),
        None => Err(format!("its preflight with our state did not end within {} s", ANSWER.as_secs())),
    }
}

/// What `proxyd` leaves with when it does not know an option.
const USAGE: i32 = 64;

pub(super) async fn check(
    pinned: &Pinned,
    config: &Path,
    reaper: &Reaper,
    deadline: Instant,
) -> Result<(), PreflightError> {
    let path = || pinned.path.display().to_string();
    let mut command = pinned.command().map_err(|source| PreflightError::Start { path: path(), source })?;
    command.arg("check").arg(config).stdin(Stdio::null());
    let ran =
        execute(command, reaper, deadline).await.map_err(|source| PreflightError::Start { path: path(), source })?;
    match ran.exit {
        Some(Exit::Status(0)) => Ok(()),
        Some(_) => {
            let mistakes = String::from_utf8_lossy(&ran.err).trim_end().to_owned();
            Err(PreflightError::Config { path: path(), mistakes })
        }
        None => Err(PreflightError::Silent { path: path(), after: ran.waited }),
    }
}

/// What a short-lived child printed, and how it ended; `None`: it was killed because it did not.
struct Ran {
    exit: Option<Exit>,
    /// How long it was given, or took.
    waited: Duration,
    out: Vec<u8>,
    err: Vec<u8>,
}

impl Ran {
    /// The first of what it printed, on one line.
    fn said(&self) -> String {
        let both = [self.out.as_slice(), self.err.as_slice()].concat();
        String::from_utf8_lossy(&both[..both.len().min(200)]).trim().replace('\n', " ")
    }
}

/// Most that is read of each stream; a list of mistakes fits, endless garbage does not.
const OUTPUT: u64 = 256 * 1024;

async fn execute(mut command: Command, reaper: &Reaper, deadline: Instant) -> io::Result<Ran> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    clean_env(&mut command);
    handoff::os::spawn_in_own_session(&mut command);
    let mut child = command.spawn()?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let mut watched = KillOnDrop(reaper.adopt(&child)?);
    let began = Instant::now();
    let deadline = deadline.min(began + ANSWER);
    let (out, err) = tokio::join!(read(out.map(Into::into), deadline), read(err.map(Into::into), deadline));
    let exit = timeout_at(deadline, watched.0.exited()).await.ok();
    Ok(Ran { exit, waited: began.elapsed(), out, err })
}

/// A short-lived child ends with the wait for it, whether that was answered, timed out or cancelled.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.0.process.kill(Signal::KILL);
    }
}

/// What a service manager told the keeper is not for its children.
pub(super) fn clean_env(command: &mut Command) {
    for name in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"] {
        command.env_remove(name);
    }
}

async fn read(stream: Option<OwnedFd>, deadline: Instant) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(receiver) = stream.and_then(|fd| pipe::Receiver::from_owned_fd(fd).ok()) {
        // Late or broken: what came is kept, the exit status decides.
        let _ = timeout_at(deadline, receiver.take(OUTPUT).read_to_end(&mut bytes)).await;
    }
    bytes
}

/// Answers `--preflight` for this binary; with a descriptor that holds a keeper's state only if it can go on from there.
///
/// # Errors
/// Nobody reads the answer, or the state cannot be read.
pub fn answer(token: &str, state: Option<RawFd>, mut out: impl io::Write) -> io::Result<()> {
    if let Some(number) = state {
        // Whoever asked holds the descriptor; through /proc it is opened anew, whatever its number.
        let file = std::fs::File::open(format!("/proc/self/fd/{number}"))?;
        estate::examine(&estate::read(file.into())?).map_err(io::Error::other)?;
    }
    serde_json::to_writer(&mut out, &Passport::own(token))?;
    writeln!(out)
}
