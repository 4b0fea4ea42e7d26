//! Messages to bytes and back. Total: every byte string gives a message or a typed error, in bounded memory.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::manifest::Entry;
use crate::message::{Batch, Body, FEATURES, Message};

/// The words of one conversation. They share their form (JSON, one record each, bounded) and how descriptors go with them.
pub trait Word: Serialize + DeserializeOwned {
    /// What a record may list as `required`.
    const FEATURES: &'static [&'static str];

    /// Its name on the wire.
    fn name(&self) -> &'static str;

    /// A record whose name is read already. (A parser that does not know it keeps all the rest until it does.)
    fn parse(_name: &str, bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }

    /// How many descriptors travel with it.
    fn descriptors(&self) -> usize;

    /// Limits that the types do not express.
    fn check(&self) -> Result<(), CodecError>;

    /// The word of one who goes no further, and says why.
    fn refusal(cause: String) -> Self;

    /// The cause, if it is such a word.
    fn refused(&self) -> Option<&str>;
}

/// Why bytes are not a message, or a message does not fit into a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("a record without bytes")]
    Empty,
    #[error("a record of {len} bytes; {RECORD} are allowed")]
    TooLong { len: usize },
    #[error("at offset {offset}: nested deeper than {DEPTH}")]
    TooDeep { offset: usize },
    #[error("at offset {offset}: {what}")]
    Syntax { offset: usize, what: String },
    #[error("requires the feature `{feature}`, which this version does not know")]
    Required { feature: String },
    #[error("{what} is {got}; at most {most} allowed")]
    Limit { what: &'static str, got: u64, most: u64 },
    #[error("session {id} {what}")]
    Session { id: u64, what: &'static str },
    #[error("a listener id of {len} bytes{}; 1 to {ID} bytes without control characters are allowed",
        if *.control { " with control characters" } else { "" })]
    Id { len: usize, control: bool },
}

/// A message as one record of at most [`RECORD`] bytes.
pub fn encode<W: Word>(message: &W) -> Result<Vec<u8>, CodecError> {
    message.check()?;
    let bytes = serde_json::to_vec(message).map_err(|error| syntax(&[], &error))?;
    if bytes.len() > RECORD {
        return Err(CodecError::TooLong { len: bytes.len() });
    }
    Ok(bytes)
}

/// One record as a message.
pub fn decode<W: Word>(bytes: &[u8]) -> Result<W, CodecError> {
    if bytes.is_empty() {
        return Err(CodecError::Empty);
    }
    if bytes.len() > RECORD {
        return Err(CodecError::TooLong { len: bytes.len() });
    }
    shallow(bytes)?;
    let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(|error| syntax(bytes, &error))?;
    if let Some(feature) = envelope.required.iter().find(|feature| !W::FEATURES.contains(&feature.as_str())) {
        return Err(CodecError::Required { feature: printable(feature) });
    }
    let message = W::parse(&envelope.name, bytes).map_err(|error| syntax(bytes, &error))?;
    message.check()?;
    Ok(message)
}

/// What is read before anything else: it decides whether the rest can be understood.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(default)]
    required: Vec<String>,
    #[serde(default, rename = "type", borrow)]
    name: Cow<'a, str>,
}

impl Word for Message {
    const FEATURES: &'static [&'static str] = FEATURES;

    fn name(&self) -> &'static str {
        self.name()
    }

    fn descriptors(&self) -> usize {
        self.descriptors()
    }

    fn check(&self) -> Result<(), CodecError> {
        check(self)
    }

    fn refusal(cause: String) -> Self {
        Self::Refused { cause }
    }

    fn refused(&self) -> Option<&str> {
        if let Self::Refused { cause } = self { Some(cause) } else { None }
    }
}

fn check(message: &Message) -> Result<(), CodecError> {
    match message {
        Message::Hello(hello) => {
            limit("the length of a version", hello.version.len() as u64, NAME)?;
            limit("the length of a build id", hello.build.len() as u64, NAME)
        }
        Message::Offer(offer) => {
            limit("the number of sockets", offer.sockets.into(), TOTAL)?;
            limit("the number of segments", offer.segments.into(), TOTAL)
        }
        Message::Batch(batch) | Message::Adopted(batch) => check_batch(batch),
        Message::BatchTaken { count } => limit("the number of sockets", (*count).into(), BATCH as u64),
        Message::Plan { body }
        | Message::Order { body, .. }
        | Message::Answer { body, .. }
        | Message::Notice { body } => check_body(body),
        _ => Ok(()),
    }
}

fn check_batch(batch: &Batch) -> Result<(), CodecError> {
    limit("the number of entries", batch.entries.len() as u64, BATCH as u64)?;
    limit("the index of an entry", batch.first.into(), TOTAL)?;
    batch.entries.iter().try_for_each(check_entry)
}

fn check_entry(entry: &Entry) -> Result<(), CodecError> {
    let control = entry.id.chars().any(char::is_control);
    if entry.id.is_empty() || entry.id.len() > ID || control {
        return Err(CodecError::Id { len: entry.id.len(), control });
    }
    limit("the length of an address", entry.address.len() as u64, NAME)
}

fn check_body(body: &Body) -> Result<(), CodecError> {
    match body {
        Body::Text(_) => Ok(()),
        Body::File(len) => limit("the length of a body", *len, FILE),
    }
}

pub(crate) fn limit(what: &'static str, got: u64, most: u64) -> Result<(), CodecError> {
    if got > most { Err(CodecError::Limit { what, got, most }) } else { Ok(()) }
}

/// The parser recurses; its own guard is 128 levels, but no word of ours needs more than [`DEPTH`].
fn shallow(bytes: &[u8]) -> Result<(), CodecError> {
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for (offset, byte) in bytes.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => depth += 1,
            b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH {
            return Err(CodecError::TooDeep { offset });
        }
    }
    Ok(())
}

fn syntax(bytes: &[u8], error: &serde_json::Error) -> CodecError {
    let before: usize =
        bytes.split(|byte| *byte == b'\n').take(error.line().saturating_sub(1)).map(|l| l.len() + 1).sum();
    let text = error.to_string();
    // The parser's own position counts lines and columns; a record is one line of bytes.
    let what = text.split(" at line ").next().unwrap_or(&text);
    CodecError::Syntax { offset: before + error.column().saturating_sub(1), what: printable(what) }
}

/// Words of the peer end up in logs: one line, bounded, no control characters.
pub(crate) fn printable(text: &str) -> String {
    text.chars().take(SHOWN).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Bytes of one record: three times what the longest word of version 1 needs in practice, and a third of the kernel's
/// default send buffer (212,992), so that a record is never refused with EMSGSIZE.
pub const RECORD: usize = 64 * 1024;
/// Nesting of a record; version 1 uses 3.
const DEPTH: usize = 32;
/// Entries of a batch: below SCM_MAX_FD (253, unix(7)) with room for other descriptors in the same message.
pub const BATCH: usize = 200;
/// Entries and segments of an offer.
const TOTAL: u64 = 65_536;
/// Bytes of a listener id.
const ID: usize = 300;
/// Bytes of a version, a build id or an address; a Unix path of 107 bytes escaped takes 428.
const NAME: u64 = 512;
/// Bytes of a body in a memfd.
pub const FILE: u64 = 64 * 1024 * 1024;
/// Characters of a peer's words that are shown.
const SHOWN: usize = 300;

#[cfg(test)]
mod tests;
