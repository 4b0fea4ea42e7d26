//! Directories that are full, read-only or replaced, streams that nobody reads, and an odd environment.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::harness::{Port, Seeded, Starter, until};
use crate::row::{DEADLINE, Row, alone, conf, rounds};

/// A file system of our own, until dropped.
#[derive(Debug)]
pub(crate) struct Mount(PathBuf);

impl Mount {
    /// `None` after saying so where mounting is not allowed: it takes CAP_SYS_ADMIN, which a container may lack.
    pub(crate) fn tmpfs(place: &Path, options: &str) -> Option<Self> {
        let mounted = mount(&["-t", "tmpfs", "-o", &format!("size=64k,mode=700,{options}"), "tmpfs"], place);
        if !mounted {
            println!("skipped: mounting needs CAP_SYS_ADMIN");
        }
        mounted.then(|| Self(place.to_owned()))
    }
}

fn mount(words: &[&str], place: &Path) -> bool {
    Command::new("mount").args(words).arg(place).status().is_ok_and(|status| status.success())
}

impl Drop for Mount {
    /// Whoever has something open there keeps it; the directory is the test's, and is as it was before.
    fn drop(&mut self) {
        let _done = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// A row whose state directory is a file system of 64 KiB, and where that is.
fn on_tiny_disk(id: &str) -> Option<(Row, PathBuf)> {
    let mut mount = None;
    let how = |starter: Starter| {
        mount = Mount::tmpfs(&starter.state_dir(), "rw");
        starter
    };
    let mut row = Row::start_as(id, |conf| conf, how);
    row.mount = Some(mount?);
    let place = row.proxy.socket().parent().unwrap().to_owned();
    Some((row, place))
}

fn fill(directory: &Path) {
    let mut file = File::create(directory.join("ballast")).unwrap();
    while file.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
}

#[test]
fn f29_the_disk_is_full() {
    let Some((row, place)) = on_tiny_disk("F29") else { return };
    fill(&place);
    for _ in 0..rounds() {
        row.upgrades();
    }
    fs::remove_file(place.join("ballast")).unwrap();
    row.ends_well();
}

#[test]
fn f29_the_log_is_full() {
    let row = Row::start_as(
        "F29",
        |conf| conf,
        |mut starter| {
            starter.command.stderr(File::options().write(true).open("/dev/full").unwrap());
            starter
        },
    );
    for _ in 0..rounds() {
        row.upgrades();
    }
    row.ends_well();
}

/// A file system cannot become read-only while the lock is open in it: it can only have been so before.
#[test]
fn f30_the_state_directory_is_read_only() {
    let _alone = alone();
    let (port, backend) = (Port::reserve(), Seeded::start());
    let starter = Starter::new(&conf(&port, &backend));
    let place = starter.state_dir();
    let Some(_mount) = Mount::tmpfs(&place, "ro") else { return };
    let exited = starter.try_start().expect_err("it started without a place for its state");
    assert_eq!(exited.status.code(), Some(71), "{exited:?}");
    assert!(exited.stderr.contains("Read-only file system") && exited.stderr.contains(place.to_str().unwrap()));
}

/// Without the socket the operator is told so, and signals work.
#[test]
fn f31_f32_the_admin_socket_is_removed_or_replaced() {
    let row = Row::start("F31-F32");
    let socket = row.proxy.socket();
    let kept = socket.with_extension("kept");
    for _ in 0..rounds() {
        for replacement in [None, Some("file"), Some("directory"), Some("symlink")] {
            fs::hard_link(&socket, &kept).unwrap();
            fs::remove_file(&socket).unwrap();
            match replacement {
                Some("file") => fs::write(&socket, "not a socket").unwrap(),
                Some("directory") => fs::create_dir(&socket).unwrap(),
                Some(_) => std::os::unix::fs::symlink("/nowhere", &socket).unwrap(),
                None => {}
            }
            let lost = row.proxy.ctl(&["status"]);
            assert_eq!(lost.status.code(), Some(3), "{replacement:?}: {lost:?}");
            // What lies in the way of the socket is refused as it is by `check`; it is never removed.
            let refused = matches!(replacement, Some("file" | "directory"));
            let result = if refused { "failed" } else { "committed" };
            let before = row.upgrades_counted(result);
            row.proxy.signal(Signal::SIGUSR2);
            until(&format!("the upgrade is {result}"), DEADLINE, || row.upgrades_counted(result) == before + 1);
            assert!(replacement.is_none() || socket.symlink_metadata().is_ok(), "{replacement:?} was removed");
            row.serves();
            if replacement == Some("directory") {
                fs::remove_dir(&socket).unwrap();
            }
            fs::rename(&kept, &socket).unwrap();
            row.cleaned("F31-F32");
        }
    }
    row.ends_well();
}

/// Full first: nothing waits for a reader. Then closed: nothing dies of SIGPIPE.
#[test]
fn f54_nobody_reads_the_log() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let capacity = rustix::pipe::fcntl_getpipe_size(&writer).unwrap();
    writer.write_all(&vec![b'\n'; capacity]).unwrap();
    let how = |mut starter: Starter| {
        starter.command.stderr(writer);
        starter
    };
    let row = Row::start_as("F54", |conf| conf, how);
    for _ in 0..rounds() {
        row.upgrades();
    }
    drop(reader);
    for _ in 0..rounds() {
        row.upgrades();
    }
    row.ends_well();
}

/// A large environment, a directory that is gone, a service manager that does not listen.
#[test]
fn f55_f56_an_odd_environment() {
    let place = tempfile::tempdir().unwrap();
    let cwd = place.path().to_owned();
    let how = |mut starter: Starter| {
        starter.command.current_dir(&cwd).env("BALLAST", "x".repeat(100_000));
        starter.command.env("NOTIFY_SOCKET", cwd.join("nobody")).env("LISTEN_FDS", "1").env("LISTEN_PID", "1");
        starter
    };
    let row = Row::start_as("F55-F56", |conf| conf, how);
    drop(place);
    for _ in 0..rounds() {
        row.upgrades();
        let environment = fs::read(format!("/proc/{}/environ", row.proxy.serving_pid())).unwrap();
        let environment = String::from_utf8_lossy(&environment);
        assert!(!environment.contains("NOTIFY_SOCKET") && !environment.contains("LISTEN_"), "left to the worker");
    }
    row.ends_well();
}
