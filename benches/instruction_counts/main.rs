//! How many instructions the hot and the pure parts take, against figures that are stored beside this file:
//! `cargo bench --profile dev --bench instruction_counts`. Fails when one is more than 5 % off; `-- --renew` stores what was
//! counted. As tests are built, not as a release is: tests have built all of it already, and a release takes minutes.
//!
//! Each case runs twice under valgrind, in a process of its own, once so many times and once twice as often: what begins and
//! ends a process cancels out. valgrind shows every program the same processor, up to AVX2, and glibc is told to use none of
//! its faster variants; so the counts follow from the code and the compiler, not from the machine.

#[path = "../parts/cachegrind.rs"]
mod cachegrind;
#[path = "../../tests/harness/peer.rs"]
#[expect(unreachable_pub, reason = "it is part of the tests' harness")]
mod peer;

mod cases;
mod figures;
mod scrape;
mod valgrind;

use std::env;
use std::process::ExitCode;

use cases::{CASES, Case};
use figures::Figures;
use valgrind::Valgrind;

const RENEW: &str = "cargo bench --profile dev --bench instruction_counts -- --renew";

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    if let [word, name, times] = words.as_slice()
        && word == valgrind::WORD
    {
        let case = CASES.iter().find(|case| case.name == name).expect("a case has this name");
        (case.run)(times.parse().expect("a number"));
        return ExitCode::SUCCESS;
    }
    match Valgrind::find() {
        Some(valgrind) => judge(&valgrind, words.iter().any(|word| word == "--renew")),
        None => ExitCode::SUCCESS,
    }
}

fn judge(valgrind: &Valgrind, renew: bool) -> ExitCode {
    let counted: Vec<(&Case, f64)> = CASES.iter().map(|case| (case, valgrind.count(case))).collect();
    if renew {
        figures::store(&counted);
        return ExitCode::SUCCESS;
    }
    let stored = Figures::stored();
    println!("{:44} {:>12} {:>12} {:>8}", "", "stored", "counted", "");
    let off = counted.iter().filter(|(case, count)| !stored.fits(case, *count)).count();
    if off == 0 {
        return ExitCode::SUCCESS;
    }
    if let Some(why) = stored.are_of_elsewhere() {
        println!("\n{off} off by more than 5 %, which is not judged: {why}. To store what was counted: {RENEW}");
        return ExitCode::SUCCESS;
    }
    println!("\n{off} off by more than 5 %. If that is meant, store it: {RENEW}");
    ExitCode::FAILURE
}
