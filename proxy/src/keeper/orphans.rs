//! A new keeper takes on the workers of one that died: the ledger says who serves, the workers say what was in force.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use admin::command::{SessionsAtUpgrade, UpgradeReport, UpgradeResult};
use handoff::ledger::{Ledger, Noted};
use handoff::sequence::Polls;
use rustix::process::Signal;
use tokio::sync::mpsc;

use super::attach::Attached;
use super::event::Event;
use super::generation::{Deadline, State};
use super::images::Images;
use super::next::Loaded;
use super::owner::{Keeper, Parts};
use super::pinned::Pinned;
use super::reaper::{Exit, Reaper, is_gone};
use super::restart::count_lost;
use super::run::RunError;
use super::sockets::Sockets;
use super::state::{GenerationState, KeeperState, instant_of, ms_of};
use crate::observe::events::{Events, Happened};
use crate::observe::reason::Reason;
use crate::observe::scene::Standing;

/// What is to be done with each worker.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    serving: Option<u32>,
    /// Its polling is not under way: it is told to begin.
    commit: bool,
    /// Told to stop, and to drain.
    stop: Vec<u32>,
    /// Does not poll; told to drain.
    drain: Vec<u32>,
    /// Never served: a hand-over that nobody will end.
    kill: Vec<u32>,
}

/// A worker, as far as the verdict goes.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    generation: u32,
    polls: Polls,
    finishing: bool,
}

impl Candidate {
    fn of(worker: &Attached) -> Self {
        Self { generation: worker.generation, polls: worker.rest.polls, finishing: worker.finishing }
    }
}

impl Verdict {
    /// An upgrade that was not committed is ended; one in probation is taken back: who was to serve in its place does.
    fn of(noted: Noted, found: &[Candidate]) -> Self {
        let able = |one: &&Candidate| !one.finishing && one.polls != Polls::NotYet;
        let by_id = |id: Option<u32>| found.iter().filter(able).find(|one| Some(one.generation) == id);
        let last = |polls| found.iter().filter(able).rfind(|one| one.polls == polls);
        let chosen = by_id(noted.standby)
            .or_else(|| by_id(noted.serving))
            .or_else(|| last(Polls::Now))
            .or_else(|| last(Polls::NoMore));
        let serving = chosen.map(|one| one.generation);
        let commit = chosen.is_some_and(|one| one.polls == Polls::NoMore);
        let mut verdict = Self { serving, commit, stop: Vec::new(), drain: Vec::new(), kill: Vec::new() };
        for one in found.iter().filter(|one| Some(one.generation) != serving && !one.finishing) {
            match one.polls {
                Polls::Now => verdict.stop.push(one.generation),
                Polls::NoMore => verdict.drain.push(one.generation),
                Polls::NotYet => verdict.kill.push(one.generation),
            }
        }
        verdict
    }
}

/// What the workers of an earlier keeper have handed over.
#[derive(Debug)]
pub(super) struct Orphans {
    workers: Vec<Attached>,
    ledger: Ledger,
    verdict: Verdict,
    /// The newest that the one who serves was told, else the newest.
    pub state: KeeperState,
    pub loaded: Loaded,
    /// Higher than that of every state that is held.
    serial: u64,
}

impl Orphans {
    /// From what `workers` hold. `None`: from nothing, and no worker ever served; those that are there are ended first.
    pub(super) async fn of(mut workers: Vec<Attached>) -> Result<Option<Self>, RunError> {
        if workers.iter().all(|worker| worker.state.is_none()) {
            if let Some(worker) = workers.iter().find(|worker| worker.rest.polls != Polls::NotYet) {
                return Err(RunError::Stateless { generation: worker.generation, pid: worker.pid });
            }
            end(workers).await;
            return Ok(None);
        }
        let serial = workers.iter().filter_map(|worker| Some(worker.state.as_ref()?.serial)).max().unwrap_or(0);
        let Some(ledger) = longest_chain(&mut workers) else { return Ok(None) };
        let noted = ledger.noted();
        let states = || workers.iter().filter_map(|worker| worker.state.as_ref());
        let newest = |told: &dyn Fn(&&KeeperState) -> bool| states().filter(told).max_by_key(|state| state.serial);
        let serving = noted.standby.or(noted.serving);
        let state = newest(&|state| state.serving == serving).or_else(|| newest(&|_| true)).cloned();
        let Some(mut state) = state else { return Ok(None) };
        let candidates: Vec<_> = workers.iter().map(Candidate::of).collect();
        let verdict = Verdict::of(noted, &candidates);
        if let Some(trial) = state.on_trial.take_if(|trial| verdict.serving == Some(trial.generation)) {
            // Nobody is left to roll back to.
            (state.pinned, state.config, state.pools) = (trial.binary, trial.config, trial.pools);
        }
        let loaded = state.config()?;
        Ok(Some(Self { workers, ledger, verdict, state, loaded, serial }))
    }

