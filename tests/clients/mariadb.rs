//! MariaDB: a counter raised in transactions by one client.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use nix::sys::signal::Signal;

use crate::harness::child::Guarded;
use crate::harness::service;
use crate::journey::{Journey, Stop, Trial, until_more};

/// One transaction after the other; the connection and the counter are asked for after each, so that an answer says that it is
/// committed.
fn count(mut to: ChildStdin, from: ChildStdout, stop: &AtomicBool, made: &AtomicU64) {
    let mut answers = BufReader::new(from).lines();
    let mut connection = None;
    while !stop.load(Ordering::Acquire) {
        writeln!(to, "start transaction; update c set n = n + 1; commit; select connection_id(), n from c;").unwrap();
        let n = made.fetch_add(1, Ordering::AcqRel) + 1;
        let answer = answers.next().expect("no end of file").unwrap();
        let (id, counter) = answer.split_once('\t').unwrap();
        assert_eq!((connection.get_or_insert_with(|| id.to_owned()).as_str(), counter), (id, n.to_string().as_str()));
    }
}

#[test]
fn a_mariadb_counter_goes_through_upgrades() {
    counter(Trial::Upgrades);
}

#[test]
fn a_mariadb_counter_goes_through_kills() {
    counter(Trial::Kills);
}

fn counter(trial: Trial) {
    let Some(mariadb) = service::MariaDb::start() else { return };
    let sql = |words: &[&str]| {
        let done = mariadb.client(mariadb.address(), words).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    };
    sql(&["-e", "create database d; create table d.c (n bigint) engine = innodb; insert into d.c values (0)"]);
    let journey = Journey::start(mariadb.address(), 1, trial);
    let words = ["--unbuffered", "--skip-reconnect", "-D", "d"];
    let mut client = mariadb.client(journey.address(), &words);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (to, from) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
    let client = Guarded::new(client, Signal::SIGTERM);
    let (stop, made) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        // Dropped last, so that its answers end if the test fails.
        let _client = client;
        let stopped = Stop(&stop);
        let counting = scope.spawn(|| count(to, from, &stop, &made));
        journey.go(|| until_more("transactions", &counting, 50, || made.load(Ordering::Acquire)));
        drop(stopped);
        counting.join().unwrap();
    });
    assert_eq!(sql(&["-D", "d", "-e", "select n from c"]), made.into_inner().to_string());
}
