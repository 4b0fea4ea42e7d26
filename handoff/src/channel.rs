//! The transport: records and descriptors over a `SOCK_SEQPACKET` Unix socket. Moves them and decides nothing.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SocketFlags, SocketType, UCred,
    sockopt,
};
use sendfd::SendWithFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::codec::{self, CodecError, Word};
use crate::message::Message;
use crate::os;

/// One end of the conversation. Both directions take `&self`, and both may be dropped half-way: a record is sent or
/// received as a whole or not at all. `W` are the words that are spoken on it.
#[derive(Debug)]
pub struct Channel<W = Message> {
    /// std has no type for SEQPACKET; of `UnixDatagram` only the descriptor is used.
    socket: AsyncFd<UnixDatagram>,
    peer: Peer,
    /// Whether each record says who sent it.
    is_stamped: bool,
    /// Who sent the first record; no other process may send a later one.
    spoke: OnceLock<u32>,
    words: PhantomData<fn(W) -> W>,
}

/// Who must be at the other end: the kernel stamps every record with its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Unknown where it was not we who started it, or it lives in another PID namespace.
    pub pid: Option<u32>,
    pub uid: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("not a seqpacket Unix socket: {found}")]
    NotAChannel { found: String },
    #[error("a record from {got} where {wanted} was expected")]
    Stranger { wanted: Peer, got: Peer },
    #[error("a record without credentials")]
    Nameless,
    #[error("record `{message}` announces {expected} descriptors and carries {got}")]
    Descriptors { message: &'static str, expected: usize, got: usize },
    /// The descriptors that did arrive are closed. The usual reason is the limit of open files, of this process.
    #[error("descriptors were truncated: {got} of {} arrived, limit of open files {limit}",
        .expected.map_or_else(|| "an unknown number".to_owned(), |n| n.to_string()))]
    Truncated { expected: Option<usize>, got: usize, limit: u64 },
    #[error("too many descriptors are on their way and not yet received (ETOOMANYREFS)")]
    TooManyInFlight,
    #[error("the other side has closed the channel")]
    Gone,
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("the channel failed: {0}")]
    Io(#[source] io::Error),
}

impl Channel {
    /// Two connected ends, close-on-exec. Credentials are asked for here, before anything can be sent: a record sent
    /// earlier would carry none.
    pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        sockopt::set_socket_passcred(&ours, true)?;
        sockopt::set_socket_passcred(&theirs, true)?;
        Ok((ours, theirs))
    }
}

impl<W: Word> Channel<W> {
    /// Takes one end. Must be called within a tokio runtime with I/O enabled.
    pub fn new(fd: OwnedFd, peer: Peer) -> Result<Self, ChannelError> {
        Self::of(fd, peer, true)
    }

    /// As [`Self::new`], with a process of another PID namespace, where it has no number: the socket has said whose it is, and
    /// its records are not asked again.
    pub fn with_foreigner(fd: OwnedFd, uid: u32) -> Result<Self, ChannelError> {
        Self::of(fd, Peer { pid: None, uid }, false)
    }

    fn of(fd: OwnedFd, peer: Peer, is_stamped: bool) -> Result<Self, ChannelError> {
        verify(fd.as_fd())?;
        sockopt::set_socket_passcred(&fd, is_stamped).map_err(failed)?;
        let socket = UnixDatagram::from(fd);
        socket.set_nonblocking(true).map_err(ChannelError::Io)?;
        let socket = os::watch_socket(socket).map_err(ChannelError::Io)?;
        Ok(Self { socket, peer, is_stamped, spoke: OnceLock::new(), words: PhantomData })
    }

    /// Sends one record with its descriptors: all of it, or nothing and an error. The caller's descriptors stay open.
    pub async fn send(&self, message: &W, fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let (bytes, fds) = prepare(message, fds)?;
        self.socket.async_io(Interest::WRITABLE, |socket| transmit(socket, &bytes, &fds)).await.map_err(unsent)
    }

