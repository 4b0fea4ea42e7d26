//! The listening sockets: bound or adopted by the keeper, one duplicate of each kept for as long as the configuration
//! names it, so that a connection always finds a queue to wait in.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use handoff::manifest::{Entry, Mismatch};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::upgrade::ids;
use crate::config::{Bind, Config, Listener};
use crate::session;

/// Bound sockets by id ([`Bind::id`]).
#[derive(Debug, Default)]
pub(super) struct Sockets {
    bound: BTreeMap<String, Bound>,
}

#[derive(Debug)]
pub(super) struct Bound {
    fd: OwnedFd,
    pub entry: Entry,
    /// Of a Unix socket that we bound: path, device and inode; only that file is ours to remove.
    file: Option<SocketFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("listener {listener}: cannot listen on {bind}: {source}{hint}")]
pub struct BindError {
    pub listener: String,
    pub bind: String,
    pub source: io::Error,
    hint: &'static str,
}

impl BindError {
    fn new(listener: &str, bind: &Bind, source: io::Error) -> Self {
        let hint = match source.kind() {
            io::ErrorKind::AddrInUse => {
                "; another program holds it, or a listener of ours that this change removes (then remove it first, in a reload of its own)"
            }
            io::ErrorKind::PermissionDenied => {
                "; ports below 1024 need CAP_NET_BIND_SERVICE, or a socket from the service manager"
            }
            io::ErrorKind::AddrNotAvailable => "; no interface of this machine has that address",
            _ => "",
        };
        Self { listener: listener.into(), bind: bind.to_string(), source, hint }
    }
}

impl Sockets {
    /// Takes what a service manager bound for us (sd_listen_fds(3)): each is kept under the id of the bind it equals.
    pub(super) fn adopt(&mut self, inherited: Vec<OwnedFd>, config: &Config) -> Vec<String> {
        let mut notes = Vec::new();
        for fd in inherited {
            match wanted_by(config, fd.as_fd()) {
                Some((name, bind)) => match adopted(&bind, fd) {
                    Ok(bound) => {
                        notes.push(format!("listener {name}: {bind} adopted from the service manager"));
                        self.bound.insert(bind.id(), bound);
                    }
                    Err(source) => {
                        notes.push(format!("listener {name}: {bind} from the service manager is not usable: {source}"))
                    }
                },
                None => notes.push(
                    "a socket from the service manager matches no bind of the configuration; it is closed".into(),
                ),
            }
        }
        notes
    }

    /// Binds what `config` names and we do not hold yet. On failure everything bound here is closed again.
    pub(super) fn bind_missing(&mut self, config: &Config) -> Result<Vec<String>, BindError> {
        let mut added = Vec::new();
        for (name, listener) in &config.listeners {
            for bind in listener.bind.iter() {
                if self.bound.contains_key(&bind.id()) {
                    continue;
                }
                match listen(bind, listener).and_then(|fd| Bound::of(bind, fd)) {
                    Ok(bound) => {
                        self.bound.insert(bind.id(), bound);
                        added.push(bind.id());
                    }
                    Err(source) => {
                        self.close(&added);
                        return Err(BindError::new(name, bind, source));
                    }
                }
            }
        }
        Ok(added)
    }

    /// Gives sockets that are kept the options of the configuration in force: they were made under an older one.
    pub(super) fn refresh(&self, config: &Config) {
        for (name, listener) in &config.listeners {
            for bind in &listener.bind {
                let Some(bound) = self.bound.get(&bind.id()) else { continue };
                if let Err(error) = bound.refresh(bind, listener) {
                    tracing::warn!(listener = name, %bind, %error, "socket options not renewed; the old ones stay");
                }
            }
        }
    }

    /// Ids we hold that `config` does not name.
    pub(super) fn surplus(&self, config: &Config) -> Vec<String> {
        let named: BTreeSet<String> = ids(config).into_iter().collect();
        self.bound.keys().filter(|id| !named.contains(*id)).cloned().collect()
    }

    /// Closes our copies, and removes socket files that are ours.
    pub(super) fn close(&mut self, ids: &[String]) {
        for id in ids {
            // The file first: the open socket keeps its inode number from being given to another file.
            if let Some(Bound { file: Some(file), .. }) = &self.bound.remove(id) {
                file.remove();
            }
        }
    }

    pub(super) fn close_all(&mut self) {
        let ids: Vec<String> = self.bound.keys().cloned().collect();
        self.close(&ids);
    }

    /// Closes our copies; the files are another keeper's.
    pub(super) fn leave_all(&mut self) {
        self.bound.clear();
    }

    /// The files of Unix sockets that another keeper bound are ours now.
    pub(super) fn own_files(&mut self, files: &BTreeMap<String, SocketFile>) {
        for (id, file) in files {
            if let Some(bound) = self.bound.get_mut(id) {
                bound.file.get_or_insert_with(|| file.clone());
            }
        }
    }

