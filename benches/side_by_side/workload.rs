//! What the contestants are made to do.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::backends::{Backends, Kind};
use crate::contestant::Contestant;
use crate::harness::peer::peer;
use crate::harness::until;

/// Connections of the small-request workloads: enough to keep two threads busy, few enough for short queues.
const CLIENTS: u32 = 50;
/// Client threads of what is generated here: more would only wait for a core.
const THREADS: u32 = 8;
const MESSAGE: [u8; 64] = [b'm'; 64];
/// Of any single answer; longer means that a contestant has stopped.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) rounds: u32,
    /// Of one contestant in one round.
    pub(crate) time: Duration,
    pub(crate) idle_sessions: u32,
    redis_requests: u32,
}

impl Scale {
    pub(crate) const QUICK: Self =
        Self { rounds: 3, time: Duration::from_secs(1), idle_sessions: 2_000, redis_requests: 50_000 };
    pub(crate) const FULL: Self =
        Self { rounds: 7, time: Duration::from_secs(2), idle_sessions: 2_000, redis_requests: 250_000 };
}

#[derive(Debug, Clone)]
pub(crate) enum Workload {
    /// `redis-benchmark` against Redis.
    Redis(PathBuf),
    /// Small messages back and forth, generated here.
    Echo,
    /// `wrk` against a page of six bytes.
    Http(PathBuf),
    /// Connect, one exchange, close.
    Churn,
    /// So many streams from backend to client.
    Bulk(u32),
}

/// What a run did: the units of [`Workload::unit`], and how many a second the clients saw.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Done {
    pub(crate) work: f64,
    pub(crate) rate: f64,
}

/// All that can be run here; load generators that are missing are named.
pub(crate) fn installed(backends: &Backends) -> Vec<Workload> {
    let redis = backends.redis.as_ref().and_then(|_| peer("redis-benchmark")).map_or(Workload::Echo, Workload::Redis);
    let http = peer("wrk").map(Workload::Http);
    let rest = [Workload::Churn, Workload::Bulk(1), Workload::Bulk(4)];
    std::iter::once(redis).chain(http).chain(rest).collect()
}

impl Workload {
    pub(crate) fn title(&self) -> String {
        match self {
            Self::Redis(_) => format!("small requests: redis-benchmark, {CLIENTS} clients"),
            Self::Echo => format!("small requests: 64 bytes, {THREADS} clients"),
            Self::Http(_) => format!("small requests: wrk, {CLIENTS} clients"),
            Self::Churn => "churn: connect, one exchange, close".into(),
            Self::Bulk(1) => "bulk: 1 stream".into(),
            Self::Bulk(streams) => format!("bulk: {streams} streams"),
        }
    }

    pub(crate) fn unit(&self) -> &'static str {
        match self {
            Self::Redis(_) | Self::Echo | Self::Http(_) => "k requests",
            Self::Churn => "k connections",
            Self::Bulk(_) => "Gbit",
        }
    }

    pub(crate) fn is_bulk(&self) -> bool {
        matches!(self, Self::Bulk(_))
    }

    pub(crate) fn run(&self, on: &Contestant, scale: Scale) -> Done {
        match self {
            Self::Redis(program) => redis(program, on.address(Kind::Redis), scale.redis_requests),
            Self::Echo => generated(THREADS, scale.time, |until| ping_pong(on.address(Kind::Echo), until), 1e3),
            Self::Http(program) => wrk(program, on.address(Kind::Http), scale.time),
            Self::Churn => generated(THREADS, scale.time, |until| churn(on.address(Kind::Echo), until), 1e3),
            Self::Bulk(streams) => generated(*streams, scale.time, |until| sink(on.address(Kind::Source), until), 1e9),
        }
    }
}

