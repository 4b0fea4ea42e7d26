//! Real services in front of which proxyd is tried: [`Redis`], [`Postgres`], [`MariaDb`], [`Mosquitto`], [`Sshd`], and
//! [`Prometheus`], which looks at it. Each keeps its files in a directory of its own, listens on loopback, and ends with the
//! test.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::{Uid, User, chown};
use tempfile::TempDir;

use super::child::Guarded;
use super::http;
use super::peer::peer;
use super::port::Port;
use super::wait::until;

/// A database initialises its files and starts well within this on a loaded machine.
const START: Duration = Duration::from_secs(60);

/// A process, its directory and its port.
#[derive(Debug)]
struct Service {
    name: &'static str,
    process: Guarded,
    directory: TempDir,
    port: Port,
}

impl Service {
    fn start(name: &'static str, mut command: Command, stop: Signal, directory: TempDir, port: Port) -> Self {
        let log = File::create(directory.path().join("log")).expect("our own directory takes files");
        let errors = log.try_clone().expect("a file can be duplicated");
        let child = command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().expect("the program starts");
        Self { name, process: Guarded::new(child, stop), directory, port }
    }

    fn wait_until(mut self, what: &str, mut ready: impl FnMut(&Self) -> bool) -> Self {
        until(&format!("{} {what}", self.name), START, || {
            if let Some(status) = self.process.has_ended() {
                panic!("{} ended with {status}: {}", self.name, self.log());
            }
            ready(&self)
        });
        self
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn accepts(&self) -> bool {
        TcpStream::connect(self.port.address()).is_ok()
    }
}

#[derive(Debug)]
pub struct Redis {
    service: Service,
    cli: PathBuf,
}

impl Redis {
    /// `None` if it is not installed.
    pub fn start() -> Option<Self> {
        let (server, cli) = (peer("redis-server")?, peer("redis-cli")?);
        let (directory, port) = (scratch(), Port::reserve());
        let mut command = Command::new(server);
        command.args(["--bind", "127.0.0.1", "--port", &port.number().to_string()]);
        command.args(["--save", "", "--appendonly", "no", "--dir"]).arg(directory.path());
        let service = Service::start("redis-server", command, Signal::SIGTERM, directory, port);
        Some(Self { service: service.wait_until("accepts", Service::accepts), cli })
    }

    pub fn address(&self) -> SocketAddr {
        self.service.port.address()
    }

