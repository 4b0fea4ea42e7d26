//! The probation of a new generation: for each way to fail, the old one accepts again, binary and configuration go back
//! together, and those who connect meanwhile notice nothing; without a failure the upgrade is committed when it is over.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::io::Read;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use harness::child::{Guarded, children, send};
use harness::{
    Census, Conf, Exchange, Load, Port, Proxy, Seeded, Starter, Steady, Tagged, Tally, ask, impostor, slim, until,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(30);

/// A proxy under load, with a probation that only a test ends, and a session that has to survive.
struct Bench {
    session: Steady,
    load: Load,
    proxy: Proxy,
    port: Port,
    tagged: Port,
    seeded: Seeded,
    tags: Tagged,
}

impl Bench {
    fn start() -> Self {
        Self::with("60s")
    }

    fn with(probation: &str) -> Self {
        let (port, tagged, seeded, tags) = (Port::reserve(), Port::reserve(), Seeded::start(), Tagged::start("blue"));
        let conf = conf(&port, &tagged, &seeded, &tags, probation);
        let proxy = Starter::with_binary(&conf, slim()).start();
        let session = Steady::open(tagged.address());
        let load = Load::start(port.address(), 100, Exchange::default());
        Self { session, load, proxy, port, tagged, seeded, tags }
    }

    fn conf(&self) -> Conf {
        conf(&self.port, &self.tagged, &self.seeded, &self.tags, "60s")
    }

    fn begin(&self, words: &[&str]) -> Guarded {
        let mut command = self.proxy.ctl_command(&[&["--json", "upgrade"], words].concat());
        Guarded::new(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap(), Signal::SIGKILL)
    }

    /// Until the new generation is on probation: the pids of the old one and of the new one.
    fn on_probation(&self, words: &[&str]) -> (Guarded, u32, u32) {
        let old = self.proxy.serving_pid();
        let caller = self.begin(words);
        until("it is on probation", DEADLINE, || self.proxy.status()["upgrade"]["step"] == "probation");
        assert_eq!(self.states(), ["standby", "serving"]);
        (caller, old, self.proxy.serving_pid())
    }

    fn states(&self) -> Vec<String> {
        let status = self.proxy.status();
        let generations = status["generations"].as_array().unwrap();
        generations.iter().map(|one| one["state"].as_str().unwrap().to_owned()).collect()
    }

    /// As [`Self::is_rolled_back`], after a death: its status, or the end of the channel where that is told 20 ms sooner.
    fn is_rolled_back_after_death(&mut self, caller: &mut Guarded, old: u32, status: &str) {
        let said = self.is_rolled_back(caller, old, "generation 2");
        assert!(said.contains(status) || said.contains("the channel to generation 2 has ended"), "{said}");
    }

    /// The caller of the upgrade is told; generation 1 serves as before; the next upgrade is possible.
    fn is_rolled_back(&mut self, caller: &mut Guarded, old: u32, why: &str) -> String {
        let output = output(caller);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("{said}");
        assert_eq!(output.status.code(), Some(6), "{said}");
        assert!(said.contains("rolled back at probation: ") && said.contains(why), "{why:?} is not in: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&report["result"], &report["from"]), (&"rolled_back".into(), &1.into()), "{report}");
        assert_eq!((self.proxy.serving(), self.proxy.serving_pid()), (Some(1), old));
        self.session.assert_alive();
        Steady::open(self.tagged.address()).assert_alive();
        let counted = self.proxy.metrics().value("proxyd_upgrades_total", &[("result", "rolled_back")]);
        assert_eq!(counted, Some(1.0));
        let last = &ask(&self.proxy.socket(), &json!({"verb": "report"}))[0];
        assert_eq!(last["result"], "rolled_back", "{last}");
        said
    }

    fn only_the_old_one_is_left(&self, old: u32) {
        let keeper = self.proxy.keeper_pid();
        let alone = || children(keeper) == [old] && Census::of(keeper).unwrap().zombies == 0;
        until("nothing is left of the new generation", DEADLINE, alone);
    }

    /// Ends the session and the load; the load is looked at.
    fn end(self) -> Tally {
        drop(self.session);
        let tally = self.load.stop();
        println!("{tally:?}");
        assert_eq!((tally.refused, tally.timed_out, tally.corrupt, tally.truncated), (0, 0, 0, 0), "{tally:?}");
        tally
    }
}

fn conf(port: &Port, tagged: &Port, seeded: &Seeded, tags: &Tagged, probation: &str) -> Conf {
    Conf::simple(port, &[seeded.address()])
        .listener("tagged", &tagged.to_string(), "tags")
        .pool("tags", &[tags.address()])
        .with("upgrade", &format!("probation = {probation:?}"))
}

fn output(caller: &mut Guarded) -> Output {
    let child = caller.inner();
    let status = harness::child::wait_exit(child, "proxyctl", DEADLINE);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    child.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
    child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
    let stdout = String::from_utf8(stdout).unwrap();
    Output { status, stdout: stdout.trim().lines().last().unwrap_or_default().into(), stderr }
}

#[test]
fn without_a_failure_the_old_one_stands_by_until_the_end_and_then_retires() {
    let mut bench = Bench::with("1s");
    let began = Instant::now();
    let (mut caller, ..) = bench.on_probation(&[]);
    let status = bench.proxy.status();
    assert!(status["generations"][0]["drain_seconds_left"].is_null(), "no drain deadline runs yet: {status}");
    for generation in status["generations"].as_array().unwrap() {
        assert_eq!(generation["sha256"].as_str().unwrap().len(), 64, "{generation}");
        assert!(generation["build"].as_str().unwrap().len() >= 6, "{generation}");
    }
    let output = output(&mut caller);
    assert!(output.status.success(), "{output:?}");
    assert!(began.elapsed() >= Duration::from_secs(1));
    until("the old one has retired", DEADLINE, || bench.states() == ["serving"]);
    bench.session.assert_alive();
    let last = &ask(&bench.proxy.socket(), &json!({"verb": "report", "id": 1}))[0];
    assert_eq!((&last["result"], &last["accept_gap_ms"].is_number()), (&"committed".into(), &true), "{last}");
    let unknown = &ask(&bench.proxy.socket(), &json!({"verb": "report", "id": 7}))[0];
    assert!(unknown["message"].as_str().unwrap().contains("no report of upgrade 7"), "{unknown}");
    bench.end().assert_clean();
}

#[test]
fn a_new_generation_that_is_killed_is_followed_by_the_old_one() {
    let mut bench = Bench::start();
    let (mut caller, old, new) = bench.on_probation(&[]);
    send(new, Signal::SIGKILL).unwrap();
    let killed = Instant::now();
    Steady::open(bench.tagged.address()).assert_alive();
    println!("accepted again after {:?}", killed.elapsed());
    assert!(killed.elapsed() < Duration::from_secs(1), "accepted again only after {:?}", killed.elapsed());
    bench.is_rolled_back_after_death(&mut caller, old, "died of signal 9 (SIGKILL)");
    bench.only_the_old_one_is_left(old);
    let tally = bench.end();
    assert!(tally.reset <= 20, "only what the killed one had accepted may be lost: {tally:?}");
}

#[test]
fn a_new_binary_that_dies_by_itself_is_rolled_back() {
    let mut bench = Bench::start();
    let Some(binary) = impostor(bench.proxy.directory(), "mortal", "worker:alarm:2") else { return };
    let (mut caller, old, _) = bench.on_probation(&["--binary", binary.to_str().unwrap()]);
    bench.is_rolled_back_after_death(&mut caller, old, "SIGALRM");
    bench.only_the_old_one_is_left(old);
    // What it goes on with is what was pinned: the next upgrade takes the path of the last that was committed.
    assert!(!bench.proxy.stderr().contains("upgrade committed"));
    bench.end();
}

#[test]
fn a_new_generation_that_hangs_is_rolled_back_and_a_keeper_that_was_stopped_blames_nobody() {
    let mut bench = Bench::start();
    let (mut caller, old, new) = bench.on_probation(&[]);
    // Longer than any silence that is allowed, but ours.
    bench.proxy.signal(Signal::SIGSTOP);
    let stopped = Instant::now();
    until("the keeper was stopped for three seconds", DEADLINE, || stopped.elapsed() > Duration::from_secs(3));
    bench.proxy.signal(Signal::SIGCONT);
    until("the keeper listens again for a while", DEADLINE, || stopped.elapsed() > Duration::from_millis(4500));
    assert_eq!(bench.states(), ["standby", "serving"]);
    send(new, Signal::SIGSTOP).unwrap();
    bench.is_rolled_back(&mut caller, old, "sent no heartbeat for 2.");
    assert_eq!(bench.states(), ["serving", "failed"]);
    send(new, Signal::SIGCONT).unwrap();
    bench.only_the_old_one_is_left(old);
    bench.end().assert_clean();
}

#[test]
fn a_pool_that_only_the_new_one_cannot_reach_fails_the_probe() {
    let mut bench = Bench::start();
    let (nobody, other) = (Port::reserve(), Port::reserve());
    let conf = bench.conf().listener("other", &other.to_string(), "nobody").pool("nobody", &[nobody.address()]);
    bench.proxy.write_config(&conf);
    let before = bench.proxy.status()["config"].clone();
    let old = bench.proxy.serving_pid();
    let mut caller = bench.begin(&[]);
    let why = format!("probe: pool nobody: backend {0} ({0}): Connection refused", nobody.address());
    bench.is_rolled_back(&mut caller, old, &why);
    bench.only_the_old_one_is_left(old);
    let after = bench.proxy.status();
    assert_eq!(after["config"]["sha256"], before["sha256"], "{after}");
    assert!(after["config"]["version"].as_u64() > before["version"].as_u64(), "{after}");
    assert!(Steady::try_open(other.address()).is_err(), "the listener of the new configuration is still open");
    bench.end().assert_clean();
}

#[test]
fn a_backend_that_is_down_for_both_is_not_the_upgrades_fault() {
    let bench = Bench::with("1s");
    let (nobody, other) = (Port::reserve(), Port::reserve());
    let conf = conf(&bench.port, &bench.tagged, &bench.seeded, &bench.tags, "1s");
    bench.proxy.write_config(&conf.listener("other", &other.to_string(), "nobody").pool("nobody", &[nobody.address()]));
    assert!(bench.proxy.ctl(&["reload"]).status.success());
    let report = bench.proxy.upgrade();
    assert_eq!(report["result"], "committed", "{report}");
    let said = bench.proxy.stderr();
    assert!(said.contains("probe: pool nobody: ") && said.contains("cannot reach it either"), "{said}");
    bench.end().assert_clean();
}

#[test]
fn a_new_generation_that_finds_no_backends_is_rolled_back() {
    let mut bench = Bench::start();
    let nobody = Port::reserve();
    let conf = bench.conf().with("upgrade", "probe = \"off\"");
    let text = conf.render(&bench.proxy.directory().join("state"), bench.proxy.admin());
    // The same pool, its backend gone astray.
    let text = text.replace(&bench.tags.address().to_string(), &nobody.to_string());
    std::fs::write(bench.proxy.config(), text).unwrap();
    let (mut caller, old, _) = bench.on_probation(&[]);
    // More than those of the load that succeed, for a while.
    let mut failing = Vec::new();
    until("it is no longer on probation", DEADLINE, || {
        failing.extend((0..20).filter_map(|_| std::net::TcpStream::connect(bench.tagged.address()).ok()));
        bench.proxy.status()["upgrade"].is_null()
    });
    bench.is_rolled_back(&mut caller, old, "found no backend for ");
    bench.only_the_old_one_is_left(old);
    bench.end().assert_clean();
}

#[test]
fn without_its_standby_the_new_one_goes_on_and_if_both_die_the_old_binary_starts() {
    let bench = Bench::start();
    let (mut caller, old, new) = bench.on_probation(&[]);
    send(old, Signal::SIGKILL).unwrap();
    until("the loss is said", DEADLINE, || bench.proxy.stderr().contains("standby lost: generation 1"));
    assert_eq!((bench.states(), bench.proxy.serving()), (vec!["serving".to_owned()], Some(2)));
    send(new, Signal::SIGKILL).unwrap();
    let output = output(&mut caller);
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    until("a worker serves again", DEADLINE, || bench.proxy.serving() == Some(3));
    Steady::open(bench.tagged.address()).assert_alive();
    bench.end();
}

#[test]
fn a_rollback_by_the_operator_takes_effect_at_once_or_goes_back_and_forth() {
    let mut bench = Bench::start();
    let (mut caller, old, _) = bench.on_probation(&[]);
    let answer = ask(&bench.proxy.socket(), &json!({"verb": "rollback"}));
    assert_eq!((&answer[0]["line"], &answer[0]["result"]), (&"done".into(), &"rolled_back".into()), "{answer:?}");
    bench.is_rolled_back(&mut caller, old, "asked for by `proxyctl rollback`");
    bench.only_the_old_one_is_left(old);
    let refused = &ask(&bench.proxy.socket(), &json!({"verb": "rollback"}))[0];
    assert!(refused["message"].as_str().unwrap().contains("nothing to roll back to"), "{refused}");
    // Outside of a probation: to the configuration before, which no file holds any more.
    let other = Port::reserve();
    let first = bench.proxy.status()["config"]["sha256"].clone();
    bench.proxy.write_config(&bench.conf().listener("other", &other.to_string(), "tags"));
    let upgrade = json!({"verb": "upgrade", "probation": 0.0});
    let rollback = json!({"verb": "rollback", "probation": 0.0});
    let done = ask(&bench.proxy.socket(), &upgrade);
    assert_eq!(done.last().unwrap()["result"], "committed", "{done:?}");
    Steady::open(other.address()).assert_alive();
    std::fs::remove_file(bench.proxy.config()).unwrap();
    for forth in [false, true, false] {
        let done = ask(&bench.proxy.socket(), &rollback);
        assert_eq!(done.last().unwrap()["result"], "committed", "{done:?}");
        let status = bench.proxy.status();
        assert_eq!(status["config"]["sha256"] != first, forth, "{status}");
        assert_eq!(Steady::try_open(other.address()).is_ok(), forth);
        bench.session.assert_alive();
    }
    bench.end().assert_clean();
}

#[test]
fn pool_verbs_reach_both_generations_and_the_rest_is_refused() {
    let mut bench = Bench::start();
    let green = Tagged::start("green");
    let (mut caller, old, _) = bench.on_probation(&[]);
    for words in [&["reload"][..], &["upgrade"]] {
        let refused = bench.proxy.ctl(words);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(4), "{said}");
        assert!(said.contains("at step probation") && said.contains("begun by proxyctl"), "{said}");
    }
    let set = bench.proxy.ctl(&["pool", "set", "tags", &green.address().to_string()]);
    assert!(set.status.success(), "{set:?}");
    assert_eq!(Steady::open(bench.tagged.address()).tag, "green");
    ask(&bench.proxy.socket(), &json!({"verb": "rollback"}));
    assert_eq!(bench.proxy.serving_pid(), old);
    for _ in 0..4 {
        assert_eq!(Steady::open(bench.tagged.address()).tag, "green", "the standby has not made the change");
    }
    assert_eq!(output(&mut caller).status.code(), Some(6));
    bench.session = Steady::open(bench.tagged.address());
    bench.end().assert_clean();
}

#[test]
fn a_shutdown_on_probation_commits_first() {
    let Bench { session, load, mut proxy, .. } = {
        let bench = Bench::start();
        let (caller, ..) = bench.on_probation(&[]);
        drop(caller);
        bench
    };
    drop(session);
    load.stop().assert_clean();
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(0));
    assert!(proxy.stderr().contains("upgrade committed"), "{}", proxy.stderr());
}
