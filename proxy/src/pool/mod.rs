//! Pools: named backends, and whose turn it is.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::config::Balance;
use crate::config::plan::{BackendAdmin, PlannedPool};

mod schedule;
#[cfg(test)]
mod tests;

/// All pools, as of one version of the plan. Never changed, only replaced.
#[derive(Debug, Default)]
pub struct Pools {
    by_name: HashMap<String, Arc<Pool>>,
}

impl Pools {
    /// A pool that is as it was stays the same object; a changed one goes on at the turn of the old.
    pub fn build(planned: &[PlannedPool], before: &Self) -> Self {
        let build = |plan: &PlannedPool| match before.by_name.get(&plan.name) {
            Some(same) if same.plan == *plan => Arc::clone(same),
            old => Arc::new(Pool::new(plan.clone(), old.map_or(0, |old| old.cursor.load(Ordering::Relaxed)))),
        };
        Self { by_name: planned.iter().map(|plan| (plan.name.clone(), build(plan))).collect() }
    }

    pub fn named(&self, name: &str) -> Option<&Arc<Pool>> {
        self.by_name.get(name)
    }
}

#[derive(Debug)]
pub struct Pool {
    plan: PlannedPool,
    /// Those that take new sessions.
    backends: Vec<Arc<Backend>>,
    /// Positions in `backends`, in the order of their turns.
    schedule: Vec<u16>,
    cursor: AtomicUsize,
}

#[derive(Debug)]
pub struct Backend {
    /// Unique in this process.
    pub key: u64,
    pub name: String,
    pub address: SocketAddr,
}

/// Backends that a session has tried, by their position.
#[derive(Debug, Default)]
pub struct Tried(Vec<u16>);

impl Tried {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Pool {
    fn new(plan: PlannedPool, cursor: usize) -> Self {
        let enabled = || plan.backends.iter().filter(|backend| backend.admin == BackendAdmin::Enabled);
        let weights: Vec<u32> = enabled().map(|backend| backend.weight).collect();
        let backends = enabled().map(|b| Arc::new(Backend::new(b.name.clone(), b.address))).collect();
        Self { backends, schedule: schedule::build(&weights), cursor: AtomicUsize::new(cursor), plan }
    }

    /// One of which only the name is known: for sessions of a pool that is no more. It has no backends.
    pub fn named_only(name: &str) -> Self {
        let plan = PlannedPool {
            name: name.to_owned(),
            version: 0,
            balance: Balance::RoundRobin,
            connect_timeout: Duration::ZERO,
            connect_retries: 0,
            source: None,
            backends: Vec::new(),
        };
        Self::new(plan, 0)
    }

    pub fn name(&self) -> &str {
        &self.plan.name
    }

    /// The backend of this name, if it takes new sessions and is still at this address.
    pub fn backend(&self, name: &str, address: SocketAddr) -> Option<&Arc<Backend>> {
        self.backends.iter().find(|backend| backend.address == address && backend.name == name)
    }

    pub fn connect_timeout(&self) -> Duration {
        self.plan.connect_timeout
    }

    pub fn connect_retries(&self) -> u32 {
        self.plan.connect_retries
    }

    pub fn source(&self) -> Option<IpAddr> {
        self.plan.source
    }

    /// The backend whose turn it is, or else the next one that was not tried; `None`: there is none.
    pub fn pick(&self, tried: &mut Tried) -> Option<&Arc<Backend>> {
        if tried.0.len() >= self.backends.len() {
            return None;
        }
        let turn = self.cursor.fetch_add(1, Ordering::Relaxed) % self.schedule.len();
        let (before, after) = self.schedule.split_at(turn);
        let position = after.iter().chain(before).find(|position| !tried.0.contains(position))?;
        tried.0.push(*position);
        self.backends.get(usize::from(*position))
    }
}

impl Backend {
    /// A backend that none other is, even of the same name.
    pub fn new(name: String, address: SocketAddr) -> Self {
        static KEYS: AtomicU64 = AtomicU64::new(0);
        Self { key: KEYS.fetch_add(1, Ordering::Relaxed), name, address }
    }
}
