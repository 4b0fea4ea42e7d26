//! Sessions that live longer than the processes that carry them: some idle, some chatting, some in bulk, each watched for
//! itself. What happens to one that should not is said at once, with its address, and kept for the end.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{interval, timeout};

use super::backend::Seeded;
use super::proxy::Proxy;
use super::seeded::{self, Bytes, FRAME, Hello, Pace};
use super::server::runtime;
use super::tally::Fault;
use super::wait::{until, until_none};

/// Of a connect, of a frame that should be on its way, and of the end: above every pause that a test makes on purpose.
const PATIENCE: Duration = Duration::from_secs(30);
/// From the first connect until all are established, for thousands on a loaded machine.
const ESTABLISHED: Duration = Duration::from_secs(60);
/// Connects under way at a time: fewer than any queue holds.
const AT_A_TIME: usize = 64;

/// How many of which kind.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    /// A frame each way at the beginning, then nothing.
    pub idle: u32,
    /// Small frames both ways, with pauses.
    pub chatting: u32,
    /// Frames larger than the relay's buffer both ways, as fast as [`Kind::pace`] says.
    pub bulk: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Idle,
    Chatting,
    Bulk,
}

impl Kind {
    fn pace(self) -> Pace {
        match self {
            // The next frame would be due after every test has ended.
            Self::Idle => Pace { frame: 100, every: Duration::from_secs(1800) },
            Self::Chatting => Pace { frame: 120, every: Duration::from_millis(80) },
            Self::Bulk => Pace { frame: FRAME, every: Duration::from_millis(8) },
        }
    }
}

/// What the clients are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Talk,
    Hush,
    End,
}

/// What has gone wrong with one session.
#[derive(Debug, Clone)]
pub struct Trouble {
    pub fault: Fault,
    /// Which session, and how.
    pub text: String,
}

/// One session as its client knows it.
#[derive(Debug)]
struct One {
    kind: Kind,
    broken: AtomicBool,
    local: OnceLock<SocketAddr>,
    /// Bytes written, hello and framing included.
    up: AtomicU64,
    /// Bytes read and found right.
    down: AtomicU64,
}

impl One {
    fn new(kind: Kind) -> Self {
        let [up, down] = [(); 2].map(|()| AtomicU64::new(0));
        Self { kind, broken: AtomicBool::new(false), local: OnceLock::new(), up, down }
    }

    fn local(&self) -> SocketAddr {
        *self.local.get().expect("it is established")
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    fn counts(&self) -> Counts {
        Counts { up: self.up.load(Ordering::Acquire), down: self.down.load(Ordering::Acquire) }
    }
}

impl fmt::Display for One {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { up, down } = self.counts();
        match self.local.get() {
            Some(local) => write!(f, "{local} ({:?}, {up} bytes up, {down} down)", self.kind),
            None => write!(f, "a session ({:?}) without a connection", self.kind),
        }
    }
}

/// Bytes of one session, seen by its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub up: u64,
    pub down: u64,
}

/// Counts by the client's address, as `proxyctl sessions` names it.
pub type Ledger = BTreeMap<String, Counts>;

/// Against a [`Seeded`] backend.
#[derive(Debug)]
pub struct LongSessions {
    runtime: Runtime,
    sessions: Vec<Arc<One>>,
    word: watch::Sender<Word>,
    troubles: Arc<Mutex<Vec<Trouble>>>,
    clients: JoinHandle<()>,
}

impl LongSessions {
    /// Returns once every session has had its first frame from the backend.
    ///
    /// # Panics
    /// If one cannot be established.
    pub fn start(address: SocketAddr, mix: Mix) -> Self {
        let these = Self::begin(address, mix);
        these.assert_unbroken();
        these
    }

    /// Returns once every session has had its first frame from the backend, or is broken.
    pub fn begin(address: SocketAddr, mix: Mix) -> Self {
        let kinds = [(Kind::Idle, mix.idle), (Kind::Chatting, mix.chatting), (Kind::Bulk, mix.bulk)];
        let kinds = kinds.into_iter().flat_map(|(kind, count)| (0..count).map(move |_| kind));
        let sessions: Vec<Arc<One>> = kinds.map(|kind| Arc::new(One::new(kind))).collect();
        let runtime = runtime();
        let (word, heard) = watch::channel(Word::Talk);
        let troubles = Arc::new(Mutex::new(Vec::new()));
        let clients = runtime.spawn(all(address, sessions.clone(), heard, Arc::clone(&troubles)));
        let these = Self { runtime, sessions, word, troubles, clients };
        until("all long sessions are established", ESTABLISHED, || {
            these.sessions.iter().all(|one| one.is_broken() || one.counts().down > 0)
        });
        these
    }

    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Our ends of the connections.
    pub fn locals(&self) -> Vec<SocketAddr> {
        self.sessions.iter().map(|one| one.local()).collect()
    }

