//! How a session is ended by force.

use crate::config::ForcedClose;
use crate::observe::reason::{Cause, Reason};

/// What is said of a forced close, and how it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    pub reason: Reason,
    pub cause: Cause,
    pub how: ForcedClose,
}

/// Bytes that a session has taken and not delivered, each way; -1: not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unsent {
    pub to_client: i64,
    pub to_backend: i64,
}

impl Unsent {
    pub(super) const UNKNOWN: Self = Self { to_client: -1, to_backend: -1 };

    /// Unknown counts as none.
    pub fn total(&self) -> u64 {
        u64::try_from(self.to_client).unwrap_or(0) + u64::try_from(self.to_backend).unwrap_or(0)
    }

    /// What is unknown may be something.
    pub fn is_nothing(&self) -> bool {
        (self.to_client, self.to_backend) == (0, 0)
    }
}
