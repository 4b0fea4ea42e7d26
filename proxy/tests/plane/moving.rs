//! Sessions that go from one plane to another, as from one worker to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use handoff::transfer::{self, Coming, Taker, Verdict};
use proxy::config::order::{Notice, left};
use proxy::config::plan::Plan;
use proxy::listener::names_of;
use proxy::observe::names;
use proxy::observe::reason::{Paused, Reason};
use proxy::worker::Plane;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::bytes::{check, send, write_until_full};
use crate::rig::{self, *};

/// What a giver has said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) moved: u64,
    pub(crate) left: BTreeMap<String, u64>,
    longest: Duration,
    over: bool,
}

/// A giver under way.
pub(crate) struct Path {
    notices: mpsc::Receiver<Notice>,
    stop: CancellationToken,
    pub(crate) tasks: JoinSet<()>,
}

impl Path {
    /// From one plane to whoever has the other end.
    pub(crate) fn from(giver: &Plane) -> (Self, OwnedFd) {
        let (give, take) = transfer::pair().unwrap();
        let (teller, notices) = mpsc::channel(4);
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(giver.give(1, give, teller, stop.clone()));
        (Self { notices, stop, tasks }, take)
    }

    pub(crate) fn between(giver: &Plane, taker: &Plane) -> Self {
        let (mut path, take) = Self::from(giver);
        path.tasks.spawn(taker.take(1, take));
        path
    }

    async fn said(&mut self) -> Said {
        match soon("a notice", self.notices.recv()).await.unwrap() {
            Notice::Moved { path, moved, left, longest_pause_us, over, .. } => {
                assert_eq!(path, 1);
                Said { moved, left, longest: Duration::from_micros(longest_pause_us), over }
            }
        }
    }

    /// Until both ends are over; gives the last word.
    pub(crate) async fn over(mut self) -> Said {
        let mut last = self.said().await;
        while !last.over {
            last = self.said().await;
        }
        soon("both ends", self.tasks.join_all()).await;
        last
    }
}

impl Rig {
    /// Another generation's plane over the same ledger, not polling.
    pub(crate) fn successor(&self, generation: u32, change: impl FnOnce(&mut Plan)) -> Plane {
        let mut plan = self.plan.clone();
        change(&mut plan);
        Plane::start(plan, generation, self.segments()).unwrap()
    }
}

async fn ended(rig: &Rig, other: &Plane) -> Vec<(Reason, u64)> {
    soon("the other's sessions to end", other.emptied()).await;
    rig.ended().await
}

pub(crate) fn whys(left: &[(&str, u64)]) -> BTreeMap<String, u64> {
    left.iter().map(|(why, n)| ((*why).to_owned(), *n)).collect()
}

