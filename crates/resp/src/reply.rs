//! Replies, written into a byte buffer in the version the client chose.
//!
//! A command says what it answers (a map, a double, a null); the writer knows how each version
//! spells it. RESP2 has fewer types: maps flatten to arrays, doubles and big numbers become bulk
//! strings, booleans become integers.

use std::io::Write;

/// The protocol version of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Protocol {
    /// Version 2, what every connection starts with.
    #[default]
    Resp2,
    /// Version 3, chosen by `HELLO 3`.
    Resp3,
}

impl Protocol {
    /// Returns the version's number.
    pub fn version(self) -> i64 {
        match self {
            Protocol::Resp2 => 2,
            Protocol::Resp3 => 3,
        }
    }
}

/// Appends replies to a buffer.
pub struct ReplyWriter<'a> {
    out: &'a mut Vec<u8>,
    protocol: Protocol,
}

impl<'a> ReplyWriter<'a> {
    /// Writes to the end of `out`.
    pub fn new(out: &'a mut Vec<u8>, protocol: Protocol) -> ReplyWriter<'a> {
        ReplyWriter { out, protocol }
    }

    /// Returns how many bytes the buffer holds, earlier replies included.
    pub fn buffered(&self) -> usize {
        self.out.len()
    }

    /// A status line. `text` has no line end.
    pub fn simple(&mut self, text: &str) {
        debug_assert!(!text.bytes().any(|b| b == b'\r' || b == b'\n'));
        self.out.push(b'+');
        self.out.extend_from_slice(text.as_bytes());
        self.end();
    }

    /// `+OK`.
    pub fn ok(&mut self) {
        self.out.extend_from_slice(b"+OK\r\n");
    }

    /// An error: a code, a space and a sentence. Line ends in it become spaces, because text of
    /// the client may be quoted there.
    pub fn error(&mut self, text: &[u8]) {
        self.out.push(b'-');
        self.out.extend(text.iter().map(|&b| if b == b'\r' || b == b'\n' { b' ' } else { b }));
        self.end();
    }

    /// An integer.
    pub fn int(&mut self, value: i64) {
        self.header(b':', value);
    }

    /// A count, as an integer.
    pub fn count(&mut self, value: usize) {
        self.int(i64::try_from(value).unwrap_or(i64::MAX));
    }

    /// A byte string.
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.length(b'$', bytes.len());
        self.out.extend_from_slice(bytes);
        self.end();
    }

    /// The start of a byte string; `len` bytes and CR LF follow, appended by the caller.
    pub fn bulk_header(&mut self, len: usize) {
        self.length(b'$', len);
    }

    /// An integer as a byte string.
    pub fn bulk_int(&mut self, value: i64) {
        self.bulk(itoa::Buffer::new().format(value).as_bytes());
    }

    /// The absence of a value.
    pub fn null(&mut self) {
        self.out.extend_from_slice(match self.protocol {
            Protocol::Resp2 => b"$-1\r\n",
            Protocol::Resp3 => b"_\r\n",
        });
    }

    /// The absence of an array.
    pub fn null_array(&mut self) {
        self.out.extend_from_slice(match self.protocol {
            Protocol::Resp2 => b"*-1\r\n",
            Protocol::Resp3 => b"_\r\n",
        });
    }

    /// The start of an array; `len` replies follow.
    pub fn array(&mut self, len: usize) {
        self.length(b'*', len);
    }

    /// The start of a map; `len` pairs of replies follow.
    pub fn map(&mut self, len: usize) {
        match self.protocol {
            Protocol::Resp2 => self.length(b'*', len * 2),
            Protocol::Resp3 => self.length(b'%', len),
        }
    }

    /// The start of a set; `len` replies follow.
    pub fn set(&mut self, len: usize) {
        self.length(if self.protocol == Protocol::Resp3 { b'~' } else { b'*' }, len);
    }

    /// The start of a message nobody asked for; `len` replies follow.
    pub fn push(&mut self, len: usize) {
        self.length(if self.protocol == Protocol::Resp3 { b'>' } else { b'*' }, len);
    }

    /// A floating-point number, in the shortest text that reads back as the same number.
    pub fn double(&mut self, value: f64) {
        let mut text = [0; 32];
        let mut cursor = &mut text[..];
        let magnitude = value.abs();
        // The texts are at most 24 bytes long, so these writes cannot run out of room.
        let written = if value.is_nan() {
            cursor.write_all(b"nan")
        } else if value.is_infinite() {
            cursor.write_all(if value > 0.0 { b"inf" } else { b"-inf" })
        } else if magnitude != 0.0 && !(1e-5..1e17).contains(&magnitude) {
            write!(cursor, "{value:e}")
        } else {
            write!(cursor, "{value}")
        };
        debug_assert!(written.is_ok());
        let left = cursor.len();
        let text = &text[..32 - left];
        match self.protocol {
            Protocol::Resp2 => self.bulk(text),
            Protocol::Resp3 => {
                self.out.push(b',');
                self.out.extend_from_slice(text);
                self.end();
            }
        }
    }

