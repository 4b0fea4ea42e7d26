//! What can be seen of the proxy: the words ([`reason`]) and cells ([`names`]) of what is counted, the keeper's part of the
//! view ([`scene`]), the exposition ([`metrics`]) and the log ([`log`]).

pub mod events;
pub mod log;
pub mod metrics;
pub mod names;
pub mod reason;
pub mod scene;
pub mod tally;
