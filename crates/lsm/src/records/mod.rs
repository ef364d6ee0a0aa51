//! The record cache: of keys that are read again and again, the newest record that the tables hold.
//!
//! A point read that no memtable answers asks the filter, the index and a block of a table on level
//! after level. For a key that is hot this finds the same record each time; the cache finds it with one
//! probe of a hash table, and the blocks that would answer need not be in memory.
//!
//! ```text
//!   get --> memtables of the view --> record cache --> tables of the view
//!              newest first             | hit             | found in them
//!                                       v                 v
//!                                     answer            answer, and fill the cache with it
//! ```
//!
//! # What an entry says
//! "Of all records that tables hold of this key, this one is the newest, and no range tombstone in a
//! table covers it." Memtables are searched before, so writes need not tell the cache anything. What it
//! says becomes false only when tables get records that they had not: when a memtable is flushed, when
//! tables are ingested, and when a compaction filter changes what a merge comes by. Any other merge changes
//! nothing: it drops what nobody sees, folds operands, of which there are no entries, and takes values from
//! one value file to another, where no entry points.
//!
//! # Protocol
//! Each arrival of new records in tables begins an *epoch*, and every [`View`] has the epoch in which it
//! was made. An arrival is a [`Change`]:
//!
//! ```text
//!   flush    begin (no fills) | forget the keys it brings | view with the next epoch | end (fills again)
//!   reader        pins a view . . . . . . reads tables . . . . . . fills, if the epoch is still its own
//! ```
//!
//! - A fill is taken only while no change is under way and the epoch is that of the reader's view. It is
//!   judged under the lock of the shard that it goes to. A change passes through that lock after it has
//!   forbidden fills: what was filled before is there to be forgotten, what comes later is refused. So a
//!   reader who read `v1` and was overtaken by the flush of `v2` cannot bring `v1` back.
//! - A change forgets before its view is published: no reader finds in the cache what the tables of his
//!   view contradict.
//! - An entry answers only a reader whose view has its epoch or a later one. In a view of an earlier one a
//!   memtable may lack what the entry holds, and a batch would be seen in part.
//! - An entry answers only a reader whose snapshot is not older than it. If it answers an old snapshot, it
//!   is the newest record there, too: nothing newer lies in tables.
//! - Only a reader who sees everything that his view's tables hold may fill: one whose snapshot is at or
//!   above the newest sequence number in them. So no old snapshot ever fills, nor does one that is taken
//!   while ingested tables are in the view and not visible yet.
//! - A table that goes into quarantine may have said something else of any key. The cache forgets
//!   everything and begins an epoch ([`Records::distrust`]), so that every get that consults the table
//!   answers `Corruption` from then on, as if there were no cache. The entries were true; the rule is
//!   simpler this way, and it happens never or once.
//!
//! # What it keeps
//! Plain, expiring and versioned values and versioned tombstones of at most [`LEN_MAX`] bytes with their
//! keys. The deadline or stamp is part of the record and judged by each reader. A value that stands in a
//! value file is kept too, if it is as short: by the reader who has read it there, as if it had stood in
//! the table. The pointer is never kept. A merge moves values without beginning an epoch, and removes the
//! file that the pointer names; and whoever holds it needs the value's block besides.
//!
//! Not kept: chunked values (their heads answer nothing alone), operands, and whatever kind refers to other places.
//! Absence is not kept either: filters answer it nearly as fast, and an entry for each key that a client
//! makes up would push out those that exist.
//!
//! Scans neither fill nor count. How room is given to what is hot: [`shard`].
//!
//! # Rejected
//! - Forgetting with each write: the writer is the engine's narrowest place, and most keys written are not
//!   in the cache. A flush walks over the same keys anyway, aside, and once for many overwrites of one.
//! - A version number for each key, or a list of flushed ranges that every hit is checked against: both
//!   make the hit dearer, which is what this is for.
//!
//! [`View`]: crate::view::View

