//! The worker's end: it takes the sockets, verifies each of them, then follows orders.

use std::os::fd::{AsFd, OwnedFd};

use tokio::time::Instant;

use crate::channel::Channel;
use crate::error::HandoffError;
use crate::link::{Link, budget};
use crate::manifest::{Entry, Mismatch, duplicate, fitting};
use crate::message::{Batch, Body, Hello, LEDGER, Message, PROTOCOL, Pulse, Range};
use crate::parcel::{self, Parcel};
use crate::sequence::{self, Action, Rest};
use crate::transfer::Role;

/// The conversation with the keeper. End of file on it means that the keeper is gone.
#[derive(Debug)]
pub struct Successor {
    link: Link<sequence::Successor>,
    /// A batch whose acknowledgement is not sent yet.
    owed: Option<Vec<(Entry, OwnedFd)>>,
}

/// Who this process is.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    pub version: &'a str,
    pub build: &'a str,
}

/// Everything the keeper handed over; each socket was verified.
#[derive(Debug)]
pub struct Accepted {
    pub successor: Successor,
    pub generation: u32,
    /// In the order of the offer, as measured here.
    pub sockets: Vec<(Entry, OwnedFd)>,
    /// In the order of the chain.
    pub segments: Vec<OwnedFd>,
    pub plan: Vec<u8>,
}

/// A word from the keeper.
#[derive(Debug)]
pub enum Order {
    /// Poll the listeners, then send [`Reply::Polling`].
    Commit,
    /// Poll no more, close nothing, then send [`Reply::Stopped`].
    Stop,
    /// A request, to be answered with [`Reply::Answer`].
    Order {
        id: u64,
        body: Vec<u8>,
    },
    /// Listeners added later: verified and acknowledged. Ids are unique within the batch; one that was used before means
    /// that its earlier socket is no longer wanted.
    Sockets(Vec<(Entry, OwnedFd)>),
    Segment {
        index: u32,
        fd: OwnedFd,
    },
    /// Where another keeper will knock if this one dies; replaces an earlier one.
    Door(OwnedFd),
    /// An end of a path to the generation `other`, 0 for the keeper; it speaks with a `Giver` or `Taker`.
    Path {
        id: u64,
        role: Role,
        other: u32,
        end: OwnedFd,
    },
    /// Where to deposit; replaces an earlier one.
    Vault(OwnedFd),
}

