//! Starting a worker outside an upgrade: the first one, and each one after a crash, always from the binary that was pinned
//! for the generation that serves.

use std::io::Write;
use std::time::Duration;

use tokio::task::AbortHandle;

use super::event::Event;
use super::generation::{Generation, State};
use super::link::Link;
use super::owner::Keeper;
use super::reaper::{Child, Exit};
use super::run::RunError;
use super::spawn::{self, Dowry, Ready, SpawnError};
use crate::config::Config;
use crate::config::plan::Plan;
use crate::observe::names;
use crate::observe::reason::{Cause, Reason};
use crate::observe::scene::{Standing, now_ms, seconds_between};
use handoff::ledger::SessionSnapshot;

/// The attempt under way, if any. An answer to an older one is of no interest.
#[derive(Debug, Default)]
pub(super) struct Restart {
    attempt: u64,
    task: Option<AbortHandle>,
}

impl Restart {
    /// Ends the attempt; its process dies with it.
    fn abandon(&mut self) {
        self.attempt += 1;
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl Keeper {
    /// Starts a worker with what is in force now; an attempt with something older is abandoned.
    pub(super) fn start_worker(&mut self) {
        if self.serving.is_some() || self.standing == Standing::ShuttingDown {
            return;
        }
        self.restart.abandon();
        let attempt = self.restart.attempt;
        self.last_generation += 1;
        let generation = self.last_generation;
        let reaper = self.reaper.clone();
        let dowry = self.dowry(generation);
        let task = self.later(async move {
            let spawned = match dowry {
                Ok(dowry) => spawn::spawn(dowry, &reaper, |_| ()).await,
                Err(error) => Err(SpawnError { generation, step: "spawn", pid: None, cause: error.into() }),
            };
            Event::Restarted { attempt, spawned: spawned.map(Box::new) }
        });
        self.restart.task = Some(task);
    }

    fn dowry(&mut self, generation: u32) -> std::io::Result<Dowry> {
        let threads = u32::try_from(self.config().runtime.threads).unwrap_or(u32::MAX);
        let names = self.pools.names(self.config());
        // A segment added here is handed over with the others; nobody serves who would need it sooner.
        self.ledger.ensure(&names, threads, 0).map_err(std::io::Error::other)?;
        Ok(Dowry {
            generation,
            pinned: self.pinned.clone(),
            sockets: self.sockets.duplicates(None)?,
            segments: self.segment_descriptors()?,
            plan: plan_bytes(&self.plan(self.config()))?,
            ready_timeout: self.config().upgrade.ready_timeout,
        })
    }

    pub(super) fn plan(&self, config: &Config) -> Plan {
        plan_of(config, self.config_version, &self.pools)
    }

    pub(super) async fn restarted(&mut self, attempt: u64, spawned: Result<Box<Ready>, SpawnError>) {
        if attempt != self.restart.attempt {
            return;
        }
        self.restart.task = None;
        match spawned {
            Ok(ready) => {
                let (generation, link) = self.enlist(*ready);
                match link.commit().await {
                    Ok(_) => self.serve(generation),
                    // Its exit is on the way, and brings the next attempt.
                    Err(error) => tracing::warn!(generation, %error, "worker lost before it served"),
                }
            }
            Err(error) if self.standing == Standing::Starting => {
                self.ended = Some(Err(RunError::First(Box::new(error))))
            }
            Err(error) => {
                tracing::error!(%error, "worker not restarted; connections wait, trying again");
                self.retry(None);
            }
        }
    }

    /// Takes a READY worker among the generations, and watches it.
    pub(super) fn enlist(&mut self, ready: Ready) -> (u32, Link) {
        let Ready { generation, pinned, version, child, link } = ready;
        let Child { process, .. } = &child;
        let known = Generation {
            id: generation,
            state: State::Serving,
            version,
            process: process.clone(),
            link: link.clone(),
            pinned,
            since: tokio::time::Instant::now(),
            deadline: None,
            gone: tokio::sync::watch::Sender::new(false),
        };
        self.generations.insert(generation, known);
        let mut child = child;
        self.later(async move { Event::Exited { generation, exit: child.exited().await } });
        (generation, link)
    }

    fn serve(&mut self, generation: u32) {
        self.serving = Some(generation);
        if self.standing == Standing::Starting {
            tracing::info!(generation, "serving");
            if let Some(greeting) = self.greeting.take() {
                // Nobody may be listening any more; that is no reason to fail.
                let _ = writeln!(std::io::stdout(), "{greeting}");
            }
        } else {
            tracing::info!(generation, "worker restarted; serving");
        }
        self.standing = Standing::Serving;
    }

    pub(super) async fn exited(&mut self, id: u32, exit: Exit) {
        let Some(generation) = self.generations.remove(&id) else { return };
        self.bury(id, &generation, exit);
        let _ = generation.gone.send(true);
        if self.serving == Some(id) {
            self.lost_serving(&generation, exit);
        }
        if self.standing == Standing::ShuttingDown && self.generations.is_empty() {
            self.ended = Some(Ok(()));
        }
    }

    fn lost_serving(&mut self, generation: &Generation, exit: Exit) {
        self.serving = None;
        if self.standing == Standing::ShuttingDown {
            return;
        }
        self.standing = Standing::Restarting;
        self.tally.restarts.with_label_values(&[exit.cause()]).inc();
        tracing::error!(generation = generation.id, pid = generation.process.pid, %exit, "worker lost; connections wait for its successor");
        self.abandon_upgrade(&format!(
            "generation {} (pid {}) {exit} meanwhile",
            generation.id, generation.process.pid
        ));
        self.pinned = generation.pinned.clone();
        self.retry(Some(generation.since));
    }

    fn retry(&mut self, served_since: Option<tokio::time::Instant>) {
        let wait = self.backoff.next(served_since);
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
        if exit != Exit::Status(0) && generation.state == State::Draining {
            tracing::warn!(generation = id, pid = generation.process.pid, %exit, "draining worker ended");
        }
        let (reason, cause) = match self.standing {
            Standing::ShuttingDown => (Reason::ShutdownForced, Some(Cause::Shutdown)),
            _ if generation.deadline.is_some_and(|deadline| deadline.overdue()) => {
                (Reason::DrainForced, Some(Cause::Drain))
            }
            _ => (Reason::WorkerCrashed, None),
        };
        let writer = &self.writer;
        self.ledger.bury(id, &mut |session| count_lost(writer, session, reason, cause));
    }
}

/// The end of a session that its worker could not write.
fn count_lost(writer: &handoff::ledger::Writer, session: &SessionSnapshot, reason: Reason, cause: Option<Cause>) {
    let age = seconds_between(session.opened_ms, now_ms());
    let add = |kind, text: &str, cell, n| {
        if let Some(name) = writer.segment().find(kind, text) {
            writer.counters(name).add(cell, n);
        }
    };
    add(names::LISTENER, &session.listener, names::listener::closed(reason), 1);
    add(names::PROCESS, "", names::process::SESSION.bucket(age), 1);
    add(names::PROCESS, "", names::process::SESSION.sum(), micros(age));
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

fn micros(seconds: f64) -> u64 {
    u64::try_from(Duration::try_from_secs_f64(seconds).unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}
