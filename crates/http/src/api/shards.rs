//! Shards as resources: what is where, and splitting them. For operators; keys are never named here.

use std::future::Future;
use std::pin::Pin;

use atoll_kv::ShardReport;
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::{Api, Refusal, Reply, json_response, parse};

/// An answer of [`Shards`]; an error is a sentence.
pub type ShardFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, String>> + 'a>>;

/// Who knows the shards of the database.
pub trait Shards {
    /// Reports all shards, by the start of their ranges.
    fn list(&self) -> ShardFuture<'_, Vec<ShardReport>>;
    /// Splits every shard at its midpoint; returns how many were split, and why others were not.
    fn double(&self) -> ShardFuture<'_, (usize, Vec<String>)>;
    /// Splits the shard that has a slot, there; returns the id of the right half.
    fn split(&self, slot: u16) -> ShardFuture<'_, u64>;
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SplitBody {
    slot: u16,
}

fn write(shard: &ShardReport) -> Json {
    json!({
        "id": shard.id,
        "start": shard.range.0.to_string(),
        "end": shard.range.1.to_string(),
        "epoch": shard.epoch,
        "store": shard.store,
        "core": shard.core,
        "keys": shard.keys,
        "bytes": shard.bytes,
        "jobs": shard.jobs,
        "jobs_per_s": shard.jobs_per_s,
        "applied": shard.applied,
        "in_flight": shard.in_flight,
        "serves": shard.serves,
    })
}

fn unavailable(why: String) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", why)
}

impl Api {
    pub(super) async fn shards(&self) -> Reply {
        let shards = self.shards.list().await.map_err(unavailable)?;
        let shards: Vec<Json> = shards.iter().map(write).collect();
        Ok(json_response(StatusCode::OK, &json!({ "shards": shards })))
    }

    pub(super) async fn double_shards(&self) -> Reply {
        let (split, refused) = self.shards.double().await.map_err(unavailable)?;
        Ok(json_response(StatusCode::OK, &json!({ "split": split, "refused": refused })))
    }

    pub(super) async fn split_shard(&self, body: &[u8]) -> Reply {
        let SplitBody { slot } = parse(body)?;
        let split = self.shards.split(slot).await;
        let id = split.map_err(|why| Refusal::new(StatusCode::CONFLICT, "not_split", why))?;
        Ok(json_response(StatusCode::OK, &json!({ "shard": id })))
    }
}
