//! Keyspaces as resources: making, looking at, listing, dropping.

use std::time::Duration;

use atoll_keyspaces::{BUCKETS_DEFAULT, Info, KeyRange, Kind, Options};
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::route::Query;
use super::scan::{behind, cursor, limit};
use super::{Api, Refusal, Reply, json_response, parse};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(default)]
    kind: KindBody,
    buckets: Option<u16>,
    ttl_ms: Option<u64>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KindBody {
    #[default]
    Ordered,
    Hashed,
}

impl Body {
    fn options(&self) -> Result<Options, Refusal> {
        let kind = match (self.kind, self.buckets) {
            (KindBody::Ordered, None) => Kind::Ordered,
            (KindBody::Ordered, Some(_)) => {
                return Err(Refusal::bad("an ordered keyspace has no buckets; kind may be hashed"));
            }
            (KindBody::Hashed, buckets) => Kind::hashed(buckets.unwrap_or(BUCKETS_DEFAULT))
                .ok_or_else(|| Refusal::bad("buckets must be a power of two up to 16384"))?,
        };
        let ttl = match self.ttl_ms {
            Some(0) => {
                return Err(Refusal::bad("ttl_ms must be at least 1; leave it out for none"));
            }
            ms => ms.map(Duration::from_millis),
        };
        Ok(Options { kind, ttl })
    }
}

fn write(info: &Info) -> Json {
    let (kind, buckets) = match info.options.kind {
        Kind::Ordered => ("ordered", None),
        Kind::Hashed(buckets) => ("hashed", Some(buckets.count())),
    };
    let ttl_ms = info.options.ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
    json!({
        "name": info.name,
        "kind": kind,
        "buckets": buckets,
        "ttl_ms": ttl_ms,
        "created_ms": info.created_ms,
    })
}

impl Api {
    pub(super) async fn keyspaces(&self, mut query: Query) -> Reply {
        let mut names = KeyRange::prefix(query.take("prefix").unwrap_or_default());
        let most = limit(query.number("limit")?)?;
        if let Some(cursor) = query.take("cursor") {
            names = behind(names, &cursor, false)?;
        }
        query.finish()?;
        let (infos, more) = self.client.keyspaces(names, most).await?;
        let last = infos.last().filter(|_| more);
        let body = json!({
            "keyspaces": infos.iter().map(write).collect::<Vec<_>>(),
            "cursor": last.map(|last| cursor(last.name.as_bytes(), false)),
        });
        Ok(json_response(StatusCode::OK, &body))
    }

    pub(super) async fn keyspace(&self, name: &str, method: &Method, body: &[u8]) -> Reply {
        match *method {
            Method::GET => {
                let keyspace = self.open(name).await?;
                let mut described = write(keyspace.info());
                described["keys"] = self.client.count(&keyspace).await?.into();
                Ok(json_response(StatusCode::OK, &described))
            }
            Method::PUT => {
                let body: Body = if body.is_empty() { Body::default() } else { parse(body)? };
                let created = self.client.create_keyspace(name, body.options()?).await?;
                let (keyspace, is_new) = created;
                let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
                Ok(json_response(status, &write(keyspace.info())))
            }
            _ => {
                let dropped = self.client.drop_keyspace(name).await?;
                Ok(json_response(StatusCode::OK, &json!({ "dropped": dropped })))
            }
        }
    }
}
