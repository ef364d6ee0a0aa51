//! The commands about shards: `shards` shows them, `reshard double` splits every one.
//!
//! A running server is asked over HTTP; the directory of a stopped one is read.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use atoll_kv::ShardReport;
use serde_json::Value as Json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cli::HttpArgs;
use crate::failure::{Failure, Result};
use crate::value::Size;

/// Longest answer taken from a server.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// Time for the list of shards.
const LIST_TIME_MAX: Duration = Duration::from_secs(10);
/// Time for a doubling: each shard takes a moment.
const DOUBLE_TIME_MAX: Duration = Duration::from_secs(300);

/// Prints the shards of a running server.
pub(crate) async fn list(http: &HttpArgs, out: &mut dyn Write) -> Result<()> {
    let answer = ask(http, "GET", "/v1/shards", LIST_TIME_MAX).await?;
    let unexpected = || Failure::new(format!("{} answered with something else", http.http.0));
    let shards = answer["shards"].as_array().ok_or_else(unexpected)?;
    let number = |shard: &Json, name: &str| shard[name].as_u64().unwrap_or(0);
    let rows = shards.iter().map(|shard| Row {
        id: number(shard, "id"),
        range: format!(
            "{} to {}",
            shard["start"].as_str().unwrap_or("?"),
            shard["end"].as_str().unwrap_or("?")
        ),
        store: number(shard, "store"),
        core: Some(number(shard, "core")),
        keys: number(shard, "keys"),
        bytes: number(shard, "bytes"),
        jobs_per_s: shard["jobs_per_s"].as_f64(),
        applied: number(shard, "applied"),
        in_flight: number(shard, "in_flight"),
    });
    print(rows.collect(), out)
}

/// Prints the shards of a stopped server's directory.
pub(crate) async fn list_stopped(data: &Path, out: &mut dyn Write) -> Result<()> {
    let env = atoll_env::os::env().map_err(|e| {
        Failure::new(format!("the kernel's random generator cannot be read: {e}; try again"))
    })?;
    let shards = atoll_kv::shards_of_stopped(&env, data).await;
    let shards = shards.map_err(|e| Failure::of_data(data, e))?;
    let row = |shard: ShardReport| Row {
        id: shard.id,
        range: format!("{} to {}", shard.range.0, shard.range.1),
        store: shard.store as u64,
        core: None,
        keys: shard.keys,
        bytes: shard.bytes,
        jobs_per_s: None,
        applied: shard.applied,
        in_flight: 0,
    };
    print(shards.into_iter().map(row).collect(), out)
}

/// Has every shard of a running server split.
pub(crate) async fn double(http: &HttpArgs, out: &mut dyn Write) -> Result<()> {
    let answer = ask(http, "POST", "/v1/shards/double", DOUBLE_TIME_MAX).await?;
    let split = answer["split"].as_u64().unwrap_or(0);
    writeln!(out, "{split} shards were split").map_err(Failure::output)?;
    let refused = answer["refused"].as_array().map(Vec::as_slice).unwrap_or_default();
    for why in refused.iter().filter_map(Json::as_str) {
        writeln!(out, "  not split: {why}").map_err(Failure::output)?;
    }
    Ok(())
}

/// A line of the table.
struct Row {
    id: u64,
    range: String,
    store: u64,
    core: Option<u64>,
    keys: u64,
    bytes: u64,
    jobs_per_s: Option<f64>,
    applied: u64,
    in_flight: u64,
}

fn print(rows: Vec<Row>, out: &mut dyn Write) -> Result<()> {
    let width = rows.iter().map(|row| row.range.len()).max().unwrap_or(0).max(5);
    let mut text = format!(
        "{:>5}  {:width$}  {:>5}  {:>4}  {:>10}  {:>9}  {:>8}  {:>9}  {:>9}\n",
        "shard", "range", "store", "core", "keys", "size", "jobs/s", "applied", "in flight"
    );
    for row in rows {
        let core = row.core.map_or("-".to_owned(), |core| core.to_string());
        let load = row.jobs_per_s.map_or("-".to_owned(), |load| format!("{load:.0}"));
        text.push_str(&format!(
            "{:>5}  {:width$}  {:>5}  {core:>4}  {:>10}  {:>9}  {load:>8}  {:>9}  {:>9}\n",
            row.id,
            row.range,
            row.store,
            row.keys,
            Size(row.bytes).to_string(),
            row.applied,
            row.in_flight
        ));
    }
    out.write_all(text.as_bytes()).map_err(Failure::output)
}

/// Asks a server for something that is answered in JSON.
async fn ask(http: &HttpArgs, method: &str, path: &str, limit: Duration) -> Result<Json> {
    let addr = http.http.0;
    let next = "check the address given with --http";
    let answer = match tokio::time::timeout(limit, exchange(http, method, path)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(e)) => {
            return Err(Failure::new(format!("http://{addr} cannot be asked: {e}; {next}")));
        }
        Err(_) => return Err(Failure::new(format!("http://{addr} does not answer; {next}"))),
    };
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let json: Option<Json> = serde_json::from_str(body).ok();
    let status = head.split(' ').nth(1).unwrap_or("nothing");
    match (status, json) {
        ("200", Some(json)) => Ok(json),
        ("401", _) => Err(Failure::new("the server wants its password: give it with --password")),
        (_, Some(json)) if json["error"]["message"].is_string() => {
            let message = json["error"]["message"].as_str().unwrap_or_default();
            Err(Failure::new(format!("the server refuses: {message}")))
        }
        _ => Err(Failure::new(format!(
            "http://{addr}{path} answered with '{}'; {next}",
            status.escape_debug()
        ))),
    }
}

/// One request and its whole answer. Version 1.0 of HTTP, so that the body ends with the connection.
async fn exchange(http: &HttpArgs, method: &str, path: &str) -> std::io::Result<String> {
    let addr = http.http.0;
    let mut stream = TcpStream::connect(addr).await?;
    let mut request = format!("{method} {path} HTTP/1.0\r\nHost: {addr}\r\nContent-Length: 0\r\n");
    if let Some(password) = &http.password {
        request.push_str(&format!("Authorization: Bearer {password}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
