//! The words of the hand-over protocol, versions 1 to 3, and what each of them may carry.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::HandoffError;
use crate::ledger::LAYOUTS;
use crate::manifest::Entry;
use crate::transfer::Role;

/// One record on the channel. Unknown fields are ignored, except that a field `required` (a list of feature names, legal
/// in every record) refuses the record unless the reader knows all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Message {
    /// First word of each side; the predecessor speaks first.
    Hello(Hello),
    /// Predecessor: what is about to follow.
    Offer(Offered),
    /// Predecessor: one ledger segment; carries its memfd.
    Segment { index: u32 },
    /// Predecessor: listening sockets, one descriptor for each entry, in the same order.
    Batch(Batch),
    /// Successor: every socket of the oldest unacknowledged batch was verified and is held.
    BatchTaken { count: u32 },
    /// Predecessor: what the sockets are for; always in a memfd.
    Plan { body: Body },
    /// Successor: what it measured on the sockets it holds, in the order of the offer, in as many records as needed.
    Adopted(Batch),
    /// Successor: could serve now.
    Ready,
    /// Predecessor: poll the listeners.
    Commit,
    /// Successor: polls them, since this time of `CLOCK_MONOTONIC`, in nanoseconds.
    Polling { first_poll_ns: u64 },
    /// Predecessor: poll no more, close nothing.
    Stop,
    /// Successor: polls no more, since this time of `CLOCK_MONOTONIC`, in nanoseconds.
    Stopped { last_poll_ns: u64 },
    /// Predecessor: a request; the answer names the same id.
    Order { id: u64, body: Body },
    /// Successor: the answer to an open order.
    Answer { id: u64, body: Body },
    /// Successor: is alive.
    Heartbeat(Pulse),
    /// Successor: something the predecessor's owner wants to know.
    Notice { body: Body },
    /// Predecessor, from version 2 on: where another keeper will knock if this one dies; carries a listening `SOCK_SEQPACKET`
    /// Unix socket. It may be said again, and then replaces the earlier one.
    Door,
    /// Predecessor, from version 3 on: an end of a path to another generation, on which sessions go; carries that end. The id is
    /// the predecessor's; `other` is the generation at the other end, 0 the predecessor itself.
    Path { id: u64, role: Role, other: u32 },
    /// Predecessor, from version 3 on: where to deposit what must survive this process; carries a `SOCK_SEQPACKET` Unix
    /// socket. It may be said again, and then replaces the earlier one.
    Vault,
    /// Either side: goes no further, and why. Nothing follows it.
    Refused { cause: String },
}

/// Who speaks, and which versions it can speak.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: Range,
    /// Ledger layouts this binary reads and writes.
    pub ledger: Range,
    pub version: String,
    pub build: String,
    /// The generation that is being started. The successor repeats what it was told.
    pub generation: u32,
    pub pid: u32,
    /// Absent where it cannot be told; then nothing is checked before sending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptors: Option<Budget>,
}

/// How many descriptors a process may have (`RLIMIT_NOFILE`, soft) and how many it has open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    pub limit: u64,
    pub open: u64,
}

/// What a living generation says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulse {
    pub sessions: u64,
    /// Sessions that have looked for a backend since the start of the process. Absent from peers that do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connects: Option<u64>,
    /// Of those, the ones that found none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<u64>,
}

/// What an offer contains, and the protocol version chosen for the rest of the conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offered {
    pub protocol: u32,
    pub sockets: u32,
    pub segments: u32,
}

/// A run of the inventory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Running index of the first entry in the offer; 0 in batches after the offer.
    pub first: u32,
    pub entries: Vec<Entry>,
}

/// Bytes of the application: short text inside the record, everything else in one sealed memfd beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    Text(String),
    /// Bytes in the memfd.
    File(u64),
}

/// Versions `min..=max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    pub min: u32,
    pub max: u32,
}

impl Range {
    /// The highest version both know.
    pub fn common(self, other: Self) -> Option<u32> {
        let highest = self.max.min(other.max);
        (highest >= self.min.max(other.min)).then_some(highest)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max { write!(f, "{}", self.min) } else { write!(f, "{} to {}", self.min, self.max) }
    }
}

impl Hello {
    /// The version to speak, if there is one, and a ledger layout that both know.
    pub(crate) fn common_protocol(&self) -> Result<u32, HandoffError> {
        let differ = |what, ours, theirs| HandoffError::Version { what, ours, theirs };
        LEDGER.common(self.ledger).ok_or_else(|| differ("ledger layout", LEDGER, self.ledger))?;
        PROTOCOL.common(self.protocol).ok_or_else(|| differ("protocol", PROTOCOL, self.protocol))
    }
}

impl Message {
    /// Its name on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Offer(_) => "offer",
            Self::Segment { .. } => "segment",
            Self::Batch(_) => "batch",
            Self::BatchTaken { .. } => "batch_taken",
            Self::Plan { .. } => "plan",
            Self::Adopted(_) => "adopted",
            Self::Ready => "ready",
            Self::Commit => "commit",
            Self::Polling { .. } => "polling",
            Self::Stop => "stop",
            Self::Stopped { .. } => "stopped",
            Self::Order { .. } => "order",
            Self::Answer { .. } => "answer",
            Self::Heartbeat(_) => "heartbeat",
            Self::Notice { .. } => "notice",
            Self::Door => "door",
            Self::Path { .. } => "path",
            Self::Vault => "vault",
            Self::Refused { .. } => "refused",
        }
    }

    /// How many descriptors travel with it.
    pub fn descriptors(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.entries.len(),
            Self::Segment { .. } | Self::Door | Self::Path { .. } | Self::Vault => 1,
            Self::Plan { body } | Self::Order { body, .. } | Self::Answer { body, .. } | Self::Notice { body } => {
                usize::from(matches!(body, Body::File(_)))
            }
            _ => 0,
        }
    }
}

impl Batch {
    /// Number of entries; the codec bounds it far below `u32::MAX`.
    pub fn count(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }
}

/// Protocol versions of this binary: the current one and those it still speaks.
pub const PROTOCOL: Range = Range { min: 1, max: 3 };
/// Ledger layouts of this binary: the current one and the previous one, once there is one.
pub const LEDGER: Range = Range { min: *LAYOUTS.start(), max: *LAYOUTS.end() };
/// Features that a record may list as `required`. Version 1 has none.
pub const FEATURES: &[&str] = &[];

#[cfg(test)]
mod tests {
    use super::Range;

    #[test]
    fn the_highest_common_version_is_chosen() {
        let range = |min, max| Range { min, max };
        for (ours, theirs, common) in [
            (range(1, 1), range(1, 1), Some(1)),
            (range(1, 3), range(2, 5), Some(3)),
            (range(4, 5), range(1, 4), Some(4)),
            (range(1, 1), range(2, 2), None),
            (range(3, 1), range(1, 3), None),
            (range(0, u32::MAX), range(7, 7), Some(7)),
        ] {
            assert_eq!(ours.common(theirs), common, "{ours} and {theirs}");
            assert_eq!(theirs.common(ours), common, "{theirs} and {ours}");
        }
    }
}
