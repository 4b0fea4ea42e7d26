//! Sessions go from a generation that polls no more to the one that serves. The keeper gives each of the two one end of a path,
//! and hears what became of it; the sessions themselves it never sees. What has not gone in time drains as before; the path
//! stays open for those that can go later.

use std::collections::BTreeMap;
use std::time::Duration;

use handoff::transfer::{self, Role};
use tokio::time::Instant;

use super::event::Event;
use super::generation::{Generation, Parting, State};
use super::link::PathEnd;
use super::owner::Keeper;
use super::restart::LAST_WORDS;
use super::told::{Moved, Who};
use super::upgrade::SILENCE;
use crate::config::Drain;
use crate::config::order::{Notice, left};
use crate::observe::scene::{Standing, now_ms};

/// Paths under way, by who gives.
#[derive(Debug)]
pub(super) struct Moving {
    last: u64,
    paths: BTreeMap<u32, Path>,
}

#[derive(Debug)]
struct Path {
    id: u64,
    /// Who takes.
    to: u32,
    /// Of which upgrade's report it is a part.
    upgrade: Option<u64>,
    /// As last told.
    moved: u64,
    /// All that could go at first has gone.
    is_settled: bool,
    /// It has ended: when another one may be laid.
    again: Option<Instant>,
    /// Paths before this one, to the same generation, over which nothing has gone.
    failures: u32,
}

/// Longest wait for sessions to go before the rest drains; a batch that is not taken has 2 s.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Between two paths from the same generation to the same one, where the first has ended early; twice as long each time that
/// nothing has gone, up to the last.
const AGAIN: Duration = Duration::from_secs(5);
const AT_LAST: Duration = Duration::from_secs(60);

/// Why sessions are left, beside the words of the worker: one of the two knows no paths.
const OLDER_VERSION: &str = "older_version";

impl Default for Moving {
    fn default() -> Self {
        // Above the numbers of every earlier image of this keeper, whose notices may still be on their way.
        Self { last: now_ms() << 10, paths: BTreeMap::new() }
    }
}

impl Moving {
    /// Of a path that is none between generations.
    pub(super) fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

impl Path {
    /// It has ended. Says whether it did because the taker has died, most likely, of which we are about to hear.
    fn ends(&mut self, is_taker_lost: bool) -> bool {
        let is_sudden = is_taker_lost && self.failures == 0;
        let pause = AGAIN.saturating_mul(1 << self.failures.min(8)).min(AT_LAST);
        self.again = Some(Instant::now() + if is_sudden { LAST_WORDS } else { pause });
        is_sudden
    }

    /// Of the next one to the same generation.
    fn next_failures(&self) -> u32 {
        if self.moved == 0 { self.failures + 1 } else { 0 }
    }
}

impl Keeper {
    /// A generation is to poll no more, then as in [`Self::part`]. Beside the loop: it may hang.
    pub(super) fn stop_and_part(&mut self, id: u32, drain: Drain, moves: bool) {
        let Some(generation) = self.generations.get_mut(&id) else { return };
        generation.is_stopping = true;
        generation.stays |= !moves;
        let link = generation.link.clone();
        self.later(async move {
            let stopped = link.stop().await;
            if let Err(error) = &stopped {
                tracing::warn!(generation = id, %error, "did not confirm that it stopped");
            }
            Event::Stopped { generation: id, drain, confirmed: stopped.is_ok() }
        });
    }

    pub(super) async fn stopped(&mut self, id: u32, drain: Drain, confirmed: bool) {
        let Some(generation) = self.generations.get_mut(&id) else { return };
        // One that has not confirmed it finds the order before all that follow.
        generation.is_stopping = !confirmed;
        let moves = !generation.stays;
        self.part(id, drain, moves).await;
    }

    /// The sessions of a generation that polls no more go to the one that serves, if they move; then what is left drains.
    pub(super) async fn part(&mut self, id: u32, drain: Drain, moves: bool) {
        let patience = PATIENCE.min(self.config().upgrade.ready_timeout);
        let Some(generation) = self.generations.get_mut(&id) else { return };
        // One that hangs is not waited for: what it has can go when it wakes.
        let (now, was_silent) = (Instant::now(), std::mem::take(&mut generation.is_stopping));
        let hangs = {
            let heard = generation.link.heard();
            (was_silent && heard.is_late(now)) || self.watch.silence(&heard, now) >= SILENCE
        };
        let patience = if hangs { Duration::ZERO } else { patience };
        generation.stays |= !moves;
        generation.parting = Some(Parting::within(patience, drain));
        if generation.state != State::Failed {
            generation.state = State::Draining;
        }
        self.move_all().await;
        if hangs {
            self.is_late(id).await;
        }
    }

