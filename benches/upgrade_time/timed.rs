//! One upgrade, timed by what `proxyctl` prints as it is made.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::harness::Proxy;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Timed {
    /// From the start of `proxyctl` until the new generation has been told to poll, does, and the old one has stopped.
    pub(crate) accepting: Duration,
    /// The same from the end of the preflight.
    pub(crate) after_preflight: Duration,
    /// Until `proxyctl` has ended: the keeper is the new version too.
    pub(crate) done: Duration,
}

impl Timed {
    /// # Panics
    /// If it is not committed.
    pub(crate) fn upgrade(proxy: &Proxy, binary: &Path) -> Self {
        let begun = Instant::now();
        let mut command = proxy.ctl_command(&["upgrade", "--probation", "0s", "--binary"]);
        let ctl = command.arg(binary).stdout(Stdio::piped()).spawn().expect("proxyctl can be executed");
        let (mut spawn, mut committed) = (None, None);
        lines(ctl, proxy, |line| match line.split_ascii_whitespace().next() {
            Some("spawn") => spawn = Some(begun.elapsed()),
            // The steps that begin when the commit is made.
            Some("move" | "finish") if committed.is_none() => committed = Some(begun.elapsed()),
            _ => {}
        });
        let (spawn, accepting) = spawn.zip(committed).expect("an upgrade tells its steps");
        Self { accepting, after_preflight: accepting - spawn, done: begun.elapsed() }
    }
}

/// What a `proxyctl` prints, line by line as it comes, until it has ended.
///
/// # Panics
/// If it fails.
pub(crate) fn lines(mut ctl: Child, proxy: &Proxy, mut each: impl FnMut(String)) {
    let lines = BufReader::new(ctl.stdout.take().expect("it was asked for")).lines();
    lines.for_each(|line| each(line.expect("proxyctl prints text")));
    let status = ctl.wait().expect("our own child can be waited for");
    assert!(status.success(), "{status}: {}", proxy.stderr());
}
