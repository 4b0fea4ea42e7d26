//! Between the end of a probation, or a rollback, and the end of the upgrade: the sessions go where they are to be.

use super::super::owner::Keeper;
use super::super::told::Moved;
use super::Upgrade;
use super::probation::Trial;
use super::report::amend;
use crate::config::SessionsOnUpgrade;
use admin::command;

/// What is left to do when the sessions of one generation have gone, or will not.
#[derive(Debug)]
pub(super) enum Settling {
    /// The upgrade is committed. `moves`: they go to the new generation.
    Forth { trial: Box<Trial>, moves: bool },
    /// It was rolled back at `step`: they come back from `giver`.
    Back { giver: u32, step: &'static str, reason: String },
}

impl Settling {
    fn giver(&self) -> Option<u32> {
        match self {
            Self::Forth { trial, .. } => trial.standby,
            Self::Back { giver, .. } => Some(*giver),
        }
    }
}

impl Keeper {
    /// Whether sessions move, where nothing else was said.
    pub(in super::super) fn moves(&self) -> bool {
        self.config().upgrade.sessions == SessionsOnUpgrade::Move
    }

    /// Whether they move in the upgrade under way.
    pub(super) fn moves_at_upgrade(&self) -> bool {
        let asked = self.upgrade.as_ref().and_then(|upgrade| upgrade.sessions);
        asked.map_or_else(|| self.moves(), |sessions| sessions == command::Sessions::Move)
    }

    pub(super) fn settle(&mut self, settling: Settling) {
        if let Some(upgrade) = &mut self.upgrade {
            upgrade.settling = Some(settling);
        }
    }

    fn settling_with(&self, giver: u32) -> Option<&Settling> {
        let settling = self.upgrade.as_ref()?.settling.as_ref();
        settling.filter(|settling| settling.giver() == Some(giver))
    }

    /// Of which upgrade's report the sessions of this generation are a part.
    pub(in super::super) fn upgrade_of(&self, giver: u32) -> Option<u64> {
        let under_way = self.settling_with(giver).and(self.upgrade.as_ref()).map(|upgrade| upgrade.id);
        under_way.or_else(|| self.reports.of_giver(giver).map(|report| report.id))
    }

    /// For the report, also if that was given already.
    pub(in super::super) fn told_of_upgrade(&mut self, id: Option<u64>, moved: Moved) {
        let Some(id) = id else { return };
        match self.upgrade.as_mut().filter(|upgrade| upgrade.id == id) {
            Some(Upgrade { vetting: Some(report), .. }) => amend(report, &moved),
            Some(upgrade) => upgrade.moved.add(moved),
            None => self.reports.amend(id, &moved),
        }
    }

    /// The sessions of this generation have gone, as far as they go: the last step begins.
    pub(in super::super) fn upgrade_goes_on(&mut self, giver: u32) {
        if let Some(Settling::Forth { .. }) = self.settling_with(giver)
            && let Some(id) = self.upgrade.as_ref().map(|upgrade| upgrade.id)
        {
            self.upgrade_step(id, "finish");
        }
    }

    /// What is left of that generation drains: the upgrade ends.
    pub(in super::super) async fn upgrade_has_parted(&mut self, giver: u32) {
        if self.settling_with(giver).is_none() {
            return;
        }
        match self.upgrade.as_mut().and_then(|upgrade| upgrade.settling.take()) {
            Some(Settling::Forth { trial, moves }) => self.finish_commit(*trial, moves).await,
            Some(Settling::Back { step, reason, .. }) => self.report_rollback(step, &reason),
            None => {}
        }
    }

    /// The service ends: nothing moves any more.
    pub(super) async fn settle_now(&mut self) {
        let settling = self.upgrade.as_ref().and_then(|upgrade| upgrade.settling.as_ref());
        if let Some(giver) = settling.and_then(Settling::giver) {
            self.has_parted(giver).await;
        }
    }
}
