//! Documents as text for people: aligned tables, short durations, no control characters of others.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use comfy_table::{CellAlignment, Table, presets};

use crate::command::{Changed, Killed, SessionsAtUpgrade, UpgradePlan, UpgradeReport, UpgradeResult};
use crate::view::{EventView, GenerationView, ListenerView, PoolView, SessionRow, Status};

/// For whom a table is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A rule under the heads.
    Terminal,
    /// Columns and blanks only, for `awk` and `grep`.
    Plain,
}

pub fn status(status: &Status, style: Style) -> String {
    let keeper = &status.keeper;
    let config = &status.config;
    let mut out = format!(
        "proxyd {}, keeper pid {} {}, up {}\nconfiguration {} version {}\n",
        clean(&status.version),
        keeper.pid,
        clean(&keeper.state),
        seconds(keeper.uptime_seconds),
        clean(&config.path),
        config.version
    );
    if let Some(upgrade) = &status.upgrade {
        let (id, step, from, to) = (upgrade.id, clean(&upgrade.step), upgrade.from, upgrade.to);
        let since = seconds(upgrade.step_seconds);
        let _ = writeln!(out, "upgrade {id} is at {step} for {since}: generation {from} -> {to}");
    }
    for part in [generations(&status.generations, style), listeners(&status.listeners, style)] {
        let _ = write!(out, "\n{part}");
    }
    let _ = write!(out, "\n{}", pools(&status.pools, style));
    out
}

fn generations(rows: &[GenerationView], style: Style) -> String {
    let heads = ["GENERATION", "STATE", "VERSION", "PID", "SESSIONS", "OLDEST", "DRAIN ENDS"];
    let row = |g: &GenerationView| {
        let left = g.drain_seconds_left.map_or_else(|| "-".to_owned(), |left| format!("in {}", seconds(left)));
        let sessions = whole_number(g.sessions);
        let oldest = if g.sessions == 0 { "-".into() } else { seconds(g.oldest_session_seconds) };
        vec![g.id.to_string(), g.state.clone(), g.version.clone(), g.pid.to_string(), sessions, oldest, left]
    };
    table(style, &heads, &[0, 3, 4], rows.iter().map(row))
}

fn listeners(rows: &[ListenerView], style: Style) -> String {
    let row = |l: &ListenerView| {
        let state = if l.paused { "paused" } else { "accepting" };
        let state = match l.unprotected {
            None | Some(0) => state.to_owned(),
            Some(sessions) => format!("{state}, {} unprotected", whole_number(sessions)),
        };
        vec![l.name.clone(), l.bind.join(","), l.pool.clone(), whole_number(l.sessions), state]
    };
    table(style, &["LISTENER", "BIND", "POOL", "SESSIONS", "STATE"], &[3], rows.iter().map(row))
}

/// A line for each pool: `pool list`.
pub fn pool_list(pools: &[PoolView], style: Style) -> String {
    let row = |pool: &PoolView| {
        let enabled = pool.backends.iter().filter(|backend| backend.admin == "enabled").count();
        let sessions = pool.backends.iter().map(|backend| backend.sessions).sum();
        let backends = format!("{enabled}/{}", pool.backends.len());
        vec![pool.name.clone(), pool.version.to_string(), backends, whole_number(sessions)]
    };
    table(style, &["POOL", "VERSION", "ENABLED", "SESSIONS"], &[1, 2, 3], pools.iter().map(row))
}

/// A line for each backend of the pools.
pub fn pools(pools: &[PoolView], style: Style) -> String {
    let heads = ["POOL", "VERSION", "BACKEND", "ADDRESS", "WEIGHT", "HEALTH", "ADMIN", "SESSIONS"];
    let rows = pools.iter().flat_map(|pool| {
        pool.backends.iter().map(|b| {
            let (weight, sessions) = (b.weight.to_string(), whole_number(b.sessions));
            let (version, address) = (pool.version.to_string(), b.address.clone());
            let (health, admin) = (b.health.clone(), b.admin.clone());
            vec![pool.name.clone(), version, b.name.clone(), address, weight, health, admin, sessions]
        })
    });
    table(style, &heads, &[1, 4, 7], rows)
}

/// The last column is there if it has anything to say.
pub fn sessions(rows: &[SessionRow], style: Style) -> String {
    let mut heads =
        vec!["ID", "GEN", "LISTENER", "POOL", "BACKEND", "CLIENT", "STATE", "AGE", "IDLE", "RECEIVED", "SENT"];
    let protects = rows.iter().any(|row| row.protection.is_some());
    heads.extend(protects.then_some("PROTECTION"));
    let row = |s: &SessionRow| {
        let mut row = vec![
            s.id.to_string(),
            s.generation.to_string(),
            s.listener.clone(),
            s.pool.clone(),
            s.backend.clone(),
            s.client.clone(),
            s.state.clone(),
            seconds(s.age_seconds),
            seconds(s.idle_seconds),
            bytes(s.bytes_received),
            bytes(s.bytes_sent),
        ];
        row.extend(protects.then(|| s.protection.clone().unwrap_or_else(|| "-".into())));
        row
    };
    table(style, &heads, &[0, 1, 7, 8, 9, 10], rows.iter().map(row))
}

/// The last line of an upgrade, and one on the keeper if there is something to say.
pub fn report(report: &UpgradeReport) -> String {
    match report.keeper.as_str() {
        "" | "unchanged" => outcome(report),
        keeper => format!("{}keeper {}\n", outcome(report), clean(keeper)),
    }
}

