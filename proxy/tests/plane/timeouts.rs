//! Sessions that are ended because nothing happens, or for too long.

use std::time::{Duration, Instant};

use proxy::config::Timeouts;
use proxy::observe::reason::{ConnectFailure, Reason};
use tokio::io::AsyncWriteExt;

use crate::rig::*;

const SHORT: Option<Duration> = Some(Duration::from_millis(200));
const OFF: Timeouts = Timeouts { idle: None, half_close: None, max_lifetime: None };

#[tokio::test]
async fn an_idle_session_is_ended_and_traffic_keeps_one_alive() {
    let (listener, address) = backend().await;
    let timeouts = Timeouts { idle: SHORT, ..OFF };
    let rig = rig_with(&[address], |plan| plan.listeners[0].timeouts = timeouts).await;
    let (mut client, mut server) = rig.pair(&listener).await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(600) {
        client.write_all(b"x").await.unwrap();
        read(&mut server, 1).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(rig.plane.sessions(), 1);
    let last = Instant::now();
    assert!(is_reset(&read_out(&mut client).await.1));
    assert!(last.elapsed() > Duration::from_millis(150), "{:?}", last.elapsed());
    assert_eq!(rig.ended().await, [(Reason::IdleTimeout, 1)]);
}

#[tokio::test]
async fn a_half_closed_session_is_ended_when_the_other_half_is_quiet() {
    let (listener, address) = backend().await;
    let timeouts = Timeouts { half_close: SHORT, ..OFF };
    let rig = rig_with(&[address], |plan| plan.listeners[0].timeouts = timeouts).await;
    let (open, _server) = rig.pair(&listener).await;
    let (mut client, mut server) = rig.pair(&listener).await;
    client.shutdown().await.unwrap();
    read_out(&mut server).await.1.unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(600) {
        server.write_all(b"x").await.unwrap();
        read(&mut client, 1).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(is_reset(&read_out(&mut client).await.1));
    until("one to be left", || rig.plane.sessions() == 1).await;
    assert_eq!(rig.closed(Reason::HalfCloseTimeout), 1);
    drop(open);
}

#[tokio::test]
async fn a_session_ends_at_its_age() {
    let (listener, address) = backend().await;
    let timeouts = Timeouts { max_lifetime: SHORT, ..OFF };
    let rig = rig_with(&[address], |plan| plan.listeners[0].timeouts = timeouts).await;
    let begun = Instant::now();
    let (mut client, mut server) = rig.pair(&listener).await;
    let cut = soon("the cut", async {
        loop {
            if client.write_all(b"x").await.is_err()
                || tokio::io::AsyncReadExt::read(&mut server, &mut [0]).await.is_err()
            {
                return begun.elapsed();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(cut.await > Duration::from_millis(150));
    assert_eq!(rig.ended().await, [(Reason::MaxLifetime, 1)]);
}

#[tokio::test]
async fn a_connect_that_nobody_answers_times_out_and_a_client_that_leaves_ends_it() {
    // A listener with a full queue drops what more comes.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let full = socket.local_addr().unwrap().as_socket().unwrap();
    let _fills = tokio::net::TcpStream::connect(full).await.unwrap();
    let rig = rig_with(&[full], |plan| plan.pools[0].connect_timeout = Duration::from_millis(700)).await;
    let mut patient = rig.client().await;
    let impatient = rig.client().await;
    until("both to connect", || rig.sessions().len() == 2).await;
    let begun = Instant::now();
    reset(impatient);
    until("one to be left", || rig.plane.sessions() == 1).await;
    assert!(begun.elapsed() < Duration::from_millis(500), "at once, not at the timeout");
    assert!(is_reset(&read_out(&mut patient).await.1));
    assert_eq!(rig.ended().await, [(Reason::ClientReset, 1), (Reason::ConnectTimeout, 1)]);
    assert_eq!(rig.connect_failed(full, ConnectFailure::Timeout), 1);
}

#[tokio::test]
async fn a_peer_that_takes_nothing_for_the_user_timeout_ends_its_session() {
    let (listener, address) = backend().await;
    let rig = rig_with(&[address], |plan| plan.listeners[0].tcp.user_timeout = SHORT).await;
    let (client, mut server) = rig.pair(&listener).await;
    crate::bytes::write_until_full(&server).await;
    assert!(is_reset(&read_out(&mut server).await.1));
    assert_eq!(rig.ended().await, [(Reason::UserTimeout, 1)]);
    drop(client);
}
