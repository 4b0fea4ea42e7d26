//! The order of words on a path: both roles as pure state machines over one conversation, as in [`crate::sequence`].
//!
//! Here two words may cross that depend on each other: WITHDRAW on its way down, TAKEN on its way up. So every offer is
//! answered exactly once, with TAKEN, or with DROPPED if it was withdrawn before, and a withdrawn batch stays on the giver's
//! books until that answer has come. Whichever it is then changes nothing.

use super::OPEN;
use super::message::{Offer, Transfer};
use crate::link::Role;
use crate::sequence::{Event, OutOfTurn};

/// The order of words at the giver's end. Its own hello is its first event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Giver(State);

/// The order of words at the taker's end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Taker(State);

/// What is due after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Wait for the other side or the owner.
    Wait,
    /// Send the own hello.
    Greet,
    /// The word is for the owner.
    Deliver,
    /// The word is for the owner, then say that the batch is dropped.
    Drop,
    /// It is the answer to a batch that was withdrawn.
    Ignore,
    /// One side goes no further.
    Abort,
}

impl Giver {
    pub fn on(self, event: Event<'_, Transfer>) -> Result<(Self, Action), OutOfTurn> {
        let action = match event {
            Event::In(Transfer::Refused { .. }) => Action::Abort,
            Event::In(Transfer::Dropped { .. }) => Action::Ignore,
            Event::In(Transfer::Taken { batch, .. }) if self.0.is_withdrawn(*batch) => Action::Ignore,
            Event::In(_) => Action::Deliver,
            Event::Out(_) => Action::Wait,
        };
        let next = match event {
            Event::Out(word) => self.0.clone().down(word),
            Event::In(word) => self.0.clone().up(word),
        };
        let next = next.map_err(|rule| event.out_of_turn(self.state(), rule))?;
        Ok((Self(next), action))
    }

    /// For errors and views.
    pub fn state(&self) -> &'static str {
        self.0.name()
    }

    /// Batches that were withdrawn before they were answered, and still are not.
    pub fn unanswered(&self) -> usize {
        let State::Open(books) = &self.0 else { return 0 };
        books.open.iter().filter(|open| open.stands == Stands::Withdrawn).count()
    }
}

impl Taker {
    pub fn on(self, event: Event<'_, Transfer>) -> Result<(Self, Action), OutOfTurn> {
        let action = match event {
            Event::In(Transfer::Refused { .. }) => Action::Abort,
            Event::In(Transfer::Hello(_)) => Action::Greet,
            Event::In(Transfer::Withdraw { batch }) if self.0.is_unanswered(*batch) => Action::Drop,
            Event::In(_) => Action::Deliver,
            Event::Out(_) => Action::Wait,
        };
        let next = match event {
            // Legal to receive, as it may have crossed the withdrawal; who has read that says DROPPED.
            Event::Out(Transfer::Taken { batch, .. }) if self.0.is_withdrawn(*batch) => Err("the batch is withdrawn"),
            Event::Out(word) => self.0.clone().up(word),
            Event::In(word) => self.0.clone().down(word),
        };
        let next = next.map_err(|rule| event.out_of_turn(self.state(), rule))?;
        Ok((Self(next), action))
    }

    /// For errors and views.
    pub fn state(&self) -> &'static str {
        self.0.name()
    }

    /// It was offered, and needs no answer any more.
    pub fn is_over(&self, batch: u64) -> bool {
        self.0.is_past(batch) || self.0.is_withdrawn(batch)
    }
}

impl Role for Giver {
    type Word = Transfer;
    type Action = Action;
    fn on(self, event: Event<'_, Transfer>) -> Result<(Self, Action), OutOfTurn> {
        self.on(event)
    }
    fn state(&self) -> &'static str {
        self.state()
    }
}

impl Role for Taker {
    type Word = Transfer;
    type Action = Action;
    fn on(self, event: Event<'_, Transfer>) -> Result<(Self, Action), OutOfTurn> {
        self.on(event)
    }
    fn state(&self) -> &'static str {
        self.state()
    }
}

/// The one conversation both roles share, seen from the giver's side.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
enum State {
    /// Nothing was said.
    #[default]
    Silent,
    AwaitHello,
    Open(Books),
    /// One side refused.
    Closed,
}

