//! A blocked Bloom filter over the user keys of a memtable.
//!
//! A key sets [`PROBES`] bits in one 64-byte block, so asking costs one cache miss where a search
//! of the skip list costs a dozen. A memtable is asked before every table, and most keys asked for
//! are not in it; keys that are written for the first time (counters, `SETNX`) are asked for too.
//!
//! It takes a 64th of the capacity: 16 to 20 bits for a key with a value of 100 bytes (one wrong
//! maybe in a thousand), 4 for the smallest records (one in five). Rejected: growing with the
//! number of keys, which readers would have to be told about.

use std::sync::atomic::{AtomicU32, Ordering};

use atoll_encoding::hash::hash64;

use super::arena::Words;

/// Bits set for a key.
const PROBES: u32 = 6;
/// Words of a block, together one cache line.
const BLOCK: usize = 16;
/// The filter's share of a memtable's capacity.
const SHARE: usize = 64;

/// Bits that answer "certainly not here" for most keys that are not here.
pub(super) struct Filter {
    /// Empty in a memtable too small to have a filter, which then answers "maybe".
    words: Words,
}

impl Filter {
    /// Makes an empty filter for a memtable of that capacity.
    pub(super) fn new(capacity: usize) -> Filter {
        let blocks = capacity / SHARE / (BLOCK * 4);
        Filter { words: Words::new(blocks * BLOCK) }
    }

    /// Returns the bytes it takes from the memtable's capacity.
    pub(super) fn bytes_used(&self) -> usize {
        self.words.len() * 4
    }

    /// Adds a key. Only the memtable's writer calls it: adding is a plain load and store.
    #[inline]
    pub(super) fn add(&self, user_key: &[u8]) {
        let (block, hash) = self.block(user_key);
        for (word, mask) in masks(hash) {
            if let Some(bits) = block.get(word) {
                bits.store(bits.load(Ordering::Relaxed) | mask, Ordering::Relaxed);
            }
        }
    }

    /// Returns false only if the key was never added.
    #[inline]
    pub(super) fn may_contain(&self, user_key: &[u8]) -> bool {
        let (block, hash) = self.block(user_key);
        masks(hash).all(|(word, mask)| {
            block.get(word).is_none_or(|bits| bits.load(Ordering::Relaxed) & mask != 0)
        })
    }

    /// Returns the key's block and the bits of its hash that did not choose the block.
    #[inline]
    fn block(&self, user_key: &[u8]) -> (&[AtomicU32], u64) {
        let hash = hash64(user_key);
        let blocks = (self.words.len() / BLOCK) as u64;
        let block = (((hash >> 32) * blocks) >> 32) as usize;
        let at = block * BLOCK;
        // The low half is stretched to the 54 bits that the probes take.
        let low = (hash & 0xffff_ffff).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (self.words.get(at..at + BLOCK).unwrap_or(&[]), low)
    }
}

/// Splits a hash into the word in a block and the bit in the word of each probe.
#[inline]
fn masks(hash: u64) -> impl Iterator<Item = (usize, u32)> {
    (0..PROBES).map(move |probe| {
        let nine = hash >> (64 - 9 * (probe + 1));
        ((nine >> 5) as usize % BLOCK, 1 << (nine & 31))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn added_keys_are_always_found_and_others_seldom() {
        let filter = Filter::new(1 << 20);
        let keys = (1 << 20) / 160_u32;
        for n in 0..keys {
            filter.add(&n.to_be_bytes());
        }
        assert!((0..keys).all(|n| filter.may_contain(&n.to_be_bytes())));
        let wrong = (keys..keys * 11).filter(|n| filter.may_contain(&n.to_be_bytes())).count();
        let share = wrong as f64 / f64::from(keys * 10);
        assert!(share < 0.01, "{share} of the absent keys were maybe there");
    }

    #[test]
    fn a_memtable_too_small_for_a_filter_answers_maybe() {
        let filter = Filter::new(1000);
        filter.add(b"a");
        assert!(filter.may_contain(b"a") && filter.may_contain(b"b"));
        assert_eq!(filter.bytes_used(), 0);
    }
}