    /// Listening sockets by id; all workers have the same, as far as they have them.
    fn sockets(&mut self) -> Result<Sockets, RunError> {
        let mut offered = BTreeMap::new();
        for (entry, fd) in self.workers.iter_mut().flat_map(|worker| worker.sockets.drain(..)) {
            offered.insert(entry.id.clone(), (entry, fd));
        }
        let mut sockets = Sockets::default();
        for (id, (entry, fd)) in offered {
            sockets.take_over(entry, fd, self.state.socket_files.get(&id).cloned())?;
        }
        Ok(sockets)
    }
}

/// Hand-overs that were under way when their keeper died. They hold listening sockets until they are gone.
async fn end(workers: Vec<Attached>) {
    let reaper = Reaper::default();
    for worker in workers {
        let Ok(mut child) = reaper.adopt_stranger(worker.pid) else { continue };
        child.process.kill(Signal::KILL);
        let _ = tokio::time::timeout(LAST_BREATH, child.exited()).await;
    }
}

/// For a killed process to be gone.
const LAST_BREATH: std::time::Duration = std::time::Duration::from_secs(1);

/// A worker that drains may not have the last segments; one who serves has them all.
fn longest_chain(workers: &mut [Attached]) -> Option<Ledger> {
    workers.sort_by_key(|worker| std::cmp::Reverse(worker.segments.len()));
    let ledger = workers.iter_mut().find_map(|worker| {
        let opened = Ledger::open(std::mem::take(&mut worker.segments));
        opened
            .inspect_err(|error| tracing::warn!(%error, generation = worker.generation, "its ledger is not usable"))
            .ok()
    });
    workers.sort_by_key(|worker| worker.generation);
    ledger
}

impl Keeper {
    /// After the death of another keeper: its workers go on, under what was in force.
    pub(super) async fn take_on(
        mut orphans: Orphans,
        own: Pinned,
        started: &Loaded,
        replaceable: bool,
        events: mpsc::Sender<Event>,
    ) -> Result<Self, RunError> {
        let mut sockets = orphans.sockets()?;
        let Orphans { workers, ledger, verdict, state, mut loaded, serial } = orphans;
        // Read again from where this keeper was told to.
        loaded.path.clone_from(&started.path);
        sockets.bind_missing(&loaded.config)?;
        sockets.close(&sockets.surplus(&loaded.config));
        let runs = own.sha256.clone();
        let (images, own) = (Images::of(&workers), Rc::new(own));
        let pinned = images.at(&state, state.pinned, &own);
        let mut keeper = Self::new(Parts {
            loaded,
            pinned,
            pools: state.pools.clone(),
            sockets,
            ledger,
            events,
            reaper: Reaper::default(),
            started: instant_of(state.started_ms).into_std(),
            replaceable,
            greeting: None,
            is_heir: false,
        })?;
        keeper.happenings = Events::restored(state.last_event, Vec::new());
        keeper.recall(&state);
        keeper.previous =
            state.previous.as_ref().and_then(|before| before.previous(images.same(&state, before.binary, &own)?));
        (keeper.runs, keeper.serial, keeper.serving) = (runs, serial, verdict.serving);
        keeper.pending = (started.sha256 != keeper.loaded.sha256).then(|| started.sha256.clone());
        for worker in workers {
            keeper.take_on_worker(worker, &state)?;
        }
        keeper.bury_absent(&state);
        keeper.standing = Standing::Restarting;
        keeper.carry_out(&verdict).await;
        keeper.say_taken_on();
        if let Some(trial) = &state.on_trial {
            keeper.say_taken_back(trial.generation);
        }
        Ok(keeper)
    }

