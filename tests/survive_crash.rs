//! `survive_crash`: sessions go on where their worker was killed, and end as any other though the keeper holds them too.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use harness::child::send;
use harness::client::PATIENCE;
use harness::{
    Census, Client, Conf, LongStreams, Pace, Port, Proxy, Seeded, Starter, Tagged, Twins, slim, twin_of, until,
};
use nix::sys::signal::Signal;
use serde_json::Value;
use socket2::SockRef;

const DEADLINE: Duration = Duration::from_secs(20);

/// Tests with load or with a promise about time have the machine to themselves, as far as this file goes.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn conf(bind: &Port, backends: &[SocketAddr]) -> Conf {
    Conf::simple(bind, backends)
        .with("listeners.main", "survive_crash = true")
        .with("runtime", "restart_backoff = \"off\"")
}

fn start(conf: &Conf) -> Proxy {
    Starter::with_binary(conf, slim()).start()
}

/// A backend that the test plays itself.
struct Played(TcpListener);

impl Played {
    fn start() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }
}

/// One session: both its ends, established and protected.
fn session(proxy: &Proxy, bind: &Port, backend: &Played) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(bind.address()).unwrap();
    let server = backend.0.accept().unwrap().0;
    for end in [&client, &server] {
        end.set_read_timeout(Some(PATIENCE)).unwrap();
        end.set_write_timeout(Some(PATIENCE)).unwrap();
        end.set_nodelay(true).unwrap();
    }
    let local = client.local_addr().unwrap().to_string();
    until("the session is protected", DEADLINE, || {
        rows(proxy).iter().any(|row| row["client"] == *local && row["protection"] == "protected")
    });
    (client, server)
}

