//! The real `proxyd` under test, and `proxyctl` asking it.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::child::{self, Process};
use super::conf::Conf;
use super::http::{self, Answer};
use super::metrics::Metrics;
use super::port::Port;
use super::wait::{until, until_some};

/// From start to ready, on a loaded machine.
const START: Duration = Duration::from_secs(20);
/// Of one `proxyctl`, an upgrade with `ready_timeout = "30s"` included.
const COMMAND: Duration = Duration::from_secs(60);

pub const PROXYD: &str = env!("CARGO_BIN_EXE_proxyd");
pub const PROXYCTL: &str = env!("CARGO_BIN_EXE_proxyctl");

/// A proxyd that has not started yet.
#[derive(Debug)]
pub struct Starter {
    pub command: Command,
    directory: TempDir,
    admin: Port,
}

/// A proxyd that ended instead of becoming ready.
#[derive(Debug)]
pub struct Exited {
    pub status: ExitStatus,
    pub stderr: String,
}

impl Starter {
    pub fn new(conf: &Conf) -> Self {
        Self::with_binary(conf, Path::new(PROXYD))
    }

    pub fn with_binary(conf: &Conf, binary: &Path) -> Self {
        let directory = tempfile::Builder::new().prefix("proxyd-").tempdir().expect("a temporary directory");
        let starter = Self { command: Command::new(binary), directory, admin: Port::reserve() };
        fs::create_dir(starter.state_dir()).expect("our own directory takes another");
        restrict(&starter.state_dir());
        fs::write(starter.config(), conf.render(&starter.state_dir(), starter.admin.address())).expect("a file");
        starter.prepare()
    }

    fn prepare(mut self) -> Self {
        // Appending: another keeper writes to the same file.
        let errors = File::options().create(true).append(true).open(self.directory.path().join("stderr"));
        let errors = errors.expect("our own directory takes files");
        let config = self.config();
        self.command.arg("--config").arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        self
    }

    /// Started by a program that becomes it, such as setpriv(1): the process stays the same.
    #[must_use]
    pub fn under(mut self, program: &Path, words: &[&str]) -> Self {
        let binary = self.command.get_program().to_owned();
        self.command = Command::new(program);
        self.command.args(words).arg(binary);
        self.prepare()
    }

    fn config(&self) -> PathBuf {
        self.directory.path().join("proxyd.toml")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// Waits until it is ready.
    ///
    /// # Panics
    /// If it ends instead.
    pub fn start(self) -> Proxy {
        self.try_start().unwrap_or_else(|exited| panic!("proxyd did not start: {exited:?}"))
    }

    /// Waits until it is ready or has ended.
    pub fn try_start(mut self) -> Result<Proxy, Exited> {
        let keeper = self.command.spawn().expect("proxyd can be executed");
        let id = Process::of(keeper.id()).expect("a child stays at least a zombie");
        let mut proxy = Proxy { keeper, id, directory: self.directory, admin: self.admin };
        let ended = until_some("proxyd is ready or has ended", START, || match proxy.exit_status() {
            Some(status) => Some(Some(status)),
            None => proxy.is_ready().then_some(None),
        });
        match ended {
            Some(status) => Err(Exited { status, stderr: proxy.stderr() }),
            None => Ok(proxy),
        }
    }
}

/// A state directory is refused if others may enter it.
fn restrict(directory: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).expect("our own directory");
}

/// A running proxyd: keeper and workers end with the test.
#[derive(Debug)]
pub struct Proxy {
    keeper: Child,
    id: Process,
    directory: TempDir,
    admin: Port,
}

/// Asking.
impl Proxy {
    pub fn start(conf: &Conf) -> Self {
        Starter::new(conf).start()
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn config(&self) -> PathBuf {
        self.directory.path().join("proxyd.toml")
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("state/admin.sock")
    }

    pub fn admin(&self) -> SocketAddr {
        self.admin.address()
    }

    /// Everything it has logged so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.directory.path().join("stderr")).unwrap_or_default()
    }

    /// `GET` on the read-only address.
    pub fn http(&self, path: &str) -> std::io::Result<Answer> {
        http::fetch(self.admin(), path)
    }

    pub fn is_ready(&self) -> bool {
        self.http("/readyz").is_ok_and(|answer| answer.status == 200)
    }

    pub fn metrics(&self) -> Metrics {
        let answer = self.http("/metrics").expect("the keeper answers a scrape");
        assert_eq!(answer.status, 200, "{}", answer.body);
        Metrics::parse(&answer.body)
    }

