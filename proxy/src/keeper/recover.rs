//! Sessions whose worker died go on in the worker that serves: the keeper gives what it holds of them, as one worker gives to
//! another. Nobody knows what the dead worker was about to do; what it had done is in the kernel and in the ledger.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use handoff::ledger::{Phase, Place, Whereabouts};
use handoff::vault::Belongings;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::blame;
use super::event::Event;
use super::owner::Keeper;
use super::reaper::Exit;
use super::restart::count_lost;
use super::told::Moved;
use crate::config::order::left;
use crate::observe::events::Happened;
use crate::observe::reason::{Cause, Protection, Reason, Unprotected};
use crate::session;
use give::{Give, Terms};

mod give;

/// Sessions that are to go on elsewhere.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// There may be some.
    is_due: bool,
    under_way: Option<AbortHandle>,
    /// After a try that failed.
    not_before: Option<Instant>,
    /// Tries in a row in which none went.
    failures: u32,
    /// How often a session was refused.
    refused: HashMap<u64, u32>,
    /// Those for which the worker that serves had no descriptors, as last said.
    waiting: usize,
}

/// What came of one try.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    to: u32,
    /// How many, by the generation that is dead.
    sessions: BTreeMap<u32, u64>,
    /// Not taken, and why.
    refused: Vec<(Lost, String)>,
    /// Not offered: the worker has no descriptors for them now.
    waiting: usize,
    /// The rest is still to be done.
    error: Option<String>,
}

/// A session of a dead owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lost {
    id: u64,
    place: Place,
    from: u32,
}

/// Then those that are left end: their peers have waited long enough.
const FAILURES: u32 = 10;
/// A worker may still hold a session that its dead giver had offered; it lets go within moments.
const TRIES: u32 = 3;
/// Before another try.
const AGAIN: Duration = Duration::from_secs(1);

impl Recovery {
    /// Says whether this refusal was one too many. Want of room passes, and counts for nothing.
    fn is_given_up(&mut self, id: u64, why: &str) -> bool {
        if why == left::NO_ROOM {
            return false;
        }
        let tries = self.refused.entry(id).or_default();
        *tries += 1;
        let is_over = *tries >= TRIES;
        if is_over {
            self.refused.remove(&id);
        }
        is_over
    }

    /// A try is under way, or about to be: what else is to be done with the vault waits for it.
    pub(super) fn is_at_work(&self) -> bool {
        self.under_way.is_some() || (self.is_due && self.not_before.is_none())
    }

    /// No worker is to take any more. When this returns, the vault has back what was on its way.
    pub(super) async fn abandon(&mut self) {
        let Some(task) = self.under_way.take() else { return };
        task.abort();
        while !task.is_finished() {
            tokio::task::yield_now().await;
        }
        self.is_due = true;
    }
}

impl Keeper {
    /// A worker is dead. Gives the sessions that outlive it; those that it had ended, and those that have brought down too many
    /// workers, end here.
    pub(super) fn outliving(&mut self, id: u32, exit: Exit, is_over: bool) -> HashSet<u64> {
        let confessed = self.vault.drain(id);
        let is_crash = confessed.is_some() || blame::is_crash(exit);
        let worked_on = match confessed {
            Some(threads) => self.ledger.worked_on_by(id, |thread| threads.contains(&thread)),
            None => self.ledger.worked_on(id),
        };
        let guilty = if is_crash { self.blame.crashed(&worked_on, Instant::now()) } else { Vec::new() };
        let (mut outliving, mut doubtful) = (HashSet::new(), 0);
        for (session, place) in self.vault.places() {
            let is_theirs = |found: &Whereabouts| found.generation == id;
            match self.ledger.whereabouts(place, session).filter(is_theirs) {
                Some(Whereabouts { phase: Phase::Closed, reason, .. }) => self.end_closed(session, reason),
                Some(_) if is_over => self.reset(session),
                Some(_) if guilty.contains(&session) => self.end_guilty(session, id),
                Some(Whereabouts { phase: Phase::Established, protection, .. }) if was_turned_away(protection) => {
                    self.reset(session);
                }
                Some(Whereabouts { phase: Phase::Established, .. }) if !exit.is_certain() => {
                    self.reset(session);
                    doubtful += 1;
                }
                Some(Whereabouts { phase: Phase::Established, .. }) => {
                    outliving.insert(session);
                }
                _ => {}
            }
        }
        self.say_doubtful(id, doubtful);
        self.recovery.is_due |= !outliving.is_empty();
        outliving
    }

