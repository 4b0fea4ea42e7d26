//! `bind` of a listener: addresses, ranges of ports, Unix sockets.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use super::super::address;
use super::super::bind::Bind;
use super::super::mistake::Span;
use super::super::surroundings::{Kind, Surroundings};
use super::super::value::Value;
use super::{refuse_address, shortened, socket_path};

/// Sockets of all listeners together: each costs a descriptor in the keeper and in every worker.
const MOST_SOCKETS: usize = 4096;

/// How many sockets there are so far.
#[derive(Debug, Default)]
pub(super) struct Room(usize);

impl Room {
    fn take(&mut self, value: &Value<'_>, sockets: usize) -> Option<()> {
        self.0 += sockets;
        if self.0 > MOST_SOCKETS {
            let what = format!("makes {} sockets of all listeners", self.0);
            self.0 -= sockets;
            return value.refuse(value.wrong(&what).expected(format!("expected at most {MOST_SOCKETS} in total")));
        }
        Some(())
    }
}

/// What of a listener's keys goes into its sockets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Traits {
    pub(super) v6only: bool,
    pub(super) mode: u32,
    pub(super) owner: Option<u32>,
    pub(super) group: Option<u32>,
}

/// All sockets of one `bind`, each with its place; what is wrong has been noted and is left out.
pub(super) fn read(bind: &Value<'_>, traits: Traits, room: &mut Room, around: &Surroundings) -> Vec<(Bind, Span)> {
    let values = bind.one_or_many();
    if bind.node.as_array().is_some_and(|list| list.is_empty()) {
        bind.report.add(bind.wrong("is empty").expected("expected at least one address"));
    }
    let mut sockets = Vec::new();
    for value in &values {
        let some = one(value, traits, room, around).unwrap_or_default();
        sockets.extend(some.into_iter().map(|socket| (socket, value.span.clone())));
    }
    sockets
}

fn one(value: &Value<'_>, traits: Traits, room: &mut Room, around: &Surroundings) -> Option<Vec<Bind>> {
    let text = value.text("\"IP:PORT\", \"[IPV6]:PORT\", \"IP:FIRST-LAST\" or \"unix:/PATH\"")?;
    if let Some(path) = text.strip_prefix("unix:") {
        return unix(value, path, traits, room, around).map(|socket| vec![socket]);
    }
    if text.starts_with('/') {
        let what = format!("= \"{}\" is not an address", shortened(text));
        return value.refuse(value.wrong(&what).help(format!("write `unix:{}`", shortened(text))));
    }
    match address::range(text) {
        Ok((ip, ports)) => tcp(value, ip, ports, traits, room),
        Err(fault) => refuse_address(value, text, fault),
    }
}

fn tcp(
    value: &Value<'_>,
    ip: IpAddr,
    ports: RangeInclusive<u16>,
    traits: Traits,
    room: &mut Room,
) -> Option<Vec<Bind>> {
    room.take(value, ports.len())?;
    // Only `[::]` can take IPv4 too.
    let v6only = traits.v6only || !is_v6_wildcard(ip);
    Some(ports.map(|port| Bind::Tcp { address: SocketAddr::new(ip, port), v6only }).collect())
}

pub(super) fn is_v6_wildcard(ip: IpAddr) -> bool {
    ip.is_ipv6() && ip.is_unspecified()
}

fn unix(value: &Value<'_>, text: &str, traits: Traits, room: &mut Room, around: &Surroundings) -> Option<Bind> {
    let path = socket_path(value, text)?;
    if (around.found)(&path).is_some_and(|found| found.kind != Kind::Socket) {
        return value.refuse(value.wrong("exists and is not a socket").expected("expected a path of its own"));
    }
    room.take(value, 1)?;
    Some(Bind::Unix { path, mode: traits.mode, owner: traits.owner, group: traits.group })
}
