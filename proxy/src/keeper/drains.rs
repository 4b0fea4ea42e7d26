//! Drains of listeners and backends that are in force: whoever gets sessions of theirs later is told of them, too.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::owner::Keeper;
use super::pools::{Pools, Retired};
use crate::config::order::{Order, Purpose, Scope};
use crate::config::{Config, ForcedClose};
use crate::observe::scene::now_ms;

/// Times are milliseconds of `CLOCK_MONOTONIC`, as those of sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DrainInForce {
    scope: Scope,
    purpose: Purpose,
    /// Sessions that began later are not meant.
    begun_ms: u64,
    /// What is left by then is closed by force.
    until_ms: u64,
    spread_ms: u64,
    how: ForcedClose,
    /// Generations that have the order.
    told: BTreeSet<u32>,
}

/// For sessions that are on their way from one generation to another while the drain ends.
const LINGER_MS: u64 = 60_000;

impl DrainInForce {
    fn order(&self, now: u64) -> Order {
        let left = Duration::from_millis(self.until_ms.saturating_sub(now));
        Order::Drain {
            scope: self.scope.clone(),
            purpose: self.purpose,
            timeout: Some(left),
            spread: Duration::from_millis(self.spread_ms).min(left),
            how: self.how,
            begun_ms: Some(self.begun_ms),
        }
    }

    /// What this generation, which has got sessions from another, is to be told. One that was told in time will find those it
    /// got since at the end.
    fn due(&mut self, generation: u32, now: u64) -> Option<Order> {
        let is_new = self.told.insert(generation);
        (is_new || now >= self.until_ms).then(|| self.order(now))
    }
}

impl Keeper {
    pub(super) fn drain_listeners(&mut self, names: &[String]) {
        for name in names {
            self.drain_everywhere(Scope::Listener { name: name.clone() }, Purpose::ListenerRemoved);
        }
    }

    pub(super) fn drain_backends(&mut self, backends: &[Retired], purpose: Purpose) {
        for backend in backends {
            self.drain_everywhere(scope_of(backend), purpose);
        }
    }

    /// Disabled before, and not any more.
    pub(super) fn undrain_backends(&mut self, backends: &[Retired]) {
        for backend in backends {
            let scope = scope_of(backend);
            self.drains.retain(|drain| drain.scope != scope);
            self.tell_everyone("undrain", &Order::Undrain { scope });
        }
    }

    /// What sessions from before may still use and is not there any more: listeners, and backends of pools.
    pub(super) fn drain_what_went(&mut self, before: &Config, pools: &Pools) {
        let removed: Vec<String> =
            before.listeners.keys().filter(|name| !self.config().listeners.contains_key(*name)).cloned().collect();
        let retired = pools.retired(&self.pools);
        self.drain_listeners(&removed);
        self.drain_backends(&retired, Purpose::BackendRemoved);
    }

    /// Of every generation: sessions that an earlier one still serves are meant as well.
    fn drain_everywhere(&mut self, scope: Scope, purpose: Purpose) {
        let drain = self.config().drain;
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        if let Some(timeout) = drain.timeout {
            let begun_ms = now_ms();
            self.drains.push(DrainInForce {
                scope: scope.clone(),
                purpose,
                begun_ms,
                until_ms: begun_ms.saturating_add(millis(timeout)),
                spread_ms: millis(drain.spread),
                how: drain.close,
                told: self.generations.keys().copied().collect(),
            });
        }
        self.tell_everyone("drain", &Order::drain(scope, purpose, drain));
    }

    /// This generation has got sessions from another.
    pub(super) fn drain_newcomers(&mut self, generation: u32) {
        let now = now_ms();
        let orders: Vec<Order> = self.drains.iter_mut().filter_map(|drain| drain.due(generation, now)).collect();
        let Some(link) = self.generations.get(&generation).map(|one| one.link.clone()) else { return };
        self.tasks.spawn_local(async move {
            for order in orders {
                if let Err(error) = link.order("drain", &order).await {
                    tracing::warn!(generation, %error, "drain not acknowledged");
                }
            }
        });
    }

    /// Forgets what is over.
    pub(super) fn look_after_drains(&mut self) {
        let now = now_ms();
        self.drains.retain(|drain| now < drain.until_ms.saturating_add(LINGER_MS));
    }

    /// Beside the loop: a generation that hangs must not hold up the others. Each gets its orders in this order.
    fn tell_everyone(&mut self, what: &'static str, order: &Order) {
        for generation in self.generations.values() {
            let (id, link, order) = (generation.id, generation.link.clone(), order.clone());
            self.tasks.spawn_local(async move {
                if let Err(error) = link.order(what, &order).await {
                    tracing::warn!(generation = id, %error, "{what} not acknowledged");
                }
            });
        }
    }
}

fn scope_of(backend: &Retired) -> Scope {
    Scope::Backend { pool: backend.pool.clone(), name: backend.backend.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl DrainInForce {
        pub(in super::super) fn example() -> Self {
            Self {
                scope: Scope::Listener { name: "web".into() },
                purpose: Purpose::ListenerRemoved,
                begun_ms: 1_000,
                until_ms: 31_000,
                spread_ms: 5_000,
                how: ForcedClose::Reset,
                told: BTreeSet::from([3]),
            }
        }
    }

    #[test]
    fn a_generation_is_told_once_in_time_and_again_for_what_comes_too_late() {
        let mut drain = DrainInForce::example();
        assert_eq!(drain.due(3, 2_000), None, "it was there when the drain began");
        let Some(Order::Drain { timeout, spread, begun_ms, .. }) = drain.due(4, 29_000) else { panic!("not told") };
        let two = Duration::from_secs(2);
        assert_eq!((timeout, spread, begun_ms), (Some(two), two, Some(1_000)), "with the time that is left");
        assert_eq!(drain.due(4, 30_999), None);
        for _ in 0..2 {
            let Some(Order::Drain { timeout, .. }) = drain.due(4, 31_000) else { panic!("not told") };
            assert_eq!(timeout, Some(Duration::ZERO), "the time is over");
        }
    }
}
