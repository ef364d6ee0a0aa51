//! Versions: the immutable set of live tables, and how one follows another.
//!
//! ```text
//!   L0   [d......q]  [a...f]  [c.........x]    newest first, ranges overlap
//!   L1   [a..e)[f....k][m...p]                 sorted, ranges disjoint
//!   ...
//!   L6   [a.b][c.d][e....h][i....n][o...z]     the last level holds most of the bytes
//! ```
//!
//! A reader pins one [`Version`]; whoever changes the set (a flush, a compaction) writes an
//! [`Edit`] to the manifest first and then publishes the next version. A table file lives as long
//! as some version names it: the last handle to drop reports it to the [`Garbage`], which the
//! background work empties.
//!
//! # Invariants
//! - Of two records of one user key, the one in the earlier source (memtable, then L0 newest
//!   first, then L1, L2, ...) has the larger sequence number. A point read stops at the first hit.
//! - Below L0 the key ranges of a level's tables are disjoint, range tombstones included, and all
//!   records of one user key of a level are in one table.

pub(crate) mod edit;
pub(crate) mod manifest;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

pub(crate) use edit::{Applied, Edit, Flushed, TableDesc};

use crate::error::{Error, Result};
use crate::table::Table;
use crate::tombstone::Fragmented;
use crate::values::{LiveFile, ValueHandle};

/// Number of levels. Six levels below L0 at a ratio of ten hold a million times the base level.
pub(crate) const LEVELS: usize = 7;

/// Merges that may fail on a table, or reads of them on a value file, that the disk cannot read, before
/// compaction goes around it until the next opening.
pub(crate) const UNREADABLE_MAX: u32 = 3;

/// The live tables.
pub(crate) struct Version {
    /// L0 newest first; the others by key.
    pub(crate) levels: [Vec<Arc<TableHandle>>; LEVELS],
    /// The value files that tables point into, by number.
    pub(crate) values: Vec<LiveFile>,
}

impl Version {
    /// Returns the version without tables.
    pub(crate) fn empty() -> Version {
        Version { levels: Default::default(), values: Vec::new() }
    }

    /// Returns the version after `edit`. Handles that stay are shared with `self`.
    ///
    /// Fails if the edit does not fit: then the manifest is not the history of these files.
    pub(crate) fn after(&self, edit: &Edit, garbage: &Arc<Garbage>) -> Result<Version, String> {
        let mut levels = self.levels.clone();
        let mut gone = Vec::new();
        for id in &edit.removed {
            let found = levels.iter_mut().find_map(|tables| {
                let at = tables.iter().position(|t| t.desc.id == *id)?;
                Some(tables.remove(at))
            });
            gone.push(found.ok_or_else(|| format!("it removes table {id}, which is not live"))?);
        }
        for (id, to) in &edit.moved {
            let found = levels.iter_mut().find_map(|tables| {
                let at = tables.iter().position(|t| t.desc.id == *id)?;
                Some(tables.remove(at))
            });
            let handle = found.ok_or_else(|| format!("it moves table {id}, which is not live"))?;
            levels[usize::from(*to)].push(handle);
        }
        for (level, desc) in &edit.added {
            if levels.iter().flatten().any(|t| t.desc.id == desc.id) {
                return Err(format!("it adds table {} twice", desc.id));
            }
            levels[usize::from(*level)].push(Arc::new(TableHandle::new(desc.clone(), garbage)));
        }
        for handle in levels.iter().flatten() {
            if edit.quarantined.contains(&handle.desc.id) {
                handle.quarantined.store(true, Ordering::Release);
            }
        }
        // Flushes draw their numbers in the order of what they hold. A table that was ingested drew its
        // own long before it had a place; where such are, every table has sequence numbers of its own.
        if levels[0].iter().any(|t| t.desc.base > 0) {
            levels[0].sort_by_key(|t| std::cmp::Reverse((t.desc.seqnos.1, t.desc.id)));
        } else {
            levels[0].sort_by_key(|t| std::cmp::Reverse(t.desc.id));
        }
        for tables in &mut levels[1..] {
            tables.sort_by(|a, b| a.desc.smallest.cmp(&b.desc.smallest));
            if let Some(pair) =
                tables.windows(2).find(|p| p[0].desc.ends_after(&p[1].desc.smallest))
            {
                let (a, b) = (pair[0].desc.id, pair[1].desc.id);
                return Err(format!("it makes tables {a} and {b} of one level overlap"));
            }
        }
        let values = self.live_values(&gone, edit, garbage)?;
        Ok(Version { levels, values })
    }

