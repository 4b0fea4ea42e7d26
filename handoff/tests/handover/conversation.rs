//! Both roles over a real socket pair: everything arrives, and nothing is left open.

use std::os::fd::{AsFd, OwnedFd};

use handoff::HandoffError;
use handoff::channel::Channel;
use handoff::manifest::batches;
use handoff::memfile;
use handoff::message::Pulse;
use handoff::predecessor::{Down, Offer, Predecessor, Up};
use handoff::successor::{Accepted, Identity, Order, Reply, Successor};
use rustix::net::sockopt::socket_cookie;

use crate::harness::{Listeners, accept, alone, offer, soon, us};

pub(crate) fn channels() -> (Channel, Channel) {
    let (ours, theirs) = Channel::pair().unwrap();
    (Channel::new(ours, us()).unwrap(), Channel::new(theirs, us()).unwrap())
}

async fn take(channel: Channel) -> Accepted {
    let mut accepted = accept(channel, soon()).await.unwrap();
    accepted.successor.ready().await.unwrap();
    accepted
}

/// A generation in service.
async fn in_service(listeners: &Listeners) -> (Predecessor, Accepted) {
    let (ours, theirs) = channels();
    let lent = listeners.lent();
    let (offered, accepted) = tokio::join!(offer(ours, &lent, soon()), take(theirs));
    (offered.unwrap().0, accepted)
}

#[test]
fn f23_any_number_of_listeners_is_handed_over() {
    raise_limit();
    for count in [0, 1, 199, 200, 201, 1_000] {
        alone(async || hand_over(count).await);
    }
}

