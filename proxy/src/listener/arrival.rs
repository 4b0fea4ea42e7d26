//! Sessions that come from another worker: what they go by here, and where they are counted.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use handoff::ledger::LedgerError;

use super::accept::Floor;
use super::setup::{Setup, new_key};
use crate::pool::{Backend, Pool};
use crate::session::{Book, Carried, NotHeld, Seat, SessionState, Terms};

/// Why a session of another worker is not held. It stays with that one.
#[derive(Debug, thiserror::Error)]
pub enum Unheld {
    #[error("ledger segment {0} is not here")]
    NoSegment(u32),
    #[error("nothing can be counted in its ledger segment: {0}")]
    NoBlock(#[from] LedgerError),
    #[error("its ledger segment has no names for listener {listener} and pool {pool}")]
    NoNames { listener: String, pool: String },
    #[error(transparent)]
    NotHeld(#[from] NotHeld),
}

/// Terms and backends that sessions brought along, each kept once for all of them on this thread.
#[derive(Debug, Default)]
pub(super) struct Brought {
    terms: RefCell<Vec<Arc<Terms>>>,
    backends: RefCell<Vec<(String, Arc<Backend>)>>,
}

/// Of what was brought along: more than configurations differ in, and a search through them is still short. Beyond it, what
/// no session uses any more is forgotten.
const BROUGHT: usize = 256;

impl Floor {
    /// Holds a session that another worker may yet keep: it counts as one here, and nothing is done to its sockets. No limit
    /// turns it away: it was admitted once.
    pub fn hold(&self, carried: Carried) -> Result<(), Unheld> {
        let state = &carried.state;
        let setup = self.setup();
        let terms = self.brought.terms(&setup, state);
        let backend = self.brought.backend(&setup, state);
        let book = self.book_of(carried.place.segment)?;
        book.turn_to(setup.version);
        let listener = book
            .listener(&terms)
            .ok_or_else(|| Unheld::NoNames { listener: state.listener.clone(), pool: state.pool.clone() })?;
        let seat = Seat::keep(self.census(), self.thread(), &listener, self.freed());
        Ok(self.table().hold(carried, &terms, backend, &book, &listener, seat)?)
    }

    /// Whether sessions of this segment can be counted on this thread, from now on.
    pub fn count_in(&self, segment: u32) -> Result<(), Unheld> {
        self.book_of(segment).map(drop)
    }

    /// A session is counted in the segment it was opened in, also where new ones no longer are.
    fn book_of(&self, segment: u32) -> Result<Rc<Book>, Unheld> {
        let current = self.book();
        if current.index() == segment {
            return Ok(current);
        }
        if let Some(book) = self.earlier().borrow().get(&segment) {
            return Ok(Rc::clone(book));
        }
        let book = Rc::new(current.sibling(segment)?.ok_or(Unheld::NoSegment(segment))?);
        self.earlier().borrow_mut().insert(segment, Rc::clone(&book));
        Ok(book)
    }
}

impl Brought {
    /// Those of the setup if they are the same, so that it is one listener for all that is said of it.
    fn terms(&self, setup: &Setup, state: &SessionState) -> Arc<Terms> {
        if let Some(terms) = setup.listener(&state.listener).filter(|terms| is_of(terms, state)) {
            return Arc::clone(terms);
        }
        let mut brought = self.terms.borrow_mut();
        if let Some(terms) = brought.iter().find(|terms| is_of(terms, state)) {
            return Arc::clone(terms);
        }
        if brought.len() >= BROUGHT {
            brought.retain(|terms| Arc::strong_count(terms) > 1);
        }
        let terms = Arc::new(Terms {
            key: new_key(),
            listener: state.listener.clone(),
            pool: Arc::new(Pool::named_only(&state.pool)),
            max_sessions: None,
            // Of one that comes its relay says it.
            survive_crash: false,
            tcp: state.tcp,
            timeouts: state.timeouts,
        });
        brought.push(Arc::clone(&terms));
        terms
    }

    fn backend(&self, setup: &Setup, state: &SessionState) -> Arc<Backend> {
        let (name, address) = (state.backend.name.as_str(), state.backend.address);
        if let Some(backend) = setup.pool(&state.pool).and_then(|pool| pool.backend(name, address)) {
            return Arc::clone(backend);
        }
        let mut brought = self.backends.borrow_mut();
        let is_it = |pool: &str, backend: &Backend| pool == state.pool && is_backend(backend, name, address);
        if let Some((_, backend)) = brought.iter().find(|(pool, backend)| is_it(pool, backend)) {
            return Arc::clone(backend);
        }
        if brought.len() >= BROUGHT {
            brought.retain(|(_, backend)| Arc::strong_count(backend) > 1);
        }
        let backend = Arc::new(Backend::new(name.to_owned(), address));
        brought.push((state.pool.clone(), Arc::clone(&backend)));
        backend
    }
}

/// Whether the session began under these, but for the limit on new ones.
fn is_of(terms: &Terms, state: &SessionState) -> bool {
    terms.listener == state.listener
        && terms.pool.name() == state.pool
        && terms.tcp == state.tcp
        && terms.timeouts == state.timeouts
}

fn is_backend(backend: &Backend, name: &str, address: SocketAddr) -> bool {
    backend.name == name && backend.address == address
}