    /// What is held, for another image of this process.
    pub(super) fn held(&self) -> impl Iterator<Item = (&Entry, &OwnedFd, Option<&SocketFile>)> {
        self.bound.values().map(|bound| (&bound.entry, &bound.fd, bound.file.as_ref()))
    }

    /// Files of the Unix sockets that we bound, by id.
    pub(super) fn files(&self) -> BTreeMap<String, SocketFile> {
        let files = self.bound.iter().filter_map(|(id, bound)| Some((id.clone(), bound.file.clone()?)));
        files.collect()
    }

    /// Takes a socket that an earlier keeper has bound, after a look at whether it is that one.
    pub(super) fn take_over(&mut self, entry: Entry, fd: OwnedFd, file: Option<SocketFile>) -> Result<(), Mismatch> {
        entry.verify(fd.as_fd())?;
        self.bound.insert(entry.id.clone(), Bound { fd, entry, file });
        Ok(())
    }

    /// Duplicates to hand on, of these ids or of all.
    pub(super) fn duplicates(&self, ids: Option<&[String]>) -> io::Result<Vec<(Entry, OwnedFd)>> {
        self.bound
            .iter()
            .filter(|(id, _)| ids.is_none_or(|ids| ids.contains(id)))
            .map(|(_, bound)| Ok((bound.entry.clone(), bound.fd.try_clone()?)))
            .collect()
    }
}

impl Bound {
    fn of(bind: &Bind, fd: OwnedFd) -> io::Result<Self> {
        let entry = Entry::of(&bind.id(), fd.as_fd())?;
        let file = match bind {
            Bind::Unix { path, .. } => Some(SocketFile::of(path)?),
            Bind::Tcp { .. } => None,
        };
        Ok(Self { fd, entry, file })
    }

    fn refresh(&self, bind: &Bind, listener: &Listener) -> io::Result<()> {
        let socket = SockRef::from(&self.fd);
        if let Bind::Unix { path, .. } = bind {
            give(bind, path)?;
        } else {
            session::set_listener(socket.as_fd(), &listener.tcp)?;
        }
        // A second listen(2) only changes the backlog.
        socket.listen(backlog(listener))
    }
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = std::fs::symlink_metadata(path)?;
        Ok(Self { path: path.into(), device: meta.dev(), inode: meta.ino() })
    }

    fn remove(&self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == (self.device, self.inode));
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "socket file not removed");
        }
    }
}

fn listen(bind: &Bind, listener: &Listener) -> io::Result<OwnedFd> {
    match bind {
        Bind::Tcp { address, v6only } => listen_tcp(*address, *v6only, listener),
        Bind::Unix { path, .. } => listen_unix(bind, path, listener),
    }
}

fn listen_tcp(address: SocketAddr, v6only: bool, listener: &Listener) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(v6only)?;
    }
    session::set_listener(socket.as_fd(), &listener.tcp)?;
    socket.bind(&address.into())?;
    socket.listen(backlog(listener))?;
    Ok(socket.into())
}

/// Bound but not yet listening, nobody can connect: there is no moment with wrong permissions.
fn listen_unix(bind: &Bind, path: &Path, listener: &Listener) -> io::Result<OwnedFd> {
    make_way(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    give(bind, path)?;
    socket.listen(backlog(listener))?;
    Ok(socket.into())
}

/// Removes a socket file that nobody answers on; one that is served, or is no socket, stays.
fn make_way(path: &Path) -> io::Result<()> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is not a socket"));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

fn give(bind: &Bind, path: &Path) -> io::Result<()> {
    let Bind::Unix { mode, owner, group, .. } = bind else { return Ok(()) };
    if owner.is_some() || group.is_some() {
        std::os::unix::fs::lchown(path, *owner, *group)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(*mode))
}

fn backlog(listener: &Listener) -> i32 {
    i32::try_from(listener.backlog).unwrap_or(i32::MAX)
}

/// The flag belongs to the socket, not to a process: it is set while nobody else uses it. The file of a Unix socket stays
/// the service manager's, who listens there for our next start.
fn adopted(bind: &Bind, fd: OwnedFd) -> io::Result<Bound> {
    SockRef::from(&fd).set_nonblocking(true)?;
    let entry = Entry::of(&bind.id(), fd.as_fd())?;
    Ok(Bound { fd, entry, file: None })
}

/// The bind that an inherited socket serves.
fn wanted_by(config: &Config, fd: std::os::fd::BorrowedFd<'_>) -> Option<(String, Bind)> {
    let entry = Entry::of("inherited", fd).ok()?;
    config.listeners.iter().find_map(|(name, listener)| {
        let bind = listener.bind.iter().find(|bind| match bind {
            Bind::Tcp { address, v6only } => {
                entry.address == address.to_string() && (!address.is_ipv6() || entry.v6only == *v6only)
            }
            Bind::Unix { path, .. } => entry.address == path.display().to_string(),
        })?;
        Some((name.clone(), bind.clone()))
    })
}
