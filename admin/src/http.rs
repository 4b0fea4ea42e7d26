//! Routes of the admin side: who may ask what, and what is answered. Decides nothing about the proxy.

use std::convert::Infallible;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::body::Bytes;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode};
use tokio::sync::watch;
use tower::ServiceExt;

use crate::codec;
use crate::command::{Failure, FailureKind};
use crate::door::Door;
use crate::limits::Limits;

pub(crate) mod body;
mod events;
mod page;

use body::{Lines, Rows};
use events::Desk;

/// What a connection may do, known from how it came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// The Unix socket, our uid or root: every verb.
    Owner,
    /// TCP: anyone, but nothing that changes.
    ReadOnly,
    /// The Unix socket, another uid: nothing.
    Denied { uid: u32, own: u32 },
}

impl Access {
    pub(crate) fn of_uid(uid: u32, own: u32) -> Self {
        if uid == own || uid == 0 { Self::Owner } else { Self::Denied { uid, own } }
    }

    /// The answer to a request that must not reach a route.
    fn refuse<B>(self, request: &Request<B>) -> Option<Response> {
        let denied = |text: String| refusal(StatusCode::FORBIDDEN, Failure::new(FailureKind::Denied, text));
        if let Self::Denied { uid, own } = self {
            return Some(denied(format!("denied: this socket serves uid {own} and root; you are uid {uid}")));
        }
        if self == Self::ReadOnly && !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Some(read_only_refusal());
        }
        if !same_origin(request) {
            return Some(denied("denied: the request comes from a page of another origin".to_owned()));
        }
        None
    }
}

fn read_only_refusal() -> Response {
    let text = "this address is read-only (GET and HEAD); commands go through the Unix socket, see `proxyctl`";
    let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, Failure::new(FailureKind::Denied, text));
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET,HEAD"));
    response
}

/// Every route, for the Unix socket. Streams of events end when it is `stopping`.
pub(crate) fn all_verbs<D: Door>(door: D, limits: Limits, stopping: watch::Receiver<bool>) -> Router {
    let desk = Desk::new(door.clone(), limits, stopping);
    let events = Router::new().route("/v1/events", get(events::events::<D>)).with_state(desk);
    let verbs = Router::new()
        .route("/v1/command", post(command::<D>))
        .route("/v1/status", get(status::<D>))
        .route("/v1/sessions", get(sessions::<D>))
        .with_state(door.clone());
    finished(seeing(door).merge(verbs).merge(events))
}

/// The routes that are open to whoever can reach the TCP address.
pub(crate) fn read_only(door: impl Door) -> Router {
    finished(seeing(door))
}

/// One request, from the gate to the headers that every answer bears.
pub(crate) async fn answer(access: Access, routes: Router, request: Request<Body>) -> Response {
    let mut response = match access.refuse(&request) {
        None => routes.oneshot(request).await.unwrap_or_else(|never: Infallible| match never {}),
        Some(refused) => refused,
    };
    let headers = response.headers_mut();
    headers.insert(header::SERVER, HeaderValue::from_static(SERVER));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A refusal after which the connection closes.
pub(crate) fn last_refusal(code: StatusCode, message: String) -> Response {
    let mut response = refusal(code, Failure::usage(message));
    response.headers_mut().insert(header::SERVER, HeaderValue::from_static(SERVER));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn seeing<D: Door>(door: D) -> Router {
    Router::new()
        .route("/", get(show_page::<D>))
        .route("/metrics", get(metrics::<D>))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz::<D>))
        .with_state(door)
}

fn finished(routes: Router) -> Router {
    routes.fallback(not_found).method_not_allowed_fallback(wrong_method)
}

async fn command<D: Door>(State(door): State<D>, body: Bytes) -> Response {
    match codec::command(&body) {
        Ok(command) => (ndjson(), Body::new(Lines::new(door.command(command).await))).into_response(),
        Err(failure) => refusal(StatusCode::BAD_REQUEST, failure),
    }
}

async fn status<D: Door>(State(door): State<D>) -> Response {
    axum::Json(door.status()).into_response()
}

