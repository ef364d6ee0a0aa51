//! What a reader pins: the memtables and the version of one moment.
//!
//! ```text
//!   newest                                                        oldest
//!   active memtable | sealed memtables | L0 newest first | L1 | ... | L6
//! ```
//!
//! A reader loads the view first and the visible sequence number after it. Then nothing it may
//! see can be missing: an entry at or below that number was applied to a memtable of this view, or
//! of a later one - and in that case the whole view is simply a moment earlier, between two
//! entries. The other order could pair an old number with a version from which a compaction has
//! already dropped what that number would see.

use std::sync::Arc;

use atoll_encoding::hash::hash64;

use crate::error::Result;
use crate::iter::scan::{Bounds, Wanted, is_dead, key_kind};
use crate::iter::{Direction, Merge, Scan, Source};
use crate::key::{Kind, SeqNo, Trailer, stamp_of};
use crate::memtable::Memtable;
use crate::read::{Chunked, Stored};
use crate::records::{self, Reader};
use crate::slice::Slice;
use crate::table::PrefixRule;
use crate::tables::{ReadMode, Tables};
use crate::tombstone::Fragmented;
use crate::version::{LEVELS, TableHandle, Version};

/// The sources of one moment. Immutable, but for the active memtable, which grows at its end.
pub(crate) struct View {
    /// Newest first; the first is the active one.
    pub(crate) memtables: Vec<Arc<Memtable>>,
    pub(crate) version: Arc<Version>,
    /// That of the record cache in which it was made.
    epoch: u64,
    /// The newest sequence number in its tables. It may be above what is visible as yet.
    newest: SeqNo,
}

/// A record that answers a point read.
pub(crate) struct Hit {
    pub(crate) trailer: Trailer,
    pub(crate) value: Slice,
    /// Whether the record cache is to be offered it by whoever reads its value, which stands elsewhere.
    pub(crate) to_remember: bool,
}

impl From<Stored> for Hit {
    fn from(Stored { trailer, value }: Stored) -> Hit {
        Hit::new(trailer, value)
    }
}

impl Hit {
    fn new(trailer: Trailer, value: Slice) -> Hit {
        Hit { trailer, value, to_remember: false }
    }

    fn kind(&self) -> Kind {
        key_kind(self.trailer)
    }

    /// Returns whether a read at stamp `at` may see it. [`ANY`] sees plain records too.
    #[inline]
    fn is_at(&self, at: u64) -> bool {
        at == ANY || stamp_of(&self.value) <= at
    }
}

/// The stamp at which nothing is too new.
const ANY: u64 = u64::MAX;
/// Versions that are stepped over one by one before the rest is searched by halves.
const STEPS: usize = 4;

/// A source of point reads.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    Memtable(&'a Arc<Memtable>),
    Table(&'a TableHandle),
}

