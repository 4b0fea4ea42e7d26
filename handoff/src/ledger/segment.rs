//! One segment of the chain: made by the keeper, opened by workers, and what both may ask of it.

use std::mem::size_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, fence};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags};

use super::error::LedgerError;
use super::layout::{Header, Layout, MOST_BYTES, Owner, Sizes};
use super::map::Map;
use super::name::{Cells, Name, NameSpec, Names};
use super::slot::RecordSlot;

/// One sealed memfd, mapped. Self-contained: names, counter blocks and records refer to each other only within it.
#[derive(Debug)]
pub struct Segment {
    map: Map,
    index: u32,
    /// Kept: a new keeper is given the ledger by the workers of the old one.
    fd: OwnedFd,
    names: Mutex<Arc<Names>>,
}

/// A segment's size is for ever, so that no holder can take mapped pages away from another.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

impl Segment {
    /// Maps a segment received from the keeper; refuses what is not sealed, not of a known layout, or of impossible sizes.
    pub fn open(fd: OwnedFd) -> Result<Self, LedgerError> {
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(LedgerError::system("read the seals of a segment"))?;
        if !seals.contains(SEALS) {
            return Err(LedgerError::NotASegment("its size is not sealed"));
        }
        let size = rustix::fs::fstat(&fd).map_err(LedgerError::system("read the size of a segment"))?.st_size;
        let size = u64::try_from(size).unwrap_or(u64::MAX);
        if size < size_of::<Header>() as u64 || size > MOST_BYTES {
            return Err(LedgerError::NotASegment("its length is impossible"));
        }
        let mut header = [0; size_of::<Header>()];
        let read = rustix::io::pread(&fd, &mut header, 0).map_err(LedgerError::system("read a segment's header"))?;
        if read != header.len() {
            return Err(LedgerError::NotASegment("its header is cut short"));
        }
        let (layout, index) = Layout::parse(&header, size)?;
        Ok(Self { map: Map::new(&fd, layout)?, index, fd, names: Mutex::default() })
    }

    pub(super) fn create(index: u32, sizes: Sizes) -> Result<Self, LedgerError> {
        let layout = Layout::of(sizes)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("proxyd-ledger", flags).map_err(LedgerError::system("make a memfd"))?;
        rustix::fs::ftruncate(&fd, layout.bytes as u64).map_err(LedgerError::system("size a memfd"))?;
        rustix::fs::fcntl_add_seals(&fd, SEALS).map_err(LedgerError::system("seal a memfd"))?;
        let map = Map::new(&fd, layout)?;
        map.header().write(index, &layout);
        Ok(Self { map, index, fd, names: Mutex::default() })
    }

    /// Position in the chain, from 0.
    pub fn index(&self) -> u32 {
        self.index
    }

    pub fn sizes(&self) -> Sizes {
        self.map.layout().sizes
    }

