//! Deposits: a worker leaves duplicates of all that a session is made of (two sockets and the pipes between them) with the
//! keeper, so that the session outlives the worker. Whatever was sent before the worker died is safe: the descriptors lie
//! in the channel until the keeper reads them.
//!
//! The channel is a `SOCK_SEQPACKET` pair that the keeper makes; the worker gets its end over the channel that it has
//! anyway, so it needs no hello. `words` says what travels, `depositor` is the worker's end, `custodian` the keeper's.

mod custodian;
mod depositor;
mod words;

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

pub use custodian::{Belongings, Custodian, Owed, Word};
pub use depositor::{Depositor, NotDeposited};
pub use words::{Deposit, Refused, TERMS};

use crate::codec::CodecError;

/// Why a channel of deposits has ended.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error("the other side has closed the channel")]
    Gone,
    #[error("a record that is no word: {0}")]
    Word(#[source] serde_json::Error),
    #[error(transparent)]
    Record(#[from] CodecError),
    /// The other side counts wrongly.
    #[error("{held} deposits are acknowledged, {open} are open")]
    Count { held: u32, open: u32 },
    #[error("the deposit of session {id} carries {got} descriptors, not {DESCRIPTORS}")]
    Descriptors { id: u64, got: usize },
    #[error("the deposit of session {id}: {what}")]
    Unfit { id: u64, what: &'static str },
    #[error("the channel failed: {0}")]
    Io(#[from] io::Error),
}

/// Of a session: its two sockets, and the reading ends of its pipes.
const DESCRIPTORS: usize = 4;

/// Two connected ends, close-on-exec: the keeper's, the worker's.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}
