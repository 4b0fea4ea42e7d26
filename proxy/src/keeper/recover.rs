//! Sessions whose worker died go on in the worker that serves: the keeper gives what it holds of them, as one worker gives to
//! another. Nobody knows what the dead worker was about to do; what it had done is in the kernel and in the ledger.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use handoff::ledger::{Ledger, Phase, Place, Whereabouts};
use handoff::transfer::{self, Giver, Item, Role, Verdict};
use handoff::vault::Belongings;
use tokio::time::{Instant, timeout};

use super::blame;
use super::event::Event;
use super::link::{Link, PathEnd};
use super::owner::Keeper;
use super::reaper::Exit;
use super::restart::count_lost;
use super::vault::{Vault, Vaulted};
use crate::config::{Config, Listener, TcpSettings, Timeouts};
use crate::observe::events::Happened;
use crate::observe::reason::Reason;
use crate::observe::scene::Standing;
use crate::session::{self, SessionState};

/// Sessions that are to go on elsewhere.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// There may be some.
    is_due: bool,
    is_under_way: bool,
    /// After a try that failed.
    not_before: Option<Instant>,
    /// Tries in a row in which none went.
    failures: u32,
    /// How often a session was refused.
    refused: HashMap<u64, u32>,
}

/// What came of one try.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    to: u32,
    /// How many, by the generation that is dead.
    sessions: BTreeMap<u32, u64>,
    /// Not taken, and why.
    refused: Vec<(Lost, String)>,
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

/// A session has four descriptors, and a batch at most 200 with one for the body.
const BATCH: usize = 49;
/// For the worker at the other end, which has nothing else to do than to hold what it is given.
const ANSWER: Duration = Duration::from_secs(5);
/// Then those that are left end: their peers have waited long enough.
const FAILURES: u32 = 10;
/// A worker may still hold a session that its dead giver had offered; it lets go within moments.
const TRIES: u32 = 3;
/// Before another try.
const AGAIN: Duration = Duration::from_secs(1);

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
        let mut outliving = HashSet::new();
        for (session, place) in self.vault.places() {
            let is_theirs = |found: &Whereabouts| found.generation == id;
            match self.ledger.whereabouts(place, session).filter(is_theirs) {
                Some(Whereabouts { phase: Phase::Closed, reason, .. }) => self.end_closed(session, reason),
                Some(_) if is_over => self.reset(session),
                Some(_) if guilty.contains(&session) => self.end_guilty(session, id),
                Some(Whereabouts { phase: Phase::Established, .. }) => {
                    outliving.insert(session);
                }
                _ => {}
            }
        }
        self.recovery.is_due |= !outliving.is_empty();
        outliving
    }

    /// Gives sessions of dead workers to the one that serves, if there are any and it does. Beside the loop.
    pub(super) fn recover(&mut self) {
        let waits = self.recovery.not_before.is_some_and(|at| Instant::now() < at);
        if !self.recovery.is_due || self.recovery.is_under_way || waits || self.retired || self.apprentice.is_some() {
            return;
        }
        if self.standing == Standing::ShuttingDown || self.closing {
            // No worker is started any more.
            self.recovery.is_due = false;
            let lost = self.lost();
            return lost.into_iter().for_each(|lost| self.end_lost(lost));
        }
        let Some(taker) = self.serving_generation().filter(|taker| !taker.is_heirs()) else { return };
        let (to, link) = (taker.id, taker.link.clone());
        let lost = self.lost();
        self.recovery.is_due = false;
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
        self.recovery.is_under_way = true;
        let path = self.moving.number();
        let terms = Terms::of(self.config());
        let give = Give { path, to, link, ledger: self.ledger.clone(), vault: self.vault.clone(), terms, lost };
        self.later(async move { Event::Recovered(Box::new(give.run().await)) });
    }

    /// Sessions are on their way to a worker, or wait for one.
    pub(super) fn is_recovering(&self) -> bool {
        self.recovery.is_due || self.recovery.is_under_way
    }

    pub(super) fn recovered(&mut self, recovered: Recovered) {
        let Recovered { to, sessions, refused, error } = recovered;
        self.recovery.is_under_way = false;
        // What the new owner has taken may be lost again by now.
        self.recovery.is_due = true;
        // A taker that has died says nothing of the next one.
        let is_living = self.serving == Some(to);
        let waits = is_living && (error.is_some() || !refused.is_empty());
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
        for (lost, why) in refused {
            let tries = self.recovery.refused.entry(lost.id).or_default();
            *tries += 1;
            if *tries < TRIES {
                tracing::debug!(id = lost.id, generation = to, why, "a session of a dead worker was refused");
                continue;
            }
            self.recovery.refused.remove(&lost.id);
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

    fn end_lost(&mut self, lost: Lost) {
        self.reset(lost.id);
        self.tally.recovered("lost", 1);
        let writer = &self.writer;
        self.ledger.bury_one(lost.place, lost.id, &mut |session| {
            count_lost(writer, session, Reason::WorkerCrashed, None);
        });
    }
}

/// What sessions of each listener go by, as configured now.
struct Terms(BTreeMap<String, (Timeouts, TcpSettings)>);

impl Terms {
    fn of(config: &Config) -> Self {
        let terms = |(name, listener): (&String, &Listener)| (name.clone(), (listener.timeouts, listener.tcp));
        Self(config.listeners.iter().map(terms).collect())
    }

    fn of_listener(&self, name: &str) -> (Timeouts, TcpSettings) {
        self.0.get(name).copied().unwrap_or((Timeouts::DEFAULT, TcpSettings::DEFAULT))
    }
}

/// The keeper as a giver.
struct Give {
    path: u64,
    to: u32,
    link: Link,
    ledger: Ledger,
    vault: Vault,
    terms: Terms,
    lost: Vec<Lost>,
}

/// Sessions on their way; whatever happens, the vault has them back.
struct Loan<'a> {
    vault: &'a Vault,
    lost: Vec<Lost>,
    items: Vec<Item>,
}

