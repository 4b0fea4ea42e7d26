//! The stored figures.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

use crate::cases::Case;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instruction_counts/figures.txt");
/// A part of the figure.
const OFF: f64 = 0.05;
/// Of the shortest cases, 5 % are less than one instruction.
const OFF_IN_ANY_CASE: f64 = 2.0;

#[derive(Debug)]
pub(crate) struct Figures(BTreeMap<String, f64>);

impl Figures {
    pub(crate) fn stored() -> Self {
        let text = fs::read_to_string(FILE).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        Self(lines.filter_map(|(count, name)| Some((name.trim().into(), count.parse().ok()?))).collect())
    }

    /// Says how a count compares with its figure.
    pub(crate) fn fits(&self, case: &Case, count: f64) -> bool {
        let Some(stored) = self.0.get(case.name) else {
            println!("{:44} {:>12} {count:>12.1}  not stored", case.name, "");
            return false;
        };
        let difference = count - stored;
        let fits = difference.abs() <= (stored * OFF).max(OFF_IN_ANY_CASE);
        let word = match (fits, difference > 0.0) {
            (true, _) => "",
            (false, true) => "  dearer",
            (false, false) => "  cheaper",
        };
        println!("{:44} {stored:>12.1} {count:>12.1} {:>+7.1}%{word}", case.name, difference / stored * 100.0);
        fits
    }
}

pub(crate) fn store(counted: &[(&Case, f64)]) {
    let text = counted.iter().fold(String::new(), |mut text, (case, count)| {
        writeln!(text, "{count:.1} {}", case.name).expect("a string takes all");
        text
    });
    print!("{text}");
    fs::write(FILE, text).unwrap_or_else(|error| panic!("{FILE}: {error}"));
}
