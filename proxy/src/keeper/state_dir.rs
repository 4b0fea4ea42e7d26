//! The keeper's own directory: private, and locked, so that one state directory has one keeper.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Held for the life of the keeper. The lock's descriptor is close-on-exec: a worker must not inherit it.
#[derive(Debug)]
pub struct StateDir {
    lock: File,
}

#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    #[error("state_dir {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("state_dir {path} belongs to uid {owner}, not to ours ({own}); choose another runtime.state_dir")]
    Foreign { path: PathBuf, owner: u32, own: u32 },
    #[error("state_dir {path} is writable by others (mode {mode:o}); chmod 700 it")]
    Open { path: PathBuf, mode: u32 },
    #[error("state_dir {path} is in use by another proxyd; stop it, or choose another runtime.state_dir")]
    InUse { path: PathBuf },
}

impl StateDir {
    /// Claimed by an earlier image of this process: the lock belongs to the descriptor.
    pub(super) fn inherited(lock: OwnedFd) -> Self {
        Self { lock: lock.into() }
    }

    pub(super) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Lets another keeper claim it.
    pub(super) fn release(&self) -> io::Result<()> {
        Ok(flock(&self.lock, FlockOperation::NonBlockingUnlock)?)
    }

    /// After [`Self::release`], if nobody else has claimed it.
    pub(super) fn reclaim(&self) -> io::Result<()> {
        Ok(flock(&self.lock, FlockOperation::NonBlockingLockExclusive)?)
    }

    pub fn claim(path: &Path) -> Result<Self, StateDirError> {
        let io = |source| StateDirError::Io { path: path.into(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io)?;
        let meta = fs::symlink_metadata(path).map_err(io)?;
        let own = nix::unistd::geteuid().as_raw();
        if !meta.is_dir() {
            return Err(io(io::Error::new(io::ErrorKind::NotADirectory, "is not a directory")));
        }
        if meta.uid() != own {
            return Err(StateDirError::Foreign { path: path.into(), owner: meta.uid(), own });
        }
        if meta.mode() & 0o077 != 0 {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(io)?;
        }
        let lock = File::options().create(true).truncate(false).write(true).open(path.join("lock")).map_err(io)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StateDirError::InUse { path: path.into() }),
            Err(error) => Err(io(error.into())),
        }
    }
}