    /// Gives sessions of dead workers to the one that serves, if there are any and it does. Beside the loop.
    pub(super) fn recover(&mut self) {
        if !self.recovery.is_due || self.recovery.under_way.is_some() || self.retired || self.apprentice.is_some() {
            return;
        }
        if self.closing {
            // No worker is started any more.
            return self.end_all_lost();
        }
        if self.recovery.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.recovery.not_before = None;
        // An heir on trial passes the path on to its worker.
        let Some(taker) = self.serving_generation() else { return };
        let (to, link) = (taker.id, taker.link.clone());
        let lost = self.lost();
        self.recovery.is_due = false;
        let ids: HashSet<u64> = lost.iter().map(|lost| lost.id).collect();
        self.recovery.refused.retain(|id, _| ids.contains(id));
        if lost.is_empty() {
            return;
        }
        if !link.knows_paths() {
            tracing::error!(
                generation = to,
                sessions = lost.len(),
                "the worker that serves takes no sessions; they end"
            );
            return lost.into_iter().for_each(|lost| self.end_lost(lost));
        }
        let path = self.moving.number();
        let terms = Terms::of(self.config());
        let give = Give { path, to, link, ledger: self.ledger.clone(), vault: self.vault.clone(), terms, lost };
        self.recovery.under_way = Some(self.later(async move { Event::Recovered(Box::new(give.run().await)) }));
    }

    /// Sessions are on their way to a worker, or wait for one.
    pub(super) fn is_recovering(&self) -> bool {
        self.recovery.is_due || self.recovery.under_way.is_some()
    }

    pub(super) fn recovered(&mut self, recovered: Recovered) {
        let Recovered { to, sessions, refused, waiting, error } = recovered;
        self.recovery.under_way = None;
        // What the new owner has taken may be lost again by now.
        self.recovery.is_due = true;
        // A taker that has died says nothing of the next one.
        let is_living = self.serving == Some(to);
        let waits = is_living && (error.is_some() || !refused.is_empty() || waiting > 0);
        self.recovery.not_before = waits.then(|| Instant::now() + AGAIN);
        for (from, sessions) in &sessions {
            let text = format!("generation {to} goes on with {sessions} sessions of generation {from}, which died");
            tracing::info!(generation = to, from, sessions, "sessions recovered");
            self.happenings.tell(
                Happened::new("sessions_recovered", text)
                    .generation(to)
                    .with("from", *from)
                    .with("sessions", *sessions),
            );
        }
        self.tally.recovered("recovered", sessions.values().sum());
        for (from, recovered) in &sessions {
            let upgrade = self.upgrade.as_ref().map(|upgrade| upgrade.id).or_else(|| self.upgrade_of(*from));
            self.told_of_upgrade(upgrade, Moved { recovered: *recovered, ..Moved::default() });
        }
        self.say_waiting(to, waiting + refused.iter().filter(|(_, why)| why == left::NO_ROOM).count());
        for (lost, why) in refused {
            if !self.recovery.is_given_up(lost.id, &why) {
                tracing::debug!(id = lost.id, generation = to, why, "a session of a dead worker was refused");
                continue;
            }
            tracing::error!(id = lost.id, generation = to, why, "a session of a dead worker cannot go on");
            self.end_lost(lost);
        }
        let has_failed = is_living && error.is_some() && sessions.is_empty();
        self.recovery.failures = if has_failed { self.recovery.failures + 1 } else { 0 };
        if !sessions.is_empty() {
            self.drain_newcomers(to);
        }
        if let Some(error) = error {
            tracing::warn!(generation = to, error, "sessions of a dead worker were not all taken");
        }
        if self.recovery.failures >= FAILURES {
            self.recovery.failures = 0;
            let lost = self.lost();
            tracing::error!(generation = to, sessions = lost.len(), "sessions of a dead worker are given up");
            lost.into_iter().for_each(|lost| self.end_lost(lost));
        }
    }

    /// Nobody takes them: what waits ends here and is counted, also what is on its way to a worker that is dead.
    pub(super) fn end_all_lost(&mut self) {
        self.recovery.is_due = false;
        let lost = self.lost();
        lost.into_iter().for_each(|lost| self.end_lost(lost));
    }

    /// Ends these by the operator's word, as far as they wait for a worker in the place of their dead one. One that is on its
    /// way to that worker is left alone: it has an owner in a moment, or is back here.
    pub(super) fn kill_held(&mut self, ids: &[u64], reply: oneshot::Sender<u64>) {
        let is_ours = !self.retired && self.apprentice.is_none();
        let meant: HashSet<u64> = ids.iter().copied().filter(|_| is_ours).collect();
        let mut closed = 0;
        for Lost { id, place, .. } in self.lost() {
            if !meant.contains(&id) || self.vault.with(id, |_, _| ()).is_none() {
                continue;
            }
            self.reset(id);
            let writer = &self.writer;
            let is_there = self.ledger.bury_one(place, id, &mut |session| {
                count_lost(writer, session, Reason::AdminKilled, Some(Cause::Admin));
            });
            closed += u64::from(is_there);
        }
        // Whoever asked may be gone.
        let _ = reply.send(closed);
    }

