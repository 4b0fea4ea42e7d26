//! What is counted is what happened: over traffic, forced closes, upgrades and a killed worker; nothing falls, and what is
//! scraped is well formed at any moment.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::child::send;
use harness::client::wait_all_ended;
use harness::{
    Client, Conf, Exchange, Load, LongStreams, Metrics, Pace, Port, Proxy, Seeded, Tagged, Tally, http, peer, until,
};
use nix::sys::signal::Signal;

const DEADLINE: Duration = Duration::from_secs(30);

/// Scrapes every 10 ms until told; each scrape must be whole, and no counter may fall from one to the next.
fn scrape(admin: std::net::SocketAddr, stop: &AtomicBool) -> usize {
    let mut before = Metrics::default();
    let mut scrapes = 0;
    while !stop.load(Ordering::Acquire) {
        let answer = http::fetch(admin, "/metrics").unwrap();
        assert_eq!(answer.status, 200);
        assert!(answer.body.ends_with('\n'), "a scrape was cut short");
        let now = Metrics::parse(&answer.body);
        let fallen = now.fallen_since(&before);
        assert!(fallen.is_empty(), "{fallen:#?}");
        assert_eq!(twice(&now), None, "a series occurs twice");
        before = now;
        scrapes += 1;
        std::thread::park_timeout(Duration::from_millis(10));
    }
    scrapes
}

fn twice(metrics: &Metrics) -> Option<String> {
    let mut seen = std::collections::BTreeSet::new();
    let key = |sample: &harness::metrics::Sample| format!("{} {:?}", sample.name, sample.labels);
    metrics.samples().iter().map(key).find(|key| !seen.insert(key.clone()))
}

/// `promtool check metrics` has nothing to say.
#[track_caller]
fn promtool_is_content(text: &str) {
    let Some(promtool) = peer("promtool") else { return };
    let mut command = Command::new(promtool);
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = command.spawn().unwrap();
    running.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = running.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.trim().is_empty(), "promtool: {said}\n{text}");
}

/// Everything rests: what was opened has been closed.
fn at_rest(proxy: &Proxy) -> Metrics {
    until("no session is left", DEADLINE, || proxy.metrics().count("proxyd_sessions_active", &[]) == 0);
    let metrics = proxy.metrics();
    let opened = metrics.count("proxyd_sessions_total", &[]);
    assert_eq!(metrics.count("proxyd_sessions_closed_total", &[]), opened, "opened - closed = active");
    assert_eq!(metrics.count("proxyd_backend_sessions_active", &[]), 0);
    assert_eq!(metrics.count("proxyd_session_seconds_count", &[]), opened, "each session has its duration once");
    metrics
}

#[test]
fn counters_are_the_truth_over_upgrades_and_a_killed_worker() {
    let (seeded, tagged) = (Seeded::start(), Tagged::start("tag"));
    let (main, other) = (Port::reserve(), Port::reserve());
    let conf = Conf::simple(&main, &[seeded.address()])
        .listener("other", &other.to_string(), "tagged")
        .pool("tagged", &[tagged.address()])
        .with("upgrade", "max_generations = 16")
        .with("drain", "timeout = \"5m\"");
    let proxy = Proxy::start(&conf);
    promtool_is_content(&proxy.http("/metrics").unwrap().body);
    let stop = Arc::new(AtomicBool::new(false));
    let (told, admin) = (Arc::clone(&stop), proxy.admin());
    let scraping = std::thread::spawn(move || scrape(admin, &told));

    // Traffic over three upgrades: clean on the clients' side, so every byte is known.
    let streams = LongStreams::start(main.address(), 10, Pace { frame: 3_000, every: Duration::from_millis(5) });
    let load = Load::start(main.address(), 100, Exchange::default());
    for _ in 0..3 {
        let clean = load.tally().clean;
        until("some exchanges were made", DEADLINE, || load.tally().clean >= clean + 50);
        proxy.upgrade();
    }
    promtool_is_content(&proxy.http("/metrics").unwrap().body);
    let (load, streams) = (load.stop(), streams.stop());
    load.assert_clean();
    streams.assert_clean();
    let known = at_rest(&proxy);
    traffic_is_counted(&known, &seeded, &load, &streams);

    // Sessions that an operator ends, and some that a crash ends.
    let mut killed = Client::many(other.address(), 7);
    proxy.ctl_json(&["kill", "--listener", "other"]);
    wait_all_ended(&mut killed, DEADLINE);
    let mut lost = Client::many(other.address(), 5);
    let active =
        |proxy: &Proxy| proxy.metrics().count("proxyd_sessions_active", &[("listener", "other"), ("pool", "tagged")]);
    assert_eq!(active(&proxy), 5);
    send(proxy.serving_pid(), Signal::SIGKILL).unwrap();
    wait_all_ended(&mut lost, DEADLINE);
    until("another worker serves", DEADLINE, || {
        proxy.is_ready() && proxy.metrics().count("proxyd_worker_restarts_total", &[("cause", "signal")]) == 1
    });
    let mut after = Client::many(other.address(), 3);
    assert_eq!(active(&proxy), 3);
    after.iter_mut().for_each(|client| client.echo("x"));
    drop(after);

    let end = at_rest(&proxy);
    stop.store(true, Ordering::Release);
    let scrapes = scraping.join().unwrap();
    assert!(scrapes > 20, "only {scrapes} scrapes");
    let of_other = |name, key, value| end.count(name, &[("listener", "other"), (key, value)]);
    assert_eq!(of_other("proxyd_sessions_total", "pool", "tagged"), 15);
    let closed = |reason| of_other("proxyd_sessions_closed_total", "reason", reason);
    assert_eq!((closed("admin_killed"), closed("worker_crashed"), closed("client_closed")), (7, 5, 3));
    assert_eq!(end.count("proxyd_sessions_forced_closed_total", &[("cause", "admin")]), 7);
    // Each was greeted with `tag` and a newline; three have sent a letter and a newline, and got them back.
    assert_eq!(of_other("proxyd_session_bytes_total", "direction", "sent"), 15 * 4 + 3 * 2);
    assert_eq!(of_other("proxyd_session_bytes_total", "direction", "received"), 3 * 2);
    assert_eq!(end.count("proxyd_backend_sessions_total", &[("pool", "tagged")]), 15);
    assert_eq!(tagged.accepted(), 15);
    assert_eq!(end.count("proxyd_upgrades_total", &[("result", "committed")]), 3);
    assert!(end.fallen_since(&known).is_empty(), "{:#?}", end.fallen_since(&known));
    promtool_is_content(&proxy.http("/metrics").unwrap().body);
    // The Unix socket gives the same.
    let by_ctl = Metrics::parse(&String::from_utf8(proxy.ctl(&["metrics"]).stdout).unwrap());
    assert_eq!(by_ctl.count("proxyd_sessions_total", &[]), end.count("proxyd_sessions_total", &[]));
}