fn rows(proxy: &Proxy) -> Vec<Value> {
    let said = proxy.ctl(&["--json", "sessions"]);
    let text = String::from_utf8(said.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn protected(proxy: &Proxy) -> usize {
    rows(proxy).iter().filter(|row| row["protection"] == "protected").count()
}

fn pass(mut from: &TcpStream, mut to: &TcpStream, text: &str) {
    from.write_all(text.as_bytes()).unwrap();
    let mut got = vec![0; text.len()];
    to.read_exact(&mut got).unwrap();
    assert_eq!(String::from_utf8(got).unwrap(), text);
}

/// Kills the worker that serves; when this returns another one does.
fn crash(proxy: &Proxy, signal: Signal) -> u32 {
    let (generation, pid) = (proxy.serving().unwrap(), proxy.serving_pid());
    send(pid, signal).unwrap();
    until("another worker serves", DEADLINE, || proxy.serving().is_some_and(|now| now != generation));
    pid
}

/// Every session belongs to the generation that serves.
fn all_moved(proxy: &Proxy) {
    until("all sessions have a living owner", DEADLINE, || {
        let serving = proxy.serving();
        rows(proxy).iter().all(|row| row["generation"].as_u64() == serving)
    });
}

/// Two of each session that it holds, beside its own.
fn pipes(pid: u32) -> usize {
    Census::of(pid).unwrap().descriptors.get("pipe").copied().unwrap_or(0)
}

#[test]
fn a_worker_killed_again_and_again_costs_no_byte() {
    let _alone = alone();
    let (port, backend) = (Port::reserve(), Seeded::start());
    let proxy = start(&conf(&port, &[backend.address()]));
    let before = pipes(proxy.keeper_pid());
    let bulk = LongStreams::start(port.address(), 4, Pace { frame: 64 * 1024, every: Duration::ZERO });
    let chat = LongStreams::start(port.address(), 20, Pace { frame: 300, every: Duration::from_millis(5) });
    until("all sessions are protected", DEADLINE, || protected(&proxy) == 24);
    let ids: Vec<Value> = rows(&proxy).iter().map(|row| row["id"].clone()).collect();
    for _ in 0..10 {
        let seen = (bulk.tally().bytes_down, chat.tally().bytes_down);
        crash(&proxy, Signal::SIGKILL);
        all_moved(&proxy);
        until("the streams go on", DEADLINE, || {
            bulk.tally().bytes_down > seen.0 + 1_000_000 && chat.tally().bytes_down > seen.1 + 20_000
        });
    }
    assert_eq!(rows(&proxy).iter().map(|row| row["id"].clone()).collect::<Vec<_>>(), ids, "the same sessions");
    let metrics = proxy.metrics();
    assert_eq!(metrics.value("proxyd_sessions_recovered_total", &[("result", "recovered")]), Some(240.0));
    assert_eq!(metrics.value("proxyd_sessions_recovered_total", &[("result", "lost")]), Some(0.0));
    let (bulk, chat) = (bulk.stop(), chat.stop());
    assert_eq!((bulk.clean, chat.clean), (4, 20), "{bulk:?} {chat:?}\n{:?}", backend.tally());
    until("the backend has seen all ends", DEADLINE, || backend.tally().clean == 24);
    until("nothing is live", DEADLINE, || rows(&proxy).is_empty());
    until("the keeper holds nothing any more", Duration::from_secs(2), || pipes(proxy.keeper_pid()) <= before);
    let closed = proxy.metrics().count("proxyd_sessions_closed_total", &[("listener", "main")]);
    assert_eq!(closed, 24, "each once");
}

#[test]
fn sessions_half_closed_either_way_go_on_and_end_in_order() {
    let _alone = alone();
    let (backend, bind) = (Played::start(), Port::reserve());
    let proxy = start(&conf(&bind, &[backend.address()]));
    let (client, server) = session(&proxy, &bind, &backend);
    let (client2, server2) = session(&proxy, &bind, &backend);
    pass(&client, &server, "last words");
    client.shutdown(Shutdown::Write).unwrap();
    server2.shutdown(Shutdown::Write).unwrap();
    assert_eq!((&server).read(&mut [0; 1]).unwrap(), 0);
    assert_eq!((&client2).read(&mut [0; 1]).unwrap(), 0);
    crash(&proxy, Signal::SIGKILL);
    all_moved(&proxy);
    pass(&server, &client, "still here");
    pass(&client2, &server2, "still here too");
    crash(&proxy, Signal::SIGKILL);
    pass(&server, &client, "and again");
    drop(server);
    assert_eq!((&client).read(&mut [0; 1]).unwrap(), 0);
    drop(client2);
    assert_eq!((&server2).read(&mut [0; 1]).unwrap(), 0);
    until("nothing is live", DEADLINE, || rows(&proxy).is_empty());
    let count =
        |reason| proxy.metrics().value("proxyd_sessions_closed_total", &[("listener", "main"), ("reason", reason)]);
    assert_eq!((count("client_closed"), count("backend_closed")), (Some(1.0), Some(1.0)));
}

#[test]
fn what_was_on_its_way_when_the_reader_stood_still_arrives() {
    let _alone = alone();
    let (backend, bind) = (Played::start(), Port::reserve());
    let proxy = start(&conf(&bind, &[backend.address()]));
    let (client, server) = session(&proxy, &bind, &backend);
    client.set_nonblocking(true).unwrap();
    let bytes: Vec<u8> = (0..=250).cycle().take(1 << 20).collect();
    let mut sent: u64 = 0;
    // Until every buffer on the way, the pipe included, is full.
    let mut stuck = None;
    until("nothing more fits", DEADLINE, || {
        let at = usize::try_from(sent % 251).unwrap();
        match (&client).write(&bytes[at..]) {
            Ok(n) => {
                sent += n as u64;
                stuck = None;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        stuck.get_or_insert_with(Instant::now).elapsed() > Duration::from_millis(300)
    });
    crash(&proxy, Signal::SIGKILL);
    all_moved(&proxy);
    client.shutdown(Shutdown::Write).unwrap();
    let mut got: u64 = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = (&server).read(&mut buffer).unwrap();
        if n == 0 {
            break;
        }
        for byte in &buffer[..n] {
            assert_eq!(u64::from(*byte), got % 251, "at {got}");
            got += 1;
        }
    }
    assert_eq!(got, sent);
}

/// How one end of a session sees the other's end, and how long it takes.
fn end_seen(mut at: &TcpStream, begun: Instant) -> (&'static str, Duration) {
    let seen = match at.read(&mut [0; 16]) {
        Ok(0) => "fin",
        Ok(_) => "bytes",
        Err(error) if error.kind() == ErrorKind::ConnectionReset => "reset",
        Err(error) => panic!("{error}"),
    };
    (seen, begun.elapsed())
}

#[test]
fn ends_are_told_at_once_though_the_keeper_holds_duplicates() {
    let _alone = alone();
    let (backend, bind) = (Played::start(), Port::reserve());
    let proxy = start(&conf(&bind, &[backend.address()]));
    let before = pipes(proxy.keeper_pid());
    for crashed in [false, true] {
        for (by_client, how) in [(true, "fin"), (false, "fin"), (true, "reset"), (false, "reset")] {
            let (client, server) = session(&proxy, &bind, &backend);
            pass(&client, &server, "hello");
            pass(&server, &client, "world");
            if crashed {
                crash(&proxy, Signal::SIGKILL);
                pass(&client, &server, "again");
            }
            let (ends, sees) = if by_client { (client, server) } else { (server, client) };
            if how == "reset" {
                SockRef::from(&ends).set_linger(Some(Duration::ZERO)).unwrap();
            }
            let begun = Instant::now();
            drop(ends);
            let (seen, took) = end_seen(&sees, begun);
            assert_eq!(seen, how, "by the client: {by_client}, after a crash: {crashed}");
            assert!(took < Duration::from_millis(100), "{how} took {took:?}");
        }
    }
    // An operator's kill resets both.
    let (client, server) = session(&proxy, &bind, &backend);
    let id = rows(&proxy).last().unwrap()["id"].to_string();
    let begun = Instant::now();
    assert!(proxy.ctl(&["kill", "--id", &id]).status.success());
    for end in [&client, &server] {
        assert_eq!(end_seen(end, begun).0, "reset");
    }
    until("the keeper holds nothing any more", Duration::from_secs(2), || pipes(proxy.keeper_pid()) <= before);
}

#[test]
fn a_peer_that_lingers_after_both_have_ended_binds_nothing_of_the_keepers() {
    let _alone = alone();
    let (backend, bind) = (Played::start(), Port::reserve());
    let proxy = start(&conf(&bind, &[backend.address()]));
    let before = pipes(proxy.keeper_pid());
    let (client, server) = session(&proxy, &bind, &backend);
    pass(&client, &server, "hello");
    assert!(pipes(proxy.keeper_pid()) >= before + 2);
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(end_seen(&client, Instant::now()).0, "fin");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(end_seen(&server, Instant::now()).0, "fin");
    // Neither is closed.
    until("the keeper has let go", Duration::from_secs(1), || pipes(proxy.keeper_pid()) <= before);
    assert_eq!(rows(&proxy).len(), 0);
}

#[test]
fn a_reset_that_came_while_nobody_lived_is_a_reset_afterwards() {
    let _alone = alone();
    let (backend, bind) = (Played::start(), Port::reserve());
    let proxy = start(&conf(&bind, &[backend.address()]));
    let (client, server) = session(&proxy, &bind, &backend);
    pass(&client, &server, "hello");
    let pid = proxy.serving_pid();
    send(pid, Signal::SIGSTOP).unwrap();
    (&client).write_all(b"unread").unwrap();
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    crash(&proxy, Signal::SIGKILL);
    let mut got = [0; 6];
    // What was sent before it may come first, as without a proxy.
    let seen = match (&server).read(&mut got) {
        Ok(6) => end_seen(&server, Instant::now()).0,
        Ok(n) => panic!("{n} bytes"),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            "reset"
        }
    };
    assert_eq!(seen, "reset");
    until("nothing is live", DEADLINE, || rows(&proxy).is_empty());
    let reset = [("listener", "main"), ("reason", "client_reset")];
    assert_eq!(proxy.metrics().value("proxyd_sessions_closed_total", &reset), Some(1.0));
}

#[test]
fn worker_and_keeper_killed_in_turn_cost_nothing() {
    let _alone = alone();
    let (port, backend) = (Port::reserve(), Seeded::start());
    let mut proxy = start(&conf(&port, &[backend.address()]));
    let streams = LongStreams::start(port.address(), 20, Pace { frame: 2_000, every: Duration::from_millis(2) });
    until("all sessions are protected", DEADLINE, || protected(&proxy) == 20);
    for _ in 0..3 {
        proxy.replace_keeper(slim());
        until("all sessions are protected again", DEADLINE, || protected(&proxy) == 20);
        let seen = streams.tally().bytes_down;
        crash(&proxy, Signal::SIGKILL);
        all_moved(&proxy);
        until("the streams go on", DEADLINE, || streams.tally().bytes_down > seen + 100_000);
    }
    let tally = streams.stop();
    assert_eq!(tally.clean, 20, "{tally:?}");
}

#[test]
fn what_was_deposited_crosses_to_the_keepers_new_version() {
    let _alone = alone();
    let (port, backend, twins) = (Port::reserve(), Seeded::start(), Twins::new());
    let proxy = Starter::with_binary(&conf(&port, &[backend.address()]), &twins.path("a")).start();
    let streams = LongStreams::start(port.address(), 10, Pace { frame: 2_000, every: Duration::from_millis(2) });
    until("all sessions are protected", DEADLINE, || protected(&proxy) == 10);
    let report = proxy.ctl_json(&["upgrade", "--binary", twins.path("b").to_str().unwrap()]);
    assert_eq!(report["result"], "committed", "{report}");
    until("the keeper is the new one", DEADLINE, || twin_of(proxy.keeper_pid()) == 'b');
    assert_eq!(protected(&proxy), 10, "and holds what it held");
    let seen = streams.tally().bytes_down;
    crash(&proxy, Signal::SIGKILL);
    all_moved(&proxy);
    until("the streams go on", DEADLINE, || streams.tally().bytes_down > seen + 100_000);
    let tally = streams.stop();
    assert_eq!(tally.clean, 10, "{tally:?}");
}

#[test]
fn a_keeper_without_room_serves_unprotected_and_says_so() {
    let _alone = alone();
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let proxy = start(&conf(&port, &[backend.address()]));
    // What is left beside the keeper's own needs is enough for some sessions, of four descriptors each.
    let keeper = rustix::process::Pid::from_raw(i32::try_from(proxy.keeper_pid()).unwrap());
    let nofile = rustix::process::Resource::Nofile;
    let before = rustix::process::getrlimit(nofile);
    let limit = rustix::process::Rlimit { current: Some(290), ..before };
    rustix::process::prlimit(keeper, nofile, limit).unwrap();
    let unprotected = |why| proxy.metrics().value("proxyd_sessions_unprotected", &[("listener", "main"), ("why", why)]);
    let mut clients = Vec::new();
    until("the keeper keeps no more", DEADLINE, || {
        clients.push(Client::greeted(port.address()).0);
        unprotected("keeper_full") > Some(2.0)
    });
    clients.iter_mut().for_each(|client| client.echo("served all the same"));
    let full = unprotected("keeper_full").unwrap();
    assert_eq!(proxy.status()["listeners"][0]["unprotected"].as_f64(), Some(full));
    let saved = protected(&proxy);
    let full = proxy.metrics().count("proxyd_sessions_unprotected", &[("listener", "main"), ("why", "keeper_full")]);
    assert_eq!(saved as u64 + full, clients.len() as u64);
}

/// The worker's end of its channel of deposits: the one nameless socket of its kind beside its standard input.
fn vault_of(pid: u32) -> Option<(i32, String)> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/unix")).ok()?;
    let lines = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let nameless = lines.filter(|line| line.len() == 7 && line[4] == "0005");
    let nameless: Vec<String> = nameless.map(|line| format!("socket:[{}]", line[6])).collect();
    let target = |fd: i32| std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?.into_os_string().into_string().ok();
    let channel = target(0)?;
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let numbers = open.filter_map(|fd| fd.ok()?.file_name().to_str()?.parse().ok());
    let sockets = numbers.filter_map(|fd| Some((fd, target(fd)?)));
    sockets.into_iter().find(|(_, target)| nameless.contains(target) && *target != channel)
}

#[test]
fn a_channel_of_deposits_that_breaks_is_opened_again() {
    let _alone = alone();
    let (backend, bind) = (Played::start(), Port::reserve());
    let proxy = start(&conf(&bind, &[backend.address()]));
    let (client, server) = session(&proxy, &bind, &backend);
    let worker = proxy.serving_pid();
    let (number, before) = vault_of(worker).unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(worker).unwrap()).unwrap();
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    let end = rustix::process::pidfd_getfd(&pidfd, number, rustix::process::PidfdGetfdFlags::empty()).unwrap();
    SockRef::from(&end).shutdown(Shutdown::Both).unwrap();
    drop(end);
    until("there is another one", DEADLINE, || vault_of(worker).is_some_and(|(_, now)| now != before));
    until("the session is protected again", DEADLINE, || protected(&proxy) == 1);
    crash(&proxy, Signal::SIGKILL);
    all_moved(&proxy);
    pass(&client, &server, "it goes on");
    pass(&server, &client, "both ways");
}

