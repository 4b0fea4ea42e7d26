//! Every byte, once, in order.

use std::os::fd::OwnedFd;

use proxy::observe::reason::Reason;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;

use crate::rig::*;

/// The `n`th block of a stream.
struct Seeded(fastrand::Rng);

impl Seeded {
    fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }
}

/// Both use blocks of the same size, whatever the reads and writes are.
const BLOCK: usize = 64 * 1024;

pub(crate) async fn send(mut to: impl AsyncWrite + Unpin, seed: u64, blocks: usize, pieces: bool) {
    let mut stream = Seeded::new(seed);
    let mut block = vec![0; BLOCK];
    for _ in 0..blocks {
        stream.fill(&mut block);
        let piece = if pieces { fastrand::usize(1..BLOCK) } else { BLOCK };
        for bytes in block.chunks(piece) {
            soon("room", to.write_all(bytes)).await.unwrap();
        }
    }
    to.shutdown().await.unwrap();
}

/// Checks all bytes and the end; a slow reader rests now and then.
pub(crate) async fn check(mut from: impl AsyncRead + Unpin, seed: u64, blocks: usize, slow: bool) {
    let mut stream = Seeded::new(seed);
    let (mut expected, mut block) = (vec![0; BLOCK], vec![0; BLOCK]);
    for n in 0..blocks {
        stream.fill(&mut expected);
        soon("bytes", from.read_exact(&mut block)).await.unwrap();
        assert!(block == expected, "block {n} differs");
        if slow && n % 16 == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
    assert_eq!(soon("end", from.read(&mut block)).await.unwrap(), 0, "the end comes after the last byte");
}

/// Writes until nothing more is taken, which is how long a reader that stopped lets it.
pub(crate) async fn write_until_full(stream: &TcpStream) -> usize {
    let block = vec![7; BLOCK];
    let mut written = 0;
    loop {
        match tokio::time::timeout(std::time::Duration::from_millis(300), stream.writable()).await {
            Ok(ready) => ready.unwrap(),
            Err(_) => return written,
        }
        match stream.try_write(&block) {
            Ok(n) => written += n,
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock),
        }
        assert!(written < 64 * 1024 * 1024, "a reader that stopped bounds what is taken for it");
    }
}

