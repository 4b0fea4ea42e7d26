//! Hot changes: a new file, or a change of the pools. Prepared on a copy, acknowledged by the worker, then in force. A change
//! that is refused anywhere has changed nothing.

use admin::command::{Changed, Failure, Line, Reply};
use handoff::ledger::LedgerError;
use rustix::process::Signal;

use super::event::Caller;
use super::link::LinkError;
use super::next::{self, Loaded};
use super::owner::Keeper;
use super::pools::{Pools, Retired};
use super::restart::plan_of;
use super::upgrade::listed;
use crate::config::order::{Order, Purpose};
use crate::config::plan::BackendAdmin;
use crate::config::{Change, Config};
use crate::observe::events::Happened;
use crate::observe::scene::Standing;

impl Keeper {
    pub(super) async fn reload(&mut self) -> Result<Changed, Failure> {
        let done = self.try_reload().await;
        let result = match &done {
            Ok(changed) => {
                self.pending = None;
                tracing::info!("{}", changed.summary);
                self.happenings.tell(Happened::new("config_reloaded", changed.summary.clone()));
                changed.changes.iter().for_each(|change| tracing::info!("{change}"));
                "applied"
            }
            Err(failure) => {
                tracing::error!("{failure}");
                self.happenings.tell(Happened::new("config_refused", failure.message.clone()));
                "refused"
            }
        };
        self.tally.reloaded(result);
        done
    }

    pub(super) async fn reload_by_signal(&mut self) {
        self.notify.reloading();
        let done = self.reload().await;
        self.notify.reloaded(done.map(|_| ()).map_err(|failure| failure.message));
    }

    async fn try_reload(&mut self) -> Result<Changed, Failure> {
        self.may_change().map_err(|failure| Failure { message: format!("reload refused: {failure}"), ..failure })?;
        let version = self.config_version;
        let keep = |why: String| {
            let unchanged = format!("the configuration in force (version {version}) is unchanged");
            Failure::failed(match why.contains('\n') {
                true => format!("reload refused; {unchanged}:\n{why}"),
                false => format!("reload refused: {why}; {unchanged}"),
            })
        };
        let loaded = next::load(&self.loaded.path).map_err(keep)?;
        let change = Change::between(self.config(), &loaded.config);
        if let Some(keys) = listed(change.needs_restart()) {
            return Err(keep(format!(
                "{keys} cannot be changed while proxyd runs: restart it for that, or put the old value back"
            )));
        }
        if let Some(keys) = listed(change.needs_upgrade()) {
            return Err(keep(format!("{keys} cannot be changed by a reload: use `proxyctl upgrade`")));
        }
        let (pools, notes) = self.pools.merged(self.config(), &loaded.config);
        let changes = [change.lines(), &notes].concat();
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        if changes.is_empty() && pools == self.pools {
            self.loaded = loaded;
            return Ok(Changed { summary: format!("nothing has changed (version {version})"), changes, version });
        }
        let removed: Vec<String> = self
            .config()
            .listeners
            .keys()
            .filter(|name| !loaded.config.listeners.contains_key(*name))
            .cloned()
            .collect();
        self.put_in_force(loaded, pools, None).await.map_err(|why| keep(why.message))?;
        self.drain_listeners(&removed);
        let version = self.config_version;
        Ok(Changed { summary: format!("configuration version {version} is in force"), changes, version })
    }

    /// A change of the pools at run time. On probation it is made to both generations, or to none.
    pub(super) async fn change_pools(
        &mut self,
        if_version: Option<u64>,
        change: impl Fn(&mut Pools, Option<u64>) -> Result<Changed, Failure>,
    ) -> Result<Changed, Failure> {
        self.may_change_pools()?;
        let mut pools = self.pools.clone();
        let changed = change(&mut pools, if_version)?;
        // The version that was looked at is that of the pool in force.
        let standby = self.changed_for_standby(|pools| change(pools, None).map(drop))?;
        let is_new_for_standby = self.trial().map(|trial| &trial.before.pools) != standby.as_ref();
        if pools != self.pools || is_new_for_standby {
            self.put_in_force(self.loaded.clone(), pools, standby).await?;
            self.happenings.tell(Happened::new("pool_changed", changed.summary.clone()));
        }
        Ok(changed)
    }

    fn may_change_pools(&self) -> Result<(), Failure> {
        if self.standing == Standing::ShuttingDown {
            return self.may_change();
        }
        self.not_before_commit()
    }

    /// Refuses what must not happen during a shutdown or an upgrade.
    pub(super) fn may_change(&self) -> Result<(), Failure> {
        if self.standing == Standing::ShuttingDown {
            return Err(Failure::conflict("proxyd is shutting down; nothing changed"));
        }
        if self.apprentice.is_some() {
            return Err(Failure::conflict("a take-over is on trial here; nothing changed"));
        }
        self.not_upgrading()
    }

