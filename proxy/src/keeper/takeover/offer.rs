//! The keeper's side up to READY: the heir is offered everything, the ledger gets what it needs, its worker starts.

use std::os::fd::AsFd;
use std::time::Duration;

use handoff::channel::Channel;
use handoff::message::Message;
use handoff::predecessor::{Offer, Predecessor};
use tokio::time::Instant;

use super::super::event::Event;
use super::super::link::{Link, LinkError};
use super::super::owner::Keeper;
use super::super::reaper::Child;
use super::super::spawn::{Dowry, Ready, SpawnCause, SpawnError};
use super::words::{Behest, Counted, Introduction, Response, own_netns};

/// An heir that holds everything and serves nothing.
#[derive(Debug)]
pub(in super::super) struct Offered {
    link: Link,
    version: String,
    build: String,
    pid: u32,
    segments: usize,
    names: Vec<Counted>,
    blocks: u32,
}

impl Keeper {
    pub(in super::super) fn knocked(&mut self, channel: Channel) {
        if let Err(failure) = self.may_begin(None) {
            tracing::warn!("take-over refused: {failure}");
            // It may be gone; end of file tells it the rest.
            drop(channel.try_send(&Message::Refused { cause: failure.message }));
            return;
        }
        let dowry = self.heirs_dowry();
        let (id, deadline) = self.enroll_take_over();
        let generation = self.last_generation;
        let task = self.later(async move {
            let found = match dowry {
                Ok(dowry) => offer(dowry, channel, deadline).await,
                Err(error) => Err(("offer", error.to_string())),
            };
            let refused = |(step, why)| SpawnError { generation, step, pid: None, cause: SpawnCause::Heir(why) };
            Event::Offered { upgrade: id, found: found.map(Box::new).map_err(refused) }
        });
        self.upgrade_task(task);
    }

    fn heirs_dowry(&mut self) -> std::io::Result<Dowry> {
        let (mut state, _) = self.state();
        // Of this take-over: if this keeper dies on the way, the heir goes on counting from it.
        state.last_upgrade += 1;
        self.last_generation += 1;
        let introduction = Introduction { netns: own_netns()?, state: serde_json::to_string(&state)? };
        Ok(Dowry {
            generation: self.last_generation,
            pinned: self.pinned.clone(),
            sockets: self.sockets.duplicates(None)?,
            segments: self.segment_descriptors()?,
            plan: serde_json::to_vec(&introduction)?,
            ready_timeout: self.config().upgrade.ready_timeout,
        })
    }

    /// The heir has said what it needs: it gets that, and starts its worker beside the loop.
    pub(in super::super) async fn offered(&mut self, id: u64, found: Result<Box<Offered>, SpawnError>) {
        if !self.is_under_way(id) {
            return;
        }
        let Offered { link, version, build, pid, segments, names, blocks } = match found {
            Ok(offered) => *offered,
            Err(error) => return self.spawned_for_upgrade(id, Err(error)).await,
        };
        self.upgrade_step(id, "ready");
        let names: Vec<_> = names.into_iter().map(Into::into).collect();
        if let Err(error) = self.ensure_names(&names, blocks, 0).await {
            return self.fail_upgrade_at("ready", &error.to_string());
        }
        self.nothing_changes();
        let (generation, pinned, ready_timeout) =
            (self.last_generation, self.pinned.clone(), self.config().upgrade.ready_timeout);
        let added = self.segment_descriptors();
        let task = self.later(async move {
            let begun = async {
                for (index, fd) in (0..).zip(added?).skip(segments) {
                    link.segment(index, fd).await?;
                }
                begin(&link, ready_timeout).await
            };
            let spawned = match begun.await {
                Ok(()) => {
                    let child = Child::remote(pid, &link);
                    // All segments it has; what is added from now on it is given before it polls.
                    Ok(Box::new(Ready { generation, pinned, version, build, child, link, segments: usize::MAX }))
                }
                Err(error) => {
                    let cause = SpawnCause::Heir(error.to_string());
                    Err(SpawnError { generation, step: "ready", pid: None, cause })
                }
            };
            Event::Upgraded { upgrade: id, spawned }
        });
        self.upgrade_task(task);
    }
}

async fn offer(dowry: Dowry, channel: Channel, deadline: Instant) -> Result<Offered, (&'static str, String)> {
    let sockets: Vec<_> = dowry.sockets.iter().map(|(entry, fd)| (entry.clone(), fd.as_fd())).collect();
    let segments: Vec<_> = dowry.segments.iter().map(AsFd::as_fd).collect();
    let (version, build) = (crate::version::VERSION, crate::version::build());
    let offer = Offer {
        generation: dowry.generation,
        version,
        build,
        sockets: &sockets,
        segments: &segments,
        plan: &dowry.plan,
    };
    let offered = Predecessor::offer(channel, &offer, deadline, &mut |_| ()).await;
    let (heir, hello) = offered.map_err(|error| ("offer", error.to_string()))?;
    let link = Link::start(heir);
    match link.say("what it needs", &Behest::Need, ANSWER).await {
        Ok(Response::Needs { names, blocks }) => Ok(Offered {
            link,
            version: hello.version,
            build: hello.build,
            pid: hello.pid,
            segments: segments.len(),
            names,
            blocks,
        }),
        Ok(other) => Err(("offer", format!("an answer out of place: {other:?}"))),
        Err(error) => Err(("offer", error.to_string())),
    }
}

async fn begin(link: &Link, ready_timeout: Duration) -> Result<(), LinkError> {
    match link.say("its worker", &Behest::Begin, ready_timeout).await? {
        Response::Refused { why } => Err(LinkError::Refused { what: "to begin", why }),
        _ => Ok(()),
    }
}

/// A keeper only looks into its configuration.
const ANSWER: Duration = Duration::from_secs(5);
