//! Whether a pool can be reached, found out without a session: the same pick and the same connect, but nothing is relayed
//! and nothing is counted.

use std::time::Duration;

use tokio::time::timeout;

use super::connect::connect;
use super::socket::Socket;
use crate::pool::{Pool, Tried};

/// The connection that proved it; to be ended with [`Reachable::farewell`].
#[derive(Debug)]
pub struct Reachable(Option<Socket>);

/// For one backend: less than the keeper waits for the whole answer, several times over.
const ONE: Duration = Duration::from_secs(1);
/// For a backend to end its side after we have ended ours.
const FAREWELL: Duration = Duration::from_secs(1);

/// Connects to one backend after the other until one answers. `Err` says what the last one tried said. A pool that takes no
/// sessions because the operator wants it so is in order.
pub async fn probe(pool: &Pool) -> Result<Reachable, String> {
    let mut tried = Tried::default();
    let mut failed = None;
    while let Some(backend) = pool.pick(&mut tried) {
        match timeout(ONE, connect(backend, pool)).await {
            Ok(Ok(socket)) => return Ok(Reachable(Some(socket))),
            Ok(Err(error)) => failed = Some(error.to_string()),
            Err(_) => {
                failed = Some(format!("backend {} ({}): no answer within 1 s", backend.name, backend.address));
            }
        }
    }
    failed.map_or(Ok(Reachable(None)), Err)
}

impl Reachable {
    /// Ends it in good order. What the backend has said is read: a close with unread bytes would be a reset.
    pub async fn farewell(self) {
        let Some(socket) = self.0 else { return };
        socket.linger_off();
        if socket.shutdown().is_err() {
            return;
        }
        let mut waste = [0; 512];
        let read_all = async {
            while std::future::poll_fn(|cx| socket.poll_receive(cx, &mut waste)).await.is_ok_and(|n| n > 0) {}
        };
        let _ = timeout(FAREWELL, read_all).await;
    }
}
