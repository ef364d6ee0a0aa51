//! Tree keys and routing keys: what decodes is written back as it was.
#![no_main]

use atoll_mvcc::keys::{RoutingKey, TreeKey, tree};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(place) = RoutingKey::decode(bytes) {
        let mut again = Vec::new();
        place.encode(&mut again);
        assert_eq!(again, bytes);
    }
    let Ok(key) = TreeKey::decode(bytes) else { return };
    let mut again = Vec::new();
    match key {
        TreeKey::Bound => tree::bound(&mut again),
        TreeKey::Data(key) => tree::data(&mut again, key),
        TreeKey::Expiry { deadline_ms, key } => tree::expiry(&mut again, deadline_ms, key),
        TreeKey::Fence { key, txn } => tree::fence(&mut again, &key, txn),
        TreeKey::Intent(key) => tree::intent(&mut again, key),
        TreeKey::Record { primary, txn } => tree::record(&mut again, &primary, txn),
        TreeKey::Shard { shard, what } => tree::shard(&mut again, shard, what),
        TreeKey::Sub { of, generation, sub_key } => {
            let mut key = of.keyspace.to_be_bytes().to_vec();
            key.extend_from_slice(&of.slot.unwrap_or_default().to_be_bytes());
            key.extend_from_slice(of.user_key);
            tree::sub(&mut again, &key, generation, sub_key);
        }
    }
    assert_eq!(again, bytes);
});
