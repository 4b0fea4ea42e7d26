//! The configuration against tables of good and bad files. Names begin with the row of the fault table they cover.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::{Config, Found, Kind, Mistakes, Parsed, Surroundings, parse_in};

mod change;
mod docs;
mod keys;
mod machine;
mod pools;
mod property;
mod report;
mod sockets;
mod syntax;
mod values;

/// A machine with nothing peculiar.
fn around() -> Surroundings {
    Surroundings {
        cpus: 2,
        descriptors: 20_000,
        somaxconn: 4096,
        runtime_directory: None,
        xdg_runtime_dir: None,
        uid: 1000,
        addresses: vec![IpAddr::from([10, 0, 0, 9])],
        user: |name| (name == "postgres").then_some(105),
        group: |name| (name == "db").then_some(106),
        found: paths,
    }
}

/// The file system of that machine.
fn paths(path: &Path) -> Option<Found> {
    let found = |kind, uid, mode| Some(Found { kind, uid, mode });
    match path.to_str()? {
        "/run" => found(Kind::Directory, 0, 0o755),
        "/tmp" => found(Kind::Directory, 0, 0o1777),
        "/own" => found(Kind::Directory, 1000, 0o700),
        "/own-open" => found(Kind::Directory, 1000, 0o777),
        "/foreign" => found(Kind::Directory, 1001, 0o755),
        "/own/file" => found(Kind::Other, 1000, 0o644),
        "/own/socket" => found(Kind::Socket, 1000, 0o600),
        "/own/foreign-socket" => found(Kind::Socket, 1001, 0o600),
        _ => None,
    }
}

/// A listener and its pool, for files that are about something else.
const REST: &str =
    "[listeners.web]\nbind = \"127.0.0.1:80\"\npool = \"app\"\n[pools.app]\nbackends = [\"10.0.0.1:80\"]\n";

fn parse(text: &str) -> Result<Parsed, Mistakes> {
    parse_in(&PathBuf::from("proxyd.toml"), text.as_bytes(), &around())
}

#[track_caller]
fn good(text: &str) -> Config {
    match parse(text) {
        Ok(parsed) => parsed.config,
        Err(mistakes) => panic!("{text}\nis refused:\n{mistakes}"),
    }
}

/// Each mistake of `text` in one line.
#[track_caller]
fn mistakes(text: &str) -> Vec<String> {
    match parse(text) {
        Ok(_) => panic!("{text}\nis accepted"),
        Err(mistakes) => mistakes.iter().map(ToString::to_string).collect(),
    }
}

/// `text` has just one mistake, at `position` ("LINE:COLUMN"), and all of `parts` are in its report.
#[track_caller]
fn refused(text: &str, position: &str, parts: &[&str]) {
    let Err(mistakes) = parse(text) else { panic!("{text}\nis accepted") };
    let report = mistakes.render(false);
    assert_eq!(mistakes.iter().count(), 1, "{text}\n{report}");
    let at = mistakes.iter().next().and_then(super::Mistake::position);
    let at = at.map_or_else(String::new, |(line, column)| format!("{line}:{column}"));
    assert_eq!(at, position, "{text}\n{report}");
    for part in parts {
        assert!(report.contains(part), "`{part}` is not in\n{report}");
    }
}

/// `text` is accepted with one warning, which contains `part`.
#[track_caller]
fn warned(text: &str, part: &str) {
    let parsed = parse(text).unwrap_or_else(|mistakes| panic!("{text}\nis refused:\n{mistakes}"));
    let [warning] = &parsed.warnings[..] else { panic!("{text}\nwarnings: {:?}", parsed.warnings) };
    assert!(warning.to_string().contains(part), "{warning}");
}

/// A file whose first line is the header `table` and whose second is `line`, with the rest added.
fn with(table: &str, line: &str) -> String {
    format!("[{table}]\n{line}\n{REST}")
}

/// A listener of which `lines` are the keys from line 2 on, with a pool.
fn listener(lines: &str) -> String {
    format!("[listeners.web]\n{lines}\npool = \"app\"\n[pools.app]\nbackends = [\"10.0.0.1:80\"]\n")
}

/// A pool of which `lines` are the keys from line 2 on, with a listener.
fn pool(lines: &str) -> String {
    format!("[pools.app]\n{lines}\n[listeners.web]\nbind = \"127.0.0.1:80\"\npool = \"app\"\n")
}
