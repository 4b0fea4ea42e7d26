//! The one conversation both roles share, seen from the predecessor's side.

use super::service::Service;
use super::{Polls, Rest};
use crate::message::{Batch, Message, Offered};

/// Where the conversation stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum State {
    /// Nothing was said.
    #[default]
    Silent,
    AwaitHello,
    /// Both hellos were said, the offer was not.
    Greeted,
    Offering(Progress),
    /// And how many entries were answered.
    AwaitAdopted(Offered, u32),
    AwaitReady(Offered),
    Live(Phase, Service),
    /// One side refused.
    Closed,
}

/// What a ready generation does with the listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Never polled them.
    Ready,
    Committing,
    Serving,
    Stopping,
    /// Polled them once, serves its own sessions, can be committed again.
    Standby,
}

/// How far an announced inventory has crossed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) of: Offered,
    pub(super) segments: u32,
    /// Acknowledged.
    pub(super) sockets: u32,
    /// Sent and not yet acknowledged.
    pub(super) open: u32,
}

/// A transition, or the rule that forbids it.
type Next = Result<State, &'static str>;

impl State {
    /// A word from the predecessor to the successor.
    pub(super) fn down(&self, message: &Message) -> Next {
        match (self, message) {
            (Self::Closed, _) => Err(SILENCE),
            (_, Message::Refused { .. }) => Ok(Self::Closed),
            (Self::Silent, Message::Hello(_)) => Ok(Self::AwaitHello),
            (Self::Greeted, Message::Offer(of)) => Ok(Self::Offering(Progress::of(*of))),
            (Self::Offering(progress), Message::Segment { index }) => progress.segment(*index).map(Self::Offering),
            (Self::Offering(progress), Message::Batch(batch)) => progress.batch(batch).map(Self::Offering),
            (Self::Offering(progress), Message::Plan { .. }) => progress.plan(),
            (Self::Live(phase, service), Message::Commit) => {
                phase.step(&[Phase::Ready, Phase::Standby], Phase::Committing, service)
            }
            (Self::Live(phase, service), Message::Stop) => phase.step(&[Phase::Serving], Phase::Stopping, service),
            (Self::Live(phase, service), _) => Ok(Self::Live(*phase, service.clone().down(message)?)),
            _ => Err(NOT_NOW),
        }
    }

    /// A word from the successor to the predecessor.
    pub(super) fn up(&self, message: &Message) -> Next {
        match (self, message) {
            (Self::Closed, _) => Err(SILENCE),
            (Self::Silent, _) => Err(NOT_NOW),
            (_, Message::Refused { .. }) => Ok(Self::Closed),
            (Self::AwaitHello, Message::Hello(_)) => Ok(Self::Greeted),
            (Self::Offering(progress), Message::BatchTaken { count }) => progress.taken(*count).map(Self::Offering),
            (Self::AwaitAdopted(of, seen), Message::Adopted(batch)) => adopted(*of, *seen, batch),
            (Self::AwaitReady(of), Message::Ready) => {
                Ok(Self::Live(Phase::Ready, Service::after(of.segments, of.protocol)))
            }
            (Self::Live(phase, service), Message::Polling { .. }) => {
                phase.step(&[Phase::Committing], Phase::Serving, service)
            }
            (Self::Live(phase, service), Message::Stopped { .. }) => {
                phase.step(&[Phase::Stopping], Phase::Standby, service)
            }
            (Self::Live(phase, service), _) => Ok(Self::Live(*phase, service.clone().up(message)?)),
            _ => Err(NOT_NOW),
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::AwaitHello => "await_hello",
            Self::Greeted => "greeted",
            Self::Offering(_) => "offering",
            Self::AwaitAdopted(..) => "await_adopted",
            Self::AwaitReady(_) => "await_ready",
            Self::Live(Phase::Ready, _) => "ready",
            Self::Live(Phase::Committing, _) => "committing",
            Self::Live(Phase::Serving, _) => "serving",
            Self::Live(Phase::Stopping, _) => "stopping",
            Self::Live(Phase::Standby, _) => "standby",
            Self::Closed => "closed",
        }
    }
}

impl State {
    /// `None`: something is under way, or not live.
    pub(super) fn rest(&self) -> Option<Rest> {
        let Self::Live(phase, service) = self else { return None };
        let polls = match phase {
            Phase::Ready => Polls::NotYet,
            Phase::Serving => Polls::Now,
            Phase::Standby => Polls::NoMore,
            Phase::Committing | Phase::Stopping => return None,
        };
        let (segments, protocol) = service.rest()?;
        Some(Rest { polls, segments, protocol })
    }

    /// `None`: it is not live.
    pub(super) fn protocol(&self) -> Option<u32> {
        if let Self::Live(_, service) = self { Some(service.protocol()) } else { None }
    }

    pub(super) fn resumed(rest: Rest) -> Self {
        let phase = match rest.polls {
            Polls::NotYet => Phase::Ready,
            Polls::Now => Phase::Serving,
            Polls::NoMore => Phase::Standby,
        };
        Self::Live(phase, Service::after(rest.segments, rest.protocol))
    }
}

impl Phase {
    fn step(self, from: &[Self], to: Self, service: &Service) -> Next {
        if from.contains(&self) { Ok(State::Live(to, service.clone())) } else { Err(NOT_NOW) }
    }
}

impl Progress {
    fn of(of: Offered) -> Self {
        Self { of, segments: 0, sockets: 0, open: 0 }
    }

    fn segment(self, index: u32) -> Result<Self, &'static str> {
        if index != self.segments || self.segments == self.of.segments {
            return Err("not the next segment");
        }
        Ok(Self { segments: self.segments + 1, ..self })
    }

    /// Segments come first; then the sockets, and a batch only after the one before was acknowledged.
    fn batch(self, batch: &Batch) -> Result<Self, &'static str> {
        if self.segments < self.of.segments {
            return Err("segments are missing");
        }
        if self.open > 0 {
            return Err("the batch before is not acknowledged");
        }
        let count = batch.count();
        if batch.first != self.sockets || count == 0 || count > self.of.sockets - self.sockets {
            return Err("not the next entries");
        }
        Ok(Self { open: count, ..self })
    }

    fn taken(self, count: u32) -> Result<Self, &'static str> {
        if self.open == 0 || count != self.open {
            return Err("not the number of sockets sent");
        }
        Ok(Self { sockets: self.sockets + count, open: 0, ..self })
    }

    fn plan(self) -> Next {
        let complete = self.segments == self.of.segments && self.sockets == self.of.sockets;
        if complete { Ok(State::AwaitAdopted(self.of, 0)) } else { Err("the inventory is not complete") }
    }
}

/// The answer may come in parts; that to an offer without sockets is one empty part.
fn adopted(of: Offered, seen: u32, batch: &Batch) -> Next {
    let count = batch.count();
    if batch.first != seen || count > of.sockets - seen || (count == 0 && of.sockets > 0) {
        return Err("not the next entries");
    }
    let seen = seen + count;
    Ok(if seen == of.sockets { State::AwaitReady(of) } else { State::AwaitAdopted(of, seen) })
}

const SILENCE: &str = "nothing follows a refusal";
pub(super) const NOT_NOW: &str = "not a word of this state";
