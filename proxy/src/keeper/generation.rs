//! One generation: a worker process and what the keeper knows of it.

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::link::Link;
use super::pinned::Pinned;
use super::reaper::Process;

#[derive(Debug)]
pub(super) struct Generation {
    pub id: u32,
    pub state: State,
    pub version: String,
    pub process: Process,
    pub link: Link,
    pub pinned: Rc<Pinned>,
    /// When it began to serve.
    pub since: Instant,
    /// When it is killed if it has not ended by itself.
    pub deadline: Option<Deadline>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Serving,
    /// Serves the sessions it has, takes no new ones.
    Draining,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Serving => "serving",
            Self::Draining => "draining",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deadline {
    /// What is left is closed by force by then.
    pub drained: Instant,
}

impl Deadline {
    pub(super) fn after(timeout: Duration) -> Self {
        Self { drained: Instant::now() + timeout }
    }

    /// The worker closes by force on its own; one that has not ended this long after hangs, and is killed.
    pub(super) fn overdue(self) -> bool {
        Instant::now() > self.drained + GRACE
    }
}

const GRACE: Duration = Duration::from_secs(5);
