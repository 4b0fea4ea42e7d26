//! A backend that says what it is told, and a client that tells it a message at a time.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MESSAGE: [u8; 64] = [b'm'; 64];

/// The backend's end of a session.
pub(crate) async fn serve(mut stream: tokio::net::TcpStream) {
    let mut buffer = vec![0; 1024];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

/// `patience`: of any single answer.
pub(crate) fn connect(address: SocketAddr, patience: Duration) -> io::Result<std::net::TcpStream> {
    let stream = std::net::TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    Ok(stream)
}

/// A connection whose session is established all the way: it has exchanged a message.
pub(crate) fn opened(address: SocketAddr, patience: Duration) -> io::Result<std::net::TcpStream> {
    let mut stream = connect(address, patience)?;
    exchange(&mut stream)?;
    Ok(stream)
}

pub(crate) fn exchange(stream: &mut std::net::TcpStream) -> io::Result<()> {
    stream.write_all(&MESSAGE)?;
    stream.read_exact(&mut [0; MESSAGE.len()])
}
