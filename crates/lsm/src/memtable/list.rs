//! The skip list: one writer links nodes in, any number of readers walk it without a lock.
//!
//! ```text
//!   level 2   head ------------------------> c -------------------> head
//!   level 1   head ---------> b -----------> c -------------------> head
//!   level 0   head <-> a <-> b <-> b' <----> c <-> d <-------------> head
//! ```
//!
//! The list is a ring through the head, which is node 0: zeroed memory is therefore an empty list,
//! the head's `prev` is the last node, and "end" and "before the first" are one test. Level 0 is
//! linked both ways, so a step backwards costs what a step forwards costs.
//!
//! A node is a run of 32-bit words, and a link is the index of its first word:
//!
//! ```text
//!   0..6   prefix      first 24 bytes of the user key, big-endian, zero-padded
//!   6..8   trailer     sequence number and kind
//!   8      key at      where the user key lies in the bytes; the value follows it
//!   9      key len
//!   10     value len
//!   11     prev        level 0; changes when a node comes in before this one
//!   12..   next        one link per level; change likewise
//! ```
//!
//! A search in a large memtable is a chain of cache misses and little else, and two choices follow:
//!
//! - The prefix is long. Its first four bytes are the keyspace, which tells nothing inside one; the
//!   other twenty hold most keys whole, so that comparing costs no second miss for the key's bytes.
//!   With eight, a search for `user:0000000017` goes to the bytes at nearly every node.
//! - Towers rise with a chance of one in two, not the usual one in four. The few more links cost 3
//!   bytes a record; on the lowest levels, which no cache holds, a search passes fewer nodes.
//!
//! Invariants:
//! - Words 0..11 of a node are written before the first link to it and never again.
//! - A link is stored with release after the node it leads to is complete, and followed with
//!   acquire. A node is linked bottom up, so whoever meets it on a level finds it below.
//! - Between the two stores of level 0 a new node is seen forwards and not yet backwards. Nobody
//!   may rely on it before the writer returns: readers read at a snapshot that is published later.
//! - Nodes are never unlinked. There is nothing to reclaim before the whole memtable goes, hence
//!   no epochs and no hazard pointers on the read path.

use std::cmp::Ordering;
use std::sync::Arc;

use super::arena::{self, Appender, Bytes, Words};
use crate::key::{InternalKey, Trailer};
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sync::atomic::{AtomicU32, AtomicUsize};
use crate::sync::order;

/// Levels a tower may have. With half of the nodes rising, 20 serve a million nodes
/// without a detour; beyond, a search gets slower by degrees.
const HEIGHT_MAX: usize = 20;

const PREFIX_LEN: usize = 24;
const PREFIX_WORDS: usize = PREFIX_LEN / 4;
const TRAILER: usize = 6;
const KEY_AT: usize = 8;
const KEY_LEN: usize = 9;
const VALUE_LEN: usize = 10;
const PREV: usize = 11;
const NEXT: usize = 12;

/// A node's index; 0 is the head and stands for both ends.
pub(super) type Node = u32;

/// The head: before the first node and behind the last.
pub(super) const HEAD: Node = 0;

/// Bytes the head takes: the least capacity a list can have.
pub(super) const LEAST_BYTES: usize = (NEXT + HEIGHT_MAX) * 4;

/// Bytes a record takes beside its key and value, at the most. On average it is 56.
pub(super) const NODE_BYTES_MAX: usize = (NEXT + HEIGHT_MAX) * 4;

/// What readers see of the list.
pub(super) struct List {
    words: Words,
    bytes: Arc<Bytes>,
    /// Levels in use, from 1. Only a hint where to start: higher levels lead to the end.
    height: AtomicU32,
    /// Words taken by nodes, the head included. Written by the writer alone.
    words_used: AtomicUsize,
}

/// A key taken apart for comparisons.
#[derive(Clone, Copy)]
pub(super) struct Probe<'a> {
    prefix: [u64; PREFIX_LEN / 8],
    key: InternalKey<'a>,
}

impl<'a> Probe<'a> {
    #[inline]
    pub(super) fn new(key: InternalKey<'a>) -> Probe<'a> {
        let mut padded = [0; PREFIX_LEN];
        let len = key.user_key.len().min(PREFIX_LEN);
        padded[..len].copy_from_slice(&key.user_key[..len]);
        let (eights, _) = padded.as_chunks();
        let mut prefix = [0; PREFIX_LEN / 8];
        for (word, eight) in prefix.iter_mut().zip(eights) {
            *word = u64::from_be_bytes(*eight);
        }
        Probe { prefix, key }
    }
}

impl List {
    /// Makes an empty list whose nodes and bytes may each take up to `capacity` bytes, which must
    /// be at least [`LEAST_BYTES`].
    pub(super) fn new(capacity: usize) -> (Appender, List) {
        let (appender, bytes) = arena::bytes(capacity);
        let list = List {
            words: Words::new(capacity / 4),
            bytes,
            height: AtomicU32::new(1),
            words_used: AtomicUsize::new(LEAST_BYTES / 4),
        };
        (appender, list)
    }