    /// Returns the value files after `edit`, which takes `gone` away: those that tables point into.
    fn live_values(
        &self,
        gone: &[Arc<TableHandle>],
        edit: &Edit,
        garbage: &Arc<Garbage>,
    ) -> Result<Vec<LiveFile>, String> {
        let mut files = self.values.clone();
        for desc in &edit.values {
            match files.binary_search_by_key(&desc.id, |f| f.handle.desc.id) {
                Ok(_) => return Err(format!("it adds value file {} twice", desc.id)),
                Err(at) => {
                    let handle = Arc::new(ValueHandle::new(*desc, garbage));
                    files.insert(at, LiveFile { handle, live: 0 });
                }
            }
        }
        let mut count = |desc: &TableDesc, change: fn(u64, u64) -> Option<u64>| {
            for (id, bytes) in desc.values.iter() {
                let at = files.binary_search_by_key(id, |f| f.handle.desc.id).map_err(|_| {
                    format!("table {} points into value file {id}, which is not live", desc.id)
                })?;
                let file = &mut files[at];
                file.live = change(file.live, *bytes)
                    .filter(|live| *live <= file.handle.desc.records())
                    .ok_or_else(|| format!("value file {id} has less than is live in it"))?;
            }
            Ok::<(), String>(())
        };
        // What a merge moved stays live in between.
        gone.iter().try_for_each(|table| count(&table.desc, u64::checked_sub))?;
        edit.added.iter().try_for_each(|(_, desc)| count(desc, u64::checked_add))?;
        files.retain(|f| f.live > 0);
        Ok(files)
    }

    /// Returns another version of the same tables.
    pub(crate) fn share(&self) -> Version {
        Version { levels: self.levels.clone(), values: self.values.clone() }
    }

    /// Returns the only table of a level below L0 that may hold `user_key`.
    pub(crate) fn covering(&self, level: usize, user_key: &[u8]) -> Option<&Arc<TableHandle>> {
        let tables = &self.levels[level];
        let at = tables.partition_point(|t| !t.desc.ends_at_or_after(user_key));
        tables.get(at).filter(|t| t.desc.smallest.as_slice() <= user_key)
    }

    /// Returns the value file of that number.
    pub(crate) fn value_file(&self, id: u64) -> Option<&LiveFile> {
        let at = self.values.binary_search_by_key(&id, |f| f.handle.desc.id).ok()?;
        self.values.get(at)
    }

    /// Returns every handle with its level.
    pub(crate) fn tables(&self) -> impl Iterator<Item = (usize, &Arc<TableHandle>)> {
        self.levels.iter().enumerate().flat_map(|(level, ts)| ts.iter().map(move |t| (level, t)))
    }
}

/// An open table and its range tombstones.
pub(crate) struct OpenTable {
    pub(crate) table: Arc<Table>,
    pub(crate) range_tombstones: Arc<Fragmented>,
}

/// A live table: its description, and the open file once somebody read from it.
pub(crate) struct TableHandle {
    pub(crate) desc: TableDesc,
    /// Opened by the first reader, so that opening a database does not touch every file.
    open: OnceLock<OpenTable>,
    /// Set once stored bytes of it did not verify. Reads that would consult it answer
    /// `Corruption`, compaction leaves it alone.
    pub(crate) quarantined: AtomicBool,
    /// Merges that failed because the disk could not read the table.
    pub(crate) unreadable: AtomicU32,
    /// Set when no version after this one names the table.
    obsolete: AtomicBool,
    garbage: Arc<Garbage>,
}

