//! The end of the service: not ready any more, stop accepting, serve what is queued, drain, close by force, exit 0. Asked a
//! second time, it ends at once.

use std::time::Duration;

use admin::command::{Failure, Line, Reply};
use rustix::process::Signal;

use super::event::{Caller, Event};
use super::generation::{Deadline, State};
use super::owner::Keeper;
use crate::config::order::{Order, Purpose, Scope};
use crate::observe::events::Happened;
use crate::observe::scene::Standing;

/// For connections that wait in the accept queues when the polling has ended; taking one costs microseconds.
const QUEUED: Duration = Duration::from_secs(1);

impl Keeper {
    pub(super) async fn terminate(&mut self) {
        if std::mem::take(&mut self.retired) {
            return tracing::info!("drains the last sessions; a second request ends them at once");
        }
        if self.apprentice.is_some() {
            return self.withdraw("told to end during the take-over".into()).await;
        }
        if self.standing == Standing::ShuttingDown {
            tracing::warn!("second request to end: at once");
            return self.end_at_once();
        }
        self.begin_to_end(&None).await;
    }

    async fn begin_to_end(&mut self, caller: &Caller) {
        let delay = self.config().shutdown.delay;
        tracing::info!(delay = delay.as_secs_f64(), "shutting down");
        self.happenings.tell(Happened::new("shutting_down", format!("shutting down, delay {} s", delay.as_secs_f64())));
        self.end_upgrade_for_shutdown().await;
        // Who is told so sees it, too.
        self.publish();
        Self::tell(caller, Line::Done(Reply::ShuttingDown));
        if delay == Duration::ZERO {
            return self.stop_accepting().await;
        }
        self.later(async move {
            tokio::time::sleep(delay).await;
            Event::StopAccepting
        });
    }

    pub(super) async fn shutdown_by_command(&mut self, caller: &Caller) {
        if self.standing == Standing::ShuttingDown {
            let live = self.generations.keys().map(|id| self.sessions_of(*id)).sum::<u64>();
            let message = format!(
                "already shutting down, {live} sessions are left; nothing changed (a second TERM to pid {} ends it at once)",
                std::process::id()
            );
            return Self::tell(caller, Line::Failed(Failure::conflict(message)));
        }
        self.begin_to_end(caller).await;
    }

    pub(super) async fn stop_accepting(&mut self) {
        if std::mem::replace(&mut self.closing, true) {
            return;
        }
        self.abandon_restart();
        self.recovery.abandon().await;
        if let Some(serving) = self.serving_generation() {
            let (id, link) = (serving.id, serving.link.clone());
            let stopped = async {
                link.stop().await?;
                link.order("the rest of the queue", &Order::AcceptQueue { limit: QUEUED }).await
            };
            if let Err(error) = stopped.await {
                tracing::warn!(generation = id, %error, "connections still queued are lost");
            }
        }
        self.serving = None;
        let drain = self.config().drain;
        let order = Order::drain(Scope::All, Purpose::Shutdown, drain);
        for generation in self.generations.values_mut() {
            generation.state = State::Draining;
            generation.parting = None;
            // One that drains already keeps its earlier deadline.
            generation.deadline = generation.deadline.or_else(|| drain.timeout.map(Deadline::after));
            let (id, link, process) = (generation.id, generation.link.clone(), generation.process.clone());
            let order = order.clone();
            // Beside the loop: one that hangs must not keep a second request to end from being heard.
            self.tasks.spawn_local(async move {
                for (what, order) in [("drain", order), ("finish", Order::Finish)] {
                    if let Err(error) = link.order(what, &order).await {
                        tracing::warn!(generation = id, %error, "does not drain; killed");
                        return process.kill(Signal::KILL);
                    }
                }
            });
        }
        // With the workers' copies the ports are free.
        self.sockets.close_all();
        self.end_with_last_worker();
    }

    /// Sessions that are cut here are counted by the keeper, from their records.
    fn end_at_once(&mut self) {
        self.closing = true;
        self.abandon_restart();
        for generation in self.generations.values() {
            generation.process.kill(Signal::KILL);
        }
        self.sockets.close_all();
        self.end_with_last_worker();
    }

    /// Sessions that wait for a worker end with the last one: nobody else would count them.
    pub(super) fn end_with_last_worker(&mut self) {
        if self.closing && self.generations.is_empty() {
            self.end_all_lost();
            self.ended = Some(Ok(()));
        }
    }
}