/// Runs `client` on so many threads until the time is over; each returns its amount, of which `per_unit` are a unit.
fn generated(threads: u32, time: Duration, client: impl Fn(Instant) -> io::Result<f64> + Sync, per_unit: f64) -> Done {
    let start = Instant::now();
    let client = || client(start + time).expect("a contestant serves until the end");
    let amount: f64 = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(client)).collect();
        running.into_iter().map(|one| one.join().expect("a client does not panic")).sum()
    });
    let work = amount / per_unit;
    Done { work, rate: work / start.elapsed().as_secs_f64() }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&MESSAGE)?;
    stream.read_exact(&mut [0; MESSAGE.len()])
}

fn ping_pong(address: SocketAddr, until: Instant) -> io::Result<f64> {
    let mut stream = connect(address)?;
    let mut done = 0.0;
    while Instant::now() < until {
        exchange(&mut stream)?;
        done += 1.0;
    }
    Ok(done)
}

fn churn(address: SocketAddr, until: Instant) -> io::Result<f64> {
    let mut done = 0.0;
    while Instant::now() < until {
        exchange(&mut connect(address)?)?;
        done += 1.0;
    }
    Ok(done)
}

/// Bits read.
fn sink(address: SocketAddr, until: Instant) -> io::Result<f64> {
    let mut stream = connect(address)?;
    let mut buffer = vec![0; 1024 * 1024];
    let mut bits = 0.0;
    while Instant::now() < until {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bits += 8.0 * f64::from(u32::try_from(n).expect("a megabyte at most"));
    }
    Ok(bits)
}

fn redis(program: &PathBuf, address: SocketAddr, requests: u32) -> Done {
    let mut command = Command::new(program);
    command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string(), "-t", "get", "--csv"]);
    command.args(["-c", &CLIENTS.to_string(), "-n", &requests.to_string()]);
    let text = said(command);
    // "GET","85324.23","0.30",...
    let line = text.lines().rfind(|line| line.starts_with("\"GET")).expect("redis-benchmark names its test");
    let rate: f64 = line.split(',').nth(1).and_then(|rate| rate.trim_matches('"').parse().ok()).expect("a rate");
    Done { work: f64::from(requests) / 1e3, rate: rate / 1e3 }
}

fn wrk(program: &PathBuf, address: SocketAddr, time: Duration) -> Done {
    let mut command = Command::new(program);
    command.args(["-t", "1", "-c", &CLIENTS.to_string(), "-d", &format!("{}s", time.as_secs())]);
    let text = said({
        command.arg(format!("http://{address}/"));
        command
    });
    assert!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "{text}");
    let number = |end: &str, from: fn(&str) -> Option<&str>| -> f64 {
        let line = text.lines().find(|line| line.contains(end)).expect("wrk says what it did");
        from(line.trim()).and_then(|number| number.parse().ok()).expect("a number")
    };
    let work = number(" requests in ", |line| line.split(' ').next());
    let rate = number("Requests/sec:", |line| line.split_whitespace().nth(1));
    Done { work: work / 1e3, rate: rate / 1e3 }
}

fn said(mut command: Command) -> String {
    let output = command.output().expect("the program starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// User memory that each of `count` sessions costs, once it has exchanged a message and is idle.
pub(crate) fn idle_session_bytes(on: &Contestant, count: u32) -> f64 {
    // What the first session of a thread costs once is not a cost of sessions.
    let warm: Vec<TcpStream> = open(on, 50);
    drop(warm);
    let before = on.user_memory();
    let sessions = open(on, count);
    let mut last = f64::NAN;
    // Buffers of the last exchange may be given back a moment later.
    until("memory rests", PATIENCE, || {
        let now = on.user_memory();
        let rests = (now - last).abs() < f64::EPSILON;
        last = now;
        rests
    });
    drop(sessions);
    (last - before) / f64::from(count)
}

fn open(on: &Contestant, count: u32) -> Vec<TcpStream> {
    let open = |_| {
        let mut stream = connect(on.address(Kind::Echo))?;
        exchange(&mut stream)?;
        Ok::<_, io::Error>(stream)
    };
    (0..count).map(|number| open(number).expect("a contestant takes idle sessions")).collect()
}
