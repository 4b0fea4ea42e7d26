//! What stands behind the contestants. Light: it shares two cores with everything else.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::echo;
use crate::harness::server::{Server, any_v4};
use crate::harness::service::Redis;

/// Large enough that the sender's system calls do not count beside the proxy's.
const BLOCK: usize = 256 * 1024;
const PAGE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nhello\n";

#[derive(Debug)]
pub(crate) struct Backends {
    echo: Server,
    http: Server,
    source: Server,
    both: Server,
    pub(crate) redis: Option<Redis>,
}

/// A kind of backend; each contestant has a listener for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Sends back what comes.
    Echo,
    /// Answers each request with a small page, connections stay.
    Http,
    /// Sends as fast as it can.
    Source,
    /// The same, and reads as fast as it can.
    Both,
    Redis,
}

impl Backends {
    pub(crate) fn start() -> Self {
        let block: Arc<[u8]> = vec![0x5a; BLOCK].into();
        let same = Arc::clone(&block);
        Self {
            echo: Server::start(any_v4(), echo::serve),
            http: Server::start(any_v4(), http),
            source: Server::start(any_v4(), move |stream| source(stream, Arc::clone(&block))),
            both: Server::start(any_v4(), move |stream| both(stream, Arc::clone(&same))),
            redis: Redis::start(),
        }
    }

    pub(crate) fn all(&self) -> Vec<(Kind, SocketAddr)> {
        let own = [
            (Kind::Echo, &self.echo),
            (Kind::Http, &self.http),
            (Kind::Source, &self.source),
            (Kind::Both, &self.both),
        ];
        let own = own.into_iter().map(|(kind, server)| (kind, server.address()));
        own.chain(self.redis.iter().map(|redis| (Kind::Redis, redis.address()))).collect()
    }
}

async fn http(mut stream: TcpStream) {
    let mut buffer = vec![0; 4096];
    let mut filled = 0;
    // A request of the load generator is one small write; it has ended when its empty line has come.
    while let Ok(n @ 1..) = stream.read(&mut buffer[filled..]).await {
        filled += n;
        if buffer[..filled].ends_with(b"\r\n\r\n") {
            filled = 0;
            if stream.write_all(PAGE).await.is_err() {
                return;
            }
        }
    }
}

async fn source(mut stream: TcpStream, block: Arc<[u8]>) {
    while stream.write_all(&block).await.is_ok() {}
}

async fn both(stream: TcpStream, block: Arc<[u8]>) {
    let (mut from, mut to) = stream.into_split();
    let sending = async { while to.write_all(&block).await.is_ok() {} };
    let mut gulp = vec![0; BLOCK];
    let reading = async { while let Ok(1..) = from.read(&mut gulp).await {} };
    tokio::join!(sending, reading);
}
