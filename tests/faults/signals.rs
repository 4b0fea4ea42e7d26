//! Signals to keeper and workers at any moment, and scrapes all the while.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::child::{Process, children};
use crate::harness::{Port, Seeded, Starter, slim, until};
use crate::row::{DEADLINE, Row, alone, conf, dice, moment, rounds};

/// None of them means anything to a worker, and to a keeper at most a reload.
const MEANINGLESS: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGPIPE, Signal::SIGCHLD, Signal::SIGURG, Signal::SIGCONT];
const UPGRADES: u32 = 3;

#[test]
fn f36_storms_of_signals() {
    let mut row = Row::start("F36");
    for _ in 0..rounds() * UPGRADES {
        let mut dice = row.dice.fork();
        let output = row.upgrade_while(&[], |row, old| {
            // Not those between fork and their first handlers: a signal ends them, as it does every process (F37).
            let established = [row.proxy.keeper_pid(), old].map(|pid| Process::of(pid).unwrap());
            for _ in 0..200 {
                let signal = dice.choice(MEANINGLESS).unwrap();
                established.iter().for_each(|one| one.signal(signal));
                thread::park_timeout(Duration::from_micros(500));
            }
        });
        assert!(output.status.success(), "{output:?}");
        row.cleaned("F36");
        row.serves();
    }
    row.ends_well();
}

/// The upgrade is cancelled, and the shutdown is like any other.
#[test]
fn f36_term_during_an_upgrade() {
    let _alone = alone();
    let mut dice = dice("F36");
    for _ in 0..rounds() * UPGRADES {
        let (port, backend) = (Port::reserve(), Seeded::start());
        let mut proxy = Starter::with_binary(&conf(&port, &backend), slim()).start();
        let mut upgrade = proxy.ctl_command(&["upgrade"]).spawn().unwrap();
        moment(&mut dice, Duration::from_millis(40));
        let workers: Vec<Process> = children(proxy.keeper_pid()).into_iter().filter_map(Process::of).collect();
        proxy.signal(Signal::SIGTERM);
        assert_eq!(proxy.wait_exit(DEADLINE).code(), Some(0), "{}", proxy.stderr());
        // Done, failed, or nobody there to say which.
        let code = upgrade.wait().unwrap().code().unwrap();
        assert!([0, 1, 3, 4].contains(&code), "proxyctl ended with {code}");
        until("no worker is left", DEADLINE, || !workers.iter().any(|one| one.exists()));
    }
}

/// Every 10 ms: always valid, no counter ever falls, and during the drain both generations are there.
#[test]
fn f53_scrapes_during_upgrades() {
    let row = Row::start("F53");
    let done = AtomicBool::new(false);
    let scrapes = thread::scope(|scope| {
        let scraper = scope.spawn(|| {
            let (mut seen, mut scrapes) = (row.proxy.metrics(), 0);
            while !done.load(Ordering::Acquire) {
                thread::park_timeout(Duration::from_millis(10));
                let now = row.proxy.metrics();
                assert_eq!(now.fallen_since(&seen), [""; 0]);
                (seen, scrapes) = (now, scrapes + 1);
            }
            scrapes
        });
        for _ in 0..rounds() * UPGRADES {
            row.upgrades();
            row.serves();
        }
        done.store(true, Ordering::Release);
        scraper.join().unwrap()
    });
    println!("F53: {scrapes} scrapes");
    row.ends_well();
}