impl TableHandle {
    fn new(desc: TableDesc, garbage: &Arc<Garbage>) -> TableHandle {
        let (quarantined, obsolete) = (AtomicBool::new(false), AtomicBool::new(false));
        let (open, unreadable) = (OnceLock::new(), AtomicU32::new(0));
        TableHandle { desc, open, quarantined, unreadable, obsolete, garbage: garbage.clone() }
    }

    /// Returns the open table, if somebody opened it.
    pub(crate) fn opened(&self) -> Option<&OpenTable> {
        self.open.get()
    }

    /// Keeps `table` as the open one, unless another reader was faster.
    pub(crate) fn set_opened(&self, table: OpenTable) -> &OpenTable {
        self.open.get_or_init(|| table)
    }

    /// Returns whether reads of the table are refused.
    pub(crate) fn is_quarantined(&self) -> bool {
        self.quarantined.load(Ordering::Acquire)
    }

    /// Returns whether compaction leaves the table alone. Reads of it may go on: what the disk
    /// cannot read may be one sector.
    pub(crate) fn is_blocked(&self) -> bool {
        self.is_quarantined() || self.unreadable.load(Ordering::Relaxed) >= UNREADABLE_MAX
    }

    /// Lets reads of the table go on, after it was verified as a whole.
    pub(crate) fn release(&self) {
        self.quarantined.store(false, Ordering::Release);
    }

    /// Lets the file be removed once the last reader is gone.
    pub(crate) fn retire(&self) {
        self.obsolete.store(true, Ordering::Release);
    }
}

impl Drop for TableHandle {
    fn drop(&mut self) {
        if *self.obsolete.get_mut() {
            self.garbage.ids.lock().push(self.desc.id);
        }
    }
}

/// Tables and value files that no version names and no reader holds any more, waiting for their
/// removal.
#[derive(Default)]
pub(crate) struct Garbage {
    ids: Mutex<Vec<u64>>,
    values: Mutex<Vec<u64>>,
    /// Tables that never were part of a version.
    begun: Mutex<Vec<u64>>,
}

impl Garbage {
    /// Adds tables that never were part of a version.
    pub(crate) fn add_begun(&self, ids: impl IntoIterator<Item = u64>) {
        self.begun.lock().extend(ids);
    }

    /// Takes all of those.
    pub(crate) fn take_begun(&self) -> Vec<u64> {
        std::mem::take(&mut self.begun.lock())
    }

    /// Takes all tables that were part of one.
    pub(crate) fn take(&self) -> Vec<u64> {
        std::mem::take(&mut self.ids.lock())
    }

    /// Adds a value file.
    pub(crate) fn add_values(&self, id: u64) {
        self.values.lock().push(id);
    }

    /// Takes all value files.
    pub(crate) fn take_values(&self) -> Vec<u64> {
        std::mem::take(&mut self.values.lock())
    }
}

/// Where the files of a database are.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    pub(crate) root: PathBuf,
}

impl Paths {
    pub(crate) fn new(root: impl Into<PathBuf>) -> Paths {
        Paths { root: root.into() }
    }
    pub(crate) fn identity(&self) -> PathBuf {
        self.root.join("ATOLL")
    }
    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("LOCK")
    }
    pub(crate) fn current(&self) -> PathBuf {
        self.root.join("CURRENT")
    }
    pub(crate) fn manifest(&self, id: u64) -> PathBuf {
        self.root.join(format!("manifest-{id:06}"))
    }
    pub(crate) fn log(&self) -> PathBuf {
        self.root.join("log")
    }
    pub(crate) fn tables(&self) -> PathBuf {
        self.root.join("tables")
    }
    pub(crate) fn table(&self, id: u64) -> PathBuf {
        self.tables().join(format!("{id:08}.sst"))
    }
    pub(crate) fn values(&self) -> PathBuf {
        self.root.join("values")
    }
    pub(crate) fn values_file(&self, id: u64) -> PathBuf {
        self.values().join(format!("{id:08}.val"))
    }
}

/// Wraps what a manifest's edit did wrong.
pub(crate) fn misfit(path: &std::path::Path, offset: u64, what: String) -> Error {
    Error::corruption(path, offset, format!("an edit does not fit the ones before it: {what}"))
}
