//! Clients at a steady rate: each connects, reads the first byte that the backend sends, and leaves. The time between is
//! what a listener that nobody polls would show in.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

const SECOND: Duration = Duration::from_secs(1);
/// Of the second around an upgrade, before its beginning.
const BEFORE: Duration = Duration::from_millis(200);

type Seen = Arc<Mutex<Vec<io::Result<Duration>>>>;

#[derive(Debug)]
pub(crate) struct Clients {
    seen: Seen,
    /// Ends them when dropped.
    _runtime: Runtime,
}

impl Clients {
    pub(crate) fn start(address: SocketAddr, rate: u32) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a thread can be started");
        drop(runtime.spawn(open_at_rate(address, rate, Arc::clone(&seen))));
        Self { seen, _runtime: runtime }
    }

    /// What is seen within a second; `act` comes in it.
    pub(crate) fn second(&self, act: impl FnOnce()) -> Vec<Duration> {
        let begun = Instant::now();
        self.take();
        rest(begun, BEFORE);
        act();
        rest(begun, SECOND);
        self.take()
    }

    fn take(&self) -> Vec<Duration> {
        let seen = std::mem::take(&mut *self.seen.lock().expect("no holder panics"));
        seen.into_iter().map(|one| one.expect("nobody is refused or reset")).collect()
    }
}

fn rest(begun: Instant, time: Duration) {
    while begun.elapsed() < time {
        thread::park_timeout(time.saturating_sub(begun.elapsed()));
    }
}

async fn open_at_rate(address: SocketAddr, rate: u32, seen: Seen) {
    let mut tick = interval(SECOND / rate);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut open = JoinSet::new();
    loop {
        tick.tick().await;
        open.spawn(visit(address));
        while let Some(done) = open.try_join_next() {
            seen.lock().expect("no holder panics").push(done.expect("a client does not panic"));
        }
    }
}

async fn visit(address: SocketAddr) -> io::Result<Duration> {
    let begun = Instant::now();
    TcpStream::connect(address).await?.read_u8().await?;
    Ok(begun.elapsed())
}

/// What was seen in quiet seconds, and in those around an upgrade.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    pub(crate) quiet: Vec<Duration>,
    pub(crate) upgrade: Vec<Duration>,
}

impl Windows {
    pub(crate) fn add_quiet(&mut self, seen: Vec<Duration>) {
        self.quiet.extend(seen);
    }

    pub(crate) fn add_upgrade(&mut self, seen: Vec<Duration>) {
        self.upgrade.extend(seen);
    }
}
