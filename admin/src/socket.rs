//! The admin socket as a file: made without a moment in which others could use it, replaced only when dead, removed
//! only when ours.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, Stat, fstat, lstat, open, renameat_with};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};
use tokio::net::UnixListener;

/// Binds the admin socket at `path`, mode 0600. Needs a tokio runtime.
///
/// The directory must be ours and closed to others' writes. A socket that nobody answers is replaced; anything else
/// that is in the way stays, and is an error. The guard removes the path when dropped.
pub fn bind_socket(path: &Path) -> Result<(UnixListener, OwnedSocketPath), BindError> {
    let directory = check_directory(path)?;
    let address = address(path)?;
    remove_stale(path, &address)?;
    let (socket, hidden) = bind_hidden(directory, path)?;
    let owned = hidden.reveal(path)?;
    let listener = StdListener::from(socket);
    let listener = UnixListener::from_std(listener).map_err(|source| io_at(path, source))?;
    Ok((listener, owned))
}

/// The guard of a socket that an earlier image of this process has bound at `path`, with device and inode as it had them.
/// `None`: something else is there by now, which is not ours to remove.
pub fn adopt_path(path: &Path, (device, inode): (u64, u64)) -> Option<OwnedSocketPath> {
    let owned = OwnedSocketPath::of(path).ok()?;
    if owned.identity().ok() == Some((device, inode)) {
        return Some(owned);
    }
    owned.leave();
    None
}

/// Why the admin socket could not be made. Nothing of others was touched.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("admin socket {}: {why}", path.display())]
    BadPath { path: PathBuf, why: &'static str },
    #[error("admin socket directory {}: {why}", directory.display())]
    Directory { directory: PathBuf, why: String },
    #[error("admin socket {}: something that is not a socket is there; move it away", path.display())]
    NotASocket { path: PathBuf },
    #[error("admin socket {}: a running process answers there; stop it, or give this one another socket", path.display())]
    InUse { path: PathBuf },
    #[error("admin socket {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A socket file that is ours: known by device and inode, so that a successor's file at the same path stays.
#[derive(Debug)]
pub struct OwnedSocketPath {
    path: PathBuf,
    /// Opened with `O_PATH`. Pins the inode: its number is not given to another file while we compare with it.
    pin: OwnedFd,
}

impl OwnedSocketPath {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        let found = fstat(&self.pin)?;
        Ok((found.st_dev, found.st_ino))
    }

    /// The file stays.
    pub fn leave(mut self) {
        self.path = PathBuf::new();
    }

    fn of(path: &Path) -> Result<Self, BindError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let pin = open(path, flags, Mode::empty()).map_err(|e| io_at(path, e.into()))?;
        Ok(Self { path: path.to_owned(), pin })
    }

    fn is_still_ours(&self) -> bool {
        let same = |ours: Stat, found: Stat| (ours.st_dev, ours.st_ino) == (found.st_dev, found.st_ino);
        matches!((fstat(&self.pin), lstat(&self.path)), (Ok(ours), Ok(found)) if same(ours, found))
    }

    /// Moves the socket to its public name, which must be free. On failure it is removed.
    fn reveal(mut self, path: &Path) -> Result<Self, BindError> {
        match renameat_with(CWD, &self.path, CWD, path, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            // Some network file systems cannot refuse to replace; the path was free a moment ago.
            Err(Errno::INVAL | Errno::NOSYS) => {
                fs::rename(&self.path, path).map_err(|source| io_at(path, source))?;
            }
            Err(Errno::EXIST) => return Err(BindError::InUse { path: path.to_owned() }),
            Err(e) => return Err(io_at(path, e.into())),
        }
        path.clone_into(&mut self.path);
        Ok(self)
    }
}

impl Drop for OwnedSocketPath {
    fn drop(&mut self) {
        if self.is_still_ours() {
            // A path that cannot be removed is found stale and replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Other users must not be able to put a socket of theirs in our place, nor remove ours.
fn check_directory(path: &Path) -> Result<&Path, BindError> {
    let bad_path = |why| BindError::BadPath { path: path.to_owned(), why };
    if !path.is_absolute() {
        return Err(bad_path("the path must be absolute"));
    }
    let directory = path.parent().ok_or_else(|| bad_path("the path names no file"))?;
    let bad = |why: String| BindError::Directory { directory: directory.to_owned(), why };
    let found = fs::symlink_metadata(directory).map_err(|e| bad(e.to_string()))?;
    let own = rustix::process::geteuid().as_raw();
    if !found.is_dir() {
        return Err(bad("not a directory; a link is not followed".to_owned()));
    }
    if found.uid() != own {
        return Err(bad(format!("owned by uid {}, this process is uid {own}", found.uid())));
    }
    if found.mode() & 0o022 != 0 {
        return Err(bad(format!("mode {:04o} lets others write; make it 0700", found.mode() & 0o7777)));
    }
    Ok(directory)
}

fn address(path: &Path) -> Result<SocketAddrUnix, BindError> {
    SocketAddrUnix::new(path).map_err(|_| BindError::BadPath {
        path: path.to_owned(),
        why: "the kernel takes at most 107 bytes, without NUL, for the path of a Unix socket",
    })
}

fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), BindError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(io_at(path, source)),
    };
    if !found.file_type().is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned() });
    }
    let probe = stream_socket().map_err(|source| io_at(path, source))?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(|source| io_at(path, source)),
        Err(Errno::NOENT) => Ok(()),
        // EAGAIN is a full queue: somebody listens.
        Ok(()) | Err(Errno::AGAIN) => Err(BindError::InUse { path: path.to_owned() }),
        Err(e) => Err(io_at(path, e.into())),
    }
}

/// A listening socket under a short private name. It listens only once its mode is 0600: before that a connect is
/// refused, so there is no window, and no umask to change.
fn bind_hidden(directory: &Path, path: &Path) -> Result<(OwnedFd, OwnedSocketPath), BindError> {
    let hidden = directory.join(format!(".adm{}", std::process::id()));
    let address = address(&hidden)?;
    // Left by a process of the same pid that was killed between bind and rename.
    remove_stale(&hidden, &address)?;
    let at = |e: Errno| io_at(path, e.into());
    let socket = stream_socket().map_err(|source| io_at(path, source))?;
    bind(&socket, &address).map_err(at)?;
    let owned = OwnedSocketPath::of(&hidden)?;
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600)).map_err(|source| io_at(path, source))?;
    listen(&socket, BACKLOG).map_err(at)?;
    Ok((socket, owned))
}

fn stream_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

fn io_at(path: &Path, source: io::Error) -> BindError {
    BindError::Io { path: path.to_owned(), source }
}

/// Twice the connections served at a time: an operator's connect never fails for a full queue.
const BACKLOG: i32 = 128;
