//! What a received descriptor is, asked of the kernel and not of the peer.

use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, OFlags};
use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::manifest::{name_of, unreadable};
use crate::os;

/// A stream socket that is no listener; it may be connected or not: one that was reset has no peer any more.
pub(super) fn stream(fd: BorrowedFd<'_>) -> Result<(), String> {
    // One call says all of a TCP socket, and of nothing else but what stands for one (SMC): there are thousands.
    match os::tcp_state(fd) {
        Ok(TCP_LISTEN) => Err(LISTENING.to_owned()),
        Ok(_) => Ok(()),
        Err(_) => unix_stream(fd),
    }
}

fn unix_stream(fd: BorrowedFd<'_>) -> Result<(), String> {
    of_type(fd, FileType::Socket)?;
    let (family, kind) =
        (sockopt::socket_domain(fd).map_err(unreadable)?, sockopt::socket_type(fd).map_err(unreadable)?);
    if (family, kind) != (AddressFamily::UNIX, SocketType::STREAM) {
        return Err(format!("a socket of family {}, type {}", family.as_raw(), kind.as_raw()));
    }
    if sockopt::socket_acceptconn(fd).map_err(unreadable)? {
        return Err(LISTENING.to_owned());
    }
    Ok(())
}

/// The reading end of a pipe.
pub(super) fn reading_end(fd: BorrowedFd<'_>) -> Result<(), String> {
    of_type(fd, FileType::Fifo)?;
    let flags = rustix::fs::fcntl_getfl(fd).map_err(unreadable)?;
    if flags.contains(OFlags::WRONLY) {
        return Err("the writing end of a pipe".to_owned());
    }
    Ok(())
}

fn of_type(fd: BorrowedFd<'_>, wanted: FileType) -> Result<(), String> {
    let found = FileType::from_raw_mode(rustix::fs::fstat(fd).map_err(unreadable)?.st_mode);
    if found == wanted { Ok(()) } else { Err(format!("a {}", name_of(found))) }
}

/// Of include/net/tcp_states.h.
const TCP_LISTEN: u8 = 10;

const LISTENING: &str = "a listening socket";
