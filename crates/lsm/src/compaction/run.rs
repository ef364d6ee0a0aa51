//! Running a merge: records in, tables out. A flush is a merge with one input.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use atoll_env::WallTime;
use atoll_env::disk::IoClass;

use crate::compaction::filter::{self, Decision};
use crate::compaction::fold::Run;
use crate::compaction::stream::{Fate, Survivors, deadline_of, stripe_of};
use crate::compaction::weight::Weight;
use crate::error::{Error, Result};
use crate::iter::Merge;
use crate::iter::scan::key_kind;
use crate::key::{InternalKey, Kind, SeqNo, Trailer, stamp_of};
use crate::keyspace::{About, Callbacks};
use crate::mutants;
use crate::options::{Compression, Options};
use crate::pacing::Rhythm;
use crate::slice::Slice;
use crate::store::Store;
use crate::table::{Codec, Filter, PrefixRule, TableOptions, TableWriter};
use crate::tombstone::{Fragmented, RangeTombstone};
use crate::values::{Mover, Pointer, ValueDesc, ValueRule, Values};
use crate::version::manifest::sync_dir;
use crate::version::{LEVELS, Paths, TableDesc, Version};

/// The usual one: level 1 saves little time, higher ones little space.
const ZSTD_LEVEL: i32 = 3;
/// Records between two looks at whether the work should end, and two chances for others to run.
const RECORDS_PER_TURN: usize = 1024;
/// Bytes of values that are moved between two of these.
const BYTES_PER_TURN: u64 = 1 << 20;

/// What a merge needs to know.
pub(crate) struct Job<'a> {
    pub(crate) options: &'a Options,
    pub(crate) paths: &'a Paths,
    /// Level of the outputs.
    pub(crate) level: usize,
    /// Scheduling class of its writes.
    pub(crate) class: IoClass,
    /// Ascending, the present last.
    pub(crate) snapshots: Vec<SeqNo>,
    pub(crate) expire_before: u64,
    /// Nobody reads versions at a stamp below it.
    pub(crate) horizon: u64,
    /// The levels below the output, to know where nothing older lies.
    pub(crate) version: &'a Version,
    /// The user keys that it merges: from here, and to before here.
    pub(crate) keys: (&'a [u8], Option<&'a [u8]>),
    /// Bytes from which on a new output is begun.
    pub(crate) table_size: u64,
    /// Whose beats it keeps.
    pub(crate) store: &'a Store,
    pub(crate) job: u64,
    pub(crate) prefix_rule: PrefixRule,
    /// The value files of `version`.
    pub(crate) values: &'a Values,
    pub(crate) value_rule: ValueRule,
    /// Value files that should go.
    pub(crate) leaving: &'a BTreeSet<u64>,
    /// The keyspaces that have an operator or a filter.
    pub(crate) callbacks: Callbacks,
    /// Whether values may be shown to filters: no snapshot sees all of the present.
    pub(crate) filters: bool,
    /// Is told what an operator or a filter did not answer.
    pub(crate) complain: &'a (dyn Fn(Error) + Sync),
    /// Draws the number of the next output.
    pub(crate) next_id: &'a (dyn Fn() -> u64 + Sync),
    /// Whether to give up.
    pub(crate) cancelled: &'a (dyn Fn() -> bool + Sync),
}

/// What a merge made. On failure the files begun remain and are the caller's to remove.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) tables: Vec<TableDesc>,
    pub(crate) values: Vec<ValueDesc>,
    /// Bytes of the tables.
    pub(crate) bytes_written: u64,
    /// Bytes of the value files.
    pub(crate) value_bytes: u64,
    /// Of these, bytes of values that were in another value file before.
    pub(crate) moved_bytes: u64,
    /// Tables begun, finished or not.
    pub(crate) begun: Vec<u64>,
    /// Value files begun, finished or not.
    pub(crate) begun_values: Vec<u64>,
    pub(crate) cancelled: bool,
    /// Whether a filter removed or replaced anything.
    pub(crate) filtered: bool,
}

