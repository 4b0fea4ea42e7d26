//! Another installation takes over: nothing is refused or reset, and whatever goes wrong, one of the two serves.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use harness::child::{Guarded, Process, children, send, wait_exit};
use harness::slim::copy;
use harness::{
    Client, Conf, End, Exchange, Load, LongStreams, Pace, Port, Proxy, Seeded, Starter, Steady, Tagged, slim, until,
};
use nix::sys::signal::Signal;

const DEADLINE: Duration = Duration::from_secs(30);
const PACE: Pace = Pace { frame: 700, every: Duration::from_millis(10) };

/// Sessions stay where they are.
fn conf(port: &Port, backend: SocketAddr, probation: &str) -> Conf {
    moving(port, backend, probation).staying()
}

/// They go to the new generation.
fn moving(port: &Port, backend: SocketAddr, probation: &str) -> Conf {
    Conf::simple(port, &[backend])
        .with("upgrade", &format!("probation = \"{probation}\"\nmax_generations = 8"))
        .with("drain", "timeout = \"1h\"")
}

fn start(conf: &Conf) -> Proxy {
    Starter::with_binary(conf, slim()).start()
}

fn heir(proxy: &Proxy) -> Child {
    proxy.heir_command(&[slim().to_str().unwrap()], &proxy.config()).spawn().unwrap()
}

/// The pid of the keeper that answers the operator, if one does now.
fn keeper(proxy: &Proxy) -> Option<u32> {
    let answer = proxy.ctl(&["--json", "status"]);
    let status: serde_json::Value = serde_json::from_slice(&answer.stdout).ok()?;
    status["keeper"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())
}

fn is_keeper(proxy: &Proxy, child: &mut Child) -> bool {
    assert_eq!(child.try_wait().unwrap(), None, "it ended: {}", proxy.stderr());
    keeper(proxy) == Some(child.id())
}

fn generations(proxy: &Proxy) -> Vec<(u64, String)> {
    let status = proxy.status();
    let all = status["generations"].as_array().unwrap().iter();
    all.map(|one| (one["id"].as_u64().unwrap(), one["state"].as_str().unwrap().to_owned())).collect()
}

fn more(load: &Load, count: u64) {
    let goal = load.tally().clean + count;
    until("the load is served", DEADLINE, || load.tally().clean >= goal);
}

/// The heir ended, with one line that says why, and the one before serves as if nothing had been.
fn is_refused(proxy: &Proxy, refused: &mut Child, why: &str) {
    let status = wait_exit(refused, "the heir", DEADLINE);
    assert_eq!(status.code(), Some(71), "{}", proxy.stderr());
    let said = proxy.stderr();
    let line = said.lines().rfind(|line| line.starts_with("proxyd: ")).unwrap_or_default();
    assert!(line.contains("take-over from") && line.contains(why), "{why:?} is not in: {said}");
    until("the one before serves alone", DEADLINE, || {
        proxy.serving().is_some() && proxy.status()["upgrade"].is_null() && generations(proxy).len() == 1
    });
    assert_eq!(keeper(proxy), Some(proxy.keeper_pid()));
}

