//! The admin side over real sockets: server, client and `proxyctl`, with a keeper that answers from memory.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod client;
mod events;
mod harness;
mod hostile;
mod proxyctl;
mod reconnect;
mod routes;
mod socket;
mod wait;
