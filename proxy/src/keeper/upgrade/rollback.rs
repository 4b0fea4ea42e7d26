//! Back to the generation before: at once while it stands by, else through an upgrade of its own to the binary and the
//! configuration that are still held.

use std::time::Duration;

use admin::command::{self, Failure, FailureKind, Line, SessionsAtUpgrade, UpgradeReport, UpgradeResult};
use tokio::time::{Instant, timeout};

use super::super::event::Caller;
use super::super::generation::{Deadline, State};
use super::super::link::Link;
use super::super::next;
use super::super::owner::Keeper;
use super::finish::{one_line, retirement};
use super::probation::{SILENCE, Trial};
use super::settling::Settling;
use super::{Asked, Previous};
use crate::config::Drain;
use crate::observe::events::Happened;
use crate::observe::scene::Standing;

/// For the standby to poll again. It only waits for its data threads, which answer in a millisecond; nobody may serve
/// meanwhile.
const REVIVAL: Duration = Duration::from_secs(2);
/// For sessions of a generation that was rolled back, where nothing else limits them and it may never wake.
pub(in super::super) const LOST: Duration = Duration::from_secs(30);

impl Keeper {
    pub(in super::super) async fn rollback(&mut self, asked: command::Rollback, caller: Caller) {
        if self.trial().is_some() {
            let id = self.upgrade.as_ref().map(|upgrade| upgrade.id);
            self.roll_back("asked for by `proxyctl rollback`").await;
            return self.tell_report(id, caller);
        }
        match self.may_roll_back(&asked) {
            Ok(previous) => self.start_rollback(&asked, previous, caller),
            Err(failure) => Self::tell(&caller, Line::Failed(failure)),
        }
    }

    fn may_roll_back(&self, asked: &command::Rollback) -> Result<Previous, Failure> {
        self.may_begin(asked.probation)?;
        self.previous.clone().ok_or_else(|| {
            Failure::failed(format!(
                "nothing to roll back to: no upgrade was committed since this keeper started; {}",
                self.still_serving()
            ))
        })
    }

    fn start_rollback(&mut self, asked: &command::Rollback, previous: Previous, caller: Caller) {
        let Previous { pinned, loaded } = previous;
        let text = format!("rollback to sha256 {}, configuration sha256 {}", pinned.sha256, loaded.sha256);
        tracing::info!("{text}");
        let reaper = self.reaper.clone();
        let how = Asked {
            begun_by: "by `proxyctl rollback`",
            dry_run: false,
            no_wait: asked.no_wait,
            probation: asked.probation,
            sessions: None,
        };
        self.begin_upgrade(&how, caller, text, |deadline| next::preflight_pinned(pinned, loaded, reaper, deadline));
    }

    /// The generation on probation is not fit. First of all the standby polls again; without one, a worker starts from what
    /// was pinned for it.
    pub(in super::super) async fn roll_back(&mut self, reason: &str) {
        let Some(trial) = self.upgrade.as_mut().and_then(|upgrade| upgrade.trial.take()) else { return };
        let new = self.serving.take();
        match self.revive(&trial).await {
            Some(standby) => {
                self.serving = Some(standby);
                self.serves(standby);
            }
            None => self.standing = Standing::Restarting,
        }
        self.config_version += 1;
        let (tried, pools, moves) = (self.loaded.config.clone(), self.pools.clone(), self.moves_at_upgrade());
        self.restore(trial);
        let giver = new.filter(|new| self.expel(*new, tried.drain, moves));
        let surplus = self.sockets.surplus(self.config());
        self.sockets.close(&surplus);
        self.sockets.refresh(&self.loaded.config);
        let (id, step) = self.upgrade.as_ref().map_or((0, ""), |upgrade| (upgrade.id, upgrade.step));
        match giver {
            Some(giver) => {
                self.drain_what_went(&tried, &pools);
                self.settle(Settling::Back { giver, step, reason: reason.into() });
                self.upgrade_step(id, "move");
            }
            None => self.report_rollback(step, reason),
        }
        if self.serving.is_none() {
            self.start_worker();
        }
    }

    /// The standby, if it polls again.
    async fn revive(&self, trial: &Trial) -> Option<u32> {
        let standby = self.generations.get(&trial.standby?)?;
        let link = standby.link.clone();
        match timeout(REVIVAL, link.commit()).await {
            Ok(Ok(_)) => return Some(standby.id),
            Ok(Err(error)) => tracing::error!(generation = standby.id, %error, "the standby does not take over"),
            Err(_) => tracing::error!(generation = standby.id, "the standby did not take over within 2 s"),
        }
        self.kill_generation(standby.id);
        None
    }

    fn restore(&mut self, mut trial: Trial) {
        let notes = std::mem::take(&mut trial.notes);
        if !notes.is_empty() {
            tracing::info!("taken back: {}", notes.join("; "));
        }
        (self.pinned, self.loaded, self.pools) =
            (trial.before.pinned.clone(), trial.before.loaded.clone(), trial.before.pools.clone());
    }

    /// Polls no more; what it has accepted comes back, and the rest drains. Beside the loop: it may hang. Says whether anything
    /// comes back that is to be waited for.
    fn expel(&mut self, id: u32, drain: Drain, moves: bool) -> bool {
        let Some(generation) = self.generations.get_mut(&id) else { return false };
        let timeout = drain.timeout.unwrap_or(LOST);
        generation.state = State::Failed;
        generation.deadline = Some(Deadline::after(timeout));
        let drain = Drain { timeout: Some(timeout), ..drain };
        if generation.is_heirs() {
            self.tasks.spawn_local(expulsion(generation.link.clone(), id, drain));
            return false;
        }
        let is_heard = self.watch.silence(&generation.link.heard(), Instant::now()) < SILENCE;
        self.stop_and_part(id, drain, moves);
        moves && is_heard && self.serving.is_some() && self.sessions_of(id) > 0
    }

    pub(super) fn report_rollback(&mut self, step: &str, reason: &str) {
        self.tally.upgraded("rolled_back");
        let Some(upgrade) = &mut self.upgrade else { return };
        let moved = std::mem::take(&mut upgrade.moved);
        let Some(upgrade) = &self.upgrade else { return };
        let (id, to, longest_pause_ms) = (upgrade.id, upgrade.to, moved.longest_pause_ms());
        let what = format!("upgrade {id} rolled back at {step}");
        let message = one_line(&what, reason, &self.still_serving());
        tracing::error!(upgrade = id, generation = to, "{message}");
        self.happenings.tell(Happened::new("rolled_back", message.clone()).upgrade(id).generation(to));
        let report = UpgradeReport {
            step: step.into(),
            longest_pause_ms,
            sessions: SessionsAtUpgrade { unprotected: self.unprotected(), ..moved.sessions() },
            ..self.report(upgrade, UpgradeResult::RolledBack, reason)
        };
        let value = serde_json::to_value(&report).ok().map(Box::new);
        self.reports.keep(report);
        self.finish_upgrade(Line::Failed(Failure { kind: FailureKind::RolledBack, message, report: value }));
    }
}

/// Polls no more, and drains.
async fn expulsion(link: Link, generation: u32, drain: Drain) {
    if let Err(error) = link.stop().await {
        tracing::warn!(generation, %error, "the generation that was rolled back did not confirm that it stopped");
    }
    retirement(link, generation, drain).await;
}
