//! `kill -9` of the process that carries the bytes, and of the one that watches it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use harness::child::{Process, send};
use harness::slim::copy;
use harness::{
    Conf, Exchange, Load, LongStreams, Pace, Port, Proxy, Seeded, Starter, Steady, Tagged, slim, until, until_some,
};
use nix::sys::signal::Signal;

const DEADLINE: Duration = Duration::from_secs(20);

/// Tests with load or with a promise about time have the machine to themselves, as far as this file goes.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills the serving worker; the keeper has noticed when this returns.
fn kill_worker(proxy: &Proxy) -> u32 {
    let pid = proxy.serving_pid();
    send(pid, Signal::SIGKILL).unwrap();
    until("the keeper has noticed", DEADLINE, || {
        proxy.status()["generations"].as_array().unwrap().iter().all(|one| one["pid"] != pid)
    });
    pid
}

fn until_serving(proxy: &Proxy, deadline: Duration) -> u32 {
    let serving = || proxy.serving().and_then(|generation| proxy.worker_pid(generation));
    until_some("a worker serves again", deadline, serving)
}

fn at_rest(proxy: &Proxy) {
    until("no session is shown as live", DEADLINE, || proxy.metrics().count("proxyd_sessions_active", &[]) == 0);
    let metrics = proxy.metrics();
    let (opened, closed) =
        (metrics.count("proxyd_sessions_total", &[]), metrics.count("proxyd_sessions_closed_total", &[]));
    assert_eq!(opened, closed);
    assert_eq!(metrics.count("proxyd_backend_sessions_active", &[]), 0);
    assert!(proxy.status()["listeners"][0]["sessions"] == 0);
}

#[test]
fn f61_under_load_a_killed_worker_costs_its_sessions_and_refuses_nobody() {
    let _alone = alone();
    let (port, backend) = (Port::reserve(), Seeded::start());
    let proxy = Starter::with_binary(&Conf::simple(&port, &[backend.address()]), slim()).start();
    let mut before = proxy.metrics();
    let load = Load::start(port.address(), 300, Exchange::default());
    for round in 1..=3_u32 {
        let streams = LongStreams::start(port.address(), 5, Pace { frame: 800, every: Duration::from_millis(5) });
        let goal = load.tally().clean + 150;
        until("load and streams are served", DEADLINE, || {
            load.tally().clean >= goal && streams.tally().bytes_down > 20_000
        });
        let pid = proxy.serving_pid();
        send(pid, Signal::SIGKILL).unwrap();
        let killed = Instant::now();
        let served = load.tally().clean + 50;
        // A figure of the promise itself: service is back within a second.
        until("new connections are served", DEADLINE, || load.tally().clean >= served);
        println!("round {round}: 50 more were served {:?} after the kill", killed.elapsed());
        assert!(killed.elapsed() < Duration::from_secs(1), "served again only after {:?}", killed.elapsed());
        assert_ne!(until_serving(&proxy, DEADLINE), pid);
        assert_eq!(streams.stop().reset, 5, "the sessions of a killed worker are lost, and it shows");
        let now = proxy.metrics();
        assert_eq!(now.fallen_since(&before), [""; 0]);
        before = now;
    }
    let tally = load.stop();
    // Sessions of the killed workers, and nothing else, saw a reset, and nothing else.
    assert_eq!(tally.faults(), tally.reset, "{tally:?}");
    at_rest(&proxy);
    let metrics = proxy.metrics();
    let crashed = metrics.count("proxyd_sessions_closed_total", &[("reason", "worker_crashed")]);
    assert!(crashed >= tally.reset + 15, "{crashed} counted as crashed, {tally:?}");
    assert_eq!(metrics.value("proxyd_worker_restarts_total", &[("cause", "signal")]), Some(3.0));
    assert_eq!(backend.tally().truncated, 0, "a backend saw a clean end: {:?}", backend.tally());
}

