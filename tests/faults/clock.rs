//! The time of day jumps; machines sleep. No deadline of ours is on that clock.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Starter, peer};
use crate::row::{Row, rounds};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/harness/clock.c");
const DAY: i64 = 24 * 3600;

/// A library that adds the number in `file` to the time of day: see `clock.c`.
fn clock(directory: &Path, file: &Path) -> Option<PathBuf> {
    let library = directory.join("clock.so");
    let mut compiler = Command::new(peer("cc")?);
    compiler.args(["-shared", "-fPIC", "-w", "-O1"]).arg(format!("-DJUMP=\"{}\"", file.display()));
    let done = compiler.arg("-o").arg(&library).arg(SOURCE).status().unwrap();
    assert!(done.success(), "clock.c does not compile: {done}");
    Some(library)
}

#[test]
fn f40_the_time_of_day_jumps() {
    let place = tempfile::tempdir().unwrap();
    let jump = place.path().join("jump");
    std::fs::write(&jump, 0_i64.to_ne_bytes()).unwrap();
    let Some(library) = clock(place.path(), &jump) else { return };
    let how = |mut starter: Starter| {
        starter.command.env("LD_PRELOAD", &library);
        starter
    };
    let row = Row::start_as("F40", |conf| conf, how);
    let file = File::options().write(true).open(&jump).unwrap();
    let year = |log: &str| log.lines().filter_map(|line| line.get(..4)?.parse::<u32>().ok()).next_back().unwrap();
    let now = year(&row.proxy.stderr());
    for _ in 0..rounds() {
        for seconds in [DAY, -DAY, 400 * DAY, -400 * DAY, 0] {
            file.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
            row.serves();
            row.upgrades();
            row.serves();
            let uptime = row.proxy.status()["keeper"]["uptime_seconds"].as_f64().unwrap();
            assert!((0.0..600.0).contains(&uptime), "an uptime of {uptime} s");
            if seconds > 365 * DAY {
                assert!(year(&row.proxy.stderr()) > now, "the clock did not jump: this proves nothing");
            }
        }
    }
    row.ends_well();
}

/// As after a year of sleep: all clocks but the time of day are far ahead, and the first deadlines are reckoned from there.
#[test]
fn f40_the_machine_has_been_up_for_a_year() {
    let Some(unshare) = peer("unshare") else { return };
    let offset = (365 * DAY).to_string();
    let words = ["--time", "--monotonic", &offset, "--boottime", &offset];
    if !Command::new(&unshare).args(words).arg("true").status().unwrap().success() {
        return println!("skipped: a time namespace needs CAP_SYS_ADMIN");
    }
    let row = Row::start_as("F40", |conf| conf, |starter| starter.under(&unshare, &words));
    for _ in 0..rounds() {
        row.upgrades();
        let uptime = row.proxy.status()["keeper"]["uptime_seconds"].as_f64().unwrap();
        assert!((0.0..600.0).contains(&uptime), "an uptime of {uptime} s");
    }
    row.ends_well();
}
