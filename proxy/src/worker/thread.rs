//! A data thread: a current-thread runtime that owns its sessions from accept to close, and obeys the control thread.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use handoff::ledger::{LedgerError, Segment};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::order::{ANSWER, Line, Order, Which};
use super::plane::PlaneError;
use super::probe;
use crate::listener::{Acceptor, Floor, Setup, Turn};
use crate::session::{AbortOnPanic, Book, Census, Measured, allow_pipes, clock};

/// What a thread begins with.
#[derive(Debug, Clone)]
pub(super) struct Start {
    pub(super) thread: u16,
    pub(super) generation: u32,
    pub(super) segments: Vec<Arc<Segment>>,
    pub(super) setup: Arc<ArcSwap<Setup>>,
    pub(super) census: Arc<Census>,
    /// Pipes it may have at a time.
    pub(super) pipes: usize,
    /// Ends the thread.
    pub(super) end: CancellationToken,
}

/// Starts a data thread, and waits until it is ready for orders.
pub(super) fn spawn(start: Start) -> Result<(Line, JoinHandle<()>), PlaneError> {
    let thread = start.thread;
    let (line, orders) = Line::new(usize::from(thread));
    let (ready, is_ready) = sync_channel(1);
    let run = move || {
        let guard = AbortOnPanic;
        run(start, orders, &ready);
        drop(guard);
    };
    let failed = |source| PlaneError::Start { thread, source };
    let handle = std::thread::Builder::new().name(format!("data-{thread}")).spawn(run).map_err(failed)?;
    let silent = |_| failed(io::ErrorKind::TimedOut.into());
    is_ready.recv_timeout(ANSWER).map_err(silent)??;
    Ok((line, handle))
}

fn run(start: Start, orders: mpsc::Receiver<Order>, ready: &SyncSender<Result<(), PlaneError>>) {
    // What it finds when its turn comes is more at a time: see decision 9.
    if let Err(error) = handoff::os::work_in_batches() {
        tracing::debug!(thread = start.thread, %error, "the scheduler treats it as any other thread");
    }
    let mut builder = Builder::new_current_thread();
    builder.enable_all().global_queue_interval(ORDERS_EVERY);
    let runtime = match builder.build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(source) => {
            let _ = ready.send(Err(PlaneError::Start { thread: start.thread, source }));
            return;
        }
    };
    let end = start.end.clone();
    runtime.block_on(async {
        match DataThread::new(start) {
            Ok(thread) => {
                let _ = ready.send(Ok(()));
                // A task, not the future that is blocked on: that one has its turn only after 61 sessions.
                let obeying = AbortOnDropHandle::new(tokio::task::spawn_local(thread.obey_all(orders)));
                end.run_until_cancelled(obeying).await;
            }
            Err(e) => {
                let _ = ready.send(Err(e));
            }
        }
    });
}

/// Turns of sessions between two looks for orders of another thread (one load while there is none). A session that moves to
/// another worker stands still for three such orders, and a turn may take a quarter of a millisecond.
const ORDERS_EVERY: u32 = 2;

#[derive(Debug)]
struct DataThread {
    number: u16,
    generation: u32,
    floor: Rc<Floor>,
    acceptors: HashMap<String, Accepting>,
    /// What runs beside the accept loops: queues that are being emptied, probes.
    beside: TaskTracker,
    _beat: AbortOnDropHandle<()>,
    _custody: AbortOnDropHandle<()>,
}

/// An accept loop, and how to stop it.
#[derive(Debug)]
struct Accepting {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

/// Keeps a timer near while sessions begin. The runtime wakes itself through a descriptor whenever a timer is set that is
/// due before all others; the timers of a new session (connect, half-close) are seconds away, and so no longer are. The same
/// beat looks after sessions that have begun not long ago.
async fn beat(floor: Rc<Floor>) {
    loop {
        let before = floor.table().opened();
        sleep(BEAT).await;
        if !floor.table().look_after_young() && floor.table().opened() == before {
            floor.table().opens().await;
        }
    }
}

/// Tells the keeper what it did not take at once.
async fn keep_up(floor: Rc<Floor>) {
    let _guard = AbortOnPanic;
    floor.table().keep_up().await;
}

/// Nearer than most timeouts; 20 wake-ups a second cost nothing while sessions come.
const BEAT: Duration = Duration::from_millis(50);

impl DataThread {
    fn new(start: Start) -> Result<Self, PlaneError> {
        let Start { thread, generation, segments, setup, census, pipes, .. } = start;
        allow_pipes(pipes);
        handoff::os::confess_as(thread);
        let book = Book::lease(segments, generation, thread)?.ok_or(PlaneError::NoSegment)?;
        let floor = Rc::new(Floor::new(setup, book, census, usize::from(thread)));
        let beat = AbortOnDropHandle::new(tokio::task::spawn_local(beat(Rc::clone(&floor))));
        let custody = AbortOnDropHandle::new(tokio::task::spawn_local(keep_up(Rc::clone(&floor))));
        let (acceptors, beside) = (HashMap::new(), TaskTracker::new());
        Ok(Self { number: thread, generation, floor, acceptors, beside, _beat: beat, _custody: custody })
    }