    /// Returns the bytes taken by nodes, keys and values.
    pub(super) fn bytes_used(&self) -> usize {
        self.words_used.load(Relaxed) * 4 + self.bytes.len()
    }

    /// Returns the bytes that keys and values lie in.
    pub(super) fn bytes(&self) -> &Arc<Bytes> {
        &self.bytes
    }

    #[inline]
    pub(super) fn next(&self, node: Node) -> Node {
        self.words[node as usize + NEXT].load(Acquire)
    }

    #[inline]
    pub(super) fn prev(&self, node: Node) -> Node {
        self.words[node as usize + PREV].load(Acquire)
    }

    #[inline]
    pub(super) fn trailer(&self, node: Node) -> Trailer {
        Trailer(self.pair(node as usize + TRAILER))
    }

    #[inline]
    pub(super) fn user_key(&self, node: Node) -> &[u8] {
        self.bytes.get(self.word(node, KEY_AT), self.word(node, KEY_LEN))
    }

    /// Returns where in the bytes the value starts, and its length.
    #[inline]
    pub(super) fn value_at(&self, node: Node) -> (usize, usize) {
        let at = self.word(node, KEY_AT) + self.word(node, KEY_LEN);
        (at, self.word(node, VALUE_LEN))
    }

    /// Returns the first node at or after the key, or [`HEAD`].
    pub(super) fn seek(&self, probe: &Probe) -> Node {
        self.around(probe).1
    }

    /// Returns the last node before the key, or [`HEAD`].
    pub(super) fn seek_before(&self, probe: &Probe) -> Node {
        self.around(probe).0
    }

    /// Returns whether the node's user key is the probe's.
    #[inline]
    pub(super) fn same_user_key(&self, node: Node, probe: &Probe) -> bool {
        self.cmp_user_key(node, probe) == Ordering::Equal
    }

    /// Finds the neighbours on level 0: the last node before the key, the first at or after it.
    fn around(&self, probe: &Probe) -> (Node, Node) {
        let mut at = HEAD;
        let mut beyond = HEAD;
        for level in (0..self.height.load(Relaxed) as usize).rev() {
            (at, beyond) = self.around_on(level, at, beyond, probe);
        }
        (at, beyond)
    }

    /// Walks one level from `at`, which is before the key, to the neighbours of the key on it.
    /// `beyond` is a node known to be at or after the key: met again, it needs no comparison.
    #[inline]
    fn around_on(&self, level: usize, mut at: Node, beyond: Node, probe: &Probe) -> (Node, Node) {
        loop {
            let next = self.link(at, level).load(Acquire);
            if next == HEAD || next == beyond || self.cmp(next, probe) != Ordering::Less {
                return (at, next);
            }
            at = next;
        }
    }

    /// Compares a node that is not the head with the probe.
    #[inline]
    fn cmp(&self, node: Node, probe: &Probe) -> Ordering {
        self.cmp_user_key(node, probe).then_with(|| probe.key.trailer.cmp(&self.trailer(node)))
    }

    #[inline]
    fn cmp_user_key(&self, node: Node, probe: &Probe) -> Ordering {
        // One check of the bounds for all words: nearly all of a search is this function.
        let words = self.words[node as usize..].first_chunk::<PREFIX_WORDS>();
        let words = words.expect("a node has all its words");
        for (i, expected) in probe.prefix.iter().enumerate() {
            let high = u64::from(words[2 * i].load(Relaxed)) << 32;
            match (high | u64::from(words[2 * i + 1].load(Relaxed))).cmp(expected) {
                Ordering::Equal => {}
                different => return different,
            }
        }
        // The padded prefixes are equal. If a key ends within its prefix, the other one goes on
        // with zeroes where it ends, so the shorter sorts first.
        let (len, probe_len) = (self.word(node, KEY_LEN), probe.key.user_key.len());
        if len.min(probe_len) <= PREFIX_LEN {
            return len.cmp(&probe_len);
        }
        let rest = self.bytes.get(self.word(node, KEY_AT) + PREFIX_LEN, len - PREFIX_LEN);
        rest.cmp(&probe.key.user_key[PREFIX_LEN..])
    }

    #[inline]
    fn link(&self, node: Node, level: usize) -> &AtomicU32 {
        &self.words[node as usize + NEXT + level]
    }

    #[inline]
    fn word(&self, node: Node, field: usize) -> usize {
        self.words[node as usize + field].load(Relaxed) as usize
    }

    /// Loads two words as one number.
    #[inline]
    fn pair(&self, at: usize) -> u64 {
        u64::from(self.words[at].load(Relaxed)) << 32 | u64::from(self.words[at + 1].load(Relaxed))
    }

