//! How long an upgrade takes, what those who connect notice of it, and what open sessions do: `cargo bench --bench upgrade_time`. Writes
//! `docs/upgrade-times.md`; with `-- --only moves` it measures the moves alone, and writes no page.
//!
//! Each upgrade goes to another binary (the same program with other bytes), so that all of it is made: the file is copied
//! and asked, and afterwards the keeper becomes the new version as well.

#[path = "../parts/descriptors.rs"]
mod descriptors;
#[path = "../../tests/harness/mod.rs"]
mod harness;

mod latency;
mod moves;
mod page;
mod timed;

use std::path::Path;
use std::time::Duration;

use harness::{Conf, Port, Proxy, Starter, Tagged, Twins, until};
use latency::{Clients, Windows};
use moves::{Moves, Sessions};
use page::Page;
use timed::Timed;

/// Of which the median counts.
const UPGRADES: usize = 20;
const DEADLINE: Duration = Duration::from_secs(30);
/// New connections a second.
const RATE: u32 = 500;

fn main() {
    // A thousand reserved ports, and as many listeners handed from process to process.
    descriptors::raise_limit();
    let twins = Twins::new();
    if std::env::args().skip_while(|word| word != "--only").nth(1).is_some_and(|word| word == "moves") {
        return println!("{}", page::moves(&moves(&twins)));
    }
    let load = page::load_average();
    let times = [1, 1_000].map(|listeners| (listeners, times(&twins, listeners)));
    let windows = windows(&twins);
    let moves = moves(&twins);
    let text = Page { size: size_of(&twins), load, times: &times, windows: &windows, moves: &moves }.text();
    println!("{text}");
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/upgrade-times.md");
    std::fs::write(&page, text).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
}

/// The two binaries in turn, beginning with the one that does not run.
fn turns<'a>(twins: &'a Twins) -> impl Iterator<Item = std::path::PathBuf> + 'a {
    ["b", "a"].iter().cycle().map(|name| twins.path(name))
}

/// Nobody connects: only the time counts.
fn times(twins: &Twins, listeners: u16) -> Vec<Timed> {
    let backend = Tagged::start("bench");
    let ports = Port::reserve_long_range(listeners);
    let bind = match (&ports[0], &ports[ports.len() - 1]) {
        (first, last) if listeners > 1 => format!("{first}-{}", last.number()),
        (only, _) => only.to_string(),
    };
    let conf = Conf::new().listener("main", &bind, "pool").pool("pool", &[backend.address()]);
    let proxy = Starter::with_binary(&conf, &twins.path("a")).start();
    turns(twins).take(UPGRADES).map(|binary| one(&proxy, &binary)).collect()
}

fn one(proxy: &Proxy, binary: &Path) -> Timed {
    let timed = Timed::upgrade(proxy, binary);
    until("one generation is left", DEADLINE, || {
        proxy.status()["generations"].as_array().is_some_and(|generations| generations.len() == 1)
    });
    eprintln!("{timed:?}");
    timed
}

/// Those who connect, in a quiet second and in the one around an upgrade.
fn windows(twins: &Twins) -> Windows {
    let (port, backend) = (Port::reserve(), Tagged::start("bench"));
    let proxy = Starter::with_binary(&Conf::simple(&port, &[backend.address()]), &twins.path("a")).start();
    let clients = Clients::start(port.address(), RATE);
    let mut windows = Windows::default();
    for binary in turns(twins).take(UPGRADES) {
        windows.add_quiet(clients.second(|| ()));
        windows.add_upgrade(clients.second(|| {
            Timed::upgrade(&proxy, &binary);
        }));
        until("one generation is left", DEADLINE, || {
            proxy.status()["generations"].as_array().is_some_and(|generations| generations.len() == 1)
        });
    }
    windows
}

/// Sessions that are open, as they are moved to and fro.
fn moves(twins: &Twins) -> Moves {
    let (port, backend) = (Port::reserve(), Tagged::start("bench"));
    let conf = Conf::simple(&port, &[backend.address()]).with("upgrade", "probe = \"off\"");
    let proxy = Starter::with_binary(&conf, &twins.path("a")).start();
    let sessions = Sessions::open(port.address());
    let mut moves = Moves::default();
    for binary in turns(twins).take(UPGRADES) {
        moves.add(&sessions, &proxy, &binary);
        eprintln!("{:?}", moves.moves.last());
        until("one generation is left", DEADLINE, || {
            proxy.status()["generations"].as_array().is_some_and(|generations| generations.len() == 1)
        });
    }
    moves
}

fn size_of(twins: &Twins) -> u64 {
    std::fs::metadata(twins.path("a")).map_or(0, |file| file.len())
}
