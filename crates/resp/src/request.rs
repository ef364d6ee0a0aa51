//! Requests: an array of bulk strings, or an inline command typed by hand.
//!
//! ```text
//!   *2\r\n $3\r\n GET\r\n $3\r\n key\r\n *1\r\n ...      the connection's read buffer
//!   ^             ^           ^          ^
//!   buf[0]        span 0      span 1     returned length: the next request starts here
//! ```
//!
//! The caller owns the buffer and passes it from the first byte of the request, longer each time
//! until the request is complete. The parser keeps offsets only: how far it has come, how far it
//! has searched for a line end, and where the arguments lie. The vector of spans is reused, so a
//! request costs no allocation; it grows as arguments arrive, never by the announced count.
//!
//! Error texts are Redis's own: clients and test suites match them. Stricter than Redis in one
//! point: line ends are checked, because a bulk string that does not end where it said has lost
//! the frame, and going on would execute an argument as a command.

use std::fmt;
use std::ops::Index;
use std::sync::Arc;

use crate::number;

/// Longest inline request, and longest line of a length, in bytes.
pub const MAX_LINE: usize = 64 * 1024;
/// Longest request, all arguments and framing together, in bytes. Keeps offsets in 32 bits.
pub const MAX_REQUEST: usize = 1 << 30;

/// Spans whose memory a parser keeps between requests: 128 KiB.
const KEPT_SPANS: usize = 16 * 1024;

/// What a request may announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most arguments, the command's name included.
    pub args: usize,
    /// Longest argument, in bytes.
    pub bulk: usize,
    /// Whether the peer has still to prove who it is: its limits are [`Limits::STRANGER`]'s, and
    /// breaking them is told as such.
    pub stranger: bool,
}

impl Limits {
    /// The limits of a client that may execute commands.
    ///
    /// The argument count is bounded as in Redis, which is not at all: what bounds a request is
    /// [`MAX_REQUEST`], and an argument takes less memory than the bytes that bring it.
    pub const CLIENT: Limits = Limits { args: i32::MAX as usize, bulk: 512 << 20, stranger: false };
    /// The limits before authentication: enough for HELLO and AUTH, not enough to hold memory.
    pub const STRANGER: Limits = Limits { args: 10, bulk: 16 * 1024, stranger: true };
}

/// Bytes that are not a request. The connection cannot go on: where the next request starts is
/// unknown. Displays as the text Redis sends after `-ERR `.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// The argument count is no number, or above the limit.
    InvalidMultibulkLength,
    /// The argument count is above the limit of a client that has not authenticated.
    UnauthenticatedMultibulkLength,
    /// The line of the argument count does not end.
    MultibulkLineTooLong,
    /// An argument does not start with `$` but with this byte.
    ExpectedDollar(u8),
    /// The argument's length is no number, negative, or above the limit.
    InvalidBulkLength,
    /// The argument's length is above the limit of a client that has not authenticated.
    UnauthenticatedBulkLength,
    /// The line of an argument's length does not end.
    BulkLineTooLong,
    /// A line or an argument does not end with CR LF where it should.
    ExpectedLineEnd,
    /// The inline request does not end.
    InlineTooLong,
    /// The inline request has a quote that is not closed, or not followed by a space.
    UnbalancedQuotes,
    /// The arguments together are longer than [`MAX_REQUEST`].
    RequestTooLong,
    /// This is HTTP: a browser lured here, or a probe of the wrong port.
    Http,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let ProtocolError::Http = self {
            return f.write_str(
                "this port speaks the Redis protocol, not HTTP: use a Redis client here, or send \
                 the request to the HTTP port",
            );
        }
        f.write_str("Protocol error: ")?;
        match self {
            ProtocolError::InvalidMultibulkLength => f.write_str("invalid multibulk length"),
            ProtocolError::UnauthenticatedMultibulkLength => {
                f.write_str("unauthenticated multibulk length")
            }
            ProtocolError::MultibulkLineTooLong => f.write_str("too big mbulk count string"),
            ProtocolError::ExpectedDollar(byte) => {
                let shown = if byte.is_ascii_graphic() { char::from(*byte) } else { ' ' };
                write!(f, "expected '$', got '{shown}'")
            }
            ProtocolError::InvalidBulkLength => f.write_str("invalid bulk length"),
            ProtocolError::UnauthenticatedBulkLength => f.write_str("unauthenticated bulk length"),
            ProtocolError::BulkLineTooLong => f.write_str("too big bulk count string"),
            ProtocolError::ExpectedLineEnd => f.write_str("expected CR LF"),
            ProtocolError::InlineTooLong => f.write_str("too big inline request"),
            ProtocolError::UnbalancedQuotes => f.write_str("unbalanced quotes in request"),
            ProtocolError::RequestTooLong => f.write_str("too big request"),
            ProtocolError::Http => Ok(()),
        }
    }
}

