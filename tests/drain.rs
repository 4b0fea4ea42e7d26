//! Sessions that stay behind at an upgrade: who is closed by force, when, in which order, how, and who says so.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::client::wait_all_ended;
use harness::server::{Server, any_v4};
use harness::{Client, Conf, End, Port, Proxy, Tagged, logs, until};
use tokio::io::AsyncWriteExt;

const DEADLINE: Duration = Duration::from_secs(20);
const FORCED: &str = "session closed by force";

fn forced(proxy: &Proxy, cause: &str) -> u64 {
    proxy.metrics().count("proxyd_sessions_forced_closed_total", &[("cause", cause)])
}

/// The port of the client that a line is about.
fn port_of(line: &str) -> u16 {
    logs::field(line, "client").unwrap().rsplit(':').next().unwrap().parse().unwrap()
}

/// Sends on every connection all the time, reads what comes back, and notes when each ends.
fn keep_busy(mut clients: Vec<Client>, stop: &AtomicBool) -> Vec<Client> {
    while !stop.load(Ordering::Acquire) {
        for client in &mut clients {
            if client.ended().is_none() {
                // It may end between the look and the write.
                let _ended = client.stream().write(b"busy\n");
            }
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    clients
}

#[test]
fn the_quiet_are_closed_before_the_busy_and_all_by_the_deadline() {
    let backend = Tagged::start("a");
    let bind = Port::reserve();
    let conf = Conf::simple(&bind, &[backend.address()]).staying().with("drain", "timeout = \"10s\"\nspread = \"5s\"");
    let proxy = Proxy::start(&conf);
    let old = proxy.serving().unwrap();
    let mut idle = Client::many(bind.address(), 100);
    let busy = Client::many(bind.address(), 20);
    let busy_ports: BTreeSet<u16> = busy.iter().map(|client| client.local().port()).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let busy = std::thread::spawn(move || keep_busy(busy, &told));

    let asked = Instant::now();
    let report = proxy.upgrade();
    assert_eq!(report["sessions"]["left"], 120, "{report}");
    let committed = Instant::now();
    wait_all_ended(&mut idle, DEADLINE);
    until("the old worker is gone", DEADLINE, || proxy.worker_pid(old).is_none());
    let gone = committed.elapsed();
    stop.store(true, Ordering::Release);
    let mut busy = busy.join().unwrap();

    assert!(gone <= Duration::from_secs(11), "the old process was there for {gone:?} after the commit");
    let first = idle.iter_mut().chain(&mut busy).map(|client| client.ended().unwrap().1).min().unwrap();
    let spared = first - asked;
    assert!(spared >= Duration::from_secs(5), "the first was closed after {spared:?}");
    let ends: Vec<End> = idle.iter_mut().chain(&mut busy).map(Client::wait_end).collect();
    assert_eq!(ends, vec![End::Reset; 120], "what the clients saw");

    let log = proxy.stderr();
    let lines: Vec<&str> = logs::lines(&log, FORCED).collect();
    assert_eq!(lines.len(), 120, "what the log says");
    assert_eq!(forced(&proxy, "drain"), 120, "what the metric says");
    assert_eq!(proxy.metrics().count("proxyd_sessions_closed_total", &[("reason", "drain_forced")]), 120);
    for line in &lines {
        let number = |key| logs::field(line, key).and_then(|value| value.parse::<f64>().ok());
        let told = ["bytes_received", "bytes_sent", "age", "idle", "unsent_to_client", "unsent_to_backend"].map(number);
        assert!(told.iter().all(Option::is_some), "{line}");
        assert!(told[2].unwrap() >= 4.0, "age: {line}");
        let is_busy = busy_ports.contains(&port_of(line));
        assert_eq!(told[0].unwrap() > 0.0, is_busy, "bytes received: {line}");
        assert!(is_busy || (told[1].unwrap() - 2.0).abs() < 0.5, "an idle client got `a` and a newline: {line}");
        assert_eq!(told[3].unwrap() < 4.0, is_busy, "idle: {line}");
        assert_eq!(logs::field(line, "reason"), Some("drain_forced"));
    }
    let order: Vec<bool> = lines.iter().map(|line| busy_ports.contains(&port_of(line))).collect();
    let first_busy = order.iter().position(|busy| *busy).unwrap();
    // Those of one round are closed thread by thread.
    assert!(first_busy >= 95, "a busy one was closed as number {first_busy}: {order:?}");
}

#[test]
fn without_a_timeout_nothing_is_closed_by_force() {
    let backend = Tagged::start("a");
    let bind = Port::reserve();
    let proxy = Proxy::start(&Conf::simple(&bind, &[backend.address()]).staying().with("drain", "timeout = \"off\""));
    let old = proxy.serving().unwrap();
    let mut clients = Client::many(bind.address(), 5);
    proxy.upgrade();
    proxy.upgrade();
    let status = proxy.status();
    let draining = status["generations"].as_array().unwrap().iter().find(|one| one["id"] == old).unwrap();
    assert_eq!((&draining["state"], &draining["sessions"]), (&"draining".into(), &5.into()), "{status}");
    assert!(draining["drain_seconds_left"].is_null(), "{status}");
    clients.iter_mut().for_each(|client| client.echo("still here"));
    drop(clients);
    proxy.wait_generation_gone(old, DEADLINE);
    assert_eq!(forced(&proxy, "drain"), 0);
}

#[test]
fn f47_a_timeout_of_nothing_closes_all_at_once() {
    let backend = Tagged::start("a");
    let bind = Port::reserve();
    let proxy = Proxy::start(&Conf::simple(&bind, &[backend.address()]).staying().with("drain", "timeout = \"0ms\""));
    let old = proxy.serving().unwrap();
    let mut clients = Client::many(bind.address(), 30);
    proxy.upgrade();
    wait_all_ended(&mut clients, DEADLINE);
    assert!(clients.iter_mut().all(|client| client.wait_end() == End::Reset));
    proxy.wait_generation_gone(old, DEADLINE);
    assert_eq!(forced(&proxy, "drain"), 30);
    Client::greeted(bind.address()).0.echo("the next generation");
}

/// Sends without end, to a client that does not read.
fn flood() -> Server {
    Server::start(any_v4(), |mut stream| async move {
        let block = vec![7; 64 * 1024];
        while stream.write_all(&block).await.is_ok() {}
    })
}

#[test]
fn fin_is_for_sessions_with_nothing_unsent_and_reset_for_the_others() {
    let (quiet, flooding) = (Tagged::start("a"), flood());
    let (bind, flooded) = (Port::reserve(), Port::reserve());
    let conf = Conf::simple(&bind, &[quiet.address()])
        .staying()
        .listener("flooded", &flooded.to_string(), "flood")
        .pool("flood", &[flooding.address()])
        .with("drain", "timeout = \"1s\"\nspread = \"500ms\"\nclose = \"fin\"");
    let proxy = Proxy::start(&conf);
    let mut idle = Client::many(bind.address(), 10);
    let mut slow = TcpStream::connect(flooded.address()).unwrap();
    let sent =
        || proxy.metrics().count("proxyd_session_bytes_total", &[("listener", "flooded"), ("direction", "sent")]);
    let mut before = 0;
    until("all buffers towards the client are full", DEADLINE, || {
        let now = sent();
        let full = now > 100_000 && now == before;
        before = now;
        std::thread::park_timeout(Duration::from_millis(100));
        full
    });
    let old = proxy.serving().unwrap();
    proxy.upgrade();
    proxy.wait_generation_gone(old, DEADLINE);
    assert!(idle.iter_mut().all(|client| client.wait_end() == End::Fin), "an idle one was not closed in order");
    let mut rest = Vec::new();
    let end = slow.read_to_end(&mut rest);
    assert!(end.is_err(), "lost bytes must not end in a clean end of file, after {} bytes", rest.len());
    let log = proxy.stderr();
    let unsent = |line: &&str| logs::field(line, "unsent_to_client").unwrap().parse::<i64>().unwrap() > 0;
    assert_eq!(logs::lines(&log, FORCED).count(), 11);
    assert_eq!(logs::lines(&log, FORCED).filter(unsent).count(), 1, "{log}");
    assert!(proxy.metrics().count("proxyd_sessions_forced_unsent_bytes_total", &[("cause", "drain")]) > 0);
}

#[test]
fn several_generations_drain_at_once_each_by_its_own_deadline() {
    let backend = Tagged::start("a");
    let bind = Port::reserve();
    let conf = Conf::simple(&bind, &[backend.address()])
        .staying()
        .with("upgrade", "max_generations = 8")
        .with("drain", "timeout = \"6s\"\nspread = \"1s\"");
    let proxy = Proxy::start(&conf);
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.extend(Client::many(bind.address(), 5));
        proxy.upgrade();
    }
    let status = proxy.status();
    let draining = status["generations"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["state"] == "draining" && one["sessions"] == 5);
    assert_eq!(draining.count(), 4, "{status}");
    wait_all_ended(&mut clients, DEADLINE);
    until("one generation is left", DEADLINE, || proxy.status()["generations"].as_array().unwrap().len() == 1);
    assert_eq!(forced(&proxy, "drain"), 20);
}

#[test]
fn f34_beyond_max_generations_the_oldest_is_closed_by_force() {
    let backend = Tagged::start("a");
    let bind = Port::reserve();
    let conf = Conf::simple(&bind, &[backend.address()])
        .staying()
        .with("upgrade", "max_generations = 2")
        .with("drain", "timeout = \"off\"");
    let proxy = Proxy::start(&conf);
    let mut oldest = Client::many(bind.address(), 3);
    proxy.upgrade();
    let mut second = Client::many(bind.address(), 3);
    proxy.upgrade();
    wait_all_ended(&mut oldest, DEADLINE);
    assert_eq!(forced(&proxy, "generations"), 3);
    second.iter_mut().for_each(|client| client.echo("not meant"));
    let live = proxy.status()["generations"].as_array().unwrap().len();
    assert!(live <= 2, "{live} generations live");
}
