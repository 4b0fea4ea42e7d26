//! The commit: the new generation polls, then the old one stops. At no moment does nobody. From here on the new one is the
//! truth, on probation.

use std::time::Duration;

use super::super::generation::State;
use super::super::heard::Searches;
use super::super::owner::Keeper;
use super::super::spawn::{Ready, SpawnError};
use super::probation::{Before, Trial};
use super::{Pending, Upgrade};
use crate::observe::scene::Standing;

impl Keeper {
    pub(in super::super) async fn spawned_for_upgrade(&mut self, id: u64, spawned: Result<Box<Ready>, SpawnError>) {
        self.nascent = None;
        if !self.is_under_way(id) {
            return self.discard(spawned);
        }
        match spawned {
            Ok(ready) => self.commit(id, *ready).await,
            Err(error) => {
                self.stillborn.push(error.generation);
                self.fail_upgrade_at(error.step, &error.to_string());
                self.restart_if_nobody_serves();
            }
        }
    }

    async fn commit(&mut self, id: u64, ready: Ready) {
        self.upgrade_step(id, "commit");
        let pinned = ready.pinned.clone();
        let (new, link, segments) = self.enlist(ready, State::Starting);
        let first_poll = match self.begin(&link, segments).await {
            Ok(first_poll) => first_poll,
            Err(error) => {
                self.kill_generation(new);
                self.fail_upgrade_at("commit", &format!("generation {new}: {error}"));
                return self.restart_if_nobody_serves();
            }
        };
        let Some(Pending { loaded, pools, notes, .. }) = self.upgrade.as_mut().and_then(|upgrade| upgrade.next.take())
        else {
            return self.kill_generation(new);
        };
        let searches = self.serving_generation().map_or_else(Searches::default, |old| old.link.heard().last_minute());
        let old = self.serving.replace(new);
        self.serves(new);
        let before = Before {
            pinned: std::mem::replace(&mut self.pinned, pinned),
            loaded: std::mem::replace(&mut self.loaded, loaded),
            pools: std::mem::replace(&mut self.pools, pools),
            searches,
        };
        self.config_version += 1;
        self.pending = None;
        let gap = match old {
            Some(old) => self.stand_by(old, first_poll).await,
            None => Duration::ZERO,
        };
        self.tally.accept_gap(gap.as_secs_f64());
        let left = old.map_or(0, |old| self.sessions_of(old));
        self.begin_probation(id, Trial::new(before, old, gap, left, notes)).await;
    }

    pub(in super::super) fn serves(&mut self, id: u32) {
        if let Some(generation) = self.generations.get_mut(&id) {
            generation.state = State::Serving;
            generation.since = tokio::time::Instant::now();
        }
        if self.standing == Standing::Restarting {
            self.standing = Standing::Serving;
        }
    }

    /// Stops the polling of the old generation, which closes nothing. Gives the time in which nobody polled.
    async fn stand_by(&mut self, old: u32, first_poll: u64) -> Duration {
        let Some(generation) = self.generations.get_mut(&old) else { return Duration::ZERO };
        generation.state = State::Standby;
        let link = generation.link.clone();
        match link.stop().await {
            Ok(last_poll) => Duration::from_nanos(first_poll.saturating_sub(last_poll)),
            Err(error) => {
                // It dies, or will find the order when it wakes.
                tracing::warn!(generation = old, %error, "the old generation did not confirm that it stopped");
                self.generations.get_mut(&old).into_iter().for_each(|generation| generation.is_stopping = true);
                Duration::ZERO
            }
        }
    }

    /// The answer of the new generation is on its way to us: it is READY, or has failed.
    pub(in super::super) fn successor_is_ready(&self) -> bool {
        let spawned = |upgrade: &Upgrade| {
            upgrade.next.is_some() && upgrade.task.as_ref().is_some_and(tokio::task::AbortHandle::is_finished)
        };
        self.upgrade.as_ref().is_some_and(spawned)
    }

    /// After an upgrade that failed although the old generation was gone.
    fn restart_if_nobody_serves(&mut self) {
        if self.serving.is_none() {
            self.start_worker();
        }
    }
}