    /// `standby`: the pools of the generation that stands by.
    async fn put_in_force(&mut self, loaded: Loaded, pools: Pools, standby: Option<Pools>) -> Result<(), Failure> {
        if let Some(found) = pools.find_loop(&loaded.config) {
            return Err(Failure::failed(format!("{found}; nothing changed")));
        }
        let added = self.sockets.bind_missing(&loaded.config).map_err(|error| Failure::failed(error.to_string()))?;
        if let Err(failure) = self.tell_workers(&loaded.config, &pools, &added, standby.as_ref()).await {
            self.sockets.close(&added);
            return Err(failure);
        }
        if let Some((trial, standby)) = self.trial_mut().zip(standby) {
            trial.before.pools = standby;
        }
        let before = std::mem::replace(&mut self.pools, pools);
        let old = std::mem::replace(&mut self.loaded, loaded);
        self.config_version += 1;
        if self.trial().is_none() {
            let surplus = self.sockets.surplus(self.config());
            self.sockets.close(&surplus);
        }
        if old.config.listeners != self.config().listeners {
            self.sockets.refresh(&self.loaded.config);
        }
        let retired = before.retired(&self.pools);
        let disabled = newly_disabled(&before, &self.pools);
        self.drain_backends(&retired, Purpose::BackendRemoved);
        self.drain_backends(&disabled, Purpose::BackendDisabled);
        self.undrain_backends(&newly_disabled(&self.pools, &before));
        // Before it is acknowledged: it outlives this process.
        self.remember_first().await;
        // A worker that is being started was given what was in force before.
        self.start_worker();
        Ok(())
    }

    /// The standby first: what it has agreed to can be taken back without anybody noticing.
    async fn tell_workers(
        &mut self,
        config: &Config,
        pools: &Pools,
        added: &[String],
        standby: Option<&Pools>,
    ) -> Result<(), Failure> {
        let standing_by = self.trial().and_then(|trial| Some((trial.standby?, trial.before.loaded.config.clone())));
        if let Some(((id, old), pools)) = standing_by.as_ref().zip(standby) {
            self.tell_worker(*id, old, pools, &[]).await?;
        }
        let Some(serving) = self.serving else {
            let failed = |error: LedgerError| Failure::failed(format!("{error}; nothing changed"));
            return self.ensure_names(&pools.names(config), 0, 0).await.map_err(failed);
        };
        let told = self.tell_worker(serving, config, pools, added).await;
        if told.is_err()
            && let Some((id, old)) = standing_by
            && let Some(before) = self.trial().map(|trial| trial.before.pools.clone())
            && let Err(failure) = self.tell_worker(id, &old, &before, &[]).await
        {
            tracing::error!(
                generation = id,
                "the standby has a change that was refused, and cannot take it back: {failure}; killed"
            );
            self.kill_generation(id);
        }
        told
    }

    async fn tell_worker(&mut self, id: u32, config: &Config, pools: &Pools, added: &[String]) -> Result<(), Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::failed(format!("{error}; nothing changed"));
        self.ensure_names(&pools.names(config), 0, 0).await.map_err(|error| failed(&error))?;
        let Some(worker) = self.generations.get(&id) else { return Ok(()) };
        let (link, process) = (worker.link.clone(), worker.process.clone());
        let sockets = self.sockets.duplicates(Some(added)).map_err(|error| failed(&error))?;
        has_room(process.pid, sockets.len() * (1 + config.runtime.threads)).map_err(|why| failed(&why))?;
        let plan = plan_of(config, self.config_version + 1, pools);
        let told = async {
            link.sockets(sockets).await?;
            link.order("the new plan", &Order::Apply { plan: Box::new(plan) }).await
        };
        match told.await {
            Ok(_) => Ok(()),
            Err(error @ LinkError::Deadline { .. }) => {
                // Its threads may or may not follow the new plan: only a new worker is surely in one state.
                tracing::error!(generation = id, %error, "worker hangs; killed, to be restarted");
                process.kill(Signal::KILL);
                Err(failed(&error))
            }
            Err(error) => Err(failed(&error)),
        }
    }

    pub(super) fn answer(caller: &Caller, answer: Result<Changed, Failure>) {
        Self::tell(caller, answer.map_or_else(Line::Failed, |changed| Line::Done(Reply::Changed(changed))));
    }
}

/// Whether a worker can take so many more descriptors: one that cannot would lose them on the way, and with them the channel.
/// (Workers have our limit.)
fn has_room(worker: u32, needed: usize) -> Result<(), String> {
    let Ok(open) = std::fs::read_dir(format!("/proc/{worker}/fd")).map(Iterator::count) else { return Ok(()) };
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let need = open + needed;
    match need as u64 > limit {
        true => Err(format!("the worker would need {need} descriptors for the new listeners, limit {limit}")),
        false => Ok(()),
    }
}

fn newly_disabled(before: &Pools, after: &Pools) -> Vec<Retired> {
    let disabled = |pools: &Pools| -> Vec<Retired> {
        let backends = pools.all().flat_map(|pool| pool.backends.iter().map(move |backend| (pool, backend)));
        backends
            .filter(|(_, backend)| backend.admin == BackendAdmin::Disabled)
            .map(|(pool, backend)| Retired { pool: pool.name.clone(), backend: backend.name.clone() })
            .collect()
    };
    let already = disabled(before);
    disabled(after).into_iter().filter(|backend| !already.contains(backend)).collect()
}
