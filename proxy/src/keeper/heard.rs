//! What a worker says of itself with its heartbeats, and for how long it has said nothing.

use std::collections::VecDeque;
use std::time::Duration;

use handoff::message::Pulse;
use tokio::time::Instant;

/// Sessions that looked for a backend, and those of them that found none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Searches {
    pub begun: u64,
    pub failed: u64,
}

#[derive(Debug)]
pub(super) struct Heard {
    last: Instant,
    /// One for each heartbeat of the last minute, and the one before.
    minute: VecDeque<(Instant, Searches)>,
}

const MINUTE: Duration = Duration::from_secs(60);
/// Fewer sessions prove nothing.
const ENOUGH: u64 = 20;

impl Heard {
    pub(super) fn new(now: Instant) -> Self {
        Self { last: now, minute: VecDeque::from([(now, Searches::default())]) }
    }

    pub(super) fn beat(&mut self, now: Instant, pulse: &Pulse) {
        self.last = now;
        let searches = Searches { begun: pulse.connects.unwrap_or(0), failed: pulse.failures.unwrap_or(0) };
        self.minute.push_back((now, searches));
        while self.minute.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= MINUTE) {
            self.minute.pop_front();
        }
    }

    /// Two heartbeats are missed, as far as the line tells; whether the loop has kept time is another question.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) >= LATE
    }

    /// Since its process began.
    pub(super) fn searches(&self) -> Searches {
        self.minute.back().map_or_else(Searches::default, |(_, searches)| *searches)
    }

    pub(super) fn last_minute(&self) -> Searches {
        let (now, then) = (self.searches(), self.minute.front().map_or_else(Searches::default, |(_, then)| *then));
        Searches { begun: now.begun.saturating_sub(then.begun), failed: now.failed.saturating_sub(then.failed) }
    }
}

impl Searches {
    /// More than half failed, of enough to judge by.
    pub(super) fn mostly_fail(self) -> bool {
        self.begun >= ENOUGH && self.failed > self.begun / 2
    }

    /// Less than one in twenty failed.
    pub(super) fn hardly_fail(self) -> bool {
        self.begun == 0 || self.failed.saturating_mul(20) < self.begun
    }
}

/// Whether the keeper itself has kept time. One that was stopped, or busy, has heard nobody: that is no silence of theirs.
#[derive(Debug)]
pub(super) struct Watch {
    last_tick: Instant,
    /// Every tick since then was in time.
    steady_since: Instant,
}

/// Ticks come each 500 ms.
const LATE: Duration = Duration::from_secs(1);

impl Watch {
    pub(super) fn new(now: Instant) -> Self {
        Self { last_tick: now, steady_since: now }
    }

    pub(super) fn tick(&mut self, now: Instant) {
        if now.duration_since(self.last_tick) >= LATE {
            self.steady_since = now;
        }
        self.last_tick = now;
    }

    /// For how long nothing was heard while we listened.
    pub(super) fn silence(&self, heard: &Heard, now: Instant) -> Duration {
        now.saturating_duration_since(heard.last.max(self.steady_since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pulse(begun: u64, failed: u64) -> Pulse {
        Pulse { sessions: 0, connects: Some(begun), failures: Some(failed) }
    }

    #[tokio::test]
    async fn the_last_minute_is_what_came_within_it() {
        let begin = Instant::now();
        let mut heard = Heard::new(begin);
        for second in 1..=200 {
            heard.beat(begin + SECOND * second, &pulse(u64::from(second) * 10, u64::from(second)));
        }
        assert_eq!(heard.searches(), Searches { begun: 2000, failed: 200 });
        assert_eq!(heard.last_minute(), Searches { begun: 600, failed: 60 });
        heard.beat(begin + SECOND * 201, &Pulse::default());
        assert_eq!(heard.last_minute(), Searches::default(), "a peer that does not count says nothing");
    }

    #[test]
    fn twenty_sessions_of_which_more_than_half_fail_are_many_and_one_in_twenty_is_not_few() {
        for (begun, failed, mostly, hardly) in
            [(0, 0, false, true), (19, 19, false, false), (20, 10, false, false), (20, 11, true, false)]
        {
            let searches = Searches { begun, failed };
            assert_eq!((searches.mostly_fail(), searches.hardly_fail()), (mostly, hardly), "{searches:?}");
        }
        assert!(!Searches { begun: 100, failed: 5 }.hardly_fail());
        assert!(Searches { begun: 100, failed: 4 }.hardly_fail());
    }

    #[tokio::test]
    async fn silence_counts_only_while_the_keeper_keeps_time() {
        let begin = Instant::now();
        let (heard, mut watch) = (Heard::new(begin), Watch::new(begin));
        let half = SECOND / 2;
        for tick in 1..=4 {
            watch.tick(begin + half * tick);
        }
        assert_eq!(watch.silence(&heard, begin + SECOND * 2), SECOND * 2);
        // Stopped for ten seconds.
        watch.tick(begin + SECOND * 12);
        assert_eq!(watch.silence(&heard, begin + SECOND * 12), Duration::ZERO);
        watch.tick(begin + SECOND * 12 + half);
        assert_eq!(watch.silence(&heard, begin + SECOND * 12 + half), half);
    }
}
