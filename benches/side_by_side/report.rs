//! Medians and ratios, as a page.

use std::fmt::Write;
use std::fs;

use crate::contestant::{Contestant, PROXYD, SURVIVING};
use crate::workload::Scale;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub(crate) rate: f64,
    /// NaN where time says nothing.
    pub(crate) per_cpu_second: f64,
}

/// One workload: what each contestant did, round by round, in the order they first entered.
#[derive(Debug)]
pub(crate) struct Table {
    title: String,
    unit: &'static str,
    less_is_better: bool,
    rows: Vec<(String, Vec<Measured>)>,
}

impl Table {
    pub(crate) fn new(title: impl Into<String>, unit: &'static str) -> Self {
        Self { title: title.into(), unit, less_is_better: false, rows: Vec::new() }
    }

    pub(crate) fn less_is_better(self) -> Self {
        Self { less_is_better: true, ..self }
    }

    pub(crate) fn add(&mut self, contestant: &str, measured: Measured) {
        match self.rows.iter_mut().find(|(name, _)| name == contestant) {
            Some((_, rounds)) => rounds.push(measured),
            None => self.rows.push((contestant.into(), vec![measured])),
        }
    }

    fn write(&self, text: &mut String) {
        let per_second = if self.less_is_better { "" } else { " a second" };
        let cpu = !self.less_is_better;
        line(text, format_args!("## {}\n", capitalized(&self.title)));
        let cpu_head = if cpu { format!(" {} per CPU-second |", self.unit) } else { String::new() };
        line(text, format_args!("| | {}{per_second} |{cpu_head}", self.unit));
        line(text, format_args!("|---|---:|{}", if cpu { "---:|" } else { "" }));
        for (name, rounds) in &self.rows {
            let per_cpu = if cpu { format!(" {:.1} |", median(rounds, per_cpu_second)) } else { String::new() };
            line(text, format_args!("| {name} | {:.1} |{per_cpu}", median(rounds, rate)));
        }
        self.write_ratio(text, if self.less_is_better { "size" } else { "rate" }, rate);
        if cpu {
            self.write_ratio(text, "work per CPU-second", per_cpu_second);
        }
        line(text, format_args!(""));
    }

    /// proxyd against the best of the others, and with `survive_crash` against itself without.
    fn write_ratio(&self, text: &mut String, what: &str, value: fn(&Measured) -> f64) {
        let of = |own: &str| self.rows.iter().find(|(name, _)| name == own).map(|(_, rounds)| median(rounds, value));
        let others = self.rows.iter().filter(|(name, _)| name != PROXYD && name != SURVIVING);
        let better = if self.less_is_better { f64::min } else { f64::max };
        let best = others.map(|(_, rounds)| median(rounds, value)).reduce(better);
        let Some(own) = of(PROXYD) else { return };
        if let Some(best) = best {
            line(text, format_args!("\nproxyd has {:.2} times the {what} of the best of the others.", own / best));
        }
        if let Some(surviving) = of(SURVIVING) {
            line(text, format_args!("With `survive_crash` it has {:.2} times its own.", surviving / own));
        }
    }
}

fn rate(measured: &Measured) -> f64 {
    measured.rate
}

fn per_cpu_second(measured: &Measured) -> f64 {
    measured.per_cpu_second
}

fn median(rounds: &[Measured], value: fn(&Measured) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

pub(crate) fn page(contestants: &[Contestant], scale: Scale, tables: &[Table]) -> String {
    let mut text = String::from("# Side by side\n\n");
    line(
        &mut text,
        format_args!(
            "Written by `cargo bench --bench side_by_side`. Loopback, {}, all contestants up at once with two threads\n\
             each, {} interleaved rounds, {} s each; medians. Work per CPU-second is work over user and system time of all\n\
             processes of a proxy, the keeper included. Load generators and backends share the machine, so rates are\n\
             bounded by them; work per CPU-second is the fairer figure. User memory is private anonymous and shared\n\
             memory of all processes, of one session among {} that exchanged a message and are idle.\n",
            machine(),
            scale.rounds,
            scale.time.as_secs(),
            scale.idle_sessions
        ),
    );
    let versions: Vec<String> = contestants.iter().map(|one| format!("{} {}", one.name, one.version)).collect();
    line(&mut text, format_args!("{}.\n", versions.join(", ")));
    tables.iter().for_each(|table| table.write(&mut text));
    format!("{}\n", text.trim_end())
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

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a string takes all");
}
