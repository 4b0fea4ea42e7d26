//! The upgrade as a transaction: preflight, spawn, offer, ready, commit, probation, move, finish. Until commit every fault leaves
//! the old generation as it was; until the end of the probation it stands by and takes over again; then its sessions go to the
//! new one. What takes time runs beside the loop.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use admin::command::{self, Failure, Line, Reply, UpgradeReport};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::event::{Caller, Event};
use super::next::{self, Loaded, Next, NotNext};
use super::owner::Keeper;
use super::pinned::Pinned;
use super::pools::Pools;
use super::spawn::Progress;
use super::told::Moved;
use crate::config::{Bind, Config};
use crate::observe::events::Happened;
use crate::observe::scene::Standing;

mod commit;
mod finish;
mod prepare;
mod probation;
mod probe;
mod report;
mod rollback;
mod settling;

pub(super) use finish::retirement;
pub(super) use probation::SILENCE;
use probation::Trial;
pub(super) use probe::Probed;
pub(super) use report::Reports;
pub(super) use rollback::LOST;
use settling::Settling;

/// The upgrade that holds the lock.
#[derive(Debug)]
pub(super) struct Upgrade {
    pub id: u64,
    pub from: u32,
    pub to: u32,
    pub step: &'static str,
    /// For those who come second.
    begun_by: &'static str,
    caller: Caller,
    /// Those who wait for the report.
    followers: Vec<Caller>,
    dry_run: bool,
    probation: Duration,
    started: Instant,
    /// Shown as of the last change or tick.
    pub step_started: Instant,
    task: Option<AbortHandle>,
    /// The new generation is another installation's.
    pub(super) is_take_over: bool,
    /// Sessions closed by force to make room for the new generation.
    forced: u64,
    /// From the end of the preflight to the commit.
    next: Option<Pending>,
    /// From the commit to the end of the probation.
    pub(super) trial: Option<Trial>,
    /// What is left to do when the sessions have gone where they are to be.
    settling: Option<Settling>,
    /// What has become of the sessions.
    moved: Moved,
    /// As asked for; as configured, if nothing was said.
    sessions: Option<command::Sessions>,
    /// Committed, while the new binary is asked whether it can go on as the keeper.
    pub(super) vetting: Option<UpgradeReport>,
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

/// What a rollback goes back to: binary and configuration together.
#[derive(Debug, Clone)]
pub(super) struct Previous {
    pub pinned: Rc<Pinned>,
    pub loaded: Loaded,
}

/// A process on its way to READY.
#[derive(Debug, Clone)]
pub(super) struct Nascent {
    pub id: u32,
    pub pid: u32,
    pub pinned: Rc<Pinned>,
}

/// How an upgrade or a rollback was asked for.
struct Asked {
    begun_by: &'static str,
    dry_run: bool,
    no_wait: bool,
    probation: Option<f64>,
    sessions: Option<command::Sessions>,
}

impl Keeper {
    pub(super) fn start_upgrade(&mut self, asked: command::Upgrade, caller: Caller) {
        if let Err(failure) = self.may_upgrade(&asked) {
            if caller.is_none() {
                tracing::warn!("upgrade by signal refused: {failure}");
            }
            return Self::tell(&caller, Line::Failed(failure));
        }
        let binary = asked.binary.map_or_else(|| self.pinned.path.clone(), PathBuf::from);
        let config = asked.config.map_or_else(|| self.loaded.path.clone(), PathBuf::from);
        let text = format!("binary {}, configuration {}", binary.display(), config.display());
        let begun_by = if caller.is_some() { "by proxyctl" } else { "by signal" };
        let command::Upgrade { dry_run, no_wait, probation, sessions, .. } = asked;
        let how = Asked { begun_by, dry_run, no_wait, probation, sessions };
        let (known, reaper) = (self.known_binaries(), self.reaper.clone());
        tracing::info!(dry_run = how.dry_run, binary = %binary.display(), config = %config.display(), "upgrade begins");
        self.begin_upgrade(&how, caller, text, |deadline| next::preflight(binary, config, known, reaper, deadline));
    }

