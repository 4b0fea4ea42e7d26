use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::ledger::Place;
use crate::transfer::TRANSFER;
use crate::transfer::message::{Entry, Hello, Verdict};

fn hello() -> Transfer {
    Transfer::Hello(Hello { protocol: TRANSFER, generation: 1, descriptors: None })
}

fn offer(batch: u64, ids: &[u64]) -> Transfer {
    let place = Place { segment: 0, index: 0 };
    let entry = |id: &u64| Entry { id: *id, place, state: 0, hand: [0, 0], pipes: [false, false] };
    Transfer::Offer(Offer { batch, items: ids.iter().map(entry).collect() })
}

fn taken(batch: u64, count: usize) -> Transfer {
    Transfer::Taken { batch, verdicts: vec![Verdict::Taken { thread: 0 }; count], descriptors: None }
}

fn refused() -> Transfer {
    Transfer::Refused { cause: String::new() }
}

/// Every kind of word, with values that fit some states and not others.
fn words() -> Vec<Transfer> {
    let mut words = vec![hello(), refused(), offer(1, &[]), offer(3, &[1, 2]), taken(1, 0), taken(2, 2)];
    for batch in [0, 1, 2, 3, u64::MAX] {
        words.extend([offer(batch, &[batch]), taken(batch, 1)]);
        words.extend([Transfer::Release { batch }, Transfer::Withdraw { batch }, Transfer::Dropped { batch }]);
    }
    words
}

/// Both ends after each of these words; `true` goes down.
fn stations() -> Vec<(Giver, Taker)> {
    let life = [
        (true, hello()),
        (false, hello()),
        (true, offer(1, &[1])),
        (true, offer(2, &[2, 3])),
        (false, taken(2, 2)),
        (true, Transfer::Withdraw { batch: 1 }),
        (false, Transfer::Dropped { batch: 1 }),
        (true, Transfer::Release { batch: 2 }),
    ];
    let mut at = (Giver::default(), Taker::default());
    let mut stations = vec![at.clone()];
    for (down, word) in life {
        let (ours, theirs) =
            if down { (Event::Out(&word), Event::In(&word)) } else { (Event::In(&word), Event::Out(&word)) };
        at = (at.0.on(ours).unwrap().0, at.1.on(theirs).unwrap().0);
        stations.push(at.clone());
    }
    stations
}

/// What both ends make of a word. An answer to what is withdrawn may be received, as it may have crossed the withdrawal, and
/// not be sent.
fn verdicts(ours: &Giver, theirs: &Taker, word: &Transfer, down: bool) -> (bool, bool) {
    let (here, there) = if down { (Event::Out(word), Event::In(word)) } else { (Event::In(word), Event::Out(word)) };
    let late = matches!(word, Transfer::Taken { batch, .. } if theirs.0.is_withdrawn(*batch)) && !down;
    (ours.clone().on(here).is_ok() && !late, theirs.clone().on(there).is_ok())
}

#[test]
fn every_word_in_every_state_is_a_transition_or_out_of_turn() {
    let mut legal: BTreeMap<&str, Vec<(&str, bool)>> = BTreeMap::new();
    for (ours, theirs) in stations() {
        assert_eq!(ours.state(), theirs.state());
        for (word, down) in words().iter().flat_map(|word| [(word, true), (word, false)]) {
            let (here, there) = verdicts(&ours, &theirs, word, down);
            assert_eq!(here, there, "{word:?} in {}, down: {down}", ours.state());
            if here && *word != refused() {
                legal.entry(ours.state()).or_default().push((crate::codec::Word::name(word), down));
            }
        }
    }
    let legal: Vec<_> = legal
        .into_iter()
        .map(|(state, mut words)| {
            words.sort_unstable();
            words.dedup();
            (state, words)
        })
        .collect();
    let open = [("dropped", false), ("offer", true), ("release", true), ("taken", false), ("withdraw", true)];
    assert_eq!(
        legal,
        [("await_hello", vec![("hello", false)]), ("open", open.to_vec()), ("silent", vec![("hello", true)])]
    );
}

