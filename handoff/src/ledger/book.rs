//! The keeper's hold on the ledger: it makes segments, writes names, and buries the dead.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::error::LedgerError;
use super::layout::{Owner, Sizes};
use super::name::{NameSpec, Names};
use super::reader::SessionSnapshot;
use super::record::Place;
use super::segment::Segment;
use super::slot::{Phase, RecordSlot};

/// The keeper's hold on all segments. (A clone holds those that there were by then.)
#[derive(Debug, Clone)]
pub struct Ledger {
    /// At least one.
    segments: Vec<Arc<Segment>>,
}

/// Whose a session is, and how far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whereabouts {
    pub generation: u32,
    pub phase: Phase,
    /// The caller's word; 0: none yet.
    pub reason: u16,
    /// The caller's word; 0: none.
    pub protection: u8,
}

/// Who serves. Generations count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Noted {
    pub serving: Option<u32>,
    pub standby: Option<u32>,
}

/// Session ids count segments (see `claim`), and stay below 2^53 with so many.
const SEGMENTS_MOST: usize = 900;

impl Ledger {
    pub fn create(first: Sizes) -> Result<Self, LedgerError> {
        Ok(Self { segments: vec![Arc::new(Segment::create(0, first)?)] })
    }

    /// The ledger of an earlier keeper, from all its segments in order.
    pub fn open(descriptors: Vec<OwnedFd>) -> Result<Self, LedgerError> {
        let mut segments = Vec::with_capacity(descriptors.len());
        for (place, fd) in descriptors.into_iter().enumerate() {
            let segment = Segment::open(fd)?;
            if segment.index() as usize != place {
                return Err(LedgerError::OutOfOrder { place, found: segment.index() });
            }
            segments.push(Arc::new(segment));
        }
        match segments.len() {
            0 => Err(LedgerError::NotASegment("there is none")),
            many if many > SEGMENTS_MOST => Err(LedgerError::ChainFull(many)),
            _ => Ok(Self { segments }),
        }
    }

    /// Takes a segment that another keeper has added.
    pub fn add(&mut self, fd: OwnedFd) -> Result<Arc<Segment>, LedgerError> {
        let segment = Arc::new(Segment::open(fd)?);
        if segment.index() as usize != self.segments.len() {
            return Err(LedgerError::OutOfOrder { place: self.segments.len(), found: segment.index() });
        }
        self.segments.push(segment.clone());
        Ok(segment)
    }

    /// All segments in order; the last is the one that new names and sessions go to.
    pub fn segments(&self) -> &[Arc<Segment>] {
        &self.segments
    }

