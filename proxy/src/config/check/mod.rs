//! What is seen only when all parts are there: names that lead nowhere, addresses used twice, loops, limits.

use std::collections::{BTreeMap, BTreeSet};

use super::draft::{Draft, PoolPlaces};
use super::report::Report;
use super::section::nearest;
use super::surroundings::Surroundings;
use super::{Config, Pool};

mod admin;
mod limits;
mod loops;
mod sockets;

pub(crate) use loops::at_run_time as find_loop;

/// Completes the draft and notes every mistake in it.
pub(super) fn all(draft: &mut Draft, report: &Report, around: &Surroundings) {
    limits::sessions(draft, report, around);
    limits::backlogs(draft, report, around);
    if draft.config.listeners.is_empty() {
        let help = "add `[listeners.NAME]` with `bind` and `pool`";
        report.add(report.whole("there is no listener in this configuration").help(help));
    }
    pool_names(draft, report);
    for (name, pool) in &draft.config.pools {
        if let Some(places) = draft.places.pools.get(name) {
            backends(name, pool, places, report);
        }
    }
    sockets::overlaps(draft, report);
    loops::find(draft, report, around);
    admin::paths(draft, report, around);
    admin::listen(draft, report);
}

fn pool_names(draft: &Draft, report: &Report) {
    let Config { listeners, pools, .. } = &draft.config;
    for (name, listener) in listeners {
        let place = draft.places.listeners.get(name).and_then(|places| places.pool.as_ref());
        let Some(place) = place.filter(|_| !listener.pool.is_empty() && !pools.contains_key(&listener.pool)) else {
            continue;
        };
        let mistake = report.error(place, format!("there is no pool `{}`", listener.pool));
        report.add(match nearest(&listener.pool, pools.keys().map(String::as_str)) {
            Some(near) => mistake.help(format!("did you mean `{near}`?")),
            None => mistake.help(format!("add `[pools.{}]` with `backends`", listener.pool)),
        });
    }
    let used: BTreeSet<&String> = listeners.values().map(|listener| &listener.pool).collect();
    for (name, places) in draft.places.pools.iter().filter(|(name, _)| !used.contains(name)) {
        let title = format!("no listener uses the pool `{name}`");
        report.add(report.warning(&places.key, title).help("it can still be given to one by `proxyctl pool swap`"));
    }
}

fn backends(name: &str, pool: &Pool, places: &PoolPlaces, report: &Report) {
    let (mut names, mut addresses) = (BTreeMap::new(), BTreeMap::new());
    for (backend, place) in pool.backends.iter().zip(&places.backends) {
        let twin = addresses.insert(backend.address, place);
        let namesake = names.insert(&backend.name, place);
        let title = match (twin, namesake) {
            (Some(_), _) => format!("the pool `{name}` has {} twice", backend.address),
            (None, Some(_)) => format!("the pool `{name}` has two backends named `{}`", backend.name),
            (None, None) => String::new(),
        };
        if let Some(first) = twin.or(namesake) {
            report.add(report.error(place, title).and(first.clone(), "first here"));
        }
        if let (Some(source), Some(at)) = (pool.source, &places.source)
            && source.is_ipv4() != backend.address.is_ipv4()
        {
            let title = format!("{} cannot be reached from the source {source}", backend.address);
            report.add(report.error(place, title).and(at.clone(), "of the other address family"));
        }
    }
}
