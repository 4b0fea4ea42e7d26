//! Sessions that go to another generation, as the operator sees it: reports, verbs and views, and drains that go with them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::child::Process;
use harness::client::wait_all_ended;
use harness::{Client, Conf, End, Port, Proxy, Starter, Steady, Tagged, slim, until};
use nix::sys::signal::Signal;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

const DEADLINE: Duration = Duration::from_secs(30);

fn start(conf: &Conf) -> Proxy {
    Starter::with_binary(conf, slim()).start()
}

fn generations(proxy: &Proxy) -> Vec<(u64, String, u64)> {
    let status = proxy.status();
    let all = status["generations"].as_array().unwrap().iter();
    let number = |one: &Value, key: &str| one[key].as_u64().unwrap();
    all.map(|one| (number(one, "id"), one["state"].as_str().unwrap().to_owned(), number(one, "sessions"))).collect()
}

/// Only this one is left, and it has so many sessions.
#[track_caller]
fn alone(proxy: &Proxy, generation: u64, sessions: u64) {
    until("one generation is left", DEADLINE, || generations(proxy).len() == 1);
    assert_eq!(generations(proxy), [(generation, "serving".to_owned(), sessions)]);
}

fn rows(proxy: &Proxy) -> Vec<Value> {
    let output = proxy.ctl(&["--json", "sessions"]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What of every session stays, wherever it is.
fn identities(proxy: &Proxy) -> BTreeSet<String> {
    let keys = ["id", "listener", "pool", "backend", "client", "backend_address", "state"];
    rows(proxy).iter().map(|row| keys.map(|key| row[key].to_string()).join(" ")).collect()
}

/// Established connections from or to these addresses, each with the inode of its socket.
fn connections(of: &[SocketAddr]) -> BTreeSet<String> {
    let hex = |address: &SocketAddr| {
        let SocketAddr::V4(v4) = address else { panic!("{address} is not IPv4") };
        format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port())
    };
    let of: Vec<String> = of.iter().map(hex).collect();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let lines = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let ours = lines.filter(|line| line[3] == "01" && (of.contains(&line[1].into()) || of.contains(&line[2].into())));
    ours.map(|line| [line[1], line[2], line[9]].join(" ")).collect()
}

fn event(proxy: &Proxy, word: &str) -> Vec<Value> {
    let text = String::from_utf8(proxy.ctl(&["--json", "events"]).stdout).unwrap();
    let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|event| event["event"] == word).collect()
}

/// Lines sent and read back without a pause, until it is stopped; then how many.
struct Chat {
    stop: Arc<AtomicBool>,
    talk: std::thread::JoinHandle<u64>,
}

impl Chat {
    fn begin(mut session: Steady) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let talk = std::thread::spawn(move || {
            let mut said = 0;
            while !told.load(Ordering::Acquire) {
                session.assert_alive();
                said += 1;
            }
            said
        });
        Self { stop, talk }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.talk.join().unwrap()
    }
}

/// An upgrade that stays on probation.
fn on_probation(proxy: &Proxy) -> Child {
    let mut command = proxy.ctl_command(&["--json", "upgrade", "--probation", "60s"]);
    let caller = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("it is on probation", DEADLINE, || proxy.status()["upgrade"]["step"] == "probation");
    caller
}

