//! The clocks of the data plane. Milliseconds and nanoseconds are of `CLOCK_MONOTONIC`, which all processes of a machine
//! share, so that they can be compared between generations.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds, as of the last timer tick (at most 10 ms old): read at every wake of a session, so it must cost nothing.
pub fn coarse_ms() -> u64 {
    whole(clock(ClockId::MonotonicCoarse).as_millis())
}

/// Nanoseconds, exact.
pub fn exact_ns() -> u64 {
    whole(clock(ClockId::Monotonic).as_nanos())
}

/// Microseconds since 1970.
pub fn unix_us() -> u64 {
    whole(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros())
}

/// A duration in whole milliseconds.
pub fn ms(duration: Duration) -> u64 {
    whole(duration.as_millis())
}

fn clock(id: ClockId) -> Duration {
    // A monotonic clock counts from the start of the machine: never negative.
    Duration::try_from(clock_gettime(id)).unwrap_or_default()
}

fn whole(n: u128) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
