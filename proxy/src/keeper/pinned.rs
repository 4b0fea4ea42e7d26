//! A binary held as it was when it was accepted: what happens to its path later changes nothing.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, OFlags, SealFlags, StatVfsMountFlags, fstatvfs, memfd_create};
use sha2::{Digest, Sha256};

/// An executable file as it was accepted.
#[derive(Debug)]
pub(super) struct Pinned {
    image: Arc<Image>,
    /// Where it was read from, as text.
    pub path: PathBuf,
    pub sha256: String,
    /// What it says of itself; empty until it was asked.
    pub version: String,
    pub build: String,
}

#[derive(Debug)]
enum Image {
    /// A copy in a sealed memfd: nothing can change it.
    Copy(OwnedFd),
    /// The file itself (`O_PATH`), where a memfd may not be executed. A rename does not touch it; a write to it is noticed
    /// before it is run.
    File(OwnedFd),
}

/// Why a file is not taken as a binary.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {why}")]
    Unfit { path: PathBuf, why: String },
}

impl Pinned {
    /// Checks the file (type, owner, mode, mount, ELF header) and copies it.
    pub(super) fn of(path: &Path) -> Result<Self, PinError> {
        let mut file = opened(path)?;
        let (image, sha256) = pin(&mut file).map_err(io_error(path))?;
        Ok(Self { image: Arc::new(image), path: path.into(), sha256, version: String::new(), build: String::new() })
    }

    /// As [`Self::of`], without a copy.
    pub(super) fn in_place(path: &Path) -> Result<Self, PinError> {
        let mut file = opened(path)?;
        let (image, sha256) = hold(&mut file).map_err(io_error(path))?;
        Ok(Self { image: Arc::new(image), path: path.into(), sha256, version: String::new(), build: String::new() })
    }

    /// The binary this process runs, whatever has become of its path.
    pub(super) fn own(path: &Path) -> Result<Self, PinError> {
        let (image, sha256) =
            File::open("/proc/self/exe").and_then(|mut file| pin(&mut file)).map_err(io_error(path))?;
        let (version, build) = (crate::version::VERSION.into(), crate::version::build().into());
        Ok(Self { image: Arc::new(image), path: path.into(), sha256, version, build })
    }

    /// With the image of one of these if it is the same, so that equal binaries are held once.
    pub(super) fn sharing(mut self, known: &[Rc<Self>]) -> Self {
        if let Some(same) = known.iter().find(|known| known.sha256 == self.sha256) {
            self.image = Arc::clone(&same.image);
        }
        self
    }

    pub(super) fn known_as(self, version: String, build: String) -> Self {
        Self { version, build, ..self }
    }

    pub(super) fn is_copy(&self) -> bool {
        matches!(*self.image, Image::Copy(_))
    }

    /// An image that an earlier keeper had pinned.
    pub(super) fn again(image: OwnedFd, path: PathBuf, sha256: String, version: String, build: String) -> Self {
        // What is not sealed may be written to: a file, also if it is open for reading.
        let sealed = rustix::fs::fcntl_get_seals(&image).is_ok_and(|seals| seals.contains(SealFlags::WRITE));
        let image = Arc::new(if sealed { Image::Copy(image) } else { Image::File(image) });
        Self { image, path, sha256, version, build }
    }

    /// The sum of an image that a process runs.
    pub(super) fn sum_of(image: &OwnedFd) -> io::Result<String> {
        digest(&mut File::from(image.try_clone()?), &mut io::sink())
    }

    pub(super) fn image(&self) -> BorrowedFd<'_> {
        let (Image::Copy(fd) | Image::File(fd)) = &*self.image;
        fd.as_fd()
    }

    /// A command that runs this image. The descriptor is close-on-exec: the kernel opens the image before it closes it.
    ///
    /// # Errors
    /// The file is held in place, and is no longer what was accepted.
    pub(super) fn command(&self) -> io::Result<Command> {
        let fd = match &*self.image {
            Image::Copy(fd) => fd,
            Image::File(fd) => {
                self.verify(fd)?;
                fd
            }
        };
        let mut command = Command::new(path_of(fd));
        command.arg0("proxyd");
        Ok(command)
    }

    fn verify(&self, fd: &OwnedFd) -> io::Result<()> {
        if digest(&mut File::open(path_of(fd))?, &mut io::sink())? == self.sha256 {
            return Ok(());
        }
        let path = self.path.display();
        Err(io::Error::other(format!("{path} was written to since it was accepted; put the old file back, or upgrade")))
    }
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> PinError {
    move |source| PinError::Io { path: path.into(), source }
}

fn opened(path: &Path) -> Result<File, PinError> {
    // O_NONBLOCK: opening a FIFO must not wait for its writer.
    let file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).map_err(io_error(path))?;
    check_file(&file).map_err(|why| PinError::Unfit { path: path.into(), why })?;
    Ok(file)
}

