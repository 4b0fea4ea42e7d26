//! What both roles keep while a generation lives: open orders, unacknowledged batches, the newest segment.

use std::collections::{BTreeSet, VecDeque};

use crate::message::{Batch, Message};

use super::state::NOT_NOW;

/// The words that are legal from READY on, whatever the generation does with its listeners.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Service {
    orders: BTreeSet<u64>,
    batches: VecDeque<u32>,
    /// Segments known so far; the next index is at least this.
    segments: u32,
    protocol: u32,
}

impl Service {
    pub(super) fn after(segments: u32, protocol: u32) -> Self {
        Self { segments, protocol, ..Self::default() }
    }

    /// Segments and protocol, if nothing is open: then they are all there is to know.
    pub(super) fn rest(&self) -> Option<(u32, u32)> {
        (self.orders.is_empty() && self.batches.is_empty()).then_some((self.segments, self.protocol))
    }

    pub(super) fn protocol(&self) -> u32 {
        self.protocol
    }

    /// A word from the predecessor.
    pub(super) fn down(mut self, message: &Message) -> Result<Self, &'static str> {
        match message {
            Message::Order { id, .. } => self.order(*id)?,
            Message::Batch(batch) => self.batch(batch)?,
            Message::Segment { index } => self.segment(*index)?,
            Message::Door if self.protocol >= DOORS => {}
            Message::Path { .. } | Message::Vault if self.protocol >= PATHS => {}
            _ => return Err(NOT_NOW),
        }
        Ok(self)
    }

    /// A word from the successor.
    pub(super) fn up(mut self, message: &Message) -> Result<Self, &'static str> {
        match message {
            Message::Answer { id, .. } => self.answer(*id)?,
            Message::BatchTaken { count } => self.taken(*count)?,
            Message::Heartbeat(_) | Message::Notice { .. } => {}
            _ => return Err(NOT_NOW),
        }
        Ok(self)
    }

    fn order(&mut self, id: u64) -> Result<(), &'static str> {
        if self.orders.len() >= OPEN_ORDERS {
            return Err("too many orders are open");
        }
        if self.orders.insert(id) { Ok(()) } else { Err("an order of this id is open") }
    }

    fn answer(&mut self, id: u64) -> Result<(), &'static str> {
        if self.orders.remove(&id) { Ok(()) } else { Err("no order of this id is open") }
    }

    fn batch(&mut self, batch: &Batch) -> Result<(), &'static str> {
        let open: u32 = self.batches.iter().sum();
        if batch.first != 0 || batch.entries.is_empty() {
            return Err("a later batch begins at 0 and is not empty");
        }
        if open + batch.count() > OPEN_SOCKETS {
            return Err("too many sockets are unacknowledged");
        }
        self.batches.push_back(batch.count());
        Ok(())
    }

    fn taken(&mut self, count: u32) -> Result<(), &'static str> {
        if self.batches.front() != Some(&count) {
            return Err("not the number of sockets sent");
        }
        self.batches.pop_front();
        Ok(())
    }

    fn segment(&mut self, index: u32) -> Result<(), &'static str> {
        if index < self.segments || index == u32::MAX {
            return Err("not a new segment");
        }
        self.segments = index + 1;
        Ok(())
    }
}

/// The first version of the protocol that knows doors.
const DOORS: u32 = 2;
/// The first one that knows paths and vaults.
const PATHS: u32 = 3;
/// Bounds the memory of both ends; an owner loop asks one thing at a time, a paced kill a few hundred.
const OPEN_ORDERS: usize = 1024;
/// Descriptors on their way count against the sender's limit (ETOOMANYREFS, unix(7)).
const OPEN_SOCKETS: u32 = 400;
