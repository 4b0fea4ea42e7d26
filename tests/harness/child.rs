//! Processes: asked by pid, signalled by pid, and ended with the test that started them.

use std::fs;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait::until_some;

/// After TERM, before KILL, when a test ends.
const GRACE: Duration = Duration::from_secs(3);

/// One process, told apart from a later one with the same pid by the time it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    pid: u32,
    /// Clock ticks since boot: field 22 of `/proc/PID/stat`, proc_pid_stat(5).
    started: u64,
}

impl Process {
    /// `None` if there is no such process.
    pub fn of(pid: u32) -> Option<Self> {
        Some(Self { pid, started: stat(pid)?.field(22) })
    }

    pub fn pid(self) -> u32 {
        self.pid
    }

    /// Runs, or is a zombie that nobody has reaped.
    pub fn exists(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// A process that is gone already is left alone.
    pub fn signal(self, signal: Signal) {
        if self.exists() {
            // It may end between the look and the call.
            let _gone = send(self.pid, signal);
        }
    }
}

pub fn send(pid: u32, signal: Signal) -> nix::Result<()> {
    kill(Pid::from_raw(i32::try_from(pid).expect("a pid fits")), signal)
}

/// The fields of `/proc/PID/stat`.
#[derive(Debug)]
pub struct Stat(String);

pub fn stat(pid: u32) -> Option<Stat> {
    fs::read_to_string(format!("/proc/{pid}/stat")).ok().map(Stat)
}

impl Stat {
    /// A numeric field by its number in proc_pid_stat(5), from 4 on.
    pub fn field(&self, number: usize) -> u64 {
        self.after_name(number).parse().expect("a field of /proc/PID/stat from 4 on is a number")
    }

    /// `R`, `S`, `Z`, ...
    pub fn state(&self) -> &str {
        self.after_name(3)
    }

    /// Of the program, up to 15 bytes.
    pub fn name(&self) -> &str {
        let inner = self.0.split_once(" (").and_then(|(_, rest)| rest.rsplit_once(") "));
        inner.expect("/proc/PID/stat has a name in brackets").0
    }

    /// The name, field 2, may itself hold blanks and brackets.
    fn after_name(&self, number: usize) -> &str {
        let (_, rest) = self.0.rsplit_once(") ").expect("/proc/PID/stat has a name in brackets");
        rest.split_ascii_whitespace().nth(number - 3).expect("/proc/PID/stat has this field")
    }
}

/// Children of a process, zombies included.
pub fn children(pid: u32) -> Vec<u32> {
    fs::read_dir("/proc")
        .expect("/proc is there")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|child| stat(*child).is_some_and(|stat| stat.field(4) == u64::from(pid)))
        .collect()
}

/// Processes whose standard error is this file.
pub fn with_stderr(file: &Path) -> Vec<Process> {
    let pids = fs::read_dir("/proc").into_iter().flatten();
    pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| fs::read_link(format!("/proc/{pid}/fd/2")).is_ok_and(|target| target == file))
        .filter_map(Process::of)
        .collect()
}

/// Waits for the end of a child, which is then reaped.
///
/// # Panics
/// After `deadline`.
pub fn wait_exit(child: &mut Child, what: &str, deadline: Duration) -> ExitStatus {
    until_some(&format!("{what} ends"), deadline, || child.try_wait().expect("our own child can be waited for"))
}

/// A child that ends with the test, in good order if it can.
#[derive(Debug)]
pub struct Guarded {
    child: Child,
    signal: Signal,
}

impl Guarded {
    /// `signal` asks it to end.
    pub fn new(child: Child, signal: Signal) -> Self {
        Self { child, signal }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child can be waited for")
    }

    pub fn inner(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        end(&mut self.child, self.signal);
    }
}

/// Asks, waits, kills, reaps. Never panics: it runs while a failed test unwinds.
pub fn end(child: &mut Child, signal: Signal) {
    if matches!(child.try_wait(), Ok(Some(_))) {
        return;
    }
    let _gone = send(child.id(), signal);
    let deadline = std::time::Instant::now() + GRACE;
    while matches!(child.try_wait(), Ok(None)) && std::time::Instant::now() < deadline {
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(5));
    }
    // Both fail only if it has ended meanwhile.
    let _killed = child.kill();
    let _reaped = child.wait();
}