impl Outcome {
    /// Takes in what another part of the merge made, of larger keys.
    pub(crate) fn add(&mut self, other: Outcome) {
        self.tables.extend(other.tables);
        self.values.extend(other.values);
        self.bytes_written += other.bytes_written;
        self.value_bytes += other.value_bytes;
        self.moved_bytes += other.moved_bytes;
        self.begun.extend(other.begun);
        self.begun_values.extend(other.begun_values);
        self.cancelled |= other.cancelled;
        self.filtered |= other.filtered;
    }
}

impl Job<'_> {
    /// Merges `input`, with the range tombstones `covering` of the same sources, into tables.
    ///
    /// The outputs are synced, their names too. `outcome` is filled even when this fails, so that
    /// the caller can remove what was begun.
    pub(crate) async fn run(
        &self,
        mut input: Merge,
        covering: &Fragmented,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let kept_ranges = self.kept_ranges(covering);
        let snapshots = self.snapshots.clone();
        let mut survivors = Survivors::new(snapshots, self.expire_before, self.horizon, covering);
        let (start, end) = self.keys;
        let mut sink = Sink {
            job: self,
            kept_ranges: &kept_ranges,
            output: None,
            mover: Mover::new(self),
            ranges_from: start.to_vec(),
            last_user_key: Vec::new(),
        };
        // Of this turn.
        let (mut records, mut moved) = (0usize, 0u64);
        let mut rhythm = Rhythm::new(self.store, self.job);
        if start.is_empty() {
            input.seek_start().await?;
        } else {
            input.seek(InternalKey::new(start, Trailer::NEWEST)).await?;
        }
        while input.valid() {
            if end.is_some_and(|end| input.key().user_key >= end) {
                break;
            }
            records += 1;
            if records >= RECORDS_PER_TURN || moved + BYTES_PER_TURN < outcome.moved_bytes {
                if (self.cancelled)() {
                    outcome.cancelled = true;
                    return Ok(());
                }
                rhythm.beat(records as u64).await;
                (records, moved) = (0, outcome.moved_bytes);
            }
            let key = input.key();
            let kind = key_kind(key.trailer);
            let mut fate =
                survivors.fate(key, kind, input.value(), || self.is_bottom(key.user_key));
            if fate == Fate::Fold {
                let bottom = |user_key: &[u8]| self.is_bottom(user_key);
                let mut run = Run::take(&mut input, &mut survivors, bottom).await?;
                records += run.taken - 1;
                let about = self.about(&run.user_key);
                run.load(about, &mut sink.mover).await;
                for out in run.fold(about, self.complain) {
                    let key = InternalKey::new(&run.user_key, out.trailer);
                    sink.add(key, &out.bytes, out.made, outcome).await?;
                }
                continue;
            }
            let mut replaced = None;
            if fate == Fate::Keep
                && let Some(about) = self.filtering(key, &survivors)
            {
                let record = (key, input.value_slice());
                (fate, replaced) =
                    self.filtered(about, record, &mut survivors, &mut sink.mover).await;
                outcome.filtered |= fate != Fate::Keep || replaced.is_some();
            }
            match (fate, replaced) {
                (Fate::Bury, _) => {
                    let trailer = Trailer::new(key.trailer.seqno(), Kind::Tombstone);
                    sink.add(InternalKey::new(key.user_key, trailer), &[], true, outcome).await?;
                }
                (Fate::Keep, Some((kind, value))) => {
                    let trailer = Trailer::new(key.trailer.seqno(), kind);
                    let key = InternalKey::new(key.user_key, trailer);
                    sink.add(key, &value, true, outcome).await?;
                }
                (Fate::Keep, None) => sink.add(key, input.value(), false, outcome).await?,
                (Fate::Drop | Fate::Fold, _) => {}
            }
            input.step().await?;
        }
        // An iterator that failed is not one that ended.
        if !input.valid() {
            input.step().await?;
        }
        rhythm.beat((records % RECORDS_PER_TURN) as u64).await;
        sink.finish(outcome).await?;
        if !outcome.tables.is_empty() {
            let tag = atoll_env::IoTag::new(self.class, "table names");
            sync_dir(self.options.env.disk.as_ref(), tag, &self.paths.tables()).await?;
        }
        Ok(())
    }

    /// Returns the keyspace of a key, if it has an operator or a filter.
    fn about(&self, user_key: &[u8]) -> Option<&About> {
        let id = user_key.first_chunk().filter(|_| !self.callbacks.is_empty())?;
        self.callbacks.get(&u32::from_be_bytes(*id)).map(|about| &**about)
    }

    /// Returns the keyspace of a record that would be kept, if its filter may see it.
    fn filtering(&self, key: InternalKey<'_>, survivors: &Survivors<'_>) -> Option<&About> {
        let shown =
            self.filters && self.level > 0 && survivors.is_newest_stripe(key.trailer.seqno());
        self.about(key.user_key).filter(|about| shown && about.filter.is_some())
    }

    /// Asks the filter about a record that would be kept; returns what becomes of it.
    async fn filtered(
        &self,
        about: &About,
        (key, bytes): (InternalKey<'_>, Slice),
        survivors: &mut Survivors<'_>,
        mover: &mut Mover<'_>,
    ) -> (Fate, Option<(Kind, Slice)>) {
        let keep = (Fate::Keep, None);
        let Some(subject) = filter::Subject::of(about, self.level, (key, &bytes)) else {
            return keep;
        };
        let kind = key_kind(key.trailer);
        let needed = match (kind, key.trailer.is_separated()) {
            (Kind::ChunkedValue, _) => Ok(false),
            (_, false) => Ok(true),
            (_, true) => subject.needs_value(),
        };
        let decision = match needed {
            Ok(false) => subject.decide(None),
            Ok(true) => match mover.value(key.user_key, key.trailer, &bytes).await {
                Some(value) => subject.decide(Some(&value)),
                // Who reads the key is told.
                None => return keep,
            },
            Err(e) => Err(e),
        };
        match decision {
            Ok(Decision::Keep) => keep,
            Ok(Decision::Remove) => (survivors.remove(|| self.is_bottom(key.user_key)), None),
            Ok(Decision::Replace(with)) => {
                survivors.replace();
                (Fate::Keep, Some(filter::replaced(kind, &bytes, with)))
            }
            Err(e) => {
                (self.complain)(e);
                keep
            }
        }
    }

    /// Returns whether no table below the output level can hold `user_key`.
    fn is_bottom(&self, user_key: &[u8]) -> bool {
        self.level > 0
            && (self.level + 1..LEVELS).all(|l| self.version.covering(l, user_key).is_none())
    }

    /// Returns the range tombstones that must live on: of each stripe the newest, and not the
    /// oldest stripe's where nothing lies below.
    fn kept_ranges(&self, covering: &Fragmented) -> Fragmented {
        Fragmented::new(covering.iter().flat_map(|fragment| {
            let bottom = self.level > 0
                && (self.level + 1..LEVELS).all(|l| {
                    !self.version.levels[l].iter().any(|t| {
                        t.desc.ends_at_or_after(fragment.start)
                            && t.desc.smallest.as_slice() < fragment.end
                    })
                });
            let mut stripe = None;
            let mut kept = Vec::new();
            for &seqno in fragment.seqnos {
                let of = stripe_of(&self.snapshots, seqno);
                let elide = of == 0 && (bottom || mutants::is("early-tombstone-drop"));
                if stripe.replace(of) != Some(of) && !elide {
                    let (start, end) = (fragment.start.to_vec(), fragment.end.to_vec());
                    kept.push(RangeTombstone { start, end, seqno });
                }
            }
            kept
        }))
    }

    pub(crate) async fn begin(&self, outcome: &mut Outcome) -> Result<Output> {
        let id = (self.next_id)();
        outcome.begun.push(id);
        let env = &self.options.env;
        let salt = env.random.next_u64();
        let last = self.level == LEVELS - 1;
        let options = TableOptions {
            block_bytes: self.options.block_size,
            codec: match self.options.compression {
                Compression::None => Codec::None,
                Compression::Lz4ThenZstd if last => Codec::Zstd(ZSTD_LEVEL),
                Compression::Lz4 | Compression::Lz4ThenZstd => Codec::Lz4,
            },
            filter: Filter::of_level(
                self.options.filter_policy,
                self.options.filter_bits,
                self.level,
            ),
            prefix_rule: Some(self.prefix_rule.clone()),
            level: self.level as u32,
            created: WallTime(env.clock.wall().0),
            ..TableOptions::default()
        };
        let path = self.paths.table(id);
        let writer =
            TableWriter::create(env.disk.as_ref(), &path, id, salt, options, self.class).await?;
        let desc = TableDesc {
            id,
            salt,
            base: 0,
            size: 0,
            smallest: Vec::new(),
            largest: Vec::new(),
            largest_exclusive: false,
            seqnos: (SeqNo::MAX, 0),
            entries: 0,
            tombstones: 0,
            range_tombstones: 0,
            expiring: 0,
            deadline_max: 0,
            passing: 0,
            passing_stamp: 0,
            values: Arc::default(),
            dense: 0,
            half_expired: 0,
        };
        let (values, weight) = Default::default();
        Ok(Output { writer, desc, newer: None, passing_chunks: false, values, weight })
    }
}

