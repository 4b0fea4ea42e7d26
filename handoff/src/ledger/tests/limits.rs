//! A limit over threads: raise the own cell, sum all, take back if above.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use super::*;

const THREADS: u16 = 8;
const ROUNDS: u32 = 20_000;

/// Runs all threads against one limit; gives how often each got in and the most that were in at once.
fn contend(limit: u64) -> (Vec<u32>, u64) {
    let ledger = ledger(SMALL);
    let segment = last(&ledger);
    let backend = segment.find(3, "b0").unwrap();
    let (inside, most) = (AtomicU64::new(0), AtomicU64::new(0));
    let start = Barrier::new(THREADS.into());
    let thread = |number: u16| {
        let writer = Writer::lease(Arc::clone(&segment), 1, number).unwrap();
        let gauges = writer.gauges(backend);
        start.wait();
        let mut entered = 0;
        for _ in 0..ROUNDS {
            gauges.raise(1);
            if segment.gauge_sum(backend, 1) <= limit {
                most.fetch_max(inside.fetch_add(1, SeqCst) + 1, SeqCst);
                entered += 1;
                inside.fetch_sub(1, SeqCst);
            }
            gauges.lower(1);
        }
        entered
    };
    let entered = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|number| scope.spawn(move || thread(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(segment.gauge_sum(backend, 1), 0);
    (entered, most.into_inner())
}

#[test]
fn never_more_than_the_limit() {
    for limit in 1..=3 {
        let (entered, most) = contend(limit);
        assert!(most <= limit, "{most} at once, limit {limit}");
        assert!(entered.iter().sum::<u32>() > 0, "somebody got in");
    }
}

/// Two at one place, let go at the same moment, round for round: without the fence both sums could miss the other's store.
/// (Only an optimised build leaves so few cycles between store and sum that this shows.)
#[test]
fn of_two_at_least_one_sees_the_other() {
    const ROUNDS: u32 = 50_000;
    let ledger = ledger(SMALL);
    let segment = last(&ledger);
    let backend = segment.find(3, "b0").unwrap();
    let (ready, entered) = ([const { AtomicU32::new(0) }; 2], [const { AtomicU32::new(0) }; 2]);
    // Both threads pass each of its rounds together.
    let meet = |me: usize, round: u32| {
        ready[me].store(round, SeqCst);
        let other = || ready[1 - me].load(SeqCst) >= round;
        // Awake, so that both leave within the few cycles that a store takes to be seen.
        if !(0..10_000).any(|_| other()) {
            until("the other thread comes", other);
        }
    };
    let thread = |me: usize| {
        let writer = Writer::lease(Arc::clone(&segment), 1, u16::from(me == 1)).unwrap();
        let gauges = writer.gauges(backend);
        let mut both = 0;
        for round in 0..ROUNDS {
            meet(me, 3 * round + 1);
            gauges.raise(0);
            let alone = segment.gauge_sum(backend, 0) == 1;
            entered[me].store(alone.into(), SeqCst);
            meet(me, 3 * round + 2);
            both += u32::from(entered[0].load(SeqCst) + entered[1].load(SeqCst) == 2);
            gauges.lower(0);
            meet(me, 3 * round + 3);
        }
        both
    };
    let both: u32 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|me| scope.spawn(move || thread(me))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(both, 0);
}

#[test]
fn nobody_is_refused_below_the_limit() {
    let (entered, _) = contend(THREADS.into());
    assert_eq!(entered, vec![ROUNDS; THREADS.into()]);
}

#[test]
fn the_dead_hold_no_place() {
    let ledger = ledger(SMALL);
    let segment = last(&ledger);
    let backend = segment.find(3, "b0").unwrap();
    let dead = writer(&ledger, 1, 0);
    dead.gauges(backend).raise(1);
    std::mem::forget(dead);
    assert_eq!(segment.gauge_sum(backend, 1), 1);
    bury_all(&ledger, 1);
    assert_eq!(segment.gauge_sum(backend, 1), 0);
    let next = writer(&ledger, 2, 0);
    assert_eq!(segment.gauge_sum(backend, 1), 0, "cleared, not only out of sight");
    drop(next);
}
