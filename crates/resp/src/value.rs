//! Replies back to values, for clients: our command line, the load generator, tests.
//!
//! The decoder keeps a stack of open aggregates instead of recursing, so nesting costs no stack
//! and a reply resumes in the middle of any level. Attributes are read and dropped. Streamed
//! strings and aggregates (`$?`) are in the specification but no server sends them; they are an
//! error here.

use std::fmt;

use crate::number;

/// Deepest nesting of a reply.
pub const MAX_DEPTH: usize = 128;
/// Longest line of a simple string, error, number or length, in bytes.
const MAX_LINE: usize = 1 << 20;
/// Longest bulk string, in bytes.
const MAX_BULK: usize = 1 << 30;

/// A decoded reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A status line.
    Simple(Vec<u8>),
    /// An error line or blob.
    Error(Vec<u8>),
    /// An integer.
    Int(i64),
    /// A byte string.
    Bulk(Vec<u8>),
    /// Null of either version, an absent array included.
    Null,
    /// An array.
    Array(Vec<Value>),
    /// A map, in the order sent.
    Map(Vec<(Value, Value)>),
    /// A set, in the order sent.
    Set(Vec<Value>),
    /// A message nobody asked for.
    Push(Vec<Value>),
    /// A floating-point number.
    Double(f64),
    /// A truth value.
    Boolean(bool),
    /// A text for people, without its format.
    Verbatim(Vec<u8>),
    /// An integer beyond 64 bits, as decimal digits.
    BigNumber(Vec<u8>),
}

/// Bytes that are not a reply. The connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// What was expected.
    pub expected: &'static str,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server's reply is not RESP: expected {}", self.expected)
    }
}

impl std::error::Error for DecodeError {}

/// An incremental decoder with a buffer of its own.
#[derive(Default)]
pub struct ReplyDecoder {
    buf: Vec<u8>,
    /// Offset of the next byte to interpret.
    at: usize,
    /// Offset up to which no line end was found; at least `at`.
    searched: usize,
    open: Vec<Aggregate>,
}

/// An aggregate whose elements are still arriving.
struct Aggregate {
    kind: Kind,
    /// Elements missing; a map's pair counts two.
    missing: usize,
    items: Vec<Value>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Array,
    Map,
    Set,
    Push,
    Attribute,
}

impl ReplyDecoder {
    /// Returns a decoder at the start of a reply.
    pub fn new() -> ReplyDecoder {
        ReplyDecoder::default()
    }

