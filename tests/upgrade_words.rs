//! The words around an upgrade: dry run, no wait, other files, the signal, the report, and the bound on generations.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use harness::child::Process;
use harness::slim::copy;
use harness::{Conf, Port, Proxy, Starter, Steady, Tagged, slim, until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(20);

struct Bench {
    /// Ends before the proxy, which would wait for it.
    session: Steady,
    proxy: Proxy,
    port: Port,
    backend: Tagged,
}

impl Bench {
    fn start() -> Self {
        Self::with(|conf| conf)
    }

    fn with(change: impl FnOnce(Conf) -> Conf) -> Self {
        let (port, backend) = (Port::reserve(), Tagged::start("blue"));
        let conf = change(Conf::simple(&port, &[backend.address()]));
        let proxy = Starter::with_binary(&conf, slim()).start();
        Self { session: Steady::open(port.address()), proxy, port, backend }
    }

    fn until_serving(&self, generation: u64) {
        until(&format!("generation {generation} serves"), DEADLINE, || self.proxy.serving() == Some(generation));
    }

    /// Another configuration file, which keeps what the first says of the process.
    fn write(&self, name: &str, conf: &Conf) -> String {
        let path = self.proxy.directory().join(name);
        fs::write(&path, conf.render(&self.proxy.directory().join("state"), self.proxy.admin())).unwrap();
        path.to_str().unwrap().into()
    }
}

/// What a process executes, followed through a path that may be gone.
fn image(pid: u32) -> u64 {
    fs::metadata(format!("/proc/{pid}/exe")).unwrap().len()
}

/// A copy that is told apart by its length: what follows the sections of an ELF file means nothing.
fn marked(to: &Path, extra: usize) -> u64 {
    copy(slim(), to);
    let mut bytes = fs::read(to).unwrap();
    bytes.resize(bytes.len() + extra, 0);
    fs::write(to, &bytes).unwrap();
    bytes.len().try_into().unwrap()
}

#[test]
fn a_dry_run_says_what_would_be_kept_added_and_removed_and_changes_nothing() {
    let bench = Bench::start();
    let (gone, fresh) = (Port::reserve(), Port::reserve());
    let two = |second: &Port| {
        Conf::simple(&bench.port, &[bench.backend.address()]).listener("second", &second.to_string(), "pool")
    };
    bench.proxy.write_config(&two(&gone));
    assert!(bench.proxy.ctl(&["reload"]).status.success());
    bench.proxy.write_config(&two(&fresh));
    let before = bench.proxy.status();

    let plan = bench.proxy.ctl_json(&["upgrade", "--dry-run"]);
    let names = |key: &str| serde_json::to_string(&plan[key]).unwrap();
    assert_eq!(plan["kept"].as_array().unwrap().len(), 1, "{plan}");
    for (key, port) in [("kept", &bench.port), ("added", &fresh), ("removed", &gone)] {
        assert_eq!(plan[key].as_array().unwrap().len(), 1, "{plan}");
        assert!(names(key).contains(&port.to_string()), "{plan}");
    }
    assert_eq!(plan["binary"], slim().to_str().unwrap());
    assert_eq!(plan["version"], env!("CARGO_PKG_VERSION"));
    let text = bench.proxy.ctl(&["upgrade", "--dry-run"]);
    let text = String::from_utf8(text.stdout).unwrap();
    for port in [&bench.port, &fresh, &gone] {
        assert!(text.contains(&port.to_string()), "{text}");
    }

    let after = bench.proxy.status();
    for part in ["listeners", "pools", "config"] {
        assert_eq!(after[part], before[part]);
    }
    assert_eq!(
        (&after["generations"][0]["pid"], &after["generations"][1]),
        (&before["generations"][0]["pid"], &Value::Null)
    );
    assert!(TcpStream::connect(fresh.address()).is_err());
    Steady::open(gone.address()).assert_alive();
    assert_eq!(bench.proxy.metrics().count("proxyd_upgrades_total", &[]), 0);

    bench.proxy.upgrade();
    Steady::open(fresh.address()).assert_alive();
    until("the removed one refuses", DEADLINE, || TcpStream::connect(gone.address()).is_err());
    // Nobody holds a copy of its socket any more.
    std::net::TcpListener::bind(gone.address()).unwrap();
}

#[test]
fn a_dry_run_of_what_would_fail_fails() {
    let bench = Bench::start();
    let missing = bench.proxy.directory().join("missing");
    let output = bench.proxy.ctl(&["upgrade", "--dry-run", "--binary", missing.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    fs::write(bench.proxy.config(), "[runtime]\nthreads = 0\n").unwrap();
    let output = bench.proxy.ctl(&["upgrade", "--dry-run"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(bench.proxy.serving(), Some(1));
}

#[test]
fn the_report_has_the_shape_of_the_contract() {
    let mut bench = Bench::start();
    let report = bench.proxy.ctl_json(&["upgrade"]);
    for (key, value) in [
        ("result", json!("committed")),
        ("from", json!(1)),
        ("to", json!(2)),
        ("reason", json!("")),
        ("accept_gap_ms", json!(0.0)),
        ("sessions", json!({"moved": 1, "left": 0, "forced": 0, "recovered": 0, "unprotected": 0})),
    ] {
        assert_eq!(report[key], value, "{key} in {report}");
    }
    assert!(report["step"].is_string() && report["longest_pause_ms"].is_number(), "{report}");
    // For people: the steps in their order, then one line.
    let output = bench.proxy.ctl(&["upgrade"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let steps: Vec<&str> = text.lines().filter_map(|line| line.split_ascii_whitespace().next()).collect();
    assert_eq!(steps, ["preflight", "spawn", "offer", "ready", "commit", "move", "finish", "upgrade"], "{text}");
    assert!(text.contains("upgrade 2 committed: generation 2 -> 3"), "{text}");
    let metrics = bench.proxy.metrics();
    assert_eq!(metrics.value("proxyd_upgrades_total", &[("result", "committed")]), Some(2.0));
    for step in &steps[..7] {
        let seen = metrics.value("proxyd_upgrade_step_seconds_count", &[("step", step)]);
        assert_eq!(seen, Some(2.0), "step {step}");
    }
    assert_eq!(metrics.value("proxyd_upgrade_accept_gap_seconds_count", &[]), Some(2.0));
    bench.session.assert_alive();
}

#[test]
fn no_wait_returns_with_the_id_and_the_upgrade_goes_on() {
    let mut bench = Bench::start();
    let begun = bench.proxy.ctl_json(&["upgrade", "--no-wait"]);
    assert_eq!(begun, json!({"id": 1}));
    bench.until_serving(2);
    until("its lock is given back", DEADLINE, || bench.proxy.status()["upgrade"].is_null());
    assert_eq!(bench.proxy.ctl_json(&["upgrade", "--no-wait"]), json!({"id": 2}));
    bench.until_serving(3);
    bench.session.assert_alive();
}

#[test]
fn another_configuration_file_is_taken_and_kept() {
    let mut bench = Bench::start();
    let (other, green) = (Port::reserve(), Tagged::start("green"));
    let conf = Conf::simple(&bench.port, &[green.address()]).listener("other", &other.to_string(), "pool");
    let path = bench.write("other.toml", &conf);
    let report = bench.proxy.ctl_json(&["upgrade", "--config", &path]);
    assert_eq!(report["result"], "committed", "{report}");
    bench.session.assert_alive();
    assert_eq!(bench.session.tag, "blue");
    for port in [&bench.port, &other] {
        assert_eq!(Steady::open(port.address()).tag, "green");
    }
    // From now on it is the configuration: for a reload and for an upgrade without words.
    bench.write("other.toml", &Conf::simple(&bench.port, &[green.address()]));
    assert!(bench.proxy.ctl(&["reload"]).status.success());
    until("the listener is gone", DEADLINE, || TcpStream::connect(other.address()).is_err());
    bench.write("other.toml", &conf);
    bench.proxy.upgrade();
    assert_eq!(Steady::open(other.address()).tag, "green");
}

#[test]
fn the_signal_upgrades_to_the_path_of_the_last_committed_upgrade() {
    let mut bench = Bench::start();
    let place = bench.proxy.directory().to_owned();
    bench.proxy.signal(Signal::SIGUSR2);
    bench.until_serving(2);
    let at_first = image(bench.proxy.serving_pid());
    assert_eq!(at_first, fs::metadata(slim()).unwrap().len());

    let next = marked(&place.join("next"), 4_096);
    let report = bench.proxy.ctl_json(&["upgrade", "--binary", place.join("next").to_str().unwrap()]);
    assert_eq!(report["result"], "committed", "{report}");
    assert_eq!(image(bench.proxy.serving_pid()), next);
    // One that fails does not become the default.
    assert!(!bench.proxy.ctl(&["upgrade", "--binary", "/dev/null"]).status.success());
    // The path counts, not the content of then.
    let newer = marked(&place.join("newer"), 8_192);
    fs::rename(place.join("newer"), place.join("next")).unwrap();
    bench.proxy.signal(Signal::SIGUSR2);
    bench.until_serving(4);
    assert_eq!(image(bench.proxy.serving_pid()), newer);
    // Gone, it is an error that names it, and the service goes on.
    fs::remove_file(place.join("next")).unwrap();
    bench.proxy.signal(Signal::SIGUSR2);
    until("the failure is logged", DEADLINE, || {
        bench.proxy.stderr().lines().any(|line| line.contains("upgrade failed") && line.contains("/next: No such file"))
    });
    assert_eq!(bench.proxy.serving(), Some(4));
    bench.session.assert_alive();
}

#[test]
fn the_oldest_generation_is_closed_by_force_when_there_are_too_many() {
    let Bench { session: mut first, proxy, port, backend: _backend } =
        Bench::with(|conf| conf.with("upgrade", "max_generations = 3").with("drain", "timeout = \"1h\"").staying());
    let oldest = Process::of(proxy.serving_pid()).unwrap();
    proxy.upgrade();
    let mut second = Steady::open(port.address());
    proxy.upgrade();
    let mut third = Steady::open(port.address());
    assert_eq!(proxy.status()["generations"].as_array().unwrap().len(), 3);
    assert!(oldest.exists());

    let report = proxy.upgrade();
    assert!(!oldest.exists(), "its end is waited for");
    let error = first.end().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    second.assert_alive();
    third.assert_alive();
    let mut fourth = Steady::open(port.address());
    fourth.assert_alive();
    assert_eq!(
        report["sessions"],
        json!({"moved": 0, "left": 1, "forced": 1, "recovered": 0, "unprotected": 0}),
        "{report}"
    );
    let metrics = proxy.metrics();
    assert_eq!(metrics.value("proxyd_sessions_forced_closed_total", &[("cause", "generations")]), Some(1.0));
    let forced = [("listener", "main"), ("reason", "drain_forced")];
    assert_eq!(metrics.value("proxyd_sessions_closed_total", &forced), Some(1.0));
    assert_eq!(metrics.count("proxyd_sessions_active", &[]), 3);
    let ids: Vec<Value> =
        proxy.status()["generations"].as_array().unwrap().iter().map(|one| one["id"].clone()).collect();
    assert_eq!(ids, [2, 3, 4]);
}
