//! Why a hand-over ended: one enum for both sides, with the step it ended at.

use std::io;
use std::time::Duration;

use crate::channel::ChannelError;
use crate::manifest::Mismatch;
use crate::memfile::MemfileError;
use crate::message::Range;
use crate::sequence::OutOfTurn;
use crate::transfer::body::BodyError;

/// Whatever it is, descriptors that were received are closed, and those of the caller are still the caller's.
#[derive(Debug, thiserror::Error)]
pub enum HandoffError {
    /// End of file: the other process ended or closed the channel.
    #[error("the other side ended the conversation")]
    Gone { step: &'static str },
    #[error("no answer within {after:.1?}")]
    Deadline { step: &'static str, after: Duration },
    /// The other side said so; `cause` is its text.
    #[error("the other side refused: {cause}")]
    Refused { step: &'static str, cause: String },
    #[error("no common {what} version: ours {ours}, theirs {theirs}")]
    Version { what: &'static str, ours: Range, theirs: Range },
    #[error("handoff protocol: generation {theirs} answered instead of {ours}")]
    Generation { ours: u32, theirs: u32 },
    /// Found before a socket was sent. `need` includes what the other side has open already.
    #[error("need {} descriptors, limit {}", grouped(*.need), grouped(*.limit))]
    Limit { need: u64, limit: u64 },
    #[error("listener {id} occurs twice")]
    Duplicate { id: String },
    #[error("{source}")]
    Mismatch { step: &'static str, source: Mismatch },
    #[error("handoff protocol: {source}")]
    OutOfTurn { step: &'static str, source: OutOfTurn },
    #[error("{}{source}", if nonsense(.source) { "handoff protocol: " } else { "" })]
    Channel { step: &'static str, source: ChannelError },
    #[error("handoff protocol: {source}")]
    Body { step: &'static str, source: MemfileError },
    #[error("handoff protocol: {source}")]
    Batch { step: &'static str, source: BodyError },
    /// A descriptor of a session that is not what was announced.
    #[error("session {id}: {what} was announced, found {found}")]
    Item { step: &'static str, id: u64, what: &'static str, found: String },
    #[error("{source}")]
    System { step: &'static str, source: io::Error },
}

impl HandoffError {
    /// `hello`, `offer`, `ready`; once in service, the state: `committing`, `serving`, `stopping`, `standby`.
    pub fn step(&self) -> &'static str {
        match self {
            Self::Version { .. } | Self::Generation { .. } => "hello",
            Self::Limit { .. } | Self::Duplicate { .. } => "offer",
            Self::Gone { step }
            | Self::Deadline { step, .. }
            | Self::Refused { step, .. }
            | Self::Mismatch { step, .. }
            | Self::OutOfTurn { step, .. }
            | Self::Channel { step, .. }
            | Self::Body { step, .. }
            | Self::Batch { step, .. }
            | Self::Item { step, .. }
            | Self::System { step, .. } => step,
        }
    }

    /// Of a word that was to be sent in service: nothing has happened, and the conversation goes on where it was. The reason
    /// is a lack of this process (of descriptors, of memory), or that it was not the word's turn.
    pub fn is_unsent(&self) -> bool {
        matches!(self, Self::OutOfTurn { .. } | Self::Duplicate { .. } | Self::System { .. } | Self::Channel { .. })
    }

    pub(crate) fn channel(step: &'static str, source: ChannelError) -> Self {
        match source {
            ChannelError::Gone => Self::Gone { step },
            source => Self::Channel { step, source },
        }
    }

    /// Worth telling the other side, and it is still there to be told.
    pub(crate) fn is_ours_to_tell(&self) -> bool {
        !matches!(self, Self::Gone { .. } | Self::Refused { .. })
    }
}

/// The peer's fault, not that of a system call.
fn nonsense(error: &ChannelError) -> bool {
    matches!(error, ChannelError::Codec(_) | ChannelError::Descriptors { .. } | ChannelError::Nameless)
}

/// 1004 as `1,004`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, text) in [(0, "0"), (999, "999"), (1_004, "1,004"), (65_536, "65,536"), (1_000_000, "1,000,000")] {
            assert_eq!(grouped(number), text);
        }
        assert_eq!(
            HandoffError::Limit { need: 1_004, limit: 1_000 }.to_string(),
            "need 1,004 descriptors, limit 1,000"
        );
    }
}
