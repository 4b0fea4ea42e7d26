//! What the contestants are made to do, and what is read off it.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::backends::{Backends, Kind};
use crate::clients::{self, Amount, both_ways, churn, ping_pong, sink};
use crate::contestant::{Contestant, Entry, Role};
use crate::harness::peer::peer;
use crate::idle;
use crate::open_loop::Offer;
use crate::table::Column;
use crate::tools;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) rounds: u32,
    /// Of one contestant in one round.
    pub(crate) time: Duration,
    pub(crate) idle_sessions: u32,
}

impl Scale {
    pub(crate) const FULL: Self = Self { rounds: 5, time: Duration::from_secs(2), idle_sessions: 9_000 };
    pub(crate) const QUICK: Self = Self { rounds: 3, time: Duration::from_millis(700), idle_sessions: 9_000 };

    /// Warms connections, pipes and caches.
    pub(crate) fn warming(self) -> Self {
        Self { time: Duration::from_millis(200), ..self }
    }
}

/// Of the workload at a fixed rate: half of what the slowest of all reached, so that latency is not that of a queue.
const STEADY: (u32, u32) = (64, 10_000);
/// Beside bulk.
const BESIDE: (u32, u32) = (16, 2_000);
const BULK_BESIDE: u32 = 2;

#[derive(Debug, Clone)]
pub(crate) enum Workload {
    /// `redis-benchmark` against Redis, so many clients.
    Redis(PathBuf, u32),
    /// Small messages back and forth, made here.
    Echo(u32),
    /// `wrk` against a page of six bytes.
    Http(PathBuf, u32),
    /// 64 bytes at a fixed rate.
    Steady,
    /// Connect, one exchange, close.
    Churn(u32),
    /// So many streams from backend to client.
    Bulk(u32),
    /// So many streams that are full in both directions.
    BothWays(u32),
    /// Small messages at a fixed rate while bulk flows.
    Mixed,
    /// Sessions that are open and say nothing.
    Idle,
}

/// All that can be run here; load generators that are missing are named.
pub(crate) fn installed(backends: &Backends) -> Vec<Workload> {
    let redis = backends.redis.as_ref().and_then(|_| peer("redis-benchmark"));
    let redis = |clients: u32| {
        redis.clone().map_or_else(|| Workload::Echo(clients.min(64)), |program| Workload::Redis(program, clients))
    };
    let small = [1, 64, 1_000].map(redis);
    let wrk = peer("wrk");
    let http = [1, 64, 1_000].into_iter().filter_map(|clients| Some(Workload::Http(wrk.clone()?, clients)));
    let rest = [
        Workload::Steady,
        Workload::Churn(8),
        Workload::Churn(64),
        Workload::Bulk(1),
        Workload::Bulk(4),
        Workload::Bulk(64),
        Workload::BothWays(4),
        Workload::Mixed,
        Workload::Idle,
    ];
    small.into_iter().chain(http).chain(rest).collect()
}

impl Workload {
    pub(crate) fn title(&self) -> String {
        match self {
            Self::Redis(_, clients) => format!("small requests: redis-benchmark, {}", counted(*clients, "client")),
            Self::Echo(clients) => format!("small requests: 64 bytes, {}", counted(*clients, "client")),
            Self::Http(_, clients) => format!("small requests: wrk, {}", counted(*clients, "connection")),
            Self::Steady => format!("fixed rate: {} requests of 64 bytes a second, {} connections", STEADY.1, STEADY.0),
            Self::Churn(clients) => format!("churn: connect, one exchange, close; {clients} clients"),
            Self::Bulk(streams) => format!("bulk: {}", counted(*streams, "stream")),
            Self::BothWays(streams) => format!("both directions: bulk of {}", counted(*streams, "stream")),
            Self::Mixed => format!("mixed: {} small requests a second beside {BULK_BESIDE} streams of bulk", BESIDE.1),
            Self::Idle => "idle sessions: user memory".into(),
        }
    }