#[test]
fn idle_and_chatting_sessions_go_to_the_new_generation_as_they_are() {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let proxy = start(&Conf::simple(&port, &[backend.address()]));
    let mut idle: Vec<Steady> = (0..3).map(|_| Steady::open(port.address())).collect();
    let chat = Chat::begin(Steady::open(port.address()));
    let addresses = [port.address(), backend.address()];
    let (before, sockets) = (identities(&proxy), connections(&addresses));
    assert_eq!((before.len(), sockets.len()), (4, 16), "two sides of two connections each: {sockets:?}");

    for generation in 2..=4 {
        let report = proxy.upgrade();
        let sessions = serde_json::json!({"moved": 4, "left": 0, "forced": 0, "recovered": 0, "unprotected": 0});
        assert_eq!(report["sessions"], sessions, "{report}");
        let pause = report["longest_pause_ms"].as_f64().unwrap();
        assert!(pause > 0.0 && pause < 2_000.0, "{report}");
        alone(&proxy, generation, 4);
        assert_eq!(identities(&proxy), before);
        assert_eq!(connections(&addresses), sockets, "the very same sockets");
        assert!(rows(&proxy).iter().all(|row| row["generation"] == generation));
    }
    idle.iter_mut().for_each(Steady::assert_alive);
    let said = chat.end();
    assert!(said > 0);
    drop(idle);
    until("all have ended", DEADLINE, || proxy.metrics().count("proxyd_sessions_active", &[]) == 0);
    let metrics = proxy.metrics();
    let count = |name: &str, labels: &[(&str, &str)]| metrics.count(name, labels);
    assert_eq!(count("proxyd_sessions_total", &[]), 4);
    assert_eq!(count("proxyd_sessions_closed_total", &[("reason", "client_closed")]), 4);
    assert_eq!(count("proxyd_backend_sessions_total", &[]), 4);
    assert_eq!(count("proxyd_session_seconds_count", &[]), 4);
    assert_eq!(count("proxyd_sessions_moved_total", &[("result", "moved")]), 12);
    assert_eq!(count("proxyd_sessions_moved_total", &[("result", "left")]), 0);
    assert_eq!(count("proxyd_upgrade_session_pause_seconds_count", &[]), 3);
    assert_eq!(count("proxyd_upgrade_step_seconds_count", &[("step", "move")]), 3);
    // `line N` and a newline from the chat, `line 1` from each of the others; `blue` and a newline to all.
    let chatted: u64 = (1..=said).map(|n| format!("line {n}\n").len() as u64).sum();
    assert_eq!(count("proxyd_session_bytes_total", &[("direction", "received")]), chatted + 3 * 7);
    assert_eq!(count("proxyd_session_bytes_total", &[("direction", "sent")]), chatted + 3 * 7 + 4 * 5);
    let told = event(&proxy, "sessions_moved");
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!((&told[0]["generation"], &told[0]["upgrade"]), (&1.into(), &1.into()), "{told:?}");
    assert!(told[0]["text"].as_str().unwrap().contains("generation 1 -> 2: moved 4 sessions"), "{told:?}");
}

#[test]
fn those_that_were_told_to_stay_stay_for_good() {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let proxy = start(&Conf::simple(&port, &[backend.address()]).with("drain", "timeout = \"1h\""));
    let mut stay: Vec<Steady> = (0..3).map(|_| Steady::open(port.address())).collect();
    let report = proxy.ctl_json(&["upgrade", "--sessions", "drain"]);
    assert_eq!(
        report["sessions"],
        serde_json::json!({"moved": 0, "left": 3, "forced": 0, "recovered": 0, "unprotected": 0}),
        "{report}"
    );
    assert_eq!(proxy.metrics().count("proxyd_upgrade_step_seconds_count", &[("step", "move")]), 0);
    let mut go = Steady::open(port.address());
    let report = proxy.upgrade();
    assert_eq!(
        report["sessions"],
        serde_json::json!({"moved": 1, "left": 0, "forced": 0, "recovered": 0, "unprotected": 0}),
        "{report}"
    );
    until("the second is gone", DEADLINE, || generations(&proxy).len() == 2);
    assert_eq!(generations(&proxy), [(1, "draining".to_owned(), 3), (3, "serving".to_owned(), 1)]);
    stay.iter_mut().chain([&mut go]).for_each(Steady::assert_alive);
    drop(stay);
    alone(&proxy, 3, 1);
}

