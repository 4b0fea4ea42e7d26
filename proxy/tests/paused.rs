//! A listener that can't accept waits without burning time: alone in its process, whose descriptors and CPU are measured.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "plane/rig.rs"]
#[expect(dead_code, reason = "this test needs less of it")]
mod rig;

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use proxy::observe::names;
use proxy::observe::reason::{Paused, Reason};
use rig::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

/// CPU that this process uses within half a second.
async fn cpu_in_half_a_second() -> Duration {
    let used = || Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap();
    let (before, begun) = (used(), Instant::now());
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(begun.elapsed() >= Duration::from_millis(500));
    used() - before
}

#[tokio::test]
async fn without_descriptors_or_room_it_waits_and_then_serves() {
    let mut tasks = JoinSet::new();
    let address = echo(&mut tasks, "x").await;
    let (first, first_address) = listening();
    let (second, second_address) = listening();
    let sockets = vec![(SOCKET.to_owned(), first), ("tcp:second".to_owned(), second)];
    let both = |plan: &mut proxy::config::plan::Plan| {
        plan.threads = 1;
        plan.listeners = vec![listener(LISTENER, &[SOCKET, "tcp:second"], "pool")];
    };
    let mut rig = rig_on(&[address], sockets, first_address, both).await;
    rig.plane.poll().await.unwrap();
    let paused = |why| rig.gauge(&names::listener(LISTENER), names::listener::paused(why));

    let [one, two] = [(); 2].map(|()| TcpSocket::new_v4().unwrap());
    let before = getrlimit(Resource::Nofile);
    // The kernel gives the lowest number that is free: none is left below the limit then.
    let next = u64::try_from(std::fs::File::open("/dev/null").unwrap().as_raw_fd()).unwrap();
    setrlimit(Resource::Nofile, Rlimit { current: Some(next), ..before }).unwrap();
    let mut one = soon("connect", one.connect(first_address)).await.unwrap();
    let mut two = soon("connect", two.connect(second_address)).await.unwrap();
    until("both to be paused", || paused(Paused::Descriptors) == 2).await;
    assert!(cpu_in_half_a_second().await < Duration::from_millis(100));
    setrlimit(Resource::Nofile, before).unwrap();
    assert_eq!(read(&mut one, 1).await, b"x");
    assert_eq!(read(&mut two, 1).await, b"x");
    until("no pause", || paused(Paused::Descriptors) == 0).await;

    // Two loops at the limit of their listener must not wake each other.
    rig.apply(|plan| plan.listeners[0].max_sessions = Some(2), vec![]).await;
    let mut waiting = [
        soon("connect", tokio::net::TcpStream::connect(first_address)).await.unwrap(),
        soon("connect", tokio::net::TcpStream::connect(second_address)).await.unwrap(),
    ];
    let paused = |why| rig.gauge(&names::listener(LISTENER), names::listener::paused(why));
    until("both to be paused", || paused(Paused::ListenerLimit) == 2).await;
    assert!(cpu_in_half_a_second().await < Duration::from_millis(100));
    drop((one, two));
    for client in &mut waiting {
        assert_eq!(read(client, 1).await, b"x");
    }
    drop(waiting);
    assert_eq!(rig.ended().await, [(Reason::ClientClosed, 4)]);
}
