//! What a transaction has written so far, with savepoints, and what it has read.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use atoll_mvcc::Timestamp;
use atoll_mvcc::request::{Key, ReadSet, Span};

use crate::shards::{ShardRef, Shards};

/// Writes of a transaction, kept at the coordinator until it commits.
#[derive(Default)]
pub(crate) struct WriteBuffer {
    /// The last value of each key, `None` for deleted.
    values: BTreeMap<Key, Option<Vec<u8>>>,
    /// Bytes of keys and values in `values`.
    bytes: usize,
    /// What was there before each write since the first savepoint, oldest first.
    undo: Vec<(Key, Option<Option<Vec<u8>>>)>,
    /// There is a savepoint, so `undo` is kept.
    keeps_undo: bool,
}

impl WriteBuffer {
    /// Writes `value` (`None` deletes).
    pub(crate) fn put(&mut self, key: Key, value: Option<Vec<u8>>) {
        let added = value.as_ref().map_or(0, Vec::len);
        let undone = self.keeps_undo.then(|| key.clone());
        let before = match self.values.entry(key) {
            Entry::Occupied(mut slot) => Some(slot.insert(value)),
            Entry::Vacant(slot) => {
                self.bytes += slot.key().len();
                slot.insert(value);
                None
            }
        };
        self.bytes += added;
        self.bytes -= before.iter().flatten().map(Vec::len).sum::<usize>();
        if let Some(key) = undone {
            self.undo.push((key, before));
        }
    }

    /// Returns the bytes there would be after a write.
    pub(crate) fn bytes_with(&self, key: &[u8], value: Option<&[u8]>) -> usize {
        let added = value.map_or(0, <[u8]>::len);
        match self.values.get(key) {
            Some(before) => self.bytes - before.as_ref().map_or(0, Vec::len) + added,
            None => self.bytes + key.len() + added,
        }
    }

    /// Returns what was written to a key: nothing, a deletion (`Some(None)`) or a value.
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Option<Vec<u8>>> {
        self.values.get(key)
    }

    pub(crate) fn values(&self) -> &BTreeMap<Key, Option<Vec<u8>>> {
        &self.values
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// Marks a place to come back to.
    pub(crate) fn savepoint(&mut self) -> usize {
        self.keeps_undo = true;
        self.undo.len()
    }

    /// Takes back what was written since a savepoint; `false` if an earlier one was gone back to
    /// meanwhile.
    pub(crate) fn rollback_to(&mut self, savepoint: usize) -> bool {
        if savepoint > self.undo.len() {
            return false;
        }
        for (key, before) in self.undo.drain(savepoint..).rev() {
            let now = match before {
                Some(before) => {
                    self.bytes += before.as_ref().map_or(0, Vec::len);
                    self.values.insert(key, before)
                }
                None => {
                    self.bytes -= key.len();
                    self.values.remove(&key)
                }
            };
            self.bytes -= now.iter().flatten().map(Vec::len).sum::<usize>();
        }
        true
    }
}

/// What a transaction has read at its read timestamp, to be validated.
#[derive(Default)]
pub(crate) struct ReadLog {
    keys: BTreeSet<Key>,
    /// Disjoint, by start.
    spans: BTreeMap<Key, Key>,
}

impl ReadLog {
    /// Adds a key; more than `most` single keys are folded into ranges.
    pub(crate) fn add_key(&mut self, key: Key, most: usize) {
        if self.covers(&key) {
            return;
        }
        self.keys.insert(key);
        if self.keys.len() > most {
            self.fold(most);
        }
    }

    /// Adds a range; more than `most` ranges are joined across the gaps between them.
    pub(crate) fn add_span(&mut self, span: Span, most: usize) {
        if span.start >= span.end {
            return;
        }
        let Span { mut start, mut end } = span;
        // Whatever it touches becomes part of it.
        let touching = self.spans.range(..=end.clone()).rev();
        let touching: Vec<Key> =
            touching.take_while(|(_, e)| **e >= start).map(|(s, _)| s.clone()).collect();
        for s in touching {
            if let Some(e) = self.spans.remove(&s) {
                start = start.min(s);
                end = end.max(e);
            }
        }
        let inside: Vec<Key> = self.keys.range(start.clone()..end.clone()).cloned().collect();
        for key in inside {
            self.keys.remove(&key);
        }
        self.spans.insert(start, end);
        if self.spans.len() > most {
            let joined: Vec<(Key, Key)> = std::mem::take(&mut self.spans).into_iter().collect();
            for pair in joined.chunks(2) {
                let span = Span { start: pair[0].0.clone(), end: pair[pair.len() - 1].1.clone() };
                self.add_span(span, usize::MAX);
            }
        }
    }

    fn covers(&self, key: &[u8]) -> bool {
        let upto = (Bound::Unbounded, Bound::Included(key));
        let before = self.spans.range::<[u8], _>(upto).next_back();
        before.is_some_and(|(_, end)| key < end.as_slice())
    }

    /// Folds neighbours into ranges: exact for dense keys, else a wider net than what was read.
    fn fold(&mut self, most: usize) {
        const NEIGHBOURS: usize = 16;
        let keys: Vec<Key> = std::mem::take(&mut self.keys).into_iter().collect();
        for run in keys.chunks(NEIGHBOURS) {
            let end = after(&run[run.len() - 1]);
            self.add_span(Span { start: run[0].clone(), end }, most);
        }
    }

