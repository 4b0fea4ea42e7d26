//! Starting a generation: a process from a pinned binary, given sockets, ledger and plan, and waited for until READY.
//! Whatever fails before that ends the new process and nothing else.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use handoff::HandoffError;
use handoff::channel::{Channel, Peer};
use handoff::manifest::Entry;
use handoff::message::Hello;
use handoff::predecessor::{Offer, Predecessor};
use rustix::process::Signal;
use tokio::time::{Instant, timeout};

use super::link::Link;
use super::pinned::Pinned;
use super::preflight::clean_env;
use super::reaper::{Child, Exit, Reaper};

/// What a new generation is given.
#[derive(Debug)]
pub(super) struct Dowry {
    pub generation: u32,
    pub pinned: Rc<Pinned>,
    pub sockets: Vec<(Entry, OwnedFd)>,
    pub segments: Vec<OwnedFd>,
    /// JSON of a [`crate::config::plan::Plan`].
    pub plan: Vec<u8>,
    pub ready_timeout: Duration,
}

/// A generation that is READY, and does not poll yet.
#[derive(Debug)]
pub(super) struct Ready {
    pub generation: u32,
    pub pinned: Rc<Pinned>,
    pub version: String,
    pub build: String,
    pub child: Child,
    pub link: Link,
    /// Ledger segments it was given.
    pub segments: usize,
}

/// Failed at `step`; the process, if there was one, is dead and reaped.
#[derive(Debug, thiserror::Error)]
#[error("generation {generation}{}: {cause}", .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
pub struct SpawnError {
    pub generation: u32,
    pub step: &'static str,
    pub pid: Option<u32>,
    pub cause: SpawnCause,
}

#[derive(Debug, thiserror::Error)]
pub enum SpawnCause {
    #[error("cannot be started: {0}")]
    Start(#[from] io::Error),
    #[error("{0} before READY")]
    Exited(Exit),
    #[error("was not READY within ready_timeout ({} s)", .0.as_secs_f32())]
    Late(Duration),
    #[error("{0}")]
    Handoff(HandoffError),
    /// Of another installation.
    #[error("{0}")]
    Heir(String),
}

/// What is told while a generation is spawned.
#[derive(Debug, Clone, Copy)]
pub(super) enum Progress {
    /// This step begins: spawn, offer, ready.
    Step(&'static str),
    /// The process is there.
    Born { generation: u32, pid: u32 },
}

/// `tell` hears of the progress as it is made.
pub(super) async fn spawn(dowry: Dowry, reaper: &Reaper, mut tell: impl FnMut(Progress)) -> Result<Ready, SpawnError> {
    let deadline = Instant::now() + dowry.ready_timeout;
    let generation = dowry.generation;
    tell(Progress::Step("spawn"));
    let (child, channel) = start(&dowry, reaper).map_err(|source| SpawnError {
        generation,
        step: "spawn",
        pid: None,
        cause: source.into(),
    })?;
    tell(Progress::Born { generation, pid: child.process.pid });
    let child = Fledgling(Some(child));
    let mut at = "spawn";
    let offered = offer(&dowry, channel, deadline, &mut |name| {
        if let Some(name) = upgrade_step(name) {
            at = name;
            tell(Progress::Step(name));
        }
    })
    .await;
    match offered {
        Ok((predecessor, hello)) => {
            let (link, segments) = (Link::start(predecessor), dowry.segments.len());
            let (version, build) = (hello.version, hello.build);
            Ok(Ready { generation, pinned: dowry.pinned, version, build, child: child.keep(), link, segments })
        }
        Err(error) => Err(SpawnError {
            generation,
            step: at,
            pid: child.pid(),
            cause: child.end(error, dowry.ready_timeout).await,
        }),
    }
}

/// The operator's word for a step of the hand-over protocol.
fn upgrade_step(protocol: &'static str) -> Option<&'static str> {
    match protocol {
        "offer" => Some("offer"),
        "ready" => Some("ready"),
        _ => None,
    }
}

fn start(dowry: &Dowry, reaper: &Reaper) -> io::Result<(Child, Channel)> {
    let (ours, theirs) = Channel::pair()?;
    let mut command = dowry.pinned.command()?;
    command.arg("--worker").stdin(Stdio::from(theirs));
    clean_env(&mut command);
    handoff::os::spawn_in_own_session(&mut command);
    let child = command.spawn()?;
    let watched = reaper.adopt(&child)?;
    let peer = Peer { pid: Some(child.id()), uid: nix::unistd::geteuid().as_raw() };
    let channel =
        Channel::new(ours, peer).map_err(io::Error::other).inspect_err(|_| watched.process.kill(Signal::KILL))?;
    Ok((watched, channel))
}

async fn offer(
    dowry: &Dowry,
    channel: Channel,
    deadline: Instant,
    step: &mut dyn FnMut(&'static str),
) -> Result<(Predecessor, Hello), HandoffError> {
    let sockets: Vec<_> = dowry.sockets.iter().map(|(entry, fd)| (entry.clone(), fd.as_fd())).collect();
    let segments: Vec<_> = dowry.segments.iter().map(AsFd::as_fd).collect();
    let offer = Offer {
        generation: dowry.generation,
        version: crate::version::VERSION,
        build: crate::version::build(),
        sockets: &sockets,
        segments: &segments,
        plan: &dowry.plan,
    };
    Predecessor::offer(channel, &offer, deadline, step).await
}

/// A process that is not a generation yet: it dies with the attempt.
struct Fledgling(Option<Child>);

impl Fledgling {
    fn pid(&self) -> Option<u32> {
        self.0.as_ref().map(|child| child.process.pid)
    }

    /// # Panics
    /// Never: called once.
    fn keep(mut self) -> Child {
        self.0.take().expect("a fledgling holds its child until it is kept")
    }

    /// Kills what still lives, waits until it is reaped, and says what went wrong first.
    async fn end(mut self, error: HandoffError, ready_timeout: Duration) -> SpawnCause {
        let late = matches!(error, HandoffError::Deadline { .. });
        let Some(child) = &mut self.0 else { return SpawnCause::Handoff(error) };
        // Its end of the channel is closed by the kernel just before its status is there. Where it was we who refused, that
        // is the cause, and its end the consequence.
        if matches!(error, HandoffError::Gone { .. })
            && let Ok(exit) = timeout(LAST_WORDS, child.exited()).await
        {
            return SpawnCause::Exited(exit);
        }
        child.process.kill(Signal::TERM);
        if timeout(LAST_WORDS, child.exited()).await.is_err() {
            child.process.kill(Signal::KILL);
            // Uninterruptible sleep may delay even this; the reaper will still get it.
            let _ = timeout(LAST_WORDS, child.exited()).await;
        }
        if late { SpawnCause::Late(ready_timeout) } else { SpawnCause::Handoff(error) }
    }
}

impl Drop for Fledgling {
    fn drop(&mut self) {
        if let Some(child) = &self.0 {
            child.process.kill(Signal::KILL);
        }
    }
}

/// For a process to end after its channel closed, or after TERM.
const LAST_WORDS: Duration = Duration::from_secs(1);
