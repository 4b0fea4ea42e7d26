//! The relay between two imaginary peers, in every order of events.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const SIDES: [Side; 2] = [Side::Client, Side::Backend];

/// A peer and the kernel's half of its connection.
#[derive(Debug, Default)]
struct Peer {
    /// Sent by it and not read by us yet.
    queue: VecDeque<u8>,
    sent: Vec<u8>,
    got: Vec<u8>,
    ended: bool,
    reset: bool,
    /// The reset was told to us as an error, as the kernel does once.
    told: bool,
    got_end: bool,
}

/// What happens next.
#[derive(Debug, Clone)]
enum Event {
    Sends(Side, u8),
    Ends(Side),
    Resets(Side),
    /// The engine does the next step of a direction: `limit` bytes fit.
    Step {
        from: Side,
        limit: usize,
        filled: bool,
    },
    /// The engine stops; whoever has the session next goes by what was written down.
    Freeze,
    /// It goes on where it was (the move was withdrawn) or elsewhere.
    Resume {
        elsewhere: bool,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let side = prop_oneof![Just(Side::Client), Just(Side::Backend)];
    prop_oneof![
        3 => (side.clone(), any::<u8>()).prop_map(|(side, n)| Event::Sends(side, n)),
        1 => side.clone().prop_map(Event::Ends),
        1 => side.clone().prop_map(Event::Resets),
        12 => (side, 0_usize..300, any::<bool>())
            .prop_map(|(from, limit, filled)| Event::Step { from, limit, filled }),
        2 => Just(Event::Freeze),
        3 => any::<bool>().prop_map(|elsewhere| Event::Resume { elsewhere }),
    ]
}

/// A relay on its way.
#[derive(Debug)]
struct Held {
    state: RelayState,
    hand: [Vec<u8>; 2],
}

#[derive(Debug, Default)]
struct World {
    relay: Relay,
    /// Then `relay` is nobody's.
    held: Option<Held>,
    peers: [Peer; 2],
    pipes: [VecDeque<u8>; 2],
    next: u8,
}

impl World {
    fn happen(&mut self, event: &Event) {
        match event {
            Event::Sends(side, n) => self.send(*side, *n),
            Event::Ends(side) => self.peers[index(*side)].ended |= !self.peers[index(*side)].reset,
            Event::Resets(side) => self.peers[index(*side)].reset = true,
            Event::Step { from, limit, filled } if self.held.is_none() => self.step(*from, *limit, *filled),
            Event::Step { .. } => {}
            Event::Freeze => self.freeze(),
            Event::Resume { elsewhere } => self.resume(*elsewhere),
        }
    }

    fn freeze(&mut self) {
        if self.held.is_none() {
            let (state, hand) = std::mem::take(&mut self.relay).into_state();
            self.held = Some(Held { state, hand });
        }
    }

    fn resume(&mut self, elsewhere: bool) {
        let Some(Held { state, hand }) = self.held.take() else { return };
        let state = if elsewhere {
            let text = serde_json::to_string(&state).unwrap();
            assert!(text.len() < 1024, "{text}");
            serde_json::from_str(&text).unwrap()
        } else {
            state
        };
        self.relay = Relay::from_state(state, hand);
    }

    fn send(&mut self, side: Side, n: u8) {
        let peer = &mut self.peers[index(side)];
        if peer.ended || peer.reset {
            return;
        }
        for _ in 0..n {
            self.next = self.next.wrapping_add(1);
            peer.queue.push_back(self.next);
            peer.sent.push(self.next);
        }
    }

    fn step(&mut self, from: Side, limit: usize, filled: bool) {
        let step = self.relay.step(from);
        if matches!(step, Step::Receive | Step::SpliceIn) {
            assert_eq!(self.relay.held(from), 0, "reads only when nothing is held: memory is bounded by one read");
        }
        match step {
            Step::Receive => {
                let Some(bytes) = self.read(from, limit) else { return };
                if bytes.is_empty() {
                    return self.relay.ended(from);
                }
                let written = self.write(from.other(), &bytes, limit / 2);
                self.relay.passed(from, &bytes, written, filled);
            }
            Step::SpliceIn => {
                let Some(bytes) = self.read(from, limit) else { return };
                if bytes.is_empty() {
                    return self.relay.ended(from);
                }
                self.relay.spliced_in(from, bytes.len());
                self.pipes[index(from)].extend(bytes);
            }
            Step::Send => {
                let bytes = self.relay.in_hand(from).to_vec();
                let written = self.write(from.other(), &bytes, limit);
                self.relay.written(from, written);
            }
            Step::SpliceOut => {
                let bytes: Vec<u8> = self.pipes[index(from)].iter().copied().collect();
                assert_eq!(bytes.len(), self.relay.in_pipe(from), "the relay knows what is in the pipe");
                let written = self.write(from.other(), &bytes, limit);
                self.pipes[index(from)].drain(..written);
                self.relay.spliced_out(from, written);
            }
            Step::Shutdown => {
                let sink = &mut self.peers[index(from.other())];
                if sink.reset {
                    sink.told = true;
                    return self.relay.failed(from.other(), Failure::Reset);
                }
                assert!(!sink.got_end, "the end is passed on once");
                sink.got_end = true;
                self.relay.shut(from);
            }
            Step::Rest => {}
        }
    }

