//! `proxyctl`'s side of the admin socket: one request a connection, answers as typed values.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::codec;
use crate::command::{Command, Failure, FailureKind, Filter, Line, Reply};
use crate::view::{SessionRow, Status};

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
        let uri = format!("/v1/sessions?{}", codec::query(filter));
        let mut answer = self.ask(Method::GET, &uri, Vec::new()).await?;
        let mut rows = Vec::new();
        while let Some(row) = answer.line().await? {
            rows.push(row);
        }
        Ok(rows)
    }

    /// Prometheus text.
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let mut answer = self.ask(Method::GET, "/metrics", Vec::new()).await?;
        let bytes = answer.rest().await?;
        String::from_utf8(bytes).map_err(|e| answer.at.nonsense(e))
    }

    /// Runs a command to its end. `on_step` sees each step as it begins. Giving up does not cancel the command.
    pub async fn command(&self, command: &Command, mut on_step: impl FnMut(&Line)) -> Result<Reply, ClientError> {
        let body = serde_json::to_vec(command).map_err(|e| self.nonsense(e))?;
        let mut answer = self.ask(Method::POST, "/v1/command", body).await?;
        loop {
            match answer.line().await? {
                Some(Line::Done(reply)) => return Ok(reply),
                Some(Line::Failed(failure)) => return Err(ClientError::Refused(failure)),
                Some(step @ Line::Step { .. }) => on_step(&step),
                // Its socket is the same; whoever connects waits until the new version answers.
                Some(Line::Reconnect { upgrade }) => {
                    answer = self.ask(Method::POST, "/v1/command", report_of(upgrade)).await?;
                }
                None => return Err(self.lost("the answer ended without a result")),
            }
        }
    }

    async fn ask(&self, method: Method, uri: &str, body: Vec<u8>) -> Result<Answer, ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::HOST, "proxyd")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| self.nonsense(e))?;
        let within = async { self.send(request).await };
        timeout(self.silence, within).await.map_err(|_| self.silent())?
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
        let mut answer = Answer { at: self.clone(), body, pending: Vec::new(), _talk: (sender, driver) };
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

fn report_of(upgrade: u64) -> Vec<u8> {
    serde_json::to_vec(&Command::Report { id: Some(upgrade) }).expect("a command is JSON")
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no proxyd answers at {} ({why})", path.display())]
    NoDaemon { path: PathBuf, why: Absence },
    /// The keeper answered: no.
    #[error("{0}")]
    Refused(Failure),
    #[error("no word from proxyd at {} for {after:?}; what it has begun goes on, see `proxyctl status`", path.display())]
    Silent { path: PathBuf, after: Duration },
    #[error("lost proxyd at {} before the result ({how}); what it had begun may go on, see `proxyctl status`", path.display())]
    Lost { path: PathBuf, how: String },
    #[error("proxyd at {} gave an answer this version cannot read: {what}", path.display())]
    Nonsense { path: PathBuf, what: String },
}

/// In what way no daemon is there.
#[derive(Debug, thiserror::Error)]
pub enum Absence {
    #[error("no such socket")]
    Missing,
    #[error("stale socket")]
    Stale,
    #[error("not a socket")]
    NotASocket,
    #[error("what listens there is not a proxyd")]
    NotProxyd,
    /// The request was never sent, so nothing has begun.
    #[error("what listens there spoke or closed before it was asked; it is not a proxyd, or is just ending")]
    Hasty,
    #[error("permission denied; it serves its own user and root")]
    Permission,
    #[error("it belongs to uid {uid}, neither you nor root, and is not trusted")]
    Foreign { uid: u32 },
    #[error("{0}")]
    System(io::Error),
}

impl ClientError {
    /// Exit code of `proxyctl`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoDaemon { why: Absence::Permission, .. } => FailureKind::Denied.exit_code(),
            Self::NoDaemon { .. } | Self::Lost { .. } => 3,
            Self::Refused(failure) => failure.kind.exit_code(),
            Self::Silent { .. } => FailureKind::TimedOut.exit_code(),
            Self::Nonsense { .. } => FailureKind::Failed.exit_code(),
        }
    }
}

/// A successful answer that is still coming.
struct Answer {
    at: Client,
    body: Incoming,
    pending: Vec<u8>,
    /// Keeps the connection driven; dropped, it closes.
    _talk: (SendRequest<Full<Bytes>>, JoinSet<()>),
}

impl Answer {
    /// The next line as a value; `None` at the end.
    async fn line<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.pending[searched..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=searched + end).collect();
                return serde_json::from_slice(&line).map(Some).map_err(|e| self.at.nonsense(e));
            }
            searched = self.pending.len();
            if !self.more().await? {
                return if self.pending.is_empty() { Ok(None) } else { Err(self.at.lost("in the middle of a line")) };
            }
        }
    }

    async fn document<T: DeserializeOwned>(&mut self) -> Result<T, ClientError> {
        let bytes = self.rest().await?;
        serde_json::from_slice(&bytes).map_err(|e| self.at.nonsense(e))
    }

    async fn rest(&mut self) -> Result<Vec<u8>, ClientError> {
        while self.more().await? {}
        Ok(std::mem::take(&mut self.pending))
    }

    async fn failure(&mut self, code: StatusCode) -> Result<Failure, ClientError> {
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

/// The default of `--timeout`.
pub const SILENCE: Duration = Duration::from_secs(60);

/// A dry run that kills 100,000 sessions is one line of some 40 MB; more is no answer of ours.
const MAX_PENDING: usize = 128 * 1024 * 1024;