#[test]
fn nothing_follows_a_refusal() {
    for (ours, theirs) in stations().into_iter().skip(1) {
        let (closed, _) = ours.on(Event::Out(&refused())).unwrap();
        let (told, action) = theirs.on(Event::In(&refused())).unwrap();
        assert_eq!((closed.state(), told.state(), action), ("closed", "closed", Action::Abort));
        for word in words() {
            assert_eq!(verdicts(&closed, &told, &word, true), (false, false));
            assert_eq!(verdicts(&closed, &told, &word, false), (false, false));
        }
    }
}

#[test]
fn the_books_are_kept() {
    let (ours, _) = stations().pop().unwrap();
    let run = |words: &[(bool, Transfer)]| -> Result<Action, &'static str> {
        let (mut at, mut action) = (ours.clone(), Action::Wait);
        for (down, word) in words {
            let event = if *down { Event::Out(word) } else { Event::In(word) };
            (at, action) = at.on(event).map_err(|error| error.rule)?;
        }
        Ok(action)
    };
    let (down, up) = (|word| (true, word), |word| (false, word));
    let release = |batch| down(Transfer::Release { batch });
    let withdraw = |batch| down(Transfer::Withdraw { batch });
    let dropped = |batch| up(Transfer::Dropped { batch });
    let give = |batch, ids: &[u64]| down(offer(batch, ids));
    let take = |batch, count| up(taken(batch, count));
    assert_eq!(run(&[give(2, &[9])]), Err("not a new batch"));
    assert_eq!(run(&[give(3, &[])]), Err("a batch is not empty"));
    assert_eq!(run(&[give(3, &[9]), release(3)]), Err("the batch is not answered"));
    assert_eq!(run(&[give(3, &[9]), take(3, 2)]), Err("not a verdict for each session"));
    assert_eq!(run(&[give(3, &[9]), take(3, 1)]), Ok(Action::Deliver));
    assert_eq!(run(&[give(3, &[9]), take(3, 1), take(3, 1)]), Err("the batch is answered"));
    assert_eq!(run(&[give(3, &[9]), take(3, 1), release(3), release(3)]), Err("no such batch is open"));
    assert_eq!(run(&[give(3, &[9]), take(3, 1), release(3), take(3, 1)]), Err("no such batch is open"));
    assert_eq!(run(&[give(3, &[9]), take(3, 1), withdraw(3), release(3)]), Err("no such batch is open"));
    assert_eq!(run(&[give(3, &[9]), take(3, 1), withdraw(3), dropped(3)]), Err("no such batch is open"));
    assert_eq!(run(&[give(3, &[9]), dropped(3)]), Err("the batch is not withdrawn"));
    assert_eq!(run(&[give(3, &[9]), withdraw(3), withdraw(3)]), Err("the batch is withdrawn"));
    assert_eq!(run(&[give(3, &[9]), withdraw(3), release(3)]), Err("the batch is not answered"));
    assert_eq!(run(&[give(3, &[9]), withdraw(3), take(3, 1)]), Ok(Action::Ignore));
    assert_eq!(run(&[give(3, &[9]), withdraw(3), take(3, 1), release(3)]), Err("no such batch is open"));
    assert_eq!(run(&[give(3, &[9]), withdraw(3), dropped(3)]), Ok(Action::Ignore));
    // One answer for each offer.
    assert_eq!(run(&[give(3, &[9]), withdraw(3), take(3, 1), dropped(3)]), Err("no such batch is open"));
    assert_eq!(run(&[give(3, &[8, 9]), give(4, &[9])]), Err("a session is in an open batch already"));
    assert_eq!(run(&[give(3, &[8, 9]), withdraw(3), give(4, &[9])]), Ok(Action::Wait));
    let four = [give(3, &[3]), give(4, &[4]), give(5, &[5]), give(6, &[6])];
    let then = |more: &[(bool, Transfer)]| run(&[&four, more].concat());
    assert_eq!(then(&[give(7, &[7])]), Err("too many batches are open"));
    assert_eq!(then(&[withdraw(4), give(7, &[7])]), Err("too many batches are open"));
    assert_eq!(then(&[withdraw(4), dropped(4), give(7, &[7])]), Ok(Action::Wait));
    assert_eq!(then(&[take(4, 1), give(7, &[7])]), Err("too many batches are open"));
    assert_eq!(then(&[take(4, 1), release(4), give(7, &[7])]), Ok(Action::Wait));
}