    /// Every generation that polls no more has a path to the one that serves, as long as it has sessions.
    pub(super) async fn move_all(&mut self) {
        let givers: Vec<u32> =
            self.generations.values().filter(|giver| self.wants_path(giver)).map(|giver| giver.id).collect();
        if givers.is_empty() {
            return;
        }
        let live = handoff::ledger::sessions(self.ledger.segments());
        for giver in givers {
            let sessions = live.iter().filter(|session| session.generation == giver).count() as u64;
            match self.taker_for(giver, sessions) {
                Ok(Some(taker)) => self.lay_path(giver, taker),
                // Nobody serves now; its time is bounded.
                Ok(None) => {}
                Err(why) => {
                    self.is_left(giver, why, sessions);
                    self.has_parted(giver).await;
                }
            }
        }
    }

    /// Whether it is in a state to give, and has no path yet to the one that serves, or waits for something else.
    fn wants_path(&self, giver: &Generation) -> bool {
        let polls_no_more = matches!(giver.state, State::Draining | State::Failed) && !giver.is_stopping;
        let waits = giver.parting.is_some() || (!giver.stays && giver.link.knows_paths());
        let path = self.moving.paths.get(&giver.id).filter(|path| Some(path.to) == self.serving);
        let is_under_way = path.is_some_and(|path| path.again.is_none_or(|again| Instant::now() < again));
        polls_no_more && waits && !giver.is_heirs() && !is_under_way
    }

    /// Who takes this generation's sessions; `Ok(None)`: nobody at the moment. `Err`: they do not go, and why, if there are any.
    fn taker_for(&self, giver: u32, sessions: u64) -> Result<Option<u32>, Option<&'static str>> {
        let Some(giver) = self.generations.get(&giver) else { return Ok(None) };
        let serves_on = self.standing != Standing::ShuttingDown && !self.closing && self.apprentice.is_none();
        if sessions == 0 || giver.stays || !serves_on {
            return Err(None);
        }
        if !giver.link.knows_paths() {
            return Err(Some(OLDER_VERSION));
        }
        if self.trial().is_some() {
            return Ok(None);
        }
        let taker = self.serving_generation().filter(|taker| !taker.is_heirs() && taker.state == State::Serving);
        match taker {
            Some(taker) if !taker.link.knows_paths() => Err(Some(OLDER_VERSION)),
            taker => Ok(taker.map(|taker| taker.id)),
        }
    }

    fn lay_path(&mut self, giver: u32, taker: u32) {
        let link = |id| self.generations.get(&id).map(|generation| generation.link.clone());
        let Some((from, to)) = link(giver).zip(link(taker)) else { return };
        self.moving.last += 1;
        let id = self.moving.last;
        let upgrade = self.upgrade_of(giver);
        let before = self.moving.paths.get(&giver).filter(|path| path.to == taker && path.again.is_some());
        let failures = before.map_or(0, Path::next_failures);
        let path = Path { id, to: taker, upgrade, moved: 0, is_settled: false, again: None, failures };
        self.moving.paths.insert(giver, path);
        tracing::debug!(path = id, from = giver, to = taker, "a path for sessions");
        let events = self.events.clone();
        self.tasks.spawn_local(async move {
            let laid = async {
                let (give, take) = transfer::pair()?;
                // Who takes is there before the other one begins.
                to.path(PathEnd { id, role: Role::Take, other: giver, end: take }).await?;
                from.path(PathEnd { id, role: Role::Give, other: taker, end: give }).await
            };
            if let Err(error) = laid.await {
                let why = error.to_string();
                // Ends with the keeper.
                let _ = events.send(Event::PathLost { generation: giver, path: id, why }).await;
            }
        });
    }

    pub(super) async fn path_lost(&mut self, giver: u32, path: u64, why: &str) {
        let Some(known) = self.moving.paths.get_mut(&giver).filter(|known| known.id == path) else { return };
        known.ends(false);
        tracing::warn!(generation = giver, to = known.to, why, "no path for its sessions");
        self.has_parted(giver).await;
    }