/// The batches of a path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Books {
    /// Number of the newest one; 0 before the first.
    newest: u64,
    /// At most [`OPEN`], oldest first.
    open: Vec<Batch>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Batch {
    number: u64,
    ids: Vec<u64>,
    stands: Stands,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stands {
    Offered,
    Answered,
    /// Before it was answered.
    Withdrawn,
}

/// A transition, or the rule that forbids it.
type Next = Result<State, &'static str>;

impl State {
    /// A word from the giver to the taker.
    fn down(self, word: &Transfer) -> Next {
        match (self, word) {
            (Self::Closed, _) => Err(SILENCE),
            (_, Transfer::Refused { .. }) => Ok(Self::Closed),
            (Self::Silent, Transfer::Hello(_)) => Ok(Self::AwaitHello),
            (Self::Open(books), Transfer::Offer(offer)) => books.offer(offer),
            (Self::Open(books), Transfer::Release { batch }) => books.release(*batch),
            (Self::Open(books), Transfer::Withdraw { batch }) => books.withdraw(*batch),
            _ => Err(NOT_NOW),
        }
    }

    /// A word from the taker to the giver.
    fn up(self, word: &Transfer) -> Next {
        match (self, word) {
            (Self::Closed, _) => Err(SILENCE),
            (Self::Silent, _) => Err(NOT_NOW),
            (_, Transfer::Refused { .. }) => Ok(Self::Closed),
            (Self::AwaitHello, Transfer::Hello(_)) => Ok(Self::Open(Books::default())),
            (Self::Open(books), Transfer::Taken { batch, verdicts, .. }) => books.taken(*batch, verdicts.len()),
            (Self::Open(books), Transfer::Dropped { batch }) => books.dropped(*batch),
            _ => Err(NOT_NOW),
        }
    }

    fn stands(&self, batch: u64) -> Option<Stands> {
        let Self::Open(books) = self else { return None };
        books.open.iter().find(|open| open.number == batch).map(|open| open.stands)
    }

    fn is_unanswered(&self, batch: u64) -> bool {
        self.stands(batch) == Some(Stands::Offered)
    }

    fn is_withdrawn(&self, batch: u64) -> bool {
        self.stands(batch) == Some(Stands::Withdrawn)
    }

    /// It was open once.
    fn is_past(&self, batch: u64) -> bool {
        matches!(self, Self::Open(books) if batch <= books.newest) && self.stands(batch).is_none()
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::AwaitHello => "await_hello",
            Self::Open(_) => "open",
            Self::Closed => "closed",
        }
    }
}

impl Books {
    fn offer(mut self, offer: &Offer) -> Next {
        if offer.batch <= self.newest {
            return Err("not a new batch");
        }
        if self.open.len() >= OPEN {
            return Err("too many batches are open");
        }
        if offer.items.is_empty() {
            return Err("a batch is not empty");
        }
        let ids: Vec<u64> = offer.items.iter().map(|item| item.id).collect();
        let held = self.open.iter().filter(|open| open.stands != Stands::Withdrawn).flat_map(|open| &open.ids);
        if held.into_iter().any(|id| ids.contains(id)) {
            return Err("a session is in an open batch already");
        }
        self.newest = offer.batch;
        self.open.push(Batch { number: offer.batch, ids, stands: Stands::Offered });
        Ok(State::Open(self))
    }

    fn taken(mut self, number: u64, verdicts: usize) -> Next {
        let at = self.place(number)?;
        let batch = &mut self.open[at];
        if batch.ids.len() != verdicts {
            return Err("not a verdict for each session");
        }
        match batch.stands {
            Stands::Offered => batch.stands = Stands::Answered,
            Stands::Answered => return Err("the batch is answered"),
            Stands::Withdrawn => drop(self.open.remove(at)),
        }
        Ok(State::Open(self))
    }

    fn dropped(mut self, number: u64) -> Next {
        let at = self.place(number)?;
        if self.open[at].stands != Stands::Withdrawn {
            return Err("the batch is not withdrawn");
        }
        self.open.remove(at);
        Ok(State::Open(self))
    }

    fn release(mut self, number: u64) -> Next {
        let at = self.place(number)?;
        if self.open[at].stands != Stands::Answered {
            return Err("the batch is not answered");
        }
        self.open.remove(at);
        Ok(State::Open(self))
    }

    fn withdraw(mut self, number: u64) -> Next {
        let at = self.place(number)?;
        match self.open[at].stands {
            Stands::Offered => self.open[at].stands = Stands::Withdrawn,
            Stands::Answered => drop(self.open.remove(at)),
            Stands::Withdrawn => return Err("the batch is withdrawn"),
        }
        Ok(State::Open(self))
    }

    fn place(&self, number: u64) -> Result<usize, &'static str> {
        self.open.iter().position(|open| open.number == number).ok_or("no such batch is open")
    }
}

const SILENCE: &str = "nothing follows a refusal";
const NOT_NOW: &str = "not a word of this state";

#[cfg(test)]
mod tests;