    /// As the kernel: what was received, then the error (once), then 0. `None`: nothing now, or the error.
    fn read(&mut self, from: Side, limit: usize) -> Option<Vec<u8>> {
        let peer = &mut self.peers[index(from)];
        let n = peer.queue.len().min(limit.max(1));
        if n > 0 {
            return Some(peer.queue.drain(..n).collect());
        }
        if peer.reset && !peer.told {
            peer.told = true;
            self.relay.read_failed(from, Failure::Reset);
            return None;
        }
        (peer.ended || peer.reset).then(Vec::new)
    }

    fn write(&mut self, to: Side, bytes: &[u8], limit: usize) -> usize {
        let peer = &mut self.peers[index(to)];
        if peer.reset {
            peer.told = true;
            self.relay.failed(to, Failure::Reset);
            return 0;
        }
        let n = bytes.len().min(limit);
        peer.got.extend(&bytes[..n]);
        n
    }

    fn check(&self) {
        for from in SIDES {
            let (source, sink) = (&self.peers[index(from)], &self.peers[index(from.other())]);
            assert!(source.sent.starts_with(&sink.got), "P1: delivered bytes are a prefix of those sent");
            if sink.got_end {
                assert!(source.ended, "P2: only an end is shown as an end");
                assert_eq!(source.sent, sink.got, "P2: with all its bytes");
            }
        }
    }

    fn kill(&mut self) {
        if self.held.is_none() {
            let marks = Marks::of_word(self.relay.marks().word());
            let piped = self.pipes.each_ref().map(VecDeque::len);
            self.relay = Relay::from_state(RelayState::recovered(marks, [None; 2], piped), Default::default());
        }
    }

    /// Both sides end, if they have not: it comes to an outcome, which is what has happened.
    fn end_in_truth(&mut self) {
        SIDES.iter().for_each(|side| self.happen(&Event::Ends(*side)));
        self.run_out();
        let broken = self.peers.iter().any(|peer| peer.told);
        match self.relay.outcome() {
            Some(Outcome::Orderly { .. }) => {
                assert!(!broken);
                for from in SIDES {
                    assert_eq!(self.peers[index(from)].sent, self.peers[index(from.other())].got);
                }
            }
            Some(Outcome::Broken { side, .. }) => {
                let (source, sink) = (&self.peers[index(side)], &self.peers[index(side.other())]);
                assert!(broken);
                // What the broken side had sent was delivered before, unless the other broke as well.
                assert!(sink.told || source.sent == sink.got);
            }
            None => panic!("no outcome"),
        }
    }

