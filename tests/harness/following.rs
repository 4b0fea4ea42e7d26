//! What happens in a proxyd, heard as it happens: `proxyctl events --follow`.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::child::Guarded;
use super::proxy::Proxy;

/// More than any test lets lie unheard.
const LINE: usize = 4096;

#[derive(Debug)]
pub struct Following {
    events: Receiver<Value>,
    _process: Guarded,
}

impl Following {
    /// From here on.
    ///
    /// # Panics
    /// If the keeper does not answer.
    pub fn start(proxy: &Proxy) -> Self {
        let known = proxy.events();
        let since = known.last().map_or(0, |event| event["seq"].as_u64().expect("a number")).to_string();
        let mut command = proxy.ctl_command(&["--json", "events", "--follow", "--since", &since]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("proxyctl can be executed");
        let lines = BufReader::new(child.stdout.take().expect("it was asked for")).lines();
        let (tell, events) = sync_channel(LINE);
        // Ends with the process, which ends with this.
        std::thread::spawn(move || pass(lines, &tell));
        Self { events, _process: Guarded::new(child, Signal::SIGTERM) }
    }

    /// Waits for the next event like this; those before it are gone.
    ///
    /// # Panics
    /// After `deadline`.
    pub fn until(&self, what: &str, deadline: Duration, is: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            match self.events.recv_timeout(deadline.saturating_sub(begun.elapsed())) {
                Ok(event) if is(&event) => return event,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => panic!("waited {deadline:?} in vain for {what}"),
                Err(RecvTimeoutError::Disconnected) => panic!("proxyctl ended before {what}"),
            }
        }
    }

    /// Waits until an upgrade begins this step.
    pub fn until_step(&self, step: &str, deadline: Duration) -> Value {
        self.until(&format!("step {step}"), deadline, |event| event["event"] == "upgrade_step" && event["step"] == step)
    }
}

fn pass(lines: impl Iterator<Item = std::io::Result<String>>, tell: &SyncSender<Value>) {
    for event in lines.map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok()) {
        if tell.send(event).is_err() {
            return;
        }
    }
}
