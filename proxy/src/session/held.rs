//! A session that is held: its task lives and waits, its sockets are with whoever carries it.
//!
//! Where it comes from: frozen, then resumed, or released to another worker. Where it goes to: held for a worker that may
//! still take it back, then started, or let go. Nobody reads or writes a held session, and nothing of it is counted.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::carried::{BackendState, Carried, SessionState};
use super::engine::{Parts, Unfit};
use super::meter::Meter;
use super::relaying::Relaying;
use super::terms::{Seat, Terms};
use super::{Ending, Phase, Session};
use crate::observe::reason::Reason;
use crate::pool::Backend;

/// What is left of a session while it is held.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it lies in a phase, which is as large for a session that relays")]
pub(super) enum Held {
    /// Ours; its sockets are carried. A forced end waits until it is resumed.
    Frozen { forced: Option<Ending> },
    /// Another worker's that may become ours: ready to go on.
    Awaited(Relaying),
}

/// Why a session was not frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unmoved {
    Connecting,
    Ending,
    /// Held already, or over.
    NotThere,
}

impl Session {
    /// One that comes from another worker; nothing happens to it before [`Self::start`].
    pub(super) fn awaited(
        meter: Meter,
        terms: Arc<Terms>,
        client: Option<SocketAddr>,
        backend: Arc<Backend>,
        seat: Seat,
        relaying: Relaying,
    ) -> Self {
        let session = Self::new(meter, terms, client, seat);
        let _ = session.backend.set(backend);
        // Its end is the giver's to count.
        session.counted.set(true);
        session.phase.replace(Phase::Held(Held::Awaited(relaying)));
        session
    }

    /// Waits only, until it is started or let go; then the rest of its life.
    pub(super) async fn run_on(self: Rc<Self>) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }

    /// Stops it at a byte boundary.
    pub(super) fn freeze(&self) -> Result<Carried, Unmoved> {
        let mut phase = self.phase.borrow_mut();
        match &*phase {
            Phase::Connecting { .. } => return Err(Unmoved::Connecting),
            Phase::Relaying(relaying) if relaying.is_ending() => return Err(Unmoved::Ending),
            Phase::Relaying(_) => {}
            Phase::Held(_) | Phase::Over => return Err(Unmoved::NotThere),
        }
        let (Some(place), Some(backend)) = (self.meter.place(), self.backend.get()) else {
            return Err(Unmoved::NotThere);
        };
        let held = Phase::Held(Held::Frozen { forced: None });
        let Phase::Relaying(relaying) = std::mem::replace(&mut *phase, held) else { return Err(Unmoved::NotThere) };
        let (Parts { relay, hand, client, backend: server, pipes, writers, nagle_off }, clocks) = relaying.into_parts();
        let state = SessionState {
            listener: self.terms.listener.clone(),
            pool: self.terms.pool.name().to_owned(),
            backend: BackendState { name: backend.name.clone(), address: backend.address },
            client: self.client,
            timeouts: self.terms.timeouts,
            tcp: self.terms.tcp,
            opened_ms: self.meter.opened_ms(),
            lasts: self.is_lasting.get(),
            nagle_off,
            relay,
            clocks,
        };
        Ok(Carried { id: self.meter.id(), place, state, hand, client, backend: server, pipes, writers })
    }

    /// Goes on with what was carried; an end that was forced meanwhile comes now.
    pub(super) fn resume(&self, carried: Carried) {
        let Phase::Held(Held::Frozen { forced }) = *self.phase.borrow() else { return };
        let (state, parts) = carried.into_parts();
        match Relaying::from_parts(parts, state.clocks) {
            Ok(relaying) => {
                self.phase.replace(Phase::Relaying(relaying));
                self.came_back();
                if let Some(ending) = forced {
                    self.force(ending);
                }
            }
            Err(error) => self.lose(&error),
        }
        self.wake();
    }

    /// Makes a thread of another generation its owner; this one never touches it again. `false`: it stays ours, for its end
    /// is forced; it is to be resumed.
    pub(super) fn release(&self, generation: u32, thread: u16) -> bool {
        if !matches!(&*self.phase.borrow(), Phase::Held(Held::Frozen { forced: None })) {
            return false;
        }
        self.phase.replace(Phase::Over);
        self.counted.set(true);
        self.meter.give(generation, thread);
        self.wake();
        true
    }

    /// Its giver has decided. It goes on here if the record says that it is ours, else it is let go; says whether it does.
    pub(super) fn start(&self) -> bool {
        if !self.meter.is_ours() {
            self.let_go();
            return false;
        }
        let relaying = match self.phase.replace(Phase::Over) {
            Phase::Held(Held::Awaited(relaying)) => relaying,
            other => {
                self.phase.replace(other);
                return false;
            }
        };
        self.counted.set(false);
        self.phase.replace(Phase::Relaying(relaying));
        self.is_unsure.set(true);
        self.came_back();
        self.wake();
        true
    }

    /// It stays with its giver: our copies of its sockets are closed, which its peers do not see.
    pub(super) fn let_go(&self) {
        if matches!(&*self.phase.borrow(), Phase::Held(Held::Awaited(_))) {
            self.phase.replace(Phase::Over);
            self.wake();
        }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(&*self.phase.borrow(), Phase::Over)
    }

    /// It cannot go on where it was, which only want of memory explains. Its sockets were closed: a reset.
    fn lose(&self, error: &Unfit) {
        tracing::error!(id = self.meter.id(), listener = self.terms.listener, "a session could not go on: {error}");
        self.phase.replace(Phase::Over);
        self.over(Reason::InternalError);
    }
}
