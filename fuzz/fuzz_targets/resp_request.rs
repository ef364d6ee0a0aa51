//! Requests from anybody: the answer does not depend on how the stream is cut into reads, and
//! another implementation reads the same commands.
#![no_main]

use atoll_resp::{Limits, ProtocolError, RequestParser};
use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::types::OwnedFrame;

type Args = Vec<Vec<u8>>;

/// Parses all of `bytes`, shown to the parser in steps of `step` bytes. Returns the requests, each
/// with where it lies.
fn parse(bytes: &[u8], step: usize) -> (Vec<(Args, usize, usize)>, Option<ProtocolError>) {
    let mut parser = RequestParser::new();
    let (mut requests, mut start, mut shown) = (Vec::new(), 0, 0);
    loop {
        match parser.parse(&bytes[start..shown], &Limits::CLIENT) {
            Err(e) => return (requests, Some(e)),
            Ok(Some(len)) => {
                assert!(len > 0 && len <= shown - start);
                let request = parser.request(&bytes[start..shown]);
                let args = (0..request.len()).filter_map(|n| Some(request.get(n)?.to_vec()));
                requests.push((args.collect(), start, start + len));
                start += len;
            }
            Ok(None) if shown == bytes.len() => return (requests, None),
            Ok(None) => shown = bytes.len().min(shown + step),
        }
    }
}

/// Returns the arguments of a frame that is a command: an array of bulk strings.
fn command(frame: OwnedFrame) -> Option<Args> {
    let OwnedFrame::Array(items) = frame else { return None };
    let text = |item| match item {
        OwnedFrame::BulkString(text) => Some(text),
        _ => None,
    };
    items.into_iter().map(text).collect()
}

/// Whether no number is so long that a decoder might make room for what it announces.
fn is_modest(bytes: &[u8]) -> bool {
    bytes.split(|byte| !byte.is_ascii_digit()).all(|digits| digits.len() <= 4)
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let whole = parse(bytes, bytes.len().max(1));
    assert_eq!(whole, parse(bytes, 1));
    assert_eq!(whole, parse(bytes, 7));
    // What we take for a command in RESP is one for the others, the same and as long. (An empty
    // request may announce less than nothing, which is a null for them.)
    for (args, start, end) in &whole.0 {
        if bytes[*start] == b'*' && !args.is_empty() {
            let theirs = decode(&bytes[*start..]).expect("we could read it");
            let (frame, len) = theirs.expect("all of it is there");
            assert_eq!((command(frame).as_ref(), len), (Some(args), end - start));
        }
    }
    // And what they take for one is one for us, unless it is written in a way that nobody writes.
    if !is_modest(bytes) {
        return;
    }
    if let Ok(Some((frame, len))) = decode(bytes)
        && let Some(args) = command(frame)
        && !args.is_empty()
    {
        let mut written = Vec::new();
        atoll_resp::request(&mut written, &args);
        if written == bytes[..len] {
            assert_eq!(whole.0.first(), Some(&(args, 0, len)));
        }
    }
});
