//! Clients that check every byte: [`Load`] opens so many connections a second, [`LongStreams`] keeps some open.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

pub use super::seeded::Pace;
use super::seeded::{self, Bytes, Hello};
use super::server::runtime;
use super::tally::{Shared, Tally};
use super::target::Target;

/// No progress for so long is a fault; clients of real services give up after about as much.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes that one connection of a [`Load`] exchanges.
#[derive(Debug, Clone, Copy)]
pub struct Exchange {
    pub up: u32,
    pub down: u32,
}

impl Default for Exchange {
    fn default() -> Self {
        Self { up: 600, down: 2_000 }
    }
}

/// Opens connections at a steady rate; each makes one exchange and ends.
#[derive(Debug)]
pub struct Load(Running);

impl Load {
    pub fn start(target: impl Into<Target>, per_second: u32, exchange: Exchange) -> Self {
        let target = target.into();
        Self(Running::start(move |tally, stop| open_at_rate(target, per_second, exchange, tally, stop)))
    }

    /// What has been seen so far; connections in flight are in `opened` only.
    pub fn tally(&self) -> Tally {
        self.0.tally.snapshot()
    }

    /// Opens no more, and waits for those in flight.
    pub fn stop(self) -> Tally {
        self.0.stop()
    }
}

/// Keeps connections open, with verified bytes both ways, until stopped.
#[derive(Debug)]
pub struct LongStreams(Running);

impl LongStreams {
    pub fn start(target: impl Into<Target>, count: u32, pace: Pace) -> Self {
        let target = target.into();
        Self(Running::start(move |tally, stop| keep_open(target, count, pace, tally, stop)))
    }

    pub fn tally(&self) -> Tally {
        self.0.tally.snapshot()
    }

    /// Ends each stream in order: end mark, half-close, the other side's rest, its end mark, its end of file.
    pub fn stop(self) -> Tally {
        self.0.stop()
    }
}

/// Clients on a runtime of their own, told to stop by `stop`.
#[derive(Debug)]
struct Running {
    runtime: Runtime,
    tally: Arc<Shared>,
    stop: watch::Sender<bool>,
    clients: JoinHandle<()>,
}

impl Running {
    fn start<F>(clients: impl FnOnce(Arc<Shared>, watch::Receiver<bool>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let runtime = runtime();
        let tally = Arc::new(Shared::default());
        let (stop, stopped) = watch::channel(false);
        let clients = runtime.spawn(clients(Arc::clone(&tally), stopped));
        Self { runtime, tally, stop, clients }
    }

    fn stop(self) -> Tally {
        self.stop.send_replace(true);
        self.runtime.block_on(self.clients).expect("the clients of a test do not panic");
        self.tally.snapshot()
    }
}

async fn open_at_rate(
    target: Target,
    per_second: u32,
    exchange: Exchange,
    tally: Arc<Shared>,
    mut stop: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let mut tick = interval(Duration::from_secs(1) / per_second);
    // After a stall of the machine the missed connections are opened at once: the rate stays what was asked for.
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        tokio::select! {
            _ = stop.changed() => break,
            _ = tick.tick() => {
                let (target, tally) = (target.clone(), Arc::clone(&tally));
                tally.opened();
                connections.spawn(async move {
                    let result = short(&target, exchange, &tally).await;
                    tally.ended("client", result);
                });
            }
        }
        while connections.try_join_next().is_some() {}
    }
    while connections.join_next().await.is_some() {}
}

async fn short(target: &Target, exchange: Exchange, tally: &Shared) -> io::Result<()> {
    let stream = timeout(PATIENCE, target.connect()).await??;
    let (mut from, mut to) = tokio::io::split(stream);
    let pace = Pace { frame: seeded::frame_of(exchange.down.into()), every: Duration::ZERO };
    let hello = Hello { seed: fastrand::u64(..), down: Some(exchange.down.into()), pace };
    let send = async {
        let mut bytes = Bytes::up(hello.seed);
        hello.write(&mut to).await?;
        while bytes.at() < exchange.up.into() {
            let left = u64::from(exchange.up) - bytes.at();
            seeded::send_frame(&mut to, &mut bytes, seeded::frame_of(left)).await?;
        }
        seeded::send_frame(&mut to, &mut bytes, 0).await?;
        tally.up(exchange.up.into());
        to.shutdown().await
    };
    tokio::try_join!(async { timeout(PATIENCE, send).await? }, receive(&mut from, hello.seed, tally)).map(drop)
}

async fn keep_open(target: Target, count: u32, pace: Pace, tally: Arc<Shared>, stop: watch::Receiver<bool>) {
    let mut streams = JoinSet::new();
    for _ in 0..count {
        let (target, tally, stop) = (target.clone(), Arc::clone(&tally), stop.clone());
        tally.opened();
        streams.spawn(async move {
            let result = long(&target, pace, &tally, stop).await;
            tally.ended("long stream", result);
        });
    }
    while streams.join_next().await.is_some() {}
}

async fn long(target: &Target, pace: Pace, tally: &Shared, stop: watch::Receiver<bool>) -> io::Result<()> {
    let stream = timeout(PATIENCE, target.connect()).await??;
    let (mut from, mut to) = tokio::io::split(stream);
    let hello = Hello { seed: fastrand::u64(..), down: None, pace };
    let send = async {
        hello.write(&mut to).await?;
        send_until(&mut to, hello, tally, stop).await
    };
    tokio::try_join!(send, receive(&mut from, hello.seed, tally)).map(drop)
}

async fn send_until(
    to: &mut (impl AsyncWrite + Unpin),
    hello: Hello,
    tally: &Shared,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut bytes = Bytes::up(hello.seed);
    let mut tick = interval(hello.pace.every.max(Duration::from_micros(1)));
    while !*stop.borrow() {
        if !hello.pace.every.is_zero() {
            tokio::select! {
                _ = tick.tick() => {}
                _ = stop.changed() => continue,
            }
        }
        timeout(PATIENCE, seeded::send_frame(to, &mut bytes, hello.pace.frame)).await??;
        tally.up(hello.pace.frame.into());
    }
    timeout(PATIENCE, seeded::send_frame(to, &mut bytes, 0)).await??;
    to.shutdown().await
}

/// Until the other side's end mark and end of file.
async fn receive(from: &mut (impl AsyncRead + Unpin), seed: u64, tally: &Shared) -> io::Result<()> {
    let mut bytes = Bytes::down(seed);
    loop {
        match timeout(PATIENCE, seeded::receive_frame(from, &mut bytes)).await?? {
            0 => return timeout(PATIENCE, seeded::expect_end(from)).await?,
            size => tally.down(size.into()),
        }
    }
}