    /// Adds bytes from the socket.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.at > 0 && self.at >= self.buf.len() / 2 {
            self.buf.drain(..self.at);
            self.searched -= self.at;
            self.at = 0;
        }
        self.buf.extend_from_slice(bytes);
    }

    /// Returns the next complete reply, or `None` when bytes are missing.
    pub fn next_reply(&mut self) -> Result<Option<Value>, DecodeError> {
        while let Some(mut value) = self.element()? {
            // A finished element may finish the aggregates around it, one after the other.
            loop {
                let Some(inner) = self.open.last_mut() else { return Ok(Some(value)) };
                inner.items.push(value);
                inner.missing -= 1;
                if inner.missing > 0 {
                    break;
                }
                let Some(Aggregate { kind, items, .. }) = self.open.pop() else { break };
                match kind.close(items) {
                    Some(closed) => value = closed,
                    None => break,
                }
            }
        }
        Ok(None)
    }

    /// Decodes one scalar or empty aggregate; opens other aggregates on the way to it.
    fn element(&mut self) -> Result<Option<Value>, DecodeError> {
        loop {
            let Some(&kind) = self.buf.get(self.at) else { return Ok(None) };
            let Some(end) = self.line_end()? else { return Ok(None) };
            let Some(line) = self.buf.get(self.at + 1..end) else {
                return Err(DecodeError { expected: "the type of a reply before its line end" });
            };
            let next = end + 2;
            let value = match kind {
                b'+' => Value::Simple(line.to_vec()),
                b'-' => Value::Error(line.to_vec()),
                b':' => Value::Int(integer(line, "an integer after ':'")?),
                b'(' => Value::BigNumber(line.to_vec()),
                b',' => Value::Double(double(line)?),
                b'_' => Value::Null,
                b'#' => match line {
                    b"t" => Value::Boolean(true),
                    b"f" => Value::Boolean(false),
                    _ => return Err(DecodeError { expected: "'t' or 'f' after '#'" }),
                },
                b'$' | b'=' | b'!' => {
                    let Some(len) = length(line, "a length of a bulk string")? else {
                        self.step_to(next);
                        return Ok(Some(Value::Null));
                    };
                    if len > MAX_BULK {
                        return Err(DecodeError { expected: "a bulk string of at most 1 GiB" });
                    }
                    let Some(tail) = self.buf.get(next + len..next + len + 2) else {
                        return Ok(None);
                    };
                    if tail != b"\r\n" {
                        return Err(DecodeError { expected: "CR LF after a bulk string" });
                    }
                    let bytes = &self.buf[next..next + len];
                    let value = match kind {
                        b'$' => Value::Bulk(bytes.to_vec()),
                        b'!' => Value::Error(bytes.to_vec()),
                        _ => Value::Verbatim(bytes.get(4..).unwrap_or(&[]).to_vec()),
                    };
                    self.step_to(next + len + 2);
                    return Ok(Some(value));
                }
                b'*' | b'%' | b'~' | b'>' | b'|' => {
                    let len = length(line, "a length of an aggregate")?;
                    self.step_to(next);
                    let kind = match kind {
                        b'*' => Kind::Array,
                        b'%' => Kind::Map,
                        b'~' => Kind::Set,
                        b'>' => Kind::Push,
                        _ => Kind::Attribute,
                    };
                    let Some(len) = len else { return Ok(Some(Value::Null)) };
                    let pairs = matches!(kind, Kind::Map | Kind::Attribute);
                    let missing = len.checked_mul(1 + usize::from(pairs));
                    let expected = "an aggregate whose length fits the machine";
                    let missing = missing.ok_or(DecodeError { expected })?;
                    if missing == 0 {
                        match kind.close(Vec::new()) {
                            Some(empty) => return Ok(Some(empty)),
                            None => continue,
                        }
                    }
                    if self.open.len() == MAX_DEPTH {
                        return Err(DecodeError { expected: "at most 128 levels of nesting" });
                    }
                    self.open.push(Aggregate { kind, missing, items: Vec::new() });
                    continue;
                }
                _ => return Err(DecodeError { expected: "the first byte of a RESP type" }),
            };
            self.step_to(next);
            return Ok(Some(value));
        }
    }

    fn step_to(&mut self, at: usize) {
        self.at = at;
        self.searched = at;
    }

    /// Returns the offset of the CR of the line at `at`. A bulk string's length line is found
    /// again at each call until its content is there: it is a few bytes long.
    fn line_end(&mut self) -> Result<Option<usize>, DecodeError> {
        let unseen = self.buf.get(self.searched..).unwrap_or(&[]);
        let Some(end) = memchr::memchr(b'\r', unseen).map(|i| self.searched + i) else {
            if self.buf.len() - self.at > MAX_LINE {
                return Err(DecodeError { expected: "a line of at most 1 MiB" });
            }
            self.searched = self.buf.len();
            return Ok(None);
        };
        self.searched = end;
        match self.buf.get(end + 1) {
            None => Ok(None),
            Some(b'\n') => Ok(Some(end)),
            Some(_) => Err(DecodeError { expected: "LF after CR" }),
        }
    }
}

impl Kind {
    /// Makes the value of a finished aggregate; an attribute has none.
    fn close(self, items: Vec<Value>) -> Option<Value> {
        match self {
            Kind::Array => Some(Value::Array(items)),
            Kind::Set => Some(Value::Set(items)),
            Kind::Push => Some(Value::Push(items)),
            Kind::Map => {
                let mut pairs = Vec::with_capacity(items.len() / 2);
                let mut items = items.into_iter();
                while let (Some(key), Some(value)) = (items.next(), items.next()) {
                    pairs.push((key, value));
                }
                Some(Value::Map(pairs))
            }
            Kind::Attribute => None,
        }
    }
}

