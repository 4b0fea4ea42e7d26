//! `proxyctl events` against a real keeper: what happened, what happens, and that following outlives the keeper.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use harness::child::{Guarded, Process};
use harness::{Conf, Port, Proxy, Tagged, until};
use nix::sys::signal::Signal;
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(20);

fn proxy() -> (Proxy, Tagged) {
    let (port, backend) = (Port::reserve(), Tagged::start("blue"));
    (Proxy::start(&Conf::simple(&port, &[backend.address()])), backend)
}

/// A `proxyctl` that goes on, and the file it writes to.
struct Following {
    process: Guarded,
    out: PathBuf,
}

impl Following {
    fn start(proxy: &Proxy, name: &str, words: &[&str]) -> Self {
        let out = proxy.directory().join(name);
        let errors = File::create(proxy.directory().join(format!("{name}.err"))).unwrap();
        let mut command = proxy.ctl_command(&[&["events", "--follow"], words].concat());
        command.stdout(File::create(&out).unwrap()).stderr(errors);
        Self { process: Guarded::new(command.spawn().unwrap(), Signal::SIGTERM), out }
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.out).unwrap()
    }

    fn seen(&self) -> Vec<Value> {
        self.text().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn until_seen(&self, event: &str, generation: u64) {
        until(&format!("{event} of generation {generation}"), DEADLINE, || {
            self.seen().iter().any(|one| one["event"] == event && one["generation"] == generation)
        });
    }
}

fn kill_worker(proxy: &Proxy) {
    let pid = proxy.serving_pid();
    Process::of(pid).unwrap().signal(Signal::SIGKILL);
}

#[test]
fn what_happens_is_followed_once_and_in_order() {
    let (proxy, _backend) = proxy();
    let following = Following::start(&proxy, "followed", &["--json"]);
    following.until_seen("generation_serving", 1);
    kill_worker(&proxy);
    following.until_seen("worker_lost", 1);
    following.until_seen("generation_serving", 2);
    let seen = following.seen();
    let numbers: Vec<u64> = seen.iter().map(|one| one["seq"].as_u64().unwrap()).collect();
    assert!(numbers.windows(2).all(|two| two[1] == two[0] + 1) && numbers[0] == 1, "{numbers:?}");
    let lost = seen.iter().find(|one| one["event"] == "worker_lost").unwrap();
    assert!(lost["text"].as_str().unwrap().contains("signal 9"), "{lost}");

    // The same for people, without following: a line each, and the exit code of an answer.
    let said = proxy.ctl(&["events", "--since", "1"]);
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(said.status.success() && text.lines().count() == numbers.len() - 1, "{text}");
    assert!(text.lines().all(|line| line.as_bytes()[10] == b'T' && line.as_bytes()[23] == b'Z'), "{text}");
}

#[test]
fn a_hundred_followers_do_not_keep_an_upgrade_out() {
    let (proxy, _backend) = proxy();
    let mut followers: Vec<Following> =
        (0..100).map(|n| Following::start(&proxy, &format!("followed-{n}"), &["--json"])).collect();
    let mut refused = 0;
    until("each follows or is refused", DEADLINE, || {
        let ended = |one: &mut Following| one.process.has_ended().map(|status| status.code());
        let codes: Vec<_> = followers.iter_mut().map(ended).collect();
        refused = codes.iter().filter(|code| **code == Some(Some(4))).count();
        followers.iter().zip(&codes).all(|(one, code)| code.is_some() || !one.seen().is_empty())
    });
    assert!((1..100).contains(&refused), "{refused} refused");
    proxy.upgrade();
}

/// A following that nobody reads any more ends by itself.
#[test]
fn a_reader_that_leaves_ends_the_following() {
    let (proxy, _backend) = proxy();
    let mut child = proxy.ctl_command(&["events", "--follow"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut following = Guarded::new(child, Signal::SIGKILL);
    kill_worker(&proxy);
    until("it has ended", DEADLINE, || following.has_ended().is_some());
}
