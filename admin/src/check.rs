//! What a command must satisfy before anyone acts on it: ranges, names, paths. Knows no configuration; whether a pool
//! exists is for the keeper to say.

use std::net::SocketAddr;

use crate::command::{BackendChange, Command, Failure, Filter, Kill, NewBackend, Upgrade};

impl Command {
    /// Refuses words that could mean nothing in any configuration.
    pub fn check(&self) -> Result<(), Failure> {
        match self {
            Self::Upgrade(upgrade) => upgrade.check(),
            Self::Rollback(rollback) => probation(rollback.probation),
            Self::Reload | Self::Report { .. } | Self::Shutdown => Ok(()),
            Self::PoolSwap { listener, pool, .. } => name("listener", listener).and_then(|()| name("pool", pool)),
            Self::PoolAdd { pool, backend, .. } => name("pool", pool).and_then(|()| backend.check()),
            Self::PoolRemove { pool, backend, .. } => name("pool", pool).and_then(|()| text("backend", backend)),
            Self::PoolSet { pool, backends, .. } => name("pool", pool).and_then(|()| members(backends)),
            Self::Backend { pool, backend, change, .. } => {
                name("pool", pool).and_then(|()| text("backend", backend)).and_then(|()| change.check())
            }
            Self::Kill(kill) => kill.check(),
        }
    }
}

impl Upgrade {
    fn check(&self) -> Result<(), Failure> {
        path("binary", self.binary.as_deref())
            .and_then(|()| path("config", self.config.as_deref()))
            .and_then(|()| probation(self.probation))
    }
}

/// As long as a probation may be configured to last: a day.
const PROBATION: std::ops::RangeInclusive<f64> = 0.0..=86_400.0;

fn probation(seconds: Option<f64>) -> Result<(), Failure> {
    match seconds {
        Some(seconds) if !PROBATION.contains(&seconds) => {
            Err(Failure::usage(format!("probation {seconds} s is not within 0s to 24h")))
        }
        _ => Ok(()),
    }
}

impl NewBackend {
    pub fn check(&self) -> Result<(), Failure> {
        if let Some(name) = &self.name {
            text("backend name", name)?;
        }
        let Ok(address) = self.address.parse::<SocketAddr>() else {
            return Err(Failure::usage(format!(
                "backend address `{}` is not ip:port, such as 10.0.0.1:5432 or [::1]:5432",
                shortened(&self.address)
            )));
        };
        if address.port() == 0 {
            return Err(Failure::usage(format!("backend address {address}: port 0 cannot be connected to")));
        }
        self.weight.map_or(Ok(()), weight)
    }
}

impl BackendChange {
    fn check(self) -> Result<(), Failure> {
        match self {
            Self::Enable | Self::Drain | Self::Disable => Ok(()),
            Self::Weight(n) => weight(n),
        }
    }
}

impl Kill {
    fn check(&self) -> Result<(), Failure> {
        if self.rate == Some(0) {
            return Err(Failure::usage("rate 0 would never close a session; say 1 a second or more, or leave it out"));
        }
        self.filter.check()
    }
}

impl Filter {
    pub fn check(&self) -> Result<(), Failure> {
        for (what, word) in [("listener", &self.listener), ("pool", &self.pool), ("backend", &self.backend)] {
            word.as_deref().map_or(Ok(()), |word| text(what, word))?;
        }
        for (what, seconds) in [("idle", self.idle), ("older", self.older)] {
            if seconds.is_some_and(|s| !s.is_finite() || s < 0.0) {
                return Err(Failure::usage(format!("{what}: a finite number of seconds, 0 or more")));
            }
        }
        Ok(())
    }
}

fn members(backends: &[NewBackend]) -> Result<(), Failure> {
    if backends.is_empty() {
        return Err(Failure::usage("a pool needs at least one backend"));
    }
    backends.iter().try_for_each(NewBackend::check)
}

fn weight(n: u32) -> Result<(), Failure> {
    match n {
        1..=MAX_WEIGHT => Ok(()),
        _ => Err(Failure::usage(format!("weight {n} is out of range: 1 to {MAX_WEIGHT}"))),
    }
}

