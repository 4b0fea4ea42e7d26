//! What outlives a process: the [`ledger`] of counters and sessions in shared memory. Knows sockets and bytes; not pools, not
//! metric names.

#![deny(unsafe_code)]

pub mod ledger;
