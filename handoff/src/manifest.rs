//! What is handed over: one [`Entry`] for each listening socket, measured on the socket itself.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::FileType;
use rustix::net::{AddressFamily, SocketAddrAny, SocketAddrUnix, SocketType, ipproto, sockopt};
use serde::{Deserialize, Serialize};

use crate::codec;
use crate::os;

/// A listening socket as both sides describe it. The id says which one it is; the rest is how it is verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Unique within an offer. 1 to 300 bytes, no control characters.
    pub id: String,
    pub kind: Kind,
    /// What getsockname(2) says, as text: `127.0.0.1:80`, `[::1]:80`, a path, `@name` for an abstract name.
    pub address: String,
    /// Meaningful for [`Kind::Tcp6`].
    #[serde(default)]
    pub v6only: bool,
    /// Cookie of the network namespace (`SO_NETNS_COOKIE`, Linux 5.14); 0 where the kernel does not tell.
    #[serde(default)]
    pub netns: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Tcp4,
    Tcp6,
    Unix,
}

impl Entry {
    /// Measures a live listening socket. Anything else (file, datagram, connected or unbound socket) is `InvalidInput`.
    pub fn of(id: &str, socket: impl AsFd) -> io::Result<Self> {
        let found = measure(socket.as_fd()).map_err(|found| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{id}: wanted a listening socket, found {found}"))
        })?;
        Ok(Self { id: id.to_owned(), ..found })
    }

    /// Checks that the descriptor is what this entry announces. The network namespace is not compared if it is unknown.
    pub fn verify(&self, socket: BorrowedFd<'_>) -> Result<(), Mismatch> {
        self.measured(socket).map(drop)
    }

    /// [`Self::verify`], and what was found on the socket, under this id.
    pub(crate) fn measured(&self, socket: BorrowedFd<'_>) -> Result<Self, Mismatch> {
        let mismatch = |what, wanted: &dyn fmt::Display, found: &dyn fmt::Display| Mismatch {
            id: self.id.clone(),
            what,
            wanted: wanted.to_string(),
            found: found.to_string(),
        };
        let found =
            measure(socket).map_err(|found| mismatch("type", &format_args!("listening {}", self.kind), &found))?;
        self.compare(&found).map_err(|(what, wanted, found)| mismatch(what, &wanted, &found))?;
        Ok(Self { id: self.id.clone(), ..found })
    }

    /// Checks what the other side says it measured, id included.
    pub(crate) fn matches(&self, theirs: &Self) -> Result<(), Mismatch> {
        let differ = |what, wanted: String, found: String| Mismatch { id: self.id.clone(), what, wanted, found };
        if self.id != theirs.id {
            return Err(differ("id", self.id.clone(), codec::printable(&theirs.id)));
        }
        self.compare(theirs).map_err(|(what, wanted, found)| differ(what, wanted, codec::printable(&found)))
    }

    fn compare(&self, found: &Self) -> Result<(), (&'static str, String, String)> {
        if self.kind != found.kind {
            return Err(("type", self.kind.to_string(), found.kind.to_string()));
        }
        if self.address != found.address {
            return Err(("address", self.address.clone(), found.address.clone()));
        }
        if self.v6only != found.v6only {
            return Err(("v6only", self.v6only.to_string(), found.v6only.to_string()));
        }
        if self.netns != 0 && self.netns != found.netns {
            return Err(("network namespace", self.netns.to_string(), found.netns.to_string()));
        }
        Ok(())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp4 => "tcp4",
            Self::Tcp6 => "tcp6",
            Self::Unix => "unix",
        })
    }
}

/// A descriptor that is not what its entry announces.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("listener {id}: {what}: wanted {wanted}, found {found}")]
pub struct Mismatch {
    pub id: String,
    pub what: &'static str,
    pub wanted: String,
    pub found: String,
}

/// The first id that occurs twice.
pub(crate) fn duplicate<'a>(ids: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut seen = HashSet::new();
    ids.into_iter().find(|id| !seen.insert(*id))
}

/// Cuts an inventory into runs that each fit one record: at most 200 entries, and few enough bytes.
pub fn batches<'s, 'fd>(
    sockets: &'s [(Entry, BorrowedFd<'fd>)],
) -> impl Iterator<Item = &'s [(Entry, BorrowedFd<'fd>)]> {
    let mut rest = sockets;
    std::iter::from_fn(move || {
        let (batch, tail) = rest.split_at(fitting(rest.iter().map(|(entry, _)| entry)));
        rest = tail;
        (!batch.is_empty()).then_some(batch)
    })
}

