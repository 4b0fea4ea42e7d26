//! Tests of the ledger, by what could break.

mod claims;
mod counting;
mod golden;
mod growth;
mod hostile;
mod layout;
mod limits;
mod process;
mod snapshots;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;

const SMALL: Sizes = Sizes { names: 16, counters: 64, gauges: 16, blocks: 16, records: 64 };
/// Far above what any wait here takes.
const DEADLINE: Duration = Duration::from_secs(30);

fn spec(kind: u16, text: &str, counters: u32, gauges: u32) -> NameSpec {
    NameSpec { kind, text: text.to_owned(), counters, gauges }
}

/// A ledger with the listener `front`, the pool `p` and the backends `b0` to `b3`; each has 4 counters and 2 gauges.
fn ledger(sizes: Sizes) -> Ledger {
    let mut ledger = Ledger::create(sizes).unwrap();
    assert!(!ledger.ensure(&names(), 1, 1).unwrap(), "it all fits the first segment");
    ledger
}

fn names() -> Vec<NameSpec> {
    let mut names = vec![spec(1, "front", 4, 2), spec(2, "p", 4, 2)];
    names.extend((0..4).map(|i| spec(3, &format!("b{i}"), 4, 2)));
    names
}

fn last(ledger: &Ledger) -> Arc<Segment> {
    Arc::clone(ledger.segments().last().unwrap())
}

fn writer(ledger: &Ledger, generation: u32, thread: u16) -> Writer {
    Writer::lease(last(ledger), generation, thread).unwrap()
}

fn opening(segment: &Segment, client: &str) -> Opening {
    Opening {
        listener: segment.find(1, "front").unwrap(),
        pool: segment.find(2, "p").unwrap(),
        client: Some(address(client)),
        opened_unix_us: 1_700_000_000_000_000,
        opened_ms: 5000,
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn total(ledger: &Ledger, kind: u16, text: &str) -> NameTotals {
    totals(ledger.segments()).into_iter().find(|name| name.kind == kind && name.text == text).unwrap()
}

fn bury_all(ledger: &Ledger, generation: u32) -> Vec<SessionSnapshot> {
    let mut found = Vec::new();
    ledger.bury(generation, &mut |session| found.push(session.clone()));
    found
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "not within {DEADLINE:?}: {what}");
        std::thread::yield_now();
    }
}
