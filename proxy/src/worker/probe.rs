//! The probe of a new generation: each of its pools connected to once, on the data threads that will do so for sessions.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::order::{Line, Order};
use crate::config::order::Unreachable;
use crate::pool::Pool;
use crate::session;

/// Connections a thread tries at a time: enough for a thousand pools in a second, few beside the sessions.
const AT_A_TIME: usize = 64;

/// On a data thread.
pub(super) async fn run(pools: Vec<Arc<Pool>>, answer: oneshot::Sender<Vec<Unreachable>>) {
    let (mut probes, mut farewells) = (JoinSet::new(), JoinSet::new());
    let mut unreachable = Vec::new();
    let mut pools = pools.into_iter();
    loop {
        while probes.len() < AT_A_TIME
            && let Some(pool) = pools.next()
        {
            probes.spawn_local(async move { session::probe(&pool).await.map_err(|why| (pool.name().to_owned(), why)) });
        }
        match probes.join_next().await {
            Some(Ok(Ok(reached))) => drop(farewells.spawn_local(reached.farewell())),
            Some(Ok(Err((pool, why)))) => unreachable.push(Unreachable { pool, why }),
            Some(Err(_)) => {}
            None => break,
        }
    }
    // A keeper that no longer waits has decided already.
    let _ = answer.send(unreachable);
    farewells.join_all().await;
}

/// Shares the pools out among the threads, and joins what they find. A thread that does not answer is no verdict on a
/// backend: the keeper will miss our heartbeat.
pub(super) async fn share_out(lines: Vec<Line>, pools: Vec<Arc<Pool>>) -> Vec<Unreachable> {
    let mut asked = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        let share: Vec<_> = pools.iter().skip(first).step_by(lines.len()).cloned().collect();
        asked.push(line.tell(|answer| Order::Probe { pools: share, answer }).await);
    }
    let mut unreachable = Vec::new();
    for answer in asked {
        match answer.answer().await {
            Ok(found) => unreachable.extend(found),
            Err(error) => tracing::warn!("probe: {error}"),
        }
    }
    unreachable
}