#[test]
fn a_download_cut_by_a_crash_ends_with_a_reset_on_both_sides() {
    let _alone = alone();
    let (port, backend) = (Port::reserve(), Seeded::start());
    let proxy = Starter::with_binary(&Conf::simple(&port, &[backend.address()]), slim()).start();
    for (frame, every) in [(64 * 1024, Duration::ZERO), (700, Duration::from_millis(5))] {
        let streams = LongStreams::start(port.address(), 10, Pace { frame, every });
        until("the streams flow both ways", DEADLINE, || {
            let tally = streams.tally();
            tally.bytes_up > u64::from(frame) * 30 && tally.bytes_down > u64::from(frame) * 30
        });
        kill_worker(&proxy);
        until("all have ended", DEADLINE, || streams.tally().faults() == 10);
        let tally = streams.stop();
        assert_eq!((tally.reset, tally.truncated, tally.clean), (10, 0, 0), "{tally:?}");
        until("the backend's as well", DEADLINE, || backend.tally().reset == backend.tally().opened);
        assert_eq!(backend.tally().truncated, 0, "{:?}", backend.tally());
        until_serving(&proxy, DEADLINE);
    }
    at_rest(&proxy);
    let crashed = [("listener", "main"), ("reason", "worker_crashed")];
    assert_eq!(proxy.metrics().value("proxyd_sessions_closed_total", &crashed), Some(20.0));
    let lines = proxy.stderr().lines().filter(|line| line.contains("worker_crashed")).count();
    assert_eq!(lines, 20, "one line a session");
}

#[test]
fn connections_wait_while_no_worker_lives() {
    let _alone = alone();
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let proxy = Starter::with_binary(&Conf::simple(&port, &[backend.address()]), slim()).start();
    // Again and again, faster than the back-off starts over.
    for _ in 0..5 {
        let pid = until_serving(&proxy, DEADLINE);
        send(pid, Signal::SIGKILL).unwrap();
        Steady::open(port.address()).assert_alive();
        assert_ne!(until_serving(&proxy, DEADLINE), pid);
    }
    at_rest(&proxy);
    assert_eq!(proxy.metrics().value("proxyd_worker_restarts_total", &[("cause", "signal")]), Some(5.0));
    let log = proxy.stderr();
    assert_eq!(log.matches("worker lost").count(), 5, "{log}");
    assert_eq!(log.matches("worker restarted; serving").count(), 5, "{log}");
    assert!(proxy.is_ready());
}

/// The path says where the image came from, the length which of our copies it is.
fn image(pid: u32) -> (String, u64) {
    let exe = format!("/proc/{pid}/exe");
    (fs::read_link(&exe).unwrap().to_str().unwrap().into(), fs::metadata(&exe).unwrap().len())
}

/// What follows the sections of an ELF file means nothing to those who execute it.
fn marked(to: &Path, extra: usize) -> u64 {
    copy(slim(), &to.with_extension("part"));
    let mut bytes = fs::read(slim()).unwrap();
    bytes.resize(bytes.len() + extra, 0);
    fs::write(to.with_extension("part"), &bytes).unwrap();
    fs::rename(to.with_extension("part"), to).unwrap();
    bytes.len().try_into().unwrap()
}

#[test]
fn f59_a_worker_is_restarted_from_its_own_pinned_binary_whatever_became_of_the_file() {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("proxyd");
    copy(slim(), &path);
    let first = fs::metadata(&path).unwrap().len();
    let proxy = Starter::with_binary(&Conf::simple(&port, &[backend.address()]), &path).start();
    let crash = |what: &str, length: u64| {
        kill_worker(&proxy);
        let (link, found) = image(until_serving(&proxy, DEADLINE));
        assert!(link.starts_with("/memfd:"), "{what}: runs from {link}");
        assert_eq!(found, length, "{what}: another binary was started");
        Steady::open(port.address()).assert_alive();
    };
    crash("untouched", first);
    fs::write(place.path().join("garbage"), b"\x7fELF but not really").unwrap();
    fs::rename(place.path().join("garbage"), &path).unwrap();
    crash("replaced by garbage", first);
    fs::remove_file(&path).unwrap();
    crash("deleted", first);
    marked(&path, 1_000);
    crash("replaced by a newer one", first);

    // After an upgrade it is the new one's image, not that of the keeper or of the path.
    let second = marked(&place.path().join("second"), 5_000);
    let report = proxy.ctl_json(&["upgrade", "--binary", place.path().join("second").to_str().unwrap()]);
    assert_eq!(report["result"], "committed", "{report}");
    fs::remove_file(place.path().join("second")).unwrap();
    crash("upgraded", second);
    crash("upgraded, once more", second);
    // An upgrade that failed leaves it so.
    assert!(!proxy.ctl(&["upgrade", "--binary", "/dev/null"]).status.success());
    crash("after a failed upgrade", second);
}

