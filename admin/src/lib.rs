//! The operator's words: what can be asked ([`command`]) and seen ([`view`]), the HTTP door they come through
//! ([`server`]), and `proxyctl`'s side of it ([`client`], [`ctl`]). Knows nothing of the proxy behind the [`door`].
//!
//! In reading order: the words and their bounds, the server, the client.

#![forbid(unsafe_code)]

pub mod command;
pub mod view;

mod check;
pub mod codec;

pub mod door;
mod http;
pub mod limits;
pub mod server;
pub mod socket;

pub mod client;
pub mod ctl;
pub mod render;
