//! Opening and reading live tables, and putting those that do not verify into quarantine.
//!
//! A table is opened by the first reader. When a block does not verify even when it is read again
//! (a bit may have flipped on the way), the whole table is quarantined: every get or scan that would
//! consult it answers `Corruption`, because what it would have said is unknown. The background work
//! writes the quarantine into the manifest, so that it survives a restart. After an error of a scan
//! or a merge the whole table is verified before it is put away.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use atoll_env::Env;
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::events::{CorruptionFound, Event, Events};
use crate::key::SeqNo;
use crate::pool::Pool;
use crate::records::Records;
use crate::table::{Expected, Found, ReadOptions, Table, TableIter};
use crate::tombstone::Fragmented;
use crate::values::Values;
use crate::verify::verify_table;
use crate::version::{OpenTable, Paths, TableDesc, TableHandle, Version};

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadMode {
    /// A client's scan.
    Scan,
    /// A merge or a check: long reads past the cache.
    Bulk,
}

/// The tables of a database, as readers use them.
pub(crate) struct Tables {
    env: Env,
    paths: Paths,
    pool: Arc<dyn Pool>,
    values: Values,
    records: Arc<Records>,
    /// Tables found corrupt since the background work last looked.
    suspects: Mutex<Vec<u64>>,
    /// Whether what still verifies of a quarantined table is read.
    past_quarantine: bool,
    events: Arc<Events>,
}

impl Tables {
    pub(crate) fn new(
        env: Env,
        paths: Paths,
        pool: Arc<dyn Pool>,
        records: Arc<Records>,
    ) -> Tables {
        let values = Values::new(env.clone(), paths.clone(), pool.clone());
        let (suspects, events) = (Mutex::default(), Arc::default());
        Tables { env, paths, pool, values, records, suspects, past_quarantine: false, events }
    }

    /// Returns the same tables with a listener for what is found in them.
    pub(crate) fn told_to(self, events: Arc<Events>) -> Tables {
        Tables { events, ..self }
    }

    /// Returns the same tables for a reader that takes what still verifies of a quarantined one:
    /// the names of the keyspaces are needed to open a database at all.
    pub(crate) fn past_quarantine(&self) -> Tables {
        // What such a reader finds is not what others may be answered.
        let records = Arc::new(Records::new(0));
        let tables = Tables::new(self.env.clone(), self.paths.clone(), self.pool.clone(), records);
        Tables { past_quarantine: true, events: self.events.clone(), ..tables }
    }

    /// Returns the cache that holds their blocks.
    pub(crate) fn pool(&self) -> &Arc<dyn Pool> {
        &self.pool
    }

    /// Returns the value files that tables point into.
    pub(crate) fn values(&self) -> &Values {
        &self.values
    }

    /// Returns the cache of their hot records.
    #[inline]
    pub(crate) fn records(&self) -> &Arc<Records> {
        &self.records
    }

    /// Returns the newest record of `user_key` in the table at or below `snapshot`.
    pub(crate) async fn get(
        &self,
        handle: &TableHandle,
        user_key: &[u8],
        hash: u64,
        snapshot: SeqNo,
    ) -> Result<Option<Found>> {
        let table = &self.open(handle).await?.table;
        table.get(user_key, snapshot, hash).await.inspect_err(|e| self.suspect(handle, e))
    }

    /// Returns an iterator over the table.
    pub(crate) async fn iter(&self, handle: &TableHandle, mode: ReadMode) -> Result<TableIter> {
        let table = self.open(handle).await?.table.clone();
        let options = match mode {
            ReadMode::Scan => ReadOptions::SCAN,
            ReadMode::Bulk => ReadOptions::COMPACTION,
        };
        Ok(TableIter::new(table, options))
    }

    /// Returns the open table, or the corruption that keeps it closed.
    pub(crate) async fn open<'h>(&self, handle: &'h TableHandle) -> Result<&'h OpenTable> {
        if handle.is_quarantined() && !self.past_quarantine {
            return Err(Error::corruption(
                &self.paths.table(handle.desc.id),
                0,
                "the table is in quarantine since stored bytes did not verify: restore the file \
                 or run `atoll repair`",
            ));
        }
        if let Some(table) = handle.opened() {
            return Ok(table);
        }
        let path = self.paths.table(handle.desc.id);
        let TableDesc { size, salt, base, .. } = handle.desc;
        let expected = Expected { size, salt, base };
        let open = || {
            Table::open(self.env.disk.as_ref(), &path, handle.desc.id, expected, self.pool.clone())
        };
        let opened = match open().await {
            Err(e) if e.is_corruption() => open().await,
            result => result,
        };
        let table = opened.inspect_err(|e| self.suspect(handle, e))?;
        let range_tombstones = Arc::new(Fragmented::new(table.range_tombstones().iter().cloned()));
        Ok(handle.set_opened(OpenTable { table, range_tombstones }))
    }

    /// Quarantines a table that `error` came from, if it is about stored bytes.
    pub(crate) fn suspect(&self, handle: &TableHandle, error: &Error) {
        if error.is_corruption() && !handle.quarantined.swap(true, Ordering::AcqRel) {
            self.suspects.lock().push(handle.desc.id);
            self.records.distrust();
            if let Error::Corruption { file, offset, what } = error {
                let (file, offset, what) = (file.clone(), *offset, what.clone());
                self.events.tell(|| Event::CorruptionFound(CorruptionFound { file, offset, what }));
            }
        }
    }

    /// Looks closer at the table of `version` that `error` names, if it is about stored bytes, and
    /// quarantines it if it still does not verify.
    pub(crate) async fn confirm(&self, version: &Version, error: &Error) {
        let Error::Corruption { file, .. } = error else { return };
        let named = version.tables().find(|(_, t)| self.paths.table(t.desc.id) == *file);
        let Some((_, handle)) = named.filter(|(_, t)| !t.is_quarantined()) else { return };
        // Opening it anew reads index and properties again, too.
        let verified = verify_table(&self.env, &self.paths, &handle.desc, &self.pool).await;
        if let Err(e) = verified {
            self.suspect(handle, &e);
        }
    }

    /// Takes the tables that were quarantined since the last call.
    pub(crate) fn take_suspects(&self) -> Vec<u64> {
        std::mem::take(&mut self.suspects.lock())
    }
}
