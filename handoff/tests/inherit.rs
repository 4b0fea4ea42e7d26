//! What a process takes over with `execve`: `LISTEN_FDS` descriptors and standard input. Runs itself again as a child that
//! finds known descriptors open.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use handoff::os;
use rustix::io::{FdFlags, fcntl_getfd};

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("takes") => takes(),
        Some("finds-a-gap") => finds_a_gap(),
        _ => {
            for (role, redirects) in [("takes", "3</dev/zero 4<&3"), ("finds-a-gap", "3</dev/zero 4<&-")] {
                run(role, redirects);
                println!("{role} ... ok");
            }
        }
    }
}

fn run(role: &str, redirects: &str) {
    let this = std::env::current_exe().unwrap();
    let mut shell = Command::new("sh");
    // Close-on-exec would hide the descriptors from the child, so a shell opens them.
    shell.arg("-c").arg(format!("exec \"$0\" {role} {redirects}")).arg(this).stdin(Stdio::piped());
    let status = shell.status().unwrap();
    assert!(status.success(), "{role}: {status}");
}

fn takes() {
    let stdin = os::take_stdin().unwrap();
    assert!(fcntl_getfd(&stdin).unwrap().contains(FdFlags::CLOEXEC));
    assert!(rustix::fs::fstat(&stdin).unwrap().st_mode & 0o170_000 == 0o010_000, "the pipe of the parent");
    let null = rustix::fs::stat("/dev/null").unwrap();
    assert_eq!(rustix::fs::fstat(io::stdin()).unwrap().st_rdev, null.st_rdev, "nothing reads it by accident");

    let listeners = os::inherited(2).unwrap();
    assert_eq!(listeners.len(), 2);
    for fd in listeners {
        assert!(fcntl_getfd(fd.as_fd()).unwrap().contains(FdFlags::CLOEXEC));
        let mut bytes = [1; 4];
        std::fs::File::from(fd).read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, [0; 4]);
    }
    assert_eq!(os::inherited(2).unwrap_err().kind(), ErrorKind::AlreadyExists, "once");
}

/// One of two descriptors is not open: none is taken.
fn finds_a_gap() {
    let error = os::inherited(2).unwrap_err().to_string();
    assert!(error.contains("inherited descriptor 4"), "{error}");
    let kept = std::fs::read_link("/proc/self/fd/3").unwrap();
    assert_eq!(kept.to_str(), Some("/dev/zero"), "descriptor 3 is still open");
}
