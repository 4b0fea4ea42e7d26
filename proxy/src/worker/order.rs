//! What a data thread is told, and the line to it. Every order has an answer, and every answer a deadline.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use handoff::ledger::{LedgerError, Segment};
use handoff::vault::Depositor;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::config::order::Unreachable;
use crate::listener::{Turn, Unheld};
use crate::pool::Pool;
use crate::session::{Carried, Ending, Frozen, Measured, Scope};

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
    /// Deposits sessions with the keeper by this from now on, also those there are. `None`: with nobody.
    DepositWith {
        depositor: Option<Arc<Depositor>>,
        answer: oneshot::Sender<()>,
    },
    /// The keeper does not keep this session.
    TurnAway {
        id: u64,
        answer: oneshot::Sender<()>,
    },
    /// Stops up to `most` sessions that have been idle for so long, none of `but`, and answers with them and with when it began,
    /// nanoseconds. If nobody takes the answer, they go on.
    Freeze {
        most: usize,
        idle: Duration,
        but: Arc<HashSet<u64>>,
        answer: oneshot::Sender<(Frozen, u64)>,
    },
    /// Goes on with sessions it has stopped.
    Resume {
        carried: Vec<Carried>,
        answer: oneshot::Sender<()>,
    },
    /// Gives sessions it has stopped to another generation, each to the thread named, unless the permit is void by then.
    /// Answers which went.
    Release {
        sessions: Vec<(u64, u16)>,
        generation: u32,
        permit: Permit,
        answer: oneshot::Sender<Vec<u64>>,
    },
    /// Makes ready to count sessions of this ledger segment.
    CountIn {
        segment: u32,
        answer: oneshot::Sender<Result<(), Unheld>>,
    },
    /// Holds sessions of another generation; answers for each in turn.
    Hold {
        carried: Vec<Carried>,
        answer: oneshot::Sender<Vec<Result<(), Unheld>>>,
    },
    /// Goes on with those held that are ours by now, lets go of the others; answers how many go on.
    Start {
        ids: Vec<u64>,
        answer: oneshot::Sender<u64>,
    },
    /// Lets go of sessions it holds.
    LetGo {
        ids: Vec<u64>,
        answer: oneshot::Sender<()>,
    },
}

#[derive(Debug, Clone)]
pub(super) enum Which {
    Scope(Scope),
    These(Vec<u64>),
}

/// To do something that must either be done or never be done: who gave it can take it back until it is used.
#[derive(Debug, Clone, Default)]
pub(super) struct Permit(Arc<AtomicU8>);

impl Permit {
    const USED: u8 = 1;
    const VOID: u8 = 2;

    /// `false`: it was taken back.
    pub(super) fn take(&self) -> bool {
        self.set(Self::USED)
    }

    /// `false`: it is used already.
    pub(super) fn void(&self) -> bool {
        self.set(Self::VOID)
    }

    fn set(&self, to: u8) -> bool {
        self.0.compare_exchange(0, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
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

    /// Tells the thread, and does not wait for an answer; but for its place in the line, whenever that is free.
    pub(super) async fn leave_word<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) {
        // A thread that has ended has no sessions.
        let _ = self.sender.send(order(oneshot::channel().0)).await;
    }

    /// Gives these sessions to another generation; says which went. Those it does not name did not go and never will, also if
    /// the thread was stuck.
    pub(super) async fn release(&self, sessions: Vec<(u64, u16)>, generation: u32) -> Vec<u64> {
        let permit = Permit::default();
        let release = |answer| Order::Release { sessions, generation, permit: permit.clone(), answer };
        let mut asked = self.tell(release).await;
        let Some(answered) = &mut asked.answered else { return Vec::new() };
        match timeout_at(asked.deadline, &mut *answered).await {
            Ok(gone) => gone.unwrap_or_default(),
            Err(_) if permit.void() => Vec::new(),
            // It has begun, and this is a few stores.
            Err(_) => answered.await.unwrap_or_default(),
        }
    }

    /// Tells the thread whenever it listens again: for what must not be lost. It ends only with the thread.
    pub(super) async fn insist<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.sender.send(order(answer)).await.ok()?;
        answered.await.ok()
    }
}

impl<T> Asked<T> {
    pub(super) async fn answer(self) -> Result<T, Silent> {
        let silent = Silent { thread: self.thread };
        let Some(mut answered) = self.answered else { return Err(silent) };
        match timeout_at(self.deadline, &mut answered).await {
            Ok(answer) => answer.map_err(|_| silent),
            Err(_) => {
                // What is sent in this very moment must not be lost: it may hold sockets.
                answered.close();
                answered.try_recv().map_err(|_| silent)
            }
        }
    }
}
