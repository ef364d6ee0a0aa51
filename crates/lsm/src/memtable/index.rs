//! A hash index over the user keys of a memtable: where is the newest record of a key?
//!
//! ```text
//!   hash --> block   one cache line
//!            | tags: a byte of the hash for each slot | 12 slots: a node of the list each |
//! ```
//!
//! A search of the skip list is a chain of a dozen cache misses; most reads ask for the newest record
//! of a key, and this finds it with two: the block and the node. It also says "certainly not here" with
//! one, which is what most memtables are asked. It is a help and not the truth: whoever finds the
//! record too new for his snapshot, or no place for his key in a full block, searches the list.
//!
//! It takes a 16th of the capacity, one slot for 85 bytes of it. Keys with values of 100 bytes fill six
//! of a block's twelve slots in the mean, and one block in a hundred runs over; of the smallest records
//! a third has no slot. Rejected: a Bloom filter (it was here before), which answers only misses, at a
//! quarter of the memory; and growing with the number of keys, which readers would have to be told
//! about.
//!
//! # Invariants
//! - A slot is taken once and for ever, by one user key. Its node only changes for a newer one.
//! - The node is stored before the tag that announces it, and both with release: who sees the tag sees
//!   the node complete.

use super::arena::Words;
use super::list::Node;
use crate::sync::atomic::AtomicU32;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sync::order;

/// Words of a block, together one cache line.
const BLOCK: usize = 16;
/// Words with tags, four in each; a tag of 0 is an empty slot. The nodes stand behind them; the last
/// word is not used.
const TAGS: usize = 3;
/// The index's share of a memtable's capacity.
const SHARE: usize = 16;

/// The newest node of each user key that found a slot.
pub(super) struct Index {
    /// Empty in a memtable too small to have an index.
    words: Words,
}

/// What the index knows of a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Its newest node.
    Newest(Node),
    /// There is none.
    Absent,
    /// It may be in the list.
    Unknown,
}

impl Index {
    /// Makes an empty index for a memtable of that capacity.
    pub(super) fn new(capacity: usize) -> Index {
        let blocks = capacity / SHARE / (BLOCK * 4);
        Index { words: Words::new(blocks * BLOCK) }
    }

    /// Returns the bytes it takes from the memtable's capacity.
    pub(super) fn bytes_used(&self) -> usize {
        self.words.len() * 4
    }

    /// Looks for a key with this hash; `is_its` tells its nodes from others.
    #[inline]
    pub(super) fn find(&self, hash: u64, is_its: impl Fn(Node) -> bool) -> Known {
        let Some(block) = self.block(hash) else { return Known::Unknown };
        let tag = tag(hash);
        let mut full = true;
        for at in 0..TAGS {
            let tags = block[at].load(Acquire);
            let mut candidates = bytes_of(tags, tag);
            while candidates != 0 {
                let slot = 4 * at + candidates.trailing_zeros() as usize / 8;
                let node = block[TAGS + slot].load(Acquire);
                if is_its(node) {
                    return Known::Newest(node);
                }
                candidates &= candidates - 1;
            }
            full &= bytes_of(tags, 0) == 0;
        }
        if full { Known::Unknown } else { Known::Absent }
    }

    /// Notes a node of the list that is complete, unless the key's newest one is newer. Only the
    /// memtable's writer calls it.
    #[inline]
    pub(super) fn note(
        &self,
        hash: u64,
        node: Node,
        is_its: impl Fn(Node) -> bool,
        is_newer: impl Fn(Node) -> bool,
    ) {
        let Some(block) = self.block(hash) else { return };
        let tag = tag(hash);
        for at in 0..TAGS {
            let tags = block[at].load(Relaxed);
            let mut candidates = bytes_of(tags, tag);
            while candidates != 0 {
                let slot = &block[TAGS + 4 * at + candidates.trailing_zeros() as usize / 8];
                let before = slot.load(Relaxed);
                if is_its(before) {
                    if !is_newer(before) {
                        slot.store(node, order("a node before its slot", Release));
                    }
                    return;
                }
                candidates &= candidates - 1;
            }
            let empty = bytes_of(tags, 0);
            if empty != 0 {
                // Slots are taken in their order: no later one has the key.
                let byte = empty.trailing_zeros() / 8;
                block[TAGS + 4 * at + byte as usize]
                    .store(node, order("a node before its slot", Release));
                let noted = order("a slot before its tag", Release);
                block[at].store(tags | (u32::from(tag) << (8 * byte)), noted);
                return;
            }
        }
    }

