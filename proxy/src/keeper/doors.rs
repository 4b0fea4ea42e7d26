//! The doors for the operator and for Prometheus: sockets that are kept while nobody serves them, so that a client who comes
//! meanwhile waits in their queues.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use admin::server;
use admin::socket::{self, OwnedSocketPath};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::door::KeeperDoor;
use super::run::RunError;
use crate::config::Admin;

#[derive(Debug)]
pub(super) struct Doors {
    unix: OwnedFd,
    tcp: Option<OwnedFd>,
    /// Removed with the doors. `None`: its place was taken by another file, which is not ours.
    path: Option<OwnedSocketPath>,
    door: KeeperDoor,
    /// Dropped to stop the servers.
    stop: Option<watch::Sender<()>>,
    servers: JoinSet<()>,
}

impl Doors {
    /// Binds both.
    pub(super) fn bind(admin: &Admin, door: KeeperDoor) -> Result<Self, RunError> {
        Self::bind_rest(admin, None, None, door)
    }

    /// Binds what was not handed over.
    pub(super) fn bind_rest(
        admin: &Admin,
        unix: Option<(OwnedFd, OwnedSocketPath)>,
        tcp: Option<OwnedFd>,
        door: KeeperDoor,
    ) -> Result<Self, RunError> {
        let listen = |address: SocketAddr| {
            let bound = std::net::TcpListener::bind(address);
            bound.map(OwnedFd::from).map_err(|source| RunError::AdminListen { address, source })
        };
        let tcp = match tcp {
            Some(handed) => Ok(Some(handed)),
            None => admin.listen.map(listen).transpose(),
        };
        let tcp = match tcp {
            Ok(tcp) => tcp,
            Err(error) => {
                // The file stays another keeper's.
                unix.into_iter().for_each(|(_, path)| path.leave());
                return Err(error);
            }
        };
        let (unix, path) = match unix {
            Some(handed) => handed,
            None => {
                let (unix, path) = socket::bind_socket(&admin.socket)?;
                (unix.into_std()?.into(), path)
            }
        };
        Ok(Self::of(unix, tcp, Some(path), door))
    }

    /// Bound by an earlier image of this process.
    pub(super) fn of(unix: OwnedFd, tcp: Option<OwnedFd>, path: Option<OwnedSocketPath>, door: KeeperDoor) -> Self {
        Self { unix, tcp, path, door, stop: None, servers: JoinSet::new() }
    }

    /// Serves, until [`Self::close`].
    pub(super) fn open(&mut self) -> io::Result<()> {
        let (stop, stopped) = watch::channel(());
        let unix = std::os::unix::net::UnixListener::from(self.unix.try_clone()?);
        unix.set_nonblocking(true)?;
        let unix = UnixListener::from_std(unix)?;
        self.servers.spawn_local(server::serve_unix(unix, self.door.clone(), until_dropped(stopped.clone())));
        if let Some(tcp) = &self.tcp {
            let tcp = std::net::TcpListener::from(tcp.try_clone()?);
            tcp.set_nonblocking(true)?;
            let tcp = TcpListener::from_std(tcp)?;
            self.servers.spawn_local(server::serve_tcp(tcp, self.door.clone(), until_dropped(stopped)));
        }
        self.stop = Some(stop);
        Ok(())
    }

    /// Takes nobody in any more; requests under way are answered, for at most as long as the server's limits say.
    pub(super) async fn close(&mut self) {
        self.stop = None;
        while self.servers.join_next().await.is_some() {}
    }

    /// Another keeper has the sockets, and the file.
    pub(super) fn leave(self) {
        if let Some(path) = self.path {
            path.leave();
        }
    }

    /// Takes nobody in any more, and cuts who is there.
    pub(super) async fn abandon(&mut self) {
        self.stop = None;
        self.servers.shutdown().await;
    }

    /// The sockets, and device and inode of the first one's file.
    pub(super) fn sockets(&self) -> (&OwnedFd, Option<&OwnedFd>, (u64, u64)) {
        let file = self.path.as_ref().and_then(|path| path.identity().ok());
        (&self.unix, self.tcp.as_ref(), file.unwrap_or_default())
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [Some(&self.unix), self.tcp.as_ref()].into_iter().flatten().map(AsFd::as_fd)
    }
}

async fn until_dropped(mut stopped: watch::Receiver<()>) {
    // Nothing is ever sent: it ends when the sender is dropped.
    let _ = stopped.changed().await;
}