/// A word to the keeper. Times are `CLOCK_MONOTONIC` in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub enum Reply<'a> {
    Polling { first_poll_ns: u64 },
    Stopped { last_poll_ns: u64 },
    Answer { id: u64, body: &'a [u8] },
    Heartbeat(Pulse),
    Notice { body: &'a [u8] },
}

impl Successor {
    /// From hello to ADOPTED. On success this process owns every socket and polls none. On failure everything that came is
    /// closed, and so is the channel.
    pub async fn accept(channel: Channel, me: Identity<'_>, deadline: Instant) -> Result<Accepted, HandoffError> {
        let mut link = Link::new(channel);
        let taken = link.within(deadline, async |link| take_over(link, me).await).await?;
        let Taken { generation, sockets, segments, plan } = taken;
        link.begin("ready");
        Ok(Accepted { successor: Self { link, owed: None }, generation, sockets, segments, plan })
    }

    /// Goes on where another process, or the other role, has left the conversation.
    pub fn resume(channel: Channel, rest: Rest) -> Self {
        Self { link: Link::resumed(channel, sequence::Successor::resumed(rest)), owed: None }
    }

    /// Where the conversation stands, if no answer is owed.
    pub fn rest(&self) -> Option<Rest> {
        self.link.role.rest()
    }

    /// The process at the other end.
    pub fn peer(&self) -> Option<u32> {
        self.link.channel().speaker()
    }

    /// The channel, to go on in the other role.
    pub fn into_channel(self) -> Channel {
        self.link.into_channel()
    }

    /// Goes no further, and says why.
    pub fn refuse(self, cause: &str) {
        self.link.refuse(&HandoffError::System { step: self.link.step(), source: std::io::Error::other(cause) });
    }

    /// Says that this process could serve now.
    pub async fn ready(&mut self) -> Result<(), HandoffError> {
        self.link.send_soon(&Message::Ready, &[]).await?;
        self.link.live();
        Ok(())
    }

    /// Sends a word if it is legal now; else [`HandoffError::OutOfTurn`], and nothing has happened. May be dropped: the
    /// word was then sent whole or not at all.
    pub async fn send(&mut self, word: Reply<'_>) -> Result<(), HandoffError> {
        let pack = |bytes| Parcel::of(bytes).map_err(|source| HandoffError::System { step: self.link.step(), source });
        let (message, parcel) = match word {
            Reply::Polling { first_poll_ns } => (Message::Polling { first_poll_ns }, None),
            Reply::Stopped { last_poll_ns } => (Message::Stopped { last_poll_ns }, None),
            Reply::Heartbeat(pulse) => (Message::Heartbeat(pulse), None),
            Reply::Answer { id, body } => {
                let parcel = pack(body)?;
                (Message::Answer { id, body: parcel.body.clone() }, Some(parcel))
            }
            Reply::Notice { body } => {
                let parcel = pack(body)?;
                (Message::Notice { body: parcel.body.clone() }, Some(parcel))
            }
        };
        let fds = parcel.as_ref().map(Parcel::fds).unwrap_or_default();
        self.link.send_soon(&message, &fds).await
    }

    /// The next word of the keeper. May be dropped: no word and no socket is lost. A socket that is not what was announced
    /// ends the conversation; the keeper is told why.
    pub async fn next(&mut self) -> Result<Order, HandoffError> {
        if self.owed.is_none() {
            let (message, fds, _) = self.link.recv().await?;
            match self.understand(message, fds).inspect_err(|error| self.link.refuse(error))? {
                Order::Sockets(sockets) => self.owed = Some(sockets),
                order => return Ok(order),
            }
        }
        // Kept in `self` meanwhile: dropping this future closes none of them.
        let count = self.owed.as_ref().map_or(0, Vec::len);
        self.link.send_soon(&taken(count), &[]).await?;
        Ok(Order::Sockets(self.owed.take().unwrap_or_default()))
    }

    /// For views and errors: `ready`, `committing`, `serving`, `stopping`, `standby`.
    pub fn state(&self) -> &'static str {
        self.link.role.state()
    }

    fn understand(&self, message: Message, fds: Vec<OwnedFd>) -> Result<Order, HandoffError> {
        Ok(match message {
            Message::Commit => Order::Commit,
            Message::Stop => Order::Stop,
            Message::Order { id, body } => Order::Order { id, body: open(&self.link, body, fds)? },
            Message::Batch(batch) => Order::Sockets(verified(&self.link, batch, fds)?),
            Message::Segment { index } => Order::Segment { index, fd: self.only(fds, &message)? },
            Message::Door => Order::Door(self.only(fds, &message)?),
            Message::Path { id, role, other } => Order::Path { id, role, other, end: self.only(fds, &message)? },
            Message::Vault => Order::Vault(self.only(fds, &message)?),
            other => return Err(self.link.unexpected(&other)),
        })
    }

    /// The one descriptor of a word; the channel has seen to it that it is there.
    fn only(&self, fds: Vec<OwnedFd>, message: &Message) -> Result<OwnedFd, HandoffError> {
        fds.into_iter().next().ok_or_else(|| self.link.unexpected(message))
    }
}

type End = Link<sequence::Successor>;

/// [`Accepted`] before the conversation is put beside it.
#[derive(Default)]
struct Taken {
    generation: u32,
    sockets: Vec<(Entry, OwnedFd)>,
    segments: Vec<OwnedFd>,
    plan: Vec<u8>,
}

