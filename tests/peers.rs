//! Programs of others through the proxy, with upgrades in between: a Prometheus that scrapes it, Redis and PostgreSQL behind
//! it. Each test is skipped, loudly, where the program is not installed.

mod harness;

use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::{Client, Conf, Port, Proxy, Tagged, peer, service, until};

const DEADLINE: Duration = Duration::from_secs(60);
/// Also the time that Prometheus gives a scrape: enough on a loaded machine.
const SCRAPES: Duration = Duration::from_secs(1);

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn prometheus_scrapes_through_three_upgrades() {
    let (backend, bind) = (Tagged::start("a"), Port::reserve());
    let proxy = Proxy::start(&Conf::simple(&bind, &[backend.address()]));
    let Some(prometheus) = service::Prometheus::start(proxy.admin(), SCRAPES) else { return };
    until("it is scraped", DEADLINE, || prometheus.query("up{job=\"proxyd\"}") == [1.0]);
    for upgrades in 1..=3_u8 {
        proxy.upgrade();
        drop(Client::greeted(bind.address()));
        let query = "proxyd_upgrades_total{result=\"committed\"}";
        until("the upgrade is seen", DEADLINE, || prometheus.query(query) == [f64::from(upgrades)]);
    }
    until("sessions are seen", DEADLINE, || prometheus.query("sum(proxyd_sessions_total)") == [3.0]);
    assert_eq!(prometheus.query("min_over_time(up{job=\"proxyd\"}[5m])"), [1.0], "a scrape failed in between");
    assert_eq!(prometheus.query("sum(resets(proxyd_sessions_total[5m]))"), [0.0], "a counter fell");
}

#[test]
fn redis_serves_through_an_upgrade() {
    let Some(redis) = service::Redis::start() else { return };
    let Some(benchmark) = peer("redis-benchmark") else { return };
    let bind = Port::reserve();
    let proxy = Proxy::start(&Conf::simple(&bind, &[redis.address()]));
    let at = bind.address();
    assert_eq!(text(&redis.cli(at, &["INCR", "before"])), "1");
    let mut load = Command::new(benchmark);
    load.args(["-h", "127.0.0.1", "-p", &bind.number().to_string(), "-c", "20", "-n", "60000", "-q", "incr", "count"]);
    let mut load = load.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let count = || text(&redis.cli(at, &["GET", "count"])).parse().unwrap_or(0_u32);
    until("the load runs", DEADLINE, || count() > 1_000);
    proxy.upgrade();
    assert!(count() < 60_000, "the load was over before the upgrade: it proves nothing");
    assert_eq!(text(&redis.cli(at, &["INCR", "before"])), "2");
    let ended = load.wait().unwrap();
    assert!(ended.success(), "redis-benchmark ended with {ended}");
    assert_eq!(count(), 60_000, "an increment was lost or made twice");
}

#[test]
fn postgresql_serves_through_upgrades_and_its_books_balance() {
    let Some(postgres) = service::Postgres::start() else { return };
    let bind = Port::reserve();
    let proxy = Proxy::start(&Conf::simple(&bind, &[postgres.address()]));
    let ask = |sql: &str| -> String {
        text(&postgres.client("psql", bind.address(), &["-qAtc", sql]).unwrap().output().unwrap())
    };
    let Some(mut init) = postgres.client("pgbench", bind.address(), &["-i", "-s", "1", "-q"]) else { return };
    text(&init.output().unwrap());
    let words = ["-c", "4", "-j", "1", "-T", "6", "-n", "--random-seed=7"];
    let mut bench = postgres.client("pgbench", bind.address(), &words).unwrap();
    let running = bench.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let done = AtomicBool::new(false);
    let output = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let output = running.wait_with_output().unwrap();
            done.store(true, Ordering::Release);
            output
        });
        let made = || ask("select count(*) from pgbench_history").parse::<u32>().unwrap();
        for more in [50, 200] {
            until("transactions are made", DEADLINE, || made() >= more);
            assert!(!done.load(Ordering::Acquire), "pgbench was over before the upgrade");
            proxy.upgrade();
        }
        waiting.join().unwrap()
    });
    let said = text(&output);
    assert!(said.contains("number of failed transactions: 0") || !said.contains("failed"), "{said}");
    let sums =
        ["pgbench_accounts.abalance", "pgbench_tellers.tbalance", "pgbench_branches.bbalance", "pgbench_history.delta"]
            .map(|column| {
                let (table, column) = column.split_once('.').unwrap();
                ask(&format!("select coalesce(sum({column}), 0) from {table}"))
            });
    assert!(sums.iter().all(|sum| *sum == sums[0]), "the books do not balance: {sums:?}");
    let processed =
        said.lines().find_map(|line| line.strip_prefix("number of transactions actually processed: ")).unwrap();
    assert_eq!(ask("select count(*) from pgbench_history"), processed.split('/').next().unwrap().trim());
}
