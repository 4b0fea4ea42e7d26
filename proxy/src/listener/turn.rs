//! Whose turn it is to poll a listening socket. One thread at a time does: were all of them woken for each connection, all
//! but one would be so for nothing. The turn moves on when another thread has fewer sessions, which also spreads them.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::session::Census;

/// Shared by the accept loops of one socket, one on each thread.
#[derive(Debug)]
pub struct Turn {
    holder: AtomicUsize,
    /// When it moved on last, milliseconds.
    passed_ms: AtomicU64,
    /// By thread: told when it is its turn.
    called: Box<[Notify]>,
    pace: Pace,
}

/// Whether sessions stay. Written by whoever has the turn.
#[derive(Debug, Default)]
struct Pace {
    accepted: AtomicUsize,
    /// Sessions at the last look.
    live: AtomicUsize,
    churns: AtomicBool,
}

impl Turn {
    pub fn new(threads: usize, first: usize) -> Self {
        let called = (0..threads).map(|_| Notify::new()).collect();
        Self {
            holder: AtomicUsize::new(first % threads.max(1)),
            passed_ms: AtomicU64::new(0),
            called,
            pace: Pace::default(),
        }
    }

    pub(super) fn is_of(&self, thread: usize) -> bool {
        self.holder.load(Ordering::Acquire) == thread
    }

    /// Resolves when it may be this thread's turn. Cancel-safe.
    pub(super) async fn called(&self, thread: usize) {
        match self.called.get(thread) {
            Some(called) => called.notified().await,
            None => std::future::pending().await,
        }
    }

    /// After an accept: moves on to the thread with the fewest sessions, if this one has clearly more, or has a few more and the
    /// turn rested for a moment. Says whether it did. The clock may be coarse.
    pub(super) fn pass_on(&self, thread: usize, census: &Census, now_ms: u64) -> bool {
        let (burst, rest_ms) = if self.pace.churns(census) { CHURNING } else { STAYING };
        let (Some(mine), Some((least, next))) = (census.of_thread(thread), census.least_busy()) else { return false };
        let surplus = mine.saturating_sub(least + least / SLACK);
        let rested = now_ms.saturating_sub(self.passed_ms.load(Ordering::Relaxed)) >= rest_ms;
        if surplus <= 1 || (surplus <= burst && !rested) {
            return false;
        }
        self.passed_ms.store(now_ms, Ordering::Relaxed);
        self.holder.store(next, Ordering::Release);
        self.called.get(next).inspect(|next| next.notify_one());
        true
    }
}

impl Pace {
    /// Looks again after so many accepts: whether about as many sessions have ended.
    fn churns(&self, census: &Census) -> bool {
        if (self.accepted.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(LOOK) {
            let live = census.of_all_threads();
            let grown = live.saturating_sub(self.live.swap(live, Ordering::Relaxed));
            self.churns.store(grown < LOOK / 4, Ordering::Relaxed);
        }
        self.churns.load(Ordering::Relaxed)
    }
}

/// Few sessions are spread evenly, many within an eighth: each passing on costs three calls and a wake-up.
const SLACK: usize = 8;

/// Accepts between two looks.
const LOOK: usize = 64;

/// Sessions that one thread may have more than another within so many milliseconds after the turn was passed on. Those that stay
/// are spread as they come: a tip is followed once in a tick of the clock.
const STAYING: (usize, u64) = (4, 1);

/// Sessions that come and go tip the balance at nearly every accept, and few of them are cheaper together: on two threads each
/// wait for events finds less, and a session of one exchange costs two context switches more.
const CHURNING: (usize, u64) = (16, 1000);

#[cfg(test)]
mod tests {
    use super::*;

    /// Sessions accepted by two threads in turn, so many in a tick of the clock, none of which ends.
    fn spread(sessions: u64, per_ms: u64) -> [usize; 2] {
        let (turn, census) = (Turn::new(2, 0), Census::new(usize::MAX, 2));
        for session in 0..sessions {
            let thread = usize::from(!turn.is_of(0));
            census.seated(thread);
            turn.pass_on(thread, &census, 1 + session / per_ms);
        }
        [0, 1].map(|thread| census.of_thread(thread).unwrap())
    }

    #[test]
    fn few_sessions_are_spread_evenly_and_many_nearly() {
        assert_eq!(spread(4, 4), [2, 2]);
        for sessions in [1, 2, 3, 10, 50, 1000] {
            for (per_ms, most) in [(1, 2), (100, STAYING.0 + 1)] {
                let [a, b] = spread(sessions, per_ms);
                assert_eq!(a + b, usize::try_from(sessions).unwrap());
                assert!(a.abs_diff(b) <= most + a.min(b) / SLACK, "{a} and {b}");
            }
        }
    }

    /// So many at a time, of which the oldest ends when the next comes; gives how often the turn was passed on in 100 ms.
    fn churn(at_a_time: usize) -> (usize, [usize; 2]) {
        let (turn, census) = (Turn::new(2, 0), Census::new(usize::MAX, 2));
        let (mut live, mut passed, mut seen) = (std::collections::VecDeque::new(), 0, [0; 2]);
        for session in 0..1200_u64 {
            if live.len() == at_a_time {
                live.pop_front().inspect(|thread| census.unseated(*thread));
            }
            let thread = usize::from(!turn.is_of(0));
            census.seated(thread);
            live.push_back(thread);
            let counted = session >= 200;
            passed += usize::from(turn.pass_on(thread, &census, 1000 + session / 10) && counted);
            seen[thread] += usize::from(counted);
        }
        (passed, seen)
    }

    #[test]
    fn few_that_come_and_go_stay_together_and_many_do_not() {
        assert!(churn(8).0 <= 3, "{:?}", churn(8));
        let (passed, [one, other]) = churn(200);
        assert!(passed > 3 && one.min(other) > 300, "{passed} {one} {other}");
    }

    #[tokio::test]
    async fn the_next_thread_is_told_even_before_it_listens() {
        let (turn, census) = (Turn::new(2, 0), Census::new(usize::MAX, 2));
        census.seated(0);
        assert!(!turn.pass_on(0, &census, 1), "one session more is no reason");
        census.seated(0);
        assert!(turn.pass_on(0, &census, 1));
        assert!(turn.is_of(1) && !turn.is_of(0));
        turn.called(1).await;
    }
}
