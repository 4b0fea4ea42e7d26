//! One upgrade, timed by what `proxyctl` prints as it is made.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
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
        let mut ctl = command.arg(binary).stdout(Stdio::piped()).spawn().expect("proxyctl can be executed");
        let lines = BufReader::new(ctl.stdout.take().expect("it was asked for")).lines();
        let (mut spawn, mut finish) = (None, None);
        for line in lines.map(|line| line.expect("proxyctl prints text")) {
            match line.split_ascii_whitespace().next() {
                Some("spawn") => spawn = Some(begun.elapsed()),
                // The step that begins when the commit is made.
                Some("finish") => finish = Some(begun.elapsed()),
                _ => {}
            }
        }
        let status = ctl.wait().expect("our own child can be waited for");
        assert!(status.success(), "{status}: {}", proxy.stderr());
        let (spawn, accepting) = spawn.zip(finish).expect("an upgrade tells its steps");
        Self { accepting, after_preflight: accepting - spawn, done: begun.elapsed() }
    }
}
