//! One admin connection: in which phase it is, how long it may stay there, and the stream that notices.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout_at};

use crate::http::body::{Answer, Open};
use crate::http::{self, Access};
use crate::limits::Limits;

/// Where a connection stands between accept and close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// No byte of the next request yet.
    Idle { since: Instant },
    /// The head of a request is coming; of a new connection also: nothing is.
    Head { since: Instant },
    /// The head is complete, the body is coming.
    Body { since: Instant },
    /// A request is under way.
    Answering,
}

impl Phase {
    /// Since when no request is under way, if so.
    pub(super) fn waiting_since(self) -> Option<Instant> {
        match self {
            Self::Idle { since } | Self::Head { since } => Some(since),
            Self::Body { .. } | Self::Answering => None,
        }
    }

    fn deadline(self, limits: &Limits) -> Option<Instant> {
        match self {
            Self::Idle { since } => Some(since + limits.idle),
            Self::Head { since } => Some(since + limits.request),
            // The body has its own deadline, which ends with an answer.
            Self::Body { .. } | Self::Answering => None,
        }
    }
}

/// A connection's phase, shared by its stream, its requests and the one who waits for it.
#[derive(Debug, Clone)]
struct Shared {
    phase: Arc<watch::Sender<Phase>>,
    freed: Arc<Notify>,
}

impl Shared {
    fn bytes_came(&self) {
        let idle = matches!(*self.phase.borrow(), Phase::Idle { .. });
        if idle {
            self.phase.send_replace(Phase::Head { since: Instant::now() });
        }
    }

    /// Returns when the request began.
    fn head_is_complete(&self) -> Instant {
        let since = match *self.phase.borrow() {
            Phase::Head { since } | Phase::Body { since } => since,
            // A pipelined request: its bytes came with those of the one before.
            Phase::Idle { .. } | Phase::Answering => Instant::now(),
        };
        self.phase.send_replace(Phase::Body { since });
        since
    }

    fn answering(&self) -> Open {
        self.phase.send_replace(Phase::Answering);
        let shared = self.clone();
        Open::until(move || {
            shared.phase.send_replace(Phase::Idle { since: Instant::now() });
            shared.freed.notify_one();
        })
    }
}

/// All that one connection needs.
pub(super) struct Talk {
    access: Access,
    routes: Router,
    limits: Limits,
    shared: Shared,
}

impl Talk {
    pub(super) fn new(access: Access, routes: Router, limits: Limits, freed: Arc<Notify>) -> Self {
        let phase = Arc::new(watch::Sender::new(Phase::Head { since: Instant::now() }));
        Self { access, routes, limits, shared: Shared { phase, freed } }
    }

    pub(super) fn phase(&self) -> watch::Receiver<Phase> {
        self.shared.phase.subscribe()
    }

    /// Serves until the client leaves, breaks a limit, or `stopping` and the request under way, or about to come, is answered.
    pub(super) async fn run<S>(self, stream: S, mut stopping: watch::Receiver<bool>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let limits = self.limits;
        let mut phase = self.phase();
        let stream = Watched { stream, shared: self.shared.clone(), stall: limits.stall, stalled: None };
        let talk = Arc::new(self);
        let service = service_fn(move |request| Arc::clone(&talk).answer(request));
        // hyper's own timeout covers neither the body nor the pause between two requests; the phases cover all three.
        let mut connection = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(None)
                .max_buf_size(MAX_HEAD)
                .serve_connection(TokioIo::new(stream), service)
        );
        // Once the listener has stopped: how long a head may still come.
        let mut last_call = None;
        loop {
            let now = *phase.borrow_and_update();
            if *stopping.borrow() {
                last_call.get_or_insert_with(|| Instant::now() + limits.fresh);
            }
            let coming = last_call.filter(|end| matches!(now, Phase::Head { .. }) && Instant::now() < *end);
            if last_call.is_some() && coming.is_none() {
                connection.as_mut().graceful_shutdown();
            }
            tokio::select! {
                biased;
                // An error is the client's: it left, stalled, or spoke something else.
                _ = connection.as_mut() => return,
                _ = phase.changed() => {}
                _ = stopping.wait_for(|stop| *stop), if last_call.is_none() => {}
                () = at(coming) => {}
                () = at(now.deadline(&limits)) => return,
            }
        }
    }

    async fn answer(self: Arc<Self>, request: hyper::Request<Incoming>) -> Result<hyper::Response<Answer>, io::Error> {
        let since = self.shared.head_is_complete();
        let (head, body) = request.into_parts();
        let body = self.read(body, since + self.limits.request).await;
        let open = self.shared.answering();
        let response = match body {
            Ok(bytes) => {
                let request = hyper::Request::from_parts(head, Body::from(bytes));
                http::answer(self.access, self.routes.clone(), request).await
            }
            Err(unread) => unread.response(),
        };
        Ok(response.map(|body| Answer::new(body, open)))
    }

    async fn read(&self, body: Incoming, deadline: Instant) -> Result<Bytes, Unread> {
        // A length that is announced is judged before a byte of it comes.
        if body.size_hint().lower() > self.limits.body as u64 {
            return Err(Unread::TooLong(self.limits.body));
        }
        match timeout_at(deadline, Limited::new(body, self.limits.body).collect()).await {
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(e)) if e.is::<LengthLimitError>() => Err(Unread::TooLong(self.limits.body)),
            Ok(Err(_)) => Err(Unread::Broken),
            Err(_) => Err(Unread::TooSlow(self.limits.request)),
        }
    }
}

/// Why a request's body is not there. The connection closes after the answer: its rest is not a request.
enum Unread {
    TooLong(usize),
    TooSlow(Duration),
    Broken,
}

impl Unread {
    fn response(&self) -> axum::response::Response {
        use hyper::StatusCode as Code;
        let (code, message) = match self {
            Self::TooLong(limit) => {
                (Code::PAYLOAD_TOO_LARGE, format!("the body is longer than {limit} bytes; nothing was done"))
            }
            Self::TooSlow(limit) => {
                (Code::REQUEST_TIMEOUT, format!("the request was not complete after {limit:?}; nothing was done"))
            }
            Self::Broken => (Code::BAD_REQUEST, "the body could not be read; nothing was done".to_owned()),
        };
        http::last_refusal(code, message)
    }
}

/// The stream of a connection. Says when bytes come, and fails when an answer is not taken for too long.
struct Watched<S> {
    stream: S,
    shared: Shared,
    stall: Duration,
    /// Runs while a write waits for the client.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Watched<S> {
    fn judge(&mut self, written: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stall = self.stall;
        let patience = self.stalled.get_or_insert_with(|| Box::pin(sleep(stall)));
        ready!(patience.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            self.shared.bytes_came();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.judge(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Request line and headers together; the same bound as for a body.
const MAX_HEAD: usize = 64 * 1024;
