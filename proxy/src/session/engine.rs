//! Does what the [`Relay`] asks for: the system calls of one session, on the runtime of its thread.
//!
//! A poll allocates nothing, unless a write was short. Small reads go through one buffer of the thread, borrowed for one
//! read and one write; an idle session holds neither buffer nor pipe.

mod parts;
mod protected;

use std::cell::RefCell;
use std::io;
use std::task::{Context, Poll, ready};

use super::give_way::give_way;
use super::meter::Meter;
use super::pipe::Pipe;
use super::relay::{Failure, Marks, Outcome, Relay, Side, Step, index};
use super::socket::Socket;

pub(super) use parts::Parts;
pub use parts::Unfit;

/// The size the prototype was measured with: a `recv` of more is better done by `splice`.
const BUFFER: usize = 16 * 1024;

/// Bytes a session may move before the other sessions of its thread have their turn: about 0.2 ms of copying.
const BUDGET: usize = 1024 * 1024;

/// What a step costs beside its bytes, so that steps that move little come to an end too.
const STEP_COST: usize = 1024;

thread_local! {
    static BUFFER_OF_THREAD: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

#[derive(Debug)]
pub(super) struct Engine {
    pub(super) relay: Relay,
    client: Socket,
    backend: Socket,
    /// Of each direction.
    pipes: [Option<Pipe>; 2],
    /// Directions whose last write was short: they wait for room.
    blocked: [bool; 2],
    moved: u64,
    to_backend: Nagle,
    /// Others hold the sockets too: a close says nothing to their peers.
    is_shared: bool,
    /// As they stand in the record, of a relay that only splices.
    marked: Marks,
}

/// Nagle's rule (RFC 896) on the backend's socket. It holds back only while earlier bytes are not acknowledged, so a session
/// with one small request is spared the call that switches it off. (A client's socket has it off from its listener.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nagle {
    /// Nothing was written.
    Fresh,
    Wrote,
    Off,
}

impl Engine {
    pub(super) fn new(client: Socket, backend: Socket) -> Self {
        Self {
            relay: Relay::default(),
            client,
            backend,
            pipes: [None, None],
            blocked: [false; 2],
            moved: 0,
            to_backend: Nagle::Fresh,
            is_shared: false,
            marked: Marks::default(),
        }
    }

    pub(super) fn socket(&self, side: Side) -> &Socket {
        match side {
            Side::Client => &self.client,
            Side::Backend => &self.backend,
        }
    }

