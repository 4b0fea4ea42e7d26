//! The reports of the upgrades that have ended.

use std::collections::VecDeque;

use admin::command::{Failure, Line, Reply, SessionsAtUpgrade, UpgradeReport, UpgradeResult};

use super::super::event::Caller;
use super::super::owner::Keeper;
use super::super::told::{Moved, still_left};
use super::Upgrade;

/// The last ones, oldest first.
#[derive(Debug, Default)]
pub(in super::super) struct Reports(VecDeque<UpgradeReport>);

/// Enough for a caller that was away for a while; each is some hundred bytes.
const KEPT: usize = 16;

impl FromIterator<UpgradeReport> for Reports {
    fn from_iter<T: IntoIterator<Item = UpgradeReport>>(reports: T) -> Self {
        Self(reports.into_iter().collect())
    }
}

impl Reports {
    pub(in super::super) fn all(&self) -> impl Iterator<Item = &UpgradeReport> {
        self.0.iter()
    }

    /// Of the last upgrade after which this generation gives its sessions away.
    pub(super) fn of_giver(&self, giver: u32) -> Option<&UpgradeReport> {
        self.0.iter().rev().find(|report| match report.result {
            UpgradeResult::Committed => report.from == giver,
            UpgradeResult::RolledBack => report.to == giver,
            UpgradeResult::Failed => false,
        })
    }

    /// In the place of an earlier one of the same upgrade: what was to become of the keeper may have come otherwise.
    pub(in super::super) fn keep(&mut self, report: UpgradeReport) {
        self.0.retain(|kept| kept.id != report.id);
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(report);
    }

    /// Sessions have moved after the report was given.
    pub(super) fn amend(&mut self, id: u64, moved: &Moved) {
        if let Some(report) = self.0.iter_mut().find(|report| report.id == id) {
            amend(report, moved);
        }
    }

    /// The report of this upgrade, or of the last one.
    pub(super) fn answer(&self, id: Option<u64>) -> Line {
        let found = match id {
            Some(id) => self.0.iter().find(|report| report.id == id),
            None => self.0.back(),
        };
        match (found, id) {
            (Some(report), _) => Line::Done(Reply::Upgraded(report.clone())),
            (None, None) => Line::Failed(Failure::failed("no upgrade has ended yet: there is no report")),
            (None, Some(id)) => Line::Failed(Failure::failed(format!(
                "no report of upgrade {id}: it was never begun, was a dry run, or is not among the last {KEPT}"
            ))),
        }
    }
}

/// Sessions have moved after the report was written.
pub(super) fn amend(report: &mut UpgradeReport, moved: &Moved) {
    report.longest_pause_ms = report.longest_pause_ms.max(moved.longest_pause_ms());
    let sessions = &mut report.sessions;
    sessions.moved += moved.moved;
    sessions.recovered += moved.recovered;
    if !(sessions.left_why.is_empty() && moved.left.is_empty() && moved.moved == 0) {
        sessions.left_why = still_left(&sessions.left_why, moved.moved, &moved.left);
        sessions.left = sessions.left_why.values().sum();
    }
}

impl Keeper {
    /// Answers with a report; that of the upgrade under way when it has ended.
    pub(in super::super) fn tell_report(&mut self, id: Option<u64>, caller: Caller) {
        if let Some(upgrade) = self.replacing() {
            // How that ends is known to whoever answers next.
            return Self::tell(&caller, Line::Reconnect { upgrade });
        }
        match self.upgrade.as_mut().filter(|upgrade| id == Some(upgrade.id)) {
            Some(upgrade) => upgrade.followers.push(caller),
            None => Self::tell(&caller, self.reports.answer(id)),
        }
    }

    pub(in super::super) fn report(&self, upgrade: &Upgrade, result: UpgradeResult, reason: &str) -> UpgradeReport {
        UpgradeReport {
            id: upgrade.id,
            result,
            from: upgrade.from,
            to: upgrade.to,
            step: upgrade.step.into(),
            reason: reason.into(),
            accept_gap_ms: 0.0,
            longest_pause_ms: 0.0,
            sessions: SessionsAtUpgrade::default(),
            version: self.serving_generation().map(|generation| generation.version.clone()).unwrap_or_default(),
            keeper: "unchanged".into(),
            seconds: upgrade.started.elapsed().as_secs_f64(),
        }
    }
}
