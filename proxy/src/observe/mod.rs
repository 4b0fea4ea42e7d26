//! What can be seen of the proxy: the words ([`reason`]) and cells ([`names`]) of what is counted, and the [`log`].

pub mod log;
pub mod names;
pub mod reason;
