//! What the keeper itself counts: upgrades, reloads, restarts. In the ledger, like all that is counted, so that it outlives
//! the keeper's process.

use std::collections::HashMap;

use handoff::ledger::{Counters, Writer};
use prometheus::Registry;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, Metric, MetricFamily, MetricType};
use tracing_appender::non_blocking::ErrorCounter;

use super::names::{self, keeper};

/// The keeper's own counters, in the block it has leased.
#[derive(Debug)]
pub struct Tally {
    /// `None`: the segment has no such name, and nothing is counted.
    counters: Option<Counters>,
}

impl Tally {
    /// Counts in the block of `writer`, whose segment has the name [`mod@names::keeper`].
    pub fn of(writer: &Writer) -> Self {
        let name = writer.segment().find(names::KEEPER, "");
        Self { counters: name.map(|name| writer.counters(name)) }
    }

    /// An upgrade ended.
    pub fn upgraded(&self, result: &str) {
        self.add(keeper::UPGRADES.cell(result), 1);
    }

    /// A step of an upgrade took so long.
    pub fn step(&self, step: &str, seconds: f64) {
        self.observe(keeper::step(step), seconds);
    }

    /// For so long nobody polled.
    pub fn accept_gap(&self, seconds: f64) {
        self.observe(Some(keeper::GAP), seconds);
    }

    /// A reload ended.
    pub fn reloaded(&self, result: &str) {
        self.add(keeper::RELOADS.cell(result), 1);
    }

    /// A worker is started again.
    pub fn restarted(&self, cause: &str) {
        self.add(keeper::RESTARTS.cell(cause), 1);
    }

    /// Sessions that could go to another generation: `moved`, or `left` where they were.
    pub fn moved(&self, result: &str, sessions: u64) {
        self.add(keeper::MOVED.cell(result), sessions);
    }

    /// The session that stood still longest in a move did so for this long.
    pub fn session_pause(&self, seconds: f64) {
        self.observe(Some(keeper::PAUSE), seconds);
    }

    /// Sessions of dead workers: `recovered` in another one, or `lost`.
    pub fn recovered(&self, result: &str, sessions: u64) {
        self.add(keeper::RECOVERED.cell(result), sessions);
    }

    fn observe(&self, histogram: Option<keeper::Histogram>, seconds: f64) {
        for (cell, n) in histogram.iter().flat_map(|histogram| histogram.adds(seconds)) {
            self.add(Some(cell), n);
        }
    }

    fn add(&self, cell: Option<u32>, n: u64) {
        if let (Some(counters), Some(cell)) = (&self.counters, cell) {
            counters.add(cell, n);
        }
    }
}

/// Counts log lines that nobody read, as the log itself counts them, after `before` of an earlier image of this process.
pub fn log_drops(registry: &Registry, dropped: ErrorCounter, before: u64) -> prometheus::Result<()> {
    let help = "Log lines of the keeper that were dropped because nobody read them.";
    let value = move || before + dropped.dropped_lines() as u64;
    registry.register(Box::new(PullingCounter::new("proxyd_log_lines_dropped_total", help, value)?))
}

/// A counter whose value is asked for at the scrape.
struct PullingCounter {
    desc: Desc,
    value: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl PullingCounter {
    fn new(name: &str, help: &str, value: impl Fn() -> u64 + Send + Sync + 'static) -> prometheus::Result<Self> {
        let desc = Desc::new(name.into(), help.into(), Vec::new(), HashMap::new())?;
        Ok(Self { desc, value: Box::new(value) })
    }
}

impl Collector for PullingCounter {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut counter = Counter::default();
        counter.set_value((self.value)() as f64);
        let mut metric = Metric::default();
        metric.set_counter(counter);
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(MetricType::COUNTER);
        family.mut_metric().push(metric);
        vec![family]
    }
}
