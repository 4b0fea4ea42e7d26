//! What a worker is told to do: the part of the configuration that concerns it, and the state of the pools, which belongs
//! to the keeper. Sent whole, as JSON, at the start of a generation and at every change; unknown fields are ignored, so
//! that a keeper and a worker of neighbouring versions understand each other.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Balance, Bind, Config, LogFormat, LogLevel, OnKeeperDeath, Pool, TcpSettings, Timeouts};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Version of the configuration this comes from.
    pub config_version: u64,
    pub threads: usize,
    /// Sessions of one worker process.
    pub max_sessions: usize,
    pub on_keeper_death: OnKeeperDeath,
    pub log: LogLevel,
    pub log_format: LogFormat,
    /// For a drain without a keeper.
    pub drain: super::Drain,
    pub listeners: Vec<PlannedListener>,
    pub pools: Vec<PlannedPool>,
}

impl Config {
    /// What a worker is to do under this configuration, its version being `version`, with the pools as they are now.
    pub fn plan(&self, version: u64, pools: &[PlannedPool]) -> Plan {
        let listener = |(name, listener): (&String, &super::Listener)| PlannedListener {
            name: name.clone(),
            sockets: listener.bind.iter().map(Bind::id).collect(),
            pool: listener.pool.clone(),
            max_sessions: listener.max_sessions,
            survive_crash: listener.survive_crash,
            tcp: listener.tcp,
            timeouts: listener.timeouts,
        };
        Plan {
            config_version: version,
            threads: self.runtime.threads,
            max_sessions: self.runtime.max_sessions,
            on_keeper_death: self.runtime.on_keeper_death,
            log: self.runtime.log,
            log_format: self.runtime.log_format,
            drain: self.drain,
            listeners: self.listeners.iter().map(listener).collect(),
            pools: pools.to_vec(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedListener {
    pub name: String,
    /// Ids of its sockets ([`super::Bind::id`]), handed over beforehand.
    pub sockets: Vec<String>,
    pub pool: String,
    pub max_sessions: Option<u64>,
    #[serde(default)]
    pub survive_crash: bool,
    pub tcp: TcpSettings,
    pub timeouts: Timeouts,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedPool {
    pub name: String,
    /// Raised at every change of this pool.
    pub version: u64,
    pub balance: Balance,
    pub connect_timeout: Duration,
    pub connect_retries: u32,
    pub source: Option<IpAddr>,
    pub backends: Vec<PlannedBackend>,
}

impl PlannedPool {
    /// As the file has it: all backends enabled.
    pub fn from_config(name: &str, pool: &Pool, version: u64) -> Self {
        let backend = |backend: &super::Backend| PlannedBackend {
            name: backend.name.clone(),
            address: backend.address,
            weight: backend.weight,
            admin: BackendAdmin::Enabled,
        };
        Self {
            name: name.to_owned(),
            version,
            balance: pool.balance,
            connect_timeout: pool.connect_timeout,
            connect_retries: pool.connect_retries,
            source: pool.source,
            backends: pool.backends.iter().map(backend).collect(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedBackend {
    pub name: String,
    pub address: SocketAddr,
    pub weight: u32,
    pub admin: BackendAdmin,
}

/// What the operator said of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendAdmin {
    Enabled,
    /// No new sessions; those it has end by themselves.
    Draining,
    /// No new sessions; those it has were drained under `[drain]`.
    Disabled,
}
