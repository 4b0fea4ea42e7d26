//! A session: one client and its backend, from accept to close, on one thread.
//!
//! [`Table::open`] begins it; `connect` finds its backend; `relaying` is the rest of its life, in which `relay` decides
//! and `engine` does; `meter` counts. Whoever ends it by force does so through the [`Table`] of its thread.
//!
//! It may go on in another worker: frozen here it is `carried` there, and `held` at both ends until one of them has it.

mod abort;
mod book;
mod carried;
pub mod clock;
mod connect;
#[cfg(debug_assertions)]
mod crash;
mod custody;
mod ending;
mod engine;
mod give_way;
mod held;
mod meter;
mod options;
mod pipe;
mod probe;
mod protected;
mod recovered;
pub mod relay;
mod relaying;
mod socket;
mod table;
mod terms;
#[cfg(test)]
mod tests;

use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

pub use abort::AbortOnPanic;
pub use book::{Book, ListenerBook};
pub use carried::{BackendState, Carried, SessionState};
pub use ending::{Ending, Unsent};
pub use engine::Unfit;
pub use options::set_listener;
pub use pipe::allow_pipes;
pub use probe::{Reachable, probe};
pub use recovered::{KeptTerms, finish, reset};
pub use socket::{Socket, register};
pub use table::{Accepted, Frozen, Measured, NoRecord, NotHeld, Scope, Table};
pub use terms::{Census, Seat, Terms};

use crate::config::ForcedClose;
use crate::observe::reason::Reason;
use crate::pool::Backend;
use connect::Reached;
use held::Held;
use meter::Meter;
use relaying::{Over, Relaying};

/// Shared by the task that drives it and the table through which it can be measured and ended.
#[derive(Debug)]
struct Session {
    meter: Meter,
    terms: Arc<Terms>,
    client: Option<SocketAddr>,
    backend: OnceCell<Arc<Backend>>,
    phase: RefCell<Phase>,
    waker: RefCell<Option<Waker>>,
    counted: Cell<bool>,
    /// It has what only lasting sessions need.
    is_lasting: Cell<bool>,
    /// It came from another worker: what the keeper holds of it is what that one was told, which we do not know.
    is_unsure: Cell<bool>,
    /// Given back when the session is over.
    seat: Seat,
}

#[derive(Debug)]
enum Phase {
    /// Its sockets are with its task.
    Connecting {
        forced: Option<Ending>,
    },
    Relaying(Relaying),
    Held(Held),
    Over,
}

impl Session {
    fn new(meter: Meter, terms: Arc<Terms>, client: Option<SocketAddr>, seat: Seat) -> Self {
        Self {
            meter,
            terms,
            client,
            backend: OnceCell::new(),
            phase: RefCell::new(Phase::Connecting { forced: None }),
            waker: RefCell::new(None),
            counted: Cell::new(false),
            is_lasting: Cell::new(false),
            is_unsure: Cell::new(false),
            seat: seat.occupy(),
        }
    }

    /// The whole of it. The connect is boxed, so that its memory is gone while the session lives on.
    async fn run(self: Rc<Self>, client: Socket, book: Rc<Book>) {
        let reached = Box::pin(self.connect(&client, &book)).await;
        match reached {
            Ok(reached) => {
                self.seat.searched(true);
                self.establish(client, reached, &book);
                drop(book);
                self.run_on().await;
            }
            Err(reason) => {
                // A client that left, or a forced end, says nothing of the backends.
                if matches!(reason, Reason::ConnectFailed | Reason::ConnectTimeout | Reason::NoBackend) {
                    self.seat.searched(false);
                }
                client.reset();
                drop(client);
                self.over(reason);
            }
        }
    }

    /// A backend, unless the client breaks or the session is ended before there is one.
    async fn connect(&self, client: &Socket, book: &Book) -> Result<Reached, Reason> {
        let mut reach = pin!(connect::reach(&self.terms, book));
        std::future::poll_fn(|cx| {
            if let Some(ending) = self.forced(cx) {
                self.report(ending, Unsent::default());
                return Poll::Ready(Err(ending.reason));
            }
            if client.poll_broken(cx).is_ready() {
                return Poll::Ready(Err(Reason::ClientReset));
            }
            reach.as_mut().poll(cx)
        })
        .await
    }

    fn establish(&self, client: Socket, reached: Reached, book: &Book) {
        if let Some(counted) = book.backend(self.terms.pool.name(), &reached.backend) {
            self.meter.established(&reached.backend, counted, reached.took.as_secs_f64());
        }
        let _ = self.backend.set(reached.backend);
        let mut relaying = Relaying::new(client, reached.socket);
        self.protect(&mut relaying);
        *self.phase.borrow_mut() = Phase::Relaying(relaying);
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.meter.works(true);
        let polled = self.work(cx);
        self.meter.works(false);
        polled
    }