#[test]
fn under_load_nobody_notices_and_all_goes_on_where_it_was() {
    let (port, backend) = (Port::reserve(), Seeded::start());
    let mut proxy = start(&conf(&port, backend.address(), "1s"));
    let load = Load::start(port.address(), 200, Exchange::default());
    let streams = LongStreams::start(port.address(), 20, PACE);
    more(&load, 100);
    proxy.upgrade();
    assert!(proxy.ctl(&["backend", "weight", "pool", &backend.address().to_string(), "7"]).status.success());
    let before = proxy.metrics();
    let mut heir = heir(&proxy);
    until("the heir is the keeper", DEADLINE, || is_keeper(&proxy, &mut heir));
    let mut old = proxy.follow(heir);
    more(&load, 100);
    let now = proxy.metrics();
    let fallen = now.fallen_since(&before).into_iter();
    let fallen = fallen.filter(|line| !line.starts_with("process_") && !line.starts_with("proxyd_log_lines"));
    assert_eq!(fallen.collect::<Vec<_>>(), [""; 0]);
    assert_eq!(now.value("proxyd_upgrades_total", &[("result", "committed")]), Some(2.0));
    let status = proxy.status();
    assert_eq!(status.pointer("/pools/0/backends/0/weight"), Some(&7.into()), "{status}");
    until("the workers of the one before are known", DEADLINE, || {
        generations(&proxy).contains(&(1, "draining".into())) && generations(&proxy).contains(&(3, "serving".into()))
    });
    assert_eq!(old.try_wait().unwrap(), None, "it stays until its last worker has ended");
    // It is a whole keeper: it upgrades, counts on, and ends.
    let report = proxy.upgrade();
    assert_eq!((&report["id"], &report["from"], &report["to"]), (&3.into(), &3.into(), &4.into()), "{report}");
    streams.stop().assert_clean();
    assert_eq!(wait_exit(&mut old, "the keeper before", DEADLINE).code(), Some(0), "{}", proxy.stderr());
    load.stop().assert_clean();
    until("one generation is left", DEADLINE, || generations(&proxy) == [(4, "serving".to_owned())]);
    until("no session is shown as live", DEADLINE, || proxy.metrics().count("proxyd_sessions_active", &[]) == 0);
    let count = |name: &str| proxy.metrics().count(name, &[]);
    assert_eq!(count("proxyd_sessions_total"), count("proxyd_sessions_closed_total"));
    proxy.signal(Signal::SIGTERM);
    assert!(proxy.wait_exit(DEADLINE).success());
}

/// The heir is the keeper first; then the sessions come to its worker, and the one before can end.
#[test]
fn sessions_go_to_the_heirs_worker() {
    let (port, backend) = (Port::reserve(), Seeded::start());
    let mut proxy = start(&moving(&port, backend.address(), "1s"));
    let load = Load::start(port.address(), 100, Exchange::default());
    let streams = LongStreams::start(port.address(), 20, PACE);
    more(&load, 30);
    let mut heir = heir(&proxy);
    until("the heir is the keeper", DEADLINE, || is_keeper(&proxy, &mut heir));
    let mut old = proxy.follow(heir);
    assert_eq!(wait_exit(&mut old, "the keeper before", DEADLINE).code(), Some(0), "{}", proxy.stderr());
    until("one generation is left", DEADLINE, || generations(&proxy) == [(2, "serving".to_owned())]);
    assert!(proxy.metrics().count("proxyd_sessions_active", &[]) >= 20, "the streams still flow");
    let report = proxy.ctl_json(&["upgrade", "--last"]);
    assert!(report["sessions"]["moved"].as_u64().unwrap() >= 20, "{report}");
    more(&load, 30);
    streams.stop().assert_clean();
    load.stop().assert_clean();
}

/// Long before READY, about then, in the probation: the one before serves, and nobody else polls.
#[test]
fn an_heir_that_is_killed_at_any_moment_costs_nothing() {
    let (port, backend) = (Port::reserve(), Seeded::start());
    let proxy = start(&conf(&port, backend.address(), "60s"));
    let load = Load::start(port.address(), 200, Exchange::default());
    let streams = LongStreams::start(port.address(), 5, PACE);
    let mut on_trial = 0;
    for round in 0..10_u64 {
        more(&load, 30);
        let mut heir = heir(&proxy);
        let moment = Instant::now() + Duration::from_millis(round * 20 + fastrand::u64(0..20));
        until("the moment has come", DEADLINE, || Instant::now() >= moment);
        on_trial += u32::from(proxy.status()["upgrade"]["step"] == "probation");
        let workers: Vec<Process> = children(heir.id()).into_iter().filter_map(Process::of).collect();
        heir.kill().unwrap();
        wait_exit(&mut heir, "the heir", DEADLINE);
        until("the one before serves", DEADLINE, || {
            generations(&proxy) == [(1, "serving".to_owned())] && proxy.status()["upgrade"].is_null()
        });
        // It has nothing to drain but sessions of under a second.
        until("the heir's worker ends", DEADLINE, || workers.iter().all(|worker| !worker.exists()));
    }
    assert!(on_trial > 0, "no round came as far as the probation");
    more(&load, 50);
    load.stop().assert_clean();
    streams.stop().assert_clean();
    assert_eq!(proxy.metrics().count("proxyd_worker_restarts_total", &[]), 0);
}

