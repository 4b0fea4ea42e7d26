//! One row of the matrix: a proxy under load, upgrades that fail, and what must be true after each of them.

use std::collections::BTreeMap;
use std::process::Output;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::files::Mount;
use crate::harness::child::{Process, children};
use crate::harness::{Census, Conf, Exchange, Load, Port, Proxy, Seeded, Starter, Tally, impostor, slim, until};

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// What `ready_timeout` is in every row.
pub(crate) const READY: Duration = Duration::from_secs(2);
/// New connections a second.
pub(crate) const RATE: u32 = 500;
/// Of data, in each worker: what the harness configures.
const THREADS: u64 = 2;
/// Connections that must be served between two injections: it is under load that things go wrong.
const SERVED: u64 = 50;

#[derive(Debug)]
pub(crate) struct Row {
    /// Goes before the directory it lies in.
    pub(crate) mount: Option<Mount>,
    pub(crate) proxy: Proxy,
    pub(crate) port: Port,
    pub(crate) backend: Seeded,
    pub(crate) dice: fastrand::Rng,
    load: Load,
    /// Of the keeper, with one generation.
    descriptors: BTreeMap<String, usize>,
    /// The same, where the binary that it would go back to is another one and held as well.
    baseline: BTreeMap<String, usize>,
    /// The machine has two cores: one row at a time.
    _alone: MutexGuard<'static, ()>,
}

pub(crate) fn conf(port: &Port, backend: &Seeded) -> Conf {
    Conf::simple(port, &[backend.address()])
        .with("upgrade", &format!("ready_timeout = \"{}s\"", READY.as_secs()))
        .with("drain", "timeout = \"60s\"\nspread = \"1s\"")
}

