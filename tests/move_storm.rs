//! Idle, chatting and bulk sessions through storms of upgrades and rollbacks, with the new worker killed and stopped in the
//! middle of a move: no session is closed, none corrupted, each keeps its two connections, and what is counted is what its
//! client has counted.
//!
//! By default for some seconds with 224 sessions; with `PROXYD_LONG=1` for minutes with 2,220.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use harness::child::Process;
use harness::{
    Census, Conf, Fault, Following, LongSessions, Mix, Port, Proxy, Seeded, Starter, slim, tuples, until, until_moment,
    until_none,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);
/// KiB that a process may have more at the end than before: what it holds does not grow with the number of upgrades.
const GROWTH: u64 = 4 * 1024;
/// KiB that the allocator of a worker may keep of a session that is gone: an open one costs 2.1.
const KEPT: u64 = 3;
/// In the storms of upgrades.
const BETWEEN: Duration = Duration::from_secs(1);

struct Scale {
    mix: Mix,
    upgrades: u32,
    on_probation: u32,
    rounds: u32,
}

fn scale() -> Scale {
    match std::env::var("PROXYD_LONG").as_deref() {
        Ok("1") => {
            Scale { mix: Mix { idle: 2_000, chatting: 200, bulk: 20 }, upgrades: 60, on_probation: 5, rounds: 30 }
        }
        _ => Scale { mix: Mix { idle: 200, chatting: 20, bulk: 4 }, upgrades: 5, on_probation: 1, rounds: 4 },
    }
}

struct Storm {
    proxy: Proxy,
    port: Port,
    backend: Seeded,
    sessions: LongSessions,
    tuples: BTreeSet<tuples::Tuple>,
    /// Keeper and worker before the first session.
    at_rest: [Census; 2],
}

impl Storm {
    fn start(mix: Mix) -> Self {
        let (port, backend) = (Port::reserve(), Seeded::start());
        // Those that have to be left are to be left, not closed; the probe would be one more connection of the backend.
        let conf = Conf::simple(&port, &[backend.address()])
            .with("upgrade", "probe = \"off\"")
            .with("drain", "timeout = \"1h\"");
        let proxy = Starter::with_binary(&conf, slim()).start();
        proxy.upgrade();
        let at_rest = at_rest(&proxy);
        let sessions = LongSessions::start(port.address(), mix);
        let tuples = tuples(&[port.number(), backend.address().port()]);
        assert_eq!(tuples.len(), 4 * sessions.len(), "two connections a session, two ends each");
        Self { proxy, port, backend, sessions, tuples, at_rest }
    }

    /// Nothing is broken, everything goes on, and over the same connections.
    fn assert_whole(&self) {
        self.sessions.all_go_on();
        let ports = [self.port.number(), self.backend.address().port()];
        let (now, lost) = (tuples(&ports), |now: &BTreeSet<_>| self.tuples.difference(now).count());
        assert_eq!(lost(&now), 0, "connections are not there any more");
    }

    /// KiB that keeper and worker have for themselves.
    fn memory(&self) -> [u64; 2] {
        at_rest(&self.proxy).map(|census| census.memory.private)
    }

    fn until_one_generation(&self) {
        until("the old generations have ended", DEADLINE, || generations(&self.proxy) == 1);
    }

    /// Everything ends in order and was counted; nothing is left of it.
    fn end(self) {
        let Self { proxy, backend, sessions, at_rest, .. } = self;
        sessions.assert_counted(&proxy, &backend);
        let count = sessions.len() as u64;
        let counts = sessions.finish();
        until("the backend has seen their ends", DEADLINE, || backend.tally().clean >= count);
        until("no session is shown as live", DEADLINE, || proxy.metrics().count("proxyd_sessions_active", &[]) == 0);
        let metrics = proxy.metrics();
        let bytes = |direction| metrics.count("proxyd_session_bytes_total", &[("direction", direction)]);
        let sums = (counts.iter().map(|one| one.up).sum(), counts.iter().map(|one| one.down).sum());
        assert_eq!((bytes("received"), bytes("sent")), sums, "of {count} sessions");
        assert_eq!(metrics.count("proxyd_sessions_total", &[]), count);
        assert_eq!(metrics.count("proxyd_sessions_closed_total", &[("reason", "client_closed")]), count);
        assert_eq!(metrics.count("proxyd_sessions_forced_closed_total", &[]), 0);
        let tally = backend.tally();
        assert_eq!((tally.opened, tally.faults()), (count, 0), "{tally:?}");
        assert_as_before(&proxy, &at_rest, count);
    }
}

