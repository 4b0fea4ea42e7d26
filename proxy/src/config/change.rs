//! How two configurations differ, and what that takes: a pure comparison.

use std::collections::BTreeMap;

use super::duration::show;
use super::{Backend, Bind, Config, Listener, Pool};

/// The way from one [`Config`] to another.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Change {
    /// Sockets to open, each with the name of its listener.
    pub added: Vec<(String, Bind)>,
    /// Sockets to close, each with the name of its listener.
    pub removed: Vec<(String, Bind)>,
    /// Sockets that stay open.
    pub kept: Vec<KeptBind>,
    /// Listeners in both, whose settings differ: what the listener has set on its sockets is set again, the rest holds for
    /// new sessions.
    pub listeners: Vec<String>,
    pub pools: Vec<PoolChange>,
    /// Keys that hold from now on: `drain.timeout`.
    pub hot: Vec<&'static str>,
    upgrade: Vec<&'static str>,
    restart: Vec<&'static str>,
    lines: Vec<String>,
}

/// A socket of both configurations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptBind {
    /// The listener it belongs to from now on.
    pub listener: String,
    /// The listener it belonged to.
    pub was: String,
    pub bind: Bind,
    /// Mode, owner or group of its path are to be set again.
    pub permissions: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum PoolChange {
    Added(String),
    Removed(String),
    Changed {
        name: String,
        added: Vec<Backend>,
        removed: Vec<Backend>,
        /// The same name, another address or weight; as they are to be.
        changed: Vec<Backend>,
        /// Its other keys: `connect_timeout`, ...
        settings: Vec<&'static str>,
    },
}

impl Change {
    pub fn between(old: &Config, new: &Config) -> Self {
        let mut change = Self::default();
        change.binds(old, new);
        change.listeners(old, new);
        change.pools(old, new);
        change.keys(old, new);
        change
    }

    /// Nothing differs.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// For an operator: what changes, one line each.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// Changed keys that only a new generation takes.
    pub fn needs_upgrade(&self) -> &[&'static str] {
        &self.upgrade
    }

    /// Changed keys that only a new keeper takes.
    pub fn needs_restart(&self) -> &[&'static str] {
        &self.restart
    }

    /// Why a reload cannot make this change, if it cannot.
    pub fn refusal(&self) -> Option<String> {
        let keys = |keys: &[&str]| keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
        match (&self.upgrade[..], &self.restart[..]) {
            ([], []) => None,
            (upgrade, []) => Some(format!("{} cannot be changed by a reload: use `proxyctl upgrade`", keys(upgrade))),
            (_, restart) => Some(format!("{} cannot be changed while proxyd runs: restart it", keys(restart))),
        }
    }

    fn binds(&mut self, old: &Config, new: &Config) {
        let (before, after) = (sockets(old), sockets(new));
        for (id, (listener, bind)) in &after {
            let Some((was, before)) = before.get(id) else {
                self.lines.push(format!("listener {listener}: added {}", told(bind)));
                self.added.push(((*listener).to_owned(), (*bind).clone()));
                continue;
            };
            if was != listener {
                self.lines.push(format!("listener {listener}: takes {} from listener {was}", told(bind)));
            }
            let permissions = bind != before;
            if permissions {
                self.lines.push(format!("listener {listener}: permissions of {} changed", told(bind)));
            }
            let (listener, was) = ((*listener).to_owned(), (*was).to_owned());
            self.kept.push(KeptBind { listener, was, bind: (*bind).clone(), permissions });
        }
        for (id, (listener, bind)) in &before {
            if !after.contains_key(id) {
                self.lines.push(format!("listener {listener}: removed {}", told(bind)));
                self.removed.push(((*listener).to_owned(), (*bind).clone()));
            }
        }
    }

