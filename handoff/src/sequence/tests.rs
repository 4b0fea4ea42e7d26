use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::manifest::{Entry, Kind};
use crate::message::{Batch, Body, Hello, LEDGER, PROTOCOL, Pulse};
use crate::transfer::Role;

fn hello() -> Message {
    Message::Hello(Hello {
        protocol: PROTOCOL,
        ledger: LEDGER,
        version: String::new(),
        build: String::new(),
        generation: 1,
        pid: 1,
        descriptors: None,
    })
}

fn batch(first: u32, count: usize) -> Batch {
    let entry = Entry { id: "x".to_owned(), kind: Kind::Tcp4, address: String::new(), v6only: false, netns: 0 };
    Batch { first, entries: vec![entry; count] }
}

fn body() -> Body {
    Body::Text(String::new())
}

fn offer(sockets: u32, segments: u32) -> Message {
    Message::Offer(Offered { protocol: 3, sockets, segments })
}

/// Every kind of word, with values that fit some states and not others.
fn words() -> Vec<Message> {
    let mut words = vec![
        hello(),
        offer(0, 0),
        offer(3, 1),
        Message::Plan { body: body() },
        Message::Ready,
        Message::Commit,
        Message::Polling { first_poll_ns: 1 },
        Message::Stop,
        Message::Stopped { last_poll_ns: 1 },
        Message::Heartbeat(Pulse::default()),
        Message::Notice { body: body() },
        Message::Refused { cause: String::new() },
        Message::Door,
        Message::Path { id: 1, role: Role::Give, other: 2 },
        Message::Vault,
    ];
    for index in [0, 1, u32::MAX] {
        words.push(Message::Segment { index });
    }
    for (first, count) in [(0, 0), (0, 1), (0, 3), (1, 2), (3, 1), (u32::MAX, 200)] {
        words.push(Message::Batch(batch(first, count)));
        words.push(Message::Adopted(batch(first, count)));
    }
    for count in [0, 1, 2, 3, u32::MAX] {
        words.push(Message::BatchTaken { count });
    }
    for id in [0, u64::MAX] {
        words.push(Message::Order { id, body: body() });
        words.push(Message::Answer { id, body: body() });
    }
    words
}

/// The words of a whole life, from the first hello to a second commit: `true` goes down.
fn life() -> Vec<(bool, Message)> {
    vec![
        (true, hello()),
        (false, hello()),
        (true, offer(3, 1)),
        (true, Message::Segment { index: 0 }),
        (true, Message::Batch(batch(0, 2))),
        (false, Message::BatchTaken { count: 2 }),
        (true, Message::Batch(batch(2, 1))),
        (false, Message::BatchTaken { count: 1 }),
        (true, Message::Plan { body: body() }),
        (false, Message::Adopted(batch(0, 1))),
        (false, Message::Adopted(batch(1, 2))),
        (false, Message::Ready),
        (true, Message::Order { id: 1, body: body() }),
        (true, Message::Commit),
        (false, Message::Answer { id: 1, body: body() }),
        (false, Message::Polling { first_poll_ns: 1 }),
        (true, Message::Batch(batch(0, 2))),
        (false, Message::Heartbeat(Pulse::default())),
        (true, Message::Segment { index: 1 }),
        (false, Message::BatchTaken { count: 2 }),
        (true, Message::Stop),
        (false, Message::Stopped { last_poll_ns: 1 }),
        (false, Message::Notice { body: body() }),
        (true, Message::Commit),
        (false, Message::Polling { first_poll_ns: 2 }),
    ]
}

/// Both machines after each step of [`life`].
fn stations() -> Vec<(Predecessor, Successor)> {
    let mut at = (Predecessor::default(), Successor::default());
    let mut stations = vec![at.clone()];
    for (down, word) in life() {
        let (ours, theirs) =
            if down { (Event::Out(&word), Event::In(&word)) } else { (Event::In(&word), Event::Out(&word)) };
        at = (at.0.on(ours).unwrap().0, at.1.on(theirs).unwrap().0);
        stations.push(at.clone());
    }
    stations
}

#[test]
fn a_whole_life_passes_every_state() {
    let mut states: Vec<_> = stations().iter().map(|(ours, _)| ours.state()).collect();
    states.dedup();
    assert_eq!(
        states,
        [
            "silent",
            "await_hello",
            "greeted",
            "offering",
            "await_adopted",
            "await_ready",
            "ready",
            "committing",
            "serving",
            "stopping",
            "standby",
            "committing",
            "serving"
        ]
    );
}

