//! The sessions of one thread, by id.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use handoff::ledger::{LedgerError, Opening};
use handoff::vault::Depositor;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use super::book::{Book, ListenerBook};
use super::carried::Carried;
use super::ending::{Ending, Unsent};
use super::engine::Unfit;
use super::held::Unmoved;
use super::meter::Meter;
use super::relaying::Relaying;
use super::socket::Socket;
use super::terms::{Seat, Terms};
use super::{AbortOnPanic, Session, clock, custody};
use crate::pool::Backend;

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

/// What came of freezing.
#[derive(Debug, Default)]
pub struct Frozen {
    pub carried: Vec<Carried>,
    /// There may be more to freeze; then what follows is not complete.
    pub is_full: bool,
    /// Have no backend yet.
    pub connecting: Vec<u64>,
    /// Are over within seconds.
    pub ending: Vec<u64>,
}

/// Why a session of another worker is not held.
#[derive(Debug, thiserror::Error)]
pub enum NotHeld {
    #[error(transparent)]
    Record(#[from] LedgerError),
    #[error(transparent)]
    Unfit(#[from] Unfit),
    #[error("it is here already")]
    Here,
}

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
        let meter = Meter::open(record, Rc::clone(listener), opened_ms);
        let session = Rc::new(Session::new(meter, Arc::clone(terms), accepted.client, seat));
        match Socket::register(accepted.fd) {
            Ok(client) => {
                self.expect_to_last(&session);
                let life = Rc::clone(&session).run(client, Rc::clone(book));
                self.spawn(session, life);
            }
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

    /// The keeper to deposit sessions with, from now on; those that are here follow. `None`: there is none.
    pub fn deposit_with(&self, thread: u16, depositor: Option<Arc<Depositor>>) {
        let custody = custody::of_thread();
        custody.turn_to(thread, depositor);
        self.sessions.borrow().values().for_each(|session| session.lose_protection());
        custody.await_room();
    }

    /// Tells the keeper of ends, and deposits with it, what it did not take at once; for the life of the thread.
    pub async fn keep_up(&self) {
        let deposit = || self.sessions.borrow().values().all(|session| session.catch_up());
        custody::of_thread().keep_up(deposit).await;
    }

    /// The keeper does not keep this session.
    pub fn turn_away(&self, id: u64) {
        let session = self.sessions.borrow().get(&id).map(Rc::clone);
        if let Some(session) = session {
            session.turned_away();
        }
    }

    /// Takes up to `most` sessions out of the runtime that have been idle for so long, none of `but`; their tasks wait until they
    /// are resumed or released.
    pub fn freeze(&self, most: usize, idle: Duration, but: &HashSet<u64>) -> Frozen {
        let (now, idle) = (clock::coarse_ms(), clock::ms(idle));
        let mut frozen = Frozen::default();
        for (id, session) in self.sessions.borrow().iter() {
            if frozen.carried.len() == most {
                frozen.is_full = true;
                break;
            }
            if but.contains(id) || session.idle_ms(now) < idle {
                continue;
            }
            match session.freeze() {
                Ok(carried) => frozen.carried.push(carried),
                Err(Unmoved::Connecting) => frozen.connecting.push(*id),
                Err(Unmoved::Ending) => frozen.ending.push(*id),
                Err(Unmoved::NotThere) => {}
            }
        }
        frozen
    }

    /// Goes on with sessions that were frozen here.
    pub fn resume(&self, carried: Vec<Carried>) {
        for carried in carried {
            let session = self.sessions.borrow().get(&carried.id).map(Rc::clone);
            if let Some(session) = session {
                session.resume(carried);
            }
        }
    }

    /// Gives sessions that were frozen here to a thread each of another generation; says which went. The others, whose end was
    /// forced meanwhile, are to be resumed.
    pub fn release(&self, sessions: &[(u64, u16)], generation: u32) -> Vec<u64> {
        let mut table = self.sessions.borrow_mut();
        let goes = |id: &u64, thread: u16| table.get(id).is_some_and(|session| session.release(generation, thread));
        let gone: Vec<u64> = sessions.iter().filter(|(id, thread)| goes(id, *thread)).map(|(id, _)| *id).collect();
        for id in &gone {
            table.remove(id);
        }
        gone
    }

    /// Holds a session of another worker, ready to be started. All that may fail happens here; if it does, what was carried is
    /// dropped.
    pub fn hold(
        &self,
        carried: Carried,
        terms: &Arc<Terms>,
        backend: Arc<Backend>,
        book: &Rc<Book>,
        listener: &Rc<ListenerBook>,
        seat: Seat,
    ) -> Result<(), NotHeld> {
        let (id, place) = (carried.id, carried.place);
        if self.sessions.borrow().contains_key(&id) {
            return Err(NotHeld::Here);
        }
        let record = book.writer.adopt(place.index, id)?;
        let (state, parts) = carried.into_parts();
        let relaying = Relaying::from_parts(parts, state.clocks)?;
        let counted = book.backend(terms.pool.name(), &backend);
        let meter = Meter::adopted(record, Rc::clone(listener), counted, state.opened_ms);
        let session = Session::awaited(meter, Arc::clone(terms), state.client, backend, seat, relaying);
        session.is_lasting.set(state.lasts);
        let session = Rc::new(session);
        let life = Rc::clone(&session).run_on();
        self.spawn(session, life);
        Ok(())
    }

    /// Those that are ours by now go on, the others are let go; says how many went on.
    pub fn start(&self, ids: &[u64]) -> u64 {
        let mut started = 0;
        for id in ids {
            let session = self.sessions.borrow().get(id).map(Rc::clone);
            let Some(session) = session else { continue };
            if session.start() {
                self.expect_to_last(&session);
                started += 1;
            }
            self.forget_if_over(&session);
        }
        started
    }

    /// Lets go of sessions that are held and stay with their giver.
    pub fn let_go(&self, ids: &[u64]) {
        for id in ids {
            let session = self.sessions.borrow().get(id).map(Rc::clone);
            if let Some(session) = session {
                session.let_go();
                self.forget_if_over(&session);
            }
        }
    }

    /// At once: it may be offered again before its task has run.
    fn forget_if_over(&self, session: &Session) {
        if session.is_over() {
            self.sessions.borrow_mut().remove(&session.meter.id());
        }
    }

    /// The beat looks after it in a second, if that was not done already.
    fn expect_to_last(&self, session: &Session) {
        if session.is_lasting.get() {
            return;
        }
        self.young.borrow_mut().push_back((session.meter.opened_ms(), session.meter.id()));
        self.opened.set(self.opened.get() + 1);
        self.opens.notify_waiters();
    }

    fn spawn(&self, session: Rc<Session>, life: impl Future<Output = ()> + 'static) {
        let id = session.meter.id();
        self.sessions.borrow_mut().insert(id, Rc::clone(&session));
        let sessions = Rc::clone(&self.sessions);
        self.tasks.spawn_local(async move {
            let _guard = AbortOnPanic;
            life.await;
            // One that was given away may be back by now, as another.
            let mut sessions = sessions.borrow_mut();
            if sessions.get(&id).is_some_and(|known| Rc::ptr_eq(known, &session)) {
                sessions.remove(&id);
            }
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
