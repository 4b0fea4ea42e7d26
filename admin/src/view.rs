//! What can be seen of a running keeper: read-only documents, stable for scripts.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// `GET /v1/status`, `proxyctl status --json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub keeper: KeeperView,
    pub generations: Vec<GenerationView>,
    pub listeners: Vec<ListenerView>,
    pub pools: Vec<PoolView>,
    pub config: ConfigView,
    /// The operation that holds the upgrade lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<UpgradeView>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct KeeperView {
    pub pid: u32,
    pub uptime_seconds: f64,
    /// starting, serving, draining, shutting-down
    pub state: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GenerationView {
    pub id: u32,
    pub pid: u32,
    pub version: String,
    /// Identifies the exact build.
    #[serde(default)]
    pub build: String,
    /// Of the pinned binary.
    #[serde(default)]
    pub sha256: String,
    /// starting serving standby draining gone failed
    pub state: String,
    pub sessions: u64,
    pub oldest_session_seconds: f64,
    /// A worker that serves but has sent no heartbeat for so long: it may hang.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_seconds: Option<f64>,
    /// Until what is left is closed by force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_seconds_left: Option<f64>,
    /// Its sessions go to this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving_to: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ListenerView {
    pub name: String,
    pub bind: Vec<String>,
    pub pool: String,
    pub sessions: u64,
    /// True while a limit keeps it from accepting; connections wait in the backlog.
    pub paused: bool,
    /// With `survive_crash`: sessions that would not outlive their worker for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unprotected: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolView {
    pub name: String,
    pub version: u64,
    pub backends: Vec<BackendView>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BackendView {
    pub name: String,
    pub address: String,
    pub weight: u32,
    /// "unknown" without a health check.
    pub health: String,
    /// enabled draining disabled
    pub admin: String,
    pub sessions: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ConfigView {
    pub path: String,
    pub version: u64,
    pub sha256: String,
    /// The file said something else when the keeper started: a reload or an upgrade would put that in force.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct UpgradeView {
    pub id: u64,
    pub step: String,
    /// How long it has been at this step.
    #[serde(default)]
    pub step_seconds: f64,
    pub from: u32,
    pub to: u32,
}

/// One step, fault or decision. `GET /v1/events`, one object a line.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EventView {
    /// Counts up from 1 for the life of the service; a gap means events that were too many to keep.
    pub seq: u64,
    /// Seconds since 1970.
    pub time: f64,
    /// Its word: `upgrade_step`, `upgrade_committed`, `upgrade_failed`, `rolled_back`, `worker_lost` ...
    pub event: String,
    /// For a person: one line.
    pub text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<u64>,
    /// The generation it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// More, by name.
    #[serde(default, flatten)]
    pub fields: serde_json::Map<String, serde_json::Value>,
}

/// One live session. `GET /v1/sessions`, one object a line.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SessionRow {
    pub id: u64,
    pub generation: u32,
    pub listener: String,
    pub pool: String,
    pub backend: String,
    /// `ip:port`, or `unix`.
    pub client: String,
    pub backend_address: String,
    /// connecting, established, closing
    pub state: String,
    pub age_seconds: f64,
    pub idle_seconds: f64,
    /// From the client.
    pub bytes_received: u64,
    /// To the client.
    pub bytes_sent: u64,
    /// On a listener with `survive_crash`: `protected`, or why it would not outlive its worker: keeper_full keeper_stalled
    /// keeper_away no_pipe
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protection: Option<String>,
}

impl SessionRow {
    pub fn client_ip(&self) -> Option<IpAddr> {
        self.client.parse::<SocketAddr>().ok().map(|address| address.ip())
    }
}
