//! Where a thread finds its next free record and its next session id, normally without meeting another thread.
//!
//! **Records.** First those it freed itself; then, once in its life, it goes over what earlier threads left, a few at each
//! claim, so that memory does not grow with each generation; then fresh ones, a page at a time; and only when there is no
//! fresh one left it searches them all. None of this is a right: only the compare-and-swap on the owner word is.
//!
//! **Ids.** Unique over all generations and segments, small decimal numbers from 1. Segment k has the numbers from
//! k * [`IDS_OF_SEGMENT`] + 1, so no writer needs any segment but its own; threads take ranges of them from its header.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use super::layout::Owner;
use super::segment::Segment;

/// Enough for 6 years at 50,000 sessions a second; a number that stays readable ("segment 2, session 17" is
/// 20000000000017); and 900 segments stay below 2^53, the largest whole number that every JSON reader keeps exact.
pub(super) const IDS_OF_SEGMENT: u64 = 10_000_000_000_000;
/// One atomic addition in so many sessions; an exiting thread wastes at most so many numbers.
const IDS_AT_ONCE: u64 = 256;
/// Records of one page.
const FRESH_AT_ONCE: u32 = 16;
/// Bounds what one claim pays for going over records that others left.
const LOOK_AT_ONCE: u32 = 4;

/// One thread's finds. All indexes are hints.
#[derive(Debug, Default)]
pub(super) struct Finds {
    freed: Vec<u32>,
    fresh: Range<u32>,
    /// Next to look at.
    cursor: u32,
    /// The first pass went over everything that was used.
    passed: bool,
    ids: Range<u64>,
}

impl Finds {
    /// A record that is now `owner`'s, and an id for its session. `None`: no record is free.
    pub(super) fn claim(&mut self, segment: &Segment, owner: Owner) -> Option<(u32, u64)> {
        let id = self.next_id(segment)?;
        let record = self
            .freed_here(segment, owner)
            .or_else(|| self.first_pass(segment, owner))
            .or_else(|| self.fresh(segment, owner))
            .or_else(|| self.search(segment, owner))?;
        self.ids.start += 1;
        Some((record, id))
    }

    pub(super) fn freed(&mut self, record: u32) {
        self.freed.push(record);
    }

    /// Not taken before a record is found.
    fn next_id(&mut self, segment: &Segment) -> Option<u64> {
        if self.ids.is_empty() {
            let start = segment.map().header().ids_used.fetch_add(IDS_AT_ONCE, Relaxed).checked_add(1)?;
            self.ids = start..start.checked_add(IDS_AT_ONCE)?;
        }
        // Beyond its last number would begin another segment's.
        let number = Some(self.ids.start).filter(|&number| number < IDS_OF_SEGMENT)?;
        (u64::from(segment.index()) * IDS_OF_SEGMENT).checked_add(number)
    }

    fn freed_here(&mut self, segment: &Segment, owner: Owner) -> Option<u32> {
        while let Some(record) = self.freed.pop() {
            if try_claim(segment, record, owner) {
                return Some(record);
            }
        }
        None
    }

    fn first_pass(&mut self, segment: &Segment, owner: Owner) -> Option<u32> {
        let used = segment.used_records().len();
        for _ in 0..LOOK_AT_ONCE {
            if self.passed || self.cursor as usize >= used {
                self.passed = true;
                return None;
            }
            let record = self.cursor;
            self.cursor += 1;
            if try_claim(segment, record, owner) {
                return Some(record);
            }
        }
        None
    }

    fn fresh(&mut self, segment: &Segment, owner: Owner) -> Option<u32> {
        loop {
            for record in self.fresh.by_ref() {
                if try_claim(segment, record, owner) {
                    return Some(record);
                }
            }
            self.fresh = take_fresh(segment)?;
        }
    }

    fn search(&mut self, segment: &Segment, owner: Owner) -> Option<u32> {
        let records = segment.layout().sizes.records;
        let start = self.cursor.min(records);
        let record = (start..records).chain(0..start).find(|&record| try_claim(segment, record, owner))?;
        self.cursor = record + 1;
        Some(record)
    }
}

fn take_fresh(segment: &Segment) -> Option<Range<u32>> {
    let records = segment.layout().sizes.records;
    let used = &segment.map().header().records_used;
    // The mark is raised before the claim: a claimed record is always below it, also if we die in between.
    let start = used
        .fetch_update(Relaxed, Relaxed, |used| {
            (used < records).then(|| used.saturating_add(FRESH_AT_ONCE).min(records))
        })
        .ok()?;
    Some(start..start.saturating_add(FRESH_AT_ONCE).min(records))
}

fn try_claim(segment: &Segment, record: u32, owner: Owner) -> bool {
    segment.map().records().get(record as usize).is_some_and(|slot| slot.claim(owner))
}
