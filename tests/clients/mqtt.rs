//! MQTT: numbered messages from a publisher to a subscriber, each with a connection of its own.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use nix::sys::signal::Signal;

use crate::harness::child::Guarded;
use crate::harness::{service, until, until_moment};
use crate::journey::{DEADLINE, Journey, Stop, Trial, until_more};

/// Each number once, in order.
fn hear(from: ChildStdout, heard: &AtomicU64) {
    for line in BufReader::new(from).lines() {
        let number = heard.fetch_add(1, Ordering::AcqRel) + 1;
        assert_eq!(line.unwrap(), number.to_string());
    }
}

/// Says a number every millisecond; how many.
fn say(mut to: ChildStdin, stop: &AtomicBool) -> u64 {
    for number in 1.. {
        writeln!(to, "{number}").unwrap();
        until_moment(std::time::Instant::now() + std::time::Duration::from_millis(1));
        if stop.load(Ordering::Acquire) {
            return number;
        }
    }
    0
}

#[test]
fn mqtt_messages_go_through_upgrades_in_order() {
    messages(Trial::Upgrades);
}

#[test]
fn mqtt_messages_go_through_kills_in_order() {
    messages(Trial::Kills);
}

fn messages(trial: Trial) {
    let Some(broker) = service::Mosquitto::start() else { return };
    let journey = Journey::start(broker.address(), 2, trial);
    let client = |program, words: &[&str]| broker.client(program, journey.address(), words);
    let Some(mut subscriber) = client("mosquitto_sub", &["-q", "1", "-t", "numbers"]) else { return };
    let mut subscriber = subscriber.stdout(Stdio::piped()).spawn().unwrap();
    let from = subscriber.stdout.take().unwrap();
    let subscriber = Guarded::new(subscriber, Signal::SIGTERM);
    until("it has subscribed", DEADLINE, || broker.log().contains("numbers"));
    let Some(mut publisher) = client("mosquitto_pub", &["-q", "1", "-t", "numbers", "-l"]) else { return };
    let mut publisher = publisher.stdin(Stdio::piped()).spawn().unwrap();
    let to = publisher.stdin.take().unwrap();
    let publisher = Guarded::new(publisher, Signal::SIGTERM);
    let (stop, heard) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        // In this order: if the test fails, the publisher stops, and the subscriber ends, before they are waited for.
        let (ended, stopped) = (subscriber, Stop(&stop));
        let hearing = scope.spawn(|| hear(from, &heard));
        let saying = scope.spawn(|| say(to, &stop));
        journey.go(|| until_more("messages", &hearing, 100, || heard.load(Ordering::Acquire)));
        drop(stopped);
        let said = saying.join().unwrap();
        until("all have arrived", DEADLINE, || heard.load(Ordering::Acquire) == said);
        drop(ended);
    });
    drop(publisher);
}
