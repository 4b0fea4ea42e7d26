//! The live table and what can be cut out of it: each filter alone and together, by id, paced, counted and logged.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::time::{Duration, Instant};

use harness::client::wait_all_ended;
use harness::{Client, Conf, End, Port, Proxy, Tagged, logs, until};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(20);

fn rows(proxy: &Proxy, filter: &[&str]) -> Vec<Value> {
    let output = proxy.ctl(&[&["--json", "sessions"], filter].concat());
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The clients that the filter matches.
fn matched(proxy: &Proxy, filter: &[&str]) -> Vec<String> {
    let mut clients: Vec<String> =
        rows(proxy, filter).iter().map(|row| row["client"].as_str().unwrap().to_owned()).collect();
    clients.sort();
    clients
}

fn locals(clients: &[&Client]) -> Vec<String> {
    let mut locals: Vec<String> = clients.iter().map(|client| client.local().to_string()).collect();
    locals.sort();
    locals
}

fn killed(proxy: &Proxy) -> (u64, u64, usize) {
    let metrics = proxy.metrics();
    (
        metrics.count("proxyd_sessions_closed_total", &[("reason", "admin_killed")]),
        metrics.count("proxyd_sessions_forced_closed_total", &[("cause", "admin")]),
        logs::lines(&proxy.stderr(), "session closed by force")
            .filter(|line| logs::field(line, "reason") == Some("admin_killed"))
            .count(),
    )
}

#[test]
fn each_filter_finds_its_sessions_and_no_others() {
    let (a, b) = (Tagged::start("a"), Tagged::start("b"));
    let (one, two) = (Port::reserve(), Port::reserve());
    let conf = Conf::new()
        .listener("one", &one.to_string(), "first")
        .listener("two", &two.to_string(), "second")
        .pool("first", &[a.address()])
        .pool("second", &[b.address()])
        .with("drain", "timeout = \"off\"")
        .staying();
    let proxy = Proxy::start(&conf);
    let mut old = Client::greeted(one.address()).0;
    let from_2 = {
        let mut client = Client::connect_from([127, 0, 0, 2].into(), one.address()).unwrap();
        assert_eq!(client.line(), "a");
        client
    };
    // Idle is told from the last byte.
    until("a second has gone by", DEADLINE, || rows(&proxy, &[])[0]["age_seconds"].as_f64().unwrap() > 1.2);
    let first_generation = proxy.serving().unwrap();
    proxy.upgrade();
    let on_two = Client::greeted(two.address()).0;
    old.echo("busy");
    // A byte is noted with the coarse clock of its thread.
    let busy = |proxy: &Proxy| matched(proxy, &["--idle", "1s"]) == locals(&[&from_2]);
    until("idle finds the one that has been silent", DEADLINE, || busy(&proxy));

    let all = [&old, &from_2, &on_two];
    assert_eq!(matched(&proxy, &[]), locals(&all));
    let b_name = b.address().to_string();
    let generation = first_generation.to_string();
    let table: [(&[&str], &[&Client]); 11] = [
        (&["--listener", "one"], &[&old, &from_2]),
        (&["--listener", "two"], &[&on_two]),
        (&["--pool", "second"], &[&on_two]),
        (&["--backend", &b_name], &[&on_two]),
        (&["--client", "127.0.0.2"], &[&from_2]),
        (&["--client", "127.0.0.2/31"], &[&from_2]),
        (&["--client", "127.0.0.0/8"], &all),
        (&["--older", "1s"], &[&old, &from_2]),
        (&["--generation", &generation], &[&old, &from_2]),
        (&["--listener", "one", "--client", "127.0.0.1"], &[&old]),
        (&["--listener", "none"], &[]),
    ];
    for (filter, expected) in table {
        assert_eq!(matched(&proxy, filter), locals(expected), "{filter:?}");
    }
    let row = &rows(&proxy, &["--client", "127.0.0.2"])[0];
    assert_eq!(
        (&row["listener"], &row["pool"], &row["state"]),
        (&"one".into(), &"first".into(), &"established".into())
    );
    assert_eq!((&row["bytes_received"], &row["bytes_sent"]), (&0.into(), &2.into()), "{row}");
    assert_eq!(row["backend_address"], a.address().to_string());
    let ids: Vec<String> = rows(&proxy, &["--pool", "second"]).iter().map(|row| row["id"].to_string()).collect();
    assert_eq!(matched(&proxy, &["--id", &ids[0]]), locals(&[&on_two]));
    for (filter, said) in [(["--client", "127.0.0.0/33"], "network"), (["--idle", "10"], "unit")] {
        let output = proxy.ctl(&[&["sessions"], &filter[..]].concat());
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(said), "{output:?}");
    }
}

