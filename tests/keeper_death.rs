//! `kill -9` of the keeper: workers serve on, another keeper takes them on, no session notices.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use harness::child::{Process, send, wait_exit};
use harness::slim::copy;
use harness::{
    Census, Conf, Exchange, Load, LongStreams, Pace, Port, Proxy, Seeded, Starter, Steady, Strace, Tagged, Twins, slim,
    twin_of, until, until_some,
};
use nix::sys::signal::Signal;

const DEADLINE: Duration = Duration::from_secs(30);
const PACE: Pace = Pace { frame: 700, every: Duration::from_millis(10) };

/// Sessions stay where they are.
fn conf(port: &Port, backend: SocketAddr) -> Conf {
    moving(port, backend).staying()
}

/// They go to the new generation.
fn moving(port: &Port, backend: SocketAddr) -> Conf {
    Conf::simple(port, &[backend])
        .with("runtime", "on_keeper_death = \"serve\"")
        .with("upgrade", "max_generations = 32")
        .with("drain", "timeout = \"1h\"")
}

fn doors(proxy: &Proxy) -> Vec<String> {
    let names = fs::read_dir(proxy.directory().join("state")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut doors: Vec<String> = names.filter(|name| name.starts_with("worker-")).collect();
    doors.sort();
    doors
}

fn generations(proxy: &Proxy) -> Vec<(u64, String)> {
    let status = proxy.status();
    let all = status["generations"].as_array().unwrap().iter();
    all.map(|one| (one["id"].as_u64().unwrap(), one["state"].as_str().unwrap().to_owned())).collect()
}

#[test]
fn under_load_nobody_notices_and_all_goes_on_where_it_was() {
    let (port, backend) = (Port::reserve(), Seeded::start());
    let mut proxy = Starter::with_binary(&conf(&port, backend.address()), slim()).start();
    let name = backend.address().to_string();
    let load = Load::start(port.address(), 200, Exchange::default());
    let streams = LongStreams::start(port.address(), 30, PACE);
    until("the load is served", DEADLINE, || load.tally().clean >= 100);
    proxy.upgrade();
    assert!(proxy.ctl(&["backend", "weight", "pool", &name, "7"]).status.success());
    assert!(proxy.ctl(&["reload"]).status.success());
    let (before, status) = (proxy.metrics(), proxy.status());
    let serving = proxy.serving_pid();
    for _ in 0..3 {
        proxy.replace_keeper(slim());
        let goal = load.tally().clean + 100;
        until("the load is served", DEADLINE, || load.tally().clean >= goal);
    }
    let (now, again) = (proxy.metrics(), proxy.status());
    let fallen = now.fallen_since(&before).into_iter().filter(|line| {
        // Of the process, which is another one, and its own log.
        !line.starts_with("process_") && !line.starts_with("proxyd_log_lines")
    });
    assert_eq!(fallen.collect::<Vec<_>>(), [""; 0]);
    assert_eq!(proxy.serving_pid(), serving);
    for same in
        ["/pools/0/version", "/pools/0/backends/0/weight", "/config/version", "/config/sha256", "/config/pending"]
    {
        assert_eq!(again.pointer(same), status.pointer(same), "{same}: {again}");
    }
    assert_eq!(generations(&proxy), [(1, "draining".to_owned()), (2, "serving".to_owned())]);
    assert!(again["keeper"]["uptime_seconds"].as_f64() > status["keeper"]["uptime_seconds"].as_f64());
    // It is a whole keeper: it upgrades, counts on, and ends.
    let report = proxy.upgrade();
    assert_eq!((&report["id"], &report["from"], &report["to"]), (&2.into(), &2.into(), &3.into()), "{report}");
    assert_eq!(proxy.metrics().value("proxyd_upgrades_total", &[("result", "committed")]), Some(2.0));
    // The second one is gone as soon as its last short session is.
    let all = doors(&proxy);
    assert!(all.contains(&"worker-1.sock".into()) && all.contains(&"worker-3.sock".into()), "{all:?}");
    load.stop().assert_clean();
    streams.stop().assert_clean();
    until("the old generations end with their sessions", DEADLINE, || generations(&proxy).len() == 1);
    assert_eq!(doors(&proxy), ["worker-3.sock"]);
    until("no session is shown as live", DEADLINE, || proxy.metrics().count("proxyd_sessions_active", &[]) == 0);
    let metrics = proxy.metrics();
    let count = |name: &str| metrics.count(name, &[]);
    assert_eq!(count("proxyd_sessions_total"), count("proxyd_sessions_closed_total"));
    assert_eq!(count("proxyd_worker_restarts_total"), 0);
    proxy.signal(Signal::SIGTERM);
    assert!(proxy.wait_exit(DEADLINE).success());
    assert_eq!(doors(&proxy), [""; 0]);
}

/// At any moment of an upgrade: either the old generation serves on or the new one does, and no session of either is lost.
#[test]
fn killed_at_any_moment_of_an_upgrade_costs_nothing() {
    let (port, backend) = (Port::reserve(), Seeded::start());
    let mut proxy = Starter::with_binary(&moving(&port, backend.address()), slim()).start();
    let load = Load::start(port.address(), 200, Exchange::default());
    let streams = LongStreams::start(port.address(), 10, PACE);
    let mut committed = 0;
    for round in 0..12_u64 {
        let goal = load.tally().clean + 30;
        until("the load is served", DEADLINE, || load.tally().clean >= goal);
        let before = proxy.serving().unwrap();
        let mut upgrade = proxy.ctl_command(&["upgrade"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // An upgrade takes some 60 ms here; the moments are spread over it and a little beyond.
        let moment = Instant::now() + Duration::from_millis(round * 7 + fastrand::u64(0..7));
        until("the moment has come", DEADLINE, || Instant::now() >= moment);
        proxy.signal(Signal::SIGKILL);
        proxy.wait_exit(DEADLINE);
        wait_exit(&mut upgrade, "proxyctl", DEADLINE);
        proxy.begin_again(slim());
        let serving = proxy.serving().unwrap();
        assert!(serving >= before, "{serving} serves after {before}");
        committed += u64::from(serving > before);
        let (all, status) = (generations(&proxy), proxy.status());
        assert_eq!(all.iter().filter(|(_, state)| state == "serving").count(), 1, "{status}");
    }
    println!("{committed} of 12 upgrades were committed");
    load.stop().assert_clean();
    streams.stop().assert_clean();
    let last = proxy.serving().unwrap();
    until("all others end", DEADLINE, || generations(&proxy) == [(last, "serving".to_owned())]);
    proxy.upgrade();
    until("its predecessor ends", DEADLINE, || generations(&proxy).len() == 1);
    assert_eq!(doors(&proxy).len(), 1);
    assert_eq!(Census::of(proxy.keeper_pid()).unwrap().zombies, 0);
}

#[test]
fn a_second_keeper_is_refused_and_touches_nothing() {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let proxy = Starter::with_binary(&conf(&port, backend.address()), slim()).start();
    let (mut session, pid) = (Steady::open(port.address()), proxy.serving_pid());
    let mut second = proxy.another_keeper(slim());
    let status = wait_exit(&mut second, "the second keeper", DEADLINE);
    assert_eq!(status.code(), Some(71));
    assert!(proxy.stderr().contains("in use by another proxyd"), "{}", proxy.stderr());
    session.assert_alive();
    assert_eq!(proxy.serving_pid(), pid);
}

#[test]
fn with_its_workers_dead_too_it_begins_anew_and_removes_what_is_left() {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let mut proxy = Starter::with_binary(&conf(&port, backend.address()), slim()).start();
    proxy.upgrade();
    let worker = Process::of(proxy.serving_pid()).unwrap();
    proxy.signal(Signal::SIGKILL);
    worker.signal(Signal::SIGKILL);
    proxy.wait_exit(DEADLINE);
    until("both are dead", DEADLINE, || !worker.exists());
    assert_eq!(doors(&proxy), ["worker-2.sock"], "a door without anybody");
    proxy.begin_again(slim());
    assert_eq!(generations(&proxy), [(1, "serving".to_owned())]);
    assert_eq!(doors(&proxy), ["worker-1.sock"]);
    Steady::open(port.address()).assert_alive();
}

/// The one that serves died with the keeper; one that drains lives. Its session stays, and a new worker serves.
#[test]
fn with_the_serving_worker_dead_another_one_is_started_from_the_recorded_binary() {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let place = tempfile::tempdir().unwrap();
    let first = place.path().join("first");
    copy(slim(), &first);
    let mut proxy = Starter::with_binary(&conf(&port, backend.address()), &first).start();
    let mut session = Steady::open(port.address());
    proxy.upgrade();
    let worker = Process::of(proxy.serving_pid()).unwrap();
    fs::remove_file(&first).unwrap();
    proxy.signal(Signal::SIGKILL);
    worker.signal(Signal::SIGKILL);
    proxy.wait_exit(DEADLINE);
    proxy.begin_again(slim());
    assert_eq!(generations(&proxy), [(1, "draining".to_owned()), (3, "serving".to_owned())]);
    Steady::open(port.address()).assert_alive();
    session.assert_alive();
    assert!(!proxy.stderr().contains("what lies at its path is taken"), "the draining worker runs the same binary");
}

#[test]
fn a_worker_that_was_taken_on_is_watched_and_replaced() {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let mut proxy = Starter::with_binary(&conf(&port, backend.address()), slim()).start();
    proxy.replace_keeper(slim());
    let killed = proxy.serving_pid();
    send(killed, Signal::SIGKILL).unwrap();
    let serving = || proxy.serving().and_then(|serving| proxy.worker_pid(serving)).filter(|pid| *pid != killed);
    until_some("another one serves", DEADLINE, serving);
    Steady::open(port.address()).assert_alive();
    assert_eq!(proxy.metrics().value("proxyd_worker_restarts_total", &[("cause", "unknown")]), Some(1.0));
}

/// What was in force goes on to be; what the file says now is pending, and said.
#[test]
fn a_file_that_was_changed_meanwhile_is_pending_until_it_is_reloaded() {
    let (port, blue, green) = (Port::reserve(), Tagged::start("blue"), Tagged::start("green"));
    let mut proxy = Starter::with_binary(&conf(&port, blue.address()), slim()).start();
    proxy.write_config(&conf(&port, green.address()));
    proxy.replace_keeper(slim());
    assert_eq!(Steady::open(port.address()).tag, "blue");
    assert_eq!(proxy.status()["config"]["pending"], true);
    assert!(proxy.stderr().contains("differs from what is in force"), "{}", proxy.stderr());
    assert!(proxy.ctl(&["reload"]).status.success());
    assert_eq!(Steady::open(port.address()).tag, "green");
    assert!(proxy.status()["config"]["pending"].is_null());
}

/// A keeper that was taken on by nobody's child still becomes the new version, and watches on.
#[test]
fn a_keeper_that_took_workers_on_still_upgrades_itself() {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let binaries = Twins::new();
    let mut proxy = Starter::with_binary(&conf(&port, backend.address()), &binaries.path("a")).start();
    let mut session = Steady::open(port.address());
    proxy.replace_keeper(&binaries.path("a"));
    let report = proxy.ctl_json(&["upgrade", "--binary", path(&binaries.path("b"))]);
    assert_eq!((&report["result"], &report["keeper"]), (&"committed".into(), &"upgraded".into()), "{report}");
    session.assert_alive();
    assert_eq!(generations(&proxy), [(1, "draining".to_owned()), (2, "serving".to_owned())]);
    drop(session);
    until("the first one is gone", DEADLINE, || generations(&proxy).len() == 1);
    assert_eq!(Census::of(proxy.keeper_pid()).unwrap().zombies, 0);
}

/// It was not started by this keeper, so nobody keeps its status: it is gone without a trace when the new image looks.
#[test]
fn a_worker_that_was_taken_on_may_end_while_the_keeper_replaces_itself() {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let binaries = Twins::new();
    let mut proxy = Starter::with_binary(&conf(&port, backend.address()), &binaries.path("a")).start();
    let mut session = Steady::open(port.address());
    proxy.replace_keeper(&binaries.path("a"));
    let first = Process::of(proxy.serving_pid()).unwrap();
    // There is time to act before the new image begins.
    let Some(strace) = Strace::attach_one(proxy.keeper_pid(), &["execve:delay_enter=6000000"], "execve") else {
        return;
    };
    let mut upgrade =
        proxy.ctl_command(&["upgrade", "--binary", path(&binaries.path("b"))]).stdout(Stdio::null()).spawn().unwrap();
    until("it is about to become the new version", DEADLINE, || proxy.stderr().contains("the keeper becomes"));
    let moment = Instant::now() + Duration::from_millis(500);
    until("it is in the middle of it", DEADLINE, || Instant::now() >= moment);
    first.signal(Signal::SIGKILL);
    assert!(session.end().is_err(), "its session is reset");
    assert_eq!(wait_exit(&mut upgrade, "proxyctl", DEADLINE).code(), Some(0), "{}", proxy.stderr());
    drop(strace);
    assert_eq!(generations(&proxy), [(2, "serving".to_owned())]);
    Steady::open(port.address()).assert_alive();
    let crashed = [("reason", "worker_crashed")];
    assert_eq!(proxy.metrics().value("proxyd_sessions_closed_total", &crashed), Some(1.0));
    assert_eq!(doors(&proxy), ["worker-2.sock"]);
}

/// What was before is known by its sum; whatever lies at its path by now is not it.
#[test]
fn a_rollback_takes_the_binary_that_was_before_or_none() {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let binaries = Twins::new();
    let [first, second] = ["a", "b"].map(|name| binaries.path(name));
    let mut proxy = Starter::with_binary(&conf(&port, backend.address()), &first).start();
    assert!(proxy.ctl(&["upgrade", "--binary", path(&second)]).status.success());
    until("the first one is gone", DEADLINE, || generations(&proxy).len() == 1);
    let kept = binaries.path("kept");
    fs::rename(&first, &kept).unwrap();
    fs::copy(&second, &first).unwrap();
    proxy.replace_keeper(&second);
    let refused = proxy.ctl(&["rollback"]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("nothing to roll back to"), "{said}");
    // With the file in its place again it is possible.
    proxy.ctl(&["upgrade", "--binary", path(&kept)]);
    proxy.ctl(&["upgrade", "--binary", path(&second)]);
    until("the one before is gone", DEADLINE, || generations(&proxy).len() == 1);
    proxy.replace_keeper(&second);
    let rolled_back = proxy.ctl(&["rollback"]);
    assert!(rolled_back.status.success(), "{rolled_back:?}");
    assert_eq!(twin_of(proxy.serving_pid()), 'a', "the binary that was before");
}

#[test]
fn an_upgrade_that_was_on_probation_has_a_report_of_its_end() {
    let (port, backend, green) = (Port::reserve(), Tagged::start("blue"), Tagged::start("green"));
    let mut proxy = Starter::with_binary(&conf(&port, backend.address()), slim()).start();
    assert!(proxy.ctl(&["upgrade", "--probation", "60s", "--no-wait"]).status.success());
    until("it is on probation", DEADLINE, || proxy.status()["upgrade"]["step"] == "probation");
    // Made to both, so it holds whichever of them serves.
    assert!(proxy.ctl(&["pool", "set", "pool", &green.address().to_string()]).status.success());
    let version = proxy.status()["pools"][0]["version"].clone();
    proxy.replace_keeper(slim());
    assert_eq!(proxy.serving(), Some(1));
    assert_eq!(proxy.status()["pools"][0]["version"], version);
    assert_eq!(Steady::open(port.address()).tag, "green");
    let last = proxy.ctl(&["--json", "upgrade", "--last"]);
    assert_eq!(last.status.code(), Some(6), "{last:?}");
    let report: serde_json::Value = serde_json::from_slice(&last.stdout).unwrap();
    for (key, value) in [("result", "rolled_back"), ("step", "probation"), ("reason", "its keeper died")] {
        assert_eq!(report[key], value, "{report}");
    }
    assert_eq!((&report["id"], &report["from"], &report["to"]), (&1.into(), &1.into(), &2.into()), "{report}");
}

#[test]
fn without_a_keeper_term_drains_as_the_configuration_in_force_says() {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let before = conf(&port, backend.address());
    let mut proxy = Starter::with_binary(&before, slim()).start();
    let mut session = Steady::open(port.address());
    let after = Conf::simple(&port, &[backend.address()]).with("runtime", "on_keeper_death = \"serve\"");
    proxy.write_config(
        &after.with("upgrade", "max_generations = 32").with("drain", "timeout = \"1s\"\nspread = \"0s\""),
    );
    assert!(proxy.ctl(&["reload"]).status.success());
    let worker = Process::of(proxy.serving_pid()).unwrap();
    proxy.signal(Signal::SIGKILL);
    proxy.wait_exit(DEADLINE);
    until("the worker says so", DEADLINE, || proxy.stderr().contains("serving on without a keeper"));
    worker.signal(Signal::SIGTERM);
    until("it has drained", DEADLINE, || !worker.exists());
    assert!(session.end().is_err(), "it was closed by force");
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
