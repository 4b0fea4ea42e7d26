//! A thread's handles on the ledger, looked up once for each listener and backend and shared by their sessions.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use handoff::ledger::{Counters, Gauges, LedgerError, Name, NameSpec, Segment, Writer};

use super::terms::Terms;
use crate::observe::names;
use crate::pool::Backend;

/// The handles of one thread on one segment. A session keeps to the segment it was opened in.
#[derive(Debug)]
pub struct Book {
    pub(super) writer: Writer,
    /// All segments of the chain: a limit counts the sessions of all of them.
    segments: Vec<Arc<Segment>>,
    /// Of the setup that the handles below were looked up for.
    version: Cell<u64>,
    listeners: RefCell<HashMap<u64, Rc<ListenerBook>>>,
    backends: RefCell<HashMap<u64, Rc<BackendBook>>>,
}

#[derive(Debug)]
pub struct ListenerBook {
    pub(super) name: Name,
    pub(super) pool: Name,
    pub(super) counters: Counters,
    pub(super) route: Counters,
    pub(super) process: Counters,
    pub(crate) gauges: Gauges,
    /// Where sessions of this listener are held against its limit.
    held: Vec<(Arc<Segment>, Name)>,
}

#[derive(Debug)]
pub struct BackendBook {
    pub(super) name: Name,
    pub(super) counters: Counters,
}

impl Book {
    /// Leases a block in the newest of `segments` for this thread.
    pub fn lease(segments: Vec<Arc<Segment>>, generation: u32, thread: u16) -> Result<Option<Self>, LedgerError> {
        let Some(newest) = segments.last() else { return Ok(None) };
        let writer = Writer::lease(Arc::clone(newest), generation, thread)?;
        Ok(Some(Self::of(writer, segments)))
    }

    /// The same thread's in another segment, for sessions that were opened there. `None`: there is no such segment.
    pub fn sibling(&self, index: u32) -> Result<Option<Self>, LedgerError> {
        let (generation, thread) = self.writer.owner();
        let Some(segment) = self.segments.iter().find(|segment| segment.index() == index) else { return Ok(None) };
        let writer = Writer::lease_share(Arc::clone(segment), generation, thread)?;
        Ok(Some(Self::of(writer, self.segments.clone())))
    }

    fn of(writer: Writer, segments: Vec<Arc<Segment>>) -> Self {
        let (listeners, backends) = (RefCell::default(), RefCell::default());
        Self { writer, segments, version: Cell::new(0), listeners, backends }
    }

    pub fn segments(&self) -> &[Arc<Segment>] {
        &self.segments
    }

    /// Of the segment it writes to.
    pub fn index(&self) -> u32 {
        self.writer.segment().index()
    }

    /// Forgets the handles of a setup that is no more.
    pub fn turn_to(&self, version: u64) {
        if self.version.replace(version) != version {
            self.listeners.borrow_mut().clear();
            self.backends.borrow_mut().clear();
        }
    }

    /// `None`: the keeper has not entered its names.
    pub fn listener(&self, terms: &Terms) -> Option<Rc<ListenerBook>> {
        if let Some(book) = self.listeners.borrow().get(&terms.key) {
            return Some(Rc::clone(book));
        }
        let book = Rc::new(self.look_up_listener(terms)?);
        self.listeners.borrow_mut().insert(terms.key, Rc::clone(&book));
        Some(book)
    }

    /// `None`: the keeper has not entered its name.
    pub fn backend(&self, pool: &str, backend: &Backend) -> Option<Rc<BackendBook>> {
        if let Some(book) = self.backends.borrow().get(&backend.key) {
            return Some(Rc::clone(book));
        }
        let name = self.find(&names::backend(pool, &backend.name))?;
        let book = Rc::new(BackendBook { name, counters: self.writer.counters(name) });
        self.backends.borrow_mut().insert(backend.key, Rc::clone(&book));
        Some(book)
    }

    fn look_up_listener(&self, terms: &Terms) -> Option<ListenerBook> {
        let spec = names::listener(&terms.listener);
        let name = self.find(&spec)?;
        let route = self.find(&names::route(&terms.listener, terms.pool.name()))?;
        let process = self.find(&names::process())?;
        let held = |segment: &Arc<Segment>| Some((Arc::clone(segment), segment.find(spec.kind, &spec.text)?));
        Some(ListenerBook {
            name,
            pool: self.find(&names::pool(terms.pool.name()))?,
            counters: self.writer.counters(name),
            route: self.writer.counters(route),
            process: self.writer.counters(process),
            gauges: self.writer.gauges(name),
            held: self.segments.iter().filter_map(held).collect(),
        })
    }

    fn find(&self, spec: &NameSpec) -> Option<Name> {
        self.writer.segment().find(spec.kind, &spec.text)
    }
}

impl ListenerBook {
    /// Sessions of this listener, over all threads and generations.
    pub(super) fn held(&self) -> u64 {
        self.held.iter().map(|(segment, name)| segment.gauge_sum(*name, names::listener::HELD)).sum()
    }
}

impl BackendBook {
    pub(super) fn connect_failed(&self, why: crate::observe::reason::ConnectFailure) {
        self.counters.add(names::backend::connect_failed(why), 1);
    }
}
