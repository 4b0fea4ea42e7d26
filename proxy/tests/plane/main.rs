//! The data plane with real sockets on loopback: through a `Plane`, as the control thread of a worker uses it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod accepting;
mod bytes;
mod draining;
mod ends;
mod moving;
mod moving_by_hand;
mod pools;
mod rig;
mod timeouts;
