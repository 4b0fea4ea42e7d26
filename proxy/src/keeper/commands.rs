//! The operator's commands, each to its place.

use admin::command::Command;

use super::event::Caller;
use super::owner::Keeper;

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
}
