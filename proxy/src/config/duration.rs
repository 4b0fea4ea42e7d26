//! Durations as an operator writes them: a whole number and a unit.

use std::ops::RangeInclusive;
use std::time::Duration;

pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const HOUR: Duration = Duration::from_secs(3_600);
pub(super) const DAY: Duration = Duration::from_secs(86_400);

/// Largest first, in milliseconds.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// What is accepted.
pub(super) const FORM: &str = "a whole number with a unit: ms, s, m, h or d";

/// Reads `text`, or says what is wrong with it.
pub(super) fn parse(text: &str, range: &RangeInclusive<Duration>) -> Result<Duration, String> {
    if text.starts_with('-') {
        return Err("is negative".to_owned());
    }
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let duration = in_units(digits, unit)?;
    if range.contains(&duration) { Ok(duration) } else { Err("is out of range".to_owned()) }
}

fn in_units(digits: &str, unit: &str) -> Result<Duration, String> {
    if digits.is_empty() {
        return Err("is not a duration".to_owned());
    }
    if unit.is_empty() {
        return Err("has no unit".to_owned());
    }
    if unit.contains(|c: char| c.is_ascii_digit()) {
        return Err("is not one whole number and one unit".to_owned());
    }
    let Some((_, milliseconds)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(format!("has the unknown unit `{unit}`"));
    };
    // Only digits: what does not parse is too large, and so is what overflows.
    let number: u64 = digits.parse().unwrap_or(u64::MAX);
    Ok(Duration::from_millis(number.saturating_mul(*milliseconds)))
}

/// In the largest unit that makes it a whole number: `30s`, `5m`, `90s`, `0s`.
pub(super) fn show(duration: Duration) -> String {
    if duration.is_zero() {
        return "0s".to_owned();
    }
    let total = duration.as_millis();
    let fitting = UNITS.iter().find(|(_, milliseconds)| total.is_multiple_of(u128::from(*milliseconds)));
    let (unit, milliseconds) = fitting.unwrap_or(&("ms", 1));
    format!("{}{unit}", total / u128::from(*milliseconds))
}
