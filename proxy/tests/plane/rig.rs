//! A plane with its ledger, listening sockets made as the keeper makes them, and peers on both sides.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use handoff::ledger::{Ledger, NameSpec, NameTotals, Phase, Segment, SessionSnapshot, Sizes};
use proxy::config::plan::{BackendAdmin, Plan, PlannedBackend, PlannedListener, PlannedPool};
use proxy::config::{
    Balance, Drain, ForcedClose, Keepalive, LogFormat, LogLevel, OnKeeperDeath, TcpSettings, Timeouts,
};
use proxy::listener::names_of;
use proxy::observe::names;
use proxy::observe::reason::{ConnectFailure, Reason};
use proxy::session::clock::coarse_ms;
use proxy::worker::Plane;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// No wait of a test is longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct Rig {
    pub(crate) ledger: Ledger,
    pub(crate) plan: Plan,
    pub(crate) plane: Plane,
    pub(crate) address: SocketAddr,
}

pub(crate) const LISTENER: &str = "front";
pub(crate) const SOCKET: &str = "tcp:front";

/// One listener in front of one pool `pool`, polling.
pub(crate) async fn rig(backends: &[SocketAddr]) -> Rig {
    rig_with(backends, |_| {}).await
}

pub(crate) async fn rig_with(backends: &[SocketAddr], change: impl FnOnce(&mut Plan)) -> Rig {
    let (socket, address) = listening();
    let mut rig = rig_on(backends, vec![(SOCKET.into(), socket)], address, change).await;
    rig.plane.poll().await.unwrap();
    rig
}

pub(crate) async fn rig_on(
    backends: &[SocketAddr],
    sockets: Vec<(String, OwnedFd)>,
    address: SocketAddr,
    change: impl FnOnce(&mut Plan),
) -> Rig {
    let mut plan = plan(vec![pool("pool", backends)]);
    change(&mut plan);
    for (_, socket) in &sockets {
        // As the keeper does after a change; a Unix socket has none of these options.
        let _ = proxy::session::set_listener(socket.as_fd(), &plan.listeners[0].tcp);
    }
    let mut ledger =
        Ledger::create(Sizes { names: 64, counters: 2048, gauges: 512, blocks: 16, records: 4096 }).unwrap();
    ledger.ensure(&names_of(&plan), 8, 64).unwrap();
    let mut plane = Plane::start(plan.clone(), 1, ledger.segments().to_vec()).unwrap();
    plane.apply(plan.clone(), sockets).await.unwrap();
    Rig { ledger, plan, plane, address }
}

pub(crate) fn plan(pools: Vec<PlannedPool>) -> Plan {
    Plan {
        config_version: 1,
        threads: 2,
        max_sessions: 2_000,
        on_keeper_death: OnKeeperDeath::Serve,
        log: LogLevel::Info,
        log_format: LogFormat::Text,
        drain: Drain { timeout: None, spread: Duration::ZERO, close: ForcedClose::Reset },
        listeners: vec![listener(LISTENER, &[SOCKET], "pool")],
        pools,
    }
}

pub(crate) fn listener(name: &str, sockets: &[&str], pool: &str) -> PlannedListener {
    let second = Duration::from_secs(1);
    PlannedListener {
        name: name.into(),
        sockets: sockets.iter().map(|id| (*id).into()).collect(),
        pool: pool.into(),
        max_sessions: None,
        survive_crash: false,
        tcp: TcpSettings {
            keepalive: Some(Keepalive { idle: 60 * second, interval: 15 * second, count: 4 }),
            user_timeout: Some(60 * second),
        },
        timeouts: Timeouts { idle: None, half_close: Some(60 * second), max_lifetime: None },
    }
}

pub(crate) fn pool(name: &str, backends: &[SocketAddr]) -> PlannedPool {
    let backend = |address: &SocketAddr| PlannedBackend {
        name: address.to_string(),
        address: *address,
        weight: 1,
        admin: BackendAdmin::Enabled,
    };
    PlannedPool {
        name: name.into(),
        version: 1,
        balance: Balance::RoundRobin,
        connect_timeout: Duration::from_secs(5),
        connect_retries: 2,
        source: None,
        backends: backends.iter().map(backend).collect(),
    }
}

/// A listening socket with what the keeper sets on it.
pub(crate) fn listening() -> (OwnedFd, SocketAddr) {
    listening_on(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
}

pub(crate) fn listening_on(address: SocketAddr) -> (OwnedFd, SocketAddr) {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    proxy::session::set_listener(socket.as_fd(), &listener(LISTENER, &[], "pool").tcp).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(1024).unwrap();
    let bound = socket.local_addr().unwrap().as_socket().unwrap();
    (socket.into(), bound)
}

/// An address where nobody listens.
pub(crate) fn nobody() -> SocketAddr {
    listening().1
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Bounds a wait for a peer.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {DEADLINE:?}: {what}"),
    }
}