    /// What to hand to another process.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn find(&self, kind: u16, text: &str) -> Option<Name> {
        self.names().find(kind, text)
    }

    /// Sum of a gauge cell over all leased blocks, after a SeqCst fence: with [`Gauges::raise`](super::Gauges::raise) before
    /// it, an exact limit. Of two threads that raise their own cell and then sum, the fences let at least one see the other.
    pub fn gauge_sum(&self, name: Name, cell: u32) -> u64 {
        fence(SeqCst);
        let gauges = self.cells_of(name).gauges;
        let Some(at) = gauges.start.checked_add(cell).filter(|at| gauges.contains(at)) else { return 0 };
        self.leased()
            .filter_map(|block| self.word(self.map.layout().gauges_of(block) + at as usize))
            .fold(0, |sum, gauge| sum.wrapping_add(gauge.load(Relaxed)))
    }

    pub(super) fn map(&self) -> &Map {
        &self.map
    }

    pub(super) fn layout(&self) -> &Layout {
        self.map.layout()
    }

    /// A word of the blocks, by its place among all of them.
    #[inline]
    pub(super) fn word(&self, at: usize) -> Option<&AtomicU64> {
        self.map.cells().get(at)
    }

    /// The session that the thread of a block works on.
    #[inline]
    pub(super) fn working(&self, block: u32) -> Option<&AtomicU64> {
        self.word(self.layout().head_of(block))
    }

    /// The cells of a name in any block; none for an index that is not a published name.
    pub(super) fn cells_of(&self, name: Name) -> Cells {
        let published = self.map.header().names_published.load(Acquire);
        let slot = self.map.names().get(name.0 as usize).filter(|_| name.0 < published);
        slot.and_then(|slot| slot.cells(&self.layout().sizes)).unwrap_or_default()
    }

    /// All names published by now.
    pub(super) fn names(&self) -> Arc<Names> {
        // A panic under this lock can only come from a failed allocation in `extend`, which leaves a shorter list.
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let published = self.map.header().names_published.load(Acquire) as usize;
        let published = self.map.names().get(names.len()..published).unwrap_or_default();
        if !published.is_empty() {
            Arc::make_mut(&mut names).extend(published, &self.layout().sizes);
        }
        Arc::clone(&names)
    }

    /// Writes names that are known to fit. The keeper only.
    pub(super) fn publish(&self, specs: &[NameSpec]) {
        let known = self.names();
        let Cells { mut counters, mut gauges } = known.ends();
        let first = known.len();
        for (slot, spec) in self.map.names().iter().skip(first).zip(specs) {
            counters = counters.end..counters.end + spec.counters;
            gauges = gauges.end..gauges.end + spec.gauges;
            slot.write(spec, &Cells { counters: counters.clone(), gauges: gauges.clone() });
        }
        let published = u32::try_from(first + specs.len()).expect("as many as fit, which a u32 counts");
        self.map.header().names_published.store(published, Release);
    }

    /// Blocks that were leased at least once.
    pub(super) fn used(&self) -> std::ops::Range<u32> {
        0..self.map.header().blocks_used.load(Relaxed).min(self.layout().sizes.blocks)
    }

    /// Blocks that somebody writes.
    pub(super) fn leased(&self) -> impl Iterator<Item = u32> {
        let leases = self.map.leases();
        self.used().filter(|&block| leases[block as usize].owner.load(Acquire) != Owner::NOBODY)
    }

    /// One of them.
    pub(super) fn used_record(&self, index: u32) -> Option<&RecordSlot> {
        self.used_records().get(index as usize)
    }

    /// Records that were claimed at least once; the memory of the others was never touched.
    pub(super) fn used_records(&self) -> &[RecordSlot] {
        let records = self.map.records();
        let used = self.map.header().records_used.load(Acquire) as usize;
        &records[..used.min(records.len())]
    }

    /// Takes a free block for `owner`, its counters as they are.
    pub(super) fn lease(&self, owner: Owner) -> Result<u32, LedgerError> {
        let blocks = self.layout().sizes.blocks;
        for (block, lease) in (0..blocks).zip(self.map.leases()) {
            if lease.owner.compare_exchange(Owner::NOBODY, owner.word(), Acquire, Relaxed).is_ok() {
                self.map.header().blocks_used.fetch_max(block + 1, SeqCst);
                if let Some(working) = self.working(block) {
                    working.store(0, Relaxed);
                }
                return Ok(block);
            }
        }
        Err(LedgerError::NoBlock { segment: self.index, blocks })
    }

    /// As [`Self::lease`], where a generation gets no more than its share: its first block if there is one, and then half of
    /// those that others have left. For a segment that new sessions no longer go to: each later generation that is given
    /// sessions of it needs a block there. (Of threads that ask at once some may get more.)
    pub(super) fn lease_share(&self, owner: Owner) -> Result<u32, LedgerError> {
        let words = self.map.leases().iter().map(|lease| lease.owner.load(Relaxed));
        let (mut own, mut free) = (0, 0);
        for word in words {
            own += usize::from(Owner::of(word).is_some_and(|other| other.generation == owner.generation));
            free += usize::from(word == Owner::NOBODY);
        }
        if own > 0 && own >= (own + free) / 2 {
            return Err(LedgerError::NoShare { segment: self.index });
        }
        self.lease(owner)
    }

    /// Gives a block back: gauges are the writer's own and end with it, counters stay for the next.
    pub(super) fn release(&self, block: u32) {
        let first = self.layout().gauges_of(block);
        let gauges = self.names().ends().gauges;
        for gauge in gauges.filter_map(|at| self.word(first + at as usize)) {
            // Looked at first: most are 0, and a store would make the page and the line ours.
            if gauge.load(Relaxed) != 0 {
                gauge.store(0, Relaxed);
            }
        }
        if let Some(lease) = self.map.leases().get(block as usize) {
            lease.owner.store(Owner::NOBODY, Release);
        }
    }
}
