//! Options of TCP sockets.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::net::sockopt;

use super::clock;
use crate::config::TcpSettings;

/// Prepares an accepted socket. That a close resets is inherited from its listener.
pub(super) fn set_client(socket: BorrowedFd<'_>, settings: &TcpSettings) -> io::Result<()> {
    set_common(socket, settings)
}

/// Prepares a socket that will connect. From birth its close is a reset: a process that dies in between must not look
/// like an end of file.
pub(super) fn set_backend(socket: BorrowedFd<'_>, settings: &TcpSettings) -> io::Result<()> {
    sockopt::set_socket_linger(socket, Some(Duration::ZERO))?;
    set_common(socket, settings)
}

fn set_common(socket: BorrowedFd<'_>, settings: &TcpSettings) -> io::Result<()> {
    sockopt::set_tcp_nodelay(socket, true)?;
    // An urgent byte can't be passed on as such; left out of line it would be lost.
    sockopt::set_socket_oobinline(socket, true)?;
    if let Some(keepalive) = &settings.keepalive {
        sockopt::set_tcp_keepidle(socket, keepalive.idle)?;
        sockopt::set_tcp_keepintvl(socket, keepalive.interval)?;
        sockopt::set_tcp_keepcnt(socket, keepalive.count)?;
        sockopt::set_socket_keepalive(socket, true)?;
    }
    if let Some(timeout) = settings.user_timeout {
        sockopt::set_tcp_user_timeout(socket, u32::try_from(clock::ms(timeout)).unwrap_or(u32::MAX))?;
    }
    Ok(())
}
