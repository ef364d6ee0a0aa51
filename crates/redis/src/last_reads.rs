//! When keys were last read, approximately and in bounded memory.
//!
//! A slot per hash remembers the last of the keys that share it, by the other bits of its hash: an
//! old key may be forgotten, and one in a million is taken for another. The time of a read is no
//! part of the data: it is not logged, not replicated, and gone after a restart.

use atoll_encoding::hash::hash64;

/// Slots of the table.
const LAST_READS: usize = 1 << 16;

/// When keys were last read: a table of fixed size in which a key may push out another.
pub struct LastReads {
    /// Upper bits of the key's hash, and milliseconds since 2020 in the lower ones.
    slots: Box<[u64]>,
}

/// Bits of a slot that hold the time: enough for 500 years.
const TIME_BITS: u32 = 44;

impl Default for LastReads {
    fn default() -> LastReads {
        LastReads::new()
    }
}

impl LastReads {
    /// Returns an empty table.
    pub fn new() -> LastReads {
        LastReads { slots: vec![0; LAST_READS].into_boxed_slice() }
    }

    /// Notes that a key was read, in microseconds since 2020.
    pub fn set(&mut self, db: usize, key: &[u8], now_us: u64) {
        let (index, tag) = LastReads::place(db, key);
        self.slots[index] = tag | (now_us / 1_000) & ((1 << TIME_BITS) - 1);
    }

    /// Returns when a key was last read, `None` if that is forgotten.
    pub fn get(&self, db: usize, key: &[u8]) -> Option<u64> {
        let (index, tag) = LastReads::place(db, key);
        let time_ms = self.slots[index] & ((1 << TIME_BITS) - 1);
        (time_ms > 0 && self.slots[index] ^ time_ms == tag).then_some(time_ms * 1_000)
    }

    fn place(db: usize, key: &[u8]) -> (usize, u64) {
        let hash = hash64(key) ^ db as u64;
        (hash as usize % LAST_READS, hash >> TIME_BITS << TIME_BITS)
    }
}
