//! The figures, as a page.

use std::fs;
use std::time::Duration;

use crate::latency::Windows;
use crate::moves::{ACTIVE, EVERY, Move, Moves, SESSIONS};
use crate::timed::Timed;
use crate::{RATE, UPGRADES};

pub(crate) struct Page<'a> {
    /// Of the binary, in bytes.
    pub(crate) size: u64,
    /// Before anything was measured.
    pub(crate) load: String,
    pub(crate) times: &'a [(u16, Vec<Timed>)],
    pub(crate) windows: &'a Windows,
    pub(crate) moves: &'a Moves,
}

impl Page<'_> {
    pub(crate) fn text(&self) -> String {
        [self.head(), self.upgrades(), self.connects(), moves(self.moves)].concat()
    }

    fn head(&self) -> String {
        format!(
            "# How long an upgrade takes\n\n\
             Written by `cargo bench --bench upgrade_time`. {}, Linux {}, load average {} before; two data threads,\n\
             a binary of {:.1} MB, {UPGRADES} upgrades to and fro between two of them, so that the keeper becomes the new\n\
             version each time.\n\n",
            processor(),
            kernel(),
            self.load,
            self.size as f64 / 1e6,
        )
    }

    fn upgrades(&self) -> String {
        let mut text = String::from(
            "## From the command to the new generation accepting\n\n\
             From the start of `proxyctl upgrade --probation 0s` until the new generation polls and the old one has stopped,\n\
             as its steps are printed; the same without the preflight; and until `proxyctl` ends, when the keeper is the\n\
             new version too. Milliseconds: median, and the longest.\n\n\
             | listeners | accepting | without preflight | all done |\n|---:|---:|---:|---:|\n",
        );
        for (listeners, timed) in self.times {
            let of = |what: fn(&Timed) -> Duration| {
                let mut all: Vec<Duration> = timed.iter().map(what).collect();
                all.sort();
                format!("{:.0} ({:.0})", ms(share(&all, 0.5)), ms(share(&all, 1.0)))
            };
            let [accepting, after, done] = [of(|t| t.accepting), of(|t| t.after_preflight), of(|t| t.done)];
            text += &format!("| {listeners} | {accepting} | {after} | {done} |\n");
        }
        text + "\n"
    }

    fn connects(&self) -> String {
        let mut text = format!(
            "## What those who connect notice\n\n\
             {RATE} connections a second, each from connect to the first byte of the backend; all of {UPGRADES} quiet seconds,\n\
             and all of {UPGRADES} seconds in which an upgrade is made (it begins 200 ms into the second). Milliseconds.\n\n\
             | | connections | median | p99 | longest |\n|---|---:|---:|---:|---:|\n",
        );
        let mut p99s = Vec::new();
        for (name, seen) in [("quiet", &self.windows.quiet), ("around an upgrade", &self.windows.upgrade)] {
            let mut all = seen.clone();
            all.sort();
            let [median, p99, longest] = [0.5, 0.99, 1.0].map(|part| ms(share(&all, part)));
            text += &format!("| {name} | {} | {median:.2} | {p99:.2} | {longest:.2} |\n", all.len());
            p99s.push(p99);
        }
        text + &format!("\nAround an upgrade p99 is {:.2} times the quiet one.\n\n", p99s[1] / p99s[0])
    }
}

/// Of sessions that are moved.
pub(crate) fn moves(moves: &Moves) -> String {
    let sorted = |what: fn(&Move) -> Duration| {
        let mut all: Vec<Duration> = moves.moves.iter().map(what).collect();
        all.sort();
        [0.5, 1.0].map(|part| ms(share(&all, part)))
    };
    let [took, longest] = [sorted(|one| one.took), sorted(|one| one.longest_pause)];
    let mut text = format!(
        "## What open sessions notice\n\n\
         {SESSIONS} sessions are open, {ACTIVE} of them with a question and its answer every {} ms; {UPGRADES} upgrades move them\n\
         all. From the step `move` to the next one: {:.0} ms (at most {:.0}). The longest pause of a session, from its freeze to\n\
         its release, as the reports tell it: {:.1} ms (at most {:.1}).\n\n\
         The longest answer of each active session, in windows of half a second in which nothing happens, and in those of\n\
         the upgrades, preflight and start of the new worker included. Milliseconds.\n\n\
         | | median | p99 | longest |\n|---|---:|---:|---:|\n",
        EVERY.as_millis(),
        took[0],
        took[1],
        longest[0],
        longest[1],
    );
    for (name, seen) in [("quiet", &moves.quiet), ("in an upgrade", &moves.upgrade)] {
        let mut all = seen.clone();
        all.sort();
        let [median, p99, longest] = [0.5, 0.99, 1.0].map(|part| ms(share(&all, part)));
        text += &format!("| {name} | {median:.2} | {p99:.2} | {longest:.2} |\n");
    }
    text
}

/// Of what is sorted.
fn share(sorted: &[Duration], part: f64) -> Duration {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a length is an index")]
    let at = (sorted.len() as f64 * part).ceil() as usize;
    sorted[at.clamp(1, sorted.len()) - 1]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Of the last minute.
pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").into()
}

fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().into()
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("model name")?.split(": ").nth(1)).collect();
    format!("{} x {}", models.len(), models.first().unwrap_or(&"unknown processor"))
}
