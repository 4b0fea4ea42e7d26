//! Sessions that are stopped and go on, here or with another owner, under real traffic.

mod opening;
mod protected;

use std::cell::Cell;
use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use handoff::ledger::{Ledger, Sizes};
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::*;
use crate::config::plan::{BackendAdmin, PlannedBackend, PlannedPool};
use crate::config::{Balance, TcpSettings, Timeouts};
use crate::observe::names;
use crate::observe::reason::Cause;
use crate::pool::Pools;

/// The sessions of one generation's only thread.
struct Owner {
    generation: u32,
    book: Rc<Book>,
    listener: Rc<ListenerBook>,
    terms: Arc<Terms>,
    census: Arc<Census>,
    freed: Rc<Notify>,
    table: Table,
}

/// Two owners over one ledger, and a backend in the test's hand.
struct World {
    ledger: Ledger,
    owners: [Owner; 2],
    backend: TcpListener,
}

const THREAD: u16 = 3;

/// Runs on a runtime as a data thread has it.
fn on_a_data_thread(test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build_local(tokio::runtime::LocalOptions::default()).unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), test).await.unwrap() });
}

fn terms(address: SocketAddr, timeouts: Timeouts, survive_crash: bool) -> Terms {
    let backend = PlannedBackend { name: "one".into(), address, weight: 1, admin: BackendAdmin::Enabled };
    let pool = PlannedPool {
        name: "pool".into(),
        version: 1,
        balance: Balance::RoundRobin,
        connect_timeout: Duration::from_secs(5),
        connect_retries: 0,
        source: None,
        backends: vec![backend],
    };
    let pools = Pools::build(&[pool], &Pools::default());
    let pool = Arc::clone(pools.named("pool").unwrap());
    let tcp = TcpSettings { keepalive: None, user_timeout: None };
    Terms { key: 1, listener: "front".into(), pool, max_sessions: None, survive_crash, tcp, timeouts }
}

async fn world(timeouts: Timeouts) -> World {
    world_of(timeouts, false).await
}

async fn world_of(timeouts: Timeouts, survive_crash: bool) -> World {
    let backend = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = backend.local_addr().unwrap();
    let mut ledger = Ledger::create(Sizes { names: 16, counters: 512, gauges: 64, blocks: 4, records: 256 }).unwrap();
    let known = [
        names::process(),
        names::listener("front"),
        names::route("front", "pool"),
        names::pool("pool"),
        names::backend("pool", "one"),
    ];
    ledger.ensure(&known, 2, 64).unwrap();
    let owner = |generation| {
        let book = Book::lease(ledger.segments().to_vec(), generation, THREAD).unwrap().unwrap();
        let terms = Arc::new(terms(address, timeouts, survive_crash));
        let listener = book.listener(&terms).unwrap();
        let census = Arc::new(Census::new(1_000, 4));
        let (book, freed, table) = (Rc::new(book), Rc::default(), Table::default());
        Owner { generation, book, listener, terms, census, freed, table }
    };
    let owners = [owner(1), owner(2)];
    World { ledger, owners, backend }
}

const NO_TIMEOUTS: Timeouts = Timeouts { idle: None, half_close: None, max_lifetime: None };

impl Owner {
    fn seat(&self) -> Seat {
        Seat::take(&self.census, usize::from(THREAD), &self.listener, &self.freed, None).unwrap()
    }

    fn hold(&self, carried: Carried) {
        // As it would travel.
        let state = serde_json::from_str(&serde_json::to_string(&carried.state).unwrap()).unwrap();
        let carried = Carried { state, writers: [None, None], ..carried };
        let backend = Arc::new(Backend::new(carried.state.backend.name.clone(), carried.state.backend.address));
        self.table.hold(carried, &self.terms, backend, &self.book, &self.listener, self.seat()).unwrap();
    }
}

impl World {
    /// A client, and the backend's end of its session, which the first owner has.
    async fn session(&self) -> (TcpStream, TcpStream) {
        let before = self.established();
        let (client, accepted) = accepted().await;
        self.open(accepted);
        let server = self.backend.accept().await.unwrap().0;
        until(|| self.established() == before + 1).await;
        (client, server)
    }

