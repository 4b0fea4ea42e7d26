//! The loop of a thread: waits, accepts, and lets flows carry.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with, connect, socket_with};

/// Taken at once from the kernel; as tokio does.
const EVENTS: usize = 1024;

/// One direction between two sockets.
pub(super) trait Flow: Sized {
    /// What all flows are made with.
    type With: Copy + Send + Sync;
    /// What the flows of a thread share.
    type Tools;

    fn tools() -> Self::Tools;
    fn new(with: Self::With) -> io::Result<Self>;
    /// Moves what there is. `to_the_end`: the source has ended behind what there is to read.
    fn carry(&mut self, from: &OwnedFd, to: &OwnedFd, to_the_end: bool, tools: &mut Self::Tools) -> Carried;
    /// The sink took less than there was.
    fn is_stuck(&self) -> bool;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carried {
    /// Nothing more to read for now.
    All,
    /// The sink takes no more for now.
    Stuck,
    Ended,
}

pub(super) struct Turns<'a, F: Flow> {
    epoll: OwnedFd,
    /// Each with its backend.
    listeners: &'a [(OwnedFd, SocketAddr)],
    pairs: Vec<Option<Pair<F>>>,
    free: Vec<usize>,
    with: F::With,
    tools: F::Tools,
}

/// The sockets of client and backend, and the flow that comes from each.
struct Pair<F> {
    ends: [OwnedFd; 2],
    flows: [F; 2],
    /// Room in this socket is reported: it is only from the first time that there was none.
    room_is_watched: [bool; 2],
}

impl<'a, F: Flow> Turns<'a, F> {
    pub(super) fn new(listeners: &'a [(OwnedFd, SocketAddr)], with: F::With) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        for (key, (socket, _)) in (0..).zip(listeners) {
            // Both threads poll it; one of them is woken up.
            epoll::add(&epoll, socket, EventData::new_u64(key), EventFlags::IN | EventFlags::EXCLUSIVE)?;
        }
        Ok(Self { epoll, listeners, pairs: Vec::new(), free: Vec::new(), with, tools: F::tools() })
    }

    pub(super) fn run(mut self) -> io::Result<()> {
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let (key, flags) = (usize::try_from(event.data.u64()).expect("keys are indices"), event.flags);
                match key.checked_sub(self.listeners.len()) {
                    None => self.accept(key)?,
                    Some(end) => self.turn(end / 2, end % 2, flags)?,
                }
            }
        }
    }

    /// One at a time: a second call that finds nobody costs more than it spares.
    fn accept(&mut self, listener: usize) -> io::Result<()> {
        let (socket, backend) = &self.listeners[listener];
        let Ok(client) = accept_with(socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) else { return Ok(()) };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let backend_end = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        match connect(&backend_end, backend) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(_) => return Ok(()),
        }
        let flows = [F::new(self.with)?, F::new(self.with)?];
        let slot = self.free.pop().unwrap_or(self.pairs.len());
        let pair = Pair { ends: [client, backend_end], flows, room_is_watched: [false; 2] };
        for side in 0..2 {
            let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
            epoll::add(&self.epoll, &pair.ends[side], self.key(slot, side), flags)?;
        }
        if slot == self.pairs.len() {
            self.pairs.push(None);
        }
        self.pairs[slot] = Some(pair);
        Ok(())
    }

    fn key(&self, slot: usize, side: usize) -> EventData {
        EventData::new_u64((self.listeners.len() + slot * 2 + side) as u64)
    }

    fn turn(&mut self, slot: usize, side: usize, flags: EventFlags) -> io::Result<()> {
        // Its other side may have ended among the same events.
        let Some(pair) = &self.pairs[slot] else { return Ok(()) };
        let has_room = flags.contains(EventFlags::OUT) && pair.flows[1 - side].is_stuck();
        if has_room {
            self.carry(slot, 1 - side, false)?;
        }
        let is_over = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        if is_over || flags.contains(EventFlags::IN) {
            self.carry(slot, side, is_over)?;
        }
        Ok(())
    }

    fn carry(&mut self, slot: usize, side: usize, to_the_end: bool) -> io::Result<()> {
        let sink = self.key(slot, 1 - side);
        let Some(pair) = &mut self.pairs[slot] else { return Ok(()) };
        let (from, to) = (&pair.ends[side], &pair.ends[1 - side]);
        match pair.flows[side].carry(from, to, to_the_end, &mut self.tools) {
            Carried::Stuck if !pair.room_is_watched[1 - side] => {
                pair.room_is_watched[1 - side] = true;
                let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
                epoll::modify(&self.epoll, to, sink, flags)?;
            }
            Carried::All | Carried::Stuck => {}
            Carried::Ended => {
                self.pairs[slot] = None;
                self.free.push(slot);
            }
        }
        Ok(())
    }
}