/// How often each injection is repeated.
pub(crate) fn rounds() -> u32 {
    std::env::var("PROXYD_FAULT_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1)
}

/// For rows that have no proxy of the usual kind.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The random moments of a row, all from one seed.
pub(crate) fn dice(id: &str) -> fastrand::Rng {
    let given = std::env::var("PROXYD_FAULT_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("{id}: PROXYD_FAULT_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

impl Row {
    pub(crate) fn start(id: &str) -> Self {
        Self::start_as(id, |conf| conf, |starter| starter)
    }

    pub(crate) fn start_as(id: &str, more: impl FnOnce(Conf) -> Conf, how: impl FnOnce(Starter) -> Starter) -> Self {
        let alone = alone();
        let dice = dice(id);
        let (port, backend) = (Port::reserve(), Seeded::start());
        let starter = Starter::with_binary(&more(conf(&port, &backend)), slim());
        let proxy = how(starter).start();
        // The first upgrade: from now on the keeper holds what it will always hold.
        proxy.upgrade();
        let descriptors = at_rest(&proxy);
        let load = Load::start(port.address(), RATE, Exchange::default());
        let baseline = descriptors.clone();
        let row = Self { mount: None, proxy, port, backend, dice, load, descriptors, baseline, _alone: alone };
        row.serves();
        row
    }

    /// An impostor in the row's directory: see `harness/impostor.c`.
    pub(crate) fn impostor(&self, how: &str) -> Option<String> {
        impostor(self.proxy.directory(), "impostor", how).map(|path| path.to_str().unwrap().to_owned())
    }

    /// The upgrade fails at one of `steps`, its line holds each of `words`, and nothing else has changed.
    pub(crate) fn refuses(&mut self, what: &str, arguments: &[&str], steps: &[&str], words: &[&str]) {
        self.refuses_while(what, arguments, steps, words, |_, _| ());
    }

    /// The same, with something done to it meanwhile.
    pub(crate) fn refuses_while(
        &mut self,
        what: &str,
        arguments: &[&str],
        steps: &[&str],
        words: &[&str],
        act: impl FnOnce(&Self, u32),
    ) {
        let before = self.snapshot();
        let output = self.upgrade_while(arguments, act);
        let said = self.failed(what, &output);
        assert!(steps.iter().any(|step| said.contains(&format!("upgrade failed at {step}: "))), "{what}: {said}");
        assert!(words.iter().all(|word| said.contains(word)), "{what}: {words:?} are not all in: {said}");
        self.unchanged(what, &before);
    }

    /// An upgrade, and what is done beside it; it is told the pid of the worker that serves.
    pub(crate) fn upgrade_while(&self, arguments: &[&str], act: impl FnOnce(&Self, u32)) -> Output {
        let old = self.proxy.serving_pid();
        thread::scope(|scope| {
            let upgrade = scope.spawn(|| self.proxy.ctl(&[&["upgrade"], arguments].concat()));
            act(self, old);
            upgrade.join().unwrap()
        })
    }

    /// What the operator is told: one line with the cause and what is still true.
    pub(crate) fn failed(&self, what: &str, output: &Output) -> String {
        let said = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(output.status.code(), Some(1), "{what}: {output:?}");
        assert!(said.starts_with("proxyctl: upgrade failed at ") || said.starts_with("upgrade failed at "), "{said}");
        assert!(said.lines().next().unwrap().contains("still serving"), "{what}: {said}");
        println!("{what}: {}", said.trim_end());
        said
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let generation = self.proxy.serving().unwrap();
        let worker = Process::of(self.proxy.worker_pid(generation).unwrap()).unwrap();
        Snapshot { generation, worker, failed: self.upgrades_counted("failed") }
    }

    pub(crate) fn upgrades_counted(&self, result: &str) -> u64 {
        self.proxy.metrics().count("proxyd_upgrades_total", &[("result", result)])
    }

    /// Sessions that went with a killed worker: those on record, and for each of its threads one that it had accepted and not
    /// put on record yet.
    pub(crate) fn lost_with_workers(&self) -> u64 {
        let metrics = self.proxy.metrics();
        let recorded = metrics.count("proxyd_sessions_closed_total", &[("reason", "worker_crashed")]);
        let restarted = metrics.count("proxyd_worker_restarts_total", &[]);
        let at_commit = self.proxy.stderr().matches("upgrade failed at commit").count() as u64;
        recorded + THREADS * (restarted + self.upgrades_counted("rolled_back") + at_commit)
    }

    /// After a failed upgrade: counted once, same generation, same process, nothing left of what was tried.
    pub(crate) fn unchanged(&self, what: &str, before: &Snapshot) {
        let after = self.snapshot();
        assert_eq!((after.generation, after.worker), (before.generation, before.worker), "{what}");
        assert_eq!(after.failed, before.failed + 1, "{what}: not counted as failed");
        self.cleaned(what);
        self.serves();
    }

    /// After an upgrade to another binary, or back from one: of this one and of the one before an image is held.
    pub(crate) fn holds_images(&mut self, count: usize) {
        self.baseline = self.descriptors.clone();
        *self.baseline.get_mut("memfd").unwrap() += count - 1;
    }

    /// One worker, no zombie, and every descriptor given back.
    pub(crate) fn cleaned(&self, what: &str) {
        let keeper = self.proxy.keeper_pid();
        let mut last = Census::default();
        let clean = || {
            last = Census::of(keeper).unwrap();
            children(keeper).len() == 1 && last.zombies == 0 && last.descriptors == self.baseline
        };
        let left = format!("nothing is left of the attempt ({what}): {:?}", self.baseline);
        until(&left, DEADLINE, clean);
    }

    /// New connections are served now, and none has met a fault.
    pub(crate) fn serves(&self) {
        self.serves_in_spite_of(|_| 0);
    }

    /// The same, where some faults are the row's price.
    pub(crate) fn serves_in_spite_of(&self, price: impl Fn(&Tally) -> u64) {
        let goal = self.load.tally().clean + SERVED;
        until("new connections are served", DEADLINE, || self.load.tally().clean >= goal);
        let tally = self.load.tally();
        assert_eq!(tally.faults() - price(&tally), 0, "{tally:?}");
    }

    /// Those who had to wait are served: another wait on top of it would be an overload, not a fault.
    pub(crate) fn catches_up(&self) {
        until("those who waited are served", DEADLINE, || {
            let tally = self.load.tally();
            tally.opened - tally.clean - tally.faults() < SERVED
        });
    }

    pub(crate) fn upgrades(&self) -> Value {
        let report = self.proxy.upgrade();
        until("one generation is left", DEADLINE, || generations(&self.proxy) == 1);
        report
    }

    /// The row has cost nobody anything: the next plain upgrade succeeds, all is clean, and nothing is held that was not
    /// held before.
    pub(crate) fn ends_well(self) {
        self.ends_with(|tally| tally.assert_clean());
    }

    /// The same, for rows that have a price: `judge` looks at what the clients saw.
    pub(crate) fn ends_with(self, judge: impl FnOnce(&Tally)) {
        self.upgrades();
        self.serves_in_spite_of(Tally::faults);
        let tally = self.load.stop();
        judge(&tally);
        assert!(tally.opened > 0 && self.backend.tally().corrupt == 0);
        until("no session is shown as live", DEADLINE, || {
            self.proxy.metrics().count("proxyd_sessions_active", &[]) == 0
        });
        let metrics = self.proxy.metrics();
        let count = |name: &str| metrics.count(name, &[]);
        assert_eq!(count("proxyd_sessions_total"), count("proxyd_sessions_closed_total"));
        assert_eq!(at_rest(&self.proxy), self.descriptors, "descriptors of the keeper before and after");
    }
}

/// What a failed upgrade may not change, and its count.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) generation: u64,
    pub(crate) worker: Process,
    failed: u64,
}

fn generations(proxy: &Proxy) -> usize {
    proxy.status()["generations"].as_array().unwrap().len()
}

/// What the keeper holds with one generation and nobody asking: two looks that agree, so that no request is among it.
fn at_rest(proxy: &Proxy) -> BTreeMap<String, usize> {
    until("one generation is left", DEADLINE, || generations(proxy) == 1);
    let look = || Census::of(proxy.keeper_pid()).unwrap().descriptors;
    let mut last = look();
    let mut same = 0;
    until("the descriptors of the keeper settle", DEADLINE, || {
        let now = look();
        same = if now == last { same + 1 } else { 0 };
        last = now;
        same >= SETTLED
    });
    last
}

/// Looks, 5 ms apart, longer than the end of a request takes.
const SETTLED: u32 = 10;

/// Lets a random time pass: the moment of the fault, not a wait for anything.
pub(crate) fn moment(dice: &mut fastrand::Rng, longest: Duration) -> Duration {
    let wait = longest.mul_f64(dice.f64());
    let begun = Instant::now();
    while begun.elapsed() < wait {
        thread::park_timeout(wait.saturating_sub(begun.elapsed()));
    }
    wait
}
