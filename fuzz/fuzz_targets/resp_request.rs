//! Requests from anybody: the answer does not depend on how the stream is cut into reads.
#![no_main]

use atoll_resp::{Limits, ProtocolError, RequestParser};

/// Parses all of `bytes`, shown to the parser in steps of `step` bytes.
fn parse(bytes: &[u8], step: usize) -> (Vec<Vec<Vec<u8>>>, Option<ProtocolError>) {
    let mut parser = RequestParser::new();
    let (mut requests, mut start, mut shown) = (Vec::new(), 0, 0);
    loop {
        match parser.parse(&bytes[start..shown], &Limits::CLIENT) {
            Err(e) => return (requests, Some(e)),
            Ok(Some(len)) => {
                assert!(len > 0 && len <= shown - start);
                let request = parser.request(&bytes[start..shown]);
                requests.push(
                    (0..request.len()).filter_map(|n| Some(request.get(n)?.to_vec())).collect(),
                );
                start += len;
            }
            Ok(None) if shown == bytes.len() => return (requests, None),
            Ok(None) => shown = bytes.len().min(shown + step),
        }
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let whole = parse(bytes, bytes.len().max(1));
    assert_eq!(whole, parse(bytes, 1));
    assert_eq!(whole, parse(bytes, 7));
});
