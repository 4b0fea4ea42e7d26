//! The new generation misbehaves before it is one: it exits, crashes, hangs, talks nonsense, or is not who it should be.

use std::fs;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::harness::child::{Process, children};
use crate::row::{DEADLINE, READY, Row, moment, rounds};

fn impostors(id: &str, table: &[(&str, &[&str])]) {
    let mut row = Row::start(id);
    for _ in 0..rounds() {
        for (how, words) in table {
            let Some(path) = row.impostor(how) else { return };
            let what = format!("{id} {how}");
            row.refuses(&what, &["--binary", &path], &["preflight", "spawn", "offer", "ready"], words);
        }
    }
    row.ends_well();
}

#[test]
fn f13_a_new_process_that_exits() {
    impostors(
        "F13",
        &[
            ("preflight:exit:0", &["exited with status 0 without an answer"]),
            ("preflight:exit:1", &["exited with status 1"]),
            ("worker:exit:0", &["exited with status 0 before READY"]),
            ("worker:exit:1", &["exited with status 1 before READY"]),
        ],
    );
}

#[test]
fn f15_a_new_process_that_crashes() {
    impostors(
        "F15",
        &[
            ("preflight:signal:11", &["signal 11 (SIGSEGV)"]),
            ("worker:signal:11", &["signal 11 (SIGSEGV) before READY"]),
            ("worker:signal:6", &["signal 6 (SIGABRT) before READY"]),
        ],
    );
}

#[test]
fn f16_a_new_process_that_hangs_and_ignores_term() {
    impostors(
        "F16",
        &[
            ("preflight:hang", &["did not answer within 2.0 s"]),
            ("worker:hang", &["was not READY within ready_timeout (2 s)"]),
        ],
    );
}

#[test]
fn f17_a_new_process_that_talks_nonsense() {
    impostors(
        "F17",
        &[
            ("preflight:flood", &["--preflight"]),
            ("worker:say:nonsense", &["handoff protocol: "]),
            ("worker:say:{\"type\":\"ready\"}", &["handoff protocol: `ready`", "out of turn"]),
            ("worker:babble", &["handoff protocol: "]),
            ("worker:drip", &["handoff protocol: "]),
        ],
    );
}

#[test]
fn f18_a_binary_of_versions_we_do_not_speak() {
    let ranges = |handoff: &str, ledger: &str| {
        format!("preflight:passport:\"handoff\":{handoff},\"ledger\":{ledger},\"keeper\":{{\"min\":1,\"max\":1}}")
    };
    let (ours, theirs) = ("{\"min\":1,\"max\":1}", "{\"min\":77,\"max\":78}");
    impostors(
        "F18",
        &[
            (&ranges(theirs, ours), &["9.9.9", "hand-over protocol 77 to 78, this keeper "]),
            (&ranges(ours, theirs), &["9.9.9", "ledger layout 77 to 78, this keeper "]),
        ],
    );
}

/// The answer of another time: each preflight asks with a token of its own.
#[test]
fn h8_a_passport_that_was_not_asked_for() {
    let range = r#"{"min":1,"max":1}"#;
    let passport = format!(
        r#"preflight:print:{{"token":"0123456789abcdef","version":"9","build":"x","handoff":{range},"ledger":{range}}}"#
    );
    impostors("H8", &[(&passport, &["is not a proxyd: --preflight printed"])]);
}

#[test]
fn f19_somebody_else_answers() {
    let mut table: Vec<(&str, &[&str])> = vec![("worker:child", &["a record from pid ", " was expected"])];
    if nix::unistd::geteuid().is_root() {
        table.push(("worker:user:65534", &["a record from pid ", "uid 65534", " was expected"]));
    } else {
        println!("skipped: only root can start a process of another uid");
    }
    impostors("F19", &table);
}

/// What is enough to start, and not to serve.
#[test]
fn f21_f49_a_new_process_without_descriptors_or_memory() {
    impostors(
        "F21",
        &[
            ("worker:descriptors:12", &["descriptors, limit 12"]),
            ("worker:memory:20000000", &["before READY"]),
            ("worker:memory:3000000", &["before READY"]),
        ],
    );
}

/// Held before it says hello, so that the moment is known: stopped, told to end, killed.
#[test]
fn f16_f37_f39_signals_to_a_new_process_that_has_not_said_hello() {
    let mut row = Row::start("F37");
    let gate = row.proxy.directory().join("never");
    let Some(path) = row.impostor(&format!("worker:gate:{}", gate.display())) else { return };
    for _ in 0..rounds() {
        for (signal, word) in [
            (Signal::SIGTERM, "SIGTERM"),
            (Signal::SIGKILL, "SIGKILL"),
            (Signal::SIGSTOP, "was not READY within ready_timeout (2 s)"),
        ] {
            let mut dice = row.dice.fork();
            row.refuses_while(signal.as_str(), &["--binary", &path], &["spawn"], &[word], |row, old| {
                let new = newcomer(row, old);
                moment(&mut dice, READY / 4);
                new.signal(signal);
            });
        }
    }
    row.ends_well();
}

/// The process that is being made a generation: the worker that does not serve. Seen as soon as it is there: the whole
/// conversation takes a few milliseconds.
pub(crate) fn newcomer(row: &Row, old: u32) -> Process {
    let begun = Instant::now();
    loop {
        let found = children_now(row.proxy.keeper_pid()).into_iter().find(|pid| *pid != old && is_worker(*pid));
        if let Some(process) = found.and_then(Process::of) {
            return process;
        }
        assert!(begun.elapsed() < DEADLINE, "no new worker was started");
        std::thread::yield_now();
    }
}

/// Without a look at every process there is, where the kernel keeps such a list.
fn children_now(pid: u32) -> Vec<u32> {
    match fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")) {
        Ok(list) => list.split_ascii_whitespace().filter_map(|child| child.parse().ok()).collect(),
        Err(_) => children(pid),
    }
}

/// Not one that answers `--preflight` or `check`, nor one between fork and exec.
fn is_worker(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"--worker\0"))
}
