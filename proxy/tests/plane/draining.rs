//! Drain: nothing closed too early, the quiet before the busy, all gone at the timeout.

use std::time::{Duration, Instant};

use proxy::config::ForcedClose;
use proxy::observe::names;
use proxy::observe::reason::{Cause, Reason};
use proxy::session::Scope;
use proxy::worker::DrainOrder;
use tokio::task::JoinSet;

use crate::rig::*;

fn order(scope: Scope, timeout: u64, spread: u64) -> DrainOrder {
    DrainOrder {
        scope,
        timeout: Some(Duration::from_millis(timeout)),
        spread: Duration::from_millis(spread),
        close: ForcedClose::Reset,
        reason: Reason::DrainForced,
        cause: Cause::Drain,
        begun_ms: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quiet_go_before_the_busy_and_none_before_the_window() {
    let (listener, address) = backend().await;
    let rig = rig(&[address]).await;
    let mut peers = Vec::new();
    for n in 0..24 {
        let (client, server) = rig.pair(&listener).await;
        if n % 6 == 0 {
            // Its client does not read: bytes stay unsent.
            crate::bytes::write_until_full(&server).await;
        }
        peers.push((n % 6 == 0, client, server));
    }
    let begun = Instant::now();
    rig.plane.drain(order(Scope::All, 2_000, 1_000)).await;
    let mut ends = JoinSet::new();
    for (busy, client, server) in peers {
        ends.spawn(async move {
            if busy {
                // Not read, lest it be quiet: its end is seen at the other side.
                let mut server = server;
                let _ = read_out(&mut server).await;
                drop(client);
            } else {
                let mut client = client;
                let _ = read_out(&mut client).await;
                drop(server);
            }
            (busy, begun.elapsed())
        });
    }
    let mut ends = ends.join_all().await;
    ends.sort_by_key(|(_, at)| *at);
    let (first, last) = (ends[0].1, ends[23].1);
    assert!(first >= Duration::from_millis(1_000), "{first:?}");
    assert!(last <= Duration::from_millis(2_500), "{last:?}");
    assert!(last - first >= Duration::from_millis(700), "spread over the window: {first:?} to {last:?}");
    assert!(ends[..20].iter().all(|(busy, _)| !busy) && ends[20..].iter().all(|(busy, _)| *busy), "{ends:?}");
    assert_eq!(rig.ended().await, [(Reason::DrainForced, 24)]);
    assert_eq!(rig.counter(&names::process(), names::process::forced(Cause::Drain)), 24);
    assert!(rig.counter(&names::process(), names::process::forced_unsent(Cause::Drain)) > 0);
}

#[tokio::test]
async fn a_drain_of_a_listener_or_a_backend_leaves_the_others() {
    let ((one, one_address), (two, two_address)) = (backend().await, backend().await);
    let (second, second_address) = listening();
    let (first, first_address) = listening();
    let sockets = vec![(SOCKET.to_owned(), first), ("tcp:second".to_owned(), second)];
    let both = |plan: &mut proxy::config::plan::Plan| plan.listeners.push(listener("second", &["tcp:second"], "pool"));
    let mut rig = rig_on(&[one_address, two_address], sockets, first_address, both).await;
    rig.plane.poll().await.unwrap();
    // In turn: each listener has a session with each backend.
    let mut peers = vec![rig.pair(&one).await, rig.pair(&two).await];
    rig.address = second_address;
    peers.extend([rig.pair(&one).await, rig.pair(&two).await]);
    rig.established(4).await;

    rig.plane.drain(order(Scope::Backend { pool: "pool".into(), name: two_address.to_string() }, 0, 0)).await;
    until("two to be closed", || rig.plane.sessions() == 2).await;
    assert!(rig.sessions().iter().all(|it| it.backend_address == Some(one_address)));
    rig.plane.drain(order(Scope::Listener("second".into()), 0, 0)).await;
    until("one to be left", || rig.plane.sessions() == 1).await;
    assert_eq!(rig.sessions()[0].listener, LISTENER);
}

#[tokio::test]
async fn a_drain_without_timeout_closes_nothing() {
    let (listener, address) = backend().await;
    let rig = rig(&[address]).await;
    let (client, mut server) = rig.pair(&listener).await;
    rig.plane.drain(DrainOrder { timeout: None, ..order(Scope::All, 0, 0) }).await;
    drop(client);
    read_out(&mut server).await.1.unwrap();
    drop(server);
    assert_eq!(rig.ended().await, [(Reason::ClientClosed, 1)]);
}
