//! The end of a path that takes sessions over, and touches none before it is released.

use std::os::fd::{AsFd, OwnedFd};

use tokio::time::Instant;

use super::giver::{channel, hello};
use super::message::{Entry, Hello, Offer, Transfer, Verdict};
use super::{Item, body, kind, sequence};
use crate::channel::ChannelError;
use crate::error::HandoffError;
use crate::link::{Link, budget_at_once};
use crate::memfile::{self, MemfileError};

/// An open path, at the taker's end. Once it has ended, the owner word of each held record says whose the session is.
#[derive(Debug)]
pub struct Taker {
    link: Link<sequence::Taker>,
    giver: u32,
    /// A batch that was withdrawn unanswered, of which the giver is still to be told that it is dropped.
    owed: Option<u64>,
}

/// A word of the giver.
#[derive(Debug)]
pub enum Coming {
    /// Sessions to hold and to answer with [`Taker::taken`]; nothing of them may be read, written or shut down. Each
    /// descriptor was verified to be of its kind.
    Offered { batch: u64, items: Vec<Item> },
    /// What was taken of this batch is this process' from now on.
    Release { batch: u64 },
    /// Everything of this batch is to be dropped, without a shutdown.
    Withdraw { batch: u64 },
}

impl Taker {
    /// Hellos; the other side speaks first. `uid` is the giver's, `generation` this process' own. Within a tokio runtime.
    pub async fn open(end: OwnedFd, uid: u32, generation: u32, deadline: Instant) -> Result<Self, HandoffError> {
        let channel = channel(end, uid)?;
        let mut link = Link::new(channel);
        let giver = link.within(deadline, async |link| greet(link, generation).await).await?;
        link.live();
        Ok(Self { link, giver, owed: None })
    }

    /// The generation at the other end; 0 is the keeper.
    pub fn giver(&self) -> u32 {
        self.giver
    }

    /// The next word of the giver. May be dropped: no word and no session is lost. After an error no more is taken, but what
    /// was answered is still to be [heard](Self::hear_out); a descriptor that is not what was announced is one, and the giver is
    /// told so.
    pub async fn next(&mut self) -> Result<Coming, HandoffError> {
        self.settle().await?;
        let received = self.link.recv().await.inspect_err(|error| self.link.refuse(error));
        let (word, fds, action) = received?;
        match word {
            Transfer::Offer(Offer { batch, items }) => {
                let items = self.unpack(items, fds).inspect_err(|error| self.link.refuse(error))?;
                Ok(Coming::Offered { batch, items })
            }
            Transfer::Release { batch } => Ok(Coming::Release { batch }),
            Transfer::Withdraw { batch } => {
                self.owed = (action == sequence::Action::Drop).then_some(batch);
                Ok(Coming::Withdraw { batch })
            }
            other => Err(self.link.unexpected(&other)),
        }
    }

    /// After an error: the next word on a batch that was answered, which the giver may release before it has read that this end
    /// goes no further. What it offers is passed over, and its descriptors closed. `None`: it has ended the path. May be dropped.
    pub async fn hear_out(&mut self) -> Option<Coming> {
        loop {
            match self.link.recv().await {
                Ok((Transfer::Release { batch }, ..)) => return Some(Coming::Release { batch }),
                Ok((Transfer::Withdraw { batch }, ..)) => return Some(Coming::Withdraw { batch }),
                Ok(_) => {}
                // Nothing more can be read.
                Err(HandoffError::Gone { .. } | HandoffError::Channel { source: ChannelError::Io(_), .. }) => {
                    return None;
                }
                // Of one record, and perhaps one that follows from what was not understood before.
                Err(_) => {}
            }
        }
    }

    /// Answers an offer, one verdict for each item in the same order. False, and nothing was said: the batch was withdrawn
    /// meanwhile. Reasons are cut to 200 bytes.
    pub async fn taken(&mut self, batch: u64, verdicts: &[Verdict]) -> Result<bool, HandoffError> {
        if self.link.role.is_over(batch) {
            return Ok(false);
        }
        self.settle().await?;
        let verdicts = verdicts.iter().map(Verdict::brief).collect();
        let answer = Transfer::Taken { batch, verdicts, descriptors: budget_at_once() };
        self.link.send_soon(&answer, &[]).await.inspect_err(|error| self.link.refuse(error)).map(|()| true)
    }

    /// Says what is owed.
    async fn settle(&mut self) -> Result<(), HandoffError> {
        if let Some(batch) = self.owed {
            self.link.send_soon(&Transfer::Dropped { batch }, &[]).await?;
            self.owed = None;
        }
        Ok(())
    }

    /// The items of an offer; the channel has seen to it that all descriptors are there.
    fn unpack(&self, entries: Vec<Entry>, fds: Vec<OwnedFd>) -> Result<Vec<Item>, HandoffError> {
        let step = self.link.step();
        let mut fds = fds.into_iter();
        let file = fds.next().ok_or_else(|| missing(step))?;
        let len = body::len(&entries) as u64;
        let bytes = memfile::read_sealed(file, len, body::MOST as u64);
        let bytes = bytes.map_err(|source| HandoffError::Body { step, source })?;
        let parts = body::unpack(&entries, &bytes).map_err(|source| HandoffError::Batch { step, source })?;
        let items = entries.iter().zip(parts).map(|(entry, part)| item(step, entry, part, &mut fds));
        items.collect()
    }
}

fn item(
    step: &'static str,
    entry: &Entry,
    part: body::Part,
    fds: &mut impl Iterator<Item = OwnedFd>,
) -> Result<Item, HandoffError> {
    let mut next = || fds.next().ok_or_else(|| missing(step));
    let (client, backend) = (next()?, next()?);
    let pipes = [entry.pipes[0].then(&mut next).transpose()?, entry.pipes[1].then(&mut next).transpose()?];
    let wrong = |what| move |found| HandoffError::Item { step, id: entry.id, what, found };
    kind::stream(client.as_fd()).map_err(wrong("client: a stream socket"))?;
    kind::stream(backend.as_fd()).map_err(wrong("backend: a stream socket"))?;
    for pipe in pipes.iter().flatten() {
        kind::reading_end(pipe.as_fd()).map_err(wrong("the reading end of a pipe"))?;
    }
    Ok(Item { id: entry.id, place: entry.place, state: part.state, hand: part.hand, client, backend, pipes })
}

fn missing(step: &'static str) -> HandoffError {
    HandoffError::Body { step, source: MemfileError::NotSealed { found: "no descriptor" } }
}

/// Gives the giver's generation.
async fn greet(link: &mut Link<sequence::Taker>, generation: u32) -> Result<u32, HandoffError> {
    let theirs: Hello = match link.recv().await?.0 {
        Transfer::Hello(hello) => hello,
        other => return Err(link.unexpected(&other)),
    };
    // Said even if the versions do not fit: then both sides can name both ranges.
    link.send(&Transfer::Hello(hello(generation)), &[]).await?;
    theirs.common().map(|_| theirs.generation)
}
