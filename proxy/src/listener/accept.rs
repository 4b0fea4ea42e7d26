//! The accept loop of one socket on one thread.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, acceptfrom_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::arrival::Brought;
use super::failure::AcceptFailure;
use super::pause::Pause;
use super::setup::Setup;
use super::turn::Turn;
use crate::observe::reason::Paused;
use crate::session::{
    AbortOnPanic, Accepted, Book, Census, ListenerBook, NoRecord, Seat, Table, Terms, clock, register,
};

/// Accepts in a row before sessions have their turn.
const BATCH: usize = 16;

/// After a failure to register a socket, which only want of memory explains.
const UNPOLLED: Duration = Duration::from_millis(100);

/// What the accept loops of a thread share.
#[derive(Debug)]
pub struct Floor {
    setup: RefCell<Cache<Arc<ArcSwap<Setup>>, Arc<Setup>>>,
    book: RefCell<Rc<Book>>,
    /// For sessions of earlier segments, by segment.
    earlier: RefCell<HashMap<u32, Rc<Book>>>,
    pub(super) brought: Brought,
    census: Arc<Census>,
    /// Number of this thread.
    thread: usize,
    /// A session of this thread is over.
    freed: Rc<Notify>,
    table: Rc<Table>,
    /// Clients that were accepted and wait for a record.
    parked: TaskTracker,
}

/// One listening socket, as this thread polls it.
#[derive(Debug)]
pub struct Acceptor {
    id: String,
    socket: Rc<OwnedFd>,
    /// `None`: this loop alone accepts from the socket.
    turn: Option<Arc<Turn>>,
    /// Registered already, for the first turn.
    polled: Option<Polled>,
    is_unix: bool,
    floor: Rc<Floor>,
    /// As of the last look: kept in case the plan drops the socket in between.
    current: Current,
    /// The failure that was told last.
    told: Option<AcceptFailure>,
}

type Polled = AsyncFd<Rc<OwnedFd>>;

#[derive(Debug, Clone)]
struct Current {
    terms: Arc<Terms>,
    book: Rc<Book>,
    /// Of this book: names are numbers of its segment.
    listener: Rc<ListenerBook>,
}

/// Why a batch ended.
enum Batch {
    Full,
    Empty,
    Paused(Pause),
    /// It is another thread's turn.
    Over,
}

impl Floor {
    pub fn new(setup: Arc<ArcSwap<Setup>>, book: Book, census: Arc<Census>, thread: usize) -> Self {
        Self {
            setup: RefCell::new(Cache::new(setup)),
            book: RefCell::new(Rc::new(book)),
            earlier: RefCell::default(),
            brought: Brought::default(),
            census,
            thread,
            freed: Rc::default(),
            table: Rc::default(),
            parked: TaskTracker::new(),
        }
    }

    pub fn table(&self) -> &Table {
        &self.table
    }

    pub fn book(&self) -> Rc<Book> {
        Rc::clone(&self.book.borrow())
    }

    /// New sessions are written into this one; those that are keep theirs.
    pub fn turn_to(&self, book: Book) {
        let before = self.book.replace(Rc::new(book));
        self.earlier.borrow_mut().insert(before.index(), before);
    }

    pub(super) fn setup(&self) -> Arc<Setup> {
        Arc::clone(self.setup.borrow_mut().load())
    }

    pub(super) fn earlier(&self) -> &RefCell<HashMap<u32, Rc<Book>>> {
        &self.earlier
    }

    pub(super) fn census(&self) -> &Arc<Census> {
        &self.census
    }

    pub(super) fn thread(&self) -> usize {
        self.thread
    }

    pub(super) fn freed(&self) -> &Rc<Notify> {
        &self.freed
    }

    /// As of now: one load tells whether there is a newer setup.
    fn current(&self, socket: &str) -> Option<Current> {
        let mut cache = self.setup.borrow_mut();
        let setup = cache.load();
        let book = self.book();
        book.turn_to(setup.version);
        let terms = Arc::clone(setup.terms(socket)?);
        let listener = book.listener(&terms)?;
        Some(Current { terms, book, listener })
    }

    fn begin(&self, accepted: Accepted, seat: Seat, current: &Current) -> Result<(), NoRecord> {
        let Current { terms, book, listener } = current;
        self.table.open(accepted, terms, book, listener, seat)
    }

    /// In the newest segment, if its listener is counted there.
    fn in_newest(&self, current: Current) -> Current {
        let book = self.book();
        match book.listener(&current.terms) {
            Some(listener) => Current { book, listener, ..current },
            None => current,
        }
    }

    /// A client waits, accepted, until a record is free; its listener waits with it.
    fn park(self: &Rc<Self>, mut waiting: NoRecord, mut current: Current) {
        let floor = Rc::clone(self);
        self.parked.spawn_local(async move {
            let _guard = AbortOnPanic;
            let pause = Pause::begin(&current.listener, Paused::SessionLimit);
            loop {
                sleep(pause.time()).await;
                let NoRecord(accepted, seat) = waiting;
                // One may have been added that has room.
                current = floor.in_newest(current);
                match floor.begin(accepted, seat, &current) {
                    Ok(()) => return,
                    Err(still) => waiting = still,
                }
            }
        });
    }
}

