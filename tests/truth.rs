//! Through the whole proxy: bytes and ends arrive as they were meant, at the right side, and one session never bears what
//! happened to another.

mod harness;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use harness::census::Memory;
use harness::child::send;
use harness::client::PATIENCE;
use harness::played::{pass, reset, rest};
use harness::{
    Client, Conf, End, Exchange, Load, LongStreams, Pace, Played, Port, Proxy, Seeded, Stalled, Tagged, until,
};
use nix::sys::signal::Signal;

const DEADLINE: Duration = Duration::from_secs(20);

/// A proxy in front of a played backend.
fn scene(more: impl FnOnce(Conf) -> Conf) -> (Proxy, Port, Played) {
    let (backend, bind) = (Played::start(), Port::reserve());
    let proxy = Proxy::start(&more(Conf::simple(&bind, &[backend.address()])));
    (proxy, bind, backend)
}

fn closed(proxy: &Proxy, reason: &str) -> u64 {
    proxy.metrics().count("proxyd_sessions_closed_total", &[("reason", reason)])
}

#[track_caller]
fn until_closed(proxy: &Proxy, reason: &str, count: u64) {
    until(&format!("{count} ended as {reason}"), DEADLINE, || closed(proxy, reason) == count);
}

#[test]
fn a_half_close_leaves_the_other_half() {
    let (proxy, bind, backend) = scene(|conf| conf);
    let (client, server) = backend.session(&bind);
    pass(&client, &server, "question");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&server).unwrap(), b"");
    pass(&server, &client, "a long answer");
    drop(server);
    assert_eq!(rest(&client).unwrap(), b"");
    until_closed(&proxy, "client_closed", 1);

    let (client, server) = backend.session(&bind);
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&client).unwrap(), b"");
    pass(&client, &server, "still sending");
    drop(client);
    assert_eq!(rest(&server).unwrap(), b"");
    until_closed(&proxy, "backend_closed", 1);
}

#[test]
fn a_reset_is_carried_as_one_after_what_was_delivered() {
    let (proxy, bind, backend) = scene(|conf| conf);
    let (client, mut server) = backend.session(&bind);
    pass(&client, &server, "question");
    let answer = vec![b'x'; 200_000];
    server.write_all(&answer).unwrap();
    // All of it is on the way when the backend breaks off.
    let received = || proxy.metrics().count("proxyd_session_bytes_total", &[("direction", "sent")]) == 200_000;
    until("the proxy has passed it on", DEADLINE, received);
    reset(server);
    let mut got = Vec::new();
    let end = { &client }.read_to_end(&mut got);
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(got.len(), answer.len(), "bytes that were delivered are not taken back");
    until_closed(&proxy, "backend_reset", 1);

    let (client, server) = backend.session(&bind);
    pass(&client, &server, "question");
    reset(client);
    assert_eq!(rest(&server).unwrap_err().kind(), ErrorKind::ConnectionReset);
    until_closed(&proxy, "client_reset", 1);
}

#[test]
fn a_killed_worker_shows_nobody_a_clean_end() {
    let (proxy, bind, backend) = scene(|conf| conf);
    // Idle, in a stream, and half closed in each direction.
    let pairs: Vec<_> = (0..5).map(|_| backend.session(&bind)).collect();
    for (client, server) in &pairs {
        pass(client, server, "question");
    }
    let fill = |mut stream: &TcpStream| {
        stream.set_nonblocking(true).unwrap();
        while stream.write(&[9; 65_536]).is_ok() {}
        stream.set_nonblocking(false).unwrap();
    };
    fill(&pairs[1].0);
    fill(&pairs[2].1);
    pairs[3].0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&pairs[3].1).unwrap(), b"");
    pairs[4].1.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&pairs[4].0).unwrap(), b"");

    let worker = proxy.serving_pid();
    send(worker, Signal::SIGKILL).unwrap();
    for (number, (client, server)) in pairs.iter().enumerate() {
        // A direction that had ended in order before may end again; every other one ends in a reset.
        if number != 4 {
            assert_eq!(rest(client).unwrap_err().kind(), ErrorKind::ConnectionReset, "client {number}");
        }
        if number != 3 {
            assert_eq!(rest(server).unwrap_err().kind(), ErrorKind::ConnectionReset, "backend {number}");
        }
    }
    until_closed(&proxy, "worker_crashed", 5);
    let (client, server) = backend.session(&bind);
    pass(&client, &server, "the next worker");
}

