//! What the owner loop hears.

use admin::command::{Command, Line};
use tokio::sync::mpsc;

use super::next::{Next, NotNext};
use super::reaper::Exit;
use super::spawn::{Ready, SpawnError};

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
    /// A step of spawning the upgrade's generation has begun.
    Step {
        upgrade: u64,
        step: &'static str,
    },
    Upgraded {
        upgrade: u64,
        spawned: Result<Box<Ready>, SpawnError>,
    },
    /// The back-off is over.
    Restart,
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
    /// The delay of a shutdown is over.
    StopAccepting,
    Tick,
}