impl Acceptor {
    /// For this thread's duplicate of a listening socket. `None`: no listener of the plan has it.
    pub fn new(id: String, socket: OwnedFd, turn: Option<Arc<Turn>>, floor: Rc<Floor>) -> io::Result<Option<Self>> {
        let is_unix = rustix::net::sockopt::socket_domain(&socket)? == AddressFamily::UNIX;
        let Some(current) = floor.current(&id) else { return Ok(None) };
        let socket = Rc::new(socket);
        let is_first = turn.as_ref().is_none_or(|turn| turn.is_of(floor.thread));
        let polled = is_first.then(|| register(Rc::clone(&socket), Interest::READABLE)).transpose()?;
        Ok(Some(Self { id, socket, turn, polled, is_unix, floor, current, told: None }))
    }

    /// Accepts until told to stop; then the duplicate is deregistered and closed.
    pub async fn run(mut self, stop: CancellationToken) {
        let _guard = AbortOnPanic;
        while !stop.is_cancelled() {
            let turned = match &self.turn {
                Some(turn) if !turn.is_of(self.floor.thread) => {
                    let called = turn.called(self.floor.thread);
                    stop.run_until_cancelled(called).await;
                    continue;
                }
                _ => self.take_turn(&stop).await,
            };
            if let Err(error) = turned {
                let (socket, listener) = (self.id.as_str(), self.current.terms.listener.as_str());
                tracing::error!(listener, socket, "cannot be polled, tried again every 100 ms: {error}");
                stop.run_until_cancelled(sleep(UNPOLLED)).await;
            }
        }
    }

    /// Polls the socket for as long as it is this thread's turn. An event that came before is not missed: registering
    /// tells what is queued already.
    async fn take_turn(&mut self, stop: &CancellationToken) -> io::Result<()> {
        let polled = match self.polled.take() {
            Some(polled) => polled,
            None => register(Rc::clone(&self.socket), Interest::READABLE)?,
        };
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                readable = polled.readable() => readable?.retain_ready(),
            }
            match self.batch() {
                Batch::Empty => {
                    // The kernel had none: the next makes a new event.
                    let _ = polled.try_io(Interest::READABLE, |_| Err::<(), _>(io::ErrorKind::WouldBlock.into()));
                }
                Batch::Full => tokio::task::yield_now().await,
                Batch::Paused(pause) => self.wait(&pause, stop).await,
                Batch::Over => return Ok(()),
            }
        }
    }

    /// Accepts what is queued, and ends.
    pub async fn run_out(mut self) {
        let _guard = AbortOnPanic;
        let never = CancellationToken::new();
        loop {
            match self.batch() {
                Batch::Empty => return,
                Batch::Full | Batch::Over => tokio::task::yield_now().await,
                Batch::Paused(pause) => self.wait(&pause, &never).await,
            }
        }
    }

    async fn wait(&self, pause: &Pause, stop: &CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.floor.freed.notified(), if pause.why != Paused::Descriptors => {}
            () = sleep(pause.time()) => {}
        }
    }

    fn batch(&mut self) -> Batch {
        for taken in 0..BATCH {
            if taken == 1 && !self.has_more() {
                return Batch::Empty;
            }
            self.look();
            let seat = match self.seat() {
                Ok(seat) => seat,
                Err(why) => return self.pause(why),
            };
            match self.accept() {
                Ok(accepted) => {
                    self.told = None;
                    self.open(accepted, seat);
                    if self.passes_on() {
                        return Batch::Over;
                    }
                }
                Err(AcceptFailure::Empty) => return Batch::Empty,
                Err(AcceptFailure::ClientGone) => {}
                Err(failure) => {
                    self.tell(failure);
                    return self.pause(Paused::Descriptors);
                }
            }
        }
        Batch::Full
    }

    /// Most events announce one connection, and an `accept` that finds none has made a file for it first: 4.4 us where this
    /// takes 0.4. Once there was a second one, a burst is more likely.
    fn has_more(&self) -> bool {
        let mut queue = [PollFd::new(&*self.socket, PollFlags::IN)];
        poll(&mut queue, Some(&Timespec::default())) != Ok(0)
    }

    fn passes_on(&self) -> bool {
        let Floor { thread, census, .. } = &*self.floor;
        self.turn.as_ref().is_some_and(|turn| turn.pass_on(*thread, census, clock::coarse_ms()))
    }

    fn look(&mut self) {
        if let Some(current) = self.floor.current(&self.id) {
            self.current = current;
        }
    }

    fn seat(&self) -> Result<Seat, Paused> {
        if !self.floor.parked.is_empty() {
            return Err(Paused::SessionLimit);
        }
        let Current { terms, listener, .. } = &self.current;
        Seat::take(&self.floor.census, self.floor.thread, listener, &self.floor.freed, terms.max_sessions)
    }

    fn pause(&self, why: Paused) -> Batch {
        Batch::Paused(Pause::begin(&self.current.listener, why))
    }

    fn accept(&self) -> Result<Accepted, AcceptFailure> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (fd, address) = acceptfrom_with(&self.socket, flags).map_err(AcceptFailure::of)?;
        let client = address.filter(|_| !self.is_unix).and_then(|address| SocketAddr::try_from(address).ok());
        Ok(Accepted { fd, client })
    }

    /// Looks again first: what was accepted after a change was acknowledged goes by the change.
    fn open(&mut self, accepted: Accepted, seat: Seat) {
        self.look();
        if let Err(waiting) = self.floor.begin(accepted, seat, &self.current) {
            self.floor.park(waiting, self.current.clone());
        }
    }

    fn tell(&mut self, failure: AcceptFailure) {
        if self.told.replace(failure) != Some(failure) {
            let (socket, listener) = (self.id.as_str(), self.current.terms.listener.as_str());
            tracing::warn!(listener, socket, "cannot accept, tried again every 100 ms: {failure}");
        }
    }
}
