//! A binary held as it was when it was accepted: what happens to its path later changes nothing.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{MemfdFlags, SealFlags, StatVfsMountFlags, fcntl_add_seals, fstatvfs, memfd_create};
use sha2::{Digest, Sha256};

/// A copy of an executable file in a sealed memfd.
#[derive(Debug)]
pub(super) struct Pinned {
    image: OwnedFd,
    /// Where it was read from, as text.
    pub path: PathBuf,
    pub sha256: String,
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
        let io = |source| PinError::Io { path: path.into(), source };
        // O_NONBLOCK: opening a FIFO must not wait for its writer.
        let mut file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).map_err(io)?;
        check_file(&file).map_err(|why| PinError::Unfit { path: path.into(), why })?;
        let (image, sha256) = copy(&mut file).map_err(io)?;
        Ok(Self { image, path: path.into(), sha256 })
    }

    /// The binary this process runs, whatever has become of its path.
    pub(super) fn own(path: &Path) -> Result<Self, PinError> {
        let io = |source| PinError::Io { path: path.into(), source };
        let (image, sha256) = File::open("/proc/self/exe").and_then(|mut file| copy(&mut file)).map_err(io)?;
        Ok(Self { image, path: path.into(), sha256 })
    }

    /// A command that runs this image. The descriptor is close-on-exec: the kernel opens the image before it closes it.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(format!("/proc/self/fd/{}", self.image.as_raw_fd()));
        command.arg0("proxyd");
        command
    }
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

/// Copies from the start into a sealed memfd, and sums what it copied.
fn copy(file: &mut File) -> io::Result<(OwnedFd, String)> {
    io::Seek::rewind(file)?;
    let mut image = File::from(executable_memfd()?);
    let mut sum = Sha256::new();
    let mut chunk = vec![0; 1 << 16];
    loop {
        let n = file.read(&mut chunk)?;
        if n == 0 {
            break;
        }
        sum.update(&chunk[..n]);
        image.write_all(&chunk[..n])?;
    }
    fcntl_add_seals(&image, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok((image.into(), hex(&sum.finalize())))
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
