//! Histories: what a seed makes of the engine's options and its users.

use std::fmt;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::random::Prng;
use atoll_lsm::{
    Append, Compression, Durability, KeyspaceOptions, MergeOperator, Options, ValuePlacement,
};

use crate::model::show;

/// Keyspace names; the nested one goes with its parent.
pub const NAMES: [&str; 5] = ["main", "side", "side/nested", "tally", "fleeting"];
/// Which of [`NAMES`] is merged into: operands are appended. Its values have no deadlines.
pub const TALLY: usize = 3;
/// Time to live of the values in the last of [`NAMES`].
pub const FLEETING: Duration = Duration::from_millis(40);
/// Length of the key prefix that the filters of the first of [`NAMES`] know.
pub const PREFIX_LEN: u16 = 2;

/// What kind of history a seed gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// About a hundred disk operations: the power goes at every one of them.
    Short,
    /// Many times as many, with levels that have grown: the power goes at some.
    Long,
}

/// A history.
#[derive(Clone, Debug)]
pub struct Script {
    /// Short or long.
    pub size: Size,
    /// Options of the engine.
    pub tuning: Tuning,
    /// Lives of the database, each from opening to closing.
    pub phases: Vec<Phase>,
}

/// Options that a seed varies; the rest is fixed.
#[derive(Clone, Debug)]
pub struct Tuning {
    memtable_size: usize,
    sealed_memtables_max: usize,
    log_segment_size: u64,
    manifest_size: u64,
    block_size: usize,
    table_size: u64,
    level0_tables: usize,
    level0_slowdown: usize,
    level_ratio: u64,
    level_base_size: u64,
    compression: Compression,
    filter_bits: u32,
    separate_above: Option<u32>,
    value_file_size: u64,
    value_garbage_percent: u32,
    /// Whether every other life has little memory: then the log is longer than it.
    narrows: bool,
    /// Between the syncs of the interval mode.
    pub sync_interval: Duration,
}

/// One life of the database.
#[derive(Clone, Debug)]
pub struct Phase {
    /// What each writer does, one after the other.
    pub writers: Vec<Vec<Op>>,
    /// Snapshots and iterators that a reader takes meanwhile.
    pub readings: usize,
    /// Whether the database is closed at the end, or only let go.
    pub close: bool,
}

/// A step of a writer.
#[derive(Clone, Debug)]
pub enum Op {
    /// A batch.
    Write(Vec<Edit>, Durability),
    /// Creates a keyspace if there is none of the name.
    Create(usize),
    /// Drops a keyspace if there is one of the name.
    DropKeyspace(usize),
    /// Writes what is in memory into tables.
    Flush,
    /// Merges all tables.
    Compact,
    /// Makes everything durable.
    Sync,
    /// Makes a checkpoint.
    Checkpoint,
    /// Takes a backup.
    Backup,
    /// Ingests a round of sorted records.
    Ingest,
    /// Waits.
    Sleep(Duration),
}

/// A change in a batch. Keyspaces are numbered by [`NAMES`].
#[derive(Clone, Debug)]
pub enum Edit {
    /// Sets a key to a value of a length, for a time if one is given.
    Put(usize, Vec<u8>, usize, Option<Duration>),
    /// Appends bytes of a length to a key of [`TALLY`].
    Merge(Vec<u8>, usize),
    /// Removes a key.
    Remove(usize, Vec<u8>),
    /// Removes a range of keys.
    RemoveRange(usize, Vec<u8>, Vec<u8>),
    /// Removes all keys.
    Clear(usize),
}

