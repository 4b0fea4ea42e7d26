//! An answer as it comes: lines, a document, or the failure it is.

use http_body_util::{BodyExt, Full};
use hyper::StatusCode;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Client, ClientError};
use crate::command::Failure;

/// A successful answer that is still coming.
pub(super) struct Answer {
    at: Client,
    body: Incoming,
    pending: Vec<u8>,
    /// Keeps the connection driven; dropped, it closes.
    _talk: Talk,
}

/// The two halves of a connection that is in use.
pub(super) type Talk = (SendRequest<Full<Bytes>>, JoinSet<()>);

impl Answer {
    pub(super) fn new(at: Client, body: Incoming, talk: Talk) -> Self {
        Self { at, body, pending: Vec::new(), _talk: talk }
    }

    /// The next line as a value; `None` at the end. Empty lines only say that the keeper is there. After
    /// [`ClientError::Silent`] it may be asked again: nothing of the answer is lost.
    pub(super) async fn line<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.pending[searched..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=searched + end).collect();
                searched = 0;
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return serde_json::from_slice(&line).map(Some).map_err(|e| self.at.nonsense(e));
            }
            searched = self.pending.len();
            if !self.more().await? {
                return if self.pending.is_empty() { Ok(None) } else { Err(self.at.lost("in the middle of a line")) };
            }
        }
    }

    pub(super) async fn document<T: DeserializeOwned>(&mut self) -> Result<T, ClientError> {
        let bytes = self.rest().await?;
        serde_json::from_slice(&bytes).map_err(|e| self.at.nonsense(e))
    }

    pub(super) async fn rest(&mut self) -> Result<Vec<u8>, ClientError> {
        while self.more().await? {}
        Ok(std::mem::take(&mut self.pending))
    }

    pub(super) async fn failure(&mut self, code: StatusCode) -> Result<Failure, ClientError> {
        let bytes = self.rest().await?;
        Ok(serde_json::from_slice(&bytes).unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(&bytes);
            Failure::failed(format!("proxyd answered {code}: {}", text.trim()))
        }))
    }

    /// Takes what comes next; false at the end.
    async fn more(&mut self) -> Result<bool, ClientError> {
        let frame = timeout(self.at.silence, self.body.frame()).await.map_err(|_| self.at.silent())?;
        let Some(frame) = frame else { return Ok(false) };
        let frame = frame.map_err(|e| self.at.lost(e))?;
        if let Ok(bytes) = frame.into_data() {
            self.pending.extend_from_slice(&bytes);
        }
        if self.pending.len() > MAX_PENDING {
            return Err(self.at.nonsense(format!("more than {MAX_PENDING} bytes without an end")));
        }
        Ok(true)
    }
}

/// A dry run that kills 100,000 sessions is one line of some 40 MB; more is no answer of ours.
const MAX_PENDING: usize = 128 * 1024 * 1024;
