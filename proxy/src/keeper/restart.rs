//! Starting a worker outside an upgrade: the first one, and each one after a crash, always from the binary that was pinned
//! for the generation that serves.

use std::io::Write;
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::event::Event;
use super::generation::{Deadline, Generation, State};
use super::link::{Link, LinkError};
use super::owner::Keeper;
use super::reaper::{Child, Exit};
use super::run::RunError;
use super::spawn::{self, Dowry, Progress, Ready, SpawnError};
use super::upgrade::{LOST, Nascent};
use crate::config::plan::Plan;
use crate::config::{Config, OnKeeperDeath};
use crate::observe::events::Happened;
use crate::observe::names;
use crate::observe::reason::{Cause, Reason};
use crate::observe::scene::{Standing, now_ms, seconds_between};
use handoff::ledger::SessionSnapshot;

/// The attempt under way, if any. An answer to an older one is of no interest.
#[derive(Debug, Default)]
pub(super) struct Restart {
    attempt: u64,
    generation: u32,
    task: Option<AbortHandle>,
}

impl Restart {
    /// Ends the attempt; its process dies with it. Returns the generation it was to be.
    fn abandon(&mut self) -> Option<u32> {
        self.attempt += 1;
        self.task.take().map(|task| {
            task.abort();
            self.generation
        })
    }
}

/// Between the end of a channel and the status of its dead process; a fraction of what a rollback may take.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(20);

/// A thread that gives sessions does so within 5 s of its order (`worker::order`), whether their taker lives or not.
const LATE: Duration = Duration::from_secs(6);

impl Keeper {
    /// Starts a worker with what is in force now; an attempt with something older is abandoned.
    pub(super) fn start_worker(&mut self) {
        if self.serving.is_some() || self.closing {
            return;
        }
        self.abandon_restart();
        let attempt = self.restart.attempt;
        self.last_generation += 1;
        let generation = self.last_generation;
        let (reaper, events) = (self.reaper.clone(), self.events.clone());
        let dowry = self.dowry(generation);
        self.nascent = Some(Nascent { id: generation, pid: 0, pinned: self.pinned.clone() });
        let task = self.later(async move {
            let spawned = match dowry {
                Ok(dowry) => {
                    let tell = |progress| {
                        if let Progress::Born { generation, pid } = progress {
                            // A full queue loses a line of the view.
                            let _ = events.try_send(Event::Born { generation, pid });
                        }
                    };
                    spawn::spawn(dowry, &reaper, tell).await
                }
                Err(error) => Err(SpawnError { generation, step: "spawn", pid: None, cause: error.into() }),
            };
            Event::Restarted { attempt, spawned: spawned.map(Box::new) }
        });
        (self.restart.task, self.restart.generation) = (Some(task), generation);
    }

    pub(super) fn born(&mut self, generation: u32, pid: u32) {
        if let Some(nascent) = self.nascent.as_mut().filter(|nascent| nascent.id == generation) {
            nascent.pid = pid;
        }
    }

    pub(super) fn abandon_restart(&mut self) {
        self.nascent = None;
        self.stillborn.extend(self.restart.abandon());
    }

    fn dowry(&mut self, generation: u32) -> std::io::Result<Dowry> {
        let threads = u32::try_from(self.config().runtime.threads).unwrap_or(u32::MAX);
        let names = self.pools.names(self.config());
        // A segment added here is handed over with the others; nobody serves who would need it sooner.
        self.grow_ledger(&names, threads, 0).map_err(std::io::Error::other)?;
        Ok(Dowry {
            generation,
            pinned: self.pinned.clone(),
            sockets: self.sockets.duplicates(None)?,
            segments: self.segment_descriptors()?,
            plan: plan_bytes(&self.plan_in_force())?,
            ready_timeout: self.config().upgrade.ready_timeout,
        })
    }

    fn plan_in_force(&self) -> Plan {
        let plan = plan_of(self.config(), self.config_version, &self.pools);
        match self.apprentice {
            // Where this keeper ends, another one serves again.
            Some(_) => Plan { on_keeper_death: OnKeeperDeath::Retire, ..plan },
            None => plan,
        }
    }