#[test]
fn a_rollback_on_probation_brings_back_what_the_new_generation_has_accepted() {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let proxy = start(&Conf::simple(&port, &[backend.address()]));
    let mut sessions = vec![Steady::open(port.address())];
    let caller = on_probation(&proxy);
    sessions.extend((0..3).map(|_| Steady::open(port.address())));
    let chat = Chat::begin(Steady::open(port.address()));
    assert_eq!(generations(&proxy), [(1, "standby".to_owned(), 1), (2, "serving".to_owned(), 4)]);
    let answer = proxy.ctl(&["--json", "rollback"]);
    assert!(answer.status.success(), "{answer:?}");
    let report: Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(
        report["sessions"],
        serde_json::json!({"moved": 4, "left": 0, "forced": 0, "recovered": 0, "unprotected": 0}),
        "{report}"
    );
    assert_eq!((&report["result"], &report["step"]), (&"rolled_back".into(), &"probation".into()), "{report}");
    let told = caller.wait_with_output().unwrap();
    assert_eq!(told.status.code(), Some(6), "{told:?}");
    alone(&proxy, 1, 5);
    sessions.iter_mut().for_each(Steady::assert_alive);
    assert!(chat.end() > 0);

    // Later a rollback is an upgrade, which moves all.
    proxy.upgrade();
    let report = proxy.ctl_json(&["rollback", "--probation", "0s"]);
    assert_eq!((&report["result"], &report["sessions"]["moved"]), (&"committed".into(), &4.into()), "{report}");
    alone(&proxy, 4, 4);
    sessions.iter_mut().for_each(Steady::assert_alive);
}

#[test]
fn a_kill_finds_sessions_wherever_they_go_meanwhile() {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let proxy = start(&Conf::simple(&port, &[backend.address()]).with("upgrade", "max_generations = 8"));
    let mut spared = Client::greeted(port.address()).0;
    let spared_id = rows(&proxy)[0]["id"].to_string();
    for round in 0..4 {
        let mut clients = Client::many(port.address(), 60);
        let ids: Vec<String> =
            rows(&proxy).iter().map(|row| row["id"].to_string()).filter(|id| *id != spared_id).collect();
        let done = std::thread::scope(|scope| {
            let upgrade = scope.spawn(|| proxy.upgrade());
            // From long before the move to long after it, as an upgrade takes some 60 ms.
            std::thread::park_timeout(Duration::from_millis(round * 25));
            let done = proxy.ctl_json(&["kill", "--id", &ids.join(",")]);
            upgrade.join().unwrap();
            done
        });
        assert_eq!((&done["matched"], &done["closed"]), (&60.into(), &60.into()), "round {round}: {done}");
        wait_all_ended(&mut clients, DEADLINE);
        assert!(clients.iter_mut().all(|client| client.wait_end() == End::Reset));
    }
    assert_eq!(proxy.metrics().count("proxyd_sessions_closed_total", &[("reason", "admin_killed")]), 240);
    spared.echo("not meant");
    // One that has moved long ago.
    assert_eq!(proxy.ctl_json(&["kill", "--id", &spared_id])["closed"], 1);
    assert_eq!(spared.wait_end(), End::Reset);
}

/// The time runs on, and what came to the backend after it was enabled again is not meant.
#[test]
fn a_backend_that_was_disabled_is_left_at_the_same_moment() {
    let (port, blue, green) = (Port::reserve(), Tagged::start("blue"), Tagged::start("green"));
    let conf =
        Conf::simple(&port, &[blue.address(), green.address()]).with("drain", "timeout = \"4s\"\nspread = \"0s\"");
    let proxy = start(&conf);
    let mut sessions: Vec<(Client, String)> = (0..6).map(|_| Client::greeted(port.address())).collect();
    let disabled = Instant::now();
    let name = blue.address().to_string();
    assert!(proxy.ctl(&["backend", "disable", "pool", &name]).status.success());
    let report = proxy.upgrade();
    assert_eq!(report["sessions"]["moved"], 6, "{report}");
    alone(&proxy, 2, 6);
    // Once more: it goes with them.
    assert_eq!(proxy.upgrade()["sessions"]["moved"], 6);
    alone(&proxy, 3, 6);
    for (client, _) in &mut sessions {
        client.echo("for now");
    }
    let (mut meant, mut others): (Vec<_>, Vec<_>) = sessions.into_iter().partition(|(_, tag)| tag == "blue");
    assert_eq!((meant.len(), others.len()), (3, 3));
    let mut ends: Vec<&mut Client> = meant.iter_mut().map(|(client, _)| client).collect();
    ends.iter_mut().for_each(|client| assert_eq!(client.wait_end(), End::Reset));
    let first = ends.iter_mut().map(|client| client.ended().unwrap().1).min().unwrap();
    let (from, to) = (Duration::from_millis(3_900), Duration::from_secs(8));
    assert!((from..to).contains(&(first - disabled)), "closed {:?} after it was disabled", first - disabled);
    others.iter_mut().for_each(|(client, _)| client.echo("not meant"));
    assert_eq!(proxy.metrics().count("proxyd_sessions_forced_closed_total", &[("cause", "drain")]), 3);
}

