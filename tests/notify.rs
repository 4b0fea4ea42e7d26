//! What a service manager is told, and when; and that no manager, however broken, matters to the service.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::fs;
use std::time::{Duration, Instant};

use harness::{Conf, Manager, Port, Proxy, Starter, Steady, Tagged};
use nix::sys::signal::Signal;

const DEADLINE: Duration = Duration::from_secs(20);

struct Service {
    /// Ends before the proxy, which would wait for it.
    session: Steady,
    proxy: Proxy,
    conf: Conf,
    backend: Tagged,
}

/// A proxyd with a session, told of a manager.
fn service(manager: &Manager, environment: &[(&str, String)]) -> Service {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let conf = Conf::simple(&port, &[backend.address()]).with("drain", "timeout = \"30s\"");
    let mut starter = Starter::new(&conf);
    starter.command.env("NOTIFY_SOCKET", &manager.name);
    starter.command.envs(environment.iter().map(|(name, value)| (name, value)));
    let proxy = starter.start();
    Service { session: Steady::open(port.address()), proxy, conf, backend }
}

fn monotonic_usec() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
}

/// `RELOADING=1` with the time in one message, then `READY=1`. Returns the number after it.
fn reloads(manager: &mut Manager, from: usize, asked: i64) -> usize {
    let begun = manager.hears(from, "RELOADING=1\nMONOTONIC_USEC=");
    let (_, usec) = manager.heard[begun - 1].rsplit_once('=').unwrap();
    let usec: i64 = usec.parse().unwrap();
    assert!((asked..=monotonic_usec()).contains(&usec), "asked at {asked}, told {usec}");
    manager.hears(begun, "READY=1")
}

#[test]
fn start_reload_upgrade_and_end_are_told_in_order() {
    let mut manager = Manager::at_a_path();
    let Service { session, mut proxy, conf, backend: _backend } = service(&manager, &[]);
    let ready = manager.hears(0, "READY=1");
    let seen = manager.hears(0, "STATUS=generation 1 serves");
    assert_eq!(manager.heard[..ready].iter().filter(|told| told.contains("READY=1")).count(), 1);

    let asked = monotonic_usec();
    proxy.signal(Signal::SIGHUP);
    let seen = reloads(&mut manager, seen, asked);

    fs::write(proxy.config(), "[listeners.main]\nbind = 7").unwrap();
    let asked = monotonic_usec();
    proxy.signal(Signal::SIGHUP);
    let seen = reloads(&mut manager, seen, asked);
    let seen = manager.hears(seen - 1, "STATUS=generation 1 serves; reload refused");

    // By a command: whoever gave it has the result; the manager sees the steps only.
    proxy.write_config(&conf);
    proxy.upgrade();
    let spawned = manager.hears(seen, "upgrade 1 (generation 1 -> 2) is at spawn");
    assert!(manager.heard[seen..spawned].iter().any(|told| told.contains("is at preflight")), "{:?}", manager.heard);
    let seen = manager.hears(spawned, "STATUS=generation 2 serves; reload refused");
    assert!(!manager.heard[spawned..].iter().any(|told| told.contains("READY=1")), "{:?}", manager.heard);

    let asked = monotonic_usec();
    proxy.signal(Signal::SIGUSR2);
    let upgraded = reloads(&mut manager, seen, asked);
    let steps = manager.heard[seen..upgraded].iter().filter(|told| told.contains("; upgrade 2 (")).count();
    assert!(steps >= 3, "ready only when the upgrade has ended: {:?}", manager.heard);

    proxy.signal(Signal::SIGHUP);
    reloads(&mut manager, upgraded, 0);
    manager.hears(upgraded, "STATUS=generation 3 serves");
    let seen = manager.heard.len();
    proxy.signal(Signal::SIGTERM);
    let stopping = manager.hears(seen, "STOPPING=1");
    manager.hears(stopping, "EXTEND_TIMEOUT_USEC=30000000");
    manager.hears(stopping, "STATUS=shutting down, 1 sessions left");
    drop(session);
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(0));
    manager.listen();
    assert!(!manager.heard[stopping..].iter().any(|told| told.contains("READY=1")), "{:?}", manager.heard);
}

