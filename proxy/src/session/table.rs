//! The sessions of one thread, by id.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use handoff::ledger::Opening;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use super::book::{Book, ListenerBook};
use super::ending::{Ending, Unsent};
use super::meter::Meter;
use super::socket::Socket;
use super::terms::{Seat, Terms};
use super::{AbortOnPanic, Session, clock};

/// A socket that was accepted, and where it came from.
#[derive(Debug)]
pub struct Accepted {
    pub fd: OwnedFd,
    /// `None`: a Unix socket.
    pub client: Option<SocketAddr>,
}

/// Which sessions are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    All,
    Listener(String),
    Backend { pool: String, name: String },
}

/// A session as it was when it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    pub id: u64,
    pub opened_ms: u64,
    pub idle_ms: u64,
    pub unsent: Unsent,
}

/// No record is free: the caller keeps what was accepted and tries again later.
#[derive(Debug)]
pub struct NoRecord(pub Accepted, pub Seat);

#[derive(Debug, Default)]
pub struct Table {
    sessions: Rc<RefCell<HashMap<u64, Rc<Session>>>>,
    tasks: TaskTracker,
    /// Begun not long ago, oldest first: when (milliseconds), and the id.
    young: RefCell<VecDeque<(u64, u64)>>,
    opened: Cell<u64>,
    opens: Notify,
}

impl Table {
    /// Begins a session, or gives everything back if no record is free.
    pub fn open(
        &self,
        accepted: Accepted,
        terms: &Arc<Terms>,
        book: &Rc<Book>,
        listener: &Rc<ListenerBook>,
        seat: Seat,
    ) -> Result<(), NoRecord> {
        let opened_ms = clock::coarse_ms();
        let opening = Opening {
            listener: listener.name,
            pool: listener.pool,
            client: accepted.client,
            opened_unix_us: clock::unix_us(),
            opened_ms,
        };
        let Some(record) = book.writer.claim(&opening) else { return Err(NoRecord(accepted, seat)) };
        self.opened.set(self.opened.get() + 1);
        self.opens.notify_waiters();
        let meter = Meter::open(record, Rc::clone(listener), opened_ms);
        let session = Rc::new(Session::new(meter, Arc::clone(terms), accepted.client, seat));
        match Socket::register(accepted.fd) {
            Ok(client) => self.spawn(session, client, Rc::clone(book)),
            Err(e) => {
                tracing::warn!(listener = terms.listener, "a client was turned away: {e}");
                session.over(crate::observe::reason::Reason::InternalError);
            }
        }
        Ok(())
    }

    /// Sessions begun so far.
    pub fn opened(&self) -> u64 {
        self.opened.get()
    }

    /// Gives sessions that have lasted what only lasting ones need. `false`: there is none to wait for.
    pub fn look_after_young(&self) -> bool {
        let mut young = self.young.borrow_mut();
        let now = clock::coarse_ms();
        while let Some((opened, id)) = young.pop_front_if(|(opened, _)| *opened + LASTING_MS <= now) {
            let session = self.sessions.borrow().get(&id).map(Rc::clone);
            if session.is_some_and(|session| !session.lasts()) {
                // Still connecting.
                young.push_back((opened.max(now), id));
            }
        }
        !young.is_empty()
    }

    /// Resolves when the next session begins.
    pub async fn opens(&self) {
        self.opens.notified().await;
    }

    /// Of those in scope, as they are now.
    pub fn measure_scope(&self, scope: &Scope) -> Vec<Measured> {
        let sessions = self.sessions.borrow();
        sessions.values().filter(|session| scope.covers(session)).filter_map(|session| session.measure()).collect()
    }

    /// Of these, as far as they still are.
    pub fn measure(&self, ids: &[u64]) -> Vec<Measured> {
        let sessions = self.sessions.borrow();
        ids.iter().filter_map(|id| sessions.get(id)?.measure()).collect()
    }

    /// Ends these by force; says how many were still to be ended.
    pub fn close(&self, ids: &[u64], ending: Ending) -> u64 {
        let sessions = self.sessions.borrow();
        ids.iter().filter_map(|id| sessions.get(id)).map(|session| u64::from(session.force(ending))).sum()
    }

    fn spawn(&self, session: Rc<Session>, client: Socket, book: Rc<Book>) {
        let id = session.meter.id();
        self.sessions.borrow_mut().insert(id, Rc::clone(&session));
        self.young.borrow_mut().push_back((session.meter.opened_ms(), id));
        let sessions = Rc::clone(&self.sessions);
        self.tasks.spawn_local(async move {
            let _guard = AbortOnPanic;
            session.run(client, book).await;
            sessions.borrow_mut().remove(&id);
        });
    }
}

/// Far below the shortest keepalive, far above the life of a session of a busy listener.
const LASTING_MS: u64 = 1000;

impl Scope {
    fn covers(&self, session: &Session) -> bool {
        match self {
            Self::All => true,
            Self::Listener(name) => session.terms.listener == *name,
            Self::Backend { pool, name } => {
                session.terms.pool.name() == pool && session.backend.get().is_some_and(|backend| backend.name == *name)
            }
        }
    }
}