/// The name of a listener or pool, as the configuration spells names.
fn name(what: &str, name: &str) -> Result<(), Failure> {
    let spelt = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    if (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(spelt) {
        return Ok(());
    }
    Err(Failure::usage(format!("{what} `{}`: names are 1 to {MAX_NAME} of a-z 0-9 _ -", shortened(name))))
}

/// A word that is only compared: bounded, and without characters that could forge a log line.
fn text(what: &str, text: &str) -> Result<(), Failure> {
    if (1..=MAX_TEXT).contains(&text.len()) && !text.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Failure::usage(format!("{what} `{}`: 1 to {MAX_TEXT} bytes, no control characters", shortened(text))))
}

fn path(what: &str, path: Option<&str>) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    if path.len() > MAX_PATH || path.contains('\0') {
        return Err(Failure::usage(format!("{what}: a path has at most {MAX_PATH} bytes and no NUL")));
    }
    if !path.starts_with('/') {
        return Err(Failure::usage(format!(
            "{what} `{}`: the keeper has another working directory, so the path must be absolute",
            shortened(path)
        )));
    }
    Ok(())
}

fn shortened(text: &str) -> String {
    let mut start: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        start.push('…');
    }
    start
}

/// As in the configuration.
const MAX_WEIGHT: u32 = 256;
/// As in the configuration.
const MAX_NAME: usize = 63;
/// Room for any address and for names of backends; far below a log line's limit.
const MAX_TEXT: usize = 255;
/// PATH_MAX less its NUL.
const MAX_PATH: usize = 4095;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::FailureKind;

    fn backend(address: &str, weight: Option<u32>) -> NewBackend {
        NewBackend { name: None, address: address.into(), weight }
    }

    fn pool_add(backend: NewBackend) -> Command {
        Command::PoolAdd { pool: "pg".into(), backend, if_version: None }
    }

    fn swap(pool: &str) -> Command {
        Command::PoolSwap { listener: "l".into(), pool: pool.into(), if_version: None }
    }

    #[test]
    fn good_commands_pass() {
        for command in [
            Command::Reload,
            pool_add(backend("[::1]:80", Some(256))),
            swap(&"a".repeat(63)),
            Command::Kill(Kill { rate: Some(u32::MAX), ..Kill::default() }),
            Command::Upgrade(Upgrade { config: Some("/etc/p.toml".into()), ..Upgrade::default() }),
        ] {
            assert_eq!(command.check(), Ok(()), "{command:?}");
        }
    }

    #[test]
    fn bad_commands_say_what_is_wrong() {
        let idle = |idle| Kill { filter: Filter { idle: Some(idle), ..Filter::default() }, ..Kill::default() };
        for (command, word) in [
            (pool_add(backend("db:5432", None)), "ip:port"),
            (pool_add(backend("10.0.0.1:0", None)), "port 0"),
            (pool_add(backend("10.0.0.1:1", Some(0))), "weight 0"),
            (pool_add(backend("10.0.0.1:1", Some(257))), "weight 257"),
            (pool_add(NewBackend { name: Some("a\nb".into()), ..backend("10.0.0.1:1", None) }), "control"),
            (swap(""), "1 to 63"),
            (swap(&"a".repeat(64)), "1 to 63"),
            (swap("Up"), "1 to 63"),
            (Command::PoolSet { pool: "p".into(), backends: vec![], create: true, if_version: None }, "at least one"),
            (Command::Kill(Kill { rate: Some(0), ..Kill::default() }), "rate 0"),
            (Command::Kill(idle(f64::NAN)), "idle"),
            (Command::Kill(idle(-0.5)), "idle"),
            (Command::Upgrade(Upgrade { binary: Some("p".into()), ..Upgrade::default() }), "absolute"),
            (Command::Upgrade(Upgrade { binary: Some("/p\0".into()), ..Upgrade::default() }), "NUL"),
        ] {
            let failure = command.check().unwrap_err();
            assert_eq!(failure.kind, FailureKind::Usage);
            assert!(failure.message.contains(word), "{command:?}: {failure}");
        }
    }
}
