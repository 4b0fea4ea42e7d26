//! The owner loop: everything that changes the state of the process passes here, one event after the other.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use admin::view::ConfigView;
use arc_swap::ArcSwap;
use handoff::ledger::{Ledger, LedgerError, Writer};
use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::backoff::Backoff;
use super::blame::Blame;
use super::drains::DrainInForce;
use super::event::{Caller, Event};
use super::generation::Generation;
use super::heard::Watch;
use super::moving::Moving;
use super::next::Loaded;
use super::notify::Notify;
use super::pinned::Pinned;
use super::pools::Pools;
use super::reaper::{Exit, Reaper};
use super::recover::Recovery;
use super::reexec::Replacement;
use super::restart::Restart;
use super::run::{RunError, SharedScene, sizes};
use super::sockets::Sockets;
use super::state::KeeperState;
use super::takeover::{Apprentice, Bequest, Inheritance};
use super::upgrade::{Nascent, Previous, Reports, SILENCE, Upgrade};
use super::vault::Vault;
use crate::config::Config;
use crate::observe::events::{Events, Happened};
use crate::observe::scene::{Scene, Standing};
use crate::observe::tally::Tally;

/// What a keeper is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub loaded: Loaded,
    pub pinned: Rc<Pinned>,
    pub pools: Pools,
    pub sockets: Sockets,
    pub ledger: Ledger,
    pub events: mpsc::Sender<Event>,
    pub reaper: Reaper,
    pub started: Instant,
    pub replaceable: bool,
    pub greeting: Option<String>,
    /// Another keeper counts in the same ledger.
    pub is_heir: bool,
}

/// Why the loop has ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// With the service.
    Over(Result<(), RunError>),
    /// The keeper is to be replaced by its new version; the loop can go on.
    Replace,
    /// An heir is to have everything.
    Bequeath(Bequest),
    /// This heir is to have everything.
    Inherit(Inheritance),
}

#[derive(Debug)]
pub(super) struct Keeper {
    /// The configuration in force.
    pub loaded: Loaded,
    pub config_version: u64,
    pub pools: Pools,
    pub sockets: Sockets,
    pub ledger: Ledger,
    /// The keeper's own block: it counts what dead workers could not.
    pub writer: Writer,
    pub tally: Tally,
    /// What happened, for those who follow.
    pub happenings: Events,
    /// To the service manager.
    pub notify: Notify,
    /// Every generation with a live process.
    pub generations: BTreeMap<u32, Generation>,
    /// Sessions on their way between them.
    pub moving: Moving,
    /// What workers have left against their own death.
    pub vault: Vault,
    pub recovery: Recovery,
    pub blame: Blame,
    /// Of listeners and backends.
    pub drains: Vec<DrainInForce>,
    pub last_generation: u32,
    pub serving: Option<u32>,
    /// What a crashed worker is restarted from.
    pub pinned: Rc<Pinned>,
    /// SHA-256 of the binary that this keeper itself runs.
    pub runs: String,
    pub replaceable: bool,
    pub upgrade: Option<Upgrade>,
    /// The keeper is about to become another version.
    pub replacement: Option<Replacement>,
    /// A take-over has passed its probation.
    pub bequest: Option<Bequest>,
    /// On trial: another one is the keeper.
    pub apprentice: Option<Apprentice>,
    pub inheritance: Option<Inheritance>,
    /// What the keeper was in whose place this one comes, until it is.
    pub before: Option<Box<KeeperState>>,
    /// Another one is the keeper now.
    pub retired: bool,
    /// Heirs that ended before they were keepers, and when their workers have.
    pub ghosts: Vec<(u32, tokio::time::Instant)>,
    /// Generations that have died, and when they are looked at once more.
    pub buried: Vec<(u32, Exit, tokio::time::Instant)>,
    /// Of the last state that was told to a worker.
    pub serial: u64,
    /// The state that all workers were told.
    pub told: Option<KeeperState>,
    /// SHA-256 of a configuration file that differs from what this keeper found in force.
    pub pending: Option<String>,
    pub last_upgrade: u64,
    pub reports: Reports,
    /// What a rollback outside of a probation goes back to.
    pub previous: Option<Previous>,
    /// A process on its way to READY.
    pub nascent: Option<Nascent>,
    pub watch: Watch,
    pub backoff: Backoff,
    pub restart: Restart,
    pub standing: Standing,
    pub events: mpsc::Sender<Event>,
    pub reaper: Reaper,
    /// What runs beside the loop; ends with the keeper.
    pub tasks: JoinSet<()>,
    /// A shutdown has closed the listeners: no worker is started any more.
    pub closing: bool,
    /// Generations that died before they were enlisted: their leases are still in the ledger.
    pub stillborn: Vec<u32>,
    /// Set when the loop is to end.
    pub ended: Option<Result<(), RunError>>,
    pub greeting: Option<String>,
    pub started: Instant,
    pub(super) scene: SharedScene,
}