#[test]
fn a_rollback_by_the_operator_ends_the_heir() {
    let (port, backend) = (Port::reserve(), Seeded::start());
    let proxy = start(&conf(&port, backend.address(), "60s"));
    let load = Load::start(port.address(), 100, Exchange::default());
    more(&load, 30);
    let mut heir = heir(&proxy);
    until("it is on probation", DEADLINE, || proxy.status()["upgrade"]["step"] == "probation");
    assert_eq!(generations(&proxy), [(1, "standby".to_owned()), (2, "serving".to_owned())]);
    more(&load, 30);
    let refused = proxy.ctl(&["pool", "swap", "main", "pool"]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    assert_eq!(proxy.ctl(&["rollback"]).status.code(), Some(0));
    is_refused(&proxy, &mut heir, "rolled back");
    more(&load, 30);
    load.stop().assert_clean();
}

/// Then the heir is all that is left: it goes on.
#[test]
fn an_heir_on_probation_goes_on_if_the_keeper_dies() {
    let (port, backend) = (Port::reserve(), Seeded::start());
    let mut proxy = start(&conf(&port, backend.address(), "60s"));
    let load = Load::start(port.address(), 100, Exchange::default());
    let streams = LongStreams::start(port.address(), 5, PACE);
    more(&load, 30);
    proxy.status();
    let mut heir = heir(&proxy);
    until("it is on probation", DEADLINE, || proxy.status()["upgrade"]["step"] == "probation");
    proxy.signal(Signal::SIGKILL);
    proxy.wait_exit(DEADLINE);
    until("the heir is the keeper", DEADLINE, || is_keeper(&proxy, &mut heir));
    wait_exit(&mut proxy.follow(heir), "the keeper that was killed", DEADLINE);
    more(&load, 50);
    until("the worker before drains", DEADLINE, || {
        generations(&proxy) == [(1, "draining".to_owned()), (2, "serving".to_owned())]
    });
    streams.stop().assert_clean();
    load.stop().assert_clean();
    until("it ends with its last session", DEADLINE, || generations(&proxy) == [(2, "serving".to_owned())]);
    let report = proxy.ctl_json(&["upgrade", "--probation", "0s"]);
    assert_eq!((&report["result"], &report["id"]), (&"committed".into(), &2.into()), "{report}");
}

#[test]
fn a_second_heir_is_refused() {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let mut proxy = start(&conf(&port, backend.address(), "2s"));
    let mut first = heir(&proxy);
    until("it is on probation", DEADLINE, || proxy.status()["upgrade"]["step"] == "probation");
    let mut second = heir(&proxy);
    assert_eq!(wait_exit(&mut second, "the second", DEADLINE).code(), Some(71));
    assert!(proxy.stderr().contains("upgrade already in progress"), "{}", proxy.stderr());
    until("the first is the keeper", DEADLINE, || is_keeper(&proxy, &mut first));
    let mut old = proxy.follow(first);
    assert_eq!(wait_exit(&mut old, "the keeper before", DEADLINE).code(), Some(0));
    Steady::open(port.address()).assert_alive();
}

#[test]
fn what_an_heir_finds_wrong_is_said_and_costs_nothing() {
    let (port, taken, backend) = (Port::reserve(), Port::reserve(), Tagged::start("blue"));
    let proxy = start(&conf(&port, backend.address(), "1s"));
    let mut session = Steady::open(port.address());
    let other = proxy.directory().join("other.toml");
    fs::write(&other, "nonsense = 1\n").unwrap();
    let mut mistaken = proxy.heir_command(&[slim().to_str().unwrap()], &other).spawn().unwrap();
    assert_eq!(wait_exit(&mut mistaken, "the heir", DEADLINE).code(), Some(78));
    let _holder = std::net::TcpListener::bind(taken.address()).unwrap();
    let text = fs::read_to_string(proxy.config()).unwrap();
    fs::write(&other, format!("{text}\n[listeners.more]\nbind = \"{taken}\"\npool = \"pool\"\n")).unwrap();
    let mut heir = proxy.heir_command(&[slim().to_str().unwrap()], &other).spawn().unwrap();
    is_refused(&proxy, &mut heir, "Address already in use");
    session.assert_alive();
    Steady::open(port.address()).assert_alive();
}

/// In a state directory of its own, with other admin sockets and another listener beside.
#[test]
fn an_heir_may_have_other_directories_and_sockets() {
    let (port, more, admin, backend) = (Port::reserve(), Port::reserve(), Port::reserve(), Tagged::start("blue"));
    let mut proxy = start(&conf(&port, backend.address(), "1s"));
    let mut session = Steady::open(port.address());
    let place = tempfile::tempdir().unwrap();
    let (config, state) = (place.path().join("proxyd.toml"), place.path().join("state"));
    let wanted = conf(&port, backend.address(), "1s").listener("more", &more.to_string(), "pool");
    fs::write(&config, wanted.render(&state, admin.address())).unwrap();
    let heir = proxy.heir_command(&[slim().to_str().unwrap()], &config).spawn().unwrap();
    let mut heir = Guarded::new(heir, Signal::SIGTERM);
    until("its own admin address is ready", DEADLINE, || {
        assert_eq!(heir.has_ended(), None, "{}", proxy.stderr());
        harness::http::fetch(admin.address(), "/readyz").is_ok_and(|answer| answer.status == 200)
    });
    Steady::open(more.address()).assert_alive();
    Steady::open(port.address()).assert_alive();
    session.assert_alive();
    assert!(state.join("handoff.sock").exists() && !proxy.directory().join("state/handoff.sock").exists());
    drop(session);
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(0), "{}", proxy.stderr());
}

