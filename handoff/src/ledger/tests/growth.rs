//! The chain grows: names, sums and limits of what was there stay.

use super::*;

#[test]
fn asking_again_changes_nothing() {
    let mut ledger = ledger(SMALL);
    let found = last(&ledger).find(3, "b3");
    assert!(!ledger.ensure(&names(), 1, 1).unwrap());
    assert_eq!(ledger.segments().len(), 1);
    assert_eq!(last(&ledger).find(3, "b3"), found);
    assert_eq!(totals(ledger.segments()).len(), names().len());
}

#[test]
fn a_new_name_that_fits_needs_no_segment() {
    let mut ledger = ledger(SMALL);
    // What a worker has mapped sees the name too.
    let worker = Segment::open(ledger.descriptor(0).unwrap().try_clone_to_owned().unwrap()).unwrap();
    assert_eq!(worker.find(3, "new"), None);
    let twice = [spec(3, "new", 1, 0), spec(3, "new", 4, 2)];
    assert!(!ledger.ensure(&twice, 1, 1).unwrap());
    let new = worker.find(3, "new").unwrap();
    assert_eq!(new, last(&ledger).find(3, "new").unwrap());
    let writer = Writer::lease(Arc::new(worker), 1, 0).unwrap();
    writer.counters(new).add(3, 8);
    assert_eq!(total(&ledger, 3, "new").counters, [0, 0, 0, 8], "given once, with the most cells asked for");
    assert_eq!(total(&ledger, 3, "b3").counters, [0; 4]);
}

#[test]
fn each_kind_of_want_makes_a_segment_that_holds_all() {
    let fill: Vec<_> = (0..11).map(|i| spec(9, &i.to_string(), 1, 0)).collect();
    let cases: [(&str, Vec<NameSpec>, u32, u32); 7] = [
        ("names", [names(), fill].concat(), 1, 1),
        ("counters", [names(), vec![spec(9, "wide", 41, 0)]].concat(), 1, 1),
        ("gauges", [names(), vec![spec(9, "wide", 0, 5)]].concat(), 1, 1),
        ("counters of a known name", [names(), vec![spec(1, "front", 5, 2)]].concat(), 1, 1),
        ("gauges of a known name", [names(), vec![spec(1, "front", 4, 3)]].concat(), 1, 1),
        ("blocks", names(), 17, 1),
        ("records", names(), 1, 65),
    ];
    for (what, wanted, blocks, records) in cases {
        let mut ledger = ledger(SMALL);
        assert!(ledger.ensure(&wanted, blocks, records).unwrap(), "{what}");
        let segment = last(&ledger);
        assert_eq!((ledger.segments().len(), segment.index()), (2, 1), "{what}");
        for spec in &wanted {
            let name = segment.find(spec.kind, &spec.text).unwrap();
            let cells = segment.cells_of(name);
            assert!(cells.counters.len() >= spec.counters as usize && cells.gauges.len() >= spec.gauges as usize);
        }
        let sizes = segment.sizes();
        let need: u32 = wanted.iter().map(|spec| spec.counters).sum();
        assert!(sizes.blocks >= 2 * blocks && sizes.records >= 2 * records && sizes.counters >= need, "{what}");
        assert!(!ledger.ensure(&wanted, blocks, records).unwrap(), "{what}: now there is room");
    }
}

#[test]
fn room_is_what_is_free_not_what_there_is() {
    for (blocks, records) in [(16, 60), (15, 61)] {
        let mut ledger = ledger(SMALL);
        let writer = writer(&ledger, 1, 0);
        let _held = [0; 4].map(|_| writer.claim(&opening(writer.segment(), "10.0.0.1:1")).unwrap());
        assert!(!ledger.ensure(&names(), 15, 60).unwrap());
        assert!(ledger.ensure(&names(), blocks, records).unwrap(), "{blocks} blocks, {records} records");
    }
}