mod inline;
#[cfg(all(test, atoll_loom))]
mod model;
mod shard;
mod sketch;
#[cfg(test)]
#[cfg(not(atoll_loom))]
mod tests;

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use atoll_encoding::hash::hash64;
use atoll_env::task;

use self::shard::{Filled, Shard, Spot};
use self::sketch::Sketch;
use crate::key::{Kind, SEQNO_MAX, SeqNo, Trailer};
use crate::memtable::Memtable;
use crate::mutants;
use crate::slice::Slice;
use crate::sync::{self, Mutex, RwLock};
use crate::tombstone::{Fragmented, RangeTombstone};
use crate::version::TableDesc;

/// Longest key and value, together, that are kept.
pub(crate) const LEN_MAX: usize = 1 << 10;
/// Below it there is no cache: what is hot would not fit.
const CAPACITY_MIN: usize = 32 << 10;
/// Shards are at least this large, so that the records of one are small against it.
const SHARD_MIN: usize = 256 << 10;
/// More shards than this do not lower contention on any machine we know.
const SHARDS_MAX: usize = 64;
/// Keys or slots that a change looks at before it lets others run.
const PER_TURN: usize = 512;
/// No epoch: fills are refused.
const CLOSED: u64 = u64::MAX;

/// What the record cache did and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordStats {
    /// Lookups that it answered.
    pub hits: u64,
    /// Lookups that it did not.
    pub misses: u64,
    /// Records that it took.
    pub admitted: u64,
    /// Records that it did not take, since others are asked for more often.
    pub rejected: u64,
    /// Records that it did not take, since tables were changing.
    pub late: u64,
    /// Records that were pushed out to stay within the capacity.
    pub evictions: u64,
    /// Records that newer ones in tables made untrue.
    pub invalidations: u64,
    /// Records held now.
    pub records: u64,
    /// Bytes charged now, bookkeeping included.
    pub bytes: u64,
    /// Budget in bytes; 0 if there is no record cache.
    pub capacity: u64,
}

impl RecordStats {
    /// Adds what another cache says.
    pub(crate) fn add(&mut self, other: &RecordStats) {
        self.hits += other.hits;
        self.misses += other.misses;
        self.admitted += other.admitted;
        self.rejected += other.rejected;
        self.late += other.late;
        self.evictions += other.evictions;
        self.invalidations += other.invalidations;
        self.records += other.records;
        self.bytes += other.bytes;
        self.capacity += other.capacity;
    }
}

/// The cache. All methods may be called from any thread; none waits but for a shard's lock.
pub(crate) struct Records {
    /// A power of two of them, or none if there is no cache.
    shards: Box<[Place]>,
    /// The epoch whose readers may fill, or [`CLOSED`].
    filling: sync::atomic::AtomicU64,
    state: Mutex<State>,
}

/// What changes are told apart by.
struct State {
    epoch: u64,
    /// Changes under way.
    changes: usize,
}

/// A shard with what is known of it without its lock. It has its cache lines (processors fetch them in
/// pairs) for itself.
#[repr(align(128))]
struct Place {
    shard: RwLock<Shard>,
    sketch: Sketch,
    hits: AtomicU64,
    misses: AtomicU64,
    rejected: AtomicU64,
    late: AtomicU64,
}

/// Who reads: what of the cache he may see, and whether he may fill it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader {
    /// That of his view.
    pub(crate) epoch: u64,
    pub(crate) snapshot: SeqNo,
}

impl Records {
    /// Makes an empty cache that keeps at most `capacity` bytes; none at all if that is too little.
    pub(crate) fn new(capacity: usize) -> Records {
        if capacity < CAPACITY_MIN {
            return Records::of(0, 0);
        }
        let shards = (capacity / SHARD_MIN).clamp(1, SHARDS_MAX);
        Records::of(1 << shards.ilog2(), capacity)
    }

    fn of(shards: usize, capacity: usize) -> Records {
        let place = |_| Place {
            shard: RwLock::new(Shard::new()),
            sketch: Sketch::new(capacity / shards),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            late: AtomicU64::new(0),
        };
        let records = Records {
            shards: (0..shards).map(place).collect(),
            filling: sync::atomic::AtomicU64::new(0),
            state: Mutex::new(State { epoch: 0, changes: 0 }),
        };
        records.set_capacity(capacity.saturating_sub(records.fixed_bytes()));
        records
    }

