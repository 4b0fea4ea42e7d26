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

impl Reason {
    /// In a session record, where 0 says that the session has not ended.
    pub fn code(self) -> u16 {
        u16::try_from(self.index() + 1).unwrap_or(u16::MAX)
    }

    pub fn of_code(code: u16) -> Option<Self> {
        Self::at(u32::from(code).checked_sub(1)?)
    }
}