impl std::error::Error for ProtocolError {}

/// Where an argument lies. Offsets fit 32 bits, because a request is at most [`MAX_REQUEST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first byte.
    pub start: u32,
    /// Offset behind the last byte.
    pub end: u32,
}

/// A parsed request: its arguments, the command's name first. Empty requests exist (`*0`, a bare
/// line end) and are answered by silence.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    bytes: &'a [u8],
    spans: &'a [Span],
}

impl<'a> Request<'a> {
    /// Makes a request of arguments that lie in `bytes`. One whose span does not is read as empty.
    pub fn new(bytes: &'a [u8], spans: &'a [Span]) -> Request<'a> {
        Request { bytes, spans }
    }

    /// Copies the request, to be executed when the buffer it came in is gone: the bytes from the
    /// first argument to the last, with the framing between them, in one piece.
    pub fn to_owned(&self) -> OwnedRequest {
        let start = self.spans.iter().map(|span| span.start).min().unwrap_or(0);
        let end = self.spans.iter().map(|span| span.end).max().unwrap_or(0);
        let bytes = self.bytes.get(start as usize..end as usize).unwrap_or(&[]);
        let moved =
            |span: &Span| Span { start: span.start - start, end: span.end.saturating_sub(start) };
        let mut few = [Span { start: 0, end: 0 }; FEW];
        let spans = match few.get_mut(..self.len()) {
            Some(of) => {
                of.iter_mut().zip(self.spans).for_each(|(to, span)| *to = moved(span));
                Spans::Few(few, self.len() as u8)
            }
            None => Spans::Many(self.spans.iter().map(moved).collect()),
        };
        OwnedRequest { bytes: Arc::from(bytes), spans }
    }

    /// Copies the arguments from `first` on, as a request of its own: what COMMAND GETKEYS is
    /// asked about.
    pub fn tail_owned(&self, first: usize) -> OwnedRequest {
        Request { bytes: self.bytes, spans: self.spans.get(first..).unwrap_or(&[]) }.to_owned()
    }

    /// Returns the number of arguments.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Returns whether there is not even a command name.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Returns an argument.
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        let span = self.spans.get(index)?;
        self.bytes.get(span.start as usize..span.end as usize)
    }

    /// Returns the arguments from `first` on.
    pub fn tail(self, first: usize) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone + use<'a> {
        let bytes = self.bytes;
        let spans = self.spans.get(first..).unwrap_or(&[]);
        spans
            .iter()
            .map(move |span| bytes.get(span.start as usize..span.end as usize).unwrap_or(&[]))
    }
}

/// A request that is queued, or on its way to another thread. Cheap to clone: what waits for it and
/// what remembers it share the bytes.
#[derive(Clone)]
pub struct OwnedRequest {
    bytes: Arc<[u8]>,
    spans: Spans,
}

/// Arguments whose places take no memory of their own.
const FEW: usize = 4;

#[derive(Clone)]
enum Spans {
    /// The first so many.
    Few([Span; FEW], u8),
    Many(Arc<[Span]>),
}

impl OwnedRequest {
    /// Returns the request.
    pub fn as_request(&self) -> Request<'_> {
        let spans = match &self.spans {
            Spans::Few(spans, len) => &spans[..usize::from(*len)],
            Spans::Many(spans) => spans,
        };
        Request::new(&self.bytes, spans)
    }

    /// Returns about how much memory it takes.
    pub fn memory(&self) -> usize {
        let spans = match &self.spans {
            Spans::Few(..) => 0,
            Spans::Many(spans) => size_of_val(&**spans),
        };
        self.bytes.len() + spans
    }
}

impl PartialEq for OwnedRequest {
    /// Compares the arguments, wherever they lie.
    fn eq(&self, other: &OwnedRequest) -> bool {
        self.as_request().tail(0).eq(other.as_request().tail(0))
    }
}

impl Eq for OwnedRequest {}

impl fmt::Debug for OwnedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_request().fmt(f)
    }
}

impl Index<usize> for Request<'_> {
    type Output = [u8];
    /// Returns an argument that an arity check has proved to be there.
    fn index(&self, index: usize) -> &[u8] {
        let span = self.spans[index];
        &self.bytes[span.start as usize..span.end as usize]
    }
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.tail(0).map(|arg| arg.escape_ascii().to_string())).finish()
    }
}

