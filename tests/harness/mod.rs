//! What the process tests share: the real binaries started and ended ([`Proxy`]), ports that nobody else takes
//! ([`Port`]), backends and clients that check every byte ([`backend`], [`load`]), what a process holds ([`Census`]),
//! and the other programs we are tried with ([`peer`], [`service`]). It panics where a test has to fail.
#![allow(dead_code, unused_imports, unreachable_pub, reason = "each test file uses its own part of the harness")]

pub mod ask;
pub mod backend;
pub mod census;
pub mod child;
pub mod client;
pub mod conf;
pub mod following;
pub mod http;
pub mod impostor;
pub mod load;
pub mod logs;
pub mod long_sessions;
pub mod manager;
pub mod metrics;
pub mod peer;
pub mod played;
pub mod port;
pub mod proxy;
pub mod seeded;
pub mod server;
pub mod service;
pub mod slim;
pub mod steady;
pub mod strace;
pub mod tally;
pub mod target;
pub mod tuples;
pub mod wait;

pub use ask::ask;
pub use backend::{Seeded, Stalled, Tagged};
pub use census::Census;
pub use client::{Client, End};
pub use conf::Conf;
pub use following::Following;
pub use impostor::impostor;
pub use load::{Exchange, Load, LongStreams, Pace};
pub use long_sessions::{LongSessions, Mix};
pub use manager::Manager;
pub use metrics::Metrics;
pub use peer::peer;
pub use played::Played;
pub use port::Port;
pub use proxy::{Exited, Proxy, Starter};
pub use slim::{Twins, slim, twin_of};
pub use steady::Steady;
pub use strace::Strace;
pub use tally::{Fault, Tally};
pub use target::Target;
pub use tuples::tuples;
pub use wait::{until, until_moment, until_none, until_some};