#[test]
fn the_watchdog_is_fed_as_long_as_the_loop_runs() {
    let mut manager = Manager::at_a_path();
    let timeout = Duration::from_secs(2);
    let Service { proxy, session: _session, backend: _backend, .. } =
        service(&manager, &[("WATCHDOG_USEC", timeout.as_micros().to_string())]);
    let mut seen = manager.hears(0, "WATCHDOG=1");
    for _ in 0..4 {
        let before = Instant::now();
        seen = manager.hears(seen, "WATCHDOG=1");
        assert!(before.elapsed() < timeout, "fed after {:?}", before.elapsed());
    }
    // Not for workers, nor what else the manager told the keeper.
    let environment = fs::read(format!("/proc/{}/environ", proxy.serving_pid())).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    assert!(!environment.contains("WATCHDOG_USEC") && !environment.contains("NOTIFY_SOCKET"), "{environment}");
}

#[test]
fn a_watchdog_of_another_process_is_not_ours_to_feed() {
    let mut manager = Manager::at_a_path();
    let settings = [("WATCHDOG_USEC", "1000000".to_owned()), ("WATCHDOG_PID", "1".to_owned())];
    let Service { proxy, session, backend: _backend, .. } = service(&manager, &settings);
    proxy.signal(Signal::SIGTERM);
    // A tick has passed when more time is asked for.
    manager.hears(0, "EXTEND_TIMEOUT_USEC=");
    assert!(!manager.heard.iter().any(|told| told.contains("WATCHDOG")), "{:?}", manager.heard);
    drop(session);
}

#[test]
fn an_abstract_socket_is_as_good() {
    let mut manager = Manager::in_the_abstract();
    let _service = service(&manager, &[]);
    manager.hears(0, "READY=1");
}

#[test]
fn a_manager_that_takes_nothing_is_not_waited_for_and_learns_all_later() {
    let mut manager = Manager::at_a_path();
    let filled = manager.fill();
    let Service { proxy, mut session, backend: _backend, .. } =
        service(&manager, &[("WATCHDOG_USEC", "1000000".to_owned())]);
    proxy.signal(Signal::SIGHUP);
    proxy.upgrade();
    session.assert_alive();
    let ready = manager.hears(filled, "READY=1");
    let reloading = manager.hears(ready, "RELOADING=1");
    manager.hears(reloading, "READY=1");
    manager.hears(reloading, "STATUS=generation 2 serves");
    manager.hears(reloading, "WATCHDOG=1");
}

#[test]
fn a_manager_that_is_not_there_or_absurd_is_no_reason_to_fail() {
    let directory = tempfile::tempdir().unwrap();
    let dead = directory.path().join("dead");
    drop(std::os::unix::net::UnixDatagram::bind(&dead).unwrap());
    let stream = directory.path().join("stream");
    let _listening = std::os::unix::net::UnixListener::bind(&stream).unwrap();
    let long = format!("/{}", "x".repeat(4096));
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let names = [text(&dead), text(&stream), text(directory.path()), "/none/such".into(), "".into(), "@".into()];
    for name in names.into_iter().chain(["vsock:2:1".into(), "relative".into(), long]) {
        let (port, backend) = (Port::reserve(), Tagged::start("blue"));
        let mut starter = Starter::new(&Conf::simple(&port, &[backend.address()]));
        starter.command.env("NOTIFY_SOCKET", &name).env("WATCHDOG_USEC", "-1");
        let mut proxy = starter.start();
        Steady::open(port.address()).assert_alive();
        proxy.signal(Signal::SIGTERM);
        assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(0), "{name:?}");
    }
}
