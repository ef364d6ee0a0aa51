//! Value files: long values, out of the way of compaction.
//!
//! Compaction rewrites a record each time it sinks a level. For a long value that is a waste: only its
//! key has to be sorted. So a flush writes values above a threshold into a *value file* and leaves a
//! pointer in the table (Lu et al., *WiscKey*, FAST 2016):
//!
//! ```text
//!   memtable --flush--> table        k1 @92 -> (file 7, offset 32)    k2 @95 = "short"
//!                       value file 7   [header][k1's value][k5's value] ... [footer]
//!                                                |
//!   compaction moves pointers only, except ------+--> into value file 31, if 7 is to go
//! ```
//!
//! A value that was overwritten stays in its file until the file goes. How much of each file is live
//! is known exactly: a table's description counts the bytes it points to in each file, and the sums
//! over the live tables belong to the version. When too much is garbage, `collect.rs` names the files
//! that should go; every merge that meets a pointer into one of them takes the value along into a new
//! file, and merges are made for it where none is due. A file that no table of the version points to
//! is not part of the version any more.
//!
//! # Invariants
//! - A value file is complete and synced, its name too, before a table that points into it is named by
//!   the manifest; it is removed after the last version that names it is gone.
//! - A pointer carries the checksum of what it points to, and the record there the hash of its key and
//!   its sequence number: the bytes in the right range of a wrong file are never taken for the value.
//! - Where a value stands changes nothing that can be read: sequence number, kind, deadline and stamp
//!   stay in the table, so scans, snapshots, versions and filters never look here.
//!
//! # Decisions
//! - The flush separates, not the commit: a value is in the log once, and in the memtable, where it may
//!   be overwritten before it costs a write. (Separating first would save the log's copy, and make
//!   the value file the log: a sync for two files.)
//! - Files are collected inside of compaction, by relocation. (A garbage collector beside it, as Titan
//!   and Badger have, asks the tree about each value and writes the new pointers through the front
//!   door, where they race with clients.)
//! - Garbage is counted by table and not by bitmaps: the counts change with the edit that changes the
//!   tables, and survive a crash for nothing.
//! - What the disk or a checksum refuses is left where it is: a merge that cannot read a value keeps the
//!   pointer, so that damage stays as it was found and is told to who asks for that key.
//!
//! The bytes are specified in docs/formats/values.md.

mod ahead;
pub(crate) mod collect;
mod file;
mod mover;
mod pointer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use atoll_env::Env;
use atoll_env::disk::IoClass;

pub(crate) use ahead::Ahead;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use file::fuzzing;
pub(crate) use file::verify;
pub(crate) use mover::{Mover, ValueRule};
pub(crate) use pointer::Pointer;

use crate::error::{Error, Result};
use crate::key::SeqNo;
use crate::pool::{Admit, BlockKey, Pool};
use crate::slice::Slice;
use crate::values::file::{Stored, ValueFile};
use crate::version::{Garbage, Paths, UNREADABLE_MAX, Version};

/// Longest value that goes into the pool: chunks of long values pass it by.
const POOLED_MAX: u32 = 128 << 10;

/// What the version knows of a value file without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ValueDesc {
    /// File number; tables and value files share the numbers.
    pub(crate) id: u64,
    /// Random number in the file's checksums.
    pub(crate) salt: u64,
    /// File length in bytes.
    pub(crate) size: u64,
}

impl ValueDesc {
    /// Returns the bytes of all records in it.
    pub(crate) fn records(&self) -> u64 {
        self.size.saturating_sub((file::HEADER_LEN + file::FOOTER_LEN) as u64)
    }
}

/// A live value file: its description, and the open file once somebody read from it.
pub(crate) struct ValueHandle {
    pub(crate) desc: ValueDesc,
    open: OnceLock<ValueFile>,
    /// Reads of merges that failed; more than some, and the file is left alone until the next opening.
    failures: AtomicU32,
    /// Set when no version after this one names the file.
    obsolete: AtomicBool,
    garbage: Arc<Garbage>,
}

impl ValueHandle {
    pub(crate) fn new(desc: ValueDesc, garbage: &Arc<Garbage>) -> ValueHandle {
        let (failures, obsolete) = (AtomicU32::new(0), AtomicBool::new(false));
        ValueHandle { desc, open: OnceLock::new(), failures, obsolete, garbage: garbage.clone() }
    }

    /// Returns whether merges could not read from it.
    pub(crate) fn is_stuck(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= UNREADABLE_MAX
    }

    /// Notes that a merge could not read from it. What does not verify will not: then it is left alone
    /// from now on.
    pub(crate) fn failed(&self, corrupt: bool) {
        self.failures.fetch_add(if corrupt { UNREADABLE_MAX } else { 1 }, Ordering::Relaxed);
    }

