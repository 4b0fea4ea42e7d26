//! The upgrade: preflight, spawn, offer, ready, commit, finish. Until commit every fault leaves the old generation as it
//! was. What takes time runs beside the loop; the loop itself only commits.

use std::path::{Path, PathBuf};
use std::time::Duration;

use admin::command::{
    self, Failure, FailureKind, Line, Reply, SessionsAtUpgrade, UpgradePlan, UpgradeReport, UpgradeResult,
};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::event::{Caller, Event};
use super::generation::{Deadline, State};
use super::link::Link;
use super::next::{self, Loaded, Next, NotNext};
use super::owner::Keeper;
use super::pools::Pools;
use super::restart::{plan_bytes, plan_of};
use super::spawn::{self, Dowry, Ready, SpawnError};
use crate::config::order::{Order, Purpose, Scope};
use crate::config::{Bind, Change, Config, Drain};

/// The upgrade that holds the lock.
#[derive(Debug)]
pub(super) struct Upgrade {
    pub id: u64,
    pub from: u32,
    pub to: u32,
    pub step: &'static str,
    caller: Caller,
    dry_run: bool,
    started: Instant,
    step_started: Instant,
    task: Option<AbortHandle>,
    /// Sessions closed by force to make room for the new generation.
    forced: u64,
    /// From the end of the preflight on.
    next: Option<Pending>,
}

/// What takes effect at commit.
#[derive(Debug)]
struct Pending {
    loaded: Loaded,
    pools: Pools,
    notes: Vec<String>,
    /// Sockets bound for it; closed again if it fails.
    added: Vec<String>,
}

impl Keeper {
    pub(super) fn start_upgrade(&mut self, asked: command::Upgrade, caller: Caller) {
        if let Err(failure) = self.may_upgrade(&asked) {
            if caller.is_none() {
                tracing::warn!("upgrade by signal refused: {failure}");
            }
            return Self::tell(&caller, Line::Failed(failure));
        }
        self.last_upgrade += 1;
        let id = self.last_upgrade;
        let binary = asked.binary.map_or_else(|| self.pinned.path.clone(), PathBuf::from);
        let config = asked.config.map_or_else(|| self.loaded.path.clone(), PathBuf::from);
        let dry_run = asked.dry_run;
        tracing::info!(upgrade = id, dry_run, binary = %binary.display(), config = %config.display(), "upgrade begins");
        let now = Instant::now();
        let (from, to) = (self.serving.unwrap_or(0), self.last_generation + 1);
        let mut upgrade = Upgrade {
            id,
            from,
            to,
            step: "",
            caller,
            dry_run,
            started: now,
            step_started: now,
            task: None,
            forced: 0,
            next: None,
        };
        if asked.no_wait {
            Self::tell(&upgrade.caller.take(), Line::Done(Reply::Started { id }));
        }
        let deadline = now + self.config().upgrade.ready_timeout;
        let reaper = self.reaper.clone();
        upgrade.task = Some(self.later(async move {
            let found = next::preflight(binary, config, reaper, deadline).await;
            Event::Preflighted { upgrade: id, found: found.map(Box::new) }
        }));
        self.upgrade = Some(upgrade);
        self.upgrade_step(id, "preflight");
    }

    fn may_upgrade(&self, asked: &command::Upgrade) -> Result<(), Failure> {
        self.may_change()?;
        if self.serving.is_none() {
            return Err(Failure::conflict(
                "no generation is serving: a crashed worker is being restarted; nothing changed, try again when `proxyctl status` shows one",
            ));
        }
        for (what, path) in [("--binary", &asked.binary), ("--config", &asked.config)] {
            if let Some(path) = path.as_deref().filter(|path| !Path::new(path).is_absolute()) {
                return Err(Failure::usage(format!("{what} {path}: the path must be absolute; nothing changed")));
            }
        }
        Ok(())
    }

    /// Refuses what must not happen between the start of an upgrade and its commit.
    pub(super) fn not_upgrading(&self) -> Result<(), Failure> {
        let Some(upgrade) = &self.upgrade else { return Ok(()) };
        Err(Failure::conflict(format!(
            "upgrade already in progress: upgrade {} (generation {} -> {}) is at step {}; nothing changed, try again when it has ended",
            upgrade.id, upgrade.from, upgrade.to, upgrade.step
        )))
    }

    pub(super) fn upgrade_step(&mut self, id: u64, step: &'static str) {
        let Some(upgrade) = self.upgrade.as_mut().filter(|upgrade| upgrade.id == id) else { return };
        let now = Instant::now();
        if !upgrade.step.is_empty() {
            let took = now.duration_since(upgrade.step_started).as_secs_f64();
            self.tally.upgrade_steps.with_label_values(&[upgrade.step]).observe(took);
        }
        (upgrade.step, upgrade.step_started) = (step, now);
        let detail = format!("generation {} -> {}", upgrade.from, upgrade.to);
        tracing::debug!(upgrade = id, step, "upgrade");
        Self::tell(&upgrade.caller, Line::Step { step: step.into(), detail });
    }

