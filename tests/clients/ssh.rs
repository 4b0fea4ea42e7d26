//! SSH: a stream to and fro, and files by SFTP, on one connection each.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use nix::sys::signal::Signal;

use crate::harness::child::Guarded;
use crate::harness::seeded::Bytes;
use crate::harness::{service, until};
use crate::journey::{DEADLINE, Journey, Stop, Trial, until_more};

/// Above what SSH puts into one of its packets (32 KiB).
const BLOCK: usize = 100_000;

fn send(mut to: ChildStdin, seed: u64, stop: &AtomicBool) -> u64 {
    let (mut bytes, mut block) = (Bytes::up(seed), vec![0; BLOCK]);
    while !stop.load(Ordering::Acquire) {
        bytes.fill(&mut block);
        to.write_all(&block).unwrap();
    }
    bytes.at()
}

fn receive(mut from: ChildStdout, seed: u64, received: &AtomicU64) {
    let (mut bytes, mut block) = (Bytes::up(seed), vec![0; BLOCK]);
    loop {
        let n = from.read(&mut block).unwrap();
        if n == 0 {
            return;
        }
        bytes.check(&block[..n]).unwrap();
        received.store(bytes.at(), Ordering::Release);
    }
}

#[test]
fn a_stream_through_ssh_goes_through_upgrades() {
    stream(Trial::Upgrades);
}

#[test]
fn a_stream_through_ssh_goes_through_kills() {
    stream(Trial::Kills);
}

fn stream(trial: Trial) {
    let Some(sshd) = service::Sshd::start() else { return };
    let journey = Journey::start(sshd.address(), 1, trial);
    let Some(mut ssh) = sshd.client("ssh", journey.address()) else { return };
    let mut ssh = ssh.arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (to, from) = (ssh.stdin.take().unwrap(), ssh.stdout.take().unwrap());
    let mut ssh = Guarded::new(ssh, Signal::SIGTERM);
    let (seed, stop, received) = (fastrand::u64(..), AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let stopped = Stop(&stop);
        let sending = scope.spawn(|| send(to, seed, &stop));
        let receiving = scope.spawn(|| receive(from, seed, &received));
        journey.go(|| until_more("bytes", &receiving, 3_000_000, || received.load(Ordering::Acquire)));
        drop(stopped);
        let sent = sending.join().unwrap();
        receiving.join().unwrap();
        assert_eq!(received.load(Ordering::Acquire), sent);
    });
    until("ssh has ended", DEADLINE, || ssh.has_ended().is_some());
    assert!(ssh.has_ended().unwrap().success());
}

/// Of each file: some tenths of a second, so that an upgrade comes in its middle.
const FILE: usize = 40_000_000;

#[test]
fn files_by_sftp_go_through_upgrades() {
    files(Trial::Upgrades);
}

#[test]
fn files_by_sftp_go_through_kills() {
    files(Trial::Kills);
}

fn files(trial: Trial) {
    let Some(sshd) = service::Sshd::start() else { return };
    let journey = Journey::start(sshd.address(), 1, trial);
    let place = tempfile::tempdir().unwrap();
    let original = place.path().join("original");
    let mut bytes = vec![0; FILE];
    Bytes::up(fastrand::u64(..)).fill(&mut bytes);
    fs::write(&original, &bytes).unwrap();
    let Some(mut sftp) = sshd.client("sftp", journey.address()) else { return };
    let mut sftp = sftp.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut to = sftp.stdin.take().unwrap();
    let mut sftp = Guarded::new(sftp, Signal::SIGTERM);
    // There, back, and nothing of it is kept.
    let mut order = |round: u32| {
        let (there, back) = (place.path().join("there"), place.path().join(format!("back-{round}")));
        let (original, there, back) = (original.display(), there.display(), back.display());
        writeln!(to, "put {original} {there}\nget {there} {back}\n!touch {back}.done").unwrap();
    };
    let arrived = |round: u32| {
        let path = place.path().join(format!("back-{round}"));
        until("the file is back", DEADLINE, || path.with_extension("done").exists());
        assert!(fs::read(&path).unwrap() == bytes, "another file than was sent");
        fs::remove_file(&path).unwrap();
    };
    let mut round = 0;
    journey.go(|| {
        // The one that was on its way in the last upgrade, and the one that is in the next.
        if round > 0 {
            arrived(round);
        }
        round += 1;
        order(round);
        until("it is under way", DEADLINE, || begun(&place.path().join("there")));
    });
    arrived(round);
    drop(to);
    until("sftp has ended", DEADLINE, || sftp.has_ended().is_some());
    assert!(sftp.has_ended().unwrap().success());
}

fn begun(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|file| file.len() > 0)
}
