//! What the keeper publishes for readers: its own part of the view, swapped as a whole after every change. Readers join it
//! with the ledger and never wait for the owner loop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use admin::command::Filter;
use admin::view::{
    BackendView, ConfigView, GenerationView, KeeperView, ListenerView, PoolView, SessionRow, Status, UpgradeView,
};
use handoff::ledger::{Phase, Segment, SessionSnapshot, sessions, totals};

use super::names;
use super::reason::{Protection, Unprotected};
use crate::config::plan::{BackendAdmin, PlannedPool};

#[derive(Debug, Clone)]
pub struct Scene {
    pub version: &'static str,
    pub started: Instant,
    pub standing: Standing,
    pub generations: Vec<GenerationScene>,
    pub listeners: Vec<ListenerScene>,
    pub pools: Vec<PlannedPool>,
    pub config: ConfigView,
    pub upgrade: Option<UpgradeView>,
    pub segments: Vec<Arc<Segment>>,
}

/// Of the keeper as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Starting,
    Serving,
    /// No generation serves for the moment; connections wait.
    Restarting,
    ShuttingDown,
}

impl Standing {
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Restarting => "restarting",
            Self::ShuttingDown => "shutting-down",
        }
    }
}

#[derive(Debug, Clone)]
pub struct GenerationScene {
    pub id: u32,
    pub pid: u32,
    pub version: String,
    pub build: String,
    pub sha256: String,
    pub state: String,
    /// Its heartbeat is missed for so long.
    pub silent_seconds: Option<f64>,
    /// When what is left is closed by force.
    pub drained: Option<Instant>,
    /// Its sessions go to this generation.
    pub moving_to: Option<u32>,
}

#[derive(Debug, Clone)]
pub struct ListenerScene {
    /// Its sessions are to outlive their worker.
    pub survive_crash: bool,
    pub name: String,
    pub bind: Vec<String>,
    pub pool: String,
}

impl Scene {
    /// `Err`: why no traffic should be sent here.
    pub fn ready(&self) -> Result<(), String> {
        match self.standing {
            Standing::Serving => Ok(()),
            other => Err(other.word().into()),
        }
    }

    pub fn status(&self) -> Status {
        let sessions = sessions(&self.segments);
        let now_ms = now_ms();
        Status {
            version: self.version.into(),
            keeper: KeeperView {
                pid: std::process::id(),
                uptime_seconds: self.started.elapsed().as_secs_f64(),
                state: self.standing.word().into(),
            },
            generations: self.generations.iter().map(|generation| generation.view(&sessions, now_ms)).collect(),
            listeners: self.listener_views(&sessions),
            pools: self.pools.iter().map(|pool| pool_view(pool, &sessions)).collect(),
            config: self.config.clone(),
            upgrade: self.upgrade.clone(),
        }
    }

    /// Live sessions that match, oldest first.
    pub fn sessions(&self, filter: &Filter) -> Vec<SessionRow> {
        let now_ms = now_ms();
        let rows = sessions(&self.segments).into_iter().filter(|session| session.phase != Phase::Closed);
        let mut rows: Vec<_> = rows.map(|session| row(&session, now_ms)).filter(|row| filter.matches(row)).collect();
        rows.sort_by_key(|row| row.id);
        rows
    }

    fn listener_views(&self, sessions: &[SessionSnapshot]) -> Vec<ListenerView> {
        let paused: Vec<String> = totals(&self.segments)
            .into_iter()
            .filter(|name| name.kind == names::LISTENER && is_paused(&name.gauges))
            .map(|name| name.text)
            .collect();
        let view = |listener: &ListenerScene| ListenerView {
            name: listener.name.clone(),
            bind: listener.bind.clone(),
            pool: listener.pool.clone(),
            sessions: count(sessions, |session| session.listener == listener.name),
            paused: paused.contains(&listener.name),
            unprotected: listener.survive_crash.then(|| unprotected(sessions, &listener.name, None)),
        };
        self.listeners.iter().map(view).collect()
    }
}

