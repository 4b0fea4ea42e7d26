//! The fault matrix of the hand-over (docs/handoff.md): each row is a test named after its id, run under 500 new
//! connections a second, each checked byte by byte. Nobody may be refused, reset or late, whatever is done to an upgrade.
//!
//! Once each by default; `PROXYD_FAULT_ROUNDS=20` repeats every injection with other random moments, and
//! `PROXYD_FAULT_SEED` repeats those of a printed seed.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../harness/mod.rs"]
mod harness;

mod binary;
mod cgroup;
mod clock;
mod files;
mod handover;
mod handshake;
mod limits;
mod listeners;
mod old;
mod probation;
mod row;
mod signals;
mod spawn;
mod storms;