    /// Its worker tells what has gone.
    pub(super) async fn noticed(&mut self, giver: u32, notice: Notice) {
        let Notice::Moved { path, moved, left, who, longest_pause_us, over } = notice;
        let Some(known) = self.moving.paths.get_mut(&giver).filter(|known| known.id == path) else { return };
        let is_first = !std::mem::replace(&mut known.is_settled, true);
        let more = moved.saturating_sub(std::mem::replace(&mut known.moved, moved));
        let is_taker_lost = over && known.ends(left.contains_key(left::PEER_GONE));
        let (to, upgrade) = (known.to, known.upgrade);
        let longest_pause = Duration::from_micros(longest_pause_us);
        let moved = Moved { moved: more, left, longest_pause, recovered: 0 };
        self.tell_moved(giver, to, upgrade, &moved, &who);
        if more > 0 {
            if is_first {
                self.tally.session_pause(longest_pause.as_secs_f64());
            }
            self.drain_newcomers(to);
        }
        self.told_of_upgrade(upgrade, moved);
        if !is_taker_lost {
            self.has_parted(giver).await;
        }
    }

    /// These do not move at all.
    fn is_left(&mut self, giver: u32, why: Option<&'static str>, sessions: u64) {
        let is_told = self.generations.get(&giver).is_some_and(|giver| giver.parting.is_some());
        let Some(why) = why.filter(|_| is_told) else { return };
        let left = BTreeMap::from([(why.to_owned(), sessions)]);
        let (moved, upgrade) = (Moved { left, ..Moved::default() }, self.upgrade_of(giver));
        self.tell_moved(giver, self.serving.unwrap_or(0), upgrade, &moved, &Who::new());
        self.told_of_upgrade(upgrade, moved);
    }

    /// All that could go now has gone, or will not: the rest drains.
    pub(super) async fn has_parted(&mut self, giver: u32) {
        self.upgrade_goes_on(giver);
        let parting = self.generations.get_mut(&giver).and_then(|generation| generation.parting.take());
        if let Some(parting) = parting {
            self.retire(giver, parting.drain).await;
        }
        self.upgrade_has_parted(giver).await;
    }

    /// At every tick: whose time is over drains; and what has sessions has a path.
    pub(super) async fn look_after_moves(&mut self, now: Instant) {
        let is_late = |generation: &&Generation| generation.parting.is_some_and(|parting| parting.until <= now);
        let late: Vec<u32> = self.generations.values().filter(is_late).map(|generation| generation.id).collect();
        for giver in late {
            self.is_late(giver).await;
        }
        self.move_all().await;
    }

    /// Its sessions have had their time.
    async fn is_late(&mut self, giver: u32) {
        let waits = self.generations.get(&giver).is_some_and(|generation| generation.parting.is_some());
        let is_settled = self.moving.paths.get(&giver).is_some_and(|path| path.is_settled);
        let sessions = self.sessions_of(giver);
        if waits && !is_settled && sessions > 0 {
            tracing::warn!(generation = giver, sessions, "its sessions did not move in time; they drain");
            self.is_left(giver, Some(left::TIMEOUT), sessions);
        }
        if waits {
            self.has_parted(giver).await;
        }
    }

    /// A process has ended: it gives and takes no more.
    pub(super) async fn moves_without(&mut self, gone: u32) {
        self.moving.paths.remove(&gone);
        for path in self.moving.paths.values_mut().filter(|path| path.to == gone) {
            path.again = Some(Instant::now());
        }
        self.has_parted(gone).await;
    }

    /// Where the sessions of this generation go now.
    pub(super) fn moves_to(&self, giver: u32) -> Option<u32> {
        self.moving.paths.get(&giver).filter(|path| path.again.is_none()).map(|path| path.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(moved: u64, failures: u32) -> Path {
        Path { id: 1, to: 2, upgrade: None, moved, is_settled: false, again: None, failures }
    }

    #[tokio::test(start_paused = true)]
    async fn a_path_that_leads_nowhere_is_laid_again_ever_less_often() {
        let wait = |mut path: Path, lost| {
            let is_sudden = path.ends(lost);
            (path.again.unwrap() - Instant::now(), is_sudden, path.next_failures())
        };
        let seconds = Duration::from_secs;
        assert_eq!(wait(path(0, 0), true), (LAST_WORDS, true, 1), "who takes may have died");
        assert_eq!(wait(path(7, 0), false), (seconds(5), false, 0), "something has gone");
        assert_eq!(wait(path(0, 1), true), (seconds(10), false, 2), "it lives, and does not take");
        assert_eq!(wait(path(0, 9), false), (seconds(60), false, 10));
        assert_eq!(wait(path(0, u32::MAX - 1), true).0, seconds(60));
    }
}
