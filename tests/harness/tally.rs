//! What clients or backends of a test have seen, added up.

use std::io;
use std::sync::Mutex;

/// How an exchange can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Refused,
    Reset,
    /// No progress within the deadline.
    TimedOut,
    /// A byte that was never sent at this place.
    Corrupt,
    /// A clean end of file before the end mark: loss that looks complete.
    Truncated,
    Other,
}

impl Fault {
    pub fn of(error: &io::Error) -> Self {
        match error.kind() {
            // A Unix socket answers a full or closed backlog with "not found" or "would block" instead.
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound | io::ErrorKind::WouldBlock => Self::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => {
                Self::Reset
            }
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::InvalidData => Self::Corrupt,
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Other,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Connections begun.
    pub opened: u64,
    /// Exchanges that ended as they should.
    pub clean: u64,
    pub refused: u64,
    pub reset: u64,
    pub timed_out: u64,
    pub corrupt: u64,
    pub truncated: u64,
    pub other: u64,
    /// Verified bytes from client to backend (as seen by whoever tallies).
    pub bytes_up: u64,
    /// Verified bytes from backend to client.
    pub bytes_down: u64,
    /// The first fault, for a person.
    pub first_fault: Option<String>,
}

impl Tally {
    pub fn faults(&self) -> u64 {
        self.refused + self.reset + self.timed_out + self.corrupt + self.truncated + self.other
    }

    /// # Panics
    /// If anything went wrong, or nothing happened at all.
    pub fn assert_clean(&self) {
        assert!(self.opened > 0, "no connection was made: {self:?}");
        assert!(self.faults() == 0 && self.clean == self.opened, "not clean: {self:?}");
    }

    fn fault(&mut self, fault: Fault, text: String) {
        *match fault {
            Fault::Refused => &mut self.refused,
            Fault::Reset => &mut self.reset,
            Fault::TimedOut => &mut self.timed_out,
            Fault::Corrupt => &mut self.corrupt,
            Fault::Truncated => &mut self.truncated,
            Fault::Other => &mut self.other,
        } += 1;
        self.first_fault.get_or_insert(text);
    }
}

/// A [`Tally`] that several tasks write to.
#[derive(Debug, Default)]
pub struct Shared(Mutex<Tally>);

impl Shared {
    pub fn snapshot(&self) -> Tally {
        self.lock().clone()
    }

    pub fn opened(&self) {
        self.lock().opened += 1;
    }

    pub fn up(&self, bytes: u64) {
        self.lock().bytes_up += bytes;
    }

    pub fn down(&self, bytes: u64) {
        self.lock().bytes_down += bytes;
    }

    pub fn ended(&self, who: &str, result: io::Result<()>) {
        let mut tally = self.lock();
        match result {
            Ok(()) => tally.clean += 1,
            Err(error) => tally.fault(Fault::of(&error), format!("{who}: {error}")),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.0.lock().expect("no holder panics")
    }
}
