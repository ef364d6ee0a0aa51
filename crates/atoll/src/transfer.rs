//! Data as lines of JSON: `atoll export` and `atoll import`.
//!
//! ```text
//!   {"key":"greeting","value":"hello"}
//!   {"key":"session:42","value":"alice","expires_ms":1764178000123}
//!   {"key_base64":"AP8=","value_base64":"gA=="}
//! ```
//!
//! What is no UTF-8 text is in base64, and its field says so: nobody has to guess. A deadline is a moment
//! and not a time that is left, so an import may be done again, and after a failure simply is: every line
//! says what its key is to be.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::path::Path;

use atoll_resp::Value;
use serde_json::{Map, Value as Json};

use crate::ask::{connect, step};
use crate::cli::ServerArgs;
use crate::client::Client;
use crate::failure::{Failure, Result};

/// Keys asked for in one step.
const STEP: &str = "500";
/// Lines that are sent at once, and bytes after which they are sent however few they are.
const LINES_AT_ONCE: usize = 500;
const BYTES_AT_ONCE: usize = 4 << 20;
/// Longest line: the longest value as base64, with its key.
const LINE_BYTES_MAX: u64 = 800 << 20;

// ---- export ----

/// Writes every string whose key matches `pattern` to `to`, or to `out`.
pub(crate) async fn export(
    server: &ServerArgs,
    pattern: &str,
    to: Option<&Path>,
    out: &mut dyn Write,
) -> Result<()> {
    let mut client = connect(server).await?;
    let mut file = match to {
        Some(path) => Some(io::BufWriter::new(create(path)?)),
        None => None,
    };
    let failed = |e: io::Error| match to {
        Some(path) => Failure::new(format!("{} cannot be written: {e}", path.display())),
        None => Failure::output(e),
    };
    let mut counts = Counts::default();
    let mut cursor = b"0".to_vec();
    loop {
        let args: [&[u8]; 6] =
            [b"SCAN", &cursor, b"MATCH", pattern.as_bytes(), b"COUNT", STEP.as_bytes()];
        let (next, keys) = match step(client.call(&args).await?) {
            Ok(step) => step,
            Err(other) => return Err(client.unexpected(&other)),
        };
        for (key, answer) in keys.iter().zip(read(&mut client, &keys).await?) {
            let Some((value, expires_ms)) = answer else {
                counts.left_out += 1;
                continue;
            };
            let line = line_of(key, &value, expires_ms);
            let target: &mut dyn Write = match &mut file {
                Some(file) => file,
                None => &mut *out,
            };
            writeln!(target, "{line}").map_err(failed)?;
            counts.done += 1;
        }
        counts.show("exported");
        if next == b"0" {
            break;
        }
        cursor = next;
    }
    if let Some(mut file) = file {
        file.flush().and_then(|()| file.get_ref().sync_all()).map_err(failed)?;
    }
    counts.end("exported");
    Ok(())
}

/// Reads the values of keys with their deadlines; `None` for a key that is gone or holds no string.
async fn read(
    client: &mut Client,
    keys: &[Vec<u8>],
) -> Result<Vec<Option<(Vec<u8>, Option<u64>)>>> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let mut requests = Vec::new();
    let get: Vec<&[u8]> =
        std::iter::once(&b"MGET"[..]).chain(keys.iter().map(Vec::as_slice)).collect();
    atoll_resp::request(&mut requests, &get);
    for key in keys {
        atoll_resp::request(&mut requests, &[&b"PEXPIRETIME"[..], key]);
    }
    let mut replies = Vec::with_capacity(keys.len() + 1);
    client.exchange(&requests, keys.len() as u64 + 1, |reply| replies.push(reply)).await?;
    let mut replies = replies.into_iter();
    let values = match replies.next() {
        Some(Value::Array(values)) if values.len() == keys.len() => values,
        Some(Value::Error(text)) => return Err(client.refused(&text)),
        other => return Err(client.unexpected(&other.unwrap_or(Value::Null))),
    };
    let mut read = Vec::with_capacity(keys.len());
    for (value, deadline) in values.into_iter().zip(replies) {
        let deadline = match deadline {
            Value::Int(ms) => u64::try_from(ms).ok(),
            Value::Error(text) => return Err(client.refused(&text)),
            other => return Err(client.unexpected(&other)),
        };
        read.push(match value {
            Value::Bulk(value) => Some((value, deadline)),
            _ => None,
        });
    }
    Ok(read)
}

