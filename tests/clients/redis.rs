//! Redis: a counter that one connection raises.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::harness::service;
use crate::journey::{DEADLINE, Journey, Stop, Trial, until_more};

/// Raises the counter by one, again and again: each answer is one more than the one before.
fn count(address: SocketAddr, stop: &AtomicBool, made: &AtomicU64) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap()).lines();
    while !stop.load(Ordering::Acquire) {
        stream.write_all(b"INCR n\r\n").unwrap();
        let n = made.fetch_add(1, Ordering::AcqRel) + 1;
        assert_eq!(answers.next().expect("no end of file").unwrap(), format!(":{n}"));
    }
}

#[test]
fn a_redis_counter_goes_through_upgrades() {
    counter(Trial::Upgrades);
}

#[test]
fn a_redis_counter_goes_through_kills() {
    counter(Trial::Kills);
}

fn counter(trial: Trial) {
    let Some(redis) = service::Redis::start() else { return };
    let journey = Journey::start(redis.address(), 1, trial);
    let (stop, made) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let stopped = Stop(&stop);
        let client = scope.spawn(|| count(journey.address(), &stop, &made));
        journey.go(|| until_more("increments", &client, 200, || made.load(Ordering::Acquire)));
        drop(stopped);
    });
    let counted = redis.cli(redis.address(), &["GET", "n"]).stdout;
    assert_eq!(String::from_utf8_lossy(&counted).trim(), made.into_inner().to_string());
}
