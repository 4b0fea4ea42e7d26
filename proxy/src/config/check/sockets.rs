//! Two sockets that cannot listen at once.

use std::collections::{BTreeSet, HashMap};

use super::super::bind::Bind;
use super::super::draft::Draft;
use super::super::mistake::Span;
use super::super::report::Report;

/// A socket to be, who wants it, and where that was written.
struct Wanted<'a> {
    socket: Bind,
    by: String,
    place: Option<&'a Span>,
}

pub(super) fn overlaps(draft: &Draft, report: &Report) {
    let wanted = wanted(draft);
    // Only sockets of the same port, or all Unix sockets, can be in each other's way.
    let mut groups: HashMap<Option<u16>, Vec<usize>> = HashMap::new();
    // Two ranges that overlap are one mistake, not one for each port.
    let mut told = BTreeSet::new();
    for (index, this) in wanted.iter().enumerate() {
        let group = groups.entry(port(&this.socket)).or_default();
        let rival = group.iter().map(|earlier| &wanted[*earlier]).find(|earlier| earlier.socket.excludes(&this.socket));
        if let Some(rival) = rival
            && told.insert((start(rival), start(this)))
        {
            tell(rival, this, report);
        }
        group.push(index);
    }
}

fn wanted(draft: &Draft) -> Vec<Wanted<'_>> {
    let (config, places) = (&draft.config, &draft.places);
    let mut wanted = Vec::new();
    for (name, listener) in &config.listeners {
        let Some(places) = places.listeners.get(name) else { continue };
        wanted.extend(listener.bind.iter().zip(&places.binds).map(|(socket, place)| Wanted {
            socket: socket.clone(),
            by: format!("listener `{name}`"),
            place: Some(place),
        }));
    }
    // In the order of the file: the later one is the mistake.
    wanted.sort_by_key(start);
    if let Some(address) = config.admin.listen {
        let socket = Bind::Tcp { address, v6only: true };
        wanted.push(Wanted { socket, by: "`admin.listen`".to_owned(), place: places.admin_listen.as_ref() });
    }
    let socket = Bind::Unix { path: config.admin.socket.clone(), mode: 0, owner: None, group: None };
    wanted.push(Wanted { socket, by: "`admin.socket`".to_owned(), place: places.admin_socket.as_ref() });
    wanted
}

fn start(wanted: &Wanted<'_>) -> Option<usize> {
    wanted.place.map(|place| place.start)
}

fn port(socket: &Bind) -> Option<u16> {
    match socket {
        Bind::Tcp { address, .. } => Some(address.port()),
        Bind::Unix { .. } => None,
    }
}

fn tell(first: &Wanted<'_>, second: &Wanted<'_>, report: &Report) {
    let (a, b) = (&first.socket, &second.socket);
    let title = if a == b || a.to_string() == b.to_string() {
        format!("{b} is wanted twice: by {} and by {}", first.by, second.by)
    } else {
        format!("{b} of {} and {a} of {} overlap: only one of them can listen", second.by, first.by)
    };
    let mistake = match (second.place, first.place) {
        (Some(second), Some(first)) => report.error(second, title).and(first.clone(), "the other one"),
        // One of them is a default, which was written nowhere.
        (Some(place), None) | (None, Some(place)) => report.error(place, title),
        (None, None) => report.whole(title),
    };
    report.add(mistake);
}