#[test]
fn a_session_that_crashes_its_worker_is_closed_and_no_other() {
    let _alone = alone();
    let (backend, bind) = (Played::start(), Port::reserve());
    let mut starter = Starter::with_binary(&conf(&bind, &[backend.address()]), slim());
    starter.command.env("PROXYD_TEST_CRASH", "crash, please");
    let proxy = starter.start();
    let others: Vec<_> = (0..5).map(|_| session(&proxy, &bind, &backend)).collect();
    let (client, server) = session(&proxy, &bind, &backend);
    (&client).write_all(b"crash, please").unwrap();
    for end in [&client, &server] {
        assert_eq!(end_seen(end, Instant::now()).0, "reset");
    }
    all_moved(&proxy);
    for (client, server) in &others {
        pass(client, server, "there");
        pass(server, client, "and back");
    }
    assert_eq!(rows(&proxy).len(), 5);
    let metrics = proxy.metrics();
    let crashed = [("listener", "main"), ("reason", "worker_crashed")];
    assert_eq!(metrics.value("proxyd_sessions_closed_total", &crashed), Some(1.0));
    assert_eq!(metrics.value("proxyd_worker_restarts_total", &[("cause", "signal")]), Some(3.0));
    let events = proxy.ctl(&["--json", "events"]);
    let events = String::from_utf8(events.stdout).unwrap();
    assert_eq!(events.matches("session_blamed").count(), 1, "{events}");
}

