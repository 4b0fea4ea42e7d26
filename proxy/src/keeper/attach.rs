//! Finding the workers of a keeper that died: every door in the state directory is knocked at.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use handoff::HandoffError;
use handoff::channel::Channel;
use handoff::door;
use handoff::manifest::Entry;
use handoff::sequence::Rest;
use handoff::successor::{Accepted, Identity, Successor};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::state::{KeeperState, StateError};
use crate::config::order::Orphan;

/// A worker that follows this keeper from now on.
#[derive(Debug)]
pub(super) struct Attached {
    pub generation: u32,
    /// 0: of another PID namespace.
    pub pid: u32,
    pub channel: Channel,
    pub rest: Rest,
    pub finishing: bool,
    /// What it held for us.
    pub state: Option<KeeperState>,
    pub sockets: Vec<(Entry, OwnedFd)>,
    pub segments: Vec<OwnedFd>,
}

#[derive(Debug, thiserror::Error)]
enum NotAttached {
    #[error("cannot knock: {0}")]
    Knock(#[from] io::Error),
    #[error("{0}")]
    Handoff(#[from] HandoffError),
    #[error("what it says of itself cannot be read: {0}")]
    Orphan(#[from] serde_json::Error),
    #[error("it did not say who it is")]
    Nameless,
}

/// For one worker to hand over all it has; they do so at the same time.
const ANSWER: Duration = Duration::from_secs(3);

/// The door of a generation's worker.
pub(super) fn door_of(state_dir: &Path, generation: u32) -> PathBuf {
    state_dir.join(format!("worker-{generation}.sock"))
}

/// Every worker that answers. Doors with nobody behind them are removed.
pub(super) async fn find(state_dir: &Path) -> io::Result<Vec<Attached>> {
    Ok(find_but(state_dir, None).await?.0)
}

/// As [`find`], without this generation's; also says who is there and did not answer.
pub(super) async fn find_but(state_dir: &Path, own: Option<u32>) -> io::Result<(Vec<Attached>, BTreeSet<u32>)> {
    let deadline = Instant::now() + ANSWER;
    let mut asked = JoinSet::new();
    let mut silent = BTreeSet::new();
    for entry in std::fs::read_dir(state_dir)? {
        let path = entry?.path();
        if number_of(&path).is_some_and(|number| Some(number) != own) {
            asked.spawn_local(async move { (attach(&path, deadline).await, path) });
        }
    }
    let mut found = Vec::new();
    while let Some(answered) = asked.join_next().await {
        match answered {
            Ok((Ok(attached), _)) => found.push(attached),
            Ok((Err(error), path)) => {
                if not_attached(&path, &error) {
                    silent.extend(number_of(&path));
                }
            }
            Err(error) => tracing::error!(%error, "a worker was not asked"),
        }
    }
    found.sort_by_key(|attached| attached.generation);
    Ok((found, silent))
}

fn number_of(path: &Path) -> Option<u32> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let number = name.strip_prefix("worker-").and_then(|rest| rest.strip_suffix(".sock"));
    number?.parse().ok()
}

/// Whether somebody is behind the door.
fn not_attached(path: &Path, error: &NotAttached) -> bool {
    if let NotAttached::Knock(cause) = error
        && cause.kind() == io::ErrorKind::ConnectionRefused
    {
        tracing::debug!(door = %path.display(), "nobody is behind this door any more; it is removed");
        if let Err(error) = door::remove(path) {
            tracing::warn!(door = %path.display(), %error, "the door is not removed");
        }
        return false;
    }
    tracing::warn!(door = %path.display(), %error, "a worker of an earlier keeper was not taken on; it serves on by itself, TERM drains it");
    true
}

async fn attach(path: &Path, deadline: Instant) -> Result<Attached, NotAttached> {
    let channel = door::knock(path)?;
    let me = Identity { version: crate::version::VERSION, build: crate::version::build() };
    let Accepted { mut successor, generation, sockets, segments, plan } =
        Successor::accept(channel, me, deadline).await?;
    let orphan: Orphan = serde_json::from_slice(&plan)?;
    // One of another PID namespace has no number.
    let pid = successor.peer().unwrap_or(0);
    let state = orphan.state.as_deref().map(|state| KeeperState::parse(state.as_bytes())).transpose();
    let state = state.unwrap_or_else(|error: StateError| {
        tracing::warn!(generation, %error, "what this worker held for the next keeper cannot be used");
        None
    });
    successor.ready().await?;
    let agreed = successor.rest().ok_or(NotAttached::Nameless)?;
    let rest = Rest { polls: orphan.polls, ..agreed };
    let (channel, finishing) = (successor.into_channel(), orphan.finishing);
    Ok(Attached { generation, pid, channel, rest, finishing, state, sockets, segments })
}