    fn open(&self, accepted: Accepted) {
        let owner = &self.owners[0];
        owner.table.open(accepted, &owner.terms, &owner.book, &owner.listener, owner.seat()).unwrap();
    }

    fn established(&self) -> usize {
        let sessions = handoff::ledger::sessions(self.ledger.segments());
        sessions.iter().filter(|it| it.phase == handoff::ledger::Phase::Established).count()
    }

    /// Moves everything from one owner to the other, or takes it back in between.
    async fn transfer(&self, from: usize, withdrawn: bool) {
        let (giver, taker) = (&self.owners[from], &self.owners[1 - from]);
        let carried = giver.table.freeze(64, Duration::ZERO, &HashSet::new()).carried;
        pause().await;
        if withdrawn && fastrand::bool() {
            return giver.table.resume(carried);
        }
        let ids: Vec<u64> = carried.iter().map(|carried| carried.id).collect();
        let kept: Vec<Carried> = carried.iter().map(duplicate).collect();
        carried.into_iter().for_each(|carried| taker.hold(carried));
        pause().await;
        if withdrawn {
            giver.table.resume(kept);
            pause().await;
            taker.table.let_go(&ids);
            return;
        }
        let named: Vec<(u64, u16)> = ids.iter().map(|id| (*id, THREAD)).collect();
        assert_eq!(giver.table.release(&named, taker.generation), ids);
        drop(kept);
        pause().await;
        assert_eq!(taker.table.start(&ids), ids.len() as u64);
    }

    fn closed(&self, reason: Reason) -> u64 {
        let totals = handoff::ledger::totals(self.ledger.segments());
        let front = totals.into_iter().find(|it| it.kind == names::LISTENER).unwrap();
        front.counters[names::listener::closed(reason) as usize]
    }

    /// All are over, each counted once, and nothing is held.
    async fn is_empty_with(&self, ended: &[(Reason, u64)]) {
        until(|| self.owners.iter().all(|owner| owner.census.live() == 0)).await;
        assert!(handoff::ledger::sessions(self.ledger.segments()).is_empty());
        let counted: Vec<_> = Reason::ALL.iter().map(|it| (*it, self.closed(*it))).filter(|(_, n)| *n > 0).collect();
        assert_eq!(counted, ended);
        let totals = handoff::ledger::totals(self.ledger.segments());
        for total in totals.iter().filter(|it| it.kind == names::LISTENER) {
            assert_eq!(total.gauges[names::listener::HELD as usize], 0);
        }
    }
}

/// A client, and its socket as a listener gives it.
async fn accepted() -> (TcpStream, Accepted) {
    let front = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let client = TcpStream::connect(front.local_addr().unwrap()).await.unwrap();
    let (accepted, address) = front.accept().await.unwrap();
    let fd = std::os::fd::OwnedFd::from(accepted.into_std().unwrap());
    sockopt::set_socket_linger(&fd, Some(Duration::ZERO)).unwrap();
    (client, Accepted { fd, client: Some(address) })
}

/// As the kernel does when it passes a message: other numbers for the same sockets.
fn duplicate(carried: &Carried) -> Carried {
    let copy = |fd: &std::os::fd::OwnedFd| fd.try_clone().unwrap();
    Carried {
        state: carried.state.clone(),
        hand: carried.hand.clone(),
        client: copy(&carried.client),
        backend: copy(&carried.backend),
        pipes: carried.pipes.each_ref().map(|pipe| pipe.as_ref().map(copy)),
        writers: carried.writers.each_ref().map(|writer| writer.as_ref().map(copy)),
        ..*carried
    }
}

async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A moment of random length in which others run.
async fn pause() {
    for _ in 0..fastrand::u32(0..20) {
        tokio::task::yield_now().await;
    }
    if fastrand::u32(0..4) == 0 {
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..2_000))).await;
    }
}