impl Rig {
    pub(crate) async fn client(&self) -> TcpStream {
        soon("connect", TcpStream::connect(self.address)).await.unwrap()
    }

    /// A client and the backend's end of its session.
    pub(crate) async fn pair(&self, backend: &TcpListener) -> (TcpStream, TcpStream) {
        let client = self.client().await;
        (client, soon("session", backend.accept()).await.unwrap().0)
    }

    /// How a client ends that gets no byte. (The reset may be there before its connect is over.)
    pub(crate) async fn is_turned_away(&self) -> std::io::Result<()> {
        let mut client = soon("connect", TcpStream::connect(self.address)).await?;
        let (bytes, end) = read_out(&mut client).await;
        assert!(bytes.is_empty());
        end
    }

    /// Waits until so many sessions have their backend.
    pub(crate) async fn established(&self, n: usize) {
        let established = || self.sessions().iter().filter(|it| it.phase == Phase::Established).count();
        until("sessions to be established", || established() == n).await;
    }

    /// Waits until all sessions have been idle for so long.
    pub(crate) async fn idle_for(&self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap();
        let idle = |it: &SessionSnapshot| coarse_ms().saturating_sub(it.last_byte_ms.max(it.opened_ms)) >= ms;
        until("sessions to be idle", || self.sessions().iter().all(idle)).await;
    }

    /// Turns to a changed plan.
    pub(crate) async fn apply(&mut self, change: impl FnOnce(&mut Plan), sockets: Vec<(String, OwnedFd)>) {
        change(&mut self.plan);
        self.ledger.ensure(&names_of(&self.plan), 0, 0).unwrap();
        self.plane.apply(self.plan.clone(), sockets).await.unwrap();
    }

    pub(crate) fn sessions(&self) -> Vec<SessionSnapshot> {
        handoff::ledger::sessions(self.ledger.segments())
    }

    fn totals(&self, spec: &NameSpec) -> NameTotals {
        let totals = handoff::ledger::totals(self.ledger.segments());
        totals.into_iter().find(|it| (it.kind, &it.text) == (spec.kind, &spec.text)).unwrap()
    }

    pub(crate) fn counter(&self, spec: &NameSpec, cell: u32) -> u64 {
        self.totals(spec).counters[cell as usize]
    }

    pub(crate) fn gauge(&self, spec: &NameSpec, cell: u32) -> u64 {
        self.totals(spec).gauges[cell as usize]
    }

    pub(crate) fn closed(&self, reason: Reason) -> u64 {
        self.counter(&names::listener(LISTENER), names::listener::closed(reason))
    }

    pub(crate) fn connect_failed(&self, backend: SocketAddr, why: ConnectFailure) -> u64 {
        self.counter(&names::backend("pool", &backend.to_string()), names::backend::connect_failed(why))
    }

    /// Waits until all sessions are over, and says how each ended.
    pub(crate) async fn ended(&self) -> Vec<(Reason, u64)> {
        soon("all sessions to end", self.plane.emptied()).await;
        let counted = Reason::ALL.iter().map(|reason| (*reason, self.closed(*reason)));
        let ended: Vec<_> = counted.filter(|(_, n)| *n > 0).collect();
        let total = self.counter(&names::route(LISTENER, "pool"), names::route::SESSIONS);
        assert_eq!(ended.iter().map(|(_, n)| n).sum::<u64>(), total, "each session has one reason");
        assert_eq!(self.gauge(&names::listener(LISTENER), names::listener::HELD), 0);
        assert!(self.sessions().is_empty());
        ended
    }

    pub(crate) fn segments(&self) -> Vec<std::sync::Arc<Segment>> {
        self.ledger.segments().to_vec()
    }
}

/// A backend under the test's own hand.
pub(crate) async fn backend() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A backend that says its name and then what it is told, until told no more.
pub(crate) async fn echo(tasks: &mut JoinSet<()>, name: &'static str) -> SocketAddr {
    let (listener, address) = backend().await;
    tasks.spawn(async move {
        let mut sessions = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            sessions.spawn(async move {
                let _ = stream.write_all(name.as_bytes()).await;
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// Closes with a reset.
pub(crate) fn reset(stream: TcpStream) {
    SockRef::from(&stream.as_fd()).set_linger(Some(Duration::ZERO)).unwrap();
}

/// All bytes to the end, and how it ended.
pub(crate) async fn read_out(stream: &mut TcpStream) -> (Vec<u8>, std::io::Result<()>) {
    let mut bytes = Vec::new();
    let result = soon("end of stream", stream.read_to_end(&mut bytes)).await;
    (bytes, result.map(drop))
}

pub(crate) async fn read(stream: &mut TcpStream, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    soon("bytes", stream.read_exact(&mut bytes)).await.unwrap();
    bytes
}

pub(crate) fn is_reset(result: &std::io::Result<()>) -> bool {
    result.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset)
}