impl Give {
    async fn run(mut self) -> Recovered {
        let mut recovered = Recovered { to: self.to, ..Recovered::default() };
        let lost = std::mem::take(&mut self.lost);
        if let Err(error) = self.give(&lost, &mut recovered).await {
            recovered.error = Some(error.to_string());
        }
        recovered
    }

    async fn give(&self, lost: &[Lost], recovered: &mut Recovered) -> Result<(), Box<dyn std::error::Error>> {
        let (ours, theirs) = transfer::pair()?;
        self.link.path(PathEnd { id: self.path, role: Role::Take, other: 0, end: theirs }).await?;
        let uid = nix::unistd::geteuid().as_raw();
        // The keeper is generation 0 in the ledger.
        let mut giver = Giver::open(ours, uid, 0, Instant::now() + ANSWER).await?;
        for (number, lost) in (1..).zip(lost.chunks(BATCH)) {
            let loan = self.borrow(lost);
            if loan.items.is_empty() {
                continue;
            }
            giver.offer(number, &loan.items).await?;
            let verdicts = timeout(ANSWER, giver.next()).await??.1;
            let given = self.decide(&loan, &verdicts, recovered);
            // Before the new owner may end one.
            drop(loan);
            if given { giver.release(number).await? } else { giver.withdraw(number).await? }
        }
        Ok(())
    }

    /// Writes the owner word of each that was taken; says whether there is any.
    fn decide(&self, loan: &Loan<'_>, verdicts: &[Verdict], recovered: &mut Recovered) -> bool {
        let mut given = false;
        for (lost, verdict) in loan.lost.iter().zip(verdicts) {
            match verdict {
                Verdict::Taken { thread } if self.ledger.give(lost.place, lost.id, lost.from, (self.to, *thread)) => {
                    *recovered.sessions.entry(lost.from).or_default() += 1;
                    given = true;
                }
                Verdict::Taken { .. } => {}
                Verdict::Refused { why } => recovered.refused.push((*lost, why.clone())),
            }
        }
        given
    }

    fn borrow(&self, lost: &[Lost]) -> Loan<'_> {
        let mut loan = Loan { vault: &self.vault, lost: Vec::new(), items: Vec::new() };
        for lost in lost {
            let Some(state) = self.state_of(lost) else { continue };
            let Some(Vaulted { place, belongings }) = self.vault.lend(lost.id) else { continue };
            let Belongings { client, backend, pipes } = belongings;
            loan.lost.push(*lost);
            let pipes = pipes.map(Some);
            loan.items.push(Item { id: lost.id, place, state, hand: [Vec::new(), Vec::new()], client, backend, pipes });
        }
        loan
    }

    fn state_of(&self, lost: &Lost) -> Option<String> {
        let snapshot = self.ledger.look(lost.place, lost.id)?;
        let (timeouts, tcp) = self.terms.of_listener(&snapshot.listener);
        let state = self.vault.with(lost.id, |belongings| {
            let Belongings { client, backend, pipes } = belongings;
            SessionState::recovered(&snapshot, timeouts, tcp, [client, backend], pipes)
        });
        serde_json::to_string(&state??).ok()
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        for Item { id, place, client, backend, pipes, .. } in self.items.drain(..) {
            if let [Some(up), Some(down)] = pipes {
                self.vault
                    .give_back(id, Vaulted { place, belongings: Belongings { client, backend, pipes: [up, down] } });
            }
        }
    }
}
