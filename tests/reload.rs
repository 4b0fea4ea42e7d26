//! The file is read again while it runs: listeners come and go, those that stay keep their socket, and a file that cannot be
//! put in force as a whole changes nothing.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use harness::client::wait_all_ended;
use harness::{Census, Client, Conf, End, Port, Proxy, Tagged, peer, until};
use nix::sys::signal::Signal;
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(20);

/// The inode of the socket that listens on this IPv4 address: field 10 of `/proc/net/tcp`, state 0A.
fn inode(address: SocketAddr) -> Option<u64> {
    let SocketAddr::V4(v4) = address else { panic!("{address} is not IPv4") };
    let local = format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let mut lines = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let found = lines.find(|fields| fields.get(1) == Some(&local.as_str()) && fields[3] == "0A")?;
    found[9].parse().ok()
}

fn config_version(proxy: &Proxy) -> u64 {
    proxy.status()["config"]["version"].as_u64().unwrap()
}

/// Refused, saying this, and without an effect.
#[track_caller]
fn refused(proxy: &Proxy, parts: &[&str]) {
    let before = proxy.status();
    let output = proxy.ctl(&["reload"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} is missing in {said}");
    }
    let after = proxy.status();
    for part in ["listeners", "pools", "config"] {
        assert_eq!(settled(&before[part]), settled(&after[part]), "a refused reload has changed {part}");
    }
}

/// Without the sessions, which come and go by themselves.
fn settled(value: &Value) -> Value {
    match value {
        Value::Object(members) => members
            .iter()
            .filter(|(key, _)| *key != "sessions")
            .map(|(key, value)| (key.clone(), settled(value)))
            .collect(),
        Value::Array(items) => items.iter().map(settled).collect(),
        other => other.clone(),
    }
}

#[test]
fn listeners_come_and_go_and_those_that_stay_keep_their_socket() {
    let backend = Tagged::start("a");
    let (stays, goes, comes) = (Port::reserve(), Port::reserve(), Port::reserve());
    let base = Conf::simple(&stays, &[backend.address()]).with("drain", "timeout = \"2s\"\nspread = \"1s\"");
    let proxy = Proxy::start(&base.clone().listener("goes", &goes.to_string(), "pool"));
    let kept = inode(stays.address()).unwrap();
    let mut on_kept = Client::greeted(stays.address()).0;
    let mut on_gone = Client::many(goes.address(), 3);

    proxy.write_config(&base.clone().listener("comes", &comes.to_string(), "pool"));
    let changed = proxy.ctl_json(&["reload"]);
    assert_eq!(changed["version"], 2, "{changed}");
    assert_eq!(inode(stays.address()), Some(kept), "the socket of an unchanged listener");
    Client::greeted(comes.address()).0.echo("the added one");
    let error = TcpStream::connect(goes.address()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    // Sessions of the removed listener go on until their drain ends.
    on_gone[0].echo("for now");
    let number = goes.address();
    wait_all_ended(&mut on_gone, DEADLINE);
    assert!(on_gone.iter_mut().all(|client| client.wait_end() == End::Reset));
    assert_eq!(proxy.metrics().count("proxyd_sessions_forced_closed_total", &[("cause", "drain")]), 3);
    on_kept.echo("not meant");

    drop(goes);
    let other = TcpListener::bind(number).expect("another program can have the port");
    drop(TcpStream::connect(number).unwrap());
    drop(other);
}

#[test]
fn a_port_that_changes_hands_is_bound_by_others_while_sessions_drain() {
    let backend = Tagged::start("a");
    let (stays, goes) = (Port::reserve(), Port::reserve());
    let base = Conf::simple(&stays, &[backend.address()]).with("drain", "timeout = \"off\"").staying();
    let proxy = Proxy::start(&base.clone().listener("goes", &goes.to_string(), "pool"));
    // Two generations have it, and a crashed one had.
    let mut old = Client::greeted(goes.address()).0;
    proxy.upgrade();
    let mut new = Client::greeted(goes.address()).0;
    proxy.write_config(&base);
    proxy.ctl_json(&["reload"]);
    let error = TcpStream::connect(goes.address()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "a forgotten duplicate accepts");
    let other = TcpListener::from(listen(goes.address()));
    let _to_other = TcpStream::connect(goes.address()).unwrap();
    other.accept().unwrap();
    old.echo("drains");
    new.echo("drains");
}

/// As most servers bind: with `SO_REUSEADDR`, for there are sessions of this port.
fn listen(address: SocketAddr) -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(8).unwrap();
    socket
}

