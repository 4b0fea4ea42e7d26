//! `proxyctl`'s side of the admin socket: one request a connection, answers as typed values.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::codec;
use crate::command::Filter;
use crate::view::{EventView, SessionRow, Status};

mod answer;
mod command;
mod error;
mod follow;

use answer::Answer;
pub use error::{Absence, ClientError};

/// Where a keeper listens, and how long it may be silent.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
    silence: Duration,
}

impl Client {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), silence: SILENCE }
    }

    /// Bounds the time without a byte from the keeper; 60 s unless told.
    #[must_use]
    pub fn silence(self, silence: Duration) -> Self {
        Self { silence, ..self }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub async fn status(&self) -> Result<Status, ClientError> {
        self.ask(Method::GET, "/v1/status", Vec::new()).await?.document().await
    }

    pub async fn sessions(&self, filter: &Filter) -> Result<Vec<SessionRow>, ClientError> {
        self.rows(&format!("/v1/sessions?{}", codec::query(filter))).await
    }

    async fn rows<T: DeserializeOwned>(&self, uri: &str) -> Result<Vec<T>, ClientError> {
        let mut answer = self.ask(Method::GET, uri, Vec::new()).await?;
        let mut rows = Vec::new();
        while let Some(row) = answer.line().await? {
            rows.push(row);
        }
        Ok(rows)
    }

    /// Events that the keeper still has and that came after this number.
    pub async fn events(&self, since: u64) -> Result<Vec<EventView>, ClientError> {
        self.rows(&format!("/v1/events?since={since}")).await
    }

    /// Prometheus text.
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let mut answer = self.ask(Method::GET, "/metrics", Vec::new()).await?;
        String::from_utf8(answer.rest().await?).map_err(|e| self.nonsense(e))
    }

    async fn ask(&self, method: Method, uri: &str, body: Vec<u8>) -> Result<Answer, ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::HOST, "proxyd")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| self.nonsense(e))?;
        timeout(self.silence, self.send_surely(request)).await.map_err(|_| self.silent())?
    }

    /// A keeper that replaces itself may close a connection it has accepted but not read; what was never sent may be
    /// sent again.
    async fn send_surely(&self, request: Request<Full<Bytes>>) -> Result<Answer, ClientError> {
        for _ in 1..HASTY {
            match self.send(request.clone()).await {
                Err(ClientError::NoDaemon { why: Absence::Hasty, .. }) => tokio::time::sleep(BETWEEN).await,
                sent => return sent,
            }
        }
        self.send(request).await
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer, ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.of_hyper(&e))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // What ends the connection is seen by the request as well.
            let _ = connection.await;
        });
        let response = sender.send_request(request).await.map_err(|e| self.of_hyper(&e))?;
        let (code, body) = self.recognise(response)?;
        let mut answer = Answer::new(self.clone(), body, (sender, driver));
        if code.is_success() {
            return Ok(answer);
        }
        Err(ClientError::Refused(answer.failure(code).await?))
    }

    /// Connects, and makes sure that it is ours or root's process that listens. A dead socket is left as it is.
    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let stream = UnixStream::connect(&self.path).await.map_err(|e| self.no_daemon(self.absence(e)))?;
        let server = stream.peer_cred().map_err(|e| self.no_daemon(Absence::System(e)))?.uid();
        let own = rustix::process::geteuid().as_raw();
        if server == own || server == 0 || own == 0 {
            return Ok(stream);
        }
        Err(self.no_daemon(Absence::Foreign { uid: server }))
    }

    fn absence(&self, error: io::Error) -> Absence {
        use std::os::unix::fs::FileTypeExt;
        let is_socket = || std::fs::metadata(&self.path).is_ok_and(|found| found.file_type().is_socket());
        match error.kind() {
            io::ErrorKind::NotFound => Absence::Missing,
            io::ErrorKind::ConnectionRefused if is_socket() => Absence::Stale,
            io::ErrorKind::ConnectionRefused => Absence::NotASocket,
            io::ErrorKind::PermissionDenied => Absence::Permission,
            _ => Absence::System(error),
        }
    }

    fn recognise(&self, response: Response<Incoming>) -> Result<(StatusCode, Incoming), ClientError> {
        let (head, body) = response.into_parts();
        let server = head.headers.get(header::SERVER).and_then(|server| server.to_str().ok());
        if server.is_some_and(|server| server.starts_with("proxyd/")) {
            return Ok((head.status, body));
        }
        Err(self.no_daemon(Absence::NotProxyd))
    }

    fn of_hyper(&self, error: &hyper::Error) -> ClientError {
        match (error.is_parse(), error.is_canceled()) {
            (true, _) => self.no_daemon(Absence::NotProxyd),
            (_, true) => self.no_daemon(Absence::Hasty),
            _ => self.lost(error),
        }
    }

    fn no_daemon(&self, why: Absence) -> ClientError {
        ClientError::NoDaemon { path: self.path.clone(), why }
    }

    fn silent(&self) -> ClientError {
        ClientError::Silent { path: self.path.clone(), after: self.silence }
    }

    fn lost(&self, how: impl ToString) -> ClientError {
        ClientError::Lost { path: self.path.clone(), how: how.to_string() }
    }

    fn nonsense(&self, what: impl ToString) -> ClientError {
        ClientError::Nonsense { path: self.path.clone(), what: what.to_string() }
    }
}

/// The default of `--timeout`.
pub const SILENCE: Duration = Duration::from_secs(60);

/// Between two attempts to reach a keeper that is away: an `execve` takes some milliseconds, a restart a second.
const BETWEEN: Duration = Duration::from_millis(50);

/// Attempts to send a request; a second in all.
const HASTY: u32 = 20;
