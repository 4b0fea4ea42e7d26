//! A session is read whole or not at all, while its thread goes on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use proptest::prelude::*;

use super::super::layout::Owner;
use super::*;

#[test]
fn a_session_from_its_first_word_to_its_last() {
    let ledger = ledger(SMALL);
    let segment = last(&ledger);
    let writer = writer(&ledger, 7, 3);
    let record = writer.claim(&opening(&segment, "[2001:db8::1]:5000")).unwrap();
    let mut expected = SessionSnapshot {
        protection: 0,
        marks: 0,
        id: 1,
        generation: 7,
        thread: 3,
        listener: "front".to_owned(),
        pool: "p".to_owned(),
        backend: String::new(),
        phase: Phase::Connecting,
        client: Some(address("[2001:db8::1]:5000")),
        backend_address: None,
        opened_unix_us: 1_700_000_000_000_000,
        opened_ms: 5000,
        last_byte_ms: 5000,
        received: 0,
        sent: 0,
        unsent_to_client: -1,
        unsent_to_backend: -1,
        reason: 0,
    };
    assert_eq!(sessions(ledger.segments()), [expected.clone()]);

    record.established(segment.find(3, "b1").unwrap(), address("10.0.0.1:5432"));
    record.received(10);
    record.received(5);
    record.sent(7);
    record.touch(6000);
    expected = SessionSnapshot {
        backend: "b1".to_owned(),
        phase: Phase::Established,
        backend_address: Some(address("10.0.0.1:5432")),
        last_byte_ms: 6000,
        received: 15,
        sent: 7,
        ..expected
    };
    assert_eq!(sessions(ledger.segments()), [expected.clone()]);
    assert_eq!((record.total_received(), record.total_sent(), record.last_byte_ms()), (15, 7, 6000));

    record.unsent(3, -1);
    record.closed(12);
    expected = SessionSnapshot { phase: Phase::Closed, unsent_to_client: 3, reason: 12, ..expected };
    assert_eq!(sessions(ledger.segments()), [expected]);

    drop(record);
    assert!(sessions(ledger.segments()).is_empty());
    let next = writer.claim(&Opening { client: None, ..opening(&segment, "1.1.1.1:1") }).unwrap();
    let fresh = sessions(ledger.segments()).remove(0);
    assert_eq!(
        (fresh.id, fresh.client, fresh.received, fresh.reason),
        (next.id(), None, 0, 0),
        "nothing of the last one"
    );
    assert_eq!((fresh.phase, fresh.unsent_to_client, fresh.backend.as_str()), (Phase::Connecting, -1, ""));
}

#[test]
fn the_dead_are_told_of_unless_their_end_was_counted() {
    let ledger = ledger(SMALL);
    let segment = last(&ledger);
    let writer = writer(&ledger, 1, 0);
    let [connecting, established, closed] =
        ["10.0.0.1:1", "10.0.0.1:2", "10.0.0.1:3"].map(|client| writer.claim(&opening(&segment, client)).unwrap());
    established.established(segment.find(3, "b0").unwrap(), address("10.9.9.9:1"));
    established.received(99);
    closed.closed(4);
    let told = [connecting.id(), established.id()];
    std::mem::forget((connecting, established, closed, writer));
    let buried = bury_all(&ledger, 1);
    assert_eq!(buried.iter().map(|session| session.id).collect::<Vec<_>>(), told);
    assert_eq!((buried[1].received, buried[1].backend.as_str()), (99, "b0"));
    assert!(sessions(ledger.segments()).is_empty());
}

/// An owner that died inside a claim or an update leaves an odd sequence: living readers pass over it, a burial frees it.
#[test]
fn a_record_half_written_by_the_dead_is_freed() {
    let ledger = ledger(Sizes { records: 2, ..SMALL });
    let segment = last(&ledger);
    let dead = writer(&ledger, 1, 0);
    let [claimed, updated] = ["10.0.0.1:1", "10.0.0.1:2"].map(|c| dead.claim(&opening(&segment, c)).unwrap());
    claimed.established(segment.find(3, "b0").unwrap(), address("10.9.9.9:1"));
    let half_written = updated.id();
    // The first one is free again, and claimed by an owner that dies before it writes anything.
    drop(claimed);
    poke(&segment, 12288, &Owner { generation: 1, thread: 0 }.word().to_ne_bytes());
    // The second one was being changed.
    poke(&segment, 12288 + 256 + 8, &3_u32.to_ne_bytes());
    std::mem::forget((updated, dead));
    assert!(sessions(ledger.segments()).is_empty(), "not whole");
    let buried: Vec<_> = bury_all(&ledger, 1).iter().map(|session| session.id).collect();
    assert_eq!(buried, [half_written]);
    let next = writer(&ledger, 2, 0);
    let records = [0, 1].map(|_| next.claim(&opening(&segment, "10.0.0.1:3")).unwrap());
    assert_eq!(sessions(ledger.segments()).len(), 2, "both can be used and read again");
    drop(records);
}

