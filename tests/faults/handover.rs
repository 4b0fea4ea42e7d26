//! Either side of the conversation dies, stops, or runs out of something at each of its steps.

use std::fs;
use std::process::Output;
use std::time::Duration;

use nix::sys::signal::Signal;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::harness::Strace;
use crate::harness::child::{Process, send};
use crate::harness::{Tally, until};
use crate::old::only_lost;
use crate::row::{DEADLINE, READY, Row, moment, rounds};
use crate::spawn::newcomer;

/// From the start of the new process to commit, with time to spare, so that some moments come too late.
const WHOLE: Duration = Duration::from_millis(12);
/// Kills in a round, spread over the steps by chance.
const KILLS: u32 = 8;

#[test]
fn f01_to_f07_the_new_process_is_killed_at_any_moment() {
    let mut row = Row::start("F01-F07");
    for _ in 0..rounds() * KILLS {
        let mut dice = row.dice.fork();
        let before = row.snapshot();
        let output = row.upgrade_while(&[], |row, old| {
            let new = newcomer(row, old);
            moment(&mut dice, WHOLE);
            new.signal(Signal::SIGKILL);
        });
        outcome(&row, &before, &output);
    }
    row.ends_with(killed_ones_only);
}

/// Before the commit: nothing has happened. After it: the new generation is the truth, and its loss a crash like any other.
fn outcome(row: &Row, before: &crate::row::Snapshot, output: &Output) {
    if output.status.success() {
        println!("killed after commit");
        until("a worker serves again", DEADLINE, || row.proxy.serving().is_some() && row.proxy.is_ready());
        row.cleaned("a kill after commit");
    } else {
        let said = row.failed("killed", output);
        assert!(said.contains("SIGKILL") || said.contains("worker is gone"), "{said}");
        until("it is reaped", DEADLINE, || row.proxy.serving() == Some(before.generation));
        row.cleaned("a kill before commit");
    }
    row.serves_in_spite_of(|tally| only_lost(row, tally));
    row.catches_up();
}

fn killed_ones_only(tally: &Tally) {
    assert_eq!(tally.faults(), tally.reset, "{tally:?}");
}

/// Exactly before each of its words, and before it hears each of ours, with the binary as it is.
#[test]
fn f03_to_f07_the_new_process_dies_at_each_of_its_words() {
    let row = Row::start("F03-F07");
    let gate = row.proxy.directory().join("gate");
    let Some(path) = row.impostor(&format!("worker:gate:{}", gate.display())) else { return };
    let (words, heard) = (4, 6);
    let calls = (1..=words).map(|n| ("sendmsg", n)).chain((1..=heard).map(|n| ("recvmsg", n)));
    for (call, number) in calls.cycle().take((words + heard) * rounds() as usize) {
        let before = row.snapshot();
        let inject = format!("{call}:signal=KILL:when={number}");
        let what = format!("before {call} {number}");
        let arguments = ["--binary", path.as_str()];
        let act = |row: &Row, old| {
            let strace = Strace::attach(newcomer(row, old).pid(), &[&inject], call);
            fs::write(&gate, "").unwrap();
            until("it has died", DEADLINE, || row.proxy.status()["upgrade"].is_null());
            drop(strace);
        };
        let output = row.upgrade_while(&arguments, act);
        fs::remove_file(&gate).unwrap();
        let said = row.failed(&what, &output);
        assert!(said.contains("SIGKILL) before READY") || said.contains("commit: generation"), "{said}");
        row.unchanged(&what, &before);
    }
    row.ends_well();
}

/// The kernel leaves out what the receiver's limit has no room for, and says so only by a flag.
#[test]
fn f20_descriptors_are_truncated_on_their_way() {
    let mut row = Row::start("F20");
    let gate = row.proxy.directory().join("gate");
    let Some(path) = row.impostor(&format!("worker:gate:{}", gate.display())) else { return };
    for _ in 0..rounds() {
        row.refuses_while(
            "F20",
            &["--binary", &path],
            &["offer"],
            &["descriptors were truncated: 0 of 1"],
            |row, old| {
                let new = newcomer(row, old);
                // Between its hello, which has told its limit, and the first word with descriptors.
                let wait = "recvmsg:delay_enter=200000:when=2+";
                let strace = Strace::attach(new.pid(), &[wait], "recvmsg");
                fs::write(&gate, "").unwrap();
                until("sockets are offered", DEADLINE, || row.proxy.status()["upgrade"]["step"] == "offer");
                limit_to_open(new.pid());
                drop(strace.inspect(|_| until_over(row)));
            },
        );
        fs::remove_file(&gate).unwrap();
    }
    row.ends_well();
}

fn until_over(row: &Row) {
    until("the upgrade is over", DEADLINE, || row.proxy.status()["upgrade"].is_null());
}

/// No descriptor more than it has now: a new one gets the lowest number that is free.
fn limit_to_open(pid: u32) {
    let free = (0..).find(|number| fs::symlink_metadata(format!("/proc/{pid}/fd/{number}")).is_err());
    set_limit(pid, free.unwrap());
}

fn set_limit(pid: u32, limit: u64) -> Rlimit {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    let hard = rustix::process::getrlimit(Resource::Nofile).maximum;
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(limit), maximum: hard }).unwrap()
}

