//! Which backend a session gets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proxy::config::plan::BackendAdmin;
use proxy::observe::reason::{ConnectFailure, Reason};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::rig::*;

#[tokio::test]
async fn a_backend_that_refuses_is_passed_over() {
    let mut tasks = JoinSet::new();
    let (dead, alive) = (nobody(), echo(&mut tasks, "b").await);
    let rig = rig(&[dead, alive]).await;
    for _ in 0..10 {
        assert_eq!(read(&mut rig.client().await, 1).await, b"b");
    }
    assert!(rig.connect_failed(dead, ConnectFailure::Refused) >= 5);
    assert_eq!(rig.ended().await, [(Reason::ClientClosed, 10)]);
}

#[tokio::test]
async fn a_pool_without_enabled_backends_resets() {
    let (_listener, address) = backend().await;
    let rig = rig_with(&[address], |plan| plan.pools[0].backends[0].admin = BackendAdmin::Disabled).await;
    assert!(is_reset(&rig.is_turned_away().await));
    assert_eq!(rig.ended().await, [(Reason::NoBackend, 1)]);
}

#[tokio::test]
async fn sessions_are_shared_out_by_weight_exactly() {
    let mut tasks = JoinSet::new();
    let addresses = [echo(&mut tasks, "a").await, echo(&mut tasks, "b").await, echo(&mut tasks, "c").await];
    let weights = [4, 2, 1];
    let rig = rig_with(&addresses, |plan| {
        for (backend, weight) in plan.pools[0].backends.iter_mut().zip(weights) {
            backend.weight = weight;
        }
    })
    .await;
    let mut got = BTreeMap::<Vec<u8>, usize>::new();
    for _ in 0..70 {
        *got.entry(read(&mut rig.client().await, 1).await).or_default() += 1;
    }
    assert_eq!(got.into_values().collect::<Vec<_>>(), [40, 20, 10]);
}

#[tokio::test]
async fn the_source_address_is_used() {
    let (listener, address) = backend().await;
    let rig = rig_with(&[address], |plan| plan.pools[0].source = Some("127.0.0.77".parse().unwrap())).await;
    let (_client, server) = rig.pair(&listener).await;
    assert_eq!(server.peer_addr().unwrap().ip().to_string(), "127.0.0.77");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_swap_nobody_gets_the_old_pool_and_nobody_is_refused() {
    let mut tasks = JoinSet::new();
    let (old, new) = (echo(&mut tasks, "o").await, echo(&mut tasks, "n").await);
    let mut rig = rig(&[old]).await;
    rig.plan.pools.push(pool("new", &[new]));
    let stop = Arc::new(AtomicBool::new(false));
    let mut load = JoinSet::new();
    for _ in 0..4 {
        let (address, stop) = (rig.address, Arc::clone(&stop));
        load.spawn(async move {
            let mut served = 0;
            while !stop.load(Ordering::SeqCst) {
                let mut client = TcpStream::connect(address).await.unwrap();
                assert!(matches!(read(&mut client, 1).await.as_slice(), b"o" | b"n"));
                served += 1;
            }
            served
        });
    }
    for round in 0..20 {
        let (name, word) = if round % 2 == 0 { ("new", b"n") } else { ("pool", b"o") };
        rig.apply(|plan| plan.listeners[0].pool = name.into(), vec![]).await;
        for _ in 0..10 {
            assert_eq!(read(&mut rig.client().await, 1).await, word);
        }
    }
    stop.store(true, Ordering::SeqCst);
    assert!(load.join_all().await.iter().sum::<u32>() > 0);
    soon("all to end", rig.plane.emptied()).await;
    assert_eq!(rig.closed(Reason::ConnectFailed) + rig.closed(Reason::InternalError), 0);
}
