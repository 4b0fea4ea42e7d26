//! What an upgrade or a reload would put in force: a configuration read from its file, and for an upgrade a binary that has
//! passed its preflight.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout_at};

use super::pinned::{PinError, Pinned, hex};
use super::preflight::{self, PreflightError};
use super::reaper::Reaper;
use crate::config::{self, Config};

/// A configuration and where it came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub path: PathBuf,
    pub sha256: String,
    pub config: Config,
    pub warnings: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Next {
    pub pinned: Rc<Pinned>,
    pub version: String,
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
    let warnings = parsed.warnings.iter().map(ToString::to_string).collect();
    Ok(Loaded { path: path.into(), sha256: hex(&Sha256::digest(&text)), config: parsed.config, warnings })
}

/// The preflight of an upgrade. Changes nothing.
pub(super) async fn preflight(
    binary: PathBuf,
    config: PathBuf,
    reaper: Reaper,
    deadline: Instant,
) -> Result<Next, NotNext> {
    // Copying tens of megabytes takes as long as a message round trip; the owner loop goes on meanwhile.
    let path = binary.display().to_string();
    let copied = timeout_at(deadline, tokio::task::spawn_blocking(move || Pinned::of(&binary))).await;
    let copied = copied.map_err(|_| NotNext::Config(format!("{path} could not be read within ready_timeout")))?;
    let pinned = Rc::new(copied.map_err(|error| NotNext::Config(error.to_string()))??);
    let passport = preflight::run(&pinned, &config, &reaper, deadline).await?;
    let loaded = load(&config).map_err(NotNext::Config)?;
    Ok(Next { pinned, version: passport.version, loaded })
}
