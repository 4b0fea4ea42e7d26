//! Why a session ended: the same words in log, metric and table.

use std::fmt;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$note:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$note])* $variant),* }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }

            /// Position in [`Self::ALL`], which is its cell in the ledger: new words are added at the end only.
            pub fn index(self) -> u32 {
                self as u32
            }

            pub fn at(index: u32) -> Option<Self> {
                Self::ALL.get(usize::try_from(index).ok()?).copied()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

words! {
    /// Close reasons of the operator's contract that can happen in this version.
    Reason {
        ClientClosed = "client_closed",
        BackendClosed = "backend_closed",
        ClientReset = "client_reset",
        BackendReset = "backend_reset",
        IdleTimeout = "idle_timeout",
        HalfCloseTimeout = "half_close_timeout",
        MaxLifetime = "max_lifetime",
        ConnectFailed = "connect_failed",
        ConnectTimeout = "connect_timeout",
        NoBackend = "no_backend",
        UserTimeout = "user_timeout",
        DrainForced = "drain_forced",
        ShutdownForced = "shutdown_forced",
        BackendRemoved = "backend_removed",
        AdminKilled = "admin_killed",
        WorkerCrashed = "worker_crashed",
        InternalError = "internal_error",
    }
}

words! {
    /// What forced a close.
    Cause {
        Drain = "drain",
        Shutdown = "shutdown",
        Admin = "admin",
        /// More generations than `max_generations`.
        Generations = "generations",
    }
}

words! {
    /// Why a connect to a backend failed.
    ConnectFailure {
        Refused = "refused",
        Timeout = "timeout",
        Unreachable = "unreachable",
        Reset = "reset",
        /// No local port, descriptor or memory: ours, not the backend's.
        Local = "local",
        Other = "other",
    }
}

words! {
    /// Why a listener does not accept for now.
    Paused {
        /// `max_sessions` of the listener.
        ListenerLimit = "listener_limit",
        /// `max_sessions` of `[runtime]`, or no session record free.
        SessionLimit = "session_limit",
        Descriptors = "descriptors",
    }
}

words! {
    /// Why a session of a listener with `survive_crash` would not outlive its worker.
    Unprotected {
        /// The keeper has no descriptor to spare.
        KeeperFull = "keeper_full",
        /// It has not read what it was sent before.
        KeeperStalled = "keeper_stalled",
        /// There is none.
        KeeperAway = "keeper_away",
        /// No pipe is to be had.
        NoPipe = "no_pipe",
    }
}

/// Whether a session of a listener with `survive_crash` outlives its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// The keeper holds duplicates of all that it is made of.
    Deposited,
    No(Unprotected),
}

impl Protection {
    /// In a session record, where 0 says that this is not asked of the session.
    pub fn code(self) -> u8 {
        match self {
            Self::Deposited => 1,
            Self::No(why) => u8::try_from(why.index() + 2).unwrap_or(u8::MAX),
        }
    }

    pub fn of_code(code: u8) -> Option<Self> {
        match code {
            0 => None,
            1 => Some(Self::Deposited),
            _ => Unprotected::at(u32::from(code - 2)).map(Self::No),
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Deposited => "protected",
            Self::No(why) => why.word(),
        }
    }
}

impl Reason {
    /// In a session record, where 0 says that the session has not ended.
    pub fn code(self) -> u16 {
        u16::try_from(self.index() + 1).unwrap_or(u16::MAX)
    }

    pub fn of_code(code: u16) -> Option<Self> {
        Self::at(u32::from(code).checked_sub(1)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_protection_has_a_code_of_its_own() {
        let all = Unprotected::ALL.iter().map(|why| Protection::No(*why)).chain([Protection::Deposited]);
        for protection in all {
            assert_eq!(Protection::of_code(protection.code()), Some(protection));
        }
        assert_eq!((Protection::of_code(0), Protection::of_code(99)), (None, None));
    }
}
