//! The memtable: the newest writes, sorted in memory until they are flushed to a table.
//!
//! [`Memtable::new`] makes a pair: a [`Writer`], of which there is one, and the shared
//! [`Memtable`], which has no insert. Any number of threads read while the writer writes; no
//! reader ever waits, takes a lock or writes to shared memory. Sealing a memtable is dropping its
//! writer.
//!
//! ```text
//!   Writer --inserts--> list    records, a skip list (list.rs) in append-only memory (arena.rs)
//!                       index   the newest record of each user key, by its hash (index.rs)
//!                       spans   range tombstones, few (../tombstone.rs)
//! ```
//!
//! - A memtable has a fixed capacity and says [`Full`] rather than exceed it, so memory is counted
//!   to the byte and a replay can never need more than the run before it. Records that do not fit
//!   any memtable are the caller's business.
//! - A record is visible to a reader whose snapshot was published after `insert` returned. What a
//!   reader sees of later records is up to chance; snapshots hide them.
//! - Internal keys are unique. A record that comes twice (a replayed entry) is the same record, and
//!   the second is dropped unseen.
//!
//! Rejected: a concurrent multi-writer skip list. One core owns one store and writes it alone, and
//! the epochs that concurrent removal needs were the larger part of a read's cost.

mod arena;
mod index;
mod iter;
mod list;
#[cfg(all(test, atoll_loom))]
mod model;
#[cfg(test)]
#[cfg(not(atoll_loom))]
mod tests;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use atoll_encoding::hash::hash64;
use parking_lot::Mutex;

pub use self::iter::MemtableIter;

use self::index::{Index, Known};
use self::list::{HEAD, Inserted, List, Probe, Splice};
use crate::key::{InternalKey, SeqNo, Trailer};
use crate::slice::Slice;
use crate::tombstone::{Fragmented, RangeTombstone};

/// Largest capacity: positions in a memtable are 32 bits wide.
pub const CAPACITY_MAX: usize = u32::MAX as usize;

/// Bytes a record takes beside those of its key and value, at the most. A batch whose records fit
/// [`Memtable::room`] with this much for each will be taken in full.
pub const OVERHEAD_MAX: usize = list::NODE_BYTES_MAX;

/// The memtable has no room for this record, and is as it was. Seal it and start another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl std::fmt::Display for Full {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the memtable is full; seal it and write to a new one")
    }
}

impl std::error::Error for Full {}

/// What readers share: see the module for what they may rely on.
pub struct Memtable {
    capacity: usize,
    list: List,
    index: Index,
    spans: Spans,
    /// Records, without range tombstones. Only grows.
    entries: AtomicUsize,
    /// Over records and range tombstones; `seqno_min` starts at `u64::MAX`, `seqno_max` at 0.
    seqno_min: AtomicU64,
    seqno_max: AtomicU64,
}

impl Memtable {
    /// Makes an empty memtable that will use up to `capacity` bytes, and its only writer. What is
    /// less than an empty list needs, or more than [`CAPACITY_MAX`], is brought into these bounds.
    ///
    /// Nothing of the capacity is touched, and so no memory is used, before records need it.
    pub fn new(capacity: usize) -> (Writer, Arc<Memtable>) {
        let capacity = capacity.clamp(list::LEAST_BYTES, CAPACITY_MAX);
        let (appender, list) = List::new(capacity);
        let table = Arc::new(Memtable {
            capacity,
            list,
            index: Index::new(capacity),
            spans: Spans::default(),
            entries: AtomicUsize::new(0),
            seqno_min: AtomicU64::new(u64::MAX),
            seqno_max: AtomicU64::new(0),
        });
        (Writer { splice: Splice::new(appender), table: table.clone() }, table)
    }

    /// Returns the most bytes that a record of these lengths takes, in bytes.
    pub fn record_bytes(key_len: usize, value_len: usize) -> usize {
        list::NODE_BYTES_MAX + key_len + value_len
    }

