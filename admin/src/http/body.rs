//! Bodies of answers: lines as a command makes them, a table in pieces, and the mark that a request is under way.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::command::{Failure, Line};

/// The lines of a command, each sent as it comes. Always ends with `done`, `failed` or `reconnect`.
pub(crate) struct Lines {
    lines: mpsc::Receiver<Line>,
    ended: bool,
}

impl Lines {
    pub(crate) fn new(lines: mpsc::Receiver<Line>) -> Self {
        Self { lines, ended: false }
    }
}

impl HttpBody for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let line = ready!(self.lines.poll_recv(cx)).unwrap_or_else(|| {
            Line::Failed(Failure::failed("the keeper gave the command up without a result; see `proxyctl status`"))
        });
        self.ended = matches!(line, Line::Done(_) | Line::Failed(_) | Line::Reconnect { .. });
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(json_line(&line))))))
    }
}

/// A table, one row a line, made into text piece by piece.
pub(crate) struct Rows<T>(std::vec::IntoIter<T>);

impl<T: Serialize> Rows<T> {
    pub(crate) fn new(rows: Vec<T>) -> Self {
        Self(rows.into_iter())
    }

    /// The text of the next rows; `None` after the last.
    pub(crate) fn piece(&mut self) -> Option<Bytes> {
        let piece: Vec<u8> = self.0.by_ref().take(ROWS_A_PIECE).flat_map(|row| json_line(&row)).collect();
        (!piece.is_empty()).then(|| Bytes::from(piece))
    }
}

impl<T: Serialize + Unpin> HttpBody for Rows<T> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.piece().map(|piece| Ok(Frame::data(piece))))
    }
}

/// Says that a request is under way, until dropped.
pub(crate) struct Open(Option<Box<dyn FnOnce() + Send>>);

impl Open {
    pub(crate) fn until(ended: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(ended)))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(ended) = self.0.take() {
            ended();
        }
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Open")
    }
}

/// Any body, with the mark of its request. hyper drops it once its last byte is buffered for the client.
#[derive(Debug)]
pub(crate) struct Answer {
    body: Body,
    _open: Open,
}

impl Answer {
    pub(crate) fn new(body: Body, open: Open) -> Self {
        Self { body, _open: open }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The words of the contract have no map keys that are not text and no numbers that are not finite by construction,
/// so this cannot fail; a row that did would be left out, not end the answer.
fn json_line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

/// About 16 KiB of text.
const ROWS_A_PIECE: usize = 64;
