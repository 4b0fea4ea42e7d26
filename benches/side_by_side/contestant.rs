//! The proxies compared, each with a listener for every kind of backend and two threads.

use std::collections::BTreeMap;
use std::env;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::time::ClockId;
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::backends::{Backends, Kind};
use crate::floor::{self, Means};
use crate::harness::census::Memory;
use crate::harness::child::{Guarded, children};
use crate::harness::{Conf, Port, Proxy, until};
use crate::peers;

const START: Duration = Duration::from_secs(10);
/// Above what is opened at most; two descriptors each are below the 20,000 that a machine of ours gives.
pub(crate) const MOST_SESSIONS: u32 = 9_300;

/// What a contestant is to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// No proxy at all.
    Direct,
    Floor,
    Proxyd,
    /// The same, with sessions that outlive their worker.
    Surviving,
    Peer,
}

/// What it enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    Everything,
    /// All but bulk.
    Small,
    Bulk,
    /// Where latency is compared with none.
    Added,
}

#[derive(Debug)]
pub(crate) struct Contestant {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) role: Role,
    pub(crate) entry: Entry,
    routes: Routes,
    running: Running,
}

#[derive(Debug)]
enum Running {
    Nothing,
    Proxyd(Box<Proxy>),
    Other { process: Guarded, _directory: Option<TempDir> },
}

/// The listening port of each kind, and the backend behind it.
#[derive(Debug)]
pub(crate) struct Routes(BTreeMap<Kind, (Port, SocketAddr)>);

impl Routes {
    pub(crate) fn new(backends: &Backends) -> Self {
        Self(backends.all().into_iter().map(|(kind, backend)| (kind, (Port::reserve(), backend))).collect())
    }

    /// A text of so many lines, each about a route with its number.
    pub(crate) fn lines(&self, line: impl Fn(usize, &Port, SocketAddr) -> String) -> String {
        self.0.values().enumerate().map(|(number, (port, backend))| line(number, port, *backend)).collect()
    }
}

/// Nobody, the floor, proxyd without and with `survive_crash`, and every peer that is installed.
pub(crate) fn start_all(backends: &Backends) -> Vec<Contestant> {
    let nobody = Contestant {
        name: "no proxy".into(),
        version: String::new(),
        role: Role::Direct,
        entry: Entry::Added,
        routes: Routes::new(backends),
        running: Running::Nothing,
    };
    let splices = [64, 256, 1024].map(|kib| Means::Splice(kib * 1024));
    let floors = std::iter::once(Means::Copy).chain(splices).map(|means| floor(backends, means));
    let own = [Role::Proxyd, Role::Surviving].map(|role| proxyd(backends, role));
    std::iter::once(nobody).chain(floors).chain(own).chain(peers::installed(backends)).collect()
}

fn floor(backends: &Backends, means: Means) -> Contestant {
    let routes = Routes::new(backends);
    let mut command = Command::new(env::current_exe().expect("this program has a path"));
    command.args([floor::WORD, &means.word()]);
    command.args(routes.0.values().map(|(port, backend)| format!("{port}={backend}")));
    let (name, entry) = match means {
        Means::Copy => ("floor".into(), Entry::Small),
        Means::Splice(size) => (format!("floor (splice, {} KiB)", size / 1024), Entry::Bulk),
    };
    let child = spawn(command);
    Contestant::new(name, String::new(), Role::Floor, entry, routes, child, None)
}

fn proxyd(backends: &Backends, role: Role) -> Contestant {
    let routes = Routes::new(backends);
    let survives = role == Role::Surviving;
    let conf = routes.0.values().enumerate().fold(Conf::new(), |conf, (number, (port, backend))| {
        let route = format!("r{number}");
        conf.listener(&route, &port.to_string(), &route)
            .with(&format!("listeners.{route}"), &format!("survive_crash = {survives}"))
            .pool(&route, &[*backend])
    });
    let conf = conf.with("runtime", "threads = 2\nlog = \"warn\"");
    // One that survives holds two pipes more, and gets what the descriptors allow.
    let conf = if survives { conf } else { conf.with("runtime", &format!("max_sessions = {MOST_SESSIONS}")) };
    let proxy = Proxy::start(&conf);
    let version = proxy.status()["version"].as_str().unwrap_or("?").to_owned();
    let name = if survives { "proxyd (survive_crash)" } else { "proxyd" };
    let running = Running::Proxyd(Box::new(proxy));
    Contestant { name: name.into(), version, role, entry: Entry::Everything, routes, running }
}

/// # Panics
/// If it is not there.
pub(crate) fn spawn(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("the program starts")
}

impl Contestant {
    /// Waits until it accepts.
    pub(crate) fn new(
        name: String,
        version: String,
        role: Role,
        entry: Entry,
        routes: Routes,
        child: Child,
        directory: Option<TempDir>,
    ) -> Self {
        let running = Running::Other { process: Guarded::new(child, Signal::SIGTERM), _directory: directory };
        let contestant = Self { name, version, role, entry, routes, running };
        let address = contestant.address(Kind::Echo);
        until(&format!("{} accepts", contestant.name), START, || TcpStream::connect(address).is_ok());
        contestant
    }

    /// # Panics
    /// If there is no backend of this kind.
    pub(crate) fn address(&self, kind: Kind) -> SocketAddr {
        let (port, backend) = &self.routes.0[&kind];
        if self.role == Role::Direct { *backend } else { port.address() }
    }

    /// User and system time of all its processes so far, as exactly as the scheduler counts it.
    pub(crate) fn cpu(&self) -> Duration {
        let of = |pid: u32| {
            let pid = Pid::from_raw(i32::try_from(pid).expect("a pid fits"));
            ClockId::pid_cpu_clock_id(pid).and_then(ClockId::now).map(Duration::from).ok()
        };
        self.pids().into_iter().filter_map(of).sum()
    }

    /// User memory of all its processes, in bytes: what they wrote privately, and shared memory.
    pub(crate) fn user_memory(&self) -> f64 {
        let all = self.pids().into_iter().filter_map(Memory::of);
        let kib: u64 = all.map(|memory| memory.private + memory.shared).sum();
        kib as f64 * 1024.0
    }

    fn pids(&self) -> Vec<u32> {
        let first = match &self.running {
            Running::Nothing => return Vec::new(),
            Running::Proxyd(proxy) => proxy.keeper_pid(),
            Running::Other { process, .. } => process.pid(),
        };
        std::iter::once(first).chain(children(first)).collect()
    }
}
