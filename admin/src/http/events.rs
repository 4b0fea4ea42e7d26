//! `GET /v1/events`: what is kept, and with `follow=1` what comes after it, one object a line, until the server stops.
//!
//! A follower pulls: what it has not read yet waits in the keeper's bounded list, never here. One that falls behind the
//! list is told how much it missed; one that stops reading is cut like every client.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::body::{Body as HttpBody, Bytes, Frame};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::sleep;

use super::body::Rows;
use super::{AnyQuery, ndjson, pairs, refusal};
use crate::codec;
use crate::command::Failure;
use crate::door::Door;
use crate::limits::Limits;
use crate::view::EventView;

/// Where events are asked for: the door, and the places of those who follow.
#[derive(Clone)]
pub(super) struct Desk<D> {
    door: D,
    places: Arc<Semaphore>,
    limits: Limits,
    stopping: watch::Receiver<bool>,
}

impl<D: Door> Desk<D> {
    pub(super) fn new(door: D, limits: Limits, stopping: watch::Receiver<bool>) -> Self {
        Self { door, places: Arc::new(Semaphore::new(limits.followers)), limits, stopping }
    }

    fn follow(self, since: u64) -> Response {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            let text = format!(
                "{} clients follow events already; end one of them, or ask without follow",
                self.limits.followers
            );
            return refusal(StatusCode::SERVICE_UNAVAILABLE, Failure::conflict(text));
        };
        // Only a keeper that was started anew counts from 1 again; all it knows is news.
        let seq = if since > self.door.newest_event() { 0 } else { since };
        let following = Following {
            door: self.door,
            stopping: self.stopping,
            quiet: self.limits.quiet,
            seq,
            rows: Rows::new(Vec::new()),
            wait: None,
            last_round: false,
            _place: place,
        };
        (ndjson(), Body::new(following)).into_response()
    }
}

pub(super) async fn events<D: Door>(State(desk): State<Desk<D>>, query: AnyQuery) -> Response {
    match pairs(query).and_then(|pairs| codec::events(&pairs)) {
        Ok((since, true)) => desk.follow(since),
        Ok((since, false)) => (ndjson(), Body::new(Rows::new(desk.door.events(since)))).into_response(),
        Err(failure) => refusal(StatusCode::BAD_REQUEST, failure),
    }
}

/// An answer that goes on as long as there is news.
struct Following<D> {
    door: D,
    stopping: watch::Receiver<bool>,
    quiet: Duration,
    /// The newest number given out.
    seq: u64,
    rows: Rows<EventView>,
    wait: Option<Pin<Box<dyn Future<Output = Heard> + Send>>>,
    /// What is there now is sent, then it ends.
    last_round: bool,
    _place: OwnedSemaphorePermit,
}

enum Heard {
    News,
    /// Nothing for a while.
    Quiet,
    End,
}

impl<D: Door> Following<D> {
    /// What came since the last look, with word of what came and went.
    fn look(&mut self) {
        let newest = self.door.newest_event();
        let mut kept = self.door.events(self.seq);
        let before = kept.first().map_or(newest, |first| first.seq.saturating_sub(1));
        // Who asks for all there is misses nothing.
        if self.seq > 0 && before > self.seq {
            kept.insert(0, missed(self.seq, before));
        }
        self.seq = kept.last().map_or(before, |last| last.seq).max(self.seq);
        self.rows = Rows::new(kept);
    }
}

async fn hear(door: impl Door, seq: u64, quiet: Duration, mut stopping: watch::Receiver<bool>) -> Heard {
    tokio::select! {
        biased;
        _ = stopping.wait_for(|stop| *stop) => Heard::End,
        newer = door.newer_event(seq) => if newer.is_some() { Heard::News } else { Heard::End },
        () = sleep(quiet) => Heard::Quiet,
    }
}

/// None of its parts is pinned in place.
impl<D> Unpin for Following<D> {}

impl<D: Door> HttpBody for Following<D> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = |bytes: Bytes| Poll::Ready(Some(Ok(Frame::data(bytes))));
        loop {
            if self.wait.is_none() {
                if let Some(piece) = self.rows.piece() {
                    return data(piece);
                }
                self.look();
                if let Some(piece) = self.rows.piece() {
                    return data(piece);
                }
            }
            if self.last_round {
                return Poll::Ready(None);
            }
            let (door, seq, quiet, stopping) = (self.door.clone(), self.seq, self.quiet, self.stopping.clone());
            let wait = self.wait.get_or_insert_with(|| Box::pin(hear(door, seq, quiet, stopping)));
            let heard = ready!(wait.as_mut().poll(cx));
            self.wait = None;
            match heard {
                Heard::News => {}
                Heard::Quiet => return data(Bytes::from_static(b"\n")),
                Heard::End => self.last_round = true,
            }
        }
    }
}

/// In place of the events between two numbers.
fn missed(after: u64, until: u64) -> EventView {
    let count = until - after;
    let mut event = EventView {
        seq: until,
        time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
        event: "events_missed".into(),
        text: format!("{count} events were too many to keep; they are in the log"),
        ..EventView::default()
    };
    event.fields.insert("missed".into(), count.into());
    event
}
