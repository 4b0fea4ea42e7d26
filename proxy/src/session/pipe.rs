//! Pipes for `splice`, kept per thread: making one costs more than it moves at first.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

/// Bytes of a pipe. Measured on two cores with 4 streams, per CPU-second: 64 KiB 24 Gbit, 256 KiB 33, 1 MiB 47; but what
/// is in a pipe is memory a reader that stops can bind, and a user without `CAP_SYS_RESOURCE` has 64 MiB of pipes in all.
const SIZE: usize = 256 * 1024;

/// The kernel gives less to a user over the soft limit (pipe(7)); below this a pipe moves less than two copies.
const SMALLEST: usize = 64 * 1024;

/// Pipes kept by a thread: more than this many directions seldom go quiet together, and each is two descriptors.
const KEPT: usize = 32;

thread_local! {
    static POOL: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
    /// How many more this thread may make.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Lets this thread have so many pipes at a time; beyond that, directions go on copying. What sessions and listeners were
/// promised must not end up as pipes.
pub fn allow_pipes(most: usize) {
    LEFT.set(most);
}

#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) reader: OwnedFd,
    pub(super) writer: OwnedFd,
    pub(super) size: usize,
}

impl Pipe {
    /// An empty pipe; `None` if none worth having can be made.
    pub(super) fn take() -> Option<Self> {
        POOL.with_borrow_mut(Vec::pop).or_else(|| Self::make().filter(|pipe| pipe.size >= SMALLEST))
    }

    /// Keeps an empty pipe for the next session. One that holds bytes of this session is closed.
    pub(super) fn give_back(self) {
        let empty = rustix::io::ioctl_fionread(&self.reader).is_ok_and(|n| n == 0);
        POOL.with_borrow_mut(|pool| {
            if empty && pool.len() < KEPT {
                pool.push(self);
            }
        });
    }

    fn make() -> Option<Self> {
        let left = LEFT.get().checked_sub(1)?;
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        let size = fcntl_setpipe_size(&writer, SIZE).or_else(|_| fcntl_getpipe_size(&writer)).ok()?;
        LEFT.set(left);
        Some(Self { reader, writer, size })
    }
}

impl Drop for Pipe {
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
    fn only_an_empty_pipe_is_kept() {
        let (clean, dirty) = (Pipe::take().unwrap(), Pipe::take().unwrap());
        rustix::io::write(&dirty.writer, b"of another session").unwrap();
        dirty.give_back();
        assert_eq!(kept(), 0);
        clean.give_back();
        assert_eq!(kept(), 1);
        let again = Pipe::take().unwrap();
        assert_eq!((kept(), rustix::io::ioctl_fionread(&again.reader).unwrap()), (0, 0));
    }
}
