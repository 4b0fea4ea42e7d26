//! Released layouts stay readable and stay what they were: `golden/ledger_vN.txt` holds each word of a segment that is not 0.

use std::fmt::Write;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags};

use super::*;

const V1: &str = include_str!("../../../golden/ledger_v1.txt");
const SIZES: Sizes = Sizes { names: 8, counters: 32, gauges: 16, blocks: 2, records: 4 };

/// A listener, its pool and backends; one session that is established and one that was closed; 5 counted, 1 held.
fn example() -> Ledger {
    let mut ledger = Ledger::create(SIZES).unwrap();
    ledger.ensure(&names(), 1, 2).unwrap();
    let segment = last(&ledger);
    let writer = writer(&ledger, 7, 3);
    let front = segment.find(1, "front").unwrap();
    writer.counters(front).add(2, 5);
    writer.gauges(front).raise(1);
    let open = writer.claim(&opening(&segment, "10.0.0.1:5000")).unwrap();
    open.established(segment.find(3, "b1").unwrap(), address("[2001:db8::1]:5432"));
    open.received(15);
    open.sent(7);
    open.touch(6000);
    let closed = writer.claim(&opening(&segment, "10.0.0.2:5000")).unwrap();
    closed.unsent(3, -1);
    closed.closed(12);
    ledger.note(Noted { serving: Some(7), standby: Some(6) });
    // As a crash leaves them: neither record is freed, nor the lease given back.
    std::mem::forget((open, closed, writer));
    ledger
}

fn written(segment: &Segment) -> String {
    let bytes = usize::try_from(rustix::fs::fstat(segment.descriptor()).unwrap().st_size).unwrap();
    let mut all = vec![0; bytes];
    assert_eq!(rustix::io::pread(segment.descriptor(), &mut all, 0).unwrap(), bytes);
    let mut text = format!("bytes {bytes}\n");
    for (place, word) in all.chunks(8).enumerate() {
        let word = u64::from_ne_bytes(word.try_into().unwrap());
        if word != 0 {
            writeln!(text, "{:x} {word:016x}", place * 8).unwrap();
        }
    }
    text
}

fn read(golden: &str) -> OwnedFd {
    let mut lines = golden.lines();
    let bytes: u64 = lines.next().unwrap().strip_prefix("bytes ").unwrap().parse().unwrap();
    let fd = rustix::fs::memfd_create("golden", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, bytes).unwrap();
    for line in lines {
        let (place, word) = line.split_once(' ').unwrap();
        let [place, word] = [place, word].map(|number| u64::from_str_radix(number, 16).unwrap());
        assert_eq!(rustix::io::pwrite(&fd, &word.to_ne_bytes(), place).unwrap(), 8);
    }
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).unwrap();
    fd
}

#[test]
fn layout_1_is_written_as_it_was_released() {
    let written = written(&last(&example()));
    assert!(written == V1, "any change of the layout is a new version, with a golden file of its own; now:\n{written}");
}

#[test]
fn layout_1_is_read_and_gone_on_with() {
    let ledger = Ledger::open(vec![read(V1)]).unwrap();
    assert_eq!(ledger.noted(), Noted { serving: Some(7), standby: Some(6) });
    let front = total(&ledger, 1, "front");
    assert_eq!((front.counters[2], front.gauges[1]), (5, 1));
    let phases: Vec<_> = sessions(ledger.segments()).into_iter().map(|session| (session.id, session.phase)).collect();
    assert_eq!(phases, [(1, Phase::Established), (2, Phase::Closed)]);
    let lost = bury_all(&ledger, 7);
    assert_eq!(lost.len(), 1, "the end of the other was counted");
    assert_eq!(
        (lost[0].received, lost[0].backend.as_str(), lost[0].backend_address),
        (15, "b1", Some(address("[2001:db8::1]:5432")))
    );
    let segment = last(&ledger);
    let next = writer(&ledger, 8, 0).claim(&opening(&segment, "10.0.0.3:1")).unwrap();
    assert!(next.id() > 2, "an id is never used again");
    assert_eq!(total(&ledger, 1, "front").counters[2], 5, "counters go on");
}
