//! `proxyctl`: from the words on the command line to the exit code.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::client::{Client, ClientError};
use crate::command::{Command, Failure, FailureKind, Filter};
use crate::render::{self, Style};

pub mod args;
mod change;
mod events;
mod find;
mod out;
pub mod wait;
pub mod words;

use args::{Args, EventsArgs, Pool, Verb};
use out::Out;
use wait::TooLate;

/// The whole of `proxyctl`: the words of the command line, the first its name.
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let style = if io::stdout().is_terminal() { Style::Terminal } else { Style::Plain };
    ExitCode::from(run(words, style, &mut io::stdout(), &mut io::stderr()))
}

/// Runs one command line; answers go to `stdout`, complaints to `stderr`. Returns the exit code.
pub fn run(
    words: impl IntoIterator<Item = OsString>,
    style: Style,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> u8 {
    let mut out = Out::new(style, stdout, stderr);
    let done = match Args::try_parse_from(words) {
        Ok(args) => carry_out(args, &mut out),
        Err(e) => unparsed(&e, &mut out),
    };
    done.unwrap_or_else(|trouble| {
        out.complain(&trouble.to_string());
        trouble.exit_code()
    })
}

/// Why a command line did not do what it says.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    /// The words themselves, before any daemon was asked.
    #[error("{0}")]
    Words(Failure),
    #[error("no proxyd answers: no admin socket at {}; is it running? `--socket` names another", .0.join(", "))]
    NoSocket(Vec<String>),
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("{error}; upgrade {id} goes on, at {step}")]
    UpgradeGoesOn { error: ClientError, id: u64, step: String },
    #[error("{0}")]
    TooLate(#[from] TooLate),
    #[error("cannot start: {0}")]
    Runtime(io::Error),
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
}

impl Trouble {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Words(failure) => failure.kind.exit_code(),
            Self::NoSocket(_) => 3,
            Self::TooLate(_) => FailureKind::TimedOut.exit_code(),
            Self::Client(error) | Self::UpgradeGoesOn { error, .. } => error.exit_code(),
            Self::Runtime(_) | Self::Output(_) => FailureKind::Failed.exit_code(),
        }
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Words(failure)
    }
}

/// Help and version are an answer; the rest is wrong usage, exit 2, in our own voice.
fn unparsed(error: &clap::Error, out: &mut Out<'_>) -> Result<u8, Trouble> {
    let text = error.render().to_string();
    if error.use_stderr() {
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        return Err(Failure::usage(text.trim_end()).into());
    }
    out.text(&text)?;
    Ok(0)
}

fn carry_out(args: Args, out: &mut Out<'_>) -> Result<u8, Trouble> {
    out.json = args.json;
    if let Verb::Completions { shell } = args.verb {
        out.refuse_json("completions are a shell script")?;
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Args::command(), "proxyctl", &mut script);
        out.text(&String::from_utf8_lossy(&script))?;
        return Ok(0);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Trouble::Runtime)?;
    if let Verb::Wait(wanted) = args.verb {
        return runtime.block_on(wait::wait(&wanted, args.socket, args.timeout, out));
    }
    let question = Question::of(args.verb)?;
    let client = Client::new(socket(args.socket, out)?).silence(args.timeout);
    runtime.block_on(question.ask(&client, out))
}

fn socket(named: Option<PathBuf>, out: &mut Out<'_>) -> Result<PathBuf, Trouble> {
    if let Some(named) = named {
        return Ok(named);
    }
    let found = find::socket(&find::places());
    match found {
        Ok(found) => {
            if let Some(note) = found.note {
                out.complain(&note);
            }
            Ok(found.path)
        }
        Err(looked) => Err(Trouble::NoSocket(looked)),
    }
}

/// What is to be asked, all words checked.
enum Question {
    Status,
    Sessions(Filter),
    PoolList,
    PoolShow(String),
    Metrics,
    Events(EventsArgs),
    Change(Command),
}

impl Question {
    fn of(verb: Verb) -> Result<Self, Failure> {
        Ok(match verb {
            Verb::Status => Self::Status,
            Verb::Sessions(which) => Self::Sessions(which.filter()),
            Verb::Pool(Pool::List) => Self::PoolList,
            Verb::Pool(Pool::Show { pool }) => Self::PoolShow(pool),
            Verb::Metrics => Self::Metrics,
            Verb::Events(args) => Self::Events(args),
            verb => {
                let command = verb.command()?;
                command.check()?;
                Self::Change(command)
            }
        })
    }

    async fn ask(self, client: &Client, out: &mut Out<'_>) -> Result<u8, Trouble> {
        match self {
            Self::Status => {
                let status = client.status().await?;
                out.show(&status, |style| render::status(&status, style))?;
            }
            Self::Sessions(filter) => {
                let rows = client.sessions(&filter).await?;
                out.rows(&rows, |style| render::sessions(&rows, style))?;
            }
            Self::PoolList => {
                let pools = client.status().await?.pools;
                out.show(&pools, |style| render::pool_list(&pools, style))?;
            }
            Self::PoolShow(name) => show_pool(client, &name, out).await?,
            Self::Metrics => {
                out.refuse_json("metrics are Prometheus text")?;
                out.text(&client.metrics().await?)?;
            }
            Self::Events(args) => events::show(client, args, out).await?,
            Self::Change(command) => return change::change(client, &command, out).await,
        }
        Ok(0)
    }
}

async fn show_pool(client: &Client, name: &str, out: &mut Out<'_>) -> Result<(), Trouble> {
    let pools = client.status().await?.pools;
    let Some(pool) = pools.iter().find(|pool| pool.name == name) else {
        let known: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
        return Err(Failure::usage(format!("no pool `{name}`; there are: {}", known.join(", "))).into());
    };
    out.show(pool, |style| render::pools(std::slice::from_ref(pool), style))?;
    Ok(())
}
