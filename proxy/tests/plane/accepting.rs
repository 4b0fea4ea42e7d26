//! Listening sockets: limits, hand-over, removal.

use std::time::Duration;

use handoff::ledger::{Ledger, Sizes};
use proxy::listener::names_of;
use proxy::observe::names;
use proxy::observe::reason::{Paused, Reason};
use proxy::worker::{Plane, PlaneError};
use tokio::task::JoinSet;

use crate::rig::*;

#[tokio::test]
async fn beyond_the_limit_of_a_listener_connections_wait() {
    let mut tasks = JoinSet::new();
    let address = echo(&mut tasks, "x").await;
    let rig = rig_with(&[address], |plan| plan.listeners[0].max_sessions = Some(3)).await;
    limit_holds(&rig, Paused::ListenerLimit).await;
}

#[tokio::test]
async fn beyond_the_limit_of_the_process_connections_wait() {
    let mut tasks = JoinSet::new();
    let address = echo(&mut tasks, "x").await;
    let rig = rig_with(&[address], |plan| plan.max_sessions = 3).await;
    limit_holds(&rig, Paused::SessionLimit).await;
}

async fn limit_holds(rig: &Rig, why: Paused) {
    let paused = || rig.gauge(&names::listener(LISTENER), names::listener::paused(why));
    let mut served = Vec::new();
    for _ in 0..3 {
        let mut client = rig.client().await;
        read(&mut client, 1).await;
        served.push(client);
    }
    let mut waiting = JoinSet::new();
    for _ in 0..5 {
        let mut client = rig.client().await;
        waiting.spawn(async move { read(&mut client, 1).await });
    }
    until("the pause to be shown", || paused() > 0).await;
    assert!(waiting.try_join_next().is_none());
    assert_eq!(rig.plane.sessions(), 3);
    drop(served);
    while let Some(read) = soon("those that wait to be served", waiting.join_next()).await {
        assert_eq!(read.unwrap(), b"x");
    }
    until("no pause", || paused() == 0).await;
    assert_eq!(rig.ended().await, [(Reason::ClientClosed, 8)]);
}

#[tokio::test]
async fn without_a_free_record_a_client_waits() {
    let mut tasks = JoinSet::new();
    let address = echo(&mut tasks, "x").await;
    let (socket, front) = listening();
    let plan = plan(vec![pool("pool", &[address])]);
    let mut ledger = Ledger::create(Sizes { names: 64, counters: 2048, gauges: 512, blocks: 8, records: 2 }).unwrap();
    assert!(!ledger.ensure(&names_of(&plan), 4, 2).unwrap());
    let mut plane = Plane::start(plan.clone(), 1, ledger.segments().to_vec()).unwrap();
    plane.apply(plan.clone(), vec![(SOCKET.into(), socket)]).await.unwrap();
    plane.poll().await.unwrap();
    let rig = Rig { ledger, plan, plane, address: front };
    let (mut first, mut second) = (rig.client().await, rig.client().await);
    read(&mut first, 1).await;
    read(&mut second, 1).await;
    let mut third = rig.client().await;
    let paused = || rig.gauge(&names::listener(LISTENER), names::listener::paused(Paused::SessionLimit));
    until("the pause to be shown", || paused() > 0).await;
    drop(first);
    assert_eq!(read(&mut third, 1).await, b"x");
    drop((second, third));
    assert_eq!(rig.ended().await, [(Reason::ClientClosed, 3)]);
}

/// Names have other numbers there.
#[tokio::test]
async fn a_client_that_waits_for_a_record_begins_in_a_segment_that_was_added() {
    let mut tasks = JoinSet::new();
    let address = echo(&mut tasks, "x").await;
    let (socket, front) = listening();
    let mut plan = plan(vec![pool("pool", &[address])]);
    plan.threads = 1;
    let names = names_of(&plan);
    let mut ledger = Ledger::create(Sizes { names: 64, counters: 2048, gauges: 512, blocks: 8, records: 1 }).unwrap();
    assert!(!ledger.ensure(&names, 4, 1).unwrap());
    let mut plane = Plane::start(plan.clone(), 1, ledger.segments().to_vec()).unwrap();
    plane.apply(plan.clone(), vec![(SOCKET.into(), socket)]).await.unwrap();
    plane.poll().await.unwrap();
    let mut rig = Rig { ledger, plan, plane, address: front };
    let (mut first, mut second) = (rig.client().await, rig.client().await);
    read(&mut first, 1).await;
    let paused = || rig.gauge(&names::listener(LISTENER), names::listener::paused(Paused::SessionLimit));
    until("the pause to be shown", || paused() > 0).await;
    let others: Vec<_> = names.into_iter().rev().collect();
    assert!(rig.ledger.ensure(&others, 4, 8).unwrap());
    rig.plane.add_segment(rig.segments().pop().unwrap()).await.unwrap();
    assert_eq!(read(&mut second, 1).await, b"x");
    let sessions = rig.sessions();
    let told: Vec<_> = sessions.iter().map(|it| (it.listener.as_str(), it.pool.as_str())).collect();
    assert_eq!(told, [(LISTENER, "pool"); 2]);
    drop((first, second));
    assert_eq!(rig.ended().await, [(Reason::ClientClosed, 2)]);
}

