//! The facts about the machine that a configuration is checked against.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{Group, Uid, User};

/// Read once, so that checking is a function of the text and of this.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// CPUs this process may use.
    pub cpus: usize,
    /// Hard limit of open descriptors.
    pub descriptors: u64,
    /// The longest accept queue the kernel allows.
    pub somaxconn: u32,
    /// `$RUNTIME_DIRECTORY`, set by systemd.
    pub runtime_directory: Option<PathBuf>,
    /// `$XDG_RUNTIME_DIR`.
    pub xdg_runtime_dir: Option<PathBuf>,
    pub uid: u32,
    /// Addresses of this machine's interfaces.
    pub addresses: Vec<IpAddr>,
    /// Id of a user.
    pub user: fn(&str) -> Option<u32>,
    /// Id of a group.
    pub group: fn(&str) -> Option<u32>,
    /// What is at a path; links are followed.
    pub found: fn(&Path) -> Option<Found>,
}

/// Something in the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub kind: Kind,
    pub uid: u32,
    /// Permission bits.
    pub mode: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Directory,
    Socket,
    Other,
}

impl Surroundings {
    /// This process and this machine. What cannot be read gets the value that forbids least.
    pub fn real() -> Self {
        Self {
            // It heeds the scheduling affinity and the CPU quota of the cgroup.
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            descriptors: getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(_, hard)| hard),
            somaxconn: somaxconn().unwrap_or(u32::MAX),
            runtime_directory: directory("RUNTIME_DIRECTORY"),
            xdg_runtime_dir: directory("XDG_RUNTIME_DIR"),
            uid: Uid::effective().as_raw(),
            addresses: addresses(),
            user: |name| User::from_name(name).ok().flatten().map(|user| user.uid.as_raw()),
            group: |name| Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw()),
            found: |path| found(path).ok(),
        }
    }
}

/// The first of a list separated by colons, as systemd gives it if the unit names several.
fn directory(variable: &str) -> Option<PathBuf> {
    let list = std::env::var_os(variable)?;
    let first = list.as_bytes().split(|byte| *byte == b':').next()?;
    Some(PathBuf::from(OsStr::from_bytes(first))).filter(|path| path.is_absolute())
}

fn somaxconn() -> Option<u32> {
    fs::read_to_string("/proc/sys/net/core/somaxconn").ok()?.trim().parse().ok()
}

fn addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let storage = interfaces.filter_map(|interface| interface.address);
    let ip = |address: nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    storage.filter_map(ip).collect()
}

fn found(path: &Path) -> io::Result<Found> {
    let metadata = fs::metadata(path)?;
    let kind = match metadata.file_type() {
        kind if kind.is_dir() => Kind::Directory,
        kind if kind.is_socket() => Kind::Socket,
        _ => Kind::Other,
    };
    Ok(Found { kind, uid: metadata.uid(), mode: metadata.mode() & 0o7777 })
}
