//! The record of one live session, in the hands of the thread that serves it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use serde::{Deserialize, Serialize};

use super::layout::Owner;
use super::name::Name;
use super::slot::RecordSlot;
use super::writer::Lease;

/// Where a record lies, in every process alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    pub segment: u32,
    pub index: u32,
}

#[derive(Debug, Clone)]
pub struct Opening {
    pub listener: Name,
    pub pool: Name,
    /// `None` for a Unix socket.
    pub client: Option<SocketAddr>,
    /// Microseconds since 1970.
    pub opened_unix_us: u64,
    /// CLOCK_MONOTONIC, milliseconds.
    pub opened_ms: u64,
}

/// The record of one live session. Dropping it frees it, if it is this thread's. (An id is unique over all generations of
/// this ledger.)
#[derive(Debug)]
pub struct Record {
    lease: Rc<Lease>,
    index: u32,
    id: u64,
    given: bool,
}

impl Record {
    pub(super) fn begin(lease: Rc<Lease>, index: u32, id: u64, opening: &Opening) -> Self {
        let record = Self::at(lease, index, id);
        record.slot().begin(id, opening);
        record
    }

    /// A handle on a record of the lease's segment that stays as it is.
    pub(super) fn at(lease: Rc<Lease>, index: u32, id: u64) -> Self {
        Self { lease, index, id, given: false }
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn place(&self) -> Place {
        Place { segment: self.lease.segment.index(), index: self.index }
    }

    /// Whether this thread is the owner of this session. Of an adopted record: whether it was given by now; then everything
    /// the giver wrote before is seen.
    pub fn is_ours(&self) -> bool {
        // The id too: an adopted session may have ended where it was, and the record be claimed anew, by this very thread.
        self.slot().owner() == self.lease.owner.word() && self.slot().id() == self.id
    }

    /// Makes `thread` of `generation` the owner, who has adopted the record. This is the last write of this thread there;
    /// nothing is freed.
    pub fn give(mut self, generation: u32, thread: u16) {
        self.given = true;
        self.slot().give(Owner { generation, thread });
    }

    /// Connected to a backend (a name of the same segment).
    pub fn established(&self, backend: Name, address: SocketAddr) {
        self.slot().establish(backend, address);
    }

    /// `n` more bytes came from the client.
    #[inline]
    pub fn received(&self, n: u64) {
        add(&self.slot().received, n);
    }

    /// `n` more bytes went to the client.
    #[inline]
    pub fn sent(&self, n: u64) {
        add(&self.slot().sent, n);
    }

    pub fn total_received(&self) -> u64 {
        self.slot().received.load(Relaxed)
    }

    pub fn total_sent(&self) -> u64 {
        self.slot().sent.load(Relaxed)
    }

    /// A byte moved; CLOCK_MONOTONIC, milliseconds.
    #[inline]
    pub fn touch(&self, now_ms: u64) {
        self.slot().last_byte_ms.store(now_ms, Relaxed);
    }

    pub fn last_byte_ms(&self) -> u64 {
        self.slot().last_byte_ms.load(Relaxed)
    }

    /// Bytes accepted from one side that the other has not got; -1: not known.
    pub fn unsent(&self, to_client: i64, to_backend: i64) {
        self.slot().unsent_to_client.store(to_client, Relaxed);
        self.slot().unsent_to_backend.store(to_backend, Relaxed);
    }

    /// Whether it outlives its process: a code of the caller's, not 0.
    pub fn protect(&self, code: u8) {
        self.slot().protect(self.id, code);
    }

    /// What was said last, by this owner or an earlier one; 0: nothing.
    pub fn protection(&self) -> u8 {
        self.slot().protection(self.id)
    }

    /// What whoever goes on in the place of this process must know; bits of the caller's.
    pub fn mark(&self, marks: u64) {
        self.slot().marks.store(marks, Relaxed);
    }

    /// Should the process crash before this is taken back, the session was being worked on
    /// ([`Ledger::worked_on`](super::Ledger::worked_on)). One store.
    #[inline]
    pub fn works(&self, works: bool) {
        self.lease.works_on(if works { self.id } else { 0 });
    }

    /// The end is decided and counted: if this process dies now, the keeper only frees the record.
    pub fn closed(&self, reason: u16) {
        self.slot().end(reason);
    }

    #[inline]
    fn slot(&self) -> &RecordSlot {
        &self.lease.segment.map().records()[self.index as usize]
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // Another owner's word means that the session was taken away, or never given: it is not ours to end. One that was
        // given may be this thread's again by now, but then by another handle.
        if !self.given && self.is_ours() {
            self.slot().free();
            self.lease.finds.borrow_mut().freed(self.index);
        }
    }
}

fn add(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed);
}
