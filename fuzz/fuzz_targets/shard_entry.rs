//! Entries of shards and what shards say of themselves: what decodes means the same when it is written
//! again.
#![no_main]

use atoll_shard::descriptor::Descriptor;
use atoll_shard::entry::{Payload, decode_count, encode_count};
use atoll_shard::intent::Intent;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(descriptor) = Descriptor::decode(bytes) {
        assert_eq!(Descriptor::decode(&descriptor.encode()), Ok(descriptor));
    }
    if let Ok(count) = decode_count(bytes) {
        assert_eq!(encode_count(count), bytes);
    }
    if let Ok(intent) = Intent::decode(bytes) {
        assert_eq!(Intent::decode(&intent.encode()), Ok(intent));
    }
    if let Ok(entry) = Payload::decode(bytes) {
        assert!(bytes.ends_with(entry.writes));
        // What is applied is decoded by the tree, which refuses what it does not know.
        if let Ok(writes) = atoll_lsm::driven::decode(entry.writes) {
            assert!(writes.take_while(Result::is_ok).count() <= entry.writes.len());
        }
    }
});