/// Both ends with their queues, and who may touch each session: what the words mean to the owners of the sockets.
#[derive(Default)]
struct World {
    giver: Giver,
    taker: Taker,
    down: VecDeque<Transfer>,
    up: VecDeque<Transfer>,
    newest: u64,
    /// As the giver's owner knows them: offered, and of those the answered ones.
    out: BTreeMap<u64, Vec<u64>>,
    answered: Vec<u64>,
    /// As the taker's owner knows them, answered or not.
    held: BTreeMap<u64, (Vec<u64>, bool)>,
    /// Sessions by who relays them; one that is in neither stands still.
    here: Vec<u64>,
    there: Vec<u64>,
    released: usize,
}

const SESSIONS: u64 = 12;

impl World {
    fn new() -> Self {
        let mut world = Self { here: (1..=SESSIONS).collect(), ..Self::default() };
        let first = hello();
        world.giver = world.giver.clone().on(Event::Out(&first)).unwrap().0;
        world.down.push_back(first);
        world.taker_reads();
        world.giver_reads();
        world
    }

    fn says_down(&mut self, word: Transfer) -> bool {
        let Ok((next, _)) = self.giver.clone().on(Event::Out(&word)) else { return false };
        self.giver = next;
        self.down.push_back(word);
        true
    }

    fn says_up(&mut self, word: Transfer) {
        self.taker = self.taker.clone().on(Event::Out(&word)).unwrap().0;
        self.up.push_back(word);
    }

    fn offers(&mut self, pick: usize) {
        let ids: Vec<u64> = self.here.iter().copied().skip(pick % 4).take(1 + pick % 3).collect();
        if self.says_down(offer(self.newest + 1, &ids)) {
            self.newest += 1;
            self.here.retain(|id| !ids.contains(id));
            self.out.insert(self.newest, ids);
        } else {
            let waiting = self.out.len() + self.down.len() + self.up.len();
            assert!(ids.is_empty() || waiting >= OPEN, "only a full path refuses");
        }
    }

    fn withdraws(&mut self, pick: usize) {
        let Some(batch) = nth(self.out.keys(), pick) else { return };
        assert!(self.says_down(Transfer::Withdraw { batch }));
        let ids = self.out.remove(&batch).unwrap();
        self.here.extend(&ids);
        self.answered.retain(|other| *other != batch);
        assert!(ids.iter().all(|id| !self.there.contains(id)), "a session has two owners");
    }

    fn releases(&mut self, pick: usize) {
        let Some(batch) = nth(self.answered.iter(), pick) else {
            // What is not answered cannot be let go of.
            if let Some(batch) = nth(self.out.keys(), pick) {
                assert!(!self.says_down(Transfer::Release { batch }));
            }
            return;
        };
        assert!(self.says_down(Transfer::Release { batch }));
        self.answered.retain(|other| *other != batch);
        self.out.remove(&batch);
    }

    fn answers(&mut self, pick: usize) {
        let open = self.held.iter().filter(|(_, (_, answered))| !answered).map(|(batch, _)| batch);
        let Some(batch) = nth(open, pick) else { return };
        let (ids, answered) = self.held.get_mut(&batch).unwrap();
        *answered = true;
        let count = ids.len();
        self.says_up(taken(batch, count));
    }