    pub(super) async fn restarted(&mut self, attempt: u64, spawned: Result<Box<Ready>, SpawnError>) {
        if attempt != self.restart.attempt {
            return self.discard(spawned);
        }
        (self.restart.task, self.nascent) = (None, None);
        match spawned {
            Ok(ready) if self.apprentice.is_some() => self.ready_on_trial(*ready),
            Err(error) if self.apprentice.is_some() => self.fail_on_trial(error.to_string()),
            Ok(ready) => {
                let (generation, link, segments) = self.enlist(*ready, State::Serving);
                match self.begin(&link, segments).await {
                    Ok(_) => {
                        self.serve(generation);
                        // Those that drain were left without one to go to.
                        self.move_all().await;
                    }
                    Err(error) => {
                        tracing::error!(generation, %error, "worker lost before it served; trying again");
                        self.kill_generation(generation);
                        self.retry(None);
                    }
                }
            }
            Err(error) => {
                self.stillborn.push(error.generation);
                if self.standing == Standing::Starting {
                    self.ended = Some(Err(RunError::First(Box::new(error))));
                    return;
                }
                tracing::error!(%error, "worker not restarted; connections wait, trying again");
                self.retry(None);
            }
        }
    }

    /// Lets a READY worker poll, after giving it what the ledger has grown by since it was started.
    pub(super) async fn begin(&mut self, link: &Link, segments: usize) -> Result<u64, LinkError> {
        // One that has ever served can tell the next keeper what was in force.
        self.remember_with(link).await;
        for segment in self.ledger.segments().iter().skip(segments) {
            if let Some(fd) = self.ledger.descriptor(segment.index()) {
                link.segment(segment.index(), fd.try_clone_to_owned()?).await?;
            }
        }
        link.commit().await
    }

    /// Ends what became READY, or failed, when nobody wanted it any more.
    pub(super) fn discard(&mut self, spawned: Result<Box<Ready>, SpawnError>) {
        match spawned {
            Ok(ready) => {
                let (generation, ..) = self.enlist(*ready, State::Starting);
                self.kill_generation(generation);
            }
            Err(error) => self.stillborn.push(error.generation),
        }
    }

    pub(super) fn kill_generation(&self, generation: u32) {
        if let Some(generation) = self.generations.get(&generation) {
            generation.process.kill(Signal::KILL);
        }
    }

    /// A worker that serves but is no longer heard follows no order any more: it is replaced. (One that drains ends by
    /// itself, at the latest at its deadline.)
    pub(super) async fn unlinked(&mut self, generation: u32) {
        let is_standby = self.trial().is_some_and(|trial| trial.standby == Some(generation));
        if self.serving != Some(generation) && !is_standby {
            return;
        }
        tracing::error!(generation, "the channel to the worker has ended");
        self.kill_generation(generation);
        if !is_standby && self.trial().is_some() {
            self.roll_back(&format!("the channel to generation {generation} has ended")).await;
        }
    }

    /// Takes a READY worker among the generations, and watches it.
    /// Also says how many ledger segments it was given.
    pub(super) fn enlist(&mut self, ready: Ready, state: State) -> (u32, Link, usize) {
        let Ready { generation, pinned, version, build, child, link, segments } = ready;
        let Child { process, .. } = &child;
        let is_foreign = process.is_remote();
        let known = Generation {
            id: generation,
            state,
            version,
            build,
            // Of a binary of another installation nothing is known.
            sha256: if process.is_remote() { String::new() } else { pinned.sha256.clone() },
            process: process.clone(),
            link: link.clone(),
            silent: false,
            since: tokio::time::Instant::now(),
            deadline: None,
            stays: false,
            left: 0,
            parting: None,
            is_stopping: false,
        };
        self.generations.insert(generation, known);
        self.watch(generation, child, &link);
        if !is_foreign {
            self.open_vault(generation, &link);
        }
        if !is_foreign && self.apprentice.is_none() {
            self.open_door(generation, &link);
        }
        (generation, link, segments)
    }