/// How many of these entries fit one record; at least one if there is any.
pub(crate) fn fitting<'a>(entries: impl Iterator<Item = &'a Entry>) -> usize {
    let mut bytes = FRAME;
    let fits = entries.take(codec::BATCH).enumerate().take_while(|(index, entry)| {
        bytes += encoded(entry);
        // The first always goes: if it is too long by itself, the codec says so.
        *index == 0 || bytes <= codec::RECORD
    });
    fits.count()
}

/// Upper bound of an entry's bytes in a record: JSON doubles quotes and backslashes, and control characters (six bytes
/// each) occur in neither field.
fn encoded(entry: &Entry) -> usize {
    2 * (entry.id.len() + entry.address.len()) + FIELDS
}

/// Names and punctuation of an entry with the longest numbers: 98 bytes.
const FIELDS: usize = 128;
/// Names and punctuation of a batch, with room for a later field.
const FRAME: usize = 256;

/// The socket as an entry without id, or what it is instead.
fn measure(socket: BorrowedFd<'_>) -> Result<Entry, String> {
    let kind = listening(socket)?;
    let v6only = kind == Kind::Tcp6 && sockopt::ipv6_v6only(socket).map_err(unreadable)?;
    let address = rustix::net::getsockname(socket).map_err(unreadable)?;
    // Older kernels do not know the option; an unknown namespace is not compared.
    let netns = os::netns_cookie(socket).unwrap_or(0);
    Ok(Entry { id: String::new(), kind, address: text(&address, kind)?, v6only, netns })
}

fn listening(socket: BorrowedFd<'_>) -> Result<Kind, String> {
    let file = FileType::from_raw_mode(rustix::fs::fstat(socket).map_err(unreadable)?.st_mode);
    if file != FileType::Socket {
        return Err(format!("a {}", name_of(file)));
    }
    let kind = kind(socket)?;
    if !sockopt::socket_acceptconn(socket).map_err(unreadable)? {
        return Err(format!("a {kind} socket that does not listen"));
    }
    Ok(kind)
}

fn kind(socket: BorrowedFd<'_>) -> Result<Kind, String> {
    let family = sockopt::socket_domain(socket).map_err(unreadable)?;
    let kind = sockopt::socket_type(socket).map_err(unreadable)?;
    let protocol = sockopt::socket_protocol(socket).map_err(unreadable)?;
    match (family, kind, protocol) {
        (AddressFamily::INET, SocketType::STREAM, Some(ipproto::TCP)) => Ok(Kind::Tcp4),
        (AddressFamily::INET6, SocketType::STREAM, Some(ipproto::TCP)) => Ok(Kind::Tcp6),
        (AddressFamily::UNIX, SocketType::STREAM, _) => Ok(Kind::Unix),
        (_, SocketType::DGRAM, _) => Err("a datagram socket".to_owned()),
        (_, SocketType::SEQPACKET, _) => Err("a seqpacket socket".to_owned()),
        _ => Err(format!("a socket of family {}, type {}", family.as_raw(), kind.as_raw())),
    }
}

pub(crate) fn name_of(file: FileType) -> &'static str {
    match file {
        FileType::Fifo => "pipe",
        FileType::Socket => "socket",
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::CharacterDevice | FileType::BlockDevice => "device",
        _ => "descriptor of another kind",
    }
}

pub(crate) fn unreadable(error: rustix::io::Errno) -> String {
    format!("a descriptor that cannot be examined ({error})")
}

fn text(address: &SocketAddrAny, kind: Kind) -> Result<String, String> {
    if kind == Kind::Unix {
        let unix = SocketAddrUnix::try_from(address.clone()).map_err(unreadable)?;
        return Ok(unix_text(&unix));
    }
    Ok(SocketAddr::try_from(address.clone()).map_err(unreadable)?.to_string())
}

fn unix_text(address: &SocketAddrUnix) -> String {
    match (address.abstract_name(), address.path_bytes()) {
        (Some(name), _) => format!("@{}", escaped(name)),
        (None, Some(path)) => escaped(path),
        (None, None) => String::new(),
    }
}

/// One text for one byte string: as it is if it is plain, else with escapes; a backslash always is escaped.
fn escaped(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(plain) if !plain.chars().any(|c| c.is_control() || c == '\\') => plain.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests;