async fn hand_over(count: usize) {
    let (listeners, segments) = (Listeners::new(count), [b"zero", b"one "].map(|b| memfile::sealed("s", b).unwrap()));
    let (lent, segments) = (listeners.lent(), segments.each_ref().map(AsFd::as_fd));
    let plan = vec![0xff; 300_000];
    let offer = Offer { generation: 7, version: "1", build: "k", sockets: &lent, segments: &segments, plan: &plan };
    let (ours, theirs) = channels();
    let mut steps = Vec::new();
    let mut step = |name| steps.push(name);
    let (offered, accepted) = tokio::join!(Predecessor::offer(ours, &offer, soon(), &mut step), take(theirs));
    let (predecessor, hello) = offered.unwrap();
    assert_eq!(steps, ["hello", "offer", "ready"]);
    assert_eq!((hello.version.as_str(), hello.build.as_str(), hello.pid), ("1.2.4", "worker", std::process::id()));
    assert_eq!((predecessor.state(), accepted.successor.state()), ("ready", "ready"));
    assert_eq!((accepted.generation, accepted.plan), (7, plan));
    assert_eq!(accepted.sockets.len(), count);
    for ((offered, ours), (adopted, theirs)) in listeners.sockets.iter().zip(&accepted.sockets) {
        assert_eq!(offered, adopted);
        assert_eq!(socket_cookie(ours).unwrap(), socket_cookie(theirs).unwrap(), "the same socket, not a new one");
        assert!(rustix::io::fcntl_getfd(theirs).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }
    let bytes = accepted.segments.into_iter().map(|fd| memfile::read_sealed(fd, 4, 4).unwrap());
    assert_eq!(bytes.collect::<Vec<_>>(), [b"zero", b"one "]);
}

/// Ids and paths as long as they may be: a batch is then cut by bytes, not by number.
#[test]
fn long_ids_are_handed_over() {
    alone(async || {
        let mut listeners = Listeners::new(450);
        for (index, (entry, _)) in listeners.sockets.iter_mut().enumerate() {
            entry.id = format!("{index:0>4}{}", "\"".repeat(296));
        }
        let (_predecessor, accepted) = in_service(&listeners).await;
        let same = listeners.sockets.iter().zip(&accepted.sockets).all(|((ours, _), (theirs, _))| ours == theirs);
        assert!(same && accepted.sockets.len() == 450);
    });
}

#[test]
fn a_generation_serves_stands_by_and_serves_again() {
    alone(async || {
        let (mut keeper, mut accepted) = in_service(&Listeners::new(3)).await;
        let worker = &mut accepted.successor;
        for round in 0..3 {
            keeper.send(Down::Commit).await.unwrap();
            assert!(matches!(worker.next().await.unwrap(), Order::Commit));
            worker.send(Reply::Polling { first_poll_ns: round }).await.unwrap();
            assert_eq!(keeper.next().await.unwrap(), Up::Polling { first_poll_ns: round });
            assert_eq!((keeper.state(), worker.state()), ("serving", "serving"));
            keeper.send(Down::Stop).await.unwrap();
            assert!(matches!(worker.next().await.unwrap(), Order::Stop));
            worker.send(Reply::Heartbeat(Pulse { sessions: 9, ..Pulse::default() })).await.unwrap();
            worker.send(Reply::Stopped { last_poll_ns: round }).await.unwrap();
            assert_eq!(keeper.next().await.unwrap(), Up::Heartbeat(Pulse { sessions: 9, ..Pulse::default() }));
            assert_eq!(keeper.next().await.unwrap(), Up::Stopped { last_poll_ns: round });
            assert_eq!((keeper.state(), worker.state()), ("standby", "standby"));
        }
    });
}

#[test]
fn bodies_of_every_size_cross_both_ways() {
    alone(async || {
        let (mut keeper, mut accepted) = in_service(&Listeners::new(0)).await;
        let bodies = [Vec::new(), b"{\"a\":1}".to_vec(), vec![0xff; 5], vec![b'"'; 40_000], vec![b'x'; 5_000_000]];
        for (id, sent) in (0..).zip(&bodies) {
            keeper.send(Down::Order { id, body: sent }).await.unwrap();
            match accepted.successor.next().await.unwrap() {
                Order::Order { id: got, body } => assert!(got == id && body == *sent),
                other => panic!("{other:?}"),
            }
        }
        for (id, sent) in [4, 3, 2, 1, 0].into_iter().zip(bodies.iter().rev()) {
            accepted.successor.send(Reply::Answer { id, body: sent }).await.unwrap();
            assert_eq!(keeper.next().await.unwrap(), Up::Answer { id, body: sent.clone() });
            accepted.successor.send(Reply::Notice { body: sent }).await.unwrap();
            assert_eq!(keeper.next().await.unwrap(), Up::Notice { body: sent.clone() });
        }
        let large = vec![0; 64 * 1024 * 1024 + 1];
        assert!(matches!(keeper.send(Down::Order { id: 9, body: &large }).await, Err(HandoffError::System { .. })));
        keeper.send(Down::Order { id: 9, body: b"still works" }).await.unwrap();
    });
}

#[test]
fn listeners_and_segments_are_added_in_service() {
    alone(async || {
        let (mut keeper, mut accepted) = in_service(&Listeners::new(1)).await;
        let (later, segment) = (Listeners::new(250), memfile::sealed("s", b"next").unwrap());
        let lent = later.lent();
        for batch in batches(&lent) {
            keeper.send(Down::Sockets(batch)).await.unwrap();
        }
        keeper.send(Down::Segment { index: 4, fd: segment.as_fd() }).await.unwrap();
        let mut taken: Vec<(_, OwnedFd)> = Vec::new();
        for count in [200, 50] {
            match accepted.successor.next().await.unwrap() {
                Order::Sockets(sockets) => taken.extend(sockets),
                other => panic!("{other:?}"),
            }
            assert_eq!(keeper.next().await.unwrap(), Up::SocketsTaken { count });
        }
        assert!(taken.iter().zip(&later.sockets).all(|((theirs, _), (ours, _))| ours == theirs));
        match accepted.successor.next().await.unwrap() {
            Order::Segment { index, fd } => {
                assert_eq!((index, memfile::read_sealed(fd, 4, 4).unwrap()), (4, b"next".to_vec()));
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_word_out_of_turn_changes_nothing() {
    alone(async || {
        let (mut keeper, mut accepted) = in_service(&Listeners::new(1)).await;
        let worker = &mut accepted.successor;
        for wrong in [Down::Stop, Down::Sockets(&[])] {
            assert!(matches!(keeper.send(wrong).await, Err(HandoffError::OutOfTurn { step: "ready", .. })));
        }
        for wrong in [Reply::Polling { first_poll_ns: 1 }, Reply::Answer { id: 1, body: b"" }] {
            let error = worker.send(wrong).await.unwrap_err();
            assert!(error.to_string().starts_with("handoff protocol: "), "{error}");
        }
        assert!(worker.ready().await.is_err(), "ready is said once");
        keeper.send(Down::Commit).await.unwrap();
        assert!(matches!(worker.next().await.unwrap(), Order::Commit));
    });
}

/// `select!` drops the futures that lose; each is dropped here as often as there are chances to.
#[test]
fn dropped_futures_lose_nothing() {
    alone(async || {
        let (mut keeper, mut accepted) = in_service(&Listeners::new(1)).await;
        let (worker, later) = (&mut accepted.successor, Listeners::new(5));
        keeper.send(Down::Sockets(&later.lent())).await.unwrap();
        // Nobody reads the keeper's queue: the acknowledgement has to wait, with the sockets in hand.
        let flood = vec![b'x'; 30_000];
        while try_now(worker.send(Reply::Notice { body: &flood })).await {}
        let mut notices = 0;
        let sockets = loop {
            tokio::select! {
                biased;
                order = worker.next() => match order.unwrap() {
                    Order::Sockets(sockets) => break sockets,
                    other => panic!("{other:?}"),
                },
                up = keeper.next() => {
                    assert!(matches!(up.unwrap(), Up::Notice { body } if body == flood));
                    notices += 1;
                }
            }
        };
        assert!(notices > 0, "the acknowledgement had to wait");
        assert_eq!(sockets.len(), 5);
        while let up = keeper.next().await.unwrap()
            && up != (Up::SocketsTaken { count: 5 })
        {}
    });
}

/// Whether the future is done without waiting.
async fn try_now<T>(future: impl Future<Output = Result<T, HandoffError>>) -> bool {
    tokio::select! {
        biased;
        done = future => { done.unwrap(); true }
        () = tokio::task::yield_now() => false,
    }
}

#[test]
fn h6_one_id_for_two_sockets_is_never_offered() {
    alone(async || {
        let mut listeners = Listeners::new(3);
        listeners.sockets[2].0.id = "listener 0".to_owned();
        let (ours, theirs) = channels();
        let lent = listeners.lent();
        let (offered, accepted) = tokio::join!(offer(ours, &lent, soon()), accept(theirs, soon()));
        assert!(matches!(offered, Err(HandoffError::Duplicate { id }) if id == "listener 0"));
        assert!(matches!(accepted, Err(HandoffError::Gone { step: "hello" })));
    });
}

#[test]
fn a_keeper_that_goes_is_seen_at_once() {
    alone(async || {
        let (keeper, mut accepted) = in_service(&Listeners::new(2)).await;
        drop(keeper);
        assert!(matches!(accepted.successor.next().await, Err(HandoffError::Gone { step: "ready" })));
        let (mut keeper, accepted) = in_service(&Listeners::new(2)).await;
        drop(accepted);
        assert!(matches!(keeper.next().await, Err(HandoffError::Gone { step: "ready" })));
        assert!(matches!(keeper.send(Down::Commit).await, Err(HandoffError::Gone { step: "ready" })));
    });
}

#[test]
fn a_worker_of_another_generation_or_process_is_refused() {
    alone(async || {
        let (ours, theirs) = Channel::pair().unwrap();
        let stranger = handoff::channel::Peer { pid: Some(1), ..us() };
        let (ours, theirs) = (Channel::new(ours, stranger).unwrap(), Channel::new(theirs, us()).unwrap());
        let me = Identity { version: "1", build: "b" };
        let (offered, accepted) = tokio::join!(offer(ours, &[], soon()), Successor::accept(theirs, me, soon()));
        let text = offered.unwrap_err().to_string();
        assert!(text.contains("pid 1 of uid"), "{text}");
        let refused = accepted.unwrap_err();
        assert!(matches!(&refused, HandoffError::Refused { .. }), "{refused:?}");
    });
}

/// 1,000 listeners on both sides need some 2,000 descriptors.
fn raise_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
}