impl Tuning {
    /// Draws options that reach every path with little data.
    pub fn draw(prng: &mut Prng) -> Tuning {
        let mut values = prng.fork("values");
        let narrows = prng.fork("memory").chance(0.3);
        let mut one_of = |choices: &[u64]| choices[prng.index(choices.len())];
        let drawn = Tuning {
            memtable_size: one_of(&[4, 8, 16, 32, 64]) as usize * 1024,
            sealed_memtables_max: one_of(&[1, 2]) as usize,
            log_segment_size: one_of(&[16, 16, 20, 32, 64]) * 1024,
            manifest_size: one_of(&[0, 0, 1024, 1 << 20]),
            block_size: one_of(&[256, 512, 1024, 4096]) as usize,
            table_size: one_of(&[4, 8, 16, 32]) * 1024,
            level0_tables: one_of(&[1, 2, 3, 4]) as usize,
            level0_slowdown: one_of(&[3, 8, 12]) as usize,
            level_ratio: one_of(&[2, 3, 4]),
            level_base_size: one_of(&[2, 4, 8, 32]) * 1024,
            compression: match one_of(&[0, 1, 2]) {
                0 => Compression::None,
                1 => Compression::Lz4,
                _ => Compression::Lz4ThenZstd,
            },
            filter_bits: one_of(&[0, 4, 10]) as u32,
            separate_above: [None, Some(0), Some(0), Some(40), Some(512)][values.index(5)],
            value_file_size: [1 << 10, 8 << 10, 128 << 10][values.index(3)],
            value_garbage_percent: [0, 0, 10, 40][values.index(4)],
            narrows,
            sync_interval: Duration::from_millis(one_of(&[2, 50, 2000])),
        };
        if drawn.separate_above.is_none_or(|above| above > 100) {
            return drawn;
        }
        // Tables of pointers are small: only smaller ones share a value file with others.
        let table_size = [512, 1024, 2048][values.index(3)];
        Tuning { table_size, level_base_size: 2 * table_size, ..drawn }
    }

    /// Returns the engine's options for a life of that number in the world `env`.
    pub fn options_of(&self, life: u64, env: Env) -> Options {
        let options = self.options(env);
        if !self.narrows || life.is_multiple_of(2) {
            return options;
        }
        Options { memtable_size: 2 << 10, sealed_memtables_max: 1, ..options }
    }

    /// Returns the engine's options in the world `env`.
    pub fn options(&self, env: Env) -> Options {
        Options {
            memory: 4 << 20,
            durability: Durability::Synced,
            sync_interval: self.sync_interval,
            memtable_size: self.memtable_size,
            sealed_memtables_max: self.sealed_memtables_max,
            log_segment_size: self.log_segment_size,
            manifest_size: self.manifest_size,
            block_size: self.block_size,
            table_size: self.table_size,
            level0_tables: self.level0_tables,
            level0_slowdown: self.level0_slowdown,
            level_ratio: self.level_ratio,
            level_base_size: self.level_base_size,
            compression: self.compression,
            filter_bits: self.filter_bits,
            separate_above: self.separate_above,
            value_file_size: self.value_file_size,
            value_garbage_percent: self.value_garbage_percent,
            ..Options::new(env)
        }
    }
}

impl Script {
    /// Returns the history of a seed.
    pub fn of(seed: u64) -> Script {
        let mut prng = Prng::new(seed).fork("script");
        let size = if prng.chance(0.04) { Size::Long } else { Size::Short };
        let mut tuning = Tuning::draw(&mut prng);
        let long_values = prng.chance(0.01);
        if long_values {
            // A value of a megabyte would otherwise take a hundred segments.
            tuning.log_segment_size = 512 * 1024;
        }
        let style = Style::draw(&mut prng);
        let phases = match size {
            Size::Short => 1 + prng.index(2),
            Size::Long => 1 + prng.index(3),
        };
        let mut phases: Vec<Phase> = (0..phases)
            .map(|_| {
                let ops = match size {
                    Size::Short => 10 + prng.index(24),
                    Size::Long => 100 + prng.index(200),
                };
                style.phase(&mut prng, ops)
            })
            .collect();
        if long_values && let Some(ops) = phases[0].writers.last_mut() {
            let edit = Edit::Put(0, style.key(&mut prng), 1_100_000, None);
            ops.insert(
                prng.index(ops.len() + 1),
                Op::Write(vec![edit], style.durability(&mut prng)),
            );
        }
        Script { size, tuning, phases }
    }

