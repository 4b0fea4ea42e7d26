//! The promise itself: 300 new connections a second and 200 long streams go on through upgrade after upgrade, on listeners
//! of every kind and more of them than the descriptors of one message. Nobody is refused, reset or late, every byte is
//! right, and what is counted is what the clients counted.
//!
//! By default for about 15 s with 6 upgrades; with `PROXYD_LONG=1` for 60 s with 20.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::net::SocketAddr;
use std::time::Duration;

use harness::{
    Conf, Exchange, Load, LongStreams, Metrics, Pace, Port, Proxy, Seeded, Starter, Tally, Target, slim, until,
};

const DEADLINE: Duration = Duration::from_secs(60);
/// New connections a second, over all listeners.
const RATE: u32 = 300;
const STREAMS: u32 = 200;
/// Streams begun between two upgrades, so that every generation has some to keep.
const MORE_STREAMS: u32 = 4;
/// With the other three more than 300: `SCM_MAX_FD` is 253.
const RANGE: u16 = 300;
const PACE: Pace = Pace { frame: 1_000, every: Duration::from_millis(100) };
/// Of a session: the hello, and the end mark; of each frame: its length (see `harness::seeded`).
const HELLO: u64 = 32;
const MARK: u64 = 4;

struct Scale {
    seconds: u64,
    upgrades: u64,
}

fn scale() -> Scale {
    match std::env::var("PROXYD_LONG").as_deref() {
        Ok("1") => Scale { seconds: 60, upgrades: 20 },
        _ => Scale { seconds: 15, upgrades: 6 },
    }
}

/// Clients of one listener.
struct Clients {
    listener: &'static str,
    target: Target,
    load: Load,
    streams: Vec<LongStreams>,
}

impl Clients {
    fn start(listener: &'static str, target: Target) -> Self {
        let load = Load::start(target.clone(), RATE / 4, Exchange::default());
        let streams = vec![LongStreams::start(target.clone(), STREAMS / 4, PACE)];
        Self { listener, target, load, streams }
    }

    fn more_streams(&mut self) {
        self.streams.push(LongStreams::start(self.target.clone(), MORE_STREAMS / 4, PACE));
    }