fn generations(proxy: &Proxy) -> usize {
    proxy.status()["generations"].as_array().unwrap().len()
}

/// Of the keeper and of the worker that serves, when there is no other.
fn at_rest(proxy: &Proxy) -> [Census; 2] {
    until("one generation is left", DEADLINE, || generations(proxy) == 1);
    [proxy.keeper_pid(), proxy.serving_pid()].map(|pid| Census::of(pid).unwrap())
}

/// After so many sessions.
fn assert_as_before(proxy: &Proxy, before: &[Census; 2], sessions: u64) {
    // The pipes of splicing are pooled.
    let held = |census: &Census| {
        let mut descriptors = census.descriptors.clone();
        descriptors.remove("pipe");
        (descriptors, census.zombies)
    };
    until_none("keeper and worker hold what they held", DEADLINE, || {
        let now = at_rest(proxy);
        // A thread that waits for blocking calls of the keeper ends when it has had none for a while.
        let same = |now: &Census, before: &Census| held(now) == held(before) && now.threads <= before.threads;
        let same = now.iter().zip(before).all(|(now, before)| same(now, before));
        (!same).then(|| format!("{now:?} after {before:?}"))
    });
    let more = [("keeper", GROWTH), ("worker", GROWTH + KEPT * sessions)];
    for ((name, more), (now, before)) in more.iter().zip(at_rest(proxy).iter().zip(before)) {
        let grown = now.memory.private.saturating_sub(before.memory.private);
        assert!(grown < *more, "the {name} has {grown} KiB more");
    }
}

/// All of them have moved.
fn assert_moved(report: &Value, count: usize) {
    assert_eq!(report["result"], "committed", "{report}");
    let wanted = serde_json::json!({"moved": count, "left": 0, "forced": 0, "recovered": 0, "unprotected": 0});
    assert_eq!(report["sessions"], wanted, "{report}");
    println!("longest pause {} ms of {count}", report["longest_pause_ms"]);
}

#[test]
fn upgrades_one_after_the_other() {
    let scale = scale();
    let storm = Storm::start(scale.mix);
    let mut memory = Vec::new();
    let trials = (0..scale.upgrades).map(|_| "0s").chain((0..scale.on_probation).map(|_| "2s"));
    for probation in trials {
        let next = Instant::now() + BETWEEN;
        let report = storm.proxy.ctl_json(&["upgrade", "--probation", probation]);
        assert_moved(&report, storm.sessions.len());
        storm.assert_whole();
        storm.until_one_generation();
        memory.push(storm.memory());
        until_moment(next);
    }
    let [first, last] = [memory[0], memory[memory.len() - 1]];
    let grown = |at: usize| last[at].saturating_sub(first[at]);
    assert!(grown(0) < GROWTH && grown(1) < GROWTH, "KiB of keeper and worker with all sessions open: {memory:?}");
    storm.end();
}

/// What is done to an upgrade when it has come to a step.
#[derive(Debug, Clone, Copy)]
enum Blow {
    /// `proxyctl rollback`.
    Rollback,
    /// SIGKILL to the new worker.
    Kill,
}

/// Steps in which the sessions are all with the old worker, so that the new one may die.
const BEFORE_MOVE: [&str; 5] = ["spawn", "offer", "ready", "commit", "probation"];

