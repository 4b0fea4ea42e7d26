//! How long to wait before a crashed worker is started again.

use std::time::Duration;

use tokio::time::Instant;

/// 0, 50, 100, 200 ms ... 2 s; from the start again after 10 s of serving.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);
const STEADY: Duration = Duration::from_secs(10);

impl Backoff {
    /// After so many failures in a row, counted by an earlier keeper.
    pub(super) fn after(failures: u32) -> Self {
        Self { failures }
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// The wait after a failure; `served_since`: when the one that failed began to serve.
    pub(super) fn next(&mut self, served_since: Option<Instant>) -> Duration {
        if served_since.is_some_and(|since| since.elapsed() >= STEADY) {
            self.failures = 0;
        }
        let wait = match self.failures {
            0 => Duration::ZERO,
            n => LONGEST.min(FIRST * 2_u32.saturating_pow((n - 1).min(16))),
        };
        self.failures = self.failures.saturating_add(1);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn doubles_to_two_seconds_and_starts_again_after_ten_seconds_of_serving() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..9).map(|_| backoff.next(None).as_millis()).collect();
        assert_eq!(waits, [0, 50, 100, 200, 400, 800, 1600, 2000, 2000]);
        let since = Instant::now();
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(backoff.next(Some(since)).as_millis(), 2000);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(backoff.next(Some(since)).as_millis(), 0);
    }
}
