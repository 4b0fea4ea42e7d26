//! What a session holds and what it does next: pure, without sockets, clock or task. The engine asks for the next
//! [`Step`] of a direction, does it, and reports what came of it. Everything a successor needs to go on is a field, and
//! travels as a [`RelayState`] (`state`).
//!
//! A direction is named by the side its bytes come from.

mod marks;
mod state;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use marks::Marks;
pub use state::RelayState;

/// Reads that filled the whole buffer, one after the other, before a direction splices: the first may be chance.
const FULL_READS: u8 = 2;

/// Splices in a row below [`SMALL`] before a direction copies again.
const SMALL_SPLICES: u8 = 4;

/// A splice that would have fitted into the copy buffer: below this size one `recv` and one `send` are cheaper.
const SMALL: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    Client,
    Backend,
}

impl Side {
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Backend,
            Self::Backend => Self::Client,
        }
    }
}

/// How a side broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    Reset,
    /// The kernel gave up on it (`ETIMEDOUT`: keepalive or `TCP_USER_TIMEOUT`).
    Timeout,
}

/// What to do next in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Read into the thread's buffer and write it on at once: [`Relay::passed`], [`Relay::ended`] or a failure.
    Receive,
    /// Fill an empty pipe: [`Relay::spliced_in`], [`Relay::ended`], [`Relay::no_pipe`] or a failure.
    SpliceIn,
    /// Write [`Relay::in_hand`]: [`Relay::written`] or a failure.
    Send,
    /// Empty the pipe: [`Relay::spliced_out`] or a failure.
    SpliceOut,
    /// All bytes are delivered and the source ended: pass its end on, then [`Relay::shut`].
    Shutdown,
    /// Nothing, for good.
    Rest,
}

/// How the session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Both sides ended, all is delivered; `first` ended first.
    Orderly { first: Side },
    /// A side broke. What it had sent is written to the other side, which is to be reset once it has it.
    Broken { side: Side, failure: Failure },
}

#[derive(Debug, Default)]
pub struct Relay {
    /// Bytes never come into the memory of this process.
    only_splices: bool,
    flows: [Flow; 2],
    failures: [Option<Failure>; 2],
    first_end: Option<Side>,
    first_failure: Option<(Side, Failure)>,
}

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    hand: Vec<u8>,
    /// How many of the bytes in hand are written.
    gone: usize,
    piped: usize,
    /// Nothing more can be read from the source.
    ended: bool,
    /// The sink was told.
    shut: bool,
    splices: bool,
    /// Full reads in a row while copying, small splices in a row while splicing.
    run: u8,
}

impl Flow {
    fn held(&self) -> usize {
        self.hand.len() - self.gone + self.piped
    }

    fn set_splices(&mut self, splices: bool) {
        self.splices = splices;
        self.run = 0;
    }
}

impl Relay {
    pub fn step(&self, from: Side) -> Step {
        let flow = self.flow(from);
        if self.failure(from.other()).is_some() {
            return Step::Rest;
        }
        match flow {
            Flow { hand, gone, .. } if hand.len() > *gone => Step::Send,
            Flow { piped: 1.., .. } => Step::SpliceOut,
            Flow { ended: false, splices: true, .. } => Step::SpliceIn,
            Flow { ended: false, .. } => Step::Receive,
            // A side that broke may still give 0 to a later read; that is not its end.
            Flow { shut: false, .. } if self.failure(from).is_none() => Step::Shutdown,
            _ => Step::Rest,
        }
    }

    pub fn outcome(&self) -> Option<Outcome> {
        if let Some((side, failure)) = self.first_failure {
            let given_up = self.failure(side.other()).is_some();
            let delivered = self.flow(side).ended && self.held(side) == 0;
            return (given_up || delivered).then_some(Outcome::Broken { side, failure });
        }
        let first = self.first_end?;
        self.flows.iter().all(|flow| flow.shut).then_some(Outcome::Orderly { first })
    }

