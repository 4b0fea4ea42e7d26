//! The keeper's end towards one generation: it offers the sockets, then gives orders.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use tokio::time::Instant;

use crate::channel::Channel;
use crate::error::HandoffError;
use crate::link::{Link, budget};
use crate::manifest::{Entry, batches, duplicate};
use crate::message::{Batch, Hello, LEDGER, Message, Offered, PROTOCOL, Pulse};
use crate::parcel::{self, Parcel};
use crate::sequence::{self, Action, Rest};
use crate::transfer::Role;

/// A generation that has adopted what it was offered. Dropping it ends the conversation: the worker sees end of file.
#[derive(Debug)]
pub struct Predecessor {
    link: Link<sequence::Predecessor>,
}

/// What a generation gets before it serves. Everything is borrowed: the keeper keeps its own copy of every descriptor.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    pub generation: u32,
    /// Of the keeper.
    pub version: &'a str,
    pub build: &'a str,
    pub sockets: &'a [(Entry, BorrowedFd<'a>)],
    /// Ledger segments, in the order of the chain.
    pub segments: &'a [BorrowedFd<'a>],
    /// For the application; at most 64 MiB.
    pub plan: &'a [u8],
}

/// A word to the generation.
#[derive(Debug, Clone, Copy)]
pub enum Down<'a> {
    /// Poll the listeners; legal when ready and in standby. [`Up::Polling`] answers.
    Commit,
    /// Poll no more, close nothing; legal when serving. [`Up::Stopped`] answers.
    Stop,
    /// A request; [`Up::Answer`] of the same id answers. An id is free again once it is answered; at most 1,024 are open.
    Order { id: u64, body: &'a [u8] },
    /// One batch of listeners added later, as [`batches`] cuts them. [`Up::SocketsTaken`] answers; at most 400 sockets may
    /// be unanswered.
    Sockets(&'a [(Entry, BorrowedFd<'a>)]),
    /// A segment added later; indexes grow.
    Segment { index: u32, fd: BorrowedFd<'a> },
    /// Where another keeper will knock; only to a generation that speaks version 2.
    Door(BorrowedFd<'a>),
    /// An end of a path to the generation `other`; only to a generation that speaks version 3.
    Path { id: u64, role: Role, other: u32, fd: BorrowedFd<'a> },
    /// Where to deposit; only to a generation that speaks version 3.
    Vault(BorrowedFd<'a>),
}

/// A word from the generation. Times are `CLOCK_MONOTONIC` in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Up {
    Polling {
        first_poll_ns: u64,
    },
    Stopped {
        last_poll_ns: u64,
    },
    Answer {
        id: u64,
        body: Vec<u8>,
    },
    /// Sockets of the oldest unanswered batch; all were verified.
    SocketsTaken {
        count: u32,
    },
    Heartbeat(Pulse),
    Notice {
        body: Vec<u8>,
    },
}

impl Predecessor {
    /// From hello to READY: segments, sockets in batches that are each acknowledged, the plan, and the list of what was
    /// adopted, compared one by one with what was offered. `step` is told each step as it begins: `hello`, `offer`,
    /// `ready`. On success the generation holds every socket and polls none. On failure the channel is closed.
    pub async fn offer(
        channel: Channel,
        offer: &Offer<'_>,
        deadline: Instant,
        step: &mut dyn FnMut(&'static str),
    ) -> Result<(Self, Hello), HandoffError> {
        if let Some(id) = duplicate(offer.sockets.iter().map(|(entry, _)| entry.id.as_str())) {
            return Err(HandoffError::Duplicate { id: id.to_owned() });
        }
        let mut end = Self { link: Link::new(channel) };
        let hello = end.link.within(deadline, async |link| hand_over(link, offer, step).await).await?;
        end.link.live();
        Ok((end, hello))
    }

    /// Goes on where another process, or the other role, has left the conversation.
    pub fn resume(channel: Channel, rest: Rest) -> Self {
        Self { link: Link::resumed(channel, sequence::Predecessor::resumed(rest)) }
    }

    /// Where the conversation stands, if no answer is awaited.
    pub fn rest(&self) -> Option<Rest> {
        self.link.role.rest()
    }

    /// Another descriptor of the channel, for the process that will [`Self::resume`] it.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.link.channel().duplicate()
    }

    /// The channel, to go on in the other role.
    pub fn into_channel(self) -> Channel {
        self.link.into_channel()
    }

    /// Sends a word if it is legal now; else [`HandoffError::OutOfTurn`], and nothing has happened. A generation that does
    /// not read for 5 s is a [`HandoffError::Deadline`]. May be dropped: the word was then sent whole or not at all.
    pub async fn send(&mut self, word: Down<'_>) -> Result<(), HandoffError> {
        let link = &mut self.link;
        match word {
            Down::Commit => link.send_soon(&Message::Commit, &[]).await,
            Down::Stop => link.send_soon(&Message::Stop, &[]).await,
            Down::Order { id, body } => {
                let parcel = Parcel::of(body).map_err(system(link.step()))?;
                link.send_soon(&Message::Order { id, body: parcel.body.clone() }, &parcel.fds()).await
            }
            Down::Sockets(sockets) => {
                if let Some(id) = duplicate(sockets.iter().map(|(entry, _)| entry.id.as_str())) {
                    return Err(HandoffError::Duplicate { id: id.to_owned() });
                }
                let (message, fds) = batch(0, sockets);
                link.send_soon(&message, &fds).await
            }
            Down::Segment { index, fd } => link.send_soon(&Message::Segment { index }, &[fd]).await,
            Down::Door(fd) => link.send_soon(&Message::Door, &[fd]).await,
            Down::Path { id, role, other, fd } => link.send_soon(&Message::Path { id, role, other }, &[fd]).await,
            Down::Vault(fd) => link.send_soon(&Message::Vault, &[fd]).await,
        }
    }

    /// The next word of the generation. May be dropped: no word is lost.
    pub async fn next(&mut self) -> Result<Up, HandoffError> {
        let (message, fds, _) = self.link.recv().await?;
        let body =
            |body| parcel::open(body, fds).map_err(|source| HandoffError::Body { step: self.link.step(), source });
        Ok(match message {
            Message::Polling { first_poll_ns } => Up::Polling { first_poll_ns },
            Message::Stopped { last_poll_ns } => Up::Stopped { last_poll_ns },
            Message::Answer { id, body: answer } => Up::Answer { id, body: body(answer)? },
            Message::BatchTaken { count } => Up::SocketsTaken { count },
            Message::Heartbeat(pulse) => Up::Heartbeat(pulse),
            Message::Notice { body: notice } => Up::Notice { body: body(notice)? },
            other => return Err(self.link.unexpected(&other)),
        })
    }

    /// The version that is spoken; 0 once the conversation has ended.
    pub fn protocol(&self) -> u32 {
        self.link.role.protocol().unwrap_or(0)
    }

    /// For views and errors: `ready`, `committing`, `serving`, `stopping`, `standby`.
    pub fn state(&self) -> &'static str {
        self.link.role.state()
    }
}

type End = Link<sequence::Predecessor>;

async fn hand_over(
    link: &mut End,
    offer: &Offer<'_>,
    step: &mut dyn FnMut(&'static str),
) -> Result<Hello, HandoffError> {
    step("hello");
    let (hello, protocol) = greet(link, offer).await?;
    link.begin("offer");
    step("offer");
    send_all(link, offer, protocol).await?;
    compare(link, offer).await?;
    link.begin("ready");
    step("ready");
    match link.recv().await?.0 {
        Message::Ready => Ok(hello),
        other => Err(link.unexpected(&other)),
    }
}

/// Both hellos; gives the protocol version to use.
async fn greet(link: &mut End, offer: &Offer<'_>) -> Result<(Hello, u32), HandoffError> {
    let ours = Hello {
        protocol: PROTOCOL,
        ledger: LEDGER,
        version: offer.version.to_owned(),
        build: offer.build.to_owned(),
        generation: offer.generation,
        pid: std::process::id(),
        descriptors: budget(),
    };
    link.send(&Message::Hello(ours), &[]).await?;
    match link.recv().await?.0 {
        Message::Hello(hello) => {
            let protocol = agree(&hello, offer)?;
            Ok((hello, protocol))
        }
        other => Err(link.unexpected(&other)),
    }
}

fn agree(hello: &Hello, offer: &Offer<'_>) -> Result<u32, HandoffError> {
    let protocol = hello.common_protocol()?;
    if hello.generation != offer.generation {
        return Err(HandoffError::Generation { ours: offer.generation, theirs: hello.generation });
    }
    if let Some(theirs) = hello.descriptors {
        // One more for the plan, which is on its way while everything else is held.
        let coming = offer.sockets.len() + offer.segments.len() + 1;
        let need = theirs.open.saturating_add(coming as u64);
        if need > theirs.limit {
            return Err(HandoffError::Limit { need, limit: theirs.limit });
        }
    }
    Ok(protocol)
}

/// Segments, sockets and the plan, as the sequence asks for them.
async fn send_all(link: &mut End, offer: &Offer<'_>, protocol: u32) -> Result<(), HandoffError> {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let (sockets, segments) = (count(offer.sockets.len()), count(offer.segments.len()));
    let mut due = link.send(&Message::Offer(Offered { protocol, sockets, segments }), &[]).await?;
    loop {
        due = match due {
            Action::Segment(index) => link.send(&Message::Segment { index }, &[offer.segments[index as usize]]).await?,
            Action::Batch(first) => {
                let rest = &offer.sockets[first as usize..];
                let (message, fds) = batch(first, batches(rest).next().unwrap_or_default());
                link.send(&message, &fds).await?
            }
            Action::Plan => break,
            _ => link.recv().await?.2,
        };
    }
    let plan = Parcel::in_file(offer.plan).map_err(system(link.step()))?;
    link.send(&Message::Plan { body: plan.body.clone() }, &plan.fds()).await.map(drop)
}

/// ADOPTED, in parts.
async fn compare(link: &mut End, offer: &Offer<'_>) -> Result<(), HandoffError> {
    while !link.role.adopted() {
        let adopted = match link.recv().await?.0 {
            Message::Adopted(adopted) => adopted,
            other => return Err(link.unexpected(&other)),
        };
        let offered = &offer.sockets[adopted.first as usize..];
        for ((ours, _), theirs) in offered.iter().zip(&adopted.entries) {
            ours.matches(theirs).map_err(|source| HandoffError::Mismatch { step: link.step(), source })?;
        }
    }
    Ok(())
}

fn batch<'a>(first: u32, sockets: &[(Entry, BorrowedFd<'a>)]) -> (Message, Vec<BorrowedFd<'a>>) {
    let (entries, fds) = sockets.iter().cloned().unzip();
    (Message::Batch(Batch { first, entries }), fds)
}

fn system(step: &'static str) -> impl Fn(io::Error) -> HandoffError {
    move |source| HandoffError::System { step, source }
}
