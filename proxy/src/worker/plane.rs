//! The data plane of a worker, as its control thread sees it: threads that are told, sockets that are kept, one setup
//! that is swapped.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use handoff::ledger::{LedgerError, Segment};
use rustix::fs::OFlags;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::drain::{self, DrainOrder};
use super::order::{ANSWER, Line, Order, Silent};
use super::thread::{self, Start};
use super::{give, probe, take};
use crate::config::order::{Notice, Unreachable};
use crate::config::plan::Plan;
use crate::listener::{Setup, Turn, UnknownPool, names_of};
use crate::session::{Census, Ending, Scope};

/// Data threads and what they share. Dropped, it ends at once: what is left of sessions is reset.
#[derive(Debug)]
pub struct Plane {
    generation: u32,
    lines: Vec<Line>,
    threads: Vec<JoinHandle<()>>,
    setup: Arc<ArcSwap<Setup>>,
    census: Arc<Census>,
    segments: Vec<Arc<Segment>>,
    /// Listening sockets by id. Threads poll duplicates.
    sockets: BTreeMap<String, OwnedFd>,
    is_polling: bool,
    drains: Mutex<JoinSet<()>>,
    /// How to take a drain back.
    draining: Mutex<Vec<(Scope, AbortHandle)>>,
    end: CancellationToken,
}