/// The keeper itself has no descriptor left, for every number it may still have.
#[test]
fn f22_the_keeper_runs_out_of_descriptors() {
    let row = Row::start("F22");
    let keeper = row.proxy.keeper_pid();
    let open = fs::read_dir(format!("/proc/{keeper}/fd")).unwrap().count() as u64;
    let mut refused = 0;
    for _ in 0..rounds() {
        // Its admin connection needs one.
        for spare in 1..12 {
            let before = row.snapshot();
            let usual = set_limit(keeper, open + 1 + spare);
            let output = row.proxy.ctl(&["upgrade"]);
            set_limit(keeper, usual.current.unwrap());
            if output.status.success() {
                println!("F22: {spare} to spare are enough");
                break;
            }
            row.failed(&format!("F22 with {spare} to spare"), &output);
            row.unchanged("F22", &before);
            refused += 1;
        }
    }
    assert!(refused > 0, "nothing ran out");
    row.ends_well();
}

/// What strace makes fail in the keeper: once, if that must be survived, else for good. (EAGAIN cannot be made up: nothing
/// would say later that there is room.)
#[test]
fn f22_f50_system_calls_of_the_keeper_fail() {
    let row = Row::start("F22-F50");
    let keeper = row.proxy.keeper_pid();
    for _ in 0..rounds() {
        for (injection, said) in [
            ("sendmsg:error=ETOOMANYREFS", Some("too many descriptors are on their way")),
            ("sendmsg:error=EMFILE", Some("")),
            ("sendmsg:error=EINTR:when=2", None),
            ("socketpair:error=EMFILE", Some("Too many open files")),
            ("socketpair:error=ENFILE", Some("Too many open files in system")),
            ("memfd_create:error=ENOMEM", Some("Cannot allocate memory")),
            ("clone,clone3,fork,vfork:error=EAGAIN", Some("Resource temporarily unavailable")),
            ("clone,clone3,fork,vfork:error=EAGAIN:when=3", Some("Resource temporarily unavailable")),
            ("clone,clone3,fork,vfork:error=ENOMEM", Some("Cannot allocate memory")),
        ] {
            let calls = injection.split(':').next().unwrap();
            let before = row.snapshot();
            // Not its children: what they do is not the keeper's failure.
            let Some(strace) = Strace::attach_one(keeper, &[injection], calls) else { return };
            let output = row.proxy.ctl(&["upgrade"]);
            strace.detach(keeper);
            match said {
                Some(said) => {
                    let line = row.failed(injection, &output);
                    assert!(line.contains(said), "{injection}: {line}");
                    row.unchanged(injection, &before);
                }
                None => assert!(output.status.success(), "{injection}: {output:?}"),
            }
            row.cleaned(injection);
        }
    }
    row.ends_well();
}

/// Whom it has started it signals by a descriptor of that very process, never by a number that may be another's by now.
#[test]
fn f51_only_the_process_itself_is_signalled() {
    let mut row = Row::start("F51");
    let keeper = row.proxy.keeper_pid();
    let Some(path) = row.impostor("worker:hang") else { return };
    let log = row.proxy.directory().join("calls");
    let calls = "kill,tkill,tgkill,pidfd_send_signal";
    let Some(strace) = Strace::watch(keeper, &[], calls, &log) else { return };
    row.refuses("F51", &["--binary", &path], &["spawn"], &["was not READY"]);
    strace.detach(keeper);
    let calls = fs::read_to_string(&log).unwrap();
    assert_eq!(calls.matches("pidfd_send_signal(").count(), calls.lines().count(), "{calls}");
    assert!(calls.contains("SIGTERM") && calls.contains("SIGKILL"), "{calls}");
    row.ends_well();
}

/// Stopped at any moment: before READY that is a generation that hangs. The moments are those of the conversation.
#[test]
fn f39_the_new_process_is_stopped_before_ready() {
    let mut row = Row::start("F39");
    let gate = row.proxy.directory().join("gate");
    let Some(path) = row.impostor(&format!("worker:gate:{}", gate.display())) else { return };
    for number in (1..=3).cycle().take(3 * rounds() as usize) {
        let inject = format!("recvmsg:signal=STOP:when={number}");
        let steps = ["spawn", "offer", "ready"];
        row.refuses_while(&inject, &["--binary", &path], &steps, &["was not READY within"], |row, old| {
            let new = newcomer(row, old);
            let strace = Strace::attach(new.pid(), &[&inject], "recvmsg");
            fs::write(&gate, "").unwrap();
            until_over(row);
            drop(strace);
            assert!(!new.exists(), "a stopped process was left behind after {READY:?}");
        });
        fs::remove_file(&gate).unwrap();
    }
    row.ends_well();
}

/// The keeper stopped, as a debugger or a frozen cgroup would: sessions are none of its business.
#[test]
fn f60_a_keeper_that_hangs_costs_no_connection() {
    let mut row = Row::start("F60");
    let keeper = Process::of(row.proxy.keeper_pid()).unwrap();
    for _ in 0..rounds() {
        let mut dice = row.dice.fork();
        let output = row.upgrade_while(&[], |row, _| {
            moment(&mut dice, Duration::from_millis(300));
            keeper.signal(Signal::SIGSTOP);
            row.serves();
            send(keeper.pid(), Signal::SIGCONT).unwrap();
        });
        assert!(output.status.success(), "{output:?}");
        row.cleaned("F60");
    }
    row.ends_well();
}
