//! From the TOML tree to a [`Draft`]: each key with its type, its range, its default.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::address;
use super::draft::{Draft, Places};
use super::duration::{DAY, HOUR, MILLISECOND, show};
use super::section::{Entry, Section};
use super::surroundings::Surroundings;
use super::value::{Value, shortened};
use super::{
    Admin, Config, Drain, ForcedClose, LogFormat, LogLevel, OnKeeperDeath, Probe, Runtime, SessionsOnUpgrade, Shutdown,
    Upgrade,
};

mod bind;
mod listener;
mod pool;

/// Tables and keys that this version refuses because a later one brings them.
const LATER_TABLES: [&str; 1] = ["overload"];
const LATER_RUNTIME: [&str; 2] = ["io", "access_log"];

/// Longest duration of any timeout: beyond it "off" is meant.
const LONG: Duration = Duration::from_secs(30 * 86_400);

/// Data threads; far more than one machine has cores.
const MOST_THREADS: u64 = 256;

/// A number beyond every descriptor limit (`fs.nr_open` is at most 2^30).
const MOST_SESSIONS: u64 = 1 << 30;

/// The path of a Unix socket, without the final zero (`sun_path`).
pub(super) const LONGEST_SOCKET_PATH: usize = 107;

pub(super) fn file(mut root: Section<'_>, around: &Surroundings) -> Draft {
    let (runtime, max_sessions, state_dir) = runtime(&mut root, around);
    let (admin, admin_socket, admin_listen) = admin(&mut root, &runtime.state_dir);
    let upgrade = upgrade(&mut root);
    let drain = drain(&mut root);
    let shutdown = shutdown(&mut root);
    let (mut listeners, mut pools) = (BTreeMap::new(), BTreeMap::new());
    let mut places = Places {
        max_sessions,
        state_dir,
        admin_socket,
        admin_listen,
        listeners: BTreeMap::new(),
        pools: BTreeMap::new(),
    };
    let mut room = bind::Room::default();
    for entry in named(&mut root, "listeners") {
        if let Some((listener, at)) = listener::read(&entry, &mut room, around) {
            listeners.insert(entry.name.to_owned(), listener);
            places.listeners.insert(entry.name.to_owned(), at);
        }
    }
    for entry in named(&mut root, "pools") {
        if let Some((pool, at)) = pool::read(&entry) {
            pools.insert(entry.name.to_owned(), pool);
            places.pools.insert(entry.name.to_owned(), at);
        }
    }
    root.finish(&LATER_TABLES);
    Draft { config: Config { runtime, admin, upgrade, drain, shutdown, listeners, pools }, places }
}

type Place = Option<super::mistake::Span>;

fn runtime(root: &mut Section<'_>, around: &Surroundings) -> (Runtime, Place, Place) {
    let mut section = root.child("runtime");
    let places = (section.place("max_sessions"), section.place("state_dir"));
    let runtime = Runtime {
        threads: section.take("threads", |value| value.count(1..=MOST_THREADS)).unwrap_or(around.cpus),
        // What is not given here depends on the listeners: see `check::limits`.
        max_sessions: section.take_or("max_sessions", 0, |value| value.count(1..=MOST_SESSIONS)),
        state_dir: section.take("state_dir", path).unwrap_or_else(|| state_dir(around)),
        log: section.take_or("log", LogLevel::Info, |value| value.word(&LOG_LEVELS, &[])),
        log_format: section.take_or("log_format", LogFormat::Text, |value| value.word(&LOG_FORMATS, &[])),
        on_keeper_death: section
            .take_or("on_keeper_death", OnKeeperDeath::Serve, |value| value.word(&ON_KEEPER_DEATH, &[])),
        restart_backoff: section
            .take_or("restart_backoff", Runtime::restart_backoff(), |value| value.duration_or_off(MILLISECOND..=HOUR)),
    };
    section.finish(&LATER_RUNTIME);
    (runtime, places.0, places.1)
}

const LOG_LEVELS: [(&str, LogLevel); 5] = [
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];
const LOG_FORMATS: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];
const ON_KEEPER_DEATH: [(&str, OnKeeperDeath); 2] = [("serve", OnKeeperDeath::Serve), ("exit", OnKeeperDeath::Exit)];

fn state_dir(around: &Surroundings) -> PathBuf {
    let under_xdg = || around.xdg_runtime_dir.as_ref().map(|directory| directory.join("proxyd"));
    around.runtime_directory.clone().or_else(under_xdg).unwrap_or_else(|| PathBuf::from("/run/proxyd"))
}

fn admin(root: &mut Section<'_>, state_dir: &Path) -> (Admin, Place, Place) {
    let mut section = root.child("admin");
    let places = (section.place("socket"), section.place("listen"));
    let admin = Admin {
        socket: section
            .take("socket", |value| socket_path(value, value.text(ABSOLUTE)?))
            .unwrap_or_else(|| state_dir.join("admin.sock")),
        listen: section.take_or("listen", Some(([127, 0, 0, 1], 9900).into()), |value| {
            if value.is_off() { Some(None) } else { socket_address(value).map(Some) }
        }),
        expose: section.take_or("expose", false, Value::boolean),
    };
    section.finish(&[]);
    (admin, places.0, places.1)
}

