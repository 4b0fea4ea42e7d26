//! The end of a path that gives sessions away, and decides.

use std::os::fd::{AsFd, OwnedFd};

use tokio::time::Instant;

use super::message::{Entry, Hello, Offer, TRANSFER, Transfer, Verdict};
use super::{Item, body, sequence};
use crate::channel::{Channel, ChannelError, Peer};
use crate::codec::Word;
use crate::error::HandoffError;
use crate::link::{Link, budget};
use crate::memfile;
use crate::message::Budget;

/// An open path, at the giver's end. Dropping it ends the path: the taker looks at the owner words then.
#[derive(Debug)]
pub struct Giver {
    link: Link<sequence::Giver>,
    taker: Hello,
    /// What the last answer said of the taker's descriptors.
    now: Option<Budget>,
}

impl Giver {
    /// Hellos; this side speaks first. `uid` is the taker's, `generation` this process' own. Within a tokio runtime.
    pub async fn open(end: OwnedFd, uid: u32, generation: u32, deadline: Instant) -> Result<Self, HandoffError> {
        let channel = channel(end, uid)?;
        let mut link = Link::new(channel);
        let taker = link.within(deadline, async |link| greet(link, generation).await).await?;
        link.live();
        Ok(Self { link, taker, now: None })
    }

    /// The generation at the other end.
    pub fn taker(&self) -> u32 {
        self.taker.generation
    }

    /// Batches that were withdrawn and not answered yet: as long as there are any, nobody may be listening.
    pub fn unanswered(&self) -> usize {
        self.link.role.unanswered()
    }

    /// Descriptors that the taker had left when the path began; `None`: it does not know.
    pub fn room(&self) -> Option<u64> {
        self.taker.descriptors.map(room)
    }

    /// Descriptors that the taker had left when it gave its last answer; `None`: it did not say.
    pub fn room_left(&self) -> Option<u64> {
        self.now.map(room)
    }

    /// Offers frozen sessions, of which the taker gets copies of the descriptors. Numbers of batches grow; at most
    /// [`OPEN`](super::OPEN) are open. Of an error that [is unsent](HandoffError::is_unsent) nothing has happened and the
    /// path goes on; after any other it is over. May be dropped: then nothing was sent.
    pub async fn offer(&mut self, batch: u64, items: &[Item]) -> Result<(), HandoffError> {
        let step = self.link.step();
        let offer = Transfer::Offer(Offer { batch, items: items.iter().map(Entry::of).collect() });
        // Before bytes are copied for it.
        offer.check().map_err(|source| HandoffError::channel(step, ChannelError::Codec(source)))?;
        let body = memfile::sealed("proxyd-sessions", &body::pack(items));
        let body = body.map_err(|source| HandoffError::System { step, source })?;
        let fds: Vec<_> = std::iter::once(body.as_fd()).chain(items.iter().flat_map(Item::descriptors)).collect();
        self.link.send_soon(&offer, &fds).await
    }

    /// The next answer: a batch, and a verdict for each of its items. What comes of a batch that was withdrawn is passed
    /// over. May be dropped: no answer is lost. After an error the path is over.
    pub async fn next(&mut self) -> Result<(u64, Vec<Verdict>), HandoffError> {
        loop {
            let received = self.link.recv().await.inspect_err(|error| self.link.refuse(error));
            match received? {
                (Transfer::Taken { batch, verdicts, descriptors }, _, sequence::Action::Deliver) => {
                    self.now = descriptors;
                    return Ok((batch, verdicts.iter().map(Verdict::brief).collect()));
                }
                (_, _, sequence::Action::Ignore) => {}
                (other, ..) => return Err(self.link.unexpected(&other)),
            }
        }
    }

    /// Lets an answered batch go: by now the owner word of each taken item names its thread, and this process only closes its
    /// copies. May be dropped, and fail: the words are the truth.
    pub async fn release(&mut self, batch: u64) -> Result<(), HandoffError> {
        self.link.send_soon(&Transfer::Release { batch }, &[]).await
    }

    /// Takes a batch back that was not released: the taker closes its copies. Its sessions need not wait for this: without
    /// a release the taker touches nothing.
    pub async fn withdraw(&mut self, batch: u64) -> Result<(), HandoffError> {
        self.link.send_soon(&Transfer::Withdraw { batch }, &[]).await
    }
}

impl Entry {
    fn of(item: &Item) -> Self {
        // What a u32 does not count is far above what the codec allows.
        let len = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        Self {
            id: item.id,
            place: item.place,
            state: len(item.state.len()),
            hand: item.hand.each_ref().map(|hand| len(hand.len())),
            pipes: item.pipes.each_ref().map(Option::is_some),
        }
    }
}

fn room(Budget { limit, open }: Budget) -> u64 {
    limit.saturating_sub(open)
}

async fn greet(link: &mut Link<sequence::Giver>, generation: u32) -> Result<Hello, HandoffError> {
    link.send(&Transfer::Hello(hello(generation)), &[]).await?;
    match link.recv().await?.0 {
        Transfer::Hello(theirs) => theirs.common().map(|_| theirs),
        other => Err(link.unexpected(&other)),
    }
}

pub(super) fn hello(generation: u32) -> Hello {
    Hello { protocol: TRANSFER, generation, descriptors: budget() }
}

/// A process that was not started by this one: the kernel vouches for its uid, and all its words are of one process.
pub(super) fn channel(end: OwnedFd, uid: u32) -> Result<Channel<Transfer>, HandoffError> {
    Channel::new(end, Peer { pid: None, uid }).map_err(|error| HandoffError::channel("hello", error))
}
