//! Listeners that send to themselves, directly or over others: such a connection would open connections for ever.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

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
    place: &'a Span,
}

pub(super) fn find(draft: &Draft, report: &Report, around: &Surroundings) {
    let edges = edges(draft, &around.addresses);
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

type Edges<'a> = HashMap<&'a str, Vec<Edge<'a>>>;

fn edges<'a>(draft: &'a Draft, local: &[IpAddr]) -> Edges<'a> {
    let listeners = &draft.config.listeners;
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
        let pool = draft.config.pools.get(&listener.pool).zip(draft.places.pools.get(&listener.pool));
        let Some((pool, places)) = pool else { continue };
        for (backend, place) in pool.backends.iter().zip(&places.backends) {
            let address = backend.address;
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
    let (Some(first), Some(last)) = (round.first(), round.last()) else { return };
    let steps: Vec<String> = round.iter().map(|edge| format!("{} is listener `{}`", edge.backend, edge.to)).collect();
    let title = if round.len() == 1 {
        format!("listener `{}` sends to itself: {}", first.from, steps.join(""))
    } else {
        format!("listener `{}` sends to itself over others: {}", first.from, steps.join(", whose backend "))
    };
    let mistake = report.error(first.place, title);
    report.add(if round.len() == 1 { mistake } else { mistake.and(last.place.clone(), "and from here back") });
}
