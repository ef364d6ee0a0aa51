//! One key: its value as it is, its version as an ETag, and conditions on both.
//!
//! | header | GET | PUT, DELETE |
//! |---|---|---|
//! | `If-None-Match: "7"` | 304 if it is version 7 | done only if it is not |
//! | `If-None-Match: *` | 304 if it has a value | done only if it has none |
//! | `If-Match: "7"` | 412 if it is not version 7 | done only if it is |
//! | `If-Match: *` | 412 if it has no value | done only if it has one |
//!
//! A version is the moment of the commit that wrote the value. It is never used again for another
//! value of the key, so a condition on it cannot be fooled by a change there and back.

use std::time::Duration;

use atoll_keyspaces::{Action, Batch, Compare, Done, Expiry, Found, Keyspace, Test};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{HeaderName, IF_MATCH, IF_NONE_MATCH};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};

use super::route::Query;
use super::{Api, Refusal, Reply, describe, empty, etag};

/// A condition of a request.
#[derive(Debug, PartialEq, Eq)]
enum Condition {
    /// `*`
    Any,
    /// Versions that are named; tags that are none of ours match nothing.
    Of(Vec<u64>),
}

impl Condition {
    /// Reads the conditions of one header. Weak tags count only where that is enough.
    fn read(parts: &Parts, name: HeaderName, weak: bool) -> Result<Option<Condition>, Refusal> {
        let wrong = || Refusal::bad(format!("{name} has neither * nor quoted tags"));
        let mut versions = None;
        for value in parts.headers.get_all(&name) {
            let text = value.to_str().map_err(|_| wrong())?;
            if text.trim() == "*" {
                return Ok(Some(Condition::Any));
            }
            let versions = versions.get_or_insert_with(Vec::new);
            for tag in text.split(',').map(str::trim) {
                let (is_weak, tag) = match tag.strip_prefix("W/") {
                    Some(tag) => (true, tag),
                    None => (false, tag),
                };
                let tag = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
                let tag = tag.ok_or_else(wrong)?;
                // Zero is the version of what is not there.
                let version = tag.parse::<u64>().ok().filter(|version| *version != 0);
                versions.extend(version.filter(|_| weak || !is_weak));
            }
        }
        Ok(versions.map(Condition::Of))
    }

    fn holds(&self, found: Option<&Found>) -> bool {
        match self {
            Condition::Any => found.is_some(),
            Condition::Of(versions) => {
                found.and_then(|found| found.version).is_some_and(|v| versions.contains(&v))
            }
        }
    }

    fn test(self, holds: bool) -> Test {
        match self {
            Condition::Any => Test::Exists(holds),
            Condition::Of(versions) => Test::VersionIn(versions, holds),
        }
    }
}

impl Api {
    pub(super) async fn key(
        &self,
        keyspace: &str,
        key: Vec<u8>,
        method: &Method,
        parts: &Parts,
        mut query: Query,
        body: &Bytes,
    ) -> Reply {
        let matches = Condition::read(parts, IF_MATCH, false)?;
        let differs = Condition::read(parts, IF_NONE_MATCH, true)?;
        let ttl_ms = if *method == Method::PUT { query.number("ttl_ms")? } else { None };
        query.finish()?;
        let expiry = match ttl_ms {
            None => Expiry::Default,
            Some(0) => {
                return Err(Refusal::bad("ttl_ms must be at least 1; leave it out for none"));
            }
            Some(ms) => Expiry::After(Duration::from_millis(ms)),
        };
        let keyspace = self.open(keyspace).await?;
        if *method == Method::GET {
            return self.get_key(keyspace, key, matches, differs).await;
        }
        let conditions = [matches.map(|c| c.test(true)), differs.map(|c| c.test(false))];
        let compare = conditions.into_iter().flatten().map(|test| Compare {
            keyspace: keyspace.clone(),
            key: key.clone(),
            test,
        });
        let action = if *method == Method::PUT {
            let (keyspace, key, value) = (keyspace.clone(), key.clone(), body.to_vec());
            Action::Put { keyspace, key, value, expiry }
        } else {
            Action::Delete { keyspace: keyspace.clone(), key: key.clone() }
        };
        let batch = Batch {
            compare: compare.collect(),
            success: vec![action],
            failure: vec![Action::Get { keyspace, key }],
        };
        let outcome = self.client.batch(batch).await?;
        match outcome.results.into_iter().next() {
            Some(Done::Got(found)) => Err(precondition_failed(found.as_ref())),
            Some(Done::Deleted(false)) => Err(no_value()),
            Some(Done::Put) => {
                let mut response = empty(StatusCode::NO_CONTENT);
                describe(&mut response, outcome.version, None);
                Ok(response)
            }
            _ => Ok(empty(StatusCode::NO_CONTENT)),
        }
    }

    async fn get_key(
        &self,
        keyspace: Keyspace,
        key: Vec<u8>,
        matches: Option<Condition>,
        differs: Option<Condition>,
    ) -> Reply {
        let batch = Batch { success: vec![Action::Get { keyspace, key }], ..Batch::default() };
        let outcome = self.client.batch(batch).await?;
        let found = match outcome.results.into_iter().next() {
            Some(Done::Got(found)) => found,
            _ => None,
        };
        if matches.is_some_and(|condition| !condition.holds(found.as_ref())) {
            return Err(precondition_failed(found.as_ref()));
        }
        let Some(found) = found else { return Err(no_value()) };
        let is_known = differs.is_some_and(|condition| condition.holds(Some(&found)));
        let mut response: Response<Full<Bytes>> = if is_known {
            empty(StatusCode::NOT_MODIFIED)
        } else {
            crate::page(StatusCode::OK, "application/octet-stream", found.value)
        };
        describe(&mut response, found.version.unwrap_or(0), found.deadline_ms);
        Ok(response)
    }
}

fn no_value() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "key_not_found", "the key has no value")
}

fn precondition_failed(found: Option<&Found>) -> Refusal {
    let refusal = |message: String| {
        Refusal::new(StatusCode::PRECONDITION_FAILED, "precondition_failed", message)
    };
    match found.and_then(|found| found.version) {
        None => refusal("nothing was done: the key has no value".to_owned()),
        Some(version) => refusal(format!("nothing was done: the key has version {version}"))
            .with(hyper::header::ETAG, etag(version)),
    }
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn read(values: &[&str], weak: bool) -> Result<Option<Condition>, Refusal> {
        let mut request = Request::get("/");
        for value in values {
            request = request.header(IF_MATCH, *value);
        }
        Condition::read(&request.body(()).unwrap().into_parts().0, IF_MATCH, weak)
    }

    #[test]
    fn conditions_are_lists_of_tags_or_a_star() {
        for (values, weak, expected) in [
            (&[][..], false, None),
            (&["*"][..], false, Some(Condition::Any)),
            (&["\"7\""], false, Some(Condition::Of(vec![7]))),
            (&["\"7\", \"8\"", "\"9\""], false, Some(Condition::Of(vec![7, 8, 9]))),
            (&["W/\"7\", \"8\""], false, Some(Condition::Of(vec![8]))),
            (&["W/\"7\""], true, Some(Condition::Of(vec![7]))),
            (&["\"abc\", \"0\""], false, Some(Condition::Of(Vec::new()))),
        ] {
            assert_eq!(read(values, weak).unwrap(), expected, "{values:?}");
        }
        for bad in ["7", "\"7", "", "\"7\" \"8\"x"] {
            assert_eq!(read(&[bad], false).unwrap_err().status, 400, "{bad}");
        }
    }
}
