//! A backend of a test: a listener, a runtime of its own, a task a connection.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// One thread that drives the tasks of one part of a test.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a thread can be started")
}

#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    accepted: Arc<AtomicU64>,
    runtime: Option<Runtime>,
}

impl Server {
    /// Listens on a port of the kernel's choice; `address` says on which family.
    pub fn start<F, S>(address: SocketAddr, serve: F) -> Self
    where
        F: Fn(TcpStream) -> S + Send + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        let runtime = runtime();
        let listener = runtime.block_on(async { listen(address) }).expect("the kernel has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let accepted = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&accepted);
        // Owned by the runtime, which ends it when the server is dropped.
        drop(runtime.spawn(accept(listener, count, serve)));
        Self { address, accepted, runtime: Some(runtime) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Acquire)
    }
}

/// With the longest queue there is: when the machine stalls, a burst beyond the usual 1024 would meet SYN cookies, and some
/// of its connections a reset that is nobody's fault but the test's.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(QUEUE)
}

/// The default of net.core.somaxconn, to which the kernel cuts what is longer.
const QUEUE: u32 = 4096;

async fn accept<F, S>(listener: TcpListener, accepted: Arc<AtomicU64>, serve: F)
where
    F: Fn(TcpStream) -> S,
    S: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        accepted.fetch_add(1, Ordering::AcqRel);
        stream.set_nodelay(true).expect("a fresh connection takes options");
        connections.spawn(serve(stream));
        while connections.try_join_next().is_some() {}
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

/// 127.0.0.1, any port.
pub fn any_v4() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}
