//! The sessions of one thread, by id.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use handoff::ledger::Opening;
use tokio_util::task::TaskTracker;

use super::book::{Book, ListenerBook};
use super::ending::{Ending, Unsent};
use super::meter::Meter;
use super::socket::Socket;
use super::terms::{Seat, Terms};
use super::{AbortOnPanic, Session, clock, options};

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
        let meter = Meter::open(record, Rc::clone(listener), opened_ms);
        let session = Rc::new(Session::new(meter, Arc::clone(terms), accepted.client, seat));
        match prepare(accepted, terms) {
            Ok(client) => self.spawn(session, client, Rc::clone(book)),
            Err(e) => {
                tracing::warn!(listener = terms.listener, "a client was turned away: {e}");
                session.over(crate::observe::reason::Reason::InternalError);
            }
        }
        Ok(())
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
        let sessions = Rc::clone(&self.sessions);
        self.tasks.spawn_local(async move {
            let _guard = AbortOnPanic;
            session.run(client, book).await;
            sessions.borrow_mut().remove(&id);
        });
    }
}

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

fn prepare(accepted: Accepted, terms: &Terms) -> io::Result<Socket> {
    if accepted.client.is_some() {
        match options::set_client(accepted.fd.as_fd(), &terms.tcp) {
            // A client that is gone already: its session says so.
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {}
            Err(e) => return Err(e),
        }
    }
    Socket::register(accepted.fd)
}
