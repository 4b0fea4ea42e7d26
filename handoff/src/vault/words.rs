//! What travels, as JSON. The words came with version 3 of the keeper's channel and have its version: other words need a
//! version of that channel which says so. Unknown fields are ignored. (One word is no JSON: that of a signal handler, which can
//! write none. See [`crate::os::CONFESSION`].)

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::VaultError;
use crate::ledger::Place;

/// Whose the descriptors are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deposit {
    pub id: u64,
    /// Of the session's record.
    pub place: Place,
    /// The data thread that deposits; it is told of a refusal.
    pub thread: u16,
    /// What the session goes by, for who goes on with it: at most [`TERMS`] bytes. `None`: of an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<String>,
}

/// A deposit that the keeper did not keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub id: u64,
    pub thread: u16,
}

/// From a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Up {
    /// Carries the four descriptors of [`super::Belongings`].
    Deposit(Deposit),
    /// The session has ended: the keeper lets go.
    Withdraw { id: u64, place: Place },
}

/// From the keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Down {
    /// So many more of the deposits were received, and are kept.
    Held { count: u32 },
    /// One was received, and is not kept for want of room.
    Refused(Refused),
}

/// Bytes of one record.
pub(super) const RECORD: usize = 512;
/// Bytes of terms, of which one in seven may be a quote, which is escaped: with the numbers around them still one record.
pub const TERMS: usize = 340;

pub(super) fn encode(word: &impl Serialize) -> Result<Vec<u8>, VaultError> {
    serde_json::to_vec(word).map_err(VaultError::Word)
}

/// Total: whatever is no word is an error. The channel bounds the length.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, VaultError> {
    serde_json::from_slice(bytes).map_err(VaultError::Word)
}