#[test]
fn a_segment_that_is_added_is_as_large_as_was_wished() {
    let mut ledger = ledger(SMALL);
    let least = Sizes { blocks: 100, ..Sizes::default() };
    assert!(!ledger.ensure_roomy(&names(), 16, 1, least).unwrap(), "what fits needs none");
    assert!(ledger.ensure_roomy(&names(), 17, 1, least).unwrap());
    let sizes = last(&ledger).sizes();
    assert_eq!((sizes.blocks, sizes.records), (100, SMALL.records));
    // Generations of 17 threads, of which four live at a time.
    for generation in 1..=5 {
        assert!(!ledger.ensure_roomy(&names(), 17, 1, least).unwrap(), "generation {generation}");
        (0..17).for_each(|thread| std::mem::forget(writer(&ledger, generation, thread)));
        ledger.bury(generation.saturating_sub(3), &mut |_| ());
    }
}

#[test]
fn an_old_segment_has_a_block_for_each_of_many_generations() {
    let ledger = ledger(SMALL);
    let share = |generation| {
        let leased = |thread| Writer::lease_share(last(&ledger), generation, thread);
        (0..20).map_while(|thread| leased(thread).ok()).collect::<Vec<_>>()
    };
    let shares = [1, 2, 3, 4, 5].map(share);
    assert_eq!(shares.each_ref().map(Vec::len), [8, 4, 2, 1, 1]);
    let full = Writer::lease_share(last(&ledger), 6, 0).unwrap_err();
    assert!(matches!(full, LedgerError::NoBlock { .. }), "{full}");
    let left = Writer::lease_share(last(&ledger), 2, 9).unwrap_err();
    assert!(matches!(left, LedgerError::NoShare { segment: 0 }), "{left}");
    drop(shares);
    assert_eq!(share(7).len(), 8, "what earlier ones had is free again");
}

#[test]
fn sums_run_over_segments_and_keep_names_that_are_gone() {
    let mut ledger = ledger(SMALL);
    let old = writer(&ledger, 1, 0);
    for name in ["b0", "b1"] {
        let name = old.segment().find(3, name).unwrap();
        old.counters(name).add(0, 100);
        old.gauges(name).raise(0);
    }
    let now = [spec(1, "front", 4, 2), spec(2, "p", 4, 2), spec(3, "b1", 6, 2)];
    assert!(ledger.ensure(&now, 1, 1).unwrap());
    let new = writer(&ledger, 2, 0);
    assert_eq!(new.segment().find(3, "b0"), None);
    let name = new.segment().find(3, "b1").unwrap();
    new.counters(name).add(0, 11);
    new.counters(name).add(5, 1);
    new.gauges(name).raise(0);
    assert_eq!(total(&ledger, 3, "b0").counters, [100, 0, 0, 0]);
    assert_eq!(total(&ledger, 3, "b1").counters, [111, 0, 0, 0, 0, 1]);
    assert_eq!(total(&ledger, 3, "b1").gauges, [2, 0]);
    assert_eq!(totals(ledger.segments()).len(), names().len(), "each name once");
    drop(old);
    assert_eq!(total(&ledger, 3, "b1").counters[0], 111);
    assert_eq!(total(&ledger, 3, "b1").gauges, [1, 0]);
}

#[test]
fn ids_are_unique_over_segments() {
    let mut ledger = ledger(SMALL);
    let first = writer(&ledger, 1, 0);
    let one = first.claim(&opening(first.segment(), "10.0.0.1:1")).unwrap();
    assert_eq!(one.id(), 1);
    assert!(ledger.ensure(&names(), 1, 500).unwrap());
    let second = writer(&ledger, 1, 0);
    let other = second.claim(&opening(second.segment(), "10.0.0.1:2")).unwrap();
    assert_eq!(other.id(), 10_000_000_000_001);
    let ids: Vec<_> = sessions(ledger.segments()).iter().map(|session| session.id).collect();
    assert_eq!(ids, [one.id(), other.id()], "the table runs over all segments");
}