impl Keeper {
    /// # Errors
    /// The ledger has no block for the keeper.
    pub(super) fn new(parts: Parts) -> Result<Self, LedgerError> {
        let Parts {
            loaded,
            pinned,
            pools,
            sockets,
            mut ledger,
            events,
            reaper,
            started,
            replaceable,
            greeting,
            is_heir,
        } = parts;
        if !is_heir {
            // What an earlier image of this keeper, or an earlier keeper, had leased.
            ledger.bury(0, &mut |_| ());
        }
        ledger.ensure(&pools.names(&loaded.config), 1, 0)?;
        let writer = lease(&ledger)?;
        let tally = Tally::of(&writer);
        let scene = Scene {
            version: crate::version::VERSION,
            started,
            standing: Standing::Starting,
            generations: Vec::new(),
            listeners: Vec::new(),
            pools: Vec::new(),
            config: ConfigView::default(),
            upgrade: None,
            segments: Vec::new(),
        };
        let keeper = Self {
            loaded,
            config_version: 1,
            pools,
            sockets,
            ledger,
            writer,
            tally,
            happenings: Events::default(),
            notify: Notify::from_environment(),
            generations: BTreeMap::new(),
            moving: Moving::default(),
            vault: Vault::default(),
            recovery: Recovery::default(),
            blame: Blame::default(),
            drains: Vec::new(),
            last_generation: 0,
            serving: None,
            runs: pinned.sha256.clone(),
            replaceable,
            pinned,
            upgrade: None,
            replacement: None,
            bequest: None,
            apprentice: None,
            inheritance: None,
            before: None,
            retired: false,
            ghosts: Vec::new(),
            buried: Vec::new(),
            serial: 0,
            told: None,
            pending: None,
            last_upgrade: 0,
            reports: Reports::default(),
            previous: None,
            nascent: None,
            watch: Watch::new(tokio::time::Instant::now()),
            backoff: Backoff::default(),
            restart: Restart::default(),
            standing: Standing::Starting,
            events,
            reaper,
            tasks: JoinSet::new(),
            closing: false,
            stillborn: Vec::new(),
            ended: None,
            greeting,
            started,
            scene: Arc::new(ArcSwap::from_pointee(scene)),
        };
        keeper.publish();
        Ok(keeper)
    }

    pub(super) fn config(&self) -> &Config {
        &self.loaded.config
    }

    pub(super) fn scene(&self) -> SharedScene {
        self.scene.clone()
    }

    /// Until the service ends, or the keeper is to be replaced.
    pub(super) async fn run(&mut self, inbox: &mut mpsc::Receiver<Event>) -> Ended {
        loop {
            let Some(event) = inbox.recv().await else { return Ended::Over(Ok(())) };
            if let Some(over) = self.turn(event).await {
                return over;
            }
            if let Some(next) = self.next_keeper() {
                return next;
            }
        }
    }

    fn next_keeper(&mut self) -> Option<Ended> {
        let replaced = || self.replacement.is_some().then_some(Ended::Replace);
        replaced()
            .or_else(|| self.bequest.take_if(|_| !self.recovery.is_at_work()).map(Ended::Bequeath))
            .or_else(|| self.inheritance.take().map(Ended::Inherit))
    }

    /// Goes on until something else has happened, and what was told by then is heard. `Some`: the service has ended first.
    pub(super) async fn run_until(
        &mut self,
        inbox: &mut mpsc::Receiver<Event>,
        happened: impl Future<Output = ()>,
    ) -> Option<Ended> {
        let mut happened = std::pin::pin!(happened);
        loop {
            let event = tokio::select! {
                event = inbox.recv() => event?,
                () = &mut happened => break,
            };
            if let Some(over) = self.turn(event).await {
                return Some(over);
            }
        }
        while let Ok(event) = inbox.try_recv() {
            if let Some(over) = self.turn(event).await {
                return Some(over);
            }
        }
        None
    }

