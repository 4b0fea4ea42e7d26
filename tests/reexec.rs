//! The keeper becomes the new version: the same process, sockets, generations, counters and files; nobody outside notices.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::child::{Guarded, Process, send, wait_exit};
use harness::{
    Census, Conf, Exchange, Load, LongStreams, Pace, Port, Proxy, Seeded, Starter, Steady, Strace, Tagged, Twins, ask,
    twin_of, until,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(30);

fn upgrade(proxy: &Proxy, binary: &Path) -> Value {
    let report = proxy.ctl_json(&["upgrade", "--binary", binary.to_str().unwrap()]);
    assert_eq!(report["result"], "committed", "{report}");
    report
}

/// Which of the twins the keeper runs.
fn runs(proxy: &Proxy) -> char {
    twin_of(proxy.keeper_pid())
}

fn conf(port: &Port, backend: std::net::SocketAddr) -> Conf {
    Conf::simple(port, &[backend]).with("drain", "timeout = \"1h\"").with("upgrade", "max_generations = 32")
}

#[test]
fn same_process_same_sockets_same_figures_under_load() {
    let (port, backend, binaries) = (Port::reserve(), Seeded::start(), Twins::new());
    let proxy = Starter::with_binary(&conf(&port, backend.address()), &binaries.path("a")).start();
    let keeper = Process::of(proxy.keeper_pid()).unwrap();
    let mut before = (proxy.metrics(), proxy.status()["keeper"]["uptime_seconds"].as_f64().unwrap());
    let load = Load::start(port.address(), 200, Exchange::default());
    let streams = LongStreams::start(port.address(), 20, Pace { frame: 700, every: Duration::from_millis(20) });
    assert!(proxy.ctl(&["backend", "weight", "pool", &backend.address().to_string(), "7"]).status.success());
    for (number, name) in (1..).zip(["b", "a", "b", "b"]) {
        let goal = load.tally().clean + 50;
        until("the load is served", DEADLINE, || load.tally().clean >= goal);
        let same = name.starts_with(runs(&proxy));
        let report = upgrade(&proxy, &binaries.path(name));
        assert_eq!(report["keeper"], if same { "unchanged" } else { "upgraded" }, "{report}");
        assert_eq!((&report["id"], &report["to"]), (&number.into(), &(number + 1).into()), "{report}");
        assert!(name.starts_with(runs(&proxy)));
        assert!(keeper.exists());
        let status = proxy.status();
        assert_eq!(status["pools"][0]["backends"][0]["weight"], 7, "{status}");
        assert_eq!(status["config"]["version"].as_u64(), Some(number + 2), "{status}");
        let now = (proxy.metrics(), status["keeper"]["uptime_seconds"].as_f64().unwrap());
        assert_eq!(now.0.fallen_since(&before.0), [""; 0], "after upgrade {number}");
        assert!(now.1 > before.1, "uptime goes on: {} after {}", now.1, before.1);
        before = now;
    }
    assert_eq!(proxy.metrics().value("proxyd_upgrades_total", &[("result", "committed")]), Some(4.0));
    load.stop().assert_clean();
    streams.stop().assert_clean();
    until("the old generations end with their sessions", DEADLINE, || {
        proxy.status()["generations"].as_array().unwrap().len() == 1
    });
}

/// Stops the askers, whether the test goes on or has failed.
struct Stopping(Arc<AtomicBool>);

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn f53_who_asks_meanwhile_waits_and_is_answered() {
    let (port, backend, binaries) = (Port::reserve(), Tagged::start("blue"), Twins::new());
    let proxy = Arc::new(Starter::with_binary(&conf(&port, backend.address()), &binaries.path("a")).start());
    let stop = Arc::new(AtomicBool::new(false));
    let askers: Vec<_> = (0..3)
        .map(|asker| {
            let (proxy, stop) = (Arc::clone(&proxy), Arc::clone(&stop));
            std::thread::spawn(move || {
                let (mut asked, mut seen) = (0, proxy.metrics());
                while !stop.load(Ordering::Relaxed) {
                    if asker == 0 {
                        let now = proxy.metrics();
                        assert_eq!(now.fallen_since(&seen), [""; 0]);
                        seen = now;
                    } else {
                        let output = proxy.ctl(&["status"]);
                        assert!(output.status.success(), "{output:?}");
                    }
                    asked += 1;
                }
                asked
            })
        })
        .collect();
    let stopping = Stopping(stop);
    for name in ["b", "a", "b", "a", "b", "a"] {
        assert_eq!(upgrade(&proxy, &binaries.path(name))["keeper"], "upgraded");
    }
    drop(stopping);
    let asked: Vec<u32> = askers.into_iter().map(|asker| asker.join().unwrap()).collect();
    assert!(asked.iter().all(|asked| *asked > 6), "{asked:?}");
}

#[test]
fn twenty_upgrades_between_two_binaries_leave_the_keeper_as_it_was() {
    let (port, backend, binaries) = (Port::reserve(), Tagged::start("blue"), Twins::new());
    let proxy = Starter::with_binary(&conf(&port, backend.address()), &binaries.path("a")).start();
    let census = || {
        until("one generation is left", DEADLINE, || proxy.status()["generations"].as_array().unwrap().len() == 1);
        Census::of(proxy.keeper_pid()).unwrap()
    };
    // At rest, that is: right after an upgrade a socket of the generation before, or of who asked, may still be open.
    let held = |census: &Census| census.descriptors.values().sum::<usize>();
    let mut warm: Option<Census> = None;
    for number in 1..=20 {
        upgrade(&proxy, &binaries.path(if number % 2 == 1 { "b" } else { "a" }));
        if number <= 8 && number % 2 == 0 {
            let seen = census();
            warm = Some(
                warm.into_iter().fold(seen, |least, before| if held(&before) < held(&least) { before } else { least }),
            );
        }
    }
    let warm = warm.unwrap();
    let last = census();
    let mut now = last.clone();
    until(&format!("descriptors are as they were: {warm:?}, {last:?}"), DEADLINE, || {
        now = Census::of(proxy.keeper_pid()).unwrap();
        now.descriptors == warm.descriptors && now.zombies == 0
    });
    assert!(now.threads <= warm.threads + 1, "{now:?} after {warm:?}");
    assert_eq!(proxy.metrics().value("proxyd_upgrades_total", &[("result", "committed")]), Some(20.0));
}

#[test]
fn a_crash_afterwards_is_mended_from_the_pinned_binary() {
    let (port, backend, binaries) = (Port::reserve(), Tagged::start("blue"), Twins::new());
    let proxy = Starter::with_binary(&conf(&port, backend.address()), &binaries.path("a")).start();
    upgrade(&proxy, &binaries.path("b"));
    fs::remove_dir_all(binaries.0.path()).unwrap();
    let killed = proxy.serving_pid();
    send(killed, Signal::SIGKILL).unwrap();
    until("another one serves", DEADLINE, || {
        proxy.serving().and_then(|serving| proxy.worker_pid(serving)).is_some_and(|pid| pid != killed)
    });
    Steady::open(port.address()).assert_alive();
    assert_eq!(Census::of(proxy.keeper_pid()).unwrap().zombies, 0);
    assert_eq!(proxy.metrics().value("proxyd_worker_restarts_total", &[("cause", "signal")]), Some(1.0));
    // It is still a whole keeper.
    proxy.signal(Signal::SIGHUP);
    until("it hears signals", DEADLINE, || {
        proxy.metrics().value("proxyd_config_reloads_total", &[("result", "applied")]) == Some(1.0)
    });
}

#[test]
fn it_ends_as_before_and_leaves_nothing() {
    let (port, backend, binaries) = (Port::reserve(), Tagged::start("blue"), Twins::new());
    let mut proxy = Starter::with_binary(&conf(&port, backend.address()), &binaries.path("a")).start();
    upgrade(&proxy, &binaries.path("b"));
    proxy.signal(Signal::SIGTERM);
    assert!(proxy.wait_exit(DEADLINE).success());
    assert!(!proxy.socket().exists());
}

/// An upgrade to another binary that only the test ends, on its probation.
fn on_probation(proxy: &Proxy, binary: &Path) -> Guarded {
    let mut command =
        proxy.ctl_command(&["--json", "upgrade", "--probation", "60s", "--binary", binary.to_str().unwrap()]);
    let caller = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    until("it is on probation", DEADLINE, || proxy.status()["upgrade"]["step"] == "probation");
    Guarded::new(caller, Signal::SIGKILL)
}

#[test]
fn a_shutdown_leaves_no_time_to_become_the_new_version_and_the_caller_is_told() {
    let (port, backend, binaries) = (Port::reserve(), Tagged::start("blue"), Twins::new());
    let mut proxy = Starter::with_binary(&conf(&port, backend.address()), &binaries.path("a")).start();
    let mut caller = on_probation(&proxy, &binaries.path("b"));
    proxy.signal(Signal::SIGTERM);
    assert!(proxy.wait_exit(DEADLINE).success());
    let status = wait_exit(caller.inner(), "proxyctl", DEADLINE);
    let mut said = String::new();
    caller.inner().stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(0), "{said}");
    let report: Value = serde_json::from_str(said.trim().lines().last().unwrap()).unwrap();
    assert_eq!(report["keeper"], "not upgraded: proxyd is shutting down", "{report}");
    assert!(!proxy.stderr().contains("the keeper becomes the new version"), "{}", proxy.stderr());
}