    /// Lets the file be removed once the last reader is gone.
    pub(crate) fn retire(&self) {
        self.obsolete.store(true, Ordering::Release);
    }
}

impl Drop for ValueHandle {
    fn drop(&mut self) {
        if *self.obsolete.get_mut() {
            self.garbage.add_values(self.desc.id);
        }
    }
}

/// A value file of a version, and how much of it is live.
#[derive(Clone)]
pub(crate) struct LiveFile {
    pub(crate) handle: Arc<ValueHandle>,
    /// Bytes of the records that tables of the version point to.
    pub(crate) live: u64,
}

/// The value files of a database, as readers use them.
pub(crate) struct Values {
    env: Env,
    paths: Paths,
    pool: Arc<dyn Pool>,
}

impl Values {
    pub(crate) fn new(env: Env, paths: Paths, pool: Arc<dyn Pool>) -> Values {
        Values { env, paths, pool }
    }

    /// Returns the value that `pointer`, in the record of `user_key` with this number, points to.
    /// Completes at the first poll if it is in memory.
    pub(crate) async fn read(
        &self,
        version: &Version,
        user_key: &[u8],
        seqno: SeqNo,
        pointer: Pointer,
    ) -> Result<Slice> {
        if let Some(value) = self.cached(pointer, Admit::Data) {
            return Ok(value);
        }
        let file = self.file(version, pointer).await?;
        let stored = file.read(user_key, seqno, pointer, IoClass::Read).await?;
        if pointer.len > POOLED_MAX {
            return stored.into_value().map_err(|what| file.corruption(pointer.offset, what));
        }
        self.keep(pointer, &stored).map_err(|what| file.corruption(pointer.offset, what))
    }

    /// Offers a value to the pool, and returns it.
    fn keep(&self, pointer: Pointer, stored: &Stored) -> std::result::Result<Slice, String> {
        let mut frame = self.pool.frame(pointer.len as usize);
        stored.unpack(&mut frame)?;
        let block = self.pool.insert(key_of(pointer), frame, Admit::Data);
        let len = block.len();
        Ok(block.slice(0..len))
    }

    /// Returns a value that is in memory.
    fn cached(&self, pointer: Pointer, admit: Admit) -> Option<Slice> {
        let block = self.pool.get(key_of(pointer), admit)?;
        let len = pointer.len as usize;
        (block.len() == len).then(|| block.slice(0..len))
    }

    /// Returns the value as [`Values::read`] does, for a scan that goes on to the next: what is not in
    /// memory is read in larger pieces, and only the beginning of the scan goes into the pool.
    pub(crate) async fn read_ahead(
        &self,
        version: &Version,
        user_key: &[u8],
        seqno: SeqNo,
        pointer: Pointer,
        ahead: &Ahead,
    ) -> Result<Slice> {
        // What a long scan meets is no hotter for it.
        let admit = if ahead.keeps(0) { Admit::Data } else { Admit::No };
        if let Some(value) = self.cached(pointer, admit) {
            return Ok(value);
        }
        let file = self.file(version, pointer).await?;
        let stored = file.read_ahead(user_key, seqno, pointer, ahead, IoClass::Read).await?;
        if pointer.len > POOLED_MAX || !ahead.keeps(pointer.len as usize) {
            return stored.into_value().map_err(|what| file.corruption(pointer.offset, what));
        }
        self.keep(pointer, &stored).map_err(|what| file.corruption(pointer.offset, what))
    }

    /// Returns the value as it is stored, read past the pool.
    pub(crate) async fn read_stored(
        &self,
        version: &Version,
        user_key: &[u8],
        seqno: SeqNo,
        pointer: Pointer,
        (ahead, class): (&Ahead, IoClass),
    ) -> Result<Stored> {
        let file = self.file(version, pointer).await?;
        file.read_ahead(user_key, seqno, pointer, ahead, class).await
    }

    /// Returns the open file that a pointer of `version` points into.
    async fn file<'v>(&self, version: &'v Version, pointer: Pointer) -> Result<&'v ValueFile> {
        let path = self.paths.values_file(pointer.file);
        let Some(live) = version.value_file(pointer.file) else {
            let what = "a table points into this file, which is not part of the database";
            return Err(Error::corruption(&path, pointer.offset, what));
        };
        if let Some(file) = live.handle.open.get() {
            return Ok(file);
        }
        let file = ValueFile::open(&self.env, path, live.handle.desc).await?;
        Ok(live.handle.open.get_or_init(|| file))
    }

    /// Returns the directory they are in.
    pub(crate) fn folder(&self) -> PathBuf {
        self.paths.values()
    }
}

/// Returns the name under which a value is in the pool.
fn key_of(pointer: Pointer) -> BlockKey {
    BlockKey { file: pointer.file, offset: pointer.offset }
}
