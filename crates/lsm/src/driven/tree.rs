//! The reading half: point reads and scans, from any thread.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::cursor::Cursor;
use crate::background::Background;
use crate::database::closed;
use crate::error::{Error, Result};
use crate::iter::Direction;
use crate::iter::scan::{Bounds, Wanted, key_kind};
use crate::key::{Kind, stamp_of};
use crate::read::Stored;
use crate::slice::Slice;
use crate::stats::Stats;
use crate::store::Store;

/// What is applied of a store, for readers on any thread. Cheap to clone.
///
/// It keeps the directory taken as long as it lives, unless [`Driver::close`] gave that back; then
/// every call answers `Stopped`.
///
/// [`Driver::close`]: super::Driver::close
#[derive(Clone)]
pub struct Tree {
    pub(super) store: Arc<Store>,
    pub(super) background: Arc<Background>,
}

/// A version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// When it was written, by the owner's time.
    pub stamp: u64,
    /// Its value; `None` if it says that the key is deleted.
    pub value: Option<Slice>,
}

impl Tree {
    /// Returns the newest plain record of `key`.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Slice>> {
        self.check_open()?;
        let _timer = self.store.time_read();
        let (view, snapshot) = self.store.pin();
        // No record of a store has a deadline.
        let Some(hit) = view.get(&self.store.tables, key, snapshot, 0).await? else {
            return Ok(None);
        };
        let to_remember = hit.to_remember;
        let record = match Stored::from(hit).into_record() {
            Ok(record) => record,
            Err(stored) => {
                Box::pin(self.store.complete_found(&view, key, stored, to_remember)).await?
            }
        };
        Ok(Some(record.value))
    }

    /// Returns the newest version of `key` whose stamp is at most `at`, one that says "deleted" as
    /// well. `at` must not be below the horizon: what was there may have been compacted away.
    pub async fn get_version(&self, key: &[u8], at: u64) -> Result<Option<Version>> {
        self.check_open()?;
        let _timer = self.store.time_read();
        let (view, snapshot) = self.store.pin();
        let Some(hit) = view.get_version(&self.store.tables, key, snapshot, at).await? else {
            return Ok(None);
        };
        let stamp = stamp_of(&hit.value);
        if key_kind(hit.trailer) == Kind::VersionedTombstone {
            return Ok(Some(Version { stamp, value: None }));
        }
        let to_remember = hit.to_remember;
        let record = match Stored::from(hit).into_record() {
            Ok(record) => record,
            Err(stored) => {
                Box::pin(self.store.complete_found(&view, key, stored, to_remember)).await?
            }
        };
        Ok(Some(Version { stamp, value: Some(record.value) }))
    }

    /// Walks over the plain records of the keys from `start` to before `end`.
    pub fn scan(&self, start: &[u8], end: &[u8], direction: Direction) -> Cursor {
        self.cursor(start, end, direction, Wanted::Live(0))
    }

    /// Walks over the newest version of each key from `start` to before `end` whose stamp is at most
    /// `at`, without keys that are deleted at that stamp. `at` must not be below the horizon.
    pub fn scan_versions(&self, start: &[u8], end: &[u8], at: u64, direction: Direction) -> Cursor {
        self.cursor(start, end, direction, Wanted::Versions { at, tombstones: false })
    }

    /// Walks as [`Tree::scan_versions`] does, and yields the versions that say "deleted" too.
    pub fn scan_all_versions(
        &self,
        start: &[u8],
        end: &[u8],
        at: u64,
        direction: Direction,
    ) -> Cursor {
        self.cursor(start, end, direction, Wanted::Versions { at, tombstones: true })
    }

    fn cursor(&self, start: &[u8], end: &[u8], direction: Direction, wanted: Wanted) -> Cursor {
        let bounds = Bounds { start: start.to_vec(), end: end.to_vec() };
        Cursor::new(self.clone(), bounds, direction, wanted)
    }

    /// Promises that nobody reads at a stamp below `stamp` any more, now or later: versions that
    /// only such reads would find go with the next compaction. A lower one than before is ignored.
    /// After opening it is 0, and all versions stay.
    pub fn set_horizon(&self, stamp: u64) {
        self.store.horizon.fetch_max(stamp, Ordering::AcqRel);
    }

    /// Returns the horizon.
    pub fn horizon(&self) -> u64 {
        self.store.horizon.load(Ordering::Acquire)
    }

    /// Writes what is in memory into tables and waits for it. The owner must serve
    /// [`Driver::chores`] meanwhile; on his own thread he calls [`Driver::attend`] with it.
    ///
    /// [`Driver::chores`]: super::Driver::chores
    /// [`Driver::attend`]: super::Driver::attend
    pub async fn flush(&self) -> Result<()> {
        self.background.flush_all().await
    }

    /// Merges all tables into the last level, which drops all dead records, and waits for it; as for
    /// [`Tree::flush`] the owner must serve chores meanwhile.
    pub async fn compact(&self) -> Result<()> {
        self.background.compact_all().await
    }

    /// Tells where the bytes of the tables are: `visit` gets keys in no order, each with the bytes of
    /// the table file, and of the values it points to, that lie at and below it, down to the key
    /// before of the same file. Nothing is
    /// read: a table that nobody has opened yet is told by its two ends, an open one in parts of
    /// some hundred KiB. What is in memory is not counted.
    pub fn survey(&self, mut visit: impl FnMut(&[u8], u64)) {
        let (view, _) = self.store.pin();
        for (_, handle) in view.version.tables() {
            let size = handle.desc.size + handle.desc.value_bytes();
            match handle.opened() {
                Some(open) if open.table.cuts().len() > 1 => {
                    let cuts = open.table.cuts();
                    let share = size / cuts.len() as u64;
                    cuts.for_each(|cut| visit(cut, share));
                }
                _ => {
                    visit(&handle.desc.smallest, size / 2);
                    visit(&handle.desc.largest, size - size / 2);
                }
            }
        }
    }

    /// Returns counters, sizes and latencies.
    pub fn stats(&self) -> Stats {
        self.store.gather_stats()
    }

    /// Returns why writes are refused now, if they are: the disk is full, or the store has stopped.
    pub fn refusal(&self) -> Option<Error> {
        self.store.refusal()
    }

    pub(super) fn check_open(&self) -> Result<()> {
        if self.store.is_closed() { Err(closed()) } else { Ok(()) }
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tree({})", self.store.paths.root.display())
    }
}