impl Place<'_> {
    /// Returns the newest record of `user_key` at or below `snapshot`.
    pub(crate) async fn newest(
        self,
        tables: &Tables,
        user_key: &[u8],
        hash: u64,
        snapshot: SeqNo,
    ) -> Result<Option<Hit>> {
        Ok(match self {
            Place::Memtable(memtable) => memtable
                .get(user_key, snapshot)
                .map(|(trailer, value)| Hit::new(trailer, value.to_slice())),
            Place::Table(handle) => tables
                .get(handle, user_key, hash, snapshot)
                .await?
                .map(|found| Hit::new(found.trailer, found.value)),
        })
    }

    /// Returns the newest range tombstone over `user_key` at or below `snapshot`, 0 if there is none.
    pub(crate) async fn covering(
        self,
        tables: &Tables,
        user_key: &[u8],
        snapshot: SeqNo,
    ) -> Result<SeqNo> {
        let newest = |set: &Fragmented| set.max_covering(user_key, snapshot);
        Ok(match self {
            Place::Memtable(memtable) => memtable.range_tombstones().map_or(0, |set| newest(&set)),
            Place::Table(handle) if handle.desc.range_tombstones > 0 => {
                newest(&tables.open(handle).await?.range_tombstones)
            }
            Place::Table(_) => 0,
        })
    }

    /// Returns its records as a sorted run.
    pub(crate) async fn source(self, tables: &Tables) -> Result<Source> {
        Ok(match self {
            Place::Memtable(memtable) => Source::memtable(memtable.iter(), SeqNo::MAX),
            Place::Table(handle) => {
                Source::table(tables.iter(handle, ReadMode::Scan).await?, handle.desc.seqnos.1)
            }
        })
    }

    /// Returns the lowest sequence number of its records.
    fn oldest(self) -> SeqNo {
        match self {
            Place::Memtable(memtable) => memtable.seqnos().map_or(0, |(oldest, _)| oldest),
            Place::Table(handle) => handle.desc.seqnos.0,
        }
    }

    /// Returns the newest record of `user_key` in this source that is older than the version
    /// `newer`, which is too new, and whose stamp is at most `at`.
    ///
    /// Stamps ascend with sequence numbers, so the boundary is searched: a few steps first, since
    /// most reads ask for the recent past, then by halves, so that a key that is written all the
    /// time can be read at any stamp.
    async fn older(
        self,
        tables: &Tables,
        user_key: &[u8],
        newer: &Hit,
        at: u64,
    ) -> Result<Option<Hit>> {
        let hash = hash64(user_key);
        // What is above `high` is too new or is `best`, what is below `low` is older than `best`.
        let (mut low, mut best) = (self.oldest(), None);
        let Some(mut high) = before(newer) else { return Ok(None) };
        let mut tries = 0;
        let mut halve = true;
        while low <= high {
            tries += 1;
            let halved = halve && tries > STEPS;
            let probe = if halved { low + (high - low) / 2 } else { high };
            match self.newest(tables, user_key, hash, probe).await? {
                None => low = probe + 1,
                // Its head is above the probe, no telling where.
                Some(hit) if halved && hit.kind() == Kind::Chunk => halve = false,
                Some(hit) if hit.kind() != Kind::Chunk && hit.is_at(at) => {
                    low = probe + 1;
                    best = Some(hit);
                }
                Some(hit) => match before(&hit) {
                    Some(next) => high = next,
                    None => break,
                },
            }
        }
        Ok(best)
    }
}

/// Returns the highest sequence number that an older version of the same key may have: below the
/// chunks of a long one.
fn before(hit: &Hit) -> Option<SeqNo> {
    let chunks = match hit.kind() {
        Kind::VersionedChunked => Chunked::decode(&hit.value).map_or(0, |head| head.chunks),
        _ => 0,
    };
    hit.trailer.seqno().checked_sub(chunks + 1)
}

impl View {
    /// Makes a view. The store says which epoch it is of before anybody sees it.
    pub(crate) fn new(memtables: Vec<Arc<Memtable>>, version: Arc<Version>) -> View {
        let newest = version.tables().map(|(_, table)| table.desc.seqnos.1).max().unwrap_or(0);
        View { memtables, version, epoch: 0, newest }
    }

    /// Returns the view with the same memtables and another version.
    pub(crate) fn at(&self, version: Arc<Version>) -> View {
        View::new(self.memtables.clone(), version)
    }

    /// Returns the view as one of an epoch of the record cache.
    pub(crate) fn of_epoch(self, epoch: u64) -> View {
        View { epoch, ..self }
    }

    /// Returns the view with the same version and other memtables.
    pub(crate) fn with(&self, memtables: Vec<Arc<Memtable>>) -> View {
        View { memtables, version: self.version.clone(), ..*self }
    }

    /// Returns the live record of `user_key` that `snapshot` sees at time `now`.
    pub(crate) async fn get(
        &self,
        tables: &Tables,
        user_key: &[u8],
        snapshot: SeqNo,
        now: u64,
    ) -> Result<Option<Hit>> {
        let found = self.find(tables, user_key, snapshot, ANY).await?;
        Ok(found.and_then(|(covering, hit)| {
            let dead =
                covering > hit.trailer.seqno() || is_dead(key_kind(hit.trailer), &hit.value, now);
            (!dead).then_some(hit)
        }))
    }