#[test]
fn a_reset_in_a_splice_leaves_nothing_for_the_next_session() {
    let (proxy, bind, backend) = scene(|conf| conf.with("runtime", "threads = 1"));
    for round in 0..30_u8 {
        // One thread has one set of pipes: a session that breaks with bytes in a pipe, then others that splice.
        let (client, server) = backend.session(&bind);
        server.set_nonblocking(true).unwrap();
        let mut stuck = 0;
        let full = Instant::now() + Duration::from_millis(100);
        while Instant::now() < full {
            stuck += { &server }.write(&[round; 65_536]).unwrap_or(0);
        }
        assert!(stuck > 65_536);
        if round % 2 == 0 {
            reset(client);
            drop(server);
        } else {
            reset(server);
            drop(client);
        }
        let (client, server) = backend.session(&bind);
        let sent: Vec<u8> = (0..300_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let copy = sent.clone();
        let writing = std::thread::spawn(move || {
            { &server }.write_all(&copy).unwrap();
            server.shutdown(Shutdown::Write).unwrap();
            server
        });
        assert!(rest(&client).unwrap() == sent, "round {round}: bytes of another session, or lost ones");
        drop(writing.join().unwrap());
    }
    assert_eq!(closed(&proxy, "internal_error"), 0);
}

#[test]
fn a_reader_that_stops_costs_little_and_nobody_else() {
    let (stalled, seeded) = (Stalled::start(), Seeded::start());
    let (slow, fast) = (Port::reserve(), Port::reserve());
    let conf = Conf::new()
        .listener("slow", &slow.to_string(), "stalled")
        .listener("fast", &fast.to_string(), "seeded")
        .pool("stalled", &[stalled.address()])
        .pool("seeded", &[seeded.address()]);
    let proxy = Proxy::start(&conf);
    let worker = proxy.serving_pid();
    let streams = LongStreams::start(fast.address(), 10, Pace { frame: 4_000, every: Duration::from_millis(5) });
    until("streams run", DEADLINE, || streams.tally().bytes_down > 500_000);
    let before = Memory::of(worker).unwrap().resident;
    let mut clients: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(slow.address()).unwrap()).collect();
    for client in &mut clients {
        client.set_nonblocking(true).unwrap();
    }
    let mut sent = 0;
    let mut last_progress = Instant::now();
    while last_progress.elapsed() < Duration::from_secs(1) {
        for client in &mut clients {
            while let Ok(n) = client.write(&[5; 65_536]) {
                sent += n;
                last_progress = Instant::now();
            }
        }
    }
    assert_eq!(stalled.bytes_read(), 0);
    let grown = Memory::of(worker).unwrap().resident.saturating_sub(before);
    assert!(grown < 4 * 1024, "{grown} KiB for 20 stopped readers that were sent {sent} bytes");
    let moved = streams.tally().bytes_down;
    until("the others go on", DEADLINE, || streams.tally().bytes_down > moved + 500_000);
    Load::start(fast.address(), 100, Exchange::default()).stop();
    stalled.resume();
    for client in clients {
        client.set_nonblocking(false).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&client).unwrap(), b"");
    }
    until("all of it has arrived", DEADLINE, || stalled.bytes_read() == u64::try_from(sent).unwrap());
    streams.stop().assert_clean();
}

#[test]
fn who_speaks_first_is_heard_at_once() {
    let (_proxy, bind, backend) = scene(|conf| conf);
    let (client, server) = backend.session(&bind);
    // The client has not sent a byte.
    pass(&server, &client, "220 mail.example.org ESMTP");
    pass(&client, &server, "EHLO me");
}

#[test]
fn beyond_max_sessions_connections_wait_and_are_then_served() {
    let backend = Tagged::start("a");
    let bind = Port::reserve();
    let conf = Conf::simple(&bind, &[backend.address()]).with("listeners.main", "max_sessions = 5");
    let proxy = Proxy::start(&conf);
    let paused = || proxy.metrics().count("proxyd_accept_paused", &[("listener", "main"), ("why", "listener_limit")]);
    let mut first = Client::many(bind.address(), 4);
    assert_eq!(paused(), 0);
    first.extend(Client::many(bind.address(), 1));
    let mut waiting: Vec<Client> = (0..10).map(|_| Client::connect(bind.address())).collect();
    until("the listener is paused", DEADLINE, || paused() == 1);
    assert_eq!(proxy.status()["listeners"][0]["paused"], true);
    assert_eq!((backend.accepted(), proxy.metrics().count("proxyd_sessions_active", &[])), (5, 5));
    first.iter_mut().for_each(|client| client.echo("not cut"));
    assert!(waiting.iter_mut().all(|client| client.ended().is_none()));
    drop(first);
    for mut client in waiting {
        assert_eq!(client.line(), "a");
    }
    until("it accepts again", DEADLINE, || paused() == 0);
    assert_eq!(backend.accepted(), 15);
}

