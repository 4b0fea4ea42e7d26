//! A segment's memory, seen as tables of atomics. The only unsafe code of the ledger.

use std::os::fd::AsFd;

use memmap2::{MmapOptions, MmapRaw};

use super::error::LedgerError;
use super::layout::{Header, Layout, LeaseSlot};
use super::name::NameSlot;
use super::slot::RecordSlot;

/// Memory that other processes write at any time; mapped whole, never remapped, unmapped when dropped.
#[derive(Debug)]
pub(super) struct Map {
    memory: MmapRaw,
    layout: Layout,
}

impl Map {
    /// `segment` must be sealed against shrinking: a page taken away would be SIGBUS, not an error.
    pub(super) fn new(segment: impl AsFd, layout: Layout) -> Result<Self, LedgerError> {
        use std::os::fd::AsRawFd;
        let memory = MmapOptions::new()
            .len(layout.bytes)
            .map_raw(segment.as_fd().as_raw_fd())
            .map_err(|source| LedgerError::System { doing: "map a segment", source })?;
        Ok(Self { memory, layout })
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn header(&self) -> &Header {
        &self.table(0, 1)[0]
    }

    pub(super) fn leases(&self) -> &[LeaseSlot] {
        self.table(self.layout.leases_at, self.layout.sizes.blocks as usize)
    }

    pub(super) fn names(&self) -> &[NameSlot] {
        self.table(self.layout.names_at, self.layout.sizes.names as usize)
    }

    pub(super) fn records(&self) -> &[RecordSlot] {
        self.table(self.layout.records_at, self.layout.sizes.records as usize)
    }

    /// The words of all blocks.
    pub(super) fn cells(&self) -> &[std::sync::atomic::AtomicU64] {
        self.table(self.layout.cells_at, self.layout.cells())
    }

    fn table<T: Shared>(&self, at: usize, count: usize) -> &[T] {
        let first = self.memory.as_mut_ptr().wrapping_add(at).cast::<T>();
        debug_assert!(at + count * size_of::<T>() <= self.memory.len() && first.is_aligned());
        // JUSTIFICATION: memory shared between processes has no safe view in std, and crates that offer one want it
        // exclusive or read-only.
        // SAFETY: `at` and `count` come from the layout only, which places every table within its `bytes`, aligned from a
        // page boundary, and `new` mapped that many bytes; the seal keeps them there. The mapping lives as long as `self`.
        // `Shared` types are atomics throughout, so any bytes are valid and other processes may write while we read.
        #[expect(unsafe_code, reason = "views of shared memory")]
        unsafe {
            std::slice::from_raw_parts(first, count)
        }
    }
}

/// Types that may lie in memory which other processes write.
///
/// # Safety
/// An implementer is an atomic, or `repr(C)` without padding with only atomics, or arrays of them, as fields.
// JUSTIFICATION: it keeps `Map::table` from being used with a type that is not atomic.
#[expect(unsafe_code, reason = "a promise about the memory of a type")]
unsafe trait Shared {}

// JUSTIFICATION: see the trait.
// SAFETY: an atomic.
#[expect(unsafe_code, reason = "an atomic")]
unsafe impl Shared for std::sync::atomic::AtomicU64 {}

// JUSTIFICATION: see the trait.
// SAFETY: `repr(C)`, atomics only; a test compares its size with the sum of its fields.
#[expect(unsafe_code, reason = "atomics only")]
unsafe impl Shared for Header {}

// JUSTIFICATION: see the trait.
// SAFETY: as above.
#[expect(unsafe_code, reason = "atomics only")]
unsafe impl Shared for LeaseSlot {}

// JUSTIFICATION: see the trait.
// SAFETY: as above.
#[expect(unsafe_code, reason = "atomics only")]
unsafe impl Shared for NameSlot {}

// JUSTIFICATION: see the trait.
// SAFETY: as above.
#[expect(unsafe_code, reason = "atomics only")]
unsafe impl Shared for RecordSlot {}
