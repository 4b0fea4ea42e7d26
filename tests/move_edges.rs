//! Sessions that are moved in an awkward state, or in the very moment in which something happens to them: what each side
//! sees is what it would have seen without an upgrade.
//!
//! With `PROXYD_LONG=1` more of them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::child::send;
use harness::client::PATIENCE;
use harness::played::{pass, rest};
use harness::seeded::Bytes;
use harness::{
    Client, Conf, End, LongSessions, Mix, Played, Port, Proxy, Seeded, Starter, Tagged, slim, until, until_moment,
};
use nix::sys::signal::Signal;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

const DEADLINE: Duration = Duration::from_secs(30);

/// What is left behind stays: nothing is closed by force here, unless a test says so.
fn patient(conf: Conf) -> Conf {
    conf.with("drain", "timeout = \"1h\"")
}

/// A proxy in front of a played backend.
fn scene(more: impl FnOnce(Conf) -> Conf) -> (Proxy, Port, Played) {
    let (backend, bind) = (Played::start(), Port::reserve());
    let conf = patient(Conf::simple(&bind, &[backend.address()])).with("upgrade", "probe = \"off\"");
    (Starter::with_binary(&more(conf), slim()).start(), bind, backend)
}

/// An upgrade that moves all of so many sessions, and leaves none of the old generations.
fn moved(proxy: &Proxy, count: u64) {
    let report = proxy.ctl_json(&["upgrade", "--probation", "0s"]);
    assert_eq!(report["result"], "committed", "{report}");
    assert_eq!(
        report["sessions"],
        serde_json::json!({"moved": count, "left": 0, "forced": 0, "recovered": 0, "unprotected": 0}),
        "{report}"
    );
    until_alone(proxy);
}

fn until_alone(proxy: &Proxy) {
    until("the old generations have ended", DEADLINE, || generations(proxy).len() == 1);
}

fn generations(proxy: &Proxy) -> Vec<Value> {
    proxy.status()["generations"].as_array().unwrap().clone()
}

fn closed(proxy: &Proxy, reason: &str) -> u64 {
    proxy.metrics().count("proxyd_sessions_closed_total", &[("reason", reason)])
}

/// A table that is doubled while threads share it lets whoever needs a descriptor wait for some 20 ms, and sessions with it.
#[test]
fn a_worker_has_room_for_all_its_descriptors_before_it_has_threads() {
    let (proxy, ..) = scene(|conf| conf.with("runtime", "max_sessions = 3000"));
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.serving_pid())).unwrap();
    let slots = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap().trim();
    assert!(slots.parse::<u64>().unwrap() >= 6_000, "{slots}");
}

#[test]
fn half_closed_sessions_keep_their_other_half() {
    let (proxy, bind, backend) = scene(|conf| conf);
    let (asking, answering) = backend.session(&bind);
    pass(&asking, &answering, "question");
    asking.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&answering).unwrap(), b"");
    let (sending, heard) = backend.session(&bind);
    pass(&heard, &sending, "greeting");
    heard.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&sending).unwrap(), b"");
    for round in 0..3 {
        moved(&proxy, 2);
        pass(&answering, &asking, &format!("answer {round}"));
        pass(&sending, &heard, &format!("more {round}"));
    }
    drop((answering, sending));
    assert_eq!((rest(&asking).unwrap(), rest(&heard).unwrap()), (vec![], vec![]));
    until("both ended as they were begun to end", DEADLINE, || {
        (closed(&proxy, "client_closed"), closed(&proxy, "backend_closed")) == (1, 1)
    });
}

/// An end of file that the proxy has read but could not yet pass on, because the bytes before it are stuck.
#[test]
fn a_half_close_behind_stuck_bytes_arrives_after_them() {
    let (proxy, bind, backend) = scene(|conf| conf);
    let (client, server) = backend.session(&bind);
    let sent = fill(&server, 7);
    server.shutdown(Shutdown::Write).unwrap();
    moved(&proxy, 1);
    pass(&client, &server, "the other way is free");
    assert_seeded(&rest(&client).unwrap(), 7, sent);
}

