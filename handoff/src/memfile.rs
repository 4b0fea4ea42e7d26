//! Sealed memory files: bytes that travel as a descriptor and can no longer change once they are sent.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

/// Why a received descriptor is not the file that was announced.
#[derive(Debug, thiserror::Error)]
pub enum MemfileError {
    #[error("announced {len} bytes; at most {cap} allowed")]
    TooLong { len: u64, cap: u64 },
    #[error("not a sealed memory file: {found}")]
    NotSealed { found: &'static str },
    #[error("announced {announced} bytes, found {found}")]
    Size { announced: u64, found: u64 },
    #[error("reading a memory file")]
    Io(#[from] io::Error),
}

/// A memfd with these bytes, sealed against every change. `name` is shown in `/proc/PID/fd`.
pub fn sealed(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    let fd = OwnedFd::from(file);
    freeze(&fd)?;
    Ok(fd)
}

/// Seals a memfd against every change, for good.
///
/// # Errors
/// `EBUSY`: somebody has the file mapped for writing, or holds a page of it for longer than a moment.
pub fn freeze(fd: impl AsFd) -> io::Result<()> {
    patiently(|| rustix::fs::fcntl_add_seals(&fd, FROZEN | SealFlags::SEAL)).map_err(Into::into)
}

/// A page that the kernel is just moving or collapsing counts as held; it waits 150 ms for such ones and then refuses
/// (mm/memfd.c, `memfd_wait_for_pins`). On a machine that is short of memory once is not enough.
fn patiently(mut seal: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    for _ in 1..TRIES {
        match seal() {
            Err(Errno::BUSY) => {}
            done => return done,
        }
    }
    seal()
}

/// 1.5 s in all.
const TRIES: u32 = 10;

/// The bytes of a sealed memfd of exactly `announced` bytes. Memory is taken only after the size is known to be true.
pub fn read_sealed(fd: OwnedFd, announced: u64, cap: u64) -> Result<Vec<u8>, MemfileError> {
    if announced > cap {
        return Err(MemfileError::TooLong { len: announced, cap });
    }
    let seals = match rustix::fs::fcntl_get_seals(&fd) {
        Ok(seals) => seals,
        Err(Errno::INVAL | Errno::BADF) => return Err(MemfileError::NotSealed { found: "another kind of descriptor" }),
        Err(errno) => return Err(io::Error::from(errno).into()),
    };
    if !seals.contains(FROZEN) {
        return Err(MemfileError::NotSealed { found: "a file that can still change" });
    }
    let file = File::from(fd);
    let found = file.metadata()?.len();
    if found != announced {
        return Err(MemfileError::Size { announced, found });
    }
    let mut bytes = vec![0; usize::try_from(announced).map_err(io::Error::other)?];
    // By position: the file offset is shared with the sender.
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Size and content can no longer change.
const FROZEN: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW);

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn bytes_come_back_and_cannot_change() {
        for bytes in [&b""[..], b"x", &[7; 100_000]] {
            let fd = sealed("test", bytes).unwrap();
            let copy = File::from(fd.try_clone().unwrap());
            assert!(copy.set_len(5_000_000).is_err(), "a sealed file does not grow");
            assert!(copy.write_at(b"y", 0).is_err(), "a sealed file is not written");
            assert!(rustix::fs::fcntl_add_seals(copy.as_fd(), SealFlags::SEAL).is_err(), "the seals are final");
            assert_eq!(read_sealed(fd, bytes.len() as u64, 1 << 20).unwrap(), bytes);
        }
    }

    #[test]
    fn what_was_not_announced_is_refused() {
        let fd = || sealed("test", b"four").unwrap();
        assert!(matches!(read_sealed(fd(), 5, 10), Err(MemfileError::Size { announced: 5, found: 4 })));
        assert!(matches!(read_sealed(fd(), 3, 10), Err(MemfileError::Size { announced: 3, found: 4 })));
        assert!(matches!(read_sealed(fd(), 11, 10), Err(MemfileError::TooLong { len: 11, cap: 10 })));
    }

    #[test]
    fn what_is_not_sealed_is_refused() {
        let open = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(matches!(read_sealed(open, 0, 10), Err(MemfileError::NotSealed { .. })));
        let (pipe, _write) = rustix::pipe::pipe().unwrap();
        assert!(matches!(read_sealed(pipe, 0, 10), Err(MemfileError::NotSealed { .. })));
        let disk = OwnedFd::from(tempfile::tempfile().unwrap());
        assert!(read_sealed(disk, 0, 10).is_err());
    }

    #[test]
    fn a_page_that_is_held_for_a_moment_is_waited_for() {
        let after = |busy: u32| {
            let mut tries = 0;
            let sealed = patiently(|| {
                tries += 1;
                if tries <= busy { Err(Errno::BUSY) } else { Ok(()) }
            });
            (sealed, tries)
        };
        assert_eq!(after(3), (Ok(()), 4));
        assert_eq!(after(u32::MAX), (Err(Errno::BUSY), TRIES));
        assert_eq!(patiently(|| Err(Errno::PERM)), Err(Errno::PERM));
    }
}
