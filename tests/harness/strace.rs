//! System calls of unmodified binaries made to fail, to wait or to kill, by strace(1).

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::child::Guarded;
use super::peer::peer;
use super::wait::until;

const DEADLINE: Duration = Duration::from_secs(30);

/// Attached to a process; lets it go when dropped.
#[derive(Debug)]
pub struct Strace(Guarded);

impl Strace {
    /// To a process and what it starts, each of `inject` as strace has it: `sendmsg:signal=KILL:when=2`.
    /// `None` after saying so where there is no strace.
    pub fn attach(pid: u32, inject: &[&str], trace: &str) -> Option<Self> {
        Self::run(pid, &["-f"], inject, trace, "/dev/null".as_ref())
    }

    /// To the thread that a process began with, and nothing else.
    pub fn attach_one(pid: u32, inject: &[&str], trace: &str) -> Option<Self> {
        Self::run(pid, &[], inject, trace, "/dev/null".as_ref())
    }

    /// To the thread that a process began with; the calls are in `log`.
    pub fn watch(pid: u32, inject: &[&str], trace: &str, log: &Path) -> Option<Self> {
        Self::run(pid, &[], inject, trace, log)
    }

    fn run(pid: u32, options: &[&str], inject: &[&str], trace: &str, log: &Path) -> Option<Self> {
        let mut command = Command::new(peer("strace")?);
        command.args(options).args(["-qq", "-e", "signal=none", "-e", &format!("trace={trace}"), "-o"]).arg(log);
        for injection in inject {
            command.args(["-e", &format!("inject={injection}")]);
        }
        command.args(["-p", &pid.to_string()]).stdin(Stdio::null()).stdout(Stdio::null());
        // It detaches when it is asked to end; killed, it would leave the process stopped.
        let strace = Guarded::new(command.spawn().expect("strace can be executed"), Signal::SIGTERM);
        until("strace is attached", DEADLINE, || is_traced(pid));
        Some(Self(strace))
    }

    /// After which nothing is injected any more.
    pub fn detach(self, pid: u32) {
        drop(self.0);
        until("strace is gone", DEADLINE, || !is_traced(pid));
    }
}

fn is_traced(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
}