#[test]
fn pools_as_they_were_changed_survive_a_crash() {
    let (port, blue, green) = (Port::reserve(), Tagged::start("blue"), Tagged::start("green"));
    let conf = Conf::simple(&port, &[blue.address()]).pool("other", &[green.address()]);
    let proxy = Starter::with_binary(&conf, slim()).start();
    assert!(proxy.ctl(&["pool", "swap", "main", "other"]).status.success());
    kill_worker(&proxy);
    assert_eq!(Steady::open(port.address()).tag, "green");
    assert_eq!(proxy.status()["listeners"][0]["pool"], "other");
}

#[test]
fn a_draining_generation_that_is_killed_costs_only_its_own_sessions() {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let proxy = Starter::with_binary(&Conf::simple(&port, &[backend.address()]).staying(), slim()).start();
    let (old, mut left) = (proxy.serving_pid(), Steady::open(port.address()));
    proxy.upgrade();
    let mut fresh = Steady::open(port.address());
    let serving = proxy.serving_pid();
    send(old, Signal::SIGKILL).unwrap();
    assert_eq!(left.end().unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    proxy.wait_generation_gone(1, DEADLINE);
    fresh.assert_alive();
    assert_eq!(proxy.serving_pid(), serving);
    assert_eq!(proxy.metrics().count("proxyd_worker_restarts_total", &[]), 0, "nothing that serves was restarted");
    drop(fresh);
    at_rest(&proxy);
}

#[test]
fn without_its_keeper_a_worker_serves_on_until_term_and_drains_then() {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let conf = Conf::simple(&port, &[backend.address()]).with("runtime", "on_keeper_death = \"serve\"");
    let mut proxy = Starter::with_binary(&conf, slim()).start();
    let worker = Process::of(proxy.serving_pid()).unwrap();
    let mut session = Steady::open(port.address());
    proxy.signal(Signal::SIGKILL);
    proxy.wait_exit(DEADLINE);
    until("the worker says so", DEADLINE, || proxy.stderr().contains("serving on without a keeper"));
    session.assert_alive();
    Steady::open(port.address()).assert_alive();
    // Only TERM means it.
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGQUIT] {
        worker.signal(signal);
        session.assert_alive();
    }
    worker.signal(Signal::SIGTERM);
    until("new connections are refused", DEADLINE, || TcpStream::connect(port.address()).is_err());
    session.assert_alive();
    assert!(worker.exists());
    drop(session);
    until("it ends with its last session", DEADLINE, || !worker.exists());
}

#[test]
fn without_its_keeper_a_worker_that_is_told_so_ends() {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let conf = Conf::simple(&port, &[backend.address()]).with("runtime", "on_keeper_death = \"exit\"");
    let mut proxy = Starter::with_binary(&conf, slim()).start();
    let worker = Process::of(proxy.serving_pid()).unwrap();
    let mut session = Steady::open(port.address());
    proxy.signal(Signal::SIGKILL);
    proxy.wait_exit(DEADLINE);
    until("the worker is gone", DEADLINE, || !worker.exists());
    assert_eq!(session.end().unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert!(TcpStream::connect(port.address()).is_err());
}