fn runs(words: &[&str]) -> bool {
    Command::new(words[0]).args(&words[1..]).arg("true").status().is_ok_and(|status| status.success())
}

#[test]
fn another_network_namespace_is_refused_by_name() {
    let words = ["unshare", "--net"];
    if !runs(&words) {
        return eprintln!("skipped: this machine does not let us make a network namespace");
    }
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let proxy = start(&conf(&port, backend.address(), "1s"));
    let program = [&words[..], &[slim().to_str().unwrap()]].concat();
    let mut heir = proxy.heir_command(&program, &proxy.config()).spawn().unwrap();
    is_refused(&proxy, &mut heir, "the network namespaces differ");
    let failed = proxy.stderr().lines().filter(|line| line.contains("network namespaces differ")).count();
    assert!(failed >= 2, "both sides say so: {}", proxy.stderr());
    Steady::open(port.address()).assert_alive();
}

/// The heir is the keeper only later, and its worker is the one that serves: what can go on goes on there, at once.
#[test]
fn sessions_of_a_standby_that_dies_go_on_with_the_heirs_worker() {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let mut proxy = start(&surviving(moving(&port, backend.address(), "8s")));
    let mut client = Client::greeted(port.address()).0;
    is_protected(&proxy);
    let worker = proxy.serving_pid();
    let mut heir = heir(&proxy);
    until("it is on probation", DEADLINE, || proxy.status()["upgrade"]["step"] == "probation");
    send(worker, Signal::SIGKILL).unwrap();
    client.echo("there");
    assert_eq!(proxy.status()["upgrade"]["step"], "probation");
    assert_eq!(generations(&proxy), [(2, "serving".to_owned())]);
    until("the heir is the keeper", DEADLINE, || is_keeper(&proxy, &mut heir));
    let mut old = proxy.follow(heir);
    assert_eq!(wait_exit(&mut old, "the keeper before", DEADLINE).code(), Some(0), "{}", proxy.stderr());
    client.echo("and there");
    // It is with the heir now.
    is_protected(&proxy);
    send(proxy.serving_pid(), Signal::SIGKILL).unwrap();
    client.echo("and still there");
}

fn surviving(conf: Conf) -> Conf {
    conf.with("listeners.main", "survive_crash = true").with("runtime", "restart_backoff = \"off\"")
}

