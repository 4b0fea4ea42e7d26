//! A session on its way to another worker, or back: plain state and its sockets, in the hands of whoever carries it.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use handoff::ledger::Place;
use serde::{Deserialize, Serialize};

use super::engine::Parts;
use super::relay::RelayState;
use super::relaying::Clocks;
use crate::config::{TcpSettings, Timeouts};

/// A frozen session. Its record stays with the thread that froze it until that thread gives it away; dropped, its sockets are
/// closed without a shutdown.
#[derive(Debug)]
pub struct Carried {
    pub id: u64,
    /// Of its record.
    pub place: Place,
    pub state: SessionState,
    /// Bytes read and not written, the client's first.
    pub hand: [Vec<u8>; 2],
    pub client: OwnedFd,
    pub backend: OwnedFd,
    /// Reading ends of the pipes that hold bytes, the client's first.
    pub pipes: [Option<OwnedFd>; 2],
    /// Their writing ends, which stay with whoever may go on with it where it was; none of one that came from elsewhere.
    pub writers: [Option<OwnedFd>; 2],
}

/// What its owner must know to go on, beside what its record says. Written as JSON; a reader ignores what it does not know,
/// and what has a default may be left out by an older version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionState {
    pub listener: String,
    pub pool: String,
    pub backend: BackendState,
    /// `None`: a Unix socket.
    #[serde(default)]
    pub client: Option<SocketAddr>,
    /// Those it began under, also where the taker has others.
    pub timeouts: Timeouts,
    pub tcp: TcpSettings,
    /// `CLOCK_MONOTONIC`, milliseconds, as in its record.
    pub opened_ms: u64,
    /// It was given what only lasting sessions need.
    #[serde(default, skip_serializing_if = "is_default")]
    pub lasts: bool,
    /// Nagle's rule is off on the backend's socket.
    #[serde(default, skip_serializing_if = "is_default")]
    pub nagle_off: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub relay: RelayState,
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) clocks: Clocks,
}

/// What every version takes for granted of a session that is idle.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendState {
    pub name: String,
    pub address: SocketAddr,
}

impl Carried {
    pub(super) fn into_parts(self) -> (SessionState, Parts) {
        let Self { state, hand, client, backend, pipes, writers, .. } = self;
        let (relay, nagle_off) = (state.relay.clone(), state.nagle_off);
        let parts = Parts { relay, hand, client, backend, pipes, writers, nagle_off };
        (state, parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_without_saying_does_not_travel() {
        let older = r#"{"listener":"l","pool":"p","backend":{"name":"b","address":"127.0.0.1:1"},"client":null,
            "timeouts":{"idle":null,"half_close":null,"max_lifetime":null},"tcp":{"keepalive":null,"user_timeout":null},
            "opened_ms":7,"lasts":false,"nagle_off":false,"relay":{"only_splices":false},"clocks":{"stuck":null}}"#;
        let mut state: SessionState = serde_json::from_str(older).unwrap();
        let text = serde_json::to_string(&state).unwrap();
        assert!(!["lasts", "nagle_off", "relay", "clocks"].iter().any(|word| text.contains(word)), "{text}");
        state.lasts = true;
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<SessionState>(&text).unwrap(), state);
    }
}