const SESSIONS: u64 = 8;
/// So many that streams last longer than all moves, also where these are slow.
const BLOCKS: usize = 2048;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_go_on_while_their_sessions_move_to_and_fro() {
    let (listener, address) = backend().await;
    let rig = rig(&[address]).await;
    // Not as many threads, so each session finds another place.
    let other = rig.successor(2, |plan| plan.threads = 3);
    let mut tasks = JoinSet::new();
    for seed in 0..SESSIONS {
        let (client, server) = rig.pair(&listener).await;
        let (client_in, client_out) = client.into_split();
        let (server_in, server_out) = server.into_split();
        tasks.spawn(send(client_out, seed, BLOCKS, true));
        tasks.spawn(send(server_out, !seed, BLOCKS, false));
        tasks.spawn(check(server_in, seed, BLOCKS, true));
        tasks.spawn(check(client_in, !seed, BLOCKS, true));
    }
    until("all sessions", || rig.sessions().len() == 8).await;
    let before: Vec<_> = rig.sessions().into_iter().map(|it| (it.id, it.opened_ms, it.client)).collect();
    let (mut planes, mut moved) = ([&rig.plane, &other], 0);
    while moved < 10 * SESSIONS {
        let said = Path::between(planes[0], planes[1]).over().await;
        assert_eq!(said.left, BTreeMap::new());
        moved += said.moved;
        assert!(rig.sessions().len() > 1, "after {moved} moves the streams are over");
        planes.reverse();
    }
    let after = rig.sessions();
    assert!(after.iter().all(|it| before.contains(&(it.id, it.opened_ms, it.client))), "{after:?}");
    soon("streams", tasks.join_all()).await;
    let ended = ended(&rig, &other).await;
    assert_eq!(ended.iter().map(|(_, n)| n).sum::<u64>(), SESSIONS, "{ended:?}");
    assert!(ended.iter().all(|(why, _)| matches!(why, Reason::ClientClosed | Reason::BackendClosed)), "{ended:?}");
    let bytes = BLOCKS as u64 * 64 * 1024 * SESSIONS;
    assert_eq!(rig.counter(&names::listener(LISTENER), names::listener::RECEIVED), bytes);
    assert_eq!(rig.counter(&names::listener(LISTENER), names::listener::SENT), bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_move_in_batches_and_spread_over_the_threads() {
    let mut tasks = JoinSet::new();
    let address = echo(&mut tasks, "x").await;
    let rig = rig(&[address]).await;
    let other = rig.successor(2, |_| {});
    let mut clients = Vec::new();
    for _ in 0..200 {
        let mut client = rig.client().await;
        assert_eq!(read(&mut client, 1).await, b"x");
        clients.push(client);
    }
    let said = Path::between(&rig.plane, &other).over().await;
    assert_eq!((said.moved, said.left, rig.plane.sessions(), other.sessions()), (200, whys(&[]), 0, 200));
    assert!(said.longest > Duration::ZERO);
    let owners: Vec<_> = rig.sessions().iter().map(|it| (it.generation, it.thread)).collect();
    for thread in 0..2 {
        assert_eq!(owners.iter().filter(|owner| **owner == (2, thread)).count(), 100);
    }
    for client in &mut clients {
        client.write_all(b"y").await.unwrap();
        assert_eq!(read(client, 1).await, b"y");
    }
    drop(clients);
    assert_eq!(ended(&rig, &other).await, [(Reason::ClientClosed, 200)]);
}

/// Their segment is not the newest any more, and has 15 blocks for all who come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_move_to_more_threads_than_their_segment_has_blocks_for() {
    let mut tasks = JoinSet::new();
    let address = echo(&mut tasks, "x").await;
    let mut rig = rig_with(&[address], |plan| plan.threads = 1).await;
    let mut clients = Vec::new();
    for _ in 0..40 {
        let mut client = rig.client().await;
        assert_eq!(read(&mut client, 1).await, b"x");
        clients.push(client);
    }
    assert!(rig.ledger.ensure(&names_of(&rig.plan), 80, 64).unwrap());
    rig.plane.add_segment(rig.segments().pop().unwrap()).await.unwrap();
    // The earlier ones live on, as where some of their sessions could not go.
    let others: Vec<Plane> = (2..=5).map(|generation| rig.successor(generation, |plan| plan.threads = 20)).collect();
    let mut giver = &rig.plane;
    for (taker, threads) in others.iter().zip([7, 4, 2, 1]) {
        let said = Path::between(giver, taker).over().await;
        assert_eq!((said.moved, said.left, taker.sessions()), (40, whys(&[]), 40));
        let theirs: BTreeSet<u16> = rig.sessions().iter().map(|it| it.thread).collect();
        assert_eq!(theirs.len(), threads, "{theirs:?}");
        giver = taker;
    }
    drop(clients);
    assert_eq!(ended(&rig, giver).await, [(Reason::ClientClosed, 40)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_connecting_follows_once_it_is_established() {
    // A backend whose queue is full: the kernel drops what comes, and tries again after a second.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let filler = soon("the queue to be full", TcpStream::connect(address)).await.unwrap();
    let rig = rig(&[address]).await;
    let other = rig.successor(2, |_| {});
    let mut client = rig.client().await;
    until("a session", || rig.plane.sessions() == 1).await;
    let mut path = Path::between(&rig.plane, &other);
    let said = path.said().await;
    assert_eq!((said.moved, said.left, said.over), (0, whys(&[(left::CONNECTING, 1)]), false));
    // Room for it.
    drop((listener.accept().await.unwrap(), filler));
    let mut server = soon("session", listener.accept()).await.unwrap().0;
    assert_eq!(path.over().await.moved, 1);
    client.write_all(b"there").await.unwrap();
    assert_eq!(read(&mut server, 5).await, b"there");
    assert_eq!((rig.plane.sessions(), other.sessions()), (0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taker_at_its_limit_takes_what_exists_and_accepts_no_more() {
    let mut tasks = JoinSet::new();
    let address = echo(&mut tasks, "x").await;
    let rig = rig(&[address]).await;
    let mut other = rig.successor(2, |plan| plan.max_sessions = 5);
    let mut clients = Vec::new();
    for _ in 0..12 {
        let mut client = rig.client().await;
        assert_eq!(read(&mut client, 1).await, b"x");
        clients.push(client);
    }
    let said = Path::between(&rig.plane, &other).over().await;
    assert_eq!((said.moved, said.left), (12, whys(&[])));
    assert_eq!((rig.plane.sessions(), other.sessions()), (0, 12));
    for client in &mut clients {
        client.write_all(b"y").await.unwrap();
        assert_eq!(read(client, 1).await, b"y");
    }
    // The limit is for new ones, until enough have ended.
    let (socket, address) = listening();
    other.apply(Plan { max_sessions: 5, ..rig.plan.clone() }, vec![(SOCKET.into(), socket)]).await.unwrap();
    other.poll().await.unwrap();
    let mut waiting = soon("connect", TcpStream::connect(address)).await.unwrap();
    until("the limit is felt", || {
        rig.gauge(&names::listener(LISTENER), names::listener::paused(Paused::SessionLimit)) > 0
    })
    .await;
    assert_eq!(other.sessions(), 12);
    drop(clients);
    assert_eq!(read(&mut waiting, 1).await, b"x");
    drop(waiting);
    assert_eq!(ended(&rig, &other).await, [(Reason::ClientClosed, 13)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taker_that_does_not_answer_gets_nothing_until_it_does() {
    let mut tasks = JoinSet::new();
    let address = echo(&mut tasks, "x").await;
    let rig = rig(&[address]).await;
    let mut client = rig.client().await;
    assert_eq!(read(&mut client, 1).await, b"x");
    let (mut path, end) = Path::from(&rig.plane);
    let uid = nix::unistd::geteuid().as_raw();
    let mut taker = Taker::open(end, uid, 2, tokio::time::Instant::now() + DEADLINE).await.unwrap();
    let Coming::Offered { batch: 1, items } = soon("an offer", taker.next()).await.unwrap() else { panic!("no offer") };
    let begun = Instant::now();
    client.write_all(b"a").await.unwrap();
    assert_eq!(read(&mut client, 1).await, b"a", "it goes on where it was");
    assert!(begun.elapsed() > Duration::from_secs(1), "not before the taker had its time");
    let said = path.said().await;
    assert_eq!(said.left, whys(&[(left::TIMEOUT, 1)]));
    assert!(said.longest > Duration::from_secs(1), "a wait in vain is a pause too: {:?}", said.longest);
    // It sleeps on: meanwhile nothing stands still for its sake.
    let asleep = Instant::now();
    while asleep.elapsed() < Duration::from_millis(700) {
        client.write_all(b"b").await.unwrap();
        let begun = Instant::now();
        assert_eq!(read(&mut client, 1).await, b"b");
        assert!(begun.elapsed() < Duration::from_secs(1));
    }
    // It wakes and answers what it has read last; that is too late, and it is asked again.
    assert!(taker.taken(1, &[Verdict::Taken { thread: 0 }]).await.unwrap());
    drop(items);
    assert!(matches!(soon("a word", taker.next()).await.unwrap(), Coming::Withdraw { batch: 1 }));
    let Coming::Offered { batch: 2, items } = soon("an offer", taker.next()).await.unwrap() else { panic!("no offer") };
    assert_eq!(rig.sessions()[0].generation, 1, "nothing was given");
    // And dies.
    drop((taker, items));
    let said = path.over().await;
    assert_eq!((said.moved, said.left.values().sum::<u64>(), said.over), (0, 1, true));
    client.write_all(b"c").await.unwrap();
    assert_eq!(read(&mut client, 1).await, b"c");
    drop(client);
    assert_eq!(rig.ended().await, [(Reason::ClientClosed, 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_at_the_other_end_is_told_with_its_reason() {
    let (listener, address) = backend().await;
    let rig = rig(&[address]).await;
    let (mut client, mut server) = rig.pair(&listener).await;
    rig.established(1).await;
    let (path, end) = Path::from(&rig.plane);
    drop(end);
    assert_eq!(path.over().await.left, whys(&[(left::PEER_GONE, 1)]));
    let (path, _silent) = Path::from(&rig.plane);
    assert_eq!(path.over().await.left, whys(&[(left::TIMEOUT, 1)]));
    client.write_all(b"on").await.unwrap();
    assert_eq!(read(&mut server, 2).await, b"on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terms_that_the_taker_does_not_have_come_along() {
    let (listener, address) = backend().await;
    let half_close = Some(Duration::from_secs(1));
    let mut rig = rig_with(&[address], |plan| plan.listeners[0].timeouts.half_close = half_close).await;
    // Another listener, another pool, and neither of the first; the ledger knows their names before.
    let changed = Plan {
        listeners: vec![rig::listener("other", &["tcp:other"], "elsewhere")],
        pools: vec![pool("elsewhere", &[nobody()])],
        ..rig.plan.clone()
    };
    rig.ledger.ensure(&names_of(&changed), 4, 0).unwrap();
    let other = rig.successor(2, |plan| *plan = changed);
    let (mut client, mut server) = rig.pair(&listener).await;
    rig.established(1).await;
    assert_eq!(Path::between(&rig.plane, &other).over().await.moved, 1);
    server.write_all(b"still").await.unwrap();
    assert_eq!(read(&mut client, 5).await, b"still");
    let begun = Instant::now();
    client.shutdown().await.unwrap();
    assert!(is_reset(&read_out(&mut client).await.1), "its own time to stay half-closed");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(ended(&rig, &other).await, [(Reason::HalfCloseTimeout, 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_counts_in_the_segment_it_was_opened_in() {
    let mut tasks = JoinSet::new();
    let address = echo(&mut tasks, "x").await;
    let mut rig = rig(&[address]).await;
    let mut client = rig.client().await;
    assert_eq!(read(&mut client, 1).await, b"x");
    // More records than the first segment has.
    assert!(rig.ledger.ensure(&names_of(&rig.plan), 8, 100_000).unwrap());
    let other = rig.successor(2, |_| {});
    for (giver, taker) in [(&rig.plane, &other), (&other, &rig.plane)] {
        assert_eq!(Path::between(giver, taker).over().await.moved, 1);
        client.write_all(b"y").await.unwrap();
        assert_eq!(read(&mut client, 1).await, b"y");
    }
    // A byte is counted right after it was written: its reader may be faster.
    until("all bytes to be counted", || rig.sessions()[0].sent == 3).await;
    assert_eq!((rig.sessions()[0].id, rig.sessions()[0].received), (1, 2));
    assert_eq!(rig.gauge(&names::listener(LISTENER), names::listener::HELD), 1);
    drop(client);
    assert_eq!(ended(&rig, &other).await, [(Reason::ClientClosed, 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_is_stopped_leaves_every_session_with_one_owner() {
    let (listener, address) = backend().await;
    let rig = rig(&[address]).await;
    let other = rig.successor(2, |_| {});
    let mut peers = Vec::new();
    for n in 0..40 {
        let (client, server) = rig.pair(&listener).await;
        if n % 4 == 0 {
            write_until_full(&server).await;
        }
        peers.push((client, server));
    }
    rig.established(40).await;
    for round in 0..40_u64 {
        let planes = [(&rig.plane, &other), (&other, &rig.plane)];
        let (giver, taker) = planes[usize::from(round % 2 == 1)];
        let path = Path::between(giver, taker);
        tokio::time::sleep(Duration::from_micros(100 * round)).await;
        path.stop.cancel();
        let said = path.over().await;
        assert!(said.over);
        until("both to have 40", || rig.plane.sessions() + other.sessions() == 40).await;
    }
    for (client, server) in &mut peers {
        client.write_all(b"up").await.unwrap();
        assert_eq!(read(server, 2).await, b"up");
    }
    for (mut client, server) in peers {
        drop(server);
        read_out(&mut client).await.1.unwrap();
    }
    assert_eq!(ended(&rig, &other).await, [(Reason::BackendClosed, 40)]);
}

/// Not a check, but a figure: `cargo test --release -p proxyd-proxy --test plane -- --ignored --nocapture how_long`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn how_long_a_thousand_take() {
    let (listener, address) = backend().await;
    let rig = rig(&[address]).await;
    let other = rig.successor(2, |_| {});
    let mut peers = Vec::new();
    for _ in 0..1_000 {
        peers.push(rig.pair(&listener).await);
    }
    rig.established(1_000).await;
    let mut planes = [&rig.plane, &other];
    for _ in 0..10 {
        let begun = Instant::now();
        let said = Path::between(planes[0], planes[1]).over().await;
        println!("{} sessions in {:?}, none stood still for more than {:?}", said.moved, begun.elapsed(), said.longest);
        planes.reverse();
    }
    drop(peers);
    ended(&rig, &other).await;
}

/// As above: `busy` streams that never rest, and some that are idle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn how_long_the_busy_stand_still() {
    let (listener, address) = backend().await;
    let rig = rig(&[address]).await;
    let other = rig.successor(2, |_| {});
    let mut tasks = JoinSet::new();
    let mut peers = Vec::new();
    for n in 0..220 {
        let (client, server) = rig.pair(&listener).await;
        if n % 11 != 0 {
            peers.push((client, server));
            continue;
        }
        tasks.spawn(async move {
            let block = vec![7; 256 * 1024];
            let mut client = client;
            while client.write_all(&block).await.is_ok() {}
        });
        tasks.spawn(async move {
            let mut server = server;
            let _ = tokio::io::copy(&mut server, &mut tokio::io::sink()).await;
        });
    }
    rig.established(220).await;
    let mut planes = [&rig.plane, &other];
    for _ in 0..20 {
        let begun = Instant::now();
        let said = Path::between(planes[0], planes[1]).over().await;
        println!("{} sessions in {:?}, none stood still for more than {:?}", said.moved, begun.elapsed(), said.longest);
        planes.reverse();
    }
}