/// Where the records of a merge go: into tables, cut between keys, and value files.
struct Sink<'j> {
    job: &'j Job<'j>,
    kept_ranges: &'j Fragmented,
    output: Option<Output>,
    mover: Mover<'j>,
    /// Range tombstones before this key are written.
    ranges_from: Vec<u8>,
    last_user_key: Vec<u8>,
}

impl Sink<'_> {
    /// Adds a record; `made` says that the merge has put it together.
    async fn add(
        &mut self,
        key: InternalKey<'_>,
        bytes: &[u8],
        made: bool,
        outcome: &mut Outcome,
    ) -> Result<()> {
        // All records of a user key stay in one table.
        let full = self.output.as_ref().is_some_and(|o| {
            o.writer.estimated_size() >= self.job.table_size && self.last_user_key != key.user_key
        });
        if full && let Some(output) = self.output.take() {
            let cut = key.user_key.to_vec();
            let ranges = self.kept_ranges.clipped(&self.ranges_from, Some(&cut));
            output.finish(ranges, outcome).await?;
            self.ranges_from = cut;
        }
        let output = match &mut self.output {
            Some(output) => output,
            none => none.insert(self.job.begin(outcome).await?),
        };
        let (trailer, bytes) = self.mover.place(key, bytes, made, outcome).await?;
        output.add(InternalKey::new(key.user_key, trailer), bytes)?;
        if self.last_user_key != key.user_key {
            self.last_user_key.clear();
            self.last_user_key.extend_from_slice(key.user_key);
        }
        if output.writer.is_full() {
            output.writer.write_out().await?;
        }
        Ok(())
    }

    /// Ends the last table, and begins it if there are range tombstones only; ends the value files.
    async fn finish(mut self, outcome: &mut Outcome) -> Result<()> {
        let (_, end) = self.job.keys;
        let ranges = || self.kept_ranges.clipped(&self.ranges_from, end);
        let output = match self.output.take() {
            None if ranges().next().is_some() => Some(self.job.begin(outcome).await?),
            output => output,
        };
        if let Some(output) = output {
            output.finish(ranges(), outcome).await?;
        }
        self.mover.finish(outcome).await
    }
}

