//! The HTTP face: keys, scans and transactions as resources, and what tools that watch a server ask.
//!
//! ```text
//! GET /metrics        text/plain; version=0.0.4   the counters, in Prometheus's text form
//! GET /health         application/json            200 while writes are taken, else 503 and the reason
//! GET /openapi.json   application/json            what there is below, in OpenAPI 3.1
//!     /v1/...                                     keys, scans, batches, keyspaces: `api`
//! ```
//!
//! HEAD is answered as GET without the body, a method that a path does not have with 405 and `Allow`,
//! any other path with 404; every error is JSON with a code and a sentence. The pages come from a
//! [`Pages`] value, which can be a literal in a test; the API asks a client of keyspaces, which has
//! cores of its own: this task only moves bytes.
//!
//! # Limits
//! A stranger's cost is bounded before anything is read: [`CONNECTIONS_MAX`] connections at a time,
//! [`HEADER_BYTES_MAX`] bytes and [`HEADER_TIME_MAX`] for a request's head (which also ends an idle
//! connection), [`CONNECTION_TIME_MAX`] for a connection. Bodies are read only where an answer depends
//! on one: [`BODY_BYTES_MAX`] each, and all together [`BODIES_BYTES_MAX`].
//!
//! # Where it runs
//! [`serve`] is a task of one thread: it asks for a [`tokio::task::LocalSet`].

mod api;

use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use api::{Api, BODIES_BYTES_MAX, BODY_BYTES_MAX, Password, ShardFuture, Shards};

/// Connections served at a time; one more is closed at once.
pub const CONNECTIONS_MAX: usize = 128;
/// Bytes of a request's line and headers; more is answered with 431.
pub const HEADER_BYTES_MAX: usize = 16 << 10;
/// Time to send a request's head, counted from the moment the connection is ready for it.
pub const HEADER_TIME_MAX: Duration = Duration::from_secs(10);
/// Time after which a connection finishes the request under way and closes.
pub const CONNECTION_TIME_MAX: Duration = Duration::from_secs(600);
/// Time that a closing connection has to take the answer under way.
const CLOSING_TIME_MAX: Duration = Duration::from_secs(2);
/// Pause after a failed accept (no file descriptors left), so that it does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What the pages show.
pub trait Pages {
    /// Renders the counters in Prometheus's text exposition form 0.0.4.
    fn metrics(&self) -> String;
    /// Tells whether the server does its work.
    fn health(&self) -> Health;
}

/// Whether the server does its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Reads and writes are taken.
    Ready,
    /// Something is refused; the sentence says what and why.
    Impaired(String),
}

/// Serves `pages` and the API, if there is one, on `listener` until `stop` completes, then lets
/// requests under way finish.
///
/// Must be polled inside a [`tokio::task::LocalSet`]: connections are tasks of the calling core.
#[expect(clippy::disallowed_methods, reason = "the pages are served on the machine's clock")]
pub async fn serve(
    listener: TcpListener,
    pages: Rc<dyn Pages>,
    api: Option<Api>,
    stop: impl Future<Output = ()>,
) {
    let site = Rc::new(Site { pages, api });
    let (closing, closed) = watch::channel(false);
    let open = Rc::new(Cell::new(0_usize));
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if open.get() < CONNECTIONS_MAX => {
                    let slot = Slot::take(&open);
                    let (site, closed) = (Rc::clone(&site), closed.clone());
                    connections.spawn_local(async move {
                        connection(stream, site, closed).await;
                        drop(slot);
                    });
                }
                Ok(_) => {}
                Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
            },
            // Finished connections are collected, so that the set holds only live ones.
            Some(_) = connections.join_next() => {}
        }
    }
    // Nobody listens only when no connection is left.
    let _ = closing.send(true);
    while connections.join_next().await.is_some() {}
}

/// What is served.
struct Site {
    pages: Rc<dyn Pages>,
    api: Option<Api>,
}

/// One of [`CONNECTIONS_MAX`] places, given back when dropped.
struct Slot(Rc<Cell<usize>>);

