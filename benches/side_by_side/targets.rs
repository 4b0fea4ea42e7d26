//! What is asked of proxyd, and whether it is met: by the medians of one run.

use crate::contestant::Role;
use crate::peers::{ENVOY, HAPROXY};
use crate::table::{Row, Table};

/// A bound on proxyd's values as a part of another's.
#[derive(Debug, Clone, Copy)]
struct Target {
    /// The workloads whose titles begin with this and hold one of `among`.
    title: &'static str,
    among: &'static [&'static str],
    columns: &'static [usize],
    against: Against,
    bound: Bound,
}

#[derive(Debug, Clone, Copy)]
enum Against {
    BestPeer,
    One(&'static str),
    Floor,
    /// The value itself counts.
    Nobody,
}

#[derive(Debug, Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

use Against::{BestPeer, Floor, Nobody, One};
use Bound::{AtLeast, AtMost};

const MANY: &[&str] = &["64 ", "1,000 "];
const STREAMS: &[&str] = &["bulk: 1 stream", "bulk: 4 streams", "bulk: 64 streams"];
const ANY: &[&str] = &[""];

const fn target(
    title: &'static str,
    among: &'static [&'static str],
    columns: &'static [usize],
    against: Against,
    bound: Bound,
) -> Target {
    Target { title, among, columns, against, bound }
}

const TARGETS: &[Target] = &[
    target("small requests", MANY, &[0, 1], BestPeer, AtLeast(1.0)),
    target("small requests", MANY, &[0, 1], One(HAPROXY), AtLeast(1.2)),
    target("small requests", MANY, &[0, 1], One(ENVOY), AtLeast(1.4)),
    target("small requests", MANY, &[0, 1], Floor, AtLeast(0.98)),
    target("small requests", &[" 1 "], &[2], BestPeer, AtMost(1.0)),
    target("fixed rate", ANY, &[3, 4, 5], BestPeer, AtMost(1.0)),
    target("fixed rate", ANY, &[3, 4, 5], Floor, AtMost(1.05)),
    target("churn", ANY, &[0, 1], BestPeer, AtLeast(1.0)),
    target("churn", ANY, &[0, 1], One(ENVOY), AtLeast(1.35)),
    target("churn", ANY, &[0, 1], Floor, AtLeast(0.98)),
    target("bulk", STREAMS, &[0], BestPeer, AtLeast(1.0)),
    target("bulk", STREAMS, &[1], BestPeer, AtLeast(1.4)),
    target("bulk", STREAMS, &[0, 1], Floor, AtLeast(0.95)),
    target("idle sessions", ANY, &[0], BestPeer, AtMost(0.6)),
    target("idle sessions", ANY, &[0], Nobody, AtMost(2_000.0)),
];

/// One line of the table of targets.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) work: String,
    pub(crate) against: String,
    pub(crate) bound: String,
    pub(crate) measured: String,
    /// `None`: a value of nothing or less can't be compared with.
    pub(crate) met: Option<bool>,
}

pub(crate) fn judged(tables: &[Table]) -> Vec<Judged> {
    let of = |target: &Target| {
        let fits = |table: &&Table| {
            table.title.starts_with(target.title) && target.among.iter().any(|part| table.title.contains(part))
        };
        tables
            .iter()
            .filter(fits)
            .flat_map(|table| target.columns.iter().filter_map(|at| target.judge(table, *at)))
            .collect::<Vec<_>>()
    };
    TARGETS.iter().flat_map(of).collect()
}

impl Target {
    /// `None` if nobody to compare with has entered.
    fn judge(&self, table: &Table, column: usize) -> Option<Judged> {
        let own = table.own(column)?;
        let (other, name) = match self.against {
            BestPeer => table.best(column, |row| row.role == Role::Peer)?,
            Floor => table.best(column, |row| row.role == Role::Floor)?,
            One(name) => table.best(column, |row: &Row| row.name == name)?,
            Nobody => (1.0, ""),
        };
        let value = table.ratio(column, other);
        let digits = if matches!(self.against, Nobody) { 0 } else { 2 };
        let head = &table.columns[column];
        Some(Judged {
            work: format!("{}: {}", table.title, head.head),
            against: self.against.word(name),
            bound: self.bound.word(digits),
            measured: match value {
                Some(value) => format!("{value:.digits$}"),
                None => format!("{} to {}", head.shown(own), head.shown(other)),
            },
            met: value.map(|value| self.bound.is_kept(value)).or_else(|| self.bound.is_kept_beside(own, other)),
        })
    }
}

impl Against {
    fn word(self, name: &str) -> String {
        match self {
            BestPeer => format!("best peer, {name}"),
            Floor | One(_) => name.into(),
            Nobody => "itself".into(),
        }
    }
}

impl Bound {
    fn word(self, digits: usize) -> String {
        match self {
            AtLeast(bound) => format!("≥ {bound:.digits$}"),
            AtMost(bound) => format!("≤ {bound:.digits$}"),
        }
    }

    fn is_kept(self, value: f64) -> bool {
        match self {
            AtLeast(bound) => value >= bound,
            AtMost(bound) => value <= bound,
        }
    }

    /// Where there is no ratio: who is not above one that added nothing is not above it.
    fn is_kept_beside(self, own: f64, other: f64) -> Option<bool> {
        matches!(self, AtMost(_)).then_some(own <= other)
    }
}
