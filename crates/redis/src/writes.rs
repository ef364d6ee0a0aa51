//! What a turn has written and not yet committed: a sorted overlay per database.
//!
//! Reads look here before the store, visits merge it, and the store commits it as one atomic
//! batch. A key written ten times in a turn is one write. Clearing a database forgets what was
//! staged for it and hides what is stored.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;

use crate::store::DATABASES;

/// The staged writes of a turn, all databases together.
#[derive(Debug)]
pub struct Writes {
    databases: [Changes; DATABASES],
    bytes: usize,
}

/// The staged writes of one database. A store applies the clearing first.
#[derive(Debug, Default)]
pub struct Changes {
    cleared: bool,
    records: BTreeMap<Box<[u8]>, Option<Staged>>,
}

/// A staged record.
#[derive(Clone, Debug)]
pub struct Staged {
    /// The record's bytes.
    pub record: Rc<Vec<u8>>,
    /// When it expires, in milliseconds of the Unix epoch.
    pub deadline_ms: Option<u64>,
}

impl Writes {
    /// Starts without writes.
    pub fn new() -> Writes {
        Writes { databases: Default::default(), bytes: 0 }
    }

    /// Returns the changes of a database.
    pub fn changes(&self, db: usize) -> &Changes {
        &self.databases[db]
    }

    /// Returns whether nothing is staged.
    pub fn is_empty(&self) -> bool {
        self.databases.iter().all(Changes::is_empty)
    }

    /// Returns about how many bytes of keys and values are staged.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Stages a record, `None` for its removal.
    pub fn put(&mut self, db: usize, storage_key: &[u8], staged: Option<Staged>) {
        let len = |staged: &Option<Staged>| staged.as_ref().map_or(0, |s| s.record.len());
        self.bytes += len(&staged);
        let records = &mut self.databases[db].records;
        match records.get_mut(storage_key) {
            Some(slot) => {
                self.bytes -= len(slot);
                *slot = staged;
            }
            None => {
                self.bytes += storage_key.len();
                records.insert(storage_key.into(), staged);
            }
        }
    }

    /// Takes a staged record's bytes to change them in place, if there are some. The caller puts
    /// the record back.
    pub fn take_record(&mut self, db: usize, storage_key: &[u8]) -> Option<Rc<Vec<u8>>> {
        let staged = self.databases[db].records.get_mut(storage_key)?.as_mut()?;
        self.bytes -= staged.record.len();
        Some(std::mem::take(&mut staged.record))
    }

    /// Stages the removal of all keys of a database.
    pub fn clear(&mut self, db: usize) {
        self.databases[db] = Changes { cleared: true, records: BTreeMap::new() };
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        for changes in &mut self.databases {
            changes.cleared = false;
            changes.records.clear();
        }
        self.bytes = 0;
    }
}

impl Default for Writes {
    fn default() -> Writes {
        Writes::new()
    }
}

impl Changes {
    /// Returns whether nothing is staged.
    pub fn is_empty(&self) -> bool {
        !self.cleared && self.records.is_empty()
    }

    /// Returns whether everything stored before is removed.
    pub fn cleared(&self) -> bool {
        self.cleared
    }

    /// Returns what is staged for a key: the outer `None` is nothing, the inner one a removal.
    pub fn get(&self, storage_key: &[u8]) -> Option<Option<&Staged>> {
        if self.records.is_empty() {
            return None;
        }
        self.records.get(storage_key).map(Option::as_ref)
    }

    /// Returns what is staged from `from` on, in key order.
    pub fn range(&self, from: Bound<&[u8]>) -> impl Iterator<Item = (&[u8], Option<&Staged>)> {
        let range = self.records.range::<[u8], _>((from, Bound::Unbounded));
        range.map(|(key, staged)| (&**key, staged.as_ref()))
    }

    /// Returns everything staged, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&Staged>)> {
        self.range(Bound::Unbounded)
    }
}
