//! What a new binary must show before a generation of it is started: that it runs, speaks our versions, and reads the
//! configuration.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use handoff::message::{LEDGER, PROTOCOL, Range};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::{Instant, timeout_at};

use super::pinned::Pinned;
use super::reaper::{Child, Exit, Reaper};

/// What `proxyd --preflight TOKEN` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Passport {
    pub token: String,
    pub version: String,
    pub build: String,
    pub handoff: Range,
    pub ledger: Range,
}

impl Passport {
    pub(super) fn own(token: &str) -> Self {
        Self {
            token: token.into(),
            version: crate::version::VERSION.into(),
            build: crate::version::build().into(),
            handoff: PROTOCOL,
            ledger: LEDGER,
        }
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
    command.args(["--preflight", &token]);
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

pub(super) async fn check(
    pinned: &Pinned,
    config: &Path,
    reaper: &Reaper,
    deadline: Instant,
) -> Result<(), PreflightError> {
    let path = || pinned.path.display().to_string();
    let mut command = pinned.command().map_err(|source| PreflightError::Start { path: path(), source })?;
    command.arg("check").arg(config);
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
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
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

async fn read(stream: Option<std::os::fd::OwnedFd>, deadline: Instant) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(receiver) = stream.and_then(|fd| pipe::Receiver::from_owned_fd(fd).ok()) {
        // Late or broken: what came is kept, the exit status decides.
        let _ = timeout_at(deadline, receiver.take(OUTPUT).read_to_end(&mut bytes)).await;
    }
    bytes
}

/// Answers `--preflight` for this binary.
pub fn answer(token: &str, mut out: impl io::Write) -> io::Result<()> {
    serde_json::to_writer(&mut out, &Passport::own(token))?;
    writeln!(out)
}