    fn set_pair(&self, at: usize, n: u64) {
        self.words[at].store((n >> 32) as u32, Relaxed);
        self.words[at + 1].store(n as u32, Relaxed);
    }
}

/// Where the last insert happened, so that the next one nearby need not search from the top.
///
/// On every level `before` and `after` are neighbours, and the gap of a level contains the gap of
/// the level below. A key that lies in the gap of level `n` is searched from level `n` down: keys
/// that arrive in order cost a constant, whatever the size of the list.
pub(super) struct Splice {
    before: [Node; HEIGHT_MAX],
    after: [Node; HEIGHT_MAX],
    appender: Appender,
    prng: u64,
}

/// What became of an insert.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Inserted {
    /// The record is linked, as this node.
    New(Node),
    /// A record with this internal key was there. Nothing was changed.
    Present,
    /// The record would exceed the limit. Nothing was changed.
    Full,
}

impl Splice {
    /// The only writer of the list that came with `appender`.
    pub(super) fn new(appender: Appender) -> Splice {
        // The seed is fixed: heights depend on the order of inserts alone.
        let prng = 0x9e37_79b9_7f4a_7c15;
        Splice { before: [HEAD; HEIGHT_MAX], after: [HEAD; HEIGHT_MAX], appender, prng }
    }

    /// Links a record in, unless the list would then take more than `limit` bytes.
    pub(super) fn insert(
        &mut self,
        list: &List,
        probe: &Probe<'_>,
        value: [&[u8]; 2],
        limit: usize,
    ) -> Inserted {
        let key = probe.key;
        self.search(list, probe);
        if self.after[0] != HEAD && list.cmp(self.after[0], probe) == Ordering::Equal {
            return Inserted::Present;
        }

        let height = self.height();
        let value_len = value[0].len() + value[1].len();
        let used = list.words_used.load(Relaxed);
        let needed = (NEXT + height) * 4 + key.user_key.len() + value_len;
        if needed > limit.saturating_sub(list.bytes_used()) {
            return Inserted::Full;
        }
        let Some(key_at) = self.appender.append(&[key.user_key, value[0], value[1]]) else {
            return Inserted::Full;
        };
        list.words_used.store(used + NEXT + height, Relaxed);

        let node = used as Node;
        for (i, &eight) in probe.prefix.iter().enumerate() {
            list.set_pair(used + 2 * i, eight);
        }
        list.set_pair(used + TRAILER, key.trailer.0);
        list.words[used + KEY_AT].store(key_at as u32, Relaxed);
        list.words[used + KEY_LEN].store(key.user_key.len() as u32, Relaxed);
        list.words[used + VALUE_LEN].store(value_len as u32, Relaxed);
        list.words[used + PREV].store(self.before[0], Relaxed);
        for level in 0..height {
            list.link(node, level).store(self.after[level], Relaxed);
        }
        // From here on the node is visible: complete first, then level by level from below.
        for level in 0..height {
            let complete = order("a node before its links", Release);
            list.link(self.before[level], level).store(node, complete);
            if level == 0 {
                list.words[self.after[0] as usize + PREV].store(node, complete);
            }
            self.before[level] = node;
        }
        if height > list.height.load(Relaxed) as usize {
            list.height.store(height as u32, Relaxed);
        }
        Inserted::New(node)
    }

    /// Moves the splice around the key: from a low level whose gap contains it. The lowest ones are
    /// tried one by one, for keys that arrive in order, and of the others every third: for a key
    /// that may be anywhere, trying them all would cost as much as the search.
    fn search(&mut self, list: &List, probe: &Probe) {
        const ONE_BY_ONE: usize = 2;
        let height = list.height.load(Relaxed) as usize;
        let mut level = 0;
        while level < height && !self.contains(list, level, probe) {
            level += if level < ONE_BY_ONE { 1 } else { 3 };
        }
        // Above `height` there is nothing but the head, and the splice says so.
        let (mut at, mut beyond) =
            if level < height { (self.before[level], self.after[level]) } else { (HEAD, HEAD) };
        for level in (0..level.min(height)).rev() {
            (at, beyond) = list.around_on(level, at, beyond, probe);
            (self.before[level], self.after[level]) = (at, beyond);
        }
    }

    /// Returns whether the key belongs between the neighbours of the splice on a level.
    fn contains(&self, list: &List, level: usize, probe: &Probe) -> bool {
        let (before, after) = (self.before[level], self.after[level]);
        (before == HEAD || list.cmp(before, probe) == Ordering::Less)
            && (after == HEAD || list.cmp(after, probe) != Ordering::Less)
    }

    /// Draws a tower's height: each further level has a chance of one in two.
    fn height(&mut self) -> usize {
        self.prng ^= self.prng << 13;
        self.prng ^= self.prng >> 7;
        self.prng ^= self.prng << 17;
        let zeroes = (self.prng >> 32).trailing_zeros() as usize;
        (1 + zeroes).min(HEIGHT_MAX)
    }
}