#[test]
fn hup_reloads_and_says_so() {
    let backend = Tagged::start("a");
    let (bind, added) = (Port::reserve(), Port::reserve());
    let conf = Conf::simple(&bind, &[backend.address()]);
    let proxy = Proxy::start(&conf);
    proxy.write_config(&conf.clone().listener("added", &added.to_string(), "pool"));
    proxy.signal(Signal::SIGHUP);
    until("the added listener accepts", DEADLINE, || Client::try_connect(added.address()).is_ok());
    proxy.write_config(&conf.clone().with("drain", "timout = \"1s\""));
    proxy.signal(Signal::SIGHUP);
    until("the refusal is logged", DEADLINE, || {
        let log = proxy.stderr();
        log.contains("reload refused") && log.contains("did you mean `timeout`?")
    });
    Client::greeted(added.address()).0.echo("as before");
    let reloads = |result| proxy.metrics().count("proxyd_config_reloads_total", &[("result", result)]);
    assert_eq!((reloads("applied"), reloads("refused")), (1, 1));
    assert_eq!(config_version(&proxy), 2);
}

#[test]
fn a_bad_file_changes_nothing_and_is_answered_with_its_lines() {
    let backend = Tagged::start("a");
    let bind = Port::reserve();
    let conf = Conf::simple(&bind, &[backend.address()]);
    let proxy = Proxy::start(&conf);
    let mut session = Client::greeted(bind.address()).0;
    let text = fs::read_to_string(proxy.config()).unwrap();
    let write = |text: &[u8]| fs::write(proxy.config(), text).unwrap();
    let again = format!("{text}\n[listeners.twin]\nbind = \"{bind}\"\npool = \"pool\"\n");
    let cases: [(&str, Vec<u8>, &[&str]); 8] = [
        ("K1 empty", Vec::new(), &["there is no listener"]),
        ("K1 not UTF-8", b"[admin]\nlisten = \"\xff\"\n".to_vec(), &["proxyd.toml:2:11", "not UTF-8"]),
        ("K2 misspelt", text.replace("pool = ", "pol = ").into(), &["did you mean `pool`?", "proxyd.toml:3:1"]),
        ("K3 port", text.replace(&format!(":{}\"", bind.number()), ":65536\"").into(), &["65536"]),
        ("K4 twice", again.into(), &["listener `main`", "listener `twin`"]),
        ("K5 no such pool", text.replace("pool = \"pool\"", "pool = \"pol\"").into(), &["there is no pool `pol`"]),
        ("K6 loop", text.replace(&backend.address().to_string(), &bind.to_string()).into(), &["sends to itself"]),
        ("K7 unit", format!("{text}\n[drain]\ntimeout = \"10\"\n").into(), &["has no unit"]),
    ];
    for (row, bytes, parts) in cases {
        write(&bytes);
        println!("{row}");
        refused(&proxy, parts);
        Client::greeted(bind.address()).0.echo("serves as before");
    }
    fs::remove_file(proxy.config()).unwrap();
    refused(&proxy, &["no such file"]);
    write(text.as_bytes());
    assert_eq!(proxy.ctl_json(&["reload"])["version"], 1);
    session.echo("still there");
}

#[test]
fn k12_what_a_reload_cannot_change_says_what_can() {
    let backend = Tagged::start("a");
    let bind = Port::reserve();
    let conf = Conf::simple(&bind, &[backend.address()]);
    let proxy = Proxy::start(&conf);
    proxy.write_config(&conf.clone().with("runtime", "threads = 1"));
    refused(&proxy, &["runtime.threads", "use `proxyctl upgrade`"]);
    let text = fs::read_to_string(proxy.config()).unwrap();
    let elsewhere = proxy.directory().join("elsewhere");
    let moved = text
        .replace("threads = 1", "threads = 2")
        .replace(&format!("{:?}", proxy.directory().join("state")), &format!("{elsewhere:?}"));
    fs::create_dir(&elsewhere).unwrap();
    fs::write(proxy.config(), moved).unwrap();
    refused(&proxy, &["runtime.state_dir", "restart"]);
    proxy.write_config(&conf.with("runtime", "threads = 1"));
    proxy.upgrade();
    let plane = Census::of(proxy.serving_pid()).unwrap().threads;
    Client::greeted(bind.address()).0.echo("with one data thread");
    assert!(plane >= 2, "a control thread and one data thread, there are {plane}");
}

#[test]
fn f26_a_port_in_use_refuses_the_whole_reload() {
    let backend = Tagged::start("a");
    let (bind, free) = (Port::reserve(), Port::reserve());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_by_other = taken.local_addr().unwrap().to_string();
    let conf = Conf::simple(&bind, &[backend.address()]);
    let proxy = Proxy::start(&conf);
    let before = Census::of(proxy.keeper_pid()).unwrap().descriptors;
    // `added` comes first in any order: by name, and by place.
    let both = conf.clone().listener("added", &free.to_string(), "pool").listener("taken", &taken_by_other, "pool");
    proxy.write_config(&both.with("pools.pool", "connect_retries = 7"));
    refused(&proxy, &["taken", &taken_by_other, "another program holds it"]);
    let error = TcpStream::connect(free.address()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "half of a reload is in force");
    until("the keeper holds no more than before", DEADLINE, || {
        let now = Census::of(proxy.keeper_pid()).unwrap().descriptors;
        now.iter().all(|(kind, count)| before.get(kind).is_some_and(|had| count <= had))
    });
    Client::greeted(bind.address()).0.echo("serves as before");
}

