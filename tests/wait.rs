//! `proxyctl wait` against a real keeper: each condition becomes true while it waits, or it says what is still true.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use harness::child::Guarded;
use harness::proxy::PROXYCTL;
use harness::{Conf, Port, Proxy, Starter, Steady, Tagged, slim, until_some};
use nix::sys::signal::Signal;

const DEADLINE: Duration = Duration::from_secs(20);

struct House {
    /// Ends before the proxy, which would wait for it.
    session: Steady,
    proxy: Proxy,
    backend: Tagged,
    _port: Port,
}

fn starter() -> (Starter, Port, Tagged) {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    (Starter::with_binary(&Conf::simple(&port, &[backend.address()]).staying(), slim()), port, backend)
}

fn house() -> House {
    let (starter, port, backend) = starter();
    let proxy = starter.start();
    House { session: Steady::open(port.address()), proxy, backend, _port: port }
}

/// A `proxyctl wait` that has begun.
fn waiting(proxy: &Proxy, words: &[&str]) -> Guarded {
    let mut command = proxy.ctl_command(&[&["wait"], words].concat());
    Guarded::new(command.stdout(Stdio::null()).spawn().unwrap(), Signal::SIGKILL)
}

fn succeeds(mut waiting: Guarded, what: &str) {
    let status = until_some(what, DEADLINE, || waiting.has_ended());
    assert_eq!(status.code(), Some(0), "{what}");
}

#[track_caller]
fn assert_too_late(output: &Output, still: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.lines().count()), (Some(5), 1), "{said}");
    assert!(said.contains(still), "{said}");
}

#[test]
fn what_drains_is_waited_for() {
    let house = house();
    house.proxy.upgrade();
    let still = "generation 1 (pid ";
    assert_too_late(&house.proxy.ctl(&["wait", "drained", "--timeout", "300ms"]), still);
    assert_too_late(&house.proxy.ctl(&["wait", "generation-gone", "1", "--timeout", "300ms"]), still);
    let both = [waiting(&house.proxy, &["drained"]), waiting(&house.proxy, &["generation-gone", "1"])];
    drop(house.session);
    both.into_iter().for_each(|one| succeeds(one, "generation 1 is gone"));
    assert!(house.proxy.worker_pid(1).is_none());
}

#[test]
fn a_backend_is_waited_for_until_its_last_session_ends() {
    let house = house();
    let backend = house.backend.address().to_string();
    let words = ["backend-empty", "pool", &backend];
    assert_too_late(&house.proxy.ctl(&[&["wait"], &words[..], &["--timeout", "300ms"]].concat()), "has 1 sessions");
    let one = waiting(&house.proxy, &words);
    drop(house.session);
    succeeds(one, "the backend is empty");
    let unknown = house.proxy.ctl(&["wait", "backend-empty", "pool", "nope"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains(&backend));
}

/// As after a start in the background: there is not even a socket yet.
#[test]
fn a_keeper_that_is_not_there_yet_is_waited_for() {
    let (starter, _port, _backend) = starter();
    let mut command = Command::new(PROXYCTL);
    command.arg("--socket").arg(starter.state_dir().join("admin.sock")).args(["wait", "ready"]);
    let one = Guarded::new(command.stdout(Stdio::null()).spawn().unwrap(), Signal::SIGKILL);
    let proxy = starter.start();
    succeeds(one, "a generation serves");
    assert_eq!(proxy.serving(), Some(1));
}

#[test]
fn a_keeper_that_has_ended_has_drained() {
    let mut house = house();
    assert!(house.proxy.ctl(&["shutdown"]).status.success());
    let one = waiting(&house.proxy, &["drained"]);
    assert_too_late(&house.proxy.ctl(&["wait", "ready", "--timeout", "300ms"]), "is shutting-down");
    drop(house.session);
    succeeds(one, "it has drained");
    assert_eq!(house.proxy.wait_exit(DEADLINE).code(), Some(0));
    assert_too_late(&house.proxy.ctl(&["wait", "ready", "--timeout", "300ms"]), "no proxyd answers");
}