/// Both directions of `n` sessions at once, of so many blocks each.
async fn exchange(rig: &Rig, listener: &tokio::net::TcpListener, n: u64, blocks: usize, slow: bool) {
    let mut tasks = JoinSet::new();
    for seed in 0..n {
        let (client, server) = rig.pair(listener).await;
        let (client_in, client_out) = client.into_split();
        let (server_in, server_out) = server.into_split();
        tasks.spawn(send(client_out, seed, blocks, slow));
        tasks.spawn(send(server_out, !seed, blocks, !slow));
        tasks.spawn(check(server_in, seed, blocks, slow));
        tasks.spawn(check(client_in, !seed, blocks, slow));
    }
    tasks.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn big_streams_arrive_whole_both_ways() {
    let (listener, address) = backend().await;
    let rig = rig(&[address]).await;
    exchange(&rig, &listener, 4, 256, false).await;
    exchange(&rig, &listener, 4, 64, true).await;
    let ended = rig.ended().await;
    assert_eq!(ended.iter().map(|(_, n)| n).sum::<u64>(), 8);
    assert!(
        ended.iter().all(|(reason, _)| matches!(reason, Reason::ClientClosed | Reason::BackendClosed)),
        "{ended:?}"
    );
}

#[tokio::test]
async fn a_session_cut_in_mid_splice_leaves_nothing_for_the_next() {
    let (listener, address) = backend().await;
    // One thread: the next session would get the same pipes.
    let rig = rig_with(&[address], |plan| plan.threads = 1).await;
    for round in 0..4 {
        let (client, server) = rig.pair(&listener).await;
        write_until_full(if round % 2 == 0 { &client } else { &server }).await;
        // The pipe is full of this session's bytes; now either side breaks.
        let (breaks, stays) = if round < 2 { (client, server) } else { (server, client) };
        reset(breaks);
        drop(stays);
        soon("session to end", rig.plane.emptied()).await;
        exchange(&rig, &listener, 2, 64, false).await;
    }
    rig.ended().await;
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_at_once() {
    let mut tasks = JoinSet::new();
    let address = echo(&mut tasks, "220 ready").await;
    let rig = rig(&[address]).await;
    let mut client = rig.client().await;
    assert_eq!(read(&mut client, 9).await, b"220 ready");
    for n in 0..100_u8 {
        client.write_all(&[n; 10]).await.unwrap();
        assert_eq!(read(&mut client, 10).await, [n; 10]);
    }
    drop(client);
    assert_eq!(rig.ended().await, [(Reason::ClientClosed, 1)]);
}

#[tokio::test]
async fn an_urgent_byte_stops_nothing_and_is_not_lost() {
    let (listener, address) = backend().await;
    let rig = rig(&[address]).await;
    let (mut client, mut server) = rig.pair(&listener).await;
    client.write_all(b"before").await.unwrap();
    SockRef::from(&client).send_out_of_band(b"!").unwrap();
    client.write_all(b"after").await.unwrap();
    assert_eq!(read(&mut server, 12).await, b"before!after");
}

#[tokio::test]
async fn ipv6_and_unix_clients_are_served() {
    let mut tasks = JoinSet::new();
    let address = echo(&mut tasks, "hi").await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("front.sock");
    let unix = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    unix.set_nonblocking(true).unwrap();
    unix.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    unix.listen(16).unwrap();
    let (v6, v6_address) = listening_on("[::1]:0".parse().unwrap());
    let sockets = vec![("unix".to_owned(), OwnedFd::from(unix)), ("v6".to_owned(), v6)];
    let listeners =
        |plan: &mut proxy::config::plan::Plan| plan.listeners = vec![listener(LISTENER, &["unix", "v6"], "pool")];
    let mut rig = rig_on(&[address], sockets, v6_address, listeners).await;
    rig.plane.poll().await.unwrap();

    let mut client = rig.client().await;
    assert_eq!(read(&mut client, 2).await, b"hi");
    assert_eq!(rig.sessions()[0].client, Some(client.local_addr().unwrap()));
    drop(client);
    soon("session to end", rig.plane.emptied()).await;

    let mut client = soon("connect", UnixStream::connect(&path)).await.unwrap();
    client.write_all(b" there").await.unwrap();
    client.shutdown().await.unwrap();
    let mut bytes = Vec::new();
    soon("end", client.read_to_end(&mut bytes)).await.unwrap();
    assert_eq!(bytes, b"hi there");
    assert_eq!(rig.ended().await, [(Reason::ClientClosed, 2)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_over_a_unix_socket_arrives_whole() {
    let (listener_, address) = backend().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("front.sock");
    let unix = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    unix.set_nonblocking(true).unwrap();
    unix.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    unix.listen(16).unwrap();
    let listeners = |plan: &mut proxy::config::plan::Plan| plan.listeners = vec![listener(LISTENER, &["unix"], "pool")];
    let mut rig = rig_on(&[address], vec![("unix".to_owned(), unix.into())], address, listeners).await;
    rig.plane.poll().await.unwrap();
    let client = soon("connect", UnixStream::connect(&path)).await.unwrap();
    let server = soon("session", listener_.accept()).await.unwrap().0;
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    let mut tasks = JoinSet::new();
    tasks.spawn(send(client_out, 1, 128, false));
    tasks.spawn(send(server_out, 2, 128, false));
    tasks.spawn(check(server_in, 1, 128, true));
    tasks.spawn(check(client_in, 2, 128, false));
    tasks.join_all().await;
    rig.ended().await;
}
