//! A handshake that is under way while the old generation stops: the client's last ACK is held back by a packet filter, in a
//! network namespace of the test's own.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::{Client, Port, Tagged, peer, until};
use crate::row::{DEADLINE, Row, rounds};

/// Set where the test runs again in its namespace.
const INSIDE: &str = "PROXYD_TEST_NAMESPACE";
const TEST: &str = "handshake::f43_a_handshake_that_is_under_way";

fn run(program: &Path, words: &[&str]) {
    let done = Command::new(program).args(words).status().unwrap();
    assert!(done.success(), "{} {words:?}: {done}", program.display());
}

/// Who connects to this port, and whose last ACK has not come: proc_net(5), state 3 is SYN_RECV. A set, because the list may
/// name one twice when others come and go meanwhile.
fn half_open(port: u16) -> BTreeSet<String> {
    let sockets = fs::read_to_string("/proc/net/tcp").unwrap();
    let (local, state) = (format!(":{port:04X}"), "03");
    let fields = sockets.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    fields.filter(|fields| fields[1].ends_with(&local) && fields[3] == state).map(|fields| fields[2].into()).collect()
}

#[test]
fn f43_a_handshake_that_is_under_way() {
    let (Some(nft), Some(ip), Some(unshare)) = (peer("nft"), peer("ip"), peer("unshare")) else { return };
    if std::env::var_os(INSIDE).is_some() {
        run(&ip, &["link", "set", "lo", "up"]);
        return inside(&nft);
    }
    if !Command::new(&unshare).args(["--net", "true"]).status().unwrap().success() {
        return println!("skipped: no network namespace can be made here");
    }
    // The others wait meanwhile, as they do for each other.
    let _alone = crate::row::alone();
    let again = std::env::current_exe().unwrap();
    let test =
        Command::new(unshare).arg("--net").arg(again).args(["--exact", TEST, "--nocapture"]).env(INSIDE, "1").status();
    assert!(test.unwrap().success(), "it failed in its namespace: see above");
}

/// The request to connect belongs to the listening socket, and completes in whoever polls it by then.
fn inside(nft: &Path) {
    let (port, backend) = (Port::reserve(), Tagged::start("beside"));
    let address = backend.address();
    let more =
        |conf: crate::harness::Conf| conf.listener("beside", &port.to_string(), "beside").pool("beside", &[address]);
    let row = Row::start_as("F43", more, |starter| starter);
    let hold = format!(
        "add table inet hold; add chain inet hold in {{ type filter hook input priority 0; }}; \
         add rule inet hold in tcp dport {} tcp flags & (syn | ack) == ack drop",
        port.number()
    );
    for _ in 0..rounds() {
        run(nft, &[&hold]);
        let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(port.address())).collect();
        assert_eq!(half_open(port.number()).len(), 3);
        row.upgrades();
        assert_eq!(half_open(port.number()).len(), 3, "the old generation took them with it");
        run(nft, &["delete table inet hold"]);
        // The server asks again after 1, 2, 4 s.
        until("they are complete", DEADLINE, || half_open(port.number()).is_empty());
        clients.iter_mut().for_each(|client| assert_eq!(client.line(), "beside"));
    }
    row.ends_well();
}
