//! What a service manager is told, sd_notify(3). It is never waited for and never a reason to fail: what it does not take
//! now is kept and said again at the next tick.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use super::owner::Keeper;
use super::run::TICK;
use crate::observe::scene::Standing;

/// The line to the service manager, and what was said on it.
#[derive(Debug)]
pub(super) struct Notify {
    /// `None`: nobody wants to know.
    line: Option<(UnixDatagram, SocketAddr)>,
    unsent: VecDeque<String>,
    watchdog: Option<Every>,
    /// While it stops, the manager is asked for more time.
    extension: Every,
    phase: Phase,
    status: String,
    /// How the last reload by signal failed, if it did.
    refused: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting,
    Ready,
    /// Until this upgrade has ended; a reload has ended with the event that asked for it.
    Reloading {
        upgrade: Option<u64>,
    },
    Stopping,
}

/// Something due once in a while.
#[derive(Debug)]
struct Every {
    period: Duration,
    last: Option<Instant>,
}

impl Every {
    fn new(period: Duration) -> Self {
        Self { period, last: None }
    }

    /// At the last tick before the period is over.
    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = self.last.is_none_or(|last| now.duration_since(last) + TICK > self.period);
        if due {
            self.last = Some(now);
        }
        due
    }
}

impl Notify {
    pub(super) fn from_environment() -> Self {
        let text = |name: &str| std::env::var(name).ok();
        let for_us = text("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let timeout = text("WATCHDOG_USEC").and_then(|text| text.parse().ok()).filter(|usec| *usec > 0 && for_us);
        Self {
            line: std::env::var_os("NOTIFY_SOCKET").and_then(open),
            unsent: VecDeque::new(),
            // Half of the timeout, as sd_watchdog_enabled(3) advises.
            watchdog: timeout.map(|usec| Every::new(Duration::from_micros(usec) / 2)),
            extension: Every::new(EXTENSION / 3),
            phase: Phase::Starting,
            status: String::new(),
            refused: None,
        }
    }

    /// Before a reload or an upgrade that the manager did not ask for by a command. `READY=1` follows when it has ended.
    pub(super) fn reloading(&mut self) {
        match self.phase {
            Phase::Starting | Phase::Stopping => return,
            Phase::Ready => self.phase = Phase::Reloading { upgrade: None },
            // Said again: the manager takes only what is younger than its own request.
            Phase::Reloading { .. } => {}
        }
        self.say(format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_usec()));
    }

    /// What was begun goes on until this upgrade has ended.
    fn until_upgraded(&mut self, id: u64) {
        if let Phase::Reloading { upgrade } = &mut self.phase {
            *upgrade = Some(id);
        }
    }

    /// How a reload by signal ended: the manager has no other way to learn it.
    pub(super) fn reloaded(&mut self, done: Result<(), String>) {
        self.refused =
            done.err().and_then(|mistakes| mistakes.lines().next().map(|line| line.trim_end_matches(':').into()));
    }

    fn ready(&mut self) {
        if !matches!(self.phase, Phase::Ready | Phase::Stopping) {
            self.phase = Phase::Ready;
            self.say("READY=1".into());
        }
    }

    fn stopping(&mut self) {
        if self.phase != Phase::Stopping {
            self.phase = Phase::Stopping;
            self.say("STOPPING=1".into());
        }
    }

    fn status(&mut self, status: String) {
        if self.status != status {
            // A line break would begin another assignment.
            self.say(format!("STATUS={}", status.replace(|c: char| c.is_control(), " ")));
            self.status = status;
        }
    }

    /// The owner loop is alive.
    pub(super) fn tick(&mut self) {
        self.send();
        // What waits is no older word of the same: a manager that comes back must still learn the rest.
        if self.unsent.is_empty() && self.watchdog.as_mut().is_some_and(Every::is_due) {
            self.say("WATCHDOG=1".into());
        }
        if self.phase == Phase::Stopping && self.extension.is_due() {
            self.say(format!("EXTEND_TIMEOUT_USEC={}", EXTENSION.as_micros()));
        }
    }

    fn say(&mut self, message: String) {
        if self.line.is_none() {
            return;
        }
        if self.unsent.len() == UNSENT {
            self.unsent.pop_front();
        }
        self.unsent.push_back(message);
        self.send();
    }

