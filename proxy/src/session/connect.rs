//! From a listener's choice of pool to a connected backend: one try after the other, before the first byte only.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::IpBindAddressNoPort;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::book::Book;
use super::options;
use super::socket::Socket;
use super::terms::Terms;
use crate::observe::reason::{ConnectFailure, Reason};
use crate::pool::{Backend, Pool, Tried};

#[derive(Debug)]
pub(super) struct Reached {
    pub(super) socket: Socket,
    pub(super) backend: Arc<Backend>,
    /// Of the try that succeeded.
    pub(super) took: Duration,
}

/// One try that failed.
#[derive(Debug, thiserror::Error)]
#[error("backend {backend} ({address}): {source}")]
pub(super) struct ConnectError {
    backend: String,
    address: SocketAddr,
    why: ConnectFailure,
    source: io::Error,
}

/// Tries backends of the pool until one is connected; else says how the session is to end.
pub(super) async fn reach(terms: &Terms, book: &Book) -> Result<Reached, Reason> {
    let mut tried = Tried::default();
    let mut reason = Reason::NoBackend;
    for _ in 0..=terms.pool.connect_retries() {
        let Some(backend) = terms.pool.pick(&mut tried) else { break };
        let begun = Instant::now();
        match connect(backend, &terms.pool).await {
            Ok(socket) => return Ok(Reached { socket, backend: Arc::clone(backend), took: begun.elapsed() }),
            Err(e) => {
                tracing::debug!(listener = terms.listener, pool = terms.pool.name(), "{e}");
                if let Some(counted) = book.backend(terms.pool.name(), backend) {
                    counted.connect_failed(e.why);
                }
                reason = e.reason();
            }
        }
    }
    Err(reason)
}

pub(super) async fn connect(backend: &Backend, pool: &Pool) -> Result<Socket, ConnectError> {
    let failed = |source: io::Error| ConnectError {
        backend: backend.name.clone(),
        address: backend.address,
        why: failure(&source),
        source,
    };
    let (fd, connected) = begin(backend.address, pool.source()).map_err(failed)?;
    // Only now: a socket that has not begun to connect looks hung up to epoll.
    let socket = Socket::register(fd).map_err(failed)?;
    if !connected {
        let done = std::future::poll_fn(|cx| socket.poll_connected(cx));
        match tokio::time::timeout(pool.connect_timeout(), done).await {
            Ok(result) => result.map_err(failed)?,
            Err(elapsed) => return Err(failed(elapsed.into())),
        }
    }
    Ok(socket)
}

/// A socket on its way to `address`, and whether it is there already.
fn begin(address: SocketAddr, source: Option<IpAddr>) -> io::Result<(OwnedFd, bool)> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    options::set_backend(fd.as_fd())?;
    if let Some(source) = source {
        // The port is then chosen at connect, when the other end is known: sources are not limited to 64 k connections.
        nix::sys::socket::setsockopt(&fd, IpBindAddressNoPort, &true)?;
        rustix::net::bind(&fd, &SocketAddr::new(source, 0))?;
    }
    match rustix::net::connect(&fd, &address) {
        Ok(()) => Ok((fd, true)),
        Err(Errno::INPROGRESS | Errno::INTR) => Ok((fd, false)),
        Err(e) => Err(e.into()),
    }
}

impl ConnectError {
    fn reason(&self) -> Reason {
        match self.why {
            ConnectFailure::Timeout => Reason::ConnectTimeout,
            _ => Reason::ConnectFailed,
        }
    }
}

fn failure(e: &io::Error) -> ConnectFailure {
    if e.kind() == io::ErrorKind::TimedOut {
        return ConnectFailure::Timeout;
    }
    match Errno::from_io_error(e) {
        Some(Errno::CONNREFUSED) => ConnectFailure::Refused,
        Some(Errno::NETUNREACH | Errno::HOSTUNREACH) => ConnectFailure::Unreachable,
        Some(Errno::CONNRESET) => ConnectFailure::Reset,
        Some(
            Errno::ADDRNOTAVAIL
            | Errno::ADDRINUSE
            | Errno::MFILE
            | Errno::NFILE
            | Errno::NOBUFS
            | Errno::NOMEM
            | Errno::ACCESS
            | Errno::PERM,
        ) => ConnectFailure::Local,
        _ => ConnectFailure::Other,
    }
}
