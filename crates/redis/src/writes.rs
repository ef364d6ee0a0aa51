//! What a turn has written and not yet committed: a sorted overlay per database.
//!
//! Reads look here before the store, visits merge it, and the store commits it as one atomic
//! batch. A key written ten times in a turn is one write. Clearing a database forgets what was
//! staged for it and hides what is stored.
//!
//! Databases are numbered as the store numbers them here; which number clients know each by is the
//! [`Numbering`], which SWAPDB changes.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;

use crate::layout;
use crate::store::DATABASES;

/// Which of the store's databases each number of a client means: a permutation.
pub type Numbering = [u8; DATABASES];

/// The staged writes of a turn, all databases together.
#[derive(Debug)]
pub struct Writes {
    databases: [Changes; DATABASES],
    bytes: usize,
    numbering: Option<Numbering>,
}

/// The staged writes of one database. A store applies the clearing first, then drops generations,
/// then writes.
#[derive(Debug, Default)]
pub struct Changes {
    cleared: bool,
    records: BTreeMap<Box<[u8]>, Option<Staged>>,
    /// Sub-records by their storage key.
    subs: BTreeMap<Box<[u8]>, Rc<Vec<u8>>>,
    /// Prefixes of the sub-records that are dropped.
    dropped: Vec<Box<[u8]>>,
}

/// A staged record.
#[derive(Clone, Debug)]
pub struct Staged {
    /// The record's bytes.
    pub record: Rc<Vec<u8>>,
    /// When it expires, in milliseconds of the Unix epoch.
    pub deadline_ms: Option<u64>,
    /// Whether it names sub-records: a store must not forget it by itself when it expires, or
    /// nobody would know of them.
    pub has_subs: bool,
}

impl Writes {
    /// Starts without writes.
    pub fn new() -> Writes {
        Writes { databases: Default::default(), bytes: 0, numbering: None }
    }

    /// Returns the changes of a database.
    pub fn changes(&self, db: usize) -> &Changes {
        &self.databases[db]
    }

    /// Returns whether nothing is staged.
    pub fn is_empty(&self) -> bool {
        self.numbering.is_none() && self.databases.iter().all(Changes::is_empty)
    }

    /// Returns about how many bytes of keys and values are staged.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the numbering that is staged.
    pub fn numbering(&self) -> Option<&Numbering> {
        self.numbering.as_ref()
    }

    /// Stages a numbering.
    pub fn set_numbering(&mut self, numbering: Numbering) {
        self.numbering = Some(numbering);
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

    /// Stages a sub-record.
    pub fn put_sub(&mut self, db: usize, storage_key: &[u8], value: &[u8]) {
        self.bytes += storage_key.len() + value.len();
        let old = self.databases[db].subs.insert(storage_key.into(), Rc::new(value.to_vec()));
        if let Some(old) = old {
            self.bytes -= storage_key.len() + old.len();
        }
    }

    /// Stages that all sub-records with a prefix are dropped.
    pub fn drop_subs(&mut self, db: usize, prefix: &[u8]) {
        let end = layout::prefix_end(prefix);
        let range = (Bound::Included(prefix), Bound::Excluded(&end[..]));
        let changes = &mut self.databases[db];
        let staged: Vec<_> = changes.subs.range::<[u8], _>(range).map(|(k, _)| k.clone()).collect();
        for key in staged {
            if let Some(value) = changes.subs.remove(&key) {
                self.bytes -= key.len() + value.len();
            }
        }
        changes.dropped.push(prefix.into());
    }

    /// Stages the removal of all keys of a database.
    pub fn clear(&mut self, db: usize) {
        self.databases[db] = Changes { cleared: true, ..Changes::default() };
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        for changes in &mut self.databases {
            changes.cleared = false;
            changes.records.clear();
            changes.subs.clear();
            changes.dropped.clear();
        }
        self.numbering = None;
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
        !self.cleared && self.records.is_empty() && self.dropped.is_empty()
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

    /// Returns whether sub-records are staged.
    pub fn has_subs(&self) -> bool {
        !self.subs.is_empty()
    }

    /// Returns the sub-record staged at a storage key.
    pub fn get_sub(&self, storage_key: &[u8]) -> Option<&Rc<Vec<u8>>> {
        self.subs.get(storage_key)
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

    /// Returns the sub-records staged, in the order of their storage keys.
    pub fn subs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.subs.iter().map(|(key, value)| (&**key, &value[..]))
    }

    /// Returns the prefixes of the sub-records that are dropped.
    pub fn dropped(&self) -> impl Iterator<Item = &[u8]> {
        self.dropped.iter().map(|prefix| &**prefix)
    }
}
