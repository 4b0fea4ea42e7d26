//! A keeper that is not one: answers from memory, remembers what it was told; and raw clients to knock on its door.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use admin::command::{Changed, Command, Failure, Filter, Line, Reply};
use admin::door::Door;
use admin::limits::Limits;
use admin::server::{serve_tcp_within, serve_unix_within};
use admin::socket::{OwnedSocketPath, bind_socket};
use admin::view::{EventView, PoolView, SessionRow, Status, UpgradeView};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

/// Longest any wait of a test may take; far above what a loaded machine needs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Clone)]
pub(crate) struct FakeDoor {
    pub(crate) told: watch::Sender<Vec<Command>>,
    pub(crate) ready: Arc<Mutex<Result<(), String>>>,
    pub(crate) rows: Arc<Mutex<Vec<SessionRow>>>,
    /// The lines that the next commands answer; `reload` waits for `release` before its last.
    pub(crate) script: Arc<Mutex<Vec<Line>>>,
    pub(crate) release: watch::Sender<bool>,
    /// The lines that the next questions for a report answer, one question after the other; then `script`.
    pub(crate) reports: Arc<Mutex<VecDeque<Vec<Line>>>>,
    /// The step of the upgrade in hand.
    pub(crate) step: Arc<Mutex<String>>,
    /// What there is to see; no status is the usual one.
    pub(crate) seen: Arc<Mutex<Option<Status>>>,
    pub(crate) happened: watch::Sender<Vec<EventView>>,
    /// The newest event that somebody waits to see followed.
    pub(crate) followed: watch::Sender<u64>,
    /// How often the status was asked for.
    pub(crate) asked: watch::Sender<usize>,
    /// How many commands have run to their end.
    pub(crate) finished: watch::Sender<usize>,
}

impl FakeDoor {
    pub(crate) fn new() -> Self {
        let row =
            |id| SessionRow { id, listener: format!("l{}", id % 2), client: "10.0.0.1:1".into(), ..Default::default() };
        Self {
            told: watch::Sender::new(Vec::new()),
            ready: Arc::new(Mutex::new(Ok(()))),
            rows: Arc::new(Mutex::new((0..300).map(row).collect())),
            script: Arc::new(Mutex::new(vec![changed()])),
            release: watch::Sender::new(true),
            reports: Arc::default(),
            step: Arc::new(Mutex::new("spawn".into())),
            seen: Arc::default(),
            happened: watch::Sender::new(Vec::new()),
            followed: watch::Sender::new(0),
            asked: watch::Sender::new(0),
            finished: watch::Sender::new(0),
        }
    }

    /// Something happens: the events with these numbers, all the keeper still has being those from `oldest` on.
    pub(crate) fn happens(&self, numbers: std::ops::RangeInclusive<u64>, oldest: u64) {
        let event = |seq| EventView { seq, event: "test".into(), text: format!("event {seq}"), ..EventView::default() };
        self.happened.send_modify(|happened| {
            happened.extend(numbers.map(event));
            happened.retain(|event| event.seq >= oldest);
        });
    }

    /// Until a follower has been given the events up to this one.
    pub(crate) async fn finished_following(&self, seq: u64) {
        self.followed.subscribe().wait_for(|followed| *followed >= seq).await.unwrap();
    }

    pub(crate) fn answers(self, lines: impl Into<Vec<Line>>) -> Self {
        *self.script.lock().unwrap() = lines.into();
        self
    }
}

impl Door for FakeDoor {
    fn status(&self) -> Status {
        self.asked.send_modify(|asked| *asked += 1);
        if let Some(seen) = self.seen.lock().unwrap().clone() {
            return seen;
        }
        let pools = vec![PoolView { name: "pg".into(), version: 4, ..Default::default() }];
        // While a command is held back, an upgrade is in hand.
        let upgrade = (!*self.release.borrow()).then(|| UpgradeView {
            id: 12,
            step: self.step.lock().unwrap().clone(),
            step_seconds: 0.0,
            from: 1,
            to: 2,
        });
        Status { version: "9.8.7".into(), pools, upgrade, ..Status::default() }
    }

    fn sessions(&self, filter: &Filter) -> Vec<SessionRow> {
        self.rows.lock().unwrap().iter().filter(|row| filter.matches(row)).cloned().collect()
    }

    fn metrics(&self) -> String {
        "proxyd_config_version 4\n".to_owned()
    }

    fn ready(&self) -> Result<(), String> {
        self.ready.lock().unwrap().clone()
    }

    fn events(&self, since: u64) -> Vec<EventView> {
        self.happened.borrow().iter().filter(|event| event.seq > since).cloned().collect()
    }

    fn newest_event(&self) -> u64 {
        newest(&self.happened.borrow())
    }

    async fn newer_event(&self, seq: u64) -> Option<u64> {
        self.followed.send_replace(seq);
        let mut happened = self.happened.subscribe();
        happened.wait_for(|happened| newest(happened) > seq).await.ok().map(|happened| newest(&happened))
    }

