//! Both roles over a real socket pair, with each other and with hostile peers; nothing may be left open.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod conversation;
mod harness;
mod hostile_path;
mod hostile_predecessor;
mod hostile_successor;
mod paths;
