//! Which session brings its workers down: each thread of a worker says which one it works on, and one that is named by crash
//! after crash is not given to another worker.

use std::collections::HashMap;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::Instant;

use super::reaper::Exit;

/// Crashes in which sessions were being worked on, not long ago.
#[derive(Debug, Default)]
pub(super) struct Blame {
    marks: HashMap<u64, Vec<Instant>>,
}

/// One crash may be chance, two a coincidence.
const MARKS: usize = 3;
const WITHIN: Duration = Duration::from_secs(10);

/// What a process does to itself. A signal that others send to end it (KILL, TERM) says nothing of its sessions.
const CRASHES: [Signal; 5] = [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGABRT, Signal::SIGFPE];

impl Blame {
    /// A worker crashed while it worked on these sessions. Gives those that have brought down too many by now.
    pub(super) fn crashed(&mut self, worked_on: &[u64], now: Instant) -> Vec<u64> {
        self.marks.retain(|_, marks| {
            marks.retain(|at| now.duration_since(*at) < WITHIN);
            !marks.is_empty()
        });
        for id in worked_on {
            self.marks.entry(*id).or_default().push(now);
        }
        let (guilty, _): (Vec<u64>, Vec<u64>) =
            worked_on.iter().partition(|id| self.marks.get(id).is_some_and(|marks| marks.len() >= MARKS));
        guilty.iter().for_each(|id| drop(self.marks.remove(id)));
        guilty
    }
}

/// Of a worker that was another keeper's child nobody knows how it ended, unless it has confessed.
pub(super) fn is_crash(exit: Exit) -> bool {
    matches!(exit, Exit::Signal(number) if CRASHES.iter().any(|signal| *signal as i32 == number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_third_crash_within_ten_seconds_is_blamed_on_the_session_that_was_in_all() {
        let (mut blame, begin) = (Blame::default(), Instant::now());
        let after = |seconds| begin + Duration::from_secs(seconds);
        assert!(blame.crashed(&[7, 1], after(0)).is_empty());
        assert!(blame.crashed(&[7, 2], after(5)).is_empty());
        assert_eq!(blame.crashed(&[3, 7], after(9)), [7]);
        assert!(blame.crashed(&[7], after(9)).is_empty(), "what was said once is over");
    }

    #[tokio::test]
    async fn crashes_far_apart_are_nobodys_fault() {
        let (mut blame, begin) = (Blame::default(), Instant::now());
        for crash in 0..10 {
            assert!(blame.crashed(&[7], begin + Duration::from_secs(6) * crash).is_empty());
        }
    }

    #[test]
    fn what_others_do_to_a_process_is_no_crash() {
        let others = [Exit::Signal(Signal::SIGKILL as i32), Exit::Signal(Signal::SIGTERM as i32), Exit::Status(1)];
        assert!(!others.into_iter().chain([Exit::Unknown, Exit::Silent]).any(is_crash));
        assert!(CRASHES.iter().all(|signal| is_crash(Exit::Signal(*signal as i32))));
    }
}
