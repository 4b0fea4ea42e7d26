//! Which connections there are on this machine, as the kernel knows them: from `/proc/net/tcp`, where ss(8) looks too.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};

/// One end of an established connection: its own address, and the other one.
pub type Tuple = (SocketAddrV4, SocketAddrV4);

/// `TCP_ESTABLISHED` of include/net/tcp_states.h, as it is printed.
const ESTABLISHED: &str = "01";

/// All ends of established IPv4 connections in which one of these ports has a part.
///
/// # Panics
/// If the kernel prints something else than proc(5) says.
pub fn tuples(ports: &[u16]) -> BTreeSet<Tuple> {
    let table = fs::read_to_string("/proc/net/tcp").expect("the kernel tells its connections");
    let lines = table.lines().skip(1).map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let open = lines.filter(|fields| fields[3] == ESTABLISHED);
    let ends = open.map(|fields| (address(fields[1]), address(fields[2])));
    ends.filter(|(own, other)| ports.contains(&own.port()) || ports.contains(&other.port())).collect()
}

/// `0100007F:1F90`: the four bytes as one number of this machine, and the port.
fn address(text: &str) -> SocketAddrV4 {
    let (ip, port) = text.split_once(':').expect("an address and a port");
    let ip = u32::from_str_radix(ip, 16).expect("eight digits").to_ne_bytes();
    SocketAddrV4::new(Ipv4Addr::from(ip), u16::from_str_radix(port, 16).expect("four digits"))
}
