//! The proxy behind `proxyd`. Read [`config`] first, then the path of a byte: [`listener`], [`pool`], [`session`]; then
//! who runs it: [`worker`]. What can be seen of it is in [`observe`].

#![forbid(unsafe_code)]

pub mod config;
pub mod listener;
pub mod observe;
pub mod pool;
pub mod session;
pub mod worker;

/// Version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// What tells builds of one version apart; set by the packager.
pub const BUILD: &str = match option_env!("PROXYD_BUILD") {
    Some(build) => build,
    None => "dev",
};