    fn listeners(&mut self, old: &Config, new: &Config) {
        for (name, after) in &new.listeners {
            let Some(before) = old.listeners.get(name) else { continue };
            let changed = listener_lines(before, after);
            if !changed.is_empty() {
                self.listeners.push(name.clone());
            }
            self.lines.extend(changed.iter().map(|line| format!("listener {name}: {line}")));
        }
    }

    fn pools(&mut self, old: &Config, new: &Config) {
        for (name, after) in &new.pools {
            match old.pools.get(name) {
                None => self.pool(PoolChange::Added(name.clone())),
                Some(before) if before != after => self.pool(pool_change(name, before, after)),
                Some(_) => {}
            }
        }
        for name in old.pools.keys().filter(|name| !new.pools.contains_key(*name)) {
            self.pool(PoolChange::Removed(name.clone()));
        }
    }

    fn pool(&mut self, change: PoolChange) {
        self.lines.extend(pool_lines(&change));
        self.pools.push(change);
    }

    fn keys(&mut self, old: &Config, new: &Config) {
        self.upgrade = upgrade_keys(old, new);
        self.restart = restart_keys(old, new);
        self.hot = hot_keys(old, new);
        let upgrade = self.upgrade.iter().map(|key| format!("{key} changed (needs an upgrade)"));
        let restart = self.restart.iter().map(|key| format!("{key} changed (needs a restart)"));
        let hot = self.hot.iter().map(|key| format!("{key} changed"));
        self.lines.extend(upgrade.chain(restart).chain(hot));
    }
}

/// What a worker is built with.
fn upgrade_keys(old: &Config, new: &Config) -> Vec<&'static str> {
    let (old, new) = (&old.runtime, &new.runtime);
    differing(&[
        ("runtime.threads", old.threads != new.threads),
        ("runtime.max_sessions", old.max_sessions != new.max_sessions),
        ("runtime.on_keeper_death", old.on_keeper_death != new.on_keeper_death),
    ])
}

/// What the keeper is built with.
fn restart_keys(old: &Config, new: &Config) -> Vec<&'static str> {
    differing(&[
        ("runtime.state_dir", old.runtime.state_dir != new.runtime.state_dir),
        ("runtime.log", old.runtime.log != new.runtime.log),
        ("runtime.log_format", old.runtime.log_format != new.runtime.log_format),
        ("admin.socket", old.admin.socket != new.admin.socket),
        ("admin.listen", old.admin.listen != new.admin.listen),
        ("admin.expose", old.admin.expose != new.admin.expose),
    ])
}

/// What is looked up when it is needed.
fn hot_keys(old: &Config, new: &Config) -> Vec<&'static str> {
    differing(&[
        ("upgrade.sessions", old.upgrade.sessions != new.upgrade.sessions),
        ("upgrade.ready_timeout", old.upgrade.ready_timeout != new.upgrade.ready_timeout),
        ("upgrade.probation", old.upgrade.probation != new.upgrade.probation),
        ("upgrade.probe", old.upgrade.probe != new.upgrade.probe),
        ("upgrade.max_generations", old.upgrade.max_generations != new.upgrade.max_generations),
        ("runtime.restart_backoff", old.runtime.restart_backoff != new.runtime.restart_backoff),
        ("drain.timeout", old.drain.timeout != new.drain.timeout),
        ("drain.spread", old.drain.spread != new.drain.spread),
        ("drain.close", old.drain.close != new.drain.close),
        ("shutdown.delay", old.shutdown.delay != new.shutdown.delay),
    ])
}

/// All sockets by id, with their listeners.
fn sockets(config: &Config) -> BTreeMap<String, (&str, &Bind)> {
    let each = config.listeners.iter();
    each.flat_map(|(name, listener)| listener.bind.iter().map(move |bind| (bind.id(), (name.as_str(), bind)))).collect()
}

/// `[::]:80` with and without IPv4 are two sockets and must not look alike.
fn told(bind: &Bind) -> String {
    match bind {
        Bind::Tcp { address, v6only: false } if address.is_ipv6() => format!("{bind} (with IPv4)"),
        _ => bind.to_string(),
    }
}

