//! What is told and counted of moves: how many sessions went, and which were left where they were, each counted and named once.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use admin::command::SessionsAtUpgrade;
use admin::render;
use handoff::ledger::{Phase, SessionSnapshot, sessions};
use serde_json::{Value, json};

use super::owner::Keeper;
use crate::config::order::left;
use crate::observe::events::Happened;
use crate::observe::{names, scene};

/// What has become of the sessions of one generation.
#[derive(Debug, Clone, Default)]
pub(super) struct Moved {
    pub moved: u64,
    /// How many are still there, by why.
    pub left: BTreeMap<String, u64>,
    pub longest_pause: Duration,
    /// Their worker died, and they went on elsewhere.
    pub recovered: u64,
}

/// Ids of sessions that were left, by why, as far as the giver has said them.
pub(super) type Who = BTreeMap<String, Vec<u64>>;

/// Sessions that are named in an event: each takes about 120 bytes of a keeper that keeps 1,024 events. The log has them all,
/// as far as the giver names them.
const IN_EVENT: usize = 100;

impl Moved {
    pub(super) fn add(&mut self, other: Self) {
        self.left = still_left(&self.left, other.moved, &other.left);
        self.moved += other.moved;
        self.longest_pause = self.longest_pause.max(other.longest_pause);
        self.recovered += other.recovered;
    }

    pub(super) fn left(&self) -> u64 {
        self.left.values().sum()
    }

    pub(super) fn longest_pause_ms(&self) -> f64 {
        self.longest_pause.as_secs_f64() * 1e3
    }

    /// For a report.
    pub(super) fn sessions(self) -> SessionsAtUpgrade {
        let left = self.left();
        let Self { moved, left: left_why, recovered, .. } = self;
        SessionsAtUpgrade { moved, left, left_why, recovered, ..SessionsAtUpgrade::default() }
    }
}

/// Those left `before`, of which `more` have gone since and these are there `now`: the others have ended where they were, and
/// were left there for the reasons of then.
pub(super) fn still_left(
    before: &BTreeMap<String, u64>,
    more: u64,
    now: &BTreeMap<String, u64>,
) -> BTreeMap<String, u64> {
    let total = |left: &BTreeMap<String, u64>| left.values().sum::<u64>();
    let mut ended = total(before).saturating_sub(total(now)).saturating_sub(more);
    let mut left = now.clone();
    for (why, count) in before {
        let gone = count.saturating_sub(now.get(why).copied().unwrap_or(0)).min(ended);
        ended -= gone;
        if gone > 0 {
            *left.entry(why.clone()).or_default() += gone;
        }
    }
    left
}

impl Keeper {
    /// Counts, names and tells what a giver has said. Its sessions only become fewer: what was counted as left once is not
    /// counted again, over whatever path it is looked at.
    pub(super) fn tell_moved(&mut self, giver: u32, to: u32, upgrade: Option<u64>, moved: &Moved, who: &Who) {
        let known = self.generations.get_mut(&giver);
        let more = known.map_or(0, |known| {
            let more = moved.left().saturating_sub(known.left);
            known.left += more;
            more
        });
        self.tally.moved("moved", moved.moved);
        self.tally.moved("left", more);
        if moved.moved == 0 && more == 0 {
            return;
        }
        let pause = moved.longest_pause_ms();
        let what = render::moved(&moved.clone().sessions(), pause);
        tracing::info!(from = giver, to, "{what}");
        let happened = Happened::new("sessions_moved", format!("generation {giver} -> {to}: {what}")).generation(giver);
        let happened = upgrade.into_iter().fold(happened, Happened::upgrade);
        let left = serde_json::to_value(&moved.left).unwrap_or_default();
        let happened =
            happened.with("to", to).with("moved", moved.moved).with("left", left).with("longest_pause_ms", pause);
        let named = if more > 0 { self.name_left(giver, &moved.left, who) } else { Vec::new() };
        self.happenings.tell(if named.is_empty() { happened } else { happened.with("left_sessions", named) });
    }

    /// In the log; gives the first of them for an event.
    fn name_left(&self, giver: u32, counts: &BTreeMap<String, u64>, who: &Who) -> Vec<Value> {
        let live = sessions(self.ledger.segments()).into_iter();
        let theirs = live.filter(|session| session.generation == giver && session.phase != Phase::Closed).collect();
        let named = with_reasons(theirs, counts, who);
        for (session, why) in named.iter().take(left::NAMED) {
            tracing::info!(
                id = session.id,
                generation = giver,
                listener = session.listener,
                pool = session.pool,
                backend = names::last_label(&session.backend),
                client = client(session),
                reason = why,
                "session left"
            );
        }
        if let Some(more) = named.len().checked_sub(left::NAMED).filter(|more| *more > 0) {
            tracing::info!(generation = giver, sessions = more, "more sessions were left, and are not named");
        }
        named.iter().take(IN_EVENT).map(|(session, why)| in_event(session, why)).collect()
    }

