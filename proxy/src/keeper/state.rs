//! The keeper's state as plain data: what must outlive its process. The same record crosses an `execve` and lies with the
//! workers for the next keeper; descriptors are no part of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;

use admin::command::UpgradeReport;
use handoff::message::Range;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::drains::DrainInForce;
use super::generation::{Deadline, Generation, State};
use super::next::Loaded;
use super::owner::Keeper;
use super::pinned::Pinned;
use super::pools::Pools;
use super::sockets::SocketFile;
use crate::config::Drain;
use crate::observe::scene::now_ms;

/// Versions of [`KeeperState`] that this binary reads; it writes the highest.
pub(super) const KEEPER_STATE: Range = Range { min: 1, max: 1 };

/// Times are milliseconds of `CLOCK_MONOTONIC`, which all processes of a machine share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct KeeperState {
    pub version: u32,
    /// Raised at every change: of two records the higher one is newer.
    pub serial: u64,
    pub started_ms: u64,
    pub config: ConfigState,
    pub pools: Pools,
    /// Of the listening Unix sockets that we bound, by id.
    pub socket_files: BTreeMap<String, SocketFile>,
    pub last_generation: u32,
    pub last_upgrade: u64,
    pub serving: Option<u32>,
    pub generations: Vec<GenerationState>,
    /// Binaries that are pinned; the others name them by their place here.
    pub binaries: Vec<BinaryState>,
    /// What a crashed worker is restarted from.
    pub pinned: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<PreviousState>,
    /// The generation on probation. All else is as a rollback would put it in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_trial: Option<TrialState>,
    /// Generations that died before they were enlisted.
    pub stillborn: Vec<u32>,
    /// Starts that failed in a row.
    pub failures: u32,
    pub reports: Vec<UpgradeReport>,
    pub last_event: u64,
    /// Drains of listeners and backends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drains: Vec<DrainInForce>,
}

/// With its text: it is never read again from a file that may say something else by now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ConfigState {
    pub path: PathBuf,
    pub text: std::sync::Arc<str>,
    pub version: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct GenerationState {
    pub id: u32,
    pub pid: u32,
    pub state: State,
    pub version: String,
    pub build: String,
    /// Of its binary.
    pub sha256: String,
    pub since_ms: u64,
    /// When what is left of it is closed by force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained_ms: Option<u64>,
    /// Its sessions were told to stay where they are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stays: bool,
    /// So many of its sessions were told of as left when others went.
    #[serde(default, skip_serializing_if = "is_none")]
    pub left: u64,
    /// How it drains once its sessions have gone, if it was not told to yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parting: Option<Drain>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BinaryState {
    pub path: PathBuf,
    pub sha256: String,
    pub version: String,
    pub build: String,
}

/// What a rollback goes back to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct PreviousState {
    /// Its place among the binaries.
    pub binary: usize,
    pub config: ConfigState,
}

/// A generation on probation, and what it serves by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct TrialState {
    pub generation: u32,
    /// Its place among the binaries.
    pub binary: usize,
    pub config: ConfigState,
    pub pools: Pools,
}

/// Why bytes are not a state that this binary can go on with.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("a keeper state of version {found}; this binary reads {KEEPER_STATE}")]
    Version { found: u32 },
    #[error("not a keeper state: {0}")]
    Syntax(#[from] serde_json::Error),
    #[error("the keeper state contradicts itself: {0}")]
    Contradiction(String),
    #[error("the configuration in the keeper state is not accepted:\n{0}")]
    Config(String),
}

/// What is read before anything else.
#[derive(Deserialize)]
struct Envelope {
    version: u32,
}

/// Far above what `max_generations` lets live at a time.
const GENERATIONS: usize = 4096;

impl KeeperState {
    /// Whether it says the same as one that was written a moment ago; times are only as exact as the clock was read.
    pub(super) fn is_as(&self, told: &Self) -> bool {
        let mut same = self.clone();
        same.serial = told.serial;
        close(&mut same.started_ms, told.started_ms);
        for (ours, theirs) in same.generations.iter_mut().zip(&told.generations) {
            close(&mut ours.since_ms, theirs.since_ms);
            if let (Some(ours), Some(theirs)) = (&mut ours.drained_ms, theirs.drained_ms) {
                close(ours, theirs);
            }
        }
        same == *told
    }

    /// Reads and checks a state, and the configuration in it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, StateError> {
        let Envelope { version } = serde_json::from_slice(bytes)?;
        if !(KEEPER_STATE.min..=KEEPER_STATE.max).contains(&version) {
            return Err(StateError::Version { found: version });
        }
        let state: Self = serde_json::from_slice(bytes)?;
        state.check().map_err(StateError::Contradiction)?;
        state.config()?;
        Ok(state)
    }

    /// The configuration in force.
    pub(super) fn config(&self) -> Result<Loaded, StateError> {
        self.config.loaded()
    }

    fn check(&self) -> Result<(), String> {
        let ids: BTreeSet<u32> = self.generations.iter().map(|generation| generation.id).collect();
        if ids.len() != self.generations.len() || ids.len() > GENERATIONS {
            return Err(format!("{} generations, {} of them different", self.generations.len(), ids.len()));
        }
        if let Some(id) = ids.iter().chain(&self.serving).find(|id| !(1..=self.last_generation).contains(*id)) {
            return Err(format!("generation {id}, and the last one is {}", self.last_generation));
        }
        let mut binaries = [self.pinned]
            .into_iter()
            .chain(self.previous.iter().map(|previous| previous.binary))
            .chain(self.on_trial.iter().map(|trial| trial.binary));
        match binaries.find(|binary| *binary >= self.binaries.len()) {
            Some(binary) => Err(format!("binary {binary} of {}", self.binaries.len())),
            None => Ok(()),
        }
    }
}

