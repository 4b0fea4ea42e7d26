//! Bodies: the application's bytes as text in the record, or as a sealed memfd beside it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::codec;
use crate::memfile::{self, MemfileError};
use crate::message::Body;

/// A body that is ready to be sent.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) body: Body,
    file: Option<OwnedFd>,
}

impl Parcel {
    /// In the record if it is short text, else in a file.
    pub(crate) fn of(bytes: &[u8]) -> io::Result<Self> {
        match std::str::from_utf8(bytes) {
            Ok(text) if quoted(text) <= INLINE => Ok(Self { body: Body::Text(text.to_owned()), file: None }),
            _ => Self::in_file(bytes),
        }
    }

    pub(crate) fn in_file(bytes: &[u8]) -> io::Result<Self> {
        if bytes.len() as u64 > codec::FILE {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a body of {} bytes", bytes.len())));
        }
        let file = memfile::sealed("proxyd-body", bytes)?;
        Ok(Self { body: Body::File(bytes.len() as u64), file: Some(file) })
    }

    pub(crate) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.file.iter().map(AsFd::as_fd).collect()
    }
}

/// The bytes of a received body; the channel has seen to it that a file has its descriptor.
pub(crate) fn open(body: Body, fds: Vec<OwnedFd>) -> Result<Vec<u8>, MemfileError> {
    match (body, fds.into_iter().next()) {
        (Body::Text(text), _) => Ok(text.into_bytes()),
        (Body::File(len), Some(fd)) => memfile::read_sealed(fd, len, codec::FILE),
        (Body::File(_), None) => Err(MemfileError::NotSealed { found: "no descriptor" }),
    }
}

/// Bytes of the text as JSON: quotes and backslashes take two, control characters up to six.
fn quoted(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(escaped).sum()
}

/// Half a record, so that the other fields always fit.
const INLINE: usize = codec::RECORD / 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_body_comes_back_and_fits_a_record() {
        let bodies: [&[u8]; 7] =
            [b"", b"{}", &[b'a'; INLINE], &[b'a'; INLINE + 1], &[b'"'; INLINE], &[1; INLINE], &[0xff; 10]];
        for (bytes, in_file) in bodies.into_iter().zip([false, false, false, true, true, true, true]) {
            let parcel = Parcel::of(bytes).unwrap();
            assert_eq!(matches!(parcel.body, Body::File(_)), in_file);
            assert!(serde_json::to_vec(&parcel.body).unwrap().len() < codec::RECORD);
            let fds = parcel.file.into_iter().collect();
            assert_eq!(open(parcel.body, fds).unwrap(), bytes);
        }
    }
}
