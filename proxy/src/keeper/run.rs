//! The keeper's start and end: what it makes before its loop runs, and what it cleans up after.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use admin::{server, socket};
use arc_swap::ArcSwap;
use handoff::ledger::{Ledger, LedgerError, Sizes};
use prometheus::Registry;
use prometheus::process_collector::ProcessCollector;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, LocalSet};

use super::Start;
use super::door::KeeperDoor;
use super::event::Event;
use super::owner::{Keeper, Parts};
use super::pinned::{PinError, Pinned};
use super::pools::Pools;
use super::reaper::Reaper;
use super::sockets::{BindError, Sockets};
use super::spawn::SpawnError;
use super::state_dir::{StateDir, StateDirError};
use crate::config::Config;
use crate::observe::{log, tally};

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
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Runs until it is told to end, on the thread that calls it.
pub fn run(start: Start) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = LocalSet::new().block_on(&runtime, serve(start));
    // A copy of a binary that is still being read for an upgrade is not waited for.
    runtime.shutdown_background();
    ended
}

const EVENTS: usize = 256;
const TICK: Duration = Duration::from_millis(500);

async fn serve(start: Start) -> Result<(), RunError> {
    let Start { loaded, binary, inherited, greeting } = start;
    let log = log::start(loaded.config.runtime.log, loaded.config.runtime.log_format);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let _claimed = StateDir::claim(&loaded.config.runtime.state_dir)?;
    let sockets = listen(&loaded.config, inherited)?;
    let registry = Registry::new();
    registry.register(Box::new(ProcessCollector::for_self()))?;
    tally::log_drops(&registry, log.dropped(), 0)?;
    let pools = Pools::from_config(&loaded.config);
    let (events, inbox) = mpsc::channel(EVENTS);
    let reaper = Reaper::default();
    let keeper = Keeper::new(Parts {
        pinned: Rc::new(Pinned::own(&binary)?),
        ledger: Ledger::create(sizes(&loaded.config, &pools))?,
        loaded,
        pools,
        sockets,
        events: events.clone(),
        reaper: reaper.clone(),
        started: Instant::now(),
        greeting,
    })?;
    let mut around = JoinSet::new();
    let (stop, stopped) = watch::channel(());
    admit(&keeper, registry, &events, &stopped, &mut around).await?;
    around.spawn_local(async move {
        if let Err(error) = reaper.run().await {
            tracing::error!(%error, "children are no longer reaped");
        }
    });
    hear_signals(&events, &mut around)?;
    let ended = keeper.run(inbox).await;
    drop(stop);
    around.shutdown().await;
    ended
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

/// Generously: memory is touched only where it is used, and what does not suffice is added later.
fn sizes(config: &Config, pools: &Pools) -> Sizes {
    let names = pools.names(config);
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Sizes {
        names: count(names.len()) * 2 + 256,
        counters: names.iter().map(|name| name.counters).sum::<u32>() * 2 + 4096,
        gauges: names.iter().map(|name| name.gauges).sum::<u32>() * 2 + 512,
        blocks: count((config.upgrade.max_generations + 2) * config.runtime.threads + 2),
        records: count(config.runtime.max_sessions * 2 + 64),
    }
}

/// Opens the doors for the operator and for Prometheus.
async fn admit(
    keeper: &Keeper,
    registry: Registry,
    events: &mpsc::Sender<Event>,
    stopped: &watch::Receiver<()>,
    around: &mut JoinSet<()>,
) -> Result<(), RunError> {
    let admin = &keeper.config().admin;
    let (commands, mut asked) = mpsc::channel(EVENTS);
    let door = KeeperDoor { scene: keeper.scene(), registry, commands };
    let (socket, path) = socket::bind_socket(&admin.socket)?;
    let stop = until_dropped(stopped.clone());
    let unix_door = door.clone();
    around.spawn_local(async move {
        server::serve_unix(socket, unix_door, stop).await;
        drop(path);
    });
    if let Some(address) = admin.listen {
        let listener = TcpListener::bind(address).await.map_err(|source| RunError::AdminListen { address, source })?;
        let stop = until_dropped(stopped.clone());
        around.spawn_local(server::serve_tcp(listener, door, stop));
    }
    let events = events.clone();
    around.spawn_local(async move {
        while let Some((command, lines)) = asked.recv().await {
            if events.send(Event::Command(command, Some(lines))).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

async fn until_dropped(mut stopped: watch::Receiver<()>) {
    // Nothing is ever sent: it ends when the sender is dropped.
    let _ = stopped.changed().await;
}

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

/// Shared with readers.
pub(super) type SharedScene = Arc<ArcSwap<crate::observe::scene::Scene>>;
