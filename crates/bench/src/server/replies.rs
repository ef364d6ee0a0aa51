//! Counts replies without making values of them.
//!
//! ```text
//!   read 1   +OK\r\n:12\r        one reply; a line begun, which is kept
//!   read 2   \n$5\r\nhel         the second reply; a bulk of which 4 bytes and \r\n are to be skipped
//!   read 3   lo\r\n              the third
//! ```
//!
//! A generator that shares the machine with the server must not spend its processor on parsing: the
//! bytes of a bulk are skipped, a line that lies in one read is looked at in place, and only a line
//! torn by a read is copied. An error counts wherever it stands, within the array of an EXEC too.
//!
//! Invariants: `open` is the number of elements that the innermost reply still lacks, over all
//! arrays it is in (an element that is an array of n adds n and is done itself); at 0 a reply is
//! complete. The counter takes every byte it is given.

/// The longest line of a reply; servers keep far below it.
const MAX_LINE: usize = 64 << 10;

/// What replies were seen.
#[derive(Clone, Debug, Default)]
pub struct Replies {
    /// Complete replies.
    pub complete: u64,
    /// Errors, in replies or within their arrays, and transactions that were not executed.
    pub errors: u64,
    /// Values that are not there: null bulks.
    pub nulls: u64,
    /// What the first error said.
    pub first_error: Option<String>,
    /// Elements that are missing before the reply is complete.
    open: u64,
    /// Bytes of a bulk that are still to be skipped, its line end included.
    skip: u64,
    /// The beginning of a line whose end has not arrived.
    line: Vec<u8>,
}

/// A reply no server that speaks the protocol would give.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

impl Replies {
    /// Takes the bytes of one read.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Malformed> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len() as u64);
                bytes = &bytes[skipped as usize..];
                self.skip -= skipped;
                if self.skip == 0 {
                    self.element_is_complete();
                }
                continue;
            }
            let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
                self.line.extend_from_slice(bytes);
                if self.line.len() > MAX_LINE {
                    return Err(Malformed("a line has no end".into()));
                }
                return Ok(());
            };
            let (line, rest) = bytes.split_at(end + 1);
            bytes = rest;
            if self.line.is_empty() {
                self.line_is_complete(line)?;
            } else {
                let mut whole = std::mem::take(&mut self.line);
                whole.extend_from_slice(line);
                self.line_is_complete(&whole)?;
                // The next torn line needs no new buffer.
                whole.clear();
                self.line = whole;
            }
        }
        Ok(())
    }

    fn line_is_complete(&mut self, line: &[u8]) -> Result<(), Malformed> {
        let malformed = || Malformed(format!("'{}'", String::from_utf8_lossy(line).trim_end()));
        let line = line.strip_suffix(b"\r\n").ok_or_else(malformed)?;
        let (&kind, text) = line.split_first().ok_or_else(malformed)?;
        match kind {
            b'+' | b':' => self.element_is_complete(),
            b'-' => {
                self.refused(text);
                self.element_is_complete();
            }
            b'$' => match number(text).ok_or_else(malformed)? {
                None => {
                    self.nulls += 1;
                    self.element_is_complete();
                }
                Some(len) => self.skip = len + 2,
            },
            b'*' => match number(text).ok_or_else(malformed)? {
                None => {
                    self.refused(b"the transaction was not executed");
                    self.element_is_complete();
                }
                Some(0) => self.element_is_complete(),
                // The array stands for its elements; its own place is taken by the last of them.
                Some(len) => self.open = self.open.max(1) - 1 + len,
            },
            _ => return Err(malformed()),
        }
        Ok(())
    }

    fn element_is_complete(&mut self) {
        self.open = self.open.saturating_sub(1);
        if self.open == 0 {
            self.complete += 1;
        }
    }

    fn refused(&mut self, text: &[u8]) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| String::from_utf8_lossy(text).into_owned());
    }
}

/// Parses a length: `Some(None)` is that of null, `None` is no length.
fn number(text: &[u8]) -> Option<Option<u64>> {
    if text == b"-1" {
        return Some(None);
    }
    // Ten digits are more than a bulk can have and cannot overflow.
    if text.is_empty() || text.len() > 10 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(Some(text.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b"+OK\r\n:12\r\n$5\r\nhel\nx\r\n$-1\r\n$0\r\n\r\n*0\r\n\
        *2\r\n+OK\r\n*2\r\n:1\r\n-ERR inner\r\n-ERR outer\r\n*-1\r\n*1\r\n$3\r\n*9\r\r\n+QUEUED\r\n";

    fn fed<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Replies {
        let mut replies = Replies::default();
        for part in parts {
            replies.feed(part).unwrap();
        }
        replies
    }

    fn check(replies: &Replies) {
        assert_eq!((replies.complete, replies.errors, replies.nulls), (11, 3, 1));
        assert_eq!(replies.first_error.as_deref(), Some("ERR inner"));
        assert_eq!((replies.open, replies.skip, replies.line.len()), (0, 0, 0));
    }

    #[test]
    fn replies_are_counted_wherever_reads_tear_them() {
        check(&fed([STREAM]));
        check(&fed(STREAM.chunks(1)));
        for first in 0..STREAM.len() {
            for second in first..STREAM.len() {
                check(&fed([&STREAM[..first], &STREAM[first..second], &STREAM[second..]]));
            }
        }
    }

    #[test]
    fn a_reply_counts_when_its_last_byte_is_there() {
        let complete = |bytes| fed([bytes]).complete;
        assert_eq!(complete(b"*2\r\n$1\r\na\r\n$1\r\nb\r"), 0);
        assert_eq!(complete(b"*2\r\n$1\r\na\r\n$1\r\nb\r\n"), 1);
        assert_eq!(complete(b"$3\r\nabc\r\n+O"), 1);
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        for bytes in [&b"HTTP/1.1 400 Bad Request\r\n"[..], b"\r\n", b"+OK\n", b"$x\r\n", b"$\r\n"]
        {
            assert!(Replies::default().feed(bytes).is_err(), "{bytes:?}");
        }
        assert!(Replies::default().feed(&vec![b'+'; MAX_LINE + 1]).is_err());
    }
}
