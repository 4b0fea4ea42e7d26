//! What has become of the sessions of a giver: how many moved, and why the others did not.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::config::order::left;

/// So often a session is offered; then it stays.
const TRIES: u32 = 2;

#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) moved: u64,
    /// Microseconds.
    pub(super) longest_us: u64,
    /// How often a session was offered in vain, and why the last time.
    tried: HashMap<u64, (u32, &'static str)>,
    /// Not to be frozen in this round.
    passed_over: Arc<HashSet<u64>>,
    /// Those of them that the next round tries again.
    again: bool,
    /// By thread, as of its last complete look: those that connect, those that are ending.
    looks: BTreeMap<usize, (Vec<u64>, Vec<u64>)>,
}

impl Tally {
    /// Nanoseconds, until the sessions of a batch went on, at either end.
    pub(super) fn stood_still(&mut self, pause_ns: u64) {
        self.longest_us = self.longest_us.max(pause_ns / 1_000);
    }

    /// Gone, some of them at a second try.
    pub(super) fn went(&mut self, gone: &HashSet<u64>) {
        self.moved += gone.len() as u64;
        self.tried.retain(|id, _| !gone.contains(id));
    }

    /// Offered in vain.
    pub(super) fn failed(&mut self, id: u64, why: &'static str) {
        let (tries, last) = self.tried.entry(id).or_insert((0, why));
        (*tries, *last) = (*tries + 1, why);
        self.again |= *tries < TRIES;
        Arc::make_mut(&mut self.passed_over).insert(id);
    }

    /// A new round; says whether it has something to try again.
    pub(super) fn begin_again(&mut self) -> bool {
        if std::mem::take(&mut self.again) {
            let tried = &self.tried;
            Arc::make_mut(&mut self.passed_over).retain(|id| tried.get(id).is_some_and(|(tries, _)| *tries >= TRIES));
            return true;
        }
        false
    }

    /// Some of those that were tried last found no room.
    pub(super) fn wants_room(&self) -> bool {
        self.tried.values().any(|(_, why)| *why == left::NO_ROOM)
    }

    pub(super) fn passed_over(&self) -> Arc<HashSet<u64>> {
        Arc::clone(&self.passed_over)
    }

    pub(super) fn look(&mut self, thread: usize, connecting: Vec<u64>, ending: Vec<u64>) {
        self.looks.insert(thread, (connecting, ending));
    }

    /// Some may yet move.
    pub(super) fn is_awaiting(&self) -> bool {
        self.looks.values().any(|(connecting, _)| !connecting.is_empty())
    }

    pub(super) fn tried(&self) -> Vec<u64> {
        self.tried.keys().copied().collect()
    }

    /// How many are still here, by why. Of those that were tried only the ones `still` here count; what else is `live` was
    /// never tried, for the reason `untried`, if there is one.
    pub(super) fn left(
        &mut self,
        still: &HashSet<u64>,
        live: usize,
        untried: Option<&'static str>,
    ) -> BTreeMap<String, u64> {
        self.tried.retain(|id, _| still.contains(id));
        let mut left: BTreeMap<&str, u64> = BTreeMap::new();
        for (connecting, ending) in self.looks.values() {
            *left.entry(left::CONNECTING).or_default() += connecting.len() as u64;
            *left.entry(left::ENDING).or_default() += ending.len() as u64;
        }
        for (_, why) in self.tried.values() {
            *left.entry(why).or_default() += 1;
        }
        if let Some(why) = untried {
            let known: u64 = left.values().sum();
            *left.entry(why).or_default() += (live as u64).saturating_sub(known);
        }
        left.into_iter()
            .filter(|(_, sessions)| *sessions > 0)
            .map(|(why, sessions)| (why.to_owned(), sessions))
            .collect()
    }

    /// Of those [`Self::left`] has counted, the ones that were looked at, as many as may be named.
    pub(super) fn who(&self) -> BTreeMap<String, Vec<u64>> {
        let looked = self.looks.values().flat_map(|(connecting, ending)| {
            let connecting = connecting.iter().map(|id| (left::CONNECTING, *id));
            connecting.chain(ending.iter().map(|id| (left::ENDING, *id)))
        });
        let tried = self.tried.iter().map(|(id, (_, why))| (*why, *id));
        let mut who: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (why, id) in looked.chain(tried).take(left::NAMED) {
            who.entry(why.to_owned()).or_default().push(id);
        }
        who
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_tried_twice_and_then_stays() {
        let mut tally = Tally::default();
        tally.failed(7, left::TIMEOUT);
        assert!(tally.passed_over().contains(&7), "not twice in one round");
        assert!(tally.begin_again());
        assert!(tally.passed_over().is_empty());
        tally.failed(7, left::REFUSED);
        tally.failed(8, left::NO_ROOM);
        assert!(tally.begin_again(), "for the other");
        assert_eq!(*tally.passed_over(), HashSet::from([7]));
        assert!(!tally.begin_again());
    }

    #[test]
    fn room_is_wanted_until_all_that_found_none_have_gone() {
        let mut tally = Tally::default();
        tally.failed(7, left::NO_ROOM);
        tally.failed(8, left::REFUSED);
        assert!(tally.wants_room());
        tally.went(&HashSet::from([7]));
        assert!(!tally.wants_room());
        assert_eq!((tally.moved, tally.tried()), (1, vec![8]));
    }

    #[test]
    fn what_is_left_is_counted_once_with_its_reason() {
        let mut tally = Tally::default();
        tally.look(0, vec![1, 2, 3], vec![4]);
        tally.look(0, vec![1, 2], vec![]);
        tally.look(1, vec![5], vec![]);
        assert!(tally.is_awaiting());
        tally.failed(7, left::TIMEOUT);
        tally.failed(8, left::TIMEOUT);
        let counted = |left: BTreeMap<String, u64>| left.into_iter().collect::<Vec<_>>();
        let named = |word: &str, n| (word.to_owned(), n);
        assert_eq!(
            counted(tally.left(&HashSet::from([7]), 9, Some(left::PEER_GONE))),
            [named("connecting", 3), named("peer_gone", 5), named("timeout", 1)]
        );
        let who = |word: &str, ids: &[u64]| (word.to_owned(), ids.to_vec());
        assert_eq!(Vec::from_iter(tally.who()), [who("connecting", &[1, 2, 5]), who("timeout", &[7])]);
        assert_eq!(counted(tally.left(&HashSet::new(), 9, None)), [named("connecting", 3)]);
        tally.look(2, (10..5_000).collect(), vec![]);
        assert_eq!(tally.who().values().map(Vec::len).sum::<usize>(), left::NAMED);
    }
}
