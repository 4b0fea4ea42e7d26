//! Every counter, and one record per live session, in memory that all generations share.
//!
//! The keeper owns the [`Ledger`], a chain of sealed memfds ([`Segment`]). A worker thread leases a block of counters and
//! claims session records through its [`Writer`]; anyone may read with [`sessions`] and [`totals`] without stopping a
//! writer. Everything in shared memory is atomic, and nothing read from it is trusted: each index is checked when used,
//! so a corrupt segment gives wrong figures, never a fault.
//!
//! Reading order: `layout` (what lies where), `map` (the only unsafe code), `segment`, `book` (the keeper's side), `name`,
//! `writer` and `record` (a worker thread's side), `claim` (finding a free record), `slot` (how a record is written and
//! read at the same time), `reader`.

mod book;
mod claim;
mod error;
mod layout;
mod map;
mod name;
mod reader;
mod record;
mod segment;
mod slot;
mod writer;

#[cfg(test)]
mod tests;

pub use book::{Ledger, Noted, Whereabouts};
pub use error::LedgerError;
pub use layout::{LAYOUTS, Sizes};
pub use name::{Name, NameSpec};
pub use reader::{NameTotals, SessionSnapshot, sessions, totals};
pub use record::{Opening, Place, Record};
pub use segment::Segment;
pub use slot::Phase;
pub use writer::{Counters, Gauges, Writer};
