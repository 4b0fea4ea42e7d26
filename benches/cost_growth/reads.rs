//! What a scrape and a list of sessions take on a large installation, and whether its clients notice.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::echo::opened;
use crate::harness::server::Server;
use crate::harness::{Conf, Port, Proxy, until_moment};
use crate::open_loop::Offer;
use crate::shape::{PATIENCE, addresses};

const LISTENERS: u16 = 300;
const BACKENDS: u16 = 200;
const SESSIONS: usize = 9_000;
/// Of which the median counts.
const TIMES: usize = 11;
const OFFER: Offer = Offer { connections: 32, rate: 2_000, time: Duration::from_millis(1_500) };
/// Windows of [`OFFER`] without and with scrapes, in turn.
const WINDOWS: usize = 3;
/// Far more often than anybody scrapes.
const BETWEEN: Duration = Duration::from_millis(500);

/// Of one installation.
#[derive(Debug)]
pub(crate) struct Scrape {
    pub(crate) what: &'static str,
    pub(crate) took: Duration,
    pub(crate) bytes: usize,
    /// p99 of small requests in microseconds, medians of windows without and with scrapes.
    pub(crate) quiet: f64,
    pub(crate) scraped: f64,
}

pub(crate) fn scrapes(backend: &Server) -> Vec<Scrape> {
    let shapes = [("one pool of 200 backends", 1), ("a pool of 200 backends for each listener", LISTENERS)];
    shapes.into_iter().map(|(what, pools)| scrape(what, pools, backend)).collect()
}

fn scrape(what: &'static str, pools: u16, backend: &Server) -> Scrape {
    let ports: Vec<Port> = (0..LISTENERS).map(|_| Port::reserve()).collect();
    let backends: Vec<SocketAddr> = addresses(BACKENDS, backend.address().port()).collect();
    let conf = (0..pools).fold(Conf::new(), |conf, pool| conf.pool(&format!("p{pool}"), &backends));
    let conf = ports.iter().enumerate().fold(conf, |conf, (number, port)| {
        conf.listener(&format!("l{number}"), &port.to_string(), &format!("p{}", number % usize::from(pools)))
    });
    let proxy = Proxy::start(&conf);
    let (mut took, mut bytes) = (Vec::new(), 0);
    for _ in 0..TIMES {
        let begun = Instant::now();
        bytes = proxy.http("/metrics").expect("a scrape is answered").body.len();
        took.push(begun.elapsed());
    }
    let (mut quiet, mut scraped) = (Vec::new(), Vec::new());
    for _ in 0..WINDOWS {
        quiet.push(p99(ports[0].address()));
        scraped.push(while_scraped(&proxy, || p99(ports[0].address())));
    }
    let scrape = Scrape { what, took: median(took), bytes, quiet: median(quiet), scraped: median(scraped) };
    eprintln!("{scrape:?}");
    scrape
}

fn p99(address: SocketAddr) -> f64 {
    OFFER.run(address).expect("the proxy serves").micros(0.99)
}

fn while_scraped(proxy: &Proxy, act: impl FnOnce() -> f64) -> f64 {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Acquire) {
                proxy.http("/metrics").expect("a scrape is answered");
                until_moment(Instant::now() + BETWEEN);
            }
        });
        let value = act();
        is_over.store(true, Ordering::Release);
        value
    })
}

/// How long `proxyctl sessions` takes, as a table and as JSON, with so many open.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) sessions: usize,
    pub(crate) table: Duration,
    pub(crate) json: Duration,
}

pub(crate) fn listing(backend: &Server) -> Listing {
    let port = Port::reserve();
    let conf = Conf::simple(&port, &[(std::net::Ipv4Addr::LOCALHOST, backend.address().port()).into()]);
    let proxy = Proxy::start(&conf.with("runtime", "max_sessions = 9300"));
    let open = |_| opened(port.address(), PATIENCE).expect("the proxy serves");
    let _sessions: Vec<_> = (0..SESSIONS).map(open).collect();
    let time = |words: &[&str]| {
        let times = (0..TIMES).map(|_| {
            let begun = Instant::now();
            let output = proxy.ctl_command(words).output().expect("proxyctl can be executed");
            let took = begun.elapsed();
            let lines = output.stdout.iter().filter(|byte| **byte == b'\n').count();
            assert!(output.status.success() && lines >= SESSIONS, "{lines} lines");
            took
        });
        median(times.collect())
    };
    let listing = Listing { sessions: SESSIONS, table: time(&["sessions"]), json: time(&["--json", "sessions"]) };
    eprintln!("{listing:?}");
    listing
}

fn median<T: PartialOrd + Copy>(mut values: Vec<T>) -> T {
    values.sort_by(|one, other| one.partial_cmp(other).expect("times can be compared"));
    values[values.len() / 2]
}