    /// Takes the lock, and lets the preflight run beside the loop.
    fn begin_upgrade<F>(&mut self, asked: &Asked, caller: Caller, text: String, preflight: impl FnOnce(Instant) -> F)
    where
        F: Future<Output = Result<Next, NotNext>> + 'static,
    {
        let mut upgrade = self.enroll(asked, caller);
        let (id, ready_timeout) = (upgrade.id, self.config().upgrade.ready_timeout);
        if asked.no_wait {
            Self::tell(&upgrade.caller.take(), Line::Done(Reply::Started { id }));
        }
        let found = preflight(upgrade.started + ready_timeout);
        upgrade.task =
            Some(self.later(async move { Event::Preflighted { upgrade: id, found: found.await.map(Box::new) } }));
        self.enrolled(upgrade, text, "preflight");
    }

    /// As [`Self::begin_upgrade`], of an heir that has knocked. Gives the deadline for READY, too.
    pub(super) fn enroll_take_over(&mut self) -> (u64, Instant) {
        let (dry_run, no_wait) = (false, false);
        let asked = Asked { begun_by: "by another installation", dry_run, no_wait, probation: None, sessions: None };
        let mut upgrade = self.enroll(&asked, None);
        (upgrade.is_take_over, upgrade.to) = (true, self.last_generation);
        let (id, deadline) = (upgrade.id, upgrade.started + self.config().upgrade.ready_timeout);
        tracing::info!(upgrade = id, "another installation takes over");
        self.enrolled(upgrade, "another installation takes over".into(), "offer");
        (id, deadline)
    }

    /// What is under way for the upgrade, ended with it.
    pub(super) fn upgrade_task(&mut self, task: AbortHandle) {
        if let Some(upgrade) = &mut self.upgrade {
            upgrade.task = Some(task);
        }
    }

    /// At its commit this keeper's own configuration and pools stay.
    pub(super) fn nothing_changes(&mut self) {
        let (loaded, pools) = (self.loaded.clone(), self.pools.clone());
        if let Some(upgrade) = &mut self.upgrade {
            upgrade.next = Some(Pending { loaded, pools, notes: Vec::new(), added: Vec::new() });
        }
    }

    fn enrolled(&mut self, upgrade: Upgrade, text: String, step: &'static str) {
        let id = upgrade.id;
        let begun = Happened::new("upgrade_begun", text).upgrade(id).generation(upgrade.to);
        self.happenings.tell(begun.with("from", upgrade.from).with("dry_run", upgrade.dry_run));
        self.upgrade = Some(upgrade);
        self.upgrade_step(id, step);
    }

    fn enroll(&mut self, asked: &Asked, caller: Caller) -> Upgrade {
        self.last_upgrade += 1;
        let now = Instant::now();
        Upgrade {
            id: self.last_upgrade,
            from: self.serving.unwrap_or(0),
            to: self.last_generation + 1,
            step: "",
            begun_by: asked.begun_by,
            caller,
            followers: Vec::new(),
            dry_run: asked.dry_run,
            probation: asked.probation.map_or_else(|| self.config().upgrade.probation, Duration::from_secs_f64),
            started: now,
            step_started: now,
            task: None,
            is_take_over: false,
            forced: 0,
            next: None,
            trial: None,
            settling: None,
            moved: Moved::default(),
            sessions: asked.sessions,
            vetting: None,
        }
    }

    fn may_upgrade(&self, asked: &command::Upgrade) -> Result<(), Failure> {
        self.may_begin(asked.probation)?;
        for (what, path) in [("--binary", &asked.binary), ("--config", &asked.config)] {
            if let Some(path) = path.as_deref().filter(|path| !Path::new(path).is_absolute()) {
                return Err(Failure::usage(format!("{what} {path}: the path must be absolute; nothing changed")));
            }
        }
        Ok(())
    }