impl ConfigState {
    pub(super) fn loaded(&self) -> Result<Loaded, StateError> {
        Loaded::of_text(&self.path, self.text.as_bytes()).map_err(StateError::Config)
    }
}

impl Keeper {
    /// All of it that can be written down, and the pinned binaries in the order of the record. In a probation: what a rollback
    /// puts in force.
    pub(super) fn state(&self) -> (KeeperState, Vec<Rc<Pinned>>) {
        let mut binaries = Vec::new();
        let standby = self.trial().and_then(|trial| Some((&trial.before, trial.standby?)));
        let on_trial = standby.zip(self.serving).map(|(_, generation)| TrialState {
            generation,
            binary: place(&mut binaries, &self.pinned),
            config: config_state(&self.loaded, self.config_version),
            pools: self.pools.clone(),
        });
        let (pinned, loaded, pools, serving) = match standby {
            Some((before, standby)) => (&before.pinned, &before.loaded, &before.pools, Some(standby)),
            None => (&self.pinned, &self.loaded, &self.pools, self.serving),
        };
        let previous = self.previous.as_ref().map(|previous| PreviousState {
            binary: place(&mut binaries, &previous.pinned),
            config: config_state(&previous.loaded, 0),
        });
        let state = KeeperState {
            version: KEEPER_STATE.max,
            serial: self.serial,
            started_ms: ms_of(self.started.into()),
            config: config_state(loaded, self.config_version),
            pools: pools.clone(),
            socket_files: self.sockets.files(),
            last_generation: self.last_generation,
            last_upgrade: self.last_upgrade,
            serving,
            generations: self.generations.values().map(Generation::state).collect(),
            pinned: place(&mut binaries, pinned),
            binaries: binaries.iter().map(|pinned| pinned.state()).collect(),
            previous,
            on_trial,
            stillborn: self.stillborn.clone(),
            failures: self.backoff.failures(),
            reports: self.reports.all().cloned().collect(),
            last_event: self.happenings.last(),
            drains: self.drains.clone(),
        };
        (state, binaries)
    }
}

impl Generation {
    fn state(&self) -> GenerationState {
        GenerationState {
            id: self.id,
            pid: self.process.pid,
            state: self.state,
            version: self.version.clone(),
            build: self.build.clone(),
            sha256: self.sha256.clone(),
            since_ms: ms_of(self.since),
            drained_ms: self.deadline.map(|deadline| ms_of(deadline.drained)),
            stays: self.stays,
            left: self.left,
            parting: self.parting.map(|parting| parting.drain),
        }
    }
}

impl GenerationState {
    pub(super) fn deadline(&self) -> Option<Deadline> {
        self.drained_ms.map(|ms| Deadline { drained: instant_of(ms) })
    }
}

impl BinaryState {
    pub(super) fn pinned(&self, image: std::os::fd::OwnedFd) -> Pinned {
        let Self { path, sha256, version, build } = self.clone();
        Pinned::again(image, path, sha256, version, build)
    }
}

impl Pinned {
    fn state(&self) -> BinaryState {
        let Self { path, sha256, version, build, .. } = self;
        BinaryState { path: path.clone(), sha256: sha256.clone(), version: version.clone(), build: build.clone() }
    }
}

fn config_state(loaded: &Loaded, version: u64) -> ConfigState {
    ConfigState { path: loaded.path.clone(), text: loaded.text.clone(), version }
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

fn close(ms: &mut u64, told: u64) {
    if ms.abs_diff(told) <= READING {
        *ms = told;
    }
}

/// Between two readings of the clock for one conversion, in milliseconds; a descheduled process only tells once too often.
const READING: u64 = 10;

fn place(pinned: &mut Vec<Rc<Pinned>>, one: &Rc<Pinned>) -> usize {
    pinned.iter().position(|known| known.sha256 == one.sha256 && known.path == one.path).unwrap_or_else(|| {
        pinned.push(one.clone());
        pinned.len() - 1
    })
}

/// A moment of this process as one that others understand.
pub(super) fn ms_of(at: Instant) -> u64 {
    let (now, whole) =
        (Instant::now(), |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    match at.checked_duration_since(now) {
        Some(ahead) => now_ms().saturating_add(whole(ahead)),
        None => now_ms().saturating_sub(whole(now.duration_since(at))),
    }
}

/// The inverse of [`ms_of`]. What cannot be had is now: a time before this machine's, or beyond all times.
pub(super) fn instant_of(ms: u64) -> Instant {
    let (now, now_ms) = (Instant::now(), now_ms());
    let at = match ms.checked_sub(now_ms) {
        Some(ahead) => now.checked_add(std::time::Duration::from_millis(ahead)),
        None => now.checked_sub(std::time::Duration::from_millis(now_ms - ms)),
    };
    at.unwrap_or(now)
}

#[cfg(test)]
mod tests;
