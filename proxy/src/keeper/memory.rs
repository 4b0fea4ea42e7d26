//! What the keeper leaves with its workers, so that another keeper can go on when it dies: doors to knock at, its state, and
//! in the ledger who serves.

use std::time::Duration;

use handoff::door;
use handoff::ledger::Noted;

use super::attach::door_of;
use super::event::Event;
use super::link::{Link, LinkError};
use super::owner::Keeper;
use super::state::KeeperState;
use crate::config::OnKeeperDeath;
use crate::config::order::Order;

impl Keeper {
    /// Tells every worker what is in force, if that is no longer what they were told.
    pub(super) fn remember(&mut self) {
        self.note();
        if !self.is_survived() {
            return;
        }
        let (state, _) = self.state();
        if self.told.as_ref().is_some_and(|told| state.is_as(told)) {
            return;
        }
        let Some((state, order)) = self.next_record(state) else { return };
        self.told = Some(state);
        for generation in self.generations.values() {
            let (id, link, order) = (generation.id, generation.link.clone(), order.clone());
            let events = self.events.clone();
            self.tasks.spawn_local(async move {
                if !keep(id, &link, &order).await {
                    tokio::time::sleep(AGAIN).await;
                    // Ends with the keeper.
                    let _ = events.send(Event::Untold).await;
                }
            });
        }
    }

    /// A worker has not heard what is in force: all are told again.
    pub(super) fn untold(&mut self) {
        self.told = None;
    }

    /// After a change of who serves: the one who does is told first, so that whoever finds it noted finds with it what is in
    /// force.
    pub(super) async fn remember_first(&mut self) {
        let Some(serving) = self.serving_generation() else { return };
        let link = serving.link.clone();
        self.remember_with(&link).await;
        self.note();
    }

    /// Tells one worker, and waits until it has it; one that hangs finds it before all that follows.
    pub(super) async fn remember_with(&mut self, link: &Link) {
        if !self.is_survived() {
            return;
        }
        let (state, _) = self.state();
        if let Some((_, order)) = self.next_record(state) {
            let link = link.clone();
            let told = async move {
                keep(0, &link, &order).await;
            };
            self.briefly(told).await;
        }
    }

    fn next_record(&mut self, mut state: KeeperState) -> Option<(KeeperState, Order)> {
        self.serial += 1;
        state.serial = self.serial;
        let text = serde_json::to_string(&state);
        let text = text.inspect_err(|error| tracing::error!(%error, "the keeper's state cannot be written")).ok()?;
        Some((state, Order::Keep { state: text }))
    }

    /// Writes into the ledger who serves.
    pub(super) fn note(&self) {
        if self.apprentice.is_some() {
            return;
        }
        let standby = self.trial().and_then(|trial| trial.standby);
        self.ledger.note(Noted { serving: self.serving, standby });
    }

    /// Makes the place where the next keeper will find this worker.
    pub(super) fn open_door(&mut self, generation: u32, link: &Link) {
        if !self.is_survived() {
            return;
        }
        let path = door_of(&self.config().runtime.state_dir, generation);
        let made = match door::bind(&path) {
            Ok(made) => made,
            Err(error) => {
                tracing::warn!(generation, door = %path.display(), %error, "no door: if this keeper dies, another one will not find this worker");
                return;
            }
        };
        let link = link.clone();
        self.tasks.spawn_local(async move {
            if let Err(error) = link.door(made).await {
                tracing::warn!(generation, %error, "no door: if this keeper dies, another one will not find this worker");
            }
        });
    }

    pub(super) fn close_door(&self, generation: u32) {
        let path = door_of(&self.config().runtime.state_dir, generation);
        if let Err(error) = door::remove(&path) {
            tracing::warn!(generation, door = %path.display(), %error, "a door is left");
        }
    }

    /// Whether workers outlive their keeper.
    fn is_survived(&self) -> bool {
        self.config().runtime.on_keeper_death == OnKeeperDeath::Serve
    }
}

/// `false`: it could not be sent, for a lack that may pass.
async fn keep(generation: u32, link: &Link, order: &Order) -> bool {
    match link.order("the keeper's state", order).await {
        Ok(_) | Err(LinkError::Gone) => true,
        Err(error @ LinkError::Unsent { .. }) => {
            tracing::warn!(generation, %error, "a worker does not hold the keeper's state; it is told again");
            false
        }
        // One of an earlier version does not know the order.
        Err(error) => {
            tracing::debug!(generation, %error, "a worker does not hold the keeper's state");
            true
        }
    }
}

/// Until a lack of descriptors or memory may have passed; a keeper that dies meanwhile is followed by one that knows a little
/// less.
const AGAIN: Duration = Duration::from_secs(1);