    pub fn descriptor(&self, index: u32) -> Option<BorrowedFd<'_>> {
        self.segments.get(index as usize).map(|segment| segment.descriptor())
    }

    /// Makes sure that all these names are in the last segment and that it has room for `blocks` more leases and
    /// `records` more sessions; else adds a segment (twice the size asked for) that has all of them. True: a segment was added,
    /// which every worker must be given before it is told of the new names. On failure nothing has changed.
    pub fn ensure(&mut self, names: &[NameSpec], blocks: u32, records: u32) -> Result<bool, LedgerError> {
        self.ensure_roomy(names, blocks, records, Sizes::default())
    }

    /// As [`Self::ensure`]; a segment that is added is at least `least` large, as far as a segment can be.
    pub fn ensure_roomy(
        &mut self,
        names: &[NameSpec],
        blocks: u32,
        records: u32,
        least: Sizes,
    ) -> Result<bool, LedgerError> {
        names.iter().try_for_each(NameSpec::check)?;
        let last = self.last();
        if let Some(missing) = missing(&last.names(), names)
            && fits(last, &missing, blocks, records)
        {
            if !missing.is_empty() {
                last.publish(&missing);
            }
            return Ok(false);
        }
        let segment = self.grow(&distinct(names.iter()), blocks, records, least)?;
        self.segments.push(Arc::new(segment));
        Ok(true)
    }

    /// After the death of a generation: hands each session it still had to `each` (the keeper counts and logs them), frees its
    /// records, clears its gauges, and releases its blocks for others, their counters as they are.
    pub fn bury(&self, generation: u32, each: &mut dyn FnMut(&SessionSnapshot)) {
        self.bury_but(generation, &|_| false, each);
    }

    /// As [`Self::bury`], but established sessions with an id that `keep` knows stay with their dead owner, until they are
    /// given to a living one ([`Self::give`]) or ended ([`Self::bury_one`]).
    pub fn bury_but(&self, generation: u32, keep: &dyn Fn(u64) -> bool, each: &mut dyn FnMut(&SessionSnapshot)) {
        let dead = |word| Owner::of(word).is_some_and(|owner| owner.generation == generation);
        for segment in &self.segments {
            let names = segment.names();
            for slot in segment.used_records().iter().filter(|slot| dead(slot.owner())) {
                match slot.remains() {
                    Some(fields) if fields.phase == Phase::Established && keep(fields.id) => slot.settle(),
                    _ => bury_record(slot, &names, each),
                }
            }
            // All leases, not only those of used blocks: its thread may have died before it said that it uses one.
            for (block, lease) in (0..).zip(segment.map().leases()) {
                if dead(lease.owner.load(Acquire)) {
                    segment.release(block);
                }
            }
        }
    }

    /// The session in a record, whoever owns it. `None`: the record is free, or another session's.
    pub fn look(&self, place: Place, id: u64) -> Option<SessionSnapshot> {
        let segment = self.segments.get(place.segment as usize)?;
        let fields = segment.used_record(place.index)?.read().filter(|fields| fields.id == id)?;
        // After the record: see `sessions`.
        Some(SessionSnapshot::of(fields, &segment.names()))
    }

    /// [`Self::look`] for what costs least, and is right of a dead owner's too.
    pub fn whereabouts(&self, place: Place, id: u64) -> Option<Whereabouts> {
        let slot = self.slot(place)?;
        let (owner, phase, reason) = slot.standing(id)?;
        Some(Whereabouts { generation: owner.generation, phase, reason, protection: slot.protection(id) })
    }

    /// Gives an established session of a dead owner to a thread of a living generation, which has adopted it. False, and
    /// nothing has happened: it is no longer there, or no longer `from`'s.
    pub fn give(&self, place: Place, id: u64, from: u32, to: (u32, u16)) -> bool {
        let Some(slot) = self.slot(place) else { return false };
        let word = slot.owner();
        let is_theirs = Owner::of(word).is_some_and(|owner| owner.generation == from);
        let is_there = slot.remains().is_some_and(|left| left.id == id && left.phase == Phase::Established);
        if !is_theirs || !is_there {
            return false;
        }
        slot.settle();
        slot.give_for(word, Owner { generation: to.0, thread: to.1 })
    }

    /// Ends one session of a dead owner, as [`Self::bury`] does. False, and nothing has happened: it is no longer there.
    /// The caller knows that its owner is dead.
    pub fn bury_one(&self, place: Place, id: u64, each: &mut dyn FnMut(&SessionSnapshot)) -> bool {
        let Some(segment) = self.segments.get(place.segment as usize) else { return false };
        let Some(slot) = segment.used_record(place.index).filter(|slot| slot.id() == id) else { return false };
        bury_record(slot, &segment.names(), each);
        true
    }

    /// The sessions that the threads of a generation worked on last, each once. To be asked before it is buried.
    pub fn worked_on(&self, generation: u32) -> Vec<u64> {
        self.worked_on_by(generation, |_| true)
    }

    /// As [`Self::worked_on`], of some threads.
    pub fn worked_on_by(&self, generation: u32, is_meant: impl Fn(u16) -> bool) -> Vec<u64> {
        let mut ids = BTreeSet::new();
        for segment in &self.segments {
            let leases = segment.map().leases();
            let theirs = |block: &u32| {
                let owner = leases.get(*block as usize).and_then(|lease| Owner::of(lease.owner.load(Acquire)));
                owner.is_some_and(|owner| owner.generation == generation && is_meant(owner.thread))
            };
            let words = segment.used().filter(theirs).filter_map(|block| segment.working(block));
            ids.extend(words.map(|word| word.load(Relaxed)).filter(|id| *id != 0));
        }
        ids.into_iter().collect()
    }

    /// Every generation that has a block or a session's record, alive or not. (0 is the keeper's own.)
    pub fn owners(&self) -> BTreeSet<u32> {
        let mut owners = BTreeSet::new();
        for segment in &self.segments {
            let leases = segment.map().leases().iter().map(|lease| lease.owner.load(Acquire));
            let words = leases.chain(segment.used_records().iter().map(RecordSlot::owner));
            owners.extend(words.filter_map(Owner::of).map(|owner| owner.generation));
        }
        owners
    }

    /// Writes down which generation serves, and which one would serve in its place: one store, so that whoever reads it later
    /// finds both as they were at one moment.
    pub fn note(&self, noted: Noted) {
        let both = u64::from(noted.serving.unwrap_or(0)) << 32 | u64::from(noted.standby.unwrap_or(0));
        self.first().map().header().noted.store(both, Release);
    }

    /// What was written down last, by this keeper or an earlier one.
    pub fn noted(&self) -> Noted {
        let both = self.first().map().header().noted.load(Acquire);
        let generation = |half: u64| u32::try_from(half).ok().filter(|generation| *generation != 0);
        Noted { serving: generation(both >> 32), standby: generation(both & 0xffff_ffff) }
    }

    fn slot(&self, place: Place) -> Option<&RecordSlot> {
        self.segments.get(place.segment as usize)?.used_record(place.index)
    }

    fn first(&self) -> &Segment {
        self.segments.first().expect("a ledger has a segment from the start")
    }

    fn last(&self) -> &Segment {
        self.segments.last().expect("a ledger has a segment from the start")
    }

    fn grow(&self, names: &[NameSpec], blocks: u32, records: u32, least: Sizes) -> Result<Segment, LedgerError> {
        let index = self.segments.len();
        if index >= SEGMENTS_MOST {
            return Err(LedgerError::ChainFull(index));
        }
        let index = u32::try_from(index).map_err(|_| LedgerError::ChainFull(index))?;
        let need = Sizes { blocks, records, ..needs(names).ok_or(LedgerError::TooLarge)? };
        let segment = Segment::create(index, roomy(need, self.last().sizes().each(least, u32::max)))?;
        segment.publish(names);
        Ok(segment)
    }
}

