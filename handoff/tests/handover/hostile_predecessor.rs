//! The successor against a predecessor that hands over something else than it says, goes silent or goes away.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use handoff::HandoffError;
use handoff::channel::ChannelError;
use handoff::memfile;
use handoff::message::{Batch, Body, Message, Offered};
use tokio::time::Instant;

use crate::harness::{ByHand, Listeners, accept, alone, census, hello, soon};

/// The successor's error when the predecessor by hand announces two sockets and sends this.
async fn successor_meets(record: Message, fds: &[BorrowedFd<'_>]) -> (HandoffError, Option<String>) {
    let (peer, channel) = ByHand::new();
    let hand = async {
        offers(&peer, 2).await;
        peer.hands(&record, fds);
        peer.hears_refusal().await
    };
    let (accepted, told) = tokio::join!(accept(channel, soon()), hand);
    (accepted.unwrap_err(), told)
}

async fn offers(peer: &ByHand, sockets: u32) {
    peer.says(&Message::Hello(hello()));
    peer.hears("hello").await;
    peer.says(&Message::Offer(Offered { protocol: 1, sockets, segments: 0 }));
}

fn batch(listeners: &Listeners) -> Message {
    let entries = listeners.sockets.iter().map(|(entry, _)| entry.clone()).collect();
    Message::Batch(Batch { first: 0, entries })
}

#[test]
fn f28_h5_a_descriptor_that_is_not_the_announced_listener_is_refused() {
    type Imposter = fn() -> OwnedFd;
    let imposters: [(Imposter, &str); 6] = [
        (|| tempfile::tempfile().unwrap().into(), "a file"),
        (|| rustix::pipe::pipe().unwrap().1, "a pipe"),
        (|| UdpSocket::bind("127.0.0.1:0").unwrap().into(), "a datagram socket"),
        (connected, "a tcp4 socket that does not listen"),
        (|| TcpListener::bind("127.0.0.1:0").unwrap().into(), "127.0.0.1:"),
        (|| TcpListener::bind("[::1]:0").unwrap().into(), "tcp6"),
    ];
    for (imposter, found) in imposters {
        alone(async || {
            let (listeners, fake) = (Listeners::new(2), imposter());
            let (error, told) =
                successor_meets(batch(&listeners), &[fake.as_fd(), listeners.sockets[1].1.as_fd()]).await;
            let HandoffError::Mismatch { step: "offer", source } = &error else { panic!("{error:?}") };
            assert_eq!(source.id, "listener 0");
            assert!(source.found.contains(found), "{source}");
            assert_eq!(told.unwrap(), error.to_string(), "the keeper's report can name the listener");
        });
    }
}

fn connected() -> OwnedFd {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    TcpStream::connect(listener.local_addr().unwrap()).unwrap().into()
}

#[test]
fn f28_descriptors_in_another_order_are_refused() {
    alone(async || {
        let listeners = Listeners::new(2);
        let fds = [listeners.sockets[1].1.as_fd(), listeners.sockets[0].1.as_fd()];
        let (error, _) = successor_meets(batch(&listeners), &fds).await;
        assert!(matches!(error, HandoffError::Mismatch { .. }), "{error:?}");
    });
}

#[test]
fn f20_h3_a_wrong_number_of_descriptors_is_refused_with_both_numbers() {
    for count in [0, 1, 3, 253] {
        alone(async || {
            let listeners = Listeners::new(2);
            let fds = vec![listeners.sockets[0].1.as_fd(); count];
            let (error, told) = successor_meets(batch(&listeners), &fds).await;
            let text = format!("handoff protocol: record `batch` announces 2 descriptors and carries {count}");
            assert_eq!(error.to_string(), text);
            assert_eq!(told.unwrap(), text);
        });
    }
}

/// The receiver's limit is lowered so far that only some of the descriptors fit: the kernel then delivers a part.
#[test]
fn f20_h4_truncated_descriptors_are_closed_and_both_sides_are_told() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    alone(async || {
        let listeners = Listeners::new(100);
        let (peer, channel) = ByHand::new();
        let fds: Vec<_> = listeners.sockets.iter().map(|(_, fd)| fd.as_fd()).collect();
        let before = getrlimit(Resource::Nofile);
        let hand = async {
            offers(&peer, 100).await;
            let open = census().len() as u64;
            setrlimit(Resource::Nofile, Rlimit { current: Some(open + 10), ..before }).unwrap();
            peer.hands(&batch(&listeners), &fds);
            peer.hears_refusal().await
        };
        let (accepted, told) = tokio::join!(accept(channel, soon()), hand);
        setrlimit(Resource::Nofile, before).unwrap();
        let error = accepted.unwrap_err();
        let HandoffError::Channel { source: ChannelError::Truncated { expected: Some(100), got, .. }, .. } = &error
        else {
            panic!("{error:?}")
        };
        assert!(*got < 100 && told.unwrap().contains("of 100 arrived, limit of open files"));
    });
}

#[test]
fn h6_one_id_twice_is_refused_within_a_batch_and_across_batches() {
    alone(async || {
        let mut listeners = Listeners::new(2);
        listeners.sockets[1].0.id = "listener 0".to_owned();
        let fds: Vec<_> = listeners.sockets.iter().map(|(_, fd)| fd.as_fd()).collect();
        let (error, _) = successor_meets(batch(&listeners), &fds).await;
        assert!(matches!(error, HandoffError::Duplicate { id } if id == "listener 0"));
    });
    alone(async || {
        let listeners = Listeners::new(1);
        let (peer, channel) = ByHand::new();
        let (entry, fd) = &listeners.sockets[0];
        let hand = async {
            offers(&peer, 2).await;
            for first in 0..2 {
                peer.hands(&Message::Batch(Batch { first, entries: vec![entry.clone()] }), &[fd.as_fd()]);
            }
            peer.hears_refusal().await
        };
        let (accepted, told) = tokio::join!(accept(channel, soon()), hand);
        assert!(matches!(accepted, Err(HandoffError::Duplicate { .. })));
        assert_eq!(told.unwrap(), "listener listener 0 occurs twice");
    });
}

