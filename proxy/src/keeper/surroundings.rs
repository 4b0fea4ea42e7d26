//! What the process was started with: its limits, its path, its inherited sockets.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the descriptor limit to what the administrator allows; workers inherit it.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Lowering nothing and asking for no more than allowed, it is not refused.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// The path this program was started from, made absolute now and kept as text: later the working directory may be another,
/// and `/proc/self/exe` names a file that was replaced "(deleted)".
pub fn started_from() -> io::Result<PathBuf> {
    let name = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    if name.components().count() > 1 {
        return std::path::absolute(name);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(&name)).find(|file| file.is_file());
    found.map_or_else(std::env::current_exe, std::path::absolute)
}

/// Listening sockets of a service manager: `LISTEN_FDS` descriptors from 3 on, if `LISTEN_PID` is this process
/// (sd_listen_fds(3)).
pub fn inherited_sockets() -> io::Result<Vec<OwnedFd>> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (Some(pid), Some(count)) if pid == std::process::id() => handoff::os::inherited(count),
        _ => Ok(Vec::new()),
    }
}