#[test]
fn a_new_keeper_finds_all_of_it() {
    let mut old = ledger(SMALL);
    let keeper_writer = writer(&old, 0, 0);
    keeper_writer.counters(last(&old).find(1, "front").unwrap()).add(0, 9);
    assert!(old.ensure(&names(), 1, 500).unwrap());
    let worker = writer(&old, 4, 1);
    let record = worker.claim(&opening(worker.segment(), "10.0.0.1:1")).unwrap();
    let copy = |index| old.descriptor(index).unwrap().try_clone_to_owned().unwrap();
    let mut new = Ledger::open([0, 1].map(copy).into()).unwrap();
    assert_eq!(total(&new, 1, "front").counters[0], 9);
    assert_eq!(sessions(new.segments())[0].id, record.id());
    assert!(!new.ensure(&[spec(3, "later", 4, 2)], 1, 1).unwrap());
    assert!(worker.segment().find(3, "later").is_some());
    assert_eq!(bury_all(&new, 4).len(), 1);
    let swapped = Ledger::open([1, 0].map(copy).into()).unwrap_err();
    assert!(matches!(swapped, LedgerError::OutOfOrder { place: 0, found: 1 }), "{swapped}");
    assert!(matches!(Ledger::open(Vec::new()), Err(LedgerError::NotASegment(_))));
}

#[test]
fn what_is_refused_changes_nothing() {
    let mut ledger = ledger(SMALL);
    let before = totals(ledger.segments());
    let new = spec(3, "new", 1, 0);
    let long = ledger.ensure(&[new.clone(), spec(3, &"x".repeat(256), 1, 0)], 1, 1).unwrap_err();
    assert!(matches!(long, LedgerError::NameTooLong { bytes: 256, .. }), "{long}");
    let wide = ledger.ensure(&[new.clone(), spec(3, "wide", 4097, 0)], 1, 1).unwrap_err();
    assert!(matches!(wide, LedgerError::TooManyCells { counters: 4097, .. }), "{wide}");
    let huge = ledger.ensure(&[new], 1, u32::MAX).unwrap_err();
    assert!(matches!(huge, LedgerError::TooLarge), "{huge}");
    assert_eq!((totals(ledger.segments()), ledger.segments().len()), (before, 1));
    let longest = "ä".repeat(127) + "x";
    assert!(!ledger.ensure(&[spec(3, &longest, 1, 0), spec(3, "", 1, 0)], 1, 1).unwrap());
    assert_eq!(total(&ledger, 3, &longest).counters, [0]);
    assert_eq!(total(&ledger, 3, "").counters, [0]);
}

#[test]
fn many_names_are_found_and_summed_once_each() {
    const MANY: u32 = 20_000;
    let wanted: Vec<_> =
        (0..MANY).map(|i| spec(4, &format!("pool\u{1f}10.1.{}.{}:80", i / 256, i % 256), 3, 1)).collect();
    let mut ledger = Ledger::create(SMALL).unwrap();
    assert!(ledger.ensure(&wanted, 2, 10).unwrap());
    let segment = last(&ledger);
    let writer = writer(&ledger, 1, 0);
    for (n, spec) in (1..).zip(&wanted) {
        writer.counters(segment.find(4, &spec.text).unwrap()).add(2, n);
    }
    assert!(!ledger.ensure(&wanted, 1, 10).unwrap());
    let totals = totals(ledger.segments());
    assert_eq!(totals.len(), wanted.len());
    assert!(
        (1..).zip(&totals).zip(&wanted).all(|((n, total), spec)| {
            total.text == spec.text && total.counters == [0, 0, n] && total.gauges == [0]
        })
    );
}

#[test]
fn who_serves_is_found_again_by_the_next_keeper() {
    let ledger = ledger(SMALL);
    assert_eq!(ledger.noted(), Noted::default());
    let noted = Noted { serving: Some(u32::MAX), standby: Some(7) };
    ledger.note(noted);
    let again = Ledger::open(vec![ledger.descriptor(0).unwrap().try_clone_to_owned().unwrap()]).unwrap();
    assert_eq!(again.noted(), noted);
    again.note(Noted { serving: Some(8), standby: None });
    assert_eq!(ledger.noted(), Noted { serving: Some(8), standby: None });
}
