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
    #[serde(default)]
    pub lasts: bool,
    /// Nagle's rule is off on the backend's socket.
    #[serde(default)]
    pub nagle_off: bool,
    #[serde(default)]
    pub relay: RelayState,
    #[serde(default)]
    pub(super) clocks: Clocks,
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