fn line_of(key: &[u8], value: &[u8], expires_ms: Option<u64>) -> String {
    let mut line = Map::new();
    for (name, bytes) in [("key", key), ("value", value)] {
        match std::str::from_utf8(bytes) {
            Ok(text) => line.insert(name.to_owned(), text.into()),
            Err(_) => line.insert(format!("{name}_base64"), to_base64(bytes).into()),
        };
    }
    if let Some(ms) = expires_ms {
        line.insert("expires_ms".to_owned(), ms.into());
    }
    Json::Object(line).to_string()
}

// ---- import ----

/// Sets what the lines of `from` say, of standard input if that is `-`.
pub(crate) async fn import(server: &ServerArgs, from: &Path) -> Result<()> {
    let name = from.display().to_string();
    let mut lines: Box<dyn BufRead> = if from == Path::new("-") {
        Box::new(BufReader::new(io::stdin()))
    } else {
        let file = open(from)?;
        Box::new(BufReader::new(file))
    };
    let mut client = connect(server).await?;
    let mut counts = Counts::default();
    let mut batch = Batch::default();
    let (mut line, mut number) = (Vec::new(), 0u64);
    loop {
        line.clear();
        let read = io::Read::take(&mut lines, LINE_BYTES_MAX).read_until(b'\n', &mut line);
        let wrong = |what: &str| {
            Failure::new(format!(
                "line {number} of {name}: {what}; what stands before it is imported, mend it and \
                 import again",
                number = number + 1
            ))
        };
        if read.map_err(|e| wrong(&e.to_string()))? == 0 {
            break;
        }
        let text = line.trim_ascii();
        if !text.is_empty() {
            match setting(text) {
                Ok(setting) => batch.add(number + 1, &setting),
                Err(what) => {
                    let failure = wrong(&what);
                    batch.send(&mut client, &name, &mut counts).await?;
                    return Err(failure);
                }
            }
        }
        number += 1;
        if batch.is_full() {
            batch.send(&mut client, &name, &mut counts).await?;
            counts.show("imported");
        }
    }
    batch.send(&mut client, &name, &mut counts).await?;
    counts.end("imported");
    Ok(())
}

/// Commands that were not sent, with the lines they come from.
#[derive(Default)]
struct Batch {
    requests: Vec<u8>,
    lines: Vec<u64>,
}

impl Batch {
    fn add(&mut self, line: u64, setting: &Setting) {
        let deadline = setting.expires_ms.map(|ms| ms.to_string());
        let mut args: Vec<&[u8]> = vec![b"SET", &setting.key, &setting.value];
        if let Some(deadline) = &deadline {
            args.extend([&b"PXAT"[..], deadline.as_bytes()]);
        }
        atoll_resp::request(&mut self.requests, &args);
        self.lines.push(line);
    }

    fn is_full(&self) -> bool {
        self.lines.len() >= LINES_AT_ONCE || self.requests.len() >= BYTES_AT_ONCE
    }

    async fn send(&mut self, client: &mut Client, name: &str, counts: &mut Counts) -> Result<()> {
        let mut refused = None;
        let mut lines = self.lines.iter();
        let done = &mut counts.done;
        let exchanged = client.exchange(&self.requests, self.lines.len() as u64, |reply| {
            let line = lines.next().copied().unwrap_or(0);
            match reply {
                Value::Error(text) => _ = refused.get_or_insert((line, text)),
                _ => *done += 1,
            }
        });
        exchanged.await?;
        self.requests.clear();
        self.lines.clear();
        match refused {
            None => Ok(()),
            Some((line, text)) => {
                Err(Failure::new(format!("line {line} of {name}: {}", client.refused(&text))))
            }
        }
    }
}

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    key: Vec<u8>,
    value: Vec<u8>,
    expires_ms: Option<u64>,
}

/// Reads a line.
fn setting(line: &[u8]) -> std::result::Result<Setting, String> {
    let json: Json = serde_json::from_slice(line).map_err(|e| format!("this is no JSON ({e})"))?;
    let Json::Object(mut fields) = json else { return Err("this is no JSON object".to_owned()) };
    let mut bytes = |name: &str| {
        let coded = format!("{name}_base64");
        match (fields.remove(name), fields.remove(&coded)) {
            (Some(Json::String(text)), None) => Ok(text.into_bytes()),
            (None, Some(Json::String(text))) => {
                from_base64(text.as_bytes()).ok_or(format!("{coded} is not in base64"))
            }
            (None, None) => Err(format!("it has neither {name} nor {coded}")),
            (Some(_), Some(_)) => Err(format!("it has both {name} and {coded}")),
            _ => Err(format!("{name} is no string")),
        }
    };
    let (key, value) = (bytes("key")?, bytes("value")?);
    let expires_ms = match fields.remove("expires_ms") {
        None => None,
        Some(ms) => Some(ms.as_u64().filter(|ms| *ms > 0).ok_or("expires_ms is no moment")?),
    };
    // A field that is not understood may be one that matters.
    match fields.keys().next() {
        None => Ok(Setting { key, value, expires_ms }),
        Some(other) => Err(format!("there is no field '{other}'")),
    }
}

