//! The command line: verbs, options, their help, and the [`Command`] each becomes.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

use super::{wait, words};
use crate::codec;
use crate::command::{self, BackendChange, Command, Failure, Filter, Kill, NewBackend, Rollback, Upgrade};

/// Ask and change a running proxyd. No command costs a client its connection, unless it says so.
#[derive(Debug, Parser)]
#[command(name = "proxyctl", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Args {
    /// Admin socket of the proxyd meant [default: the first there of $XDG_RUNTIME_DIR/proxyd, /run/proxyd, the demo's]
    #[arg(long, global = true, env = "PROXYCTL_SOCKET", value_name = "PATH", hide_env_values = true)]
    pub socket: Option<PathBuf>,
    /// Answer with one JSON document; `sessions` and `events`: with one object a line
    #[arg(long, global = true)]
    pub json: bool,
    /// Longest silence between two steps (a probation is none); then exit 5, and what was begun goes on. For `wait`: in all
    #[arg(long, global = true, value_name = "DURATION", default_value = "60s", value_parser = words::patience)]
    pub timeout: Duration,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Keeper, generations, listeners, pools and configuration as they are now
    Status,
    /// Start a new generation; it takes over the listening sockets, then the sessions of the old one
    Upgrade(UpgradeArgs),
    /// Back to the generation before: its binary and its configuration together
    Rollback(RollbackArgs),
    /// Read the configuration file again and put what changed into force
    Reload,
    /// List live sessions of all generations
    Sessions(Which),
    /// Close sessions by force: their clients see a reset
    Kill(KillArgs),
    /// See and change pools
    #[command(subcommand)]
    Pool(Pool),
    /// Change one backend of a pool
    #[command(subcommand)]
    Backend(Backend),
    /// Stop accepting, drain, close what is left, end
    Shutdown,
    /// Wait until something is so, or exit 5 after --timeout
    #[command(subcommand)]
    Wait(wait::Wanted),
    /// Print what happened: every step, fault and decision
    Events(EventsArgs),
    /// Print the metrics as Prometheus would scrape them
    Metrics,
    /// Print a completion script for a shell
    Completions { shell: Shell },
}