    /// Returns the newest version of `user_key` that `snapshot` sees and whose stamp is at most
    /// `at`, a tombstone as well.
    pub(crate) async fn get_version(
        &self,
        tables: &Tables,
        user_key: &[u8],
        snapshot: SeqNo,
        at: u64,
    ) -> Result<Option<Hit>> {
        let found = self.find(tables, user_key, snapshot, at).await?;
        Ok(found.and_then(|(covering, hit)| {
            (covering <= hit.trailer.seqno() && hit.kind().is_versioned()).then_some(hit)
        }))
    }

    /// Returns what may hold records of `user_key`, newest first.
    pub(crate) fn places<'a>(&'a self, user_key: &'a [u8]) -> impl Iterator<Item = Place<'a>> {
        let in_range = move |handle: &&'a Arc<TableHandle>| {
            handle.desc.smallest.as_slice() <= user_key && handle.desc.ends_at_or_after(user_key)
        };
        let level0 = self.version.levels[0].iter().filter(in_range);
        let below = (1..LEVELS).filter_map(move |level| self.version.covering(level, user_key));
        let tables = level0.chain(below).map(|handle| Place::Table(handle));
        self.memtables.iter().map(Place::Memtable).chain(tables)
    }

    /// Returns the chunk of `user_key` with exactly this sequence number.
    pub(crate) async fn chunk(
        &self,
        tables: &Tables,
        user_key: &[u8],
        seqno: SeqNo,
    ) -> Result<Option<Slice>> {
        let wanted = Trailer::new(seqno, Kind::Chunk);
        let found = self.find(tables, user_key, seqno, ANY).await?;
        let Some((_, Hit { trailer, value, .. })) = found else { return Ok(None) };
        if trailer.is_separated() && trailer.inline() == wanted {
            let stored = Stored { trailer, value };
            return tables.separated(&self.version, user_key, &stored, None).await.map(Some);
        }
        Ok((trailer == wanted).then_some(value))
    }

    /// Returns the newest record of `user_key` at or below `snapshot` whose stamp is at most `at`,
    /// with the newest range tombstone over it in the sources down to that record.
    async fn find(
        &self,
        tables: &Tables,
        user_key: &[u8],
        snapshot: SeqNo,
        at: u64,
    ) -> Result<Option<(SeqNo, Hit)>> {
        // The newest range tombstone over the key in the sources passed so far. Older sources
        // hold only older records, so the first record found decides together with it.
        let mut covering = 0;
        for memtable in &self.memtables {
            if let Some(tombstones) = memtable.range_tombstones() {
                covering = covering.max(tombstones.max_covering(user_key, snapshot));
            }
            if let Some((trailer, value)) = memtable.get(user_key, snapshot) {
                let hit = Hit::new(trailer, value.to_slice());
                if hit.is_at(at) {
                    return Ok(Some((covering, hit)));
                }
                let older = Place::Memtable(memtable).older(tables, user_key, &hit, at);
                if let Some(hit) = Box::pin(older).await? {
                    return Ok(Some((covering, hit)));
                }
            }
        }
        let hash = hash64(user_key);
        let reader = Reader { epoch: self.epoch, snapshot };
        if let Some((trailer, value)) = tables.records().get(user_key, hash, reader) {
            let hit = Hit::new(trailer, value);
            if hit.is_at(at) {
                return Ok(Some((covering, hit)));
            }
        }
        // Whether no table has answered yet.
        let mut first = true;
        for handle in &self.version.levels[0] {
            let in_range = handle.desc.smallest.as_slice() <= user_key
                && handle.desc.ends_at_or_after(user_key);
            if !in_range {
                continue;
            }
            if handle.desc.range_tombstones > 0 {
                let newest =
                    tables.open(handle).await?.range_tombstones.max_covering(user_key, snapshot);
                covering = covering.max(newest);
            }
            if let Some(found) = tables.get(handle, user_key, hash, snapshot).await? {
                let mut hit = Hit::new(found.trailer, found.value);
                if hit.is_at(at) {
                    if first && snapshot >= self.newest && covering <= hit.trailer.seqno() {
                        self.remember(tables, user_key, hash, &mut hit);
                    }
                    return Ok(Some((covering, hit)));
                }
                first = false;
                let older = Place::Table(handle).older(tables, user_key, &hit, at);
                if let Some(hit) = Box::pin(older).await? {
                    return Ok(Some((covering, hit)));
                }
            }
        }
        for level in 1..LEVELS {
            let Some(handle) = self.version.covering(level, user_key) else { continue };
            if handle.desc.range_tombstones > 0 {
                let newest =
                    tables.open(handle).await?.range_tombstones.max_covering(user_key, snapshot);
                covering = covering.max(newest);
            }
            if let Some(found) = tables.get(handle, user_key, hash, snapshot).await? {
                let mut hit = Hit::new(found.trailer, found.value);
                if hit.is_at(at) {
                    if first && snapshot >= self.newest && covering <= hit.trailer.seqno() {
                        self.remember(tables, user_key, hash, &mut hit);
                    }
                    return Ok(Some((covering, hit)));
                }
                first = false;
                let older = Place::Table(handle).older(tables, user_key, &hit, at);
                if let Some(hit) = Box::pin(older).await? {
                    return Ok(Some((covering, hit)));
                }
            }
        }
        Ok(None)
    }

    /// Offers the newest record of `user_key` in the tables to the record cache, or notes that who reads
    /// its value should. A snapshot below what tables hold may have missed a newer one, or a range
    /// tombstone over it: it must not come here.
    #[inline]
    fn remember(&self, tables: &Tables, user_key: &[u8], hash: u64, hit: &mut Hit) {
        hit.to_remember = hit.trailer.is_separated();
        tables.records().fill(user_key, hash, self.epoch, hit.trailer, &hit.value);
    }

    /// Offers a record of a table to the record cache with the value that it points to. A read found it
    /// that was [to remember](Hit::to_remember) it.
    pub(crate) fn remember_value(
        &self,
        tables: &Tables,
        user_key: &[u8],
        stored: &Stored,
        value: &[u8],
    ) {
        let (records, hash, trailer) =
            (tables.records(), hash64(user_key), stored.trailer.inline());
        match key_kind(trailer).head_len() {
            0 => records.fill(user_key, hash, self.epoch, trailer, value),
            _ if value.len() > records::LEN_MAX => {}
            head => {
                let head = stored.value.get(..head).unwrap_or_default();
                records.fill(user_key, hash, self.epoch, trailer, &[head, value].concat());
            }
        }
    }

    /// Returns a scan of `bounds`. `prefix` is a key prefix that the filters know and that every
    /// key of the range begins with: tables without it are left out.
    pub(crate) async fn scan(
        &self,
        tables: &Arc<Tables>,
        direction: Direction,
        bounds: Bounds,
        snapshot: SeqNo,
        wanted: Wanted,
        prefix: Option<(&PrefixRule, &[u8])>,
    ) -> Result<Scan> {
        let mut sources = Vec::new();
        let mut tombstones: Vec<Arc<Fragmented>> = Vec::new();
        for memtable in &self.memtables {
            tombstones.extend(memtable.range_tombstones());
            // The active one still grows: nothing can be said of what is newest in it.
            sources.push(Source::memtable(memtable.iter(), SeqNo::MAX));
        }
        for (level, handles) in self.version.levels.iter().enumerate() {
            let mut inside = Vec::new();
            for handle in handles {
                let desc = &handle.desc;
                let meets = desc.smallest.as_slice() < bounds.end.as_slice()
                    && desc.ends_at_or_after(&bounds.start);
                if !meets {
                    continue;
                }
                if desc.range_tombstones > 0 {
                    tombstones.push(tables.open(handle).await?.range_tombstones.clone());
                }
                if let Some((rule, prefix)) = prefix
                    && !tables.open(handle).await?.table.may_contain_prefix(rule, prefix).await?
                {
                    continue;
                }
                inside.push(handle.clone());
            }
            if level > 0 && !inside.is_empty() {
                sources.push(Source::level(tables.clone(), inside, ReadMode::Scan));
            } else {
                for handle in inside {
                    let iter = tables.iter(&handle, ReadMode::Scan).await?;
                    sources.push(Source::table(iter, handle.desc.seqnos.1));
                }
            }
        }
        let merge = Merge::new(sources, direction);
        Ok(Scan::new(merge, direction, bounds, snapshot, wanted, tombstones))
    }
}
