//! From socket to pipe and from pipe to socket, and back to the beginning.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use super::turns::{Carried, Flow};

pub(super) struct Splicing {
    reader: OwnedFd,
    writer: OwnedFd,
    size: usize,
    /// In the pipe.
    held: usize,
}

impl Flow for Splicing {
    /// The size of a pipe.
    type With = usize;
    type Tools = ();

    fn tools() {}

    fn new(size: usize) -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        fcntl_setpipe_size(&writer, size)?;
        Ok(Self { reader, writer, size, held: 0 })
    }

    fn carry(&mut self, from: &OwnedFd, to: &OwnedFd, _to_the_end: bool, (): &mut ()) -> Carried {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        loop {
            while self.held > 0 {
                match splice(&self.reader, None, to, None, self.held, flags) {
                    Ok(n @ 1..) => self.held -= n,
                    Err(Errno::AGAIN) => return Carried::Stuck,
                    Ok(0) | Err(_) => return Carried::Ended,
                }
            }
            match splice(from, None, &self.writer, None, self.size, flags) {
                Ok(n @ 1..) => self.held = n,
                Err(Errno::AGAIN) => return Carried::All,
                Ok(0) | Err(_) => return Carried::Ended,
            }
        }
    }

    fn is_stuck(&self) -> bool {
        self.held > 0
    }
}
