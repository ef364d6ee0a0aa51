//! Options: what an owner of a database may choose, with the reason for each default.

use std::sync::Arc;
use std::time::Duration;

use atoll_env::Env;

use crate::compaction::filter::CompactionFilter;
use crate::error::{Error, Result};
use crate::events::EventListener;
use crate::merge::{self, MergeOperator};
pub use crate::pool::PoolStrategy;
pub use crate::table::FilterPolicy;

/// Longest key, in bytes.
pub const KEY_LEN_MAX: usize = 64 << 10;
/// Longest value, in bytes. The memory budget bounds it, too: see [the crate's limits](crate#limits).
pub const VALUE_LEN_MAX: usize = 512 << 20;
/// Longest name of a keyspace, in bytes.
pub const KEYSPACE_NAME_LEN_MAX: usize = 255;

/// When a write is answered.
///
/// Whatever the mode, a record is handed to the kernel before the answer, so none of them loses an
/// acknowledged write to the death of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Durability {
    /// Once the kernel has it. A power cut may take any amount of recent writes (but leaves a
    /// prefix of them, without a hole).
    Buffered,
    /// Once the kernel has it; the log is synced every [`Options::sync_interval`], so a power cut
    /// takes at most the last interval.
    Interval,
    /// Once it is on stable storage: survives a power cut. Writers that wait together share one
    /// sync. The default.
    #[default]
    Synced,
}

impl Durability {
    /// The mode's name, as flags and settings spell it.
    pub fn name(self) -> &'static str {
        match self {
            Durability::Buffered => "buffered",
            Durability::Interval => "interval",
            Durability::Synced => "synced",
        }
    }
}

impl std::str::FromStr for Durability {
    type Err = Error;
    fn from_str(name: &str) -> Result<Durability> {
        [Durability::Buffered, Durability::Interval, Durability::Synced]
            .into_iter()
            .find(|mode| mode.name() == name)
            .ok_or_else(|| {
                Error::InvalidInput(format!(
                    "'{name}' is no durability mode: choose synced, interval or buffered"
                ))
            })
    }
}

/// How blocks are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Compression {
    /// Not at all.
    None,
    /// LZ4 in every level.
    Lz4,
    /// LZ4 in the upper levels, which are rewritten soon; zstd in the last one, where nine tenths
    /// of the bytes are. The default.
    #[default]
    Lz4ThenZstd,
}

/// Options of a database.
///
/// Memory is one number. The rest exists for tests, which shrink it to reach every path with
/// little data, and for measurements.
#[derive(Clone)]
pub struct Options {
    /// The world to run in.
    pub env: Env,
    /// Everything the engine may hold in memory, in bytes: memtables, block and record cache.
    pub memory: usize,
    /// Where the block cache has its memory.
    pub pool: PoolStrategy,
    /// The mode of writes that name none.
    pub durability: Durability,
    /// Between two syncs of the log under [`Durability::Interval`].
    pub sync_interval: Duration,
    /// Capacity of a memtable's arena, in bytes; 0 takes an eighth of `memory`, at most 64 MiB:
    /// larger ones flush less often but make recovery longer.
    pub memtable_size: usize,
    /// Sealed memtables of the usual size that may wait for their flush before writers wait too. It
    /// is the bytes of so many that count, see `governor.rs`.
    pub sealed_memtables_max: usize,
    /// Capacity of a log segment, in bytes; 0 takes a memtable's, between 4 and 32 MiB: the log holds
    /// little more than what is in memtables, and it is given back segment by segment.
    pub log_segment_size: u64,
    /// How much longer than it would be the log may get because the owner of groups holds entries that are in
    /// tables, in bytes of the whole lane from the first one on: see [`Driver::hold`](crate::driven::Driver::hold).
    pub held_log_max: u64,
    /// Length below which a manifest is not replaced by a shorter one, in bytes.
    pub manifest_size: u64,
    /// Target of a data block before compression, in bytes.
    pub block_size: usize,
    /// Target size of a table, in bytes.
    pub table_size: u64,
    /// Tables in level 0 that trigger a compaction.
    pub level0_tables: usize,
    /// Tables in level 0, what is in memory included, from which writers are slowed down, ever more;
    /// or merges behind by the work of about so many.
    pub level0_slowdown: usize,
    /// Whether writers are slowed down in time and merges rest when nothing is urgent. Without it
    /// writers are stopped when memory or level 0 is full: for measurements.
    pub pacing: bool,
    /// Size ratio of adjacent levels.
    pub level_ratio: u64,
    /// Target size of the smallest level below level 0, in bytes.
    pub level_base_size: u64,
    /// Compression of data blocks.
    pub compression: Compression,
    /// Values above this length, in bytes, go into value files when they are flushed, and
    /// compaction moves pointers to them; `None` keeps all values in tables. A keyspace may say
    /// otherwise ([`KeyspaceOptions::values`]).
    pub separate_above: Option<u32>,
    /// Target size of a value file, in bytes.
    pub value_file_size: u64,
    /// Share of value files, in percent, that may be values that were overwritten or deleted. Less
    /// takes less space and moves live values more often.
    pub value_garbage_percent: u32,
    /// Filter bits per key; 0 writes no filters. Ten bits answer at least 99 of 100 misses.
    pub filter_bits: u32,
    /// Kinds of filters.
    pub filter_policy: FilterPolicy,
    /// How many parts in a hundred of the memory that memtables leave are for single records that are
    /// read again and again, instead of blocks, at most: down to an eighth of it where hardly any is read
    /// again. 0 for none. Below 32 KiB there are none either.
    pub record_cache_percent: usize,
    /// Who is told what goes on in the background.
    pub listener: Option<Arc<dyn EventListener>>,
    /// Operators that keyspaces name. The ready-made ones need not be here.
    pub merge_operators: Vec<Arc<dyn MergeOperator>>,
    /// Who decides over the values of a keyspace, by its name, when they are compacted.
    pub compaction_filters: Vec<(String, Arc<dyn CompactionFilter>)>,
    /// Between two scrubs, which read all tables to find what rotted; `None` for no scrubs.
    pub scrub_interval: Option<Duration>,
    /// Bytes that a scrub reads a second at most.
    pub scrub_rate: u64,
}

