//! Records and ids: each to one session at a time, none lost, none touched without need.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Barrier, Mutex};

use super::*;

#[test]
fn all_records_can_be_claimed_and_claimed_again() {
    let ledger = ledger(SMALL);
    let segment = last(&ledger);
    let (one, other) = (writer(&ledger, 1, 0), writer(&ledger, 1, 1));
    let opening = opening(&segment, "10.0.0.1:1");
    for _ in 0..3 {
        let mut records: Vec<_> = (0..32).flat_map(|_| [one.claim(&opening), other.claim(&opening)]).collect();
        assert!(records.iter().all(Option::is_some));
        assert!(one.claim(&opening).is_none() && other.claim(&opening).is_none(), "all are taken");
        let ids: HashSet<_> = sessions(ledger.segments()).iter().map(|session| session.id).collect();
        assert_eq!(ids.len(), 64);
        // What one thread frees, another finds.
        records.truncate(1);
        let mut taken: Vec<_> = std::iter::from_fn(|| other.claim(&opening)).collect();
        assert_eq!(taken.len(), 63);
        taken.clear();
    }
    assert!(sessions(ledger.segments()).is_empty());
}

#[test]
fn threads_never_share_a_record_or_an_id() {
    const THREADS: u16 = 4;
    const ROUNDS: u32 = 20_000;
    let ledger = ledger(Sizes { records: 40, ..SMALL });
    let segment = last(&ledger);
    let all_ids = Mutex::new(HashSet::new());
    let thread = |number: u16| {
        let writer = Writer::lease(Arc::clone(&segment), 1, number).unwrap();
        let opening = opening(&segment, "10.0.0.1:1");
        let (mut held, mut ids, mut refused) = (std::collections::VecDeque::new(), Vec::new(), 0);
        for round in 0..ROUNDS {
            let Some(record) = writer.claim(&opening) else {
                refused += 1;
                held.clear();
                continue;
            };
            ids.push(record.id());
            record.received(record.id());
            record.sent(u64::from(round));
            held.push_back((record, round));
            if held.len() > 12 {
                let (record, round) = held.pop_front().unwrap();
                // Another thread's stores to the same record would show here.
                assert_eq!((record.total_received(), record.total_sent()), (record.id(), u64::from(round)));
            }
        }
        let mut all = all_ids.lock().unwrap();
        assert!(ids.into_iter().all(|id| all.insert(id)), "an id came twice");
        refused
    };
    let refused: u32 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|number| scope.spawn(move || thread(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(all_ids.into_inner().unwrap().len(), usize::from(THREADS) * ROUNDS as usize - refused as usize);
    assert!(sessions(ledger.segments()).is_empty());
}

/// Few records and many takers: whoever finds one free has to win it, not only to see it.
#[test]
fn a_free_record_goes_to_one_taker() {
    const THREADS: u16 = 4;
    const ROUNDS: u32 = 100_000;
    let ledger = ledger(Sizes { records: 1, ..SMALL });
    let segment = last(&ledger);
    let (holders, start) = (AtomicU32::new(0), Barrier::new(THREADS.into()));
    let thread = |number: u16| {
        let writer = Writer::lease(Arc::clone(&segment), 1, number).unwrap();
        let opening = opening(&segment, "10.0.0.1:1");
        start.wait();
        (0..ROUNDS).filter_map(|_| writer.claim(&opening)).fold(0, |most, record| {
            let most = most.max(holders.fetch_add(1, SeqCst) + 1);
            holders.fetch_sub(1, SeqCst);
            drop(record);
            most
        })
    };
    let most: Vec<u32> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|number| scope.spawn(move || thread(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(most.into_iter().max(), Some(1));
}

#[test]
fn memory_does_not_grow_with_each_generation() {
    let ledger = ledger(Sizes { records: 10_000, ..SMALL });
    let segment = last(&ledger);
    for generation in 1..=50 {
        let writer = writer(&ledger, generation, 0);
        let opening = opening(&segment, "10.0.0.1:1");
        let records: Vec<_> = (0..100).map(|_| writer.claim(&opening).unwrap()).collect();
        if generation % 2 == 0 {
            std::mem::forget((records, writer));
            assert_eq!(bury_all(&ledger, generation).len(), 100);
        }
    }
    let used = segment.used_records().len();
    assert!(used <= 128, "{used} records used for 100 sessions at a time");
}

#[test]
fn a_record_given_away_is_not_freed_by_its_giver() {
    let ledger = ledger(SMALL);
    let segment = last(&ledger);
    let giver = writer(&ledger, 1, 0);
    let record = giver.claim(&opening(&segment, "10.0.0.1:1")).unwrap();
    let id = record.id();
    // The keeper took it for dead and gave the record to another.
    assert_eq!(bury_all(&ledger, 1).len(), 1);
    let taker = writer(&ledger, 2, 0);
    let taken = taker.claim(&opening(&segment, "10.0.0.1:2")).unwrap();
    drop(record);
    let left: Vec<_> = sessions(ledger.segments()).iter().map(|session| session.id).collect();
    assert_eq!(left, [taken.id()]);
    assert_ne!(taken.id(), id);
}

#[test]
fn what_is_said_of_a_session_ends_with_it() {
    let ledger = ledger(SMALL);
    let segment = last(&ledger);
    let writer = writer(&ledger, 7, 3);
    let record = writer.claim(&opening(&segment, "10.0.0.1:5000")).unwrap();
    let (id, place) = (record.id(), record.place());
    assert_eq!(record.protection(), 0);
    record.protect(3);
    record.mark(0b101);
    let seen = ledger.look(place, id).unwrap();
    assert_eq!((seen.protection, seen.marks, record.protection()), (3, 0b101, 3));
    let there = Whereabouts { generation: 7, phase: Phase::Connecting, reason: 0, protection: 3 };
    assert_eq!(ledger.whereabouts(place, id), Some(there));
    record.closed(4);
    assert_eq!(ledger.whereabouts(place, id), Some(Whereabouts { phase: Phase::Closed, reason: 4, ..there }));
    drop(record);
    assert_eq!(ledger.whereabouts(place, id), None);
    let next = writer.claim(&opening(&segment, "10.0.0.1:5001")).unwrap();
    assert_eq!(next.place(), place, "the same record");
    let seen = ledger.look(place, next.id()).unwrap();
    assert_eq!((seen.protection, seen.marks), (0, 0));
    assert_eq!(ledger.whereabouts(place, next.id()), Some(Whereabouts { protection: 0, ..there }));
}
