//! What the keeper says to a worker that already serves, and what it hears back. JSON, inside the orders and answers of
//! the hand-over channel.

use std::collections::BTreeMap;
use std::time::Duration;

use handoff::sequence::Polls;
use serde::{Deserialize, Serialize};

use super::{Drain, ForcedClose, plan::Plan};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order {
    /// The whole new plan; sockets it names were handed over beforehand. Answered once every connection accepted from now
    /// on follows it, and the sockets it no longer names are closed.
    Apply { plan: Box<Plan> },
    /// Close these sessions now, wherever they still live. Answered with the number closed.
    Close { ids: Vec<u64>, purpose: Purpose, how: ForcedClose },
    /// Close by force what is left of these sessions when the time is over. Answered at once.
    Drain {
        scope: Scope,
        purpose: Purpose,
        timeout: Option<Duration>,
        spread: Duration,
        how: ForcedClose,
        /// Sessions of a listener or backend that began later are not meant: `CLOCK_MONOTONIC`, milliseconds. As of now if it
        /// is not said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        begun_ms: Option<u64>,
    },
    /// Take back the drains of exactly this scope.
    Undrain { scope: Scope },
    /// Accept what is queued in sockets that are no longer polled, for at most so long.
    AcceptQueue { limit: Duration },
    /// Connect once to each of these pools. Answered with those of which no backend answers.
    Probe { pools: Vec<String> },
    /// Exit once no session is left.
    Finish,
    /// Hold this for the next keeper, instead of what was to be held before.
    Keep { state: String },
}

/// What a worker tells a keeper that was not its first one: the plan of the hand-over in which the worker offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orphan {
    pub generation: u32,
    pub polls: Polls,
    /// It has closed its listeners and will exit with its last session.
    pub finishing: bool,
    /// What it was given to hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

impl Order {
    /// A drain as configured.
    pub fn drain(scope: Scope, purpose: Purpose, drain: Drain) -> Self {
        let Drain { timeout, spread, close: how } = drain;
        Self::Drain { scope, purpose, timeout, spread, how, begun_ms: None }
    }
}

/// Which sessions drain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    All,
    Listener { name: String },
    Backend { pool: String, name: String },
}

/// Why sessions are closed by force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    Upgrade,
    /// More generations than allowed.
    Generations,
    Shutdown,
    Admin,
    ListenerRemoved,
    BackendRemoved,
    BackendDisabled,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    Done,
    Closed {
        sessions: u64,
    },
    Probed {
        unreachable: Vec<Unreachable>,
    },
    /// Nothing has changed.
    Refused {
        why: String,
    },
}

/// What a worker tells its keeper without being asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "notice", rename_all = "snake_case")]
pub enum Notice {
    /// A giver: all that could move over this path has moved. Said once the first round is complete, at intervals when more has
    /// moved since, and when the path has ended (`over`).
    Moved {
        path: u64,
        /// Since the path began.
        moved: u64,
        /// Those that are still with the giver, by why: a word of [`left`].
        left: BTreeMap<String, u64>,
        /// Their ids, at most [`left::NAMED`]: of those that were never looked at none is known, and an older version names none.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        who: BTreeMap<String, Vec<u64>>,
        /// The longest that a session stood still, from its freeze until its batch was released or went on with the giver,
        /// microseconds.
        longest_pause_us: u64,
        over: bool,
    },
}

/// Descriptors that whoever takes sessions keeps for itself: pipes, connections being made, accepts.
pub const SPARED: u64 = 128;

/// Why a session was not moved.
pub mod left {
    /// It has no backend yet.
    pub const CONNECTING: &str = "connecting";
    /// It is over within seconds.
    pub const ENDING: &str = "ending";
    /// The taker refused it.
    pub const REFUSED: &str = "refused";
    /// The taker has no descriptors for it (of an older version also: as many sessions as it may).
    pub const NO_ROOM: &str = "no_room";
    /// The taker did not answer in time.
    pub const TIMEOUT: &str = "timeout";
    /// The path ended before it was its turn.
    pub const PEER_GONE: &str = "peer_gone";

    /// Sessions that are named at most: 17 bytes each are far below what one record of the channel carries.
    pub const NAMED: usize = 1000;
}

/// A pool of which no backend answers, and what the last one tried said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreachable {
    pub pool: String,
    pub why: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_of_an_older_worker_names_nobody() {
        let older = r#"{"notice":"moved","path":7,"moved":2,"left":{"ending":1},"longest_pause_us":9,"over":true}"#;
        let notice: Notice = serde_json::from_str(older).unwrap();
        assert_eq!(serde_json::to_string(&notice).unwrap(), older, "and what is not said is not written");
        let Notice::Moved { who, .. } = notice;
        assert!(who.is_empty());
    }
}
