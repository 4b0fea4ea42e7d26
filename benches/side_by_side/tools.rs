//! Load that other programs make.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::clients::Amount;

/// Requests a second at which `redis-benchmark`, which is told a number and no time, takes about as long as it is to.
const ONE_CLIENT: u32 = 10_000;
const MANY_CLIENTS: u32 = 35_000;

/// `redis-benchmark`: thousands of requests.
pub(crate) fn redis(program: &Path, address: SocketAddr, clients: u32, time: Duration) -> Amount {
    let guess = if clients == 1 { ONE_CLIENT } else { MANY_CLIENTS };
    let requests = (f64::from(guess) * time.as_secs_f64()).round();
    let mut command = Command::new(program);
    command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string(), "-t", "get", "--csv"]);
    command.args(["-c", &clients.to_string(), "-n", &requests.to_string()]);
    let text = said(command);
    // "GET","85324.23","0.30",...
    let line = text.lines().rfind(|line| line.starts_with("\"GET")).expect("redis-benchmark names its test");
    let rate: f64 = line.split(',').nth(1).and_then(|rate| rate.trim_matches('"').parse().ok()).expect("a rate");
    Amount { total: requests / 1e3, rate: rate / 1e3 }
}

/// `wrk`: thousands of requests. It knows whole seconds only.
pub(crate) fn wrk(program: &Path, address: SocketAddr, connections: u32, time: Duration) -> Amount {
    let mut command = Command::new(program);
    let seconds = time.as_secs_f64().ceil();
    command.args(["-t", "1", "-c", &connections.to_string(), "-d", &format!("{seconds}s")]);
    command.arg(format!("http://{address}/"));
    let text = said(command);
    // Of a thousand clients some may wait for their answer for longer than wrk likes; nobody may be turned away.
    let lost = text.lines().find_map(|line| line.trim().strip_prefix("Socket errors: "));
    let lost = lost.is_some_and(|line| !line.starts_with("connect 0, read 0, write 0"));
    assert!(!lost && !text.contains("Non-2xx"), "{text}");
    let number = |end: &str, from: fn(&str) -> Option<&str>| -> f64 {
        let line = text.lines().find(|line| line.contains(end)).expect("wrk says what it did");
        from(line.trim()).and_then(|number| number.parse().ok()).expect("a number")
    };
    let total = number(" requests in ", |line| line.split(' ').next());
    let rate = number("Requests/sec:", |line| line.split_whitespace().nth(1));
    Amount { total: total / 1e3, rate: rate / 1e3 }
}

fn said(mut command: Command) -> String {
    let output = command.output().expect("the program starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}