/// An incremental parser, one per connection.
#[derive(Default)]
pub struct RequestParser {
    /// Offset of the next byte to interpret.
    at: usize,
    /// Offset up to which no line end was found; at least `at`.
    searched: usize,
    /// What is expected at `at`.
    state: State,
    spans: Vec<Span>,
    /// The arguments of an inline request, without their quotes. Spans point here then.
    unquoted: Vec<u8>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// The first byte of a request.
    #[default]
    Start,
    /// An argument's length line, with this many arguments missing (at least one).
    Length { missing: usize },
    /// An argument of this length, with this many arguments missing (itself included).
    Bulk { len: usize, missing: usize },
    /// The request was returned; the next call starts a new one.
    Done { inline: bool },
}

impl RequestParser {
    /// Returns a parser at the start of a request.
    pub fn new() -> RequestParser {
        RequestParser::default()
    }

    /// Parses on. `buf` starts at the first byte of the request and holds at least what it held
    /// at the last call. Returns the request's length when it is complete ([`Self::request`] has
    /// it then, and the next call expects the bytes after it), `None` when bytes are missing.
    pub fn parse(&mut self, buf: &[u8], limits: &Limits) -> Result<Option<usize>, ProtocolError> {
        if let State::Done { .. } = self.state {
            self.reset();
        }
        loop {
            match self.state {
                State::Done { .. } => return Ok(Some(self.at)),
                State::Start => {
                    let Some(&first) = buf.first() else { return Ok(None) };
                    if first != b'*' {
                        return self.inline(buf);
                    }
                    let too_long = ProtocolError::MultibulkLineTooLong;
                    let Some(line) = self.line(buf, too_long)? else { return Ok(None) };
                    let invalid = ProtocolError::InvalidMultibulkLength;
                    let count = number::parse_i64(&line[1..]).ok_or(invalid)?;
                    self.state = match usize::try_from(count) {
                        Err(_) | Ok(0) => State::Done { inline: false },
                        Ok(count) if count <= limits.args => State::Length { missing: count },
                        Ok(_) if limits.stranger => {
                            return Err(ProtocolError::UnauthenticatedMultibulkLength);
                        }
                        Ok(_) => return Err(invalid),
                    };
                }
                State::Length { missing } => {
                    match buf.get(self.at) {
                        None => return Ok(None),
                        Some(b'$') => {}
                        Some(&other) => return Err(ProtocolError::ExpectedDollar(other)),
                    }
                    let too_long = ProtocolError::BulkLineTooLong;
                    let Some(line) = self.line(buf, too_long)? else { return Ok(None) };
                    let invalid = ProtocolError::InvalidBulkLength;
                    let len = number::parse_i64(&line[1..]).ok_or(invalid)?;
                    let len = usize::try_from(len).map_err(|_| invalid)?;
                    if len > limits.bulk {
                        return Err(match limits.stranger {
                            true => ProtocolError::UnauthenticatedBulkLength,
                            false => invalid,
                        });
                    }
                    if self.at + len + 2 > MAX_REQUEST {
                        return Err(ProtocolError::RequestTooLong);
                    }
                    self.state = State::Bulk { len, missing };
                }
                State::Bulk { len, missing } => {
                    let end = self.at + len;
                    match buf.get(end..end + 2) {
                        None => return Ok(None),
                        Some(b"\r\n") => {}
                        Some(_) => return Err(ProtocolError::ExpectedLineEnd),
                    }
                    self.spans.push(Span { start: self.at as u32, end: end as u32 });
                    self.at = end + 2;
                    self.searched = self.at;
                    self.state = match missing - 1 {
                        0 => State::Done { inline: false },
                        missing => State::Length { missing },
                    };
                }
            }
        }
    }

    /// Returns the request that [`Self::parse`] completed, given the same buffer.
    pub fn request<'a>(&'a self, buf: &'a [u8]) -> Request<'a> {
        match self.state {
            State::Done { inline: false } => Request { bytes: buf, spans: &self.spans },
            State::Done { inline: true } => Request { bytes: &self.unquoted, spans: &self.spans },
            _ => Request { bytes: &[], spans: &[] },
        }
    }

    fn reset(&mut self) {
        self.at = 0;
        self.searched = 0;
        self.state = State::Start;
        self.spans.clear();
        self.unquoted.clear();
        // A connection that once sent an enormous request does not keep its memory for ever.
        if self.spans.capacity() > KEPT_SPANS {
            self.spans.shrink_to(KEPT_SPANS);
        }
    }

