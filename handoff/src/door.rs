//! A place where another keeper can knock: a listening `SOCK_SEQPACKET` Unix socket with a path, held by a worker.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::channel::{Channel, Peer};
use crate::os;

/// The listening end. Must be used within a tokio runtime with I/O enabled.
#[derive(Debug)]
pub struct Door(AsyncFd<OwnedFd>);

/// Makes a door at `path`, mode 0600, in a directory of ours. A socket that was left there is replaced; what is no socket
/// is in the way.
pub fn bind(path: &Path) -> io::Result<OwnedFd> {
    remove(path)?;
    let socket = socket()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    // Not yet listening: before this nobody can connect.
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Removes the file of a door, if it is there; one that is no socket stays, and is an error.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} is not a socket", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Connects to a door of our own uid. `ConnectionRefused`: nobody is behind it any more.
pub fn knock(path: &Path) -> io::Result<Channel> {
    let socket = socket()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    // Of the process that made the door, which may be gone.
    let (pid, maker) = owner(&socket)?;
    if maker != ours() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("the door belongs to uid {maker}")));
    }
    channel(socket, pid.and(Some(Peer { pid: None, uid: maker })), maker)
}

/// Process and uid behind the other end. A process of another PID namespace has no number.
fn owner(socket: &OwnedFd) -> io::Result<(Option<u32>, u32)> {
    // Not rustix: there a process always has a number.
    let found = nix::sys::socket::getsockopt(socket, nix::sys::socket::sockopt::PeerCredentials)?;
    Ok((u32::try_from(found.pid()).ok().filter(|pid| *pid != 0), found.uid()))
}

fn channel(socket: OwnedFd, peer: Option<Peer>, uid: u32) -> io::Result<Channel> {
    match peer {
        Some(peer) => Channel::new(socket, peer),
        None => Channel::with_foreigner(socket, uid),
    }
    .map_err(io::Error::other)
}

impl Door {
    /// Refuses what is not a listening socket of the right kind.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let found = (sockopt::socket_domain(&fd)?, sockopt::socket_type(&fd)?, sockopt::socket_acceptconn(&fd)?);
        if found != (AddressFamily::UNIX, SocketType::SEQPACKET, true) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a door is a listening seqpacket Unix socket"));
        }
        // Nobody else listens there: the flag of the socket is ours to set.
        rustix::io::ioctl_fionbio(&fd, true)?;
        os::watch(fd).map(Self)
    }

    /// The next one who knocks; processes of another uid are turned away. May be dropped: nobody is lost.
    pub async fn accept(&self) -> io::Result<Channel> {
        loop {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let accept = |fd: &OwnedFd| match rustix::net::accept_with(fd, flags) {
                Err(Errno::CONNABORTED | Errno::INTR) => Err(io::ErrorKind::Interrupted.into()),
                accepted => accepted.map_err(io::Error::from),
            };
            let caller = match self.0.async_io(Interest::READABLE, accept).await {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                accepted => accepted?,
            };
            let (pid, uid) = owner(&caller)?;
            if uid == ours() {
                return channel(caller, pid.map(|pid| Peer { pid: Some(pid), uid }), uid);
            }
        }
    }
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // Before anything can be sent: a record sent earlier would carry no credentials.
    sockopt::set_socket_passcred(socket.as_fd(), true)?;
    Ok(socket)
}

fn ours() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// One keeper knocks at a time; the next one may come before its predecessor's connection is gone.
const BACKLOG: i32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_knocks_is_let_in_and_a_door_without_anybody_refuses() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("worker-1.sock");
        let door = Door::new(bind(&path).unwrap()).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let ours = knock(&path).unwrap();
        let theirs = door.accept().await.unwrap();
        ours.send(&crate::message::Message::Ready, &[]).await.unwrap();
        assert_eq!(theirs.recv().await.unwrap().0, crate::message::Message::Ready);
        assert_eq!(theirs.speaker(), Some(std::process::id()));
        drop(door);
        assert_eq!(knock(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        // Another door takes the place of one that is left.
        let _again = bind(&path).unwrap();
        assert!(knock(&path).is_ok());
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(knock(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(&path, "precious").unwrap();
        assert!(bind(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn only_a_listening_seqpacket_socket_is_a_door() {
        let (stream, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let unbound = socket().unwrap();
        for fd in [stream.into(), unbound, tempfile::tempfile().unwrap().into()] {
            assert!(Door::new(fd).is_err());
        }
    }
}