/// Writes what follows from a seed until nothing has gone for half a second: every buffer on the way is full.
fn fill(mut stream: &TcpStream, seed: u64) -> u64 {
    stream.set_nonblocking(true).unwrap();
    let (mut bytes, mut block, mut offset) = (Bytes::up(seed), vec![0; 64 * 1024], 0);
    bytes.fill(&mut block);
    let mut sent: u64 = 0;
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_millis(500) {
        if let Ok(n) = stream.write(&block[offset..]) {
            (offset, last) = (offset + n, Instant::now());
            sent += n as u64;
        }
        if offset == block.len() {
            bytes.fill(&mut block);
            offset = 0;
        }
    }
    stream.set_nonblocking(false).unwrap();
    sent
}

fn assert_seeded(received: &[u8], seed: u64, sent: u64) {
    Bytes::up(seed).check(received).unwrap();
    assert_eq!(received.len() as u64, sent, "bytes are missing, or too many");
}

#[test]
fn a_full_pipe_before_a_stopped_reader_loses_nothing() {
    let (proxy, bind, backend) = scene(|conf| conf);
    let pairs: Vec<_> = (0..4).map(|_| backend.session(&bind)).collect();
    // To the client, to the backend, both, neither.
    let down = [0, 2].map(|at: usize| (at, fill(&pairs[at].1, at as u64)));
    let up = [1, 2].map(|at: usize| (at, fill(&pairs[at].0, 100 + at as u64)));
    for _ in 0..3 {
        moved(&proxy, 4);
    }
    pass(&pairs[3].0, &pairs[3].1, "not concerned");
    thread::scope(|scope| {
        let whole = |mut stream: &TcpStream, seed: u64, sent: u64| {
            let mut received = vec![0; usize::try_from(sent).unwrap()];
            stream.read_exact(&mut received).unwrap();
            assert_seeded(&received, seed, sent);
        };
        for (at, sent) in down {
            let client = &pairs[at].0;
            scope.spawn(move || whole(client, at as u64, sent));
        }
        for (at, sent) in up {
            let server = &pairs[at].1;
            scope.spawn(move || whole(server, 100 + at as u64, sent));
        }
    });
    for (client, server) in &pairs {
        pass(client, server, "and it goes on");
        pass(server, client, "both ways");
    }
}

/// One byte at a time both ways: no two of them are swapped, doubled or lost.
#[test]
fn one_byte_at_a_time_stays_in_order() {
    let (proxy, bind, backend) = scene(|conf| conf);
    let pairs: Vec<_> = (0..4).map(|_| backend.session(&bind)).collect();
    let (stop, passed) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let stopped = Stop(&stop);
        for (number, (client, server)) in (0..).zip(&pairs) {
            for (seed, from, to) in [(number, client, server), (1_000 + number, server, client)] {
                let (stop, passed) = (&stop, &passed);
                scope.spawn(move || drip(from, seed, stop));
                scope.spawn(move || sip(to, seed, passed));
            }
        }
        for _ in 0..10 {
            let goal = passed.load(Ordering::Acquire) + 2_000;
            until("bytes pass", DEADLINE, || passed.load(Ordering::Acquire) >= goal);
            moved(&proxy, 4);
        }
        drop(stopped);
    });
}

/// Tells threads to stop, also while a failed test unwinds, so that nothing waits for them.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn drip(mut to: &TcpStream, seed: u64, stop: &AtomicBool) {
    let (mut bytes, mut one) = (Bytes::up(seed), [0]);
    while !stop.load(Ordering::Acquire) {
        bytes.fill(&mut one);
        to.write_all(&one).unwrap();
        // Several packets, and never so many that the machine does nothing else.
        thread::park_timeout(Duration::from_micros(200));
    }
    to.shutdown(Shutdown::Write).unwrap();
}

fn sip(mut from: &TcpStream, seed: u64, passed: &AtomicU64) {
    let (mut bytes, mut some) = (Bytes::up(seed), [0; 64]);
    loop {
        let n = from.read(&mut some).unwrap();
        if n == 0 {
            return;
        }
        bytes.check(&some[..n]).unwrap();
        passed.fetch_add(n as u64, Ordering::AcqRel);
    }
}

