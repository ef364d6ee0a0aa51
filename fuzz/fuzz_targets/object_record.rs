//! What a Redis key holds: the stored value and the metadata in it.
#![no_main]

use atoll_mvcc::Value;
use atoll_redis::object::{Kind, Meta};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (deadline_ms, record) = match Value::decode(bytes) {
        Ok(value) => {
            assert_eq!(value.encode(), bytes);
            (value.deadline_ms, value.payload)
        }
        Err(_) => (None, bytes),
    };
    let (meta, payload_at) = Meta::decode(record, deadline_ms);
    assert!(payload_at <= record.len());
    if meta.kind == Kind::String {
        let mut again = Vec::new();
        meta.encode(&mut again);
        assert_eq!(again.len(), meta.encoded_len());
        assert_eq!(Meta::decode(&again, deadline_ms), (meta, again.len()));
    }
});