#[test]
fn what_the_new_configuration_removes_drains_in_the_new_generation() {
    let (stays, goes, backend) = (Port::reserve(), Port::reserve(), Tagged::start("blue"));
    let base = Conf::simple(&stays, &[backend.address()]).with("drain", "timeout = \"3s\"\nspread = \"0s\"");
    let proxy = start(&base.clone().listener("goes", &goes.to_string(), "pool"));
    let mut on_gone = Client::many(goes.address(), 3);
    let mut on_kept = Client::greeted(stays.address()).0;
    proxy.write_config(&base);
    let upgraded = Instant::now();
    let report = proxy.upgrade();
    assert_eq!(report["sessions"]["moved"], 4, "{report}");
    alone(&proxy, 2, 4);
    assert!(TcpStream::connect(goes.address()).is_err(), "its socket is closed");
    on_gone.iter_mut().for_each(|client| client.echo("for now"));
    wait_all_ended(&mut on_gone, DEADLINE);
    let first = on_gone.iter_mut().map(|client| client.ended().unwrap().1).min().unwrap();
    assert!(first - upgraded >= Duration::from_millis(2_900), "closed {:?} after the upgrade began", first - upgraded);
    assert!(on_gone.iter_mut().all(|client| client.wait_end() == End::Reset));
    on_kept.echo("not meant");
    alone(&proxy, 2, 1);
}

/// The new worker hangs before it takes anything: the old one goes on after two seconds. Then it dies, and the next one takes all.
#[test]
fn a_taker_that_hangs_and_dies_in_the_middle_of_the_move_costs_nothing() {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let proxy = start(&Conf::simple(&port, &[backend.address()]).with("drain", "timeout = \"1h\""));
    let mut sessions: Vec<Steady> = (0..5).map(|_| Steady::open(port.address())).collect();
    let before = identities(&proxy);
    let (caller, taker) = stopped_in_the_move(&proxy);
    sessions.iter_mut().for_each(Steady::assert_alive);
    let refused = proxy.ctl(&["reload"]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is at step move"), "{refused:?}");
    taker.signal(Signal::SIGKILL);
    let told = caller.wait_with_output().unwrap();
    assert!(told.status.success(), "{told:?}");
    alone(&proxy, 3, 5);
    assert_eq!(identities(&proxy), before);
    sessions.iter_mut().for_each(Steady::assert_alive);
    let metrics = proxy.metrics();
    assert_eq!(metrics.count("proxyd_sessions_moved_total", &[("result", "moved")]), 5);
    assert_eq!(metrics.count("proxyd_upgrades_total", &[("result", "committed")]), 1);
}

#[test]
fn a_shutdown_in_the_middle_of_the_move_commits_and_drains() {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let mut proxy = start(&Conf::simple(&port, &[backend.address()]));
    let mut session = Steady::open(port.address());
    let (caller, _taker) = stopped_in_the_move(&proxy);
    proxy.signal(Signal::SIGTERM);
    let told = caller.wait_with_output().unwrap();
    assert!(told.status.success(), "{told:?}");
    session.assert_alive();
    drop(session);
    // The one that hangs is killed.
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(0), "{}", proxy.stderr());
}