/// The connect to its backend is pending: it is finished by the old worker, and then the session follows the others.
#[test]
fn a_session_that_was_still_connecting_follows_when_it_is_established() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let (listener, bind) = (TcpListener::from(socket), Port::reserve());
    let conf = patient(Conf::simple(&bind, &[address])).with("upgrade", "probe = \"off\"");
    let proxy = Starter::with_binary(&conf, slim()).start();
    // The first fills the queue; the next one's SYN is dropped until there is room.
    let fill = TcpStream::connect(address).unwrap();
    let mut client = Client::connect(bind.address());
    client.send(b"?");
    until("the session connects", DEADLINE, || proxy.metrics().count("proxyd_sessions_total", &[]) == 1);
    let report = proxy.ctl_json(&["upgrade", "--probation", "0s"]);
    let sessions = &report["sessions"];
    assert_eq!((&sessions["moved"], &sessions["left"]), (&0.into(), &1.into()), "{report}");
    assert_eq!(generations(&proxy).len(), 2);
    drop((fill, listener.accept().unwrap()));
    let (mut session, _) = listener.accept().unwrap();
    session.read_exact(&mut [0]).unwrap();
    until_alone(&proxy);
    session.write_all(b"ok\n").unwrap();
    assert_eq!(client.line(), "ok");
    let moved = |result| proxy.metrics().count("proxyd_sessions_moved_total", &[("result", result)]);
    assert_eq!((moved("moved"), moved("left")), (1, 1));
}

/// A backend whose queue is full: a session connects to it until the first connection is accepted.
fn full_backend() -> (TcpListener, TcpStream) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let listener = TcpListener::from(socket);
    let fill = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener, fill)
}

/// Of two sessions that connect one can follow later, the other cannot. The worker that takes dies in between: another path is
/// laid, and finds them again.
#[test]
fn what_is_left_is_named_and_counted_once_and_what_follows_is_told_soon() {
    let ([(listener, _fill), (other, _other_fill)], ports) =
        ([full_backend(), full_backend()], [Port::reserve(), Port::reserve()]);
    let conf = Conf::simple(&ports[0], &[listener.local_addr().unwrap()])
        .listener("other", &ports[1].to_string(), "other")
        .pool("other", &[other.local_addr().unwrap()])
        .with("pools.pool", "connect_timeout = \"60s\"")
        .with("pools.other", "connect_timeout = \"60s\"");
    let conf = patient(conf).with("upgrade", "probe = \"off\"");
    let proxy = Starter::with_binary(&conf, slim()).start();
    let clients = [Client::connect(ports[0].address()), Client::connect(ports[1].address())];
    until("the sessions connect", DEADLINE, || proxy.metrics().count("proxyd_sessions_total", &[]) == 2);
    let report = proxy.ctl_json(&["upgrade", "--probation", "0s"]);
    assert_eq!(report["sessions"]["left"], 2, "{report}");

    let locals = clients.each_ref().map(|client| client.local().to_string());
    let named = || {
        let stderr = proxy.stderr();
        let lines = harness::logs::lines(&stderr, "session left");
        let field = |line, name| harness::logs::field(line, name).unwrap_or_default().to_owned();
        let mut named: Vec<[String; 3]> =
            lines.map(|line| ["client", "listener", "reason"].map(|name| field(line, name))).collect();
        named.sort_by_key(|one| one[1] == "other");
        named
    };
    let [first, second] = locals.clone();
    let wanted = [[first, "main".into(), "connecting".into()], [second, "other".into(), "connecting".into()]];
    until("each is named in the log", DEADLINE, || named() == wanted);
    let told: Vec<Value> = String::from_utf8(proxy.ctl(&["--json", "events"]).stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|event: &Value| event["event"] == "sessions_moved")
        .collect();
    let [told] = &told[..] else { panic!("{told:?}") };
    let in_event = told["left_sessions"].as_array().unwrap().iter().map(|one| one["client"].as_str().unwrap());
    assert!(
        in_event.clone().count() == 2 && locals.iter().all(|local| in_event.clone().any(|it| it == local)),
        "{told}"
    );
    assert_eq!(told["left_sessions"][0]["why"], "connecting");

    let taker = proxy.serving().unwrap();
    send(proxy.serving_pid(), Signal::SIGKILL).unwrap();
    until("they are to go to the next worker", DEADLINE, || {
        let next = proxy.serving().filter(|next| *next != taker);
        next.is_some() && proxy.status()["generations"][0]["moving_to"].as_u64() == next
    });
    // The path goes on for the other.
    drop(listener.accept().unwrap());
    let moved = |result| proxy.metrics().count("proxyd_sessions_moved_total", &[("result", result)]);
    until("one has followed, and is counted", DEADLINE, || moved("moved") == 1);
    assert_eq!(proxy.status()["generations"][0]["sessions"], 1, "the other has not");
    assert_eq!((moved("left"), named()), (2, wanted.to_vec()));
    let last = &proxy.ctl_json(&["upgrade", "--last"])["sessions"];
    let why = serde_json::json!({"connecting": 1});
    assert_eq!((&last["moved"], &last["left"], &last["left_why"]), (&1.into(), &1.into(), &why), "{last}");
}