#[test]
fn h6_an_id_that_breaks_the_rules_is_refused() {
    for id in ["", "two\nlines", &"x".repeat(60_000)] {
        alone(async || {
            let mut listeners = Listeners::new(2);
            listeners.sockets[1].0.id = id.to_owned();
            let fds: Vec<_> = listeners.sockets.iter().map(|(_, fd)| fd.as_fd()).collect();
            let (error, _) = successor_meets(batch(&listeners), &fds).await;
            assert!(error.to_string().starts_with("handoff protocol: a listener id of"), "{error}");
        });
    }
}

#[test]
fn h2_a_predecessor_out_of_turn_is_refused() {
    let plan = || Message::Plan { body: Body::Text(String::new()) };
    let more = |sockets| Message::Offer(Offered { protocol: 1, sockets, segments: 0 });
    let taken = Message::BatchTaken { count: 2 };
    for word in [plan(), more(2), Message::Commit, Message::Ready, taken, Message::Hello(hello())] {
        alone(async || {
            let name = word.name();
            let (error, _) = successor_meets(word, &[]).await;
            assert!(matches!(&error, HandoffError::OutOfTurn { source, .. } if source.got == name), "{error:?}");
        });
    }
}

#[test]
fn an_offer_of_a_version_that_was_not_agreed_is_refused() {
    alone(async || {
        let (peer, channel) = ByHand::new();
        let hand = async {
            peer.says(&Message::Hello(hello()));
            peer.hears("hello").await;
            peer.says(&Message::Offer(Offered { protocol: 4, sockets: 0, segments: 0 }));
            peer.hears_refusal().await
        };
        let (accepted, _) = tokio::join!(accept(channel, soon()), hand);
        assert_eq!(accepted.unwrap_err().to_string(), "no common protocol version: ours 1 to 3, theirs 4");
    });
}

#[test]
fn f17_a_plan_that_can_change_or_lies_about_its_size_is_refused() {
    type Lie = fn() -> OwnedFd;
    let sealed: Lie = || memfile::sealed("plan", b"plan").unwrap();
    let open: Lie = || rustix::fs::memfd_create("plan", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let pipe: Lie = || rustix::pipe::pipe().unwrap().0;
    for (lie, len) in [(sealed, 5), (sealed, 3), (open, 0), (pipe, 4)] {
        alone(async || {
            let ((peer, channel), fd) = (ByHand::new(), lie());
            let hand = async {
                offers(&peer, 0).await;
                peer.hands(&Message::Plan { body: Body::File(len) }, &[fd.as_fd()]);
                peer.hears_refusal().await
            };
            let (accepted, told) = tokio::join!(accept(channel, soon()), hand);
            assert!(matches!(accepted, Err(HandoffError::Body { step: "offer", .. })));
            assert!(told.is_some());
        });
    }
}

#[test]
fn h9_a_predecessor_that_leaves_or_goes_silent_is_noticed() {
    for leaves in [true, false] {
        for steps in 0..3 {
            alone(async || {
                let listeners = Listeners::new(2);
                let (peer, channel) = ByHand::new();
                let deadline = if leaves { soon() } else { Instant::now() + Duration::from_millis(100) };
                let hand = async {
                    if steps >= 1 {
                        offers(&peer, 3).await;
                    }
                    if steps >= 2 {
                        let fds: Vec<_> = listeners.sockets.iter().map(|(_, fd)| fd.as_fd()).collect();
                        peer.hands(&batch(&listeners), &fds);
                        peer.hears("batch_taken").await;
                    }
                    (!leaves).then_some(peer)
                };
                let (accepted, _peer) = tokio::join!(accept(channel, deadline), hand);
                let (error, step) = (accepted.unwrap_err(), if steps == 0 { "hello" } else { "offer" });
                assert_eq!(error.step(), step);
                assert_eq!(matches!(error, HandoffError::Gone { .. }), leaves, "{error:?}");
                assert_eq!(matches!(error, HandoffError::Deadline { .. }), !leaves, "{error:?}");
            });
        }
    }
}

/// A listener added in service is verified like any other.
#[test]
fn a_later_batch_with_an_imposter_ends_the_conversation() {
    alone(async || {
        let (peer, channel) = ByHand::new();
        let hand = async {
            offers(&peer, 0).await;
            let plan = memfile::sealed("plan", b"").unwrap();
            peer.hands(&Message::Plan { body: Body::File(0) }, &[plan.as_fd()]);
            peer.hears("adopted").await;
            peer.hears("ready").await;
        };
        let worker = async {
            let mut accepted = accept(channel, soon()).await.unwrap();
            accepted.successor.ready().await.unwrap();
            accepted.successor
        };
        let ((), mut worker) = tokio::join!(hand, worker);
        let (listeners, fake) = (Listeners::new(2), TcpListener::bind("127.0.0.1:0").unwrap());
        peer.hands(&batch(&listeners), &[fake.as_fd(), listeners.sockets[1].1.as_fd()]);
        assert!(matches!(worker.next().await, Err(HandoffError::Mismatch { step: "ready", .. })));
        assert!(peer.hears_refusal().await.unwrap().contains("listener 0"));
    });
}
