//! One side of a session: a stream socket, TCP or Unix, in the runtime of its thread.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, sockopt};
use rustix::pipe::{SpliceFlags, splice};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::options;
use super::pipe::Pipe;
use crate::config::TcpSettings;

#[derive(Debug)]
pub struct Socket {
    io: AsyncFd<OwnedFd>,
}

impl Socket {
    /// Registers a connected (or connecting) socket with the runtime of this thread.
    pub fn register(fd: OwnedFd) -> io::Result<Self> {
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        Ok(Self { io: register(fd, interest)? })
    }

    /// Takes it out of the runtime. Whoever registers it next hears of everything that is the case by then.
    pub(super) fn into_fd(self) -> OwnedFd {
        self.io.into_inner()
    }

    pub(super) fn poll_receive(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.io.poll_read_ready(cx))?;
            match rustix::net::recv(&self.io, &mut *buffer, RecvFlags::empty()) {
                Ok((_, n)) => {
                    // The kernel had no more: the next byte makes a new event, so no second read has to find that out.
                    if 0 < n && n < buffer.len() && !self.has_urgent() {
                        guard.clear_ready();
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                Err(e) => return Poll::Ready(Err(e.into())),
            }
        }
    }

    /// Into an empty pipe; a full pipe would look like a quiet socket.
    pub(super) fn poll_splice_in(&self, cx: &mut Context<'_>, pipe: &Pipe) -> Poll<io::Result<usize>> {
        let Some(writer) = &pipe.writer else { return Poll::Ready(Err(io::ErrorKind::InvalidInput.into())) };
        loop {
            let mut guard = ready!(self.io.poll_read_ready(cx))?;
            match splice(&self.io, None, writer, None, pipe.size, SPLICE) {
                Ok(n) => return Poll::Ready(Ok(n)),
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                Err(e) => return Poll::Ready(Err(e.into())),
            }
        }
    }

    /// Writes what fits now; 0: nothing does.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        none_now(|| rustix::net::send(&self.io, bytes, SendFlags::NOSIGNAL))
    }

    /// Writes what fits now out of the pipe; 0: nothing does.
    pub(super) fn splice_out(&self, pipe: &Pipe, n: usize) -> io::Result<usize> {
        none_now(|| splice(&pipe.reader, None, &self.io, None, n, SPLICE))
    }

    /// After a short write: forgets that there was room. The kernel makes a new event once there is, for it has turned
    /// bytes away.
    pub(super) fn forget_room(&self) {
        let _ = self.io.try_io(Interest::WRITABLE, |_| Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }

    /// Ready when there may be room, or an error that the next write tells.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.poll_write_ready(cx).map_ok(drop)
    }

    /// Ready when the socket broke, for a side that is not being read. Uses the writer's waker: fine beside
    /// [`Self::poll_room`] of the same task, since who writes tries before it asks.
    pub(super) fn poll_broken(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            let mut guard = match ready!(self.io.poll_write_ready(cx)) {
                Ok(guard) => guard,
                Err(e) => return Poll::Ready(e),
            };
            if guard.ready().is_write_closed() {
                break;
            }
            guard.clear_ready();
        }
        match sockopt::socket_error(&self.io) {
            // Closed without an error: a Unix peer that is gone. What it sent still counts, and its end is in the stream.
            Ok(Ok(())) => Poll::Pending,
            Ok(Err(e)) | Err(e) => Poll::Ready(e.into()),
        }
    }

    /// Ready when the connect is over.
    pub(super) fn poll_connected(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.io.poll_write_ready(cx))?.retain_ready();
        Poll::Ready(sockopt::socket_error(&self.io).and_then(|state| state).map_err(Into::into))
    }

    pub(super) fn shutdown(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(&self.io, Shutdown::Write)?)
    }

    /// From here on a close delivers what is unsent. It can fail only on a socket that is no longer connected.
    pub(super) fn linger_off(&self) {
        let _ = sockopt::set_socket_linger(&self.io, None);
    }

    /// Closes with a reset. (A Unix socket knows none: its peer reads an end of file, or `ECONNRESET` if it had sent
    /// bytes that were not read.)
    pub(super) fn reset(&self) {
        let _ = sockopt::set_socket_linger(&self.io, Some(Duration::ZERO));
    }

    /// Resets also where others hold the socket too, whose peers see nothing of a close. (A Unix socket knows no reset: its
    /// peer reads an end of file.)
    pub(super) fn disconnect(&self) {
        if rustix::net::connect_unspec(&self.io).is_err() {
            // One that is not connected any more has nothing to tell.
            let _ = rustix::net::shutdown(&self.io, Shutdown::Both);
        }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.get_ref().as_fd()
    }

    /// What only a session that lasts needs.
    pub(super) fn set_lasting(&self, settings: &TcpSettings) -> io::Result<()> {
        options::set_lasting(self.io.as_fd(), settings)
    }

    /// Sends small writes at once, also while earlier ones are not acknowledged.
    pub(super) fn nagle_off(&self) {
        // On a socket that broke; a Unix socket has no such rule. The next write tells.
        let _ = sockopt::set_tcp_nodelay(&self.io, true);
    }

    /// Bytes written and not acknowledged by the peer.
    pub(super) fn unsent(&self) -> io::Result<u32> {
        handoff::os::unsent(self.io.as_fd())
    }

    /// A read stops at an urgent mark with more behind it, so on such a socket a short read proves nothing.
    fn has_urgent(&self) -> bool {
        self.io.try_io(Interest::PRIORITY, |_| Ok(())).is_ok()
    }
}

/// With the runtime of this thread.
#[expect(deprecated, reason = "the successor is unsafe for what a descriptor type may do wrong; an OwnedFd can't")]
pub fn register<T: AsRawFd>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(fd, interest)
}

/// Never `MORE`: it acts as a cork, and what was written waits up to 200 ms.
const SPLICE: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

fn none_now(mut write: impl FnMut() -> Result<usize, Errno>) -> io::Result<usize> {
    loop {
        match write() {
            Err(Errno::AGAIN) => return Ok(0),
            Err(Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}
