//! Upgrades that must not happen: unfit binaries, wrong configurations, taken ports. Each is refused with one line that
//! names step and cause, leaves the old generation as it was, and is no obstacle to the next good upgrade.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use harness::child::children;
use harness::slim::copy;
use harness::{Census, Conf, Port, Proxy, Starter, Steady, Tagged, impostor, slim, until};

const DEADLINE: Duration = Duration::from_secs(20);
/// What `ready_timeout` is here.
const READY: Duration = Duration::from_secs(2);

/// A proxy with one session that has to survive everything.
struct Bench {
    /// Ends before the proxy, which would wait for it.
    session: Steady,
    proxy: Proxy,
    port: Port,
    _backend: Tagged,
}

impl Bench {
    fn start() -> Self {
        let (port, backend) = (Port::reserve(), Tagged::start("blue"));
        let proxy = Starter::with_binary(&Self::conf(&port, &backend), slim()).start();
        let session = Steady::open(port.address());
        Self { session, proxy, port, _backend: backend }
    }

    fn conf(port: &Port, backend: &Tagged) -> Conf {
        Conf::simple(port, &[backend.address()]).with("upgrade", &format!("ready_timeout = \"{}s\"", READY.as_secs()))
    }

    /// The upgrade fails at `step`; its line holds each of `words`.
    fn refuses(&mut self, what: &str, arguments: &[&str], step: &str, words: &[&str]) {
        let (before, began) = (self.serving(), Instant::now());
        let output = self.proxy.ctl(&[&["upgrade"], arguments].concat());
        let took = began.elapsed();
        let said = one_line(what, &output);
        assert_eq!(output.status.code(), Some(1), "{what}: {said}");
        assert!(said.contains(&format!("upgrade failed at {step}: ")), "{what}: {said}");
        println!("{what}: {said}");
        assert!(words.iter().all(|word| said.contains(word)), "{what}: {words:?} are not all in: {said}");
        assert!(said.contains("still serving 1 sessions"), "{what}: {said}");
        // As much again for a machine that has other things to do.
        assert!(took < READY * 2 + Duration::from_secs(3), "{what}: refused only after {took:?}");
        self.is_untouched(what, before);
    }

    fn serving(&self) -> (u64, u32) {
        let generation = self.proxy.serving().unwrap();
        (generation, self.proxy.worker_pid(generation).unwrap())
    }

    /// Same generation, same process, its session alive, new ones taken, and nothing left of what was tried.
    fn is_untouched(&mut self, what: &str, before: (u64, u32)) {
        assert_eq!(self.serving(), before, "{what}");
        self.session.assert_alive();
        Steady::open(self.port.address()).assert_alive();
        let keeper = self.proxy.keeper_pid();
        let only_worker = || children(keeper) == [before.1] && Census::of(keeper).unwrap().zombies == 0;
        until(&format!("nothing is left of the attempt ({what})"), DEADLINE, only_worker);
        // The next refusal counts the sessions.
        until("the session made for a look has ended", DEADLINE, || {
            self.proxy.status()["generations"][0]["sessions"] == 1
        });
    }

    /// The next good one succeeds, and the session is still there.
    fn upgrades(&mut self) {
        self.proxy.upgrade();
        self.session.assert_alive();
        assert!(self.proxy.stderr().contains("upgrade committed"));
        // A generation that drains would count among the children.
        let fresh = Steady::open(self.port.address());
        drop(std::mem::replace(&mut self.session, fresh));
        until("the old generation is gone", DEADLINE, || {
            self.proxy.status()["generations"].as_array().unwrap().len() == 1
        });
    }
}

/// What proxyctl complains of.
fn one_line(what: &str, output: &Output) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(said.lines().count(), 1, "{what}: not one line: {output:?}");
    said
}

