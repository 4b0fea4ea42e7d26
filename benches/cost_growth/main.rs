//! How cost grows with sessions, listeners and backends: `cargo bench --bench cost_growth [-- --only WORD]`, where WORD is
//! one of sessions, listeners, backends, scrape, list. Writes `docs/cost-growth.md` and its plots, unless only a part was
//! asked for.

#[path = "../parts/cachegrind.rs"]
mod cachegrind;
#[path = "../parts/descriptors.rs"]
mod descriptors;
#[path = "../parts/echo.rs"]
mod echo;
#[path = "../../tests/harness/mod.rs"]
mod harness;
#[path = "../parts/open_loop.rs"]
#[expect(dead_code, reason = "another bench needs more of it")]
mod open_loop;
#[path = "../parts/svg.rs"]
#[expect(dead_code, reason = "bars are of another bench")]
mod svg;

mod counted;
mod page;
mod plane;
mod reads;
mod shape;

use std::collections::BTreeMap;
use std::env;
use std::net::Ipv4Addr;
use std::path::Path;

use counted::{Cost, Counters, What};
use harness::peer;
use harness::server::Server;
use page::{Growth, Page};
use shape::Shape;

/// Where each dimension begins, while another grows.
const LEAST: Shape = Shape { sessions: 10, listeners: 1, backends: 1 };

fn main() {
    // Clients, backends and the proxy each hold a socket for every session.
    descriptors::raise_limit();
    let words: Vec<String> = env::args().skip(1).collect();
    match words.as_slice() {
        [word, config] if word == plane::WORD => plane::serve(Path::new(config)),
        words => measure(words.iter().skip_while(|word| *word != "--only").nth(1)),
    }
}

fn measure(only: Option<&String>) {
    let is_wanted = |part: &str| only.is_none_or(|only| only == part);
    let backend = Server::start((Ipv4Addr::UNSPECIFIED, 0).into(), echo::serve);
    let growths = peer("valgrind").zip(peer("strace")).map_or_else(Vec::new, |(valgrind, strace)| {
        let mut costs = Costs { counters: Counters { valgrind, strace }, backend: &backend, known: BTreeMap::new() };
        dimensions().into_iter().filter(|(of, _)| is_wanted(of)).map(|(of, shapes)| costs.growth(of, &shapes)).collect()
    });
    let scrapes = if is_wanted("scrape") { reads::scrapes(&backend) } else { Vec::new() };
    let listing = is_wanted("list").then(|| reads::listing(&backend));
    let page = Page { growths, scrapes, listing };
    println!("{}", page.text());
    if only.is_none() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        page.write(&docs).unwrap_or_else(|error| panic!("{}: {error}", docs.display()));
    }
}

fn dimensions() -> [(&'static str, Vec<(usize, Shape)>); 3] {
    let sessions = [10, 100, 1_000, 9_000].map(|sessions| (sessions, Shape { sessions, ..LEAST }));
    let listeners = [1, 10, 100, 300].map(|listeners| (usize::from(listeners), Shape { listeners, ..LEAST }));
    let backends = [1, 10, 100, 1_000].map(|backends| (usize::from(backends), Shape { backends, ..LEAST }));
    [("sessions", sessions.into()), ("listeners", listeners.into()), ("backends", backends.into())]
}

/// Of each shape, measured once.
struct Costs<'a> {
    counters: Counters,
    backend: &'a Server,
    known: BTreeMap<Shape, [Cost; 2]>,
}

impl Costs<'_> {
    fn growth(&mut self, of: &'static str, shapes: &[(usize, Shape)]) -> Growth {
        let costs: Vec<[Cost; 2]> = shapes.iter().map(|(_, shape)| self.of(*shape)).collect();
        Growth {
            of,
            places: shapes.iter().map(|(place, _)| *place).collect(),
            instructions: costs.iter().map(|[instructions, _]| *instructions).collect(),
            calls: costs.iter().map(|[_, calls]| *calls).collect(),
        }
    }

    fn of(&mut self, shape: Shape) -> [Cost; 2] {
        let (counters, backend) = (&self.counters, self.backend);
        let measure = || [What::Instructions, What::Calls].map(|what| counters.cost(what, shape, backend));
        *self.known.entry(shape).or_insert_with(measure)
    }
}
