//! What outlives a process: listening sockets, handed over a Unix socket with `SCM_RIGHTS`, and the [`ledger`] of
//! counters and sessions in shared memory. Knows sockets and bytes; not pools, not metric names.
//!
//! The words: [`manifest`] (what is passed), [`message`], [`codec`]. Their order: [`sequence`]. The transport:
//! [`channel`], [`memfile`], [`door`]. The two ends: [`predecessor`] offers, [`successor`] takes; what goes wrong: [`error`].
//! Sessions go from process to process by [`transfer`]; what a worker leaves with the keeper against its own death: [`vault`].

#![deny(unsafe_code)]

pub mod channel;
pub mod codec;
pub mod door;
pub mod error;
pub mod ledger;
pub mod manifest;
pub mod memfile;
pub mod message;
pub mod os;
pub mod predecessor;
pub mod sequence;
pub mod successor;
pub mod transfer;
pub mod vault;

mod link;
mod parcel;

pub use error::HandoffError;