    /// Runs until nothing moves: every session comes to its outcome.
    fn run_out(&mut self) {
        self.resume(true);
        for _ in 0..20_000 {
            for from in SIDES {
                self.step(from, 200, false);
            }
            self.check();
            if self.relay.outcome().is_some() {
                return;
            }
        }
        panic!("no outcome: {self:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn every_order_keeps_prefix_and_truth_of_the_end(events in proptest::collection::vec(event(), 1..120)) {
        let mut world = World::default();
        for event in &events {
            world.happen(event);
            world.check();
        }
        world.end_in_truth();
    }

    /// With nothing left of it but what it had marked and what is in its pipes.
    #[test]
    fn a_relay_that_only_splices_may_be_killed_between_any_two_steps(
        story in proptest::collection::vec(prop_oneof![12 => event().prop_map(Some), 1 => Just(None)], 1..120)
    ) {
        let mut world = World::default();
        world.relay.splice_only();
        for event in &story {
            match event {
                Some(event) => world.happen(event),
                None => world.kill(),
            }
            world.check();
        }
        world.end_in_truth();
        prop_assert!(world.relay.only_splices());
    }
}

#[test]
fn a_zero_read_after_a_failed_write_is_no_end() {
    let mut relay = Relay::default();
    relay.passed(Side::Backend, b"answer", 0, false);
    relay.failed(Side::Client, Failure::Reset);
    relay.ended(Side::Client);
    assert_eq!(relay.step(Side::Client), Step::Rest);
    assert_eq!(relay.outcome(), Some(Outcome::Broken { side: Side::Client, failure: Failure::Reset }));
}

#[test]
fn a_direction_splices_after_two_full_reads_and_copies_after_four_small_splices() {
    let mut relay = Relay::default();
    relay.passed(Side::Client, b"x", 1, true);
    relay.passed(Side::Client, b"x", 1, false);
    relay.passed(Side::Client, b"x", 1, true);
    assert_eq!(relay.step(Side::Client), Step::Receive);
    relay.passed(Side::Client, b"x", 1, true);
    assert_eq!(relay.step(Side::Client), Step::SpliceIn);
    assert_eq!(relay.step(Side::Backend), Step::Receive);
    for n in [1, 1, 1, SMALL, 1, 1, 1] {
        relay.spliced_in(Side::Client, n);
        relay.spliced_out(Side::Client, n);
        assert_eq!(relay.step(Side::Client), Step::SpliceIn);
    }
    relay.spliced_in(Side::Client, 1);
    assert_eq!(relay.step(Side::Client), Step::SpliceOut);
    relay.spliced_out(Side::Client, 1);
    assert_eq!(relay.step(Side::Client), Step::Receive);
}

/// Says the same as another relay, whatever is asked.
fn alike(one: &Relay, other: &Relay) -> bool {
    let said =
        |relay: &Relay, from| (relay.step(from), relay.held(from), relay.in_hand(from).to_vec(), relay.splices(from));
    SIDES.iter().all(|from| said(one, *from) == said(other, *from)) && one.outcome() == other.outcome()
}

#[test]
fn a_relay_that_was_written_down_goes_on_as_the_same() {
    let moved = |relay: Relay| {
        let (state, hand) = relay.into_state();
        Relay::from_state(serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap(), hand)
    };
    // Bytes in hand, half of them written; a pipe with bytes; one full read, which alone does not splice yet.
    let relay = || {
        let mut relay = Relay::default();
        relay.passed(Side::Client, b"halfway", 0, true);
        relay.written(Side::Client, 4);
        relay.spliced_in(Side::Backend, 100_000);
        relay.spliced_out(Side::Backend, 1);
        relay
    };
    let mut back = moved(relay());
    assert!(alike(&back, &relay()), "{back:?}");
    assert_eq!((back.in_hand(Side::Client), back.in_pipe(Side::Backend)), (&b"way"[..], 99_999));
    back.written(Side::Client, 3);
    back.passed(Side::Client, b"x", 1, true);
    assert!(back.splices(Side::Client), "the second full read in a row, though the first was elsewhere");
    // A half-closed one, then one that broke.
    let mut half = Relay::default();
    half.ended(Side::Backend);
    half.shut(Side::Backend);
    let mut half = moved(half);
    assert!(half.is_half_closed() && half.has_shut(Side::Backend));
    half.failed(Side::Client, Failure::Timeout);
    half.failed(Side::Backend, Failure::Reset);
    let half = moved(half);
    assert_eq!(half.broken(), Some((Side::Client, Failure::Timeout)));
    assert_eq!(half.outcome(), Some(Outcome::Broken { side: Side::Client, failure: Failure::Timeout }));
}

#[test]
fn a_state_of_another_version_is_read_as_far_as_it_goes() {
    let older: RelayState = serde_json::from_str("{}").unwrap();
    assert!(alike(&Relay::from_state(older, Default::default()), &Relay::default()));
    let newer = r#"{"flows":[{"piped":7,"run":255,"colour":"red"},{}],"first_end":"client","later":[1]}"#;
    let mut relay = Relay::from_state(serde_json::from_str(newer).unwrap(), Default::default());
    assert_eq!(relay.step(Side::Client), Step::SpliceOut);
    relay.spliced_out(Side::Client, 7);
    relay.passed(Side::Client, b"", 0, true);
    assert!(relay.splices(Side::Client), "a count beyond all bounds is no fault");
}

#[test]
fn the_first_end_names_the_outcome() {
    let mut relay = Relay::default();
    relay.ended(Side::Backend);
    assert_eq!(relay.step(Side::Backend), Step::Shutdown);
    relay.shut(Side::Backend);
    assert!(relay.is_half_closed() && relay.outcome().is_none());
    relay.ended(Side::Client);
    relay.shut(Side::Client);
    assert_eq!(relay.outcome(), Some(Outcome::Orderly { first: Side::Backend }));
}

#[test]
fn marks_say_who_ended_and_who_broke_and_in_which_order() {
    let mut relay = Relay::default();
    relay.splice_only();
    assert_eq!(relay.marks(), Marks::default());
    relay.ended(Side::Backend);
    relay.ended(Side::Client);
    relay.failed(Side::Backend, Failure::Timeout);
    relay.failed(Side::Client, Failure::Reset);
    let marks = relay.marks();
    let back = Relay::from_state(RelayState::recovered(marks, [None; 2], [0; 2]), Default::default());
    assert_eq!((back.marks(), back.first_end), (marks, Some(Side::Backend)));
    assert_eq!(back.broken(), Some((Side::Backend, Failure::Timeout)));
    // What was about to be told is told by whoever finds the mark.
    let about = Marks::default().shutting(Side::Client);
    let back =
        Relay::from_state(RelayState::recovered(about, [None, Some(Failure::Reset)], [0; 2]), Default::default());
    assert!(back.has_shut(Side::Client) && back.failure(Side::Backend) == Some(Failure::Reset));
}
