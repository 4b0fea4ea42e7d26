//! The harness, tried by itself: a checker that sees nothing would make every other test worthless.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::panic::AssertUnwindSafe;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::child::{Guarded, Process, children};
use harness::seeded::{self, Bytes, Hello};
use harness::server::{Server, any_v4, runtime};
use harness::{
    Census, Conf, Exchange, Fault, Load, LongSessions, LongStreams, Metrics, Mix, Pace, Port, Seeded, Stalled, Tagged,
    census, http, service, tuples, until,
};
use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const DEADLINE: Duration = Duration::from_secs(20);
const PACE: Pace = Pace { frame: 900, every: Duration::from_millis(2) };

/// As proxyd binds: with `SO_REUSEADDR`.
fn listen(address: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(16)?;
    Ok(socket)
}

#[test]
fn a_reserved_port_refuses_until_its_owner_listens() {
    for port in [Port::reserve(), Port::reserve_v6()] {
        assert!(TcpStream::connect(port.address()).is_err());
        let listener = listen(port.address()).unwrap();
        TcpStream::connect(port.address()).unwrap();
        drop(listener);
        listen(port.address()).unwrap();
    }
}

#[test]
fn nobody_else_gets_a_reserved_port() {
    let port = Port::reserve();
    let plain = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    assert!(plain.bind(&port.address().into()).is_err(), "a program without SO_REUSEADDR gets it");
    let others: Vec<Port> = (0..3_000).map(|_| Port::reserve()).collect();
    let numbers: BTreeSet<u16> = others.iter().map(Port::number).collect();
    assert_eq!(numbers.len(), others.len(), "two tests would share a port");
    assert!(!numbers.contains(&port.number()));
}

#[test]
fn a_range_is_of_neighbours() {
    let ports = Port::reserve_range(20);
    assert!(ports.windows(2).all(|two| two[1].number() == two[0].number() + 1));
    let _listening: Vec<Socket> = ports.iter().map(|port| listen(port.address()).unwrap()).collect();
}

#[test]
fn seeded_bytes_follow_from_seed_and_place() {
    let mut whole = vec![0; 1_000];
    Bytes::up(7).fill(&mut whole);
    let (mut pieces, mut place) = (Bytes::up(7), 0);
    for size in (1..).take_while(|size| size * (size + 1) / 2 <= whole.len()) {
        pieces.check(&whole[place..place + size]).unwrap();
        place += size;
    }
    assert!(Bytes::down(7).check(&whole).is_err());
    assert!(Bytes::up(8).check(&whole).is_err());
    whole[500] ^= 1;
    assert!(Bytes::up(7).check(&whole).unwrap_err().to_string().contains("500"));
}

#[test]
fn load_and_long_streams_are_clean_over_a_direct_socket() {
    let backend = Seeded::start();
    let streams = LongStreams::start(backend.address(), 5, PACE);
    let load = Load::start(backend.address(), 200, Exchange { up: 70_000, down: 150_000 });
    until("load and streams have moved", DEADLINE, || {
        load.tally().clean >= 50 && streams.tally().bytes_up > 50_000 && streams.tally().bytes_down > 50_000
    });
    let (load, streams) = (load.stop(), streams.stop());
    load.assert_clean();
    streams.assert_clean();
    until("the backend has ended as well", DEADLINE, || {
        let tally = backend.tally();
        tally.opened == tally.clean + tally.faults()
    });
    let seen = backend.tally();
    seen.assert_clean();
    assert_eq!(seen.opened, load.opened + streams.opened);
    assert_eq!(
        (seen.bytes_up, seen.bytes_down),
        (load.bytes_up + streams.bytes_up, load.bytes_down + streams.bytes_down)
    );
}

/// A backend that answers the hello, then spoils the stream in the given way.
fn spoiler(spoil: fn(&mut Vec<u8>), reset: bool) -> Server {
    Server::start(any_v4(), move |mut stream| async move {
        let hello = Hello::read(&mut stream).await.unwrap();
        let mut answer = Vec::new();
        let mut bytes = Bytes::down(hello.seed);
        seeded::send_frame(&mut answer, &mut bytes, 100).await.unwrap();
        seeded::send_frame(&mut answer, &mut bytes, 0).await.unwrap();
        spoil(&mut answer);
        stream.write_all(&answer).await.unwrap();
        if reset {
            stream.set_zero_linger().unwrap();
        } else {
            stream.shutdown().await.unwrap();
            while stream.read(&mut [0; 1024]).await.is_ok_and(|n| n > 0) {}
        }
    })
}

