//! Options of TCP sockets.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::net::sockopt;

use super::clock;
use crate::config::TcpSettings;

/// Prepares a listening socket: what it accepts inherits all of this (Linux copies it when the handshake ends), so that a
/// session need not set it again. To be called again when the settings have changed.
pub fn set_listener(socket: BorrowedFd<'_>, settings: &TcpSettings) -> io::Result<()> {
    sockopt::set_socket_keepalive(socket, settings.keepalive.is_some())?;
    sockopt::set_tcp_user_timeout(socket, 0)?;
    sockopt::set_tcp_nodelay(socket, true)?;
    set_backend(socket)?;
    set_lasting(socket, settings)
}

/// Prepares a socket that will connect. From birth its close is a reset: a process that dies in between must not look
/// like an end of file. (`TCP_NODELAY` can wait for its second write, see `engine`.)
pub(super) fn set_backend(socket: BorrowedFd<'_>) -> io::Result<()> {
    sockopt::set_socket_linger(socket, Some(Duration::ZERO))?;
    // An urgent byte can't be passed on as such; left out of line it would be lost.
    sockopt::set_socket_oobinline(socket, true)?;
    Ok(())
}

/// What matters after minutes of silence. A backend's socket gets it once its session has lasted a second: most sessions of a
/// busy listener never do, and are spared these calls.
pub(super) fn set_lasting(socket: BorrowedFd<'_>, settings: &TcpSettings) -> io::Result<()> {
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