impl Options {
    /// Returns the defaults in the world `env`.
    pub fn new(env: Env) -> Options {
        Options {
            env,
            memory: 256 << 20,
            pool: PoolStrategy::default(),
            durability: Durability::default(),
            sync_interval: Duration::from_secs(1),
            memtable_size: 0,
            sealed_memtables_max: 2,
            log_segment_size: 0,
            held_log_max: 256 << 20,
            manifest_size: 1 << 20,
            block_size: 4 << 10,
            table_size: 32 << 20,
            level0_tables: 4,
            level0_slowdown: 12,
            pacing: true,
            level_ratio: 10,
            level_base_size: 128 << 20,
            compression: Compression::default(),
            separate_above: Some(512),
            value_file_size: 128 << 20,
            value_garbage_percent: 30,
            filter_bits: 10,
            filter_policy: FilterPolicy::default(),
            record_cache_percent: 15,
            listener: None,
            merge_operators: Vec::new(),
            compaction_filters: Vec::new(),
            scrub_interval: None,
            scrub_rate: 16 << 20,
        }
    }

    /// Returns the arena capacity that the options ask for.
    pub(crate) fn memtable_capacity(&self) -> usize {
        if self.memtable_size != 0 {
            return self.memtable_size;
        }
        // One active, the sealed ones and as much again for the cache must fit.
        (self.memory / 8).clamp(1 << 20, 64 << 20)
    }

    /// Returns the segment capacity that the options ask for.
    pub(crate) fn segment_capacity(&self) -> u64 {
        if self.log_segment_size != 0 {
            return self.log_segment_size;
        }
        (self.memtable_capacity() as u64).clamp(4 << 20, 32 << 20).next_multiple_of(4096)
    }

    /// Returns what all memtables may take.
    pub(crate) fn memtable_share(&self) -> usize {
        self.memtable_capacity() * (self.sealed_memtables_max + 1)
    }

    /// Returns what is left for caches once all memtables are full.
    pub(crate) fn cache_capacity(&self) -> usize {
        self.memory.saturating_sub(self.memtable_share()).max(self.memory / 8)
    }

    /// Refuses options that cannot work together.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(Error::InvalidInput(what.to_owned()));
        if self.memory < 4 << 20 {
            return wrong("memory must be at least 4 MiB: raise it");
        }
        let mut names = Vec::new();
        for operator in &self.merge_operators {
            merge::check_name(operator.name())?;
            names.push(operator.name());
        }
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return wrong(&format!("two merge operators are called '{}'", pair[0]));
        }
        let segment = self.segment_capacity();
        if segment < 16 << 10 || !segment.is_multiple_of(4096) {
            return wrong("a log segment must be a multiple of 4 KiB and at least 16 KiB");
        }
        if self.record_cache_percent > 90 {
            return wrong("record_cache_percent must be at most 90: blocks need room, too");
        }
        if self.memtable_capacity() > u32::MAX as usize / 2 {
            return wrong("a memtable can hold at most 2 GiB: lower memtable_size");
        }
        if self.value_file_size == 0 || self.value_garbage_percent >= 100 {
            return wrong("value_file_size must not be 0, and value_garbage_percent below 100");
        }
        if self.level_ratio < 2 || self.level0_tables == 0 || self.sealed_memtables_max == 0 {
            return wrong(
                "level_ratio must be at least 2, level0_tables and sealed_memtables_max at least 1",
            );
        }
        Ok(())
    }
}

/// Options of a keyspace, chosen when it is created and kept with it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct KeyspaceOptions {
    /// Values expire this long after they were written, unless the write says otherwise.
    pub ttl: Option<Duration>,
    /// Length of the key prefix that filters know, in bytes: a scan of one such prefix skips
    /// tables that hold none of it. 0 for none.
    pub filter_prefix_len: u16,
    /// Where its values stand.
    pub values: ValuePlacement,
    /// Name of the operator that [merges](crate::MergeOperator), if keys are to be merged.
    pub merge_operator: Option<String>,
}

/// Where the values of a keyspace stand: in the tables, beside their keys, or in value files, where
/// compaction does not rewrite them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ValuePlacement {
    /// As [`Options::separate_above`] says.
    #[default]
    Usual,
    /// In tables, whatever their length.
    Inline,
    /// In value files, if they are longer than `above` bytes.
    Separate {
        /// In bytes.
        above: u32,
    },
    /// As `Separate`, until they reach the last level: there those of at most `up_to` bytes are in
    /// tables again. For keyspaces that are scanned: a scan finds the value beside its key, and a
    /// value is written twice instead of once.
    MergeBack {
        /// In bytes.
        above: u32,
        /// In bytes.
        up_to: u32,
    },
}

/// Options of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct WriteOptions {
    /// When to answer; the database's mode if not said.
    pub durability: Option<Durability>,
}

impl WriteOptions {
    /// Answers under `durability`.
    pub fn durability(durability: Durability) -> WriteOptions {
        WriteOptions { durability: Some(durability) }
    }
}
