//! What lies where in a segment. Any change to a `repr(C)` type here, in `name` or in `slot` is a new layout version.

use std::mem::{align_of, offset_of, size_of};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::error::LedgerError;
use super::name::NameSlot;
use super::slot::RecordSlot;

/// Layout versions this binary reads and writes.
pub const LAYOUTS: RangeInclusive<u32> = 1..=1;
/// The version of segments made by this binary.
const LAYOUT: u32 = 1;
const MAGIC: u64 = u64::from_ne_bytes(*b"proxydLG");

/// Sizes of one segment. Memory is touched only where used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    pub names: u32,
    /// Counter cells of one block.
    pub counters: u32,
    /// Gauge cells of one block.
    pub gauges: u32,
    /// One for each writing thread that is alive, and one for the keeper.
    pub blocks: u32,
    pub records: u32,
}

impl Sizes {
    /// Far above any use (a million backends, 16 million sessions); they keep all arithmetic below within 64 bits.
    pub(super) const MOST: Self =
        Self { names: 1 << 20, counters: 1 << 26, gauges: 1 << 26, blocks: 1 << 12, records: 1 << 24 };

    pub(super) fn each(self, other: Self, pick: impl Fn(u32, u32) -> u32) -> Self {
        Self {
            names: pick(self.names, other.names),
            counters: pick(self.counters, other.counters),
            gauges: pick(self.gauges, other.gauges),
            blocks: pick(self.blocks, other.blocks),
            records: pick(self.records, other.records),
        }
    }
}

/// Start of a segment. Written once by the keeper, but for the words that grow.
#[repr(C, align(64))]
#[derive(Debug)]
pub(super) struct Header {
    magic: AtomicU64,
    layout: AtomicU32,
    /// Position in the chain.
    index: AtomicU32,
    names: AtomicU32,
    counters: AtomicU32,
    gauges: AtomicU32,
    blocks: AtomicU32,
    records: AtomicU32,
    _kept: AtomicU32,
    leases_at: AtomicU64,
    names_at: AtomicU64,
    records_at: AtomicU64,
    cells_at: AtomicU64,
    bytes: AtomicU64,
    /// What the keeper must find again after its death: the generation that serves and the one in standby, 0 for none.
    pub(super) noted: AtomicU64,
    _keeper: [AtomicU64; 5],
    /// Names below it are complete. Stored with release.
    pub(super) names_published: AtomicU32,
    /// Blocks below it were leased at least once; the memory of the others was never touched.
    pub(super) blocks_used: AtomicU32,
    _apart: [AtomicU64; 7],
    /// Records below it were claimed at least once, or are about to be.
    pub(super) records_used: AtomicU32,
    _kept2: AtomicU32,
    /// Session ids given out, in ranges (see `claim`).
    pub(super) ids_used: AtomicU64,
    _kept3: [AtomicU64; 38],
}

/// Who writes a block. A table apart from the blocks, so that asking touches no block.
#[repr(C)]
#[derive(Debug)]
pub(super) struct LeaseSlot {
    /// An [`Owner`] word.
    pub(super) owner: AtomicU64,
    _kept: AtomicU64,
}

/// A generation's thread, as it stands in owner words; 0 is nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) generation: u32,
    pub(super) thread: u16,
}

impl Owner {
    pub(super) const NOBODY: u64 = 0;
    /// Set in every owner's word: generation 0, thread 0 is somebody.
    const TAKEN: u64 = 1 << 48;

    pub(super) fn word(self) -> u64 {
        Self::TAKEN | (u64::from(self.generation) << 16) | u64::from(self.thread)
    }

    pub(super) fn of(word: u64) -> Option<Self> {
        let owner = Self { generation: ((word >> 16) & 0xffff_ffff) as u32, thread: (word & 0xffff) as u16 };
        (owner.word() == word).then_some(owner)
    }
}

/// Words at the start of each block that belong to the thread as a whole. The first is the id of the session it works on.
const BLOCK_HEAD: usize = 8;
const CACHE_LINE: usize = 64;
const WORDS_OF_LINE: usize = CACHE_LINE / size_of::<u64>();
const PAGE: usize = 4096;
/// A segment is mapped whole; 1 TiB leaves room for many in 47 bits of address space.
pub(super) const MOST_BYTES: u64 = 1 << 40;

/// Where the parts of a segment of given sizes begin, in bytes; fits by construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) sizes: Sizes,
    pub(super) leases_at: usize,
    pub(super) names_at: usize,
    pub(super) records_at: usize,
    pub(super) cells_at: usize,
    /// Words from one block to the next.
    pub(super) block_words: usize,
    pub(super) bytes: usize,
}

