//! A worker whose keeper is gone: it serves on, waits at its door for another keeper, and drains at TERM.

use std::io;
use std::time::Duration;

use handoff::HandoffError;
use handoff::channel::Channel;
use handoff::manifest::Entry;
use handoff::predecessor::{Offer, Predecessor};
use handoff::sequence::{Polls, Rest};
use handoff::successor::Successor;
use tokio::signal::unix::Signal;
use tokio::time::Instant;

use super::control::{Control, Keeperless, words};
use super::drain::DrainOrder;
use super::plane::PlaneError;
use crate::config::order::{Orphan, Purpose};
use crate::config::{Drain, OnKeeperDeath};
use crate::session;

/// For sessions that nothing else limits, and no keeper knows.
const LOST: Duration = Duration::from_secs(30);
/// For everything a new keeper is given: some thousand sockets at most, on the same machine.
const OFFER: Duration = Duration::from_secs(5);

impl Control {
    /// Until another keeper has taken it on, or its last session has ended.
    pub(super) async fn orphaned(&mut self, terminate: &mut Signal) -> Option<Successor> {
        let Keeperless { what, drain } = self.keeperless;
        if what == OnKeeperDeath::Retire && !self.finishing {
            tracing::warn!("the keeper on trial is gone; this worker takes no new sessions, and drains");
            let timeout = Some(drain.timeout.unwrap_or(LOST));
            if let Err(error) = self.drain_alone(Drain { timeout, ..drain }).await {
                tracing::error!(%error, "a data thread does not answer");
                return None;
            }
        }
        if !self.finishing {
            tracing::warn!("serving on without a keeper; TERM drains");
        }
        // For a plan that nobody will send any more.
        self.arriving.clear();
        // Nobody waits for their answers any more.
        self.probes.shutdown().await;
        loop {
            tokio::select! {
                knocked = knocked(self.door.as_ref()) => match self.offer_itself(knocked).await {
                    Ok(keeper) => {
                        tracing::info!(keeper = keeper.peer(), "another keeper has taken this worker on");
                        return Some(keeper);
                    }
                    Err(error) => tracing::warn!(%error, "another keeper came, and did not take this worker on"),
                },
                Some(()) = terminate.recv(), if !self.finishing => {
                    let drain = self.keeperless.drain;
                    if let Err(error) = self.drain_alone(drain).await {
                        tracing::error!(%error, "a data thread does not answer");
                        return None;
                    }
                }
                () = self.plane.emptied(), if self.finishing => return None,
            }
        }
    }

    /// What a keeper would order at a shutdown.
    async fn drain_alone(&mut self, drain: Drain) -> Result<(), PlaneError> {
        let (reason, cause) = words(Purpose::Shutdown);
        self.plane.stop().await?;
        self.plane.close_listeners();
        self.finishing = true;
        let (scope, timeout, spread) = (session::Scope::All, drain.timeout, drain.spread);
        let (close, begun_ms) = (drain.close, None);
        self.plane.drain(DrainOrder { scope, timeout, spread, close, reason, cause, begun_ms }).await;
        Ok(())
    }

    /// The hand-over in which a worker is the one who offers; then both turn round. If it fails, nothing has changed.
    async fn offer_itself(&self, knocked: io::Result<Channel>) -> Result<Successor, HandoffError> {
        let system = |source| HandoffError::System { step: "hello", source };
        let channel = match knocked {
            Ok(channel) => channel,
            Err(error) => {
                // Out of descriptors, most likely: some may be free again a little later.
                tokio::time::sleep(PAUSE).await;
                return Err(system(error));
            }
        };
        let sockets = self.plane.sockets().map(|(id, socket)| Ok((Entry::of(id, socket)?, socket)));
        let sockets: Vec<_> = sockets.collect::<io::Result<_>>().map_err(system)?;
        let segments: Vec<_> = self.plane.segments().iter().map(|segment| segment.descriptor()).collect();
        let polls = self.polls();
        let (generation, finishing, state) = (self.generation, self.finishing, self.state.clone());
        let orphan = Orphan { generation, polls, finishing, state };
        let plan = serde_json::to_vec(&orphan).map_err(|error| system(error.into()))?;
        let (version, build) = (crate::version::VERSION, crate::version::build());
        let offer = Offer { generation, version, build, sockets: &sockets, segments: &segments, plan: &plan };
        let (done, _) = Predecessor::offer(channel, &offer, Instant::now() + OFFER, &mut |_| ()).await?;
        let agreed =
            done.rest().ok_or_else(|| system(io::Error::other("a conversation that has just begun is busy")))?;
        Ok(Successor::resume(done.into_channel(), Rest { polls, ..agreed }))
    }

    fn polls(&self) -> Polls {
        match (self.plane.is_polling(), self.served) {
            (true, _) => Polls::Now,
            (false, true) => Polls::NoMore,
            (false, false) => Polls::NotYet,
        }
    }
}

/// Nobody comes where there is no door.
async fn knocked(door: Option<&handoff::door::Door>) -> io::Result<Channel> {
    match door {
        Some(door) => door.accept().await,
        None => std::future::pending().await,
    }
}

const PAUSE: Duration = Duration::from_millis(100);
