//! What two keepers say to each other in a take-over, inside the plan, the orders and the answers of the hand-over.

use std::io;
use std::os::fd::AsFd;

use admin::command::UpgradeReport;
use handoff::ledger::NameSpec;
use handoff::os;
use serde::{Deserialize, Serialize};

/// The plan of the hand-over.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Introduction {
    /// Cookie of the keeper's own network namespace; 0 where the kernel does not tell.
    pub netns: u64,
    /// JSON of a [`super::super::state::KeeperState`].
    pub state: String,
}

/// From the keeper to the heir; every other order is meant for the heir's worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub(super) enum Behest {
    /// What the ledger must have for the heir's configuration. Only one keeper changes the ledger.
    Need,
    /// Start a worker. Answered when it is READY.
    Begin,
    /// All is the heir's now: the admin sockets were handed over before, the lock is free.
    Own(Box<Legacy>),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in super::super) struct Legacy {
    pub state: String,
    pub report: UpgradeReport,
    /// Device and inode of the admin socket's file.
    pub admin_file: (u64, u64),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(super) enum Response {
    Needs {
        names: Vec<Counted>,
        blocks: u32,
    },
    Done,
    /// Nothing has changed.
    Refused {
        why: String,
    },
}

/// A name of the ledger.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Counted {
    kind: u16,
    text: String,
    counters: u32,
    gauges: u32,
}

impl From<NameSpec> for Counted {
    fn from(NameSpec { kind, text, counters, gauges }: NameSpec) -> Self {
        Self { kind, text, counters, gauges }
    }
}

impl From<Counted> for NameSpec {
    fn from(Counted { kind, text, counters, gauges }: Counted) -> Self {
        Self { kind, text, counters, gauges }
    }
}

/// Ids under which the admin sockets cross; no bind of a configuration has such an id.
pub(super) const ADMIN_UNIX: &str = "admin.socket";
pub(super) const ADMIN_TCP: &str = "admin.listen";

/// Of this process.
pub(super) fn own_netns() -> io::Result<u64> {
    let probe = std::os::unix::net::UnixDatagram::unbound()?;
    // Older kernels do not know the option; an unknown namespace is not compared.
    Ok(os::netns_cookie(probe.as_fd()).unwrap_or(0))
}
