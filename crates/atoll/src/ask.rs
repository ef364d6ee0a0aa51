//! The small client commands: ping, get, set, scan, stats.
//!
//! Each is a conversation with one server, written to a given output. What is printed for people
//! (a key with unprintable bytes, a table of counters) is made by pure functions below.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use atoll_resp::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::cli::ServerArgs;
use crate::client::Client;
use crate::failure::{Failure, Result};

/// Keys asked for in one step of a scan.
const SCAN_COUNT: &str = "1000";
/// Longest page of counters taken from a server.
const PAGE_BYTES_MAX: u64 = 16 << 20;
/// Time for a page of counters to arrive.
const PAGE_TIME_MAX: Duration = Duration::from_secs(10);

pub(crate) async fn connect(server: &ServerArgs) -> Result<Client> {
    Client::connect(server.resp.0, server.password.as_deref()).await
}

/// Prints the server's answer and how long it took.
pub(crate) async fn ping(server: &ServerArgs, out: &mut dyn Write) -> Result<()> {
    let mut client = connect(server).await?;
    let sent = Instant::now();
    match client.call(&["PING"]).await? {
        Value::Simple(text) => writeln!(
            out,
            "{} from {} in {} us",
            String::from_utf8_lossy(&text),
            server.resp.0,
            sent.elapsed().as_micros()
        )
        .map_err(Failure::output),
        other => Err(client.unexpected(&other)),
    }
}

/// Prints a key's value.
pub(crate) async fn get(server: &ServerArgs, key: &str, out: &mut dyn Write) -> Result<()> {
    let mut client = connect(server).await?;
    match client.call(&["GET", key]).await? {
        Value::Bulk(value) => {
            out.write_all(&value).and_then(|()| out.write_all(b"\n")).map_err(Failure::output)
        }
        Value::Null => Err(Failure::new(format!(
            "the key {} does not exist; `atoll scan` lists those that do",
            shown(key.as_bytes())
        ))),
        other => Err(client.unexpected(&other)),
    }
}

/// Sets a key.
pub(crate) async fn set(
    server: &ServerArgs,
    key: &str,
    value: &str,
    ttl: Option<Duration>,
    out: &mut dyn Write,
) -> Result<()> {
    let mut client = connect(server).await?;
    let millis = ttl.map(|ttl| ttl.as_millis().to_string());
    let mut args = vec!["SET", key, value];
    if let Some(millis) = &millis {
        args.extend(["PX", millis]);
    }
    match client.call(&args).await? {
        Value::Simple(text) => {
            writeln!(out, "{}", String::from_utf8_lossy(&text)).map_err(Failure::output)
        }
        other => Err(client.unexpected(&other)),
    }
}

/// Lists the keys that match `pattern`, at most `limit`.
pub(crate) async fn scan(
    server: &ServerArgs,
    pattern: &str,
    limit: Option<u64>,
    values: bool,
    out: &mut dyn Write,
) -> Result<()> {
    let mut client = connect(server).await?;
    let mut left = limit.unwrap_or(u64::MAX);
    let mut cursor = b"0".to_vec();
    loop {
        let args: [&[u8]; 6] =
            [b"SCAN", &cursor, b"MATCH", pattern.as_bytes(), b"COUNT", SCAN_COUNT.as_bytes()];
        let (next, mut keys) = match step(client.call(&args).await?) {
            Ok(step) => step,
            Err(other) => return Err(client.unexpected(&other)),
        };
        keys.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left -= keys.len() as u64;
        let values = if values { Some(values_of(&mut client, &keys).await?) } else { None };
        for (i, key) in keys.iter().enumerate() {
            let line = match values.as_ref().and_then(|values| values.get(i)) {
                // The key went away between the two commands, or holds no string.
                Some(None) => continue,
                Some(Some(value)) => format!("{}\t{}\n", shown(key), shown(value)),
                None => format!("{}\n", shown(key)),
            };
            out.write_all(line.as_bytes()).map_err(Failure::output)?;
        }
        if next == b"0" || left == 0 {
            return Ok(());
        }
        cursor = next;
    }
}

/// Takes a SCAN reply apart: the next cursor and keys.
pub(crate) fn step(reply: Value) -> std::result::Result<(Vec<u8>, Vec<Vec<u8>>), Value> {
    match reply {
        Value::Array(items) => match <[Value; 2]>::try_from(items) {
            Ok([Value::Bulk(cursor), Value::Array(keys)]) => {
                let keys = keys.into_iter().filter_map(|key| match key {
                    Value::Bulk(key) => Some(key),
                    _ => None,
                });
                Ok((cursor, keys.collect()))
            }
            Ok(items) => Err(Value::Array(items.into())),
            Err(items) => Err(Value::Array(items)),
        },
        other => Err(other),
    }
}

async fn values_of(client: &mut Client, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let mut args: Vec<&[u8]> = vec![b"MGET"];
    args.extend(keys.iter().map(Vec::as_slice));
    match client.call(&args).await? {
        Value::Array(items) if items.len() == keys.len() => {
            let values = items.into_iter().map(|item| match item {
                Value::Bulk(value) => Some(value),
                _ => None,
            });
            Ok(values.collect())
        }
        other => Err(client.unexpected(&other)),
    }
}