    /// Returns the bytes that a range tombstone with bounds of these lengths takes.
    pub fn range_bytes(start_len: usize, end_len: usize) -> usize {
        size_of::<RangeTombstone>() + start_len + end_len
    }

    /// Returns a capacity in which records and range tombstones of `bytes` in all fit for certain.
    pub fn capacity_for(bytes: usize) -> usize {
        // The index takes its share of the capacity, the empty list a little.
        bytes + bytes / 14 + 4096
    }

    /// Returns the newest record of a user key that is visible at `snapshot`. Range tombstones are
    /// the caller's to compare with it.
    #[inline]
    pub fn get(&self, user_key: &[u8], snapshot: SeqNo) -> Option<(Trailer, ValueRef<'_>)> {
        let visible = Trailer::visible_at(snapshot);
        let probe = Probe::new(InternalKey::new(user_key, visible));
        let is_its = |node| self.list.same_user_key(node, &probe);
        match self.index.find(hash64(user_key), is_its) {
            Known::Absent => return None,
            Known::Newest(node) if self.list.trailer(node) <= visible => {
                return Some((self.list.trailer(node), self.value(node)));
            }
            Known::Newest(_) | Known::Unknown => {}
        }
        let node = self.list.seek(&probe);
        if node == HEAD || !self.list.same_user_key(node, &probe) {
            return None;
        }
        Some((self.list.trailer(node), self.value(node)))
    }

    /// Returns an iterator over the records, at no record yet.
    pub fn iter(self: &Arc<Self>) -> MemtableIter {
        MemtableIter::new(self.clone())
    }

    /// Returns the range tombstones, or `None` if there are none, which costs one relaxed load.
    pub fn range_tombstones(&self) -> Option<Arc<Fragmented>> {
        if self.spans.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        Some(self.spans.fragmented())
    }

    /// Returns the bytes taken of the capacity; those of the index are taken from the start.
    pub fn bytes_used(&self) -> usize {
        self.list.bytes_used() + self.spans.bytes.load(Ordering::Relaxed) + self.index.bytes_used()
    }

    /// Returns the capacity it was made with.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the bytes that are left.
    pub fn room(&self) -> usize {
        self.capacity.saturating_sub(self.bytes_used())
    }

    /// Returns the number of records, without range tombstones.
    pub fn entries(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    /// Returns whether there is neither a record nor a range tombstone.
    pub fn is_empty(&self) -> bool {
        self.entries() == 0 && self.spans.count.load(Ordering::Relaxed) == 0
    }

    /// Returns the smallest and largest sequence number of records and range tombstones, or `None`
    /// if there are none.
    pub fn seqnos(&self) -> Option<(SeqNo, SeqNo)> {
        let min = self.seqno_min.load(Ordering::Relaxed);
        let max = self.seqno_max.load(Ordering::Relaxed);
        (min <= max).then_some((min, max))
    }

    fn value(&self, node: list::Node) -> ValueRef<'_> {
        let (at, len) = self.list.value_at(node);
        ValueRef { list: &self.list, at, len }
    }
}

/// The bytes of a record, in the memtable.
#[derive(Clone, Copy)]
pub struct ValueRef<'a> {
    list: &'a List,
    at: usize,
    len: usize,
}

impl ValueRef<'_> {
    /// Returns a slice that keeps the memtable's keys and values in memory as long as it lives.
    pub fn to_slice(self) -> Slice {
        Slice::new(self.list.bytes().clone(), self.at..self.at + self.len)
    }
}

impl Deref for ValueRef<'_> {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        self.list.bytes().get(self.at, self.len)
    }
}

/// The one writer of a memtable. Dropping it seals the memtable.
pub struct Writer {
    splice: Splice,
    table: Arc<Memtable>,
}

impl Writer {
    /// Returns the memtable that is written.
    pub fn memtable(&self) -> &Arc<Memtable> {
        &self.table
    }

    /// Returns the bytes that are left.
    pub fn free(&self) -> usize {
        self.table.capacity.saturating_sub(self.table.bytes_used())
    }