    /// Sends one record without descriptors if that is possible at once: for last words, which must not wait.
    pub fn try_send(&self, message: &W) -> Result<(), ChannelError> {
        let (bytes, fds) = prepare(message, &[])?;
        transmit(self.socket.get_ref(), &bytes, &fds).map_err(unsent)
    }

    /// The next record of the verified peer with exactly the descriptors it announces, close-on-exec. On an error all
    /// descriptors that came with the record are closed.
    pub async fn recv(&self) -> Result<(W, Vec<OwnedFd>), ChannelError> {
        let record = self.socket.async_io(Interest::READABLE, receive_word).await.map_err(ChannelError::Io)?;
        self.examine(record)
    }

    /// What has already arrived, if anything.
    pub fn try_recv(&self) -> Result<Option<(W, Vec<OwnedFd>)>, ChannelError> {
        match receive_word(self.socket.get_ref()) {
            Ok(record) => self.examine(record).map(Some),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(ChannelError::Io(error)),
        }
    }

    /// The process at the other end, as the kernel knows it, once it has said something.
    pub fn speaker(&self) -> Option<u32> {
        self.spoke.get().copied()
    }

    /// Another descriptor of this end, for a process that is to go on with the conversation.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.socket.get_ref().as_fd().try_clone_to_owned()
    }

    fn examine(&self, record: Record) -> Result<(W, Vec<OwnedFd>), ChannelError> {
        // An empty record has a sender, the end of the conversation has none.
        if record.len == 0 && record.sender.is_none() && !record.fds_truncated {
            return Err(ChannelError::Gone);
        }
        if self.is_stamped {
            self.recognize(record.sender)?;
        }
        let got = record.fds.len();
        if record.too_long {
            return Err(CodecError::TooLong { len: record.len }.into());
        }
        let message = codec::decode::<W>(&record.bytes);
        if record.fds_truncated {
            let expected = message.as_ref().ok().map(W::descriptors);
            return Err(ChannelError::Truncated { expected, got, limit: limit() });
        }
        let message = message?;
        let expected = message.descriptors();
        if got != expected {
            return Err(ChannelError::Descriptors { message: message.name(), expected, got });
        }
        Ok((message, record.fds))
    }

    fn recognize(&self, sender: Option<UCred>) -> Result<(), ChannelError> {
        let pid = self.peer.admit(sender)?;
        let first = *self.spoke.get_or_init(|| pid);
        if first == pid {
            return Ok(());
        }
        let uid = self.peer.uid;
        Err(ChannelError::Stranger { wanted: Peer { pid: Some(first), uid }, got: Peer { pid: Some(pid), uid } })
    }
}

impl Peer {
    fn admit(&self, sender: Option<UCred>) -> Result<u32, ChannelError> {
        let sender = sender.ok_or(ChannelError::Nameless)?;
        let pid = sender.pid.as_raw_nonzero().get().unsigned_abs();
        let uid = sender.uid.as_raw();
        if uid != self.uid || self.pid.is_some_and(|wanted| wanted != pid) {
            return Err(ChannelError::Stranger { wanted: *self, got: Self { pid: Some(pid), uid } });
        }
        Ok(pid)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "pid {pid} of uid {}", self.uid),
            None => write!(f, "uid {}", self.uid),
        }
    }
}

/// Bytes and descriptors of one record.
pub(crate) type Opened = (Vec<u8>, Vec<OwnedFd>);

/// What one recvmsg(2) gave.
pub(crate) struct Record {
    /// Of the record as it was sent, which may be longer than `bytes`.
    len: usize,
    bytes: Vec<u8>,
    too_long: bool,
    sender: Option<UCred>,
    fds: Vec<OwnedFd>,
    pub(crate) fds_truncated: bool,
}

