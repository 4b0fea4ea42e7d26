//! Single clients, one plain socket each, for tests that look at how one connection goes and how it ends.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::wait::{until, until_some};

/// Of connect, read and write: far above what anything takes, even on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How a connection ended, as its client saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Fin,
    Reset,
}

#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    end: Option<(End, Instant)>,
}

impl Client {
    pub fn try_connect(address: SocketAddr) -> io::Result<Self> {
        Self::over(TcpStream::connect_timeout(&address, PATIENCE)?)
    }

    /// From this address of ours, such as 127.0.0.2.
    pub fn connect_from(own: IpAddr, address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(own, 0).into())?;
        socket.connect_timeout(&address.into(), PATIENCE)?;
        Self::over(socket.into())
    }

    fn over(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, end: None })
    }

    /// # Panics
    /// If nobody accepts.
    pub fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).unwrap_or_else(|error| panic!("connect to {address}: {error}"))
    }

    /// Connects and reads the tag of a [`super::Tagged`] backend: the session is established.
    pub fn greeted(address: SocketAddr) -> (Self, String) {
        let mut client = Self::connect(address);
        let tag = client.line();
        (client, tag)
    }

    /// So many established sessions with a [`super::Tagged`] backend.
    pub fn many(address: SocketAddr, count: usize) -> Vec<Self> {
        (0..count).map(|_| Self::greeted(address).0).collect()
    }

    pub fn local(&self) -> SocketAddr {
        self.stream.local_addr().expect("a connected socket has an address")
    }

    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Up to and without the newline.
    ///
    /// # Panics
    /// If the connection ends or is silent for too long.
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            match self.stream.read(&mut byte) {
                Ok(1) if byte[0] == b'\n' => return String::from_utf8(line).expect("a line of text"),
                Ok(1) => line.push(byte[0]),
                other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&line)),
            }
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the connection takes bytes");
    }

    /// Sends a line and expects it back.
    pub fn echo(&mut self, text: &str) {
        self.send(format!("{text}\n").as_bytes());
        assert_eq!(self.line(), text);
    }

    pub fn finish_sending(&self) {
        self.stream.shutdown(Shutdown::Write).expect("the connection is open");
    }

    /// Whether it has ended by now; bytes that come are read and dropped.
    pub fn ended(&mut self) -> Option<(End, Instant)> {
        if self.end.is_none() {
            self.stream.set_nonblocking(true).expect("a socket");
            self.end = self.drained().map(|end| (end, Instant::now()));
            self.stream.set_nonblocking(false).expect("a socket");
        }
        self.end
    }

    fn drained(&mut self) -> Option<End> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Some(End::Fin),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Some(End::Reset),
            }
        }
    }

    /// # Panics
    /// If it has not ended after a while.
    pub fn wait_end(&mut self) -> End {
        self.wait_end_within(PATIENCE)
    }

    pub fn wait_end_within(&mut self, deadline: Duration) -> End {
        until_some("the connection has ended", deadline, || self.ended()).0
    }
}

/// Clients of which some are to end, all being looked at.
///
/// # Panics
/// If they have not all ended in time.
pub fn wait_all_ended(clients: &mut [Client], deadline: Duration) {
    until("all connections have ended", deadline, || {
        let mut all = true;
        for client in &mut *clients {
            all &= client.ended().is_some();
        }
        all
    });
}