    /// Returns a short life to lead after a recovery.
    pub fn aftermath(prng: &mut Prng) -> Phase {
        let style = Style::draw(prng);
        let ops = 3 + prng.index(6);
        style.phase(prng, ops)
    }
}

/// The habits of a history's writers: each has its own mix, so that rare things are frequent in
/// some of them.
#[derive(Clone, Debug)]
struct Style {
    synced: f64,
    interval: f64,
    large: f64,
    removes: f64,
    ranges: f64,
    merges: f64,
    batches: f64,
    upkeep: f64,
    writers: usize,
    groups: u64,
}

impl Style {
    fn draw(prng: &mut Prng) -> Style {
        let mut pick = |choices: &[f64]| choices[prng.index(choices.len())];
        Style {
            synced: pick(&[0.0, 0.1, 0.5, 0.9]),
            interval: pick(&[0.0, 0.3, 0.8]),
            large: pick(&[0.0, 0.1, 0.4, 0.8]),
            removes: pick(&[0.1, 0.3, 0.5]),
            ranges: pick(&[0.03, 0.1, 0.25]),
            merges: pick(&[0.0, 0.1, 0.5]),
            batches: pick(&[0.1, 0.5]),
            upkeep: pick(&[0.1, 0.2, 0.4]),
            writers: pick(&[1.0, 2.0, 3.0, 5.0]) as usize,
            groups: pick(&[1.0, 4.0, 8.0]) as u64,
        }
    }

    fn phase(&self, prng: &mut Prng, ops: usize) -> Phase {
        let writers = (0..self.writers)
            .map(|writer| {
                let ops = (ops / self.writers).max(2);
                (0..ops).map(|_| self.op(prng, writer)).collect()
            })
            .collect();
        Phase { writers, readings: prng.index(4), close: prng.chance(0.7) }
    }

    fn op(&self, prng: &mut Prng, writer: usize) -> Op {
        if prng.chance(self.upkeep) {
            return match prng.index(if writer == 0 { 16 } else { 7 }) {
                0..=2 => Op::Flush,
                3 => Op::Compact,
                4 => Op::Sync,
                5 | 6 => Op::Sleep(Duration::from_micros(prng.range(100..60_000))),
                7 | 8 => Op::DropKeyspace(1 + prng.index(NAMES.len() - 1)),
                9 => Op::Checkpoint,
                10 => Op::Backup,
                11 | 12 => Op::Ingest,
                _ => Op::Create(1 + prng.index(NAMES.len() - 1)),
            };
        }
        let edits = if prng.chance(self.batches) { 2 + prng.index(5) } else { 1 };
        let edits = (0..edits).map(|_| self.edit(prng)).collect();
        Op::Write(edits, self.durability(prng))
    }

    fn durability(&self, prng: &mut Prng) -> Durability {
        if prng.chance(self.synced) {
            Durability::Synced
        } else if prng.chance(self.interval) {
            Durability::Interval
        } else {
            Durability::Buffered
        }
    }

    fn edit(&self, prng: &mut Prng) -> Edit {
        let space = if prng.chance(0.6) { 0 } else { prng.index(NAMES.len()) };
        let key = self.key(prng);
        if prng.chance(self.ranges) {
            let other = self.key(prng);
            return match prng.index(6) {
                0 => Edit::Clear(space),
                _ if key <= other => Edit::RemoveRange(space, key, other),
                _ => Edit::RemoveRange(space, other, key),
            };
        }
        if prng.chance(self.removes) {
            return Edit::Remove(space, key);
        }
        if prng.chance(self.merges) {
            return Edit::Merge(key, prng.range(12..100) as usize);
        }
        let len = match prng.index(10) {
            _ if prng.chance(self.large) => prng.range(1000..9000),
            0..=4 => prng.range(12..80),
            _ => prng.range(80..800),
        };
        let ttl = match prng.index(20) {
            _ if space == TALLY => None,
            0 => Some(Duration::from_millis(prng.range(1..100))),
            1 => Some(Duration::from_secs(1_000_000)),
            _ => None,
        };
        Edit::Put(space, key, len as usize, ttl)
    }

