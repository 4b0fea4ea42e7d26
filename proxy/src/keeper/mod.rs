//! The keeper: one process for the life of the service. It holds the listening sockets, the ledger and the state of the
//! pools; starts, watches and replaces generations of workers; answers the operator. It never touches a byte of a session.
//!
//! One loop owns everything (`owner`); whatever takes time runs as a task of its own and comes back as an
//! `event::Event`.

use std::path::PathBuf;

mod attach;
mod backoff;
mod blame;
mod budget;
mod commands;
mod door;
mod doors;
mod drains;
mod estate;
mod event;
mod generation;
mod heard;
mod images;
mod killing;
mod link;
mod memory;
mod moving;
mod next;
mod notify;
mod orphans;
mod owner;
mod pinned;
mod pools;
mod preflight;
mod reaper;
mod recover;
mod reexec;
mod reload;
mod restart;
mod resume;
mod run;
mod show;
mod shutdown;
mod sockets;
mod spawn;
mod state;
mod state_dir;
mod surroundings;
mod takeover;
mod told;
mod upgrade;
mod vault;

pub use next::{Loaded, load};
pub use preflight::answer as answer_preflight;
pub use run::{RunError, resume, run};
pub use state_dir::{StateDir, StateDirError};
pub use surroundings::{inherited_sockets, raise_descriptor_limit, started_from};

/// How a keeper is started.
#[derive(Debug)]
pub struct Start {
    pub loaded: Loaded,
    /// The path this program was started from, absolute, as text: what an upgrade without a path takes.
    pub binary: PathBuf,
    /// Another keeper's socket, to come in its place.
    pub take_over_from: Option<PathBuf>,
    /// Listening sockets from a service manager.
    pub inherited: Vec<std::os::fd::OwnedFd>,
    /// Whether the process is a keeper and nothing else, so that another image can take its place.
    pub replaceable: bool,
    /// Lines for a person, printed once it serves.
    pub greeting: Option<String>,
}
