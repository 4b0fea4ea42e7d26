//! The end of an upgrade: committed, and the old generation retires; or failed, and nothing was changed.

use std::time::Duration;

use admin::command::{Failure, FailureKind, Line, SessionsAtUpgrade, UpgradeReport, UpgradeResult};
use admin::render;
use tokio::time::Instant;

use super::super::generation::{Deadline, State};
use super::super::link::Link;
use super::super::moving::PATIENCE;
use super::super::owner::Keeper;
use super::probation::{Before, Trial};
use super::settling::Settling;
use super::{Previous, Upgrade};
use crate::config::Drain;
use crate::config::order::{Order, Purpose, Scope};
use crate::observe::events::Happened;
use crate::observe::scene::Standing;

impl Keeper {
    /// The new generation has proved itself: from here on there is no way back.
    pub(in super::super) async fn finish_probation(&mut self) {
        if self.upgrade.as_ref().is_some_and(|upgrade| upgrade.is_take_over && upgrade.trial.is_some()) {
            return self.bequeath();
        }
        let Some(upgrade) = &mut self.upgrade else { return };
        let (id, Some(trial)) = (upgrade.id, upgrade.trial.take()) else { return };
        let Before { pinned, loaded, .. } = &trial.before;
        self.previous = Some(Previous { pinned: pinned.clone(), loaded: loaded.clone() });
        let (standby, drain) = (trial.standby, loaded.config.drain);
        let moves = self.moves_at_upgrade();
        let Some(standby) = standby else {
            self.upgrade_step(id, "finish");
            self.remember_first().await;
            return self.finish_commit(trial, moves).await;
        };
        self.settle(Settling::Forth { trial: Box::new(trial), moves });
        self.remember_first().await;
        if moves && self.standing != Standing::ShuttingDown {
            self.upgrade_step(id, "move");
        }
        self.part(standby, drain, moves).await;
    }

    /// The old generation has retired: all that waited for the end of the upgrade takes place.
    pub(super) async fn finish_commit(&mut self, mut trial: Trial, moves: bool) {
        self.make_room().await;
        let surplus = self.sockets.surplus(self.config());
        self.sockets.close(&surplus);
        self.sockets.refresh(&self.loaded.config);
        for note in std::mem::take(&mut trial.notes) {
            tracing::warn!("{note}");
        }
        if moves {
            let Before { loaded, pools, .. } = &trial.before;
            self.drain_what_went(&loaded.config, pools);
        }
        self.report_commit(&trial, moves);
    }

    /// The old generation drains, whoever is the keeper of the new one.
    pub(in super::super) async fn retire_standby(&mut self) {
        let Some(trial) = self.upgrade.as_mut().and_then(|upgrade| upgrade.trial.take()) else { return };
        let drain = trial.before.loaded.config.drain;
        // The other keeper lets their sessions move first, if they do; whatever becomes of that keeper, they drain.
        let drain = Drain { timeout: drain.timeout.map(|timeout| timeout + PATIENCE), ..drain };
        if let Some(standby) = trial.standby {
            self.retire(standby, drain).await;
        }
    }

    /// Lets the sessions of a generation that polls no more drain.
    pub(in super::super) async fn retire(&mut self, id: u32, drain: Drain) {
        let Some(generation) = self.generations.get_mut(&id) else { return };
        if generation.state != State::Failed {
            generation.state = State::Draining;
        }
        generation.deadline = drain.timeout.map(Deadline::after);
        let is_late = generation.link.heard().is_late(Instant::now());
        let orders = retirement(generation.link.clone(), id, drain);
        if is_late {
            // It will find the orders when it wakes; the loop does not wait for it.
            self.tasks.spawn_local(orders);
        } else {
            self.briefly(orders).await;
        }
    }

    /// With more generations alive than allowed, the oldest that drain are closed by force. Only now, when the new one
    /// serves: an upgrade that fails costs nobody anything.
    async fn make_room(&mut self) {
        let drains = |state| matches!(state, State::Draining | State::Failed);
        let draining = self.generations.values().filter(|generation| drains(generation.state));
        let draining: Vec<u32> = draining.map(|generation| generation.id).collect();
        // Those without a session are about to end by themselves.
        let (empty, draining): (Vec<u32>, Vec<u32>) = draining.into_iter().partition(|id| self.sessions_of(*id) == 0);
        let living = self.generations.len() - empty.len();
        let surplus = living.saturating_sub(self.config().upgrade.max_generations);
        let oldest: Vec<u32> = draining.into_iter().take(surplus).collect();
        let how = self.config().drain.close;
        for id in oldest {
            let forced = self.sessions_of(id);
            let Some(generation) = self.generations.get_mut(&id) else { continue };
            tracing::warn!(generation = id, sessions = forced, "too many generations; the oldest is closed by force");
            generation.deadline = Some(Deadline::after(Duration::ZERO));
            let now = Drain { timeout: Some(Duration::ZERO), spread: Duration::ZERO, close: how };
            let order = Order::drain(Scope::All, Purpose::Generations, now);
            let link = generation.link.clone();
            self.briefly(async move {
                if let Err(error) = link.order("drain", &order).await {
                    tracing::warn!(generation = id, %error, "the oldest generation does not answer");
                }
            })
            .await;
            if let Some(upgrade) = &mut self.upgrade {
                upgrade.forced += forced;
            }
        }
    }