    /// Keys are few, so that they meet, and of odd shapes: empty, of one byte, with a long shared
    /// prefix, with zeros and ones at the end.
    fn key(&self, prng: &mut Prng) -> Vec<u8> {
        let group = prng.below(self.groups);
        let number = prng.below(8);
        match prng.index(24) {
            0 => Vec::new(),
            1 => vec![b'a' + group as u8],
            2 => format!("k{group}/{}/{number}", "long".repeat(30)).into_bytes(),
            3 => [format!("k{group}").as_bytes(), &[0xff, 0xff][..number as usize % 3]].concat(),
            4 => [format!("k{group}").as_bytes(), &[0, 0][..number as usize % 3]].concat(),
            _ => format!("k{group}/{number}").into_bytes(),
        }
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?} history under {:?}", self.size, self.tuning)?;
        for (number, phase) in self.phases.iter().enumerate() {
            let end = if phase.close { "closed" } else { "let go" };
            writeln!(f, "life {}, {} readings, then {end}", number + 1, phase.readings)?;
            for (writer, ops) in phase.writers.iter().enumerate() {
                ops.iter().try_for_each(|op| writeln!(f, "  writer {writer}: {op}"))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Write(edits, durability) => {
                write!(f, "{}", durability.name())?;
                edits.iter().try_for_each(|edit| write!(f, "; {edit}"))
            }
            Op::Create(name) => write!(f, "create '{}'", NAMES[*name]),
            Op::DropKeyspace(name) => write!(f, "drop '{}'", NAMES[*name]),
            Op::Flush => f.write_str("flush"),
            Op::Compact => f.write_str("compact"),
            Op::Sync => f.write_str("sync"),
            Op::Checkpoint => f.write_str("checkpoint"),
            Op::Backup => f.write_str("backup"),
            Op::Ingest => f.write_str("ingest"),
            Op::Sleep(time) => write!(f, "sleep {time:?}"),
        }
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Edit::Put(name, key, len, ttl) => {
                write!(f, "put '{}' {} = {len} bytes", NAMES[*name], show(key))?;
                ttl.map_or(Ok(()), |ttl| write!(f, " for {ttl:?}"))
            }
            Edit::Merge(key, len) => {
                write!(f, "append '{}' {} = {len} bytes", NAMES[TALLY], show(key))
            }
            Edit::Remove(name, key) => write!(f, "remove '{}' {}", NAMES[*name], show(key)),
            Edit::RemoveRange(name, start, end) => {
                write!(f, "remove '{}' from {} to {}", NAMES[*name], show(start), show(end))
            }
            Edit::Clear(name) => write!(f, "clear '{}'", NAMES[*name]),
        }
    }
}

/// Returns the options a keyspace is created with.
pub fn keyspace_options(name: usize) -> KeyspaceOptions {
    KeyspaceOptions {
        ttl: (name == NAMES.len() - 1).then_some(FLEETING),
        filter_prefix_len: if name == 0 { PREFIX_LEN } else { 0 },
        values: match name {
            1 => ValuePlacement::MergeBack { above: 10, up_to: 300 },
            2 => ValuePlacement::Separate { above: 10 },
            TALLY => ValuePlacement::Separate { above: 60 },
            _ => ValuePlacement::Usual,
        },
        merge_operator: (name == TALLY).then(|| Append::new(b"").name().to_owned()),
    }
}

/// Returns the content of a value: the number of the write, then bytes that compress by half.
pub fn content(number: usize, index: usize, salt: u64, len: usize) -> Vec<u8> {
    let mut bytes = format!("{number}.{index};{salt:x};").into_bytes();
    let head = bytes.len().min(len);
    let mut noise = Prng::new(salt ^ number as u64);
    bytes.resize(len.max(head), b'.');
    let half = head + (len - head) / 2;
    noise.fill(&mut bytes[head..half]);
    bytes
}