fn seeded(seed: u64, bytes: usize) -> Rc<[u8]> {
    let mut all = vec![0; bytes];
    fastrand::Rng::with_seed(seed).fill(&mut all);
    all.into()
}

/// All of it in pieces of random size, then the end.
async fn send(mut to: impl AsyncWrite + Unpin, bytes: Rc<[u8]>) {
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let most = [10, 2_000, 100_000][fastrand::usize(0..3)];
        let (piece, after) = rest.split_at(fastrand::usize(1..most).min(rest.len()));
        to.write_all(piece).await.unwrap();
        rest = after;
        if most < 100_000 {
            pause().await;
        }
    }
    to.shutdown().await.unwrap();
}

/// Exactly these, then the end; a reader that rests now and then.
async fn check(mut from: impl AsyncRead + Unpin, expected: Rc<[u8]>) {
    let (mut at, mut piece) = (0, vec![0; 64 * 1024]);
    loop {
        let n = from.read(&mut piece).await.unwrap();
        assert!(expected[at..].starts_with(&piece[..n]), "bytes differ after {at}");
        at += n;
        if n == 0 {
            return assert_eq!(at, expected.len(), "the end comes after the last byte");
        }
        if fastrand::u32(0..16) == 0 {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(0..6))).await;
        }
    }
}

/// Writes until nothing more is taken.
async fn fill(stream: &TcpStream) -> usize {
    let (block, mut written) = (vec![7; 64 * 1024], 0);
    loop {
        match tokio::time::timeout(Duration::from_millis(200), stream.writable()).await {
            Ok(ready) => ready.unwrap(),
            Err(_) => return written,
        }
        written += stream.try_write(&block).unwrap_or_default();
    }
}

async fn read_out(stream: &mut TcpStream) -> (Vec<u8>, io::Result<usize>) {
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes).await;
    (bytes, end)
}

fn reset(stream: TcpStream) {
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
}

fn is_reset(end: &io::Result<usize>) -> bool {
    end.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset)
}

const KILLED: Ending = Ending { reason: Reason::AdminKilled, cause: Cause::Admin, how: ForcedClose::Reset };

#[test]
fn streams_arrive_whole_however_often_their_session_moves() {
    on_a_data_thread(async {
        let world = Rc::new(world(NO_TIMEOUTS).await);
        let mut peers = tokio::task::JoinSet::new();
        for seed in 0..6 {
            let (client, server) = world.session().await;
            let (to_server, to_client) = (seeded(seed, 3_000_000), seeded(!seed, 2_000_000));
            let (client_in, client_out) = client.into_split();
            let (server_in, server_out) = server.into_split();
            peers.spawn_local(send(client_out, Rc::clone(&to_server)));
            peers.spawn_local(send(server_out, Rc::clone(&to_client)));
            peers.spawn_local(check(server_in, to_server));
            peers.spawn_local(check(client_in, to_client));
        }
        let mut moves = 0_u64;
        let moving = async {
            while world.owners.iter().any(|owner| owner.census.live() > 0) {
                // Backwards too: what one has got it gives back.
                world.transfer(usize::from(moves % 2 == 1), fastrand::u32(0..3) == 0).await;
                moves += 1;
                pause().await;
            }
        };
        tokio::join!(moving, peers.join_all());
        assert!(moves > 20, "{moves} moves while the streams ran");
        until(|| handoff::ledger::sessions(world.ledger.segments()).is_empty()).await;
        let ended = world.closed(Reason::ClientClosed) + world.closed(Reason::BackendClosed);
        assert_eq!(ended, 6, "each counted once");
        let totals = handoff::ledger::totals(world.ledger.segments());
        let of = |kind| totals.iter().find(|it| it.kind == kind).unwrap().counters.clone();
        assert_eq!(of(names::LISTENER)[names::listener::RECEIVED as usize], 18_000_000);
        assert_eq!(of(names::LISTENER)[names::listener::SENT as usize], 12_000_000);
        assert_eq!(of(names::BACKEND)[names::backend::BYTES as usize], 30_000_000);
        assert_eq!(of(names::ROUTE)[names::route::SESSIONS as usize], 6, "a move is no new session");
        assert_eq!(of(names::BACKEND)[names::backend::SESSIONS as usize], 6);
    });
}

