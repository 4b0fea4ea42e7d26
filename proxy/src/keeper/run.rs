//! The keeper's start and end: what it makes before its loop runs, and what it cleans up after.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use admin::socket;
use arc_swap::ArcSwap;
use handoff::ledger::{Ledger, LedgerError, Sizes};
use handoff::manifest::Mismatch;
use handoff::os::Legacy;
use prometheus::Registry;
use prometheus::process_collector::ProcessCollector;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};

use super::Start;
use super::attach;
use super::door::KeeperDoor;
use super::doors::Doors;
use super::estate::{self, Estate, Inherited};
use super::event::Event;
use super::orphans::Orphans;
use super::owner::{Ended, Keeper, Parts};
use super::pinned::{PinError, Pinned};
use super::pools::Pools;
use super::reaper::Reaper;
use super::reexec::{self, Masked};
use super::resume::Held;
use super::sockets::{BindError, Sockets};
use super::spawn::SpawnError;
use super::state::{StateError, instant_of};
use super::state_dir::{StateDir, StateDirError};
use super::takeover::{Apprentice, Bequest, Entrance, Heir, Inheritance};
use crate::config::{Config, OnKeeperDeath};
use crate::observe::events::Events;
use crate::observe::log::{self, Log};
use crate::observe::tally;

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("admin.socket: {0}")]
    AdminSocket(#[from] socket::BindError),
    #[error("admin.listen {address}: {source}; another program may hold it: choose another address, or \"off\"")]
    AdminListen { address: SocketAddr, source: io::Error },
    #[error("the ledger: {0}")]
    Ledger(#[from] LedgerError),
    #[error("{0}")]
    Binary(#[from] PinError),
    #[error("the first generation did not start: {0}")]
    First(Box<SpawnError>),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("what the keeper was to go on from: {0}; workers serve on without a keeper")]
    State(Box<StateError>),
    #[error("what the keeper was to go on from: {0}; workers serve on without a keeper")]
    Socket(#[from] Mismatch),
    #[error(
        "generation {generation} (pid {pid}) serves without a keeper, and holds no state that this version can go on from; it serves on: start the version of proxyd it was started by, or end it with TERM (it drains)"
    )]
    Stateless { generation: u32, pid: u32 },
    #[error("take-over from {} failed: {why}; the keeper there still serves, if it lives", .door.display())]
    TakeOver { door: PathBuf, why: String },
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Runs until it is told to end, on the thread that calls it.
///
/// # Errors
/// The service could not be started.
pub fn run(start: Start) -> Result<(), RunError> {
    block_on(async move { Box::pin(Service::start(start).await?.serve()).await })
}

/// Goes on from what an earlier image of this process left in the memory file of this number.
///
/// # Errors
/// It cannot be gone on from: workers serve on without a keeper.
pub fn resume(estate: RawFd) -> Result<(), RunError> {
    block_on(async move { Box::pin(Service::resume(estate)?.serve()).await })
}

fn block_on(service: impl Future<Output = Result<(), RunError>>) -> Result<(), RunError> {
    // Threads beside this one are born deaf to the signals of a keeper.
    let _deaf = Masked::now()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().on_thread_start(reexec::mask).build()?;
    let ended = LocalSet::new().block_on(&runtime, service);
    // A copy of a binary that is still being read for an upgrade is not waited for.
    runtime.shutdown_background();
    ended
}

const EVENTS: usize = 256;
pub(super) const TICK: Duration = Duration::from_millis(500);

/// A keeper, and what stands around its loop.
struct Service {
    keeper: Keeper,
    inbox: mpsc::Receiver<Event>,
    door: KeeperDoor,
    around: JoinSet<()>,
    /// `None`: another one is the keeper.
    stand: Option<Stand>,
    log: Log,
    /// Log lines that earlier images of this process have dropped.
    dropped_before: u64,
}

/// What one keeper at a time has.
pub(super) struct Stand {
    pub doors: Doors,
    pub claimed: StateDir,
    entrance: Option<Entrance>,
}

impl Stand {
    /// Served from now on.
    pub(super) fn open(mut doors: Doors, claimed: StateDir, keeper: &Keeper) -> io::Result<Self> {
        // Who asks now sees what was taken on, not an empty keeper.
        keeper.publish();
        doors.open()?;
        Ok(Self { doors, claimed, entrance: entrance(keeper) })
    }
}

/// Where another installation can take over; not where the keeper's end is its workers' end.
fn entrance(keeper: &Keeper) -> Option<Entrance> {
    let runtime = &keeper.config().runtime;
    if runtime.on_keeper_death != OnKeeperDeath::Serve {
        return None;
    }
    let opened = Entrance::open(&runtime.state_dir, keeper.events.clone());
    opened.inspect_err(|error| tracing::warn!(%error, "no other installation can take over")).ok()
}

impl Service {
    async fn start(start: Start) -> Result<Self, RunError> {
        let log = log::start(start.loaded.config.runtime.log, start.loaded.config.runtime.log_format);
        for warning in &start.loaded.warnings {
            tracing::warn!("{warning}");
        }
        if let Some(door) = &start.take_over_from {
            let heir = Heir::of(door, &start.loaded).await?;
            return Self::on_trial(heir, start, log);
        }
        let state_dir = &start.loaded.config.runtime.state_dir;
        let claimed = StateDir::claim(state_dir)?;
        let orphans = Orphans::of(attach::find(state_dir).await?).await?;
        let (events, inbox) = mpsc::channel(EVENTS);
        let own = Pinned::own(&start.binary)?;
        let keeper = match orphans {
            Some(orphans) => Keeper::take_on(orphans, own, &start.loaded, start.replaceable, events).await?,
            None => begin(start, own, events)?,
        };
        let (door, around) = stand_around(&keeper, &log, 0)?;
        let doors = Doors::bind(&keeper.config().admin, door.clone())?;
        let stand = Some(Stand::open(doors, claimed, &keeper)?);
        Ok(Self { keeper, inbox, door, around, stand, log, dropped_before: 0 })
    }

    /// A keeper in the place of another one, which it is not yet.
    fn on_trial(heir: Heir, start: Start, log: Log) -> Result<Self, RunError> {
        let (events, inbox) = mpsc::channel(EVENTS);
        let keeper = apprentice(heir, start, events)?;
        let (door, around) = stand_around(&keeper, &log, 0)?;
        Ok(Self { keeper, inbox, door, around, stand: None, log, dropped_before: 0 })
    }

    fn resume(estate: RawFd) -> Result<Self, RunError> {
        let mut legacy = Legacy::claim()?;
        let bytes = estate::read(legacy.take(estate)?)?;
        let estate: Estate = serde_json::from_slice(&bytes).map_err(io::Error::from)?;
        let config = estate.state.config()?;
        let log = log::start(config.config.runtime.log, config.config.runtime.log_format);
        let inherited = Inherited::take(&mut legacy, &estate.numbers)?;
        let (events, inbox) = mpsc::channel(EVENTS);
        let Inherited { lock, admin, metrics, sockets, segments, binaries, links, vault } = inherited;
        let held = Held { sockets, segments, binaries, links, vault };
        let keeper = Keeper::resume(&estate, config, held, events)?;
        let (door, around) = stand_around(&keeper, &log, estate.log_lines_dropped)?;
        let path = socket::adopt_path(&keeper.config().admin.socket, estate.numbers.admin_file);
        let doors = Doors::of(admin, metrics, path, door.clone());
        let stand = Some(Stand::open(doors, StateDir::inherited(lock), &keeper)?);
        Ok(Self { keeper, inbox, door, around, stand, log, dropped_before: estate.log_lines_dropped })
    }

    async fn serve(mut self) -> Result<(), RunError> {
        // Once: after a replacement that failed, one that is on its way is not begun anew.
        self.keeper.start_worker();
        let ended = loop {
            let over = match self.keeper.run(&mut self.inbox).await {
                Ended::Over(ended) => break ended,
                Ended::Replace => self.replace().await,
                Ended::Bequeath(bequest) => self.bequeath(bequest).await?,
                Ended::Inherit(inheritance) => {
                    self.inherit(inheritance).await;
                    None
                }
            };
            if let Some(Ended::Over(ended)) = over {
                break ended;
            }
        };
        if let Some(stand) = &mut self.stand {
            stand.doors.abandon().await;
        }
        self.around.shutdown().await;
        ended
    }
}

impl Service {
    async fn replace(&mut self) -> Option<Ended> {
        let lines = self.dropped_before + self.log.dropped().dropped_lines() as u64;
        let Self { keeper, inbox, stand, .. } = self;
        let Stand { doors, claimed, .. } = stand.as_mut()?;
        reexec::replace(keeper, inbox, doors, claimed, lines).await
    }

    /// Gives all to another installation's keeper. If that fails, all is as before, and served.
    async fn bequeath(&mut self, bequest: Bequest) -> Result<Option<Ended>, RunError> {
        let Self { keeper, inbox, stand, .. } = self;
        let Some(mut given) = stand.take() else { return Ok(None) };
        given.entrance = None;
        if let Some(ended) = keeper.run_until(inbox, given.doors.close()).await {
            return Ok(Some(ended));
        }
        let report = bequest.report();
        if keeper.hand_on(bequest, &given.doors, &given.claimed).await {
            given.doors.leave();
            keeper.retire_as_keeper(report).await?;
        } else {
            *stand = Some(Stand::open(given.doors, given.claimed, keeper)?);
        }
        Ok(None)
    }

    async fn inherit(&mut self, inheritance: Inheritance) {
        if let Some((claimed, doors)) = inheritance.take(&mut self.keeper, &self.door).await {
            match Stand::open(doors, claimed, &self.keeper) {
                Ok(stand) => self.stand = Some(stand),
                Err(error) => tracing::error!(%error, "the admin socket cannot be served"),
            }
        }
    }
}

/// A keeper that begins where another one is.
fn apprentice(heir: Heir, start: Start, events: mpsc::Sender<Event>) -> Result<Keeper, RunError> {
    let Heir { successor, generation, order, sockets, segments, state, pools, from } = heir;
    let door = start.take_over_from.unwrap_or_default();
    let given = segments.len();
    let mut keeper = Keeper::new(Parts {
        loaded: start.loaded,
        pinned: Rc::new(Pinned::own(&start.binary)?),
        pools,
        sockets,
        ledger: Ledger::open(segments)?,
        events: events.clone(),
        reaper: Reaper::default(),
        started: instant_of(state.started_ms).into_std(),
        replaceable: start.replaceable,
        greeting: start.greeting,
        is_heir: true,
    })?;
    if keeper.ledger.segments().len() != given {
        return Err(io::Error::other("the ledger has no room, and only the keeper that serves can add to it").into());
    }
    keeper.happenings = Events::restored(state.last_event, Vec::new());
    (keeper.last_generation, keeper.last_upgrade) = (generation.saturating_sub(1), state.last_upgrade);
    keeper.config_version = state.config.version + 1;
    keeper.serial = state.serial;
    keeper.apprentice = Some(Apprentice::new(successor, order, from, door, events));
    keeper.before = Some(Box::new(state));
    Ok(keeper)
}

/// A keeper with nothing behind it.
fn begin(start: Start, own: Pinned, events: mpsc::Sender<Event>) -> Result<Keeper, RunError> {
    let Start { loaded, inherited, replaceable, greeting, .. } = start;
    let sockets = listen(&loaded.config, inherited)?;
    let pools = Pools::from_config(&loaded.config);
    Ok(Keeper::new(Parts {
        pinned: Rc::new(own),
        ledger: Ledger::create(sizes(&loaded.config, &pools, 0))?,
        loaded,
        pools,
        sockets,
        events,
        reaper: Reaper::default(),
        started: Instant::now(),
        replaceable,
        greeting,
        is_heir: false,
    })?)
}

/// What every keeper has beside its loop: signals and ticks, the reaper, and the line from the doors.
fn stand_around(keeper: &Keeper, log: &Log, dropped_before: u64) -> Result<(KeeperDoor, JoinSet<()>), RunError> {
    let registry = Registry::new();
    registry.register(Box::new(ProcessCollector::for_self()))?;
    tally::log_drops(&registry, log.dropped(), dropped_before)?;
    let mut around = JoinSet::new();
    let (commands, mut asked) = mpsc::channel(EVENTS);
    let events = keeper.events.clone();
    around.spawn_local(async move {
        while let Some((command, lines)) = asked.recv().await {
            if events.send(Event::Command(command, Some(lines))).await.is_err() {
                return;
            }
        }
    });
    let deaths = keeper.reaper.clone().listen()?;
    around.spawn_local(deaths);
    hear_signals(&keeper.events, &mut around)?;
    reexec::unmask()?;
    Ok((KeeperDoor { scene: keeper.scene(), registry, happenings: keeper.happenings.clone(), commands }, around))
}

fn listen(config: &Config, inherited: Vec<std::os::fd::OwnedFd>) -> Result<Sockets, BindError> {
    let mut sockets = Sockets::default();
    for note in sockets.adopt(inherited, config) {
        tracing::info!("{note}");
    }
    sockets.bind_missing(config)?;
    sockets.refresh(config);
    Ok(sockets)
}

/// Generously: memory is touched only where it is used, and what does not suffice is added later. For workers of so many
/// threads, if that is more than there are now.
pub(super) fn sizes(config: &Config, pools: &Pools, threads: u32) -> Sizes {
    let names = pools.names(config);
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let threads = count(config.runtime.threads).max(threads).max(THREADS);
    Sizes {
        names: count(names.len()) * 2 + 256,
        counters: names.iter().map(|name| name.counters).sum::<u32>() * 2 + 4096,
        gauges: names.iter().map(|name| name.gauges).sum::<u32>() * 2 + 512,
        blocks: count(config.upgrade.max_generations + 2).saturating_mul(threads).saturating_add(2),
        records: count(config.runtime.max_sessions * 2 + 64),
    }
}

/// Segments have blocks for workers of so many threads: sessions stay in theirs, and one that has no block for each of more
/// threads leaves them to a few.
const THREADS: u32 = 16;

/// What a signal asks for.
#[derive(Clone, Copy)]
enum Meaning {
    Terminate,
    Reload,
    Upgrade,
    /// Logs go to stderr: there is nothing to reopen, and the signal must not kill.
    Nothing,
}

impl Meaning {
    fn event(self) -> Option<Event> {
        match self {
            Self::Terminate => Some(Event::Terminate),
            Self::Reload => Some(Event::Hangup),
            Self::Upgrade => Some(Event::UpgradeSignal),
            Self::Nothing => None,
        }
    }
}

fn hear_signals(events: &mpsc::Sender<Event>, around: &mut JoinSet<()>) -> io::Result<()> {
    for (kind, meaning) in [
        (SignalKind::terminate(), Meaning::Terminate),
        (SignalKind::interrupt(), Meaning::Terminate),
        (SignalKind::hangup(), Meaning::Reload),
        (SignalKind::user_defined2(), Meaning::Upgrade),
        (SignalKind::user_defined1(), Meaning::Nothing),
    ] {
        let mut heard = signal(kind)?;
        let events = events.clone();
        around.spawn_local(async move {
            while heard.recv().await.is_some() {
                if let Some(event) = meaning.event() {
                    let _ = events.send(event).await;
                }
            }
        });
    }
    let events = events.clone();
    around.spawn_local(async move {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            let _ = events.send(Event::Tick).await;
        }
    });
    Ok(())
}

impl From<StateError> for RunError {
    fn from(error: StateError) -> Self {
        Self::State(Box::new(error))
    }
}

/// Shared with readers.
pub(super) type SharedScene = Arc<ArcSwap<crate::observe::scene::Scene>>;
