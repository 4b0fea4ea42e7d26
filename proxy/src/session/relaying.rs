//! A session that has its backend: the engine, the timeouts around it, and the truth of its end.

use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, Sleep, sleep_until};

use super::clock;
use super::ending::Unsent;
use super::engine::{Engine, Parts, Unfit};
use super::meter::Meter;
use super::pipe::Pipe;
use super::relay::{Failure, Outcome, Side};
use super::socket::Socket;
use crate::config::{ForcedClose, TcpSettings, Timeouts};
use crate::observe::reason::Reason;

/// A side that is to be reset has this long to take any more of what it was sent, before it is reset all the same.
const LAST_BYTES: Duration = Duration::from_secs(5);

/// Between two looks at what that side has not acknowledged, for which the kernel has no event: the first, the longest.
const LOOK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

#[derive(Debug)]
pub(super) struct Relaying {
    engine: Engine,
    last_words: Option<LastWords>,
    /// Since one direction is over, milliseconds.
    half_closed_ms: Option<u64>,
    broken: Option<Broken>,
    /// Made when a timeout first applies; it may go off early and is then set anew, so that traffic never touches it.
    alarm: Option<Pin<Box<Sleep>>>,
}

/// A side broke, and what it had sent is not all written to the other.
#[derive(Debug)]
struct Broken {
    reason: Reason,
    /// Bytes moved by us, and bytes not acknowledged: either changes with any progress.
    mark: (u64, i64),
    progress_ms: u64,
}

/// A side broke: the other gets what is still on its way to it, then the reset.
#[derive(Debug)]
struct LastWords {
    to: Side,
    reason: Reason,
    unsent: i64,
    progress_ms: u64,
    look: Duration,
}

/// Why it is over, and what is left to do to the sockets.
#[derive(Debug)]
pub(super) struct Over {
    pub(super) reason: Reason,
    pub(super) how: ForcedClose,
}

/// Clocks of a session that go on with it elsewhere; milliseconds of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Clocks {
    /// Since when one direction is over.
    half_closed_ms: Option<u64>,
    stuck: Option<Stuck>,
}

/// Since when the side that is left takes nothing, and how much was on its way to it then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stuck {
    since_ms: u64,
    unsent: i64,
}

impl Relaying {
    pub(super) fn new(client: Socket, backend: Socket) -> Self {
        Self::of(Engine::new(client, backend))
    }

    fn of(engine: Engine) -> Self {
        Self { engine, last_words: None, half_closed_ms: None, broken: None, alarm: None }
    }

    /// Nothing but the last acknowledgements before a reset is awaited: that is over in seconds, wherever it is.
    pub(super) fn is_ending(&self) -> bool {
        self.last_words.is_some()
    }

    /// Stopped at a byte boundary, out of the runtime. What is not in the parts or the clocks is found again from them.
    pub(super) fn into_parts(self) -> (Parts, Clocks) {
        let stuck =
            self.broken.map(|Broken { mark: (_, unsent), progress_ms, .. }| Stuck { since_ms: progress_ms, unsent });
        (self.engine.into_parts(), Clocks { half_closed_ms: self.half_closed_ms, stuck })
    }

    pub(super) fn from_parts(parts: Parts, clocks: Clocks) -> Result<Self, Unfit> {
        let engine = Engine::from_parts(parts)?;
        let broken = engine.relay.broken().zip(clocks.stuck).map(|((side, failure), stuck)| Broken {
            reason: reason_of(side, failure),
            mark: (engine.moved(), stuck.unsent),
            progress_ms: stuck.since_ms,
        });
        Ok(Self { half_closed_ms: clocks.half_closed_ms, broken, ..Self::of(engine) })
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>, meter: &Meter, timeouts: &Timeouts) -> Poll<Over> {
        if self.last_words.is_none() {
            let before = meter.bytes();
            let outcome = self.engine.poll(cx, meter);
            let now = clock::coarse_ms();
            if meter.bytes() != before {
                meter.touch(now);
            }
            match outcome {
                Poll::Ready(Outcome::Orderly { first }) => return Poll::Ready(Over::orderly(first)),
                Poll::Ready(Outcome::Broken { side, failure }) => self.speak_last(side, failure, now),
                Poll::Pending => return self.poll_timeouts(cx, meter, timeouts, now),
            }
        }
        self.poll_last_words(cx)
    }

    pub(super) fn keep(&self, settings: &TcpSettings) -> io::Result<()> {
        self.engine.socket(Side::Backend).set_lasting(settings)
    }

    pub(super) fn unsent(&self) -> Unsent {
        Unsent { to_client: self.engine.unsent(Side::Client), to_backend: self.engine.unsent(Side::Backend) }
    }

    /// All of it can be held by others from now on, before its first byte.
    pub(super) fn splice_only(&mut self, pipes: [Pipe; 2]) {
        self.engine.splice_only(pipes);
    }

    pub(super) fn splice_freely(&mut self) {
        self.engine.splice_freely();
    }

