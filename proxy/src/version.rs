//! Which build this is.

/// Version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What tells builds of one version apart; set by the packager.
pub const BUILD: &str = match option_env!("PROXYD_BUILD") {
    Some(build) => build,
    None => "dev",
};
