//! Sessions closed by the operator, wherever they are: one that goes to another generation meanwhile is asked for there, and
//! one whose worker is dead is closed by the keeper.

use std::collections::{BTreeMap, HashSet};
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
            let line = match close_paced(&killing, &targets, rate).await {
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

/// Where sessions are found and closed.
trait Field {
    fn is_moving(&self) -> bool;

    /// Those that are still there, and with whom.
    fn live(&self, ids: &HashSet<u64>) -> Vec<(u32, u64)>;

    /// How many of these are said to be closed by this; `before` were already.
    async fn ask(&self, targets: &[(u32, u64)], before: u64) -> Result<u64, Failure>;
}

/// Closes are sent in ten portions a second; without a rate all at once.
const PORTIONS: u32 = 10;
/// Between two looks for sessions that are still there.
const TURN: Duration = Duration::from_millis(20);
/// Looks: longer than a session can be on its way.
const TURNS: u32 = 125;

async fn close_paced(field: &impl Field, targets: &[(u32, u64)], rate: Option<u32>) -> Result<u64, Failure> {
    let Some(rate) = rate else { return close(field, targets, 0).await };
    let (size, pause) = match rate {
        0..PORTIONS => (1, Duration::from_secs(1) / rate.max(1)),
        _ => (rate / PORTIONS, Duration::from_secs(1) / PORTIONS),
    };
    let mut pace = tokio::time::interval(pause);
    let mut closed = 0;
    for portion in targets.chunks(usize::try_from(size).unwrap_or(usize::MAX)) {
        pace.tick().await;
        closed = close(field, portion, closed).await?;
    }
    Ok(closed)
}

/// Gives `before` and what was closed now.
async fn close(field: &impl Field, targets: &[(u32, u64)], before: u64) -> Result<u64, Failure> {
    let most = targets.len() as u64;
    let ids: HashSet<u64> = targets.iter().map(|(_, id)| *id).collect();
    let mut closed = field.ask(targets, before).await?;
    for _ in 0..TURNS {
        if closed >= most && !field.is_moving() {
            break;
        }
        tokio::time::sleep(TURN).await;
        let live = field.live(&ids);
        if live.is_empty() {
            break;
        }
        // Also where it was asked for before: from its owner word to its start nobody can close a session, nor while the keeper
        // gives it to another worker.
        closed += field.ask(&live, before + closed).await?;
    }
    // A worker of an earlier version may count one again each time.
    Ok(before + closed.min(most))
}

impl Field for Killing {
    fn is_moving(&self) -> bool {
        self.scene.load().generations.iter().any(|generation| generation.moving_to.is_some())
    }

    fn live(&self, ids: &HashSet<u64>) -> Vec<(u32, u64)> {
        let live = sessions(&self.scene.load().segments);
        let ours = live.into_iter().filter(|session| session.phase != Phase::Closed && ids.contains(&session.id));
        ours.map(|session| (session.generation, session.id)).collect()
    }

    async fn ask(&self, targets: &[(u32, u64)], before: u64) -> Result<u64, Failure> {
        let mut by_generation: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for (generation, id) in targets {
            by_generation.entry(*generation).or_default().push(*id);
        }
        let mut closed = 0;
        for (generation, ids) in by_generation {
            let Some(link) = self.link(generation).await else {
                closed += self.close_held(ids).await;
                continue;
            };
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
}

impl Killing {
    /// Of a generation that is dead.
    async fn close_held(&self, ids: Vec<u64>) -> u64 {
        let (reply, closed) = oneshot::channel();
        // The loop ends with the keeper.
        let _ = self.events.send(Event::KillHeld { ids, reply }).await;
        closed.await.unwrap_or(0)
    }

    /// As it is now: the generation may have begun after the command.
    async fn link(&self, generation: u32) -> Option<Link> {
        let (reply, link) = oneshot::channel();
        self.events.send(Event::LinkOf { generation, reply }).await.ok()?;
        link.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// Sessions that nobody can close yet, each for so many looks.
    struct Unready {
        sessions: RefCell<BTreeMap<u64, u32>>,
        asked: Cell<u32>,
    }

    impl Field for Unready {
        fn is_moving(&self) -> bool {
            false
        }

        fn live(&self, ids: &HashSet<u64>) -> Vec<(u32, u64)> {
            self.sessions.borrow().keys().filter(|id| ids.contains(id)).map(|id| (2, *id)).collect()
        }

        async fn ask(&self, targets: &[(u32, u64)], _: u64) -> Result<u64, Failure> {
            self.asked.set(self.asked.get() + 1);
            let (mut sessions, mut closed) = (self.sessions.borrow_mut(), 0);
            for (_, id) in targets {
                match sessions.get_mut(id) {
                    Some(0) => {
                        sessions.remove(id);
                        closed += 1;
                    }
                    Some(looks) => *looks -= 1,
                    None => {}
                }
            }
            Ok(closed)
        }
    }

    fn unready(sessions: &[(u64, u32)]) -> Unready {
        Unready { sessions: RefCell::new(sessions.iter().copied().collect()), asked: Cell::new(0) }
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_can_close_yet_is_asked_for_again_where_it_was() {
        let field = unready(&[(1, 0), (2, 3), (3, 0)]);
        // The second is with its new owner, which has not started it; the fourth has ended by itself.
        let closed = close(&field, &[(1, 1), (2, 2), (1, 4)], 10).await;
        assert_eq!((closed, field.asked.get()), (Ok(12), 4));
        assert_eq!(field.live(&HashSet::from([1, 2, 3, 4])), [(2, 3)], "not meant");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_cannot_be_closed_binds_the_caller_for_a_while_only() {
        let field = unready(&[(1, u32::MAX)]);
        assert_eq!(close(&field, &[(1, 1)], 0).await, Ok(0));
        assert_eq!(field.asked.get(), TURNS + 1);
    }
}