    /// Starts what is said about the next value: that many pairs. Nothing, and to be left out with its
    /// pairs, in RESP2.
    pub fn attribute(&mut self, len: usize) {
        if self.protocol == Protocol::Resp3 {
            self.length(b'|', len);
        }
    }

    /// A truth value.
    pub fn boolean(&mut self, value: bool) {
        self.out.extend_from_slice(match (self.protocol, value) {
            (Protocol::Resp2, true) => b":1\r\n",
            (Protocol::Resp2, false) => b":0\r\n",
            (Protocol::Resp3, true) => b"#t\r\n",
            (Protocol::Resp3, false) => b"#f\r\n",
        });
    }

    /// A text for people, with a three-letter format (`txt`, `mkd`).
    pub fn verbatim(&mut self, format: &[u8; 3], text: &[u8]) {
        match self.protocol {
            Protocol::Resp2 => self.bulk(text),
            Protocol::Resp3 => {
                self.length(b'=', text.len() + 4);
                self.out.extend_from_slice(format);
                self.out.push(b':');
                self.out.extend_from_slice(text);
                self.end();
            }
        }
    }

    /// An integer beyond 64 bits, as decimal digits.
    pub fn big_number(&mut self, digits: &str) {
        match self.protocol {
            Protocol::Resp2 => self.bulk(digits.as_bytes()),
            Protocol::Resp3 => {
                self.out.push(b'(');
                self.out.extend_from_slice(digits.as_bytes());
                self.end();
            }
        }
    }

    fn length(&mut self, kind: u8, len: usize) {
        self.header(kind, i64::try_from(len).unwrap_or(i64::MAX));
    }

    fn header(&mut self, kind: u8, number: i64) {
        self.out.push(kind);
        self.out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        self.end();
    }

    fn end(&mut self) {
        self.out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes with both versions and shows the bytes.
    fn both(write: impl Fn(&mut ReplyWriter<'_>)) -> (String, String) {
        let spell = |protocol| {
            let mut out = Vec::new();
            write(&mut ReplyWriter::new(&mut out, protocol));
            out.escape_ascii().to_string()
        };
        (spell(Protocol::Resp2), spell(Protocol::Resp3))
    }

    fn same(text: &str) -> (String, String) {
        (text.to_owned(), text.to_owned())
    }

    fn pair(two: &str, three: &str) -> (String, String) {
        (two.to_owned(), three.to_owned())
    }

    #[test]
    fn each_type_is_spelled_as_its_version_spells_it() {
        assert_eq!(both(|w| w.simple("PONG")), same("+PONG\\r\\n"));
        assert_eq!(both(|w| w.error(b"ERR a\r\nb")), same("-ERR a  b\\r\\n"));
        assert_eq!(both(|w| w.int(i64::MIN)), same(":-9223372036854775808\\r\\n"));
        assert_eq!(both(|w| w.bulk(b"")), same("$0\\r\\n\\r\\n"));
        assert_eq!(both(|w| w.bulk_int(-7)), same("$2\\r\\n-7\\r\\n"));
        assert_eq!(both(|w| w.null()), pair("$-1\\r\\n", "_\\r\\n"));
        assert_eq!(both(|w| w.null_array()), pair("*-1\\r\\n", "_\\r\\n"));
        assert_eq!(both(|w| w.array(3)), same("*3\\r\\n"));
        assert_eq!(both(|w| w.map(2)), pair("*4\\r\\n", "%2\\r\\n"));
        assert_eq!(both(|w| w.set(2)), pair("*2\\r\\n", "~2\\r\\n"));
        assert_eq!(both(|w| w.push(2)), pair("*2\\r\\n", ">2\\r\\n"));
        assert_eq!(both(|w| w.boolean(true)), pair(":1\\r\\n", "#t\\r\\n"));
        assert_eq!(both(|w| w.boolean(false)), pair(":0\\r\\n", "#f\\r\\n"));
        assert_eq!(
            both(|w| w.verbatim(b"txt", b"a")),
            pair("$1\\r\\na\\r\\n", "=5\\r\\ntxt:a\\r\\n")
        );
        assert_eq!(both(|w| w.big_number("12")), pair("$2\\r\\n12\\r\\n", "(12\\r\\n"));
    }

    #[test]
    fn a_double_is_its_shortest_text() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (3.0, "3"),
            (0.1, "0.1"),
            (-1.5, "-1.5"),
            (1e16, "10000000000000000"),
            (1e300, "1e300"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e308"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ] {
            let bulk = format!("${}\\r\\n{text}\\r\\n", text.len());
            assert_eq!(both(|w| w.double(value)), pair(&bulk, &format!(",{text}\\r\\n")));
        }
    }
}
