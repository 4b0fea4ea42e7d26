//! Workers killed again and again under sessions that survive it (`survive_crash`): none is closed, and no byte is lost,
//! doubled or swapped. And what a kill costs without it: a reset each, never an end of file.
//!
//! By default 10 kills under 224 sessions; with `PROXYD_LONG=1` 200 under 2,220.

mod harness;

use std::time::{Duration, Instant};

use harness::child::Process;
use harness::{
    Conf, Fault, Following, LongSessions, Mix, Port, Proxy, Seeded, Starter, slim, tuples, until, until_moment,
};
use nix::sys::signal::Signal;

const DEADLINE: Duration = Duration::from_secs(60);
/// After the worker is READY, until it is killed.
const LIFE: std::ops::Range<u64> = 20..200;

struct Scale {
    mix: Mix,
    kills: u64,
    turns: u32,
}

fn scale() -> Scale {
    match std::env::var("PROXYD_LONG").as_deref() {
        Ok("1") => Scale { mix: Mix { idle: 2_000, chatting: 200, bulk: 20 }, kills: 200, turns: 20 },
        _ => Scale { mix: Mix { idle: 200, chatting: 20, bulk: 4 }, kills: 10, turns: 3 },
    }
}

struct Scene {
    proxy: Proxy,
    port: Port,
    backend: Seeded,
}

impl Scene {
    fn start(more: impl FnOnce(Conf) -> Conf) -> Self {
        let (port, backend) = (Port::reserve(), Seeded::start());
        let conf = Conf::simple(&port, &[backend.address()]).with("drain", "timeout = \"1h\"");
        let proxy = Starter::with_binary(&more(conf), slim()).start();
        Self { proxy, port, backend }
    }

    /// Its sessions outlive their worker, and a worker that died is started again at once.
    fn surviving() -> Self {
        Self::start(|conf| {
            conf.with("listeners.main", "survive_crash = true").with("runtime", "restart_backoff = \"off\"")
        })
    }

    fn tuples(&self) -> std::collections::BTreeSet<tuples::Tuple> {
        tuples(&[self.port.number(), self.backend.address().port()])
    }

    fn serving(&self) -> Process {
        Process::of(self.proxy.serving_pid()).expect("it lives")
    }

    /// Everything ends in order: the clients' counts are checked by the backend byte for byte, those of the ledger may lag by
    /// what one operation carried, for each kill and direction.
    fn end(self, sessions: LongSessions, kills: u64) {
        let counts = sessions.finish();
        until("no session is shown as live", DEADLINE, || {
            self.proxy.metrics().count("proxyd_sessions_active", &[]) == 0
        });
        let tally = self.backend.tally();
        assert_eq!((tally.corrupt, tally.reset, tally.timed_out), (0, 0, 0), "{tally:?}");
        let metrics = self.proxy.metrics();
        let bytes = |direction| metrics.count("proxyd_session_bytes_total", &[("direction", direction)]);
        let sums = [
            ("received", counts.iter().map(|one| one.up).sum::<u64>()),
            ("sent", counts.iter().map(|one| one.down).sum()),
        ];
        for (direction, sum) in sums {
            let (told, lag) = (bytes(direction), kills * OPERATION * counts.len() as u64);
            assert!(told <= sum && told + lag >= sum, "{direction}: {told} of {sum}, after {kills} kills");
        }
        let count = counts.len() as u64;
        assert_eq!(metrics.count("proxyd_sessions_closed_total", &[("reason", "client_closed")]), count);
        assert_eq!(metrics.count("proxyd_sessions_total", &[]), count);
    }
}

/// The most that one splice carries: what a pipe holds.
const OPERATION: u64 = 64 * 1024;

/// Kills the worker that serves, so long after it was READY; returns when another one is.
fn kill(scene: &Scene, following: &Following, after: Duration) {
    until_moment(Instant::now() + after);
    scene.serving().signal(Signal::SIGKILL);
    following.until("a worker in its place", DEADLINE, |event| event["event"] == "worker_restarted");
}