    /// `redis-cli` against `at`, which may be the proxy.
    pub fn cli(&self, at: SocketAddr, words: &[&str]) -> Output {
        let mut command = Command::new(&self.cli);
        command.args(["-h", &at.ip().to_string(), "-p", &at.port().to_string()]).args(words);
        command.output().expect("redis-cli starts")
    }
}

#[derive(Debug)]
pub struct Postgres {
    service: Service,
}

impl Postgres {
    /// A fresh cluster with the superuser `proxyd`, no password. `None` if it is not installed.
    pub fn start() -> Option<Self> {
        let (initdb, server) = (peer("initdb")?, peer("postgres")?);
        let (directory, port) = (scratch(), Port::reserve());
        let data = directory.path().join("data");
        let owner = unprivileged(directory.path(), "postgres");
        let mut init = as_user(initdb, owner.as_ref());
        init.args(["-A", "trust", "-U", "proxyd", "-N", "-E", "UTF8", "--locale=C", "-D"]).arg(&data);
        let made = init.current_dir(directory.path()).output().expect("initdb starts");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let mut command = as_user(server, owner.as_ref());
        command.args(["-p", &port.number().to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c"]);
        command.arg(format!("unix_socket_directories={}", directory.path().display())).arg("-D").arg(&data);
        command.current_dir(directory.path());
        // INT is the fast shutdown: sessions are ended, files are left in order.
        let service = Service::start("postgres", command, Signal::SIGINT, directory, port);
        let ready = |service: &Service| service.log().contains("ready to accept connections");
        Some(Self { service: service.wait_until("accepts", ready) })
    }

    pub fn address(&self) -> SocketAddr {
        self.service.port.address()
    }

    /// A client program (`psql`, `pgbench`, ...) against `at`, which may be the proxy. `None` if it is not installed.
    pub fn client(&self, program: &str, at: SocketAddr, words: &[&str]) -> Option<Command> {
        let mut command = Command::new(peer(program)?);
        command.env("PGCONNECT_TIMEOUT", "20").env("PGHOST", at.ip().to_string()).env("PGPORT", at.port().to_string());
        command.env("PGUSER", "proxyd").env("PGDATABASE", "postgres").args(words).stdin(Stdio::null());
        Some(command)
    }
}

#[derive(Debug)]
pub struct MariaDb {
    service: Service,
    client: PathBuf,
}

impl MariaDb {
    /// A fresh server that asks nobody for a password. `None` if it is not installed.
    pub fn start() -> Option<Self> {
        let (install, server, client) = (peer("mariadb-install-db")?, peer("mariadbd")?, peer("mariadb")?);
        let (directory, port) = (scratch(), Port::reserve());
        let owner = unprivileged(directory.path(), "mysql");
        let data = format!("--datadir={}", directory.path().join("data").display());
        let mut init = as_user(install, owner.as_ref());
        init.args(["--no-defaults", "--skip-test-db", "--auth-root-authentication-method=normal", &data]);
        let made = init.current_dir(directory.path()).output().expect("mariadb-install-db starts");
        assert!(made.status.success(), "mariadb-install-db: {}", String::from_utf8_lossy(&made.stderr));
        let mut command = as_user(server, owner.as_ref());
        command.args(["--no-defaults", "--bind-address=127.0.0.1", "--innodb-flush-log-at-trx-commit=0", &data]);
        command.arg("--skip-grant-tables").arg("--skip-networking=0").arg(format!("--port={}", port.number()));
        command.arg(format!("--socket={}", directory.path().join("socket").display())).current_dir(directory.path());
        let service = Service::start("mariadbd", command, Signal::SIGTERM, directory, port);
        let ready = |service: &Service| service.log().contains("ready for connections");
        Some(Self { service: service.wait_until("accepts", ready), client })
    }

    pub fn address(&self) -> SocketAddr {
        self.service.port.address()
    }

    /// Its client in batch mode, without column names, against `at`, which may be the proxy.
    pub fn client(&self, at: SocketAddr, words: &[&str]) -> Command {
        let mut command = Command::new(&self.client);
        command.args(["--no-defaults", "-B", "-N", "-u", "root", "--protocol=tcp"]).stdin(Stdio::null());
        command.args(["-h", &at.ip().to_string(), "-P", &at.port().to_string()]).args(words);
        command
    }
}

#[derive(Debug)]
pub struct Mosquitto {
    service: Service,
}

impl Mosquitto {
    /// `None` if it is not installed.
    pub fn start() -> Option<Self> {
        let program = peer("mosquitto")?;
        let (directory, port) = (scratch(), Port::reserve());
        let file = directory.path().join("mosquitto.conf");
        // As root it would become a user that may read nothing of ours.
        let user = User::from_uid(Uid::effective()).ok().flatten().map_or_else(|| "root".into(), |user| user.name);
        let lines = ["allow_anonymous true", "log_dest stderr", "log_type all", "set_tcp_nodelay true"];
        let text = format!("listener {} 127.0.0.1\nuser {user}\n{}\n", port.number(), lines.join("\n"));
        fs::write(&file, text).expect("our own directory takes files");
        let mut command = Command::new(program);
        command.arg("-c").arg(&file);
        let service = Service::start("mosquitto", command, Signal::SIGTERM, directory, port);
        Some(Self { service: service.wait_until("accepts", Service::accepts) })
    }

    pub fn address(&self) -> SocketAddr {
        self.service.port.address()
    }

    /// What it says of its clients: connects, subscriptions.
    pub fn log(&self) -> String {
        self.service.log()
    }

    /// `mosquitto_sub` or `mosquitto_pub` against `at`, which may be the proxy. `None` if it is not installed.
    pub fn client(&self, program: &str, at: SocketAddr, words: &[&str]) -> Option<Command> {
        let mut command = Command::new(peer(program)?);
        command.args(["-h", &at.ip().to_string(), "-p", &at.port().to_string()]).args(words).stdin(Stdio::null());
        Some(command)
    }
}

#[derive(Debug)]
pub struct Sshd {
    service: Service,
    user: String,
}

impl Sshd {
    /// Lets our own user in, by a key made for it. `None` if it is not installed.
    pub fn start() -> Option<Self> {
        let (program, keygen) = (peer("sshd")?, peer("ssh-keygen")?);
        let (directory, port) = (scratch(), Port::reserve());
        for name in ["host", "key"] {
            let mut make = Command::new(&keygen);
            make.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(directory.path().join(name));
            assert!(make.status().expect("ssh-keygen starts").success());
        }
        if Uid::effective().is_root() {
            // As its service unit does: an sshd of root wants an empty directory there.
            fs::create_dir_all("/run/sshd").expect("root may make a directory");
        }
        let file = directory.path().join("sshd_config");
        let path = |name: &str| directory.path().join(name).display().to_string();
        let text = format!(
            "ListenAddress {port}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\nStrictModes no\n\
             PermitRootLogin yes\nPasswordAuthentication no\nSubsystem sftp internal-sftp\nUseDNS no\n",
            path("host"),
            path("key.pub"),
        );
        fs::write(&file, text).expect("our own directory takes files");
        let mut command = Command::new(program);
        command.args(["-D", "-e", "-f"]).arg(&file);
        let service = Service::start("sshd", command, Signal::SIGTERM, directory, port);
        let user = User::from_uid(Uid::effective()).ok().flatten().expect("we are somebody").name;
        let ready = |service: &Service| service.log().contains("Server listening");
        Some(Self { service: service.wait_until("accepts", ready), user })
    }

    pub fn address(&self) -> SocketAddr {
        self.service.port.address()
    }

    /// `ssh` or `sftp` against `at`, which may be the proxy. `None` if it is not installed.
    pub fn client(&self, program: &str, at: SocketAddr) -> Option<Command> {
        let mut command = Command::new(peer(program)?);
        let options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "LogLevel=ERROR"];
        command.args(["-F", "/dev/null", "-i"]).arg(self.service.directory.path().join("key"));
        command.args(options.iter().flat_map(|option| ["-o", option]));
        command.arg("-o").arg(format!("Port={}", at.port())).arg(format!("{}@{}", self.user, at.ip()));
        command.stdin(Stdio::null());
        Some(command)
    }
}

/// A database refuses to run as root: then it gets the user its package made, who owns the directory.
fn unprivileged(directory: &Path, name: &str) -> Option<User> {
    if !Uid::effective().is_root() {
        return None;
    }
    let named = |name| User::from_name(name).ok().flatten();
    let user = named(name).or_else(|| named("nobody")).expect("there is a user that is not root");
    chown(directory, Some(user.uid), Some(user.gid)).expect("root may give a directory away");
    Some(user)
}

fn as_user(program: PathBuf, user: Option<&User>) -> Command {
    let mut command = Command::new(program);
    if let Some(user) = user {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

#[derive(Debug)]
pub struct Prometheus {
    service: Service,
}

impl Prometheus {
    /// Scrapes `target` under the job name `proxyd`, `every` so often. `None` if it is not installed.
    pub fn start(target: SocketAddr, every: Duration) -> Option<Self> {
        let program = peer("prometheus")?;
        let (directory, port) = (scratch(), Port::reserve());
        let file = directory.path().join("prometheus.yml");
        let every = format!("{}ms", every.as_millis());
        let jobs = format!("  - job_name: proxyd\n    static_configs:\n      - targets: [\"{target}\"]\n");
        let text = format!("global:\n  scrape_interval: {every}\n  scrape_timeout: {every}\nscrape_configs:\n{jobs}");
        fs::write(&file, text).expect("our own directory takes files");
        let mut command = Command::new(program);
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()));
        command.arg(format!("--web.listen-address={port}"));
        let service = Service::start("prometheus", command, Signal::SIGTERM, directory, port);
        let ready = |service: &Service| {
            http::fetch(service.port.address(), "/-/ready").is_ok_and(|answer| answer.status == 200)
        };
        Some(Self { service: service.wait_until("is ready", ready) })
    }

    /// An instant query; the values of the resulting series, in no order.
    ///
    /// # Panics
    /// If Prometheus refuses the query.
    pub fn query(&self, expression: &str) -> Vec<f64> {
        let path = format!("/api/v1/query?query={}", escaped(expression));
        let answer = http::fetch(self.service.port.address(), &path).expect("prometheus answers");
        assert_eq!(answer.status, 200, "{expression}: {}", answer.body);
        let document: serde_json::Value = serde_json::from_str(&answer.body).expect("prometheus answers with JSON");
        let series = document["data"]["result"].as_array().expect("an instant query yields a list");
        series.iter().map(|one| one["value"][1].as_str().expect("a text").parse().expect("a number")).collect()
    }
}

/// For the query part of a URL.
fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |escaped, byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => escaped + &char::from(byte).to_string(),
        other => escaped + &format!("%{other:02X}"),
    })
}

fn scratch() -> TempDir {
    tempfile::tempdir().expect("the temporary directory takes files")
}
