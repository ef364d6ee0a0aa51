//! Walks over a memtable, in both directions at the same cost.

use std::sync::Arc;

use super::list::{HEAD, Node, Probe};
use super::{Memtable, ValueRef};
use crate::key::InternalKey;
use crate::slice::Slice;

/// A position in a memtable, on a record or on none.
///
/// It keeps the memtable alive, never allocates and never waits. Records that are inserted while
/// it walks may or may not be met; every record that was there before the walk began is.
///
/// Positioning (`first`, `last`, `seek`, `seek_before`) lands on no record where there is none to
/// land on; so does a step beyond either end.
pub struct MemtableIter {
    table: Arc<Memtable>,
    node: Node,
}

impl MemtableIter {
    pub(super) fn new(table: Arc<Memtable>) -> MemtableIter {
        MemtableIter { table, node: HEAD }
    }

    /// Returns whether it is on a record.
    #[inline]
    pub fn valid(&self) -> bool {
        self.node != HEAD
    }

    /// Goes to the first record.
    pub fn first(&mut self) {
        self.node = self.table.list.next(HEAD);
    }

    /// Goes to the last record.
    pub fn last(&mut self) {
        self.node = self.table.list.prev(HEAD);
    }

    /// Goes to the first record at or after `key`.
    pub fn seek(&mut self, key: InternalKey<'_>) {
        self.node = self.table.list.seek(&Probe::new(key));
    }

    /// Goes to the last record before `key`.
    pub fn seek_before(&mut self, key: InternalKey<'_>) {
        self.node = self.table.list.seek_before(&Probe::new(key));
    }

    /// Steps to the next record. It must be on a record.
    #[inline]
    pub fn next(&mut self) {
        debug_assert!(self.valid(), "a step from no record");
        self.node = self.table.list.next(self.node);
    }

    /// Steps to the record before. It must be on a record.
    #[inline]
    pub fn prev(&mut self) {
        debug_assert!(self.valid(), "a step from no record");
        self.node = self.table.list.prev(self.node);
    }

    /// Returns the record's key. It must be on a record.
    #[inline]
    pub fn key(&self) -> InternalKey<'_> {
        debug_assert!(self.valid(), "the key of no record");
        let list = &self.table.list;
        InternalKey::new(list.user_key(self.node), list.trailer(self.node))
    }

    /// Returns the record's bytes. It must be on a record.
    #[inline]
    pub fn value(&self) -> &[u8] {
        debug_assert!(self.valid(), "the value of no record");
        let (at, len) = self.table.list.value_at(self.node);
        self.table.list.bytes().get(at, len)
    }

    /// Returns the record's bytes as a slice that keeps the memtable's bytes in memory. It must be
    /// on a record.
    pub fn value_slice(&self) -> Slice {
        debug_assert!(self.valid(), "the value of no record");
        ValueRef::to_slice(self.table.value(self.node))
    }
}
