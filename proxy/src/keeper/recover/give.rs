//! The keeper at the giving end of a path: sessions of dead workers, a batch after the other.

use std::collections::BTreeMap;
use std::time::Duration;

use handoff::ledger::Ledger;
use handoff::transfer::{self, Giver, Item, Role, Verdict};
use handoff::vault::Belongings;
use tokio::time::{Instant, timeout};

use super::super::link::{Link, PathEnd};
use super::super::vault::Vault;
use super::{Lost, Recovered};
use crate::config::order::SPARED;
use crate::config::{Config, Listener, TcpSettings, Timeouts};
use crate::session::{KeptTerms, SessionState};

/// What sessions of each listener go by, as configured now: for those whose deposit does not say what they began under.
pub(super) struct Terms(BTreeMap<String, KeptTerms>);

/// The keeper as a giver.
pub(super) struct Give {
    pub(super) path: u64,
    pub(super) to: u32,
    pub(super) link: Link,
    pub(super) ledger: Ledger,
    pub(super) vault: Vault,
    pub(super) terms: Terms,
    pub(super) lost: Vec<Lost>,
}

/// Sessions on their way; whatever happens, the vault has them back.
struct Loan<'a> {
    vault: &'a Vault,
    lost: Vec<Lost>,
    items: Vec<Item>,
}

/// A session has four descriptors, and a batch at most 200 with one for the body.
const BATCH: usize = 49;
/// For the worker at the other end, which has nothing else to do than to hold what it is given.
const ANSWER: Duration = Duration::from_secs(5);
/// Of a session, in the worker that takes it: those that come, and the writing ends of its pipes.
const DESCRIPTORS: u64 = 6;

impl Terms {
    pub(super) fn of(config: &Config) -> Self {
        let terms = |(name, listener): (&String, &Listener)| {
            (name.clone(), KeptTerms { timeouts: listener.timeouts, tcp: listener.tcp })
        };
        Self(config.listeners.iter().map(terms).collect())
    }

    fn of_listener(&self, name: &str) -> KeptTerms {
        self.0.get(name).copied().unwrap_or(KeptTerms { timeouts: Timeouts::DEFAULT, tcp: TcpSettings::DEFAULT })
    }
}

impl Give {
    pub(super) async fn run(mut self) -> Recovered {
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
        let room = giver.room().map_or(usize::MAX, sessions_in);
        let (now, later) = lost.split_at(room.min(lost.len()));
        recovered.waiting = later.len();
        for (number, lost) in (1..).zip(now.chunks(BATCH)) {
            let loan = self.borrow(lost);
            if loan.items.is_empty() {
                continue;
            }
            giver.offer(number, &loan.items).await?;
            let verdicts = timeout(ANSWER, giver.next()).await??.1;
            let given = self.decide(&loan, &verdicts, recovered);
            // Before the new owner may end one.
            drop(loan);
            if given.is_empty() {
                giver.withdraw(number).await?;
                continue;
            }
            // A taker that dies before it hears of it has gone on with none: they are lost once more, and counted then.
            giver.release(number).await?;
            for from in given {
                *recovered.sessions.entry(from).or_default() += 1;
            }
        }
        Ok(())
    }

    /// Writes the owner word of each that was taken; gives the dead generation of each.
    fn decide(&self, loan: &Loan<'_>, verdicts: &[Verdict], recovered: &mut Recovered) -> Vec<u32> {
        let mut given = Vec::new();
        for (lost, verdict) in loan.lost.iter().zip(verdicts) {
            match verdict {
                Verdict::Taken { thread } if self.ledger.give(lost.place, lost.id, lost.from, (self.to, *thread)) => {
                    given.push(lost.from);
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
            let Some((place, Belongings { client, backend, pipes })) = self.vault.lend(lost.id) else { continue };
            loan.lost.push(*lost);
            let pipes = pipes.map(Some);
            loan.items.push(Item { id: lost.id, place, state, hand: [Vec::new(), Vec::new()], client, backend, pipes });
        }
        loan
    }

    fn state_of(&self, lost: &Lost) -> Option<String> {
        let snapshot = self.ledger.look(lost.place, lost.id)?;
        let state = self.vault.with(lost.id, |Belongings { client, backend, pipes }, terms| {
            let terms = terms.and_then(KeptTerms::read).unwrap_or_else(|| self.terms.of_listener(&snapshot.listener));
            SessionState::recovered(&snapshot, terms, [client, backend], pipes)
        });
        serde_json::to_string(&state??).ok()
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        for Item { id, client, backend, pipes, .. } in self.items.drain(..) {
            if let [Some(up), Some(down)] = pipes {
                self.vault.give_back(id, Belongings { client, backend, pipes: [up, down] });
            }
        }
    }
}

/// How many a worker with so many descriptors left can take.
fn sessions_in(room: u64) -> usize {
    usize::try_from(room.saturating_sub(SPARED) / DESCRIPTORS).unwrap_or(usize::MAX)
}