    /// Those of listeners with `survive_crash` that would not outlive their worker now.
    pub(super) fn unprotected(&self) -> u64 {
        scene::all_unprotected(&sessions(self.ledger.segments()))
    }
}

/// Each with why it was left: as its giver has said, else by what is left of the counts. What has none was not left by then.
fn with_reasons(
    live: Vec<SessionSnapshot>,
    counts: &BTreeMap<String, u64>,
    who: &Who,
) -> Vec<(SessionSnapshot, String)> {
    let said: HashMap<u64, &String> = who.iter().flat_map(|(why, ids)| ids.iter().map(move |id| (*id, why))).collect();
    let unsaid = |(why, count): (&String, &u64)| {
        let named = who.get(why).map_or(0, Vec::len);
        (why.clone(), count.saturating_sub(named as u64))
    };
    let mut unsaid: BTreeMap<String, u64> = counts.iter().map(unsaid).collect();
    let reason = |session: SessionSnapshot| {
        if let Some(why) = said.get(&session.id) {
            return Some((session, (*why).clone()));
        }
        let connects = session.phase == Phase::Connecting;
        let fits = |why: &str| (why == left::CONNECTING) == connects;
        let (why, count) = unsaid.iter_mut().find(|(why, count)| **count > 0 && fits(why))?;
        *count -= 1;
        Some((session, why.clone()))
    };
    live.into_iter().filter_map(reason).collect()
}

fn in_event(session: &SessionSnapshot, why: &str) -> Value {
    json!({
        "id": session.id,
        "listener": session.listener,
        "client": client(session),
        "backend": names::last_label(&session.backend),
        "why": why,
    })
}

fn client(session: &SessionSnapshot) -> String {
    session.client.map_or_else(|| "unix".into(), |client| client.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(left: &[(&str, u64)]) -> BTreeMap<String, u64> {
        left.iter().map(|(why, count)| ((*why).to_owned(), *count)).collect()
    }

    #[test]
    fn several_moves_of_an_upgrade_are_one_report() {
        let pause = Duration::from_millis;
        let mut all = Moved { moved: 5, left: counts(&[(left::PEER_GONE, 3)]), longest_pause: pause(2), recovered: 0 };
        all.add(Moved { moved: 2, left: counts(&[(left::CONNECTING, 1)]), longest_pause: pause(1), recovered: 4 });
        assert_eq!((all.moved, all.left(), all.longest_pause_ms(), all.recovered), (7, 1, 2.0, 4));
    }

    #[test]
    fn what_followed_is_not_left_and_what_ended_there_was() {
        let before = counts(&[(left::CONNECTING, 3), (left::REFUSED, 2)]);
        for (more, now, wanted) in [
            (0, counts(&[]), before.clone()),
            (
                1,
                counts(&[(left::CONNECTING, 2), (left::REFUSED, 2)]),
                counts(&[(left::CONNECTING, 2), (left::REFUSED, 2)]),
            ),
            (2, counts(&[(left::REFUSED, 1)]), counts(&[(left::CONNECTING, 2), (left::REFUSED, 1)])),
            (5, counts(&[]), counts(&[])),
            (3, counts(&[(left::TIMEOUT, 2)]), counts(&[(left::TIMEOUT, 2)])),
        ] {
            assert_eq!(still_left(&before, more, &now), wanted, "{more} more, {now:?} still there");
        }
    }

    fn session(id: u64, phase: Phase) -> SessionSnapshot {
        SessionSnapshot {
            id,
            generation: 1,
            thread: 0,
            listener: "main".into(),
            pool: "pool".into(),
            backend: String::new(),
            phase,
            client: None,
            backend_address: None,
            opened_unix_us: 0,
            opened_ms: 0,
            last_byte_ms: 0,
            received: 0,
            sent: 0,
            unsent_to_client: -1,
            unsent_to_backend: -1,
            reason: 0,
            protection: 0,
            marks: 0,
        }
    }

    #[test]
    fn each_session_left_has_its_reason_whether_the_giver_named_it_or_not() {
        let live = (1..=6).map(|id| session(id, if id < 3 { Phase::Connecting } else { Phase::Established })).collect();
        let left = counts(&[(left::CONNECTING, 2), (left::ENDING, 1), (left::NO_ROOM, 2)]);
        let who = BTreeMap::from([(left::ENDING.to_owned(), vec![5])]);
        let named = with_reasons(live, &left, &who);
        let named: Vec<(u64, &str)> = named.iter().map(|(session, why)| (session.id, why.as_str())).collect();
        let wanted =
            [(1, left::CONNECTING), (2, left::CONNECTING), (3, left::NO_ROOM), (4, left::NO_ROOM), (5, left::ENDING)];
        assert_eq!(named, wanted, "the sixth came later");
    }
}
