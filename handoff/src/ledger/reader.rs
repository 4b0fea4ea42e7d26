//! Reading while others write: the table of live sessions, and the sums of all counters.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::name::{Entry, Name, Names};
use super::segment::Segment;
use super::slot::{Fields, Phase};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSnapshot {
    pub id: u64,
    pub generation: u32,
    pub thread: u16,
    pub listener: String,
    pub pool: String,
    /// Empty while connecting.
    pub backend: String,
    pub phase: Phase,
    /// `None` for a Unix socket.
    pub client: Option<SocketAddr>,
    pub backend_address: Option<SocketAddr>,
    /// Microseconds since 1970.
    pub opened_unix_us: u64,
    /// CLOCK_MONOTONIC, milliseconds: comparable between processes.
    pub opened_ms: u64,
    pub last_byte_ms: u64,
    /// From the client.
    pub received: u64,
    /// To the client.
    pub sent: u64,
    /// -1: not known.
    pub unsent_to_client: i64,
    pub unsent_to_backend: i64,
    /// The caller's word; 0: none yet.
    pub reason: u16,
    /// The caller's word for whether it outlives its process; 0: none.
    pub protection: u8,
    /// The caller's; of no meaning without a protection.
    pub marks: u64,
}

/// Live sessions, each read whole under its sequence number.
pub fn sessions(segments: &[Arc<Segment>]) -> Vec<SessionSnapshot> {
    let mut found = Vec::new();
    for segment in segments {
        let read: Vec<Fields> = segment.used_records().iter().filter_map(|slot| slot.read()).collect();
        // After the records: every name that one of them uses is published by now.
        let names = segment.names();
        found.extend(read.into_iter().map(|fields| SessionSnapshot::of(fields, &names)));
    }
    found
}

impl SessionSnapshot {
    pub(super) fn of(fields: Fields, names: &Names) -> Self {
        let text = |name: Name| names.entry(name).map_or_else(String::new, |entry| entry.text.to_string());
        Self {
            id: fields.id,
            generation: fields.owner.generation,
            thread: fields.owner.thread,
            listener: text(fields.listener),
            pool: text(fields.pool),
            backend: fields.backend.map_or_else(String::new, text),
            phase: fields.phase,
            client: fields.client,
            backend_address: fields.backend_address,
            opened_unix_us: fields.opened_unix_us,
            opened_ms: fields.opened_ms,
            last_byte_ms: fields.last_byte_ms,
            received: fields.received,
            sent: fields.sent,
            unsent_to_client: fields.unsent_to_client,
            unsent_to_backend: fields.unsent_to_backend,
            reason: fields.reason,
            protection: fields.protection,
            marks: fields.marks,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameTotals {
    pub kind: u16,
    pub text: String,
    pub counters: Vec<u64>,
    pub gauges: Vec<u64>,
}

/// Every name once, cells summed over blocks and segments: counters over every block that was ever leased, gauges over
/// those that are leased now. In the order in which names were made.
pub fn totals(segments: &[Arc<Segment>]) -> Vec<NameTotals> {
    let mut totals: Vec<NameTotals> = Vec::new();
    let mut places: HashMap<(u16, Arc<str>), usize> = HashMap::new();
    for segment in segments {
        let names = segment.names();
        let leased: Vec<u32> = segment.leased().collect();
        totals.reserve(names.len());
        places.reserve(names.len());
        for entry in names.entries() {
            let place = *places.entry((entry.kind, Arc::clone(&entry.text))).or_insert_with(|| {
                totals.push(NameTotals::empty(entry));
                totals.len() - 1
            });
            totals[place].take_in(segment, entry, &leased);
        }
    }
    totals
}

impl NameTotals {
    fn empty(entry: &Entry) -> Self {
        Self { kind: entry.kind, text: entry.text.to_string(), counters: Vec::new(), gauges: Vec::new() }
    }

    fn take_in(&mut self, segment: &Segment, entry: &Entry, leased: &[u32]) {
        let layout = segment.layout();
        widen(&mut self.counters, &entry.cells.counters);
        for block in segment.used() {
            take_in(&mut self.counters, segment, layout.counters_of(block), &entry.cells.counters);
        }
        widen(&mut self.gauges, &entry.cells.gauges);
        for &block in leased {
            take_in(&mut self.gauges, segment, layout.gauges_of(block), &entry.cells.gauges);
        }
    }
}

fn widen(sums: &mut Vec<u64>, cells: &Range<u32>) {
    let wanted = sums.len().max(cells.len());
    sums.resize(wanted, 0);
}

fn take_in(sums: &mut [u64], segment: &Segment, first: usize, cells: &Range<u32>) {
    let words = segment.map().cells();
    let words = words.get(first + cells.start as usize..first + cells.end as usize).unwrap_or_default();
    for (sum, word) in sums.iter_mut().zip(words) {
        *sum = sum.wrapping_add(word.load(Relaxed));
    }
}