/// What clients and backend have seen, with what the protocol of the test adds to their payload.
fn traffic_is_counted(metrics: &Metrics, seeded: &Seeded, load: &Tally, streams: &Tally) {
    let opened = load.opened + streams.opened;
    let main = |name, key, value| metrics.count(name, &[("listener", "main"), (key, value)]);
    assert_eq!(main("proxyd_sessions_total", "pool", "pool"), opened);
    let closed = metrics.count("proxyd_sessions_closed_total", &[("listener", "main")]);
    assert_eq!(closed, opened);
    let orderly =
        ["client_closed", "backend_closed"].map(|reason| main("proxyd_sessions_closed_total", "reason", reason));
    assert_eq!(orderly.iter().sum::<u64>(), opened, "each ended in order");
    let seen = seeded.tally();
    assert_eq!(seen.opened, opened);
    // A hello of 32 bytes, and 4 bytes a frame: at least the end mark, at most one a payload byte.
    let (up, down) = (load.bytes_up + streams.bytes_up, load.bytes_down + streams.bytes_down);
    let received = main("proxyd_session_bytes_total", "direction", "received");
    let sent = main("proxyd_session_bytes_total", "direction", "sent");
    let frames = |tally: &Tally, bytes: u64, size: u64| tally.opened + bytes.div_ceil(size);
    let frames_up = frames(load, load.bytes_up, 600) + frames(streams, streams.bytes_up, 3_000);
    let frames_down = frames(load, load.bytes_down, 2_000) + frames(streams, streams.bytes_down, 3_000);
    assert_eq!(received, up + opened * 32 + frames_up * 4);
    assert_eq!(sent, down + frames_down * 4);
    assert_eq!(metrics.count("proxyd_backend_bytes_total", &[("pool", "pool")]), received + sent);
    assert_eq!(metrics.count("proxyd_connect_seconds_count", &[]), opened);
}

#[test]
fn bytes_are_counted_while_a_session_lives() {
    let (backend, bind) = (Tagged::start("a"), Port::reserve());
    let proxy = Proxy::start(&Conf::simple(&bind, &[backend.address()]));
    let mut client = Client::greeted(bind.address()).0;
    let sent = || proxy.metrics().count("proxyd_session_bytes_total", &[("direction", "sent")]);
    assert_eq!(sent(), 2);
    client.echo("four");
    assert_eq!(sent(), 7);
    let oldest = || proxy.metrics().value("proxyd_generation_oldest_session_seconds", &[("generation", "1")]).unwrap();
    until("the session ages", DEADLINE, || oldest() > 0.1);
    assert_eq!(proxy.metrics().count("proxyd_sessions_active", &[("generation", "1"), ("listener", "main")]), 1);
}

#[test]
fn what_is_published_about_itself_is_true() {
    let (backend, bind) = (Tagged::start("a"), Port::reserve());
    let proxy = Proxy::start(&Conf::simple(&bind, &[backend.address()]));
    proxy.ctl_json(&["backend", "weight", "pool", &backend.address().to_string(), "2"]);
    proxy.upgrade();
    let (metrics, status) = (proxy.metrics(), proxy.status());
    assert_eq!(metrics.count("proxyd_pool_version", &[("pool", "pool")]), 2);
    assert_eq!(metrics.count("proxyd_config_version", &[]), status["config"]["version"].as_u64().unwrap());
    let serving = status["generations"].as_array().unwrap().iter().find(|one| one["state"] == "serving").unwrap();
    let pid = serving["pid"].to_string();
    assert_eq!(metrics.value("proxyd_generation_info", &[("state", "serving"), ("pid", &pid)]), Some(1.0));
    let version = status["version"].as_str().unwrap();
    assert_eq!(metrics.value("proxyd_build_info", &[("version", version)]), Some(1.0));
    assert!(metrics.value("process_open_fds", &[]).unwrap() > 5.0);
    // HEAD tells as much as GET, without the body.
    let mut stream = std::net::TcpStream::connect(proxy.admin()).unwrap();
    stream.write_all(b"HEAD /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
}