#[test]
fn sessions_survive_kill_after_kill() {
    let scale = scale();
    let scene = Scene::surviving();
    let sessions = LongSessions::start(scene.port.address(), scale.mix);
    let connections = scene.tuples();
    let following = Following::start(&scene.proxy);
    for number in 1..=scale.kills {
        kill(&scene, &following, Duration::from_millis(fastrand::u64(LIFE)));
        sessions.assert_unbroken();
        if number % 10 == 0 {
            sessions.all_go_on();
        }
    }
    sessions.all_go_on();
    let lost = connections.difference(&scene.tuples()).count();
    assert_eq!(lost, 0, "connections are not there any more");
    let metrics = scene.proxy.metrics();
    let recovered = |result| metrics.count("proxyd_sessions_recovered_total", &[("result", result)]);
    // A worker that is killed before it has taken all leaves the others where they are: not every kill is one of all.
    assert_eq!(recovered("lost"), 0);
    assert!(recovered("recovered") >= sessions.len() as u64);
    scene.end(sessions, scale.kills);
}

#[test]
fn worker_and_keeper_are_killed_in_turn() {
    let scale = scale();
    let mut scene = Scene::surviving();
    let sessions = LongSessions::start(scene.port.address(), scale.mix);
    for _ in 0..scale.turns {
        let following = Following::start(&scene.proxy);
        kill(&scene, &following, Duration::from_millis(fastrand::u64(LIFE)));
        sessions.all_go_on();
        drop(following);
        scene.proxy.replace_keeper(slim());
        sessions.all_go_on();
        // Only then are they with the new keeper.
        until("every session is protected again", DEADLINE, || {
            scene.proxy.metrics().count("proxyd_sessions_unprotected", &[]) == 0
        });
    }
    scene.end(sessions, scale.turns.into());
}

/// Whatever an upgrade is at: sessions that are with a worker that is killed go on with the one that serves then.
#[test]
fn kills_at_random_moments_of_upgrades_cost_nothing() {
    let scale = scale();
    let scene = Scene::surviving();
    let sessions = LongSessions::start(scene.port.address(), scale.mix);
    let rounds = scale.turns * 2;
    for _ in 0..rounds {
        let begun = scene.proxy.ctl(&["upgrade", "--probation", "300ms", "--no-wait"]);
        assert!(begun.status.success(), "{begun:?}");
        until_moment(Instant::now() + Duration::from_millis(fastrand::u64(0..600)));
        let generations = scene.proxy.status()["generations"].as_array().unwrap().clone();
        let alive =
            generations.iter().filter_map(|one| u32::try_from(one["pid"].as_u64()?).ok().filter(|pid| *pid > 0));
        let worker = fastrand::choice(alive.collect::<Vec<_>>()).and_then(Process::of);
        if let Some(worker) = worker {
            worker.signal(Signal::SIGKILL);
        }
        until("nothing is under way", DEADLINE, || scene.proxy.status()["upgrade"].is_null() && scene.proxy.is_ready());
        sessions.all_go_on();
    }
    scene.end(sessions, rounds.into());
}

#[test]
fn without_it_a_kill_is_a_reset_and_never_an_end_of_file() {
    let scene = Scene::start(|conf| conf);
    let sessions = LongSessions::start(scene.port.address(), Mix { idle: 20, chatting: 40, bulk: 8 });
    let count = sessions.len();
    scene.serving().signal(Signal::SIGKILL);
    until("every client knows", DEADLINE, || sessions.troubles().len() == count);
    let other: Vec<_> = sessions.troubles().into_iter().filter(|trouble| trouble.fault != Fault::Reset).collect();
    assert!(other.is_empty(), "{} were not reset: {:#?}", other.len(), other.first());
    until("every backend knows", DEADLINE, || scene.backend.tally().reset == count as u64);
    let tally = scene.backend.tally();
    assert_eq!((tally.truncated, tally.corrupt), (0, 0), "{tally:?}");
}