#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    #[error("data thread {thread} does not start: {source}")]
    Start { thread: u16, source: io::Error },
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("no ledger segment to count in")]
    NoSegment,
    #[error("the ledger has no name for kind {kind} {text:?}: it must be entered before a plan that counts under it")]
    NoName { kind: u16, text: String },
    #[error(transparent)]
    UnknownPool(#[from] UnknownPool),
    #[error("listening socket {0} was not handed over")]
    NoSocket(String),
    #[error("listening socket {id} cannot be polled: {source}")]
    Socket { id: String, source: io::Error },
    #[error(transparent)]
    Silent(#[from] Silent),
}

impl Plane {
    /// Starts the data threads; nothing is polled yet, and no socket is held.
    pub fn start(plan: Plan, generation: u32, segments: Vec<Arc<Segment>>) -> Result<Self, PlaneError> {
        check_names(&plan, &segments)?;
        let setup = Arc::new(ArcSwap::from_pointee(Setup::build(&plan, &Setup::default())?));
        let census = Arc::new(Census::new(plan.max_sessions, plan.threads.max(1)));
        let mut plane = Self {
            generation,
            lines: Vec::new(),
            threads: Vec::new(),
            setup: Arc::clone(&setup),
            census: Arc::clone(&census),
            segments: segments.clone(),
            sockets: BTreeMap::new(),
            is_polling: false,
            drains: Mutex::default(),
            draining: Mutex::default(),
            end: CancellationToken::new(),
        };
        let pipes = pipes_of_thread(&plan);
        for thread in (0..u16::MAX).take(plan.threads.max(1)) {
            let (setup, census) = (Arc::clone(&setup), Arc::clone(&census));
            let (segments, end) = (segments.clone(), plane.end.clone());
            let (line, handle) = thread::spawn(Start { thread, generation, segments, setup, census, pipes, end })?;
            plane.lines.push(line);
            plane.threads.push(handle);
        }
        Ok(plane)
    }

    /// Turns to another plan; `sockets` are added to those held. Pools and listener settings change in one store: what is
    /// accepted after this returns goes by them. Sockets that no listener has any more are polled by no thread, and our
    /// copies of them closed, when this returns. The number of threads stays. On an error before any thread was told,
    /// nothing has changed; [`PlaneError::Socket`] and [`PlaneError::Silent`] leave the plan half done.
    pub async fn apply(&mut self, plan: Plan, sockets: Vec<(String, OwnedFd)>) -> Result<(), PlaneError> {
        check_names(&plan, &self.segments)?;
        let setup = Setup::build(&plan, &self.setup.load())?;
        let added: BTreeMap<String, OwnedFd> =
            sockets.into_iter().filter(|(id, _)| !self.sockets.contains_key(id)).collect();
        added.iter().try_for_each(|(id, socket)| check_socket(id, socket))?;
        let wanted = setup.sockets();
        if let Some(missing) = wanted.iter().find(|id| !self.sockets.contains_key(**id) && !added.contains_key(**id)) {
            return Err(PlaneError::NoSocket((*missing).into()));
        }
        let is_gone = |id: &&String| !wanted.contains(id.as_str());
        let gone: Vec<String> = self.sockets.keys().filter(is_gone).cloned().collect();
        let added: BTreeMap<String, OwnedFd> = added.into_iter().filter(|(id, _)| !is_gone(&id)).collect();
        // All that may fail for want of descriptors comes before anything is changed.
        let polled = if self.is_polling { self.duplicates(&added)? } else { Vec::new() };
        if !gone.is_empty() {
            self.stop_polling(Some(gone.clone())).await?;
        }
        self.census.set_most(plan.max_sessions);
        self.setup.store(Arc::new(setup));
        self.sockets.retain(|id, _| !gone.contains(id));
        let is_more = !added.is_empty();
        self.sockets.extend(added);
        if self.is_polling && is_more {
            self.start_polling(polled).await?;
        }
        Ok(())
    }

    /// Starts polling all sockets on all threads; says when the first was, `CLOCK_MONOTONIC` nanoseconds.
    pub async fn poll(&mut self) -> Result<u64, PlaneError> {
        if self.is_polling {
            return Ok(crate::session::clock::exact_ns());
        }
        let polled = self.duplicates(&self.sockets)?;
        match self.start_polling(polled).await {
            Ok(first) => {
                self.is_polling = true;
                Ok(first)
            }
            Err(e) => {
                // All or none: what some threads have begun is taken back.
                self.stop_polling(None).await?;
                Err(e)
            }
        }
    }

    /// Stops polling; says when the last was, `CLOCK_MONOTONIC` nanoseconds. No thread has a copy of a listening socket
    /// then; ours are kept. What was accepted is served.
    pub async fn stop(&mut self) -> Result<u64, PlaneError> {
        let last = self.stop_polling(None).await?;
        self.is_polling = false;
        Ok(last)
    }

    /// New sessions are counted in this segment from now on. It must have all names of the plan.
    pub async fn add_segment(&mut self, segment: Arc<Segment>) -> Result<(), PlaneError> {
        self.segments.push(segment);
        let mut asked = Vec::new();
        for line in &self.lines {
            let segments = self.segments.clone();
            asked.push(line.tell(|answer| Order::Segments { segments, answer }).await);
        }
        for answer in asked {
            answer.answer().await??;
        }
        Ok(())
    }

    /// Ends these sessions by force; says how many were still there.
    pub async fn close(&self, ids: Vec<u64>, ending: Ending) -> u64 {
        let mut asked = Vec::new();
        for line in &self.lines {
            let ids = ids.clone();
            asked.push(line.tell(|answer| Order::Close { ids, ending, answer }).await);
        }
        let mut closed = 0;
        for answer in asked {
            match answer.answer().await {
                Ok(n) => closed += n,
                Err(e) => tracing::warn!("close: {e}"),
            }
        }
        closed
    }

    /// The listening sockets, by id.
    pub fn sockets(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.sockets.iter().map(|(id, socket)| (id.as_str(), socket.as_fd()))
    }

    pub fn segments(&self) -> &[Arc<Segment>] {
        &self.segments
    }

    pub fn is_polling(&self) -> bool {
        self.is_polling
    }

    /// Sessions of this process, from accept to close.
    pub fn sessions(&self) -> usize {
        self.census.live()
    }

    /// Sessions that have looked for a backend, and those of them that found none.
    pub fn searches(&self) -> (u64, u64) {
        self.census.searches()
    }

    /// Connects once to each of these pools, beside everything else; resolves with those that cannot be reached.
    pub fn probe(&self, pools: &[String]) -> impl Future<Output = Vec<Unreachable>> + Send + use<> {
        let setup = self.setup.load();
        let pools = pools.iter().filter_map(|name| setup.pool(name).cloned()).collect();
        probe::share_out(self.lines.clone(), pools)
    }

    /// Gives all sessions to the worker at the other end of this path, beside everything else; those that are connecting follow
    /// once they are established. Resolves when none is left, when the path ends, or soon after `stop`; what did not go by then
    /// goes on here.
    pub fn give(
        &self,
        path: u64,
        end: OwnedFd,
        notices: mpsc::Sender<Notice>,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (lines, census) = (self.lines.clone(), Arc::clone(&self.census));
        let (uid, generation) = (own_uid(), self.generation);
        give::run(give::Start { path, end, uid, generation, lines, census, notices, stop })
    }

    /// Takes sessions from the worker at the other end of this path, beside everything else. Resolves when the path ends.
    pub fn take(&self, path: u64, end: OwnedFd) -> impl Future<Output = ()> + Send + use<> {
        let (lines, census) = (self.lines.clone(), Arc::clone(&self.census));
        take::run(take::Start { path, end, uid: own_uid(), generation: self.generation, lines, census })
    }

    /// To the data threads, by number.
    pub(super) fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Resolves when no session is left.
    pub async fn emptied(&self) {
        self.census.emptied().await;
    }

    /// Begins to drain, and returns. Several may be under way; what one has closed the other no longer finds.
    pub async fn drain(&self, order: DrainOrder) {
        let mut drains = self.drains.lock().unwrap_or_else(PoisonError::into_inner);
        while drains.try_join_next().is_some() {}
        let scope = order.scope.clone();
        let handle = drains.spawn(drain::run(order, self.lines.clone()));
        let mut draining = self.draining.lock().unwrap_or_else(PoisonError::into_inner);
        draining.retain(|(_, handle)| !handle.is_finished());
        draining.push((scope, handle));
    }

    /// Takes back the drains of exactly this scope: what they have not closed stays.
    pub fn undrain(&self, scope: &Scope) {
        let draining = self.draining.lock().unwrap_or_else(PoisonError::into_inner);
        draining.iter().filter(|(drained, _)| drained == scope).for_each(|(_, handle)| handle.abort());
    }

    /// Serves what the listening sockets have queued, for no longer than `limit`; to be called after [`Self::stop`] and
    /// before the last copies of the sockets are closed, which would reset it.
    pub async fn accept_queue(&mut self, limit: Duration) -> Result<(), PlaneError> {
        let until = Instant::now() + limit;
        let mut asked = Vec::new();
        for (position, line) in self.lines.iter().enumerate() {
            let share = self.sockets.iter().skip(position).step_by(self.lines.len());
            let sockets = share.map(duplicate).collect::<Result<_, _>>()?;
            asked.push(line.tell_until(until + ANSWER, |answer| Order::RunOut { sockets, until, answer }).await);
        }
        for answer in asked {
            answer.answer().await?;
        }
        Ok(())
    }

    /// Closes our copies of the listening sockets, for good; to be called after [`Self::stop`].
    pub fn close_listeners(&mut self) {
        self.sockets.clear();
    }

    /// A duplicate of each of these for every thread, and whose turn is first.
    fn duplicates(&self, sockets: &BTreeMap<String, OwnedFd>) -> Result<Vec<Vec<Polled>>, PlaneError> {
        let turns: Vec<_> = (0..sockets.len()).map(|first| Arc::new(Turn::new(self.lines.len(), first))).collect();
        let of_thread = |_: &Line| {
            let held = sockets.iter().zip(&turns);
            held.map(|(socket, turn)| duplicate(socket).map(|(id, copy)| (id, copy, Arc::clone(turn)))).collect()
        };
        self.lines.iter().map(of_thread).collect()
    }

    async fn start_polling(&self, polled: Vec<Vec<Polled>>) -> Result<u64, PlaneError> {
        let mut asked = Vec::new();
        for (line, sockets) in self.lines.iter().zip(polled) {
            asked.push(line.tell(|answer| Order::Poll { sockets, answer }).await);
        }
        let mut first = u64::MAX;
        for answer in asked {
            let begun = answer.answer().await?.map_err(|(id, source)| PlaneError::Socket { id, source })?;
            first = first.min(begun);
        }
        Ok(first)
    }

    async fn stop_polling(&self, only: Option<Vec<String>>) -> Result<u64, PlaneError> {
        let mut asked = Vec::new();
        for line in &self.lines {
            let only = only.clone();
            asked.push(line.tell(|answer| Order::Stop { only, answer }).await);
        }
        let mut last = 0;
        for answer in asked {
            last = last.max(answer.answer().await?);
        }
        Ok(last)
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.end.cancel();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Workers of one keeper run under one uid.
fn own_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

fn check_names(plan: &Plan, segments: &[Arc<Segment>]) -> Result<(), PlaneError> {
    let newest = segments.last().ok_or(PlaneError::NoSegment)?;
    match names_of(plan).into_iter().find(|name| newest.find(name.kind, &name.text).is_none()) {
        Some(name) => Err(PlaneError::NoName { kind: name.kind, text: name.text }),
        None => Ok(()),
    }
}

/// What the descriptor limit leaves beside sessions (two each), listening sockets (one for us, one for each thread) and what
/// a process has anyway; two descriptors a pipe.
fn pipes_of_thread(plan: &Plan) -> usize {
    let threads = plan.threads.max(1);
    let sockets: usize = plan.listeners.iter().map(|listener| listener.sockets.len()).sum();
    let taken = plan.max_sessions * 2 + sockets * (1 + threads) + OTHERS;
    usize::try_from(handoff::channel::limit()).unwrap_or(usize::MAX).saturating_sub(taken) / 2 / threads
}

/// Standard streams, the channel, segments, and three descriptors a runtime; and some to spare.
const OTHERS: usize = 64;

/// A listening socket for one thread: its id, a duplicate, and whose turn it is to poll it.
type Polled = (String, OwnedFd, Arc<Turn>);

/// A blocking listening socket would stop a thread for good when another takes the connection it was woken for; and the
/// flag is shared by all processes that have the socket, so it is not ours to change.
fn check_socket(id: &str, socket: &OwnedFd) -> Result<(), PlaneError> {
    let refused = |source| PlaneError::Socket { id: id.into(), source };
    let flags = rustix::fs::fcntl_getfl(socket).map_err(|e| refused(e.into()))?;
    if flags.contains(OFlags::NONBLOCK) {
        return Ok(());
    }
    Err(refused(io::Error::other("it is in blocking mode")))
}

fn duplicate((id, socket): (&String, &OwnedFd)) -> Result<(String, OwnedFd), PlaneError> {
    match socket.try_clone() {
        Ok(copy) => Ok((id.clone(), copy)),
        Err(source) => Err(PlaneError::Socket { id: id.clone(), source }),
    }
}