#[test]
fn three_hundred_listeners_are_added_in_one_reload_and_removed_in_another() {
    let backend = Tagged::start("a");
    let bind = Port::reserve();
    let many: Vec<Port> = (0..300).map(|_| Port::reserve()).collect();
    let conf = Conf::simple(&bind, &[backend.address()]);
    let proxy = Proxy::start(&conf);
    let keeper = |proxy: &Proxy| Census::of(proxy.keeper_pid()).unwrap().descriptors;
    let before = keeper(&proxy);
    let all = many
        .iter()
        .enumerate()
        .fold(conf.clone(), |conf, (number, port)| conf.listener(&format!("l{number}"), &port.to_string(), "pool"));
    proxy.write_config(&all);
    proxy.ctl_json(&["reload"]);
    for port in &many {
        assert_eq!(Client::greeted(port.address()).1, "a");
    }
    proxy.upgrade();
    for port in &many {
        assert_eq!(Client::greeted(port.address()).1, "a");
    }
    proxy.write_config(&conf);
    proxy.ctl_json(&["reload"]);
    for port in &many {
        assert_eq!(TcpStream::connect(port.address()).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    assert_eq!(Client::greeted(bind.address()).1, "a");
    // Names of 300 listeners outgrow the first ledger segment: a second one is allowed to stay.
    until("the keeper has closed its duplicates", DEADLINE, || keeper(&proxy).get("socket") <= before.get("socket"));
}

/// The queue length that `ss` shows for a listening socket.
fn backlog(address: SocketAddr) -> Option<u32> {
    let ss = peer("ss")?;
    let output = Command::new(ss).args(["-Hltn", &format!("sport = :{}", address.port())]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).split_ascii_whitespace().nth(2)?.parse().ok()
}

#[test]
fn changed_settings_take_effect_on_sockets_that_are_kept() {
    let backend = Tagged::start("a");
    let (bind, directory) = (Port::reserve(), tempfile::tempdir().unwrap());
    let path = directory.path().join("front.sock");
    let unix = format!("unix:{}", path.display());
    let base = Conf::new().pool("pool", &[backend.address()]).listener("main", &bind.to_string(), "pool");
    let base = base.listener("unix", &unix, "pool");
    let proxy =
        Proxy::start(&base.clone().with("listeners.main", "backlog = 100").with("listeners.unix", "mode = \"0600\""));
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    let (kept, file) = (inode(bind.address()), fs::metadata(&path).unwrap().ino());
    assert_eq!(mode(), 0o600);
    let mut before = Client::greeted(bind.address()).0;
    let first = backlog(bind.address());

    let changed = base
        .clone()
        .with("listeners.main", "backlog = 50\nidle_timeout = \"300ms\"")
        .with("listeners.main", "keepalive = { idle = \"7s\", interval = \"3s\", count = 2 }")
        .with("listeners.unix", "mode = \"0666\"");
    proxy.write_config(&changed);
    proxy.ctl_json(&["reload"]);
    assert_eq!((inode(bind.address()), fs::metadata(&path).unwrap().ino()), (kept, file), "the sockets are kept");
    assert_eq!(mode(), 0o666);
    drop(UnixStream::connect(&path).unwrap());
    if let Some(first) = first {
        assert_eq!((first, backlog(bind.address())), (100, Some(50)));
    }
    // idle_timeout: new sessions only.
    let mut after = Client::greeted(bind.address()).0;
    assert!(keepalive_is(bind.address(), after.local(), 7), "the new session has the new keepalive");
    after.wait_end();
    let idle =
        proxy.metrics().count("proxyd_sessions_closed_total", &[("listener", "main"), ("reason", "idle_timeout")]);
    assert_eq!(idle, 1);
    before.echo("an older session has no idle timeout");
    // max_sessions: one more has room, the next waits.
    proxy.write_config(&base.with("listeners.main", "max_sessions = 2"));
    proxy.ctl_json(&["reload"]);
    let _second = Client::greeted(bind.address());
    let mut third = Client::connect(bind.address());
    let paused = [("listener", "main"), ("why", "listener_limit")];
    until("the limit is felt", DEADLINE, || proxy.metrics().count("proxyd_accept_paused", &paused) == 1);
    drop(before);
    assert_eq!(third.line(), "a");
}

/// Whether the proxy's end of this connection has a keepalive timer of at most so many seconds.
fn keepalive_is(proxy: SocketAddr, client: SocketAddr, seconds: u64) -> bool {
    let Some(ss) = peer("ss") else { return true };
    let filter = format!("sport = :{} and dport = :{}", proxy.port(), client.port());
    let output = Command::new(ss).args(["-Htno", &filter]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let Some((_, timer)) = text.split_once("timer:(keepalive,") else { return false };
    let left = timer.split(',').next().unwrap();
    left.strip_suffix("ms").is_some()
        || left
            .strip_suffix("sec")
            .is_some_and(|left| left.split('.').next().unwrap().parse::<u64>().unwrap() <= seconds)
}
