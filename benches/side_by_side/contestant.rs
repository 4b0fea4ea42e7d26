//! The proxies compared, each with a listener for every kind of backend, two threads, and otherwise its own defaults.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::backends::{Backends, Kind};
use crate::harness::census::{Memory, cpu};
use crate::harness::child::{Guarded, children};
use crate::harness::peer::peer;
use crate::harness::{Conf, Port, Proxy, until};

pub(crate) const PROXYD: &str = "proxyd";
/// The same, with sessions that outlive their worker.
pub(crate) const SURVIVING: &str = "proxyd (survive_crash)";
const START: Duration = Duration::from_secs(10);
/// Debian's place for it, outside the prefix nginx is started with.
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

#[derive(Debug)]
pub(crate) struct Contestant {
    pub(crate) name: String,
    pub(crate) version: String,
    /// A variant that differs from another contestant for bulk alone.
    pub(crate) bulk_only: bool,
    routes: Routes,
    running: Running,
}

#[derive(Debug)]
enum Running {
    Proxyd(Box<Proxy>),
    Peer { process: Guarded, _directory: TempDir },
}

/// The listening port of each kind, and the backend behind it.
#[derive(Debug)]
struct Routes(BTreeMap<Kind, (Port, SocketAddr)>);

impl Routes {
    fn new(backends: &Backends) -> Self {
        Self(backends.all().into_iter().map(|(kind, backend)| (kind, (Port::reserve(), backend))).collect())
    }

    fn fold(&self, mut line: impl FnMut(&mut String, usize, &Port, SocketAddr)) -> String {
        let routes = self.0.values().enumerate();
        routes.fold(String::new(), |mut text, (number, (port, backend))| {
            line(&mut text, number, port, *backend);
            text
        })
    }
}

/// proxyd without and with `survive_crash`, and every peer that is installed.
pub(crate) fn start_all(backends: &Backends) -> Vec<Contestant> {
    let own = [proxyd(backends, PROXYD), proxyd(backends, SURVIVING)];
    let peers = [haproxy(backends, false), haproxy(backends, true), nginx(backends)];
    own.into_iter().chain(peers.into_iter().flatten()).collect()
}

fn proxyd(backends: &Backends, name: &str) -> Contestant {
    let routes = Routes::new(backends);
    let conf = routes.0.values().enumerate().fold(Conf::new(), |conf, (number, (port, backend))| {
        let route = format!("r{number}");
        let survives = format!("survive_crash = {}", name == SURVIVING);
        conf.listener(&route, &port.to_string(), &route)
            .with(&format!("listeners.{route}"), &survives)
            .pool(&route, &[*backend])
    });
    let proxy = Proxy::start(&conf.with("runtime", "threads = 2\nlog = \"warn\""));
    let version = proxy.status()["version"].as_str().unwrap_or("?").to_owned();
    Contestant { name: name.into(), version, bulk_only: false, routes, running: Running::Proxyd(Box::new(proxy)) }
}

fn haproxy(backends: &Backends, splice: bool) -> Option<Contestant> {
    let program = peer("haproxy")?;
    let routes = Routes::new(backends);
    let mut text = String::from("global\n  nbthread 2\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 5s\n");
    text += "  timeout client 1h\n  timeout server 1h\n";
    if splice {
        text += "  option splice-auto\n";
    }
    text += &routes.fold(|text, number, port, backend| {
        write!(text, "listen r{number}\n  bind {port}\n  server b {backend}\n").expect("a string takes all");
    });
    let version = version(&program, "-v", |text| text.split_whitespace().nth(2).map(Into::into));
    let name = if splice { "HAProxy (splice-auto)" } else { "HAProxy" };
    let (directory, file) = configured(&text);
    let mut command = Command::new(program);
    command.arg("-db").arg("-f").arg(file);
    Some(started(name, version, splice, routes, command, directory))
}

fn nginx(backends: &Backends) -> Option<Contestant> {
    let program = peer("nginx")?;
    if !Path::new(NGINX_STREAM).is_file() {
        println!("skipped: nginx has no stream module");
        return None;
    }
    let routes = Routes::new(backends);
    let servers = routes.fold(|text, _, port, backend| {
        writeln!(text, "  server {{ listen {port}; proxy_pass {backend}; proxy_timeout 1h; }}")
            .expect("a string takes all");
    });
    let mut text = format!("load_module {NGINX_STREAM};\ndaemon off;\nworker_processes 2;\npid nginx.pid;\n");
    text += "error_log stderr crit;\nevents { worker_connections 9000; }\n";
    text += &format!("stream {{\n{servers}}}\n");
    let version = version(&program, "-v", |text| text.trim().rsplit('/').next().map(Into::into));
    let (directory, file) = configured(&text);
    let mut command = Command::new(program);
    command.arg("-p").arg(directory.path()).arg("-c").arg(file).args(["-e", "stderr"]);
    Some(started("nginx stream", version, false, routes, command, directory))
}

fn configured(text: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("conf");
    fs::write(&file, text).expect("our own directory takes files");
    (directory, file)
}

fn version(program: &Path, flag: &str, find: fn(&str) -> Option<String>) -> String {
    let output = Command::new(program).arg(flag).output().expect("the program starts");
    // nginx says it on its standard error.
    let text = [output.stdout, output.stderr].concat();
    find(&String::from_utf8_lossy(&text)).unwrap_or_else(|| "?".into())
}

fn started(
    name: &str,
    version: String,
    bulk_only: bool,
    routes: Routes,
    mut command: Command,
    directory: TempDir,
) -> Contestant {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("the program starts");
    let process = Guarded::new(child, Signal::SIGTERM);
    let running = Running::Peer { process, _directory: directory };
    let contestant = Contestant { name: name.into(), version, bulk_only, routes, running };
    until(&format!("{name} accepts"), START, || TcpStream::connect(contestant.address(Kind::Echo)).is_ok());
    contestant
}

impl Contestant {
    /// # Panics
    /// If there is no backend of this kind.
    pub(crate) fn address(&self, kind: Kind) -> SocketAddr {
        self.routes.0[&kind].0.address()
    }

    /// User and system time of all its processes so far.
    pub(crate) fn cpu(&self) -> Duration {
        self.pids().into_iter().filter_map(cpu).sum()
    }

    /// User memory of all its processes, in bytes: what they wrote privately, and shared memory.
    pub(crate) fn user_memory(&self) -> f64 {
        let all = self.pids().into_iter().filter_map(Memory::of);
        let kib: u64 = all.map(|memory| memory.private + memory.shared).sum();
        f64::from(u32::try_from(kib).expect("below four terabytes")) * 1024.0
    }

    fn pids(&self) -> Vec<u32> {
        let first = match &self.running {
            Running::Proxyd(proxy) => proxy.keeper_pid(),
            Running::Peer { process, .. } => process.pid(),
        };
        std::iter::once(first).chain(children(first)).collect()
    }
}