fn bury_record(slot: &RecordSlot, names: &Names, each: &mut dyn FnMut(&SessionSnapshot)) {
    // A closed session was counted by its worker, and one that was claimed but not yet written had done nothing.
    if let Some(fields) = slot.remains().filter(|fields| fields.phase != Phase::Closed) {
        each(&SessionSnapshot::of(fields, names));
    }
    slot.free();
}

/// Names that are not there, each once. `None`: one that is there needs more cells than it has.
fn missing(known: &Names, wanted: &[NameSpec]) -> Option<Vec<NameSpec>> {
    let mut missing = Vec::new();
    for spec in wanted {
        let entry = known.find(spec.kind, &spec.text).and_then(|name| known.entry(name));
        match entry.map(|entry| (entry.cells.counters.len(), entry.cells.gauges.len())) {
            None => missing.push(spec),
            Some((counters, gauges)) if spec.counters as usize > counters || spec.gauges as usize > gauges => {
                return None;
            }
            Some(_) => {}
        }
    }
    Some(distinct(missing.into_iter()))
}

/// Each name once, with the most cells that it is asked for.
fn distinct<'a>(names: impl Iterator<Item = &'a NameSpec>) -> Vec<NameSpec> {
    let mut each: Vec<NameSpec> = Vec::new();
    let mut places: HashMap<(u16, &str), usize> = HashMap::new();
    for spec in names {
        let place = *places.entry((spec.kind, &spec.text)).or_insert_with(|| {
            each.push(spec.clone());
            each.len() - 1
        });
        let one = &mut each[place];
        one.counters = one.counters.max(spec.counters);
        one.gauges = one.gauges.max(spec.gauges);
    }
    each
}

/// What these names take. `None`: more than can be numbered.
fn needs(names: &[NameSpec]) -> Option<Sizes> {
    let mut need = Sizes { names: u32::try_from(names.len()).ok()?, counters: 0, gauges: 0, blocks: 0, records: 0 };
    for spec in names {
        need.counters = need.counters.checked_add(spec.counters)?;
        need.gauges = need.gauges.checked_add(spec.gauges)?;
    }
    Some(need)
}

fn fits(segment: &Segment, names: &[NameSpec], blocks: u32, records: u32) -> bool {
    let Some(need) = needs(names) else { return false };
    let (known, sizes) = (segment.names(), segment.sizes());
    let ends = known.ends();
    let used = segment.used_records();
    let taken = used.iter().filter(|slot| slot.owner() != Owner::NOBODY).count();
    let leased = segment.map().leases().iter().filter(|lease| lease.owner.load(Acquire) != Owner::NOBODY).count();
    known.len() + need.names as usize <= sizes.names as usize
        && ends.counters.len() + need.counters as usize <= sizes.counters as usize
        && ends.gauges.len() + need.gauges as usize <= sizes.gauges as usize
        && leased + blocks as usize <= sizes.blocks as usize
        && taken + records as usize <= sizes.records as usize
}

/// Twice the need, and no less than `least`, as far as a segment can have it.
fn roomy(need: Sizes, least: Sizes) -> Sizes {
    let double = need.each(need, u32::saturating_add);
    let roomy = double.each(least, u32::max).each(Sizes::MOST, u32::min);
    // What can be had is not cut to less than the need: then `create` refuses, and says why.
    roomy.each(need, u32::max)
}