/// One session, and its keeper holds it.
fn is_protected(proxy: &Proxy) {
    until("the keeper holds its session", DEADLINE, || {
        let [row] = &proxy.sessions()[..] else { return false };
        row["protection"] == "protected" && proxy.metrics().count("proxyd_sessions_unprotected", &[]) == 0
    });
}

/// It might only be frozen, and wake: then two would read one stream.
#[test]
fn sessions_of_a_worker_that_cannot_be_watched_are_reset_when_it_is_gone() {
    let words = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    if !runs(&words) {
        return eprintln!("skipped: this machine does not let us make a PID namespace");
    }
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let proxy = start(&surviving(conf(&port, backend.address(), "1s")));
    let mut client = Client::greeted(port.address()).0;
    is_protected(&proxy);
    let worker = proxy.serving_pid();
    let program = [&words[..], &[slim().to_str().unwrap()]].concat();
    let heir = proxy.heir_command(&program, &proxy.config()).spawn().unwrap();
    let _heir = Guarded::new(heir, Signal::SIGKILL);
    until("the heir is the keeper", DEADLINE, || keeper(&proxy) == Some(1));
    until("the worker before is known", DEADLINE, || generations(&proxy).contains(&(1, "draining".into())));
    client.echo("there");
    is_protected(&proxy);
    send(worker, Signal::SIGKILL).unwrap();
    assert_eq!(client.wait_end(), End::Reset);
    until("it is told", DEADLINE, || {
        proxy.events().iter().any(|event| event["event"] == "sessions_not_recovered" && event["sessions"] == 1)
    });
    assert_eq!(proxy.metrics().count("proxyd_sessions_recovered_total", &[("result", "lost")]), 1);
}

/// Pids mean nothing between the two: the ends of channels do.
#[test]
fn from_another_pid_namespace_it_is_the_same() {
    let words = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    if !runs(&words) {
        return eprintln!("skipped: this machine does not let us make a PID namespace");
    }
    let (port, backend) = (Port::reserve(), Seeded::start());
    let mut proxy = start(&conf(&port, backend.address(), "1s"));
    let load = Load::start(port.address(), 100, Exchange::default());
    let streams = LongStreams::start(port.address(), 5, PACE);
    more(&load, 30);
    let program = [&words[..], &[slim().to_str().unwrap()]].concat();
    let heir = proxy.heir_command(&program, &proxy.config()).spawn().unwrap();
    let mut heir = Guarded::new(heir, Signal::SIGKILL);
    // It is the first process of its namespace.
    until("the heir is the keeper", DEADLINE, || {
        assert_eq!(heir.has_ended(), None, "{}", proxy.stderr());
        keeper(&proxy) == Some(1)
    });
    until("the worker before is known", DEADLINE, || generations(&proxy).contains(&(1, "draining".into())));
    more(&load, 30);
    streams.stop().assert_clean();
    load.stop().assert_clean();
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(0), "{}", proxy.stderr());
    until("one generation is left", DEADLINE, || generations(&proxy).len() == 1);
}

#[test]
fn another_uid_is_refused() {
    let words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    if !runs(&words) {
        return eprintln!("skipped: not root, there is no other uid to be");
    }
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    let proxy = start(&conf(&port, backend.address(), "1s"));
    // Everything but the door itself is open to it.
    let (place, binary) = (open_place(), slim());
    let config = place.path().join("proxyd.toml");
    fs::copy(proxy.config(), &config).unwrap();
    let copied = place.path().join("proxyd");
    copy(binary, &copied);
    for path in [proxy.directory().to_owned(), proxy.directory().join("state")] {
        open(&path, 0o755);
    }
    let door = proxy.directory().join("state/handoff.sock");
    open(&door, 0o666);
    let program = [&words[..], &[copied.to_str().unwrap()]].concat();
    let mut heir = proxy.heir_command(&program, &config).spawn().unwrap();
    is_refused(&proxy, &mut heir, "the door belongs to uid 0");
    Steady::open(port.address()).assert_alive();
}

fn open_place() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    open(place.path(), 0o755);
    place
}

fn open(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(PathBuf::from(path), fs::Permissions::from_mode(mode)).unwrap();
}
