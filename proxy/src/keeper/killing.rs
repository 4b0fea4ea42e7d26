//! Sessions closed by the operator, wherever they are: one that goes to another generation meanwhile is asked for there.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use admin::command::{Failure, Kill, Killed, Line, Reply};
use handoff::ledger::{Phase, sessions};
use tokio::sync::{mpsc, oneshot};

use super::event::{Caller, Event};
use super::link::{Link, LinkError};
use super::owner::Keeper;
use super::run::SharedScene;
use crate::config::ForcedClose;
use crate::config::order::{Answer, Order, Purpose};

impl Keeper {
    pub(super) fn kill(&mut self, kill: Kill, caller: Caller) {
        let matched = self.scene().load().sessions(&kill.filter);
        let count = matched.len() as u64;
        if kill.dry_run {
            let killed = Killed { dry_run: true, matched: count, closed: 0, sessions: matched };
            return Self::tell(&caller, Line::Done(Reply::Killed(killed)));
        }
        tracing::info!(sessions = count, "sessions are closed by the operator");
        let targets: Vec<(u32, u64)> = matched.iter().map(|row| (row.generation, row.id)).collect();
        let (killing, rate) = (Killing { scene: self.scene(), events: self.events.clone() }, kill.rate);
        self.tasks.spawn_local(async move {
            let line = match killing.close_paced(&targets, rate).await {
                Ok(closed) => {
                    Line::Done(Reply::Killed(Killed { dry_run: false, matched: count, closed, sessions: vec![] }))
                }
                Err(failure) => Line::Failed(failure),
            };
            Self::tell(&caller, line);
        });
    }

    pub(super) fn tell_link(&self, generation: u32, asked: oneshot::Sender<Link>) {
        if let Some(generation) = self.generations.get(&generation) {
            // Whoever asked may be gone.
            let _ = asked.send(generation.link.clone());
        }
    }
}

/// Beside the loop.
struct Killing {
    scene: SharedScene,
    events: mpsc::Sender<Event>,
}

/// Closes are sent in ten portions a second; without a rate all at once.
const PORTIONS: u32 = 10;
/// Between two looks for sessions that went elsewhere.
const TURN: Duration = Duration::from_millis(20);
/// Looks while sessions move: longer than one of them can be on its way.
const TURNS_MOVING: u32 = 125;
/// Looks otherwise: they may have moved just before.
const TURNS: u32 = 5;

impl Killing {
    async fn close_paced(&self, targets: &[(u32, u64)], rate: Option<u32>) -> Result<u64, Failure> {
        let Some(rate) = rate else { return self.close(targets, 0).await };
        let (size, pause) = match rate {
            0..PORTIONS => (1, Duration::from_secs(1) / rate.max(1)),
            _ => (rate / PORTIONS, Duration::from_secs(1) / PORTIONS),
        };
        let mut pace = tokio::time::interval(pause);
        let mut closed = 0;
        for portion in targets.chunks(usize::try_from(size).unwrap_or(usize::MAX)) {
            pace.tick().await;
            closed = self.close(portion, closed).await?;
        }
        Ok(closed)
    }

    /// Gives `before` and what was closed now.
    async fn close(&self, targets: &[(u32, u64)], before: u64) -> Result<u64, Failure> {
        let most = targets.len() as u64;
        let mut asked: HashMap<u64, u32> = targets.iter().map(|(generation, id)| (*id, *generation)).collect();
        let mut closed = self.ask(targets, before).await?;
        let is_moving = self.is_moving();
        if closed >= most && !is_moving {
            return Ok(before + closed);
        }
        for _ in 0..if is_moving { TURNS_MOVING } else { TURNS } {
            let live = self.live(&asked);
            if live.is_empty() {
                break;
            }
            let went = |(generation, id): &(u32, u64)| asked.get(id) != Some(generation);
            let elsewhere: Vec<(u32, u64)> = live.into_iter().filter(went).collect();
            closed += self.ask(&elsewhere, before + closed).await?;
            asked.extend(elsewhere.into_iter().map(|(generation, id)| (id, generation)));
            tokio::time::sleep(TURN).await;
        }
        // One that was on its way may have been promised by both.
        Ok(before + closed.min(most))
    }

    fn is_moving(&self) -> bool {
        self.scene.load().generations.iter().any(|generation| generation.moving_to.is_some())
    }

    /// Those that are still there, and with whom.
    fn live(&self, asked: &HashMap<u64, u32>) -> Vec<(u32, u64)> {
        let live = sessions(&self.scene.load().segments);
        let ours = live.into_iter().filter(|session| session.phase != Phase::Closed && asked.contains_key(&session.id));
        ours.map(|session| (session.generation, session.id)).collect()
    }

    /// How many the generations say they closed.
    async fn ask(&self, targets: &[(u32, u64)], before: u64) -> Result<u64, Failure> {
        let mut by_generation: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for (generation, id) in targets {
            by_generation.entry(*generation).or_default().push(*id);
        }
        let mut closed = 0;
        for (generation, ids) in by_generation {
            let Some(link) = self.link(generation).await else { continue };
            let order = Order::Close { ids, purpose: Purpose::Admin, how: ForcedClose::Reset };
            match link.order("kill", &order).await {
                Ok(Answer::Closed { sessions }) => closed += sessions,
                // One that is gone has left its sessions to another, or lost them.
                Ok(_) | Err(LinkError::Gone) => {}
                Err(error) => {
                    let closed = before + closed;
                    let why = format!("generation {generation}: {error}; {closed} sessions were closed");
                    return Err(Failure::failed(why));
                }
            }
        }
        Ok(closed)
    }

    /// As it is now: the generation may have begun after the command.
    async fn link(&self, generation: u32) -> Option<Link> {
        let (reply, link) = oneshot::channel();
        self.events.send(Event::LinkOf { generation, reply }).await.ok()?;
        link.await.ok()
    }
}