    /// `proxyctl` with these words; not yet started.
    pub fn ctl_command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(PROXYCTL);
        command.arg("--socket").arg(self.socket()).args(words).stdin(Stdio::null());
        command
    }

    /// # Panics
    /// If it has not ended after a minute.
    pub fn ctl(&self, words: &[&str]) -> Output {
        let out = tempfile::tempfile().expect("a temporary file");
        let errors = tempfile::tempfile().expect("a temporary file");
        let (to, errors_to) = (out.try_clone().expect("a duplicate"), errors.try_clone().expect("a duplicate"));
        let mut ctl = self.ctl_command(words).stdout(to).stderr(errors_to).spawn().expect("proxyctl can be executed");
        let status = child::wait_exit(&mut ctl, &format!("proxyctl {words:?}"), COMMAND);
        Output { status, stdout: contents(out), stderr: contents(errors) }
    }

    /// What `proxyctl --json` says last: its whole answer, or the result after the steps.
    ///
    /// # Panics
    /// If it fails.
    pub fn ctl_json(&self, words: &[&str]) -> Value {
        let output = self.ctl(&[&["--json"], words].concat());
        assert!(output.status.success(), "proxyctl {words:?}: {output:?}\nproxyd said: {}", self.stderr());
        last_document(&output)
    }

    pub fn status(&self) -> Value {
        self.ctl_json(&["status"])
    }

    /// Every live session.
    pub fn sessions(&self) -> Vec<Value> {
        self.ctl_lines(&["sessions"])
    }

    /// What has happened so far, as far as it is kept.
    pub fn events(&self) -> Vec<Value> {
        self.ctl_lines(&["events"])
    }

    /// What `proxyctl --json` says, a document a line.
    fn ctl_lines(&self, words: &[&str]) -> Vec<Value> {
        let output = self.ctl(&[&["--json"], words].concat());
        assert!(output.status.success(), "proxyctl {words:?}: {output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }

    /// Upgrades to the same binary; the report.
    ///
    /// # Panics
    /// If it is not committed.
    pub fn upgrade(&self) -> Value {
        let report = self.ctl_json(&["upgrade"]);
        assert_eq!(report["result"], "committed", "{report}");
        self.status();
        report
    }

    pub fn keeper_pid(&self) -> u32 {
        self.id.pid()
    }

    /// The generation that takes new sessions, if there is one now.
    pub fn serving(&self) -> Option<u64> {
        let status = self.status();
        generations(&status).find(|one| one["state"] == "serving").and_then(|one| one["id"].as_u64())
    }

    /// `None` if that generation has no live process.
    pub fn worker_pid(&self, generation: u64) -> Option<u32> {
        let status = self.status();
        let found = generations(&status).find(|one| one["id"] == generation)?;
        found["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0)
    }

    /// The pid of the worker that serves.
    ///
    /// # Panics
    /// If none does.
    pub fn serving_pid(&self) -> u32 {
        let serving = self.serving().expect("a generation serves");
        self.worker_pid(serving).expect("the serving generation has a process")
    }
}

/// Changing.
impl Proxy {
    /// Writes the configuration file anew; says nothing to proxyd.
    pub fn write_config(&self, conf: &Conf) {
        let text = conf.render(&self.directory.path().join("state"), self.admin());
        fs::write(self.config(), text).expect("our own directory takes files");
    }

    /// Another keeper for the same state directory, not yet waited for; what it logs is added to the same file.
    pub fn another_keeper(&self, binary: &Path) -> Child {
        let stderr = self.directory.path().join("stderr");
        let errors = File::options().append(true).open(stderr).expect("our own directory has the file");
        let mut command = Command::new(binary);
        command.arg("--config").arg(self.config()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        command.spawn().expect("proxyd can be executed")
    }

    /// The command of another installation that takes over from this one; what it logs is added to the same file.
    pub fn heir_command(&self, program: &[&str], config: &Path) -> Command {
        let stderr = self.directory.path().join("stderr");
        let errors = File::options().append(true).open(stderr).expect("our own directory has the file");
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg("--config").arg(config);
        command.arg("--take-over-from").arg(self.directory.path().join("state/handoff.sock"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        command
    }

    /// Another process is the keeper now; gives the one that was.
    pub fn follow(&mut self, heir: Child) -> Child {
        self.id = Process::of(heir.id()).expect("a child stays at least a zombie");
        std::mem::replace(&mut self.keeper, heir)
    }

    /// Kills the keeper and starts another one; returns when that is ready.
    ///
    /// # Panics
    /// If that one ends.
    pub fn replace_keeper(&mut self, binary: &Path) {
        self.signal(Signal::SIGKILL);
        self.wait_exit(START);
        self.begin_again(binary);
    }

    /// Starts another keeper in the place of one that is dead; returns when that is ready.
    ///
    /// # Panics
    /// If it ends.
    pub fn begin_again(&mut self, binary: &Path) {
        self.keeper = self.another_keeper(binary);
        self.id = Process::of(self.keeper.id()).expect("a child stays at least a zombie");
        until("the next keeper is ready", START, || {
            assert_eq!(self.exit_status(), None, "the next keeper ended: {}", self.stderr());
            self.is_ready()
        });
    }

    pub fn signal(&self, signal: Signal) {
        self.id.signal(signal);
    }

    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.keeper.try_wait().expect("our own child can be waited for")
    }

    /// # Panics
    /// If the keeper has not ended after `deadline`.
    pub fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        child::wait_exit(&mut self.keeper, "the keeper", deadline)
    }

    /// # Panics
    /// If it does not happen in time.
    pub fn wait_generation_gone(&self, generation: u64, deadline: Duration) {
        until(&format!("generation {generation} is gone"), deadline, || {
            let status = self.status();
            generations(&status).all(|one| one["id"] != generation || one["state"] == "gone")
        });
    }
}

fn generations(status: &Value) -> impl Iterator<Item = &Value> {
    status["generations"].as_array().into_iter().flatten()
}

fn last_document(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    // A document may be spread over lines; a stream has one object a line.
    serde_json::from_str(&text)
        .or_else(|_| serde_json::from_str(text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default()))
        .unwrap_or_else(|error| panic!("proxyctl --json said no JSON ({error}): {text}"))
}

fn contents(mut file: File) -> Vec<u8> {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind().expect("a file can be rewound");
    file.read_to_end(&mut bytes).expect("a file can be read");
    bytes
}

impl Drop for Proxy {
    fn drop(&mut self) {
        child::end(&mut self.keeper, Signal::SIGTERM);
        // Workers outlive a keeper that was killed, and nobody may know of them any more: but all of them log where it did.
        child::with_stderr(&self.directory.path().join("stderr"))
            .into_iter()
            .for_each(|one| one.signal(Signal::SIGKILL));
        if std::thread::panicking() {
            eprintln!("--- what proxyd logged ---\n{}---", self.stderr());
        }
    }
}
