//! The heir before it is a keeper: it knocks, takes what is offered, and looks at it. Whatever it finds wrong it says to both
//! sides; the keeper that serves has then lost nothing.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use handoff::door;
use handoff::manifest::Entry;
use handoff::successor::{Accepted, Identity, Order as Word, Reply, Successor};
use tokio::time::{Instant, timeout_at};

use super::super::next::Loaded;
use super::super::pools::Pools;
use super::super::run::RunError;
use super::super::sockets::Sockets;
use super::super::state::KeeperState;
use super::words::{Behest, Introduction, Response, own_netns};

/// All an heir starts its keeper from.
#[derive(Debug)]
pub(in super::super) struct Heir {
    pub successor: Successor,
    pub generation: u32,
    /// The order that is answered when its worker is READY.
    pub order: u64,
    pub sockets: Sockets,
    pub segments: Vec<OwnedFd>,
    pub state: KeeperState,
    pub pools: Pools,
    /// The other keeper's directory, as this process sees it.
    pub from: PathBuf,
}

/// For the other keeper's words; its own `ready_timeout` is usually shorter.
const HANDOVER: Duration = Duration::from_secs(60);

fn refused(door: &Path, why: impl ToString) -> RunError {
    RunError::TakeOver { door: door.into(), why: why.to_string() }
}

impl Heir {
    pub(in super::super) async fn of(door: &Path, loaded: &Loaded) -> Result<Self, RunError> {
        let deadline = Instant::now() + HANDOVER;
        let channel = door::knock(door).map_err(|error| refused(door, error))?;
        let me = Identity { version: crate::version::VERSION, build: crate::version::build() };
        let accepted = Successor::accept(channel, me, deadline).await.map_err(|error| refused(door, error))?;
        let Accepted { mut successor, generation, sockets, segments, plan } = accepted;
        let looked_at = look_at(&plan, sockets, loaded);
        let (state, sockets, pools) = match looked_at {
            Ok(fit) => fit,
            Err(why) => {
                successor.refuse(&why);
                return Err(refused(door, why));
            }
        };
        let told = async {
            successor.ready().await?;
            until_begin(&mut successor, segments, loaded, &pools).await
        };
        let told = timeout_at(deadline, told).await.map_err(|_| refused(door, "its keeper says no more"))?;
        let (order, segments) = told.map_err(|error| refused(door, error))?;
        let from = door.parent().map_or_else(PathBuf::new, Path::to_owned);
        Ok(Self { successor, generation, order, sockets, segments, state, pools, from })
    }
}

fn look_at(
    plan: &[u8],
    offered: Vec<(Entry, OwnedFd)>,
    loaded: &Loaded,
) -> Result<(KeeperState, Sockets, Pools), String> {
    let Introduction { netns, state } = serde_json::from_slice(plan).map_err(|error| error.to_string())?;
    let own = own_netns().map_err(|error| error.to_string())?;
    if netns != 0 && own != 0 && netns != own {
        return Err(format!(
            "the network namespaces differ (cookie {netns} there, {own} here): run both in one, as with `docker run --network container:NAME`"
        ));
    }
    let state = KeeperState::parse(state.as_bytes()).map_err(|error| error.to_string())?;
    let before = state.config().map_err(|error| error.to_string())?;
    let (pools, notes) = state.pools.merged(&before.config, &loaded.config);
    if let Some(found) = pools.find_loop(&loaded.config) {
        return Err(found);
    }
    for note in notes {
        tracing::warn!("{note}");
    }
    let mut sockets = Sockets::default();
    for (entry, fd) in offered {
        // Its file, if it is a Unix socket, is not ours before everything is.
        sockets.take_over(entry, fd, None).map_err(|error| error.to_string())?;
    }
    sockets.bind_missing(&loaded.config).map_err(|error| error.to_string())?;
    Ok((state, sockets, pools))
}

/// Says what the ledger must have, takes what was added to it; gives the order to begin.
async fn until_begin(
    successor: &mut Successor,
    mut segments: Vec<OwnedFd>,
    loaded: &Loaded,
    pools: &Pools,
) -> Result<(u64, Vec<OwnedFd>), Box<dyn std::error::Error>> {
    loop {
        let (id, response) = match successor.next().await? {
            Word::Segment { fd, .. } => {
                segments.push(fd);
                continue;
            }
            Word::Order { id, body } => match serde_json::from_slice(&body) {
                Ok(Behest::Begin) => return Ok((id, segments)),
                Ok(Behest::Need) => (id, needs(loaded, pools)),
                _ => (id, Response::Refused { why: "not before it has begun".into() }),
            },
            other => return Err(io::Error::other(format!("a word out of place: {other:?}")).into()),
        };
        successor.send(Reply::Answer { id, body: &serde_json::to_vec(&response)? }).await?;
    }
}

fn needs(loaded: &Loaded, pools: &Pools) -> Response {
    let names = pools.names(&loaded.config).into_iter().map(Into::into).collect();
    // One for each data thread, one for the keeper itself, and one that is free.
    let blocks = u32::try_from(loaded.config.runtime.threads).unwrap_or(u32::MAX).saturating_add(2);
    Response::Needs { names, blocks }
}
