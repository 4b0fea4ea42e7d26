//! A pool is swapped under a thousand connections a second: each belongs wholly to one pool, none is refused, and what was
//! begun after the answer is new.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use harness::server::runtime;
use harness::{Conf, Port, Proxy, Tagged, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

const DEADLINE: Duration = Duration::from_secs(30);
const PER_SECOND: u32 = 1_000;
const SWAPS: usize = 6;

/// One connection: from when to when, and the backend that served it from its first byte to its last.
#[derive(Debug)]
struct Seen {
    begun: Instant,
    ended: Instant,
    served: Result<String, String>,
}

/// Connections at a steady rate, each of which says what it saw.
struct Churn {
    runtime: Runtime,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: watch::Sender<bool>,
    clients: JoinHandle<()>,
}

impl Churn {
    fn start(address: SocketAddr) -> Self {
        let runtime = runtime();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = watch::channel(false);
        let clients = runtime.spawn(churn(address, Arc::clone(&seen), stopped));
        Self { runtime, seen, stop, clients }
    }

    fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// Until so many more have been served.
    fn wait_for(&self, more: usize) {
        let before = self.count();
        until("connections are served", DEADLINE, || self.count() >= before + more);
    }

    fn stop(self) -> Vec<Seen> {
        self.stop.send_replace(true);
        self.runtime.block_on(self.clients).unwrap();
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

async fn churn(address: SocketAddr, seen: Arc<Mutex<Vec<Seen>>>, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    let mut tick = interval(Duration::from_secs(1) / PER_SECOND);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while !*stop.borrow() {
        tokio::select! {
            _ = stop.changed() => {}
            _ = tick.tick() => {
                let seen = Arc::clone(&seen);
                connections.spawn(async move {
                    let begun = Instant::now();
                    let served = timeout(DEADLINE, visit(address)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                    let served = served.map_err(|error| error.to_string());
                    seen.lock().unwrap().push(Seen { begun, ended: Instant::now(), served });
                });
            }
        }
        while connections.try_join_next().is_some() {}
    }
    while connections.join_next().await.is_some() {}
}

/// Reads the tag, has a line echoed, and reads to the end: all of it comes from the backend of the tag.
async fn visit(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"question").await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    match answer.split_once('\n') {
        Some((tag, "question")) => Ok(tag.into()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, answer)),
    }
}

/// When a swap was asked for, when it was answered, and the tag from then on.
struct Swap {
    asked: Instant,
    answered: Instant,
    to: &'static str,
}

#[test]
fn every_connection_is_wholly_of_the_old_or_of_the_new_pool() {
    let (blue, green) = (Tagged::start("blue"), Tagged::start("green"));
    let bind = Port::reserve();
    let conf = Conf::simple(&bind, &[blue.address()]).pool("other", &[green.address()]);
    let proxy = Proxy::start(&conf);
    let started = Instant::now();
    let churn = Churn::start(bind.address());
    churn.wait_for(300);
    let mut swaps = vec![Swap { asked: started, answered: started, to: "blue" }];
    for round in 0..SWAPS {
        let (pool, to) = if round % 2 == 0 { ("other", "green") } else { ("pool", "blue") };
        let asked = Instant::now();
        let output = proxy.ctl(&["pool", "swap", "main", pool]);
        assert!(output.status.success(), "{output:?}");
        swaps.push(Swap { asked, answered: Instant::now(), to });
        churn.wait_for(500);
    }
    let seen = churn.stop();

    let faults: Vec<_> = seen.iter().filter(|one| one.served.is_err()).collect();
    if let Some(first) = faults.first() {
        let all = proxy.metrics();
        let closed =
            all.samples().iter().filter(|one| one.name.contains("closed_total") || one.name.contains("failures"));
        let reasons: Vec<_> = closed.filter(|one| one.value > 0.0).map(|one| (&one.labels, one.value)).collect();
        panic!("{} of {} failed, the first: {first:?}; {reasons:?}", faults.len(), seen.len());
    }
    for Seen { begun, ended, served } in &seen {
        let tag = served.as_deref().unwrap();
        let now = swaps.iter().rposition(|swap| swap.answered <= *begun).unwrap();
        // Beside the pool in force, one that was swapped to while the connection was under way.
        let later = swaps[now + 1..].iter().take_while(|swap| swap.asked <= *ended);
        let allowed = std::iter::once(&swaps[now]).chain(later).any(|swap| swap.to == tag);
        assert!(allowed, "begun {:?} after the answer, served by {tag}", *begun - swaps[now].answered);
    }
    let (to_blue, to_green) = (blue.accepted(), green.accepted());
    assert!(to_blue > 300 && to_green > 300, "both pools served: {to_blue}, {to_green}");
    assert_eq!(usize::try_from(to_blue + to_green).unwrap(), seen.len(), "each connection reached one backend once");
    let metrics = proxy.metrics();
    assert_eq!(metrics.count("proxyd_sessions_total", &[("pool", "pool")]), to_blue);
    assert_eq!(metrics.count("proxyd_sessions_total", &[("pool", "other")]), to_green);
}