    fn taker_reads(&mut self) {
        let Some(word) = self.down.pop_front() else { return };
        let (next, action) = self.taker.clone().on(Event::In(&word)).expect("an honest giver is never out of turn");
        self.taker = next;
        match (word, action) {
            (Transfer::Hello(_), Action::Greet) => self.says_up(hello()),
            (Transfer::Offer(offer), Action::Deliver) => {
                let ids = offer.items.iter().map(|item| item.id).collect();
                assert!(self.held.insert(offer.batch, (ids, false)).is_none());
            }
            (Transfer::Release { batch }, Action::Deliver) => {
                let (ids, answered) = self.held.remove(&batch).expect("what is released is held");
                assert!(answered, "only what was answered");
                assert!(ids.iter().all(|id| !self.here.contains(id) && !self.there.contains(id)), "two owners");
                self.there.extend(ids);
                self.released += 1;
            }
            (Transfer::Withdraw { batch }, action) => {
                let (_, answered) = self.held.remove(&batch).expect("what is withdrawn is held");
                assert_eq!(action, if answered { Action::Deliver } else { Action::Drop });
                assert!(self.taker.is_over(batch));
                if !answered {
                    self.says_up(Transfer::Dropped { batch });
                }
            }
            other => panic!("{other:?}"),
        }
        assert!(self.held.len() <= OPEN, "what the taker holds is bounded");
    }

    fn giver_reads(&mut self) {
        let Some(word) = self.up.pop_front() else { return };
        let (next, action) = self.giver.clone().on(Event::In(&word)).expect("an honest taker is never out of turn");
        self.giver = next;
        match (word, action) {
            (Transfer::Hello(_), Action::Deliver) => {}
            (Transfer::Taken { batch, .. }, Action::Deliver) => {
                assert!(self.out.contains_key(&batch), "what was withdrawn is passed over");
                self.answered.push(batch);
            }
            (Transfer::Taken { batch, .. } | Transfer::Dropped { batch }, Action::Ignore) => {
                assert!(!self.out.contains_key(&batch));
            }
            other => panic!("{other:?}"),
        }
    }

    /// Everything that is said is read, everything that is open is answered and let go.
    fn settle(&mut self) {
        while !(self.down.is_empty() && self.up.is_empty() && self.out.is_empty() && self.held.is_empty()) {
            self.taker_reads();
            self.answers(0);
            self.giver_reads();
            self.releases(0);
        }
    }
}

fn nth<'a>(of: impl Iterator<Item = &'a u64> + Clone, pick: usize) -> Option<u64> {
    of.clone().nth(pick.checked_rem(of.count())?).copied()
}

proptest! {
    /// Whatever the owners of both ends do and however the words cross: no word is out of turn, nothing is released that
    /// was withdrawn, no session is relayed by two, and none is lost.
    #[test]
    fn every_interleaving_leaves_each_session_one_owner(
        steps in proptest::collection::vec((0..6_u8, any::<prop::sample::Index>()), 0..120),
    ) {
        let mut world = World::new();
        for (what, pick) in steps {
            let pick = pick.index(1_000);
            match what {
                0 => world.offers(pick),
                1 => world.withdraws(pick),
                2 => world.releases(pick),
                3 => world.answers(pick),
                4 => world.taker_reads(),
                _ => world.giver_reads(),
            }
            for id in 1..=SESSIONS {
                let relayed = world.here.iter().chain(&world.there).filter(|other| **other == id).count();
                let out = world.out.values().flatten().filter(|other| **other == id).count();
                let letting_go = world.down.iter().any(|word| matches!(word, Transfer::Release { .. }));
                prop_assert!(relayed + out == 1 || (relayed + out == 0 && letting_go), "session {}", id);
            }
        }
        world.settle();
        let mut all = [world.here, world.there].concat();
        all.sort_unstable();
        prop_assert_eq!(all, (1..=SESSIONS).collect::<Vec<_>>());
    }

    /// As for the keeper's channel: with nothing on its way, both ends agree on any words in any order.
    #[test]
    fn both_ends_agree_on_any_words_in_any_order(
        picks in proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..60),
    ) {
        let words = words();
        let (mut ours, mut theirs) = stations()[2].clone();
        for (index, down) in picks {
            let word = index.get(&words);
            let (here, there) = verdicts(&ours, &theirs, word, down);
            prop_assert_eq!(here, there, "{:?}", word);
            if here {
                let (at, other) =
                    if down { (Event::Out(word), Event::In(word)) } else { (Event::In(word), Event::Out(word)) };
                (ours, theirs) = (ours.on(at).unwrap().0, theirs.on(other).unwrap().0);
            }
            prop_assert_eq!(&ours.0, &theirs.0, "one conversation, seen from both ends");
        }
    }
}