    #[inline]
    fn block(&self, hash: u64) -> Option<&[AtomicU32; BLOCK]> {
        let blocks = (self.words.len() / BLOCK) as u64;
        let at = (((hash >> 32) * blocks) >> 32) as usize * BLOCK;
        self.words.get(at..)?.first_chunk()
    }
}

/// Returns the part of a hash that a block's slots are told apart by; never 0.
#[inline]
fn tag(hash: u64) -> u8 {
    (hash as u8).max(1)
}

/// Returns the high bit of each byte of `tags` that is `tag`, and of no other: an empty slot has no node.
#[inline]
fn bytes_of(tags: u32, tag: u8) -> u32 {
    const LOW: u32 = 0x7f7f_7f7f;
    let differ = tags ^ (u32::from(tag) * 0x0101_0101);
    // The sum of seven bits carries into the eighth, and no further, unless they are 0.
    !(((differ & LOW) + LOW) | differ | LOW)
}

#[cfg(test)]
#[cfg(not(atoll_loom))]
mod tests {
    use super::*;

    const SLOTS: usize = 4 * TAGS;

    /// Hashes of one block that differ in their tags, and two with the same.
    fn hashes() -> impl Iterator<Item = u64> {
        (0..).map(|n| 7 << 56 | (n / 2))
    }

    #[test]
    fn a_block_knows_its_keys_until_it_is_full_and_then_says_that_it_does_not() {
        let index = Index::new(1 << 20);
        let hashes: Vec<u64> = hashes().take(SLOTS + 1).collect();
        for (n, hash) in hashes.iter().enumerate() {
            let node = 100 + n as Node;
            let expected = if n < SLOTS { Known::Absent } else { Known::Unknown };
            assert_eq!(index.find(*hash, |found| found == node), expected, "{n} before");
            index.note(*hash, node, |found| found == node, |_| false);
            let known = if n < SLOTS { Known::Newest(node) } else { Known::Unknown };
            assert_eq!(index.find(*hash, |found| found == node), known, "{n}");
        }
        assert_eq!(index.find(1 << 62, |_| true), Known::Absent, "another block");
    }

    #[test]
    fn the_newest_node_of_a_key_stays_whatever_comes_after_it() {
        let index = Index::new(1 << 20);
        // Nodes of the key are the odd ones; higher ones are newer.
        let is_its = |node: Node| node % 2 == 1;
        for (noted, newest) in [(5, 5), (9, 9), (7, 9), (11, 11)] {
            index.note(1, noted, is_its, |before| before > noted);
            assert_eq!(index.find(1, is_its), Known::Newest(newest));
        }
    }

    #[test]
    fn bytes_are_found_wherever_they_stand() {
        for at in 0..4 {
            let tags = 0x1122_3344u32 & !(0xff << (8 * at)) | 0x77 << (8 * at);
            assert_eq!(bytes_of(tags, 0x77), 0x80 << (8 * at));
            assert_eq!(bytes_of(tags & !(0xff << (8 * at)), 0).trailing_zeros() / 8, at);
        }
        assert_eq!(bytes_of(0x1122_3344, 0), 0);
        assert_eq!(bytes_of(0, 0), 0x8080_8080);
        assert_eq!(bytes_of(0x0000_0001, 1), 0x80, "an empty slot is none of the tag beside it");
    }

    #[test]
    fn a_memtable_too_small_for_an_index_has_none() {
        let index = Index::new(1000);
        index.note(1, 1, |_| true, |_| false);
        assert_eq!(index.find(1, |_| true), Known::Unknown);
        assert_eq!(index.bytes_used(), 0);
    }
}