// ---- base64 ----

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn to_base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) as usize & 63;
            text.push(if digit <= group.len() { char::from(DIGITS[value]) } else { '=' });
        }
    }
    text
}

/// Decodes base64 with its padding; `None` if it is none.
fn from_base64(text: &[u8]) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let padding = text.iter().rev().take_while(|c| **c == b'=').count();
    if padding > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let mut bits = 0u32;
    for (at, digit) in text.iter().enumerate() {
        let value = match digit {
            b'=' if at >= text.len() - padding => 0,
            digit => DIGITS.iter().position(|d| d == digit)? as u32,
        };
        bits = bits << 6 | value;
        if at % 4 == 3 {
            bytes.extend_from_slice(&bits.to_be_bytes()[1..]);
            bits = 0;
        }
    }
    // One sequence of bytes has one text.
    let extra = bytes.split_off(bytes.len() - padding);
    extra.iter().all(|byte| *byte == 0).then_some(bytes).filter(|b| to_base64(b).as_bytes() == text)
}

// ---- files and counts ----

fn create(path: &Path) -> Result<File> {
    File::create_new(path).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => {
            Failure::new(format!("{} exists; name another file", path.display()))
        }
        _ => Failure::new(format!("{} cannot be made: {e}", path.display())),
    })
}

#[expect(clippy::disallowed_methods, reason = "the user names the file; it is no data of ours")]
fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| Failure::new(format!("{} cannot be read: {e}", path.display())))
}

#[derive(Default)]
struct Counts {
    done: u64,
    left_out: u64,
}

impl Counts {
    /// Tells somebody who watches.
    fn show(&self, what: &str) {
        let mut err = io::stderr();
        if err.is_terminal() {
            let _ = write!(err, "\r{} keys {what}", self.done);
        }
    }

    fn end(&self, what: &str) {
        let mut err = io::stderr();
        let start = if err.is_terminal() { "\r" } else { "" };
        let _ = match self.left_out {
            0 => writeln!(err, "{start}{} keys {what}", self.done),
            n => writeln!(
                err,
                "{start}{} keys {what}, {n} left out: they went meanwhile, or hold no string",
                self.done
            ),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_back_as_what_it_was_made_of() {
        for (key, value, expires_ms) in [
            (&b"plain"[..], &b"text \"quoted\"\n"[..], None),
            (b"\xff\x00", b"", Some(1_764_178_000_123)),
            (b"", &[0, 159, 146, 150, 7], None),
        ] {
            let line = line_of(key, value, expires_ms);
            assert!(!line.contains('\n'), "{line}");
            let expected = Setting { key: key.to_vec(), value: value.to_vec(), expires_ms };
            assert_eq!(setting(line.as_bytes()).unwrap(), expected);
        }
    }

    #[test]
    fn base64_is_that_of_the_standard_and_one_text_for_each_bytes() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"f", "Zg=="),
            (b"fo", "Zm8="),
            (b"foo", "Zm9v"),
            (b"foobar", "Zm9vYmFy"),
            (&[251, 255], "+/8="),
        ] {
            assert_eq!(to_base64(bytes), text);
            assert_eq!(from_base64(text.as_bytes()).as_deref(), Some(bytes));
        }
        for wrong in ["Zg", "Zg=", "Z===", "====", "Zh==", "Zm9=", "Zg==Zg==", "Zm9*", "=m9v"] {
            assert_eq!(from_base64(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn a_line_that_is_none_says_why() {
        for (line, says) in [
            ("hello", "no JSON"),
            ("[1]", "no JSON object"),
            (r#"{"key":"a"}"#, "neither value nor value_base64"),
            (r#"{"key":"a","key_base64":"YQ==","value":""}"#, "both key and key_base64"),
            (r#"{"key":7,"value":""}"#, "key is no string"),
            (r#"{"key_base64":"!","value":""}"#, "key_base64 is not in base64"),
            (r#"{"key":"a","value":"b","expires_ms":-1}"#, "expires_ms"),
            (r#"{"key":"a","value":"b","ttl":5}"#, "no field 'ttl'"),
        ] {
            let error = setting(line.as_bytes()).unwrap_err();
            assert!(error.contains(says), "{line}: {error}");
        }
    }
}
