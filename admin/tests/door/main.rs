//! The admin side over real sockets: server, client and `proxyctl`, with a keeper that answers from memory.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod client;
mod harness;
mod hostile;
mod proxyctl;
mod routes;
mod socket;
