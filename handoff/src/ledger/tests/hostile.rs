//! Descriptors and bytes of an enemy: refused, or read as nonsense, never a fault.

use std::os::fd::OwnedFd;

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags};

use super::layout::everything;
use super::snapshots::poke;
use super::*;

const SIZE_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

fn memfd(bytes: &[u8], seals: SealFlags) -> OwnedFd {
    let fd = rustix::fs::memfd_create("enemy", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    assert_eq!(rustix::io::pwrite(&fd, bytes, 0).unwrap(), bytes.len());
    rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
    fd
}

/// A good segment's bytes, with a name and a session in it.
fn good() -> Vec<u8> {
    let ledger = ledger(SMALL);
    let segment = last(&ledger);
    let record = writer(&ledger, 1, 0).claim(&opening(&segment, "10.0.0.1:1")).unwrap();
    let bytes = everything(&segment);
    drop(record);
    bytes
}

#[test]
fn a_copy_of_a_segment_is_a_segment() {
    let segment = Segment::open(memfd(&good(), SIZE_SEALS)).unwrap();
    assert_eq!((segment.index(), segment.sizes()), (0, SMALL));
    assert_eq!(sessions(&[Arc::new(segment)]).len(), 1);
}

#[test]
fn what_is_no_sealed_memfd_is_refused() {
    let (pipe, _end) = rustix::pipe::pipe().unwrap();
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &good()).unwrap();
    let fds: [(&str, OwnedFd); 6] = [
        ("pipe", pipe),
        ("socket", socket.into()),
        ("file", file.into()),
        ("directory", std::fs::File::open("/").unwrap().into()),
        ("device", std::fs::File::open("/dev/zero").unwrap().into()),
        (
            "process",
            rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty()).unwrap(),
        ),
    ];
    for (what, fd) in fds {
        let refused = Segment::open(fd).unwrap_err();
        assert!(matches!(refused, LedgerError::System { .. } | LedgerError::NotASegment(_)), "{what}: {refused}");
    }
}

#[test]
fn every_size_seal_is_required() {
    for seals in [
        SealFlags::empty(),
        SIZE_SEALS.difference(SealFlags::SHRINK),
        SIZE_SEALS.difference(SealFlags::GROW),
        SIZE_SEALS.difference(SealFlags::SEAL),
    ] {
        let refused = Segment::open(memfd(&good(), seals)).unwrap_err();
        assert!(matches!(refused, LedgerError::NotASegment("its size is not sealed")), "{seals:?}: {refused}");
    }
}

#[test]
fn a_segment_that_cannot_be_written_is_refused() {
    let sealed = memfd(&good(), SealFlags::WRITE.union(SIZE_SEALS));
    assert!(matches!(Segment::open(sealed), Err(LedgerError::System { doing: "map a segment", .. })));
}

#[test]
fn a_wrong_length_is_refused() {
    let good = good();
    for length in [0, 1, 511, 512, 4096, good.len() - 4096, good.len() - 1, good.len() + 4096] {
        let mut bytes = good.clone();
        bytes.resize(length, 0);
        let refused = Segment::open(memfd(&bytes, SIZE_SEALS)).unwrap_err();
        assert!(matches!(refused, LedgerError::NotASegment(_)), "{length}: {refused}");
    }
    let endless = rustix::fs::memfd_create("enemy", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&endless, i64::MAX as u64 & !4095).unwrap();
    rustix::fs::fcntl_add_seals(&endless, SIZE_SEALS).unwrap();
    assert!(matches!(Segment::open(endless), Err(LedgerError::NotASegment("its length is impossible"))));
}

#[test]
fn a_wrong_header_is_refused_with_its_reason() {
    let with = |at: usize, word: &[u8]| {
        let mut bytes = good();
        bytes[at..at + word.len()].copy_from_slice(word);
        Segment::open(memfd(&bytes, SIZE_SEALS)).unwrap_err()
    };
    assert!(matches!(with(0, b"proxydLX"), LedgerError::NotASegment(_)));
    for layout in [0, 2, u32::MAX] {
        let refused = with(8, &layout.to_ne_bytes());
        assert!(matches!(refused, LedgerError::UnknownLayout { found } if found == layout), "{refused}");
    }
    // Sizes: larger ones than fit the length, and such that overflow if multiplied without care.
    for at in [16, 20, 24, 28, 32] {
        for size in [1 << 10, u32::MAX] {
            let refused = with(at, &u32::to_ne_bytes(size));
            assert!(matches!(refused, LedgerError::NotASegment(_) | LedgerError::TooLarge), "{at} {size}: {refused}");
        }
    }
    for at in [40, 48, 56, 64, 72] {
        for place in [0, 64, 1 << 63, u64::MAX] {
            assert!(matches!(with(at, &u64::to_ne_bytes(place)), LedgerError::NotASegment(_)), "{at} {place}");
        }
    }
}