#[test]
fn rollbacks_and_deaths_at_random_steps() {
    let scale = scale();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let storm = Storm::start(scale.mix);
    for round in 0..scale.rounds {
        let blow = if random.bool() { Blow::Rollback } else { Blow::Kill };
        let steps = match blow {
            Blow::Rollback => &["commit", "probation", "move", "finish"][..],
            Blow::Kill => &BEFORE_MOVE[..],
        };
        let step = random.choice(steps).unwrap();
        let delay = Duration::from_millis(random.u64(0..30));
        println!("round {round}: {blow:?} {delay:?} after {step}");
        strike(&storm, blow, step, delay);
        storm.assert_whole();
    }
    let report = storm.proxy.ctl_json(&["upgrade", "--probation", "0s"]);
    assert_moved(&report, storm.sessions.len());
    storm.assert_whole();
    storm.until_one_generation();
    storm.end();
}

/// One upgrade, and what it meets; returns when nothing is under way any more.
fn strike(storm: &Storm, blow: Blow, step: &str, delay: Duration) {
    let proxy = &storm.proxy;
    let following = Following::start(proxy);
    let mut upgrade = proxy.ctl_command(&["--json", "upgrade", "--probation", "500ms"]);
    let mut upgrade = upgrade.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    following.until_step(step, DEADLINE);
    until_moment(Instant::now() + delay);
    match blow {
        // Refused before the commit, and while an upgrade ends; after it, it is an upgrade of its own.
        Blow::Rollback => drop(proxy.ctl(&["rollback"])),
        Blow::Kill => kill_newest(proxy),
    }
    harness::child::wait_exit(&mut upgrade, "the upgrade", DEADLINE);
    until("no upgrade is under way", DEADLINE, || proxy.status()["upgrade"].is_null() && proxy.is_ready());
}

/// The generation of an upgrade that is not committed for good; what has ended by itself is left alone.
fn kill_newest(proxy: &Proxy) {
    let status = proxy.status();
    if !BEFORE_MOVE.contains(&status["upgrade"]["step"].as_str().unwrap_or_default()) {
        return;
    }
    let newest = status["upgrade"]["to"].as_u64().unwrap();
    if let Some(worker) = proxy.worker_pid(newest).and_then(Process::of) {
        worker.signal(Signal::SIGKILL);
    }
}

/// The new worker as the keeper shows it.
fn new_worker(proxy: &Proxy) -> Process {
    let status = proxy.status();
    let newest = status["upgrade"]["to"].as_u64().expect("an upgrade is under way");
    Process::of(proxy.worker_pid(newest).expect("it has a worker")).expect("it lives")
}

/// Begins an upgrade, and stops the new worker on its probation: it is told of a move, and answers nothing.
fn upgrade_to_a_stopped_one(storm: &Storm, following: &Following) -> Process {
    // Shorter than the silence of a worker that hangs.
    let begun = storm.proxy.ctl(&["upgrade", "--probation", "700ms", "--no-wait"]);
    assert!(begun.status.success(), "{begun:?}");
    following.until_step("probation", DEADLINE);
    let worker = new_worker(&storm.proxy);
    worker.signal(Signal::SIGSTOP);
    following.until_step("move", DEADLINE);
    worker
}

fn last_report(proxy: &Proxy) -> Value {
    until("no upgrade is under way", DEADLINE, || proxy.status()["upgrade"].is_null());
    proxy.ctl_json(&["upgrade", "--last"])
}

/// Whatever is left anywhere goes to the next generation.
fn upgrade_with_all(storm: &Storm) {
    let report = storm.proxy.ctl_json(&["upgrade", "--probation", "0s"]);
    assert_eq!((&report["result"], &report["sessions"]["left"]), (&"committed".into(), &0.into()), "{report}");
    storm.until_one_generation();
}

/// Stopped until the old one waits no longer: it wakes with the end of a path on which nothing is offered any more.
#[test]
fn a_new_worker_that_is_stopped_before_it_answers_reads_nothing_when_it_wakes() {
    let storm = Storm::start(scale().mix);
    let following = Following::start(&storm.proxy);
    let worker = upgrade_to_a_stopped_one(&storm, &following);
    following.until_step("finish", DEADLINE);
    drop(following);
    let report = last_report(&storm.proxy);
    let count = storm.sessions.len();
    let told = |key: &str| report["sessions"][key].as_u64().unwrap();
    assert_eq!((&report["result"], told("moved"), told("left")), (&"committed".into(), 0, count as u64), "{report}");
    storm.assert_whole();
    worker.signal(Signal::SIGCONT);
    storm.assert_whole();
    upgrade_with_all(&storm);
    storm.assert_whole();
    storm.end();
}

