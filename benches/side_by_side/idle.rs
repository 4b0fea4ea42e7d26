//! What sessions cost that say nothing.

use std::fs;
use std::net::TcpStream;

use crate::backends::Kind;
use crate::clients::PATIENCE;
use crate::contestant::{Contestant, Role};
use crate::echo::opened;
use crate::harness::until;

/// What the first session of a thread costs once is not a cost of sessions.
const WARMING: u32 = 50;

/// With six descriptors each, these are as many as 20,000 allow.
pub(crate) const MOST_SURVIVING: u32 = 2_000;

/// Bytes of user memory a session, megabytes without any, megabytes with all.
pub(crate) fn run(on: &Contestant, most: u32) -> Vec<f64> {
    let count = if on.role == Role::Surviving { most.min(MOST_SURVIVING) } else { most };
    let own = descriptors();
    drop(open(on, WARMING));
    until("the first sessions are closed", PATIENCE, || descriptors() <= own);
    let before = rested(on);
    let sessions = open(on, count);
    let after = rested(on);
    drop(sessions);
    // Of the next contestant's sessions, both ends are ours too.
    until("the sessions are closed", PATIENCE, || descriptors() <= own);
    vec![(after - before) / f64::from(count), before / 1e6, after / 1e6]
}

/// Buffers of the last exchange may be given back a moment later.
fn rested(on: &Contestant) -> f64 {
    let mut last = f64::NAN;
    until("memory rests", PATIENCE, || {
        let now = on.user_memory();
        let rests = (now - last).abs() < f64::EPSILON;
        last = now;
        rests
    });
    last
}

fn open(on: &Contestant, count: u32) -> Vec<TcpStream> {
    let open = |_| opened(on.address(Kind::Echo), PATIENCE).expect("a contestant takes idle sessions");
    (0..count).map(open).collect()
}

/// Of this process, clients and backends.
fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("a process may look at itself").count()
}