    /// The ends of its process and of its channel become events.
    pub(super) fn watch(&mut self, generation: u32, mut child: Child, link: &Link) {
        let (hearing, heard) = oneshot::channel::<()>();
        if let Some(mut notices) = link.notices() {
            let events = self.events.clone();
            self.tasks.spawn_local(async move {
                while let Some(notice) = notices.recv().await {
                    // Ends with the keeper.
                    let _ = events.send(Event::Noticed { generation, notice }).await;
                }
                drop(hearing);
            });
        }
        self.later(async move {
            let exit = child.exited().await;
            // Its last word may be what became of its sessions, and is heard first.
            let _ = timeout(LAST_WORDS, heard).await;
            Event::Exited { generation, exit }
        });
        let ended = link.ended();
        self.later(async move {
            ended.await;
            // A process that dies closes its channel a moment before its status is there, which says more.
            tokio::time::sleep(LAST_WORDS).await;
            Event::Unlinked { generation }
        });
    }

    pub(super) fn serve(&mut self, generation: u32) {
        self.serving = Some(generation);
        if self.standing == Standing::Starting {
            tracing::info!(generation, "serving");
            if let Some(greeting) = self.greeting.take() {
                // Nobody may be listening any more; that is no reason to fail.
                let _ = writeln!(std::io::stdout(), "{greeting}");
            }
        } else {
            tracing::info!(generation, "worker restarted; serving");
            let text = format!("generation {generation} serves in place of the lost one");
            self.happenings.tell(Happened::new("worker_restarted", text).generation(generation));
        }
        let serves = Happened::new("generation_serving", format!("generation {generation} serves"));
        self.happenings.tell(serves.generation(generation));
        if self.standing != Standing::ShuttingDown {
            self.standing = Standing::Serving;
        }
    }

    pub(super) async fn exited(&mut self, id: u32, exit: Exit) {
        let Some(generation) = self.generations.remove(&id) else { return };
        let pid = generation.process.pid;
        // Whoever takes over comes first.
        self.died_on_trial(id, pid, exit).await;
        let text = format!("generation {id} (pid {pid}) {exit}");
        if self.apprentice.is_some() {
            self.bury(id, &generation, exit);
            return self.exited_on_trial(&text);
        }
        if generation.is_heirs() {
            self.haunt(id);
        } else {
            self.close_door(id);
            self.bury(id, &generation, exit);
            self.buried.push((id, exit, tokio::time::Instant::now() + LATE));
        }
        self.happenings
            .tell(Happened::new("generation_gone", text).generation(id).with("state", generation.state.to_string()));
        if self.serving == Some(id) {
            self.lost_serving(&generation, exit);
        }
        self.moves_without(id).await;
        self.end_with_last_worker();
    }

    /// The worker of an heir ends by itself, at the latest with its drain; until then what it has in the ledger is its own.
    fn haunt(&mut self, id: u32) {
        let drained = Deadline::after(self.config().drain.timeout.unwrap_or(LOST));
        self.ghosts.push((id, drained.over()));
    }

    pub(super) fn bury_ghosts(&mut self, now: tokio::time::Instant) {
        let over: Vec<_> = self.ghosts.extract_if(.., |(_, at)| *at < now).collect();
        // Its channel has ended; whether it has, nobody knows.
        over.into_iter().for_each(|(id, _)| self.bury_lost(id, Exit::Silent));
    }

    /// Looks once more at what the dead have: a worker that was giving sessions to one of them may have given them after its end.
    pub(super) fn bury_latecomers(&mut self, now: tokio::time::Instant) {
        let over: Vec<_> = self.buried.extract_if(.., |(_, _, at)| *at < now).collect();
        for (id, exit, _) in over {
            // Blamed for its end they were the first time.
            self.bury_lost(id, if exit.is_certain() { Exit::Unknown } else { exit });
        }
    }

