//! Instructions and system calls of a request and of a session. One process opens its sessions and ends, another does the
//! work beside that: what else they do cancels out.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::cachegrind::{self, cachegrind};
use crate::harness::child::wait_exit;
use crate::harness::server::Server;
use crate::plane;
use crate::shape::{Shape, Site, Work};

/// Of each kind of work; sessions are dearer.
const REQUESTS: usize = 2_000;
const SESSIONS: usize = 1_000;
/// Of the end of a process; under valgrind it closes thousands of sessions slowly.
const END: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Instructions,
    Calls,
}

/// Of one request, of one session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) request: f64,
    pub(crate) session: f64,
}

/// The programs that count.
#[derive(Debug)]
pub(crate) struct Counters {
    pub(crate) valgrind: PathBuf,
    pub(crate) strace: PathBuf,
}

impl Counters {
    pub(crate) fn cost(&self, what: What, shape: Shape, backend: &Server) -> Cost {
        let count = |requests, sessions| self.count(what, shape, Work { requests, sessions }, backend);
        let [none, requests, sessions] = [count(0, 0), count(REQUESTS, 0), count(0, SESSIONS)];
        let each = |with: u64, times: usize| with.saturating_sub(none) as f64 / times as f64;
        let cost = Cost { request: each(requests, REQUESTS), session: each(sessions, SESSIONS) };
        eprintln!("{what:?} {shape:?}: {cost:?}");
        cost
    }

    /// Of a whole process.
    fn count(&self, what: What, shape: Shape, work: Work, backend: &Server) -> u64 {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let site = Site::new(shape, backend, directory.path());
        let out = directory.path().join("counted");
        let mut command = self.command(what, &out);
        command.arg(env::current_exe().expect("this program has a path")).arg(plane::WORD).arg(site.config());
        let errors = fs::File::create(directory.path().join("stderr")).expect("our own directory takes files");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors).spawn().expect("it starts");
        let said = child.stdout.take().expect("it was asked for");
        let ready = BufReader::new(said).lines().next().and_then(Result::ok);
        let stderr = || fs::read_to_string(directory.path().join("stderr")).unwrap_or_default();
        assert_eq!(ready.as_deref(), Some(plane::READY), "{}", stderr());
        let sessions = site.load(work).unwrap_or_else(|error| panic!("{error}: {}", stderr()));
        drop(child.stdin.take());
        let status = wait_exit(&mut child, "the plane", END);
        assert!(status.success(), "{status}: {}", stderr());
        drop(sessions);
        match what {
            What::Instructions => cachegrind::counted(&out),
            What::Calls => {
                let calls = calls(&out);
                eprintln!("{work:?} {shape:?}: {calls:?}");
                calls.values().sum()
            }
        }
    }

    fn command(&self, what: What, out: &Path) -> Command {
        match what {
            What::Instructions => cachegrind(&self.valgrind, &self.strace, out),
            What::Calls => {
                let mut command = Command::new(&self.strace);
                command.args(["-f", "-c", "-U", "calls,name", "-o"]).arg(out);
                command
            }
        }
    }
}

/// How often each was made.
fn calls(out: &Path) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(out).expect("strace has written it");
    let lines = text.lines().filter_map(|line| line.trim().split_once(char::is_whitespace));
    let counted = lines.filter_map(|(count, name)| Some((name.trim().to_owned(), count.parse().ok()?)));
    counted.filter(|(name, _)| name != "total").collect()
}
