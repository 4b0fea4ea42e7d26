//! Pipes for `splice`, kept per thread: making one costs more than it moves at first.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

/// Bytes of a pipe. Measured on two cores with 4 streams, per CPU-second: 64 KiB 24 Gbit, 256 KiB 33, 1 MiB 47; but what
/// is in a pipe is memory a reader that stops can bind, and a user without `CAP_SYS_RESOURCE` has 64 MiB of pipes in all.
const SIZE: usize = 256 * 1024;

/// The kernel gives less to a user over the soft limit (pipe(7)); below this a pipe moves less than two copies.
const SMALLEST: usize = 64 * 1024;

/// Bytes of each of the two pipes of a session that is to outlive its process. A user without `CAP_SYS_RESOURCE` has 64 MiB of
/// pipes in all, which is 2,048 such sessions; beyond that the kernel gives 8 KiB, which is taken.
const SIZE_OF_OWN: usize = 16 * 1024;

/// Pipes kept by a thread: more than this many directions seldom go quiet together, and each is two descriptors.
const KEPT: usize = 32;

thread_local! {
    static POOL: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
    /// How many more this thread may make; below 0 where it was given more than that.
    static LEFT: Cell<isize> = const { Cell::new(isize::MAX) };
}

/// Lets this thread have so many pipes at a time; beyond that, directions go on copying. What sessions and listeners were
/// promised must not end up as pipes.
pub fn allow_pipes(most: usize) {
    LEFT.set(isize::try_from(most).unwrap_or(isize::MAX));
}

#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) reader: OwnedFd,
    /// `None`: it can only be emptied.
    pub(super) writer: Option<OwnedFd>,
    pub(super) size: usize,
    /// It is one session's until the end: others hold it too.
    is_own: bool,
    _counted: Counted,
}

/// One of those that this thread may have.
#[derive(Debug)]
struct Counted;

impl Pipe {
    /// An empty pipe; `None` if none worth having can be made.
    pub(super) fn take() -> Option<Self> {
        POOL.with_borrow_mut(Vec::pop).or_else(|| Self::make(SIZE).filter(|pipe| pipe.size >= SMALLEST))
    }

    /// Two that serve one session only. `None`: none is to be had.
    pub(super) fn own_pair() -> Option<[Self; 2]> {
        Some([Self::make(SIZE_OF_OWN)?.owned(), Self::make(SIZE_OF_OWN)?.owned()])
    }

    /// Serves no other session than this one.
    pub(super) fn owned(self) -> Self {
        Self { is_own: true, ..self }
    }

    /// Keeps an empty pipe for the next session. One that holds bytes of this session is closed.
    pub(super) fn give_back(self) {
        if self.is_own {
            return;
        }
        let empty = self.held().is_ok_and(|n| n == 0);
        POOL.with_borrow_mut(|pool| {
            if empty && self.writer.is_some() && pool.len() < KEPT {
                pool.push(self);
            }
        });
    }

    /// A pipe that comes with bytes. Without its writing end this is opened anew; where that can't be (no `/proc`, no descriptor),
    /// what it holds can be read all the same, and the next bytes take another pipe.
    pub(super) fn adopt(reader: OwnedFd, writer: Option<OwnedFd>) -> io::Result<Self> {
        let size = fcntl_getpipe_size(&reader)?;
        let writer = writer.or_else(|| open_writer(&reader).ok());
        Ok(Self { reader, writer, size, is_own: false, _counted: Counted::new() })
    }

    /// One that can be filled too; else why it cannot.
    pub(super) fn with_writer(self) -> io::Result<Self> {
        let writer = self.writer.map_or_else(|| open_writer(&self.reader), Ok)?;
        Ok(Self { writer: Some(writer), ..self })
    }

    /// The reading end, which travels with the bytes in it and from which another writing end can be opened; and the writing
    /// end.
    pub(super) fn into_ends(self) -> (OwnedFd, Option<OwnedFd>) {
        (self.reader, self.writer)
    }

    /// Bytes in it.
    pub(super) fn held(&self) -> io::Result<usize> {
        let held = rustix::io::ioctl_fionread(&self.reader)?;
        usize::try_from(held).map_err(io::Error::other)
    }

    fn make(wanted: usize) -> Option<Self> {
        if LEFT.get() <= 0 {
            return None;
        }
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        let size = fcntl_setpipe_size(&writer, wanted).or_else(|_| fcntl_getpipe_size(&writer)).ok()?;
        Some(Self { reader, writer: Some(writer), size, is_own: false, _counted: Counted::new() })
    }
}

fn open_writer(reader: &OwnedFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

impl Counted {
    fn new() -> Self {
        LEFT.set(LEFT.get().saturating_sub(1));
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // At the end of its thread the count may be gone before the pool is.
        let _ = LEFT.try_with(|left| left.set(left.get().saturating_add(1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> usize {
        POOL.with_borrow(Vec::len)
    }

    #[test]
    fn no_more_are_made_than_allowed_and_a_closed_one_may_be_made_again() {
        allow_pipes(1);
        let one = Pipe::take().unwrap();
        assert!(Pipe::take().is_none());
        drop(one);
        assert!(Pipe::take().is_some());
    }

    #[test]
    fn a_pipe_of_one_session_serves_no_other() {
        allow_pipes(3);
        let [one, other] = Pipe::own_pair().unwrap();
        assert_eq!(one.size, SIZE_OF_OWN);
        one.give_back();
        other.give_back();
        assert_eq!(kept(), 0);
        allow_pipes(1);
        assert!(Pipe::own_pair().is_none(), "two are needed");
        assert!(Pipe::take().is_some(), "and the first of them was given back");
    }

    #[test]
    fn only_an_empty_pipe_is_kept() {
        let (clean, dirty) = (Pipe::take().unwrap(), Pipe::take().unwrap());
        rustix::io::write(dirty.writer.as_ref().unwrap(), b"of another session").unwrap();
        dirty.give_back();
        assert_eq!(kept(), 0);
        clean.give_back();
        assert_eq!(kept(), 1);
        let again = Pipe::take().unwrap();
        assert_eq!((kept(), again.held().unwrap()), (0, 0));
    }

    #[test]
    fn a_pipe_that_comes_from_elsewhere_has_its_bytes_and_takes_more() {
        allow_pipes(1);
        let pipe = Pipe::take().unwrap();
        rustix::io::write(pipe.writer.as_ref().unwrap(), b"first ").unwrap();
        let (size, (reader, writer)) = (pipe.size, pipe.into_ends());
        drop(writer);
        let pipe = Pipe::adopt(reader, None).unwrap();
        assert_eq!((pipe.size, pipe.held().unwrap()), (size, 6));
        rustix::io::write(pipe.writer.as_ref().unwrap(), b"second").unwrap();
        let mut bytes = [0; 20];
        assert_eq!(rustix::io::read(&pipe.reader, &mut bytes).unwrap(), 12);
        assert_eq!(&bytes[..12], b"first second");
        assert!(Pipe::take().is_none(), "it counts as one of this thread's");
        pipe.give_back();
        assert_eq!(kept(), 1, "empty, it serves others");
    }

    #[test]
    fn a_pipe_that_cannot_be_filled_serves_no_other_session() {
        let mut pipe = Pipe::take().unwrap();
        pipe.writer = None;
        pipe.give_back();
        assert_eq!(kept(), 0);
    }
}
