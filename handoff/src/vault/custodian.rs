//! The keeper's end towards one worker: it receives deposits and withdrawals, and says which it keeps. It never waits for
//! the worker: what cannot be said at once is owed.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use rustix::fs::{FileType, fstat};
use rustix::net::{SocketType, sockopt};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::words::{self, Deposit, Down, Refused, Up};
use super::{DESCRIPTORS, VaultError};
use crate::channel::{self, Record};
use crate::ledger::Place;
use crate::os;

#[derive(Debug)]
pub struct Custodian {
    socket: AsyncFd<UnixDatagram>,
    /// Deposits that are kept, and not yet acknowledged.
    held: Cell<u32>,
    refused: RefCell<VecDeque<Refused>>,
}

/// What is still to be said to a worker, for another image of the keeper.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owed {
    held: u32,
    refused: VecDeque<Refused>,
}

/// All that a session is made of.
#[derive(Debug)]
pub struct Belongings {
    pub client: OwnedFd,
    pub backend: OwnedFd,
    /// Reading ends; the first holds bytes of the client.
    pub pipes: [OwnedFd; 2],
}

/// A word of the worker.
#[derive(Debug)]
pub enum Word {
    /// To be answered with [`Custodian::keep`] or [`Custodian::refuse`]. (Belongings are stream sockets that do not listen,
    /// and pipes.)
    Deposit(Deposit, Belongings),
    /// This process had no descriptor free: to be refused.
    Spilled(Deposit),
    Withdraw {
        id: u64,
        place: Place,
    },
    /// The last word of a process that crashes: which thread it was; `None`: one without a number.
    Crashed {
        thread: Option<u16>,
    },
}

impl Custodian {
    /// Takes the keeper's end. Must be called within a tokio runtime with I/O enabled.
    ///
    /// # Errors
    /// Not a socket, or no memory to watch it.
    pub fn new(end: OwnedFd) -> io::Result<Self> {
        Self::resume(end, Owed::default())
    }

    /// Goes on where another image of the keeper has left the conversation.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn resume(end: OwnedFd, owed: Owed) -> io::Result<Self> {
        let socket = UnixDatagram::from(end);
        socket.set_nonblocking(true)?;
        let (held, refused) = (Cell::new(owed.held), RefCell::new(owed.refused));
        Ok(Self { socket: os::watch_socket(socket)?, held, refused })
    }

    /// What is owed now, and another descriptor of this end.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn leave(&self) -> io::Result<(OwnedFd, Owed)> {
        let owed = Owed { held: self.held.get(), refused: self.refused.borrow().clone() };
        Ok((self.socket.get_ref().as_fd().try_clone_to_owned()?, owed))
    }

    /// The next word. May be dropped: no word and no descriptor is lost.
    ///
    /// # Errors
    /// The channel has ended, or the worker speaks nonsense; what came is closed.
    pub async fn next(&self) -> Result<Word, VaultError> {
        let received = self.socket.async_io(Interest::READABLE, |socket| channel::receive(socket, words::RECORD));
        understood(received.await?)
    }

    /// A word that has arrived already, if there is one: for what a dead worker has left.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn try_next(&self) -> Result<Option<Word>, VaultError> {
        match channel::receive(self.socket.get_ref(), words::RECORD) {
            Ok(record) => understood(record).map(Some),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The deposit is kept. Said with the next [`Self::settle`].
    pub fn keep(&self) {
        self.held.set(self.held.get().saturating_add(1));
    }

    /// The deposit is not kept. Said with the next [`Self::settle`].
    pub fn refuse(&self, deposit: &Deposit) {
        self.refused.borrow_mut().push_back(Refused { id: deposit.id, thread: deposit.thread });
    }

    /// Says what is owed, as far as the worker takes it. `false`: something is still owed.
    ///
    /// # Errors
    /// The channel has ended.
    pub fn settle(&self) -> Result<bool, VaultError> {
        if self.held.get() > 0 {
            if !self.say(&Down::Held { count: self.held.get() })? {
                return Ok(false);
            }
            self.held.set(0);
        }
        loop {
            let Some(first) = self.refused.borrow().front().copied() else { return Ok(true) };
            if !self.say(&Down::Refused(first))? {
                return Ok(false);
            }
            self.refused.borrow_mut().pop_front();
        }
    }

    /// Resolves when the worker may take more of what is owed.
    ///
    /// # Errors
    /// The runtime ends.
    pub async fn writable(&self) -> io::Result<()> {
        // The flag of the runtime says nothing of a queue that was found full: it is asked anew.
        self.socket.async_io(Interest::WRITABLE, |_| Ok(())).await
    }

    fn say(&self, word: &Down) -> Result<bool, VaultError> {
        let bytes = words::encode(word)?;
        match self.socket.try_io(Interest::WRITABLE, |socket| channel::transmit(socket, &bytes, &[])) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn understood(record: Record) -> Result<Word, VaultError> {
    let spilled = record.fds_truncated;
    let (bytes, fds) = record.open()?.ok_or(VaultError::Gone)?;
    if let [os::CONFESSION, high, low] = bytes[..] {
        let thread = u16::from_be_bytes([high, low]);
        return Ok(Word::Crashed { thread: (thread != os::NO_THREAD).then_some(thread) });
    }
    let word = words::decode(&bytes)?;
    match word {
        Up::Deposit(deposit) if spilled => Ok(Word::Spilled(deposit)),
        Up::Deposit(deposit) => belongings(deposit.id, fds).map(|belongings| Word::Deposit(deposit, belongings)),
        Up::Withdraw { id, place } => Ok(Word::Withdraw { id, place }),
    }
}

fn belongings(id: u64, fds: Vec<OwnedFd>) -> Result<Belongings, VaultError> {
    let wrong = |fds: Vec<OwnedFd>| VaultError::Descriptors { id, got: fds.len() };
    let [client, backend, from_client, from_backend] = <[OwnedFd; DESCRIPTORS]>::try_from(fds).map_err(wrong)?;
    let unfit = |what| VaultError::Unfit { id, what };
    for socket in [&client, &backend] {
        if !carries_a_session(socket) {
            return Err(unfit("not the socket of a session"));
        }
    }
    for pipe in [&from_client, &from_backend] {
        if !fstat(pipe).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo) {
            return Err(unfit("not a pipe"));
        }
    }
    Ok(Belongings { client, backend, pipes: [from_client, from_backend] })
}

/// A stream socket that does not listen: a listening one would be killed for all who share it, should it be reset.
fn carries_a_session(socket: &OwnedFd) -> bool {
    sockopt::socket_type(socket).is_ok_and(|kind| kind == SocketType::STREAM)
        && sockopt::socket_acceptconn(socket).is_ok_and(|listens| !listens)
}
