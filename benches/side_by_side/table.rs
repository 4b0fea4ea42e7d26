//! What was measured of one workload, and how proxyd stands in it.

use crate::contestant::{Contestant, Role};

/// What is read off a workload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    pub(crate) head: &'static str,
    more_is_better: bool,
    /// Behind the point.
    digits: usize,
}

impl Column {
    pub(crate) const fn more(head: &'static str, digits: usize) -> Self {
        Self { head, more_is_better: true, digits }
    }

    pub(crate) const fn less(head: &'static str, digits: usize) -> Self {
        Self { head, more_is_better: false, digits }
    }

    /// `NaN`: there is none.
    pub(crate) fn shown(&self, value: f64) -> String {
        if value.is_nan() { String::new() } else { format!("{value:.*}", self.digits) }
    }
}

#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) columns: &'static [Column],
    /// In the order they first entered.
    pub(crate) rows: Vec<Row>,
}

#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) role: Role,
    /// A value of each column, round by round.
    rounds: Vec<Vec<f64>>,
}

impl Row {
    pub(crate) fn median(&self, column: usize) -> f64 {
        let mut values: Vec<f64> = self.rounds.iter().map(|values| values[column]).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
    }
}

impl Table {
    pub(crate) fn new(title: String, columns: &'static [Column]) -> Self {
        Self { title, columns, rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, contestant: &Contestant, values: Vec<f64>) {
        match self.rows.iter_mut().find(|row| row.name == contestant.name) {
            Some(row) => row.rounds.push(values),
            None => self.rows.push(Row { name: contestant.name.clone(), role: contestant.role, rounds: vec![values] }),
        }
    }

    /// The best of those that `of` lets pass, and its name.
    pub(crate) fn best(&self, column: usize, of: impl Fn(&Row) -> bool) -> Option<(f64, &str)> {
        let all = self.rows.iter().filter(|row| of(row)).map(|row| (row.median(column), row.name.as_str()));
        let all = all.filter(|(value, _)| !value.is_nan());
        let more = self.columns[column].more_is_better;
        all.reduce(|best, one| if (one.0 > best.0) == more { one } else { best })
    }

    pub(crate) fn own(&self, column: usize) -> Option<f64> {
        Some(self.best(column, |row| row.role == Role::Proxyd)?.0)
    }

    /// proxyd's value as a part of `other`. Added latency may be next to nothing, or less: then a part of it says nothing.
    pub(crate) fn ratio(&self, column: usize, other: f64) -> Option<f64> {
        let ratio = self.own(column)? / other;
        (other > 0.0 && ratio.is_finite()).then_some(ratio)
    }
}
