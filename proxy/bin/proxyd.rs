//! `proxyd`: what it is asked to do, and what it leaves with.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use proxy::keeper::{self, RunError, Start};
use proxy::{demo, worker};

/// A front TCP proxy whose sockets pass on when it is upgraded. Without arguments: the demo.
#[derive(Debug, Parser)]
#[command(name = "proxyd", version, args_conflicts_with_subcommands = true)]
struct Args {
    /// Run with this configuration, in the foreground.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// With --config: come in the place of the proxyd whose STATE_DIR/handoff.sock this is; no connection is lost.
    #[arg(long, value_name = "SOCKET", requires = "config")]
    take_over_from: Option<PathBuf>,
    /// Print version and protocol ranges as JSON, with this token.
    #[arg(long, value_name = "TOKEN", conflicts_with = "config")]
    preflight: Option<String>,
    /// With --preflight: whether this binary can go on as the keeper whose state this descriptor holds.
    #[arg(long, value_name = "FD", requires = "preflight")]
    state: Option<i32>,
    /// Go on as the keeper, from what the image before left in this descriptor.
    #[arg(long, value_name = "FD", hide = true, conflicts_with_all = ["config", "preflight", "worker"])]
    resume: Option<i32>,
    /// Serve as a worker; standard input is the keeper's channel.
    #[arg(long, hide = true, conflicts_with_all = ["config", "preflight"])]
    worker: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check a configuration file: all mistakes at once.
    Check { file: PathBuf },
}

/// Exit codes of the operator's contract (the first and the last two as in sysexits.h).
mod code {
    pub(super) const OTHER: u8 = 1;
    pub(super) const USAGE: u8 = 64;
    pub(super) const SYSTEM: u8 = 71;
    pub(super) const CONFIG: u8 = 78;
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(code::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let done = match args {
        Args { verb: Some(Verb::Check { file }), .. } => return check(&file),
        Args { preflight: Some(token), state, .. } => {
            keeper::answer_preflight(&token, state, io::stdout().lock()).map_err(|error| Failed::other(&error))
        }
        Args { resume: Some(state), .. } => keeper::resume(state).map_err(|error| Failed::of(&error)),
        Args { worker: true, .. } => worker::run().map_err(|error| Failed::other(&error)),
        Args { config: Some(file), take_over_from, .. } => serve(&file, true, take_over_from, None),
        _ => run_demo(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed { message, code }) => {
            let _ = writeln!(io::stderr(), "proxyd: {message}");
            ExitCode::from(code)
        }
    }
}

struct Failed {
    message: String,
    code: u8,
}

impl Failed {
    fn of(error: &RunError) -> Self {
        let code = match error {
            RunError::First(_) | RunError::Metrics(_) => code::OTHER,
            _ => code::SYSTEM,
        };
        Self { message: error.to_string(), code }
    }

    fn other(error: &dyn std::fmt::Display) -> Self {
        Self { message: error.to_string(), code: code::OTHER }
    }
}

/// Exit 0 or 1, as scripts expect of a check.
fn check(file: &Path) -> ExitCode {
    match keeper::load(file) {
        Ok(loaded) => {
            for warning in loaded.warnings {
                let _ = writeln!(io::stderr(), "{warning}");
            }
            let _ = writeln!(io::stdout(), "{}: ok", file.display());
            ExitCode::SUCCESS
        }
        Err(mistakes) => {
            let _ = writeln!(io::stderr(), "{mistakes}");
            ExitCode::FAILURE
        }
    }
}

fn run_demo() -> Result<(), Failed> {
    let demo = demo::start().map_err(|error| Failed { message: format!("demo: {error}"), code: code::SYSTEM })?;
    // Its backends are threads of this process: no other image can take its place.
    serve(&demo.config, false, None, Some(demo.greeting))
}

fn serve(
    file: &Path,
    replaceable: bool,
    take_over_from: Option<PathBuf>,
    greeting: Option<String>,
) -> Result<(), Failed> {
    let system = |error: &dyn std::fmt::Display| Failed { message: error.to_string(), code: code::SYSTEM };
    // Before the configuration: its limits depend on it.
    keeper::raise_descriptor_limit();
    let inherited = keeper::inherited_sockets().map_err(|error| system(&error))?;
    let binary = keeper::started_from().map_err(|error| system(&error))?;
    let file = std::path::absolute(file).map_err(|error| system(&error))?;
    let loaded = keeper::load(&file).map_err(|mistakes| Failed { message: mistakes, code: code::CONFIG })?;
    let take_over_from = take_over_from.map(std::path::absolute).transpose().map_err(|error| system(&error))?;
    keeper::run(Start { loaded, binary, take_over_from, inherited, replaceable, greeting })
        .map_err(|error| Failed::of(&error))
}