#[test]
fn the_clocks_of_timeouts_are_not_set_back() {
    let ports: [Port; 3] = std::array::from_fn(|_| Port::reserve());
    let (backend, silent) = (Tagged::start("a"), harness::Stalled::start());
    let conf = Conf::new().pool("pool", &[backend.address()]).pool("silent", &[silent.address()]);
    let conf = patient(conf)
        .listener("idle", &ports[0].to_string(), "pool")
        .with("listeners.idle", "idle_timeout = \"3s\"")
        .listener("half", &ports[1].to_string(), "silent")
        .with("listeners.half", "half_close_timeout = \"3s\"")
        .listener("old", &ports[2].to_string(), "pool")
        .with("listeners.old", "max_lifetime = \"3s\"");
    let proxy = Starter::with_binary(&conf, slim()).start();
    let begun = Instant::now();
    let mut idle = Client::greeted(ports[0].address()).0;
    let mut half = Client::connect(ports[1].address());
    half.send(b"?");
    half.finish_sending();
    let mut old = Client::greeted(ports[2].address()).0;
    let opened = Instant::now();
    for tenths in [8, 16, 24] {
        until_moment(begun + Duration::from_millis(tenths * 100));
        let report = proxy.ctl_json(&["upgrade", "--probation", "0s"]);
        assert_eq!(report["sessions"]["moved"], 3, "{report}");
    }
    for (name, client) in [("idle", &mut idle), ("half-closed", &mut half), ("old", &mut old)] {
        client.wait_end();
        let ended = client.ended().unwrap().1;
        let (least, most) = (ended - opened, ended - begun);
        // A clock that began again at the last upgrade would end after 5.4 s.
        assert!(most >= Duration::from_secs(3), "{name}: after {most:?}");
        assert!(least < Duration::from_millis(4_500), "{name}: after {least:?}");
    }
    for reason in ["idle_timeout", "half_close_timeout", "max_lifetime"] {
        until(reason, DEADLINE, || closed(&proxy, reason) == 1);
    }
    until_alone(&proxy);
}

#[test]
fn sessions_move_to_more_and_to_fewer_threads() {
    let (port, backend) = (Port::reserve(), Seeded::start());
    let conf = |threads| {
        let conf = patient(Conf::simple(&port, &[backend.address()])).with("upgrade", "probe = \"off\"");
        conf.with("runtime", &format!("threads = {threads}"))
    };
    let proxy = Starter::with_binary(&conf(2), slim()).start();
    let sessions = LongSessions::start(port.address(), Mix { idle: 20, chatting: 20, bulk: 4 });
    for threads in [4, 1, 3] {
        proxy.write_config(&conf(threads));
        moved(&proxy, 44);
        sessions.all_go_on();
    }
    sessions.assert_counted(&proxy, &backend);
    sessions.finish();
}