/// A table under construction and what will be said about it in the manifest.
pub(crate) struct Output {
    pub(crate) writer: TableWriter,
    desc: TableDesc,
    /// The stamp of the last record, if it is a version; of the same user key if that has not
    /// changed.
    newer: Option<u64>,
    /// Whether chunks that follow belong to a version that an overtaking horizon drops.
    passing_chunks: bool,
    /// Bytes that are pointed to, by value file.
    values: BTreeMap<u64, u64>,
    weight: Weight,
}

impl Output {
    pub(crate) fn add(&mut self, key: InternalKey<'_>, value: &[u8]) -> Result<()> {
        self.writer.add(key, value)?;
        let desc = &mut self.desc;
        if desc.entries == 0 {
            desc.smallest.extend_from_slice(key.user_key);
        }
        if desc.largest != key.user_key {
            desc.largest.clear();
            desc.largest.extend_from_slice(key.user_key);
            self.newer = None;
        }
        desc.entries += 1;
        self.count(key.trailer.seqno());
        if let Some(pointer) = Pointer::of(key.trailer, value) {
            *self.values.entry(pointer.file).or_default() += u64::from(pointer.size);
        }
        let kind = key_kind(key.trailer);
        self.weight.count(kind == Kind::Tombstone);
        match kind {
            Kind::Tombstone => self.desc.tombstones += 1,
            Kind::ExpiringValue | Kind::ChunkedValue | Kind::Merge => {
                if let Some(deadline) = deadline_of(value) {
                    self.desc.expiring += 1;
                    self.desc.deadline_max = self.desc.deadline_max.max(deadline);
                    self.weight.count_deadline(deadline);
                }
            }
            Kind::VersionedValue | Kind::VersionedTombstone | Kind::VersionedChunked => {
                self.count_version(key, stamp_of(value));
            }
            Kind::Chunk => self.desc.passing += u64::from(self.passing_chunks),
            Kind::Value => {}
        }
        Ok(())
    }