fn upgrade(root: &mut Section<'_>) -> Upgrade {
    let mut section = root.child("upgrade");
    let upgrade = Upgrade {
        sessions: section.take_or("sessions", SessionsOnUpgrade::Move, |value| value.word(&SESSIONS, &[])),
        ready_timeout: section
            .take_or("ready_timeout", Duration::from_secs(30), |value| value.duration(MILLISECOND..=HOUR)),
        probation: section.take_or("probation", Duration::from_secs(10), |value| value.duration(Duration::ZERO..=DAY)),
        probe: section.take_or("probe", Probe::Connect, |value| value.word(&PROBES, &[])),
        max_generations: section.take_or("max_generations", 4, |value| value.count(2..=64)),
    };
    section.finish(&[]);
    upgrade
}

const SESSIONS: [(&str, SessionsOnUpgrade); 2] =
    [("move", SessionsOnUpgrade::Move), ("drain", SessionsOnUpgrade::Drain)];
const PROBES: [(&str, Probe); 2] = [("connect", Probe::Connect), ("off", Probe::Off)];

fn drain(root: &mut Section<'_>) -> Drain {
    let mut section = root.child("drain");
    let timeout =
        section.take_or("timeout", Some(Duration::from_secs(30)), |value| value.duration_or_off(Duration::ZERO..=LONG));
    // A default never makes what was written wrong.
    let default = Duration::from_secs(5).min(timeout.unwrap_or(LONG));
    let spread = section.take_or("spread", default, |value| {
        let spread = value.duration(Duration::ZERO..=LONG)?;
        match timeout {
            Some(timeout) if spread > timeout => {
                let expected = format!("expected at most {}, the timeout", show(timeout));
                value.refuse(value.wrong("is longer than `drain.timeout`").expected(expected))
            }
            _ => Some(spread),
        }
    });
    let words = [("reset", ForcedClose::Reset), ("fin", ForcedClose::Fin)];
    let close = section.take_or("close", ForcedClose::Reset, |value| value.word(&words, &[]));
    section.finish(&[]);
    Drain { timeout, spread, close }
}

fn shutdown(root: &mut Section<'_>) -> Shutdown {
    let mut section = root.child("shutdown");
    let delay = section.take_or("delay", Duration::ZERO, |value| value.duration(Duration::ZERO..=DAY));
    section.finish(&[]);
    Shutdown { delay }
}

/// The tables of `[listeners]` or `[pools]`; their keys are names.
fn named<'a>(root: &mut Section<'a>, key: &'static str) -> Vec<Entry<'a>> {
    let mut section = root.child(key);
    let entries = section.rest();
    for entry in &entries {
        if !is_name(entry.name) {
            let title = format!("`{}` is not a name", shortened(entry.name));
            let report = section.report();
            report.add(report.error(&entry.key, title).expected(format!("expected {NAME}")));
        }
    }
    entries
}

const NAME: &str = "1 to 63 characters of a-z, 0-9, _ and -";

fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte))
}

fn path(value: &Value<'_>) -> Option<PathBuf> {
    absolute(value, value.text(ABSOLUTE)?)
}

const ABSOLUTE: &str = "an absolute path";

/// Without `.` and doubled slashes, so that equal paths have equal texts.
fn absolute(value: &Value<'_>, text: &str) -> Option<PathBuf> {
    let path: PathBuf = Path::new(text).components().collect();
    if !path.is_absolute() {
        return value.refuse(value.wrong("is not absolute").expected(format!("expected {ABSOLUTE}")));
    }
    if text.contains(char::is_control) {
        return value.refuse(value.wrong("contains a control character"));
    }
    Some(path)
}

/// Also short enough for the address of a Unix socket.
fn socket_path(value: &Value<'_>, text: &str) -> Option<PathBuf> {
    let path = absolute(value, text)?;
    let length = path.as_os_str().as_bytes().len();
    if length > LONGEST_SOCKET_PATH {
        let what = format!("is {length} bytes long, too long for a socket");
        return value.refuse(value.wrong(&what).expected(format!("expected at most {LONGEST_SOCKET_PATH} bytes")));
    }
    Some(path)
}

fn socket_address(value: &Value<'_>) -> Option<std::net::SocketAddr> {
    let text = value.text(ADDRESS)?;
    address::socket(text).map_or_else(|fault| refuse_address(value, text, fault), Some)
}

const ADDRESS: &str = "an IP address and a port";

fn refuse_address<T>(value: &Value<'_>, text: &str, fault: address::AddressFault) -> Option<T> {
    let what = format!("= \"{}\": {}", shortened(text), fault.what);
    let mistake = value.wrong(&what).expected(format!("expected {ADDRESS}"));
    value.refuse(match fault.help {
        Some(help) => mistake.help(help),
        None => mistake,
    })
}
