//! The worker's control thread: takes the hand-over, then follows the keeper's orders. It holds the listening sockets' life
//! in its hands, never a session's bytes.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use caps::CapSet;
use handoff::HandoffError;
use handoff::channel::{Channel, ChannelError, Peer};
use handoff::door::Door;
use handoff::ledger::{LedgerError, Segment};
use handoff::message::Pulse;
use handoff::successor::{Accepted, Identity, Order as Word, Reply, Successor};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::drain::DrainOrder;
use super::paths::Paths;
use super::plane::{Plane, PlaneError};
use super::vault::Vault;
use crate::config::order::{Answer, Notice, Order, Purpose, Scope};
use crate::config::plan::Plan;
use crate::config::{Drain, OnKeeperDeath};
use crate::observe::log;
use crate::observe::reason::{Cause, Reason};
use crate::session::{self, Ending};

#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("standard input is not the keeper's channel: {0}")]
    Channel(#[from] ChannelError),
    #[error("{0}")]
    Handoff(#[from] HandoffError),
    #[error("a ledger segment is not usable: {0}")]
    Ledger(#[from] LedgerError),
    #[error("the plan cannot be read: {0}")]
    Plan(#[from] serde_json::Error),
    #[error("{0}")]
    Plane(#[from] PlaneError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Longest wait for the keeper's words before READY; the keeper's own `ready_timeout` is usually shorter.
const HANDOVER: Duration = Duration::from_secs(300);
const HEARTBEAT: Duration = Duration::from_millis(500);

/// Runs one generation until its last session has ended.
pub fn run() -> Result<(), WorkerError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work())
}

async fn work() -> Result<(), WorkerError> {
    let _deaf = deaf_to_terminals()?;
    drop_capabilities();
    let mut terminate = signal(SignalKind::terminate())?;
    let peer = Peer { pid: None, uid: nix::unistd::geteuid().as_raw() };
    let channel = Channel::new(handoff::os::take_stdin()?, peer)?;
    let me = Identity { version: crate::version::VERSION, build: crate::version::build() };
    let accepted = Successor::accept(channel, me, Instant::now() + HANDOVER).await?;
    let Accepted { mut successor, generation, sockets, segments, plan } = accepted;
    let plan: Plan = serde_json::from_slice(&plan)?;
    make_room();
    let _log = log::start(plan.log, plan.log_format);
    let _ = nix::sys::prctl::set_name(&std::ffi::CString::new(format!("proxyd-{generation}")).unwrap_or_default());
    let mut segments: Vec<Arc<Segment>> =
        segments.into_iter().map(|fd| Segment::open(fd).map(Arc::new)).collect::<Result<_, _>>()?;
    let keeperless = Keeperless::of(&plan);
    let mut plane = Plane::start(plan.clone(), generation, std::mem::take(&mut segments))?;
    plane.apply(plan, sockets.into_iter().map(|(entry, fd)| (entry.id, fd)).collect()).await?;
    successor.ready().await?;
    let mut control = Control::new(generation, plane, keeperless);
    loop {
        let Err(error) = control.follow(&mut successor).await else { return Ok(()) };
        tracing::warn!(%error, "the keeper is gone, or cannot be understood");
        // A keeper that lives sees the end of the channel, and replaces us.
        drop(successor);
        if control.keeperless.what == OnKeeperDeath::Exit {
            return Ok(());
        }
        successor = match control.orphaned(&mut terminate).await {
            Some(adopted) => adopted,
            None => return Ok(()),
        };
    }
}

/// Makes the table of descriptors as large as it may have to be, while this process has one thread. Once it has more, whoever
/// needs the descriptor for which the table is doubled waits for a grace period of RCU (fs/file.c, `expand_fdtable`): some 20 ms
/// on a busy machine, in which sessions on their way here stand still, and nobody is accepted.
fn make_room() {
    let most = i32::try_from(handoff::channel::limit()).unwrap_or(ROOM).min(ROOM);
    // The table stays as large. Without it all goes as well, but for those waits.
    let _ = rustix::io::fcntl_dupfd_cloexec(io::stdin(), most - 1);
}

/// Descriptors: half a MiB of the kernel's memory, and above that the next doubling is far.
const ROOM: i32 = 64 * 1024;

/// Signals of a terminal or of an operator are for the keeper. A handler that does nothing, where ignoring would be inherited.
fn deaf_to_terminals() -> io::Result<Vec<Signal>> {
    [
        SignalKind::interrupt(),
        SignalKind::hangup(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
        SignalKind::quit(),
    ]
    .into_iter()
    .map(signal)
    .collect()
}

/// A worker binds nothing and opens nothing: it needs no capability. The data threads, started later, have none either.
fn drop_capabilities() {
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        if let Err(error) = caps::clear(None, set) {
            // Only a kernel without capabilities refuses to take them away.
            tracing::warn!(%error, "capabilities are kept");
        }
    }
}

/// The worker as its keeper directs it.
pub(super) struct Control {
    pub(super) generation: u32,
    pub(super) plane: Plane,
    /// Ordered to exit when no session is left.
    pub(super) finishing: bool,
    /// Has polled its listeners.
    pub(super) served: bool,
    /// Handed over, and named by a plan that is still to come.
    pub(super) arriving: Vec<(String, OwnedFd)>,
    /// Probes under way, each with the id of its order.
    pub(super) probes: JoinSet<(u64, Answer)>,
    /// Sessions on their way to other workers and from them.
    paths: Paths,
    /// Where sessions are deposited.
    vault: Vault,
    /// Where another keeper knocks once this one is gone.
    pub(super) door: Option<Door>,
    /// Held for that one.
    pub(super) state: Option<String>,
    pub(super) keeperless: Keeperless,
}

/// What is done without a keeper.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keeperless {
    pub(super) what: OnKeeperDeath,
    pub(super) drain: Drain,
}

impl Keeperless {
    fn of(plan: &Plan) -> Self {
        Self { what: plan.on_keeper_death, drain: plan.drain }
    }
}

impl Control {
    fn new(generation: u32, plane: Plane, keeperless: Keeperless) -> Self {
        let (finishing, served, arriving) = (false, false, Vec::new());
        Self {
            generation,
            plane,
            finishing,
            served,
            arriving,
            probes: JoinSet::new(),
            paths: Paths::new(),
            vault: Vault::default(),
            door: None,
            state: None,
            keeperless,
        }
    }

    /// Follows orders until the work is done (`Ok`) or the keeper is gone.
    async fn follow(&mut self, keeper: &mut Successor) -> Result<(), HandoffError> {
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                word = keeper.next() => self.heed(keeper, word?).await?,
                _ = heartbeat.tick() => {
                    match keeper.send(Reply::Heartbeat(self.pulse())).await {
                        // A keeper that is stopped reads nothing; that it lives is all that matters.
                        Ok(()) | Err(HandoffError::Deadline { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                Some(Ok((id, answer))) = self.probes.join_next() => answer_with(keeper, id, &answer).await?,
                notice = self.paths.notice() => tell(keeper, &notice).await?,
                () = self.plane.emptied(), if self.finishing => {
                    for notice in self.paths.rest().await {
                        tell(keeper, &notice).await?;
                    }
                    return Ok(());
                }
            }
        }
    }

    async fn heed(&mut self, keeper: &mut Successor, word: Word) -> Result<(), HandoffError> {
        match word {
            Word::Commit => match self.plane.poll().await {
                Ok(first_poll_ns) => {
                    self.served = true;
                    keeper.send(Reply::Polling { first_poll_ns }).await
                }
                Err(error) => {
                    hung(&error);
                    Ok(())
                }
            },
            Word::Stop => match self.plane.stop().await {
                Ok(last_poll_ns) => keeper.send(Reply::Stopped { last_poll_ns }).await,
                Err(error) => {
                    hung(&error);
                    Ok(())
                }
            },
            Word::Order { id, body } => {
                let Some(answer) = self.carry_out(id, &body).await else { return Ok(()) };
                answer_with(keeper, id, &answer).await
            }
            Word::Sockets(sockets) => {
                self.arriving.extend(sockets.into_iter().map(|(entry, fd)| (entry.id, fd)));
                Ok(())
            }
            Word::Door(door) => {
                match Door::new(door) {
                    Ok(door) => self.door = Some(door),
                    Err(error) => tracing::warn!(%error, "no other keeper will be able to find this worker"),
                }
                Ok(())
            }
            Word::Path { id, role, other, end } => {
                self.paths.open(&self.plane, id, role, other, end);
                Ok(())
            }
            Word::Vault(end) => {
                self.vault.open(&self.plane, end).await;
                Ok(())
            }
            Word::Segment { fd, .. } => {
                if let Err(error) = self.grow(fd).await {
                    tracing::error!(%error, "a new ledger segment is not usable");
                }
                Ok(())
            }
        }
    }

    fn pulse(&self) -> Pulse {
        let (connects, failures) = self.plane.searches();
        Pulse { sessions: self.plane.sessions() as u64, connects: Some(connects), failures: Some(failures) }
    }

    async fn grow(&mut self, segment: OwnedFd) -> Result<(), WorkerError> {
        Ok(self.plane.add_segment(Arc::new(Segment::open(segment)?)).await?)
    }

    async fn apply(&mut self, plan: Plan) -> Result<(), PlaneError> {
        let keeperless = Keeperless::of(&plan);
        self.plane.apply(plan, std::mem::take(&mut self.arriving)).await?;
        self.keeperless = keeperless;
        Ok(())
    }

    /// `None`: it is answered later. (A probe waits for backends, and a heartbeat must not wait with it.)
    async fn carry_out(&mut self, id: u64, body: &[u8]) -> Option<Answer> {
        let order: Order = match serde_json::from_slice(body) {
            Ok(order) => order,
            Err(error) => return Some(Answer::Refused { why: format!("the order cannot be read: {error}") }),
        };
        let answer = match order {
            Order::Probe { pools } => {
                let probe = self.plane.probe(&pools);
                self.probes.spawn(async move { (id, Answer::Probed { unreachable: probe.await }) });
                return None;
            }
            Order::Apply { plan } => match self.apply(*plan).await {
                Ok(()) => Answer::Done,
                Err(error) => Answer::Refused { why: error.to_string() },
            },
            Order::Close { ids, purpose, how } => {
                let (reason, cause) = words(purpose);
                Answer::Closed { sessions: self.plane.close(ids, Ending { reason, cause, how }).await }
            }
            Order::Drain { scope, purpose, timeout, spread, how, begun_ms } => {
                let (reason, cause) = words(purpose);
                let scope = drain_scope(scope);
                self.plane.drain(DrainOrder { scope, timeout, spread, close: how, reason, cause, begun_ms }).await;
                Answer::Done
            }
            Order::Undrain { scope } => {
                self.plane.undrain(&drain_scope(scope));
                Answer::Done
            }
            Order::AcceptQueue { limit } => match self.plane.accept_queue(limit).await {
                Ok(()) => Answer::Done,
                Err(error) => Answer::Refused { why: error.to_string() },
            },
            Order::Finish => {
                self.plane.close_listeners();
                self.finishing = true;
                Answer::Done
            }
            Order::Keep { state } => {
                self.state = Some(state);
                Answer::Done
            }
        };
        Some(answer)
    }
}

async fn answer_with(keeper: &mut Successor, id: u64, answer: &Answer) -> Result<(), HandoffError> {
    let body = serde_json::to_vec(answer).unwrap_or_default();
    keeper.send(Reply::Answer { id, body: &body }).await
}

async fn tell(keeper: &mut Successor, notice: &Notice) -> Result<(), HandoffError> {
    let body = serde_json::to_vec(notice).unwrap_or_default();
    keeper.send(Reply::Notice { body: &body }).await
}

/// A data thread that does not answer cannot be mended from here: the keeper gets no answer and decides.
fn hung(error: &PlaneError) {
    tracing::error!(%error, "a data thread does not answer");
}

pub(super) fn words(purpose: Purpose) -> (Reason, Cause) {
    match purpose {
        Purpose::Upgrade | Purpose::ListenerRemoved | Purpose::BackendDisabled => (Reason::DrainForced, Cause::Drain),
        Purpose::Generations => (Reason::DrainForced, Cause::Generations),
        Purpose::Shutdown => (Reason::ShutdownForced, Cause::Shutdown),
        Purpose::Admin => (Reason::AdminKilled, Cause::Admin),
        Purpose::BackendRemoved => (Reason::BackendRemoved, Cause::Drain),
    }
}

fn drain_scope(scope: Scope) -> session::Scope {
    match scope {
        Scope::All => session::Scope::All,
        Scope::Listener { name } => session::Scope::Listener(name),
        Scope::Backend { pool, name } => session::Scope::Backend { pool, name },
    }
}
