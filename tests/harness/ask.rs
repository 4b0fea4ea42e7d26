//! A command to the keeper without proxyctl: one JSON document, and every line that is answered.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// Of each read and write; an upgrade with all of its steps included.
const PATIENCE: Duration = Duration::from_secs(60);

/// # Panics
/// If it is not answered with lines of JSON.
pub fn ask(socket: &Path, command: &Value) -> Vec<Value> {
    let body = command.to_string();
    let mut stream = UnixStream::connect(socket).expect("the keeper listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    let head = "POST /v1/command HTTP/1.1\r\nHost: proxyd\r\nContent-Type: application/json\r\nConnection: close\r\n";
    let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).expect("the keeper reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the keeper answers");
    // Between the chunks of the body stand their sizes.
    let lines = answer.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}