#[tokio::test]
async fn what_is_queued_when_one_stops_is_served_by_the_next() {
    let mut tasks = JoinSet::new();
    let address = echo(&mut tasks, "x").await;
    let (socket, front) = listening();
    let copy = socket.try_clone().unwrap();
    let mut rig = rig_on(&[address], vec![(SOCKET.into(), socket)], front, |_| {}).await;
    let first = rig.plane.poll().await.unwrap();
    let mut old = rig.client().await;
    read(&mut old, 1).await;
    let last = rig.plane.stop().await.unwrap();
    assert!(last > first);
    let mut queued = Vec::new();
    for _ in 0..20 {
        queued.push(rig.client().await);
    }
    let mut next = Plane::start(rig.plan.clone(), 2, rig.segments()).unwrap();
    next.apply(rig.plan.clone(), vec![(SOCKET.into(), copy)]).await.unwrap();
    assert!(next.poll().await.unwrap() >= last);
    for client in &mut queued {
        assert_eq!(read(client, 1).await, b"x");
    }
    assert_eq!((rig.plane.sessions(), next.sessions()), (1, 20));
    let generations = rig.sessions().into_iter().filter(|it| it.generation == 2).count();
    assert_eq!(generations, 20);
    // Back again, as at a rollback: the old one still can.
    next.stop().await.unwrap();
    rig.plane.poll().await.unwrap();
    read(&mut rig.client().await, 1).await;
    drop((old, queued));
    soon("the next to end", next.emptied()).await;
    soon("the old to end", rig.plane.emptied()).await;
}

#[tokio::test]
async fn at_a_shutdown_the_queue_is_served() {
    let mut tasks = JoinSet::new();
    let address = echo(&mut tasks, "x").await;
    let mut rig = rig(&[address]).await;
    rig.plane.stop().await.unwrap();
    let mut queued = Vec::new();
    for _ in 0..50 {
        queued.push(rig.client().await);
    }
    rig.plane.accept_queue(DEADLINE).await.unwrap();
    assert_eq!(rig.plane.sessions(), 50);
    for client in &mut queued {
        assert_eq!(read(client, 1).await, b"x");
    }
}

#[tokio::test]
async fn a_listener_that_is_removed_leaves_no_copy_and_one_that_is_added_serves() {
    let mut tasks = JoinSet::new();
    let address = echo(&mut tasks, "x").await;
    let mut rig = rig(&[address]).await;
    let (mut kept, front) = (rig.client().await, rig.address);
    read(&mut kept, 1).await;
    let (added, added_address) = listening();
    let change =
        |plan: &mut proxy::config::plan::Plan| plan.listeners = vec![listener("second", &["tcp:second"], "pool")];
    rig.apply(change, vec![("tcp:second".into(), added)]).await;
    let refused = tokio::net::TcpStream::connect(front).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "no duplicate is left");
    rig.address = added_address;
    assert_eq!(read(&mut rig.client().await, 1).await, b"x");
    tokio::io::AsyncWriteExt::write_all(&mut kept, b"still").await.unwrap();
    assert_eq!(read(&mut kept, 5).await, b"still");
}

#[tokio::test]
async fn a_plan_that_cannot_be_is_refused_and_changes_nothing() {
    let mut tasks = JoinSet::new();
    let address = echo(&mut tasks, "x").await;
    let mut rig = rig(&[address]).await;
    let mut without_socket = rig.plan.clone();
    without_socket.listeners[0].sockets.push("tcp:missing".into());
    assert!(
        matches!(rig.plane.apply(without_socket, vec![]).await, Err(PlaneError::NoSocket(id)) if id == "tcp:missing")
    );
    let mut without_name = rig.plan.clone();
    without_name.pools.push(pool("unnamed", &[address]));
    assert!(
        matches!(rig.plane.apply(without_name, vec![]).await, Err(PlaneError::NoName { text, .. }) if text == "unnamed")
    );
    let mut without_pool = rig.plan.clone();
    without_pool.listeners[0].pool = "none".into();
    assert!(rig.plane.apply(without_pool, vec![]).await.is_err());
    let blocking = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut with_blocking = rig.plan.clone();
    with_blocking.listeners[0].sockets.push("tcp:b".into());
    let sockets = vec![("tcp:b".to_owned(), blocking.into())];
    assert!(matches!(rig.plane.apply(with_blocking, sockets).await, Err(PlaneError::Socket { .. })));
    assert_eq!(read(&mut rig.client().await, 1).await, b"x");
}

#[tokio::test]
async fn new_sessions_are_written_into_a_new_segment() {
    let mut tasks = JoinSet::new();
    let address = echo(&mut tasks, "x").await;
    let mut rig = rig(&[address]).await;
    let mut old = rig.client().await;
    read(&mut old, 1).await;
    assert!(rig.ledger.ensure(&names_of(&rig.plan), 4, 10_000).unwrap(), "a segment was added");
    let segment = rig.segments().pop().unwrap();
    rig.plane.add_segment(segment.clone()).await.unwrap();
    let mut new = rig.client().await;
    read(&mut new, 1).await;
    assert_eq!(rig.sessions().len(), 2);
    let in_new = handoff::ledger::sessions(std::slice::from_ref(&segment));
    assert_eq!(in_new.len(), 1);
    assert_eq!(in_new[0].backend, names::backend("pool", &address.to_string()).text);
    drop((old, new));
    assert_eq!(rig.ended().await, [(Reason::ClientClosed, 2)]);
    tokio::time::timeout(Duration::ZERO, rig.plane.emptied()).await.unwrap();
}
