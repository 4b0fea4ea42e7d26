//! One table of `[listeners]`.

use std::time::Duration;

use super::super::bind::Bind;
use super::super::draft::ListenerPlaces;
use super::super::duration::{MILLISECOND, SECOND};
use super::super::mistake::Span;
use super::super::section::{Entry, Section};
use super::super::surroundings::Surroundings;
use super::super::value::{Value, shortened};
use super::super::{Keepalive, Listener, TcpSettings, Timeouts};
use super::bind::{self, Room, Traits, is_v6_wildcard};
use super::{LONG, MOST_SESSIONS, NAME, is_name};

const LATER: [&str; 15] = [
    "server_first",
    "preset",
    "max_sessions_per_client",
    "accept_rate",
    "allow",
    "deny",
    "proxy_protocol",
    "peek_timeout",
    "routes",
    "on_no_match",
    "transparent",
    "fast_open",
    "mptcp",
    "priority",
    "bandwidth",
];

/// `TCP_USER_TIMEOUT` is kept by the kernel as an `int` of milliseconds: 24.8 days.
const LONGEST_USER_TIMEOUT: Duration = Duration::from_secs(24 * 86_400);

/// `MAX_TCP_KEEPIDLE` and `MAX_TCP_KEEPINTVL`, in seconds, and `MAX_TCP_KEEPCNT` of the kernel.
const LONGEST_KEEPALIVE: Duration = Duration::from_secs(32_767);
const MOST_KEEPALIVES: u32 = 127;

pub(super) fn read(entry: &Entry<'_>, room: &mut Room, around: &Surroundings) -> Option<(Listener, ListenerPlaces)> {
    let mut section = entry.value.section("a table with `bind` and `pool`")?;
    let sockets = sockets(&mut section, room, around);
    let mut places = ListenerPlaces {
        pool: section.place("pool"),
        backlog: section.place("backlog"),
        max_sessions: section.place("max_sessions"),
        binds: Vec::new(),
    };
    let (bind, binds) = sockets.into_iter().unzip();
    places.binds = binds;
    let listener = Listener {
        bind,
        pool: section.require("pool", "pool = \"NAME\"", pool).unwrap_or_default(),
        // `int` of listen(2).
        backlog: section.take_or("backlog", 4096, |value| value.integer32(1..=i32::MAX.unsigned_abs())),
        max_sessions: section.take("max_sessions", |value| value.integer(1..=MOST_SESSIONS)),
        survive_crash: section.take_or("survive_crash", false, Value::boolean),
        tcp: tcp(&mut section),
        timeouts: timeouts(&mut section),
    };
    section.finish(&LATER);
    Some((listener, places))
}

fn pool(value: &Value<'_>) -> Option<String> {
    let text = value.text("the name of a pool")?;
    if is_name(text) {
        return Some(text.to_owned());
    }
    let what = format!("= \"{}\" is not a name", shortened(text));
    value.refuse(value.wrong(&what).expected(format!("expected {NAME}")))
}

fn timeouts(section: &mut Section<'_>) -> Timeouts {
    let mut timeout = |key, default| section.take_or(key, default, |value| value.duration_or_off(MILLISECOND..=LONG));
    Timeouts {
        idle: timeout("idle_timeout", None),
        half_close: timeout("half_close_timeout", Timeouts::DEFAULT.half_close),
        max_lifetime: timeout("max_lifetime", None),
    }
}

fn tcp(section: &mut Section<'_>) -> TcpSettings {
    TcpSettings {
        keepalive: section.take_or("keepalive", Some(KEEPALIVE), |value| {
            if value.is_off() { Some(None) } else { keepalive(value).map(Some) }
        }),
        user_timeout: section.take_or("user_timeout", TcpSettings::DEFAULT.user_timeout, |value| {
            value.duration_or_off(MILLISECOND..=LONGEST_USER_TIMEOUT)
        }),
    }
}

const KEEPALIVE: Keepalive = Keepalive { idle: Duration::from_secs(60), interval: Duration::from_secs(15), count: 4 };

