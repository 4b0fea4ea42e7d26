//! What the owner loop hears.

use admin::command::{Command, Line};
use handoff::channel::Channel;
use tokio::sync::{mpsc, oneshot};

use super::link::Link;
use super::next::{Next, NotNext};
use super::preflight::Passport;
use super::reaper::Exit;
use super::recover::Recovered;
use super::spawn::{Progress, Ready, SpawnError};
use super::takeover::{Offered, Survivors, Told};
use super::upgrade::Probed;
use crate::config::Drain;
use crate::config::order::Notice;

/// Where the lines of an answer go. The caller may be gone; the operation goes on.
pub(super) type Caller = Option<mpsc::Sender<Line>>;

#[derive(Debug)]
pub(super) enum Event {
    Command(Command, Caller),
    Hangup,
    /// USR2.
    UpgradeSignal,
    /// TERM or INT.
    Terminate,
    /// The binary and configuration of an upgrade were looked at.
    Preflighted {
        upgrade: u64,
        found: Result<Box<Next>, NotNext>,
    },
    /// How far spawning the upgrade's generation has come.
    Progress {
        upgrade: u64,
        progress: Progress,
    },
    Upgraded {
        upgrade: u64,
        spawned: Result<Box<Ready>, SpawnError>,
    },
    /// The new generation has tried its pools.
    Probed {
        upgrade: u64,
        found: Probed,
    },
    ProbationOver {
        upgrade: u64,
    },
    /// The back-off is over.
    Restart,
    /// The process of a restarted worker is there.
    Born {
        generation: u32,
        pid: u32,
    },
    Restarted {
        attempt: u64,
        spawned: Result<Box<Ready>, SpawnError>,
    },
    Exited {
        generation: u32,
        exit: Exit,
    },
    /// The channel to this generation has ended.
    Unlinked {
        generation: u32,
    },
    /// This generation was told to poll no more, and has confirmed it, or not.
    Stopped {
        generation: u32,
        drain: Drain,
        confirmed: bool,
    },
    /// Said by its worker unasked.
    Noticed {
        generation: u32,
        notice: Notice,
    },
    /// A path could not be laid.
    PathLost {
        generation: u32,
        path: u64,
        why: String,
    },
    /// Somebody beside the loop has something to tell this generation; if it is gone, the question ends.
    LinkOf {
        generation: u32,
        reply: oneshot::Sender<Link>,
    },
    /// To close these by the operator's word, as far as they wait for another worker in the place of their dead one.
    KillHeld {
        ids: Vec<u64>,
        /// How many were closed.
        reply: oneshot::Sender<u64>,
    },
    /// Sessions of a dead worker were given to another.
    Recovered(Box<Recovered>),
    /// The delay of a shutdown is over.
    StopAccepting,
    /// The new binary was shown the keeper's state, and says whether it can go on from there.
    Vetted {
        upgrade: u64,
        vetted: Result<Passport, String>,
    },
    /// A worker could not be told what is in force.
    Untold,
    /// Another installation would take over.
    Knocked(Channel),
    /// It holds everything.
    Offered {
        upgrade: u64,
        found: Result<Box<Offered>, SpawnError>,
    },
    /// By the keeper in whose place this one comes.
    Told(Told),
    /// The workers of that keeper were looked for.
    Survived(Box<Survivors>),
    Tick,
}
