//! The keeper's line to one worker: requests with answers, each with a deadline. One task owns the channel; its end is
//! the end of the line, and of nothing else.

use std::cell::{Ref, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use handoff::HandoffError;
use handoff::manifest::{Entry, batches};
use handoff::predecessor::{Down, Predecessor, Up};
use handoff::sequence::Rest;
use handoff::transfer::Role;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::heard::Heard;
use crate::config::order::{Answer, Notice, Order};

/// Clonable; when the last one is dropped, the channel closes.
#[derive(Debug, Clone)]
pub(super) struct Link {
    requests: mpsc::Sender<Request>,
    /// Written by the line, read by the owner loop; both on one thread.
    heard: Rc<RefCell<Heard>>,
    /// Ends the task with the last link.
    line: Rc<AbortOnDropHandle<()>>,
    /// Version of the hand-over protocol.
    protocol: u32,
    notices: Rc<RefCell<Option<mpsc::Receiver<Notice>>>>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("the worker is gone")]
    Gone,
    #[error("the worker did not answer {what} within {} s", .after.as_secs())]
    Deadline { what: &'static str, after: Duration },
    /// Nothing was sent: a lack of ours, or not the moment. The line lives on.
    #[error("the worker could not be told {what}: {source}")]
    Unsent { what: &'static str, source: HandoffError },
    #[error("the worker refused {what}: {why}")]
    Refused { what: &'static str, why: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The answer, or why the request was not sent.
type Reply<T> = oneshot::Sender<Result<T, HandoffError>>;

#[derive(Debug)]
enum Request {
    Commit(Reply<u64>),
    Stop(Reply<u64>),
    Order(Vec<u8>, Reply<Vec<u8>>),
    Sockets(Vec<(Entry, OwnedFd)>, Reply<()>),
    Segment(u32, OwnedFd, Reply<()>),
    Rest(Reply<(OwnedFd, Rest)>),
    Door(OwnedFd, Reply<()>),
    Path(PathEnd, Reply<()>),
    Vault(OwnedFd, Reply<()>),
}

/// One end of a path on which sessions go from one generation to another.
#[derive(Debug)]
pub(super) struct PathEnd {
    pub id: u64,
    pub role: Role,
    /// Who has the other end; 0: the keeper.
    pub other: u32,
    pub end: OwnedFd,
}

/// Longest wait for an answer. A worker's control thread only talks to its data threads, which do not block.
const ANSWER: Duration = Duration::from_secs(5);
const QUEUE: usize = 64;
/// The first that speaks of paths.
const PATHS: u32 = 3;

impl Link {
    /// Takes over a channel after READY. The task ends with the channel, or when every `Link` is gone.
    pub(super) fn start(predecessor: Predecessor) -> Self {
        let (requests, inbox) = mpsc::channel(QUEUE);
        let heard = Rc::new(RefCell::new(Heard::new(Instant::now())));
        let (told, notices) = mpsc::channel(QUEUE);
        let protocol = predecessor.protocol();
        let line = Line { predecessor, open: Open::default(), inbox, heard: Rc::clone(&heard), told };
        let task = tokio::task::spawn_local(async move {
            if let Err(error) = line.run().await {
                tracing::debug!(%error, "worker channel closed");
            }
        });
        let notices = Rc::new(RefCell::new(Some(notices)));
        Self { requests, heard, line: Rc::new(AbortOnDropHandle::new(task)), protocol, notices }
    }

    /// What the worker says unasked: for the first who wants to hear it.
    pub(super) fn notices(&self) -> Option<mpsc::Receiver<Notice>> {
        self.notices.borrow_mut().take()
    }

    /// Whether sessions can come to this worker from another, or go from it to another.
    pub(super) fn knows_paths(&self) -> bool {
        self.protocol >= PATHS
    }

    pub(super) fn has_ended(&self) -> bool {
        self.requests.is_closed()
    }

    /// Resolves when the channel has ended. Does not keep it alive.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + use<> {
        let requests = self.requests.clone();
        async move { requests.closed().await }
    }

    pub(super) fn heard(&self) -> Ref<'_, Heard> {
        self.heard.borrow()
    }

    /// The worker polls its listeners. Returns the moment of its first poll, CLOCK_MONOTONIC nanoseconds.
    pub(super) async fn commit(&self) -> Result<u64, LinkError> {
        self.ask("commit", Request::Commit).await
    }

    /// The worker polls no more, and closes nothing. Returns the moment of its last poll.
    pub(super) async fn stop(&self) -> Result<u64, LinkError> {
        self.ask("stop", Request::Stop).await
    }

    pub(super) async fn order(&self, what: &'static str, order: &Order) -> Result<Answer, LinkError> {
        let body = serde_json::to_vec(order).map_err(io::Error::other)?;
        let answer = self.ask(what, |reply| Request::Order(body, reply)).await?;
        match serde_json::from_slice(&answer).map_err(io::Error::other)? {
            Answer::Refused { why } => Err(LinkError::Refused { what, why }),
            answer => Ok(answer),
        }
    }

    /// Hands more listening sockets to a serving worker.
    pub(super) async fn sockets(&self, mut sockets: Vec<(Entry, OwnedFd)>) -> Result<(), LinkError> {
        let borrowed: Vec<_> = sockets.iter().map(|(entry, fd)| (entry.clone(), fd.as_fd())).collect();
        let sizes: Vec<usize> = batches(&borrowed).map(<[_]>::len).collect();
        for size in sizes {
            let rest = sockets.split_off(size);
            self.ask("new listeners", |reply| Request::Sockets(sockets, reply)).await?;
            sockets = rest;
        }
        Ok(())
    }

    pub(super) async fn segment(&self, index: u32, fd: OwnedFd) -> Result<(), LinkError> {
        self.ask("a ledger segment", |reply| Request::Segment(index, fd, reply)).await
    }

    /// Gives the worker the door at which another keeper will knock.
    pub(super) async fn door(&self, door: OwnedFd) -> Result<(), LinkError> {
        self.ask("a door", |reply| Request::Door(door, reply)).await
    }

    /// Gives the worker one end of a path. What becomes of it is a notice.
    pub(super) async fn path(&self, end: PathEnd) -> Result<(), LinkError> {
        self.ask("a path", |reply| Request::Path(end, reply)).await
    }

    /// Gives the worker the end by which it leaves sessions with us.
    pub(super) async fn vault(&self, end: OwnedFd) -> Result<(), LinkError> {
        self.ask("a vault", |reply| Request::Vault(end, reply)).await
    }

    /// A word between keepers.
    pub(super) async fn say<A: DeserializeOwned>(
        &self,
        what: &'static str,
        word: &impl Serialize,
        after: Duration,
    ) -> Result<A, LinkError> {
        let body = serde_json::to_vec(word).map_err(io::Error::other)?;
        let answer = self.ask_within(after, what, |reply| Request::Order(body, reply)).await?;
        Ok(serde_json::from_slice(&answer).map_err(io::Error::other)?)
    }

    /// Ends the line.
    pub(super) fn sever(&self) {
        self.line.abort();
    }

    /// Ends the line, without keeping it alive.
    pub(super) fn severing(&self) -> AbortHandle {
        self.line.abort_handle()
    }

    /// Waits until no answer is awaited; then where the conversation stands, and a descriptor to go on with it elsewhere.
    pub(super) async fn rest(&self) -> Result<(OwnedFd, Rest), LinkError> {
        self.ask("what is under way", Request::Rest).await
    }

    async fn ask<T>(&self, what: &'static str, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, LinkError> {
        self.ask_within(ANSWER, what, request).await
    }

    async fn ask_within<T>(
        &self,
        after: Duration,
        what: &'static str,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, LinkError> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.requests.send(request(reply)).await.map_err(|_| LinkError::Gone)?;
            let answer = answer.await.map_err(|_| LinkError::Gone)?;
            answer.map_err(|source| LinkError::Unsent { what, source })
        };
        timeout(after, asked).await.map_err(|_| LinkError::Deadline { what, after })?
    }
}

/// Who waits for what.
#[derive(Default)]
struct Open {
    next_order: u64,
    orders: HashMap<u64, Reply<Vec<u8>>>,
    sockets: Option<Reply<()>>,
    polling: Option<Reply<u64>>,
    stopped: Option<Reply<u64>>,
    rest: Vec<Reply<(OwnedFd, Rest)>>,
}

struct Line {
    predecessor: Predecessor,
    open: Open,
    inbox: mpsc::Receiver<Request>,
    heard: Rc<RefCell<Heard>>,
    told: mpsc::Sender<Notice>,
}

impl Line {
    async fn run(mut self) -> Result<(), HandoffError> {
        loop {
            self.say_rest();
            tokio::select! {
                request = self.inbox.recv() => match request {
                    Some(request) => self.send(request).await?,
                    None => return Ok(()),
                },
                up = self.predecessor.next() => match up? {
                    Up::Heartbeat(pulse) => self.heard.borrow_mut().beat(Instant::now(), &pulse),
                    Up::Notice { body } => self.noticed(&body),
                    up => self.open.answered(up),
                },
            }
        }
    }

    /// Whoever waits for it has a deadline, too: a notice that nobody can take is no reason to stop hearing the worker.
    fn noticed(&self, body: &[u8]) {
        match serde_json::from_slice(body) {
            Ok(notice) => {
                if self.told.try_send(notice).is_err() {
                    tracing::warn!("a notice of a worker is lost: too many are waiting");
                }
            }
            // Of a later version.
            Err(error) => tracing::debug!(%error, "a notice of a worker cannot be read"),
        }
    }

    /// Tells those who wait for it that nothing is open.
    fn say_rest(&mut self) {
        let Some(rest) = self.predecessor.rest().filter(|_| !self.open.rest.is_empty()) else { return };
        for waiting in self.open.rest.drain(..) {
            // Without a descriptor to be had, the one who waits hears nothing, which says so.
            if let Ok(fd) = self.predecessor.duplicate() {
                let _ = waiting.send(Ok((fd, rest)));
            }
        }
    }

    async fn send(&mut self, request: Request) -> Result<(), HandoffError> {
        match request {
            Request::Commit(reply) => {
                let sent = self.predecessor.send(Down::Commit).await;
                self.open.polling = settled(sent, reply)?.or_else(|| self.open.polling.take());
            }
            Request::Stop(reply) => {
                let sent = self.predecessor.send(Down::Stop).await;
                self.open.stopped = settled(sent, reply)?.or_else(|| self.open.stopped.take());
            }
            Request::Order(body, reply) => {
                self.open.next_order += 1;
                let id = self.open.next_order;
                let sent = self.predecessor.send(Down::Order { id, body: &body }).await;
                self.open.orders.extend(settled(sent, reply)?.map(|reply| (id, reply)));
            }
            Request::Sockets(sockets, reply) => {
                let borrowed: Vec<_> = sockets.iter().map(|(entry, fd)| (entry.clone(), fd.as_fd())).collect();
                let sent = self.predecessor.send(Down::Sockets(&borrowed)).await;
                self.open.sockets = settled(sent, reply)?.or_else(|| self.open.sockets.take());
            }
            Request::Path(PathEnd { id, role, other, end }, reply) => {
                done(self.predecessor.send(Down::Path { id, role, other, fd: end.as_fd() }).await, reply)?;
            }
            Request::Vault(end, reply) => done(self.predecessor.send(Down::Vault(end.as_fd())).await, reply)?,
            Request::Door(door, reply) => done(self.predecessor.send(Down::Door(door.as_fd())).await, reply)?,
            Request::Segment(index, fd, reply) => {
                done(self.predecessor.send(Down::Segment { index, fd: fd.as_fd() }).await, reply)?;
            }
            Request::Rest(reply) => self.open.rest.push(reply),
        }
        Ok(())
    }
}

/// Who waits for the answer of what was sent. Of what was not sent its caller is told, and the line lives on: a lack of
/// ours is no reason to lose a worker. `Err`: the line has ended.
fn settled<T>(sent: Result<(), HandoffError>, reply: Reply<T>) -> Result<Option<Reply<T>>, HandoffError> {
    match sent {
        Ok(()) => Ok(Some(reply)),
        Err(error) if error.is_unsent() => {
            // A caller that no longer waits has said so to its operator already.
            let _ = reply.send(Err(error));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// For words that have no answer.
fn done(sent: Result<(), HandoffError>, reply: Reply<()>) -> Result<(), HandoffError> {
    if let Some(reply) = settled(sent, reply)? {
        let _ = reply.send(Ok(()));
    }
    Ok(())
}

impl Open {
    fn answered(&mut self, up: Up) {
        // A caller that no longer waits has said so to its operator already.
        match up {
            Up::Polling { first_poll_ns } => drop(self.polling.take().map(|reply| reply.send(Ok(first_poll_ns)))),
            Up::Stopped { last_poll_ns } => drop(self.stopped.take().map(|reply| reply.send(Ok(last_poll_ns)))),
            Up::Answer { id, body } => drop(self.orders.remove(&id).map(|reply| reply.send(Ok(body)))),
            Up::SocketsTaken { .. } => drop(self.sockets.take().map(|reply| reply.send(Ok(())))),
            Up::Heartbeat(_) | Up::Notice { .. } => {}
        }
    }
}
