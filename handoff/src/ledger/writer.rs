//! One thread's side of the ledger: its lease, and the handles through which it counts.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::claim::Finds;
use super::error::LedgerError;
use super::layout::Owner;
use super::name::Name;
use super::record::{Opening, Record};
use super::segment::Segment;
use super::slot::{Phase, RecordSlot};

/// One thread's lease on a counter block of one segment, and its way to claim records. Not shared between threads.
/// When the process dies, the keeper releases it ([`Ledger::bury`](super::Ledger::bury)); dropped orderly, with its last
/// handle and record, it releases itself, gauges cleared.
#[derive(Debug, Clone)]
pub struct Writer {
    lease: Rc<Lease>,
}

impl Writer {
    pub fn lease(segment: Arc<Segment>, generation: u32, thread: u16) -> Result<Self, LedgerError> {
        let owner = Owner { generation, thread };
        let block = segment.lease(owner)?;
        Ok(Self::of(segment, block, owner))
    }

    /// In a segment that new sessions no longer go to: leaves blocks there for later generations.
    pub fn lease_share(segment: Arc<Segment>, generation: u32, thread: u16) -> Result<Self, LedgerError> {
        let owner = Owner { generation, thread };
        let block = segment.lease_share(owner)?;
        Ok(Self::of(segment, block, owner))
    }

    fn of(segment: Arc<Segment>, block: u32, owner: Owner) -> Self {
        Self { lease: Rc::new(Lease { segment, block, owner, finds: RefCell::default() }) }
    }

    pub fn segment(&self) -> &Arc<Segment> {
        &self.lease.segment
    }

    /// An index that is no name of this segment has no cells.
    pub fn counters(&self, name: Name) -> Counters {
        let Lease { segment, block, .. } = &*self.lease;
        let cells = segment.cells_of(name).counters;
        let first = segment.layout().counters_of(*block) + cells.start as usize;
        Counters(Handle { lease: Rc::clone(&self.lease), first, cells: cells.end - cells.start })
    }

    /// An index that is no name of this segment has no cells.
    pub fn gauges(&self, name: Name) -> Gauges {
        let Lease { segment, block, .. } = &*self.lease;
        let cells = segment.cells_of(name).gauges;
        let first = segment.layout().gauges_of(*block) + cells.start as usize;
        Gauges(Handle { lease: Rc::clone(&self.lease), first, cells: cells.end - cells.start })
    }

    /// `None`: no record is free.
    pub fn claim(&self, opening: &Opening) -> Option<Record> {
        let Lease { segment, owner, finds, .. } = &*self.lease;
        let (index, id) = finds.borrow_mut().claim(segment, *owner)?;
        Some(Record::begin(Rc::clone(&self.lease), index, id, opening))
    }

    /// A handle on a session's record in this segment that belongs to someone else and is about to be given to this thread.
    /// Nothing is written. Until [`Record::is_ours`] it is only to be held or dropped, which has no effect.
    pub fn adopt(&self, index: u32, id: u64) -> Result<Record, LedgerError> {
        let segment = &self.lease.segment;
        let found = segment.used_record(index).and_then(RecordSlot::read);
        match found {
            Some(found) if found.id == id && found.phase == Phase::Established => {
                Ok(Record::at(Rc::clone(&self.lease), index, id))
            }
            _ => Err(LedgerError::NotThere { id, segment: segment.index(), index }),
        }
    }

    /// Generation and thread, as they stand in the records of this writer.
    pub fn owner(&self) -> (u32, u16) {
        (self.lease.owner.generation, self.lease.owner.thread)
    }

    /// Says which session this thread works on, 0 for none: should it crash, [`Ledger::worked_on`](super::Ledger::worked_on)
    /// tells. One store; of writers of one thread, each has its own word.
    #[inline]
    pub fn works_on(&self, id: u64) {
        self.lease.works_on(id);
    }
}

/// The counter cells of one name in this thread's block: relaxed load and store, no read-modify-write. Keeps the lease alive.
#[derive(Debug, Clone)]
pub struct Counters(Handle);

impl Counters {
    /// A cell beyond those of the name is not counted (debug builds panic).
    #[inline]
    pub fn add(&self, cell: u32, n: u64) {
        self.0.change(cell, |value| value.wrapping_add(n));
    }
}

/// The gauge cells of one name in this thread's block; they are its own part of the sum. Keeps the lease alive.
#[derive(Debug, Clone)]
pub struct Gauges(Handle);

impl Gauges {
    #[inline]
    pub fn raise(&self, cell: u32) {
        self.0.change(cell, |value| value.saturating_add(1));
    }

    /// Not below 0: an error in pairing must not turn into a limit that is never free again.
    #[inline]
    pub fn lower(&self, cell: u32) {
        self.0.change(cell, |value| value.saturating_sub(1));
    }

    #[inline]
    pub fn set(&self, cell: u32, value: u64) {
        self.0.change(cell, |_| value);
    }
}

#[derive(Debug, Clone)]
struct Handle {
    lease: Rc<Lease>,
    /// Place of the first cell among the words of all blocks.
    first: usize,
    cells: u32,
}

impl Handle {
    /// Load and store, no more: the block has one writer, and it is this thread.
    #[inline]
    fn change(&self, cell: u32, change: impl FnOnce(u64) -> u64) {
        if let Some(word) = self.word(cell) {
            word.store(change(word.load(Relaxed)), Relaxed);
        }
    }

    #[inline]
    fn word(&self, cell: u32) -> Option<&AtomicU64> {
        debug_assert!(cell < self.cells, "cell {cell} of a name that has {}", self.cells);
        if cell < self.cells { self.lease.segment.word(self.first + cell as usize) } else { None }
    }
}

/// Held by the writer, its handles and its records; the last of them gives the block back.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) segment: Arc<Segment>,
    block: u32,
    pub(super) owner: Owner,
    pub(super) finds: RefCell<Finds>,
}

impl Lease {
    #[inline]
    pub(super) fn works_on(&self, id: u64) {
        if let Some(word) = self.segment.working(self.block) {
            word.store(id, Relaxed);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.segment.release(self.block);
    }
}