    /// Returns the line at `at` without its CR LF and steps over it; `None` if it has not ended.
    fn line<'a>(
        &mut self,
        buf: &'a [u8],
        too_long: ProtocolError,
    ) -> Result<Option<&'a [u8]>, ProtocolError> {
        let unseen = buf.get(self.searched..).unwrap_or(&[]);
        let Some(end) = memchr::memchr(b'\r', unseen).map(|i| self.searched + i) else {
            if buf.len() - self.at > MAX_LINE {
                return Err(too_long);
            }
            self.searched = buf.len();
            return Ok(None);
        };
        match buf.get(end + 1) {
            None => {
                self.searched = end;
                Ok(None)
            }
            Some(b'\n') => {
                let line = &buf[self.at..end];
                self.at = end + 2;
                self.searched = self.at;
                Ok(Some(line))
            }
            Some(_) => Err(ProtocolError::ExpectedLineEnd),
        }
    }

    fn inline(&mut self, buf: &[u8]) -> Result<Option<usize>, ProtocolError> {
        let unseen = buf.get(self.searched..).unwrap_or(&[]);
        let Some(end) = memchr::memchr(b'\n', unseen).map(|i| self.searched + i) else {
            if buf.len() > MAX_LINE {
                return Err(ProtocolError::InlineTooLong);
            }
            self.searched = buf.len();
            return Ok(None);
        };
        if end > MAX_LINE {
            return Err(ProtocolError::InlineTooLong);
        }
        let line = buf[..end].strip_suffix(b"\r").unwrap_or(&buf[..end]);
        if is_http(line) {
            return Err(ProtocolError::Http);
        }
        self.split(line)?;
        self.at = end + 1;
        self.state = State::Done { inline: true };
        Ok(Some(self.at))
    }

    /// Splits a line at spaces; `"..."` has escapes (`\n \r \t \b \a \xHH \" \\`), `'...'` has
    /// only `\'`, and a closing quote ends its argument.
    fn split(&mut self, line: &[u8]) -> Result<(), ProtocolError> {
        let mut rest = line;
        loop {
            while let [b' ' | b'\t' | b'\r' | b'\x0b' | b'\x0c' | 0, tail @ ..] = rest {
                rest = tail;
            }
            if rest.is_empty() {
                return Ok(());
            }
            let start = self.unquoted.len() as u32;
            rest = self.argument(rest)?;
            self.spans.push(Span { start, end: self.unquoted.len() as u32 });
        }
    }

    fn argument<'a>(&mut self, mut rest: &'a [u8]) -> Result<&'a [u8], ProtocolError> {
        let unbalanced = Err(ProtocolError::UnbalancedQuotes);
        let closed = |tail: &'a [u8]| match tail {
            [] | [b' ' | b'\t' | b'\r' | b'\x0b' | b'\x0c' | 0, ..] => Ok(tail),
            _ => Err(ProtocolError::UnbalancedQuotes),
        };
        loop {
            match rest {
                [] | [b' ' | b'\t' | b'\r' | 0, ..] => return Ok(rest),
                [b'"', tail @ ..] => {
                    rest = tail;
                    loop {
                        let (byte, tail) = match rest {
                            [] => return unbalanced,
                            [b'"', tail @ ..] => return closed(tail),
                            [b'\\', b'x', high, low, tail @ ..]
                                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
                            {
                                (hex(*high) << 4 | hex(*low), tail)
                            }
                            [b'\\', escaped, tail @ ..] => (unescape(*escaped), tail),
                            [byte, tail @ ..] => (*byte, tail),
                        };
                        self.unquoted.push(byte);
                        rest = tail;
                    }
                }
                [b'\'', tail @ ..] => {
                    rest = tail;
                    loop {
                        let (byte, tail) = match rest {
                            [] => return unbalanced,
                            [b'\'', tail @ ..] => return closed(tail),
                            [b'\\', b'\'', tail @ ..] => (b'\'', tail),
                            [byte, tail @ ..] => (*byte, tail),
                        };
                        self.unquoted.push(byte);
                        rest = tail;
                    }
                }
                [byte, tail @ ..] => {
                    self.unquoted.push(*byte);
                    rest = tail;
                }
            }
        }
    }
}

/// Returns whether a line comes from an HTTP client: a request line, or the header a browser
/// always sends. Answering commands smuggled in a body would let any web page write here.
fn is_http(line: &[u8]) -> bool {
    let mut words = line.split(|&b| b == b' ');
    let first = words.next().unwrap_or(&[]);
    if first.eq_ignore_ascii_case(b"post") || first.eq_ignore_ascii_case(b"host:") {
        return true;
    }
    let (target, version) = (words.next().unwrap_or(&[]), words.next().unwrap_or(&[]));
    let is_target = target.starts_with(b"/") || target.starts_with(b"http") || target == b"*";
    is_target && version.starts_with(b"HTTP/") && words.next().is_none()
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

fn unescape(escaped: u8) -> u8 {
    match escaped {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        other => other,
    }
}