fn is_paused(gauges: &[u64]) -> bool {
    super::reason::Paused::ALL
        .iter()
        .any(|why| gauges.get(names::listener::paused(*why) as usize).is_some_and(|flag| *flag > 0))
}

impl GenerationScene {
    fn view(&self, sessions: &[SessionSnapshot], now_ms: u64) -> GenerationView {
        let mine = || sessions.iter().filter(|session| session.generation == self.id);
        let oldest = mine().map(|session| session.opened_ms).min();
        GenerationView {
            id: self.id,
            pid: self.pid,
            version: self.version.clone(),
            build: self.build.clone(),
            sha256: self.sha256.clone(),
            silent_seconds: self.silent_seconds,
            state: self.state.clone(),
            sessions: count(sessions, |session| session.generation == self.id),
            oldest_session_seconds: oldest.map_or(0.0, |opened| seconds_between(opened, now_ms)),
            moving_to: self.moving_to,
            drain_seconds_left: self.drained.map(|at| at.saturating_duration_since(Instant::now()).as_secs_f64()),
        }
    }
}

fn pool_view(pool: &PlannedPool, sessions: &[SessionSnapshot]) -> PoolView {
    let backends = pool.backends.iter().map(|backend| BackendView {
        name: backend.name.clone(),
        address: backend.address.to_string(),
        weight: backend.weight,
        health: "unknown".into(),
        admin: match backend.admin {
            BackendAdmin::Enabled => "enabled",
            BackendAdmin::Draining => "draining",
            BackendAdmin::Disabled => "disabled",
        }
        .into(),
        sessions: count(sessions, |session| {
            session.pool == pool.name && names::last_label(&session.backend) == backend.name
        }),
    });
    PoolView { name: pool.name.clone(), version: pool.version, backends: backends.collect() }
}

fn count(sessions: &[SessionSnapshot], is: impl Fn(&SessionSnapshot) -> bool) -> u64 {
    sessions.iter().filter(|session| session.phase != Phase::Closed && is(session)).count() as u64
}

/// Sessions of a listener that would not outlive their worker, all or for one reason.
pub(super) fn unprotected(sessions: &[SessionSnapshot], listener: &str, why: Option<Unprotected>) -> u64 {
    count(sessions, |session| match Protection::of_code(session.protection) {
        Some(Protection::No(its)) => session.listener == listener && why.is_none_or(|why| why == its),
        _ => false,
    })
}

/// Sessions of all listeners that would not outlive their worker though they should.
pub fn all_unprotected(sessions: &[SessionSnapshot]) -> u64 {
    count(sessions, |session| matches!(Protection::of_code(session.protection), Some(Protection::No(_))))
}

fn row(session: &SessionSnapshot, now_ms: u64) -> SessionRow {
    let address = |address: Option<SocketAddr>, none: &str| address.map_or_else(|| none.into(), |a| a.to_string());
    SessionRow {
        id: session.id,
        generation: session.generation,
        listener: session.listener.clone(),
        pool: session.pool.clone(),
        backend: names::last_label(&session.backend).into(),
        client: address(session.client, "unix"),
        backend_address: address(session.backend_address, ""),
        state: match session.phase {
            Phase::Connecting => "connecting",
            Phase::Established => "established",
            Phase::Closed => "closed",
        }
        .into(),
        age_seconds: seconds_between(session.opened_ms, now_ms),
        idle_seconds: seconds_between(session.last_byte_ms.max(session.opened_ms), now_ms),
        bytes_received: session.received,
        bytes_sent: session.sent,
        protection: Protection::of_code(session.protection).map(|protection| protection.word().into()),
    }
}

/// CLOCK_MONOTONIC, as the ledger's times.
pub fn now_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

pub fn seconds_between(from_ms: u64, to_ms: u64) -> f64 {
    std::time::Duration::from_millis(to_ms.saturating_sub(from_ms)).as_secs_f64()
}
