//! The operator's commands, each to its place.

use std::collections::BTreeMap;
use std::time::Duration;

use admin::command::{Command, Failure, Kill, Killed, Line, Reply};

use super::event::Caller;
use super::link::Link;
use super::owner::Keeper;
use crate::config::ForcedClose;
use crate::config::order::{Answer, Order, Purpose};

impl Keeper {
    pub(super) async fn command(&mut self, command: Command, caller: Caller) {
        let answer = match command {
            Command::Upgrade(upgrade) => return self.start_upgrade(upgrade, caller),
            Command::Rollback(rollback) => return self.rollback(rollback, caller).await,
            Command::Report { id } => return self.tell_report(id, caller),
            Command::Kill(kill) => return self.kill(kill, caller),
            Command::Shutdown => return self.shutdown_by_command(&caller).await,
            Command::Reload => {
                let answer = self.reload().await;
                return Self::answer(&caller, answer);
            }
            Command::PoolSwap { listener, pool, if_version } => {
                self.change_pools(if_version, |pools, version| pools.swap(&listener, &pool, version)).await
            }
            Command::PoolAdd { pool, backend, if_version } => {
                self.change_pools(if_version, |pools, version| pools.add(&pool, &backend, version)).await
            }
            Command::PoolRemove { pool, backend, if_version } => {
                self.change_pools(if_version, |pools, version| pools.remove(&pool, &backend, version)).await
            }
            Command::PoolSet { pool, backends, create, if_version } => {
                self.change_pools(if_version, |pools, version| pools.set(&pool, &backends, create, version)).await
            }
            Command::Backend { pool, backend, change, if_version } => {
                self.change_pools(if_version, |pools, version| pools.backend(&pool, &backend, change, version)).await
            }
        };
        if let Ok(changed) = &answer {
            tracing::info!("{}", changed.summary);
        }
        Self::answer(&caller, answer);
    }

    fn kill(&mut self, kill: Kill, caller: Caller) {
        let matched = self.scene().load().sessions(&kill.filter);
        let count = matched.len() as u64;
        if kill.dry_run {
            let killed = Killed { dry_run: true, matched: count, closed: 0, sessions: matched };
            return Self::tell(&caller, Line::Done(Reply::Killed(killed)));
        }
        tracing::info!(sessions = count, "sessions are closed by the operator");
        let links: BTreeMap<u32, Link> =
            self.generations.values().map(|generation| (generation.id, generation.link.clone())).collect();
        let targets: Vec<(u32, u64)> = matched.iter().map(|row| (row.generation, row.id)).collect();
        let rate = kill.rate;
        self.tasks.spawn_local(async move {
            let line = match close_paced(&links, &targets, rate).await {
                Ok(closed) => {
                    Line::Done(Reply::Killed(Killed { dry_run: false, matched: count, closed, sessions: vec![] }))
                }
                Err(failure) => Line::Failed(failure),
            };
            Self::tell(&caller, line);
        });
    }
}

/// Closes are sent in ten portions a second; without a rate all at once.
const PORTIONS: u32 = 10;

async fn close_paced(links: &BTreeMap<u32, Link>, targets: &[(u32, u64)], rate: Option<u32>) -> Result<u64, Failure> {
    let Some(rate) = rate else { return close(links, targets, 0).await };
    let (size, pause) = match rate {
        0..PORTIONS => (1, Duration::from_secs(1) / rate.max(1)),
        _ => (rate / PORTIONS, Duration::from_secs(1) / PORTIONS),
    };
    let mut pace = tokio::time::interval(pause);
    let mut closed = 0;
    for portion in targets.chunks(usize::try_from(size).unwrap_or(usize::MAX)) {
        pace.tick().await;
        closed = close(links, portion, closed).await?;
    }
    Ok(closed)
}

async fn close(links: &BTreeMap<u32, Link>, targets: &[(u32, u64)], mut closed: u64) -> Result<u64, Failure> {
    let mut by_generation: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for (generation, id) in targets {
        by_generation.entry(*generation).or_default().push(*id);
    }
    for (generation, ids) in by_generation {
        let Some(link) = links.get(&generation) else { continue };
        let order = Order::Close { ids, purpose: Purpose::Admin, how: ForcedClose::Reset };
        match link.order("kill", &order).await {
            Ok(Answer::Closed { sessions }) => closed += sessions,
            Ok(_) => {}
            Err(error) => {
                return Err(Failure::failed(format!(
                    "generation {generation}: {error}; {closed} sessions were closed"
                )));
            }
        }
    }
    Ok(closed)
}