#[test]
fn nobody_touches_a_session_that_is_held() {
    on_a_data_thread(async {
        let world = world(NO_TIMEOUTS).await;
        let (mut client, mut server) = world.session().await;
        let [giver, taker] = &world.owners;
        let carried = giver.table.freeze(64, Duration::ZERO, &HashSet::new()).carried;
        let (id, kept) = (carried[0].id, duplicate(&carried[0]));
        carried.into_iter().for_each(|carried| taker.hold(carried));
        client.write_all(b"hello").await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(50), server.read_u8()).await;
        assert!(early.is_err(), "held at both ends, it rests");
        assert_eq!(taker.table.start(&[id]), 0, "the record says that it is still the giver's");
        assert_eq!(taker.census.live(), 1, "until its task has run");
        giver.table.resume(vec![kept]);
        let mut bytes = [0; 5];
        server.read_exact(&mut bytes).await.unwrap();
        assert_eq!((&bytes, taker.census.live()), (b"hello", 0));
        drop((client, server));
        world.is_empty_with(&[(Reason::ClientClosed, 1)]).await;
    });
}

#[test]
fn a_half_closed_session_and_its_clock_move() {
    on_a_data_thread(async {
        let half_close = Some(Duration::from_millis(400));
        let world = world(Timeouts { half_close, ..NO_TIMEOUTS }).await;
        let (mut client, mut server) = world.session().await;
        let (mut left, mut stays) = world.session().await;
        client.shutdown().await.unwrap();
        left.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0; 8]).await.unwrap() + stays.read(&mut [0; 8]).await.unwrap(), 0);
        world.transfer(0, false).await;
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let (bytes, end) = read_out(&mut client).await;
        assert_eq!((&bytes[..], end.unwrap()), (&b"answer"[..], 6));
        // The other says nothing more: each move would begin its time anew, did the clock not travel.
        let (begun, mut from) = (Instant::now(), 1);
        let over = Cell::new(false);
        let moving = async {
            while !over.get() {
                world.transfer(from, false).await;
                from = 1 - from;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let end = async {
            let end = read_out(&mut left).await.1;
            over.set(true);
            end
        };
        let ((), end) = tokio::join!(moving, end);
        assert!(is_reset(&end), "{end:?}");
        assert!(begun.elapsed() < Duration::from_millis(1_200), "{:?}", begun.elapsed());
        world.is_empty_with(&[(Reason::ClientClosed, 1), (Reason::HalfCloseTimeout, 1)]).await;
    });
}

#[test]
fn one_that_was_busy_a_moment_ago_is_not_taken_for_idle() {
    on_a_data_thread(async {
        let world = world(NO_TIMEOUTS).await;
        let _session = world.session().await;
        let table = &world.owners[0].table;
        let frozen = table.freeze(64, Duration::from_secs(3_600), &HashSet::new());
        assert!(frozen.carried.is_empty() && !frozen.is_full);
        assert_eq!(table.freeze(64, Duration::ZERO, &HashSet::new()).carried.len(), 1);
    });
}

#[test]
fn a_full_pipe_moves_with_its_bytes() {
    on_a_data_thread(async {
        let world = world(NO_TIMEOUTS).await;
        let (mut client, mut server) = world.session().await;
        let written = fill(&server).await;
        let frozen = world.owners[0].table.freeze(64, Duration::ZERO, &HashSet::new());
        assert!(frozen.carried[0].pipes[1].is_some(), "a stream that is held up is spliced");
        world.owners[0].table.resume(frozen.carried);
        world.transfer(0, false).await;
        server.shutdown().await.unwrap();
        world.transfer(1, false).await;
        let (bytes, end) = read_out(&mut client).await;
        assert_eq!((bytes.len(), end.unwrap()), (written, written));
        assert!(bytes.iter().all(|byte| *byte == 7));
        // Its other direction goes on, with a pipe of its own.
        let (up, expected) = (seeded(1, 1_000_000), seeded(1, 1_000_000));
        tokio::join!(send(client, up), check(server, expected));
        world.is_empty_with(&[(Reason::BackendClosed, 1)]).await;
    });
}