    async fn turn(&mut self, event: Event) -> Option<Ended> {
        self.handle(event).await;
        self.recover();
        self.remember();
        self.publish();
        self.tell_manager();
        while self.tasks.try_join_next().is_some() {}
        let ended = self.ended.take()?;
        self.end();
        Some(Ended::Over(ended))
    }

    async fn handle(&mut self, event: Event) {
        match event {
            Event::Command(command, caller) => self.command(command, caller).await,
            Event::Hangup => self.reload_by_signal().await,
            Event::UpgradeSignal => self.upgrade_by_signal(),
            Event::Terminate => self.terminate().await,
            Event::Preflighted { upgrade, found } => self.preflighted(upgrade, found).await,
            Event::Progress { upgrade, progress } => self.upgrade_progress(upgrade, progress),
            Event::Upgraded { upgrade, spawned } => self.spawned_for_upgrade(upgrade, spawned).await,
            Event::Probed { upgrade, found } => self.probed(upgrade, found).await,
            Event::ProbationOver { upgrade } => self.probation_over(upgrade).await,
            Event::Born { generation, pid } => self.born(generation, pid),
            Event::Restart => self.start_worker(),
            Event::Restarted { attempt, spawned } => self.restarted(attempt, spawned).await,
            Event::Exited { generation, exit } => self.exited(generation, exit).await,
            Event::Unlinked { generation } => self.unlinked(generation).await,
            Event::Stopped { generation, drain, confirmed } => self.stopped(generation, drain, confirmed).await,
            Event::Noticed { generation, notice } => self.noticed(generation, notice).await,
            Event::PathLost { generation, path, why } => self.path_lost(generation, path, &why).await,
            Event::LinkOf { generation, reply } => self.tell_link(generation, reply),
            Event::KillHeld { ids, reply } => self.kill_held(&ids, reply),
            Event::Recovered(recovered) => self.recovered(*recovered),
            Event::StopAccepting => self.stop_accepting().await,
            Event::Untold => self.untold(),
            Event::Vetted { upgrade, vetted } => self.vetted(upgrade, vetted),
            Event::Knocked(channel) => self.knocked(channel),
            Event::Offered { upgrade, found } => self.offered(upgrade, found).await,
            Event::Told(told) => self.told(told).await,
            Event::Survived(survivors) => self.survived(*survivors).await,
            Event::Tick => self.tick().await,
        }
    }

    /// Looks after what no event tells of: generations past their deadline, and a ledger that fills up.
    async fn tick(&mut self) {
        self.notify.tick();
        let now = tokio::time::Instant::now();
        self.watch.tick(now);
        self.judge(now).await;
        self.miss_heartbeat(now);
        self.beat_on_trial(now);
        self.bury_ghosts(now);
        for generation in std::mem::take(&mut self.stillborn) {
            self.ledger.bury(generation, &mut |_| ());
        }
        for generation in self.generations.values() {
            if generation.deadline.is_some_and(|deadline| deadline.overdue()) {
                tracing::warn!(
                    generation = generation.id,
                    pid = generation.process.pid,
                    "did not end at its drain deadline; killed"
                );
                generation.process.kill(Signal::KILL);
            }
        }
        if self.apprentice.is_some() || self.retired {
            // The ledger is another keeper's.
            return;
        }
        self.bury_latecomers(now);
        self.look_after_vaults();
        self.vault.sweep(&self.ledger);
        self.look_after_moves(now).await;
        self.look_after_drains();
        let spare = u32::try_from(self.config().runtime.max_sessions / 8).unwrap_or(u32::MAX).max(16);
        if let Err(error) = self.ensure_ledger(0, spare).await {
            tracing::warn!(%error, "the ledger cannot grow; new sessions wait when it is full");
        }
    }

    /// Outside of a probation a worker that hangs is only told of: what it has accepted may still go on.
    fn miss_heartbeat(&mut self, now: tokio::time::Instant) {
        let Some(serving) = self.serving else { return };
        let Some(generation) = self.generations.get_mut(&serving) else { return };
        let silence = self.watch.silence(&generation.link.heard(), now);
        let is_silent = silence >= SILENCE;
        if std::mem::replace(&mut generation.silent, is_silent) == is_silent {
            return;
        }
        let (id, pid) = (generation.id, generation.process.pid);
        if is_silent {
            let text = format!("generation {id} (pid {pid}) sent no heartbeat for {:.1} s", silence.as_secs_f64());
            tracing::warn!(generation = id, pid, "{text}");
            self.happenings.tell(Happened::new("heartbeat_silent", text).generation(id));
        } else {
            tracing::info!(generation = id, pid, "the heartbeat is back");
            let text = format!("generation {id} (pid {pid}) is heard again");
            self.happenings.tell(Happened::new("heartbeat_back", text).generation(id));
        }
    }

