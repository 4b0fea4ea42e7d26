//! proxyd, without and with `survive_crash`, beside HAProxy, nginx stream and Envoy, and above the floor: the least that any
//! proxy in user space can do. `cargo bench --bench side_by_side [-- --quick] [--only WORD] [--into DIRECTORY]`.
//!
//! All contestants run at once, two threads each, in front of the same backends on loopback; rounds are interleaved, so
//! that a slow minute of the machine is everybody's. Writes `benchmarks.md` and its charts into `docs`, or into the directory
//! that is named; nothing, if only the workloads with a word in their title were asked for and no directory.

#[path = "../parts/descriptors.rs"]
mod descriptors;
#[path = "../parts/echo.rs"]
mod echo;
#[path = "../../tests/harness/mod.rs"]
mod harness;
#[path = "../parts/open_loop.rs"]
mod open_loop;
#[path = "../parts/svg.rs"]
#[expect(dead_code, reason = "plots are of another bench")]
mod svg;

mod backends;
mod clients;
mod contestant;
mod floor;
mod idle;
mod page;
mod peers;
mod table;
mod targets;
mod tools;
mod workload;

use std::env;
use std::path::{Path, PathBuf};

use backends::Backends;
use contestant::{Contestant, Role};
use table::Table;
use workload::{Scale, Workload};

fn main() {
    // Client, backend and contestant each hold sockets for every idle session; contestants inherit it.
    descriptors::raise_limit();
    let words: Vec<String> = env::args().skip(1).collect();
    if let Some((word, rest)) = words.split_first()
        && word == floor::WORD
    {
        return floor::serve(rest);
    }
    compare(&words);
}

fn compare(words: &[String]) {
    let scale = if words.iter().any(|word| word == "--quick") { Scale::QUICK } else { Scale::FULL };
    let after = |option: &str| words.iter().skip_while(|word| *word != option).nth(1);
    let only = after("--only");
    let is_wanted = |workload: &Workload| only.is_none_or(|word| workload.title().contains(word.as_str()));
    let backends = Backends::start();
    let contestants = contestant::start_all(&backends);
    let workloads = workload::installed(&backends).into_iter().filter(is_wanted);
    let tables: Vec<Table> = workloads.map(|workload| rounds(&workload, scale, &contestants)).collect();
    let text = page::text(&contestants, scale, &tables);
    println!("{text}");
    let docs = || Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    if let Some(into) = after("--into").map(PathBuf::from).or_else(|| only.is_none().then(docs)) {
        page::write(&into, &text, &tables).unwrap_or_else(|error| panic!("{}: {error}", into.display()));
    }
}

/// Every contestant once a round, in turn.
fn rounds(workload: &Workload, scale: Scale, contestants: &[Contestant]) -> Table {
    let mut table = Table::new(workload.title(), workload.columns());
    let entered = || contestants.iter().filter(|one| workload.is_entered_by(one));
    let rounds = workload.rounds(scale);
    if rounds > 1 {
        entered().for_each(|one| drop(workload.run(one, scale.warming(), None)));
    }
    for round in 0..rounds {
        let mut none = None;
        for one in entered() {
            let values = workload.run(one, scale, none.as_deref());
            eprintln!("{} round {round}: {} {values:.1?}", table.title, one.name);
            if one.role == Role::Direct {
                none = Some(values.clone());
            }
            table.add(one, values);
        }
    }
    table
}