    /// All of it clean; what the proxy has to have counted.
    fn stop(self) -> Counted {
        let load = self.load.stop();
        load.assert_clean();
        let streams: Vec<Tally> = self.streams.into_iter().map(LongStreams::stop).collect();
        streams.iter().for_each(Tally::assert_clean);
        let sum = |field: fn(&Tally) -> u64| streams.iter().map(field).sum::<u64>();
        let (streams, up, down) = (sum(|t| t.opened), sum(|t| t.bytes_up), sum(|t| t.bytes_down));
        // A connection of the load has one frame each way, a stream one each time its pace says.
        let frames = |bytes: u64| load.opened + bytes / u64::from(PACE.frame);
        let sessions = load.opened + streams;
        Counted {
            listener: self.listener,
            sessions,
            received: load.bytes_up + up + MARK * frames(up) + sessions * (HELLO + MARK),
            sent: load.bytes_down + down + MARK * frames(down) + sessions * MARK,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Counted {
    listener: &'static str,
    sessions: u64,
    received: u64,
    sent: u64,
}

impl Counted {
    fn by(metrics: &Metrics, listener: &'static str) -> Self {
        let count =
            |name: &str, more: &[(&str, &str)]| metrics.count(name, &[&[("listener", listener)], more].concat());
        Self {
            listener,
            sessions: count("proxyd_sessions_total", &[]),
            received: count("proxyd_session_bytes_total", &[("direction", "received")]),
            sent: count("proxyd_session_bytes_total", &[("direction", "sent")]),
        }
    }
}

fn upgrades(proxy: &Proxy, clients: &mut [Clients], scale: &Scale) {
    let mut seen = proxy.metrics();
    // Connections pace the upgrades: so many are opened in the time between two.
    let between = u64::from(RATE) * scale.seconds / (scale.upgrades + 1);
    let served = |clients: &[Clients]| clients.iter().map(|one| one.load.tally().clean).sum::<u64>();
    for number in 1..=scale.upgrades + 1 {
        until("the load is served", DEADLINE, || served(clients) >= number * between);
        if number > scale.upgrades {
            return;
        }
        let report = proxy.upgrade();
        assert_eq!((&report["to"], &report["accept_gap_ms"]), (&(number + 1).into(), &0.0.into()), "{report}");
        assert!(report["sessions"]["left"].as_u64().unwrap() >= u64::from(MORE_STREAMS), "{report}");
        let now = proxy.metrics();
        assert_eq!(now.fallen_since(&seen), [""; 0], "after upgrade {number}");
        seen = now;
        clients.iter_mut().for_each(Clients::more_streams);
    }
}

#[test]
fn nobody_is_refused_reset_or_late_and_all_is_counted_once() {
    let scale = scale();
    let backends: Vec<Seeded> = (0..2).map(|_| Seeded::start()).collect();
    let addresses: Vec<SocketAddr> = backends.iter().map(Seeded::address).collect();
    let (v4, v6, range) = (Port::reserve(), Port::reserve_v6(), Port::reserve_long_range(RANGE));
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("front.sock");
    let conf = Conf::new()
        .listener("v4", &v4.to_string(), "pool")
        .listener("v6", &v6.to_string(), "pool")
        .listener("unix", &format!("unix:{}", path.display()), "pool")
        .listener("range", &format!("{}-{}", range[0], range[range.len() - 1].number()), "pool")
        .pool("pool", &addresses)
        .with("upgrade", "max_generations = 32")
        .with("drain", "timeout = \"1h\"")
        .staying();
    let proxy = Starter::with_binary(&conf, slim()).start();
    let mut clients = vec![
        Clients::start("v4", v4.address().into()),
        Clients::start("v6", v6.address().into()),
        Clients::start("unix", path.into()),
        Clients::start("range", Target::Any(range.iter().map(Port::address).collect())),
    ];
    upgrades(&proxy, &mut clients, &scale);
    let generations = proxy.status()["generations"].as_array().unwrap().len() as u64;
    assert_eq!(generations, scale.upgrades + 1, "every generation still carries its streams");

    let wanted: Vec<Counted> = clients.into_iter().map(Clients::stop).collect();
    until("no session is shown as live", DEADLINE, || proxy.metrics().count("proxyd_sessions_active", &[]) == 0);
    let metrics = proxy.metrics();
    let counted: Vec<Counted> = wanted.iter().map(|one| Counted::by(&metrics, one.listener)).collect();
    assert_eq!(counted, wanted);
    let all: u64 = wanted.iter().map(|one| one.sessions).sum();
    println!("{all} sessions, {} upgrades", scale.upgrades);
    let count = |name: &str, labels: &[(&str, &str)]| metrics.count(name, labels);
    let ended = |reason: &str| count("proxyd_sessions_closed_total", &[("reason", reason)]);
    assert_eq!(count("proxyd_sessions_closed_total", &[]), all);
    assert_eq!(ended("client_closed") + ended("backend_closed"), all);
    assert_eq!(count("proxyd_sessions_forced_closed_total", &[]), 0);
    assert_eq!(count("proxyd_upgrades_total", &[("result", "committed")]), scale.upgrades);
    // The other side has seen the same.
    let (opened, faults) = backends
        .iter()
        .map(Seeded::tally)
        .fold((0, 0), |(opened, faults), tally| (opened + tally.opened, faults + tally.faults()));
    assert_eq!((opened, faults), (all, 0));
    until("the old generations end with their sessions", DEADLINE, || {
        proxy.status()["generations"].as_array().unwrap().len() == 1
    });
}
