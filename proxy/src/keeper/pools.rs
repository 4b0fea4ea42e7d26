//! The state of the pools, and which listener goes to which: what the file says, and what the operator has changed since.
//! Belongs to the keeper; every new or restarted worker is given it. Pure: a change is made on a copy and takes effect when
//! the workers have acknowledged it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use admin::command::{BackendChange, Changed, Failure, NewBackend};
use handoff::ledger::NameSpec;
use serde::{Deserialize, Serialize};

use crate::config::plan::{BackendAdmin, PlannedBackend, PlannedPool};
use crate::config::{self, Balance, Config, Pool};
use crate::observe::names;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Pools {
    pools: BTreeMap<String, PlannedPool>,
    /// Listener to pool.
    routes: BTreeMap<String, String>,
}

/// A backend that is no longer in its pool, or gets no sessions any more: what it has drains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Retired {
    pub pool: String,
    pub backend: String,
}

const WEIGHTS: std::ops::RangeInclusive<u32> = 1..=256;

impl Pools {
    pub(super) fn from_config(config: &Config) -> Self {
        let pools = config.pools.iter().map(|(name, pool)| (name.clone(), PlannedPool::from_config(name, pool, 1)));
        let routes = config.listeners.iter().map(|(name, listener)| (name.clone(), listener.pool.clone()));
        Self { pools: pools.collect(), routes: routes.collect() }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &PlannedPool> {
        self.pools.values()
    }

    /// The pool that a listener goes to.
    pub(super) fn route(&self, listener: &str) -> Option<&str> {
        self.routes.get(listener).map(String::as_str)
    }

    /// Every pool that a listener goes to, once.
    pub(super) fn routed(&self) -> Vec<String> {
        self.routes.values().cloned().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Pools that `other` has as well, to be reached in the same way.
    pub(super) fn same_backends(&self, other: &Self) -> BTreeSet<String> {
        let reach = |pool: &PlannedPool| -> Vec<_> {
            pool.backends.iter().map(|backend| (backend.address, backend.admin, pool.source)).collect()
        };
        let same = |pool: &&PlannedPool| other.pools.get(&pool.name).is_some_and(|other| reach(other) == reach(pool));
        self.all().filter(same).map(|pool| pool.name.clone()).collect()
    }

    /// Whether a listener would be sent to itself, over what is said now; nothing of that can be seen in the file alone.
    pub(super) fn find_loop(&self, config: &Config) -> Option<String> {
        config::find_loop(&config.listeners, |listener| {
            let pool = self.route(listener).and_then(|pool| self.pools.get(pool));
            pool.map(|pool| pool.backends.iter().map(|backend| backend.address).collect()).unwrap_or_default()
        })
    }

    /// Everything that is counted under this configuration.
    pub(super) fn names(&self, config: &Config) -> Vec<NameSpec> {
        let mut specs = vec![names::process(), names::keeper()];
        for listener in config.listeners.keys() {
            specs.push(names::listener(listener));
            specs.extend(self.route(listener).map(|pool| names::route(listener, pool)));
        }
        for pool in self.all() {
            specs.push(names::pool(&pool.name));
            specs.extend(pool.backends.iter().map(|backend| names::backend(&pool.name, &backend.name)));
        }
        specs
    }

    /// What is in force after a new file: where the file changed, the file; elsewhere, what the operator has said since.
    /// What the operator said of a backend stays with it as long as its pool has it. Also says what of the operator's was
    /// overruled.
    pub(super) fn merged(&self, old: &Config, new: &Config) -> (Self, Vec<String>) {
        let mut notes = Vec::new();
        let mut merged = Self { pools: self.pools.clone(), routes: BTreeMap::new() };
        for name in old.pools.keys().filter(|name| !new.pools.contains_key(*name)) {
            merged.pools.remove(name);
        }
        for (name, pool) in &new.pools {
            if old.pools.get(name) != Some(pool) {
                let fresh = self.renewed(name, pool, old, &mut notes);
                merged.pools.insert(name.clone(), fresh);
            }
        }
        for (name, listener) in &new.listeners {
            let unchanged = old.listeners.get(name).is_some_and(|before| before.pool == listener.pool);
            let now = self.routes.get(name).filter(|pool| unchanged && merged.pools.contains_key(*pool));
            if let Some(swapped) = self.routes.get(name).filter(|swapped| now.is_none() && **swapped != listener.pool) {
                notes.push(format!("listener {name}: pool {} of the file replaces {swapped}", listener.pool));
            }
            merged.routes.insert(name.clone(), now.unwrap_or(&listener.pool).clone());
        }
        (merged, notes)
    }

    fn renewed(&self, name: &str, pool: &Pool, old: &Config, notes: &mut Vec<String>) -> PlannedPool {
        let Some(before) = self.pools.get(name) else { return PlannedPool::from_config(name, pool, 1) };
        if old.pools.get(name).is_some_and(|file| file.backends.len() != before.backends.len()) {
            notes.push(format!("pool {name}: the backends of the file replace those set at run time"));
        }
        let mut fresh = PlannedPool::from_config(name, pool, before.version + 1);
        for backend in &mut fresh.backends {
            if let Some(known) = before.backends.iter().find(|known| known.name == backend.name) {
                backend.admin = known.admin;
            }
        }
        fresh
    }

    /// Backends that `next` no longer has.
    pub(super) fn retired(&self, next: &Self) -> Vec<Retired> {
        let mut retired = Vec::new();
        for (name, pool) in &self.pools {
            for backend in &pool.backends {
                let stays =
                    next.pools.get(name).is_some_and(|pool| pool.backends.iter().any(|b| b.name == backend.name));
                if !stays {
                    retired.push(Retired { pool: name.clone(), backend: backend.name.clone() });
                }
            }
        }
        retired
    }

    pub(super) fn swap(&mut self, listener: &str, pool: &str, if_version: Option<u64>) -> Result<Changed, Failure> {
        let target = self.pool_at(pool, if_version)?;
        let version = target.version;
        let known = listing(self.routes.keys());
        let route = self.routes.get_mut(listener).ok_or_else(|| unknown("listener", listener, &known))?;
        let before = std::mem::replace(route, pool.into());
        let changes =
            if before == pool { vec![] } else { vec![format!("listener {listener}: pool {before} -> {pool}")] };
        Ok(Changed {
            summary: format!("listener {listener} now uses pool {pool} (version {version})"),
            changes,
            version,
        })
    }

    pub(super) fn add(
        &mut self,
        pool: &str,
        backend: &NewBackend,
        if_version: Option<u64>,
    ) -> Result<Changed, Failure> {
        let planned = planned(backend)?;
        self.change(pool, if_version, |pool| {
            if let Some(twin) = pool.backends.iter().find(|b| b.name == planned.name || b.address == planned.address) {
                return Err(Failure::failed(format!(
                    "pool {} already has backend {} ({}); nothing changed",
                    pool.name, twin.name, twin.address
                )));
            }
            let change = format!("pool {}: backend {} added, weight {}", pool.name, planned.name, planned.weight);
            pool.backends.push(planned);
            Ok(change)
        })
    }

    pub(super) fn remove(&mut self, pool: &str, backend: &str, if_version: Option<u64>) -> Result<Changed, Failure> {
        self.change(pool, if_version, |pool| {
            let at = position(pool, backend)?;
            if pool.backends.len() == 1 {
                return Err(Failure::failed(format!(
                    "backend {backend} is the only one of pool {}; a pool cannot be empty: add another one first, or swap the listener to another pool",
                    pool.name
                )));
            }
            pool.backends.remove(at);
            Ok(format!("pool {}: backend {backend} removed", pool.name))
        })
    }

    pub(super) fn set(
        &mut self,
        pool: &str,
        backends: &[NewBackend],
        create: bool,
        if_version: Option<u64>,
    ) -> Result<Changed, Failure> {
        let mut fresh = Vec::new();
        for backend in backends {
            let planned = planned(backend)?;
            if fresh.iter().any(|b: &PlannedBackend| b.name == planned.name || b.address == planned.address) {
                return Err(Failure::usage(format!("backend {} is given twice; nothing changed", planned.name)));
            }
            fresh.push(planned);
        }
        if fresh.is_empty() {
            return Err(Failure::usage(format!("pool {pool}: a pool cannot be empty; nothing changed")));
        }
        if create && !self.pools.contains_key(pool) {
            if if_version.is_some_and(|version| version != 0) {
                return Err(Failure::conflict(format!("pool {pool} does not exist (version 0); nothing changed")));
            }
            return Ok(self.create(pool, fresh));
        }
        self.change(pool, if_version, |pool| {
            for backend in &mut fresh {
                if let Some(known) = pool.backends.iter().find(|known| known.name == backend.name) {
                    backend.admin = known.admin;
                }
            }
            let names = listing(fresh.iter().map(|b| &b.name));
            pool.backends = fresh;
            Ok(format!("pool {}: backends are now {names}", pool.name))
        })
    }

    fn create(&mut self, name: &str, backends: Vec<PlannedBackend>) -> Changed {
        let pool = PlannedPool {
            name: name.into(),
            version: 1,
            balance: Balance::RoundRobin,
            connect_timeout: Pool::CONNECT_TIMEOUT,
            connect_retries: Pool::CONNECT_RETRIES,
            source: None,
            backends,
        };
        self.pools.insert(name.into(), pool);
        let summary = format!("pool {name} created (version 1)");
        Changed { changes: vec![summary.clone()], summary, version: 1 }
    }

    pub(super) fn backend(
        &mut self,
        pool: &str,
        backend: &str,
        change: BackendChange,
        if_version: Option<u64>,
    ) -> Result<Changed, Failure> {
        self.change(pool, if_version, |pool| {
            let at = position(pool, backend)?;
            let state = &mut pool.backends[at];
            let what = match change {
                BackendChange::Enable => admin(state, BackendAdmin::Enabled, "enabled"),
                BackendChange::Drain => admin(state, BackendAdmin::Draining, "draining"),
                BackendChange::Disable => admin(state, BackendAdmin::Disabled, "disabled"),
                BackendChange::Weight(weight) => {
                    check_weight(weight)?;
                    state.weight = weight;
                    format!("weight {weight}")
                }
            };
            Ok(format!("pool {}: backend {backend} {what}", pool.name))
        })
    }

    /// Changes one pool and raises its version; a change that changes nothing leaves the version.
    fn change(
        &mut self,
        pool: &str,
        if_version: Option<u64>,
        change: impl FnOnce(&mut PlannedPool) -> Result<String, Failure>,
    ) -> Result<Changed, Failure> {
        let mut next = self.pool_at(pool, if_version)?.clone();
        let summary = change(&mut next)?;
        let mut changes = Vec::new();
        if self.pools.get(pool) != Some(&next) {
            next.version += 1;
            changes.push(summary.clone());
        }
        let version = next.version;
        self.pools.insert(pool.into(), next);
        Ok(Changed { summary: format!("{summary} (version {version})"), changes, version })
    }

    fn pool_at(&self, name: &str, if_version: Option<u64>) -> Result<&PlannedPool, Failure> {
        let pool = self.pools.get(name).ok_or_else(|| unknown("pool", name, &listing(self.pools.keys())))?;
        match if_version {
            Some(expected) if expected != pool.version => Err(Failure::conflict(format!(
                "pool {name} is at version {}, not {expected}; nothing changed: look at it again, then repeat",
                pool.version
            ))),
            _ => Ok(pool),
        }
    }
}

fn admin(backend: &mut PlannedBackend, state: BackendAdmin, word: &str) -> String {
    backend.admin = state;
    word.into()
}

fn position(pool: &PlannedPool, backend: &str) -> Result<usize, Failure> {
    let known = || listing(pool.backends.iter().map(|b| &b.name));
    let found = pool.backends.iter().position(|b| b.name == backend);
    found.ok_or_else(|| unknown(&format!("backend of pool {}", pool.name), backend, &known()))
}

fn planned(backend: &NewBackend) -> Result<PlannedBackend, Failure> {
    let address: SocketAddr =
        backend.address.parse().ok().filter(|address: &SocketAddr| address.port() != 0).ok_or_else(|| {
            Failure::usage(format!("{:?} is not an address: expected ip:port; nothing changed", backend.address))
        })?;
    let weight = backend.weight.unwrap_or(1);
    check_weight(weight)?;
    let name = backend.name.clone().unwrap_or_else(|| address.to_string());
    Ok(PlannedBackend { name, address, weight, admin: BackendAdmin::Enabled })
}

fn check_weight(weight: u32) -> Result<(), Failure> {
    if WEIGHTS.contains(&weight) {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "weight {weight} is not between 1 and 256; nothing changed (no new sessions: `backend drain`)"
    )))
}

fn unknown(what: &str, name: &str, known: &str) -> Failure {
    Failure::failed(format!("no {what} is named {name}; there are: {known}"))
}

fn listing<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names.map(String::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