/// Prints INFO, or one section of it, as aligned columns.
pub(crate) async fn stats(
    server: &ServerArgs,
    section: Option<&str>,
    out: &mut dyn Write,
) -> Result<()> {
    let mut client = connect(server).await?;
    let args = ["INFO"].into_iter().chain(section).collect::<Vec<_>>();
    match client.call(&args).await? {
        Value::Bulk(text) | Value::Verbatim(text) if text.is_empty() => {
            Err(Failure::new(match section {
                Some(section) => format!(
                    "the server has no section '{section}'; `atoll stats` without one shows all"
                ),
                None => "the server's INFO is empty; check that it is a Redis-protocol server"
                    .to_owned(),
            }))
        }
        Value::Bulk(text) | Value::Verbatim(text) => {
            let table = info_table(&String::from_utf8_lossy(&text));
            out.write_all(table.as_bytes()).map_err(Failure::output)
        }
        other => Err(client.unexpected(&other)),
    }
}

/// Prints the page /metrics of a server as aligned columns.
pub(crate) async fn metrics(addr: SocketAddr, out: &mut dyn Write) -> Result<()> {
    let page = match tokio::time::timeout(PAGE_TIME_MAX, page(addr, "/metrics")).await {
        Ok(Ok(page)) => page,
        Ok(Err(e)) => {
            return Err(Failure::new(format!(
                "the counters of http://{addr}/metrics cannot be read: {e}; name the server's HTTP \
                 address with --http"
            )));
        }
        Err(_) => {
            return Err(Failure::new(format!(
                "http://{addr}/metrics does not answer; check the address given with --http"
            )));
        }
    };
    let Some(body) = body(&page) else {
        let status = page.lines().next().unwrap_or("nothing");
        return Err(Failure::new(format!(
            "http://{addr}/metrics answered '{}'; check the address given with --http",
            shown(status.as_bytes())
        )));
    };
    out.write_all(metrics_table(body).as_bytes()).map_err(Failure::output)
}

/// Gets a page. Version 1.0 of HTTP, so that the body ends with the connection.
async fn page(addr: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(PAGE_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Returns the body of a successful HTTP answer.
fn body(answer: &str) -> Option<&str> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?;
    (status == "200").then_some(body)
}

/// Shows bytes of a key or value on one line: plain text as it is, the rest quoted and escaped.
fn shown(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && !text.contains(char::is_control) => text.to_owned(),
        _ => format!("\"{}\"", bytes.escape_ascii()),
    }
}

/// Lays INFO's `name:value` lines out in columns under their section's name.
fn info_table(info: &str) -> String {
    let pairs = || info.lines().filter_map(|line| line.split_once(':'));
    let width = pairs().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut table = String::new();
    for line in info.lines() {
        if let Some(section) = line.strip_prefix("# ") {
            if !table.is_empty() {
                table.push('\n');
            }
            table.push_str(&format!("{section}\n"));
        } else if let Some((name, value)) = line.split_once(':') {
            table.push_str(&format!("  {name:width$}  {}\n", value.trim_end()));
        }
    }
    table
}

/// Lays the samples of a Prometheus page out in columns, without its comments.
fn metrics_table(page: &str) -> String {
    // The value is the last word: label values may hold spaces, and we write no timestamps.
    let samples = || {
        page.lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.trim_end().rsplit_once(' '))
    };
    let width = samples().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    samples().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_is_shown_as_it_is_and_the_rest_escaped() {
        assert_eq!(shown("caf\u{e9} 1".as_bytes()), "caf\u{e9} 1");
        assert_eq!(shown(b""), "\"\"");
        assert_eq!(shown(b"a\nb"), "\"a\\nb\"");
        assert_eq!(shown(b"\x1b[2J"), "\"\\x1b[2J\"");
        assert_eq!(shown(b"\xff"), "\"\\xff\"");
    }

    #[test]
    fn info_becomes_columns_under_section_names() {
        let info = "# Server\r\nversion:1\r\nuptime_in_seconds:20\r\n\r\n# Memory\r\nused:a:b\r\n";
        assert_eq!(
            info_table(info),
            "Server\n  version            1\n  uptime_in_seconds  20\n\n\
             Memory\n  used               a:b\n"
        );
    }

    #[test]
    fn metrics_become_columns_without_comments() {
        let page = "# HELP a text\n# TYPE a counter\na 1\nlonger{x=\"y z\"} 2.5\n";
        assert_eq!(metrics_table(page), "a                1\nlonger{x=\"y z\"}  2.5\n");
    }

    #[test]
    fn only_a_successful_answer_has_a_body() {
        assert_eq!(body("HTTP/1.0 200 OK\r\nA: b\r\n\r\na 1\n"), Some("a 1\n"));
        assert_eq!(body("HTTP/1.1 404 Not Found\r\n\r\nno"), None);
        assert_eq!(body("-ERR unknown command\r\n"), None);
        assert_eq!(body(""), None);
    }

    #[test]
    fn a_scan_reply_is_a_cursor_and_keys() {
        let bulk = |text: &str| Value::Bulk(text.into());
        let reply = Value::Array(vec![bulk("7"), Value::Array(vec![bulk("a"), bulk("b")])]);
        assert_eq!(step(reply), Ok((b"7".to_vec(), vec![b"a".to_vec(), b"b".to_vec()])));
        for wrong in [Value::Null, Value::Array(vec![]), Value::Array(vec![bulk("7"), bulk("a")])] {
            assert_eq!(step(wrong.clone()), Err(wrong));
        }
    }
}