/// What will be known only after it must not be told before.
#[test]
fn who_waits_for_a_report_is_sent_to_the_next_image_too() {
    let (port, backend, binaries) = (Port::reserve(), Tagged::start("blue"), Twins::new());
    let conf = Conf::simple(&port, &[backend.address()]).with("upgrade", "probation = \"2s\"");
    let proxy = Starter::with_binary(&conf, &binaries.path("a")).start();
    let started = proxy.ctl_json(&["upgrade", "--no-wait", "--binary", binaries.path("b").to_str().unwrap()]);
    let told = ask(&proxy.socket(), &json!({"verb": "report", "id": started["id"]}));
    assert_eq!(told.last().unwrap(), &json!({"line": "reconnect", "upgrade": started["id"]}), "{told:?}");
    until("it has become the new version", DEADLINE, || runs(&proxy) == 'b');
    let told = ask(&proxy.socket(), &json!({"verb": "report", "id": started["id"]}));
    assert_eq!(told.last().unwrap()["keeper"], "upgraded", "{told:?}");
}

/// `execve` itself fails: everything that was prepared for it is taken back.
#[test]
fn a_failing_exec_leaves_the_keeper_as_it_is_and_the_upgrade_committed() {
    let (port, backend, binaries) = (Port::reserve(), Tagged::start("blue"), Twins::new());
    let proxy = Starter::with_binary(&conf(&port, backend.address()), &binaries.path("a")).start();
    let mut session = Steady::open(port.address());
    let before = Census::of(proxy.keeper_pid()).unwrap();
    // Of the keeper alone, not of its children.
    let traced = proxy.directory().join("traced");
    let (keeper, injection) = (proxy.keeper_pid(), ["execve:error=ENOMEM"]);
    let Some(strace) = Strace::watch(keeper, &injection, "execve,epoll_wait", &traced) else { return };
    // It is being attached for a while before its first call is seen.
    until("the keeper is traced", DEADLINE, || {
        fs::read_to_string(&traced)
            .is_ok_and(|calls| calls.lines().filter(|call| call.contains("epoll_wait")).count() > 1)
    });
    let report = upgrade(&proxy, &binaries.path("b"));
    assert_eq!(report["keeper"], "not upgraded: execve: Cannot allocate memory (os error 12)", "{report}");
    assert!(fs::read_to_string(&traced).unwrap().contains("(INJECTED)"));
    assert_eq!(runs(&proxy), 'a');
    session.assert_alive();
    Steady::open(port.address()).assert_alive();
    strace.detach(keeper);
    proxy.signal(Signal::SIGHUP);
    until("it hears signals", DEADLINE, || {
        proxy.metrics().value("proxyd_config_reloads_total", &[("result", "applied")]) == Some(1.0)
    });
    // The next one succeeds.
    assert_eq!(upgrade(&proxy, &binaries.path("b"))["keeper"], "upgraded");
    assert_eq!(runs(&proxy), 'b');
    drop(session);
    until("nothing is left of both", DEADLINE, || {
        proxy.status();
        Census::of(proxy.keeper_pid()).unwrap().descriptors == before.descriptors
    });
}