fn executable(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_file_that_is_no_binary_of_ours_is_refused_before_it_runs() {
    let mut bench = Bench::start();
    let place = bench.proxy.directory().to_owned();
    let at = |name: &str| place.join(name).to_str().unwrap().to_owned();
    let mut refuses = |name: &str, words: &[&str]| {
        let path = at(name);
        bench.refuses(name, &["--binary", &path], "preflight", &[words, &[path.as_str()]].concat());
    };

    refuses("missing", &["No such file"]);
    refuses("missing/deeper", &["No such file"]);
    fs::create_dir(at("directory")).unwrap();
    refuses("directory", &["is a directory"]);
    executable(&place.join("empty"), b"");
    refuses("empty", &["not an ELF"]);
    executable(&place.join("script"), b"#!/bin/sh\nexec proxyd \"$@\"\n");
    refuses("script", &["not an ELF"]);
    nix::unistd::mkfifo(&place.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    refuses("fifo", &["not a regular file"]);
    std::os::unix::fs::symlink(at("loop"), at("loop")).unwrap();
    refuses("loop", &["symbolic links"]);

    copy(slim(), &place.join("not-executable"));
    fs::set_permissions(at("not-executable"), fs::Permissions::from_mode(0o644)).unwrap();
    refuses("not-executable", &["not executable"]);
    copy(slim(), &place.join("open"));
    fs::set_permissions(at("open"), fs::Permissions::from_mode(0o757)).unwrap();
    refuses("open", &["writable by others", "757"]);

    // e_machine, at 18 (elf(5)): 8 is MIPS, which none of our machines is.
    copy(slim(), &place.join("foreign"));
    File::options().write(true).open(at("foreign")).unwrap().write_all_at(&8_u16.to_ne_bytes(), 18).unwrap();
    refuses("foreign", &["another machine", "8"]);
    // Only the head is there: it can be pinned, but not executed.
    executable(&place.join("cut"), &fs::read(slim()).unwrap()[..4096]);
    refuses("cut", &[]);

    bench.upgrades();
}

#[test]
fn a_binary_that_a_foreign_group_or_user_may_write_is_refused() {
    let mut bench = Bench::start();
    let path = bench.proxy.directory().join("shared");
    let name = path.to_str().unwrap().to_owned();
    copy(slim(), &path);
    let foreign = nix::unistd::getegid().as_raw() + 4_321;
    if let Err(error) = std::os::unix::fs::chown(&path, None, Some(foreign)) {
        println!("skipped: a file cannot be given to another group without privilege: {error}");
        return;
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o775)).unwrap();
    bench.refuses("group-writable", &["--binary", &name], "preflight", &["writable by others", "775"]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let uid = nix::unistd::geteuid().as_raw() + 4_321;
    std::os::unix::fs::chown(&path, Some(uid), None).unwrap();
    bench.refuses("foreign owner", &["--binary", &name], "preflight", &["belongs to uid", &uid.to_string()]);
    std::os::unix::fs::chown(&path, Some(nix::unistd::geteuid().as_raw()), None).unwrap();
    let report = bench.proxy.ctl_json(&["upgrade", "--binary", &name]);
    assert_eq!(report["result"], "committed", "{report}");
    bench.session.assert_alive();
}

#[test]
fn a_binary_that_fails_its_preflight_is_refused() {
    let mut bench = Bench::start();
    let place = bench.proxy.directory().to_owned();
    let passport =
        r#"{"token":"made up","version":"9","build":"x","handoff":{"least":1,"most":1},"ledger":{"least":1,"most":1}}"#;
    let print_passport = format!("preflight:print:{passport}");
    for (how, words) in [
        ("preflight:exit:0", ["exited with status 0", "without an answer"]),
        ("preflight:exit:1", ["exited with status 1", "--preflight"]),
        ("preflight:signal:11", ["signal 11", "SIGSEGV"]),
        ("preflight:signal:6", ["signal 6", "SIGABRT"]),
        ("preflight:hang", ["did not answer within 2.0 s", "--preflight"]),
        ("preflight:print:hello world", ["is not a proxyd", "hello world"]),
        ("preflight:print:{}", ["is not a proxyd", "{}"]),
        ("preflight:flood", ["--preflight", ""]),
        (&print_passport, ["is not a proxyd", "made up"]),
    ] {
        let Some(program) = impostor(&place, "impostor", how) else { return };
        let path = program.to_str().unwrap();
        bench.refuses(how, &["--binary", path], "preflight", &[&words, &[path][..]].concat());
    }
    bench.upgrades();
}

#[test]
fn a_binary_that_misbehaves_as_a_worker_is_refused() {
    let mut bench = Bench::start();
    let place = bench.proxy.directory().to_owned();
    for (how, step, word) in [
        ("worker:exit:0", "spawn", "exited with status 0 before READY"),
        ("worker:exit:3", "spawn", "exited with status 3 before READY"),
        ("worker:signal:11", "spawn", "signal 11 (SIGSEGV) before READY"),
        ("worker:hang", "spawn", "was not READY within ready_timeout (2 s)"),
        ("worker:leave", "spawn", ""),
        ("worker:say:nonsense", "spawn", ""),
        ("worker:say:{\"hello\":{}}", "spawn", ""),
        ("worker:descriptors:12", "spawn", "descriptors, limit 12"),
    ] {
        let Some(program) = impostor(&place, "impostor", how) else { return };
        bench.refuses(how, &["--binary", program.to_str().unwrap()], step, &["generation ", "(pid ", word]);
    }
    // With exactly what the sockets need it takes them, and then has none for its threads.
    let said = bench.proxy.stderr();
    let (_, need) = said.rsplit_once("need ").unwrap();
    let how = format!("worker:descriptors:{}", need.split_once(' ').unwrap().0);
    let program = impostor(&place, "impostor", &how).unwrap();
    bench.refuses(&how, &["--binary", program.to_str().unwrap()], "ready", &["exited with status 1 before READY"]);
    bench.upgrades();
}

#[test]
fn a_wrong_configuration_is_refused_with_its_position() {
    let mut bench = Bench::start();
    let good = fs::read_to_string(bench.proxy.config()).unwrap();
    let before = bench.serving();
    let wrong = format!("{good}\n[drain]\ntimeout = \"soon\"\ncolour = 1\n");
    fs::write(bench.proxy.config(), &wrong).unwrap();
    let line = wrong.lines().position(|line| line.starts_with("timeout = \"soon\"")).unwrap() + 1;
    let output = bench.proxy.ctl(&["upgrade"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in ["upgrade failed at preflight", &format!("proxyd.toml:{line}:"), "soon", "colour", "still serving"] {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    bench.is_untouched("a wrong configuration", before);
    fs::remove_file(bench.proxy.config()).unwrap();
    let output = bench.proxy.ctl(&["upgrade"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    bench.is_untouched("no configuration", before);
    fs::write(bench.proxy.config(), good).unwrap();
    bench.upgrades();
}

/// It has the number that the refused one was to have: what is left of that is cleared away, and nothing else.
#[test]
fn the_generation_after_a_refused_one_keeps_its_sessions_in_the_ledger() {
    let mut bench = Bench::start();
    for round in 1..=4 {
        assert_eq!(bench.proxy.ctl(&["upgrade", "--binary", "/bin/true"]).status.code(), Some(1));
        let upgraded = bench.proxy.ctl(&["upgrade", "--probation", "0s"]);
        assert!(upgraded.status.success(), "{upgraded:?}");
        let mut session = Steady::open(bench.port.address());
        // What is dead is cleared away every 500 ms.
        let moment = Instant::now() + Duration::from_millis(1200);
        until("what is dead was cleared away", DEADLINE, || Instant::now() >= moment);
        let status = bench.proxy.status();
        let generations = status["generations"].as_array().unwrap();
        let serving = generations.iter().find(|one| one["state"] == "serving").unwrap();
        // This one, and that of the bench, which has moved here.
        assert_eq!((&serving["id"], &serving["sessions"]), (&(round + 1).into(), &2.into()), "round {round}: {status}");
        session.assert_alive();
        bench.session.assert_alive();
        drop(session);
        until("the session made for a look has ended", DEADLINE, || {
            bench.proxy.status()["listeners"][0]["sessions"] == 1
        });
    }
}

#[test]
fn an_added_port_that_is_taken_refuses_the_upgrade_and_leaves_no_socket_behind() {
    let mut bench = Bench::start();
    let (free, backend) = (Port::reserve(), Tagged::start("green"));
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let with = |name: &str, bind: &str, conf: Conf| conf.listener(name, bind, "other");
    let conf = Bench::conf(&bench.port, &backend).pool("other", &[backend.address()]);
    bench.proxy.write_config(&with("b-taken", &address, with("a-free", &free.to_string(), conf.clone())));
    bench.refuses("a taken port", &[], "preflight", &["b-taken", &address, "in use"]);
    bench.refuses("a taken port, tried", &["--dry-run"], "preflight", &["b-taken", &address, "in use"]);
    assert!(TcpStream::connect(free.address()).is_err(), "the socket bound for the failed upgrade is still open");
    // Bound in full, and given up with what fails later.
    if let Some(program) = impostor(bench.proxy.directory(), "impostor", "worker:exit:3") {
        bench.proxy.write_config(&with("a-free", &free.to_string(), conf.clone()));
        bench.refuses("a worker that fails", &["--binary", program.to_str().unwrap()], "spawn", &["status 3"]);
        assert!(TcpStream::connect(free.address()).is_err(), "the socket bound for the failed upgrade is still open");
        bench.proxy.write_config(&with("b-taken", &address, with("a-free", &free.to_string(), conf)));
    }
    // With the port free the same file is fine.
    drop(taken);
    bench.upgrades();
    assert_eq!(Steady::open(free.address()).tag, "green");
}

#[test]
fn f21_a_limit_of_descriptors_that_a_generation_would_not_fit_in_is_found_before_it_is_started() {
    let mut bench = Bench::start();
    let place = bench.proxy.directory().to_owned();
    let backend = Tagged::start("green");
    let binds: Vec<String> =
        (0..100).map(|n| format!("\"unix:{}\"", place.join(format!("{n}.sock")).display())).collect();
    let conf = Bench::conf(&bench.port, &backend)
        .with("listeners.many", &format!("bind = [{}]\npool = \"many\"", binds.join(", ")))
        .pool("many", &[backend.address()]);
    bench.proxy.write_config(&conf);
    // 101 sockets for the control thread and two data threads, one segment, 64 others: 368. A configuration by itself wants
    // no more than 256, and one for each socket.
    allow_descriptors(bench.proxy.keeper_pid(), 363);
    bench.refuses("few descriptors", &[], "preflight", &["the new generation needs 368 descriptors, limit 363"]);
    bench.refuses("few descriptors, tried", &["--dry-run"], "preflight", &["needs 368 descriptors, limit 363"]);
    assert!(!place.join("0.sock").exists());
    allow_descriptors(bench.proxy.keeper_pid(), 4096);
    bench.upgrades();
    assert!(place.join("0.sock").exists());
}

/// The soft limit; a child inherits it.
fn allow_descriptors(pid: u32, number: u32) {
    let (pid, limit) = (format!("--pid={pid}"), format!("--nofile={number}:"));
    let done = std::process::Command::new("prlimit").args([pid, limit]).status().unwrap();
    assert!(done.success(), "prlimit: {done}");
}
