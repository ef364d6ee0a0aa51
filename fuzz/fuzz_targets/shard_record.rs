//! Values that shards keep: what decodes means the same when it is written again.
#![no_main]

use atoll_mvcc::Record;
use atoll_mvcc::record::{Fence, Intent, LaneBound, TxnRecord};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(intent) = Intent::decode(bytes) {
        assert_eq!(Intent::decode(&intent.encode()), Ok(intent));
    }
    if let Ok(mut record) = TxnRecord::decode(bytes) {
        if let Record::Staged { keys, .. } = &mut record.state {
            let mut sorted = keys.to_vec();
            sorted.sort();
            *keys = sorted.into();
        }
        assert_eq!(TxnRecord::decode(&record.encode()), Ok(record));
    }
    if let Ok(fence) = Fence::decode(bytes) {
        assert_eq!(fence.encode(), bytes);
    }
    if let Ok(bound) = LaneBound::decode(bytes) {
        assert_eq!(bound.encode(), bytes);
    }
});
