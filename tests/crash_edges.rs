//! Workers that die at awkward moments: before they serve, of a signal without a name, during a shutdown.

mod harness;

use std::process::Command;
use std::time::{Duration, Instant};

use harness::child::{children, send};
use harness::{Client, Conf, Port, Proxy, Tagged, until, until_some};
use nix::sys::signal::Signal;

const DEADLINE: Duration = Duration::from_secs(30);

fn start(backend: &Tagged, port: &Port, shutdown: &str) -> Proxy {
    Proxy::start(&Conf::simple(port, &[backend.address()]).with("shutdown", shutdown))
}

#[test]
fn a_worker_that_dies_of_a_real_time_signal_is_replaced() {
    let (backend, port) = (Tagged::start("a"), Port::reserve());
    let proxy = start(&backend, &port, "");
    let before = proxy.serving_pid();
    // No name, and so no constant: by number.
    assert!(Command::new("sh").args(["-c", &format!("kill -40 {before}")]).status().unwrap().success());
    until("another worker serves", DEADLINE, || {
        proxy.serving().and_then(|id| proxy.worker_pid(id)).is_some_and(|pid| pid != before)
    });
    Client::greeted(port.address()).0.echo("served again");
    assert_eq!(proxy.metrics().value("proxyd_worker_restarts_total", &[("cause", "signal")]), Some(1.0));
}

#[test]
fn workers_killed_at_any_moment_of_their_start_are_replaced_until_one_serves() {
    let (backend, port) = (Tagged::start("a"), Port::reserve());
    let proxy = start(&backend, &port, "");
    send(proxy.serving_pid(), Signal::SIGKILL).unwrap();
    let mut seen = 0;
    for _ in 0..8 {
        let pid = until_some("the next worker appears", DEADLINE, || {
            children(proxy.keeper_pid()).into_iter().find(|pid| *pid != seen)
        });
        seen = pid;
        // Anywhere between its first instruction and its first connection.
        let until = Instant::now() + Duration::from_micros(fastrand::u64(..60_000));
        while Instant::now() < until {
            std::thread::yield_now();
        }
        let _ = send(pid, Signal::SIGKILL);
    }
    until("a worker serves", DEADLINE, || proxy.serving().is_some() && proxy.is_ready());
    Client::greeted(port.address()).0.echo("served again");
}

#[test]
fn a_worker_lost_just_before_a_shutdown_does_not_keep_it_from_ending() {
    let (backend, port) = (Tagged::start("a"), Port::reserve());
    for delay in ["", "delay = \"1s\""] {
        let mut proxy = start(&backend, &port, delay);
        send(proxy.serving_pid(), Signal::SIGKILL).unwrap();
        until("the keeper has noticed", DEADLINE, || proxy.stderr().contains("worker lost"));
        proxy.signal(Signal::SIGTERM);
        assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(0), "with {delay:?}");
    }
}
