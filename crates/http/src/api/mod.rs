//! The API: keys, scans, batches and keyspaces as resources.
//!
//! ```text
//!   request -> route (what is it about?) -> guard (is it for us, is it allowed?) -> body, limits
//!           -> keys | scan | txn | keyspaces: a batch for the database, its outcome as a response
//! ```
//!
//! | module | subject |
//! |---|---|
//! | [`route`] | paths and methods; percent encoding; query parameters |
//! | [`guard`] | names that are ours, passwords |
//! | [`keys`] | one key: values as they are, ETags, conditions |
//! | [`scan`] | ranges, page by page |
//! | [`txn`] | comparisons and what is done if they hold |
//! | [`keyspaces`] | making, listing, dropping |
//! | [`shards`] | what is where; splitting |
//! | [`bytes`] | keys and values in JSON: text, or base64 |
//! | `openapi.json` | all of this for machines; a test compares it with `route` |
//!
//! Every request is one transaction of the database: strictly serializable, and repeated there after
//! a conflict. What is not known, whether a write happened, is said as such: 503 `outcome_unknown`.

mod bytes;
mod guard;
mod keys;
mod keyspaces;
mod route;
mod scan;
mod shards;
#[cfg(test)]
mod tests;
mod txn;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use atoll_keyspaces::{Client, Error, Keyspace};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use hyper::header::{
    ALLOW, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use serde_json::{Value as Json, json};

use self::guard::Guard;
pub use self::guard::Password;
use self::route::{Resource, method_not_allowed};
pub use self::shards::{ShardFuture, Shards};

/// Bytes of a request's body; more is answered with 413.
pub const BODY_BYTES_MAX: usize = 8 << 20;
/// Bytes of all bodies that are read or worked on at a time; more is answered with 503.
pub const BODIES_BYTES_MAX: usize = 64 << 20;
/// Time to send a body.
const BODY_TIME_MAX: Duration = Duration::from_secs(30);
/// Time for the database; it gives up before that by itself.
const WORK_TIME_MAX: Duration = Duration::from_secs(30);

/// Names the header with the version of a value.
const VERSION: HeaderName = HeaderName::from_static("atoll-version");
/// Names the header with the deadline of a value.
const DEADLINE: HeaderName = HeaderName::from_static("atoll-deadline-ms");

/// The API of a database.
pub struct Api {
    client: Client,
    shards: Rc<dyn Shards>,
    guard: Guard,
    /// Bytes of bodies that are read or worked on.
    bodies: Cell<usize>,
}

type Reply = Result<Response<Full<Bytes>>, Refusal>;

/// Why a request is not done, as its client is told.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { status, code, message: message.into(), header: None }
    }

    fn bad(message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Refusal {
        self.header = Some((name, value));
        self
    }

    fn respond(self) -> Response<Full<Bytes>> {
        let mut response = error(self.status, self.code, &self.message);
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let (status, code) = match &error {
            Error::Conflict(_) => (StatusCode::CONFLICT, "conflict"),
            Error::Aborted(_) => (StatusCode::CONFLICT, "aborted"),
            Error::Unknown(_) => (StatusCode::SERVICE_UNAVAILABLE, "outcome_unknown"),
            Error::Unavailable(_) | Error::Closed => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable")
            }
            Error::NotFound(_) | Error::Dropped(_) => (StatusCode::NOT_FOUND, "keyspace_not_found"),
            Error::Exists { .. } => (StatusCode::CONFLICT, "keyspace_exists"),
            Error::InvalidInput(_) => (StatusCode::BAD_REQUEST, "bad_request"),
            Error::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            Error::Corruption(_) => (StatusCode::INTERNAL_SERVER_ERROR, "corruption"),
        };
        let message = match &error {
            Error::NotFound(_) | Error::Dropped(_) => {
                format!("{error}: PUT /v1/keyspaces/{{name}} does")
            }
            _ => error.to_string(),
        };
        Refusal::new(status, code, message)
    }
}

