//! What a relay that only splices has learnt of its two sides, in a word that outlives its process. With what is in the pipes
//! it is all there is to know.

use super::state::FlowState;
use super::{Failure, Relay, RelayState, Side, index};

/// Bits of a word. A word of 0 is that of a new relay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Marks(u64);

/// Nothing more can be read from the side; the other side was told; two bits for how it broke. Each for the client, then for
/// the backend.
const ENDED: [u32; 2] = [0, 1];
const SHUT: [u32; 2] = [2, 3];
const FAILED: [u32; 2] = [4, 6];
/// Set: the backend was the first.
const FIRST_ENDED: u32 = 8;
const FIRST_FAILED: u32 = 9;

impl Marks {
    pub fn of_word(word: u64) -> Self {
        Self(word)
    }

    pub fn word(self) -> u64 {
        self.0
    }

    /// The end of this side is told to the other, or is just about to be.
    #[must_use]
    pub fn shutting(self, from: Side) -> Self {
        Self(self.0 | 1 << SHUT[index(from)])
    }

    /// Nothing more can be read from this side.
    pub fn has_ended(self, side: Side) -> bool {
        self.has(ENDED[index(side)])
    }

    /// The other side was told so, or was just about to be.
    pub fn has_shut(self, from: Side) -> bool {
        self.has(SHUT[index(from)])
    }

    pub fn failure(self, side: Side) -> Option<Failure> {
        match self.0 >> FAILED[index(side)] & 0b11 {
            0 => None,
            2 => Some(Failure::Timeout),
            _ => Some(Failure::Reset),
        }
    }

    fn has(self, bit: u32) -> bool {
        self.0 >> bit & 1 == 1
    }

    fn set(&mut self, bit: u32, is_set: bool) {
        self.0 |= u64::from(is_set) << bit;
    }
}

impl Relay {
    pub fn marks(&self) -> Marks {
        let mut marks = Marks::default();
        for side in [Side::Client, Side::Backend] {
            let (at, flow) = (index(side), self.flow(side));
            marks.set(ENDED[at], flow.ended);
            marks.set(SHUT[at], flow.shut);
            marks.0 |= match self.failure(side) {
                None => 0,
                Some(Failure::Reset) => 1,
                Some(Failure::Timeout) => 2,
            } << FAILED[at];
        }
        marks.set(FIRST_ENDED, self.first_end == Some(Side::Backend));
        marks.set(FIRST_FAILED, matches!(self.first_failure, Some((Side::Backend, _))));
        marks
    }
}

impl RelayState {
    /// Of a relay that only spliced, whose process died: what it had marked, sides that were found broken since, and the bytes
    /// that are in its pipes, the client's first.
    pub fn recovered(marks: Marks, broken: [Option<Failure>; 2], piped: [usize; 2]) -> Self {
        let sides = [Side::Client, Side::Backend];
        let failures = [0, 1].map(|at| marks.failure(sides[at]).or(broken[at]));
        let first = |bit, is: [bool; 2]| match is {
            [true, true] if marks.has(bit) => Some(Side::Backend),
            [true, _] => Some(Side::Client),
            [false, true] => Some(Side::Backend),
            [false, false] => None,
        };
        let flow = |side: Side| FlowState {
            piped: piped[index(side)],
            ended: marks.has_ended(side) || marks.has_shut(side),
            shut: marks.has_shut(side),
            splices: true,
            run: 0,
        };
        let flows = sides.map(flow);
        let first_end = first(FIRST_ENDED, flows.each_ref().map(|flow| flow.ended));
        let failed = failures.map(|failure| failure.is_some());
        let first_failure = first(FIRST_FAILED, failed).and_then(|side| Some((side, failures[index(side)]?)));
        Self { only_splices: true, flows, failures, first_end, first_failure }
    }
}