async fn take_over(link: &mut End, me: Identity<'_>) -> Result<Taken, HandoffError> {
    let mut taken = Taken { generation: answer_hello(link, me).await?, ..Taken::default() };
    link.begin("offer");
    loop {
        let (message, fds, due) = link.recv().await?;
        match message {
            Message::Offer(offer) => understood(offer.protocol)?,
            Message::Segment { .. } => taken.segments.extend(fds),
            Message::Batch(batch) => take(link, &mut taken.sockets, batch, fds).await?,
            Message::Plan { body } => {
                taken.plan = open(link, body, fds)?;
                adopt(link, &taken.sockets, due).await?;
                return Ok(taken);
            }
            other => return Err(link.unexpected(&other)),
        }
    }
}

/// Gives the generation this process is to be.
async fn answer_hello(link: &mut End, me: Identity<'_>) -> Result<u32, HandoffError> {
    let theirs = match link.recv().await?.0 {
        Message::Hello(hello) => hello,
        other => return Err(link.unexpected(&other)),
    };
    let ours = Hello {
        protocol: PROTOCOL,
        ledger: LEDGER,
        version: me.version.to_owned(),
        build: me.build.to_owned(),
        generation: theirs.generation,
        pid: std::process::id(),
        descriptors: budget(),
    };
    // Said even if the versions do not fit: then both sides can name both ranges.
    link.send(&Message::Hello(ours), &[]).await?;
    theirs.common_protocol()?;
    Ok(theirs.generation)
}

fn understood(chosen: u32) -> Result<(), HandoffError> {
    if (PROTOCOL.min..=PROTOCOL.max).contains(&chosen) {
        return Ok(());
    }
    Err(HandoffError::Version { what: "protocol", ours: PROTOCOL, theirs: Range { min: chosen, max: chosen } })
}

async fn take(
    link: &mut End,
    held: &mut Vec<(Entry, OwnedFd)>,
    batch: Batch,
    fds: Vec<OwnedFd>,
) -> Result<(), HandoffError> {
    let sockets = verified(link, batch, fds)?;
    let count = sockets.len();
    held.extend(sockets);
    if let Some(id) = duplicate(held.iter().map(|(entry, _)| entry.id.as_str())) {
        return Err(HandoffError::Duplicate { id: id.to_owned() });
    }
    link.send(&taken(count), &[]).await.map(drop)
}

/// The sockets of a batch with what was measured on each.
fn verified(link: &End, batch: Batch, fds: Vec<OwnedFd>) -> Result<Vec<(Entry, OwnedFd)>, HandoffError> {
    if let Some(id) = duplicate(batch.entries.iter().map(|entry| entry.id.as_str())) {
        return Err(HandoffError::Duplicate { id: id.to_owned() });
    }
    let measured = batch.entries.iter().zip(fds).map(|(entry, fd)| Ok((entry.measured(fd.as_fd())?, fd)));
    measured.collect::<Result<_, Mismatch>>().map_err(|source| HandoffError::Mismatch { step: link.step(), source })
}

/// ADOPTED, in as many parts as it takes.
async fn adopt(link: &mut End, held: &[(Entry, OwnedFd)], mut due: Action) -> Result<(), HandoffError> {
    while let Action::Adopt(first) = due {
        let rest = held[first as usize..].iter().map(|(entry, _)| entry);
        let entries = rest.clone().take(fitting(rest)).cloned().collect();
        due = link.send(&Message::Adopted(Batch { first, entries }), &[]).await?;
    }
    Ok(())
}

fn open(link: &End, body: Body, fds: Vec<OwnedFd>) -> Result<Vec<u8>, HandoffError> {
    parcel::open(body, fds).map_err(|source| HandoffError::Body { step: link.step(), source })
}

fn taken(count: usize) -> Message {
    // A record has at most 200 entries.
    Message::BatchTaken { count: u32::try_from(count).unwrap_or(u32::MAX) }
}
