//! Another version of proxyd, built from an earlier commit of this repository: it upgrades to us and back, and we to it and
//! back, under load. Nobody is refused, reset or late, and what is counted is what the clients counted.
//!
//! Built once, offline, into `target/older`; skipped where the clone has no such commit (`git clone --depth`).
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use harness::child::Process;
use harness::{Conf, Exchange, Load, LongStreams, Pace, Port, Proxy, Seeded, Starter, Twins, peer, slim, until};

const DEADLINE: Duration = Duration::from_secs(30);
/// The last commit before the upgrade became a transaction: protocol 1, ledger layout 1.
const COMMIT: &str = "6b23fb7";
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const RATE: u32 = 300;
const STREAMS: u32 = 20;
const PACE: Pace = Pace { frame: 1_000, every: Duration::from_millis(50) };

/// The older binary, or `None` after saying why there is none.
fn older() -> Option<&'static Path> {
    static BINARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    BINARY.get_or_init(build).as_deref()
}

fn build() -> Option<PathBuf> {
    let (git, target) = (peer("git")?, Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("older"));
    let binary = target.join(format!("debug/proxyd-{COMMIT}"));
    if binary.exists() {
        return Some(binary);
    }
    let known = git_in(&git).args(["cat-file", "-e", &format!("{COMMIT}^{{commit}}")]).stderr(Stdio::null()).status();
    if !known.unwrap().success() {
        // History is no program: nothing that could be installed brings it into a shallow clone.
        println!("skipped: commit {COMMIT} is not in this clone; `git fetch --unshallow` brings it");
        return None;
    }
    let source = target.join("source");
    fs::create_dir_all(&source).unwrap();
    unpack(&git, &source);
    let begun = Instant::now();
    compile(&source, &target);
    println!("proxyd of {COMMIT} was built in {:?}", begun.elapsed());
    fs::rename(target.join("debug/proxyd"), &binary).unwrap();
    Some(binary)
}

fn git_in(git: &Path) -> Command {
    let mut command = Command::new(git);
    // Owned by somebody else where CI mounts it.
    command.args(["-c", &format!("safe.directory={ROOT}"), "-C", ROOT]);
    command
}

fn unpack(git: &Path, source: &Path) {
    let archive = source.with_extension("tar");
    let written = git_in(git).args(["archive", "-o"]).arg(&archive).arg(COMMIT).status().unwrap();
    assert!(written.success(), "git archive {COMMIT}: {written}");
    let tar = Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(source).status().unwrap();
    assert!(tar.success(), "tar: {tar}");
}

/// With the same dependencies, so that nothing has to be fetched; with another lock file it is fetched.
fn compile(source: &Path, target: &Path) {
    let run = |more: &[&str]| {
        let log = File::create(target.join("log")).unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--locked", "--bin", "proxyd"]).args(more).current_dir(source);
        cargo.env("CARGO_TARGET_DIR", target).stdout(Stdio::null()).stderr(log).status().unwrap().success()
    };
    let log = || fs::read_to_string(target.join("log")).unwrap();
    assert!(run(&["--offline"]) || run(&[]), "proxyd of {COMMIT} does not compile:\n{}", log());
}

/// To a binary, with these words more; what the report says of the keeper.
fn upgrade(proxy: &Proxy, binary: &Path, words: &[&str]) -> String {
    let report = proxy.ctl_json(&[&["upgrade", "--binary", binary.to_str().unwrap()], words].concat());
    assert_eq!((&report["result"], &report["accept_gap_ms"]), (&"committed".into(), &0.0.into()), "{report}");
    report["keeper"].as_str().unwrap().into()
}

/// The first of `binaries` starts, and upgrades to each of the others in turn; what is said of its keeper each time.
fn along(binaries: &[&Path], words: &[&str]) -> Vec<String> {
    let (port, backend) = (Port::reserve(), Seeded::start());
    let conf = Conf::simple(&port, &[backend.address()]).with("upgrade", "max_generations = 8");
    let conf = conf.with("drain", "timeout = \"1h\"").for_any_version();
    let proxy = Starter::with_binary(&conf, binaries[0]).start();
    let (keeper, mut said) = (Process::of(proxy.keeper_pid()).unwrap(), Vec::new());
    let load = Load::start(port.address(), RATE, Exchange::default());
    let mut streams = Vec::new();
    let mut seen = proxy.metrics();
    for binary in &binaries[1..] {
        streams.push(LongStreams::start(port.address(), STREAMS, PACE));
        let goal = load.tally().clean + u64::from(RATE) / 2;
        until("the load is served", DEADLINE, || load.tally().clean >= goal);
        said.push(upgrade(&proxy, binary, words));
        assert!(keeper.exists());
        let now = proxy.metrics();
        assert_eq!(now.fallen_since(&seen), [""; 0], "after the upgrade to {}", binary.display());
        seen = now;
    }
    let tallies: Vec<_> = streams.into_iter().map(LongStreams::stop).chain([load.stop()]).collect();
    tallies.iter().for_each(harness::Tally::assert_clean);
    let opened: u64 = tallies.iter().map(|tally| tally.opened).sum();
    until("no session is shown as live", DEADLINE, || proxy.metrics().count("proxyd_sessions_active", &[]) == 0);
    let metrics = proxy.metrics();
    let count = |name: &str| metrics.count(name, &[]);
    assert_eq!((count("proxyd_sessions_total"), count("proxyd_sessions_closed_total")), (opened, opened));
    assert_eq!(count("proxyd_worker_restarts_total"), 0);
    until("one generation is left", DEADLINE, || proxy.status()["generations"].as_array().unwrap().len() == 1);
    said
}

#[test]
fn f58_c22_an_older_keeper_upgrades_to_us_and_back() {
    let Some(older) = older() else { return };
    // It stays what it is, and knows no word for that.
    assert_eq!(along(&[older, slim(), older, slim(), older], &[]), [""; 4]);
}

/// A keeper becomes the new version only if that one can go on from where it is.
#[test]
fn f58_c22_our_keeper_upgrades_to_an_older_version_and_back() {
    let Some(older) = older() else { return };
    let (not, twins) = ("not upgraded: it is of a version that cannot take over from a running keeper", Twins::new());
    let (ours, other) = (twins.path("a"), twins.path("b"));
    let said = along(&[&ours, older, &ours, older, &other, older, &ours], &["--probation", "0s"]);
    assert_eq!(said, [not, "unchanged", not, "upgraded", not, "upgraded"]);
}