    /// Everything of the vault that nobody living owns.
    fn lost(&mut self) -> Vec<Lost> {
        let mut lost = Vec::new();
        for (id, place) in self.vault.places() {
            let Some(found) = self.ledger.whereabouts(place, id) else { continue };
            let from = found.generation;
            let lives = self.generations.contains_key(&from) || self.ghosts.iter().any(|(ghost, _)| *ghost == from);
            if !lives && found.phase == Phase::Established {
                lost.push(Lost { id, place, from });
            }
        }
        lost
    }

    /// Its worker had counted its end, and may not have said it.
    fn end_closed(&self, session: u64, reason: u16) {
        if !matches!(Reason::of_code(reason), Some(Reason::ClientClosed | Reason::BackendClosed)) {
            return self.reset(session);
        }
        if let Some(Belongings { client, backend, .. }) = self.vault.take_out(session) {
            session::finish(&client, &backend);
        }
    }

    fn reset(&self, session: u64) {
        if let Some(Belongings { client, backend, .. }) = self.vault.take_out(session) {
            session::reset(&client, &backend);
        }
    }

    fn end_guilty(&mut self, session: u64, generation: u32) {
        self.reset(session);
        self.tally.recovered("lost", 1);
        let text = format!("session {session} was being worked on in three crashes within 10 s; it is closed");
        tracing::error!(id = session, generation, "{text}");
        self.happenings.tell(Happened::new("session_blamed", text).generation(generation).with("session", session));
    }

    /// Two workers must never read one stream: what one of which nobody knows that it is dead had, ends.
    fn say_doubtful(&mut self, generation: u32, sessions: u64) {
        if sessions == 0 {
            return;
        }
        self.tally.recovered("lost", sessions);
        let text = format!(
            "{sessions} sessions of generation {generation} do not go on: nobody knows that its worker, of another PID namespace, is dead; they are reset"
        );
        tracing::error!(generation, sessions, "{text}");
        self.happenings
            .tell(Happened::new("sessions_not_recovered", text).generation(generation).with("sessions", sessions));
    }

    fn say_waiting(&mut self, generation: u32, sessions: usize) {
        if std::mem::replace(&mut self.recovery.waiting, sessions) != sessions && sessions > 0 {
            tracing::warn!(
                generation,
                sessions,
                "sessions of a dead worker wait: the one that serves has no descriptors"
            );
        }
    }

    fn end_lost(&mut self, lost: Lost) {
        self.reset(lost.id);
        self.tally.recovered("lost", 1);
        let writer = &self.writer;
        self.ledger.bury_one(lost.place, lost.id, &mut |session| {
            count_lost(writer, session, Reason::WorkerCrashed, None);
        });
    }
}

/// Its worker was told that it is not kept, and may have had bytes of it in hand. (An earlier deposit may be read later.)
fn was_turned_away(protection: u8) -> bool {
    protection == Protection::No(Unprotected::KeeperFull).code()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_given_up_for_what_stays_and_not_for_want_of_room() {
        let mut recovery = Recovery::default();
        for _ in 0..20 {
            assert!(!recovery.is_given_up(7, left::NO_ROOM));
        }
        assert!(!recovery.is_given_up(7, "its state cannot be read"));
        assert!(!recovery.is_given_up(8, "its state cannot be read"), "each for itself");
        assert!(!recovery.is_given_up(7, "its state cannot be read"));
        assert!(recovery.is_given_up(7, "its state cannot be read"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_abandoned_has_ended_when_that_returns() {
        let on_its_way = std::rc::Rc::new(());
        let (lent, local) = (std::rc::Rc::clone(&on_its_way), tokio::task::LocalSet::new());
        local
            .run_until(async move {
                let mut tasks = tokio::task::JoinSet::new();
                let task = tasks.spawn_local(async move {
                    let _lent = lent;
                    std::future::pending::<()>().await;
                });
                let mut recovery = Recovery { under_way: Some(task), ..Recovery::default() };
                assert!(recovery.is_at_work());
                tokio::task::yield_now().await;
                recovery.abandon().await;
                assert_eq!(std::rc::Rc::strong_count(&on_its_way), 1);
                assert!(recovery.is_due && recovery.under_way.is_none());
            })
            .await;
    }
}
