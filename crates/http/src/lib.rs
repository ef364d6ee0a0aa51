//! The HTTP face: what the tools that watch a server ask of it.
//!
//! ```text
//! GET /metrics   text/plain; version=0.0.4   the counters, in Prometheus's text form
//! GET /health    application/json            200 while writes are taken, else 503 and the reason
//! ```
//!
//! HEAD is answered as GET without the body, any other method on these paths with 405 and `Allow`,
//! any other path with 404. The answers come from a [`Pages`] value: this crate knows neither
//! engine nor server, and what it is given can be a literal in a test.
//!
//! # Limits
//! A stranger's cost is bounded before anything is read: [`CONNECTIONS_MAX`] connections at a time,
//! [`HEADER_BYTES_MAX`] bytes and [`HEADER_TIME_MAX`] for a request's head (which also ends an idle
//! connection), [`CONNECTION_TIME_MAX`] for a connection. Bodies of requests are never read: none
//! of the answers depends on one.
//!
//! # Where it runs
//! [`serve`] lives on the core's own task set beside the RESP sessions, because a page needs the
//! core's counters and costs microseconds. It therefore asks for a [`tokio::task::LocalSet`] and
//! needs no lock around what it shows.

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

/// Serves `pages` on `listener` until `stop` completes, then lets requests under way finish.
///
/// Must be polled inside a [`tokio::task::LocalSet`]: connections are tasks of the calling core.
#[expect(clippy::disallowed_methods, reason = "the pages are served on the machine's clock")]
pub async fn serve(listener: TcpListener, pages: Rc<dyn Pages>, stop: impl Future<Output = ()>) {
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
                    let (pages, closed) = (Rc::clone(&pages), closed.clone());
                    connections.spawn_local(async move {
                        connection(stream, pages, closed).await;
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
async fn connection(stream: TcpStream, pages: Rc<dyn Pages>, mut closed: watch::Receiver<bool>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(request.method(), request.uri().path(), pages.as_ref());
        std::future::ready(Ok::<_, Infallible>(response))
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

/// Answers one request. Pure: the whole behaviour of the crate short of sockets.
fn respond(method: &Method, path: &str, pages: &dyn Pages) -> Response<Full<Bytes>> {
    if !matches!(path, "/metrics" | "/health") {
        return plain(StatusCode::NOT_FOUND, "not found; there are /metrics and /health\n");
    }
    // hyper leaves out the body of an answer to HEAD and keeps its length.
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response =
            plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed; use GET or HEAD\n");
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
            format!("{{\"status\":\"impaired\",\"reason\":{}}}\n", json_string(&reason)),
        ),
    };
    page(status, "application/json", json)
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    page(status, "text/plain; charset=utf-8", text.to_owned())
}

fn page(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    // Every answer is the state of this moment.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Quotes `text` as a JSON string (RFC 8259, 7).
fn json_string(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if c < ' ' => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
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
        assert_eq!(
            body,
            "{\"status\":\"impaired\",\"reason\":\"disk \\\"a\\\\b\\\" is\\u000afull\"}\n"
        );
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
