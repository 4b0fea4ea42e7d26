//! A backend that the test plays itself, and sessions of which it holds both ends.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::SockRef;

use super::client::PATIENCE;
use super::port::Port;

/// Takes one connection after the other.
#[derive(Debug)]
pub struct Played(TcpListener);

impl Played {
    pub fn start() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").expect("the kernel has a free port"))
    }

    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("a bound socket has an address")
    }

    pub fn accept(&self) -> TcpStream {
        patient(self.0.accept().expect("the proxy connects").0)
    }

    /// One session through the proxy at `front`: both its ends.
    pub fn session(&self, front: &Port) -> (TcpStream, TcpStream) {
        let client = patient(TcpStream::connect(front.address()).expect("the proxy accepts"));
        (client, self.accept())
    }
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
    stream.set_nodelay(true).expect("a socket");
    stream
}

/// # Panics
/// If the text does not arrive at the other end.
pub fn pass(mut from: &TcpStream, mut to: &TcpStream, text: &str) {
    from.write_all(text.as_bytes()).expect("the session takes bytes");
    let mut got = vec![0; text.len()];
    to.read_exact(&mut got).expect("they arrive");
    assert_eq!(got, text.as_bytes());
}

/// Everything up to a clean end of file.
pub fn rest(mut stream: &TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map(|_| bytes)
}

/// Breaks a connection off.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket");
}
