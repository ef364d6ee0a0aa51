//! How often was a key asked for lately? A count-min sketch with counters of four bits.
//!
//! Four counters stand for a key, all in one cache line; its count is the least of them, since others
//! may share each. When as many were counted as there are counters, all are halved: what was hot an hour
//! ago is forgotten. It is an estimate and its users expect no more, so counters are read and written
//! without care for others who do the same at that moment.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Words of a block, together one cache line.
const BLOCK: usize = 8;
/// Counters in a word.
const PER_WORD: usize = 16;
/// Bytes of records for which there is one counter.
const BYTES_PER_COUNTER: usize = 32;
const COUNT_MAX: u64 = 15;

pub(super) struct Sketch {
    words: Box<[AtomicU64]>,
    /// Counted since they were halved.
    counted: AtomicU32,
}

impl Sketch {
    /// Makes a sketch for that many bytes of records.
    pub(super) fn new(capacity: usize) -> Sketch {
        let blocks = capacity / (BYTES_PER_COUNTER * PER_WORD * BLOCK);
        let words = blocks.max(1) * BLOCK;
        Sketch {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            counted: AtomicU32::new(0),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.words.len() * 8
    }

    /// Counts a key with this hash; returns how often it was counted lately, this time included.
    pub(super) fn touch(&self, hash: u64) -> u64 {
        let count = (self.count(hash) + 1).min(COUNT_MAX);
        for (word, shift) in self.counters(hash) {
            let before = word.load(Relaxed);
            if (before >> shift) & COUNT_MAX < count {
                word.store((before & !(COUNT_MAX << shift)) | (count << shift), Relaxed);
            }
        }
        let counted = self.counted.load(Relaxed) + 1;
        self.counted.store(counted, Relaxed);
        if counted as usize >= self.words.len() * PER_WORD {
            self.halve();
        }
        count
    }

    /// Returns how often a key with this hash was counted lately.
    pub(super) fn count(&self, hash: u64) -> u64 {
        let counts =
            self.counters(hash).map(|(word, shift)| (word.load(Relaxed) >> shift) & COUNT_MAX);
        counts.into_iter().fold(COUNT_MAX, u64::min)
    }

    /// Returns the words with a key's counters, and where in them they are.
    fn counters(&self, hash: u64) -> [(&AtomicU64, u32); 4] {
        // Other bits than those that choose the shard and the slot.
        let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let blocks = (self.words.len() / BLOCK) as u64;
        let block = (((mixed >> 32) * blocks) >> 32) as usize * BLOCK;
        // Two words of the block each, so that no two counters of a key are the same.
        std::array::from_fn(|n| {
            let bits = mixed >> (5 * n);
            let word = block + 2 * n + (bits & 1) as usize;
            (&self.words[word], ((bits >> 1) & 15) as u32 * 4)
        })
    }

    fn halve(&self) {
        self.counted.store(0, Relaxed);
        for word in &self.words {
            word.store((word.load(Relaxed) >> 1) & 0x7777_7777_7777_7777, Relaxed);
        }
    }
}

#[cfg(test)]
#[cfg(not(atoll_loom))]
mod tests {
    use atoll_encoding::hash::hash64;

    use super::*;

    #[test]
    fn what_comes_often_counts_more_than_what_came_once() {
        let sketch = Sketch::new(64 << 10);
        let hash = |n: u64| hash64(&n.to_le_bytes());
        for n in 0..400 {
            sketch.touch(hash(n));
        }
        (0..6).for_each(|_| {
            sketch.touch(hash(7));
        });
        assert!(sketch.count(hash(7)) >= 7);
        let strangers = (1000..2000).filter(|n| sketch.count(hash(*n)) > 1).count();
        assert!(strangers < 50, "{strangers} of 1000 keys that never came");
    }

    #[test]
    fn counts_end_at_their_maximum_and_are_halved_with_time() {
        let sketch = Sketch::new(4096);
        (0..40).for_each(|_| {
            sketch.touch(1);
        });
        assert_eq!(sketch.count(1), 15);
        for n in 0..128 {
            sketch.touch(hash64(&[n]));
        }
        assert!(sketch.count(1) < 15);
    }
}