/// A session is counted where it was opened, also by workers of many more threads than there were then.
#[test]
fn all_sessions_move_to_many_more_threads_and_the_ledger_does_not_grow() {
    for (few, many) in [(1, 8), (2, 12), (1, 70)] {
        let (port, backend) = (Port::reserve(), Seeded::start());
        let conf = |threads| {
            let conf = patient(Conf::simple(&port, &[backend.address()]));
            let conf = conf.with("upgrade", "probe = \"off\"\nmax_generations = 2");
            conf.with("runtime", &format!("threads = {threads}"))
        };
        let proxy = Starter::with_binary(&conf(few), slim()).start();
        let sessions = LongSessions::start(port.address(), Mix { idle: 60, chatting: 8, bulk: 2 });
        proxy.write_config(&conf(many));
        moved(&proxy, 70);
        let after = segments(&proxy);
        for _ in 0..3 {
            moved(&proxy, 70);
        }
        assert_eq!(segments(&proxy), after, "{few} to {many} threads");
        sessions.assert_counted(&proxy, &backend);
        sessions.finish();
    }
}

/// Segments of the ledger, as the keeper holds them.
fn segments(proxy: &Proxy) -> usize {
    let open = std::fs::read_dir(format!("/proc/{}/fd", proxy.keeper_pid())).unwrap();
    let targets = open.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
    targets.filter(|target| target.to_string_lossy().contains("proxyd-ledger")).count()
}

/// They go on under the terms they were opened with, until the drain of the configuration ends them.
#[test]
fn sessions_of_a_removed_listener_move_and_are_drained_there() {
    let (kept, removed, backend) = (Port::reserve(), Port::reserve(), Tagged::start("a"));
    // Of the same pool: one that went too would end them as `backend_removed`, if its drain comes first.
    let with = |conf: Conf| conf.listener("removed", &removed.to_string(), "pool");
    let without = Conf::simple(&kept, &[backend.address()]).with("drain", "timeout = \"3s\"\nspread = \"0s\"");
    let proxy = Starter::with_binary(&with(without.clone()), slim()).start();
    let (mut one, mut other) = (Client::greeted(kept.address()).0, Client::greeted(removed.address()).0);
    proxy.write_config(&without);
    moved(&proxy, 2);
    let begun = Instant::now();
    other.echo("still here");
    let rows = proxy.sessions();
    assert!(rows.iter().any(|row| row["listener"] == "removed"), "{rows:?}");
    assert_eq!(other.wait_end(), End::Reset);
    let after = other.ended().unwrap().1 - begun;
    assert!(after > Duration::from_secs(1) && after < Duration::from_secs(6), "after {after:?}");
    one.echo("not concerned");
    until("it is counted", DEADLINE, || closed(&proxy, "drain_forced") == 1);
}

/// What the timeouts of the old configuration said still holds for sessions opened under it.
#[test]
fn a_session_keeps_its_terms_under_another_configuration() {
    let (port, backend) = (Port::reserve(), Tagged::start("a"));
    let conf = |terms: &str| patient(Conf::simple(&port, &[backend.address()])).with("listeners.main", terms);
    let proxy = Starter::with_binary(&conf("max_lifetime = \"3s\""), slim()).start();
    let begun = Instant::now();
    let mut before = Client::greeted(port.address()).0;
    proxy.write_config(&conf("max_lifetime = \"off\""));
    moved(&proxy, 1);
    let mut after = Client::greeted(port.address()).0;
    assert_eq!(before.wait_end(), End::Reset);
    assert!(before.ended().unwrap().1 - begun >= Duration::from_secs(3));
    after.echo("without an end");
}

#[test]
fn sessions_of_a_unix_socket_move() {
    let backend = Tagged::start("a");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("front.sock");
    let conf =
        Conf::new().pool("pool", &[backend.address()]).listener("unix", &format!("unix:{}", path.display()), "pool");
    let proxy = Starter::with_binary(&patient(conf), slim()).start();
    let mut clients: Vec<UnixStream> = (0..10).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let exchange = |clients: &mut [UnixStream], text: &str, answer: &str| {
        for client in clients {
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.write_all(text.as_bytes()).unwrap();
            let mut got = vec![0; answer.len()];
            client.read_exact(&mut got).unwrap();
            assert_eq!(String::from_utf8_lossy(&got), answer);
        }
    };
    exchange(&mut clients, "zero\n", "a\nzero\n");
    for round in 0..3 {
        moved(&proxy, 10);
        let line = format!("round {round}\n");
        exchange(&mut clients, &line, &line);
    }
    // Half-closed, moved, and then the end.
    for client in &mut clients {
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "a clean end");
    }
}