    /// See [`Engine::is_shared`].
    pub(super) fn is_shared(&self) -> bool {
        self.engine.is_shared()
    }

    /// See [`Engine::belongings`].
    pub(super) fn belongings(&self) -> Option<[BorrowedFd<'_>; 4]> {
        self.engine.belongings()
    }

    pub(super) fn close(self, how: ForcedClose) {
        match how {
            ForcedClose::Fin => self.engine.finish(),
            ForcedClose::Reset => self.engine.reset(),
        }
    }

    fn poll_timeouts(&mut self, cx: &mut Context<'_>, meter: &Meter, timeouts: &Timeouts, now: u64) -> Poll<Over> {
        if self.half_closed_ms.is_none() && self.engine.relay.is_half_closed() {
            self.half_closed_ms = Some(now);
            // Its timeout may be nearer than what the alarm is set to.
            self.alarm = None;
        }
        self.note_progress(now);
        while let Some((due, reason)) = self.deadline(meter, timeouts) {
            let now = clock::coarse_ms();
            if due <= now && !self.note_progress(now) {
                return Poll::Ready(Over { reason, how: ForcedClose::Reset });
            }
            ready!(self.poll_alarm(cx, due.saturating_sub(now)));
        }
        Poll::Pending
    }

    /// Once a side broke, what it sent must go on being taken by the other. Says whether it was.
    fn note_progress(&mut self, now: u64) -> bool {
        let Some((side, failure)) = self.engine.relay.broken() else { return false };
        let mark = (self.engine.moved(), self.engine.unsent(side.other()));
        if self.broken.as_ref().is_some_and(|broken| broken.mark == mark) {
            return false;
        }
        if self.broken.is_none() {
            self.alarm = None;
        }
        self.broken = Some(Broken { reason: reason_of(side, failure), mark, progress_ms: now });
        true
    }

    /// Sets the alarm unless it is set. When it goes off it is gone.
    fn poll_alarm(&mut self, cx: &mut Context<'_>, after_ms: u64) -> Poll<()> {
        let alarm =
            self.alarm.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + Duration::from_millis(after_ms))));
        ready!(alarm.as_mut().poll(cx));
        self.alarm = None;
        Poll::Ready(())
    }

    /// The timeout that comes first, and what it is.
    fn deadline(&self, meter: &Meter, timeouts: &Timeouts) -> Option<(u64, Reason)> {
        let after =
            |since: u64, timeout: Option<Duration>| timeout.map(|timeout| since.saturating_add(clock::ms(timeout)));
        let last_byte = meter.last_byte_ms();
        let half = self.half_closed_ms.and_then(|since| after(since.max(last_byte), timeouts.half_close));
        [
            after(last_byte.max(meter.opened_ms()), timeouts.idle).map(|due| (due, Reason::IdleTimeout)),
            half.map(|due| (due, Reason::HalfCloseTimeout)),
            after(meter.opened_ms(), timeouts.max_lifetime).map(|due| (due, Reason::MaxLifetime)),
            self.broken
                .as_ref()
                .map(|broken| (broken.progress_ms.saturating_add(clock::ms(LAST_BYTES)), broken.reason)),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(due, _)| *due)
    }

    fn speak_last(&mut self, broken: Side, failure: Failure, now: u64) {
        let reason = reason_of(broken, failure);
        let to = broken.other();
        let unsent = if self.engine.relay.failure(to).is_some() { 0 } else { self.engine.unsent(to) };
        self.alarm = None;
        self.last_words = Some(LastWords { to, reason, unsent, progress_ms: now, look: LOOK.0 });
    }

    fn poll_last_words(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        let Some(mut words) = self.last_words.take() else { return Poll::Pending };
        let over = Poll::Ready(Over { reason: words.reason, how: ForcedClose::Reset });
        loop {
            let late = clock::coarse_ms().saturating_sub(words.progress_ms) >= clock::ms(LAST_BYTES);
            // An error (-1) means that there is no connection to wait for.
            if words.unsent <= 0 || late || self.engine.poll_broken(words.to, cx).is_ready() {
                return over;
            }
            if self.poll_alarm(cx, clock::ms(words.look)).is_pending() {
                self.last_words = Some(words);
                return Poll::Pending;
            }
            let unsent = self.engine.unsent(words.to);
            if unsent != words.unsent {
                words.progress_ms = clock::coarse_ms();
            }
            words.unsent = unsent;
            words.look = (words.look * 2).min(LOOK.1);
        }
    }
}

fn reason_of(broken: Side, failure: Failure) -> Reason {
    match (failure, broken) {
        (Failure::Timeout, _) => Reason::UserTimeout,
        (Failure::Reset, Side::Client) => Reason::ClientReset,
        (Failure::Reset, Side::Backend) => Reason::BackendReset,
    }
}

impl Over {
    fn orderly(first: Side) -> Self {
        let reason = match first {
            Side::Client => Reason::ClientClosed,
            Side::Backend => Reason::BackendClosed,
        };
        Self { reason, how: ForcedClose::Fin }
    }
}
