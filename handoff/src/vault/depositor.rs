//! The worker's end: any data thread deposits and withdraws, without waiting; one task reads the answers.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::words::{self, Deposit, Down, Refused, Up};
use super::{DESCRIPTORS, VaultError};
use crate::channel;
use crate::ledger::Place;
use crate::os;

/// Dropped, it ends the channel: the keeper keeps what it holds, and hears no more.
#[derive(Debug)]
pub struct Depositor {
    socket: AsyncFd<UnixDatagram>,
    /// Deposits that are not acknowledged.
    open: AtomicU32,
    /// As many as there may be of those.
    most: u32,
}

/// Why the keeper was not told. Nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotDeposited {
    #[error("the keeper does not read what it was sent")]
    Stalled,
    #[error("the keeper is gone")]
    Away,
}

impl Depositor {
    /// Takes the worker's end. Must be called within the tokio runtime that will read the answers.
    ///
    /// # Errors
    /// Not a socket, or no memory to watch it.
    pub fn new(end: OwnedFd) -> io::Result<Self> {
        let socket = UnixDatagram::from(end);
        socket.set_nonblocking(true)?;
        Ok(Self { socket: os::watch_socket(socket)?, open: AtomicU32::new(0), most: most_open() })
    }

    /// Should this process crash, the keeper hears which thread it was ([`os::confess_as`]).
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn confess(&self) -> io::Result<()> {
        os::confess_through(self.socket.get_ref().as_fd())
    }

    /// Leaves duplicates of these with the keeper: the client's socket, the backend's, and the reading ends of the pipes for
    /// bytes of the client and of the backend. From the moment this returns they outlive the process.
    ///
    /// # Errors
    /// See there.
    pub fn deposit(&self, deposit: &Deposit, fds: [BorrowedFd<'_>; DESCRIPTORS]) -> Result<(), NotDeposited> {
        if self.open.fetch_add(1, Ordering::AcqRel) >= self.most {
            self.open.fetch_sub(1, Ordering::AcqRel);
            return Err(NotDeposited::Stalled);
        }
        self.send(&Up::Deposit(deposit.clone()), &fds).inspect_err(|_| {
            self.open.fetch_sub(1, Ordering::AcqRel);
        })
    }

    /// Tells the keeper to let go of a session that has ended.
    ///
    /// # Errors
    /// See there. While it is [`NotDeposited::Stalled`], it must be said again.
    pub fn withdraw(&self, id: u64, place: Place) -> Result<(), NotDeposited> {
        self.send(&Up::Withdraw { id, place }, &[])
    }

    /// The next deposit that the keeper refuses. Only while somebody waits for it are deposits acknowledged. May be dropped:
    /// nothing is lost.
    ///
    /// # Errors
    /// The channel has ended.
    pub async fn refused(&self) -> Result<Refused, VaultError> {
        loop {
            let received = self.socket.async_io(Interest::READABLE, |socket| channel::receive(socket, words::RECORD));
            let (bytes, _) = received.await?.open()?.ok_or(VaultError::Gone)?;
            match words::decode(&bytes)? {
                Down::Held { count } => self.acknowledged(count)?,
                Down::Refused(refused) => {
                    self.acknowledged(1)?;
                    return Ok(refused);
                }
            }
        }
    }

    fn acknowledged(&self, held: u32) -> Result<(), VaultError> {
        let less = |open: u32| open.checked_sub(held);
        let before = self.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        before.map(drop).map_err(|open| VaultError::Count { held, open })
    }

    fn send(&self, word: &Up, fds: &[BorrowedFd<'_>]) -> Result<(), NotDeposited> {
        // Words of two numbers each always fit.
        let bytes = words::encode(word).map_err(|_| NotDeposited::Stalled)?;
        let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        channel::transmit(self.socket.get_ref(), &bytes, &fds).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::CONNREFUSED) => NotDeposited::Away,
            // Its queue is full, too many descriptors are on their way, or there is no memory.
            _ => NotDeposited::Stalled,
        })
    }
}

/// Descriptors on their way count against the limit of the user who sends them (`ETOOMANYREFS`, unix(7)), and other workers
/// of the same user send too.
fn most_open() -> u32 {
    let descriptors = u32::try_from(channel::limit() / 4).unwrap_or(u32::MAX).min(400);
    descriptors / 4
}