impl Layout {
    pub(super) fn of(sizes: Sizes) -> Result<Self, LedgerError> {
        if sizes.each(Sizes::MOST, u32::min) != sizes {
            return Err(LedgerError::TooLarge);
        }
        let leases_at = size_of::<Header>();
        let names_at = after::<LeaseSlot>(leases_at, sizes.blocks);
        let records_at = after::<NameSlot>(names_at, sizes.names);
        let cells_at = after::<RecordSlot>(records_at, sizes.records);
        let block_words = BLOCK_HEAD + sizes.counters as usize + sizes.gauges as usize;
        let block_words = block_words.next_multiple_of(WORDS_OF_LINE);
        let cells = block_words * sizes.blocks as usize * size_of::<u64>();
        let bytes = (cells_at + cells).next_multiple_of(PAGE);
        if bytes as u64 > MOST_BYTES {
            return Err(LedgerError::TooLarge);
        }
        Ok(Self { sizes, leases_at, names_at, records_at, cells_at, block_words, bytes })
    }

    /// Words of the cells of all blocks.
    pub(super) fn cells(&self) -> usize {
        self.block_words * self.sizes.blocks as usize
    }

    /// Start of a block, in words from `cells_at`.
    pub(super) fn head_of(&self, block: u32) -> usize {
        self.block_words * block as usize
    }

    /// First counter of a block, in words from `cells_at`.
    pub(super) fn counters_of(&self, block: u32) -> usize {
        self.head_of(block) + BLOCK_HEAD
    }

    /// First gauge of a block, in words from `cells_at`.
    pub(super) fn gauges_of(&self, block: u32) -> usize {
        self.counters_of(block) + self.sizes.counters as usize
    }

    /// Reads what a peer says about a segment of `bytes` bytes; gives also its index in the chain.
    pub(super) fn parse(header: &[u8; size_of::<Header>()], bytes: u64) -> Result<(Self, u32), LedgerError> {
        if word(header, offset_of!(Header, magic)) != MAGIC {
            return Err(LedgerError::NotASegment("it does not begin with the magic number"));
        }
        let found = half(header, offset_of!(Header, layout));
        if !LAYOUTS.contains(&found) {
            return Err(LedgerError::UnknownLayout { found });
        }
        let layout = Self::of(Sizes {
            names: half(header, offset_of!(Header, names)),
            counters: half(header, offset_of!(Header, counters)),
            gauges: half(header, offset_of!(Header, gauges)),
            blocks: half(header, offset_of!(Header, blocks)),
            records: half(header, offset_of!(Header, records)),
        })?;
        if layout.offsets() != Header::OFFSETS.map(|at| word(header, at)) || layout.bytes as u64 != bytes {
            return Err(LedgerError::NotASegment("its offsets or its length do not follow from its sizes"));
        }
        Ok((layout, half(header, offset_of!(Header, index))))
    }

    fn offsets(&self) -> [u64; 5] {
        [self.leases_at, self.names_at, self.records_at, self.cells_at, self.bytes].map(|at| at as u64)
    }
}

impl Header {
    const OFFSETS: [usize; 5] = [
        offset_of!(Self, leases_at),
        offset_of!(Self, names_at),
        offset_of!(Self, records_at),
        offset_of!(Self, cells_at),
        offset_of!(Self, bytes),
    ];

    /// Fills in a new segment's header, before anyone else has it.
    pub(super) fn write(&self, index: u32, layout: &Layout) {
        let Sizes { names, counters, gauges, blocks, records } = layout.sizes;
        self.magic.store(MAGIC, Relaxed);
        self.layout.store(LAYOUT, Relaxed);
        self.index.store(index, Relaxed);
        self.names.store(names, Relaxed);
        self.counters.store(counters, Relaxed);
        self.gauges.store(gauges, Relaxed);
        self.blocks.store(blocks, Relaxed);
        self.records.store(records, Relaxed);
        let places = [&self.leases_at, &self.names_at, &self.records_at, &self.cells_at, &self.bytes];
        for (place, at) in places.into_iter().zip(layout.offsets()) {
            place.store(at, Relaxed);
        }
    }
}

/// Where the next part begins after `count` of `T` from `at`. Whole pages, so that the parts do not share one.
fn after<T>(at: usize, count: u32) -> usize {
    debug_assert_eq!(at % align_of::<T>(), 0);
    (at + size_of::<T>() * count as usize).next_multiple_of(PAGE)
}

fn word(header: &[u8; size_of::<Header>()], at: usize) -> u64 {
    u64::from_ne_bytes(std::array::from_fn(|i| header[at + i]))
}

fn half(header: &[u8; size_of::<Header>()], at: usize) -> u32 {
    u32::from_ne_bytes(std::array::from_fn(|i| header[at + i]))
}