    async fn obey_all(mut self, mut orders: mpsc::Receiver<Order>) {
        let _guard = AbortOnPanic;
        while let Some(order) = orders.recv().await {
            self.obey(order).await;
        }
    }

    /// Who asked may have given up: an answer that nobody takes is no matter.
    async fn obey(&mut self, order: Order) {
        let table = self.floor.table();
        match order {
            Order::Poll { sockets, answer } => drop(answer.send(self.poll(sockets))),
            Order::Stop { only, answer } => {
                self.stop(only).await;
                let _ = answer.send(clock::exact_ns());
            }
            Order::RunOut { sockets, until, answer } => self.run_out(sockets, until, answer),
            Order::Probe { pools, answer } => drop(self.beside.spawn_local(probe::run(pools, answer))),
            Order::Segments { segments, answer } => drop(answer.send(self.turn_to(segments))),
            Order::Measure { which, answer } => drop(answer.send(self.measure(&which))),
            Order::Close { ids, ending, answer } => drop(answer.send(table.close(&ids, ending))),
            Order::DepositWith { depositor, answer } => {
                table.deposit_with(self.number, depositor);
                let _ = answer.send(());
            }
            Order::TurnAway { id, answer } => {
                table.turn_away(id);
                let _ = answer.send(());
            }
            Order::Freeze { most, idle, but, answer } => {
                let begun = clock::exact_ns();
                if let Err((unwanted, _)) = answer.send((table.freeze(most, idle, &but), begun)) {
                    table.resume(unwanted.carried);
                }
            }
            Order::Resume { carried, answer } => {
                table.resume(carried);
                let _ = answer.send(());
            }
            Order::Release { sessions, generation, permit, answer } => {
                let gone = if permit.take() { table.release(&sessions, generation) } else { Vec::new() };
                let _ = answer.send(gone);
            }
            Order::CountIn { segment, answer } => drop(answer.send(self.floor.count_in(segment))),
            Order::Hold { carried, answer } => {
                let _ = answer.send(carried.into_iter().map(|carried| self.floor.hold(carried)).collect());
            }
            Order::Start { ids, answer } => drop(answer.send(table.start(&ids))),
            Order::LetGo { ids, answer } => {
                table.let_go(&ids);
                let _ = answer.send(());
            }
        }
    }

    fn poll(&mut self, sockets: Vec<(String, OwnedFd, Arc<Turn>)>) -> Result<u64, (String, io::Error)> {
        let first = clock::exact_ns();
        for (id, socket, turn) in sockets {
            let acceptor =
                Acceptor::new(id.clone(), socket, Some(turn), Rc::clone(&self.floor)).map_err(|e| (id.clone(), e))?;
            let Some(acceptor) = acceptor else { continue };
            let stop = CancellationToken::new();
            let task = tokio::task::spawn_local(acceptor.run(stop.clone()));
            self.acceptors.insert(id, Accepting { stop, task });
        }
        Ok(first)
    }

    async fn stop(&mut self, only: Option<Vec<String>>) {
        let ids = only.unwrap_or_else(|| self.acceptors.keys().cloned().collect());
        let stopped: Vec<_> = ids.iter().filter_map(|id| self.acceptors.remove(id)).collect();
        stopped.iter().for_each(|accepting| accepting.stop.cancel());
        for accepting in stopped {
            let _ = accepting.task.await;
        }
    }

    fn run_out(&self, sockets: Vec<(String, OwnedFd)>, until: Instant, answer: oneshot::Sender<()>) {
        let floor = Rc::clone(&self.floor);
        self.beside.spawn_local(async move {
            for (id, socket) in sockets {
                match Acceptor::new(id.clone(), socket, None, Rc::clone(&floor)) {
                    Ok(Some(acceptor)) => {
                        if tokio::time::timeout_at(until, acceptor.run_out()).await.is_err() {
                            tracing::warn!(socket = id, "connections were still queued when their time was over");
                        }
                    }
                    Ok(None) => {}
                    Err(e) => tracing::warn!(socket = id, "cannot accept what is queued: {e}"),
                }
            }
            let _ = answer.send(());
        });
    }

    fn turn_to(&self, segments: Vec<Arc<Segment>>) -> Result<(), LedgerError> {
        if let Some(book) = Book::lease(segments, self.generation, self.number)? {
            self.floor.turn_to(book);
        }
        Ok(())
    }

    fn measure(&self, which: &Which) -> Vec<Measured> {
        match which {
            Which::Scope(scope) => self.floor.table().measure_scope(scope),
            Which::These(ids) => self.floor.table().measure(ids),
        }
    }
}
