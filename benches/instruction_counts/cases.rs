//! What is counted: each case does its work so many times.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use handoff::codec::{decode, encode};
use handoff::ledger::{Ledger, Opening, Sizes, Writer};
use handoff::manifest::{Entry, Kind};
use handoff::message::{Batch, Message, Pulse};
use proxy::config::Balance;
use proxy::config::plan::{BackendAdmin, PlannedBackend, PlannedPool};
use proxy::observe::names;
use proxy::pool::{Pools, Tried};
use proxy::session::relay::{Relay, Side, Step};

use crate::scrape;

#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) run: fn(u32),
    /// Enough to make nothing of what happens once.
    pub(crate) times: u32,
}

const fn case(name: &'static str, times: u32, run: fn(u32)) -> Case {
    Case { name, run, times }
}

pub(crate) const CASES: &[Case] = &[
    case("relay: a message and its answer", 10_000, relay_message),
    case("relay: a short write and the rest of it", 10_000, relay_short_write),
    case("relay: a splice in and out", 10_000, relay_splice),
    case("relay: both sides end", 10_000, relay_ends),
    case("ledger: a session from claim to close", 5_000, ledger_session),
    case("pool: pick among 1 backend", 10_000, |times| pick(times, 1)),
    case("pool: pick among 1000 backends", 10_000, |times| pick(times, 1_000)),
    case("codec: encode a heartbeat", 2_000, |times| encoded(times, &heartbeat())),
    case("codec: decode a heartbeat", 2_000, |times| decoded(times, &heartbeat())),
    case("codec: encode a batch of 64 sockets", 50, |times| encoded(times, &batch())),
    case("codec: decode a batch of 64 sockets", 50, |times| decoded(times, &batch())),
    case("admin: read a command", 1_000, admin_command),
    case("scrape: 10 listeners, 200 backends, 100 sessions", 4, scrape::rendered),
];

const MESSAGE: &[u8] = &[b'm'; 64];

fn relay_message(times: u32) {
    let mut relay = black_box(Relay::default());
    for _ in 0..times {
        for side in [Side::Client, Side::Backend] {
            assert_eq!(relay.step(black_box(side)), Step::Receive);
            relay.passed(side, black_box(MESSAGE), MESSAGE.len(), false);
            assert!(relay.outcome().is_none());
        }
    }
}

fn relay_short_write(times: u32) {
    let mut relay = black_box(Relay::default());
    for _ in 0..times {
        relay.passed(black_box(Side::Client), black_box(MESSAGE), 16, false);
        assert_eq!(relay.step(Side::Client), Step::Send);
        let rest = relay.in_hand(Side::Client).len();
        relay.written(Side::Client, black_box(rest));
        assert_eq!(relay.step(Side::Client), Step::Receive);
    }
}

fn relay_splice(times: u32) {
    let mut relay = black_box(Relay::default());
    relay.splice_only();
    for _ in 0..times {
        assert_eq!(relay.step(black_box(Side::Backend)), Step::SpliceIn);
        relay.spliced_in(Side::Backend, black_box(65_536));
        assert_eq!(relay.step(Side::Backend), Step::SpliceOut);
        relay.spliced_out(Side::Backend, black_box(65_536));
    }
}

fn relay_ends(times: u32) {
    for _ in 0..times {
        let mut relay = black_box(Relay::default());
        for side in [Side::Client, Side::Backend] {
            relay.ended(black_box(side));
            assert_eq!(relay.step(side), Step::Shutdown);
            relay.shut(side);
        }
        assert!(relay.outcome().is_some());
    }
}

/// What is counted of a session that exchanges a message and its answer.
fn ledger_session(times: u32) {
    let mut ledger = Ledger::create(Sizes::default()).expect("a ledger can be made");
    let specs = [names::listener("l"), names::route("l", "p"), names::pool("p"), names::backend("p", "b")];
    ledger.ensure(&specs, 2, 64).expect("a ledger can grow");
    let segment = ledger.segments().last().expect("it has one");
    let find = |place: usize| segment.find(specs[place].kind, &specs[place].text).expect("it was entered");
    let (listener, route, pool, backend) = (find(0), find(1), find(2), find(3));
    let writer = Writer::lease(Arc::clone(segment), 1, 0).expect("a block is free");
    let [of_listener, of_route, of_backend] = [listener, route, backend].map(|name| writer.counters(name));
    let client = SocketAddr::from(([127, 0, 0, 1], 40_000));
    let opening = Opening { listener, pool, client: Some(client), opened_unix_us: 1, opened_ms: 1 };
    for _ in 0..times {
        let record = writer.claim(black_box(&opening)).expect("a record is free");
        of_route.add(names::route::SESSIONS, 1);
        record.established(backend, black_box(client));
        of_backend.add(names::backend::SESSIONS, 1);
        record.received(black_box(64));
        of_listener.add(names::listener::RECEIVED, 64);
        record.sent(black_box(64));
        of_listener.add(names::listener::SENT, 64);
        of_backend.add(names::backend::BYTES, 128);
        record.touch(black_box(2));
        record.closed(black_box(1));
    }
}

fn pick(times: u32, backends: u16) {
    let pools = Pools::build(&[pool("p", backends)], &Pools::default());
    let pool = pools.named("p").expect("it was built");
    for _ in 0..times {
        black_box(pool.pick(&mut Tried::default()).expect("one has its turn"));
    }
}

pub(crate) fn pool(name: &str, backends: u16) -> PlannedPool {
    let backend = |number: u16| PlannedBackend {
        name: format!("b{number}"),
        address: SocketAddr::from(([127, 0, 0, 1], 1 + number)),
        weight: 1,
        admin: BackendAdmin::Enabled,
    };
    PlannedPool {
        name: name.into(),
        version: 1,
        balance: Balance::RoundRobin,
        connect_timeout: Duration::from_secs(1),
        connect_retries: 1,
        source: None,
        backends: (0..backends).map(backend).collect(),
    }
}

fn heartbeat() -> Message {
    Message::Heartbeat(Pulse { sessions: 120, connects: Some(4_000), failures: Some(3) })
}

fn batch() -> Message {
    let entry = |number: u16| Entry {
        id: format!("listener-{number} 127.0.0.1:{number}"),
        kind: Kind::Tcp4,
        address: format!("127.0.0.1:{number}"),
        v6only: false,
        netns: 1,
    };
    Message::Batch(Batch { first: 0, entries: (1_000..1_064).map(entry).collect() })
}

fn encoded(times: u32, message: &Message) {
    for _ in 0..times {
        black_box(encode(black_box(message)).expect("it is within the limits"));
    }
}

fn decoded(times: u32, message: &Message) {
    let bytes = encode(message).expect("it is within the limits");
    for _ in 0..times {
        black_box(decode::<Message>(black_box(&bytes)).expect("it was encoded"));
    }
}

fn admin_command(times: u32) {
    let text = br#"{"verb":"pool-swap","listener":"web","pool":"green","if_version":7}"#;
    for _ in 0..times {
        black_box(admin::codec::command(black_box(text)).expect("it is a command"));
    }
}
