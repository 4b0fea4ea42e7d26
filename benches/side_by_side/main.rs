//! proxyd, without and with `survive_crash`, beside HAProxy and nginx stream: `cargo bench --bench side_by_side [-- --quick] [--only WORD]`.
//!
//! All contestants run at once, two threads each, in front of the same backends on loopback; rounds are interleaved, so
//! that a slow minute of the machine is everybody's. Rate is what clients saw; work per CPU-second is that work over the
//! user and system time of all processes of the contestant. Writes `docs/benchmarks.md`, unless only the workloads with a
//! word in their title were asked for.

#[path = "../../tests/harness/mod.rs"]
mod harness;

mod backends;
mod contestant;
mod report;
mod workload;

use std::path::Path;

use backends::Backends;
use contestant::Contestant;
use report::{Measured, Table};
use workload::{Scale, Workload};

fn main() {
    raise_descriptor_limit();
    let scale = if std::env::args().any(|word| word == "--quick") { Scale::QUICK } else { Scale::FULL };
    let only = std::env::args().skip_while(|word| word != "--only").nth(1);
    let is_wanted = |title: &str| only.as_ref().is_none_or(|word| title.contains(word.as_str()));
    let backends = Backends::start();
    let contestants = contestant::start_all(&backends);
    let workloads = workload::installed(&backends).into_iter().filter(|workload| is_wanted(&workload.title()));
    let mut tables: Vec<Table> = workloads.map(|workload| rounds(workload, scale, &contestants)).collect();
    if is_wanted(IDLE_MEMORY) {
        tables.push(idle_memory(scale, &contestants));
    }
    let text = report::page(&contestants, scale, &tables);
    println!("{text}");
    if only.is_some() {
        return;
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/benchmarks.md");
    std::fs::write(&page, text).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
}

const IDLE_MEMORY: &str = "memory of an idle session";

/// Every contestant once a round, in turn.
fn rounds(workload: Workload, scale: Scale, contestants: &[Contestant]) -> Table {
    let mut table = Table::new(workload.title(), workload.unit());
    let entered = || contestants.iter().filter(|one| !one.bulk_only || workload.is_bulk());
    // Warms connections, pipes and caches; not counted.
    entered().for_each(|one| {
        workload.run(one, Scale::QUICK);
    });
    for round in 0..scale.rounds {
        for one in entered() {
            let before = one.cpu();
            let done = workload.run(one, scale);
            let measured = Measured { rate: done.rate, per_cpu_second: done.work / (one.cpu() - before).as_secs_f64() };
            eprintln!("{} round {round}: {} {measured:?}", workload.title(), one.name);
            table.add(&one.name, measured);
        }
    }
    table
}

fn idle_memory(scale: Scale, contestants: &[Contestant]) -> Table {
    let mut table = Table::new(IDLE_MEMORY, "KB of user memory");
    for one in contestants.iter().filter(|one| !one.bulk_only) {
        let bytes = workload::idle_session_bytes(one, scale.idle_sessions);
        eprintln!("idle session: {} {bytes:.0} bytes", one.name);
        table.add(&one.name, Measured { rate: bytes / 1000.0, per_cpu_second: f64::NAN });
    }
    table.less_is_better()
}

/// Client, backend and contestant each hold a socket for every idle session.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a process may read its limits");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("a process may raise its soft limit");
}
