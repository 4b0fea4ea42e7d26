//! `proxyctl wait`: looks again and again until something is so. A keeper that is away meanwhile, because it restarts
//! or replaces itself, is waited for as well.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use tokio::time::{Instant, sleep};

use super::out::Out;
use super::{Trouble, find};
use crate::client::{Client, ClientError};
use crate::command::{Failure, Filter};
use crate::render::{seconds, whole_number};
use crate::view::{GenerationView, PoolView, Status};

#[derive(Debug, Clone, Subcommand)]
pub enum Wanted {
    /// Until a generation serves
    Ready,
    /// Until no earlier generation has a process any more; when proxyd shuts down, until none has
    Drained,
    /// Until this generation has no process any more
    GenerationGone { id: u32 },
    /// Until this backend has no session
    BackendEmpty { pool: String, backend: String },
}

/// It was not so in time.
#[derive(Debug, thiserror::Error)]
#[error("not {what} after {}: {still}", seconds(after.as_secs_f64()))]
pub struct TooLate {
    what: String,
    after: Duration,
    /// What is still true.
    still: String,
}

/// What one look has shown.
enum Seen {
    So,
    /// Not yet, and why.
    Still(String),
}

/// Looks until `wanted` is so, for as long as `patience`.
pub(super) async fn wait(
    wanted: &Wanted,
    named: Option<PathBuf>,
    patience: Duration,
    out: &mut Out<'_>,
) -> Result<u8, Trouble> {
    let began = Instant::now();
    let mut look = Look { wanted, named, ending: false, known: false };
    loop {
        let left = patience.saturating_sub(began.elapsed()).max(LAST_LOOK);
        let still = match look.once(left).await? {
            Seen::So => break,
            Seen::Still(still) => still,
        };
        if began.elapsed() + BETWEEN > patience {
            return Err(TooLate { what: wanted.to_string(), after: patience, still }.into());
        }
        sleep(BETWEEN).await;
    }
    let took = began.elapsed().as_secs_f64();
    let document = serde_json::json!({ "is": wanted.to_string(), "seconds": took });
    out.show(&document, |_| format!("{wanted}, after {}\n", seconds(took)))?;
    Ok(0)
}

struct Look<'a> {
    wanted: &'a Wanted,
    named: Option<PathBuf>,
    /// The keeper was about to end when it was last seen.
    ending: bool,
    /// The backend was there at an earlier look.
    known: bool,
}

impl Look<'_> {
    async fn once(&mut self, patience: Duration) -> Result<Seen, Trouble> {
        let path = match &self.named {
            Some(named) => named.clone(),
            None => match find::socket(&find::places()) {
                Ok(found) => found.path,
                Err(looked) => return Ok(self.absent(Trouble::NoSocket(looked).to_string())),
            },
        };
        let client = Client::new(path).silence(patience);
        match self.ask(&client).await {
            Err(Trouble::Client(error)) if error.may_pass() => Ok(match error {
                ClientError::NoDaemon { .. } => self.absent(error.to_string()),
                error => Seen::Still(error.to_string()),
            }),
            seen => seen,
        }
    }

    /// With a keeper that was ending, what it looked after is gone.
    fn absent(&self, still: String) -> Seen {
        if self.ending && !matches!(self.wanted, Wanted::Ready) { Seen::So } else { Seen::Still(still) }
    }

    async fn ask(&mut self, client: &Client) -> Result<Seen, Trouble> {
        let status = client.status().await?;
        self.ending = status.keeper.state == "shutting-down";
        match self.wanted {
            Wanted::Ready => Ok(ready(&status)),
            Wanted::Drained => Ok(drained(&status)),
            Wanted::GenerationGone { id } => Ok(gone(&status, *id)),
            Wanted::BackendEmpty { pool, backend } => self.empty(client, &status, pool, backend).await,
        }
    }

    /// A backend that was taken out of its pool has sessions as long as they drain.
    async fn empty(&mut self, client: &Client, status: &Status, pool: &str, backend: &str) -> Result<Seen, Trouble> {
        let listed = backends(&status.pools, pool).any(|name| name == backend);
        let which = Filter { pool: Some(pool.into()), backend: Some(backend.into()), ..Filter::default() };
        let sessions = client.sessions(&which).await?.len() as u64;
        if !listed && !self.known && sessions == 0 {
            return Err(unknown(&status.pools, pool, backend).into());
        }
        self.known = true;
        Ok(match sessions {
            0 => Seen::So,
            n => Seen::Still(format!("backend {backend} of pool {pool} has {} sessions", whole_number(n))),
        })
    }
}

fn ready(status: &Status) -> Seen {
    match status.keeper.state.as_str() {
        "serving" => Seen::So,
        state => Seen::Still(format!("proxyd (pid {}) is {state}", status.keeper.pid)),
    }
}

fn drained(status: &Status) -> Seen {
    let ending = status.keeper.state == "shutting-down";
    let earlier = |one: &&GenerationView| ending || matches!(one.state.as_str(), "standby" | "draining");
    let still: Vec<String> = status.generations.iter().filter(earlier).map(described).collect();
    if still.is_empty() { Seen::So } else { Seen::Still(still.join(", ")) }
}

fn gone(status: &Status, id: u32) -> Seen {
    let living = |one: &&GenerationView| one.id == id && !matches!(one.state.as_str(), "gone" | "failed");
    status.generations.iter().find(living).map_or(Seen::So, |one| Seen::Still(described(one)))
}

fn described(one: &GenerationView) -> String {
    let (sessions, oldest) = (whole_number(one.sessions), seconds(one.oldest_session_seconds));
    let oldest = if one.sessions > 0 { format!(", the oldest open for {oldest}") } else { String::new() };
    format!("generation {} (pid {}) is {} with {sessions} sessions{oldest}", one.id, one.pid, one.state)
}

fn backends<'a>(pools: &'a [PoolView], pool: &str) -> impl Iterator<Item = &'a str> {
    let pool = pools.iter().find(|one| one.name == pool);
    pool.into_iter().flat_map(|pool| pool.backends.iter().map(|backend| backend.name.as_str()))
}

fn unknown(pools: &[PoolView], pool: &str, backend: &str) -> Failure {
    if pools.iter().any(|one| one.name == pool) {
        let known: Vec<&str> = backends(pools, pool).collect();
        return Failure::usage(format!("no backend `{backend}` in pool {pool}; there are: {}", known.join(", ")));
    }
    let known: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
    Failure::usage(format!("no pool `{pool}`; there are: {}", known.join(", ")))
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ready => f.write_str("ready"),
            Self::Drained => f.write_str("drained"),
            Self::GenerationGone { id } => write!(f, "generation {id} gone"),
            Self::BackendEmpty { pool, backend } => write!(f, "backend {backend} of pool {pool} empty"),
        }
    }
}

/// An operator does not notice, and ten questions a second cost a keeper nothing.
const BETWEEN: Duration = Duration::from_millis(100);

/// For the answer to a question asked at the last moment.
const LAST_LOOK: Duration = Duration::from_millis(100);
