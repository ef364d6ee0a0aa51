//! Replies of a server: the values do not depend on how the stream is cut into reads.
#![no_main]

use atoll_resp::ReplyDecoder;

/// Decodes all of `bytes`, fed in steps of `step` bytes; the texts tell values and errors apart.
fn decode(bytes: &[u8], step: usize) -> Vec<String> {
    let mut decoder = ReplyDecoder::new();
    let mut seen = Vec::new();
    for piece in bytes.chunks(step) {
        decoder.feed(piece);
        loop {
            match decoder.next_reply() {
                Ok(None) => break,
                Ok(Some(value)) => seen.push(format!("{value:?}")),
                Err(e) => {
                    seen.push(e.to_string());
                    return seen;
                }
            }
        }
    }
    seen
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let whole = decode(bytes, bytes.len().max(1));
    assert_eq!(whole, decode(bytes, 1));
    assert_eq!(whole, decode(bytes, 5));
});
