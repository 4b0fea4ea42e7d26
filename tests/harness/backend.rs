//! Backends: [`Tagged`] says who it is and echoes, [`Seeded`] checks and sends seeded streams, [`Stalled`] stops reading.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::{interval, timeout};

use super::seeded::{self, Bytes, Hello};
use super::server::{Server, any_v4};
use super::tally::{Shared, Tally};

/// A backend that hears nothing for so long gives up; far above every pause a test makes on purpose.
const SILENCE: Duration = Duration::from_secs(60);

/// Sends its tag and a newline at once, then echoes until end of file.
#[derive(Debug)]
pub struct Tagged(Server);

impl Tagged {
    pub fn start(tag: &str) -> Self {
        let greeting = format!("{tag}\n");
        Self(Server::start(any_v4(), move |stream| {
            let greeting = greeting.clone();
            async move {
                // A client may leave whenever it likes.
                let _gone = echo(stream, greeting.as_bytes()).await;
            }
        }))
    }

    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    pub fn accepted(&self) -> u64 {
        self.0.accepted()
    }
}

async fn echo(stream: TcpStream, greeting: &[u8]) -> io::Result<u64> {
    let (mut from, mut to) = stream.into_split();
    to.write_all(greeting).await?;
    let echoed = tokio::io::copy(&mut from, &mut to).await?;
    to.shutdown().await?;
    Ok(echoed)
}

/// The far side of [`super::Load`] and [`super::LongStreams`].
#[derive(Debug)]
pub struct Seeded {
    server: Server,
    tally: Arc<Shared>,
    quiet: watch::Sender<bool>,
}

impl Seeded {
    pub fn start() -> Self {
        Self::start_on(any_v4())
    }

    pub fn start_on(address: SocketAddr) -> Self {
        let tally = Arc::new(Shared::default());
        let seen = Arc::clone(&tally);
        let (quiet, hush) = watch::channel(false);
        let server = Server::start(address, move |stream| {
            let (seen, hush) = (Arc::clone(&seen), hush.clone());
            async move {
                seen.opened();
                let result = exchange(stream, hush, &seen).await;
                seen.ended("backend", result);
            }
        });
        Self { server, tally, quiet }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// What this side has verified. Connections of health checks and connects without a hello count as truncated.
    pub fn tally(&self) -> Tally {
        self.tally.snapshot()
    }

    /// Sends nothing on streams without a length for as long as it is told so, but their end.
    pub fn hush(&self, quiet: bool) {
        self.quiet.send_replace(quiet);
    }
}

async fn exchange(stream: TcpStream, hush: watch::Receiver<bool>, seen: &Shared) -> io::Result<()> {
    let (mut from, to) = stream.into_split();
    let hello = timeout(SILENCE, Hello::read(&mut from)).await??;
    let (ended, end) = watch::channel(false);
    let receive = async {
        let received = receive(from, &hello, seen).await;
        ended.send_replace(true);
        received
    };
    tokio::try_join!(receive, send(to, &hello, [end, hush], seen)).map(drop)
}

async fn receive(mut from: OwnedReadHalf, hello: &Hello, seen: &Shared) -> io::Result<()> {
    let mut bytes = Bytes::up(hello.seed);
    // Twice its pace: a client that is idle on purpose sends its next frame after an hour.
    let silence = SILENCE.max(hello.pace.every * 2);
    loop {
        match timeout(silence, seeded::receive_frame(&mut from, &mut bytes)).await?? {
            0 => return timeout(SILENCE, seeded::expect_end(&mut from)).await?,
            size => seen.up(size.into()),
        }
    }
}

/// `watched`: whether the client has ended its side, and whether we are to be quiet.
async fn send(
    mut to: OwnedWriteHalf,
    hello: &Hello,
    watched: [watch::Receiver<bool>; 2],
    seen: &Shared,
) -> io::Result<()> {
    let [mut end, mut hush] = watched;
    let mut bytes = Bytes::down(hello.seed);
    let mut left = hello.down;
    let mut tick = interval(hello.pace.every.max(Duration::from_micros(1)));
    while left != Some(0) && !(left.is_none() && *end.borrow()) {
        if left.is_none() && *hush.borrow() {
            tokio::select! {
                _ = end.changed() => {}
                _ = hush.changed() => {}
            }
            continue;
        }
        if !hello.pace.every.is_zero() {
            tokio::select! {
                _ = tick.tick() => {}
                _ = end.changed(), if left.is_none() => continue,
                _ = hush.changed(), if left.is_none() => continue,
            }
        }
        let size = left.map_or(hello.pace.frame, |left| seeded::frame_of(left).min(hello.pace.frame));
        timeout(SILENCE, seeded::send_frame(&mut to, &mut bytes, size)).await??;
        left = left.map(|left| left - u64::from(size));
        seen.down(size.into());
    }
    timeout(SILENCE, seeded::send_frame(&mut to, &mut bytes, 0)).await??;
    to.shutdown().await
}

/// Reads nothing until told to, then everything; never sends.
#[derive(Debug)]
pub struct Stalled {
    server: Server,
    read: Arc<AtomicU64>,
    go: watch::Sender<bool>,
}

impl Stalled {
    pub fn start() -> Self {
        let (go, gate) = watch::channel(false);
        let read = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&read);
        let server = Server::start(any_v4(), move |stream| swallow(stream, gate.clone(), Arc::clone(&count)));
        Self { server, read, go }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    pub fn accepted(&self) -> u64 {
        self.server.accepted()
    }

    /// Lets all connections, present and future, be read.
    pub fn resume(&self) {
        self.go.send_replace(true);
    }

    /// Bytes read so far.
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Acquire)
    }
}

async fn swallow(mut stream: TcpStream, mut gate: watch::Receiver<bool>, count: Arc<AtomicU64>) {
    if gate.wait_for(|open| *open).await.is_err() {
        return;
    }
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n) = stream.read(&mut buffer).await {
        if n == 0 {
            return;
        }
        count.fetch_add(u64::try_from(n).expect("a read fits"), Ordering::AcqRel);
    }
}