    fn work(&self, cx: &mut Context<'_>) -> Poll<()> {
        let over = {
            let mut phase = self.phase.borrow_mut();
            let polled = match &mut *phase {
                Phase::Relaying(relaying) => relaying.poll(cx, &self.meter, &self.terms.timeouts),
                Phase::Held(_) => Poll::Pending,
                Phase::Connecting { .. } | Phase::Over => return Poll::Ready(()),
            };
            match polled {
                Poll::Ready(over) => over,
                Poll::Pending => {
                    self.remember(cx);
                    return Poll::Pending;
                }
            }
        };
        self.end(over);
        Poll::Ready(())
    }

    fn end(&self, Over { reason, how }: Over) {
        let Phase::Relaying(relaying) = self.phase.replace(Phase::Over) else { return };
        if how == ForcedClose::Reset {
            let unsent = relaying.unsent();
            self.meter.unsent(unsent.to_client, unsent.to_backend);
        }
        self.close(relaying, how, reason);
    }

    /// Ends it now, or as soon as its task runs, or it is resumed; `false`: it was over or about to be, or is not ours.
    fn force(&self, ending: Ending) -> bool {
        match &mut *self.phase.borrow_mut() {
            Phase::Connecting { forced } | Phase::Held(Held::Frozen { forced }) => {
                // Whoever asks again is not told twice that it closed one.
                let is_first = forced.is_none();
                forced.get_or_insert(ending);
                self.wake();
                return is_first;
            }
            Phase::Relaying(_) => {}
            Phase::Held(Held::Awaited(_)) | Phase::Over => return false,
        }
        let Phase::Relaying(relaying) = self.phase.replace(Phase::Over) else { return false };
        let unsent = relaying.unsent();
        self.report(ending, unsent);
        let how = if unsent.is_nothing() { ending.how } else { ForcedClose::Reset };
        self.close(relaying, how, ending.reason);
        self.wake();
        true
    }

    /// It has lasted a second. `false`: its backend's socket is not there yet, or not now.
    fn lasts(&self) -> bool {
        match &*self.phase.borrow() {
            Phase::Connecting { .. } | Phase::Held(_) => false,
            Phase::Relaying(relaying) => {
                // A socket that is closing refuses; it needs nothing any more.
                let _ = relaying.keep(&self.terms.tcp);
                self.is_lasting.set(true);
                true
            }
            Phase::Over => true,
        }
    }

    /// Writes and logs what a forced close will lose, before it does.
    fn report(&self, ending: Ending, unsent: Unsent) {
        self.meter.unsent(unsent.to_client, unsent.to_backend);
        self.meter.forced(ending.cause, unsent.total());
        let now = clock::coarse_ms();
        let (received, sent) = self.meter.bytes();
        tracing::info!(
            id = self.meter.id(),
            listener = self.terms.listener,
            pool = self.terms.pool.name(),
            backend = self.backend.get().map(|backend| backend.name.as_str()),
            client = self.client.map(tracing::field::display),
            reason = ending.reason.word(),
            bytes_received = received,
            bytes_sent = sent,
            age = meter::seconds(now.saturating_sub(self.meter.opened_ms())),
            idle = meter::seconds(self.idle_ms(now)),
            unsent_to_client = unsent.to_client,
            unsent_to_backend = unsent.to_backend,
            "session closed by force"
        );
    }

    /// Counts the end, once.
    fn over(&self, reason: Reason) {
        if self.counted.replace(true) {
            return;
        }
        self.meter.closed(reason);
        let (received, sent) = self.meter.bytes();
        let (id, listener) = (self.meter.id(), self.terms.listener.as_str());
        tracing::debug!(id, listener, reason = reason.word(), received, sent, "session closed");
    }

    fn measure(&self) -> Option<Measured> {
        let phase = self.phase.borrow();
        let unsent = match &*phase {
            Phase::Connecting { .. } => Unsent::default(),
            Phase::Relaying(relaying) => relaying.unsent(),
            Phase::Held(Held::Frozen { .. }) => Unsent::UNKNOWN,
            Phase::Held(Held::Awaited(_)) | Phase::Over => return None,
        };
        let (id, opened_ms) = (self.meter.id(), self.meter.opened_ms());
        Some(Measured { id, opened_ms, idle_ms: self.idle_ms(clock::coarse_ms()), unsent })
    }

    fn idle_ms(&self, now: u64) -> u64 {
        now.saturating_sub(self.meter.last_byte_ms().max(self.meter.opened_ms()))
    }

    fn forced(&self, cx: &Context<'_>) -> Option<Ending> {
        self.remember(cx);
        match &*self.phase.borrow() {
            Phase::Connecting { forced } => *forced,
            _ => None,
        }
    }

    /// A task keeps its waker for life.
    fn remember(&self, cx: &Context<'_>) {
        self.waker.borrow_mut().get_or_insert_with(|| cx.waker().clone());
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

/// A session whose thread ends before it: counted as any other, and the sockets reset as they are dropped.
impl Drop for Session {
    fn drop(&mut self) {
        self.over(Reason::InternalError);
    }
}
