//! What one session counts: handles into the ledger, taken once, so that a byte costs a few stores.

use std::rc::Rc;

use handoff::ledger::{Counters, Record};

use super::book::{BackendBook, ListenerBook};
use super::clock;
use super::relay::Side;
use crate::observe::names::{self, process::Histogram};
use crate::observe::reason::{Cause, Reason};
use crate::pool::Backend;

#[derive(Debug)]
pub(super) struct Meter {
    record: Record,
    listener: Rc<ListenerBook>,
    backend: std::cell::OnceCell<Rc<BackendBook>>,
    opened_ms: u64,
}

impl Meter {
    /// A session is counted from its accept on.
    pub(super) fn open(record: Record, listener: Rc<ListenerBook>, opened_ms: u64) -> Self {
        listener.route.add(names::route::SESSIONS, 1);
        Self { record, listener, backend: std::cell::OnceCell::new(), opened_ms }
    }

    pub(super) fn id(&self) -> u64 {
        self.record.id()
    }

    /// Connected: `backend` has it from now on, which took so long.
    pub(super) fn established(&self, backend: &Backend, book: Rc<BackendBook>, connect_seconds: f64) {
        self.record.established(book.name, backend.address);
        book.counters.add(names::backend::SESSIONS, 1);
        observe(&self.listener.process, &names::process::CONNECT, connect_seconds);
        let _ = self.backend.set(book);
    }

    pub(super) fn read(&self, from: Side, n: usize) {
        let n = n as u64;
        if from == Side::Client {
            self.record.received(n);
            self.listener.counters.add(names::listener::RECEIVED, n);
            self.add_backend_bytes(n);
        }
    }

    pub(super) fn wrote(&self, to: Side, n: usize) {
        let n = n as u64;
        if to == Side::Client {
            self.record.sent(n);
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
        (self.record.total_received(), self.record.total_sent())
    }

    pub(super) fn touch(&self, now_ms: u64) {
        self.record.touch(now_ms);
    }

    pub(super) fn opened_ms(&self) -> u64 {
        self.opened_ms
    }

    pub(super) fn last_byte_ms(&self) -> u64 {
        self.record.last_byte_ms()
    }

    /// What a close will lose; written before the close.
    pub(super) fn unsent(&self, to_client: i64, to_backend: i64) {
        self.record.unsent(to_client, to_backend);
    }

    pub(super) fn forced(&self, cause: Cause, unsent: u64) {
        self.listener.process.add(names::process::forced(cause), 1);
        self.listener.process.add(names::process::forced_unsent(cause), unsent);
    }

    /// Counts the end. Who reads the record knows from its reason that this is done.
    pub(super) fn closed(&self, reason: Reason) {
        self.listener.counters.add(names::listener::closed(reason), 1);
        let age = clock::coarse_ms().saturating_sub(self.opened_ms);
        observe(&self.listener.process, &names::process::SESSION, seconds(age));
        self.record.closed(reason.code());
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
