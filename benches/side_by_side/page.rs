//! The page with the figures, and its charts.

use std::fmt::{Arguments, Write};
use std::fs;
use std::path::Path;

use crate::contestant::{Contestant, Role};
use crate::idle::MOST_SURVIVING;
use crate::svg::{Bar, Ink, bars};
use crate::table::{Row, Table};
use crate::targets::{Judged, judged};
use crate::workload::Scale;

/// Below `docs`.
const PAGE: &str = "benchmarks.md";
const CHARTS: &str = "benchmarks";

/// Writes page and charts into `docs`; charts that have no workload any more are removed.
pub(crate) fn write(docs: &Path, text: &str, tables: &[Table]) -> std::io::Result<()> {
    let charts = docs.join(CHARTS);
    if charts.is_dir() {
        fs::remove_dir_all(&charts)?;
    }
    fs::create_dir_all(&charts)?;
    for table in tables {
        for column in charted(table) {
            fs::write(charts.join(file(table, column)), chart(table, column))?;
        }
    }
    fs::write(docs.join(PAGE), text)
}

pub(crate) fn text(contestants: &[Contestant], scale: Scale, tables: &[Table]) -> String {
    let mut text = String::from("# Side by side\n\n");
    targets(&mut text, &judged(tables));
    method(&mut text, contestants, scale);
    tables.iter().for_each(|table| section(&mut text, table));
    format!("{}\n", text.trim_end())
}

fn targets(text: &mut String, judged: &[Judged]) {
    let met = judged.iter().filter(|one| one.met == Some(true)).count();
    line(text, format_args!("## Targets\n\n{met} of {} are met.\n", judged.len()));
    line(text, format_args!("| work | proxyd as a part of | target | measured | |\n|---|---|---:|---:|---|"));
    for Judged { work, against, bound, measured, met } in judged {
        let met = match met {
            Some(true) => "met",
            Some(false) => "**not met**",
            None => "not to be told",
        };
        line(text, format_args!("| {work} | {against} | {bound} | {measured} | {met} |"));
    }
    line(
        text,
        format_args!("\nNot measured here: an io_uring engine, and everything on against peers with the same on."),
    );
}

fn method(text: &mut String, contestants: &[Contestant], scale: Scale) {
    let versions = contestants.iter().filter(|one| !one.version.is_empty());
    let versions: Vec<String> = versions.map(|one| format!("{} {}", one.name, one.version)).collect();
    line(
        text,
        format_args!(
            "\n## Method\n\n\
             Written by `cargo bench --bench side_by_side`: {}. Loopback, {}, all contestants up\n\
             at once with two threads each, {} interleaved rounds of {} ms a contestant; medians.\n\n\
             - **Rate** is what clients saw. Load generators and backends share the machine, so rates are bounded by them.\n\
             - **Work per CPU-second** is that work over user and system time of all processes of a proxy, the keeper\n  \
             included, as the scheduler counts it: the fairer figure.\n\
             - **Added** latency is that of a contestant less that without a proxy in the same round. At a fixed rate messages are\n  \
             sent when they are due, whatever has become of those before them, and their latency counts from then.\n\
             - **User memory** is private anonymous and shared memory of all processes, before and with {} sessions ({} with\n  \
             `survive_crash`, which holds six descriptors each) that exchanged a message and are idle.\n\
             - **The floor** is a process of this bench that does the least a proxy in user space can do: two threads with an epoll\n  \
             each, one read and one write a message, no timeouts, counters or limits (`benches/side_by_side/floor`). In bulk it\n  \
             splices through pipes of three sizes, and the best of them counts.\n\
             - Peers run with two threads, room for the sessions, and their defaults; in bulk HAProxy enters twice.\n",
            versions.join(", "),
            machine(),
            scale.rounds,
            scale.time.as_millis(),
            scale.idle_sessions,
            scale.idle_sessions.min(MOST_SURVIVING),
        ),
    );
}

fn section(text: &mut String, table: &Table) {
    line(text, format_args!("## {}\n", capitalized(&table.title)));
    let heads: Vec<&str> = table.columns.iter().map(|column| column.head).collect();
    line(text, format_args!("| | {} |\n|---|{}", heads.join(" | "), "---:|".repeat(heads.len())));
    for row in &table.rows {
        let values: Vec<String> =
            table.columns.iter().enumerate().map(|(at, column)| column.shown(row.median(at))).collect();
        line(text, format_args!("| {} | {} |", row.name, values.join(" | ")));
    }
    line(text, format_args!("\n| proxyd as a part of | {} |\n|---|{}", heads.join(" | "), "---:|".repeat(heads.len())));
    ratios(text, table, "the best peer", true, |row| row.role == Role::Peer);
    ratios(text, table, "the floor", true, |row| row.role == Role::Floor);
    ratios(text, table, "itself with `survive_crash`", false, |row| row.role == Role::Surviving);
    for column in charted(table) {
        line(text, format_args!("\n![{}]({CHARTS}/{})", table.columns[column].head, file(table, column)));
    }
    line(text, format_args!(""));
}

fn ratios(text: &mut String, table: &Table, whom: &str, is_named: bool, of: impl Fn(&Row) -> bool) {
    if !table.rows.iter().any(&of) {
        return;
    }
    let ratio = |column| {
        let (best, name) = table.best(column, &of)?;
        let ratio = table.ratio(column, best)?;
        Some(if is_named { format!("{ratio:.2} ({name})") } else { format!("{ratio:.2}") })
    };
    let cells: Vec<String> = (0..table.columns.len()).map(|column| ratio(column).unwrap_or_default()).collect();
    line(text, format_args!("| {whom} | {} |", cells.join(" | ")));
}

/// Rate and work per CPU-second, or what else comes first; at a fixed rate what is added.
fn charted(table: &Table) -> Vec<usize> {
    match table.columns.len() {
        7.. => vec![3, 4],
        _ => vec![0, 1],
    }
}

fn chart(table: &Table, column: usize) -> String {
    let head = table.columns[column].head;
    let shown = table.rows.iter().map(|row| (row, row.median(column))).filter(|(_, value)| !value.is_nan());
    let of = |role| match role {
        Role::Proxyd | Role::Surviving => Ink::Own,
        Role::Floor | Role::Direct => Ink::Floor,
        Role::Peer => Ink::Peer,
    };
    let all: Vec<Bar> = shown.map(|(row, value)| Bar { name: row.name.clone(), value, ink: of(row.role) }).collect();
    bars(&format!("{}: {head}", capitalized(&table.title)), &all)
}

fn file(table: &Table, column: usize) -> String {
    let words = format!("{} {}", table.title, table.columns[column].head);
    let plain = words.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    format!("{}.svg", plain.split('-').filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-"))
}

/// Processor, number of them, kernel.
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |(_, m)| m);
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{count} x {model}, Linux {}", kernel.trim())
}

fn capitalized(title: &str) -> String {
    let mut characters = title.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

fn line(text: &mut String, line: Arguments<'_>) {
    writeln!(text, "{line}").expect("a string takes all");
}