/// A name's cells are its own block's: one that claims others' has none, and one that is not published yet neither.
#[test]
fn a_name_cannot_reach_beyond_its_block() {
    let (first_name, next_name) = (4096, 4096 + 280 * 6);
    let half = |value: u32| value.to_ne_bytes();
    let ends: [(u32, u32, u32, u32); 5] =
        [(61, 4, 0, 2), (0, 65, 0, 2), (0, 4, 15, 2), (u32::MAX, 4, 0, 2), (0, 4, 0, 1 << 30)];
    for cells in ends {
        let segment = Segment::open(memfd(&good(), SIZE_SEALS)).unwrap();
        for (at, value) in [4, 8, 12, 16].into_iter().zip([cells.0, cells.1, cells.2, cells.3]) {
            poke(&segment, first_name + at, &half(value));
        }
        assert_eq!(segment.cells_of(Name(0)), Default::default(), "{cells:?}");
        assert_eq!(segment.find(1, "front"), None, "{cells:?}");
        assert_eq!(totals(&[Arc::new(segment)]).len(), names().len() - 1, "{cells:?}");
    }
    let segment = Segment::open(memfd(&good(), SIZE_SEALS)).unwrap();
    poke(&segment, next_name, &[half(3 << 16), half(24), half(4), half(12), half(2)].concat());
    assert_eq!(segment.cells_of(Name(6)), Default::default(), "the keeper is still writing it");
    poke(&segment, 128, &half(7));
    assert_eq!((segment.cells_of(Name(6)).counters, segment.find(3, "")), (24..28, Some(Name(6))));
}

/// Everything that reads or writes a segment, on one whose content may be anything.
fn use_it(segment: Segment) {
    let segments = [Arc::new(segment)];
    let segment = &segments[0];
    sessions(&segments);
    totals(&segments);
    segment.find(1, "front");
    for name in 0..20 {
        segment.gauge_sum(Name(name), 1);
    }
    let front = Name(0);
    if let Ok(writer) = Writer::lease(Arc::clone(segment), 1, 0) {
        if segment.cells_of(front).counters.len() > 1 {
            writer.counters(front).add(1, 1);
        }
        let opening = Opening { listener: front, pool: Name(9999), client: None, opened_unix_us: 1, opened_ms: 1 };
        let records: Vec<_> = (0..100).map_while(|_| writer.claim(&opening)).collect();
        records.iter().for_each(|record| record.established(Name(u32::MAX), address("1.1.1.1:1")));
        sessions(&segments);
    }
    let mut ledger = Ledger::open(vec![segment.descriptor().try_clone_to_owned().unwrap()]).unwrap();
    bury_all(&ledger, 1);
    ledger.ensure(&names(), 1, 1).unwrap();
    totals(ledger.segments());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_header_is_refused_or_used_without_fault(
        header in proptest::collection::vec(any::<u8>(), 0..600), length in 0_usize..3
    ) {
        let mut bytes = header;
        bytes.resize([bytes.len(), 4096, 40960][length], 0);
        if let Ok(segment) = Segment::open(memfd(&bytes, SIZE_SEALS)) {
            use_it(segment);
        }
    }

    #[test]
    fn a_header_changed_a_little_is_refused_or_used_without_fault(
        changes in proptest::collection::vec((8_usize..512, any::<u8>()), 1..4)
    ) {
        let mut bytes = good();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        if let Ok(segment) = Segment::open(memfd(&bytes, SIZE_SEALS))
            && segment.index() == 0
        {
            use_it(segment);
        }
    }

    #[test]
    fn any_content_behind_a_good_header_is_used_without_fault(
        changes in proptest::collection::vec((128_u64..40952, any::<u64>()), 1..200),
        marks in any::<[u32; 2]>(), used in any::<u32>(), ids in any::<u64>()
    ) {
        let segment = Segment::open(memfd(&good(), SIZE_SEALS)).unwrap();
        for (at, word) in changes {
            poke(&segment, at & !7, &word.to_ne_bytes());
        }
        poke(&segment, 128, &marks[0].to_ne_bytes());
        poke(&segment, 132, &marks[1].to_ne_bytes());
        poke(&segment, 192, &used.to_ne_bytes());
        poke(&segment, 200, &ids.to_ne_bytes());
        use_it(segment);
    }
}
