//! The end of a drain: forced closes, paced over the window before the timeout, those that lose least first.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::order::{Line, Order, Which};
use crate::config::ForcedClose;
use crate::observe::reason::{Cause, Reason};
use crate::session::{Ending, Measured, Scope, clock};

/// Shortest time between two rounds of closes.
const ROUND: Duration = Duration::from_millis(10);

/// Sweeps at the end: the second finds sessions that were being accepted during the first.
const SWEEPS: usize = 3;

/// What is to be drained, and by when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainOrder {
    pub scope: Scope,
    /// From now; `None`: never by force.
    pub timeout: Option<Duration>,
    /// Forced closes are paced over this long before the timeout ends.
    pub spread: Duration,
    pub close: ForcedClose,
    pub reason: Reason,
    pub cause: Cause,
    /// What of a listener or backend began later is not meant (milliseconds, as a session's beginning); `None`: as of now.
    pub begun_ms: Option<u64>,
}

/// Closes nothing before timeout - spread, and has closed all at the timeout.
pub(super) async fn run(order: DrainOrder, lines: Vec<Line>) {
    let begun_ms = order.begun_ms.unwrap_or_else(clock::coarse_ms);
    let Some(timeout) = order.timeout else { return };
    let spread = order.spread.min(timeout);
    let end = Instant::now() + timeout;
    let window = Window { start: end - spread, spread };
    sleep_until(window.start).await;
    let ending = Ending { reason: order.reason, cause: order.cause, how: order.close };
    let drain = Drain { begun_ms, ending, lines };
    drain.pace(&order.scope, &window).await;
    sleep_until(end).await;
    for _ in 0..SWEEPS {
        let left = drain.measure_scope(&order.scope).await;
        if left.is_empty() {
            return;
        }
        drain.close(&left).await;
    }
}

#[derive(Debug)]
struct Drain {
    /// What began later is not meant: a backend may have been enabled again.
    begun_ms: u64,
    ending: Ending,
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Window {
    start: Instant,
    spread: Duration,
}

/// A session that waits for its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    /// Position of its thread.
    line: usize,
    measured: Measured,
    /// It was busier than thought at its turn, and was put back: once, or the busy would never be closed.
    put_back: bool,
}

impl Drain {
    async fn pace(&self, scope: &Scope, window: &Window) {
        let mut queue: Queue = self.measure_scope(scope).await.into_iter().collect();
        let total = queue.0.len();
        let mut done = 0;
        while !queue.0.is_empty() {
            let due = window.due(total, Instant::now()).saturating_sub(done);
            let turn = queue.take(due);
            let still = self.measure(&turn).await;
            done += turn.len() - still.len();
            let closing = queue.put_back_busier(still);
            done += closing.len();
            self.close(&closing).await;
            sleep_until(window.time_of(done + 1, total).max(Instant::now() + ROUND)).await;
        }
    }

    async fn measure_scope(&self, scope: &Scope) -> Vec<Candidate> {
        let asked = (0..self.lines.len()).map(|line| (line, Which::Scope(scope.clone()), false)).collect();
        let mut found = self.ask(asked).await;
        if *scope != Scope::All {
            found.retain(|it| it.measured.opened_ms <= self.begun_ms);
        }
        found
    }

    /// Those that are gone are left out.
    async fn measure(&self, candidates: &[Candidate]) -> Vec<Candidate> {
        let mut asked = Vec::new();
        for (line, put_back) in (0..self.lines.len()).flat_map(|line| [(line, false), (line, true)]) {
            let theirs = candidates.iter().filter(|it| it.line == line && it.put_back == put_back);
            let ids: Vec<u64> = theirs.map(|it| it.measured.id).collect();
            if !ids.is_empty() {
                asked.push((line, Which::These(ids), put_back));
            }
        }
        self.ask(asked).await
    }

    async fn ask(&self, asked: Vec<(usize, Which, bool)>) -> Vec<Candidate> {
        let mut waiting = Vec::new();
        for (line, which, put_back) in asked {
            let answer = self.lines[line].tell(|answer| Order::Measure { which, answer }).await;
            waiting.push((line, put_back, answer));
        }
        let mut found = Vec::new();
        for (line, put_back, answer) in waiting {
            match answer.answer().await {
                Ok(measured) => {
                    found.extend(measured.into_iter().map(|measured| Candidate { line, measured, put_back }))
                }
                Err(e) => tracing::warn!("drain: {e}"),
            }
        }
        found
    }

    async fn close(&self, candidates: &[Candidate]) {
        for (position, line) in self.lines.iter().enumerate() {
            let theirs = candidates.iter().filter(|it| it.line == position);
            let ids: Vec<u64> = theirs.map(|it| it.measured.id).collect();
            if ids.is_empty() {
                continue;
            }
            let asked = line.tell(|answer| Order::Close { ids, ending: self.ending, answer }).await;
            if let Err(e) = asked.answer().await {
                tracing::warn!("drain: {e}");
            }
        }
    }
}

impl Window {
    /// How many of `total` are to be closed by now: the last at the very end.
    fn due(&self, total: usize, now: Instant) -> usize {
        let gone = now.saturating_duration_since(self.start);
        if gone >= self.spread {
            return total;
        }
        let due = total as u128 * gone.as_nanos() / self.spread.as_nanos();
        usize::try_from(due).unwrap_or(total)
    }

    /// When the `nth` of `total` is due.
    fn time_of(&self, nth: usize, total: usize) -> Instant {
        let nanos = self.spread.as_nanos() * nth.min(total) as u128 / total.max(1) as u128;
        self.start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Longest idle first among those with nothing unsent, then the rest by unsent bytes, fewest first.
type Rank = (bool, u64, u64);

impl Candidate {
    fn rank(&self) -> Rank {
        let Measured { id, idle_ms, unsent, .. } = self.measured;
        let known = unsent.to_client >= 0 && unsent.to_backend >= 0;
        match (known, unsent.total()) {
            (true, 0) => (false, u64::MAX - idle_ms, id),
            (true, bytes) => (true, bytes, id),
            (false, _) => (true, u64::MAX, id),
        }
    }
}

/// Sorted by rank.
#[derive(Debug)]
struct Queue(BTreeSet<Queued>);

#[derive(Debug, PartialEq, Eq)]
struct Queued(Candidate);

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.rank().cmp(&other.0.rank())
    }
}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Queue {
    fn take(&mut self, n: usize) -> Vec<Candidate> {
        std::iter::from_fn(|| self.0.pop_first()).take(n).map(|queued| queued.0).collect()
    }

    /// Those whose turn it is not any more go back; the others are to be closed.
    fn put_back_busier(&mut self, turn: Vec<Candidate>) -> Vec<Candidate> {
        let next = self.0.first().map(|queued| queued.0.rank());
        let is_busier = |it: &Candidate| !it.put_back && next.is_some_and(|next| it.rank() > next);
        let (busier, closing): (Vec<_>, Vec<_>) = turn.into_iter().partition(is_busier);
        self.0.extend(busier.into_iter().map(|it| Queued(Candidate { put_back: true, ..it })));
        closing
    }
}

impl FromIterator<Candidate> for Queue {
    fn from_iter<T: IntoIterator<Item = Candidate>>(candidates: T) -> Self {
        Self(candidates.into_iter().map(Queued).collect())
    }
}
