//! What an idle session costs: alone in its process, whose memory is measured.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "plane/rig.rs"]
#[expect(dead_code, reason = "this test needs less of it")]
mod rig;

use std::net::{TcpListener, TcpStream};

use rig::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Sessions of each of the two rounds: four descriptors each, since both peers are here too.
const SESSIONS: usize = 1_000;

/// The limit of the operator's documentation, in bytes of user memory.
const MOST: usize = 2_500;

/// Private memory of this process, in bytes.
fn private() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[tokio::test]
async fn an_idle_session_takes_little() {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let rig = rig_with(&[backend.local_addr().unwrap()], |plan| {
        plan.max_sessions = 4 * SESSIONS;
        // As by default: the memory of a timeout that applies to every session is its own price.
        plan.listeners[0].timeouts.idle = None;
    })
    .await;
    let mut peers = Vec::with_capacity(4 * SESSIONS);
    // The first round pays for what all share: buffers, tables, the allocator's own pages.
    open(&rig, &backend, &mut peers);
    rig.established(SESSIONS).await;
    let before = private();
    open(&rig, &backend, &mut peers);
    rig.established(2 * SESSIONS).await;
    let each = private().saturating_sub(before) / SESSIONS;
    println!("{each} bytes an idle session");
    assert!(each <= MOST, "{each} bytes an idle session");
}

/// Sessions that moved some bytes and then went quiet.
fn open(rig: &Rig, backend: &TcpListener, peers: &mut Vec<TcpStream>) {
    for _ in 0..SESSIONS {
        let mut client = TcpStream::connect(rig.address).unwrap();
        let (mut server, _) = backend.accept().unwrap();
        std::io::Write::write_all(&mut client, &[1; 100]).unwrap();
        std::io::Read::read_exact(&mut server, &mut [0; 100]).unwrap();
        std::io::Write::write_all(&mut server, &[2; 100]).unwrap();
        std::io::Read::read_exact(&mut client, &mut [0; 100]).unwrap();
        peers.extend([client, server]);
    }
}