#[test]
fn a_kill_closes_what_matches_in_every_generation_and_nothing_else() {
    let backend = Tagged::start("a");
    let (one, two) = (Port::reserve(), Port::reserve());
    let conf = Conf::simple(&one, &[backend.address()])
        .listener("two", &two.to_string(), "pool")
        .with("drain", "timeout = \"off\"")
        .staying();
    let proxy = Proxy::start(&conf);
    let mut meant = Client::many(one.address(), 5);
    let mut spared = Client::many(two.address(), 5);
    proxy.upgrade();
    meant.extend(Client::many(one.address(), 5));
    spared.extend(Client::many(two.address(), 5));

    let dry = proxy.ctl_json(&["kill", "--listener", "main", "--dry-run"]);
    assert_eq!((&dry["matched"], &dry["closed"], &dry["dry_run"]), (&10.into(), &0.into(), &true.into()), "{dry}");
    assert_eq!(dry["sessions"].as_array().unwrap().len(), 10);
    assert_eq!(killed(&proxy), (0, 0, 0));
    meant.iter_mut().for_each(|client| client.echo("a dry run closes nothing"));

    let done = proxy.ctl_json(&["kill", "--listener", "main"]);
    assert_eq!((&done["matched"], &done["closed"]), (&10.into(), &10.into()), "{done}");
    wait_all_ended(&mut meant, DEADLINE);
    assert!(meant.iter_mut().all(|client| client.wait_end() == End::Reset));
    spared.iter_mut().for_each(|client| client.echo("not meant"));
    until("it is counted and logged", DEADLINE, || killed(&proxy) == (10, 10, 10));

    let row = &rows(&proxy, &[])[0];
    let (id, client) = (row["id"].to_string(), row["client"].as_str().unwrap());
    assert_eq!(proxy.ctl_json(&["kill", "--id", &id])["closed"], 1);
    let hit = spared.iter_mut().find(|one| one.local().to_string() == client).unwrap();
    assert_eq!(hit.wait_end(), End::Reset);
    assert_eq!(proxy.ctl_json(&["kill", "--id", &id])["matched"], 0, "an id is never given again");
    assert_eq!(proxy.ctl_json(&["kill", "--all"])["closed"], 9);
    wait_all_ended(&mut spared, DEADLINE);
    until("all is counted and logged", DEADLINE, || killed(&proxy) == (20, 20, 20));
    Client::greeted(one.address()).0.echo("new ones are welcome");
}

#[test]
fn without_a_filter_all_must_be_said() {
    let backend = Tagged::start("a");
    let bind = Port::reserve();
    let proxy = Proxy::start(&Conf::simple(&bind, &[backend.address()]));
    let mut client = Client::greeted(bind.address()).0;
    for (words, said) in [
        (&["kill"][..], "--all"),
        (&["kill", "--dry-run"], "--all"),
        (&["kill", "--all", "--listener", "main"], "contradict"),
        (&["kill", "--all", "--rate", "0"], "0"),
    ] {
        let output = proxy.ctl(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(said), "{words:?}: {output:?}");
    }
    client.echo("still there");
}

#[test]
fn a_rate_paces_the_closes() {
    let backend = Tagged::start("a");
    let bind = Port::reserve();
    let proxy = Proxy::start(&Conf::simple(&bind, &[backend.address()]));
    let mut clients = Client::many(bind.address(), 60);
    let begun = Instant::now();
    let mut command = proxy.ctl_command(&["--json", "kill", "--all", "--rate", "30"]);
    let mut running = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    wait_all_ended(&mut clients, DEADLINE);
    assert!(running.wait().unwrap().success());
    let mut ends: Vec<Duration> = clients.iter_mut().map(|client| client.ended().unwrap().1 - begun).collect();
    ends.sort();
    // 60 at 30 a second, in portions of a tenth of a second.
    assert!(ends[59] >= Duration::from_millis(1_800), "all were closed after {:?}", ends[59]);
    for second in 1..=2 {
        let by_then = ends.iter().filter(|end| **end < Duration::from_secs(second)).count();
        assert!(by_then <= 30 * usize::try_from(second).unwrap() + 3, "{by_then} were closed in {second} s");
    }
    until("all are counted and logged", DEADLINE, || killed(&proxy) == (60, 60, 60));
}
