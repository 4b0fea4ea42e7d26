//! Counters only grow, whoever comes and goes; gauges end with their writer.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::*;

#[test]
fn sums_run_over_threads_and_generations() {
    let ledger = ledger(SMALL);
    let front = last(&ledger).find(1, "front").unwrap();
    let writers = [writer(&ledger, 1, 0), writer(&ledger, 1, 1), writer(&ledger, 2, 0)];
    for (n, writer) in (1..).zip(&writers) {
        writer.counters(front).add(3, n);
        writer.gauges(front).set(1, 10 * n);
    }
    assert_eq!(total(&ledger, 1, "front").counters, [0, 0, 0, 6]);
    assert_eq!(total(&ledger, 1, "front").gauges, [0, 60]);
    assert_eq!(total(&ledger, 2, "p").counters, [0; 4], "cells of names do not overlap");
    assert_eq!(total(&ledger, 2, "p").gauges, [0; 2]);
}

#[test]
fn the_last_handle_gives_the_block_back() {
    let ledger = ledger(Sizes { blocks: 1, ..SMALL });
    let segment = last(&ledger);
    let front = segment.find(1, "front").unwrap();
    let first = writer(&ledger, 1, 0);
    let (counters, gauges) = (first.counters(front), first.gauges(front));
    let record = first.claim(&opening(&segment, "10.0.0.1:1000")).unwrap();
    counters.add(0, 5);
    gauges.raise(0);
    drop((first, counters, gauges));
    let full = Writer::lease(Arc::clone(&segment), 2, 0).unwrap_err();
    assert!(matches!(full, LedgerError::NoBlock { segment: 0, blocks: 1 }), "the record still holds it: {full}");
    assert_eq!(total(&ledger, 1, "front").gauges, [1, 0]);
    drop(record);
    assert_eq!(total(&ledger, 1, "front").gauges, [0, 0]);
    let second = writer(&ledger, 2, 0);
    assert_eq!(segment.gauge_sum(front, 0), 0, "the next one starts with clear gauges");
    second.counters(front).add(0, 2);
    assert_eq!(total(&ledger, 1, "front").counters[0], 7);
}

#[test]
fn gauges_go_up_down_and_stop_at_zero() {
    let ledger = ledger(SMALL);
    let segment = last(&ledger);
    let backend = segment.find(3, "b2").unwrap();
    let (one, other) = (writer(&ledger, 1, 0).gauges(backend), writer(&ledger, 1, 1).gauges(backend));
    one.raise(1);
    one.raise(1);
    other.raise(1);
    assert_eq!((segment.gauge_sum(backend, 1), segment.gauge_sum(backend, 0)), (3, 0));
    one.lower(1);
    other.lower(1);
    other.lower(1);
    assert_eq!(segment.gauge_sum(backend, 1), 1);
    assert_eq!(segment.gauge_sum(backend, 2), 0, "a cell it does not have");
    assert_eq!(segment.gauge_sum(Name(77), 0), 0, "a name there is not");
}

/// A release build does not count them; the debug build that tests run in says where the mistake is.
#[test]
#[should_panic(expected = "cell 4 of a name that has 4")]
fn a_cell_of_the_neighbour_is_out_of_reach() {
    let ledger = ledger(SMALL);
    let front = last(&ledger).find(1, "front").unwrap();
    writer(&ledger, 1, 0).counters(front).add(4, 1);
}

#[test]
fn sums_never_fall_while_leases_come_and_go() {
    const ROUNDS: u32 = 300;
    let ledger = ledger(Sizes { blocks: 4, ..SMALL });
    let segment = last(&ledger);
    let (done, ledger_ref) = (AtomicBool::new(false), &ledger);
    std::thread::scope(|scope| {
        let work = |thread: u16| {
            let segment = Arc::clone(&segment);
            let front = segment.find(1, "front").unwrap();
            move || {
                for round in 0..ROUNDS {
                    let generation = round * 4 + u32::from(thread) + 1;
                    let writer = Writer::lease(Arc::clone(&segment), generation, thread).unwrap();
                    (0..50).for_each(|_| writer.counters(front).add(0, 1));
                    if round % 2 == 1 {
                        // As if killed: nothing is released, and the keeper has to.
                        std::mem::forget(writer);
                        ledger_ref.bury(generation, &mut |_| {});
                    }
                }
            }
        };
        let workers: Vec<_> = (0..3).map(|thread| scope.spawn(work(thread))).collect();
        let reader = scope.spawn(|| {
            let mut highest = 0;
            while !done.load(Relaxed) {
                let now = total(&ledger, 1, "front").counters[0];
                assert!(now >= highest, "{now} after {highest}");
                highest = now;
            }
        });
        let worked: Vec<_> = workers.into_iter().map(|worker| worker.join().is_ok()).collect();
        done.store(true, Relaxed);
        reader.join().unwrap();
        assert_eq!(worked, [true; 3]);
    });
    assert_eq!(total(&ledger, 1, "front").counters[0], 3 * 50 * u64::from(ROUNDS));
}

#[test]
fn a_burial_leaves_the_living_alone() {
    let ledger = ledger(SMALL);
    let segment = last(&ledger);
    let front = segment.find(1, "front").unwrap();
    let (dead, alive) = (writer(&ledger, 1, 0), writer(&ledger, 2, 0));
    for writer in [&dead, &alive] {
        writer.counters(front).add(0, 1);
        writer.gauges(front).raise(0);
    }
    let kept = alive.claim(&opening(&segment, "10.0.0.1:2")).unwrap();
    std::mem::forget(dead.claim(&opening(&segment, "10.0.0.1:1")).unwrap());
    std::mem::forget(dead);
    let buried: Vec<_> = bury_all(&ledger, 1).into_iter().map(|session| session.client).collect();
    assert_eq!(buried, [Some(address("10.0.0.1:1"))]);
    assert_eq!(total(&ledger, 1, "front").counters[0], 2);
    assert_eq!(total(&ledger, 1, "front").gauges[0], 1);
    let left: Vec<_> = sessions(ledger.segments()).iter().map(|session| session.id).collect();
    assert_eq!(left, [kept.id()]);
    assert!(bury_all(&ledger, 1).is_empty(), "once");
}

/// Reading a page of a memfd that was never written allocates it, for as long as the ledger lives.
#[test]
fn reading_does_not_touch_blocks_that_were_never_leased() {
    let ledger = ledger(Sizes { counters: 4096, blocks: 512, records: 100_000, ..SMALL });
    let segment = last(&ledger);
    let front = segment.find(1, "front").unwrap();
    let writer = writer(&ledger, 1, 0);
    writer.counters(front).add(0, 1);
    writer.gauges(front).raise(0);
    let record = writer.claim(&opening(&segment, "10.0.0.1:1")).unwrap();
    let allocated = || rustix::fs::fstat(segment.descriptor()).unwrap().st_blocks;
    let before = allocated();
    // 42 MB of address space; a quarter allows for huge pages.
    let whole = rustix::fs::fstat(segment.descriptor()).unwrap().st_size;
    assert!(before * 512 < whole / 4, "{before} blocks of {whole} bytes");
    assert_eq!(total(&ledger, 1, "front").counters[0], 1);
    assert_eq!(sessions(ledger.segments()).len(), 1);
    assert_eq!(segment.gauge_sum(front, 0), 1);
    assert_eq!(allocated(), before);
    drop(record);
}
