//! From a passed preflight to a spawned generation: the rest of what can be found wrong without touching anything, then the
//! sockets, then the process.

use std::path::Path;

use admin::command::{Line, Reply, UpgradePlan};

use super::super::budget::{self, Needs, Room};
use super::super::event::Event;
use super::super::next::{Loaded, Next, NotNext};
use super::super::owner::Keeper;
use super::super::restart::{plan_bytes, plan_of};
use super::super::spawn::{self, Dowry};
use super::{Nascent, Pending, ids, listed};
use crate::config::{Change, Config};

impl Keeper {
    pub(in super::super) async fn preflighted(&mut self, id: u64, found: Result<Box<Next>, NotNext>) {
        if !self.is_under_way(id) {
            return;
        }
        let prepared = match found {
            Ok(next) => self.prepare(id, *next).await,
            Err(error) => Err(error.to_string()),
        };
        if let Err(reason) = prepared {
            self.fail_upgrade(&reason);
        }
    }

    /// Binds what is new and starts the generation, or says what would be done.
    async fn prepare(&mut self, id: u64, next: Next) -> Result<(), String> {
        let Next { pinned, loaded } = next;
        let change = Change::between(self.config(), &loaded.config);
        if let Some(keys) = listed(change.needs_restart()) {
            return Err(format!(
                "{keys} cannot be changed by an upgrade; restart proxyd for it, or put the old value back"
            ));
        }
        let (pools, notes) = self.pools.merged(self.config(), &loaded.config);
        if let Some(found) = pools.find_loop(&loaded.config) {
            return Err(found);
        }
        self.check_budgets(&loaded.config)?;
        let added = self.sockets.bind_missing(&loaded.config).map_err(|error| error.to_string())?;
        if self.upgrade.as_ref().is_some_and(|upgrade| upgrade.dry_run) {
            // That they can be bound is all there was to know.
            self.sockets.close(&added);
            let plan = dry_run(self.config(), &pinned.path, pinned.version.clone(), &loaded);
            self.finish_upgrade(Line::Done(Reply::Plan(plan)));
            return Ok(());
        }
        let config = loaded.config.clone();
        if let Some(upgrade) = &mut self.upgrade {
            upgrade.next = Some(Pending { loaded, pools: pools.clone(), notes, added });
        }
        let threads = u32::try_from(config.runtime.threads).unwrap_or(u32::MAX);
        self.ensure_names(&pools.names(&config), threads, 0).await.map_err(|error| error.to_string())?;
        self.last_generation += 1;
        self.nascent = Some(Nascent { id: self.last_generation, pid: 0, pinned: pinned.clone() });
        let dowry = Dowry {
            generation: self.last_generation,
            pinned,
            sockets: self.sockets.duplicates(Some(&ids(&config))).map_err(|error| error.to_string())?,
            segments: self.segment_descriptors().map_err(|error| error.to_string())?,
            plan: plan_bytes(&plan_of(&config, self.config_version + 1, &pools)).map_err(|error| error.to_string())?,
            ready_timeout: config.upgrade.ready_timeout,
        };
        self.spawn_for_upgrade(id, dowry);
        Ok(())
    }

    fn check_budgets(&self, config: &Config) -> Result<(), String> {
        let sockets = ids(config).len() as u64;
        let like = self.serving_generation().map_or(0, |serving| budget::memory_of(serving.process.pid));
        let (threads, segments) = (config.runtime.threads as u64, self.ledger.segments().len() as u64);
        // Those it binds, and a duplicate of each.
        let keeper = sockets * 2;
        budget::check(&Needs { sockets, threads, segments, like, keeper }, &Room::measure())
    }

    fn spawn_for_upgrade(&mut self, id: u64, dowry: Dowry) {
        let (reaper, events) = (self.reaper.clone(), self.events.clone());
        let task = self.later(async move {
            let spawned = spawn::spawn(dowry, &reaper, |progress| {
                // A full queue loses a line of progress, never the upgrade.
                let _ = events.try_send(Event::Progress { upgrade: id, progress });
            });
            Event::Upgraded { upgrade: id, spawned: spawned.await.map(Box::new) }
        });
        self.upgrade_task(task);
    }
}

fn dry_run(old: &Config, binary: &Path, version: String, loaded: &Loaded) -> UpgradePlan {
    let (before, after) = (ids(old), ids(&loaded.config));
    let only = |a: &[String], b: &[String]| a.iter().filter(|id| !b.contains(id)).cloned().collect();
    UpgradePlan {
        binary: binary.display().to_string(),
        version,
        config: loaded.path.display().to_string(),
        kept: after.iter().filter(|id| before.contains(id)).cloned().collect(),
        added: only(&after, &before),
        removed: only(&before, &after),
    }
}
