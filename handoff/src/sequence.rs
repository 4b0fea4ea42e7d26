//! The order of words: both roles as pure state machines. A word that is out of turn changes nothing. No socket, no clock.
//!
//! Both ends run the same conversation; what one sends the other receives, and no two words that may cross depend on each
//! other. So there is one `State`, moved by words that go down (predecessor to successor) and up, and two roles that say
//! which is which and what is due next.

use serde::{Deserialize, Serialize};

use crate::codec::Word;
use crate::message::{Message, Offered};

mod service;
mod state;

use state::{Progress, State};

/// The order of words at the keeper's end. Its own hello is its first event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Predecessor(State);

/// The order of words at the worker's end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Successor(State);

/// A word at one end of the channel.
#[derive(Debug)]
pub enum Event<'a, W = Message> {
    /// It is about to be sent.
    Out(&'a W),
    /// It was received.
    In(&'a W),
}

impl<W> Copy for Event<'_, W> {}
impl<W> Clone for Event<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

/// What is due after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Wait for the other side, or, once in service, for the owner.
    Wait,
    /// Send the own hello.
    Greet,
    /// Send the offer.
    Announce,
    /// Send the ledger segment of this index.
    Segment(u32),
    /// Send a batch that begins with this entry.
    Batch(u32),
    /// Send the plan.
    Plan,
    /// Verify the sockets that came, then acknowledge them.
    Take,
    /// Send what was measured, beginning with this entry.
    Adopt(u32),
    /// Build what the plan says, then send ready.
    Prepare,
    /// The word is for the owner.
    Deliver,
    /// One side goes no further.
    Abort,
}

/// A live conversation in which nothing is open: from this it can be resumed, at either end, by another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rest {
    pub polls: Polls,
    /// Ledger segments that were handed over.
    pub segments: u32,
    /// The version that is spoken.
    pub protocol: u32,
}

/// What a generation does with its listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Polls {
    NotYet,
    Now,
    /// It did, and can be told to again.
    NoMore,
}

/// A word that is not legal now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{got}` ({direction}) is out of turn in state {state}: {rule}")]
pub struct OutOfTurn {
    pub state: &'static str,
    pub got: &'static str,
    /// `sent` or `received`.
    pub direction: &'static str,
    pub rule: &'static str,
}

impl Predecessor {
    pub fn on(self, event: Event<'_>) -> Result<(Self, Action), OutOfTurn> {
        let next = match event {
            Event::Out(message) => self.0.down(message),
            Event::In(message) => self.0.up(message),
        };
        let next = next.map_err(|rule| event.out_of_turn(self.state(), rule))?;
        let action = match (event, &next) {
            (Event::In(Message::Refused { .. }), _) => Action::Abort,
            (Event::In(Message::Hello(_)), _) => Action::Announce,
            (_, State::Offering(progress)) => progress.due(),
            (Event::In(_), _) => Action::Deliver,
            (Event::Out(_), _) => Action::Wait,
        };
        Ok((Self(next), action))
    }

    /// For errors and views.
    pub fn state(&self) -> &'static str {
        self.0.name()
    }

    /// `None`: a word is awaited, or the conversation is not live.
    pub fn rest(&self) -> Option<Rest> {
        self.0.rest()
    }

    /// The version that is spoken; `None`: the conversation is not live.
    pub fn protocol(&self) -> Option<u32> {
        self.0.protocol()
    }

    pub fn resumed(rest: Rest) -> Self {
        Self(State::resumed(rest))
    }

    /// The whole inventory was said to be adopted.
    pub fn adopted(&self) -> bool {
        matches!(self.0, State::AwaitReady(_))
    }
}

impl Successor {
    pub fn on(self, event: Event<'_>) -> Result<(Self, Action), OutOfTurn> {
        let next = match event {
            Event::In(message) => self.0.down(message),
            Event::Out(message) => self.0.up(message),
        };
        let next = next.map_err(|rule| event.out_of_turn(self.state(), rule))?;
        let action = match (event, &next) {
            (Event::In(Message::Refused { .. }), _) => Action::Abort,
            (Event::In(Message::Hello(_)), _) => Action::Greet,
            (Event::In(Message::Batch(_)), _) => Action::Take,
            (_, State::AwaitAdopted(_, seen)) => Action::Adopt(*seen),
            (_, State::AwaitReady(_)) => Action::Prepare,
            (Event::In(_), State::Live(..)) => Action::Deliver,
            _ => Action::Wait,
        };
        Ok((Self(next), action))
    }

    /// For errors and views.
    pub fn state(&self) -> &'static str {
        self.0.name()
    }

    /// `None`: a word is awaited, or the conversation is not live.
    pub fn rest(&self) -> Option<Rest> {
        self.0.rest()
    }

    pub fn resumed(rest: Rest) -> Self {
        Self(State::resumed(rest))
    }
}

impl<W: Word> Event<'_, W> {
    pub(crate) fn out_of_turn(&self, state: &'static str, rule: &'static str) -> OutOfTurn {
        let (message, direction) = match self {
            Self::Out(message) => (message, "sent"),
            Self::In(message) => (message, "received"),
        };
        OutOfTurn { state, got: message.name(), direction, rule }
    }
}

impl Progress {
    fn due(&self) -> Action {
        let Offered { sockets, segments, .. } = self.of;
        match self {
            _ if self.open > 0 => Action::Wait,
            _ if self.segments < segments => Action::Segment(self.segments),
            _ if self.sockets < sockets => Action::Batch(self.sockets),
            _ => Action::Plan,
        }
    }
}

#[cfg(test)]
mod tests;
