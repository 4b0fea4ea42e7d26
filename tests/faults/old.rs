//! The old generation, or the new one after commit, is killed or stopped. What a killed process carried is lost, and shows
//! as a reset; nobody else may notice.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::child::{Process, children, send};
use crate::harness::{Conf, LongStreams, Pace, Tally, Twins, slim, twin_of, until};
use crate::row::{DEADLINE, Row, moment, rounds};

/// From the command to the end of the drain of short connections.
const WHOLE: Duration = Duration::from_millis(60);
const KILLS: u32 = 6;
pub(crate) const STREAMS: u32 = 5;
pub(crate) const PACE: Pace = Pace { frame: 500, every: Duration::from_millis(20) };

/// Nothing but resets, and no more of them than sessions that were lost with their worker.
pub(crate) fn only_lost(row: &Row, tally: &Tally) -> u64 {
    let lost = row.lost_with_workers();
    assert!(tally.reset <= lost, "{} resets, {lost} sessions lost: {tally:?}", tally.reset);
    tally.reset
}

pub(crate) fn at_rest_again(row: &Row) {
    until("a worker serves", DEADLINE, || row.proxy.serving().is_some() && row.proxy.is_ready());
    row.cleaned("a kill");
    row.serves_in_spite_of(|tally| only_lost(row, tally));
    row.catches_up();
}

pub(crate) fn ends(row: Row) {
    row.ends_with(|tally| assert_eq!(tally.faults(), tally.reset, "{tally:?}"));
}

#[test]
fn f09_to_f12_the_old_worker_is_killed_at_any_moment() {
    let mut row = Row::start("F09-F12");
    for _ in 0..rounds() * KILLS {
        let mut dice = row.dice.fork();
        let output = row.upgrade_while(&[], |_, old| {
            let old = Process::of(old).unwrap();
            moment(&mut dice, WHOLE);
            old.signal(Signal::SIGKILL);
        });
        let said = String::from_utf8_lossy(&output.stderr);
        println!("F09-F12: {:?} {}", output.status.code(), said.trim_end());
        // Before the lock there is nobody to upgrade from; after it the upgrade ends, or has been committed.
        match output.status.code() {
            Some(0) => {}
            Some(1) => assert!(said.contains("SIGKILL") && said.contains("meanwhile"), "{said}"),
            Some(4) => assert!(said.contains("no generation is serving"), "{said}"),
            other => panic!("{other:?}: {said}"),
        }
        at_rest_again(&row);
    }
    ends(row);
}

#[test]
fn f12_the_old_worker_is_killed_while_it_drains() {
    let row = Row::start_as("F12", Conf::staying, |starter| starter);
    for _ in 0..rounds() {
        let old = row.proxy.serving_pid();
        let streams = LongStreams::start(row.port.address(), STREAMS, PACE);
        until("the streams flow", DEADLINE, || streams.tally().bytes_down > 10_000);
        row.proxy.upgrade();
        send(old, Signal::SIGKILL).unwrap();
        let lost = streams.stop();
        assert_eq!((lost.reset, lost.faults()), (u64::from(STREAMS), u64::from(STREAMS)), "{lost:?}");
        row.cleaned("F12");
        row.serves();
    }
    row.ends_well();
}

/// After its probation a new generation is like any other: it is started again from what was pinned for it.
#[test]
fn f08_the_new_worker_is_killed_while_the_old_one_drains() {
    let mut row = Row::start_as("F08", Conf::staying, |starter| starter);
    for _ in 0..rounds() {
        let twins = Twins::new();
        let streams = LongStreams::start(row.port.address(), STREAMS, PACE);
        until("the streams flow", DEADLINE, || streams.tally().bytes_down > 10_000);
        let path = twins.path("b");
        let report = row.proxy.ctl_json(&["upgrade", "--probation", "200ms", "--binary", path.to_str().unwrap()]);
        assert_eq!(report["result"], "committed", "{report}");
        // What lies at the path now is another program.
        fs::rename(twins.path("a"), &path).unwrap();
        let killed = row.proxy.serving_pid();
        send(killed, Signal::SIGKILL).unwrap();
        until("a worker serves again", DEADLINE, || {
            row.proxy.serving().and_then(|one| row.proxy.worker_pid(one)).is_some_and(|pid| pid != killed)
        });
        row.serves_in_spite_of(|tally| only_lost(&row, tally));
        assert_eq!(twin_of(row.proxy.serving_pid()), 'b', "not what was pinned");
        // Those of the old generation have noticed nothing.
        streams.stop().assert_clean();
        row.holds_images(2);
        at_rest_again(&row);
        let report = row.proxy.ctl_json(&["upgrade", "--binary", slim().to_str().unwrap()]);
        assert_eq!((&report["result"], &report["keeper"]), (&"committed".into(), &"upgraded".into()), "{report}");
    }
    ends(row);
}

/// The new one waits for nobody: it serves while the old one is stopped, and the old one goes on where it was.
#[test]
fn f38_the_old_worker_is_stopped_while_it_drains() {
    let row = Row::start_as("F38", Conf::staying, |starter| starter);
    for _ in 0..rounds() {
        let old = Process::of(row.proxy.serving_pid()).unwrap();
        let streams = LongStreams::start(row.port.address(), STREAMS, PACE);
        until("the streams flow", DEADLINE, || streams.tally().bytes_down > 10_000);
        row.proxy.upgrade();
        old.signal(Signal::SIGSTOP);
        row.serves();
        old.signal(Signal::SIGCONT);
        streams.stop().assert_clean();
        row.cleaned("F38");
    }
    row.ends_well();
}

/// Connections wait in the accept queue, which the new one polls as soon as it is committed.
#[test]
fn f38_the_old_worker_is_stopped_before_commit() {
    let row = Row::start("F38");
    for _ in 0..rounds() {
        let old = Process::of(row.proxy.serving_pid()).unwrap();
        let output = row.upgrade_while(&[], |_, _| old.signal(Signal::SIGSTOP));
        assert!(output.status.success(), "{output:?}");
        row.serves();
        old.signal(Signal::SIGCONT);
        until("the old one ends", DEADLINE, || !children(row.proxy.keeper_pid()).contains(&old.pid()));
        row.cleaned("F38");
        row.serves();
    }
    row.ends_well();
}
