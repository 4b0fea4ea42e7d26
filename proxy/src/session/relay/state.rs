//! A relay at rest: what a successor must know to go on at the very byte. The bytes in hand travel beside it.

use serde::{Deserialize, Serialize};

use super::{FULL_READS, Failure, Flow, Relay, SMALL_SPLICES, Side};

/// Everything of a [`Relay`] but the bytes in hand. The client's direction first. What an older version does not say is as
/// in a new session; what a newer one says beyond this is not read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RelayState {
    pub(super) only_splices: bool,
    pub(super) flows: [FlowState; 2],
    pub(super) failures: [Option<Failure>; 2],
    pub(super) first_end: Option<Side>,
    pub(super) first_failure: Option<(Side, Failure)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct FlowState {
    /// Bytes in its pipe.
    pub(super) piped: usize,
    pub(super) ended: bool,
    pub(super) shut: bool,
    pub(super) splices: bool,
    pub(super) run: u8,
}

impl Relay {
    /// What travels: the state, and the bytes in hand of each direction, the client's first.
    pub fn into_state(self) -> (RelayState, [Vec<u8>; 2]) {
        let Self { only_splices, flows, failures, first_end, first_failure } = self;
        let states = flows.each_ref().map(|flow| FlowState {
            piped: flow.piped,
            ended: flow.ended,
            shut: flow.shut,
            splices: flow.splices,
            run: flow.run,
        });
        let hand = flows.map(|mut flow| flow.hand.split_off(flow.gone));
        (RelayState { only_splices, flows: states, failures, first_end, first_failure }, hand)
    }

    pub fn from_state(state: RelayState, hand: [Vec<u8>; 2]) -> Self {
        let RelayState { only_splices, flows, failures, first_end, first_failure } = state;
        let [to_backend, to_client] = hand;
        let flow = |state: FlowState, hand: Vec<u8>| Flow {
            hand,
            gone: 0,
            piped: state.piped,
            ended: state.ended,
            shut: state.shut,
            splices: state.splices,
            // It is counted up before it is compared.
            run: state.run.min(FULL_READS.max(SMALL_SPLICES)),
        };
        let [client, backend] = flows;
        let flows = [flow(client, to_backend), flow(backend, to_client)];
        Self { only_splices, flows, failures, first_end, first_failure }
    }
}

impl RelayState {
    /// Of a relay that only splices.
    pub fn only_splices(&self) -> bool {
        self.only_splices
    }

    /// Bytes that it says are in the pipe of this direction.
    pub fn in_pipe(&self, from: Side) -> usize {
        self.flows[super::index(from)].piped
    }
}
