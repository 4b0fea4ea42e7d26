//! One upgrade at a time, and it goes on: who comes second is told so; what must not happen meanwhile is refused; a
//! caller that dies cancels nothing; an old worker that dies is restarted first. The upgrade is held by a new binary that
//! waits at a gate before it becomes a worker.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use harness::child::{Guarded, children, send};
use harness::slim::copy;
use harness::{Conf, Port, Proxy, Starter, Steady, Tagged, impostor, slim, until, until_some};
use nix::sys::signal::Signal;

const DEADLINE: Duration = Duration::from_secs(20);

struct Gated {
    /// Ends before the proxy, which would wait for it.
    session: Steady,
    proxy: Proxy,
    port: Port,
    backend: Tagged,
    /// A file; the held upgrade goes on when it is there.
    gate: PathBuf,
    binary: String,
}

impl Gated {
    fn start() -> Option<Self> {
        let (port, backend) = (Port::reserve(), Tagged::start("blue"));
        let proxy = Starter::with_binary(&Conf::simple(&port, &[backend.address()]), slim()).start();
        let gate = proxy.directory().join("gate");
        let how = format!("worker:gate:{}", gate.display());
        let binary = impostor(proxy.directory(), "gated", &how)?.to_str().unwrap().to_owned();
        Some(Self { session: Steady::open(port.address()), proxy, port, backend, gate, binary })
    }

    fn begin(&self) -> Guarded {
        let mut command = self.proxy.ctl_command(&["--json", "upgrade", "--binary", &self.binary]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Guarded::new(child, Signal::SIGKILL)
    }

    /// Until the upgrade waits at the gate: the pid of its new process.
    fn held(&self) -> u32 {
        let old = self.proxy.serving_pid();
        until_some("the upgrade is held", DEADLINE, || {
            let step = self.proxy.status()["upgrade"]["step"] == "spawn";
            children(self.proxy.keeper_pid()).into_iter().find(|pid| step && *pid != old)
        })
    }

    fn open_gate(&self) {
        fs::write(&self.gate, "").unwrap();
    }

    fn until_serving(&self, generation: u64) {
        until(&format!("generation {generation} serves"), DEADLINE, || self.proxy.serving() == Some(generation));
    }
}

fn output(child: &mut Child, what: &str) -> Output {
    let status = harness::child::wait_exit(child, what, DEADLINE);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    child.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
    child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
    Output { status, stdout, stderr }
}

#[test]
fn f24_of_many_simultaneous_upgrades_exactly_one_runs() {
    let Some(mut gated) = Gated::start() else { return };
    for (others, next) in [(1, 2), (19, 3), (49, 4)] {
        let mut callers: Vec<Guarded> = (0..=others).map(|_| gated.begin()).collect();
        // All but one have ended when the gate is still closed.
        until("all but one are told", DEADLINE, || callers.iter_mut().filter_map(Guarded::has_ended).count() == others);
        gated.held();
        gated.open_gate();
        let outputs: Vec<Output> = callers.iter_mut().map(|caller| output(caller.inner(), "proxyctl")).collect();
        let done = outputs.iter().filter(|output| output.status.success()).count();
        assert_eq!(done, 1, "{outputs:?}");
        for refused in outputs.iter().filter(|output| !output.status.success()) {
            let said = String::from_utf8_lossy(&refused.stderr);
            assert_eq!(refused.status.code(), Some(4), "{said}");
            assert!(said.contains("already in progress") && said.contains("at step "), "{said}");
            assert!(["preflight", "spawn"].iter().any(|step| said.contains(step)), "{said}");
        }
        assert_eq!(gated.proxy.serving(), Some(next));
        gated.session.assert_alive();
        fs::remove_file(&gated.gate).unwrap();
    }
    assert_eq!(gated.proxy.metrics().value("proxyd_upgrades_total", &[("result", "committed")]), Some(3.0));
}

#[test]
fn f25_reload_and_pool_verbs_are_refused_during_an_upgrade() {
    let Some(mut gated) = Gated::start() else { return };
    let mut caller = gated.begin();
    gated.held();
    let before = gated.proxy.status();
    let backend = gated.backend.address().to_string();
    for words in [
        &["reload"][..],
        &["pool", "swap", "main", "pool"],
        &["pool", "add", "pool", "127.0.0.1:9"],
        &["pool", "remove", "pool", &backend],
        &["pool", "set", "pool", "127.0.0.1:9"],
        &["backend", "drain", "pool", &backend],
        &["backend", "weight", "pool", &backend, "5"],
        &["upgrade"],
    ] {
        let refused = gated.proxy.ctl(words);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(4), "{words:?}: {said}");
        assert!(
            said.contains("upgrade 1 ") && said.contains("begun by proxyctl") && said.contains("at step spawn"),
            "{words:?}: {said}"
        );
    }
    // The signal as well, which has nobody to tell.
    gated.proxy.signal(Signal::SIGHUP);
    until("the refused reload is logged", DEADLINE, || gated.proxy.stderr().contains("reload refused"));
    let after = gated.proxy.status();
    assert_eq!((&after["pools"], &after["config"]), (&before["pools"], &before["config"]));
    gated.open_gate();
    assert!(output(caller.inner(), "the upgrade").status.success());
    assert!(gated.proxy.ctl(&["reload"]).status.success());
    assert!(gated.proxy.ctl(&["backend", "weight", "pool", &backend, "5"]).status.success());
    gated.session.assert_alive();
}

