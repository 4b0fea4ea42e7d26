//! The new generation serves, the old one stands by, and one of them, or the keeper, is killed or stopped.

use std::process::Output;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::child::{Process, children};
use crate::harness::{LongStreams, Port, Steady, Tagged, Tally, Twins, twin_of, until};
use crate::old::{PACE, STREAMS, at_rest_again, ends, only_lost};
use crate::row::{DEADLINE, Row, moment, rounds};
use crate::spawn::newcomer;

/// That only a fault ends.
const FOR_LONG: [&str; 2] = ["--probation", "60s"];
/// What a rollback may take, from the fault to the next session. In the middle of several: one of them may meet a machine
/// that is busy.
const TAKE_OVER: Duration = Duration::from_millis(100);
const KILLS: usize = 5;
/// Above the silence of 2 s that is held against a worker.
const SILENCE: Duration = Duration::from_secs(3);

/// How a death is told: by its status or, where that takes longer than 20 ms to come, by the end of the channel.
const KILLED: [&str; 2] = ["died of signal 9 (SIGKILL)", "the channel to generation "];

/// An upgrade with `act` done to it once the new generation serves, on probation: it is told the old one and the new one.
fn on_probation(row: &Row, words: &[&str], act: impl FnOnce(Process, Process)) -> Output {
    row.upgrade_while(words, |row, old| {
        until("it is on probation", DEADLINE, || row.proxy.status()["upgrade"]["step"] == "probation");
        let (old, new) = (Process::of(old).unwrap(), newcomer(row, old));
        assert_eq!(row.proxy.serving_pid(), new.pid());
        row.serves_in_spite_of(|tally| only_lost(row, tally));
        act(old, new);
    })
}

/// The same, where the same process of the old generation serves again afterwards; told and counted.
fn rolled_back(row: &Row, words: &[&str], why: &[&str], act: impl FnOnce(Process, Process)) {
    let (before, counted) = (row.snapshot(), row.upgrades_counted("rolled_back"));
    is_told(row, &on_probation(row, &[&FOR_LONG[..], words].concat(), act), why, counted);
    let after = row.snapshot();
    assert_eq!((after.generation, after.worker), (before.generation, before.worker));
    row.serves_in_spite_of(|tally| only_lost(row, tally));
}