    /// Makes room in the ledger for what is named now, and gives a new segment to the worker that serves.
    pub(super) async fn ensure_ledger(&mut self, blocks: u32, records: u32) -> Result<(), LedgerError> {
        let names = self.pools.names(self.config());
        self.ensure_names(&names, blocks, records).await
    }

    pub(super) async fn ensure_names(
        &mut self,
        names: &[handoff::ledger::NameSpec],
        blocks: u32,
        records: u32,
    ) -> Result<(), LedgerError> {
        // A new segment takes the place of the one before: it has to have the names of all who count in it.
        let mut all = self.pools.names(self.config());
        if let Some(trial) = self.trial() {
            all.extend(trial.before.pools.names(&trial.before.loaded.config));
        }
        all.extend_from_slice(names);
        if !self.grow_ledger(&all, blocks, records)? {
            return Ok(());
        }
        let Some(last) = self.ledger.segments().last() else { return Ok(()) };
        let index = last.index();
        let standby = self.trial().and_then(|trial| trial.standby);
        for id in self.serving.into_iter().chain(standby) {
            let Some(fd) = self.ledger.descriptor(index).and_then(|fd| fd.try_clone_to_owned().ok()) else { continue };
            let Some(link) = self.generations.get(&id).map(|generation| generation.link.clone()) else { continue };
            if let Err(error) = link.segment(index, fd).await {
                tracing::warn!(generation = id, %error, "the worker did not take a new ledger segment");
            }
        }
        Ok(())
    }

    /// True: a segment was added, which workers are to be given.
    pub(super) fn grow_ledger(
        &mut self,
        names: &[handoff::ledger::NameSpec],
        blocks: u32,
        records: u32,
    ) -> Result<bool, LedgerError> {
        // For all generations that may live at a time: else each upgrade would need one more.
        let least = sizes(self.config(), &self.pools, blocks);
        let is_added = self.ledger.ensure_roomy(names, blocks, records, least)?;
        if is_added {
            self.count_in_newest()?;
        }
        Ok(is_added)
    }

    /// The keeper counts under the newest names.
    pub(super) fn count_in_newest(&mut self) -> Result<(), LedgerError> {
        self.writer = lease(&self.ledger)?;
        self.tally = Tally::of(&self.writer);
        Ok(())
    }

    pub(super) fn segment_descriptors(&self) -> std::io::Result<Vec<OwnedFd>> {
        let all = self.ledger.segments().iter();
        all.filter_map(|segment| self.ledger.descriptor(segment.index())).map(|fd| fd.try_clone_to_owned()).collect()
    }

    pub(super) fn serving_generation(&self) -> Option<&Generation> {
        self.serving.and_then(|id| self.generations.get(&id))
    }

    /// Says a line to whoever waits for it. A caller that does not read loses it; nothing waits.
    pub(super) fn tell(caller: &Caller, line: admin::command::Line) {
        if let Some(lines) = caller {
            let _ = lines.try_send(line);
        }
    }

    /// Sends an event back into the loop when a future ends.
    pub(super) fn later(&mut self, event: impl Future<Output = Event> + 'static) -> tokio::task::AbortHandle {
        let events = self.events.clone();
        self.tasks.spawn_local(async move {
            let event = event.await;
            let _ = events.send(event).await;
        })
    }

    /// Runs it beside the loop, and waits for it a moment only: a worker that hangs holds up nobody else.
    pub(super) async fn briefly(&mut self, task: impl Future<Output = ()> + 'static) {
        let (running, over) = oneshot::channel::<()>();
        self.tasks.spawn_local(async move {
            task.await;
            drop(running);
        });
        let _ = timeout(MOMENT, over).await;
    }

    fn end(&mut self) {
        for generation in self.generations.values() {
            generation.process.kill(Signal::KILL);
            self.close_door(generation.id);
        }
        self.sockets.close_all();
    }
}

/// Far above what a worker takes to answer, far below what anybody who waits for the loop notices.
const MOMENT: Duration = Duration::from_millis(250);

/// The keeper is generation 0 in the ledger.
fn lease(ledger: &Ledger) -> Result<Writer, LedgerError> {
    let last = ledger.segments().last().expect("a ledger has a segment from its creation on");
    Writer::lease(last.clone(), 0, 0)
}

#[cfg(test)]
mod tests;
