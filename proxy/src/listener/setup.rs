//! What all accept loops of a worker go by: listeners and pools of one version of the plan, replaced by one store.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use handoff::ledger::NameSpec;

use crate::config::plan::{Plan, PlannedListener};
use crate::observe::names;
use crate::pool::{Pool, Pools};
use crate::session::Terms;

#[derive(Debug, Default)]
pub struct Setup {
    /// Of this process; counts up.
    pub version: u64,
    by_socket: HashMap<String, Arc<Terms>>,
    by_listener: HashMap<String, Arc<Terms>>,
    pools: Pools,
}

/// A listener refers to a pool that is not in the plan.
#[derive(Debug, thiserror::Error)]
#[error("listener {listener}: no pool {pool} in the plan")]
pub struct UnknownPool {
    listener: String,
    pool: String,
}

impl Setup {
    pub fn build(plan: &Plan, before: &Self) -> Result<Self, UnknownPool> {
        let pools = Pools::build(&plan.pools, &before.pools);
        let (mut by_socket, mut by_listener) = (HashMap::new(), HashMap::new());
        for listener in &plan.listeners {
            let terms = Arc::new(terms(listener, &pools)?);
            by_socket.extend(listener.sockets.iter().map(|id| (id.clone(), Arc::clone(&terms))));
            by_listener.insert(listener.name.clone(), terms);
        }
        Ok(Self { version: before.version + 1, by_socket, by_listener, pools })
    }

    /// What is accepted on this socket goes by these.
    pub fn terms(&self, socket: &str) -> Option<&Arc<Terms>> {
        self.by_socket.get(socket)
    }

    /// What is accepted by this listener goes by these.
    pub fn listener(&self, name: &str) -> Option<&Arc<Terms>> {
        self.by_listener.get(name)
    }

    pub fn pool(&self, name: &str) -> Option<&Arc<Pool>> {
        self.pools.named(name)
    }

    /// Ids of all sockets of all listeners.
    pub fn sockets(&self) -> HashSet<&str> {
        self.by_socket.keys().map(String::as_str).collect()
    }
}

/// The names under which sessions of this plan are counted.
pub fn names_of(plan: &Plan) -> Vec<NameSpec> {
    let listeners = plan.listeners.iter();
    let backends = |pool: &crate::config::plan::PlannedPool| {
        pool.backends.iter().map(|backend| names::backend(&pool.name, &backend.name)).collect::<Vec<_>>()
    };
    std::iter::once(names::process())
        .chain(listeners.flat_map(|it| [names::listener(&it.name), names::route(&it.name, &it.pool)]))
        .chain(plan.pools.iter().map(|pool| names::pool(&pool.name)))
        .chain(plan.pools.iter().flat_map(backends))
        .collect()
}

/// For terms of this process.
pub(super) fn new_key() -> u64 {
    static KEYS: AtomicU64 = AtomicU64::new(0);
    KEYS.fetch_add(1, Ordering::Relaxed)
}

fn terms(listener: &PlannedListener, pools: &Pools) -> Result<Terms, UnknownPool> {
    let pool: &Arc<Pool> = pools
        .named(&listener.pool)
        .ok_or_else(|| UnknownPool { listener: listener.name.clone(), pool: listener.pool.clone() })?;
    Ok(Terms {
        key: new_key(),
        listener: listener.name.clone(),
        pool: Arc::clone(pool),
        max_sessions: listener.max_sessions,
        survive_crash: listener.survive_crash,
        tcp: listener.tcp,
        timeouts: listener.timeouts,
    })
}
