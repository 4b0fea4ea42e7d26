//! Listeners that send to themselves, directly or over others: such a connection would open connections for ever.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use super::super::Listener;
use super::super::bind::Bind;
use super::super::draft::Draft;
use super::super::mistake::Span;
use super::super::report::Report;
use super::super::surroundings::Surroundings;

/// From a listener to the one its backend leads to.
#[derive(Clone, Copy)]
struct Edge<'a> {
    from: &'a str,
    to: &'a str,
    backend: SocketAddr,
    /// In the file, if that is where it stands.
    place: Option<&'a Span>,
}

pub(super) fn find(draft: &Draft, report: &Report, around: &Surroundings) {
    let edges = edges(&draft.config.listeners, &around.addresses, |_, listener| {
        let pool = draft.config.pools.get(&listener.pool).zip(draft.places.pools.get(&listener.pool));
        let backends = pool.into_iter().flat_map(|(pool, places)| pool.backends.iter().zip(&places.backends));
        backends.map(|(backend, place)| (backend.address, Some(place))).collect()
    });
    let mut told = BTreeSet::new();
    for name in draft.config.listeners.keys() {
        if told.contains(name.as_str()) {
            continue;
        }
        let round = shortest_round(name, &edges);
        told.extend(round.iter().map(|edge| edge.from));
        tell(&round, report);
    }
}

/// A loop of listeners over what they are sent to now, said for an operator.
pub(crate) fn at_run_time(
    listeners: &BTreeMap<String, Listener>,
    addresses: impl Fn(&str) -> Vec<SocketAddr>,
) -> Option<String> {
    let local = Surroundings::real().addresses;
    let edges =
        edges(listeners, &local, |name, _| addresses(name).into_iter().map(|address| (address, None)).collect());
    listeners.keys().map(|name| shortest_round(name, &edges)).find_map(|round| title(&round))
}

type Edges<'a> = HashMap<&'a str, Vec<Edge<'a>>>;

fn edges<'a>(
    listeners: &'a BTreeMap<String, Listener>,
    local: &[IpAddr],
    backends: impl Fn(&str, &Listener) -> Vec<(SocketAddr, Option<&'a Span>)>,
) -> Edges<'a> {
    let mut by_port: HashMap<u16, Vec<(&Bind, &str)>> = HashMap::new();
    for (name, listener) in listeners {
        for bind in &listener.bind {
            if let Bind::Tcp { address, .. } = bind {
                by_port.entry(address.port()).or_default().push((bind, name));
            }
        }
    }
    let mut edges = Edges::new();
    for (from, listener) in listeners {
        for (address, place) in backends(from, listener) {
            let there = by_port.get(&address.port()).into_iter().flatten();
            let reached = there.filter(|(bind, _)| bind.accepts(address, local));
            let led = reached.map(|(_, to)| Edge { from, to, backend: address, place });
            edges.entry(from).or_default().extend(led);
        }
    }
    edges
}

/// The edges of a shortest way from `start` back to it; none if there is no such way.
fn shortest_round<'a>(start: &'a str, edges: &Edges<'a>) -> Vec<Edge<'a>> {
    let mut reached_by: HashMap<&str, Edge<'a>> = HashMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(at) = queue.pop_front() {
        for edge in edges.get(at).into_iter().flatten() {
            if edge.to == start {
                return way_back(*edge, start, &reached_by);
            }
            if !reached_by.contains_key(edge.to) {
                reached_by.insert(edge.to, *edge);
                queue.push_back(edge.to);
            }
        }
    }
    Vec::new()
}

fn way_back<'a>(last: Edge<'a>, start: &str, reached_by: &HashMap<&str, Edge<'a>>) -> Vec<Edge<'a>> {
    let mut way = vec![last];
    let mut at = last.from;
    while at != start {
        let Some(edge) = reached_by.get(at) else { break };
        way.push(*edge);
        at = edge.from;
    }
    way.reverse();
    way
}

fn tell(round: &[Edge<'_>], report: &Report) {
    let places = round.first().and_then(|edge| edge.place).zip(round.last().and_then(|edge| edge.place));
    let (Some((first, last)), Some(title)) = (places, title(round)) else { return };
    let mistake = report.error(first, title);
    report.add(if round.len() == 1 { mistake } else { mistake.and(last.clone(), "and from here back") });
}

fn title(round: &[Edge<'_>]) -> Option<String> {
    let first = round.first()?;
    let steps: Vec<String> = round.iter().map(|edge| format!("{} is listener `{}`", edge.backend, edge.to)).collect();
    Some(if round.len() == 1 {
        format!("listener `{}` sends to itself: {}", first.from, steps.join(""))
    } else {
        format!("listener `{}` sends to itself over others: {}", first.from, steps.join(", whose backend "))
    })
}