    /// Moves what can be moved. Pending: a waker is set for everything that can go on, and for each side that may break.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, meter: &Meter) -> Poll<Outcome> {
        let mut budget = BUDGET;
        loop {
            let before = [Side::Client, Side::Backend].map(|side| self.relay.failure(side));
            for from in [Side::Client, Side::Backend] {
                self.pump(from, cx, meter, &mut budget);
            }
            if let Some(outcome) = self.relay.outcome() {
                return Poll::Ready(outcome);
            }
            if budget == 0 {
                give_way(cx);
                return Poll::Pending;
            }
            for side in [Side::Client, Side::Backend] {
                self.watch(side, cx);
            }
            self.note(meter);
            // One direction learnt that a side broke: it may be what the other waited for.
            if before == [Side::Client, Side::Backend].map(|side| self.relay.failure(side)) {
                return Poll::Pending;
            }
        }
    }

    /// Bytes written so far, both ways.
    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    /// Whether this side broke, now that nothing but its reset is awaited.
    pub(super) fn poll_broken(&mut self, side: Side, cx: &mut Context<'_>) -> Poll<()> {
        self.socket(side).poll_broken(cx).map(drop)
    }

    /// Bytes that came from the other side and that this side has not acknowledged; -1: not known.
    pub(super) fn unsent(&self, to: Side) -> i64 {
        let held = self.relay.held(to.other());
        // The end of the stream counts as one byte until it is acknowledged.
        let end = u32::from(self.relay.has_shut(to.other()));
        match self.socket(to).unsent() {
            Ok(queued) => i64::try_from(held).unwrap_or(i64::MAX).saturating_add(i64::from(queued.saturating_sub(end))),
            Err(_) => -1,
        }
    }

    /// Closes both sides in good order, unless the kernel has bytes of theirs that nobody read.
    pub(super) fn finish(self) {
        if self.is_shared {
            return self.finish_shared();
        }
        if !self.relay.has_shut(Side::Client) || !self.relay.has_shut(Side::Backend) {
            self.linger_off();
        }
        self.close();
    }

    pub(super) fn reset(self) {
        if self.is_shared {
            return self.reset_shared();
        }
        self.client.reset();
        self.backend.reset();
        self.close();
    }

    fn linger_off(&self) {
        self.client.linger_off();
        self.backend.linger_off();
    }

    fn close(self) {
        self.pipes.into_iter().flatten().for_each(Pipe::give_back);
    }

    fn pump(&mut self, from: Side, cx: &mut Context<'_>, meter: &Meter, budget: &mut usize) {
        while *budget > 0 {
            let moved = match self.relay.step(from) {
                Step::Receive => self.pass(from, cx, meter),
                Step::SpliceIn => self.splice_in(from, cx, meter),
                Step::Send | Step::SpliceOut => self.write(from, cx, meter),
                Step::Shutdown => self.shutdown(from, meter),
                Step::Rest => return,
            };
            self.note(meter);
            match moved {
                Poll::Ready(n) => *budget = budget.saturating_sub(n + STEP_COST),
                Poll::Pending => return,
            }
        }
    }

    /// One read and one write.
    fn pass(&mut self, from: Side, cx: &mut Context<'_>, meter: &Meter) -> Poll<usize> {
        #[cfg(debug_assertions)]
        super::crash::if_asked(self.socket(from).as_fd());
        BUFFER_OF_THREAD.with_borrow_mut(|buffer| {
            let n = match ready!(self.socket(from).poll_receive(cx, buffer)) {
                Ok(0) => {
                    self.relay.ended(from);
                    return Poll::Ready(0);
                }
                Ok(n) => n,
                Err(e) => {
                    self.relay.read_failed(from, failure(&e));
                    return Poll::Ready(0);
                }
            };
            let (bytes, filled) = (buffer.get(..n).unwrap_or_default(), n == buffer.len());
            meter.read(from, n);
            self.before_write(from);
            let written = self.result_of_write(from, self.socket(from.other()).send(bytes), n, meter);
            self.relay.passed(from, bytes, written, filled);
            Poll::Ready(n)
        })
    }

    fn splice_in(&mut self, from: Side, cx: &mut Context<'_>, meter: &Meter) -> Poll<usize> {
        #[cfg(debug_assertions)]
        super::crash::if_asked(self.socket(from).as_fd());
        let Some(pipe) = self.pipes[index(from)].take().or_else(Pipe::take) else {
            self.relay.no_pipe(from);
            return Poll::Ready(0);
        };
        match self.socket(from).poll_splice_in(cx, &pipe) {
            Poll::Ready(Ok(n @ 1..)) => {
                meter.read(from, n);
                self.relay.spliced_in(from, n);
                self.pipes[index(from)] = Some(pipe);
                return Poll::Ready(n);
            }
            Poll::Ready(Ok(0)) => self.relay.ended(from),
            Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::InvalidInput && !self.relay.only_splices() => {
                self.relay.no_pipe(from);
            }
            Poll::Ready(Err(e)) => self.relay.read_failed(from, failure(&e)),
            Poll::Pending => {
                self.put_down(from, pipe);
                return Poll::Pending;
            }
        }
        self.put_down(from, pipe);
        Poll::Ready(0)
    }

    fn write(&mut self, from: Side, cx: &mut Context<'_>, meter: &Meter) -> Poll<usize> {
        let blocked = self.blocked[index(from)];
        if blocked && let Err(e) = ready!(self.socket(from.other()).poll_room(cx)) {
            self.relay.failed(from.other(), failure(&e));
            return Poll::Ready(0);
        }
        self.blocked[index(from)] = false;
        self.before_write(from);
        let sink = self.socket(from.other());
        match &self.pipes[index(from)] {
            Some(pipe) if self.relay.in_pipe(from) > 0 => {
                let wanted = self.relay.in_pipe(from);
                let written = self.result_of_write(from, sink.splice_out(pipe, wanted), wanted, meter);
                self.relay.spliced_out(from, written);
                self.keep_or_give_pipe(from);
                self.wait_if_blocked(from, cx, written)
            }
            _ => {
                let bytes = self.relay.in_hand(from);
                let (result, wanted) = (sink.send(bytes), bytes.len());
                let written = self.result_of_write(from, result, wanted, meter);
                self.relay.written(from, written);
                self.wait_if_blocked(from, cx, written)
            }
        }
    }

    fn before_write(&mut self, from: Side) {
        if from == Side::Backend || self.to_backend == Nagle::Off {
            return;
        }
        self.to_backend = match self.to_backend {
            Nagle::Fresh => Nagle::Wrote,
            Nagle::Wrote | Nagle::Off => {
                self.backend.nagle_off();
                Nagle::Off
            }
        };
    }

    /// Notes what a write did: bytes that went, no room, or a broken sink.
    fn result_of_write(&mut self, from: Side, result: io::Result<usize>, wanted: usize, meter: &Meter) -> usize {
        match result {
            Ok(n) => {
                meter.wrote(from.other(), n);
                self.moved += n as u64;
                if n < wanted {
                    self.blocked[index(from)] = true;
                    self.socket(from.other()).forget_room();
                }
                n
            }
            Err(e) => {
                self.relay.failed(from.other(), failure(&e));
                0
            }
        }
    }

    fn wait_if_blocked(&mut self, from: Side, cx: &mut Context<'_>, written: usize) -> Poll<usize> {
        if self.blocked[index(from)] {
            // An error of the runtime itself: the next write tells.
            let _ = ready!(self.socket(from.other()).poll_room(cx));
        }
        Poll::Ready(written)
    }

    fn keep_or_give_pipe(&mut self, from: Side) {
        let is_spent = |pipe: &mut Pipe| !self.relay.splices(from) || pipe.writer.is_none();
        if self.relay.in_pipe(from) == 0
            && let Some(pipe) = self.pipes[index(from)].take_if(is_spent)
        {
            pipe.give_back();
        }
    }

    fn shutdown(&mut self, from: Side, meter: &Meter) -> Poll<usize> {
        if self.is_shared {
            self.before_shutdown(from, meter);
        } else if self.relay.has_shut(from.other()) {
            // The last end: nothing of this session is in this process any more, so what the kernel holds is delivered
            // even after a close, and the close that follows at once says the end.
            self.linger_off();
            self.relay.shut(from);
            return Poll::Ready(0);
        }
        match self.socket(from.other()).shutdown() {
            Ok(()) => self.relay.shut(from),
            Err(e) => self.relay.failed(from.other(), failure(&e)),
        }
        Poll::Ready(0)
    }

    /// A side that is not read (its bytes wait for the other, or it has ended) would break unseen.
    fn watch(&mut self, side: Side, cx: &mut Context<'_>) {
        let is_read = matches!(self.relay.step(side), Step::Receive | Step::SpliceIn);
        if is_read || self.relay.failure(side).is_some() {
            return;
        }
        if let Poll::Ready(e) = self.socket(side).poll_broken(cx) {
            self.relay.failed(side, failure(&e));
        }
    }
}

fn failure(e: &io::Error) -> Failure {
    match e.kind() {
        io::ErrorKind::TimedOut => Failure::Timeout,
        _ => Failure::Reset,
    }
}