/// Each word in each state at each end, sent and received: both ends agree on what is legal, and which words are legal in
/// a state is written down here.
#[test]
fn h2_every_word_in_every_state_is_a_transition_or_out_of_turn() {
    let mut legal: Vec<(&str, Vec<&str>)> = Vec::new();
    for (ours, theirs) in stations() {
        let mut names = Vec::new();
        for word in words() {
            let down = (ours.clone().on(Event::Out(&word)), theirs.clone().on(Event::In(&word)));
            let up = (ours.clone().on(Event::In(&word)), theirs.clone().on(Event::Out(&word)));
            assert_eq!(down.0.is_ok(), down.1.is_ok(), "{word:?} down in {}", ours.state());
            assert_eq!(up.0.is_ok(), up.1.is_ok(), "{word:?} up in {}", ours.state());
            if let Err(error) = &down.1 {
                assert_eq!((error.state, error.got, error.direction), (theirs.state(), word.name(), "received"));
            }
            if (down.0.is_ok() || up.0.is_ok()) && word.name() != "refused" {
                names.push(word.name());
            }
        }
        names.sort_unstable();
        names.dedup();
        match legal.iter_mut().find(|(state, _)| *state == ours.state()) {
            Some((_, known)) => known.extend(names),
            None => legal.push((ours.state(), names)),
        }
    }
    for (state, names) in &mut legal {
        names.sort_unstable();
        names.dedup();
        let wanted: &[&str] = match *state {
            "silent" | "await_hello" => &["hello"],
            "greeted" => &["offer"],
            "offering" => &["batch", "batch_taken", "plan", "segment"],
            "await_adopted" => &["adopted"],
            "await_ready" => &["ready"],
            service => {
                names.retain(|name| {
                    let anytime =
                        ["batch", "batch_taken", "door", "heartbeat", "notice", "order", "path", "segment", "vault"];
                    !anytime.contains(name)
                });
                match service {
                    "ready" | "standby" => &["commit"],
                    "committing" => &["polling"],
                    "serving" => &["stop"],
                    "stopping" => &["stopped"],
                    other => panic!("{other}"),
                }
            }
        };
        assert_eq!(names, wanted, "{state}");
    }
}

/// A conversation with nothing open goes on at either end as if nothing had been; one with something open cannot be left.
#[test]
fn what_is_at_rest_can_be_resumed_and_nothing_else() {
    let mut rested = Vec::new();
    for (ours, theirs) in stations() {
        let (Some(rest), Some(other)) = (ours.rest(), theirs.rest()) else {
            assert!(!["ready", "serving", "standby"].contains(&ours.state()) || has_open(&ours), "{}", ours.state());
            continue;
        };
        assert_eq!(rest, other);
        assert_eq!((Predecessor::resumed(rest), Successor::resumed(rest)), (ours.clone(), theirs));
        rested.push(ours.state());
    }
    rested.dedup();
    assert_eq!(rested, ["ready", "serving", "standby", "serving"]);
}

/// An order or a batch without its answer.
fn has_open(at: &Predecessor) -> bool {
    let answers = [Message::Answer { id: 1, body: body() }, Message::BatchTaken { count: 2 }];
    answers.iter().any(|answer| at.clone().on(Event::In(answer)).is_ok())
}

#[test]
fn later_words_are_for_those_who_know_them() {
    let path = Message::Path { id: 1, role: Role::Take, other: 0 };
    for (word, since) in [(Message::Door, 2), (path, 3), (Message::Vault, 3)] {
        for protocol in 1..=3 {
            let rest = Rest { polls: Polls::Now, segments: 1, protocol };
            let known = protocol >= since;
            assert_eq!(Predecessor::resumed(rest).on(Event::Out(&word)).is_ok(), known, "{word:?} in {protocol}");
            assert_eq!(Successor::resumed(rest).on(Event::In(&word)).is_ok(), known, "{word:?} in {protocol}");
            assert!(Predecessor::resumed(rest).on(Event::In(&word)).is_err(), "{word:?} goes down");
        }
    }
}

#[test]
fn nothing_follows_a_refusal() {
    let refusal = Message::Refused { cause: String::new() };
    for (ours, theirs) in stations() {
        let Ok((ours, action)) = ours.clone().on(Event::In(&refusal)) else {
            assert_eq!(ours.state(), "silent");
            continue;
        };
        assert_eq!(action, Action::Abort);
        let (theirs, _) = theirs.on(Event::Out(&refusal)).unwrap();
        for word in words() {
            assert!(ours.clone().on(Event::Out(&word)).is_err() && ours.clone().on(Event::In(&word)).is_err());
            assert!(theirs.clone().on(Event::Out(&word)).is_err() && theirs.clone().on(Event::In(&word)).is_err());
        }
    }
}