    fn report_commit(&mut self, trial: &Trial, moves: bool) {
        self.tally.upgraded("committed");
        let Some(upgrade) = &mut self.upgrade else { return };
        let moved = std::mem::take(&mut upgrade.moved);
        let Some(upgrade) = &self.upgrade else { return };
        let (gap, longest_pause_ms) = (trial.gap, moved.longest_pause_ms());
        let stayed = SessionsAtUpgrade { left: trial.left, ..SessionsAtUpgrade::default() };
        let sessions =
            if moves { moved.sessions() } else { SessionsAtUpgrade { recovered: moved.recovered, ..stayed } };
        let report = UpgradeReport {
            accept_gap_ms: gap.as_secs_f64() * 1e3,
            longest_pause_ms,
            sessions: SessionsAtUpgrade { forced: upgrade.forced, unprotected: self.unprotected(), ..sessions },
            ..self.report(upgrade, UpgradeResult::Committed, "")
        };
        let sessions = render::moved(&report.sessions, longest_pause_ms);
        tracing::info!(
            upgrade = report.id,
            from = report.from,
            to = report.to,
            sessions,
            accept_gap_ms = report.accept_gap_ms,
            sha256 = self.pinned.sha256,
            "upgrade committed"
        );
        let text = format!("generation {} serves in place of generation {}: {sessions}", report.to, report.from);
        let happened = Happened::new("upgrade_committed", text).upgrade(report.id).generation(report.to);
        self.happenings.tell(happened.with("accept_gap_ms", report.accept_gap_ms).with("sha256", &*self.pinned.sha256));
        self.conclude(report);
    }

    /// Before its commit, an upgrade can be given up.
    pub(in super::super) fn abandon_upgrade(&mut self, reason: &str) {
        // From the end of its probation on it is committed, whatever becomes of the generation; and one that was rolled back is.
        let is_open = |upgrade: &Upgrade| upgrade.settling.is_none() && upgrade.step != "finish";
        if self.upgrade.as_ref().is_some_and(is_open) {
            self.fail_upgrade(reason);
        }
    }

    pub(super) fn fail_upgrade(&mut self, reason: &str) {
        let step = self.upgrade.as_ref().map_or("", |upgrade| upgrade.step);
        self.fail_upgrade_at(step, reason);
    }

    pub(in super::super) fn fail_upgrade_at(&mut self, step: &'static str, reason: &str) {
        let Some(upgrade) = &mut self.upgrade else { return };
        upgrade.step = step;
        if let Some(task) = upgrade.task.take() {
            task.abort();
            // Before it is spawned its number is not taken: the next generation will have it, and must not be buried.
            self.stillborn.extend(Some(upgrade.to).filter(|to| *to <= self.last_generation));
        }
        let added = upgrade.next.take().map(|next| next.added).unwrap_or_default();
        self.nascent = None;
        self.sockets.close(&added);
        self.tally.upgraded("failed");
        let message = one_line(&format!("upgrade failed at {step}"), reason, &self.still_serving());
        let Some(upgrade) = &self.upgrade else { return };
        tracing::error!(upgrade = upgrade.id, "{message}");
        let happened = Happened::new("upgrade_failed", message.clone()).upgrade(upgrade.id).generation(upgrade.to);
        self.happenings.tell(happened.with("step", step));
        let report = self.report(upgrade, UpgradeResult::Failed, reason);
        let value = serde_json::to_value(&report).ok().map(Box::new);
        self.reports.keep(report);
        self.finish_upgrade(Line::Failed(Failure { kind: FailureKind::Failed, message, report: value }));
    }

    /// Gives back the lock, with the last line.
    pub(in super::super) fn finish_upgrade(&mut self, line: Line) {
        let Some(upgrade) = self.upgrade.take() else { return };
        let took = upgrade.step_started.elapsed().as_secs_f64();
        self.tally.step(upgrade.step, took);
        let answer = match &line {
            Line::Reconnect { .. } => line.clone(),
            _ => self.reports.answer(Some(upgrade.id)),
        };
        Self::tell(&upgrade.caller, line);
        for follower in &upgrade.followers {
            Self::tell(follower, answer.clone());
        }
    }
}

/// What a generation that polls no more is told.
pub(in super::super) async fn retirement(link: Link, generation: u32, drain: Drain) {
    let order = Order::drain(Scope::All, Purpose::Upgrade, drain);
    for (what, order) in [("drain", order), ("finish", Order::Finish)] {
        if let Err(error) = link.order(what, &order).await {
            tracing::warn!(generation, %error, "a generation that polls no more does not drain");
        }
    }
}

/// One line for an operator; the mistakes of a file follow it.
pub(super) fn one_line(what: &str, reason: &str, still: &str) -> String {
    match reason.split_once('\n') {
        None => format!("{what}: {reason}; {still}"),
        Some((headline, rest)) => format!("{what}: {}; {still}\n{rest}", headline.trim_end_matches(':')),
    }
}