#[test]
fn timeouts_end_what_they_are_for_and_say_so() {
    let (idle, half, old) = (Port::reserve(), Port::reserve(), Port::reserve());
    let backend = Tagged::start("a");
    let conf = Conf::new()
        .pool("pool", &[backend.address()])
        .listener("idle", &idle.to_string(), "pool")
        .with("listeners.idle", "idle_timeout = \"1s\"")
        .listener("half", &half.to_string(), "half")
        .with("listeners.half", "half_close_timeout = \"1s\"");
    let silent = Stalled::start();
    let conf = conf
        .pool("half", &[silent.address()])
        .listener("old", &old.to_string(), "pool")
        .with("listeners.old", "max_lifetime = \"2s\"");
    let proxy = Proxy::start(&conf);

    let begun = Instant::now();
    let mut aging = Client::greeted(old.address()).0;
    let mut half_closed = Client::connect(half.address());
    half_closed.finish_sending();
    let idling_since = Instant::now();
    let mut idling = Client::greeted(idle.address()).0;
    let mut active = Client::greeted(idle.address()).0;
    while idling.ended().is_none() {
        active.echo("busy");
        aging.echo("busy");
        std::thread::park_timeout(Duration::from_millis(20));
        assert!(begun.elapsed() < DEADLINE);
    }
    assert!(idling.ended().unwrap().1 - idling_since >= Duration::from_secs(1));
    assert_eq!(half_closed.wait_end(), End::Reset);
    assert!(half_closed.ended().unwrap().1 - begun >= Duration::from_secs(1));
    aging.wait_end();
    assert!(aging.ended().unwrap().1 - begun >= Duration::from_secs(2));
    for (listener, reason) in [("idle", "idle_timeout"), ("half", "half_close_timeout"), ("old", "max_lifetime")] {
        let labels = [("listener", listener), ("reason", reason)];
        until(reason, DEADLINE, || proxy.metrics().count("proxyd_sessions_closed_total", &labels) >= 1);
    }
}

#[test]
fn a_backend_that_is_not_there_is_told_by_a_reset() {
    let nobody = Port::reserve();
    let bind = Port::reserve();
    let proxy = Proxy::start(&Conf::simple(&bind, &[nobody.address()]).with("pools.pool", "connect_retries = 0"));
    if let Ok(mut client) = Client::try_connect(bind.address()) {
        assert_eq!(client.wait_end(), End::Reset);
    }
    until_closed(&proxy, "connect_failed", 1);
    let refused = proxy.metrics().count("proxyd_backend_connect_failures_total", &[("why", "refused")]);
    assert_eq!(refused, 1);
}

#[test]
fn a_retry_finds_a_backend_that_is_there() {
    let (backend, nobody, bind) = (Tagged::start("a"), Port::reserve(), Port::reserve());
    let _proxy = Proxy::start(&Conf::simple(&bind, &[nobody.address(), backend.address()]));
    for _ in 0..10 {
        assert_eq!(Client::greeted(bind.address()).1, "a");
    }
}

#[test]
fn unix_and_ipv6_listeners() {
    let backend = Tagged::start("a");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("front.sock");
    // Reserved for IPv4, where nobody may answer for the first one; few others have an IPv6 port.
    let (only_6, both) = (Port::reserve(), Port::reserve());
    let conf = Conf::new()
        .pool("pool", &[backend.address()])
        .listener("unix", &format!("unix:{}", path.display()), "pool")
        .listener("six", &format!("[::]:{}", only_6.number()), "pool")
        .listener("both", &format!("[::]:{}", both.number()), "pool")
        .with("listeners.both", "v6only = false");
    let mut proxy = Proxy::start(&conf);
    let by_4 = |port: &Port| SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
    let by_6 = |port: &Port| SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port.number()));
    assert_eq!(Client::greeted(by_6(&only_6)).1, "a");
    assert_eq!(Client::try_connect(by_4(&only_6)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(Client::greeted(by_6(&both)).1, "a");
    let mut mapped = Client::greeted(by_4(&both)).0;
    mapped.echo("IPv4 through an IPv6 socket");

    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"question").unwrap();
    proxy.upgrade();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "a\nquestion");
    UnixStream::connect(&path).unwrap();
    drop(mapped);
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(0));
    assert!(!path.exists(), "the socket file is left behind");
}