    /// `bytes` were read, the first `written` of them written: the rest moves to an allocation of its own size.
    pub fn passed(&mut self, from: Side, bytes: &[u8], written: usize, filled_buffer: bool) {
        let flow = self.flow_mut(from);
        if let Some(rest @ [_, ..]) = bytes.get(written..) {
            flow.hand = rest.to_vec();
            flow.gone = 0;
        }
        flow.run = if filled_buffer { flow.run + 1 } else { 0 };
        if flow.run >= FULL_READS {
            flow.set_splices(true);
        }
    }

    /// So many of the bytes in hand are written.
    pub fn written(&mut self, from: Side, n: usize) {
        let flow = self.flow_mut(from);
        flow.gone += n.min(flow.hand.len() - flow.gone);
        if flow.gone == flow.hand.len() {
            flow.hand = Vec::new();
            flow.gone = 0;
        }
    }

    pub fn spliced_in(&mut self, from: Side, n: usize) {
        let only_splices = self.only_splices;
        let flow = self.flow_mut(from);
        flow.piped += n;
        if only_splices {
            return;
        }
        flow.run = if n < SMALL { flow.run + 1 } else { 0 };
        if flow.run >= SMALL_SPLICES {
            flow.set_splices(false);
        }
    }

    pub fn spliced_out(&mut self, from: Side, n: usize) {
        let flow = self.flow_mut(from);
        flow.piped -= n.min(flow.piped);
    }

    /// From the first byte on, each goes through the pipe of its direction.
    pub fn splice_only(&mut self) {
        self.only_splices = true;
        self.flows.iter_mut().for_each(|flow| flow.set_splices(true));
    }

    /// As any other from here on.
    pub fn splice_freely(&mut self) {
        self.only_splices = false;
    }

    pub fn only_splices(&self) -> bool {
        self.only_splices
    }

    /// There is no pipe to be had, or it can't be used: copy for now. (Not of one that only splices.)
    pub fn no_pipe(&mut self, from: Side) {
        self.flow_mut(from).set_splices(false);
    }

    /// A read gave 0.
    pub fn ended(&mut self, from: Side) {
        self.flow_mut(from).ended = true;
        self.first_end.get_or_insert(from);
    }

    /// The other side was told of the end of this one.
    pub fn shut(&mut self, from: Side) {
        self.flow_mut(from).shut = true;
    }

    /// A call on the socket of this side gave an error: what it has sent may still be there to read.
    pub fn failed(&mut self, side: Side, failure: Failure) {
        self.failures[index(side)].get_or_insert(failure);
        self.first_failure.get_or_insert((side, failure));
    }

    /// A read gave an error: the kernel gives what was received first, so nothing is left.
    pub fn read_failed(&mut self, side: Side, failure: Failure) {
        self.failed(side, failure);
        self.flow_mut(side).ended = true;
    }

    pub fn failure(&self, side: Side) -> Option<Failure> {
        self.failures[index(side)]
    }

    /// The side that broke first.
    pub fn broken(&self) -> Option<(Side, Failure)> {
        self.first_failure
    }

    pub fn in_hand(&self, from: Side) -> &[u8] {
        let flow = self.flow(from);
        flow.hand.get(flow.gone..).unwrap_or_default()
    }

    pub fn in_pipe(&self, from: Side) -> usize {
        self.flow(from).piped
    }

    /// Bytes read from this side and not written to the other.
    pub fn held(&self, from: Side) -> usize {
        self.flow(from).held()
    }

    pub fn has_shut(&self, from: Side) -> bool {
        self.flow(from).shut
    }

    pub fn splices(&self, from: Side) -> bool {
        self.flow(from).splices
    }

    /// One direction is over, the other is not.
    pub fn is_half_closed(&self) -> bool {
        self.flows.iter().any(|flow| flow.shut)
    }

    fn flow(&self, from: Side) -> &Flow {
        &self.flows[index(from)]
    }

    fn flow_mut(&mut self, from: Side) -> &mut Flow {
        &mut self.flows[index(from)]
    }
}

pub(super) fn index(side: Side) -> usize {
    match side {
        Side::Client => 0,
        Side::Backend => 1,
    }
}
