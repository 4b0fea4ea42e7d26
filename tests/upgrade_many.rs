//! A hundred upgrades in a row under a light load: nothing grows in the keeper, nothing is counted twice or lost.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::time::Duration;

use harness::{Census, Conf, Exchange, Load, Port, Proxy, Seeded, Starter, slim, until};

const DEADLINE: Duration = Duration::from_secs(30);
const UPGRADES: u64 = 100;
/// Until allocator, caches and thread pools have what they will ever need.
const WARM_UP: u64 = 10;
/// KiB. An upgrade that kept its plan, or its report, or a record for a generation gone, would exceed it in ninety.
const GROWTH: u64 = 2 * 1024;
/// One message header and one of 32 bytes: what a client sends and gets beside the payload (see `harness::seeded`).
const AROUND_UP: u64 = 32 + 4 + 4;
const AROUND_DOWN: u64 = 4 + 4;

/// With one generation and no session.
fn census_at_rest(proxy: &Proxy) -> Census {
    until("one generation is left", DEADLINE, || proxy.status()["generations"].as_array().unwrap().len() == 1);
    Census::of(proxy.keeper_pid()).unwrap()
}

#[test]
fn a_hundred_upgrades_leave_the_keeper_as_it_was() {
    let (port, backend) = (Port::reserve(), Seeded::start());
    let conf = Conf::simple(&port, &[backend.address()])
        .with("upgrade", "max_generations = 8")
        .with("drain", "timeout = \"2s\"\nspread = \"1s\"");
    let proxy = Starter::with_binary(&conf, slim()).start();
    let exchange = Exchange::default();
    let load = Load::start(port.address(), 40, exchange);
    let mut seen = proxy.metrics();
    let mut warm = Census::default();
    for number in 1..=UPGRADES {
        let goal = load.tally().clean + 2;
        until("the load is served", DEADLINE, || load.tally().clean >= goal);
        let report = proxy.ctl_json(&["upgrade"]);
        assert_eq!((&report["result"], &report["to"]), (&"committed".into(), &(number + 1).into()), "{report}");
        let now = proxy.metrics();
        assert_eq!(now.fallen_since(&seen), [""; 0], "after upgrade {number}");
        seen = now;
        if number == WARM_UP {
            warm = census_at_rest(&proxy);
        }
    }
    let tally = load.stop();
    tally.assert_clean();
    let mut last = census_at_rest(&proxy);
    until(&format!("descriptors and threads are as they were: {warm:?}"), DEADLINE, || {
        last = Census::of(proxy.keeper_pid()).unwrap();
        last.descriptors == warm.descriptors && last.threads <= warm.threads && last.zombies == 0
    });
    println!("keeper after {WARM_UP}: {:?}, after {UPGRADES}: {:?}", warm.memory, last.memory);
    assert!(last.memory.private <= warm.memory.private + GROWTH, "{:?} after {:?}", last.memory, warm.memory);
    assert!(last.memory.resident <= warm.memory.resident + GROWTH, "{:?} after {:?}", last.memory, warm.memory);

    until("no session is shown as live", DEADLINE, || proxy.metrics().count("proxyd_sessions_active", &[]) == 0);
    let metrics = proxy.metrics();
    assert_eq!(metrics.fallen_since(&seen), [""; 0]);
    let count = |name: &str, labels: &[(&str, &str)]| metrics.count(name, labels);
    assert_eq!(count("proxyd_sessions_total", &[]), tally.opened);
    assert_eq!(count("proxyd_sessions_closed_total", &[]), tally.opened);
    assert_eq!(count("proxyd_sessions_forced_closed_total", &[]), 0);
    assert_eq!(count("proxyd_backend_sessions_total", &[]), tally.opened);
    assert_eq!(count("proxyd_upgrades_total", &[("result", "committed")]), UPGRADES);
    assert_eq!(count("proxyd_worker_restarts_total", &[]), 0);
    let bytes = |direction: &str| count("proxyd_session_bytes_total", &[("direction", direction)]);
    assert_eq!(bytes("received"), tally.opened * (u64::from(exchange.up) + AROUND_UP));
    assert_eq!(bytes("sent"), tally.opened * (u64::from(exchange.down) + AROUND_DOWN));
    let ended = |reason: &str| count("proxyd_sessions_closed_total", &[("reason", reason)]);
    assert_eq!(ended("client_closed") + ended("backend_closed"), tally.opened);
}