fn path_of(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn check_file(file: &File) -> Result<(), String> {
    let meta = file.metadata().map_err(|e| e.to_string())?;
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    if meta.is_dir() {
        return Err("is a directory, not an executable file".into());
    }
    if !meta.is_file() {
        return Err("is not a regular file".into());
    }
    if meta.uid() != uid && meta.uid() != 0 {
        return Err(format!("belongs to uid {}; only a file of uid {uid} or root is run", meta.uid()));
    }
    if meta.mode() & 0o002 != 0 || (meta.mode() & 0o020 != 0 && meta.gid() != gid) {
        return Err(format!("is writable by others (mode {:o}); chmod go-w it", meta.mode() & 0o7777));
    }
    if meta.mode() & 0o111 == 0 {
        return Err("is not executable; chmod +x it".into());
    }
    if fstatvfs(file).is_ok_and(|vfs| vfs.f_flag.contains(StatVfsMountFlags::NOEXEC)) {
        return Err("lies on a file system mounted noexec".into());
    }
    check_elf(file)
}

/// ELF header: magic, class, data, machine (elf(5)).
fn check_elf(mut file: &File) -> Result<(), String> {
    let mut head = [0_u8; 20];
    if file.read_exact(&mut head).is_err() || head[..4] != *b"\x7fELF" {
        return Err("is not an ELF executable".into());
    }
    let machine = u16::from_ne_bytes([head[18], head[19]]);
    if head[4] != 2 || head[5] != NATIVE_DATA || machine != NATIVE_MACHINE {
        return Err(format!("is built for another machine (ELF machine {machine}, this one is {NATIVE_MACHINE})"));
    }
    Ok(())
}

const NATIVE_DATA: u8 = if cfg!(target_endian = "little") { 1 } else { 2 };
/// EM_X86_64, EM_AARCH64, EM_RISCV (elf.h).
const NATIVE_MACHINE: u16 = if cfg!(target_arch = "x86_64") {
    62
} else if cfg!(target_arch = "aarch64") {
    183
} else {
    243
};

/// A copy where one may be executed, else the file itself.
fn pin(file: &mut File) -> io::Result<(Image, String)> {
    match executable_memfd() {
        // vm.memfd_noexec = 2, or a security module.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => hold(file),
        made => copy(file, made?.into()),
    }
}

fn hold(file: &mut File) -> io::Result<(Image, String)> {
    let sha256 = digest(file, &mut io::sink())?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let held = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
    Ok((Image::File(held), sha256))
}

/// Copies from the start into the memfd, seals it, and sums what it copied.
fn copy(file: &mut File, mut image: File) -> io::Result<(Image, String)> {
    let sha256 = digest(file, &mut image)?;
    handoff::memfile::freeze(&image)?;
    Ok((Image::Copy(image.into()), sha256))
}

/// The sum of the whole file, which also goes to `copy`.
fn digest(file: &mut File, copy: &mut impl Write) -> io::Result<String> {
    io::Seek::rewind(file)?;
    let mut sum = Sha256::new();
    let mut chunk = vec![0; 1 << 16];
    loop {
        let n = file.read(&mut chunk)?;
        if n == 0 {
            return Ok(hex(&sum.finalize()));
        }
        sum.update(&chunk[..n]);
        copy.write_all(&chunk[..n])?;
    }
}

/// Linux before 6.3 does not know MFD_EXEC and makes every memfd executable.
fn executable_memfd() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create("proxyd", flags | MemfdFlags::EXEC) {
        Err(rustix::io::Errno::INVAL) => Ok(memfd_create("proxyd", flags)?),
        made => Ok(made?),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn program(directory: &Path) -> PathBuf {
        let path = directory.join("program");
        std::fs::copy("/bin/true", &path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_file_held_in_place_survives_a_rename_over_it_and_refuses_when_it_was_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = program(directory.path());
        let pinned = Pinned::in_place(&path).unwrap();
        assert!(!pinned.is_copy() && pinned.command().unwrap().status().unwrap().success());
        std::fs::write(directory.path().join("other"), "no program").unwrap();
        std::fs::hard_link(&path, directory.path().join("first")).unwrap();
        std::fs::rename(directory.path().join("other"), &path).unwrap();
        assert!(pinned.command().unwrap().status().unwrap().success(), "another file has its name now");
        File::options().append(true).open(directory.path().join("first")).unwrap().write_all(b"x").unwrap();
        assert!(pinned.command().unwrap_err().to_string().contains("written to"));
    }

    #[test]
    fn a_file_that_a_worker_of_an_earlier_keeper_runs_is_no_copy() {
        let directory = tempfile::tempdir().unwrap();
        let path = program(directory.path());
        let again = |image: OwnedFd| {
            let sha256 = Pinned::sum_of(&image).unwrap();
            Pinned::again(image, path.clone(), sha256, String::new(), String::new())
        };
        assert!(again(Pinned::of(&path).unwrap().image().try_clone_to_owned().unwrap()).is_copy());
        let held = again(File::open(&path).unwrap().into());
        assert!(!held.is_copy() && held.command().unwrap().status().unwrap().success());
        File::options().append(true).open(&path).unwrap().write_all(b"x").unwrap();
        assert!(held.command().unwrap_err().to_string().contains("written to"));
    }

    #[test]
    fn equal_binaries_are_held_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = program(directory.path());
        let first = Rc::new(Pinned::of(&path).unwrap());
        assert!(first.is_copy());
        let second = Pinned::of(&path).unwrap().sharing(&[Rc::clone(&first)]);
        assert!(Arc::ptr_eq(&first.image, &second.image));
        let held = Pinned::in_place(&path).unwrap();
        assert!(!Arc::ptr_eq(&first.image, &held.image));
        assert_eq!(first.sha256, held.sha256);
    }
}
