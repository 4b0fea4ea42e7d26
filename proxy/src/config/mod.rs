//! The configuration: what was written (a TOML file), what it means ([`Config`], valid by construction), and how two of
//! them differ ([`Change`]). A text passes `load` (bytes), `read` (keys, types, ranges), `check` (the whole); each notes
//! every [`Mistake`] it sees.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

mod address;
mod bind;
mod change;
mod check;
mod draft;
mod duration;
mod load;
mod mistake;
pub mod order;
pub mod plan;
mod read;
mod report;
mod section;
mod surroundings;
mod value;

#[cfg(test)]
mod tests;

pub use bind::Bind;
pub use change::{Change, KeptBind, PoolChange};
pub(crate) use check::find_loop;
pub use load::{Parsed, load, parse, parse_in};
pub use mistake::{Mistake, Mistakes, Severity, render};
pub use surroundings::{Found, Kind, Surroundings};

/// A whole configuration. Every value is in range and every reference resolves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    pub runtime: Runtime,
    pub admin: Admin,
    pub upgrade: Upgrade,
    pub drain: Drain,
    pub shutdown: Shutdown,
    pub listeners: BTreeMap<String, Listener>,
    pub pools: BTreeMap<String, Pool>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Runtime {
    /// Data threads.
    pub threads: usize,
    /// Sessions of one worker process.
    pub max_sessions: usize,
    pub state_dir: PathBuf,
    pub log: LogLevel,
    pub log_format: LogFormat,
    pub on_keeper_death: OnKeeperDeath,
    /// Longest wait before a worker that crashes again and again is started anew; `None` is "off": no wait.
    #[serde(default = "Runtime::restart_backoff")]
    pub restart_backoff: Option<Duration>,
}

impl Runtime {
    pub(crate) fn restart_backoff() -> Option<Duration> {
        Some(Duration::from_secs(2))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnKeeperDeath {
    /// Workers serve on; TERM drains them.
    Serve,
    Exit,
    /// Workers drain. Never in a file: for a keeper on trial in the place of another.
    Retire,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Admin {
    pub socket: PathBuf,
    /// Read-only HTTP; `None` is "off".
    pub listen: Option<SocketAddr>,
    pub expose: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Upgrade {
    pub sessions: SessionsOnUpgrade,
    pub ready_timeout: Duration,
    /// How long the old generation stands by after the commit; zero: not at all.
    pub probation: Duration,
    pub probe: Probe,
    /// Generations with a live process; beyond it the oldest is closed by force.
    pub max_generations: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionsOnUpgrade {
    /// They go to the new generation; what cannot go drains.
    Move,
    /// They stay with the old one, and drain.
    Drain,
}

/// How a new generation is tried at the beginning of its probation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Probe {
    /// It connects to a backend of each pool in use.
    Connect,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Then what is left is closed by force; `None` is "off": never.
    pub timeout: Option<Duration>,
    /// Forced closes are paced over this window before the timeout ends; at most `timeout`.
    pub spread: Duration,
    pub close: ForcedClose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForcedClose {
    Reset,
    /// An orderly end for sessions with nothing unsent; the others are reset.
    Fin,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shutdown {
    pub delay: Duration,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    /// In the order written, port ranges expanded, no duplicates.
    pub bind: Vec<Bind>,
    pub pool: String,
    pub backlog: u32,
    /// Beyond: connections wait in the backlog. Counted over all threads and generations.
    pub max_sessions: Option<u64>,
    /// Its sessions outlive the worker that carries them.
    #[serde(default)]
    pub survive_crash: bool,
    #[serde(flatten)]
    pub tcp: TcpSettings,
    pub timeouts: Timeouts,
}

impl TcpSettings {
    pub const DEFAULT: Self = Self {
        keepalive: Some(Keepalive { idle: Duration::from_secs(60), interval: Duration::from_secs(15), count: 4 }),
        user_timeout: Some(Duration::from_secs(60)),
    };
}

impl Timeouts {
    pub const DEFAULT: Self = Self { idle: None, half_close: Some(Duration::from_secs(60)), max_lifetime: None };
}

/// Socket options of both sides of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpSettings {
    pub keepalive: Option<Keepalive>,
    pub user_timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keepalive {
    pub idle: Duration,
    pub interval: Duration,
    pub count: u32,
}

/// `None` is "off".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    pub idle: Option<Duration>,
    pub half_close: Option<Duration>,
    pub max_lifetime: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    pub balance: Balance,
    pub connect_timeout: Duration,
    /// Other backends tried after the first.
    pub connect_retries: u32,
    pub source: Option<IpAddr>,
    /// At least one; names and addresses are each unique.
    pub backends: Vec<Backend>,
}

impl Pool {
    pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
    pub const CONNECT_RETRIES: u32 = 2;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    RoundRobin,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    pub name: String,
    pub address: SocketAddr,
    /// 1 to 256.
    pub weight: u32,
}
