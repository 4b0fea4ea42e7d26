//! The paths of a worker to and from others, each a task of its own: heartbeats and orders must not wait for them.

use std::os::fd::OwnedFd;
use std::time::Duration;

use handoff::transfer::Role;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::plane::Plane;
use crate::config::order::Notice;
use crate::session::AbortOnPanic;

/// Notices that the keeper has not heard yet; a path makes two, and more only while half of these are free.
const UNHEARD: usize = 64;

/// For a path to come to rest at the end of the process. It has nothing left to move then.
const REST: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Paths {
    tasks: JoinSet<()>,
    /// The one by which sessions leave.
    giving: Option<Giving>,
    teller: mpsc::Sender<Notice>,
    notices: mpsc::Receiver<Notice>,
}

#[derive(Debug)]
struct Giving {
    to: u32,
    stop: CancellationToken,
    /// Cancelled when it is over.
    over: CancellationToken,
}

impl Paths {
    pub(super) fn new() -> Self {
        let (teller, notices) = mpsc::channel(UNHEARD);
        Self { tasks: JoinSet::new(), giving: None, teller, notices }
    }

    /// A new path to or from the generation `other`. A new one to give replaces the one before.
    pub(super) fn open(&mut self, plane: &Plane, path: u64, role: Role, other: u32, end: OwnedFd) {
        while self.tasks.try_join_next().is_some() {}
        match role {
            Role::Give => self.give(plane, path, other, end),
            Role::Take => {
                // Sessions that went there come back: they must not go again.
                if let Some(giving) = self.giving.take_if(|giving| giving.to == other) {
                    giving.stop.cancel();
                }
                let take = plane.take(path, end);
                self.tasks.spawn(async move {
                    let _guard = AbortOnPanic;
                    take.await;
                });
            }
        }
    }

    /// The next word for the keeper. May be dropped: none is lost.
    pub(super) async fn notice(&mut self) -> Notice {
        match self.notices.recv().await {
            Some(notice) => notice,
            // Not while this one lives, which has a sender.
            None => std::future::pending().await,
        }
    }

    /// Ends giving, at the end of the process; gives what is still to be told.
    pub(super) async fn rest(&mut self) -> Vec<Notice> {
        if let Some(giving) = self.giving.take() {
            giving.stop.cancel();
            let _ = timeout(REST, giving.over.cancelled()).await;
        }
        std::iter::from_fn(|| self.notices.try_recv().ok()).collect()
    }

    fn give(&mut self, plane: &Plane, path: u64, other: u32, end: OwnedFd) {
        let (stop, over) = (CancellationToken::new(), CancellationToken::new());
        let before = self.giving.replace(Giving { to: other, stop: stop.clone(), over: over.clone() });
        let give = plane.give(path, end, self.teller.clone(), stop);
        let done: DropGuard = over.drop_guard();
        self.tasks.spawn(async move {
            let _guard = AbortOnPanic;
            let _done = done;
            if let Some(before) = before {
                before.stop.cancel();
                // It comes to rest within the time of its open batches.
                before.over.cancelled().await;
            }
            give.await;
        });
    }
}