fn listener_lines(old: &Listener, new: &Listener) -> Vec<String> {
    let mut lines = Vec::new();
    let mut compare = |key: &str, old: String, new: String| {
        if old != new {
            lines.push(format!("{key} {old} -> {new}"));
        }
    };
    let limit = |limit: Option<u64>| limit.map_or_else(|| "off".to_owned(), |limit| limit.to_string());
    let timeout = |timeout: Option<_>| timeout.map_or_else(|| "off".to_owned(), show);
    compare("pool", old.pool.clone(), new.pool.clone());
    compare("backlog", old.backlog.to_string(), new.backlog.to_string());
    compare("max_sessions", limit(old.max_sessions), limit(new.max_sessions));
    compare("survive_crash", old.survive_crash.to_string(), new.survive_crash.to_string());
    compare("idle_timeout", timeout(old.timeouts.idle), timeout(new.timeouts.idle));
    compare("half_close_timeout", timeout(old.timeouts.half_close), timeout(new.timeouts.half_close));
    compare("max_lifetime", timeout(old.timeouts.max_lifetime), timeout(new.timeouts.max_lifetime));
    compare("user_timeout", timeout(old.tcp.user_timeout), timeout(new.tcp.user_timeout));
    compare("keepalive", keepalive(old), keepalive(new));
    lines
}

fn keepalive(listener: &Listener) -> String {
    listener.tcp.keepalive.map_or_else(
        || "off".to_owned(),
        |keepalive| format!("{}/{}/{}", show(keepalive.idle), show(keepalive.interval), keepalive.count),
    )
}

fn pool_change(name: &str, old: &Pool, new: &Pool) -> PoolChange {
    let find = |pool: &Pool, name: &str| pool.backends.iter().find(|backend| backend.name == name).cloned();
    let missing_in = |other: &Pool, backend: &&Backend| find(other, &backend.name).is_none();
    let changed = |backend: &&Backend| find(old, &backend.name).is_some_and(|before| before != **backend);
    PoolChange::Changed {
        name: name.to_owned(),
        added: new.backends.iter().filter(|backend| missing_in(old, backend)).cloned().collect(),
        removed: old.backends.iter().filter(|backend| missing_in(new, backend)).cloned().collect(),
        changed: new.backends.iter().filter(changed).cloned().collect(),
        settings: differing(&[
            ("balance", old.balance != new.balance),
            ("connect_timeout", old.connect_timeout != new.connect_timeout),
            ("connect_retries", old.connect_retries != new.connect_retries),
            ("source", old.source != new.source),
        ]),
    }
}

fn pool_lines(change: &PoolChange) -> Vec<String> {
    let PoolChange::Changed { name, added, removed, changed, settings } = change else {
        return match change {
            PoolChange::Added(name) => vec![format!("pool {name}: added")],
            PoolChange::Removed(name) => vec![format!("pool {name}: removed")],
            PoolChange::Changed { .. } => Vec::new(),
        };
    };
    let mut lines: Vec<String> = settings.iter().map(|key| format!("pool {name}: {key} changed")).collect();
    lines.extend(added.iter().map(|backend| format!("pool {name}: backend {} added", backend.name)));
    lines.extend(removed.iter().map(|backend| format!("pool {name}: backend {} removed", backend.name)));
    lines.extend(changed.iter().map(|backend| {
        format!("pool {name}: backend {} is now {} weight {}", backend.name, backend.address, backend.weight)
    }));
    if lines.is_empty() {
        lines.push(format!("pool {name}: order of backends changed"));
    }
    lines
}

fn differing(keys: &[(&'static str, bool)]) -> Vec<&'static str> {
    keys.iter().filter(|(_, differs)| *differs).map(|(key, _)| *key).collect()
}