#[test]
fn f52_a_caller_that_is_killed_does_not_cancel() {
    let Some(mut gated) = Gated::start() else { return };
    let mut caller = gated.begin();
    let new = gated.held();
    until("the new process is shown", DEADLINE, || {
        let shown = &gated.proxy.status()["generations"][1];
        (&shown["id"], &shown["state"], &shown["pid"]) == (&2.into(), &"starting".into(), &new.into())
    });
    caller.inner().kill().unwrap();
    caller.inner().wait().unwrap();
    let status = gated.proxy.status();
    assert_eq!(status["upgrade"]["id"], 1, "{status}");
    gated.open_gate();
    gated.until_serving(2);
    gated.session.assert_alive();
    until("it is no longer shown", DEADLINE, || gated.proxy.status()["upgrade"].is_null());
    // A caller that stops reading is no obstacle either.
    fs::remove_file(&gated.gate).unwrap();
    let caller = gated.begin();
    gated.held();
    send(caller.pid(), Signal::SIGSTOP).unwrap();
    gated.open_gate();
    gated.until_serving(3);
    send(caller.pid(), Signal::SIGCONT).unwrap();
}

#[test]
fn an_old_worker_killed_before_ready_is_restarted_and_the_upgrade_says_so() {
    let Some(mut gated) = Gated::start() else { return };
    let old = gated.proxy.serving_pid();
    let mut caller = gated.begin();
    let new = gated.held();
    send(old, Signal::SIGKILL).unwrap();
    let output = output(caller.inner(), "the upgrade");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in ["upgrade failed at spawn", &format!("generation 1 (pid {old})"), "SIGKILL", "meanwhile"] {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    // From its own pinned binary, which has no gate.
    until("a worker serves again", DEADLINE, || gated.proxy.serving().is_some());
    let restarted = gated.proxy.serving_pid();
    until("the held process is gone", DEADLINE, || children(gated.proxy.keeper_pid()) == [restarted]);
    assert_ne!(restarted, new);
    Steady::open(gated.port.address()).assert_alive();
    assert!(gated.session.end().is_err(), "the session of a killed worker ended as if it were complete");
    gated.open_gate();
    gated.proxy.upgrade();
}

#[test]
fn a_new_worker_that_is_stopped_is_late_and_one_that_is_killed_is_named() {
    let port = Port::reserve();
    let backend = Tagged::start("blue");
    let conf = Conf::simple(&port, &[backend.address()]).with("upgrade", "ready_timeout = \"3s\"");
    let proxy = Starter::with_binary(&conf, slim()).start();
    let gate = proxy.directory().join("gate");
    let Some(binary) = impostor(proxy.directory(), "gated", &format!("worker:gate:{}", gate.display())) else { return };
    let mut gated = Gated {
        session: Steady::open(port.address()),
        proxy,
        port,
        backend,
        gate,
        binary: binary.to_str().unwrap().into(),
    };
    for (signal, word) in [(Signal::SIGSTOP, "was not READY within ready_timeout"), (Signal::SIGKILL, "SIGKILL")] {
        let mut caller = gated.begin();
        let new = gated.held();
        send(new, signal).unwrap();
        let output = output(caller.inner(), "the upgrade");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("upgrade failed at spawn") && said.contains(&format!("(pid {new})")), "{said}");
        assert!(said.contains(word), "{said}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&report["result"], &report["from"]), (&"failed".into(), &1.into()), "{report}");
        assert_eq!(gated.proxy.serving(), Some(1));
        gated.session.assert_alive();
        until("it is gone", DEADLINE, || children(gated.proxy.keeper_pid()).len() == 1);
    }
    gated.open_gate();
    gated.proxy.upgrade();
    gated.session.assert_alive();
}

#[test]
fn a_relative_path_is_made_absolute_by_proxyctl_and_refused_by_the_daemon() {
    let port = Port::reserve();
    let backend = Tagged::start("blue");
    let proxy = Starter::with_binary(&Conf::simple(&port, &[backend.address()]), slim()).start();
    copy(slim(), &proxy.directory().join("next"));
    for key in ["binary", "config"] {
        let answer = post(&proxy, &format!("{{\"verb\":\"upgrade\",\"{key}\":\"./next\"}}"));
        assert!(answer.contains("must be absolute") && answer.contains("./next"), "{answer}");
        assert!(answer.contains("\"kind\":\"usage\""), "{answer}");
    }
    assert_eq!(proxy.serving(), Some(1));
    let mut relative = proxy.ctl_command(&["--json", "upgrade", "--binary", "next", "--config", "./proxyd.toml"]);
    let done = relative.current_dir(proxy.directory()).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    assert_eq!(proxy.serving(), Some(2));
    let text = proxy.stderr();
    assert!(text.contains(&format!("binary={}", proxy.directory().join("next").display())), "{text}");
}

/// A command without proxyctl; everything that is answered.
fn post(proxy: &Proxy, body: &str) -> String {
    let mut stream = UnixStream::connect(proxy.socket()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let head = "POST /v1/command HTTP/1.1\r\nHost: proxyd\r\nContent-Type: application/json\r\nConnection: close\r\n";
    stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