#[test]
fn a_reset_that_was_seen_before_the_move_is_a_reset_after_it() {
    on_a_data_thread(async {
        let world = world(NO_TIMEOUTS).await;
        let (mut client, server) = world.session().await;
        fill(&server).await;
        reset(server);
        // Its only owner so far has been told of the error by then, and the kernel tells it once.
        tokio::time::sleep(Duration::from_millis(50)).await;
        for from in [0, 1, 0] {
            world.transfer(from, false).await;
        }
        let (bytes, end) = read_out(&mut client).await;
        assert!(!bytes.is_empty() && is_reset(&end), "{} bytes, then {end:?}", bytes.len());
        world.is_empty_with(&[(Reason::BackendReset, 1)]).await;
    });
}

#[test]
fn an_end_while_nobody_looks_is_seen_after_the_move() {
    on_a_data_thread(async {
        let world = world(NO_TIMEOUTS).await;
        let (client, mut server) = world.session().await;
        let (mut other, gone) = world.session().await;
        let [giver, taker] = &world.owners;
        let carried = giver.table.freeze(64, Duration::ZERO, &HashSet::new()).carried;
        let ids: Vec<u64> = carried.iter().map(|carried| carried.id).collect();
        reset(client);
        drop(gone);
        tokio::time::sleep(Duration::from_millis(20)).await;
        carried.into_iter().for_each(|carried| taker.hold(carried));
        let named: Vec<(u64, u16)> = ids.iter().map(|id| (*id, THREAD)).collect();
        giver.table.release(&named, taker.generation);
        taker.table.start(&ids);
        assert!(is_reset(&read_out(&mut server).await.1));
        assert_eq!(other.read(&mut [0; 8]).await.unwrap(), 0);
        drop(other);
        world.is_empty_with(&[(Reason::BackendClosed, 1), (Reason::ClientReset, 1)]).await;
    });
}

#[test]
fn an_end_that_is_forced_while_it_is_held_comes_when_it_goes_on() {
    on_a_data_thread(async {
        let world = world(NO_TIMEOUTS).await;
        let (mut client, _server) = world.session().await;
        let (mut moves, mut stays) = world.session().await;
        let [giver, taker] = &world.owners;
        let mut carried = giver.table.freeze(64, Duration::ZERO, &HashSet::new()).carried;
        carried.sort_by_key(|carried| carried.id);
        let ids: Vec<u64> = carried.iter().map(|carried| carried.id).collect();
        let kept: Vec<Carried> = carried.iter().map(duplicate).collect();
        carried.into_iter().for_each(|carried| taker.hold(carried));
        assert_eq!(giver.table.close(&ids[..1], KILLED), 1);
        assert_eq!(taker.table.close(&ids, KILLED), 0, "they are not the taker's");
        assert_eq!(giver.table.measure_scope(&Scope::All).len(), 2);
        let named: Vec<(u64, u16)> = ids.iter().map(|id| (*id, THREAD)).collect();
        assert_eq!(giver.table.release(&named, taker.generation), &ids[1..], "one is to end here");
        assert_eq!(taker.table.start(&ids), 1);
        giver.table.resume(kept.into_iter().take(1).collect());
        assert!(is_reset(&read_out(&mut client).await.1));
        moves.write_all(b"on").await.unwrap();
        stays.read_exact(&mut [0; 2]).await.unwrap();
        assert_eq!(giver.table.close(&ids[1..], KILLED), 0, "it went");
        assert_eq!(taker.table.close(&ids[1..], KILLED), 1);
        world.is_empty_with(&[(Reason::AdminKilled, 2)]).await;
    });
}

