//! Privileges that are gone.

use std::net::TcpListener;

use crate::harness::peer;
use crate::row::{Row, conf, rounds};

/// A low port that was nobody's business when the privilege was dropped.
#[test]
fn f57_a_new_low_port_without_the_capability_for_it() {
    let Some(setpriv) = peer("setpriv") else { return };
    let words = ["--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service"];
    let low = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if !nix::unistd::geteuid().is_root() || low.trim() != "1024" {
        return println!("skipped: needs a capability to take away (ip_unprivileged_port_start is {})", low.trim());
    }
    // On an address where nobody listens.
    let address = "127.213.57.1:81";
    drop(TcpListener::bind(address).unwrap());
    let mut row = Row::start_as("F57", |conf| conf, |starter| starter.under(&setpriv, &words));
    let before = conf(&row.port, &row.backend);
    for _ in 0..rounds() {
        row.proxy.write_config(&before.clone().listener("low", address, "pool"));
        row.refuses("F57", &[], &["preflight"], &[address, "Permission denied", "CAP_NET_BIND_SERVICE"]);
        row.proxy.write_config(&before);
    }
    row.ends_well();
}
