//! What the proxy goes through while a client works.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::child::Process;
use crate::harness::{Conf, Following, Port, Proxy, Starter, slim, until};

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// What comes again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trial {
    Upgrades,
    /// SIGKILL to the worker, whose sessions survive it.
    Kills,
}

/// A proxy in front of one service, and how many connections its clients keep open through it.
pub(crate) struct Journey {
    proxy: Proxy,
    port: Port,
    connections: u64,
    trial: Trial,
}

impl Journey {
    pub(crate) fn start(service: SocketAddr, connections: u64, trial: Trial) -> Self {
        let port = Port::reserve();
        let conf = Conf::simple(&port, &[service]).with("drain", "timeout = \"1h\"");
        let conf = match trial {
            Trial::Upgrades => conf,
            Trial::Kills => {
                conf.with("listeners.main", "survive_crash = true").with("runtime", "restart_backoff = \"off\"")
            }
        };
        Self { proxy: Starter::with_binary(&conf, slim()).start(), port, connections, trial }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Goes through all of it. `goes_on` returns when the clients have done something since it was called, and panics if
    /// they cannot.
    pub(crate) fn go(&self, mut goes_on: impl FnMut()) {
        goes_on();
        let opened = self.opened();
        match self.trial {
            Trial::Upgrades => self.upgrades(&mut goes_on),
            Trial::Kills => self.kills(&mut goes_on),
        }
        assert_eq!(self.opened(), opened, "somebody has connected again");
        until("the old generations have ended", DEADLINE, || {
            self.proxy.status()["generations"].as_array().unwrap().len() == 1
        });
    }

    fn upgrades(&self, goes_on: &mut impl FnMut()) {
        for _ in 0..if is_long() { 50 } else { 5 } {
            let report = self.proxy.ctl_json(&["upgrade", "--probation", "0s"]);
            goes_on();
            assert_eq!((&report["result"], &report["sessions"]["left"]), (&"committed".into(), &0.into()), "{report}");
            assert_eq!(report["sessions"]["moved"], self.connections, "{report}");
        }
    }

    fn kills(&self, goes_on: &mut impl FnMut()) {
        let (kills, following) = (if is_long() { 20 } else { 3 }, Following::start(&self.proxy));
        for _ in 0..kills {
            Process::of(self.proxy.serving_pid()).expect("it lives").signal(Signal::SIGKILL);
            following.until("a worker in its place", DEADLINE, |event| event["event"] == "worker_restarted");
            goes_on();
        }
        let count = |result| self.proxy.metrics().count("proxyd_sessions_recovered_total", &[("result", result)]);
        assert_eq!((count("recovered"), count("lost")), (kills * self.connections, 0));
    }

    /// Connections so far. A client may have opened more at first, such as one to ask for the server's version.
    fn opened(&self) -> u64 {
        let count = |name| self.proxy.metrics().count(name, &[]);
        assert_eq!(count("proxyd_sessions_active"), self.connections);
        count("proxyd_sessions_total")
    }
}

fn is_long() -> bool {
    std::env::var("PROXYD_LONG").is_ok_and(|value| value == "1")
}

/// Tells a thread of the test to stop when it is dropped, also while a failed test unwinds, so that nothing waits for it.
pub(crate) struct Stop<'a>(pub(crate) &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Waits until `count` has risen by so much, while the thread that raises it lives.
pub(crate) fn until_more<T>(what: &str, thread: &ScopedJoinHandle<'_, T>, more: u64, count: impl Fn() -> u64) {
    let goal = count() + more;
    until(&format!("{more} more {what}"), DEADLINE, || {
        assert!(!thread.is_finished(), "no more {what}: whoever makes them has ended");
        count() >= goal
    });
}
