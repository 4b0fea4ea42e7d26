//! A `recv` into the buffer of the thread and a `send` from it: `read` and `write` go through the layer of files first.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::turns::{Carried, Flow};

/// A message fits, so that a read that did not fill it was the last one.
const BUFFER: usize = 64 * 1024;

pub(super) struct Copying {
    /// What a sink did not take.
    rest: Vec<u8>,
}

impl Flow for Copying {
    type With = ();
    type Tools = Vec<u8>;

    fn tools() -> Vec<u8> {
        vec![0; BUFFER]
    }

    fn new((): ()) -> io::Result<Self> {
        Ok(Self { rest: Vec::new() })
    }

    fn carry(&mut self, from: &OwnedFd, to: &OwnedFd, to_the_end: bool, buffer: &mut Vec<u8>) -> Carried {
        if self.is_stuck() {
            let rest = std::mem::take(&mut self.rest);
            if let Err(carried) = self.write(to, &rest) {
                return carried;
            }
        }
        loop {
            let n = match recv(from, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((n @ 1.., _)) => n,
                Err(Errno::AGAIN) => return Carried::All,
                Ok((0, _)) | Err(_) => return Carried::Ended,
            };
            if let Err(carried) = self.write(to, &buffer[..n]) {
                return carried;
            }
            if n < buffer.len() && !to_the_end {
                return Carried::All;
            }
        }
    }

    fn is_stuck(&self) -> bool {
        !self.rest.is_empty()
    }
}

impl Copying {
    /// `Err`: not all was taken.
    fn write(&mut self, to: &OwnedFd, bytes: &[u8]) -> Result<(), Carried> {
        let written = match send(to, bytes, SendFlags::NOSIGNAL) {
            Ok(n) => n,
            Err(Errno::AGAIN) => 0,
            Err(_) => return Err(Carried::Ended),
        };
        if written == bytes.len() {
            return Ok(());
        }
        self.rest = bytes[written..].to_vec();
        Err(Carried::Stuck)
    }
}
