//! Names: what is counted, and which cells of every block are its own.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::error::LedgerError;
use super::layout::Sizes;

/// A thing that is counted. `kind` and `text` are the caller's; together they identify it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameSpec {
    pub kind: u16,
    /// At most 255 bytes; several labels are joined by the caller.
    pub text: String,
    /// Cells it needs in every block.
    pub counters: u32,
    pub gauges: u32,
}

/// Index of a name in its segment; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(pub u32);

const TEXT_MOST: usize = 255;
const TEXT_WORDS: usize = 32;
/// Far above what one name counts; it bounds what a reader allocates for one.
const CELLS_MOST: u32 = 4096;

impl NameSpec {
    pub(super) fn check(&self) -> Result<(), LedgerError> {
        let Self { counters, gauges, .. } = *self;
        if self.text.len() > TEXT_MOST {
            let start = self.text.chars().take(40).collect();
            return Err(LedgerError::NameTooLong { bytes: self.text.len(), start });
        }
        if counters > CELLS_MOST || gauges > CELLS_MOST {
            return Err(LedgerError::TooManyCells { counters, gauges, most: CELLS_MOST });
        }
        Ok(())
    }
}

/// A name in shared memory: written by the keeper, complete once `names_published` is above it, then unchanged.
#[repr(C)]
#[derive(Debug)]
pub(super) struct NameSlot {
    /// Kind in the upper half, bytes of text in the lower.
    kind_and_length: AtomicU32,
    first_counter: AtomicU32,
    counters: AtomicU32,
    first_gauge: AtomicU32,
    gauges: AtomicU32,
    _kept: AtomicU32,
    text: [AtomicU64; TEXT_WORDS],
}

/// The cells of one name, counted from the first of a block; within the block by construction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cells {
    pub(super) counters: Range<u32>,
    pub(super) gauges: Range<u32>,
}

impl NameSlot {
    pub(super) fn write(&self, spec: &NameSpec, cells: &Cells) {
        let text = spec.text.as_bytes();
        let length = u32::try_from(text.len()).expect("checked to be at most 255");
        self.kind_and_length.store(u32::from(spec.kind) << 16 | length, Relaxed);
        self.first_counter.store(cells.counters.start, Relaxed);
        self.counters.store(spec.counters, Relaxed);
        self.first_gauge.store(cells.gauges.start, Relaxed);
        self.gauges.store(spec.gauges, Relaxed);
        for (word, bytes) in self.text.iter().zip(text.chunks(size_of::<u64>())) {
            let mut padded = [0; size_of::<u64>()];
            padded[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(padded), Relaxed);
        }
    }

    /// `None`: they do not fit a block of these sizes.
    pub(super) fn cells(&self, sizes: &Sizes) -> Option<Cells> {
        let range = |first: &AtomicU32, count: &AtomicU32, most: u32| {
            let (first, count) = (first.load(Relaxed), count.load(Relaxed));
            let end = first.checked_add(count)?;
            (count <= CELLS_MOST && end <= most).then_some(first..end)
        };
        Some(Cells {
            counters: range(&self.first_counter, &self.counters, sizes.counters)?,
            gauges: range(&self.first_gauge, &self.gauges, sizes.gauges)?,
        })
    }

    fn kind_and_text(&self) -> Option<(u16, Arc<str>)> {
        let both = self.kind_and_length.load(Relaxed);
        let mut bytes = [0; TEXT_WORDS * size_of::<u64>()];
        let text = bytes.get_mut(..(both & 0xffff) as usize)?;
        for (word, bytes) in self.text.iter().zip(text.chunks_mut(size_of::<u64>())) {
            bytes.copy_from_slice(&word.load(Relaxed).to_ne_bytes()[..bytes.len()]);
        }
        Some(((both >> 16) as u16, std::str::from_utf8(text).ok()?.into()))
    }
}

/// This process' copy of the published names of one segment; published names never change, so it only grows.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    /// By index; `None` for what is no valid name.
    all: Vec<Option<Entry>>,
    by_kind: HashMap<u16, HashMap<Arc<str>, Name>>,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) kind: u16,
    pub(super) text: Arc<str>,
    pub(super) cells: Cells,
}

impl Names {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn extend(&mut self, slots: &[NameSlot], sizes: &Sizes) {
        for slot in slots {
            let index = u32::try_from(self.all.len()).expect("at most as many as slots, which a u32 counts");
            let entry =
                slot.kind_and_text().zip(slot.cells(sizes)).map(|((kind, text), cells)| Entry { kind, text, cells });
            if let Some(Entry { kind, text, .. }) = &entry {
                let texts = self.by_kind.entry(*kind).or_default();
                texts.entry(Arc::clone(text)).or_insert(Name(index));
            }
            self.all.push(entry);
        }
    }

    pub(super) fn find(&self, kind: u16, text: &str) -> Option<Name> {
        self.by_kind.get(&kind)?.get(text).copied()
    }

    pub(super) fn entry(&self, name: Name) -> Option<&Entry> {
        self.all.get(name.0 as usize)?.as_ref()
    }

    /// Valid names, in the order they came.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.all.iter().flatten()
    }

    /// Cells that are given to a name already: all below these ends.
    pub(super) fn ends(&self) -> Cells {
        let (mut counters, mut gauges) = (0, 0);
        for entry in self.entries() {
            counters = counters.max(entry.cells.counters.end);
            gauges = gauges.max(entry.cells.gauges.end);
        }
        Cells { counters: 0..counters, gauges: 0..gauges }
    }
}