    /// In order, as far as it is taken. What is wrong with a manager is not ours to judge; it may come back.
    fn send(&mut self) {
        let Some((socket, address)) = &self.line else { return };
        while let Some(message) = self.unsent.front() {
            match socket.send_to_addr(message.as_bytes(), address) {
                Ok(_) => drop(self.unsent.pop_front()),
                Err(error) => return tracing::debug!(%error, "the service manager takes no message now"),
            }
        }
    }
}

/// An address that cannot be one is said once, and then nobody wants to know.
fn open(name: OsString) -> Option<(UnixDatagram, SocketAddr)> {
    let opened = address(&name).and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok((socket, address))
    });
    opened
        .inspect_err(|error| tracing::warn!(%error, ?name, "NOTIFY_SOCKET: the service manager will be told nothing"))
        .ok()
}

/// `/path`, or `@name` in the abstract name space.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(name),
        [b'@', rest @ ..] if !rest.is_empty() => SocketAddr::from_abstract_name(rest),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "neither an absolute path nor @name")),
    }
}

fn monotonic_usec() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
}

impl Keeper {
    /// After every event: what is so now, if it is not what was said last.
    pub(super) fn tell_manager(&mut self) {
        if self.notify.line.is_none() {
            return;
        }
        match self.standing {
            Standing::Starting => {}
            Standing::ShuttingDown => self.notify.stopping(),
            Standing::Serving | Standing::Restarting if !self.still_reloading() => self.notify.ready(),
            Standing::Serving | Standing::Restarting => {}
        }
        let status = self.in_one_line();
        self.notify.status(status);
    }

    fn still_reloading(&self) -> bool {
        let in_hand = self.upgrade.as_ref().map(|upgrade| upgrade.id);
        matches!(self.notify.phase, Phase::Reloading { upgrade: Some(id) } if in_hand == Some(id))
    }

    pub(super) fn upgrade_by_signal(&mut self) {
        self.notify.reloading();
        // The id it gets; if it is refused, no upgrade has that id, and the reload has ended.
        self.notify.until_upgraded(self.last_upgrade + 1);
        self.start_upgrade(admin::command::Upgrade::default(), None);
    }

    fn in_one_line(&self) -> String {
        let mut line = match (self.standing, self.serving) {
            (Standing::Starting, _) => "starting".into(),
            (Standing::ShuttingDown, _) => {
                let sessions: u64 = self.generations.keys().map(|id| self.sessions_of(*id)).sum();
                format!("shutting down, {sessions} sessions left")
            }
            (_, Some(generation)) => format!("generation {generation} serves"),
            (_, None) => "no generation serves: a worker is being restarted, connections wait".into(),
        };
        if let Some(upgrade) = &self.upgrade {
            let (id, from, to, step) = (upgrade.id, upgrade.from, upgrade.to, upgrade.step);
            line.push_str(&format!("; upgrade {id} (generation {from} -> {to}) is at {step}"));
        }
        if let Some(refused) = &self.notify.refused {
            line.push_str(&format!("; {refused}"));
        }
        line
    }
}

/// More than a start, an upgrade and a shutdown say together.
const UNSENT: usize = 64;

/// For a keeper that drains: asked for again every third of it, it is lost only if the keeper hangs.
const EXTENSION: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_addresses_are_told_apart() {
        let long = "/".repeat(200);
        for name in ["", "@", "relative/path", "vsock:2:1234", long.as_str(), "/with\0nul"] {
            assert!(address(OsStr::new(name)).is_err(), "{name:?}");
        }
        assert!(address(OsStr::new("/run/systemd/notify")).unwrap().as_pathname().is_some());
        assert_eq!(address(OsStr::new("@name")).unwrap().as_abstract_name(), Some(&b"name"[..]));
    }

    #[test]
    fn something_is_due_before_its_period_is_over() {
        assert!(Every::new(Duration::from_secs(60)).is_due());
        let mut often = Every::new(TICK);
        assert!(often.is_due() && often.is_due());
        let mut rarely = Every::new(Duration::from_secs(60));
        assert!(rarely.is_due() && !rarely.is_due());
    }
}
