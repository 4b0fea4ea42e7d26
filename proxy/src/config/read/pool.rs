//! One table of `[pools]`.

use std::net::{IpAddr, SocketAddr};

use toml::de::DeValue;

use super::super::address;
use super::super::draft::PoolPlaces;
use super::super::duration::{HOUR, MILLISECOND};
use super::super::mistake::Span;
use super::super::section::{Entry, Section};
use super::super::value::{Value, shortened};
use super::super::{Backend, Balance, Pool};
use super::{ADDRESS, NAME, is_name, refuse_address};

const LATER: [&str; 7] = ["send_proxy_protocol", "queue", "slow_start", "on_down", "on_removed", "health", "eject"];
const LATER_BACKEND: [&str; 2] = ["max_sessions", "tier"];
const LATER_BALANCES: [&str; 5] = ["least_sessions", "two_choices", "random", "source_hash", "maglev"];

/// Other backends tried after the first; more would keep a client waiting for no reason.
const MOST_RETRIES: u32 = 100;
/// Finer shares than this are not seen in a rotation.
const MOST_WEIGHT: u32 = 256;

pub(super) fn read(entry: &Entry<'_>) -> Option<(Pool, PoolPlaces)> {
    let mut section = entry.value.section("a table with `backends`")?;
    let source = section.place("source");
    let backends = section.require("backends", "backends = [\"IP:PORT\"]", backends);
    let (backends, places) = backends.unwrap_or_default().into_iter().unzip();
    let pool = Pool {
        balance: section.take_or("balance", Balance::RoundRobin, |value| {
            value.word(&[("round_robin", Balance::RoundRobin)], &LATER_BALANCES)
        }),
        connect_timeout: section
            .take_or("connect_timeout", Pool::CONNECT_TIMEOUT, |value| value.duration(MILLISECOND..=HOUR)),
        connect_retries: section
            .take_or("connect_retries", Pool::CONNECT_RETRIES, |value| value.integer32(0..=MOST_RETRIES)),
        source: section.take("source", ip),
        backends,
    };
    section.finish(&LATER);
    Some((pool, PoolPlaces { key: entry.key.clone(), source, backends: places }))
}

fn ip(value: &Value<'_>) -> Option<IpAddr> {
    let text = value.text("an IP address without a port")?;
    address::ip(text).map_or_else(|fault| refuse_address(value, text, fault), Some)
}

/// What could be read of the list, each with its place.
fn backends(value: &Value<'_>) -> Option<Vec<(Backend, Span)>> {
    let items = value.list("a list of addresses")?;
    if items.is_empty() {
        return value.refuse(value.wrong("is empty").expected("expected at least one address"));
    }
    Some(items.iter().filter_map(|item| Some((backend(item)?, item.span.clone()))).collect())
}

fn backend(value: &Value<'_>) -> Option<Backend> {
    if !matches!(value.node, DeValue::Table(_)) {
        let address = target(value)?;
        return Some(Backend { name: address.to_string(), address, weight: 1 });
    }
    let mut section = value.section("a backend")?;
    let address = section.require("address", "address = \"IP:PORT\"", target);
    let name = name(&mut section, address);
    let weight = section.take_or("weight", 1, |value| value.integer32(1..=MOST_WEIGHT));
    section.finish(&LATER_BACKEND);
    Some(Backend { name: name?, address: address?, weight })
}

/// The name given, else the text of the address.
fn name(section: &mut Section<'_>, address: Option<SocketAddr>) -> Option<String> {
    let Some(entry) = section.entry("name") else { return address.map(|address| address.to_string()) };
    let text = entry.value.text("a name")?;
    if is_name(text) {
        return Some(text.to_owned());
    }
    let what = format!("= \"{}\" is not a name", shortened(text));
    entry.value.refuse(entry.value.wrong(&what).expected(format!("expected {NAME}")))
}

fn target(value: &Value<'_>) -> Option<SocketAddr> {
    let text = value.text(ADDRESS)?;
    if text.starts_with("unix:") {
        let mistake = value.wrong("cannot be a Unix socket in this version");
        return value.refuse(mistake.expected(format!("expected {ADDRESS}")));
    }
    address::target(text).map_or_else(|fault| refuse_address(value, text, fault), Some)
}