#[test]
fn every_fault_is_seen() {
    let corrupt = spoiler(|answer| answer[50] ^= 4, false);
    let lost = spoiler(|answer| drop(answer.drain(40..60)), false);
    let doubled = spoiler(|answer| answer.extend_from_within(..), false);
    let truncated = spoiler(|answer| answer.truncate(104), false);
    let reset = spoiler(|answer| answer.truncate(60), true);
    let refused = Port::reserve();
    let run = |address: SocketAddr| {
        let load = Load::start(address, 100, Exchange { up: 10, down: 100 });
        until("an exchange has ended", DEADLINE, || load.tally().clean + load.tally().faults() > 0);
        load.stop()
    };
    let all = |fault: u64, opened: u64| fault == opened && opened > 0;
    let tally = run(corrupt.address());
    assert!(all(tally.corrupt, tally.opened), "{tally:?}");
    let tally = run(lost.address());
    assert!(all(tally.corrupt + tally.truncated, tally.opened), "{tally:?}");
    let tally = run(doubled.address());
    assert!(all(tally.corrupt, tally.opened), "{tally:?}");
    let tally = run(truncated.address());
    assert!(all(tally.truncated, tally.opened), "{tally:?}");
    let tally = run(reset.address());
    assert!(all(tally.reset, tally.opened), "{tally:?}");
    let tally = run(refused.address());
    assert!(all(tally.refused, tally.opened), "{tally:?}");
    assert!(std::panic::catch_unwind(|| tally.assert_clean()).is_err());
}

#[test]
fn what_breaks_a_long_session_is_told() {
    let mix = Mix { idle: 1, chatting: 1, bulk: 1 };
    let broken = |address: SocketAddr| {
        let sessions = LongSessions::begin(address, mix);
        until("all are broken", DEADLINE, || sessions.troubles().len() == sessions.len());
        assert!(std::panic::catch_unwind(AssertUnwindSafe(|| sessions.assert_unbroken())).is_err());
        let (_, troubles) = sessions.finish_some();
        troubles.into_iter().map(|trouble| trouble.fault).collect::<Vec<_>>()
    };
    let spoilt = [
        (spoiler(|answer| answer[50] ^= 4, false), Fault::Corrupt),
        (spoiler(|answer| answer.truncate(104), false), Fault::Truncated),
        (spoiler(|answer| answer.truncate(60), true), Fault::Reset),
    ];
    for (backend, fault) in spoilt {
        assert_eq!(broken(backend.address()), [fault; 3]);
    }
    assert_eq!(broken(Port::reserve().address()), [Fault::Refused; 3]);
}

#[test]
fn long_sessions_go_on_over_their_own_connections_and_end() {
    let backend = Seeded::start();
    let sessions = LongSessions::start(backend.address(), Mix { idle: 2, chatting: 2, bulk: 1 });
    let before = tuples(&[backend.address().port()]);
    assert_eq!(before.len(), 2 * sessions.len());
    sessions.all_go_on();
    assert_eq!(tuples(&[backend.address().port()]), before);
    let counts = sessions.finish();
    until("the backend has seen their ends", DEADLINE, || backend.tally().clean == 5);
    let (up, down) = counts.iter().fold((0, 0), |(up, down), one| (up + one.up, down + one.down));
    let tally = backend.tally();
    // The hello, and around each frame its length.
    assert!(up > tally.bytes_up && down > tally.bytes_down, "{up}, {down}, {tally:?}");
    assert_eq!(tuples(&[backend.address().port()]).len(), 0);
}

#[test]
fn a_tagged_backend_says_who_it_is_and_echoes() {
    let backend = Tagged::start("blue");
    let mut client = TcpStream::connect(backend.address()).unwrap();
    client.write_all(b"hello").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "blue\nhello");
    assert_eq!(backend.accepted(), 1);
}

#[test]
fn a_stalled_backend_reads_only_when_told() {
    let backend = Stalled::start();
    let client = runtime();
    let sent = client.block_on(async {
        let stream = tokio::net::TcpStream::connect(backend.address()).await.unwrap();
        let mut sent = 0;
        // Until both kernel buffers are full, which shows as no room within the time.
        while tokio::time::timeout(Duration::from_millis(200), stream.writable()).await.is_ok() {
            sent += stream.try_write(&[0; 65_536]).unwrap_or(0);
        }
        assert_eq!(backend.bytes_read(), 0);
        backend.resume();
        drop(stream);
        sent
    });
    until("all is read", DEADLINE, || backend.bytes_read() == u64::try_from(sent).unwrap());
}

/// A program that waits, after the shell has done `first`.
fn waiting(first: &str) -> Guarded {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{first}; exec cat")]);
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let process = Guarded::new(shell.spawn().unwrap(), Signal::SIGKILL);
    let name = format!("/proc/{}/comm", process.pid());
    until("the shell has become the program", DEADLINE, || std::fs::read_to_string(&name).unwrap() == "cat\n");
    process
}