    pub(super) fn may_begin(&self, probation: Option<f64>) -> Result<(), Failure> {
        self.may_change()?;
        if self.replacing().is_some() {
            return Err(Failure::conflict("proxyd is becoming its new version; nothing changed, try again"));
        }
        if self.serving.is_none() {
            return Err(Failure::conflict(
                "no generation is serving: a crashed worker is being restarted; nothing changed, try again when `proxyctl status` shows one",
            ));
        }
        match probation {
            Some(seconds) if !(0.0..=LONGEST_PROBATION).contains(&seconds) => {
                Err(Failure::usage(format!("a probation of {seconds} s is not between 0s and 24h; nothing changed")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what must not happen between the start of an upgrade and its end.
    pub(super) fn not_upgrading(&self) -> Result<(), Failure> {
        self.upgrade.as_ref().map_or(Ok(()), |upgrade| Err(Failure::conflict(upgrade.in_progress())))
    }

    /// Refuses what must not happen between the start of an upgrade and its commit.
    pub(super) fn not_before_commit(&self) -> Result<(), Failure> {
        // An heir has pools of its own.
        let is_open = |upgrade: &&Upgrade| upgrade.trial.is_none() && upgrade.settling.is_none();
        let binds = |upgrade: &&Upgrade| is_open(upgrade) || upgrade.is_take_over;
        self.upgrade.as_ref().filter(binds).map_or(Ok(()), |_| self.not_upgrading())
    }

    pub(super) fn upgrade_progress(&mut self, id: u64, progress: Progress) {
        match progress {
            Progress::Step(step) => self.upgrade_step(id, step),
            Progress::Born { generation, pid } => {
                let Some(nascent) = self.nascent.as_mut().filter(|nascent| nascent.id == generation) else { return };
                nascent.pid = pid;
            }
        }
    }

    pub(super) fn upgrade_step(&mut self, id: u64, step: &'static str) {
        let Some(upgrade) = self.upgrade.as_mut().filter(|upgrade| upgrade.id == id) else { return };
        let now = Instant::now();
        if !upgrade.step.is_empty() {
            let took = now.duration_since(upgrade.step_started).as_secs_f64();
            self.tally.step(upgrade.step, took);
        }
        (upgrade.step, upgrade.step_started) = (step, now);
        let detail = format!("generation {} -> {}", upgrade.from, upgrade.to);
        tracing::debug!(upgrade = id, step, "upgrade");
        let text = format!("{step}: {detail}");
        self.happenings.tell(Happened::new("upgrade_step", text).upgrade(id).generation(upgrade.to).with("step", step));
        Self::tell(&upgrade.caller, Line::Step { step: step.into(), detail });
        self.tell_manager();
    }

    /// Whether this upgrade still holds the lock; what an ended one left behind is of no interest.
    pub(super) fn is_under_way(&self, id: u64) -> bool {
        self.upgrade.as_ref().is_some_and(|upgrade| upgrade.id == id)
    }

    /// The images held now: of the generation that serves, and of the one to go back to.
    fn known_binaries(&self) -> Vec<Rc<Pinned>> {
        let previous = self.previous.iter().map(|previous| &previous.pinned);
        std::iter::once(&self.pinned).chain(previous).cloned().collect()
    }

    /// Ends what is under way as it can be ended: cancelled before the commit, brought to its end after it.
    pub(super) async fn end_upgrade_for_shutdown(&mut self) {
        // First: a keeper that ends does not begin to become another.
        self.standing = Standing::ShuttingDown;
        match self.trial() {
            // An heir is not the keeper before it was told so, and now nobody will tell it.
            Some(_) if self.upgrade.as_ref().is_some_and(|upgrade| upgrade.is_take_over) => {
                self.roll_back("proxyd is shutting down").await;
            }
            Some(_) => self.finish_probation().await,
            None => {
                self.settle_now().await;
                self.abandon_upgrade("proxyd is shutting down");
            }
        }
        self.stop_vetting();
    }
}

impl Upgrade {
    fn in_progress(&self) -> String {
        format!(
            "upgrade already in progress: upgrade {} (generation {} -> {}), begun {} {:.1} s ago, is at step {}; nothing changed, try again when it has ended",
            self.id,
            self.from,
            self.to,
            self.begun_by,
            self.started.elapsed().as_secs_f64(),
            self.step
        )
    }
}

/// A day, as the key `upgrade.probation` allows.
const LONGEST_PROBATION: f64 = 86_400.0;

pub(super) fn ids(config: &Config) -> Vec<String> {
    config.listeners.values().flat_map(|listener| listener.bind.iter().map(Bind::id)).collect()
}

pub(super) fn listed(keys: &[&str]) -> Option<String> {
    (!keys.is_empty()).then(|| keys.join(", "))
}
