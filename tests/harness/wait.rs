//! Waiting for a condition, with a deadline: the only place of the tests where time passes without a reason of its own.

use std::time::{Duration, Instant};

/// Between two looks at a condition. Short beside everything a test waits for, long beside the cost of a look.
const BETWEEN: Duration = Duration::from_millis(5);

/// Returns once `condition` holds.
///
/// # Panics
/// If it still does not hold after `deadline`.
pub fn until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    until_some(what, deadline, || condition().then_some(()));
}

/// Returns once `look` has nothing to object to.
///
/// # Panics
/// With its last objection after `deadline`.
pub fn until_none(what: &str, deadline: Duration, mut look: impl FnMut() -> Option<String>) {
    let start = Instant::now();
    while let Some(objection) = look() {
        assert!(start.elapsed() < deadline, "waited {deadline:?} in vain until {what}: {objection}");
        pause();
    }
}

/// Returns once a time has come that a test has chosen, such as a random moment of an upgrade.
pub fn until_moment(moment: Instant) {
    while Instant::now() < moment {
        pause();
    }
}

/// Returns what `look` finds, once it finds something.
///
/// # Panics
/// If it has found nothing after `deadline`.
pub fn until_some<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < deadline, "waited {deadline:?} in vain until {what}");
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the wait between two looks at a condition with a deadline")]
fn pause() {
    std::thread::sleep(BETWEEN);
}
