//! What one image of the keeper leaves to the next over `execve`: its state, and the numbers of the descriptors that go with
//! it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use admin::view::EventView;
use handoff::manifest::Entry;
use handoff::os::Legacy;
use handoff::sequence::Rest;
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use serde::{Deserialize, Serialize};

use super::sockets::SocketFile;
use super::state::{KeeperState, StateError};
use super::vault::{InheritedVault, VaultNumbers};

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Estate {
    pub state: KeeperState,
    pub numbers: Numbers,
    /// Those that a client which follows may not have read.
    pub events: Vec<EventView>,
    pub log_lines_dropped: u64,
}

/// Descriptors by number.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Numbers {
    /// Of `state_dir/lock`: it stays locked.
    pub lock: RawFd,
    pub admin: RawFd,
    /// Device and inode of the admin socket's file.
    pub admin_file: (u64, u64),
    pub metrics: Option<RawFd>,
    pub sockets: Vec<SocketNumber>,
    pub segments: Vec<RawFd>,
    /// In the order of [`KeeperState::binaries`].
    pub binaries: Vec<RawFd>,
    pub links: Vec<LinkNumber>,
    /// Only for a version that knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vault: Option<VaultNumbers>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SocketNumber {
    pub entry: Entry,
    pub number: RawFd,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<SocketFile>,
}

/// The channel to a worker, and where its conversation stands.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LinkNumber {
    pub generation: u32,
    pub number: RawFd,
    pub rest: Rest,
}

/// Only as much of it as says whether the rest can be read.
#[derive(Deserialize)]
struct StateAlone<'a> {
    #[serde(borrow)]
    state: &'a serde_json::value::RawValue,
}

/// Bytes of a state; the largest configuration is 16 MiB, and a text may double when it is quoted.
const LARGEST: u64 = 64 << 20;

impl Estate {
    pub(super) fn sealed(&self) -> io::Result<OwnedFd> {
        let bytes = serde_json::to_vec(self)?;
        if bytes.len() as u64 > LARGEST {
            return Err(io::Error::other(format!(
                "its state is of {} bytes, and {LARGEST} are read at most",
                bytes.len()
            )));
        }
        handoff::memfile::sealed("proxyd-state", &bytes)
    }
}

/// The bytes of a sealed memory file that hold an [`Estate`].
pub(super) fn read(fd: OwnedFd) -> io::Result<Vec<u8>> {
    let length = u64::try_from(rustix::fs::fstat(&fd)?.st_size).unwrap_or(u64::MAX);
    handoff::memfile::read_sealed(fd, length, LARGEST).map_err(io::Error::other)
}

/// Whether this binary could go on from here: it reads the state, the configuration in it, and all the rest.
pub(super) fn examine(bytes: &[u8]) -> Result<(), StateError> {
    let alone: StateAlone<'_> = serde_json::from_slice(bytes)?;
    KeeperState::parse(alone.state.get().as_bytes())?;
    serde_json::from_slice::<Estate>(bytes)?;
    Ok(())
}

/// Close-on-exec taken from these descriptors, until it is dropped: then they have it again.
#[derive(Debug)]
pub(super) struct Inheritable<'a>(Vec<BorrowedFd<'a>>);

impl<'a> Inheritable<'a> {
    pub(super) fn make(fds: Vec<BorrowedFd<'a>>) -> io::Result<Self> {
        let made = Self(fds);
        // On failure the drop sets what was cleared.
        made.0.iter().try_for_each(|fd| fcntl_setfd(fd, fcntl_getfd(fd)? - FdFlags::CLOEXEC))?;
        Ok(made)
    }
}

impl Drop for Inheritable<'_> {
    fn drop(&mut self) {
        for fd in &self.0 {
            // An open descriptor takes the flag.
            let _ = fcntl_setfd(fd, FdFlags::CLOEXEC);
        }
    }
}

/// Takes everything an estate names, in its order.
#[derive(Debug)]
pub(super) struct Inherited {
    pub lock: OwnedFd,
    pub admin: OwnedFd,
    pub metrics: Option<OwnedFd>,
    pub sockets: Vec<OwnedFd>,
    pub segments: Vec<OwnedFd>,
    pub binaries: Vec<OwnedFd>,
    pub links: Vec<OwnedFd>,
    pub vault: Option<InheritedVault>,
}

impl Inherited {
    pub(super) fn take(legacy: &mut Legacy, numbers: &Numbers) -> io::Result<Self> {
        Ok(Self {
            lock: legacy.take(numbers.lock)?,
            admin: legacy.take(numbers.admin)?,
            metrics: numbers.metrics.map(|number| legacy.take(number)).transpose()?,
            sockets: numbers.sockets.iter().map(|socket| legacy.take(socket.number)).collect::<Result<_, _>>()?,
            segments: numbers.segments.iter().map(|number| legacy.take(*number)).collect::<Result<_, _>>()?,
            binaries: numbers.binaries.iter().map(|number| legacy.take(*number)).collect::<Result<_, _>>()?,
            links: numbers.links.iter().map(|link| legacy.take(link.number)).collect::<Result<_, _>>()?,
            vault: numbers.vault.as_ref().map(|vault| InheritedVault::take(legacy, vault)).transpose()?,
        })
    }
}

pub(super) fn number(fd: &impl AsFd) -> RawFd {
    fd.as_fd().as_raw_fd()
}