#[test]
fn service_words_keep_their_books() {
    let (ours, _) = stations().pop().unwrap();
    let run = |words: &[Event<'_>]| {
        words.iter().try_fold(ours.clone(), |at, word| at.on(*word).map(|(next, _)| next)).map_err(|error| error.rule)
    };
    let order = |id| Message::Order { id, body: body() };
    let answer = Message::Answer { id: 5, body: body() };
    let taken = |count| Message::BatchTaken { count };
    let batch = |count| Message::Batch(batch(0, count));
    assert!(run(&[Event::In(&answer)]).is_err(), "an answer without an order");
    assert!(run(&[Event::Out(&order(5)), Event::Out(&order(5))]).is_err(), "an id twice");
    assert!(run(&[Event::Out(&order(5)), Event::In(&answer), Event::Out(&order(5)), Event::In(&answer)]).is_ok());
    let orders: Vec<_> = (0..1025).map(order).collect();
    let orders: Vec<_> = orders.iter().map(Event::Out).collect();
    assert!(run(&orders[..1024]).is_ok());
    assert!(run(&orders).is_err(), "orders are bounded");
    let two = [batch(200), batch(200)];
    let open: Vec<_> = two.iter().map(Event::Out).collect();
    assert!(run(&open).is_ok());
    assert!(run(&[open[0], open[1], Event::Out(&batch(1))]).is_err(), "unacknowledged sockets are bounded");
    assert!(run(&[open[0], open[1], Event::In(&taken(200)), Event::Out(&batch(200))]).is_ok());
    assert!(run(&[open[0], Event::In(&taken(199))]).is_err(), "a wrong count");
    assert!(run(&[Event::Out(&Message::Segment { index: 1 })]).is_err(), "a segment twice");
    assert!(run(&[Event::Out(&Message::Segment { index: 7 })]).is_ok());
}

/// Two machines joined by two queues; `choices` decides who goes on, so that words cross. Gives the two end states.
fn converse(sockets: u32, segments: u32, piece: u32, choices: &[bool]) -> (&'static str, &'static str) {
    let (mut ours, mut theirs) = (Predecessor::default(), Successor::default());
    let (mut down, mut up) = (VecDeque::new(), VecDeque::new());
    let first = hello();
    ours = ours.on(Event::Out(&first)).unwrap().0;
    down.push_back(first);
    for turn in 0.. {
        if ours.state() == "serving" && theirs.state() == "serving" && up.is_empty() {
            break;
        }
        let choose_up = choices[turn % choices.len()] || down.is_empty();
        if choose_up && let Some(word) = up.pop_front() {
            let (next, action) = ours.on(Event::In(&word)).unwrap();
            ours = offering(next, action, &word, (sockets, segments, piece), &mut down);
        } else if let Some(word) = down.pop_front() {
            let (next, action) = theirs.on(Event::In(&word)).unwrap();
            theirs = taking(next, action, &word, (sockets, piece), &mut up);
        }
        assert!(turn < 10_000, "stuck in {} and {}", ours.state(), theirs.state());
    }
    (ours.state(), theirs.state())
}

/// Does what the predecessor has to do, until it has to wait.
fn offering(
    mut at: Predecessor,
    mut action: Action,
    word: &Message,
    (sockets, segments, piece): (u32, u32, u32),
    down: &mut VecDeque<Message>,
) -> Predecessor {
    loop {
        let say = match action {
            Action::Announce => offer(sockets, segments),
            Action::Segment(index) => Message::Segment { index },
            Action::Batch(first) => Message::Batch(batch(first, piece.min(sockets - first) as usize)),
            Action::Plan => Message::Plan { body: body() },
            Action::Deliver if *word == Message::Ready => Message::Commit,
            _ => return at,
        };
        let (next, due) = at.on(Event::Out(&say)).unwrap();
        (at, action) = (next, due);
        down.push_back(say);
    }
}

fn taking(
    mut at: Successor,
    mut action: Action,
    word: &Message,
    (sockets, piece): (u32, u32),
    up: &mut VecDeque<Message>,
) -> Successor {
    loop {
        let say = match (action, word) {
            (Action::Greet, _) => hello(),
            (Action::Take, Message::Batch(batch)) => Message::BatchTaken { count: batch.count() },
            (Action::Adopt(first), _) => Message::Adopted(batch(first, piece.min(sockets - first) as usize)),
            (Action::Prepare, _) => Message::Ready,
            (Action::Deliver, Message::Commit) => Message::Polling { first_poll_ns: 1 },
            _ => return at,
        };
        let (next, due) = at.on(Event::Out(&say)).unwrap();
        (at, action) = (next, due);
        up.push_back(say);
        if at.state() == "serving" {
            return at;
        }
    }
}

proptest! {
    /// The body of the fuzz target `sequence`, over words instead of bytes.
    #[test]
    fn h2_both_roles_agree_on_any_words_in_any_order(
        from in any::<prop::sample::Index>(),
        picks in proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..60),
    ) {
        let words = words();
        let (mut ours, mut theirs) = from.get(&stations()).clone();
        for (index, down) in picks {
            let word = index.get(&words);
            let (here, there) =
                if down { (Event::Out(word), Event::In(word)) } else { (Event::In(word), Event::Out(word)) };
            match (ours.clone().on(here), theirs.clone().on(there)) {
                (Ok((next, _)), Ok((other, _))) => (ours, theirs) = (next, other),
                (Err(one), Err(other)) => prop_assert_eq!(one.rule, other.rule),
                disagreement => prop_assert!(false, "{:?}", disagreement),
            }
            prop_assert_eq!(ours.state(), theirs.state());
        }
    }

    #[test]
    fn two_machines_always_come_to_serve(
        sockets in 0..700_u32,
        segments in 0..4_u32,
        piece in 1..=200_u32,
        choices in proptest::collection::vec(any::<bool>(), 1..50),
    ) {
        prop_assert_eq!(converse(sockets, segments, piece, &choices), ("serving", "serving"));
    }
}
