//! What is counted in the ledger, and in which cell: the one place where names meet cells.

use handoff::ledger::NameSpec;

use super::reason::{Cause, ConnectFailure, Paused, Reason};

/// Kinds of names.
pub const PROCESS: u16 = 1;
pub const LISTENER: u16 = 2;
pub const POOL: u16 = 3;
pub const BACKEND: u16 = 4;
pub const ROUTE: u16 = 5;
/// What the keeper itself counts; one name with an empty text.
pub const KEEPER: u16 = 6;

/// Between the labels of one name; cannot occur in a label.
pub const SEPARATOR: char = '\u{1f}';

/// Cells of [`LISTENER`].
pub mod listener {
    use super::Reason;

    /// Bytes from the client.
    pub const RECEIVED: u32 = 0;
    /// Bytes to the client.
    pub const SENT: u32 = 1;
    const CLOSED: u32 = 2;
    /// Room for reasons of later versions.
    pub const COUNTERS: u32 = CLOSED + 40;

    pub fn closed(reason: Reason) -> u32 {
        CLOSED + reason.index()
    }

    /// Gauges: sessions held against `max_sessions`, then one flag for each [`super::Paused`].
    pub const HELD: u32 = 0;
    const PAUSED: u32 = 1;
    pub const GAUGES: u32 = PAUSED + 7;

    pub fn paused(why: super::Paused) -> u32 {
        PAUSED + why.index()
    }
}

/// Cells of [`BACKEND`].
pub mod backend {
    use super::ConnectFailure;

    pub const SESSIONS: u32 = 0;
    /// Both directions.
    pub const BYTES: u32 = 1;
    const CONNECT_FAILED: u32 = 2;
    pub const COUNTERS: u32 = CONNECT_FAILED + 8;

    pub fn connect_failed(why: ConnectFailure) -> u32 {
        CONNECT_FAILED + why.index()
    }
}

/// Cells of [`ROUTE`].
pub mod route {
    pub const SESSIONS: u32 = 0;
    pub const COUNTERS: u32 = 1;
}

/// Cells of [`PROCESS`], which has one name with an empty text.
pub mod process {
    use std::time::Duration;

    use super::Cause;

    const FORCED: u32 = 0;
    const FORCED_UNSENT: u32 = 8;
    const SESSION_SECONDS: u32 = 16;
    const CONNECT_SECONDS: u32 = SESSION_SECONDS + Histogram::CELLS;
    pub const COUNTERS: u32 = CONNECT_SECONDS + Histogram::CELLS;

    pub fn forced(cause: Cause) -> u32 {
        FORCED + cause.index()
    }

    pub fn forced_unsent(cause: Cause) -> u32 {
        FORCED_UNSENT + cause.index()
    }

    pub const SESSION: Histogram = Histogram {
        first: SESSION_SECONDS,
        bounds: &[0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21600.0, 86400.0, 604_800.0],
    };
    pub const CONNECT: Histogram = Histogram {
        first: CONNECT_SECONDS,
        bounds: &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0],
    };

    /// A cell for each bound, one for what is beyond the last, one for the sum in microseconds.
    #[derive(Debug, Clone, Copy)]
    pub struct Histogram {
        pub first: u32,
        pub bounds: &'static [f64],
    }

    impl Histogram {
        pub const CELLS: u32 = 16;
        const SUM: u32 = 15;

        /// The cell that counts a value of so many seconds.
        pub fn bucket(&self, seconds: f64) -> u32 {
            self.first + u32::try_from(self.bounds.iter().take_while(|bound| seconds > **bound).count()).unwrap_or(0)
        }

        /// The cell of values above the last bound.
        pub fn beyond(&self) -> u32 {
            self.first + u32::try_from(self.bounds.len()).unwrap_or(0)
        }

        /// What a value of so many seconds adds: to which cell, how much.
        pub fn adds(&self, seconds: f64) -> [(u32, u64); 2] {
            let micros = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_micros();
            [(self.bucket(seconds), 1), (self.sum(), u64::try_from(micros).unwrap_or(u64::MAX))]
        }

        /// The cell that sums microseconds.
        pub fn sum(&self) -> u32 {
            self.first + Self::SUM
        }
    }
}

/// Cells of [`KEEPER`]: a label's place in its list is its place here, so that new labels are added at the end only.
pub mod keeper {
    pub use super::process::Histogram;