async fn sessions<D: Door>(State(door): State<D>, query: AnyQuery) -> Response {
    match pairs(query).and_then(|pairs| codec::filter(&pairs)) {
        Ok(filter) => (ndjson(), Body::new(Rows::new(door.sessions(&filter)))).into_response(),
        Err(failure) => refusal(StatusCode::BAD_REQUEST, failure),
    }
}

/// A query as it came: unread until [`pairs`] has judged it.
type AnyQuery = Result<Query<Vec<(String, String)>>, axum::extract::rejection::QueryRejection>;

fn pairs(query: AnyQuery) -> Result<Vec<(String, String)>, Failure> {
    query.map(|Query(pairs)| pairs).map_err(|e| Failure::usage(format!("the query cannot be read: {e}")))
}

async fn metrics<D: Door>(State(door): State<D>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], door.metrics()).into_response()
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz<D: Door>(State(door): State<D>) -> Response {
    match door.ready() {
        Ok(()) => "ready\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn show_page<D: Door>(State(door): State<D>, RawQuery(query): RawQuery) -> Response {
    match query.as_deref() {
        None => page::whole(&door.status()),
        Some("part=body") => page::body(&door.status()),
        Some("part=script") => page::script(),
        Some(_) => not_found().await,
    }
}

async fn not_found() -> Response {
    let text = "no such path; there are GET / /metrics /healthz /readyz, and on the Unix socket also \
                GET /v1/status /v1/sessions /v1/events, POST /v1/command";
    refusal(StatusCode::NOT_FOUND, Failure::usage(text))
}

/// The router adds `Allow`.
async fn wrong_method() -> Response {
    refusal(StatusCode::METHOD_NOT_ALLOWED, Failure::usage("this path does not take that method; see Allow"))
}

fn refusal(code: StatusCode, failure: Failure) -> Response {
    (code, axum::Json(failure)).into_response()
}

fn ndjson() -> [(header::HeaderName, &'static str); 1] {
    [(header::CONTENT_TYPE, "application/x-ndjson")]
}

/// A browser names the page that asks; a page of another host has no business here. Scrapers send no `Origin`.
fn same_origin<B>(request: &Request<B>) -> bool {
    let headers: &HeaderMap = request.headers();
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let origin = origin.to_str().ok().and_then(|origin| Some(origin.split_once("://")?.1));
    matches!((origin, host), (Some(origin), Some(host)) if origin.eq_ignore_ascii_case(host))
}

/// By this word `proxyctl` knows that it talks to us.
pub(crate) const SERVER: &str = concat!("proxyd/", env!("CARGO_PKG_VERSION"));

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().method(method).uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn a2_only_our_uid_and_root_come_in() {
        assert_eq!(Access::of_uid(1000, 1000), Access::Owner);
        assert_eq!(Access::of_uid(0, 1000), Access::Owner);
        let stranger = Access::of_uid(1001, 1000);
        let refused = stranger.refuse(&request("GET", &[])).unwrap();
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        assert_eq!(Access::of_uid(1000, 0), Access::Denied { uid: 1000, own: 0 });
    }

    #[test]
    fn c16_origin_must_be_the_host_asked() {
        for (headers, allowed) in [
            (&[][..], true),
            (&[("host", "proxyd:9900")], true),
            (&[("host", "h:1"), ("origin", "http://h:1")], true),
            (&[("host", "h:1"), ("origin", "http://H:1")], true),
            (&[("host", "h:1"), ("origin", "http://evil:1")], false),
            (&[("host", "h:1"), ("origin", "null")], false),
            (&[("origin", "http://h:1")], false),
        ] {
            assert_eq!(Access::ReadOnly.refuse(&request("GET", headers)).is_none(), allowed, "{headers:?}");
        }
    }

    /// Every method beside the two that only look is denied on TCP, known to us or not.
    #[test]
    fn c17_tcp_takes_no_method_that_is_not_listed() {
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "BREW"] {
            let refused = Access::ReadOnly.refuse(&request(method, &[])).unwrap();
            assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED, "{method}");
            assert_eq!(refused.headers()[header::ALLOW], "GET,HEAD");
        }
        for method in ["GET", "HEAD"] {
            assert!(Access::ReadOnly.refuse(&request(method, &[])).is_none());
        }
    }
}