/// Returns an error as a response.
pub(crate) fn error(status: StatusCode, code: &str, message: &str) -> Response<Full<Bytes>> {
    json_response(status, &json!({ "error": { "code": code, "message": message } }))
}

fn json_response(status: StatusCode, body: &Json) -> Response<Full<Bytes>> {
    crate::page(status, "application/json", format!("{body}\n"))
}

impl Api {
    /// Returns the API of a database, reached at `bound`. With a password, data is shown and changed
    /// only to those who give it.
    pub fn new(
        client: Client,
        shards: Rc<dyn Shards>,
        bound: SocketAddr,
        password: Password,
    ) -> Api {
        Api { client, shards, guard: Guard::new(bound, password), bodies: Cell::new(0) }
    }

    /// Answers a request.
    pub(crate) async fn respond<B>(&self, parts: &Parts, body: B) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
    {
        let mut response = match self.answer(parts, body).await {
            Ok(response) => response,
            Err(refusal) => refusal.respond(),
        };
        // What a client stored must not be taken for a page of ours.
        let nosniff = HeaderValue::from_static("nosniff");
        response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, nosniff);
        response
    }

    async fn answer<B>(&self, parts: &Parts, body: B) -> Reply
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
    {
        let Some(resource) = route::find(parts.uri.path())? else {
            return Err(Refusal::new(
                StatusCode::NOT_FOUND,
                "not_found",
                "there is nothing of this name; GET /openapi.json tells what there is",
            ));
        };
        let method = resource.method(&parts.method).ok_or_else(|| method_not_allowed(&resource))?;
        self.guard.check_origin(parts)?;
        if let Resource::OpenApi = resource {
            return Ok(crate::page(StatusCode::OK, "application/json", OPENAPI));
        }
        self.guard.check_password(parts)?;
        let query = route::query(parts.uri.query().unwrap_or_default())?;
        let reads = *method == Method::GET;
        // Only these have bodies that an answer depends on.
        let has_body = matches!(*method, Method::PUT | Method::POST);
        let body = if has_body { self.read(parts, &resource, body).await? } else { Held::none() };
        let work = async {
            match resource {
                Resource::Key { keyspace, key } => {
                    self.key(&keyspace, key, method, parts, query, &body.bytes).await
                }
                Resource::Keys { keyspace } => self.scan(&keyspace, query).await,
                Resource::Txn => {
                    query.finish()?;
                    self.txn(&body.bytes).await
                }
                Resource::Keyspaces => self.keyspaces(query).await,
                Resource::Keyspace { name } => {
                    query.finish()?;
                    self.keyspace(&name, method, &body.bytes).await
                }
                Resource::Shards => {
                    query.finish()?;
                    self.shards().await
                }
                Resource::DoubleShards => {
                    query.finish()?;
                    self.double_shards().await
                }
                Resource::SplitShard => {
                    query.finish()?;
                    self.split_shard(&body.bytes).await
                }
                Resource::OpenApi => unreachable!("answered above"),
            }
        };
        within(WORK_TIME_MAX, work).await.unwrap_or_else(|()| {
            Err(if reads {
                Refusal::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "unavailable",
                    "the database did not answer in time; try again",
                )
            } else {
                Refusal::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "outcome_unknown",
                    "it is not known whether the request took effect; look before you repeat it",
                )
            })
        })
    }

    /// Reads a body, within what one may have and what all may have together.
    async fn read<B>(
        &self,
        parts: &Parts,
        resource: &Resource,
        body: B,
    ) -> Result<Held<'_>, Refusal>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
    {
        let hint = body.size_hint();
        let too_large = || {
            Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                format!("the body has more than {BODY_BYTES_MAX} bytes; send less at a time"),
            )
        };
        if hint.lower() > BODY_BYTES_MAX as u64 {
            return Err(too_large());
        }
        // A page of somebody else can make a browser send text, but not this type without asking.
        let is_json = parts.headers.get(CONTENT_TYPE).is_some_and(is_json);
        let is_empty = hint.exact() == Some(0);
        if !matches!(resource, Resource::Key { .. }) && !is_json && !is_empty {
            return Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "the body is JSON; send it with Content-Type: application/json",
            ));
        }
        let most = hint.upper().and_then(|len| usize::try_from(len).ok()).unwrap_or(BODY_BYTES_MAX);
        let mut held = Held::take(&self.bodies, most.min(BODY_BYTES_MAX))?;
        let read = within(BODY_TIME_MAX, Limited::new(body, BODY_BYTES_MAX).collect()).await;
        match read {
            Ok(Ok(read)) => held.bytes = read.to_bytes(),
            Ok(Err(failure)) if failure.is::<LengthLimitError>() => return Err(too_large()),
            Ok(Err(failure)) => {
                return Err(Refusal::bad(format!("the body did not arrive whole: {failure}")));
            }
            Err(()) => {
                return Err(Refusal::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "timeout",
                    format!("the body did not arrive within {} s", BODY_TIME_MAX.as_secs()),
                ));
            }
        }
        Ok(held)
    }

    async fn open(&self, name: &str) -> Result<Keyspace, Refusal> {
        Ok(self.client.keyspace(name).await?)
    }
}

