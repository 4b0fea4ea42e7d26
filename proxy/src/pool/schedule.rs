//! Weighted turns, spread evenly: a backend of weight 3 beside one of weight 1 gives `a a b a`, not `a a a b`.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Turns of a schedule at most: 64 backends of weight 256 and no common factor need 16,384; more than this is memory for
/// a precision that nobody sees.
const LONGEST: u64 = 65_536;

/// The order in which backends of these weights (1 to 256) take their turns, as positions; each has exactly its share.
pub(super) fn build(weights: &[u32]) -> Vec<u16> {
    let weights = shorten(weights);
    let length = weights.iter().sum();
    let mut due: BinaryHeap<_> =
        (0..).zip(&weights).map(|(position, weight)| Reverse(Due::first(position, *weight))).collect();
    let mut turns = Vec::new();
    for _ in 0..length {
        let Some(mut next) = due.peek_mut() else { break };
        turns.push(next.0.position);
        next.0.taken += 1;
    }
    turns
}

/// Earliest deadline first: the `n`th turn of a backend is due at (n + 1/2) / weight.
#[derive(Debug, PartialEq, Eq)]
struct Due {
    position: u16,
    weight: u64,
    taken: u64,
}

impl Due {
    fn first(position: u16, weight: u64) -> Self {
        Self { position, weight, taken: 0 }
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        let (ours, theirs) = ((2 * self.taken + 1) * other.weight, (2 * other.taken + 1) * self.weight);
        ours.cmp(&theirs).then(self.position.cmp(&other.position))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The same shares in smaller numbers.
fn shorten(weights: &[u32]) -> Vec<u64> {
    let divisor = weights.iter().fold(0, |divisor, weight| gcd(divisor, *weight)).max(1);
    let exact: Vec<u64> = weights.iter().map(|weight| u64::from(weight / divisor).max(1)).collect();
    let length: u64 = exact.iter().sum();
    if length <= LONGEST {
        return exact;
    }
    exact.iter().map(|weight| (weight * LONGEST / length).max(1)).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