fn outcome(report: &UpgradeReport) -> String {
    let UpgradeReport { id, from, to, sessions, .. } = report;
    let took = seconds(report.seconds);
    let version = clean(&report.version);
    if report.result == UpgradeResult::Committed {
        return format!(
            "upgrade {id} committed: generation {from} -> {to}, version {version}, in {took}; accept gap {}; {}; {} closed \
             by force{}\n",
            milliseconds(report.accept_gap_ms),
            moved(sessions, report.longest_pause_ms),
            whole_number(sessions.forced),
            surviving(sessions),
        );
    }
    let how = if report.result == UpgradeResult::RolledBack { "rolled back" } else { "failed" };
    let (step, reason) = (clean(&report.step), clean(&report.reason));
    let moved = match sessions.moved + sessions.left {
        0 => String::new(),
        _ => format!("; {}", moved(sessions, report.longest_pause_ms)),
    };
    let surviving = surviving(sessions);
    format!("upgrade {id} {how} at {step} after {took}: {reason}; version {version} serves{moved}{surviving}\n")
}

/// `; 3 recovered; 2 unprotected`, where there is something to say.
fn surviving(sessions: &SessionsAtUpgrade) -> String {
    let told = [(sessions.recovered, "recovered"), (sessions.unprotected, "unprotected")];
    let told = told.iter().filter(|(count, _)| *count > 0);
    told.map(|(count, word)| format!("; {} {word}", whole_number(*count))).collect()
}

/// `moved 2,220 sessions (longest pause 3.1 ms), 4 left to drain: 4 connecting`.
pub fn moved(sessions: &SessionsAtUpgrade, longest_pause_ms: f64) -> String {
    let mut out = format!("moved {} sessions", whole_number(sessions.moved));
    if sessions.moved > 0 {
        let _ = write!(out, " (longest pause {})", milliseconds(longest_pause_ms));
    }
    let _ = write!(out, ", {} left to drain", whole_number(sessions.left));
    for (place, (why, count)) in sessions.left_why.iter().enumerate() {
        let before = if place == 0 { ": " } else { ", " };
        let _ = write!(out, "{before}{} {}", whole_number(*count), clean(&why.replace('_', " ")));
    }
    out
}

/// One line: when, its word, the generation it is about, what it says.
pub fn event(event: &EventView) -> String {
    // Beyond the year 9999 there is no such text.
    let time = Duration::try_from_secs_f64(event.time).ok().filter(|time| time.as_secs() < 253_402_300_800);
    let time = humantime::format_rfc3339_millis(UNIX_EPOCH + time.unwrap_or_default());
    let generation = event.generation.map_or_else(|| "-".to_owned(), |id| id.to_string());
    format!("{time} {:<20} {generation:>3} {}\n", clean(&event.event), clean(&event.text))
}

pub fn plan(plan: &UpgradePlan) -> String {
    let mut out = format!(
        "would upgrade to {} (version {}) with {}; nothing was changed\n",
        clean(&plan.binary),
        clean(&plan.version),
        clean(&plan.config)
    );
    for (what, addresses) in [("keep", &plan.kept), ("add", &plan.added), ("remove", &plan.removed)] {
        for address in addresses {
            let _ = writeln!(out, "{what:<7} {}", clean(address));
        }
    }
    out
}

pub fn changed(changed: &Changed) -> String {
    let mut out = format!("{}\n", clean(&changed.summary));
    for change in &changed.changes {
        let _ = writeln!(out, "  {}", clean(change));
    }
    out
}

pub fn killed(killed: &Killed, style: Style) -> String {
    if killed.dry_run {
        let count = whole_number(killed.matched);
        return format!("{}would close {count} sessions; none was closed\n", sessions(&killed.sessions, style));
    }
    let (closed, matched) = (whole_number(killed.closed), whole_number(killed.matched));
    format!("closed {closed} of {matched} sessions that matched\n")
}

fn table(style: Style, heads: &[&str], right: &[usize], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(match style {
        Style::Terminal => RULED,
        Style::Plain => presets::NOTHING,
    });
    table.set_header(heads.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell)));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        // The left edge of a table is the edge of the page.
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut out = table.trim_fmt();
    out.push('\n');
    out
}

/// Two units at most: `350ms`, `12s`, `3m 5s`, `4d 2h`.
pub fn seconds(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".to_owned();
    }
    if seconds < 0.9995 {
        return format!("{:.0}ms", seconds * 1e3);
    }
    if seconds < 9.95 {
        return format!("{seconds:.1}s");
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; `as` saturates")]
    let whole = seconds as u64;
    let (days, hours, minutes, left) = (whole / 86_400, whole / 3_600 % 24, whole / 60 % 60, whole % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{left}s"),
        (0, 0, _) => format!("{minutes}m {left}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// `512 B`, `1.5 KiB`.
pub fn bytes(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let mut size = bytes as f64;
    let mut unit = 0;
    // 1023.95 would be shown as 1024.0.
    while size >= 1023.95 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

/// With commas: `1,234,567`.
pub fn whole_number(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn milliseconds(ms: f64) -> String {
    format!("{ms:.1} ms")
}

/// Text of others on one line of a terminal: control characters, and marks that turn the direction of text, are shown
/// as escapes.
pub fn clean(text: &str) -> Cow<'_, str> {
    let bad = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(bad) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if bad(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// A preset of comfy-table: a rule under the heads, nothing else.
const RULED: &str = "     ──            ";

#[cfg(test)]
mod tests;
