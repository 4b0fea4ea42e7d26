//! Whose turn it is.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::config::Balance;
use crate::config::plan::PlannedBackend;

fn planned(backends: &[(&str, u32, BackendAdmin)]) -> PlannedPool {
    let backend = |(name, weight, admin): &(&str, u32, BackendAdmin)| PlannedBackend {
        name: (*name).into(),
        address: "127.0.0.1:1".parse().unwrap(),
        weight: *weight,
        admin: *admin,
    };
    PlannedPool {
        name: "p".into(),
        version: 1,
        balance: Balance::RoundRobin,
        connect_timeout: Duration::from_secs(1),
        connect_retries: 2,
        source: None,
        backends: backends.iter().map(backend).collect(),
    }
}

fn pool(backends: &[(&str, u32, BackendAdmin)]) -> Arc<Pool> {
    Arc::clone(Pools::build(&[planned(backends)], &Pools::default()).named("p").unwrap())
}

fn picks(pool: &Pool, n: usize) -> Vec<&str> {
    (0..n).map(|_| pool.pick(&mut Tried::default()).unwrap().name.as_str()).collect()
}

#[test]
fn turns_are_spread() {
    let pool = pool(&[("a", 6, BackendAdmin::Enabled), ("b", 2, BackendAdmin::Enabled)]);
    assert_eq!(picks(&pool, 8), ["a", "a", "b", "a", "a", "a", "b", "a"]);
}

#[test]
fn only_enabled_backends_take_sessions() {
    let admin = [("a", 1, BackendAdmin::Draining), ("b", 1, BackendAdmin::Enabled), ("c", 9, BackendAdmin::Disabled)];
    assert_eq!(picks(&pool(&admin), 3), ["b", "b", "b"]);
    assert!(pool(&admin[..1]).pick(&mut Tried::default()).is_none());
}

#[test]
fn a_retry_goes_to_each_other_backend_once() {
    let pool =
        pool(&[("a", 256, BackendAdmin::Enabled), ("b", 1, BackendAdmin::Enabled), ("c", 1, BackendAdmin::Enabled)]);
    let mut tried = Tried::default();
    let mut names: Vec<_> = (0..3).map(|_| pool.pick(&mut tried).unwrap().name.clone()).collect();
    names.sort();
    assert_eq!(names, ["a", "b", "c"]);
    assert!(pool.pick(&mut tried).is_none());
}

#[test]
fn an_unchanged_pool_is_kept_and_a_changed_one_goes_on_at_its_turn() {
    let plan = planned(&[("a", 1, BackendAdmin::Enabled), ("b", 1, BackendAdmin::Enabled)]);
    let first = Pools::build(std::slice::from_ref(&plan), &Pools::default());
    assert_eq!(picks(first.named("p").unwrap(), 1), ["a"]);
    let same = Pools::build(std::slice::from_ref(&plan), &first);
    assert!(Arc::ptr_eq(first.named("p").unwrap(), same.named("p").unwrap()));
    let changed = Pools::build(&[PlannedPool { version: 2, ..plan }], &same);
    assert_eq!(picks(changed.named("p").unwrap(), 1), ["b"]);
}

proptest! {
    #[test]
    fn each_backend_has_exactly_its_share(weights in proptest::collection::vec(1_u32..=256, 1..12)) {
        let turns = schedule::build(&weights);
        let mut taken = BTreeMap::<u16, u64>::new();
        for (at, turn) in turns.iter().enumerate() {
            *taken.entry(*turn).or_default() += 1;
            // Smooth: at no time is a backend a whole turn or more from its share, give or take rounding.
            let weight = f64::from(weights[usize::from(*turn)]);
            let share = (at + 1) as f64 * weight / f64::from(weights.iter().sum::<u32>());
            prop_assert!((taken[turn] as f64 - share).abs() <= 1.0 + weights.len() as f64 / 2.0);
        }
        let total: u64 = taken.values().sum();
        for (position, weight) in (0_u16..).zip(&weights) {
            let sum: u32 = weights.iter().sum();
            prop_assert_eq!(taken[&position] * u64::from(sum), total * u64::from(*weight));
        }
    }
}

#[test]
fn a_schedule_is_bounded() {
    let weights: Vec<u32> = (0..1_000).map(|n| 1 + n % 256).collect();
    let turns = schedule::build(&weights);
    assert!(turns.len() <= 66_000, "{}", turns.len());
    assert_eq!(turns.iter().collect::<std::collections::BTreeSet<_>>().len(), 1_000, "none is left out");
}