    /// Counts a version that will be dead weight once the horizon has passed a stamp: a tombstone
    /// its own, any other version that of the next newer one.
    fn count_version(&mut self, key: InternalKey<'_>, stamp: u64) {
        let tombstone = key_kind(key.trailer) == Kind::VersionedTombstone;
        let passed_by = self.newer.replace(stamp).or(tombstone.then_some(stamp));
        self.passing_chunks = passed_by.is_some();
        if let Some(stamp) = passed_by {
            self.desc.passing += 1;
            self.desc.passing_stamp = self.desc.passing_stamp.max(stamp);
        }
    }

    fn count(&mut self, seqno: SeqNo) {
        let (min, max) = self.desc.seqnos;
        self.desc.seqnos = (min.min(seqno), max.max(seqno));
    }

    pub(crate) async fn finish<'f>(
        mut self,
        ranges: impl Iterator<Item = crate::tombstone::Fragment<'f>>,
        outcome: &mut Outcome,
    ) -> Result<()> {
        for range in ranges {
            let desc = &mut self.desc;
            if desc.entries == 0 || range.start < desc.smallest.as_slice() {
                desc.smallest = range.start.to_vec();
            }
            if desc.entries == 0 || range.end > desc.largest.as_slice() {
                desc.largest = range.end.to_vec();
                desc.largest_exclusive = true;
            }
            for &seqno in range.seqnos {
                let (start, end) = (range.start.to_vec(), range.end.to_vec());
                self.writer.add_range_tombstone(&RangeTombstone { start, end, seqno })?;
                self.desc.entries += 1;
                self.desc.range_tombstones += 1;
                self.count(seqno);
            }
        }
        let written = self.writer.finish().await?;
        self.desc.size = written.size;
        self.desc.values = self.values.into_iter().collect();
        self.desc.dense = self.weight.dense();
        self.desc.half_expired = self.weight.half_expired(self.desc.entries);
        outcome.bytes_written += written.size;
        outcome.tables.push(self.desc);
        Ok(())
    }
}

/// Collects the range tombstones of several sources into one set.
pub(crate) fn merged_tombstones(sets: &[Arc<Fragmented>]) -> Fragmented {
    Fragmented::merge(sets.iter().map(Arc::as_ref))
}
