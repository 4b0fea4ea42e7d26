//! What the sessions of a listener go by, and how many there may be.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::book::ListenerBook;
use crate::config::{TcpSettings, Timeouts};
use crate::observe::names;
use crate::observe::reason::Paused;
use crate::pool::Pool;

/// Settings of a listener, as of one version of the plan. A session keeps those it began with.
#[derive(Debug)]
pub struct Terms {
    /// Unique in this process.
    pub key: u64,
    pub listener: String,
    pub pool: Arc<Pool>,
    pub max_sessions: Option<u64>,
    /// Its sessions are to outlive this process.
    pub survive_crash: bool,
    pub tcp: TcpSettings,
    pub timeouts: Timeouts,
}

/// The sessions of this process.
#[derive(Debug)]
pub struct Census {
    live: AtomicUsize,
    most: AtomicUsize,
    /// Of those, by data thread.
    by_thread: Box<[AtomicUsize]>,
    /// What came of looking for a backend, by data thread.
    searches: Box<[Searches]>,
    emptied: Notify,
}

/// Written by one thread only; on a cache line of its own, so that counting costs the others nothing.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Searches {
    begun: AtomicU64,
    failed: AtomicU64,
}

impl Census {
    pub fn new(most: usize, threads: usize) -> Self {
        let by_thread = (0..threads).map(|_| AtomicUsize::new(0)).collect();
        let searches = (0..threads).map(|_| Searches::default()).collect();
        Self { live: AtomicUsize::new(0), most: AtomicUsize::new(most), by_thread, searches, emptied: Notify::new() }
    }

    /// Sessions that have looked for a backend, and those of them that found none; since the start of the process.
    pub fn searches(&self) -> (u64, u64) {
        let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        self.searches.iter().fold((0, 0), |(begun, failed), it| (begun + load(&it.begun), failed + load(&it.failed)))
    }

    fn searched(&self, thread: usize, found: bool) {
        let Some(searches) = self.searches.get(thread) else { return };
        // Only this thread writes here: no read-modify-write is needed.
        searches.begun.store(searches.begun.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        if !found {
            searches.failed.store(searches.failed.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }

    pub fn of_thread(&self, thread: usize) -> Option<usize> {
        self.by_thread.get(thread).map(|sessions| sessions.load(Ordering::Relaxed))
    }

    pub(crate) fn of_all_threads(&self) -> usize {
        self.by_thread.iter().map(|sessions| sessions.load(Ordering::Relaxed)).sum()
    }

    /// The fewest sessions a thread has, and which thread that is.
    pub fn least_busy(&self) -> Option<(usize, usize)> {
        let busy = self.by_thread.iter().map(|sessions| sessions.load(Ordering::Relaxed));
        busy.enumerate().map(|(thread, sessions)| (sessions, thread)).min()
    }

    /// A session begins on this thread.
    pub(crate) fn seated(&self, thread: usize) {
        if let Some(sessions) = self.by_thread.get(thread) {
            sessions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A session of this thread is over.
    pub(crate) fn unseated(&self, thread: usize) {
        if let Some(sessions) = self.by_thread.get(thread) {
            sessions.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub fn live(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }

    pub fn set_most(&self, most: usize) {
        self.most.store(most, Ordering::SeqCst);
    }

    /// Resolves when no session is left.
    pub async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.live() == 0 {
                return;
            }
            emptied.await;
        }
    }

    /// A session that exists already: it is none more.
    fn admit(&self) {
        self.live.fetch_add(1, Ordering::SeqCst);
    }

    fn enter(&self) -> bool {
        let most = self.most.load(Ordering::SeqCst);
        let entered = self.live.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n < most).then_some(n + 1));
        entered.is_ok()
    }

    fn leave(&self) {
        if self.live.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.emptied.notify_waiters();
        }
    }
}

/// The right to one session: taken before the accept, held until the session is over.
#[derive(Debug)]
pub struct Seat {
    census: Arc<Census>,
    thread: usize,
    listener: Rc<ListenerBook>,
    /// Tells the accept loops of this thread that there is room again.
    freed: Rc<Notify>,
    /// A session had it. (A seat that was only tried for must wake nobody: two loops at a limit would wake each other.)
    was_used: bool,
}

impl Seat {
    pub fn take(
        census: &Arc<Census>,
        thread: usize,
        listener: &Rc<ListenerBook>,
        freed: &Rc<Notify>,
        limit: Option<u64>,
    ) -> Result<Self, Paused> {
        if !census.enter() {
            return Err(Paused::SessionLimit);
        }
        // Raised before it is compared, here as in every other thread: two that come together may both step back, but
        // never both stay. From here on the drop takes back both.
        let seat = Self::raised(census, thread, listener, freed);
        match limit {
            Some(limit) if seat.listener.held() > limit => Err(Paused::ListenerLimit),
            _ => Ok(seat),
        }
    }

    /// For a session that was admitted once, in another process: limits turn new ones away, which wait until it is below them.
    pub fn keep(census: &Arc<Census>, thread: usize, listener: &Rc<ListenerBook>, freed: &Rc<Notify>) -> Self {
        census.admit();
        Self::raised(census, thread, listener, freed)
    }

    fn raised(census: &Arc<Census>, thread: usize, listener: &Rc<ListenerBook>, freed: &Rc<Notify>) -> Self {
        listener.gauges.raise(names::listener::HELD);
        let (census, listener, freed) = (Arc::clone(census), Rc::clone(listener), Rc::clone(freed));
        Self { census, thread, listener, freed, was_used: false }
    }

    /// Its session has found a backend, or none.
    pub(super) fn searched(&self, found: bool) {
        self.census.searched(self.thread, found);
    }

    /// A session begins.
    pub(super) fn occupy(mut self) -> Self {
        self.was_used = true;
        self.census.seated(self.thread);
        self
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.listener.gauges.lower(names::listener::HELD);
        self.census.leave();
        if self.was_used {
            self.census.unseated(self.thread);
            self.freed.notify_waiters();
        }
    }
}