fn is_told(row: &Row, output: &Output, why: &[&str], counted: u64) {
    let said = String::from_utf8_lossy(&output.stderr);
    println!("{}", said.trim_end());
    assert_eq!(output.status.code(), Some(6), "{said}");
    assert!(said.contains("rolled back at probation: "), "{said}");
    assert!(why.iter().any(|why| said.contains(why)), "none of {why:?} is in: {said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(row.upgrades_counted("rolled_back"), counted + 1);
}

fn passes(what: &str, time: Duration) {
    let begun = Instant::now();
    until(what, DEADLINE, || begun.elapsed() >= time);
}

#[test]
fn f08_the_new_worker_is_killed_on_probation() {
    let (port, backend) = (Port::reserve(), Tagged::start("beside"));
    let address = backend.address();
    let row = Row::start_as(
        "F08",
        |conf| conf.listener("beside", &port.to_string(), "beside").pool("beside", &[address]),
        |starter| starter,
    );
    let streams = LongStreams::start(row.port.address(), STREAMS, PACE);
    until("the streams flow", DEADLINE, || streams.tally().bytes_down > 10_000);
    let mut times = Vec::new();
    for _ in 0..KILLS * rounds() as usize {
        rolled_back(&row, &[], &KILLED, |_, new| {
            new.signal(Signal::SIGKILL);
            let killed = Instant::now();
            // One that the new one had just accepted is lost with it.
            until("sessions are accepted again", DEADLINE, || Steady::try_open(port.address()).is_ok());
            times.push(killed.elapsed());
        });
        at_rest_again(&row);
    }
    times.sort();
    println!("F08: accepted again after {:?} to {:?}, {times:?}", times[0], times[times.len() - 1]);
    assert!(times[times.len() / 2] <= TAKE_OVER, "{times:?}");
    // Those of the old generation have noticed nothing.
    streams.stop().assert_clean();
    ends(row);
}

/// Its sessions are lost; the new one is all there is, and stays.
#[test]
fn f09_to_f12_the_old_worker_is_killed_on_probation() {
    let mut row = Row::start("F09-F12");
    for _ in 0..rounds() {
        let mut dice = row.dice.fork();
        let output = on_probation(&row, &["--probation", "1s"], |old, _| {
            moment(&mut dice, Duration::from_millis(500));
            old.signal(Signal::SIGKILL);
        });
        assert!(output.status.success(), "{output:?}");
        at_rest_again(&row);
    }
    assert!(row.proxy.stderr().contains("standby lost: generation "));
    ends(row);
}

#[test]
fn f38_the_old_worker_is_stopped_on_probation() {
    let row = Row::start("F38");
    for _ in 0..rounds() {
        let streams = LongStreams::start(row.port.address(), STREAMS, PACE);
        until("the streams flow", DEADLINE, || streams.tally().bytes_down > 10_000);
        let mut stopped = None;
        let output = on_probation(&row, &["--probation", "3s"], |old, _| {
            old.signal(Signal::SIGSTOP);
            stopped = Some(old);
        });
        assert!(output.status.success(), "{output:?}");
        row.serves();
        stopped.unwrap().signal(Signal::SIGCONT);
        streams.stop().assert_clean();
        row.cleaned("F38");
    }
    row.ends_well();
}

/// Both fail: it gets two seconds to take over, then a worker starts from the binary before.
#[test]
fn f38_the_old_worker_is_stopped_when_it_is_needed() {
    let (row, twins) = (Row::start("F38"), Twins::new());
    for _ in 0..rounds() {
        let (path, counted) = (twins.path("b"), row.upgrades_counted("rolled_back"));
        let words = [&FOR_LONG[..], &["--binary", path.to_str().unwrap()]].concat();
        let output = on_probation(&row, &words, |old, new| {
            old.signal(Signal::SIGSTOP);
            new.signal(Signal::SIGKILL);
        });
        is_told(&row, &output, &KILLED, counted);
        at_rest_again(&row);
        assert_ne!(twin_of(row.proxy.serving_pid()), 'b');
    }
    ends(row);
}

/// Those whom it had accepted wait until it wakes; all others are served by the old one.
#[test]
fn f39_the_new_worker_is_stopped_on_probation() {
    let row = Row::start("F39");
    for _ in 0..rounds() {
        let mut stopped = None;
        rolled_back(&row, &[], &["sent no heartbeat for 2."], |_, new| {
            new.signal(Signal::SIGSTOP);
            stopped = Some(new);
        });
        let new = stopped.unwrap();
        assert!(new.exists(), "its sessions may go on");
        new.signal(Signal::SIGCONT);
        row.cleaned("F39");
        row.serves();
        row.catches_up();
    }
    row.ends_well();
}

/// Without a probation nobody judges it: it is said, connections wait, and go on when it wakes.
#[test]
fn f39_the_new_worker_is_stopped_after_its_commit() {
    let row = Row::start("F39");
    for _ in 0..rounds() {
        row.upgrades();
        let new = Process::of(row.proxy.serving_pid()).unwrap();
        new.signal(Signal::SIGSTOP);
        until("it is said to be silent", DEADLINE, || {
            let status = row.proxy.status();
            status["generations"].as_array().unwrap().iter().any(|one| one["silent_seconds"].as_f64() > Some(2.0))
        });
        assert!(children(row.proxy.keeper_pid()).contains(&new.pid()), "it was replaced");
        new.signal(Signal::SIGCONT);
        row.cleaned("F39");
        row.serves();
        row.catches_up();
    }
    row.ends_well();
}

/// A keeper that was itself stopped blames nobody, and the time of the probation runs on.
#[test]
fn f60_a_keeper_that_hangs_on_probation() {
    let row = Row::start("F60");
    for _ in 0..rounds() {
        let output = on_probation(&row, &["--probation", "1s"], |_, _| {
            row.proxy.signal(Signal::SIGSTOP);
            passes("the keeper is stopped for longer than a worker may be silent", SILENCE);
            row.serves();
            row.proxy.signal(Signal::SIGCONT);
        });
        assert!(output.status.success(), "{output:?}");
        row.cleaned("F60");
    }
    row.ends_well();
}

/// Nobody is left: connections wait for a worker of the binary before.
#[test]
fn f61_both_workers_are_killed_on_probation() {
    let (row, twins) = (Row::start("F61"), Twins::new());
    for _ in 0..rounds() {
        let (path, counted) = (twins.path("b"), row.upgrades_counted("rolled_back"));
        let words = [&FOR_LONG[..], &["--binary", path.to_str().unwrap()]].concat();
        let mut killed = Instant::now();
        let output = on_probation(&row, &words, |old, new| {
            old.signal(Signal::SIGKILL);
            new.signal(Signal::SIGKILL);
            killed = Instant::now();
        });
        is_told(&row, &output, &KILLED, counted);
        until("a worker serves", DEADLINE, || row.proxy.serving().is_some());
        println!("F61: a worker serves after {:?}", killed.elapsed());
        at_rest_again(&row);
        assert_ne!(twin_of(row.proxy.serving_pid()), 'b');
    }
    ends(row);
}

/// As an operator does it. The new one lives, and what it has accepted drains: it costs nobody anything.
#[test]
fn f34_rollbacks_are_forced() {
    let mut row = Row::start("F34");
    for _ in 0..5 * rounds() {
        let mut dice = row.dice.fork();
        let (before, counted) = (row.snapshot(), row.upgrades_counted("rolled_back"));
        let output = on_probation(&row, &["--probation", "2s"], |_, _| {
            moment(&mut dice, Duration::from_secs(1));
            let rollback = row.proxy.ctl(&["rollback"]);
            assert!(rollback.status.success(), "{rollback:?}");
        });
        is_told(&row, &output, &["asked for by `proxyctl rollback`"], counted);
        assert_eq!(row.snapshot().worker, before.worker);
        row.cleaned("a rollback");
        row.serves();
    }
    row.ends_with(Tally::assert_clean);
}
