//! Addresses as an operator writes them: `10.0.0.1:80`, `[::1]:80`, and for listening `127.0.0.1:7000-7099`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

/// Why a text is no address, and what to write instead if that can be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AddressFault {
    pub(super) what: String,
    pub(super) help: Option<String>,
}

impl AddressFault {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), help: None }
    }

    fn with_help(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self { what: what.into(), help: Some(help.into()) }
    }
}

/// An address to connect to.
pub(super) fn target(text: &str) -> Result<SocketAddr, AddressFault> {
    let address = socket(text)?;
    if address.ip().is_unspecified() {
        let loopback = if address.is_ipv4() { "127.0.0.1" } else { "[::1]" };
        let help = format!("for this machine write `{loopback}:{}`", address.port());
        return Err(AddressFault::with_help(format!("{} is no address to connect to", address.ip()), help));
    }
    Ok(address)
}

/// One address and port.
pub(super) fn socket(text: &str) -> Result<SocketAddr, AddressFault> {
    let (host, port) = split(text)?;
    Ok(SocketAddr::new(host, number(port)?))
}

/// One address and a port or a range of ports.
pub(super) fn range(text: &str) -> Result<(IpAddr, RangeInclusive<u16>), AddressFault> {
    let (host, ports) = split(text)?;
    let Some((first, last)) = ports.split_once('-').filter(|(first, _)| !first.is_empty()) else {
        let port = number(ports)?;
        return Ok((host, port..=port));
    };
    let (first, last) = (number(first)?, number(last)?);
    if first > last {
        return Err(AddressFault::with_help(
            format!("the range {first}-{last} runs backwards"),
            format!("write `{last}-{first}`"),
        ));
    }
    Ok((host, first..=last))
}

/// An address without a port.
pub(super) fn ip(text: &str) -> Result<IpAddr, AddressFault> {
    if let Ok(with_port) = text.parse::<SocketAddr>() {
        return Err(AddressFault::with_help("a port does not belong here", format!("write `{}`", with_port.ip())));
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if bare.contains(':') { v6(bare).map(IpAddr::V6) } else { v4(bare).map(IpAddr::V4) }
}

fn split(text: &str) -> Result<(IpAddr, &str), AddressFault> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or_else(|| AddressFault::new("the closing `]` is missing"))?;
        let host = v6(host)?;
        let no_port = || AddressFault::with_help("the port is missing", format!("write `[{host}]:PORT`"));
        let port = after.strip_prefix(':').filter(|port| !port.is_empty()).ok_or_else(no_port)?;
        return Ok((host.into(), port));
    }
    if text.matches(':').count() > 1 {
        return Err(unbracketed(text));
    }
    let Some((host, port)) = text.split_once(':').filter(|(_, port)| !port.is_empty()) else {
        let host = text.trim_end_matches(':');
        return Err(AddressFault::with_help("the port is missing", format!("write `{host}:PORT`")));
    };
    if host.is_empty() || host == "*" {
        return Err(AddressFault::with_help(
            "the IP address is missing",
            format!("write `0.0.0.0:{port}` or `[::]:{port}`"),
        ));
    }
    Ok((v4(host)?.into(), port))
}

/// More than one colon and no bracket in front.
fn unbracketed(text: &str) -> AddressFault {
    if text.contains(['[', ']']) {
        return AddressFault::with_help("the brackets are not in their places", "write `[IPV6]:PORT`");
    }
    let help = match text.rsplit_once(':') {
        _ if text.parse::<Ipv6Addr>().is_ok() => format!("write `[{text}]:PORT`"),
        Some((host, port)) if host.parse::<Ipv6Addr>().is_ok() => format!("write `[{host}]:{port}`"),
        _ => "write `[IPV6]:PORT`".to_owned(),
    };
    AddressFault::with_help("an IPv6 address needs brackets", help)
}

fn v4(host: &str) -> Result<Ipv4Addr, AddressFault> {
    host.parse().map_err(|_| {
        if host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
            AddressFault::new(format!("`{host}` is not an IPv4 address"))
        } else {
            AddressFault::with_help(
                format!("`{host}` is not an IP address; host names are not available in this version"),
                "write the IP address",
            )
        }
    })
}

fn v6(host: &str) -> Result<Ipv6Addr, AddressFault> {
    if host.contains('%') {
        return Err(AddressFault::new("scope ids (`%eth0`) are not available in this version"));
    }
    let address: Ipv6Addr = host.parse().map_err(|_| AddressFault::new(format!("`{host}` is not an IPv6 address")))?;
    match address.to_ipv4_mapped() {
        Some(v4) => Err(AddressFault::with_help("this is an IPv4 address in disguise", format!("write `{v4}`"))),
        None => Ok(address),
    }
}

fn number(port: &str) -> Result<u16, AddressFault> {
    if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(AddressFault::new(format!("the port `{port}` is not a number")));
    }
    match port.parse() {
        Ok(0) => Err(AddressFault::new("port 0 is not a port to name")),
        Ok(port) => Ok(port),
        Err(_) => Err(AddressFault::new(format!("the port {port} is above 65535"))),
    }
}
