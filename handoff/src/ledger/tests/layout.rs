//! The layout, written out: whoever changes it changes what running processes of other versions read.

use std::mem::{offset_of, size_of};

use super::super::layout::{Header, Layout, LeaseSlot, Owner};
use super::super::name::NameSlot;
use super::super::slot::RecordSlot;
use super::*;

#[test]
fn layout_1_is_what_it_was() {
    assert_eq!(LAYOUTS, 1..=1);
    assert_eq!((size_of::<Header>(), align_of::<Header>()), (512, 64));
    assert_eq!(offset_of!(Header, names_published), 128);
    assert_eq!(offset_of!(Header, blocks_used), 132);
    assert_eq!(offset_of!(Header, records_used), 192);
    assert_eq!(offset_of!(Header, ids_used), 200);
    assert_eq!(size_of::<LeaseSlot>(), 16);
    assert_eq!((size_of::<NameSlot>(), align_of::<NameSlot>()), (280, 8));
    assert_eq!((size_of::<RecordSlot>(), align_of::<RecordSlot>()), (256, 64));
    assert_eq!(offset_of!(RecordSlot, received), 128);
    assert_eq!(offset_of!(RecordSlot, unsent_to_backend), 160);
    let layout = Layout::of(SMALL).unwrap();
    assert_eq!((layout.leases_at, layout.names_at, layout.records_at), (512, 4096, 12288));
    assert_eq!((layout.cells_at, layout.block_words, layout.bytes), (28672, 88, 40960));
    assert_eq!((layout.counters_of(2), layout.gauges_of(2)), (184, 248));
}

/// The bytes of a segment with one name, one counted cell and one session, as an older binary left them.
#[test]
fn words_stand_where_they_stood() {
    let mut ledger = Ledger::create(SMALL).unwrap();
    ledger.ensure(&[spec(7, "front", 4, 2)], 1, 1).unwrap();
    let segment = last(&ledger);
    let front = segment.find(7, "front").unwrap();
    let writer = writer(&ledger, 3, 1);
    writer.counters(front).add(1, 42);
    let opening =
        Opening { listener: front, pool: front, client: Some(address("1.2.3.4:80")), opened_unix_us: 9, opened_ms: 8 };
    let record = writer.claim(&opening).unwrap();
    record.established(front, address("[::1]:443"));
    record.received(11);
    record.sent(12);
    record.closed(6);

    let bytes = everything(&segment);
    let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
    let half = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!(&bytes[..8], b"proxydLG");
    assert_eq!([8, 12, 16, 20, 24, 28, 32].map(half), [1, 0, 16, 64, 16, 16, 64]);
    assert_eq!([40, 48, 56, 64, 72].map(word), [512, 4096, 12288, 28672, 40960]);
    assert_eq!([128, 132, 192].map(half), [1, 1, 16]);
    assert_eq!([200, 512].map(word), [256, 1 << 48 | 3 << 16 | 1]);
    assert_eq!([4096, 4100, 4104, 4108, 4112].map(half), [7 << 16 | 5, 0, 4, 0, 2]);
    assert_eq!(&bytes[4120..4125], b"front");
    let record = 12288;
    assert_eq!([0, 16, 40, 48].map(|at| word(record + at)), [1 << 48 | 3 << 16 | 1, 1, 9, 8]);
    assert_eq!([8, 12, 24, 28, 32].map(|at| half(record + at)), [4, 3 << 16 | 6, 0, 0, 0]);
    assert_eq!([64, 72].map(|at| word(record + at)), [4 << 16 | 80, 0x0102_0304]);
    assert_eq!([96, 104, 112].map(|at| word(record + at)), [6 << 16 | 443, 1, 0]);
    assert_eq!([128, 136, 144].map(|at| word(record + at)), [11, 12, 8]);
    assert_eq!([152, 160].map(|at| word(record + at)), [u64::MAX; 2]);
    assert_eq!(word(28672 + 8 * (8 + 1)), 42);
}

#[test]
fn owner_words_are_never_nobody_and_come_back() {
    for (generation, thread) in [(0, 0), (1, 2), (u32::MAX, u16::MAX)] {
        let owner = Owner { generation, thread };
        assert_ne!(owner.word(), Owner::NOBODY);
        assert_eq!(Owner::of(owner.word()), Some(owner));
    }
    for word in [0, 1, 1 << 47, 1 << 49 | 1 << 48, u64::MAX] {
        assert_eq!(Owner::of(word), None);
    }
}

#[test]
fn sizes_beyond_reason_are_refused() {
    let most = Sizes::MOST;
    for sizes in [
        Sizes { names: most.names + 1, ..SMALL },
        Sizes { counters: u32::MAX, ..SMALL },
        Sizes { gauges: most.gauges + 1, ..SMALL },
        Sizes { blocks: most.blocks + 1, ..SMALL },
        Sizes { records: u32::MAX, ..SMALL },
        most,
    ] {
        assert!(matches!(Ledger::create(sizes), Err(LedgerError::TooLarge)), "{sizes:?}");
    }
}

/// All bytes of a segment, read through its descriptor.
pub(super) fn everything(segment: &Segment) -> Vec<u8> {
    let mut bytes = vec![0; Layout::of(segment.sizes()).unwrap().bytes];
    let read = rustix::io::pread(segment.descriptor(), &mut bytes, 0).unwrap();
    assert_eq!(read, bytes.len());
    bytes
}