/// Those that wait in the backlog are there first. The limit is for them: a session that exists already has its place.
#[test]
fn sessions_go_on_in_a_worker_that_has_filled_up_meanwhile() {
    let _alone = alone();
    let (backend, bind) = (Played::start(), Port::reserve());
    let proxy = start(&conf(&bind, &[backend.address()]).with("runtime", "max_sessions = 6"));
    let old: Vec<_> = (0..6).map(|_| session(&proxy, &bind, &backend)).collect();
    let waiting: Vec<_> = (0..6).map(|_| TcpStream::connect(bind.address()).unwrap()).collect();
    until("the limit is felt", DEADLINE, || proxy.metrics().count("proxyd_accept_paused", &[]) > 0);
    crash(&proxy, Signal::SIGKILL);
    for (client, server) in &old {
        pass(client, server, "there");
        pass(server, client, "and back");
    }
    let recovered = |result| proxy.metrics().count("proxyd_sessions_recovered_total", &[("result", result)]);
    assert_eq!((recovered("recovered"), recovered("lost")), (6, 0));
    drop(old);
    for client in &waiting {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let server = backend.0.accept().unwrap().0;
        (&server).write_all(b"x").unwrap();
    }
    until("all who waited are served", DEADLINE, || {
        waiting.iter().all(|client| matches!(client.peek(&mut [0]), Ok(1)))
    });
}