#[test]
fn a_session_comes_and_goes_between_the_same_two() {
    on_a_data_thread(async {
        let world = world(NO_TIMEOUTS).await;
        let (mut client, mut server) = world.session().await;
        // No pause: the tasks of earlier stays have not run when the session is back.
        for n in 0..10 {
            let (giver, taker) = (&world.owners[n % 2], &world.owners[1 - n % 2]);
            let carried = giver.table.freeze(64, Duration::ZERO, &HashSet::new()).carried;
            let id = carried[0].id;
            carried.into_iter().for_each(|carried| taker.hold(carried));
            giver.table.release(&[(id, THREAD)], taker.generation);
            assert_eq!(taker.table.start(&[id]), 1, "round {n}");
        }
        client.write_all(b"here").await.unwrap();
        server.read_exact(&mut [0; 4]).await.unwrap();
        assert_eq!(world.established(), 1);
        drop(server);
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
        drop(client);
        world.is_empty_with(&[(Reason::BackendClosed, 1)]).await;
    });
}

/// A worker that was to take it, or gave it, may be stopped with its copies: then a close says nothing.
#[test]
fn its_end_is_seen_though_another_worker_still_has_copies() {
    for (moves, breaks) in [(false, false), (false, true), (true, false), (true, true)] {
        on_a_data_thread(async {
            let world = world(NO_TIMEOUTS).await;
            let (client, mut server) = world.session().await;
            let [giver, taker] = &world.owners;
            let carried = giver.table.freeze(64, Duration::ZERO, &HashSet::new()).carried;
            let copies: Vec<Carried> = carried.iter().map(duplicate).collect();
            if moves {
                let ids: Vec<u64> = carried.iter().map(|carried| carried.id).collect();
                carried.into_iter().for_each(|carried| taker.hold(carried));
                giver.table.release(&ids.iter().map(|id| (*id, THREAD)).collect::<Vec<_>>(), taker.generation);
                taker.table.start(&ids);
            } else {
                giver.table.resume(carried);
            }
            if breaks {
                reset(client);
                assert!(is_reset(&read_out(&mut server).await.1));
            } else {
                let mut client = client;
                client.shutdown().await.unwrap();
                assert_eq!(read_out(&mut server).await.1.unwrap(), 0);
                server.shutdown().await.unwrap();
                assert_eq!(read_out(&mut client).await.1.unwrap(), 0);
            }
            until(|| handoff::ledger::sessions(world.ledger.segments()).is_empty()).await;
            drop(copies);
        });
    }
}

#[test]
fn what_does_not_fit_is_refused_and_stays_where_it_is() {
    on_a_data_thread(async {
        let world = world(NO_TIMEOUTS).await;
        let (mut client, server) = world.session().await;
        let written = fill(&server).await;
        let [giver, taker] = &world.owners;
        let carried = giver.table.freeze(64, Duration::ZERO, &HashSet::new()).carried.remove(0);
        let refused = |change: &dyn Fn(&mut Carried)| {
            let mut copy = duplicate(&carried);
            change(&mut copy);
            let backend = Arc::new(Backend::new("one".into(), copy.state.backend.address));
            taker.table.hold(copy, &taker.terms, backend, &taker.book, &taker.listener, taker.seat()).unwrap_err()
        };
        assert!(matches!(refused(&|it| it.pipes[1] = None), NotHeld::Unfit(Unfit::Bytes { found: 0, .. })));
        assert!(matches!(refused(&|it| it.pipes[0] = it.client.try_clone().ok()), NotHeld::Unfit(Unfit::NoPipe(_))));
        assert!(matches!(refused(&|it| it.id += 1), NotHeld::Record(_)));
        assert!(matches!(refused(&|it| it.place.index += 1), NotHeld::Record(_)));
        assert_eq!(taker.census.live(), 0);
        giver.table.resume(vec![carried]);
        drop(server);
        let (bytes, end) = read_out(&mut client).await;
        assert_eq!((bytes.len(), end.is_ok()), (written, true));
        drop(client);
        world.is_empty_with(&[(Reason::BackendClosed, 1)]).await;
    });
}
