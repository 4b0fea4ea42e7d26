//! One session held open with a [`super::Tagged`] backend, and looked at: does it still carry bytes, how did it end.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longest wait for an echo.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Steady {
    stream: BufReader<TcpStream>,
    /// What the backend said first.
    pub tag: String,
    said: u64,
}

impl Steady {
    /// # Panics
    /// If the backend's greeting does not come.
    pub fn open(address: SocketAddr) -> Self {
        Self::try_open(address).unwrap_or_else(|error| panic!("no session through {address}: {error}"))
    }

    pub fn try_open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut stream = BufReader::new(stream);
        let mut tag = String::new();
        if stream.read_line(&mut tag)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self { stream, tag: tag.trim_end().into(), said: 0 })
    }

    /// Sends a line that was never sent before and reads it back.
    pub fn echo(&mut self) -> io::Result<()> {
        self.said += 1;
        let line = format!("line {}\n", self.said);
        self.stream.get_mut().write_all(line.as_bytes())?;
        let mut answer = String::new();
        if self.stream.read_line(&mut answer)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if answer == line { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidData, answer)) }
    }

    /// # Panics
    /// If it carries no bytes any more.
    pub fn assert_alive(&mut self) {
        self.echo().unwrap_or_else(|error| panic!("session lost: {error}"));
    }

    /// Waits for its end without sending: `Ok` is a clean end of file.
    pub fn end(&mut self) -> io::Result<()> {
        match self.stream.read(&mut [0; 1])? {
            0 => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a byte that nobody sent")),
        }
    }
}