    /// Returns the keys, without those for which `skip` says so, and the ranges.
    pub(crate) fn keys<'a>(
        &'a self,
        skip: impl Fn(&[u8]) -> bool + 'a,
    ) -> impl Iterator<Item = &'a Key> {
        self.keys.iter().filter(move |key| !skip(key))
    }

    pub(crate) fn spans(&self) -> impl Iterator<Item = Span> {
        self.spans.iter().map(|(start, end)| Span { start: start.clone(), end: end.clone() })
    }
}

/// Returns the first key behind `key`.
pub(crate) fn after(key: &[u8]) -> Key {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next
}

/// What is asked of one shard at a commit.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) shard: ShardRef,
    pub(crate) reads: ReadSet,
    /// Ascending.
    pub(crate) writes: Vec<Key>,
}

/// Parts by shard.
#[derive(Default)]
pub(crate) struct Parts(pub(crate) Vec<Part>);

impl Parts {
    fn part(&mut self, shard: ShardRef) -> &mut Part {
        // Keys come ascending, so the one wanted is mostly the last one.
        let at = self.0.iter().rposition(|part| part.shard == shard).unwrap_or_else(|| {
            self.0.push(Part { shard, reads: ReadSet::default(), writes: Vec::new() });
            self.0.len() - 1
        });
        &mut self.0[at]
    }

    pub(crate) fn write<S: Shards>(&mut self, shards: &S, key: &Key) {
        self.part(shards.shard_of(key)).writes.push(key.clone());
    }

    pub(crate) fn read_key<S: Shards>(&mut self, shards: &S, key: &Key) {
        self.part(shards.shard_of(key)).reads.keys.push(key.clone());
    }

    pub(crate) fn read_locked<S: Shards>(&mut self, shards: &S, key: &Key, found: Timestamp) {
        self.part(shards.shard_of(key)).reads.locked.push((key.clone(), found));
    }

    pub(crate) fn read_span<S: Shards>(&mut self, shards: &S, span: &Span) {
        for (shard, piece) in shards.pieces(span) {
            self.part(shard).reads.spans.push(piece);
        }
    }

    /// Adds the parts of a part whose shard has changed.
    pub(crate) fn again<S: Shards>(&mut self, shards: &S, writes: &[Key], reads: &ReadSet) {
        writes.iter().for_each(|key| self.write(shards, key));
        reads.keys.iter().for_each(|key| self.read_key(shards, key));
        reads.locked.iter().for_each(|(key, found)| self.read_locked(shards, key, *found));
        reads.spans.iter().for_each(|span| self.read_span(shards, span));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> Key {
        n.to_be_bytes().to_vec()
    }

    #[test]
    fn a_savepoint_takes_back_what_came_after_it_and_the_bytes_too() {
        let mut buffer = WriteBuffer::default();
        buffer.put(b"a".to_vec(), Some(b"1".to_vec()));
        let outer = buffer.savepoint();
        buffer.put(b"a".to_vec(), Some(b"22".to_vec()));
        buffer.put(b"b".to_vec(), None);
        let inner = buffer.savepoint();
        buffer.put(b"a".to_vec(), None);
        buffer.put(b"b".to_vec(), Some(b"333".to_vec()));
        assert_eq!(buffer.bytes, 1 + 1 + 3);
        assert!(buffer.rollback_to(inner));
        assert_eq!(buffer.get(b"a"), Some(&Some(b"22".to_vec())));
        assert_eq!(buffer.get(b"b"), Some(&None));
        assert_eq!(buffer.bytes, 4);
        buffer.put(b"c".to_vec(), Some(b"4".to_vec()));
        let later = buffer.savepoint();
        assert!(buffer.rollback_to(outer));
        assert_eq!(buffer.get(b"a"), Some(&Some(b"1".to_vec())));
        assert_eq!((buffer.len(), buffer.bytes), (1, 2));
        assert!(!buffer.rollback_to(later), "it was taken back with the outer one");
        assert_eq!(buffer.bytes_with(b"a", Some(b"xyz")), 4);
        assert_eq!(buffer.bytes_with(b"q", None), 3);
    }

    #[test]
    fn reads_beyond_the_limit_fold_into_ranges_that_cover_them() {
        let mut log = ReadLog::default();
        for n in (0..10_000).rev() {
            log.add_key(key(n * 3), 100);
        }
        assert!(log.keys.len() <= 100 && log.spans.len() <= 101, "{}", log.spans.len());
        for n in 0..10_000 {
            let k = key(n * 3);
            assert!(log.covers(&k) || log.keys.contains(&k));
        }
    }

    #[test]
    fn ranges_that_touch_are_one_and_swallow_keys() {
        let mut log = ReadLog::default();
        log.add_key(key(5), 10);
        log.add_key(key(50), 10);
        let mut add = |start, end| log.add_span(Span { start: key(start), end: key(end) }, 10);
        add(0, 3);
        add(7, 9);
        add(20, 30);
        add(3, 8);
        let spans: Vec<Span> = log.spans().collect();
        let expected = [(0, 9), (20, 30)].map(|(s, e)| Span { start: key(s), end: key(e) });
        assert_eq!(spans, expected);
        assert_eq!(log.keys(|_| false).collect::<Vec<_>>(), [&key(50)]);
    }
}