impl Slot {
    fn take(open: &Rc<Cell<usize>>) -> Slot {
        open.set(open.get() + 1);
        Slot(Rc::clone(open))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Serves one connection to its end. A peer that breaks the protocol or leaves is not an error of
/// ours: there is nobody to tell.
#[expect(clippy::disallowed_methods, reason = "the pages are served on the machine's clock")]
async fn connection(stream: TcpStream, site: Rc<Site>, mut closed: watch::Receiver<bool>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let site = Rc::clone(&site);
        async move {
            let (parts, body) = request.into_parts();
            let response = match &site.api {
                Some(api) if !is_page(parts.uri.path()) => api.respond(&parts, body).await,
                _ => respond(&parts.method, parts.uri.path(), site.pages.as_ref()),
            };
            Ok::<_, Infallible>(response)
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIME_MAX)
            .max_buf_size(HEADER_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = closed.wait_for(|closing| *closing) => {}
        () = tokio::time::sleep(CONNECTION_TIME_MAX) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(CLOSING_TIME_MAX, connection).await;
}

/// Returns whether a path is one of the pages.
fn is_page(path: &str) -> bool {
    matches!(path, "/metrics" | "/health")
}

/// Answers a request for a page.
fn respond(method: &Method, path: &str, pages: &dyn Pages) -> Response<Full<Bytes>> {
    if !is_page(path) {
        return api::error(StatusCode::NOT_FOUND, "not_found", "there are /metrics and /health");
    }
    // hyper leaves out the body of an answer to HEAD and keeps its length.
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = api::error(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "the page can be read only; use GET or HEAD",
        );
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    if path == "/metrics" {
        let text = pages.metrics();
        return page(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text);
    }
    let (status, json) = match pages.health() {
        Health::Ready => (StatusCode::OK, "{\"status\":\"ready\"}\n".to_owned()),
        Health::Impaired(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{}\n", serde_json::json!({ "status": "impaired", "reason": reason })),
        ),
    };
    page(status, "application/json", json)
}

fn page(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    // Every answer is the state of this moment.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    struct Fixed(Health);

    impl Pages for Fixed {
        fn metrics(&self) -> String {
            "atoll_up 1\n".to_owned()
        }
        fn health(&self) -> Health {
            self.0.clone()
        }
    }

    async fn ask(method: Method, path: &str, health: Health) -> (u16, String, String) {
        let response = respond(&method, path, &Fixed(health));
        let status = response.status().as_u16();
        let content_type = response.headers()[CONTENT_TYPE].to_str().unwrap().to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, content_type, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn metrics_are_the_rendered_text() {
        let (status, content_type, body) = ask(Method::GET, "/metrics", Health::Ready).await;
        assert_eq!((status, body.as_str()), (200, "atoll_up 1\n"));
        assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
    }

    #[tokio::test]
    async fn health_is_200_when_ready_and_503_with_a_quoted_reason_when_not() {
        let ready = ask(Method::GET, "/health", Health::Ready).await;
        assert_eq!((ready.0, ready.2.as_str()), (200, "{\"status\":\"ready\"}\n"));
        let reason = "disk \"a\\b\" is\nfull".to_owned();
        let (status, content_type, body) =
            ask(Method::GET, "/health", Health::Impaired(reason)).await;
        assert_eq!((status, content_type.as_str()), (503, "application/json"));
        let said: serde_json::Value = serde_json::from_str(&body).unwrap();
        let expected = "disk \"a\\b\" is\nfull";
        assert_eq!(said, serde_json::json!({ "status": "impaired", "reason": expected }));
    }

    #[tokio::test]
    async fn unknown_paths_are_404_and_other_methods_405_with_allow() {
        for path in ["/", "/metrics/", "/metricsx", "/health/live", "*"] {
            assert_eq!(ask(Method::POST, path, Health::Ready).await.0, 404, "{path}");
        }
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            let response = respond(&method, "/health", &Fixed(Health::Ready));
            assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{method}");
            assert_eq!(response.headers()[ALLOW], "GET, HEAD");
        }
    }
}