    /// Inserts a record. If its internal key is already there, so is the record: nothing happens.
    ///
    /// Fails, having changed nothing, if the record does not fit any more. Keys that arrive in
    /// order, ascending or descending, cost no search.
    pub fn insert(&mut self, key: InternalKey<'_>, value: &[u8]) -> Result<(), Full> {
        self.insert_parts(key, [value, b""])
    }

    /// Inserts a record whose bytes come in two parts (a deadline and a value), as
    /// [`insert`](Self::insert) would insert the two joined.
    pub fn insert_parts(&mut self, key: InternalKey<'_>, value: [&[u8]; 2]) -> Result<(), Full> {
        let table = &*self.table;
        let elsewhere = table.spans.bytes.load(Ordering::Relaxed) + table.index.bytes_used();
        let limit = table.capacity.saturating_sub(elsewhere);
        let probe = Probe::new(key);
        match self.splice.insert(&table.list, &probe, value, limit) {
            Inserted::New(node) => {
                let list = &table.list;
                let is_its = |node| list.same_user_key(node, &probe);
                let is_newer = |node| list.trailer(node) > key.trailer;
                table.index.note(hash64(key.user_key), node, is_its, is_newer);
            }
            Inserted::Present => return Ok(()),
            Inserted::Full => return Err(Full),
        }
        table.entries.store(table.entries.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.extend_seqnos(key.trailer.seqno());
        Ok(())
    }

    /// Deletes the keys from `start` up to, not including, `end` that are older than `seqno`.
    /// An empty range is dropped. Fails, having changed nothing, if it does not fit any more.
    pub fn delete_range(&mut self, start: &[u8], end: &[u8], seqno: SeqNo) -> Result<(), Full> {
        if start >= end {
            return Ok(());
        }
        let needed = size_of::<RangeTombstone>() + start.len() + end.len();
        if needed > self.table.room() {
            return Err(Full);
        }
        self.table
            .spans
            .add(RangeTombstone { start: start.into(), end: end.into(), seqno }, needed);
        self.extend_seqnos(seqno);
        Ok(())
    }

    fn extend_seqnos(&mut self, seqno: SeqNo) {
        // Plain loads and stores: nobody else writes them.
        let (min, max) = (&self.table.seqno_min, &self.table.seqno_max);
        if seqno < min.load(Ordering::Relaxed) {
            min.store(seqno, Ordering::Relaxed);
        }
        if seqno > max.load(Ordering::Relaxed) {
            max.store(seqno, Ordering::Relaxed);
        }
    }
}

/// The range tombstones: a list for the writer, and for readers the fragments of it, made by the
/// first reader that comes after a write. Range deletes are rare and come in runs; fragmenting at
/// each would make a run of them quadratic.
#[derive(Default)]
struct Spans {
    /// Length of `list`, stored after it has grown. All that a read without range tombstones sees.
    count: AtomicUsize,
    /// Memory they take.
    bytes: AtomicUsize,
    list: Mutex<Vec<RangeTombstone>>,
    /// The fragments of the first so many of `list`.
    latest: ArcSwap<(usize, Arc<Fragmented>)>,
}

impl Spans {
    fn add(&self, tombstone: RangeTombstone, bytes: usize) {
        let mut list = self.list.lock();
        list.push(tombstone);
        self.bytes.store(self.bytes.load(Ordering::Relaxed) + bytes, Ordering::Relaxed);
        self.count.store(list.len(), Ordering::Release);
    }

    fn fragmented(&self) -> Arc<Fragmented> {
        let latest = self.latest.load();
        if latest.0 >= self.count.load(Ordering::Acquire) {
            return latest.1.clone();
        }
        let list = self.list.lock();
        // Somebody else may have fragmented while this thread waited for the lock.
        let latest = self.latest.load();
        if latest.0 == list.len() {
            return latest.1.clone();
        }
        let fragmented = Arc::new(Fragmented::new(list.iter().cloned()));
        self.latest.store(Arc::new((list.len(), fragmented.clone())));
        fragmented
    }
}
