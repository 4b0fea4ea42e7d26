//! The predecessor against a successor that talks nonsense, goes silent or goes away, at each step.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use handoff::HandoffError;
use handoff::channel::ChannelError;
use handoff::manifest::Entry;
use handoff::message::{Batch, Budget, Hello, Message, Pulse, Range};
use tokio::time::Instant;

use crate::harness::{ByHand, Listeners, alone, hello, offer, soon};

/// How far the peer plays along before it does its worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Until {
    Nothing,
    Hello,
    Batch,
    Plan,
    Adopted,
}

/// What it does then.
enum Worst {
    Says(Message),
    Writes(Vec<u8>),
    /// A record with this many descriptors.
    Hands(Message, usize),
    Leaves,
    Silence,
}

/// A successor by hand, as far as it plays along; gives what it was told of the sockets.
async fn play_successor(peer: &ByHand, until: Until) -> Vec<OwnedFd> {
    peer.hears("hello").await;
    if until >= Until::Hello {
        peer.says(&Message::Hello(hello()));
        peer.hears("offer").await;
    }
    let mut adopted = None;
    let mut held = Vec::new();
    if until >= Until::Batch {
        match peer.hears("batch").await {
            (Message::Batch(batch), fds) => (adopted, held) = (Some(batch), fds),
            other => panic!("{other:?}"),
        }
        peer.says(&Message::BatchTaken { count: 2 });
    }
    if until >= Until::Plan {
        peer.hears("plan").await;
    }
    if until >= Until::Adopted {
        peer.says(&Message::Adopted(adopted.unwrap()));
    }
    held
}

/// The predecessor's error when its successor does its worst, and what the successor is told.
async fn predecessor_meets(until: Until, worst: Worst) -> (HandoffError, Option<String>) {
    let listeners = Listeners::new(2);
    let lent = listeners.lent();
    let (peer, channel) = ByHand::new();
    let deadline = if matches!(worst, Worst::Silence) { Instant::now() + Duration::from_millis(100) } else { soon() };
    let hand = async {
        let held = play_successor(&peer, until).await;
        let told = do_worst(peer, worst).await;
        drop(held);
        told
    };
    let (offered, told) = tokio::join!(offer(channel, &lent, deadline), hand);
    (offered.unwrap_err(), told)
}

async fn do_worst(peer: ByHand, worst: Worst) -> Option<String> {
    let file = tempfile::tempfile().unwrap();
    match worst {
        Worst::Says(message) => peer.says(&message),
        Worst::Writes(bytes) => peer.writes(&bytes, &[]),
        Worst::Hands(message, count) => peer.hands(&message, &vec![file.as_fd(); count]),
        Worst::Leaves => return None,
        Worst::Silence => {}
    }
    peer.hears_refusal().await
}

const STEPS: [(Until, &str); 5] = [
    (Until::Nothing, "hello"),
    (Until::Hello, "offer"),
    (Until::Batch, "offer"),
    (Until::Plan, "offer"),
    (Until::Adopted, "ready"),
];

#[test]
fn f01_f16_a_successor_that_leaves_is_gone_at_that_step() {
    for (until, step) in STEPS {
        alone(async || {
            let (error, _) = predecessor_meets(until, Worst::Leaves).await;
            assert!(matches!(error, HandoffError::Gone { step: at } if at == step), "{until:?}: {error:?}");
        });
    }
}

#[test]
fn h9_a_silent_successor_meets_the_deadline_at_each_step() {
    for (until, step) in STEPS {
        alone(async || {
            let (error, told) = predecessor_meets(until, Worst::Silence).await;
            let timely = matches!(&error, HandoffError::Deadline { step: at, after }
                if *at == step && *after >= Duration::from_millis(99) && *after < Duration::from_secs(10));
            assert!(timely, "{until:?}: {error:?}");
            assert!(told.unwrap().contains("no answer"));
        });
    }
}

#[test]
fn f17_h1_garbage_is_refused_at_each_step() {
    for (until, step) in STEPS {
        for bytes in [
            b"\x7fELF".to_vec(),
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            vec![0xff; 60_000],
            vec![b'['; 60_000],
            vec![b' '; 65_537],
            br#"{"type":"ready"}{"type":"ready"}"#.to_vec(),
            br#"{"type":"ready","required":["teleport"]}"#.to_vec(),
            br#"{"type":"teleport"}"#.to_vec(),
        ] {
            alone(async || {
                let (error, told) = predecessor_meets(until, Worst::Writes(bytes)).await;
                let HandoffError::Channel { step: at, source: ChannelError::Codec(_) } = &error else {
                    panic!("{until:?}: {error:?}")
                };
                assert_eq!(*at, step);
                assert!(error.to_string().starts_with("handoff protocol: "), "{error}");
                assert_eq!(told.unwrap(), error.to_string(), "both sides give the same reason");
            });
        }
    }
}