    pub(super) fn take_on_worker(&mut self, worker: Attached, state: &KeeperState) -> io::Result<()> {
        let Attached { generation, pid, channel, rest, finishing, .. } = worker;
        let child = match (pid != 0).then(|| self.reaper.adopt_stranger(pid)).transpose() {
            Ok(child) => child,
            Err(error) if is_gone(&error) => {
                self.close_door(generation);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let unknown = GenerationState {
            id: generation,
            pid,
            state: State::Draining,
            version: String::new(),
            build: String::new(),
            sha256: String::new(),
            since_ms: ms_of(tokio::time::Instant::now()),
            drained_ms: None,
            stays: false,
            left: 0,
            parting: None,
        };
        let known = state.generations.iter().find(|known| known.id == generation).unwrap_or(&unknown);
        let role = if self.serving == Some(generation) { State::Serving } else { State::Draining };
        let known = GenerationState { pid, state: role, ..known.clone() };
        self.last_generation = self.last_generation.max(generation);
        self.readmit(&known, child, channel, rest);
        let Some(generation) = self.generations.get_mut(&generation) else { return Ok(()) };
        if role == State::Draining && !finishing {
            generation.deadline = self.loaded.config.drain.timeout.map(Deadline::after);
        }
        Ok(())
    }

    /// Generations that died while no keeper looked: what they left is counted and freed.
    pub(super) fn bury_absent(&mut self, state: &KeeperState) {
        let owners = self.ledger.owners();
        self.last_generation = self.last_generation.max(owners.last().copied().unwrap_or(0));
        let alive = |id: &u32| *id == 0 || self.generations.contains_key(id);
        let absent: Vec<u32> = owners.into_iter().filter(|id| !alive(id)).collect();
        absent.iter().for_each(|id| self.bury_lost(*id, Exit::Unknown));
        let alive = |id: &u32| *id == 0 || self.generations.contains_key(id);
        let lost = state.serving.filter(|id| !alive(id));
        self.serving = self.serving.filter(alive);
        if let Some(lost) = lost {
            self.tally.restarted("unknown");
            tracing::error!(generation = lost, "the worker that served has died while no keeper looked");
        }
        self.stillborn.clear();
    }

    /// Counts and frees what a generation left that nobody buried. What is held of its sessions goes on.
    pub(super) fn bury_lost(&mut self, id: u32, exit: Exit) {
        let outliving = self.outliving(id, exit, false);
        let writer = &self.writer;
        let keep = |session: u64| outliving.contains(&session);
        self.ledger.bury_but(id, &keep, &mut |session| count_lost(writer, session, Reason::WorkerCrashed, None));
    }

    async fn carry_out(&mut self, verdict: &Verdict) {
        for id in &verdict.kill {
            tracing::warn!(generation = id, "a hand-over that was under way is given up; its process is ended");
            self.kill_generation(*id);
        }
        if let Some(id) = self.serving {
            let link = self.generations.get(&id).map(|generation| generation.link.clone());
            if verdict.commit
                && let Some(link) = link
                && let Err(error) = link.commit().await
            {
                tracing::error!(generation = id, %error, "does not serve again; killed, to be restarted");
                self.kill_generation(id);
            }
            self.standing = Standing::Serving;
        }
        self.note();
        let (drain, moves) = (self.config().drain, self.moves());
        for id in &verdict.stop {
            self.stop_and_part(*id, drain, moves);
        }
        for id in &verdict.drain {
            self.part(*id, drain, moves).await;
        }
    }

    /// The upgrade that was on probation.
    fn say_taken_back(&mut self, new: u32) {
        self.config_version += 1;
        self.tally.upgraded("rolled_back");
        let id = self.last_upgrade;
        let text = format!("upgrade {id} rolled back at probation: its keeper died; {}", self.still_serving());
        tracing::error!(upgrade = id, generation = new, "{text}");
        self.happenings.tell(Happened::new("rolled_back", text).upgrade(id).generation(new));
        self.reports.keep(UpgradeReport {
            id,
            result: UpgradeResult::RolledBack,
            from: self.serving.unwrap_or(0),
            to: new,
            step: "probation".into(),
            reason: "its keeper died".into(),
            accept_gap_ms: 0.0,
            longest_pause_ms: 0.0,
            sessions: SessionsAtUpgrade::default(),
            version: self.serving_generation().map(|generation| generation.version.clone()).unwrap_or_default(),
            keeper: "unchanged".into(),
            // Nobody knows when it began.
            seconds: 0.0,
        });
    }

    fn say_taken_on(&mut self) {
        let ids: Vec<String> = self.generations.keys().map(u32::to_string).collect();
        let text = format!("took on generations {} of a keeper that died; {}", ids.join(", "), self.still_serving());
        tracing::warn!("{text}");
        self.happenings.tell(Happened::new("keeper_reattached", text));
        if self.pending.is_some() {
            let text = format!(
                "{} differs from what is in force (version {}): `proxyctl reload` or `upgrade` puts it in force",
                self.loaded.path.display(),
                self.config_version
            );
            tracing::warn!("{text}");
            self.happenings.tell(Happened::new("config_pending", text));
        }
    }
}

#[cfg(test)]
mod tests;