    pub const UPGRADES: Counted = Counted { first: 0, labels: &["committed", "rolled_back", "failed"] };
    pub const RELOADS: Counted = Counted { first: 8, labels: &["applied", "refused"] };
    pub const RESTARTS: Counted = Counted { first: 16, labels: &["exit", "signal", "unknown"] };
    /// In the rest of the room of the one before: what an older version has made has no more cells.
    pub const MOVED: Counted = Counted { first: 20, labels: &["moved", "left"] };
    /// In the rest of that.
    pub const RECOVERED: Counted = Counted { first: 22, labels: &["recovered", "lost"] };
    /// Steps of an upgrade, each with a histogram.
    pub const STEPS: &[&str] = &["preflight", "spawn", "offer", "ready", "commit", "probation", "move", "finish"];
    const GAP_SECONDS: u32 = 24;
    const STEP_SECONDS: u32 = GAP_SECONDS + Histogram::CELLS;
    /// The last of sixteen, which leaves room for steps of later versions.
    const PAUSE_SECONDS: u32 = STEP_SECONDS + 15 * Histogram::CELLS;
    pub const COUNTERS: u32 = PAUSE_SECONDS + Histogram::CELLS;

    /// 0.1 ms to 30 s: from a step that is one message to a generation that takes its whole `ready_timeout`.
    const SECONDS: &[f64] = &[0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

    pub const GAP: Histogram = Histogram { first: GAP_SECONDS, bounds: SECONDS };
    pub const PAUSE: Histogram = Histogram { first: PAUSE_SECONDS, bounds: SECONDS };

    /// `None`: not a step that is measured.
    pub fn step(step: &str) -> Option<Histogram> {
        let place = u32::try_from(STEPS.iter().position(|known| *known == step)?).ok()?;
        Some(Histogram { first: STEP_SECONDS + place * Histogram::CELLS, bounds: SECONDS })
    }

    /// A counter for each of some labels.
    #[derive(Debug, Clone, Copy)]
    pub struct Counted {
        first: u32,
        pub labels: &'static [&'static str],
    }

    impl Counted {
        pub fn cell(&self, label: &str) -> Option<u32> {
            let place = self.labels.iter().position(|known| *known == label)?;
            Some(self.first + u32::try_from(place).ok()?)
        }
    }

    /// Whether every list ends before the next cells begin.
    const _: () = {
        assert!(UPGRADES.labels.len() <= 8 && RELOADS.labels.len() <= 8);
        assert!(RESTARTS.labels.len() <= 4 && MOVED.labels.len() <= 2 && RECOVERED.labels.len() <= 2);
        assert!(STEPS.len() <= 15);
    };
}

/// The backend of the text of a [`BACKEND`] name.
pub fn last_label(text: &str) -> &str {
    text.rsplit(SEPARATOR).next().unwrap_or(text)
}

pub fn process() -> NameSpec {
    NameSpec { kind: PROCESS, text: String::new(), counters: process::COUNTERS, gauges: 0 }
}

pub fn keeper() -> NameSpec {
    NameSpec { kind: KEEPER, text: String::new(), counters: keeper::COUNTERS, gauges: 0 }
}

pub fn listener(name: &str) -> NameSpec {
    NameSpec { kind: LISTENER, text: name.into(), counters: listener::COUNTERS, gauges: listener::GAUGES }
}

pub fn pool(name: &str) -> NameSpec {
    NameSpec { kind: POOL, text: name.into(), counters: 0, gauges: 0 }
}

pub fn backend(pool: &str, name: &str) -> NameSpec {
    NameSpec { kind: BACKEND, text: format!("{pool}{SEPARATOR}{name}"), counters: backend::COUNTERS, gauges: 0 }
}

pub fn route(listener: &str, pool: &str) -> NameSpec {
    NameSpec { kind: ROUTE, text: format!("{listener}{SEPARATOR}{pool}"), counters: route::COUNTERS, gauges: 0 }
}

/// Whether every word has its cell.
const _: () = {
    assert!(Reason::ALL.len() <= 40);
    assert!(Cause::ALL.len() <= 8);
    assert!(ConnectFailure::ALL.len() <= 8);
    assert!(Paused::ALL.len() <= 7);
};