#[test]
fn a_census_counts_what_a_process_holds() {
    // The test may itself have been started with descriptors that every child inherits.
    let (bare, holding) = (waiting(":"), waiting("exec 5</dev/null 6</dev/null 7</dev/null"));
    until("the loader has closed its files", DEADLINE, || {
        let (bare, holding) = (Census::of(bare.pid()).unwrap(), Census::of(holding.pid()).unwrap());
        let kinds = |census: &Census| (census.descriptors["file"], census.descriptors["pipe"]);
        let ((files, pipes), (more, same)) = (kinds(&bare), kinds(&holding));
        more == files + 3 && same == pipes && holding.open() == bare.open() + 3
    });
    let census = Census::of(holding.pid()).unwrap();
    assert_eq!((census.threads, census.zombies), (1, 0));
    assert!(census.memory.resident >= census.memory.private && census.memory.private > 0);
    assert!(census::cpu(holding.pid()).is_some());
    assert!(Census::of(u32::MAX >> 1).is_none());
}

#[test]
fn a_census_counts_unreaped_children() {
    let mut shell = Command::new("sh");
    // The shell becomes a program that does not reap what the shell had started.
    shell.args(["-c", "true & exec tail -f /dev/null"]);
    let parent = Guarded::new(shell.spawn().unwrap(), Signal::SIGKILL);
    until("the child is a zombie", DEADLINE, || Census::of(parent.pid()).is_some_and(|census| census.zombies == 1));
    let child = children(parent.pid())[0];
    let child = Process::of(child).unwrap();
    assert!(child.exists());
    drop(parent);
    until("init has reaped it", DEADLINE, || !child.exists());
}

#[test]
fn samples_are_found_by_name_and_labels() {
    let text = "# TYPE a counter\na{x=\"1\",y=\"q\\\"\\\\\\n, }\"} 3\na{x=\"2\"} 4 1700000\n# TYPE g gauge\ng 1e3\n";
    let metrics = Metrics::parse(text);
    assert_eq!(metrics.value("a", &[("x", "1")]), Some(3.0));
    assert_eq!(metrics.value("a", &[("y", "q\"\\\n, }")]), Some(3.0));
    assert_eq!(metrics.value("a", &[("x", "3")]), None);
    assert_eq!(metrics.value("g", &[]), Some(1000.0));
    assert!((metrics.sum("a", &[]) - 7.0).abs() < f64::EPSILON);
    let later = Metrics::parse("# TYPE a counter\na{x=\"2\"} 3\n# TYPE g gauge\ng 1\n");
    assert_eq!(later.fallen_since(&metrics).len(), 2, "one fell, one is gone, the gauge may fall");
    assert!(metrics.fallen_since(&metrics).is_empty());
}

#[test]
fn what_a_test_writes_wins_over_what_is_filled_in() {
    let (port, admin) = (Port::reserve(), Port::reserve());
    let conf =
        Conf::simple(&port, &[admin.address()]).with("runtime", "threads = 1").with("runtime", "log = \"debug\"");
    let text = conf.render(std::path::Path::new("/s"), admin.address());
    assert_eq!(text.matches("[runtime]").count(), 1);
    assert!(text.contains("threads = 1\nlog = \"debug\"\nstate_dir = \"/s\"\n"), "{text}");
    assert!(text.contains(&format!("[admin]\nlisten = \"{admin}\"\n")) && !text.contains("threads = 2"), "{text}");
}

#[test]
fn redis_starts_and_answers() {
    let Some(redis) = service::Redis::start() else { return };
    let answer = redis.cli(redis.address(), &["INCR", "n"]);
    assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "1");
}

#[test]
fn postgres_starts_and_answers() {
    let Some(postgres) = service::Postgres::start() else { return };
    let Some(mut psql) = postgres.client("psql", postgres.address(), &["-Atc", "select 6 * 7"]) else { return };
    let answer = psql.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "42", "{answer:?}");
}

#[test]
fn mariadb_starts_and_answers() {
    let Some(mariadb) = service::MariaDb::start() else { return };
    let answer = mariadb.client(mariadb.address(), &["-e", "select 6 * 7"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "42", "{answer:?}");
}

#[test]
fn sshd_lets_us_in() {
    let Some(sshd) = service::Sshd::start() else { return };
    let Some(mut ssh) = sshd.client("ssh", sshd.address()) else { return };
    let answer = ssh.arg("echo $((6 * 7))").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "42", "{answer:?}");
}

#[test]
fn prometheus_starts_scrapes_and_answers() {
    let page = Server::start(any_v4(), |mut stream| async move {
        let _request = stream.read(&mut [0; 4096]).await;
        let body = "# TYPE a counter\na 5\n";
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let _gone = stream.write_all(format!("{head}{body}").as_bytes()).await;
    });
    assert_eq!(http::fetch(page.address(), "/metrics").unwrap().status, 200);
    let Some(prometheus) = service::Prometheus::start(page.address(), Duration::from_millis(200)) else { return };
    until("the page is scraped", DEADLINE, || prometheus.query("a + 1") == [6.0]);
}