    /// What has gone wrong so far, once a session.
    pub fn troubles(&self) -> Vec<Trouble> {
        self.troubles.lock().expect("no holder panics").clone()
    }

    /// # Panics
    /// If a session was closed, reset, corrupted, or stood still for too long.
    pub fn assert_unbroken(&self) {
        assert_none(&self.troubles(), self.len());
    }

    /// Bytes in both directions so far.
    pub fn bytes(&self) -> u64 {
        self.sessions.iter().map(|one| one.counts()).map(|counts| counts.up + counts.down).sum()
    }

    /// Waits until every session that is not idle has moved bytes in both directions from now on.
    ///
    /// # Panics
    /// If one does not in time, or one was broken.
    pub fn all_go_on(&self) {
        self.rest_goes_on();
        self.assert_unbroken();
    }

    /// As [`Self::all_go_on`], of those that are not broken.
    pub fn rest_goes_on(&self) {
        let before: Vec<Counts> = self.sessions.iter().map(|one| one.counts()).collect();
        let stands = |one: &One, before: &Counts| {
            let now = one.counts();
            one.kind != Kind::Idle && !one.is_broken() && (now.up == before.up || now.down == before.down)
        };
        until_none("every session that is not idle goes on", PATIENCE, || {
            let found = self.sessions.iter().zip(&before).find(|(one, before)| stands(one, before));
            found.map(|(one, _)| one.to_string())
        });
    }

    /// Makes both sides quiet, waits until what they have sent is where it belongs, and compares each session with what
    /// `proxyctl sessions` says of it; then they talk again.
    ///
    /// # Panics
    /// If they do not agree in time.
    pub fn assert_counted(&self, proxy: &Proxy, backend: &Seeded) {
        self.word.send_replace(Word::Hush);
        backend.hush(true);
        until_none("the clients' counts and the ledger's are the same", PATIENCE, || {
            difference(&self.counts(), &counted(proxy))
        });
        backend.hush(false);
        self.word.send_replace(Word::Talk);
    }

    /// Of those that are not broken.
    fn counts(&self) -> Ledger {
        let whole = self.sessions.iter().filter(|one| !one.is_broken());
        whole.map(|one| (one.local().to_string(), one.counts())).collect()
    }

    /// Ends each in order: end mark, half-close, the other side's rest, its end mark, its end of file. What each has carried.
    ///
    /// # Panics
    /// If one was broken.
    pub fn finish(self) -> Vec<Counts> {
        let (counts, troubles) = self.finish_some();
        assert_none(&troubles, counts.len());
        counts
    }

    /// As [`Self::finish`]; those that were broken are told.
    pub fn finish_some(self) -> (Vec<Counts>, Vec<Trouble>) {
        self.word.send_replace(Word::End);
        let ended = self.runtime.block_on(async { timeout(PATIENCE * 2, self.clients).await });
        let counts = self.sessions.iter().map(|one| one.counts()).collect();
        let troubles = self.troubles.lock().expect("no holder panics").clone();
        ended.expect("sessions that are told to end do so").expect("the clients of a test do not panic");
        (counts, troubles)
    }
}

/// Enough to see what it is that goes wrong.
const TOLD: usize = 10;

fn assert_none(troubles: &[Trouble], of: usize) {
    let first = &troubles[..troubles.len().min(TOLD)];
    assert!(troubles.is_empty(), "{} of {of} sessions: {first:#?}", troubles.len());
}

/// The live table, by client.
fn counted(proxy: &Proxy) -> Ledger {
    let number = |row: &serde_json::Value, key: &str| row[key].as_u64().expect("a number");
    let rows = proxy.sessions().into_iter().map(|row| {
        let counts = Counts { up: number(&row, "bytes_received"), down: number(&row, "bytes_sent") };
        (row["client"].as_str().expect("a text").to_owned(), counts)
    });
    rows.collect()
}

