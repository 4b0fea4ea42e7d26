//! What an upgrade or a reload would put in force: a configuration read from its file, and for an upgrade a binary that has
//! passed its preflight.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout_at};

use super::pinned::{PinError, Pinned, hex};
use super::preflight::{self, PreflightError};
use super::reaper::Reaper;
use crate::config::{self, Config, Parsed};

/// A configuration and where it came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub path: PathBuf,
    /// As it was read: kept, so that what is in force can be told to another process.
    pub text: Arc<str>,
    pub sha256: String,
    pub config: Config,
    pub warnings: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Next {
    pub pinned: Rc<Pinned>,
    pub loaded: Loaded,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum NotNext {
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    #[error("{0}")]
    Config(String),
}

/// Reads and checks a configuration file.
///
/// # Errors
/// All mistakes of the file, ready to be shown.
pub fn load(path: &Path) -> Result<Loaded, String> {
    let (text, parsed) = config::load(path).map_err(|mistakes| mistakes.to_string())?;
    Ok(Loaded::new(path, &text, parsed))
}

impl Loaded {
    /// Checks a text that was read earlier; `path` is where.
    ///
    /// # Errors
    /// As [`load`].
    pub(super) fn of_text(path: &Path, text: &[u8]) -> Result<Self, String> {
        let parsed = config::parse(path, text).map_err(|mistakes| mistakes.to_string())?;
        Ok(Self::new(path, text, parsed))
    }

    fn new(path: &Path, text: &[u8], parsed: Parsed) -> Self {
        let warnings = parsed.warnings.iter().map(ToString::to_string).collect();
        let sha256 = hex(&Sha256::digest(text));
        // What was accepted is UTF-8.
        let text = String::from_utf8_lossy(text).into();
        Self { path: path.into(), text, sha256, config: parsed.config, warnings }
    }
}

/// The preflight of an upgrade. Changes nothing. Of a binary that is among `known`, no second copy is kept.
pub(super) async fn preflight(
    binary: PathBuf,
    config: PathBuf,
    known: Vec<Rc<Pinned>>,
    reaper: Reaper,
    deadline: Instant,
) -> Result<Next, NotNext> {
    let pinned = pin(&binary, Pinned::of, deadline).await?.sharing(&known);
    let (pinned, passport) = match preflight::passport(&pinned, &reaper, deadline).await {
        Err(error) if pinned.is_copy() && error.is_forbidden() => {
            let held = pin(&binary, Pinned::in_place, deadline).await?;
            let passport = preflight::passport(&held, &reaper, deadline).await?;
            (held, passport)
        }
        answered => (pinned, answered?),
    };
    preflight::check(&pinned, &config, &reaper, deadline).await?;
    let loaded = load(&config).map_err(NotNext::Config)?;
    Ok(Next { pinned: Rc::new(pinned.known_as(passport.version, passport.build)), loaded })
}

/// The preflight of a rollback: the binary must still run. Its configuration is the one it accepted when it served.
pub(super) async fn preflight_pinned(
    pinned: Rc<Pinned>,
    loaded: Loaded,
    reaper: Reaper,
    deadline: Instant,
) -> Result<Next, NotNext> {
    preflight::passport(&pinned, &reaper, deadline).await?;
    Ok(Next { pinned, loaded })
}

/// Reading tens of megabytes takes as long as a message round trip; the owner loop goes on meanwhile.
async fn pin(binary: &Path, how: fn(&Path) -> Result<Pinned, PinError>, deadline: Instant) -> Result<Pinned, NotNext> {
    let path = binary.to_owned();
    let pinned = timeout_at(deadline, tokio::task::spawn_blocking(move || how(&path))).await;
    let late = || NotNext::Config(format!("{} could not be read within ready_timeout", binary.display()));
    let pinned = pinned.map_err(|_| late())?;
    Ok(pinned.map_err(|error| NotNext::Config(error.to_string()))??)
}