    pub(crate) fn columns(&self) -> &'static [Column] {
        const SMALL: &[Column] =
            &[Column::more("k requests a second", 1), Column::more("k requests per CPU-second", 1)];
        const SINGLE: &[Column] = &[
            Column::more("k requests a second", 1),
            Column::more("k requests per CPU-second", 1),
            Column::less("added us", 1),
        ];
        const CHURN: &[Column] =
            &[Column::more("k sessions a second", 2), Column::more("k sessions per CPU-second", 2)];
        const BULK: &[Column] = &[Column::more("Gbit a second", 1), Column::more("Gbit per CPU-second", 1)];
        const STEADY: &[Column] = &[
            Column::less("p50 us", 0),
            Column::less("p99 us", 0),
            Column::less("p99.9 us", 0),
            Column::less("added p50", 0),
            Column::less("added p99", 0),
            Column::less("added p99.9", 0),
            Column::more("k requests per CPU-second", 1),
        ];
        const MIXED: &[Column] =
            &[Column::less("p50 us", 0), Column::less("p99 us", 0), Column::more("Gbit a second", 1)];
        const IDLE: &[Column] =
            &[Column::less("bytes a session", 0), Column::less("MB without", 1), Column::less("MB with all", 1)];
        match self {
            Self::Redis(_, 1) | Self::Http(_, 1) | Self::Echo(1) => SINGLE,
            Self::Redis(..) | Self::Http(..) | Self::Echo(_) => SMALL,
            Self::Steady => STEADY,
            Self::Churn(_) => CHURN,
            Self::Bulk(_) | Self::BothWays(_) => BULK,
            Self::Mixed => MIXED,
            Self::Idle => IDLE,
        }
    }

    pub(crate) fn is_entered_by(&self, one: &Contestant) -> bool {
        let is_bulk = matches!(self, Self::Bulk(_) | Self::BothWays(_));
        match one.entry {
            Entry::Everything => true,
            // A floor that copies is none where there is bulk, nor is one without sessions to remember.
            Entry::Small => !is_bulk && !matches!(self, Self::Mixed | Self::Idle),
            Entry::Bulk => is_bulk,
            Entry::Added => matches!(self, Self::Redis(_, 1) | Self::Http(_, 1) | Self::Echo(1) | Self::Steady),
        }
    }

    /// How often it is worth to be measured: memory is the same each time.
    pub(crate) fn rounds(&self, scale: Scale) -> u32 {
        if matches!(self, Self::Idle) { 1 } else { scale.rounds }
    }

    /// The values of its columns; `none` are those without a proxy, of the same round.
    pub(crate) fn run(&self, on: &Contestant, scale: Scale, none: Option<&[f64]>) -> Vec<f64> {
        let time = scale.time;
        match self {
            Self::Redis(program, clients) => {
                small(on, none, *clients, || tools::redis(program, on.address(Kind::Redis), *clients, time))
            }
            Self::Http(program, clients) => {
                small(on, none, *clients, || tools::wrk(program, on.address(Kind::Http), *clients, time))
            }
            Self::Echo(clients) => small(on, none, *clients, || {
                clients::run(*clients, time, 1e3, |until| ping_pong(on.address(Kind::Echo), until))
            }),
            Self::Churn(clients) => {
                rated(on, || clients::run(*clients, time, 1e3, |until| churn(on.address(Kind::Echo), until)))
            }
            Self::Bulk(streams) => {
                rated(on, || clients::run(*streams, time, 1e9, |until| sink(on.address(Kind::Source), until)))
            }
            Self::BothWays(streams) => {
                rated(on, || clients::run(*streams, time, 1e9, |until| both_ways(on.address(Kind::Both), until)))
            }
            Self::Steady => steady(on, time, none),
            Self::Mixed => mixed(on, time),
            Self::Idle => idle::run(on, scale.idle_sessions),
        }
    }
}

fn counted(count: u32, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        1_000.. => format!("{},{:03} {what}s", count / 1_000, count % 1_000),
        _ => format!("{count} {what}s"),
    }
}

/// Rate, and work per CPU-second; without a proxy nobody's time counts.
fn rated(on: &Contestant, load: impl FnOnce() -> Amount) -> Vec<f64> {
    let before = on.cpu();
    let amount = load();
    vec![amount.rate, per_cpu_second(on, amount.total, on.cpu() - before)]
}

fn per_cpu_second(on: &Contestant, work: f64, cpu: Duration) -> f64 {
    if on.role == Role::Direct { f64::NAN } else { work / cpu.as_secs_f64() }
}

/// With one client, which waits for each answer, also what is added to the time of a request.
fn small(on: &Contestant, none: Option<&[f64]>, clients: u32, load: impl FnOnce() -> Amount) -> Vec<f64> {
    let mut values = rated(on, load);
    if clients == 1 {
        let micros = |rate: f64| 1e3 / rate;
        let added = none.and_then(|none| none.first()).map_or(f64::NAN, |none| micros(values[0]) - micros(*none));
        values.push(added);
    }
    values
}

fn steady(on: &Contestant, time: Duration, none: Option<&[f64]>) -> Vec<f64> {
    // A thousandth of all is to be many still.
    let offer = Offer { connections: STEADY.0, rate: STEADY.1, time: time * 2 };
    let before = on.cpu();
    let seen = offer.run(on.address(Kind::Echo)).expect("a contestant serves until the end");
    let cpu = on.cpu() - before;
    let mut values: Vec<f64> = [0.5, 0.99, 0.999].map(|part| seen.micros(part)).into();
    for place in 0..values.len() {
        values.push(none.map_or(f64::NAN, |none| values[place] - none[place]));
    }
    values.push(per_cpu_second(on, seen.count() as f64 / 1e3, cpu));
    values
}

fn mixed(on: &Contestant, time: Duration) -> Vec<f64> {
    let offer = Offer { connections: BESIDE.0, rate: BESIDE.1, time };
    thread::scope(|scope| {
        let flow = |until: Instant| sink(on.address(Kind::Source), until);
        let bulk = scope.spawn(move || clients::run(BULK_BESIDE, time, 1e9, flow));
        let seen = offer.run(on.address(Kind::Echo)).expect("a contestant serves until the end");
        let bulk = bulk.join().expect("bulk flows until the end");
        vec![seen.micros(0.5), seen.micros(0.99), bulk.rate]
    })
}