#[test]
fn a_session_keeps_the_terms_it_began_under() {
    let _alone = alone();
    let (backend, bind) = (Played::start(), Port::reserve());
    let base = conf(&bind, &[backend.address()]);
    let proxy = start(&base.clone().with("listeners.main", "half_close_timeout = \"1s\""));
    let (client, server) = session(&proxy, &bind, &backend);
    proxy.write_config(&base.with("listeners.main", "half_close_timeout = \"1h\""));
    assert!(proxy.ctl(&["reload"]).status.success());
    for _ in 0..2 {
        crash(&proxy, Signal::SIGKILL);
        pass(&client, &server, "there");
    }
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(end_seen(&server, Instant::now()).0, "fin");
    assert_eq!(end_seen(&client, Instant::now()).0, "reset");
    let ended = [("listener", "main"), ("reason", "half_close_timeout")];
    assert_eq!(proxy.metrics().value("proxyd_sessions_closed_total", &ended), Some(1.0));
}

/// Then a worker is still started; it takes what the one before had, and drains with it.
#[test]
fn in_the_delay_of_a_shutdown_sessions_survive_as_before() {
    let _alone = alone();
    let (backend, bind) = (Played::start(), Port::reserve());
    let conf = conf(&bind, &[backend.address()]).with("shutdown", "delay = \"8s\"");
    let mut proxy = start(&conf.with("drain", "timeout = \"60s\""));
    let (client, server) = session(&proxy, &bind, &backend);
    proxy.signal(Signal::SIGTERM);
    until("it is told", DEADLINE, || proxy.status()["keeper"]["state"] == "shutting-down");
    crash(&proxy, Signal::SIGKILL);
    pass(&client, &server, "there");
    until("it takes no more", DEADLINE, || proxy.serving().is_none());
    pass(&server, &client, "and back");
    drop(client);
    assert_eq!(end_seen(&server, Instant::now()).0, "fin");
    drop(server);
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(0));
}

