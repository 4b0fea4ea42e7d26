//! What is counted in the ledger, and in which cell: the one place where names meet cells.

use handoff::ledger::NameSpec;

use super::reason::{Cause, ConnectFailure, Paused, Reason};

/// Kinds of names.
pub const PROCESS: u16 = 1;
pub const LISTENER: u16 = 2;
pub const POOL: u16 = 3;
pub const BACKEND: u16 = 4;
pub const ROUTE: u16 = 5;

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
        const CELLS: u32 = 16;
        const SUM: u32 = 15;

        /// The cell that counts a value of so many seconds.
        pub fn bucket(&self, seconds: f64) -> u32 {
            self.first + u32::try_from(self.bounds.iter().take_while(|bound| seconds > **bound).count()).unwrap_or(0)
        }

        /// The cell of values above the last bound.
        pub fn beyond(&self) -> u32 {
            self.first + u32::try_from(self.bounds.len()).unwrap_or(0)
        }

        /// The cell that sums microseconds.
        pub fn sum(&self) -> u32 {
            self.first + Self::SUM
        }
    }
}

/// The backend of the text of a [`BACKEND`] name.
pub fn last_label(text: &str) -> &str {
    text.rsplit(SEPARATOR).next().unwrap_or(text)
}

pub fn process() -> NameSpec {
    NameSpec { kind: PROCESS, text: String::new(), counters: process::COUNTERS, gauges: 0 }
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