#[test]
fn h2_a_word_in_the_wrong_state_is_refused() {
    let ready = || Message::Ready;
    let taken = |count| Message::BatchTaken { count };
    let adopted = |first| Message::Adopted(Batch { first, entries: Vec::new() });
    for (until, word, state) in [
        (Until::Nothing, ready(), "await_hello"),
        (Until::Nothing, Message::Heartbeat(Pulse::default()), "await_hello"),
        (Until::Hello, Message::Hello(hello()), "offering"),
        (Until::Hello, taken(1), "offering"),
        (Until::Hello, taken(3), "offering"),
        (Until::Hello, ready(), "offering"),
        (Until::Batch, taken(2), "await_adopted"),
        (Until::Plan, ready(), "await_adopted"),
        (Until::Plan, adopted(0), "await_adopted"),
        (Until::Plan, adopted(1), "await_adopted"),
        (Until::Adopted, adopted(0), "await_ready"),
        (Until::Adopted, Message::Polling { first_poll_ns: 1 }, "await_ready"),
        (Until::Adopted, Message::Commit, "await_ready"),
    ] {
        alone(async || {
            let name = word.name();
            let (error, told) = predecessor_meets(until, Worst::Says(word)).await;
            let HandoffError::OutOfTurn { source, .. } = &error else { panic!("{name}: {error:?}") };
            assert_eq!((source.state, source.got, source.direction), (state, name, "received"));
            assert_eq!(told.unwrap(), error.to_string());
        });
    }
}

#[test]
fn h3_descriptors_that_nobody_announced_are_closed() {
    for count in [1, 253] {
        alone(async || {
            let (error, _) =
                predecessor_meets(Until::Hello, Worst::Hands(Message::BatchTaken { count: 2 }, count)).await;
            let HandoffError::Channel { source: ChannelError::Descriptors { expected: 0, got, .. }, .. } = error else {
                panic!("{error:?}")
            };
            assert_eq!(got, count);
        });
    }
}

#[test]
fn what_is_adopted_is_compared_one_by_one() {
    let swapped = |entries: Vec<Entry>| entries.into_iter().rev().collect();
    let moved = |mut entries: Vec<Entry>| {
        entries[1].address = "[::1]:1".to_owned();
        entries
    };
    for (claim, what) in [(swapped as fn(Vec<Entry>) -> Vec<Entry>, "id"), (moved, "address")] {
        alone(async || {
            let (peer, channel) = ByHand::new();
            let listeners = Listeners::new(2);
            let lent = listeners.lent();
            let entries = claim(lent.iter().map(|(entry, _)| entry.clone()).collect());
            let hand = async {
                let _held = play_successor(&peer, Until::Plan).await;
                do_worst(peer, Worst::Says(Message::Adopted(Batch { first: 0, entries }))).await
            };
            let (offered, told) = tokio::join!(offer(channel, &lent, soon()), hand);
            let error = offered.unwrap_err();
            assert!(matches!(&error, HandoffError::Mismatch { source, .. } if source.what == what), "{error:?}");
            assert_eq!(told.unwrap(), error.to_string());
        });
    }
}

#[test]
fn f18_f21_a_hello_decides_before_any_socket_is_sent() {
    let (newer, other) = (Range { min: 4, max: 9 }, Range { min: 2, max: 9 });
    for (answer, text) in [
        (Hello { protocol: newer, ..hello() }, "no common protocol version: ours 1 to 3, theirs 4 to 9"),
        (Hello { ledger: other, ..hello() }, "no common ledger layout version: ours 1, theirs 2 to 9"),
        (Hello { generation: 6, ..hello() }, "handoff protocol: generation 6 answered instead of 7"),
        (
            Hello { descriptors: Some(Budget { limit: 1_000, open: 1_001 }), ..hello() },
            "need 1,004 descriptors, limit 1,000",
        ),
    ] {
        alone(async || {
            let (peer, channel) = ByHand::new();
            let listeners = Listeners::new(2);
            let lent = listeners.lent();
            let hand = async {
                peer.hears("hello").await;
                peer.says(&Message::Hello(answer));
                // The very next word: no offer, no batch.
                peer.hears("refused").await
            };
            let (offered, (told, _)) = tokio::join!(offer(channel, &lent, soon()), hand);
            assert_eq!(offered.unwrap_err().to_string(), text);
            assert_eq!(told, Message::Refused { cause: text.to_owned() });
        });
    }
    alone(async || {
        let exact = Hello { descriptors: Some(Budget { limit: 1_003, open: 1_000 }), ..hello() };
        let listeners = Listeners::new(2);
        let (peer, channel) = ByHand::new();
        let lent = listeners.lent();
        let hand = async {
            peer.hears("hello").await;
            peer.writes(&with_unknown_fields(&Message::Hello(exact)), &[]);
            peer.hears("offer").await;
            drop(peer);
        };
        let (offered, ()) = tokio::join!(offer(channel, &lent, soon()), hand);
        assert!(matches!(offered, Err(HandoffError::Gone { step: "offer" })), "enough, and newer fields, are fine");
    });
}

fn with_unknown_fields(message: &Message) -> Vec<u8> {
    let mut value = serde_json::to_value(message).unwrap();
    value["later"] = serde_json::json!({"x": [1, 2]});
    serde_json::to_vec(&value).unwrap()
}

#[test]
fn a_successor_that_refuses_is_quoted() {
    for (until, step) in STEPS {
        alone(async || {
            let cause = "plan has no pool\nnamed pg".to_owned();
            let (error, _) = predecessor_meets(until, Worst::Says(Message::Refused { cause })).await;
            assert_eq!(error.step(), step);
            assert_eq!(error.to_string(), "the other side refused: plan has no pool\u{fffd}named pg");
        });
    }
}