/// The writer makes all fields of a session follow from its number; the reader checks that they belong together.
#[test]
fn a_session_is_never_read_torn() {
    const ROUNDS: u32 = 100_000;
    let ledger = ledger(Sizes { records: 1, ..SMALL });
    let segment = last(&ledger);
    let (done, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let writer = Writer::lease(Arc::clone(&segment), 1, 0).unwrap();
            // The reader has to have seen some, however the threads are scheduled.
            let end = Instant::now() + DEADLINE;
            let mut n = 0;
            while n < ROUNDS || (reads.load(Relaxed) < 1000 && Instant::now() < end) {
                live(&writer, n);
                n += 1;
            }
            done.store(true, Relaxed);
        });
        while !done.load(Relaxed) {
            for session in sessions(ledger.segments()) {
                check(&session);
                reads.fetch_add(1, Relaxed);
            }
        }
    });
    assert!(reads.into_inner() >= 1000, "the reader met the writer");
}

fn live(writer: &Writer, n: u32) {
    let segment = writer.segment();
    let backend = format!("b{}", n % 4);
    let backend = segment.find(3, &backend).unwrap();
    let client = SocketAddr::from((n.to_be_bytes(), (n & 0xffff) as u16));
    let record = writer
        .claim(&Opening {
            listener: segment.find(1, "front").unwrap(),
            pool: segment.find(2, "p").unwrap(),
            client: Some(client),
            opened_unix_us: u64::from(n),
            opened_ms: u64::from(n) * 2,
        })
        .unwrap();
    record.established(backend, SocketAddr::from((u128::from(n).to_be_bytes(), 9)));
    record.received(u64::from(n));
    // A second backend of the same session changes name and address together.
    let other = segment.find(3, &format!("b{}", (n + 1) % 4)).unwrap();
    record.established(other, SocketAddr::from((u128::from(n + 1).to_be_bytes(), 9)));
}

fn check(session: &SessionSnapshot) {
    let n = session.opened_unix_us;
    assert_eq!(session.opened_ms, 2 * n);
    let low = u32::try_from(n).unwrap();
    assert_eq!(session.client, Some(SocketAddr::from((low.to_be_bytes(), (low & 0xffff) as u16))));
    assert!([0, n].contains(&session.received), "{session:?}");
    let backend = session.backend_address.map(|address| match address {
        SocketAddr::V6(address) => u64::try_from(address.ip().to_bits()).unwrap(),
        SocketAddr::V4(_) => panic!("{session:?}"),
    });
    match backend {
        None => assert_eq!((session.phase, session.backend.as_str()), (Phase::Connecting, "")),
        Some(number) => {
            assert!([n, n + 1].contains(&number), "{session:?}");
            assert_eq!((session.phase, &session.backend), (Phase::Established, &format!("b{}", number % 4)));
        }
    }
}

proptest! {
    #[test]
    fn any_address_comes_back(v6: bool, bits: u128, v4: u32, port: u16, flow: u32, scope: u32) {
        let address = if v6 {
            SocketAddr::V6(std::net::SocketAddrV6::new(bits.into(), port, flow, scope))
        } else {
            SocketAddr::from((v4.to_be_bytes(), port))
        };
        let ledger = ledger(SMALL);
        let segment = last(&ledger);
        let opening = Opening { client: Some(address), ..opening(&segment, "1.1.1.1:1") };
        let record = writer(&ledger, 1, 0).claim(&opening).unwrap();
        record.established(segment.find(3, "b0").unwrap(), address);
        let read = sessions(ledger.segments()).remove(0);
        prop_assert_eq!((read.client, read.backend_address), (Some(address), Some(address)));
    }
}

/// Writes into a segment as another process could.
pub(super) fn poke(segment: &Segment, at: u64, bytes: &[u8]) {
    assert_eq!(rustix::io::pwrite(segment.descriptor(), bytes, at).unwrap(), bytes.len());
}
