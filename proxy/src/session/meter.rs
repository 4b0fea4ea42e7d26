//! What one session counts: handles into the ledger, taken once, so that a byte costs a few stores.

use std::cell::{OnceCell, Ref, RefCell};
use std::rc::Rc;

use handoff::ledger::{Counters, Place, Record};

use super::book::{BackendBook, ListenerBook};
use super::clock;
use super::relay::{Marks, Side};
use crate::observe::names::{self, process::Histogram};
use crate::observe::reason::{Cause, Protection, Reason};
use crate::pool::Backend;

#[derive(Debug)]
pub(super) struct Meter {
    id: u64,
    /// `None`: given to another worker, and nothing is counted any more.
    record: RefCell<Option<Record>>,
    listener: Rc<ListenerBook>,
    backend: OnceCell<Rc<BackendBook>>,
    opened_ms: u64,
}

impl Meter {
    /// A session is counted from its accept on.
    pub(super) fn open(record: Record, listener: Rc<ListenerBook>, opened_ms: u64) -> Self {
        listener.route.add(names::route::SESSIONS, 1);
        Self::adopted(record, listener, None, opened_ms)
    }

    /// One that was counted by another worker goes on counting here, once its record is ours.
    pub(super) fn adopted(
        record: Record,
        listener: Rc<ListenerBook>,
        backend: Option<Rc<BackendBook>>,
        opened_ms: u64,
    ) -> Self {
        let backend = backend.map_or_else(OnceCell::new, OnceCell::from);
        Self { id: record.id(), record: RefCell::new(Some(record)), listener, backend, opened_ms }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn place(&self) -> Option<Place> {
        self.record().map(|record| record.place())
    }

    pub(super) fn is_ours(&self) -> bool {
        self.record().is_some_and(|record| record.is_ours())
    }

    /// The last write: from here on the record is another thread's, and this meter counts nothing.
    pub(super) fn give(&self, generation: u32, thread: u16) {
        if let Some(record) = self.record.take() {
            record.give(generation, thread);
        }
    }

    /// Connected: `backend` has it from now on, which took so long.
    pub(super) fn established(&self, backend: &Backend, book: Rc<BackendBook>, connect_seconds: f64) {
        if let Some(record) = self.record() {
            record.established(book.name, backend.address);
        }
        book.counters.add(names::backend::SESSIONS, 1);
        observe(&self.listener.process, &names::process::CONNECT, connect_seconds);
        let _ = self.backend.set(book);
    }

    pub(super) fn read(&self, from: Side, n: usize) {
        let n = n as u64;
        if from == Side::Client {
            if let Some(record) = self.record() {
                record.received(n);
            }
            self.listener.counters.add(names::listener::RECEIVED, n);
            self.add_backend_bytes(n);
        }
    }

    pub(super) fn wrote(&self, to: Side, n: usize) {
        let n = n as u64;
        if to == Side::Client {
            if let Some(record) = self.record() {
                record.sent(n);
            }
            self.listener.counters.add(names::listener::SENT, n);
            self.add_backend_bytes(n);
        }
    }

    fn add_backend_bytes(&self, n: u64) {
        if let Some(backend) = self.backend.get() {
            backend.counters.add(names::backend::BYTES, n);
        }
    }

    /// Bytes from and to the client so far.
    pub(super) fn bytes(&self) -> (u64, u64) {
        self.record().map_or((0, 0), |record| (record.total_received(), record.total_sent()))
    }

    pub(super) fn touch(&self, now_ms: u64) {
        if let Some(record) = self.record() {
            record.touch(now_ms);
        }
    }

    pub(super) fn opened_ms(&self) -> u64 {
        self.opened_ms
    }

    pub(super) fn last_byte_ms(&self) -> u64 {
        self.record().map_or(0, |record| record.last_byte_ms())
    }

    /// What a close will lose; written before the close.
    pub(super) fn unsent(&self, to_client: i64, to_backend: i64) {
        if let Some(record) = self.record() {
            record.unsent(to_client, to_backend);
        }
    }

    pub(super) fn forced(&self, cause: Cause, unsent: u64) {
        self.listener.process.add(names::process::forced(cause), 1);
        self.listener.process.add(names::process::forced_unsent(cause), unsent);
    }

    /// Whether it outlives this process; in the record, for whoever reads it.
    pub(super) fn protect(&self, protection: Protection) {
        if let Some(record) = self.record() {
            record.protect(protection.code());
        }
    }

    pub(super) fn protection(&self) -> Option<Protection> {
        Protection::of_code(self.record()?.protection())
    }

    pub(super) fn mark(&self, marks: Marks) {
        if let Some(record) = self.record() {
            record.mark(marks.word());
        }
    }

    /// While it is worked on: a crash of this thread is blamed on it.
    #[inline]
    pub(super) fn works(&self, works: bool) {
        if let Some(record) = self.record() {
            record.works(works);
        }
    }

    /// Counts the end. Who reads the record knows from its reason that this is done.
    pub(super) fn closed(&self, reason: Reason) {
        self.listener.counters.add(names::listener::closed(reason), 1);
        let age = clock::coarse_ms().saturating_sub(self.opened_ms);
        observe(&self.listener.process, &names::process::SESSION, seconds(age));
        if let Some(record) = self.record() {
            record.closed(reason.code());
        }
    }

    #[inline]
    fn record(&self) -> Option<Ref<'_, Record>> {
        Ref::filter_map(self.record.borrow(), Option::as_ref).ok()
    }
}

/// Milliseconds as seconds.
pub(super) fn seconds(ms: u64) -> f64 {
    std::time::Duration::from_millis(ms).as_secs_f64()
}

fn observe(counters: &Counters, histogram: &Histogram, seconds: f64) {
    counters.add(histogram.bucket(seconds), 1);
    let micros = std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default().as_micros();
    counters.add(histogram.sum(), u64::try_from(micros).unwrap_or(u64::MAX));
}
