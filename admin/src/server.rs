//! The accept loops of the admin side: who may come in, how many at a time, and how they leave.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::{Instant, timeout};

use crate::door::Door;
use crate::http::{self, Access};
use crate::limits::Limits;

mod connection;

use connection::{Phase, Talk};

/// Serves every verb to our own uid and root, until `stop`; others get 403 and a line in the log.
pub async fn serve_unix(listener: UnixListener, door: impl Door, stop: impl Future<Output = ()>) {
    serve_unix_within(Limits::default(), listener, door, stop).await;
}

/// [`serve_unix`] with limits of the caller's.
pub async fn serve_unix_within(
    limits: Limits,
    listener: UnixListener,
    door: impl Door,
    stop: impl Future<Output = ()>,
) {
    Server::new(listener, limits, |stopping| http::all_verbs(door, limits, stopping)).run(stop).await;
}

/// Serves `/metrics`, `/healthz`, `/readyz` and the page, to GET and HEAD only, until `stop`.
pub async fn serve_tcp(listener: TcpListener, door: impl Door, stop: impl Future<Output = ()>) {
    serve_tcp_within(Limits::default(), listener, door, stop).await;
}

/// [`serve_tcp`] with limits of the caller's.
pub async fn serve_tcp_within(limits: Limits, listener: TcpListener, door: impl Door, stop: impl Future<Output = ()>) {
    Server::new(listener, limits, |_| http::read_only(door)).run(stop).await;
}

/// A listening socket and what its clients may do.
trait Entrance {
    type Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static;

    async fn accept(&self) -> io::Result<(Self::Stream, Access)>;
}

impl Entrance for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Access)> {
        let (stream, _) = Self::accept(self).await?;
        let peer = stream.peer_cred()?;
        let access = Access::of_uid(peer.uid(), rustix::process::geteuid().as_raw());
        if matches!(access, Access::Denied { .. }) {
            tracing::warn!(uid = peer.uid(), pid = peer.pid(), "admin socket: a process of another user was refused");
        }
        Ok((stream, access))
    }
}

impl Entrance for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Access)> {
        let (stream, _) = Self::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok((stream, Access::ReadOnly))
    }
}

/// One listener and the connections it accepted.
struct Server<E> {
    entrance: E,
    routes: Router,
    limits: Limits,
    tasks: JoinSet<()>,
    connections: HashMap<Id, Connection>,
    /// A connection has begun to wait for its next request.
    freed: Arc<Notify>,
    stopping: watch::Sender<bool>,
}

struct Connection {
    task: AbortHandle,
    phase: watch::Receiver<Phase>,
}

impl<E: Entrance> Server<E> {
    /// `routes` may watch for the stop: an answer without an end of its own ends with it.
    fn new(entrance: E, limits: Limits, routes: impl FnOnce(watch::Receiver<bool>) -> Router) -> Self {
        let stopping = watch::Sender::new(false);
        Self {
            entrance,
            routes: routes(stopping.subscribe()),
            limits,
            tasks: JoinSet::new(),
            connections: HashMap::new(),
            freed: Arc::new(Notify::new()),
            stopping,
        }
    }

    async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let freed = Arc::clone(&self.freed);
        loop {
            let room = self.has_room();
            tokio::select! {
                biased;
                () = &mut stop => break,
                Some(ended) = self.tasks.join_next_with_id() => self.forget(&ended),
                () = freed.notified(), if !room => {}
                accepted = self.entrance.accept(), if room => match accepted {
                    Ok((stream, access)) => self.admit(stream, access),
                    Err(e) => self.pause_after(&e).await,
                },
            }
        }
        self.finish().await;
    }

    fn has_room(&self) -> bool {
        self.connections.len() < self.limits.connections || self.longest_waiting().is_some()
    }

    fn admit(&mut self, stream: E::Stream, access: Access) {
        if self.connections.len() >= self.limits.connections {
            self.evict();
        }
        let talk = Talk::new(access, self.routes.clone(), self.limits, Arc::clone(&self.freed));
        let phase = talk.phase();
        let task = self.tasks.spawn(talk.run(stream, self.stopping.subscribe()));
        self.connections.insert(task.id(), Connection { task, phase });
    }

    /// The connection that waits longest for a request makes room. One whose request is under way never does.
    fn evict(&mut self) {
        if let Some(id) = self.longest_waiting()
            && let Some(connection) = self.connections.remove(&id)
        {
            connection.task.abort();
        }
    }

    fn longest_waiting(&self) -> Option<Id> {
        let since = |connection: &Connection| connection.phase.borrow().waiting_since();
        let waiting = self.connections.iter().filter_map(|(id, connection)| Some((since(connection)?, *id)));
        waiting.min_by_key(|(since, _): &(Instant, Id)| *since).map(|(_, id)| id)
    }

    fn forget(&mut self, ended: &Result<(Id, ()), tokio::task::JoinError>) {
        let id = match ended {
            Ok((id, ())) => *id,
            Err(e) => {
                if e.is_panic() {
                    tracing::error!(error = %e, "admin: a connection's task panicked; the others go on");
                }
                e.id()
            }
        };
        self.connections.remove(&id);
    }

    /// An error of one connection means nothing for the next; out of descriptors or memory, wait for some to return.
    async fn pause_after(&self, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, NotConnected};
        if !matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | NotConnected) {
            tracing::warn!(%error, "admin: cannot accept");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }

    /// Lets requests under way finish; idle connections close at once.
    async fn finish(mut self) {
        drop(self.entrance);
        self.stopping.send_replace(true);
        let all_ended = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(self.limits.finish, all_ended).await.is_err() {
            self.tasks.shutdown().await;
        }
    }
}

/// Long enough not to spin while out of descriptors, short enough that an operator does not notice.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
