//! Whose turn it is to poll a listening socket. One thread at a time does: were all of them woken for each connection, all
//! but one would be so for nothing. The turn moves on when another thread has fewer sessions, which also spreads them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

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
}

impl Turn {
    pub fn new(threads: usize, first: usize) -> Self {
        let called = (0..threads).map(|_| Notify::new()).collect();
        Self { holder: AtomicUsize::new(first % threads.max(1)), passed_ms: AtomicU64::new(0), called }
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

    /// Moves on to the thread with the fewest sessions, if this one has clearly more, or has a few more and the turn rested for
    /// a moment. Says whether it did. The clock may be coarse.
    pub(super) fn pass_on(&self, thread: usize, census: &Census, now_ms: u64) -> bool {
        let (Some(mine), Some((least, next))) = (census.of_thread(thread), census.least_busy()) else { return false };
        let surplus = mine.saturating_sub(least + least / SLACK);
        if surplus <= 1 || (surplus <= BURST && self.passed_ms.load(Ordering::Relaxed) == now_ms) {
            return false;
        }
        self.passed_ms.store(now_ms, Ordering::Relaxed);
        self.holder.store(next, Ordering::Release);
        self.called.get(next).inspect(|next| next.notify_one());
        true
    }
}

/// Few sessions are spread evenly, many within an eighth: each passing on costs three calls and a wake-up.
const SLACK: usize = 8;

/// Sessions that come and go within a millisecond tip the balance at nearly every accept; such a tip is followed once in a
/// tick of the clock.
const BURST: usize = 4;

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
            for (per_ms, most) in [(1, 2), (100, BURST + 1)] {
                let [a, b] = spread(sessions, per_ms);
                assert_eq!(a + b, usize::try_from(sessions).unwrap());
                assert!(a.abs_diff(b) <= most + a.min(b) / SLACK, "{a} and {b}");
            }
        }
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