impl Record {
    /// Its bytes and descriptors; `None`: the other side has closed the conversation. For words that carry no credentials.
    pub(crate) fn open(self) -> Result<Option<Opened>, CodecError> {
        if self.too_long {
            return Err(CodecError::TooLong { len: self.len });
        }
        let is_end = self.len == 0 && self.fds.is_empty() && !self.fds_truncated;
        Ok((!is_end).then_some((self.bytes, self.fds)))
    }
}

fn receive_word(socket: &UnixDatagram) -> io::Result<Record> {
    receive(socket, codec::RECORD)
}

/// One record of at most `most` bytes, if one has arrived.
pub(crate) fn receive(socket: &UnixDatagram, most: usize) -> io::Result<Record> {
    let mut bytes = vec![0; most];
    let mut space = vec![MaybeUninit::uninit(); ANCILLARY];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT | RecvFlags::TRUNC;
    let got = loop {
        match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) {
            // Told once, when the peer closed with something of ours unread; what it said before is still in the queue.
            Err(Errno::CONNRESET | Errno::INTR) => {}
            result => break result?,
        }
    };
    let (sender, fds) = unpack(&mut ancillary);
    let (len, too_long) = (got.bytes, got.flags.contains(ReturnFlags::TRUNC));
    bytes.truncate(len);
    Ok(Record { len, bytes, too_long, sender, fds, fds_truncated: got.flags.contains(ReturnFlags::CTRUNC) })
}

fn unpack(ancillary: &mut RecvAncillaryBuffer<'_>) -> (Option<UCred>, Vec<OwnedFd>) {
    let (mut sender, mut fds) = (None, Vec::new());
    for message in ancillary.drain() {
        match message {
            RecvAncillaryMessage::ScmCredentials(credentials) => sender = Some(credentials),
            RecvAncillaryMessage::ScmRights(rights) => fds.extend(rights),
            _ => {}
        }
    }
    (sender, fds)
}

fn prepare<W: Word>(message: &W, fds: &[BorrowedFd<'_>]) -> Result<(Vec<u8>, Vec<RawFd>), ChannelError> {
    let (expected, got) = (message.descriptors(), fds.len());
    if expected != got {
        return Err(ChannelError::Descriptors { message: message.name(), expected, got });
    }
    Ok((codec::encode(message)?, fds.iter().map(AsRawFd::as_raw_fd).collect()))
}

/// A closed peer is an error here, not a signal: sendmsg(2) on SEQPACKET raises no SIGPIPE (only streams do).
pub(crate) fn transmit(socket: &UnixDatagram, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
    loop {
        match socket.send_with_fd(bytes, fds) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            // A record is never sent in part.
            Ok(_) => return Ok(()),
        }
    }
}

fn verify(fd: BorrowedFd<'_>) -> Result<(), ChannelError> {
    let not = |found: String| ChannelError::NotAChannel { found };
    let family = sockopt::socket_domain(fd).map_err(|errno| not(errno.to_string()))?;
    let kind = sockopt::socket_type(fd).map_err(|errno| not(errno.to_string()))?;
    if (family, kind) != (AddressFamily::UNIX, SocketType::SEQPACKET) {
        return Err(not(format!("family {}, type {}", family.as_raw(), kind.as_raw())));
    }
    Ok(())
}

fn unsent(error: io::Error) -> ChannelError {
    match Errno::from_io_error(&error) {
        Some(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::CONNREFUSED) => ChannelError::Gone,
        Some(Errno::TOOMANYREFS) => ChannelError::TooManyInFlight,
        _ => ChannelError::Io(error),
    }
}

fn failed(errno: Errno) -> ChannelError {
    ChannelError::Io(errno.into())
}

/// The soft limit of open files; `u64::MAX` is none.
pub fn limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// SCM_MAX_FD descriptors, the most the kernel puts into one message (unix(7)), and the sender's credentials.
const ANCILLARY: usize = rustix::cmsg_space!(ScmRights(253), ScmCredentials(1));

#[cfg(test)]
mod tests;
