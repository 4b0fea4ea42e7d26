//! The probation: the new generation serves, the old one stands by. What would show that the new one is not fit is watched
//! for; the rest of the commit waits until it is over.

use std::rc::Rc;
use std::time::Duration;

use admin::command::Failure;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::super::event::Event;
use super::super::heard::Searches;
use super::super::next::Loaded;
use super::super::owner::Keeper;
use super::super::pinned::Pinned;
use super::super::pools::Pools;
use super::super::reaper::Exit;
use super::probe::{self, Asked, Probed};
use crate::config::Probe;
use crate::observe::events::Happened;

/// A generation on probation, and what stands behind it.
#[derive(Debug)]
pub(in super::super) struct Trial {
    pub(in super::super) before: Before,
    /// `None`: it died.
    pub(in super::super) standby: Option<u32>,
    pub(super) gap: Duration,
    /// Sessions the old generation had when it stopped.
    pub(super) left: u64,
    /// What of the operator's the new file has overruled.
    pub(super) notes: Vec<String>,
    /// The end of the time, and the probe.
    tasks: Vec<AbortHandle>,
    is_probing: bool,
    is_over: bool,
}

/// What was in force before the commit, and what a rollback puts in force again: with the changes of the pools that were made
/// since.
#[derive(Debug)]
pub(in super::super) struct Before {
    pub(in super::super) pinned: Rc<Pinned>,
    pub(in super::super) loaded: Loaded,
    pub(in super::super) pools: Pools,
    /// Of the old generation, in its last minute.
    pub(super) searches: Searches,
}

/// A heartbeat comes each 500 ms.
pub(in super::super) const SILENCE: Duration = Duration::from_secs(2);

impl Trial {
    pub(super) fn new(before: Before, standby: Option<u32>, gap: Duration, left: u64, notes: Vec<String>) -> Self {
        Self { before, standby, gap, left, notes, tasks: Vec::new(), is_probing: false, is_over: false }
    }
}

impl Trial {
    /// The time in which nobody polled, and the sessions that were left with the old generation.
    pub(in super::super) fn figures(&self) -> (Duration, u64) {
        (self.gap, self.left)
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Keeper {
    pub(in super::super) fn trial(&self) -> Option<&Trial> {
        self.upgrade.as_ref()?.trial.as_ref()
    }

    pub(in super::super) fn trial_mut(&mut self) -> Option<&mut Trial> {
        self.upgrade.as_mut()?.trial.as_mut()
    }

    pub(super) async fn begin_probation(&mut self, id: u64, mut trial: Trial) {
        let probation = self.upgrade.as_ref().map_or(Duration::ZERO, |upgrade| upgrade.probation);
        if probation > Duration::ZERO {
            self.upgrade_step(id, "probation");
            trial.tasks.push(self.later(async move {
                tokio::time::sleep(probation).await;
                Event::ProbationOver { upgrade: id }
            }));
            let probe = self.probe(id, trial.standby, &trial.before.pools);
            trial.is_probing = probe.is_some();
            trial.tasks.extend(probe);
        }
        if let Some(upgrade) = &mut self.upgrade {
            upgrade.trial = Some(trial);
        }
        self.remember_first().await;
        if probation.is_zero() {
            self.finish_probation().await;
        }
    }

    /// Lets the new generation try each pool that a listener goes to, beside the loop.
    fn probe(&mut self, id: u64, standby: Option<u32>, before: &Pools) -> Option<AbortHandle> {
        if self.config().upgrade.probe == Probe::Off {
            return None;
        }
        let standby = standby.and_then(|id| self.generations.get(&id)).map(|standby| standby.link.clone());
        let link = self.serving_generation()?.link.clone();
        let asked = Asked { pools: self.pools.routed(), comparable: self.pools.same_backends(before) };
        Some(self.later(async move { Event::Probed { upgrade: id, found: probe::ask(&link, standby, asked).await } }))
    }

    pub(in super::super) async fn probed(&mut self, id: u64, found: Probed) {
        if !self.is_under_way(id) {
            return;
        }
        let Some(trial) = self.trial_mut() else { return };
        trial.is_probing = false;
        let is_over = trial.is_over;
        for note in &found.notes {
            tracing::warn!("{note}");
        }
        if let Some(reason) = found.unfit {
            let new = self.serving.unwrap_or(0);
            self.happenings.tell(Happened::new("probe_failed", reason.clone()).upgrade(id).generation(new));
            self.roll_back(&reason).await;
        } else if is_over {
            self.finish_probation().await;
        }
    }

    pub(in super::super) async fn probation_over(&mut self, id: u64) {
        if !self.is_under_way(id) {
            return;
        }
        let Some(trial) = self.trial_mut() else { return };
        trial.is_over = true;
        // A probe that is still out has the last word.
        if !trial.is_probing {
            self.finish_probation().await;
        }
    }

    /// Looks for a new generation that hangs, or finds no backends where the old one did. At every tick.
    pub(in super::super) async fn judge(&mut self, now: Instant) {
        let Some(trial) = self.trial() else { return };
        let Some(serving) = self.serving_generation() else { return };
        let (id, silence) = (serving.id, self.watch.silence(&serving.link.heard(), now));
        let (was, is) = (trial.before.searches, serving.link.heard().searches());
        let reason = if silence >= SILENCE {
            format!(
                "generation {id} (pid {}) sent no heartbeat for {:.1} s",
                serving.process.pid,
                silence.as_secs_f64()
            )
        } else if is.mostly_fail() && was.hardly_fail() {
            format!(
                "generation {id} found no backend for {} of its {} sessions; the one before failed {} of {} in its last minute",
                is.failed, is.begun, was.failed, was.begun
            )
        } else {
            return;
        };
        self.roll_back(&reason).await;
    }

    /// A generation of the trial has died: the standby, which is said, or the new one, which is rolled back.
    pub(in super::super) async fn died_on_trial(&mut self, id: u32, pid: u32, exit: Exit) {
        let serving = self.serving;
        let Some(upgrade) = self.upgrade.as_mut() else { return };
        let Some(trial) = upgrade.trial.as_mut() else { return };
        if trial.standby == Some(id) {
            trial.standby = None;
            let text = format!("standby lost: generation {id} (pid {pid}) {exit}; generation {} goes on", upgrade.to);
            tracing::warn!(upgrade = upgrade.id, generation = id, "{text}");
            self.happenings.tell(Happened::new("standby_lost", text).upgrade(upgrade.id).generation(id));
        } else if serving == Some(id) {
            self.roll_back(&format!("generation {id} (pid {pid}) {exit}")).await;
        }
    }

    /// The pools of the standby after the same change; `None`: there is no standby.
    pub(in super::super) fn changed_for_standby(
        &self,
        change: impl FnOnce(&mut Pools) -> Result<(), Failure>,
    ) -> Result<Option<Pools>, Failure> {
        let Some(trial) = self.trial() else { return Ok(None) };
        let mut pools = trial.before.pools.clone();
        match change(&mut pools) {
            Ok(()) => Ok(Some(pools)),
            Err(failure) => Err(Failure {
                message: format!(
                    "the configuration that a rollback goes back to refuses: {}; nothing changed, try again when the probation has ended",
                    failure.message
                ),
                ..failure
            }),
        }
    }
}
