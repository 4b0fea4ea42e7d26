//! Sessions on their way from one process to another: what one is, and the two ends of a path.
//!
//! A path is a pair of sockets made by the keeper; see `docs/decisions/0007`. The giver offers batches, the taker verifies
//! and holds them, and only what the giver then releases is the taker's. The giver alone decides; it writes the owner word
//! of each ledger record before it releases, and that word is the truth if the path ends in between.
//!
//! Reading order: `message` (the words), `body` (states and bytes in hand <-> a memfd), [`sequence`] (the order of words),
//! `kind` (what a received descriptor is), `giver`, `taker`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use crate::channel::Channel;
use crate::codec;
use crate::ledger::Place;

pub mod body;
pub mod message;
pub mod sequence;

mod giver;
mod kind;
mod taker;

pub use giver::Giver;
pub use message::{TRANSFER, Verdict};
pub use taker::{Coming, Taker};

/// One session on its way.
#[derive(Debug)]
pub struct Item {
    /// Of the ledger; not 0, and once in all open batches of a path.
    pub id: u64,
    pub place: Place,
    /// What the session is to the proxy: at most [`STATE`] bytes.
    pub state: String,
    /// Bytes read and not yet written, of the client and of the backend: at most [`HAND`] each.
    pub hand: [Vec<u8>; 2],
    pub client: OwnedFd,
    pub backend: OwnedFd,
    /// Reading ends of the pipes with bytes in them, of the client and of the backend.
    pub pipes: [Option<OwnedFd>; 2],
}

/// Which end of a path a process gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Give,
    Take,
}

/// Both ends of a new path: one for a [`Giver`], one for a [`Taker`].
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Channel::pair()
}

/// How many of the first items make one batch; at least one if there is any.
pub fn fitting(items: &[Item]) -> usize {
    // The memfd is one.
    let mut descriptors = 1;
    let fits = items.iter().take(ITEMS).enumerate().take_while(|(index, item)| {
        descriptors += item.descriptors().count();
        *index == 0 || descriptors <= codec::BATCH
    });
    fits.count()
}

impl Item {
    /// In the order in which they travel.
    fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let pipes = self.pipes.iter().flatten().map(AsFd::as_fd);
        [self.client.as_fd(), self.backend.as_fd()].into_iter().chain(pipes)
    }
}

/// Most items of a batch: two descriptors each and room for 71 pipes in one record. What stands still for the time of a batch
/// is at most this.
pub const ITEMS: usize = 64;
/// Batches that may be open on a path. One is measured, one packed and one on its way each way.
pub const OPEN: usize = 4;
/// Bytes of a state.
pub const STATE: usize = 8 * 1024;
/// Bytes in hand of one direction: four times the most that a relay takes before it stops reading.
pub const HAND: usize = 64 * 1024;

#[cfg(test)]
mod tests;
