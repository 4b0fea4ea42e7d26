//! What a data thread is told, and the line to it. Every order has an answer, and every answer a deadline.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use handoff::ledger::{LedgerError, Segment};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::config::order::Unreachable;
use crate::listener::Turn;
use crate::pool::Pool;
use crate::session::{Ending, Measured, Scope};

/// A data thread that does not answer for so long is stuck: its longest turn is a few milliseconds.
pub(super) const ANSWER: Duration = Duration::from_secs(5);

/// Orders that wait in line at most; more would only wait longer.
const LINE: usize = 64;

#[derive(Debug)]
pub(super) enum Order {
    /// Polls these listening sockets, by id, in turn with the other threads. Answers when the first was about to be, nanoseconds.
    Poll {
        sockets: Vec<(String, OwnedFd, Arc<Turn>)>,
        answer: oneshot::Sender<Result<u64, (String, std::io::Error)>>,
    },
    /// Stops polling these, or all. Answers when none was polled any more, nanoseconds.
    Stop {
        only: Option<Vec<String>>,
        answer: oneshot::Sender<u64>,
    },
    /// Accepts what these have queued.
    RunOut {
        sockets: Vec<(String, OwnedFd)>,
        until: Instant,
        answer: oneshot::Sender<()>,
    },
    /// New sessions are written into the newest of these.
    Segments {
        segments: Vec<Arc<Segment>>,
        answer: oneshot::Sender<Result<(), LedgerError>>,
    },
    Measure {
        which: Which,
        answer: oneshot::Sender<Vec<Measured>>,
    },
    /// Connects once to each; answers with those that cannot be reached.
    Probe {
        pools: Vec<Arc<Pool>>,
        answer: oneshot::Sender<Vec<Unreachable>>,
    },
    /// Answers how many there were to close.
    Close {
        ids: Vec<u64>,
        ending: Ending,
        answer: oneshot::Sender<u64>,
    },
}

#[derive(Debug, Clone)]
pub(super) enum Which {
    Scope(Scope),
    These(Vec<u64>),
}

/// The line to one thread.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) thread: usize,
    sender: mpsc::Sender<Order>,
}

/// It does not answer.
#[derive(Debug, thiserror::Error)]
#[error("data thread {thread} did not answer within {} s", ANSWER.as_secs())]
pub struct Silent {
    pub thread: usize,
}

/// What was asked of a thread, and by when it must answer.
#[derive(Debug)]
pub(super) struct Asked<T> {
    thread: usize,
    deadline: Instant,
    answered: Option<oneshot::Receiver<T>>,
}

impl Line {
    pub(super) fn new(thread: usize) -> (Self, mpsc::Receiver<Order>) {
        let (sender, orders) = mpsc::channel(LINE);
        (Self { thread, sender }, orders)
    }

    /// Tells the thread; its answer is waited for apart, so that several threads work at once.
    pub(super) async fn tell<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Asked<T> {
        self.tell_until(Instant::now() + ANSWER, order).await
    }

    pub(super) async fn tell_until<T>(
        &self,
        deadline: Instant,
        order: impl FnOnce(oneshot::Sender<T>) -> Order,
    ) -> Asked<T> {
        let (answer, answered) = oneshot::channel();
        let told = timeout_at(deadline, self.sender.send(order(answer))).await;
        Asked { thread: self.thread, deadline, answered: matches!(told, Ok(Ok(()))).then_some(answered) }
    }
}

impl<T> Asked<T> {
    pub(super) async fn answer(self) -> Result<T, Silent> {
        let silent = Silent { thread: self.thread };
        let Some(answered) = self.answered else { return Err(silent) };
        timeout_at(self.deadline, answered).await.ok().and_then(Result::ok).ok_or(silent)
    }
}