#[test]
fn a_new_worker_that_is_killed_before_it_answers_costs_nothing() {
    let storm = Storm::start(scale().mix);
    let following = Following::start(&storm.proxy);
    let worker = upgrade_to_a_stopped_one(&storm, &following);
    drop(following);
    worker.signal(Signal::SIGKILL);
    until("the upgrade is over", DEADLINE, || storm.proxy.status()["upgrade"].is_null() && storm.proxy.is_ready());
    storm.assert_whole();
    upgrade_with_all(&storm);
    storm.assert_whole();
    storm.end();
}

/// At a random moment of the move, so that some sessions are with it, some on their way, and some not: those with it wait.
#[test]
fn a_new_worker_that_is_stopped_in_the_middle_costs_nothing() {
    let scale = scale();
    // A move of some hundred milliseconds: so that most of the signals come in its middle.
    let storm = Storm::start(Mix { idle: 1_500, ..scale.mix });
    for _ in 0..scale.rounds.min(10) {
        let worker = signalled_in_the_move(&storm, Signal::SIGSTOP);
        // Longer than an offer may lie unanswered.
        until_moment(Instant::now() + Duration::from_millis(2_500));
        storm.sessions.assert_unbroken();
        worker.signal(Signal::SIGCONT);
        let report = last_report(&storm.proxy);
        println!("{} {} ms", report["sessions"], report["longest_pause_ms"]);
        storm.assert_whole();
    }
    upgrade_with_all(&storm);
    storm.end();
}

/// At a random moment around the end of the probation, when the sessions move.
fn signalled_in_the_move(storm: &Storm, signal: Signal) -> Process {
    let following = Following::start(&storm.proxy);
    let begun = storm.proxy.ctl(&["upgrade", "--probation", "500ms", "--no-wait"]);
    assert!(begun.status.success(), "{begun:?}");
    following.until_step("probation", DEADLINE);
    let moment = Instant::now() + Duration::from_millis(500) + Duration::from_micros(fastrand::u64(0..60_000));
    let worker = new_worker(&storm.proxy);
    until_moment(moment);
    worker.signal(signal);
    worker
}

/// Sessions that it had are reset, and no others; none ends as if it were complete, and none is corrupted.
#[test]
fn a_new_worker_that_is_killed_in_the_middle_takes_only_its_own_sessions_along() {
    let storm = Storm::start(Mix { idle: 1_500, ..scale().mix });
    let worker = signalled_in_the_move(&storm, Signal::SIGKILL);
    until("the killed one is gone", DEADLINE, || !worker.exists());
    until("another one serves", DEADLINE, || storm.proxy.status()["upgrade"].is_null() && storm.proxy.is_ready());
    storm.sessions.rest_goes_on();
    let crashed = || storm.proxy.metrics().count("proxyd_sessions_closed_total", &[("reason", "worker_crashed")]);
    until_none("as many are told as were lost", DEADLINE, || {
        let (lost, told) = (storm.sessions.troubles().len() as u64, crashed());
        (lost != told).then(|| format!("{lost} lost, {told} told"))
    });
    upgrade_with_all(&storm);
    storm.sessions.rest_goes_on();
    storm.sessions.assert_counted(&storm.proxy, &storm.backend);
    let told = crashed();
    let (all, troubles) = storm.sessions.finish_some();
    println!("{} of {} were with the killed one", troubles.len(), all.len());
    let other: Vec<_> = troubles.iter().filter(|trouble| trouble.fault != Fault::Reset).collect();
    assert!(other.is_empty(), "{} were not reset: {:#?}", other.len(), other.first());
    assert_eq!(troubles.len() as u64, told);
}