fn keepalive(value: &Value<'_>) -> Option<Keepalive> {
    let mut section = value.section("{ idle = \"60s\", interval = \"15s\", count = 4 } or \"off\"")?;
    let keepalive = Keepalive {
        idle: section.take_or("idle", KEEPALIVE.idle, whole_seconds),
        interval: section.take_or("interval", KEEPALIVE.interval, whole_seconds),
        count: section.take_or("count", KEEPALIVE.count, |value| value.integer32(1..=MOST_KEEPALIVES)),
    };
    section.finish(&[]);
    Some(keepalive)
}

/// The kernel counts keepalive in seconds.
fn whole_seconds(value: &Value<'_>) -> Option<Duration> {
    let duration = value.duration(SECOND..=LONGEST_KEEPALIVE)?;
    if duration.subsec_nanos() != 0 {
        return value.refuse(value.wrong("is not in whole seconds").expected("the kernel keeps whole seconds here"));
    }
    Some(duration)
}

/// `bind` with the keys that belong to it. A key that no socket of this listener can have is a mistake: it would be
/// accepted and ignored.
fn sockets(section: &mut Section<'_>, room: &mut Room, around: &Surroundings) -> Vec<(Bind, Span)> {
    let at = |section: &Section<'_>, key| section.place(key).map(|span| (key, span));
    let of_unix: Vec<_> = ["mode", "owner", "group"].into_iter().filter_map(|key| at(section, key)).collect();
    let of_v6 = at(section, "v6only");
    let traits = Traits {
        v6only: section.take_or("v6only", true, Value::boolean),
        mode: section.take_or("mode", DEFAULT_MODE, mode),
        owner: section.take("owner", |value| account(value, "user", around.user)),
        group: section.take("group", |value| account(value, "group", around.group)),
    };
    let mut all_read = false;
    let example = "bind = \"0.0.0.0:PORT\"";
    let sockets = section.require("bind", example, |value| {
        let sockets = bind::read(value, traits, room, around);
        // With some of them unreadable it is not known what they are.
        all_read = value.one_or_many().iter().all(|one| sockets.iter().any(|(_, span)| *span == one.span));
        Some(sockets)
    });
    let sockets = sockets.unwrap_or_default();
    let has_unix = sockets.iter().any(|(socket, _)| matches!(socket, Bind::Unix { .. }));
    let has_v6 =
        sockets.iter().any(|(socket, _)| matches!(socket, Bind::Tcp { address, .. } if is_v6_wildcard(address.ip())));
    if all_read && !has_unix {
        useless(section, &of_unix, "a Unix socket in `bind`");
    }
    if all_read && !has_v6 {
        useless(section, &Vec::from_iter(of_v6), "`[::]` in `bind`");
    }
    sockets
}

/// Readable and writable by owner and group.
const DEFAULT_MODE: u32 = 0o660;

fn useless(section: &Section<'_>, keys: &[(&'static str, Span)], needed: &str) {
    for (key, span) in keys {
        let title = format!("`{}.{key}` has no meaning here", section.path());
        section.report().add(section.report().error(span, title).expected(format!("only with {needed}")));
    }
}

fn mode(value: &Value<'_>) -> Option<u32> {
    let expected = "an octal number in quotes, \"0000\" to \"0777\"";
    let text = value.text(expected)?;
    let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| is_octal && *mode <= 0o777);
    mode.or_else(|| {
        let what = format!("= \"{}\" is not a file mode", shortened(text));
        value.refuse(value.wrong(&what).expected(format!("expected {expected}")))
    })
}

/// A user or group by name or number.
fn account(value: &Value<'_>, kind: &str, id: fn(&str) -> Option<u32>) -> Option<u32> {
    if value.node.is_integer() {
        return value.integer32(0..=u32::MAX - 1);
    }
    let text = value.text(&format!("the name or number of a {kind}"))?;
    // u32::MAX is "leave it" to chown(2).
    let number = || text.parse().ok().filter(|number| *number != u32::MAX);
    number().or_else(|| id(text)).or_else(|| {
        let what = format!("= \"{}\": there is no such {kind} on this machine", shortened(text));
        value.refuse(value.wrong(&what))
    })
}
