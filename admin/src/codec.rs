//! Bytes from the network into a [`Command`] or a [`Filter`], and a filter into a query. Total: every input gives a
//! value within bounds or a [`Failure`] that says what was wrong.

use std::fmt::Write as _;

use crate::command::{Command, Failure, Filter};

/// Reads one command and checks it.
pub fn command(bytes: &[u8]) -> Result<Command, Failure> {
    if bytes.trim_ascii().is_empty() {
        return Err(Failure::usage("the body is empty; expected one command as JSON, such as {\"verb\":\"reload\"}"));
    }
    if depth(bytes) > MAX_DEPTH {
        return Err(Failure::usage(format!("the command nests deeper than {MAX_DEPTH} levels")));
    }
    let command: Command = serde_json::from_slice(bytes).map_err(|e| Failure::usage(format!("not a command: {e}")))?;
    refuse_extra_members(&command, bytes)?;
    command.check()?;
    Ok(command)
}

/// Reads the query of `GET /v1/sessions`: `listener pool backend client idle older generation id`, the last a list
/// with commas.
pub fn filter(pairs: &[(String, String)]) -> Result<Filter, Failure> {
    let mut filter = Filter::default();
    for (key, value) in pairs {
        set(&mut filter, key, value)?;
    }
    filter.check()?;
    Ok(filter)
}

/// Reads the query of `GET /v1/events`: `since`, a number, and `follow`, 1 or 0.
pub fn events(pairs: &[(String, String)]) -> Result<(u64, bool), Failure> {
    let (mut since, mut follow) = (0, false);
    for (key, value) in pairs {
        match (key.as_str(), value.as_str()) {
            ("since", value) => since = number(key, value)?,
            ("follow", "0" | "1") => follow = value == "1",
            ("follow", _) => return Err(Failure::usage(format!("follow: `{}` is not 0 or 1", value.escape_debug()))),
            _ => return Err(Failure::usage(format!("unknown word `{}`; known: since, follow", key.escape_debug()))),
        }
    }
    Ok((since, follow))
}

/// The query that [`filter`] reads back, without `?`.
pub fn query(filter: &Filter) -> String {
    let mut query = String::new();
    let mut pair = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            let and = if query.is_empty() { "" } else { "&" };
            let _ = write!(query, "{and}{key}={}", percent(&value));
        }
    };
    let ids: Vec<String> = filter.id.iter().map(u64::to_string).collect();
    pair("id", (!ids.is_empty()).then(|| ids.join(",")));
    pair("listener", filter.listener.clone());
    pair("pool", filter.pool.clone());
    pair("backend", filter.backend.clone());
    pair("client", filter.client.map(|net| net.to_string()));
    pair("idle", filter.idle.map(|seconds| seconds.to_string()));
    pair("older", filter.older.map(|seconds| seconds.to_string()));
    pair("generation", filter.generation.map(|generation| generation.to_string()));
    query
}

fn set(filter: &mut Filter, key: &str, value: &str) -> Result<(), Failure> {
    match key {
        "id" => filter.id = value.split(',').map(|id| number(key, id)).collect::<Result<_, _>>()?,
        "listener" => filter.listener = Some(value.to_owned()),
        "pool" => filter.pool = Some(value.to_owned()),
        "backend" => filter.backend = Some(value.to_owned()),
        "client" => filter.client = Some(network(value)?),
        "idle" => filter.idle = Some(number(key, value)?),
        "older" => filter.older = Some(number(key, value)?),
        "generation" => filter.generation = Some(number(key, value)?),
        _ => {
            return Err(Failure::usage(format!(
                "unknown filter `{key}`; known: id, listener, pool, backend, client, idle, older, generation"
            )));
        }
    }
    Ok(())
}

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, Failure> {
    value.parse().map_err(|_| Failure::usage(format!("{key}: `{}` is not a number in range", value.escape_debug())))
}

/// A network as CIDR; a bare address is that one host.
pub fn network(value: &str) -> Result<ipnet::IpNet, Failure> {
    let host = || value.parse::<std::net::IpAddr>().ok().map(ipnet::IpNet::from);
    value.parse().ok().or_else(host).ok_or_else(|| {
        Failure::usage(format!(
            "client: `{}` is neither an address nor a network such as 10.0.0.0/8",
            value.escape_debug()
        ))
    })
}

/// Deepest nesting of arrays and objects. Scanned before parsing, so that no input decides how deep a parser recurses.
fn depth(bytes: &[u8]) -> usize {
    let (mut open, mut deepest) = (0_usize, 0_usize);
    let (mut in_string, mut escaped) = (false, false);
    for byte in bytes {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_string = !in_string,
            (false, b'[' | b'{') => {
                open += 1;
                deepest = deepest.max(open);
            }
            (false, b']' | b'}') => open = open.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// serde ignores members beside the tag of a variant without fields; a word that does nothing is refused here.
fn refuse_extra_members(command: &Command, bytes: &[u8]) -> Result<(), Failure> {
    if !matches!(command, Command::Reload | Command::Shutdown) {
        return Ok(());
    }
    let members: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(bytes).unwrap_or_default();
    match members.keys().find(|key| *key != "verb") {
        Some(extra) => {
            Err(Failure::usage(format!("not a command: unknown field `{}`, this verb has none", extra.escape_debug())))
        }
        None => Ok(()),
    }
}

fn percent(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// The deepest honest command (a pool's backends) has 3 levels.
const MAX_DEPTH: usize = 32;

#[cfg(test)]
mod tests;
