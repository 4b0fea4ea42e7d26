//! What an operator can ask of a running keeper, and what it answers.
//!
//! One command is one JSON document (`POST /v1/command`); the answer is a stream of JSON lines, each a [`Line`]:
//! steps while it runs, then exactly one `done`, `failed` or `reconnect`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::view::SessionRow;

/// A request to change something. A refused command has changed nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    Upgrade(Upgrade),
    /// Back to the generation before: its binary and its configuration together.
    Rollback(Rollback),
    /// The report of an upgrade, waited for while it runs; of the last one if no id is given.
    Report {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
    },
    Reload,
    /// Point a listener at another pool.
    PoolSwap {
        listener: String,
        pool: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_version: Option<u64>,
    },
    /// Add one backend to a pool.
    PoolAdd {
        pool: String,
        backend: NewBackend,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_version: Option<u64>,
    },
    /// Take one backend out of a pool; its sessions drain.
    PoolRemove {
        pool: String,
        backend: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_version: Option<u64>,
    },
    /// Replace the backends of a pool, all at once. `create`: make the pool if it is not there.
    PoolSet {
        pool: String,
        backends: Vec<NewBackend>,
        #[serde(default)]
        create: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_version: Option<u64>,
    },
    Backend {
        pool: String,
        backend: String,
        change: BackendChange,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_version: Option<u64>,
    },
    Kill(Kill),
    Shutdown,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Upgrade {
    /// Absolute path of the new binary; the path of the last committed upgrade (at first: of the start) if absent.
    pub binary: Option<String>,
    /// Absolute path of the configuration; the path in use if absent. Read again in both cases.
    pub config: Option<String>,
    pub dry_run: bool,
    /// Answer once the upgrade holds the lock, with its id.
    pub no_wait: bool,
    /// Seconds of probation; as configured if absent. Not said then: an older keeper knows no such field, and refuses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probation: Option<f64>,
    /// What becomes of the old generation's sessions; as configured if absent, which is not said, as above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<Sessions>,
}

/// What becomes of the sessions of the generation before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sessions {
    /// They go on in the new one; what cannot move drains.
    Move,
    /// They stay with the old one, and drain.
    Drain,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rollback {
    /// Answer once the rollback holds the lock, with its id.
    pub no_wait: bool,
    /// Seconds of probation, where the rollback starts a new generation; as configured if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probation: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewBackend {
    /// The address, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `ip:port`.
    pub address: String,
    /// 1 to 256; 1 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendChange {
    /// New sessions again.
    Enable,
    /// No new sessions; those it has end by themselves.
    Drain,
    /// No new sessions; those it has drain under `[drain]`, then are closed by force.
    Disable,
    /// 1 to 256.
    Weight(u32),
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kill {
    pub filter: Filter,
    pub dry_run: bool,
    /// Sessions a second; all at once if absent.
    pub rate: Option<u32>,
}

/// Which sessions. Every given part must match; an empty filter matches all.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub id: Vec<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<ipnet::IpNet>,
    /// No byte for at least so many seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<f64>,
    /// Open for at least so many seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub older: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
}

impl Filter {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub fn matches(&self, row: &SessionRow) -> bool {
        let is = |want: &Option<String>, have: &str| want.as_deref().is_none_or(|want| want == have);
        (self.id.is_empty() || self.id.contains(&row.id))
            && is(&self.listener, &row.listener)
            && is(&self.pool, &row.pool)
            && is(&self.backend, &row.backend)
            && self.client.is_none_or(|net| row.client_ip().is_some_and(|ip| net.contains(&ip)))
            && self.idle.is_none_or(|least| row.idle_seconds >= least)
            && self.older.is_none_or(|least| row.age_seconds >= least)
            && self.generation.is_none_or(|generation| generation == row.generation)
    }
}

/// One line of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "kebab-case")]
pub enum Line {
    /// A step of an operation has begun.
    Step {
        step: String,
        detail: String,
    },
    Done(Reply),
    Failed(Failure),
    /// The keeper is about to replace itself by a new version. The operation goes on: connect again to the same socket, and ask
    /// for the report of this upgrade.
    Reconnect {
        upgrade: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    Upgraded(UpgradeReport),
    /// `--no-wait`: the upgrade runs under this id.
    Started {
        id: u64,
    },
    Plan(UpgradePlan),
    Changed(Changed),
    Killed(Killed),
    /// The shutdown has begun.
    ShuttingDown,
}

/// How an upgrade ended. The names are fixed by the operator's contract.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpgradeReport {
    pub id: u64,
    pub result: UpgradeResult,
    pub from: u32,
    pub to: u32,
    /// The last step reached.
    pub step: String,
    /// Empty when committed.
    pub reason: String,
    pub accept_gap_ms: f64,
    pub longest_pause_ms: f64,
    pub sessions: SessionsAtUpgrade,
    /// Version of the binary that serves now.
    pub version: String,
    /// What became of the keeper itself: `unchanged` (it runs this binary already), `upgraded`, or `not upgraded: why`.
    #[serde(default)]
    pub keeper: String,
    pub seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpgradeResult {
    Committed,
    RolledBack,
    Failed,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionsAtUpgrade {
    /// Gone on in the generation that serves now.
    pub moved: u64,
    /// Left with the other one, to drain.
    pub left: u64,
    pub forced: u64,
    /// Gone on in another worker after theirs had died meanwhile.
    #[serde(default)]
    pub recovered: u64,
    /// Live ones of listeners with `survive_crash` that would not have outlived their worker when it ended.
    #[serde(default)]
    pub unprotected: u64,
    /// How many of those that were left could not move, by why: `connecting`, `ending`, `refused`, `no_room`, `timeout`,
    /// `peer_gone`, `older_version`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left_why: BTreeMap<String, u64>,
}

/// `upgrade --dry-run`: what an upgrade would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpgradePlan {
    pub binary: String,
    pub version: String,
    pub config: String,
    /// Addresses whose sockets would be handed on.
    pub kept: Vec<String>,
    pub added: Vec<String>,
    pub removed: Vec<String>,
}

/// What a reload, pool or backend command changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    /// One line for a person.
    pub summary: String,
    /// A line for each change; empty if nothing was different.
    pub changes: Vec<String>,
    /// The version now in force: of the pool for pool and backend verbs, of the configuration for `reload`.
    pub version: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Killed {
    pub dry_run: bool,
    /// Sessions that matched.
    pub matched: u64,
    /// Sessions closed; the rest had ended by themselves.
    pub closed: u64,
    /// Those that matched, for a dry run.
    pub sessions: Vec<SessionRow>,
}

/// Why a command was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Failure {
    pub kind: FailureKind,
    /// What was wrong, where, what is still true, what to do: one line (a list of mistakes in a file: one each).
    pub message: String,
    /// The report of a failed upgrade.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Box<FailureReport>>,
}

/// An [`UpgradeReport`] as text, so that a failure can be compared.
pub type FailureReport = serde_json::Value;

/// Sorted by what the caller can do about it; each has its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// Nothing has changed.
    Failed,
    /// The words of the command are wrong.
    Usage,
    /// Busy, or the expected version is not the one in force.
    Conflict,
    TimedOut,
    RolledBack,
    Denied,
}

impl FailureKind {
    /// Exit code of `proxyctl`.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Conflict => 4,
            Self::TimedOut => 5,
            Self::RolledBack => 6,
            Self::Denied => 7,
        }
    }
}

impl Failure {
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), report: None }
    }

    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Failed, message)
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Usage, message)
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Conflict, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
