//! The one owner of dead children: `waitpid` on SIGCHLD, each status told to whoever waits for it. As PID 1 of a container
//! it also collects orphans that are none of ours.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use nix::unistd::Pid;
use rustix::process::{PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, wait};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::link::Link;

#[derive(Debug, Clone, Default)]
pub(super) struct Reaper {
    waiting: Rc<RefCell<HashMap<i32, oneshot::Sender<Exit>>>>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Status(i32),
    Signal(i32),
    /// It was no child of ours: nobody told us.
    Unknown,
    /// Another installation's: of it only the channel is known.
    Silent,
}

impl Exit {
    /// Whether the process is dead for sure: a channel may also have ended with a process that is frozen, and wakes.
    pub(super) fn is_certain(self) -> bool {
        self != Self::Silent
    }

    /// Label of `worker_restarts_total`.
    pub fn cause(self) -> &'static str {
        match self {
            Self::Status(_) => "exit",
            Self::Signal(_) => "signal",
            Self::Unknown | Self::Silent => "unknown",
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exited with status {status}"),
            Self::Unknown => f.write_str("ended (an earlier keeper's child: nobody knows how)"),
            Self::Silent => f.write_str("ended the conversation"),
            Self::Signal(number) => {
                let name = nix::sys::signal::Signal::try_from(*number).map_or("unknown", |signal| signal.as_str());
                write!(f, "died of signal {number} ({name})")
            }
        }
    }
}

/// A child that is still to be reaped.
pub(super) struct Child {
    pub process: Process,
    exit: Told,
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Child").field("process", &self.process).finish_non_exhaustive()
    }
}

/// Who tells of the end.
enum Told {
    /// The reaper, who has the status.
    Reaper(oneshot::Receiver<Exit>),
    /// The pidfd, of a process that is no child of ours.
    Pidfd(AsyncFd<OwnedFd>),
    /// The end of its channel.
    Channel(std::pin::Pin<Box<dyn Future<Output = ()>>>),
}

/// A process, held by a pidfd so that a signal never reaches another one that got its pid.
#[derive(Debug, Clone)]
pub(super) struct Process {
    /// 0: not known here.
    pub pid: u32,
    hold: Hold,
}

#[derive(Debug, Clone)]
enum Hold {
    Pidfd(Rc<OwnedFd>),
    /// Of another PID namespace, or another installation's: all that can be done to it is to end the conversation.
    Channel(AbortHandle),
}

impl Process {
    pub(super) fn kill(&self, signal: Signal) {
        match &self.hold {
            // It may be dead already, which is what was wanted.
            Hold::Pidfd(pidfd) => drop(pidfd_send_signal(pidfd, signal)),
            Hold::Channel(line) => line.abort(),
        }
    }

    pub(super) fn is_remote(&self) -> bool {
        matches!(self.hold, Hold::Channel(_))
    }
}

impl Child {
    /// A process that is known by the other end of its channel alone; `pid` is what it says of itself.
    pub(super) fn remote(pid: u32, link: &Link) -> Self {
        let process = Process { pid, hold: Hold::Channel(link.severing()) };
        Self { process, exit: Told::Channel(Box::pin(link.ended())) }
    }

    /// Waits for the end. Cancel-safe.
    pub(super) async fn exited(&mut self) -> Exit {
        match &mut self.exit {
            // The sender goes away only together with the reaper, at the end of the process.
            Told::Reaper(exit) => exit.await.unwrap_or(Exit::Status(0)),
            Told::Pidfd(pidfd) => {
                // It fails only at the end of the runtime.
                let _ = pidfd.readable().await;
                Exit::Unknown
            }
            Told::Channel(ended) => {
                ended.await;
                Exit::Silent
            }
        }
    }
}

impl Reaper {
    /// Takes over a child that was just started. Call before anything is awaited: until then nobody else reaps it.
    ///
    /// # Errors
    /// No descriptor for a pidfd: the child is killed and will be reaped.
    pub(super) fn adopt(&self, child: &std::process::Child) -> io::Result<Child> {
        self.watch(child.id()).inspect_err(|_| {
            if let Ok(pid) = i32::try_from(child.id()) {
                let _ = nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        })
    }

    /// As [`Self::adopt`], of a child that an earlier image of this process has started.
    ///
    /// # Errors
    /// No descriptor for a pidfd, or there is no such process: it goes on, if there is one.
    pub(super) fn watch(&self, child: u32) -> io::Result<Child> {
        let pid = i32::try_from(child).map_err(io::Error::other)?;
        let (sender, exit) = oneshot::channel();
        self.waiting.borrow_mut().insert(pid, sender);
        let known = rustix::process::Pid::from_raw(pid).ok_or_else(|| io::Error::other("pid 0"))?;
        let pidfd = pidfd_open(known, PidfdFlags::empty())?;
        Ok(Child { process: Process { pid: child, hold: Hold::Pidfd(Rc::new(pidfd)) }, exit: Told::Reaper(exit) })
    }

    /// Watches a worker of an earlier keeper, which this process did not start.
    ///
    /// # Errors
    /// No descriptor for a pidfd, or there is no such process.
    pub(super) fn adopt_stranger(&self, pid: u32) -> io::Result<Child> {
        let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        let pidfd = pidfd_open(raw.ok_or_else(|| io::Error::other("not a pid"))?, PidfdFlags::empty())?;
        let seen = handoff::os::watch(pidfd.try_clone()?)?;
        Ok(Child { process: Process { pid, hold: Hold::Pidfd(Rc::new(pidfd)) }, exit: Told::Pidfd(seen) })
    }

    /// [`Self::watch`] or [`Self::adopt_stranger`], as it is our child or not. A child of ours that has died is still there.
    ///
    /// # Errors
    /// As those; see [`is_gone`].
    pub(super) fn watch_again(&self, pid: u32) -> io::Result<Child> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in brackets, may itself hold blanks and brackets; state and parent follow it (proc_pid_stat(5)).
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<u32>().ok());
        if parent == Some(std::process::id()) { self.watch(pid) } else { self.adopt_stranger(pid) }
    }

    /// Listens from now on; the future runs for the life of the keeper.
    pub(super) fn listen(self) -> io::Result<impl Future<Output = ()>> {
        let mut deaths = signal(SignalKind::child())?;
        Ok(async move {
            loop {
                self.collect();
                deaths.recv().await;
            }
        })
    }

    fn collect(&self) {
        // An error is ECHILD: there is no child at all.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            // The raw number: a real-time signal has no name, and kills all the same.
            let exit = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Exit::Status(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => continue,
            };
            if let Some(waiter) = self.waiting.borrow_mut().remove(&pid.as_raw_nonzero().get()) {
                let _ = waiter.send(exit);
            }
        }
    }
}

/// Whether there is no such process: no file in `/proc`, or ESRCH.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH)
}
