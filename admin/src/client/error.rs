//! Why a client has no result.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::command::{Failure, FailureKind};

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no proxyd answers at {} ({why})", path.display())]
    NoDaemon { path: PathBuf, why: Absence },
    /// The keeper answered: no.
    #[error("{0}")]
    Refused(Failure),
    #[error("no word from proxyd at {} for {after:?}; what it has begun goes on, see `proxyctl status`", path.display())]
    Silent { path: PathBuf, after: Duration },
    #[error("lost proxyd at {} before the result ({how}); what it had begun may go on, see `proxyctl status`", path.display())]
    Lost { path: PathBuf, how: String },
    /// It said that it replaces itself, and no new one answers.
    #[error(
        "proxyd at {} was to replace itself after upgrade {upgrade}, and has not answered for {after:?} ({how}); the \
         workers serve on, ask again with `proxyctl upgrade --last`", path.display()
    )]
    NotBack { path: PathBuf, upgrade: u64, after: Duration, how: String },
    #[error("proxyd at {} gave an answer this version cannot read: {what}", path.display())]
    Nonsense { path: PathBuf, what: String },
}

/// In what way no daemon is there.
#[derive(Debug, thiserror::Error)]
pub enum Absence {
    #[error("no such socket")]
    Missing,
    #[error("stale socket")]
    Stale,
    #[error("not a socket")]
    NotASocket,
    #[error("what listens there is not a proxyd")]
    NotProxyd,
    /// The request was never sent, so nothing has begun.
    #[error("what listens there spoke or closed before it was asked; it is not a proxyd, or is just ending")]
    Hasty,
    #[error("permission denied; it serves its own user and root")]
    Permission,
    #[error("it belongs to uid {uid}, neither you nor root, and is not trusted")]
    Foreign { uid: u32 },
    #[error("{0}")]
    System(io::Error),
}

impl ClientError {
    /// Whether a keeper that restarts, or replaces itself, looks like this from here.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::NoDaemon { why, .. } => matches!(why, Absence::Missing | Absence::Stale | Absence::Hasty),
            Self::Lost { .. } | Self::Silent { .. } => true,
            Self::Refused(_) | Self::NotBack { .. } | Self::Nonsense { .. } => false,
        }
    }

    /// Exit code of `proxyctl`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoDaemon { why: Absence::Permission, .. } => FailureKind::Denied.exit_code(),
            Self::NoDaemon { .. } | Self::Lost { .. } => 3,
            Self::Refused(failure) => failure.kind.exit_code(),
            Self::Silent { .. } | Self::NotBack { .. } => FailureKind::TimedOut.exit_code(),
            Self::Nonsense { .. } => FailureKind::Failed.exit_code(),
        }
    }
}