    async fn command(&self, command: Command) -> mpsc::Receiver<Line> {
        let report = matches!(command, Command::Report { .. }).then(|| self.reports.lock().unwrap().pop_front());
        self.told.send_modify(|told| told.push(command));
        let (sender, receiver) = mpsc::channel(1);
        let (door, lines) = (self.clone(), report.flatten().unwrap_or_else(|| self.script.lock().unwrap().clone()));
        let mut release = self.release.subscribe();
        #[expect(clippy::disallowed_methods, reason = "ends with its script; `finished` tells")]
        tokio::spawn(async move {
            for line in lines {
                if !matches!(line, Line::Step { .. } | Line::Reconnect { .. }) {
                    release.wait_for(|released| *released).await.unwrap();
                }
                let _ = sender.send(line).await;
            }
            door.finished.send_modify(|count| *count += 1);
        });
        receiver
    }
}

fn newest(happened: &[EventView]) -> u64 {
    happened.last().map_or(0, |event| event.seq)
}

pub(crate) fn changed() -> Line {
    let (summary, changes) = ("pool pg changed".to_owned(), vec!["weight of a: 1 -> 2".to_owned()]);
    Line::Done(Reply::Changed(Changed { summary, changes, version: 5 }))
}

pub(crate) fn step(name: &str) -> Line {
    Line::Step { step: name.to_owned(), detail: format!("{name} begins") }
}

pub(crate) fn failed(failure: Failure) -> Line {
    Line::Failed(failure)
}

/// A door with both servers in front of it, in a directory of its own.
pub(crate) struct House {
    pub(crate) door: FakeDoor,
    pub(crate) socket: PathBuf,
    pub(crate) tcp: std::net::SocketAddr,
    stop: watch::Sender<bool>,
    servers: JoinSet<()>,
    _owned: OwnedSocketPath,
    directory: TempDir,
}

impl House {
    pub(crate) async fn open(door: FakeDoor, limits: Limits) -> Self {
        Self::open_in(private_directory(), door, limits).await
    }

    /// Another keeper, where this one was.
    pub(crate) async fn succeeded_by(self, door: FakeDoor) -> Self {
        let (directory, _) = self.leave().await;
        Self::open_in(directory, door, Limits::default()).await
    }

    async fn open_in(directory: TempDir, door: FakeDoor, limits: Limits) -> Self {
        let socket = directory.path().join("admin.sock");
        let (unix, owned) = bind_socket(&socket).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let stop = watch::Sender::new(false);
        let stopped = || {
            let mut stop = stop.subscribe();
            async move {
                let _ = stop.wait_for(|stop| *stop).await;
            }
        };
        let mut servers = JoinSet::new();
        servers.spawn(serve_unix_within(limits, unix, door.clone(), stopped()));
        servers.spawn(serve_tcp_within(limits, tcp, door.clone(), stopped()));
        Self { door, socket, tcp: address, stop, servers, _owned: owned, directory }
    }

    pub(crate) async fn with_defaults() -> Self {
        Self::open(FakeDoor::new(), Limits::default()).await
    }

    pub(crate) async fn unix(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    pub(crate) async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.tcp).await.unwrap()
    }

    /// Stops both servers and waits for their end.
    pub(crate) async fn close(self) -> FakeDoor {
        self.leave().await.1
    }

    async fn leave(mut self) -> (TempDir, FakeDoor) {
        self.stop.send_replace(true);
        within(async { while self.servers.join_next().await.is_some() {} }).await;
        (self.directory, self.door)
    }

    /// The daemon is fine: a command from a new client works.
    pub(crate) async fn assert_serves(&self) {
        let answer = exchange(self.unix().await, &post(r#"{"verb":"reload"}"#)).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(r#""line":"done""#), "{answer}");
    }
}

/// A house on a thread of its own, for clients that block.
pub(crate) struct Lodge {
    pub(crate) socket: PathBuf,
    pub(crate) door: FakeDoor,
    leave: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Lodge {
    pub(crate) fn open(door: FakeDoor) -> Self {
        let (leave, left) = oneshot::channel();
        let (ready, socket) = std::sync::mpsc::sync_channel(1);
        let inside = door.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let house = House::open(inside, Limits::default()).await;
                ready.send(house.socket.clone()).unwrap();
                let _ = left.await;
            });
        });
        Self { socket: socket.recv().unwrap(), door, leave: Some(leave), thread: Some(thread) }
    }
}

impl Drop for Lodge {
    fn drop(&mut self) {
        drop(self.leave.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(crate) fn private_directory() -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    directory
}

pub(crate) async fn within<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, wait).await.expect("in time")
}

pub(crate) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
}

pub(crate) fn post(body: &str) -> String {
    let length = body.len();
    format!("POST /v1/command HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// Sends all of `request` and reads to the end. A server that closes early is fine: what it said is returned.
pub(crate) async fn exchange(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, request: &str) -> String {
    let _ = within(stream.write_all(request.as_bytes())).await;
    rest(&mut stream).await
}

/// All that comes until the server closes.
pub(crate) async fn rest(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut answer = Vec::new();
    let mut piece = vec![0; 16 * 1024];
    while let Ok(1..) = within(stream.read(&mut piece)).await.inspect(|n| answer.extend_from_slice(&piece[..*n])) {}
    String::from_utf8_lossy(&answer).into_owned()
}

pub(crate) fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

pub(crate) fn is_there(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}