#[derive(Debug, clap::Args)]
pub struct UpgradeArgs {
    /// New binary [default: the path of the last committed upgrade, at first that of the start]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// New configuration file [default: the one in use, read again]
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Only check, and print which listeners would be kept, added, removed
    #[arg(long, conflicts_with = "no_wait")]
    dry_run: bool,
    /// Return once the upgrade has begun, with its id
    #[arg(long)]
    no_wait: bool,
    /// What happens to sessions of the old generation [default: as configured]
    #[arg(long, value_enum, value_name = "HOW")]
    sessions: Option<Sessions>,
    /// How long the old generation stands by to take over again [default: as configured]
    #[arg(long, value_name = "DURATION", value_parser = words::duration)]
    probation: Option<Duration>,
    /// Only print the report of the last upgrade or rollback; its exit code is that one's
    #[arg(long, conflicts_with_all = ["binary", "config", "dry_run", "no_wait", "sessions", "probation"])]
    last: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Sessions {
    /// Go on in the new generation; what cannot move drains
    Move,
    /// Stay with the old one, and drain
    Drain,
}

impl From<Sessions> for command::Sessions {
    fn from(sessions: Sessions) -> Self {
        match sessions {
            Sessions::Move => Self::Move,
            Sessions::Drain => Self::Drain,
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct RollbackArgs {
    /// How long the generation that served stands by [default: as configured]
    #[arg(long, value_name = "DURATION", value_parser = words::duration)]
    probation: Option<Duration>,
    /// Return once the rollback has begun, with its id
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Clone, Copy, clap::Args)]
pub struct EventsArgs {
    /// Go on with what happens from now on; survives a restart of proxyd for up to --timeout
    #[arg(long)]
    pub follow: bool,
    /// Only what came after this event
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    pub since: u64,
}

/// Which sessions. All that is given must match.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// Accepted by this listener
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// Of this pool
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// With this backend
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// From this address or network
    #[arg(long, value_name = "CIDR", value_parser = |text: &str| codec::network(text).map_err(|f| f.message))]
    client: Option<ipnet::IpNet>,
    /// Without a byte for at least so long
    #[arg(long, value_name = "DURATION", value_parser = words::duration)]
    idle: Option<Duration>,
    /// Open for at least so long
    #[arg(long, value_name = "DURATION", value_parser = words::duration)]
    older: Option<Duration>,
    /// Held by this generation
    #[arg(long, value_name = "ID")]
    generation: Option<u32>,
    /// With these ids; may be repeated
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    id: Vec<u64>,
}

impl Which {
    pub fn filter(self) -> Filter {
        Filter {
            id: self.id,
            listener: self.listener,
            pool: self.pool,
            backend: self.backend,
            client: self.client,
            idle: self.idle.map(|idle| idle.as_secs_f64()),
            older: self.older.map(|older| older.as_secs_f64()),
            generation: self.generation,
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct KillArgs {
    #[command(flatten)]
    which: Which,
    /// Every session there is; needed when nothing else says which
    #[arg(long)]
    all: bool,
    /// Only list what would be closed
    #[arg(long)]
    dry_run: bool,
    /// Close so many a second [default: all at once]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub enum Pool {
    /// One line a pool
    List,
    /// The backends of one pool
    Show { pool: String },
    /// Point a listener at another pool, at once: a session belongs wholly to the old or the new one
    Swap {
        listener: String,
        pool: String,
        #[command(flatten)]
        expect: Expect,
    },
    /// Add a backend
    Add {
        pool: String,
        #[arg(value_name = BACKEND, value_parser = words::backend)]
        backend: NewBackend,
        #[command(flatten)]
        expect: Expect,
    },
    /// Take a backend out; its sessions drain
    Remove {
        pool: String,
        backend: String,
        #[command(flatten)]
        expect: Expect,
    },
    /// Replace all backends of a pool at once
    Set {
        pool: String,
        #[arg(value_name = BACKEND, required = true, value_parser = words::backend)]
        backends: Vec<NewBackend>,
        /// Make the pool if it is not there
        #[arg(long)]
        create: bool,
        #[command(flatten)]
        expect: Expect,
    },
}

#[derive(Debug, Subcommand)]
pub enum Backend {
    /// New sessions again
    Enable(OneBackend),
    /// No new sessions; those it has end by themselves
    Drain(OneBackend),
    /// No new sessions; those it has drain, then are closed by force
    Disable(OneBackend),
    /// Its share of new sessions
    Weight {
        #[command(flatten)]
        which: OneBackend,
        /// 1 to 256
        #[arg(value_parser = clap::value_parser!(u32).range(1..=256))]
        weight: u32,
    },
}

/// One backend.
#[derive(Debug, clap::Args)]
pub struct OneBackend {
    pool: String,
    backend: String,
    #[command(flatten)]
    expect: Expect,
}

#[derive(Debug, clap::Args)]
pub struct Expect {
    /// Refuse (exit 4) unless this version of the pool is in force, see `pool list`
    #[arg(long, value_name = "N")]
    if_version: Option<u64>,
}

impl Verb {
    /// The command of a verb that changes something.
    pub fn command(self) -> Result<Command, Failure> {
        match self {
            Self::Upgrade(args) => args.command(),
            Self::Rollback(args) => Ok(args.command()),
            Self::Reload => Ok(Command::Reload),
            Self::Kill(args) => args.command(),
            Self::Pool(pool) => pool.command(),
            Self::Backend(backend) => Ok(backend.command()),
            Self::Shutdown => Ok(Command::Shutdown),
            Self::Status
            | Self::Sessions(_)
            | Self::Wait(_)
            | Self::Events(_)
            | Self::Metrics
            | Self::Completions { .. } => Err(changes_nothing()),
        }
    }
}

impl UpgradeArgs {
    fn command(self) -> Result<Command, Failure> {
        if self.last {
            return Ok(Command::Report { id: None });
        }
        let absolute = |path: Option<PathBuf>| path.as_deref().map(words::absolute).transpose().map_err(Failure::usage);
        Ok(Command::Upgrade(Upgrade {
            binary: absolute(self.binary)?,
            config: absolute(self.config)?,
            dry_run: self.dry_run,
            no_wait: self.no_wait,
            probation: self.probation.map(|probation| probation.as_secs_f64()),
            sessions: self.sessions.map(Into::into),
        }))
    }
}

impl RollbackArgs {
    fn command(self) -> Command {
        let probation = self.probation.map(|probation| probation.as_secs_f64());
        Command::Rollback(Rollback { no_wait: self.no_wait, probation })
    }
}

impl KillArgs {
    fn command(self) -> Result<Command, Failure> {
        let filter = self.which.filter();
        match (filter.is_empty(), self.all) {
            (true, false) => {
                Err(Failure::usage("kill: which sessions? give a filter, see `kill --help`, or say --all"))
            }
            (false, true) => Err(Failure::usage("kill: --all and a filter contradict each other")),
            _ => Ok(Command::Kill(Kill { filter, dry_run: self.dry_run, rate: self.rate })),
        }
    }
}

impl Pool {
    fn command(self) -> Result<Command, Failure> {
        Ok(match self {
            Self::List | Self::Show { .. } => return Err(changes_nothing()),
            Self::Swap { listener, pool, expect } => {
                Command::PoolSwap { listener, pool, if_version: expect.if_version }
            }
            Self::Add { pool, backend, expect } => Command::PoolAdd { pool, backend, if_version: expect.if_version },
            Self::Remove { pool, backend, expect } => {
                Command::PoolRemove { pool, backend, if_version: expect.if_version }
            }
            Self::Set { pool, backends, create, expect } => {
                Command::PoolSet { pool, backends, create, if_version: expect.if_version }
            }
        })
    }
}

impl Backend {
    fn command(self) -> Command {
        let (which, change) = match self {
            Self::Enable(which) => (which, BackendChange::Enable),
            Self::Drain(which) => (which, BackendChange::Drain),
            Self::Disable(which) => (which, BackendChange::Disable),
            Self::Weight { which, weight } => (which, BackendChange::Weight(weight)),
        };
        let OneBackend { pool, backend, expect } = which;
        Command::Backend { pool, backend, change, if_version: expect.if_version }
    }
}

fn changes_nothing() -> Failure {
    Failure::usage("this verb changes nothing")
}

const BACKEND: &str = "[NAME=]IP:PORT[*WEIGHT]";

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed and nothing changed, 2 usage, 3 no proxyd answers, \
                          4 busy or conflict, 5 timed out, 6 rolled back, 7 denied";

#[cfg(test)]
mod tests;
