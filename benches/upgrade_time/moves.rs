//! Sessions that are moved: how long all of them take, and for how long one that is busy stands still.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::harness::Proxy;
use crate::timed;

/// Open while an upgrade is made.
pub(crate) const SESSIONS: usize = 5_000;
/// Of those.
pub(crate) const ACTIVE: usize = 100;
/// An active session asks for an echo so often; a pause is noticed by whoever asks in it.
pub(crate) const EVERY: Duration = Duration::from_millis(10);
const QUESTION: usize = 64;
/// Connects under way at a time.
const AT_A_TIME: usize = 50;
/// Of a quiet window: about as long as an upgrade.
const QUIET: Duration = Duration::from_millis(500);

/// One upgrade that moves all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Move {
    /// From the step `move` to the step after it, as `proxyctl` prints them.
    pub(crate) took: Duration,
    /// As the report tells it.
    pub(crate) longest_pause: Duration,
}

/// The longest echo of each active session, in windows in which nothing happens and in those of the upgrades.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    pub(crate) moves: Vec<Move>,
    pub(crate) quiet: Vec<Duration>,
    pub(crate) upgrade: Vec<Duration>,
}

impl Moves {
    pub(crate) fn add(&mut self, sessions: &Sessions, proxy: &Proxy, binary: &Path) {
        sessions.longest();
        rest(QUIET);
        self.quiet.extend(sessions.longest());
        self.moves.push(Move::upgrade(proxy, binary));
        // Those who asked at the last moment have their answer.
        rest(EVERY * 2);
        self.upgrade.extend(sessions.longest());
    }
}

impl Move {
    fn upgrade(proxy: &Proxy, binary: &Path) -> Self {
        let mut command = proxy.ctl_command(&["upgrade", "--probation", "0s", "--binary"]);
        let ctl = command.arg(binary).stdout(Stdio::piped()).spawn().expect("proxyctl can be executed");
        let (mut begun, mut took) = (None, None);
        timed::lines(ctl, proxy, |line| match line.split_ascii_whitespace().next() {
            Some("move") => begun = Some(Instant::now()),
            Some("finish") => took = begun.map(|begun| begun.elapsed()),
            _ => {}
        });
        let report = proxy.ctl_json(&["upgrade", "--last"]);
        assert_eq!((&report["sessions"]["moved"], &report["sessions"]["left"]), (&SESSIONS.into(), &0.into()));
        let longest = report["longest_pause_ms"].as_f64().expect("a report tells the longest pause");
        Self { took: took.expect("an upgrade moves"), longest_pause: Duration::from_secs_f64(longest / 1e3) }
    }
}

/// [`SESSIONS`] through the proxy, [`ACTIVE`] of them asking again and again.
#[derive(Debug)]
pub(crate) struct Sessions {
    longest: Vec<Arc<AtomicU64>>,
    _idle: Vec<TcpStream>,
    /// Ends the active ones when dropped.
    _runtime: Runtime,
}

impl Sessions {
    pub(crate) fn open(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a thread can be started");
        let mut open = runtime.block_on(connect(address)).expect("nobody is refused or reset");
        let active = open.split_off(SESSIONS - ACTIVE);
        let longest: Vec<Arc<AtomicU64>> = active.iter().map(|_| Arc::default()).collect();
        for (stream, longest) in active.into_iter().zip(&longest) {
            drop(runtime.spawn(ask(stream, Arc::clone(longest))));
        }
        Self { longest, _idle: open, _runtime: runtime }
    }

    /// Of each active one since it was asked last.
    fn longest(&self) -> Vec<Duration> {
        self.longest.iter().map(|longest| Duration::from_nanos(longest.swap(0, Ordering::AcqRel))).collect()
    }
}

async fn connect(address: SocketAddr) -> io::Result<Vec<TcpStream>> {
    let mut open = Vec::with_capacity(SESSIONS);
    while open.len() < SESSIONS {
        let mut some = JoinSet::new();
        for _ in 0..AT_A_TIME.min(SESSIONS - open.len()) {
            some.spawn(greeted(address));
        }
        for stream in some.join_all().await {
            open.push(stream?);
        }
    }
    Ok(open)
}

/// The backend has said its name: the session is established.
async fn greeted(address: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    while stream.read_u8().await? != b'\n' {}
    Ok(stream)
}

/// # Panics
/// If the session ends.
async fn ask(mut stream: TcpStream, longest: Arc<AtomicU64>) {
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut answer = [0; QUESTION];
    loop {
        tick.tick().await;
        let begun = Instant::now();
        stream.write_all(&[b'q'; QUESTION]).await.expect("no session is lost");
        stream.read_exact(&mut answer).await.expect("no session is lost");
        let took = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        longest.fetch_max(took, Ordering::AcqRel);
    }
}

fn rest(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        thread::park_timeout(time.saturating_sub(begun.elapsed()));
    }
}