    /// Returns whether there is a cache at all.
    pub(crate) fn is_on(&self) -> bool {
        !self.shards.is_empty()
    }

    /// Returns the memory that it takes whatever its capacity.
    pub(crate) fn fixed_bytes(&self) -> usize {
        self.shards.iter().map(|place| place.sketch.bytes() + size_of::<Place>()).sum()
    }

    /// Returns the epoch for a view that is made now.
    pub(crate) fn epoch(&self) -> u64 {
        self.state.lock().epoch
    }

    /// Returns the newest record of `user_key` in tables, if it is here and `reader` may see it.
    #[inline]
    pub(crate) fn get(
        &self,
        user_key: &[u8],
        hash: u64,
        reader: Reader,
    ) -> Option<(Trailer, Slice)> {
        let place = self.place(hash)?;
        let found = place.shard.read().get(user_key, hash, reader, &place.sketch);
        let counter = if found.is_some() { &place.hits } else { &place.misses };
        counter.fetch_add(1, Relaxed);
        found
    }

    /// Offers the record of `user_key` that a reader found whose view has this epoch: the newest in its
    /// tables, covered by no range tombstone in them, at a snapshot that sees all they hold.
    pub(crate) fn fill(
        &self,
        user_key: &[u8],
        hash: u64,
        epoch: u64,
        trailer: Trailer,
        value: &[u8],
    ) {
        let kept = matches!(
            trailer.kind(),
            Some(
                Kind::Value | Kind::ExpiringValue | Kind::VersionedValue | Kind::VersionedTombstone
            )
        );
        let points = trailer.is_separated() && !mutants::is("record-cache-keeps-pointers");
        if !kept || points || user_key.len() + value.len() > LEN_MAX {
            return;
        }
        let Some(place) = self.place(hash) else { return };
        let seen_before = place.sketch.touch(hash) > 1;
        // Most of what is asked for once is turned away without the lock for writing.
        if !seen_before && place.shard.read().is_full() {
            place.rejected.fetch_add(1, Relaxed);
            return;
        }
        let filled = {
            let mut shard = place.shard.write();
            // Under the lock: see the module.
            let may = self.filling.load(Acquire) == epoch || mutants::is("record-cache-late-fill");
            may.then(|| shard.fill((user_key, value), hash, epoch, trailer, &place.sketch))
        };
        match filled {
            None => place.late.fetch_add(1, Relaxed),
            Some(Filled { taken: false, .. }) => place.rejected.fetch_add(1, Relaxed),
            // What had to go is freed here, after the lock.
            Some(Filled { .. }) => 0,
        };
    }

    /// Begins a change: from now on nothing is filled.
    pub(crate) fn begin_change(&self) -> Change<'_> {
        let mut state = self.state.lock();
        state.changes += 1;
        self.filling.store(CLOSED, Release);
        drop(state);
        // Through every lock once: nothing is filled behind it, and a shard that is empty stays so.
        let occupied = self.shards.iter().map(|place| !place.shard.read().is_empty()).collect();
        Change { records: self, occupied }
    }

    /// Forgets everything: a table turned out not to be what readers took it for.
    pub(crate) fn distrust(&self) {
        {
            let mut state = self.state.lock();
            state.epoch += 1;
            self.open(&state);
        }
        for place in &self.shards {
            let gone = place.shard.write().clear();
            drop(gone);
        }
    }

    /// Changes the memory that records may take, evicting what no longer fits.
    pub(crate) fn set_capacity(&self, bytes: usize) {
        for place in &self.shards {
            let gone = place.shard.write().set_capacity(bytes / self.shards.len());
            drop(gone);
        }
    }

    /// Returns counters and sizes.
    pub(crate) fn stats(&self) -> RecordStats {
        let mut stats = RecordStats::default();
        for place in &self.shards {
            stats.hits += place.hits.load(Relaxed);
            stats.misses += place.misses.load(Relaxed);
            stats.rejected += place.rejected.load(Relaxed);
            stats.late += place.late.load(Relaxed);
            place.shard.read().add_to(&mut stats);
        }
        let fixed = self.fixed_bytes() as u64;
        stats.bytes += fixed;
        stats.capacity += fixed;
        stats
    }

    #[inline]
    fn place(&self, hash: u64) -> Option<&Place> {
        self.shards.get(hash as usize & self.shards.len().wrapping_sub(1))
    }

    /// Lets the readers of the present epoch fill, unless a change is under way.
    fn open(&self, state: &State) {
        let filling = if state.changes == 0 { state.epoch } else { CLOSED };
        self.filling.store(filling, Release);
    }
}

