//! One generation: a worker process and what the keeper knows of it.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::link::Link;
use super::reaper::Process;
use crate::config::Drain;

#[derive(Debug)]
pub(super) struct Generation {
    pub id: u32,
    pub state: State,
    pub version: String,
    pub build: String,
    /// Of its binary. (The binary itself is held only for the generation that serves and the one before.)
    pub sha256: String,
    pub process: Process,
    pub link: Link,
    /// Its heartbeat is missed, and that was said.
    pub silent: bool,
    /// When it began to serve.
    pub since: Instant,
    /// When it is killed if it has not ended by itself.
    pub deadline: Option<Deadline>,
    /// Its sessions were told to stay where they are.
    pub stays: bool,
    /// So many of its sessions were told of as left when others went.
    pub left: u64,
    /// It polls no more, and its sessions may go before what is left drains.
    pub parting: Option<Parting>,
    /// It is to poll no more, and has not confirmed it yet.
    pub is_stopping: bool,
}

/// What a generation waits for before it drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parting {
    /// How what is left drains.
    pub drain: Drain,
    /// It drains from then on, whatever has gone.
    pub until: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// READY, or on its way to it.
    Starting,
    Serving,
    /// Polls nothing, serves its own sessions, and accepts again if its successor fails.
    Standby,
    /// Serves the sessions it has, takes no new ones.
    Draining,
    /// As draining, after it was rolled back.
    Failed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Standby => "standby",
            Self::Draining => "draining",
            Self::Failed => "failed",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deadline {
    /// What is left is closed by force by then.
    pub drained: Instant,
}

impl Generation {
    /// Another installation's, on trial: it has a worker of its own. (One that drains was taken on from another keeper.)
    pub(super) fn is_heirs(&self) -> bool {
        self.process.is_remote() && self.process.pid != 0
    }
}

impl Parting {
    pub(super) fn within(patience: Duration, drain: Drain) -> Self {
        Self { drain, until: Instant::now() + patience }
    }
}

impl Deadline {
    pub(super) fn after(timeout: Duration) -> Self {
        Self { drained: Instant::now() + timeout }
    }

    /// The worker closes by force on its own; one that has not ended this long after hangs, and is killed.
    pub(super) fn overdue(self) -> bool {
        Instant::now() > self.over()
    }

    pub(super) fn over(self) -> Instant {
        self.drained + GRACE
    }
}

const GRACE: Duration = Duration::from_secs(5);
