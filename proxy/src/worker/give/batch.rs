//! Sessions that travel together: packed for the path, and unpacked again if they come back.

use std::collections::HashSet;
use std::os::fd::OwnedFd;

use handoff::transfer::{self, Item, Verdict};
use tokio::time::Instant;

use crate::config::order::left;
use crate::session::{Carried, SessionState};

#[derive(Debug)]
pub(super) struct Batch {
    pub(super) number: u64,
    /// Where its sessions are from.
    pub(super) thread: usize,
    /// When the first of them stood still, nanoseconds.
    pub(super) begun_ns: u64,
    /// When it is taken back if there is no answer.
    pub(super) due: Instant,
    items: Vec<Item>,
    /// Of each item, to go on with here.
    kept: Vec<Kept>,
}

/// What does not travel, until the batch is released.
#[derive(Debug)]
struct Kept {
    state: SessionState,
    /// Without them a session that comes back would need two descriptors, which may not be there.
    writers: [Option<OwnedFd>; 2],
}

impl Batch {
    /// The taker must have room for so many: one batch, all its directions in pipes.
    pub(super) const MOST_DESCRIPTORS: u64 = 4 * transfer::ITEMS as u64;

    pub(super) fn pack(thread: usize, carried: Vec<Carried>, begun_ns: u64) -> Self {
        let (items, kept) = carried.into_iter().map(pack).unzip();
        Self { number: 0, thread, begun_ns, due: Instant::now(), items, kept }
    }

    /// Keeps what one offer can carry, and gives the rest.
    pub(super) fn split_off_rest(&mut self) -> Option<Self> {
        let fit = transfer::fitting(&self.items);
        if fit >= self.items.len() {
            return None;
        }
        let (items, kept) = (self.items.split_off(fit), self.kept.split_off(fit));
        Some(Self { items, kept, ..*self })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn items(&self) -> &[Item] {
        &self.items
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = u64> {
        self.items.iter().map(|item| item.id)
    }

    /// What the taker needs for it, but for these sessions: a pipe has two ends there.
    pub(super) fn descriptors_but(&self, gone: &HashSet<u64>) -> u64 {
        let items = self.items.iter().filter(|item| !gone.contains(&item.id));
        items.map(|item| 2 + 2 * item.pipes.iter().flatten().count() as u64).sum()
    }

    /// Those that were taken, each with its thread there.
    pub(super) fn taken(&self, verdicts: &[Verdict]) -> Vec<(u64, u16)> {
        let both = self.ids().zip(verdicts);
        both.filter_map(|(id, verdict)| match verdict {
            Verdict::Taken { thread } => Some((id, *thread)),
            Verdict::Refused { .. } => None,
        })
        .collect()
    }

    /// Those that were not, each with a word for why.
    pub(super) fn refused(&self, verdicts: &[Verdict]) -> Vec<(u64, &'static str)> {
        let both = self.ids().zip(verdicts);
        both.filter_map(|(id, verdict)| match verdict {
            Verdict::Taken { .. } => None,
            Verdict::Refused { why } if why == left::NO_ROOM => Some((id, left::NO_ROOM)),
            Verdict::Refused { why } => {
                tracing::warn!(id, why, "a session was refused by the other worker");
                Some((id, left::REFUSED))
            }
        })
        .collect()
    }

    /// What goes on here. Our copies of the sockets of the others are closed, which their peers do not see.
    pub(super) fn into_carried_but(self, gone: &HashSet<u64>) -> Vec<Carried> {
        let both = self.items.into_iter().zip(self.kept);
        both.filter(|(item, _)| !gone.contains(&item.id)).map(|(item, kept)| unpack(item, kept)).collect()
    }
}

fn pack(carried: Carried) -> (Item, Kept) {
    let Carried { id, place, state, hand, client, backend, pipes, writers } = carried;
    // Plain data is always JSON; the taker would refuse what is none.
    let text = serde_json::to_string(&state).unwrap_or_default();
    (Item { id, place, state: text, hand, client, backend, pipes }, Kept { state, writers })
}

fn unpack(item: Item, kept: Kept) -> Carried {
    let Item { id, place, hand, client, backend, pipes, .. } = item;
    let Kept { state, writers } = kept;
    Carried { id, place, state, hand, client, backend, pipes, writers }
}
