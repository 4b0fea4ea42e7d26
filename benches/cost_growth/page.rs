//! The figures as a page, and their plots.

use std::fmt::{Arguments, Write};
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::counted::Cost;
use crate::reads::{Listing, Scrape};
use crate::svg::{Line, plot};

/// Most that a cost may grow.
const GROWTH: f64 = 1.10;
const AT_ONCE: Duration = Duration::from_millis(100);
/// A dent that is visible: above what two windows of the same kind differ by.
const DENT: f64 = 1.25;

/// Costs along one dimension, from small to large.
#[derive(Debug)]
pub(crate) struct Growth {
    pub(crate) of: &'static str,
    pub(crate) places: Vec<usize>,
    pub(crate) instructions: Vec<Cost>,
    pub(crate) calls: Vec<Cost>,
}

/// A series of [`Growth`].
type Series = (&'static str, fn(&Growth) -> Vec<f64>);

const SERIES: [Series; 4] = [
    ("instructions a request", |growth| growth.instructions.iter().map(|cost| cost.request).collect()),
    ("instructions a session", |growth| growth.instructions.iter().map(|cost| cost.session).collect()),
    ("system calls a request", |growth| growth.calls.iter().map(|cost| cost.request).collect()),
    ("system calls a session", |growth| growth.calls.iter().map(|cost| cost.session).collect()),
];

#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) growths: Vec<Growth>,
    pub(crate) scrapes: Vec<Scrape>,
    pub(crate) listing: Option<Listing>,
}

impl Page {
    pub(crate) fn write(&self, docs: &Path) -> std::io::Result<()> {
        let charts = docs.join("cost-growth");
        fs::create_dir_all(&charts)?;
        for growth in &self.growths {
            fs::write(charts.join(file(growth)), drawn(growth))?;
        }
        fs::write(docs.join("cost-growth.md"), self.text())
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::from(
            "# How cost grows\n\n\
             Written by `cargo bench --bench cost_growth`. A data plane of two threads, alone in its process; requests of 64 bytes and\n\
             their answers on the open sessions in turn, and sessions of one such exchange, one after the other. Instructions in\n\
             user space are counted by cachegrind, system calls by strace(1): each the difference of a process that opens its sessions and\n\
             one that also answers 2,000 requests or has 1,000 more sessions come and go. Counts do not depend on what else the\n\
             machine does; times do. (A session that has lasted a second is given its keepalive settings, some calls of setsockopt, once:\n\
             they fall into some of the runs. Standard error shows the calls of each run by name.)\n\n",
        );
        self.bounds(&mut text);
        for growth in &self.growths {
            section(&mut text, growth);
        }
        self.reads(&mut text);
        format!("{}\n", text.trim_end())
    }

    fn bounds(&self, text: &mut String) {
        line(text, format_args!("| bound | measured | |\n|---|---:|---|"));
        let mut bound = |what: &str, measured: String, met: bool| {
            line(text, format_args!("| {what} | {measured} | {} |", if met { "kept" } else { "**broken**" }));
        };
        for growth in &self.growths {
            for (name, values) in SERIES {
                let worst = ratio(&values(growth));
                let (from, to) = (growth.places[0], growth.places[growth.places.len() - 1]);
                let what = format!("{name}, from {from} to {to} {}: at most {GROWTH:.2} times", growth.of);
                bound(&what, format!("{worst:.2}"), worst <= GROWTH);
            }
        }
        for Scrape { what, took, quiet, scraped, .. } in &self.scrapes {
            bound(&format!("a scrape of 300 listeners, {what}: below 100 ms"), ms(*took), *took < AT_ONCE);
            let dent = scraped / quiet;
            bound("p99 of clients beside it: no visible dent, at most 1.25 times", format!("{dent:.2}"), dent <= DENT);
        }
        if let Some(Listing { sessions, table, json }) = &self.listing {
            bound(&format!("`proxyctl sessions` of {sessions}: below 100 ms"), ms(*table), *table < AT_ONCE);
            bound("the same with `--json`", ms(*json), *json < AT_ONCE);
        }
        line(text, format_args!(""));
    }

    fn reads(&self, text: &mut String) {
        if self.scrapes.is_empty() {
            return;
        }
        line(
            text,
            format_args!(
                "## A scrape of 300 listeners\n\n\
                 Medians of 11. Beside it 2,000 requests of 64 bytes a second on 32 sessions, in windows without scrapes and with one\n\
                 every half a second, in turn; p99 in microseconds.\n\n\
                 | | time | size | p99 without | p99 with |\n|---|---:|---:|---:|---:|"
            ),
        );
        for Scrape { what, took, bytes, quiet, scraped } in &self.scrapes {
            let size = *bytes as f64 / 1e6;
            line(text, format_args!("| {what} | {} | {size:.1} MB | {quiet:.0} | {scraped:.0} |", ms(*took)));
        }
    }
}

fn section(text: &mut String, growth: &Growth) {
    let places: Vec<String> = growth.places.iter().map(ToString::to_string).collect();
    line(text, format_args!("## From {} to {} {}\n", places[0], places[places.len() - 1], growth.of));
    line(text, format_args!("| {} | {} |\n|---|{}", growth.of, places.join(" | "), "---:|".repeat(places.len())));
    for (name, values) in SERIES {
        let digits = if name.starts_with("system") { 2 } else { 0 };
        let values: Vec<String> = values(growth).iter().map(|value| format!("{value:.digits$}")).collect();
        line(text, format_args!("| {name} | {} |", values.join(" | ")));
    }
    line(text, format_args!("\n![cost by {}](cost-growth/{})\n", growth.of, file(growth)));
}

/// All four as parts of their first value.
fn drawn(growth: &Growth) -> String {
    let places: Vec<String> = growth.places.iter().map(ToString::to_string).collect();
    let colors = ["#1a7f64", "#3fb994", "#c8702b", "#e0a33a"];
    let line = |((name, values), color): (Series, &'static str)| {
        let values = values(growth);
        Line { name: name.into(), color, values: values.iter().map(|value| value / values[0]).collect() }
    };
    let lines: Vec<Line> = SERIES.into_iter().zip(colors).map(line).collect();
    plot(&format!("Cost by {}, as a part of the first", growth.of), &places, &lines)
}

/// The largest as a part of the smallest.
fn ratio(values: &[f64]) -> f64 {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    values.iter().copied().fold(0.0, f64::max) / least
}

fn file(growth: &Growth) -> String {
    format!("{}.svg", growth.of.replace(' ', "-"))
}

fn ms(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1e3)
}

fn line(text: &mut String, line: Arguments<'_>) {
    writeln!(text, "{line}").expect("a string takes all");
}