/// Records that tables had not are about to be in tables: nothing is filled as long as it lives.
///
/// Whoever publishes a view whose tables have new records makes one first, forgets what they make untrue,
/// calls [`Change::installed`] while the view is replaced, and drops it. A flush is one. A merge in which a
/// filter changed something is another: it forgets the ranges of its inputs ([`Change::forget_tables`]), as
/// tables that are ingested have to. Dropped without `installed` it changed nothing:
/// what was forgotten was true and is read again.
pub(crate) struct Change<'r> {
    records: &'r Records,
    /// Of each shard, whether there may be something in it.
    occupied: Box<[bool]>,
}

impl Change<'_> {
    /// Forgets every key of which `memtable` has a record, and every one that it deletes.
    pub(crate) async fn forget_memtable(&self, memtable: &std::sync::Arc<Memtable>) {
        if !self.occupied.contains(&true) {
            return;
        }
        let mut iter = memtable.iter();
        iter.first();
        let mut looked_at = 0usize;
        while iter.valid() {
            self.forget(iter.key().user_key);
            iter.next();
            looked_at += 1;
            if looked_at.is_multiple_of(PER_TURN) {
                task::yield_now().await;
            }
        }
        if let Some(tombstones) = memtable.range_tombstones() {
            self.forget_covered(&tombstones).await;
        }
    }

    /// Forgets a key.
    pub(crate) fn forget(&self, user_key: &[u8]) {
        let hash = hash64(user_key);
        let at = hash as usize & self.occupied.len().wrapping_sub(1);
        if mutants::is("record-cache-not-invalidated") || self.occupied.get(at) != Some(&true) {
            return;
        }
        let Some(place) = self.records.place(hash) else { return };
        // Most keys are not here, and readers need not wait for those.
        if !place.shard.read().contains(user_key, hash) {
            return;
        }
        let gone = place.shard.write().forget(user_key, hash);
        drop(gone);
    }

    /// Forgets the records that `tombstones` cover. It looks at all there are.
    pub(crate) async fn forget_covered(&self, tombstones: &Fragmented) {
        if mutants::is("record-cache-not-invalidated") {
            return;
        }
        for (place, occupied) in self.records.shards.iter().zip(&self.occupied) {
            let mut from = occupied.then(Spot::default);
            while let Some(spot) = from {
                let step = place.shard.write().forget_covered(spot, PER_TURN, tombstones);
                from = step.next;
                drop(step);
                task::yield_now().await;
            }
        }
    }

    /// Forgets whatever lies between the first and the last key of tables.
    pub(crate) async fn forget_tables(&self, tables: impl Iterator<Item = &TableDesc>) {
        let ranges = tables.map(|desc| RangeTombstone {
            start: desc.smallest.clone(),
            end: [&desc.largest[..], &[0]].concat(),
            seqno: SEQNO_MAX,
        });
        self.forget_covered(&Fragmented::new(ranges)).await;
    }

    /// Begins the next epoch: to be called while the view that has it is published.
    pub(crate) fn installed(&self) {
        self.records.state.lock().epoch += 1;
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let mut state = self.records.state.lock();
        state.changes -= 1;
        self.records.open(&state);
    }
}
