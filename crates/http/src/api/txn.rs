//! Batches in JSON: comparisons, what is done if all hold, and what otherwise.

use std::collections::BTreeMap;
use std::time::Duration;

use atoll_keyspaces::{
    Action, Batch, Compare, Done, Expiry, Found, KeyRange, Keyspace, Relation, Test,
};
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use super::bytes::Encoding;
use super::scan::{self, PAGE_BYTES};
use super::{Api, Refusal, Reply, json_response, parse};

/// Most comparisons and actions of a batch.
pub(super) const STEPS_MAX: usize = 1_024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(default)]
    compare: Vec<CompareBody>,
    #[serde(default)]
    success: Vec<ActionBody>,
    #[serde(default)]
    failure: Vec<ActionBody>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CompareBody {
    keyspace: String,
    key: String,
    #[serde(default)]
    encoding: Encoding,
    exists: Option<bool>,
    version: Option<String>,
    value: Option<String>,
    is: Option<RelationBody>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RelationBody {
    Equal,
    NotEqual,
    Less,
    Greater,
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
enum ActionBody {
    Get {
        keyspace: String,
        key: String,
        #[serde(default)]
        encoding: Encoding,
    },
    Put {
        keyspace: String,
        key: String,
        value: String,
        #[serde(default)]
        encoding: Encoding,
        ttl_ms: Option<u64>,
    },
    Delete {
        keyspace: String,
        key: String,
        #[serde(default)]
        encoding: Encoding,
    },
    Scan {
        keyspace: String,
        prefix: Option<String>,
        start: Option<String>,
        end: Option<String>,
        #[serde(default)]
        reverse: bool,
        limit: Option<u64>,
        #[serde(default)]
        encoding: Encoding,
    },
}

impl ActionBody {
    fn keyspace(&self) -> &str {
        match self {
            ActionBody::Get { keyspace, .. }
            | ActionBody::Put { keyspace, .. }
            | ActionBody::Delete { keyspace, .. }
            | ActionBody::Scan { keyspace, .. } => keyspace,
        }
    }

    /// How what was read is written.
    fn encoding(&self) -> Encoding {
        match self {
            ActionBody::Get { encoding, .. }
            | ActionBody::Put { encoding, .. }
            | ActionBody::Delete { encoding, .. }
            | ActionBody::Scan { encoding, .. } => *encoding,
        }
    }

    fn action(&self, keyspace: Keyspace) -> Result<Action, Refusal> {
        Ok(match self {
            ActionBody::Get { key, encoding, .. } => {
                Action::Get { keyspace, key: encoding.decode(key, "key")? }
            }
            ActionBody::Put { key, value, encoding, ttl_ms, .. } => {
                let (key, value) = (encoding.decode(key, "key")?, encoding.decode(value, "value")?);
                let expiry = match ttl_ms {
                    None => Expiry::Default,
                    Some(0) => return Err(Refusal::bad("ttl_ms must be at least 1")),
                    Some(ms) => Expiry::After(Duration::from_millis(*ms)),
                };
                Action::Put { keyspace, key, value, expiry }
            }
            ActionBody::Delete { key, encoding, .. } => {
                Action::Delete { keyspace, key: encoding.decode(key, "key")? }
            }
            ActionBody::Scan { prefix, start, end, reverse, limit, encoding, .. } => {
                let decode = |text: &Option<String>, what| {
                    text.as_ref().map(|text| encoding.decode(text, what)).transpose()
                };
                let start = decode(start, "start")?.unwrap_or_default();
                let mut range = KeyRange { start, end: decode(end, "end")? };
                if let Some(prefix) = decode(prefix, "prefix")? {
                    range = range.and(KeyRange::prefix(prefix));
                }
                let (reverse, limit) = (*reverse, scan::limit(*limit)?);
                Action::Scan { keyspace, range, reverse, limit, bytes_max: PAGE_BYTES }
            }
        })
    }

    /// Writes what became of it.
    fn result(&self, done: &Done) -> Json {
        let encoding = self.encoding();
        match done {
            Done::Got(None) => json!({ "op": "get", "found": false }),
            Done::Got(Some(found)) => got(found, encoding),
            Done::Put => json!({ "op": "put" }),
            Done::Deleted(deleted) => json!({ "op": "delete", "deleted": deleted }),
            Done::Scanned(rows) => {
                let reverse = matches!(self, ActionBody::Scan { reverse: true, .. });
                let written: Vec<Json> =
                    rows.rows.iter().map(|row| scan::row(row, encoding)).collect();
                json!({ "op": "scan", "rows": written, "cursor": scan::next(rows, reverse) })
            }
        }
    }
}

fn got(found: &Found, encoding: Encoding) -> Json {
    let mut map = Map::new();
    map.insert("op".to_owned(), "get".into());
    map.insert("found".to_owned(), true.into());
    encoding.write(&mut map, &[("value", &found.value)]);
    // What the batch itself has written gets its version when all of it is done.
    map.insert("version".to_owned(), found.version.map(|version| version.to_string()).into());
    if let Some(deadline) = found.deadline_ms {
        map.insert("deadline_ms".to_owned(), deadline.into());
    }
    Json::Object(map)
}

impl CompareBody {
    fn test(&self) -> Result<Test, Refusal> {
        let relation = match self.is {
            None | Some(RelationBody::Equal) => Relation::Equal,
            Some(RelationBody::NotEqual) => Relation::NotEqual,
            Some(RelationBody::Less) => Relation::Less,
            Some(RelationBody::Greater) => Relation::Greater,
        };
        match (self.exists, &self.version, &self.value) {
            (Some(exists), None, None) if self.is.is_none() => Ok(Test::Exists(exists)),
            (None, Some(version), None) => {
                let version = version.parse().map_err(|_| {
                    Refusal::bad("a version is a whole number in quotes, 0 for no value")
                })?;
                Ok(Test::Version(relation, version))
            }
            (None, None, Some(value)) => {
                Ok(Test::Value(relation, self.encoding.decode(value, "value")?))
            }
            _ => Err(Refusal::bad(
                "a comparison has one of exists, version and value, the last two with `is` if they \
                 are not to be equal",
            )),
        }
    }
}

impl Api {
    pub(super) async fn txn(&self, body: &[u8]) -> Reply {
        let body: Body = parse(body)?;
        let steps = body.compare.len() + body.success.len() + body.failure.len();
        if steps > STEPS_MAX {
            return Err(Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                format!("the batch has {steps} steps; at most {STEPS_MAX} are possible"),
            ));
        }
        let mut keyspaces: BTreeMap<&str, Keyspace> = BTreeMap::new();
        let actions = body.success.iter().chain(&body.failure);
        let names = body.compare.iter().map(|compare| compare.keyspace.as_str());
        for name in names.chain(actions.map(ActionBody::keyspace)) {
            if !keyspaces.contains_key(name) {
                keyspaces.insert(name, self.open(name).await?);
            }
        }
        let mut batch = Batch::default();
        for compare in &body.compare {
            batch.compare.push(Compare {
                keyspace: keyspaces[compare.keyspace.as_str()].clone(),
                key: compare.encoding.decode(&compare.key, "key")?,
                test: compare.test()?,
            });
        }
        for (from, to) in [(&body.success, &mut batch.success), (&body.failure, &mut batch.failure)]
        {
            for action in from {
                to.push(action.action(keyspaces[action.keyspace()].clone())?);
            }
        }
        let outcome = self.client.batch(batch).await?;
        let ran = if outcome.succeeded { &body.success } else { &body.failure };
        let results: Vec<Json> =
            ran.iter().zip(&outcome.results).map(|(action, done)| action.result(done)).collect();
        let body = json!({
            "succeeded": outcome.succeeded,
            "version": outcome.version.to_string(),
            "results": results,
        });
        Ok(json_response(StatusCode::OK, &body))
    }
}
