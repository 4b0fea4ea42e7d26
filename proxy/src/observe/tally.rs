//! What the keeper itself counts: upgrades, reloads, restarts.

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, Metric, MetricFamily, MetricType};
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};
use tracing_appender::non_blocking::ErrorCounter;

#[derive(Debug, Clone)]
pub struct Tally {
    pub upgrades: IntCounterVec,
    pub upgrade_steps: HistogramVec,
    pub accept_gap: Histogram,
    pub reloads: IntCounterVec,
    pub restarts: IntCounterVec,
}

/// 0.1 ms to 30 s: from a step that is one message to a generation that takes its whole `ready_timeout`.
const SECONDS: &[f64] = &[0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

impl Tally {
    /// # Errors
    /// A name registered twice, or not valid: a mistake of ours.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let tally = Self {
            upgrades: counter("proxyd_upgrades_total", "Upgrades that ended, by how.", &["result"])?,
            upgrade_steps: HistogramVec::new(
                histogram("proxyd_upgrade_step_seconds", "Time each step of an upgrade took."),
                &["step"],
            )?,
            accept_gap: Histogram::with_opts(histogram(
                "proxyd_upgrade_accept_gap_seconds",
                "Time in which no generation polled the listeners, at each upgrade.",
            ))?,
            reloads: counter(
                "proxyd_config_reloads_total",
                "Reloads of the configuration, by how they ended.",
                &["result"],
            )?,
            restarts: counter(
                "proxyd_worker_restarts_total",
                "Workers started again after a crash, by its cause.",
                &["cause"],
            )?,
        };
        let all: [Box<dyn Collector>; 5] = [
            Box::new(tally.upgrades.clone()),
            Box::new(tally.upgrade_steps.clone()),
            Box::new(tally.accept_gap.clone()),
            Box::new(tally.reloads.clone()),
            Box::new(tally.restarts.clone()),
        ];
        all.into_iter().try_for_each(|collector| registry.register(collector))?;
        tally.start_at_zero();
        Ok(tally)
    }

    /// Counts log lines that nobody read, as the log itself counts them.
    pub fn log_drops(&self, registry: &Registry, dropped: ErrorCounter) -> prometheus::Result<()> {
        let help = "Log lines of the keeper that were dropped because nobody read them.";
        let gauge =
            PullingCounter::new("proxyd_log_lines_dropped_total", help, move || dropped.dropped_lines() as u64)?;
        registry.register(Box::new(gauge))
    }

    /// A series that exists from the start lets `rate()` see the first event.
    fn start_at_zero(&self) {
        for result in ["committed", "rolled_back", "failed"] {
            self.upgrades.with_label_values(&[result]).reset();
        }
        for result in ["applied", "refused"] {
            self.reloads.with_label_values(&[result]).reset();
        }
        for cause in ["exit", "signal"] {
            self.restarts.with_label_values(&[cause]).reset();
        }
    }
}

fn counter(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

fn histogram(name: &str, help: &str) -> HistogramOpts {
    HistogramOpts::new(name, help).buckets(SECONDS.to_vec())
}

/// A counter whose value is asked for at the scrape.
struct PullingCounter {
    desc: Desc,
    value: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl PullingCounter {
    fn new(name: &str, help: &str, value: impl Fn() -> u64 + Send + Sync + 'static) -> prometheus::Result<Self> {
        let desc = Desc::new(name.into(), help.into(), Vec::new(), std::collections::HashMap::new())?;
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