/// An upgrade at its step `move`, whose new worker was stopped just before.
fn stopped_in_the_move(proxy: &Proxy) -> (Child, Process) {
    let mut command = proxy.ctl_command(&["--json", "upgrade", "--probation", "1s"]);
    let caller = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("it is on probation", DEADLINE, || proxy.status()["upgrade"]["step"] == "probation");
    let taker = Process::of(proxy.serving_pid()).unwrap();
    taker.signal(Signal::SIGSTOP);
    until("sessions are to move", DEADLINE, || proxy.status()["upgrade"]["step"] == "move");
    (caller, taker)
}

/// The oldest generation is to be closed by force, and hangs.
#[test]
fn an_oldest_generation_that_hangs_holds_nobody_up() {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let upgrade = "sessions = \"drain\"\nmax_generations = 2\nprobe = \"off\"";
    let conf = Conf::simple(&port, &[backend.address()]).with("upgrade", upgrade);
    let proxy = start(&conf.with("drain", "timeout = \"1h\""));
    let _oldest = Steady::open(port.address());
    let hangs = Process::of(proxy.serving_pid()).unwrap();
    proxy.upgrade();
    let mut session = Steady::open(port.address());
    hangs.signal(Signal::SIGSTOP);
    let begun = Instant::now();
    let report = proxy.ctl_json(&["upgrade", "--probation", "0s"]);
    assert_eq!((&report["result"], &report["sessions"]["forced"]), (&"committed".into(), &1.into()), "{report}");
    // Its answer was waited for 5 s.
    assert!(begun.elapsed() < Duration::from_secs(5), "after {:?}", begun.elapsed());
    session.assert_alive();
    until("it is killed", DEADLINE, || !hangs.exists());
}

/// Its backend takes no connections yet: the queue is full. When it does, the session follows the others.
#[test]
fn a_session_that_was_still_connecting_follows() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let listener = TcpListener::from(socket);
    let (port, slow, backend) = (Port::reserve(), Port::reserve(), Tagged::start("blue"));
    let conf = Conf::simple(&port, &[backend.address()])
        .listener("slow", &slow.to_string(), "slow")
        .pool("slow", &[address])
        .with("pools.slow", "connect_timeout = \"60s\"")
        .with("drain", "timeout = \"1h\"");
    let proxy = start(&conf);
    let mut other = Steady::open(port.address());
    // The first fills the queue; the next one's SYN is dropped until there is room.
    let fill = TcpStream::connect(address).unwrap();
    let mut client = Client::connect(slow.address());
    client.send(b"?");
    until("the session connects", DEADLINE, || rows(&proxy).iter().any(|row| row["state"] == "connecting"));
    let report = proxy.upgrade();
    let why = serde_json::json!({"connecting": 1});
    let sessions = &report["sessions"];
    assert_eq!(
        (&sessions["moved"], &sessions["left"], &sessions["left_why"]),
        (&1.into(), &1.into(), &why),
        "{report}"
    );
    assert_eq!(generations(&proxy), [(1, "draining".to_owned(), 1), (2, "serving".to_owned(), 1)]);
    assert_eq!(proxy.status()["generations"][0]["moving_to"], 2);
    drop((fill, listener.accept().unwrap()));
    let (mut session, _) = listener.accept().unwrap();
    session.read_exact(&mut [0]).unwrap();
    alone(&proxy, 2, 2);
    session.write_all(b"ok\n").unwrap();
    assert_eq!(client.line(), "ok");
    other.assert_alive();
    let moved = |result| proxy.metrics().count("proxyd_sessions_moved_total", &[("result", result)]);
    assert_eq!((moved("moved"), moved("left")), (2, 1));
    let sessions = serde_json::json!({"moved": 2, "left": 0, "forced": 0, "recovered": 0, "unprotected": 0});
    assert_eq!(proxy.ctl_json(&["upgrade", "--last"])["sessions"], sessions, "the report is put right");
}
