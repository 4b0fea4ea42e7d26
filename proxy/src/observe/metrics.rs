//! The exposition: counters and gauges of the ledger, read at the scrape, and what the keeper counts itself.

use std::collections::BTreeMap;

use handoff::ledger::{NameTotals, Phase, SessionSnapshot, sessions, totals};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, Registry, TextEncoder};

use super::names::{self, keeper, process};
use super::reason::{Cause, ConnectFailure, Paused, Reason, Unprotected};
use super::scene::{Scene, now_ms, seconds_between, unprotected};

/// The text of `/metrics`.
pub fn exposition(scene: &Scene, registry: &Registry) -> String {
    let mut families = registry.gather();
    families.extend(Sheet::of(scene));
    families.sort_by(|a, b| a.name().cmp(b.name()));
    let mut text = Vec::new();
    // Writing into memory does not fail; an empty family, which the encoder refuses, is never made.
    let _ = TextEncoder::new().encode(&families, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Families under construction, by name.
#[derive(Default)]
struct Sheet {
    families: BTreeMap<&'static str, MetricFamily>,
}

impl Sheet {
    fn of(scene: &Scene) -> Vec<MetricFamily> {
        let mut sheet = Self::default();
        sheet.build(scene);
        sheet.counted(&totals(&scene.segments));
        sheet.live(scene, &sessions(&scene.segments));
        sheet.families.into_values().filter(|family| !family.get_metric().is_empty()).collect()
    }

    fn build(&mut self, scene: &Scene) {
        self.gauge("proxyd_build_info", "The version of the keeper.", &[("version", scene.version)], 1.0);
        self.gauge("proxyd_config_version", "Version of the configuration in force.", &[], scene.config.version as f64);
        for pool in &scene.pools {
            let labels = [("pool", pool.name.as_str())];
            self.gauge(
                "proxyd_pool_version",
                "Version of the pool, raised at every change.",
                &labels,
                pool.version as f64,
            );
        }
        for generation in &scene.generations {
            let (id, pid) = (generation.id.to_string(), generation.pid.to_string());
            let labels = [
                ("generation", id.as_str()),
                ("version", generation.version.as_str()),
                ("pid", pid.as_str()),
                ("state", generation.state.as_str()),
            ];
            self.gauge("proxyd_generation_info", "Generations with a live process.", &labels, 1.0);
        }
    }

    fn counted(&mut self, totals: &[NameTotals]) {
        for name in totals {
            let labels: Vec<&str> = name.text.split(names::SEPARATOR).collect();
            match (name.kind, labels.as_slice()) {
                (names::LISTENER, [listener]) => self.listener(name, listener),
                (names::ROUTE, [listener, pool]) => self.counter(
                    "proxyd_sessions_total",
                    "Sessions accepted.",
                    &[("listener", listener), ("pool", pool)],
                    cell(name, names::route::SESSIONS),
                ),
                (names::BACKEND, [pool, backend]) => self.backend(name, pool, backend),
                (names::PROCESS, _) => self.process(name),
                (names::KEEPER, _) => self.keeper(name),
                _ => {}
            }
        }
    }

    fn listener(&mut self, name: &NameTotals, listener: &str) {
        for (direction, index) in [("received", names::listener::RECEIVED), ("sent", names::listener::SENT)] {
            let labels = [("listener", listener), ("direction", direction)];
            self.counter(
                "proxyd_session_bytes_total",
                "Bytes received from and sent to clients.",
                &labels,
                cell(name, index),
            );
        }
        for reason in Reason::ALL {
            let labels = [("listener", listener), ("reason", reason.word())];
            let closed = cell(name, names::listener::closed(*reason));
            self.counter("proxyd_sessions_closed_total", "Sessions that ended, by reason.", &labels, closed);
        }
        for why in Paused::ALL {
            let flag = name.gauges.get(names::listener::paused(*why) as usize).is_some_and(|threads| *threads > 0);
            let labels = [("listener", listener), ("why", why.word())];
            let help = "1 while the listener does not accept; connections wait in the backlog.";
            self.gauge("proxyd_accept_paused", help, &labels, f64::from(u8::from(flag)));
        }
    }

    fn backend(&mut self, name: &NameTotals, pool: &str, backend: &str) {
        let labels = [("pool", pool), ("backend", backend)];
        let sessions = cell(name, names::backend::SESSIONS);
        self.counter("proxyd_backend_sessions_total", "Sessions connected to the backend.", &labels, sessions);
        let bytes = cell(name, names::backend::BYTES);
        self.counter("proxyd_backend_bytes_total", "Bytes to and from the backend.", &labels, bytes);
        for why in ConnectFailure::ALL {
            let labels = [("pool", pool), ("backend", backend), ("why", why.word())];
            let failed = cell(name, names::backend::connect_failed(*why));
            self.counter("proxyd_backend_connect_failures_total", "Connects that failed, by why.", &labels, failed);
        }
    }

    fn process(&mut self, name: &NameTotals) {
        for cause in Cause::ALL {
            let labels = [("cause", cause.word())];
            let (closed, unsent) = (cell(name, process::forced(*cause)), cell(name, process::forced_unsent(*cause)));
            self.counter("proxyd_sessions_forced_closed_total", "Sessions closed by force, by cause.", &labels, closed);
            let help = "Bytes that were not delivered when a session was closed by force.";
            self.counter("proxyd_sessions_forced_unsent_bytes_total", help, &labels, unsent);
        }
        self.histogram("proxyd_session_seconds", "How long sessions lived.", &[], name, &process::SESSION);
        let help = "How long it took to connect to a backend.";
        self.histogram("proxyd_connect_seconds", help, &[], name, &process::CONNECT);
    }

    /// A series that exists from the start lets `rate()` see the first event.
    fn keeper(&mut self, name: &NameTotals) {
        for (metric, label, help, counted) in [
            ("proxyd_upgrades_total", "result", "Upgrades that ended, by how.", keeper::UPGRADES),
            (
                "proxyd_config_reloads_total",
                "result",
                "Reloads of the configuration, by how they ended.",
                keeper::RELOADS,
            ),
            (
                "proxyd_worker_restarts_total",
                "cause",
                "Workers started again after a crash, by its cause.",
                keeper::RESTARTS,
            ),
            (
                "proxyd_sessions_moved_total",
                "result",
                "Sessions that went on in another generation, and those that were left where they were at first.",
                keeper::MOVED,
            ),
            (
                "proxyd_sessions_recovered_total",
                "result",
                "Sessions of workers that died, which went on in another one or were lost although they could have.",
                keeper::RECOVERED,
            ),
        ] {
            for word in counted.labels {
                let value = counted.cell(word).map_or(0, |index| cell(name, index));
                self.counter(metric, help, &[(label, word)], value);
            }
        }
        for (step, cells) in keeper::STEPS.iter().filter_map(|step| Some((step, keeper::step(step)?))) {
            let help = "Time each step of an upgrade took.";
            self.histogram("proxyd_upgrade_step_seconds", help, &[("step", step)], name, &cells);
        }
        let help = "Time in which no generation polled the listeners, at each upgrade.";
        self.histogram("proxyd_upgrade_accept_gap_seconds", help, &[], name, &keeper::GAP);
        let help = "For how long the session that stood still longest did so, in each move of sessions.";
        self.histogram("proxyd_upgrade_session_pause_seconds", help, &[], name, &keeper::PAUSE);
    }

    /// What is read from the records of live sessions.
    fn live(&mut self, scene: &Scene, sessions: &[SessionSnapshot]) {
        let mut by_route: BTreeMap<(&str, &str, u32), u64> = BTreeMap::new();
        let mut by_backend: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        let mut oldest: BTreeMap<u32, u64> = BTreeMap::new();
        for generation in scene.generations.iter().filter(|generation| generation.state == "serving") {
            for listener in &scene.listeners {
                by_route.insert((&listener.name, &listener.pool, generation.id), 0);
            }
        }
        for pool in &scene.pools {
            by_backend.extend(pool.backends.iter().map(|backend| ((pool.name.as_str(), backend.name.as_str()), 0)));
        }
        for session in sessions.iter().filter(|session| session.phase != Phase::Closed) {
            *by_route.entry((&session.listener, &session.pool, session.generation)).or_default() += 1;
            if !session.backend.is_empty() {
                *by_backend.entry((&session.pool, names::last_label(&session.backend))).or_default() += 1;
            }
            let first = oldest.entry(session.generation).or_insert(session.opened_ms);
            *first = session.opened_ms.min(*first);
        }
        for ((listener, pool, generation), active) in by_route {
            let generation = generation.to_string();
            let labels = [("listener", listener), ("pool", pool), ("generation", generation.as_str())];
            self.gauge("proxyd_sessions_active", "Live sessions.", &labels, active as f64);
        }
        for ((pool, backend), active) in by_backend {
            let labels = [("pool", pool), ("backend", backend)];
            self.gauge("proxyd_backend_sessions_active", "Live sessions of the backend.", &labels, active as f64);
        }
        for listener in scene.listeners.iter().filter(|listener| listener.survive_crash) {
            for why in Unprotected::ALL {
                let labels = [("listener", listener.name.as_str()), ("why", why.word())];
                let help = "Sessions of a listener with survive_crash that would not outlive their worker, by why.";
                let sessions = unprotected(sessions, &listener.name, Some(*why));
                self.gauge("proxyd_sessions_unprotected", help, &labels, sessions as f64);
            }
        }
        let now_ms = now_ms();
        for generation in &scene.generations {
            let age = oldest.get(&generation.id).map_or(0.0, |opened| seconds_between(*opened, now_ms));
            let id = generation.id.to_string();
            let help = "Age of the oldest live session of the generation.";
            self.gauge("proxyd_generation_oldest_session_seconds", help, &[("generation", &id)], age);
        }
    }

    fn counter(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], value: u64) {
        let mut counter = Counter::default();
        counter.set_value(value as f64);
        let metric = self.metric(name, help, MetricType::COUNTER, labels);
        metric.set_counter(counter);
    }

    fn gauge(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], value: f64) {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        let metric = self.metric(name, help, MetricType::GAUGE, labels);
        metric.set_gauge(gauge);
    }

    fn histogram(
        &mut self,
        name: &'static str,
        help: &str,
        labels: &[(&str, &str)],
        totals: &NameTotals,
        cells: &process::Histogram,
    ) {
        let mut seen = 0;
        let mut buckets = Vec::new();
        for (index, bound) in (cells.first..).zip(cells.bounds) {
            seen += cell(totals, index);
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(seen);
            buckets.push(bucket);
        }
        seen += cell(totals, cells.beyond());
        let mut histogram = Histogram::default();
        histogram.set_sample_count(seen);
        histogram.set_sample_sum(cell(totals, cells.sum()) as f64 / 1e6);
        histogram.set_bucket(buckets);
        let metric = self.metric(name, help, MetricType::HISTOGRAM, labels);
        metric.set_histogram(histogram);
    }

    fn metric(&mut self, name: &'static str, help: &str, kind: MetricType, labels: &[(&str, &str)]) -> &mut Metric {
        let family = self.families.entry(name).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(name.into());
            family.set_help(help.into());
            family.set_field_type(kind);
            family
        });
        let mut metric = Metric::default();
        metric.set_label(labels.iter().map(|(name, value)| label(name, value)).collect());
        let metrics = family.mut_metric();
        metrics.push(metric);
        metrics.last_mut().expect("one was just pushed")
    }
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.into());
    pair.set_value(value.into());
    pair
}

fn cell(name: &NameTotals, index: u32) -> u64 {
    name.counters.get(index as usize).copied().unwrap_or(0)
}