    pub(super) async fn preflighted(&mut self, id: u64, found: Result<Box<Next>, NotNext>) {
        if self.upgrade.as_ref().is_none_or(|upgrade| upgrade.id != id) {
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
        let Next { pinned, version, loaded } = next;
        let change = Change::between(self.config(), &loaded.config);
        if let Some(keys) = listed(change.needs_restart()) {
            return Err(format!(
                "{keys} cannot be changed by an upgrade; restart proxyd for it, or put the old value back"
            ));
        }
        if self.upgrade.as_ref().is_some_and(|upgrade| upgrade.dry_run) {
            let plan = dry_run(self.config(), &pinned.path, version, &loaded);
            self.finish_upgrade(Line::Done(Reply::Plan(plan)));
            return Ok(());
        }
        let (pools, notes) = self.pools.merged(self.config(), &loaded.config);
        if let Some(found) = pools.find_loop(&loaded.config) {
            return Err(found);
        }
        let added = self.sockets.bind_missing(&loaded.config).map_err(|error| error.to_string())?;
        let config = loaded.config.clone();
        if let Some(upgrade) = &mut self.upgrade {
            upgrade.next = Some(Pending { loaded, pools: pools.clone(), notes, added });
        }
        let threads = u32::try_from(config.runtime.threads).unwrap_or(u32::MAX);
        self.ensure_names(&pools.names(&config), threads, 0).await.map_err(|error| error.to_string())?;
        self.last_generation += 1;
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

    fn spawn_for_upgrade(&mut self, id: u64, dowry: Dowry) {
        let (reaper, events) = (self.reaper.clone(), self.events.clone());
        let task = self.later(async move {
            let spawned = spawn::spawn(dowry, &reaper, |step| {
                // A full queue loses a line of progress, never the upgrade.
                let _ = events.try_send(Event::Step { upgrade: id, step });
            });
            Event::Upgraded { upgrade: id, spawned: spawned.await.map(Box::new) }
        });
        if let Some(upgrade) = &mut self.upgrade {
            upgrade.task = Some(task);
        }
    }

    /// With more generations alive than allowed, the oldest that drain are closed by force. Only now, when the new one
    /// serves: an upgrade that fails costs nobody anything.
    async fn make_room(&mut self) {
        let surplus = self.generations.len().saturating_sub(self.config().upgrade.max_generations);
        let drains = self.generations.values().filter(|generation| generation.state == State::Draining);
        let oldest: Vec<u32> = drains.map(|generation| generation.id).take(surplus).collect();
        let how = self.config().drain.close;
        for id in oldest {
            let forced = self.sessions_of(id);
            let Some(generation) = self.generations.get_mut(&id) else { continue };
            tracing::warn!(generation = id, sessions = forced, "too many generations; the oldest is closed by force");
            generation.deadline = Some(Deadline::after(Duration::ZERO));
            let (scope, purpose) = (Scope::All, Purpose::Generations);
            let order = Order::Drain { scope, purpose, timeout: Some(Duration::ZERO), spread: Duration::ZERO, how };
            if let Err(error) = generation.link.order("drain", &order).await {
                tracing::warn!(generation = id, %error, "the oldest generation does not answer");
            }
            if let Some(upgrade) = &mut self.upgrade {
                upgrade.forced += forced;
            }
        }
    }

    pub(super) async fn spawned_for_upgrade(&mut self, id: u64, spawned: Result<Box<Ready>, SpawnError>) {
        if self.upgrade.as_ref().is_none_or(|upgrade| upgrade.id != id) {
            return self.discard(spawned);
        }
        match spawned {
            Ok(ready) => self.commit(id, *ready).await,
            Err(error) => {
                self.stillborn.push(error.generation);
                self.fail_upgrade_at(error.step, &error.to_string());
            }
        }
    }

    /// The new generation polls, then the old one stops: at no moment does nobody. From here on the new one is the truth.
    async fn commit(&mut self, id: u64, ready: Ready) {
        self.upgrade_step(id, "commit");
        let pinned = ready.pinned.clone();
        let (new, link, segments) = self.enlist(ready);
        let first_poll = match self.begin(&link, segments).await {
            Ok(first_poll) => first_poll,
            Err(error) => {
                self.kill_generation(new);
                return self.fail_upgrade_at("commit", &format!("generation {new}: {error}"));
            }
        };
        let old = self.serving.replace(new);
        self.pinned = pinned;
        let Some(Pending { loaded, pools, notes, .. }) = self.upgrade.as_mut().and_then(|upgrade| upgrade.next.take())
        else {
            return;
        };
        let drain = self.config().drain;
        (self.loaded, self.pools, self.config_version) = (loaded, pools, self.config_version + 1);
        let (gap, left) = match old {
            Some(old) => self.retire(old, first_poll, drain).await,
            None => (Duration::ZERO, 0),
        };
        self.upgrade_step(id, "finish");
        self.make_room().await;
        let surplus = self.sockets.surplus(self.config());
        self.sockets.close(&surplus);
        self.sockets.refresh(&self.loaded.config);
        for note in notes {
            tracing::warn!("{note}");
        }
        self.report_commit(gap, left);
    }

    /// Stops the old generation's polling and lets its sessions drain. Returns the accept gap and the sessions it still has.
    async fn retire(&mut self, old: u32, first_poll: u64, drain: Drain) -> (Duration, u64) {
        let Some(generation) = self.generations.get_mut(&old) else { return (Duration::ZERO, 0) };
        generation.state = State::Draining;
        generation.deadline = drain.timeout.map(Deadline::after);
        let link = generation.link.clone();
        let stopped = link.stop().await;
        let left = self.sessions_of(old);
        let orders = retirement(link, old, drain);
        match stopped {
            Ok(last_poll) => {
                orders.await;
                (Duration::from_nanos(first_poll.saturating_sub(last_poll)), left)
            }
            Err(error) => {
                // It dies, or will find the orders when it wakes.
                tracing::warn!(generation = old, %error, "the old generation did not confirm that it stopped");
                self.tasks.spawn_local(orders);
                (Duration::ZERO, left)
            }
        }
    }

    fn report_commit(&mut self, gap: Duration, left: u64) {
        self.tally.upgrades.with_label_values(&["committed"]).inc();
        self.tally.accept_gap.observe(gap.as_secs_f64());
        let version = self.serving_generation().map(|generation| generation.version.clone()).unwrap_or_default();
        let Some(upgrade) = &self.upgrade else { return };
        let report = UpgradeReport {
            accept_gap_ms: gap.as_secs_f64() * 1e3,
            sessions: SessionsAtUpgrade { moved: 0, left, forced: upgrade.forced },
            ..report(upgrade, UpgradeResult::Committed, "", version)
        };
        tracing::info!(
            upgrade = report.id,
            from = report.from,
            to = report.to,
            left,
            accept_gap_ms = report.accept_gap_ms,
            sha256 = self.pinned.sha256,
            "upgrade committed"
        );
        self.finish_upgrade(Line::Done(Reply::Upgraded(report)));
    }

    /// The serving generation is gone before commit: its restart wins.
    pub(super) fn abandon_upgrade(&mut self, reason: &str) {
        if self.upgrade.is_some() {
            self.fail_upgrade(reason);
        }
    }

    fn fail_upgrade(&mut self, reason: &str) {
        let step = self.upgrade.as_ref().map_or("", |upgrade| upgrade.step);
        self.fail_upgrade_at(step, reason);
    }

    fn fail_upgrade_at(&mut self, step: &'static str, reason: &str) {
        let Some(upgrade) = &mut self.upgrade else { return };
        upgrade.step = step;
        if let Some(task) = upgrade.task.take() {
            task.abort();
            self.stillborn.push(upgrade.to);
        }
        let added = upgrade.next.take().map(|next| next.added).unwrap_or_default();
        self.sockets.close(&added);
        self.tally.upgrades.with_label_values(&["failed"]).inc();
        let message = upgrade_failed(step, reason, &self.still_serving());
        let version = self.serving_generation().map(|generation| generation.version.clone()).unwrap_or_default();
        let Some(upgrade) = &self.upgrade else { return };
        let report = serde_json::to_value(report(upgrade, UpgradeResult::Failed, reason, version)).ok().map(Box::new);
        tracing::error!(upgrade = upgrade.id, "{message}");
        self.finish_upgrade(Line::Failed(Failure { kind: FailureKind::Failed, message, report }));
    }

    /// Gives back the lock, with the last line.
    fn finish_upgrade(&mut self, line: Line) {
        if let Some(upgrade) = self.upgrade.take() {
            let took = upgrade.step_started.elapsed().as_secs_f64();
            self.tally.upgrade_steps.with_label_values(&[upgrade.step]).observe(took);
            Self::tell(&upgrade.caller, line);
        }
    }
}

/// What a generation that polls no more is told.
async fn retirement(link: Link, generation: u32, drain: Drain) {
    let order = Order::drain(Scope::All, Purpose::Upgrade, drain);
    for (what, order) in [("drain", order), ("finish", Order::Finish)] {
        if let Err(error) = link.order(what, &order).await {
            tracing::warn!(generation, %error, "the old generation does not drain");
        }
    }
}

/// One line for an operator; the mistakes of a file follow it.
fn upgrade_failed(step: &str, reason: &str, still: &str) -> String {
    match reason.split_once('\n') {
        None => format!("upgrade failed at {step}: {reason}; {still}"),
        Some((headline, rest)) => {
            format!("upgrade failed at {step}: {}; {still}\n{rest}", headline.trim_end_matches(':'))
        }
    }
}

fn report(upgrade: &Upgrade, result: UpgradeResult, reason: &str, version: String) -> UpgradeReport {
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
        version,
        keeper: "unchanged".into(),
        seconds: upgrade.started.elapsed().as_secs_f64(),
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

pub(super) fn ids(config: &Config) -> Vec<String> {
    config.listeners.values().flat_map(|listener| listener.bind.iter().map(Bind::id)).collect()
}

pub(super) fn listed(keys: &[&str]) -> Option<String> {
    (!keys.is_empty()).then(|| keys.join(", "))
}
