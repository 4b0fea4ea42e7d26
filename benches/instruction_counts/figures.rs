//! The stored figures, and with what they were counted.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::process::Command;

use crate::cases::Case;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instruction_counts/figures.txt");
/// A part of the figure.
const OFF: f64 = 0.05;
/// Of the shortest cases, 5 % are less than one instruction.
const OFF_IN_ANY_CASE: f64 = 2.0;

#[derive(Debug)]
pub(crate) struct Figures {
    counts: BTreeMap<String, f64>,
    /// As [`setting`] gave it.
    setting: String,
}

/// What the counts follow from beside the code: the compiler, the processor's architecture, the C library.
fn setting() -> String {
    let said = |program: &str, word: &str| {
        let output = Command::new(program).arg(word).output().ok().map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&output).lines().next().unwrap_or("unknown").trim().to_owned()
    };
    format!("{}, {}, {}", said("rustc", "--version"), std::env::consts::ARCH, said("getconf", "GNU_LIBC_VERSION"))
}

impl Figures {
    pub(crate) fn stored() -> Self {
        let text = fs::read_to_string(FILE).unwrap_or_default();
        let (setting, counts) = text.split_once('\n').unwrap_or_default();
        let lines = counts.lines().filter_map(|line| line.split_once(' '));
        let counts = lines.filter_map(|(count, name)| Some((name.trim().into(), count.parse().ok()?))).collect();
        Self { counts, setting: setting.trim_start_matches("# ").to_owned() }
    }

    /// `None`: these figures judge what is counted here; else why they do not.
    pub(crate) fn are_of_elsewhere(&self) -> Option<String> {
        let here = setting();
        (self.setting != here).then(|| format!("stored with {}; counted with {here}", self.setting))
    }

    /// Says how a count compares with its figure.
    pub(crate) fn fits(&self, case: &Case, count: f64) -> bool {
        let Some(stored) = self.counts.get(case.name) else {
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
    let first = format!("# {}\n", setting());
    let text = counted.iter().fold(first, |mut text, (case, count)| {
        writeln!(text, "{count:.1} {}", case.name).expect("a string takes all");
        text
    });
    print!("{text}");
    fs::write(FILE, text).unwrap_or_else(|error| panic!("{FILE}: {error}"));
}