/// The first few sessions of which the two say different things.
fn difference(clients: &Ledger, ledger: &Ledger) -> Option<String> {
    let differ = clients.iter().filter(|(client, counts)| ledger.get(*client) != Some(counts));
    let told: Vec<String> = differ
        .map(|(client, counts)| format!("{client}: client {counts:?}, ledger {:?}", ledger.get(client)))
        .collect();
    let more = ledger.keys().filter(|client| !clients.contains_key(*client)).count();
    if told.is_empty() && more == 0 {
        return None;
    }
    Some(format!("{} differ, {more} are not ours: {:#?}", told.len(), &told[..told.len().min(5)]))
}

async fn all(
    address: SocketAddr,
    sessions: Vec<Arc<One>>,
    word: watch::Receiver<Word>,
    troubles: Arc<Mutex<Vec<Trouble>>>,
) {
    let turns = Arc::new(Semaphore::new(AT_A_TIME));
    let mut running = JoinSet::new();
    for one in sessions {
        let (word, troubles, turns) = (word.clone(), Arc::clone(&troubles), Arc::clone(&turns));
        running.spawn(async move {
            if let Err(error) = run(&one, address, word, &turns).await {
                let trouble = Trouble { fault: Fault::of(&error), text: format!("{one}: {error}") };
                one.broken.store(true, Ordering::Release);
                let mut troubles = troubles.lock().expect("no holder panics");
                if troubles.len() < TOLD {
                    eprintln!("trouble: {}", trouble.text);
                }
                troubles.push(trouble);
            }
        });
    }
    while running.join_next().await.is_some() {}
}

async fn run(one: &One, address: SocketAddr, word: watch::Receiver<Word>, turns: &Semaphore) -> io::Result<()> {
    let turn = turns.acquire().await.expect("it is never closed");
    let stream = timeout(PATIENCE, TcpStream::connect(address)).await??;
    stream.set_nodelay(true)?;
    one.local.set(stream.local_addr()?).expect("it connects once");
    drop(turn);
    let (from, to) = stream.into_split();
    let hello = Hello { seed: fastrand::u64(..), down: None, pace: one.kind.pace() };
    tokio::try_join!(send(one, to, hello, word), receive(one, from, hello)).map(drop)
}

async fn send(one: &One, mut to: OwnedWriteHalf, hello: Hello, mut word: watch::Receiver<Word>) -> io::Result<()> {
    hello.write(&mut to).await?;
    one.up.fetch_add(seeded::HELLO, Ordering::AcqRel);
    let mut bytes = Bytes::up(hello.seed);
    let mut tick = interval(hello.pace.every);
    loop {
        let said = *word.borrow_and_update();
        match said {
            Word::End => break,
            // Whoever tells the words is gone only when the test is.
            Word::Hush => word.changed().await.map_err(io::Error::other)?,
            Word::Talk => tokio::select! {
                _ = tick.tick() => send_counted(one, &mut to, &mut bytes, hello.pace.frame).await?,
                changed = word.changed() => changed.map_err(io::Error::other)?,
            },
        }
    }
    send_counted(one, &mut to, &mut bytes, 0).await?;
    // The kernel half-closes when the half is dropped; said here, so that a failure is seen.
    tokio::io::AsyncWriteExt::shutdown(&mut to).await
}

async fn send_counted(one: &One, to: &mut OwnedWriteHalf, bytes: &mut Bytes, size: u32) -> io::Result<()> {
    timeout(PATIENCE, seeded::send_frame(to, bytes, size)).await??;
    one.up.fetch_add(seeded::on_the_wire(size), Ordering::AcqRel);
    Ok(())
}

/// Until the other side's end mark and end of file.
async fn receive(one: &One, mut from: OwnedReadHalf, hello: Hello) -> io::Result<()> {
    let mut bytes = Bytes::down(hello.seed);
    let patience = PATIENCE + hello.pace.every;
    loop {
        let size = timeout(patience, seeded::receive_frame(&mut from, &mut bytes)).await??;
        one.down.fetch_add(seeded::on_the_wire(size), Ordering::AcqRel);
        if size == 0 {
            return timeout(PATIENCE, seeded::expect_end(&mut from)).await?;
        }
    }
}