/// What there is, for machines.
const OPENAPI: &str = include_str!("openapi.json");

/// A body, and its share of what all may have.
struct Held<'a> {
    bytes: Bytes,
    share: Option<(&'a Cell<usize>, usize)>,
}

impl<'a> Held<'a> {
    fn none() -> Held<'a> {
        Held { bytes: Bytes::new(), share: None }
    }

    fn take(all: &'a Cell<usize>, bytes: usize) -> Result<Held<'a>, Refusal> {
        let sum = all.get() + bytes;
        if sum > BODIES_BYTES_MAX {
            return Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "busy",
                "too many large requests at a time; nothing was done, try again",
            ));
        }
        all.set(sum);
        Ok(Held { bytes: Bytes::new(), share: Some((all, bytes)) })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some((all, bytes)) = self.share {
            all.set(all.get() - bytes);
        }
    }
}

async fn within<T>(time: Duration, work: impl Future<Output = T>) -> Result<T, ()> {
    tokio::time::timeout(time, work).await.map_err(|_| ())
}

fn is_json(content_type: &HeaderValue) -> bool {
    let media = content_type.as_bytes().split(|&byte| byte == b';').next().unwrap_or_default();
    media.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

/// Parses a body, which is an object: serde would take an array for one, field by field.
fn parse<'b, T: serde::Deserialize<'b>>(body: &'b [u8]) -> Result<T, Refusal> {
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Refusal::bad("the body is no JSON object"));
    }
    serde_json::from_slice(body)
        .map_err(|e| Refusal::bad(format!("the body is not understood: {e}")))
}

/// Adds what a client wants to know of a value.
fn describe(response: &mut Response<Full<Bytes>>, version: u64, deadline_ms: Option<u64>) {
    let headers = response.headers_mut();
    let number = |n: u64| HeaderValue::from(n);
    headers.insert(VERSION, number(version));
    headers.insert(ETAG, etag(version));
    if let Some(deadline) = deadline_ms {
        headers.insert(DEADLINE, number(deadline));
    }
}

fn etag(version: u64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = crate::page(status, "application/octet-stream", Bytes::new());
    response.headers_mut().remove(CONTENT_TYPE);
    response
}

impl Refusal {
    fn unauthorized(message: &str) -> Refusal {
        let challenge = HeaderValue::from_static("Bearer realm=\"AtollDB\"");
        Refusal::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
            .with(WWW_AUTHENTICATE, challenge)
    }

    fn not_allowed(template: &str, allow: &str) -> Refusal {
        let refusal = Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            format!("{template} does not have this method; use {allow}"),
        );
        match HeaderValue::try_from(allow) {
            Ok(value) => refusal.with(ALLOW, value),
            Err(_) => refusal,
        }
    }
}