fn integer(line: &[u8], expected: &'static str) -> Result<i64, DecodeError> {
    number::parse_i64(line.strip_prefix(b"+").unwrap_or(line)).ok_or(DecodeError { expected })
}

/// Returns a length, `None` for -1.
fn length(line: &[u8], expected: &'static str) -> Result<Option<usize>, DecodeError> {
    match integer(line, expected)? {
        -1 => Ok(None),
        len => usize::try_from(len).map(Some).map_err(|_| DecodeError { expected }),
    }
}

fn double(line: &[u8]) -> Result<f64, DecodeError> {
    let text = std::str::from_utf8(line).ok();
    text.and_then(|text| text.parse().ok()).ok_or(DecodeError { expected: "a number after ','" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::Bulk(text.as_bytes().to_vec())
    }

    #[test]
    fn a_line_end_where_a_type_should_be_is_an_error() {
        let mut decoder = ReplyDecoder::new();
        decoder.feed(b"\r\n+OK\r\n");
        assert!(decoder.next_reply().is_err());
    }

    #[test]
    fn every_type_decodes_at_every_cut_of_the_stream() {
        let stream: &[u8] =
            b"+OK\r\n-ERR no\r\n:-12\r\n$3\r\na\r\n\r\n$-1\r\n*-1\r\n_\r\n#t\r\n,1.5\r\n,-inf\r\n\
            (123456789012345678901\r\n=6\r\ntxt:hi\r\n!5\r\nE bad\r\n*0\r\n%0\r\n\
            |1\r\n+ttl\r\n:9\r\n*2\r\n%1\r\n+k\r\n~2\r\n:1\r\n:2\r\n>1\r\n+m\r\n*1\r\n|0\r\n:7\r\n";
        let expected = vec![
            Value::Simple(b"OK".to_vec()),
            Value::Error(b"ERR no".to_vec()),
            Value::Int(-12),
            bulk("a\r\n"),
            Value::Null,
            Value::Null,
            Value::Null,
            Value::Boolean(true),
            Value::Double(1.5),
            Value::Double(f64::NEG_INFINITY),
            Value::BigNumber(b"123456789012345678901".to_vec()),
            Value::Verbatim(b"hi".to_vec()),
            Value::Error(b"E bad".to_vec()),
            Value::Array(vec![]),
            Value::Map(vec![]),
            Value::Array(vec![
                Value::Map(vec![(
                    Value::Simple(b"k".to_vec()),
                    Value::Set(vec![Value::Int(1), Value::Int(2)]),
                )]),
                Value::Push(vec![Value::Simple(b"m".to_vec())]),
            ]),
            Value::Array(vec![Value::Int(7)]),
        ];
        for cut in 0..=stream.len() {
            let mut decoder = ReplyDecoder::new();
            let mut decoded = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                decoder.feed(part);
                while let Some(value) = decoder.next_reply().unwrap() {
                    decoded.push(value);
                }
            }
            assert_eq!(decoded, expected, "cut at {cut}");
        }
    }

    #[test]
    fn bytes_that_are_no_reply_are_refused_and_lengths_are_not_believed() {
        for bad in [
            "?\r\n",
            ":x\r\n",
            "$-2\r\n",
            "$1\r\nabc",
            "$?\r\n",
            "*99999999999999999999\r\n",
            "#x\r\n",
            ",one\r\n",
            "+a\rb",
            "$1073741825\r\n",
            &"*1\r\n".repeat(MAX_DEPTH + 1),
        ] {
            let mut decoder = ReplyDecoder::new();
            decoder.feed(bad.as_bytes());
            assert!(decoder.next_reply().is_err(), "{bad:?}");
        }
        let mut decoder = ReplyDecoder::new();
        decoder.feed(b"*1000000000\r\n$1000000000\r\n");
        assert_eq!(decoder.next_reply(), Ok(None));
    }
}
