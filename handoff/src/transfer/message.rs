//! The words of a path, version 1, and what each of them may carry.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{HAND, ITEMS, STATE};
use crate::codec::{self, BATCH, CodecError, Word, limit};
use crate::error::HandoffError;
use crate::ledger::Place;
use crate::message::{Budget, Range};

/// One record on a path. What is said of unknown and required fields in [`crate::message::Message`] holds here too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Transfer {
    /// First word of each side; the giver speaks first.
    Hello(Hello),
    /// Giver: frozen sessions. Carries a memfd with their states and bytes in hand, then the sockets and pipes of each.
    Offer(Offer),
    /// Taker: the answer to an offer, one verdict for each item in the same order. What is taken is held, not touched.
    Taken {
        batch: u64,
        verdicts: Vec<Verdict>,
        /// As they are with this batch held. Absent where that cannot be told at once, and from older versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        descriptors: Option<Budget>,
    },
    /// Giver: the taken items of an answered batch are the taker's from now on.
    Release { batch: u64 },
    /// Giver: a batch, answered or not, is to be let go of untouched.
    Withdraw { batch: u64 },
    /// Taker: the answer to an offer that was withdrawn before it was answered.
    Dropped { batch: u64 },
    /// Either side: goes no further, and why. Nothing follows it.
    Refused { cause: String },
}

/// Who speaks, and which versions it can speak.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: Range,
    /// 0 is the keeper.
    pub generation: u32,
    /// Absent where it cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptors: Option<Budget>,
}

/// A batch. Numbers grow along a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    pub batch: u64,
    pub items: Vec<Entry>,
}

/// An item, but for its descriptors and its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub id: u64,
    pub place: Place,
    /// Bytes of its state in the memfd.
    pub state: u32,
    /// Bytes in hand in the memfd, of the client and of the backend.
    pub hand: [u32; 2],
    pub pipes: [bool; 2],
}

/// What the taker says of one item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Held, by this thread of the taker: it is the owner to write.
    Taken { thread: u16 },
    /// Not held; its descriptors are closed.
    Refused { why: String },
}

impl Word for Transfer {
    const FEATURES: &'static [&'static str] = &[];

    fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Offer(_) => "offer",
            Self::Taken { .. } => "taken",
            Self::Release { .. } => "release",
            Self::Withdraw { .. } => "withdraw",
            Self::Dropped { .. } => "dropped",
            Self::Refused { .. } => "refused",
        }
    }

    fn parse(name: &str, bytes: &[u8]) -> serde_json::Result<Self> {
        // The long one.
        if name == "offer" { serde_json::from_slice(bytes).map(Self::Offer) } else { serde_json::from_slice(bytes) }
    }

    fn descriptors(&self) -> usize {
        if let Self::Offer(offer) = self { offer.descriptors() } else { 0 }
    }

    fn check(&self) -> Result<(), CodecError> {
        match self {
            Self::Offer(offer) => offer.check(),
            Self::Taken { verdicts, .. } => check_verdicts(verdicts),
            _ => Ok(()),
        }
    }

    fn refusal(cause: String) -> Self {
        Self::Refused { cause }
    }

    fn refused(&self) -> Option<&str> {
        if let Self::Refused { cause } = self { Some(cause) } else { None }
    }
}

impl Hello {
    /// The version to speak.
    pub(super) fn common(&self) -> Result<u32, HandoffError> {
        let differ = || HandoffError::Version { what: "transfer", ours: TRANSFER, theirs: self.protocol };
        TRANSFER.common(self.protocol).ok_or_else(differ)
    }
}

impl Offer {
    /// The memfd, and those of the items.
    fn descriptors(&self) -> usize {
        1 + self.items.iter().map(Entry::descriptors).sum::<usize>()
    }

    fn check(&self) -> Result<(), CodecError> {
        limit("the number of sessions", self.items.len() as u64, ITEMS as u64)?;
        limit("the number of descriptors", self.descriptors() as u64, BATCH as u64)?;
        self.items.iter().try_for_each(Entry::check)?;
        let mut seen = HashSet::new();
        match self.items.iter().find(|item| !seen.insert(item.id)) {
            Some(twice) => Err(CodecError::Session { id: twice.id, what: "occurs twice" }),
            None => Ok(()),
        }
    }
}

impl Entry {
    fn descriptors(&self) -> usize {
        2 + self.pipes.iter().filter(|there| **there).count()
    }

    fn check(&self) -> Result<(), CodecError> {
        if self.id == 0 {
            return Err(CodecError::Session { id: 0, what: "is none" });
        }
        limit("the length of a state", self.state.into(), STATE as u64)?;
        self.hand.iter().try_for_each(|hand| limit("the number of bytes in hand", (*hand).into(), HAND as u64))
    }
}

impl Verdict {
    /// A refusal with a reason that fits.
    pub(super) fn brief(&self) -> Self {
        match self {
            Self::Refused { why } => Self::Refused { why: brief(why) },
            taken => taken.clone(),
        }
    }
}

fn check_verdicts(verdicts: &[Verdict]) -> Result<(), CodecError> {
    limit("the number of verdicts", verdicts.len() as u64, ITEMS as u64)?;
    verdicts.iter().try_for_each(|verdict| match verdict {
        Verdict::Refused { why } => limit("the length of a reason", why.len() as u64, WHY as u64),
        Verdict::Taken { .. } => Ok(()),
    })
}

/// One line, without control characters, of at most [`WHY`] bytes.
fn brief(why: &str) -> String {
    let mut line = codec::printable(why);
    line.truncate(line.floor_char_boundary(WHY));
    line
}

/// Versions of the words on a path, apart from those of the keeper's channel.
pub const TRANSFER: Range = Range { min: 1, max: 1 };
/// Bytes of a reason: [`ITEMS`] of them, each quote escaped, are half a record.
const WHY: usize = 200;
