//! Listeners: accept loops, one for each socket and thread, and what they accept under.
//!
//! Every thread has its own duplicate of a listening socket, and polls it when it is its turn. To stop is to deregister and close that
//! duplicate: `shutdown` would stop the socket in every process that has it.

mod accept;
mod arrival;
mod failure;
mod pause;
mod setup;
mod turn;

pub use accept::{Acceptor, Floor};
pub use arrival::Unheld;
pub use setup::{Setup, UnknownPool, names_of};
pub use turn::Turn;