/// Both are there when the keeper looks again: no worker is started, and nobody waits for one.
#[test]
fn a_shutdown_ends_sessions_that_wait_for_a_worker() {
    let _alone = alone();
    let (backend, bind) = (Played::start(), Port::reserve());
    let mut proxy = start(&conf(&bind, &[backend.address()]));
    let ends: Vec<_> = (0..3).map(|_| session(&proxy, &bind, &backend)).collect();
    let worker = proxy.serving_pid();
    proxy.signal(Signal::SIGSTOP);
    send(worker, Signal::SIGKILL).unwrap();
    proxy.signal(Signal::SIGTERM);
    proxy.signal(Signal::SIGCONT);
    for (client, server) in &ends {
        assert_eq!((end_seen(client, Instant::now()).0, end_seen(server, Instant::now()).0), ("reset", "reset"));
    }
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(0));
    assert_eq!(proxy.stderr().matches("session ended with its worker").count(), 3, "{}", proxy.stderr());
}

/// Nobody serves for a while after so many crashes in a row: 1.6 s.
#[test]
fn a_session_that_waits_for_its_next_worker_can_be_killed() {
    let _alone = alone();
    let (backend, bind) = (Played::start(), Port::reserve());
    let proxy = start(
        &Conf::simple(&bind, &[backend.address()])
            .with("listeners.main", "survive_crash = true")
            .with("runtime", "restart_backoff = \"2s\""),
    );
    let before = pipes(proxy.keeper_pid());
    let (client, server) = session(&proxy, &bind, &backend);
    let (other, its_server) = session(&proxy, &bind, &backend);
    let local = client.local_addr().unwrap().to_string();
    let id = rows(&proxy).iter().find(|row| row["client"] == *local).unwrap()["id"].to_string();
    for _ in 0..6 {
        crash(&proxy, Signal::SIGKILL);
    }
    send(proxy.serving_pid(), Signal::SIGKILL).unwrap();
    until("nobody serves", DEADLINE, || proxy.serving().is_none());
    let killed = proxy.ctl_json(&["kill", "--id", &id]);
    assert_eq!(proxy.serving(), None, "it was killed before anyone could go on with it");
    assert_eq!((&killed["matched"], &killed["closed"]), (&1.into(), &1.into()), "{killed}");
    for end in [&client, &server] {
        assert_eq!(end_seen(end, Instant::now()).0, "reset");
    }
    all_moved(&proxy);
    pass(&other, &its_server, "the other goes on");
    let metrics = proxy.metrics();
    let closed = |reason| metrics.count("proxyd_sessions_closed_total", &[("listener", "main"), ("reason", reason)]);
    assert_eq!((closed("admin_killed"), closed("worker_crashed")), (1, 0));
    assert_eq!(metrics.count("proxyd_sessions_forced_closed_total", &[("cause", "admin")]), 1);
    assert_eq!(metrics.count("proxyd_sessions_recovered_total", &[("result", "lost")]), 0);
    drop((other, its_server));
    until("the keeper holds nothing any more", Duration::from_secs(2), || pipes(proxy.keeper_pid()) <= before);
}

#[test]
fn the_report_of_an_upgrade_says_what_was_recovered_meanwhile() {
    let _alone = alone();
    let (backend, bind) = (Played::start(), Port::reserve());
    let proxy = start(&conf(&bind, &[backend.address()]));
    let sessions = [session(&proxy, &bind, &backend), session(&proxy, &bind, &backend)];
    let old = proxy.serving_pid();
    let mut upgrade = proxy.ctl_command(&["--json", "upgrade", "--probation", "3s"]);
    let caller = upgrade.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("it is on probation", DEADLINE, || proxy.status()["upgrade"]["step"] == "probation");
    send(old, Signal::SIGKILL).unwrap();
    let told = caller.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&told.stdout).unwrap();
    let wanted = serde_json::json!({"moved": 0, "left": 0, "forced": 0, "recovered": 2, "unprotected": 0});
    assert_eq!((&report["result"], &report["sessions"]), (&"committed".into(), &wanted), "{told:?}");
    for (client, server) in &sessions {
        pass(client, server, "there");
    }
}