    fn lost_serving(&mut self, generation: &Generation, exit: Exit) {
        self.serving = None;
        if self.closing {
            return;
        }
        if self.standing != Standing::ShuttingDown {
            self.standing = Standing::Restarting;
        }
        self.tally.restarted(exit.cause());
        tracing::error!(generation = generation.id, pid = generation.process.pid, %exit, "worker lost; connections wait for its successor");
        let text = format!("generation {} (pid {}) {exit}", generation.id, generation.process.pid);
        self.happenings.tell(Happened::new("worker_lost", text.clone()).generation(generation.id));
        if self.successor_is_ready() {
            // It takes over at once.
            return;
        }
        self.abandon_upgrade(&format!("{text} meanwhile"));
        self.retry(Some(generation.since));
    }

    fn retry(&mut self, served_since: Option<tokio::time::Instant>) {
        let wait = self.backoff.next(served_since).min(self.config().runtime.restart_backoff.unwrap_or_default());
        if wait == Duration::ZERO {
            self.start_worker();
            return;
        }
        self.later(async move {
            tokio::time::sleep(wait).await;
            Event::Restart
        });
    }

    /// Counts and logs what a dead process left in the ledger, and frees it.
    fn bury(&mut self, id: u32, generation: &Generation, exit: Exit) {
        match (generation.state, exit) {
            (State::Draining | State::Failed, Exit::Status(0) | Exit::Unknown | Exit::Silent) => {
                tracing::info!(generation = id, "drained; gone")
            }
            (State::Draining | State::Failed, _) => {
                tracing::warn!(generation = id, pid = generation.process.pid, %exit, "draining worker ended");
            }
            (State::Starting | State::Serving | State::Standby, _) => {}
        }
        let (reason, cause) = match self.standing {
            Standing::ShuttingDown if self.closing => (Reason::ShutdownForced, Some(Cause::Shutdown)),
            _ if generation.deadline.is_some_and(|deadline| deadline.overdue()) => {
                (Reason::DrainForced, Some(Cause::Drain))
            }
            _ => (Reason::WorkerCrashed, None),
        };
        // Those that are ended on purpose do not go on. (In the delay of a shutdown a worker is still started.)
        let is_over = reason != Reason::WorkerCrashed || self.apprentice.is_some();
        let outliving = self.outliving(id, exit, is_over);
        let writer = &self.writer;
        let keep = |session: u64| outliving.contains(&session);
        self.ledger.bury_but(id, &keep, &mut |session| count_lost(writer, session, reason, cause));
    }
}

/// The end of a session that its worker could not write.
pub(super) fn count_lost(
    writer: &handoff::ledger::Writer,
    session: &SessionSnapshot,
    reason: Reason,
    cause: Option<Cause>,
) {
    let age = seconds_between(session.opened_ms, now_ms());
    let add = |kind, text: &str, cell, n| {
        if let Some(name) = writer.segment().find(kind, text) {
            writer.counters(name).add(cell, n);
        }
    };
    add(names::LISTENER, &session.listener, names::listener::closed(reason), 1);
    for (cell, n) in names::process::SESSION.adds(age) {
        add(names::PROCESS, "", cell, n);
    }
    if let Some(cause) = cause {
        add(names::PROCESS, "", names::process::forced(cause), 1);
    }
    let client = session.client.map_or_else(|| "unix".into(), |client| client.to_string());
    tracing::info!(
        id = session.id,
        generation = session.generation,
        listener = session.listener,
        pool = session.pool,
        backend = names::last_label(&session.backend),
        client,
        reason = reason.word(),
        bytes_received = session.received,
        bytes_sent = session.sent,
        seconds = age,
        unsent_to_client = session.unsent_to_client,
        unsent_to_backend = session.unsent_to_backend,
        "session ended with its worker"
    );
}

pub(super) fn plan_of(config: &Config, version: u64, pools: &super::pools::Pools) -> Plan {
    let planned: Vec<_> = pools.all().cloned().collect();
    let mut plan = config.plan(version, &planned);
    for listener in &mut plan.listeners {
        if let Some(pool) = pools.route(&listener.name) {
            listener.pool = pool.into();
        }
    }
    plan
}

pub(super) fn plan_bytes(plan: &Plan) -> std::io::Result<Vec<u8>> {
    serde_json::to_vec(plan).map_err(std::io::Error::other)
}
