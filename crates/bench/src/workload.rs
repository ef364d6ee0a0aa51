//! The workloads, what their names on the command line mean, and how large each is.
//!
//! The oldest ten run in `child`; the others are gathered below by what they try:
//!
//! | module    | workloads                                                                      |
//! |-----------|--------------------------------------------------------------------------------|
//! | `large`   | values of 1 and 4 KiB, overwriting                                             |
//! | `read`    | skewed and batched reads, reads beside writes or a compaction, absent keys     |
//! | `delete`  | scans over what was deleted, a queue                                           |
//! | `ycsb`    | the six core workloads of the Yahoo! Cloud Serving Benchmark                   |
//! | `lasting` | what must not be kept for long: an idle keyspace's log, a snapshot's versions  |

mod delete;
mod large;
mod lasting;
mod read;
mod ycsb;

use std::path::Path;

use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use crate::Failure;
use crate::data::{self, KEY_LEN, RECORD_LEN, VALUE_LEN};
use crate::engines::Engine;
use crate::timings::Timings;

/// What a child does with an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// Inserts in ascending key order.
    Fillseq,
    /// Inserts in random key order.
    Fillrandom,
    /// Inserts in random key order, each on stable storage before the answer.
    #[value(name = "fillsync-1")]
    Fillsync1,
    /// The same from 64 threads.
    #[value(name = "fillsync-64")]
    Fillsync64,
    /// Gets of existing keys, data half the memory budget, all read once before.
    #[value(name = "readrandom-cached")]
    ReadrandomCached,
    /// Gets of existing keys, data four times the memory budget.
    #[value(name = "readrandom-4x")]
    Readrandom4x,
    /// Gets of absent keys, data four times the memory budget.
    Readmissing,
    /// A seek and 100 steps forwards, data four times the memory budget.
    #[value(name = "seekrandom-forward")]
    SeekrandomForward,
    /// A seek and 100 steps backwards, data four times the memory budget.
    #[value(name = "seekrandom-reverse")]
    SeekrandomReverse,
    /// Opening after the process was killed behind the last insert. The operation is the opening;
    /// ops/s are records opened per second.
    Recovery,
    /// `fillrandom` with values of 1 KiB.
    #[value(name = "fillrandom-1k")]
    Fillrandom1k,
    /// `fillrandom` with values of 4 KiB.
    #[value(name = "fillrandom-4k")]
    Fillrandom4k,
    /// Inserts of keys that exist, five times as many as there are, values of 1 KiB.
    Overwrite,
    /// `readrandom-cached` of keys by Zipf's law.
    #[value(name = "readrandom-zipf")]
    ReadrandomZipf,
    /// Batches of 32 gets, data four times the memory budget. The operation is the batch.
    Multireadrandom,
    /// Gets of existing keys beside a thread that overwrites 2 MB a second.
    Readwhilewriting,
    /// Gets of existing keys during a compaction of everything, and before it.
    Readcompacting,
    /// Gets of absent keys with a budget of a fiftieth of the data.
    #[value(name = "readmissing-50x")]
    Readmissing50x,
    /// A seek and 10 steps after 99 of 100 records were deleted in random order.
    Deletescan,
    /// A record in at the tail, the first one read and deleted.
    Queue,
    /// YCSB A: reads and updates, half each.
    #[value(name = "ycsb-a")]
    YcsbA,
    /// YCSB B: 95 % reads, 5 % updates.
    #[value(name = "ycsb-b")]
    YcsbB,
    /// YCSB C: reads.
    #[value(name = "ycsb-c")]
    YcsbC,
    /// YCSB D: 95 % reads of recent records, 5 % inserts.
    #[value(name = "ycsb-d")]
    YcsbD,
    /// YCSB E: 95 % scans of up to 100 records, 5 % inserts.
    #[value(name = "ycsb-e")]
    YcsbE,
    /// YCSB F: reads, and reads with an update of what was read, half each.
    #[value(name = "ycsb-f")]
    YcsbF,
    /// `fillrandom` beside a keyspace that got one record before and gets no other.
    Idlekeyspace,
    /// Every record overwritten twice while a snapshot of them is held.
    Longsnapshot,
    /// `recovery` of a log as long as 1 KiB for each of `--size`, none of it flushed, in records of 1 KiB.
    #[value(name = "recovery-1k")]
    Recovery1k,
    /// The same log in records of 100 B.
    #[value(name = "recovery-100b")]
    Recovery100,
}

/// A name on the command line: that of a workload, or if there is none of all those that begin with it
/// and a dash, as `fillsync` stands for `fillsync-1` and `fillsync-64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family(pub Vec<Workload>);

impl Family {
    /// The names of several workloads.
    const SHARED: [&str; 4] = ["fillsync", "readrandom", "seekrandom", "ycsb"];

    /// Returns the parser of names.
    pub fn parser() -> impl TypedValueParser<Value = Family> {
        let names = Workload::ALL.iter().filter_map(ValueEnum::to_possible_value);
        let shared = Family::SHARED.into_iter().map(PossibleValue::new);
        PossibleValuesParser::new(names.chain(shared)).map(|name| Family::named(&name))
    }

    fn named(name: &str) -> Family {
        if let Some(own) = Workload::ALL.into_iter().find(|own| own.name() == name) {
            return Family(vec![own]);
        }
        let is_meant = |own: &str| own.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'));
        Family(Workload::ALL.into_iter().filter(|own| is_meant(&own.name())).collect())
    }

    /// Returns the workloads of all names, each once, in the order in which they were first asked
    /// for; all of them if there is no name.
    pub fn members(families: &[Family]) -> Vec<Workload> {
        let mut members = Vec::new();
        for &workload in families.iter().flat_map(|Family(workloads)| workloads) {
            if !members.contains(&workload) {
                members.push(workload);
            }
        }
        if members.is_empty() { Workload::ALL.to_vec() } else { members }
    }
}

/// How much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Records in the database, at the end of a fill and from the start of a read.
    pub records: u64,
    /// Operations that are measured.
    pub operations: u64,
    /// Threads they come from.
    pub threads: u64,
}

impl Workload {
    /// All of them, in the order they are run by default.
    pub const ALL: [Workload; 30] = [
        Workload::Fillseq,
        Workload::Fillrandom,
        Workload::Fillsync1,
        Workload::Fillsync64,
        Workload::ReadrandomCached,
        Workload::Readrandom4x,
        Workload::Readmissing,
        Workload::SeekrandomForward,
        Workload::SeekrandomReverse,
        Workload::Recovery,
        Workload::Fillrandom1k,
        Workload::Fillrandom4k,
        Workload::Overwrite,
        Workload::ReadrandomZipf,
        Workload::Multireadrandom,
        Workload::Readwhilewriting,
        Workload::Readcompacting,
        Workload::Readmissing50x,
        Workload::Deletescan,
        Workload::Queue,
        Workload::YcsbA,
        Workload::YcsbB,
        Workload::YcsbC,
        Workload::YcsbD,
        Workload::YcsbE,
        Workload::YcsbF,
        Workload::Idlekeyspace,
        Workload::Longsnapshot,
        Workload::Recovery1k,
        Workload::Recovery100,
    ];

    /// Returns the name, as flags, table and JSON spell it.
    pub fn name(self) -> String {
        ValueEnum::to_possible_value(&self).map_or_else(String::new, |v| v.get_name().into())
    }

    /// Returns how much it does at a given `--size` and `--memory`.
    pub fn extent(self, size: u64, memory: u64) -> Extent {
        let cached = (memory / 2 / RECORD_LEN).max(1);
        let large = (memory * 4 / RECORD_LEN).max(1);
        let synced = size.div_ceil(100);
        let (records, operations, threads) = match self {
            Workload::Fillseq | Workload::Fillrandom => (size, size, 1),
            Workload::Fillsync1 => (synced, synced, 1),
            Workload::Fillsync64 => (synced.next_multiple_of(64), synced.next_multiple_of(64), 64),
            Workload::ReadrandomCached | Workload::ReadrandomZipf => (cached, size, 1),
            Workload::Readrandom4x | Workload::Readmissing => (large, size, 1),
            Workload::SeekrandomForward | Workload::SeekrandomReverse => {
                (large, size.div_ceil(20), 1)
            }
            Workload::Recovery | Workload::Recovery1k => (size, 1, 1),
            Workload::Recovery100 => (size * (KEY_LEN as u64 + 1024) / RECORD_LEN, 1, 1),
            Workload::Fillrandom1k => (size.div_ceil(4), size.div_ceil(4), 1),
            Workload::Fillrandom4k => (size.div_ceil(16), size.div_ceil(16), 1),
            Workload::Overwrite => (size.div_ceil(4), size.div_ceil(4) * 5, 1),
            Workload::Multireadrandom => (large, size.div_ceil(32), 1),
            Workload::Readmissing50x | Workload::Readcompacting => (large, size.div_ceil(4), 1),
            Workload::Readwhilewriting => (size, size.div_ceil(2), 1),
            Workload::Deletescan => (size, size.div_ceil(100), 1),
            Workload::Queue => (size.div_ceil(100), size.div_ceil(2), 1),
            Workload::YcsbA
            | Workload::YcsbB
            | Workload::YcsbC
            | Workload::YcsbD
            | Workload::YcsbF => (size.div_ceil(4), size.div_ceil(4), 1),
            Workload::YcsbE => (size.div_ceil(4), size.div_ceil(40), 1),
            Workload::Idlekeyspace => (size, size, 1),
            Workload::Longsnapshot => (size.div_ceil(2), size.div_ceil(2) * 2, 1),
        };
        Extent { records, operations, threads }
    }

    /// Returns whether it reads data that is loaded before and left as it is, so that workloads of
    /// the same extent can share it.
    pub fn reads_loaded_data(self) -> bool {
        matches!(
            self,
            Workload::ReadrandomCached
                | Workload::ReadrandomZipf
                | Workload::Readrandom4x
                | Workload::Readmissing
                | Workload::Readmissing50x
                | Workload::Multireadrandom
                | Workload::SeekrandomForward
                | Workload::SeekrandomReverse
        )
    }

    /// Returns whether what it measures is the opening of a database whose process was killed.
    pub fn recovers(self) -> bool {
        matches!(self, Workload::Recovery | Workload::Recovery1k | Workload::Recovery100)
    }

    /// Returns whether nothing is flushed before the kill, so that all records are in the log.
    pub fn fills_the_log(self) -> bool {
        matches!(self, Workload::Recovery1k | Workload::Recovery100)
    }

    /// Returns whether the process that is measured writes.
    pub fn writes(self) -> bool {
        !self.reads_loaded_data() && !self.recovers()
    }

    /// Returns the bytes of a value.
    pub fn value_len(self) -> usize {
        match self {
            Workload::Fillrandom4k => 4096,
            Workload::Fillrandom1k
            | Workload::Overwrite
            | Workload::Recovery1k
            | Workload::YcsbA
            | Workload::YcsbB
            | Workload::YcsbC
            | Workload::YcsbD
            | Workload::YcsbE
            | Workload::YcsbF => 1024,
            _ => VALUE_LEN,
        }
    }

    /// Returns the bytes that so many records have for their user.
    pub fn record_bytes(self, records: u64) -> u64 {
        records * (KEY_LEN + self.value_len()) as u64
    }

    /// Returns the budget of an engine at a given `--memory`.
    pub fn memory(self, memory: u64) -> u64 {
        match self {
            // No engine is made for less than 4 MiB.
            Workload::Readmissing50x => (memory * 4 / 50).max(4 << 20),
            _ => memory,
        }
    }

    /// Inserts a key with the value that number `n` has in this workload.
    pub fn insert(self, engine: &dyn Engine, key: &[u8; KEY_LEN], n: u64) -> Result<(), Failure> {
        let mut value = [0; 4096];
        let value = &mut value[..self.value_len()];
        data::fill(n, value);
        engine.insert(key, value)
    }

    /// Returns whether every write is on stable storage before it is answered.
    pub fn synced(self) -> bool {
        matches!(self, Workload::Fillsync1 | Workload::Fillsync64)
    }
}

/// What came of a workload.
pub struct Outcome {
    pub timings: Timings,
    /// Operations by which figures are divided, where they are not those that were timed.
    pub operations: u64,
    /// Records written by the process, where they are not those that are in the database.
    pub written: Option<u64>,
    /// Bytes on disk at a moment of interest before the engine was closed.
    pub space: Option<u64>,
    /// The 99th percentile by that of the same operations on an idle engine.
    pub p99_by_idle: Option<f64>,
}

impl Outcome {
    /// Returns that of a workload of which there is no more to say.
    pub fn of(timings: Timings) -> Outcome {
        let operations = timings.operations();
        Outcome { timings, operations, written: None, space: None, p99_by_idle: None }
    }
}

/// Writes the records of a workload that are there before its operations.
pub fn load(engine: &dyn Engine, workload: Workload, records: u64) -> Result<(), Failure> {
    engine.load(&mut (0..records).map(|n| {
        let mut value = vec![0; workload.value_len()];
        data::fill(n, &mut value);
        (data::key(n), value)
    }))
}

/// Runs one of the workloads that `child` does not run itself, on an engine in a directory.
pub fn run(
    workload: Workload,
    engine: &dyn Engine,
    dir: &Path,
    extent: Extent,
) -> Result<Outcome, Failure> {
    let run = Run { workload, engine, dir, extent };
    match workload {
        Workload::Fillrandom1k | Workload::Fillrandom4k => run.fill(),
        Workload::Overwrite => run.overwrite(),
        Workload::ReadrandomZipf => run.zipf(),
        Workload::Multireadrandom => run.batches(),
        Workload::Readwhilewriting => run.beside_writer(),
        Workload::Readcompacting => run.beside_compaction(),
        Workload::Readmissing50x => run.absent(),
        Workload::Deletescan => run.scan_over_deleted(),
        Workload::Queue => run.queue(),
        Workload::YcsbA => run.ycsb(ycsb::A),
        Workload::YcsbB => run.ycsb(ycsb::B),
        Workload::YcsbC => run.ycsb(ycsb::C),
        Workload::YcsbD => run.ycsb(ycsb::D),
        Workload::YcsbE => run.ycsb(ycsb::E),
        Workload::YcsbF => run.ycsb(ycsb::F),
        Workload::Idlekeyspace => run.beside_idle_keyspace(),
        Workload::Longsnapshot => run.under_snapshot(),
        _ => Err(format!("{} is not run here", workload.name()).into()),
    }
}

/// A workload on an engine. The modules add what is done.
struct Run<'a> {
    workload: Workload,
    engine: &'a dyn Engine,
    dir: &'a Path,
    extent: Extent,
}

impl Run<'_> {
    /// Writes the records that are there before.
    fn load(&self) -> Result<(), Failure> {
        load(self.engine, self.workload, self.extent.records)
    }

    /// Writes record `n` in its `times`-th version.
    fn write(&self, n: u64, times: u64) -> Result<(), Failure> {
        self.workload.insert(self.engine, &data::key(n), data::version(n, times))
    }

    /// Reads record `n`, which is there.
    fn find(&self, n: u64) -> Result<(), Failure> {
        match self.engine.get(&data::key(n))? {
            Some(_) => Ok(()),
            None => Err("a key that was written is missing".into()),
        }
    }

    /// Returns the record that step `n` of a thread asks for.
    fn pick(&self, thread: u64, n: u64) -> u64 {
        data::pick(thread, n, self.extent.records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines;

    #[test]
    fn a_name_means_its_workload_or_all_that_begin_with_it() {
        let members = |names: &[&str]| {
            let families: Vec<Family> = names.iter().map(|name| Family::named(name)).collect();
            Family::members(&families)
        };
        for workload in Workload::ALL {
            assert_eq!(members(&[&workload.name()]), [workload]);
        }
        for shared in Family::SHARED {
            let prefix = format!("{shared}-");
            let of_it = Workload::ALL.into_iter().filter(|own| own.name().starts_with(&prefix));
            assert_eq!(members(&[shared]), of_it.collect::<Vec<_>>());
            assert!(members(&[shared]).len() >= 2, "{shared}");
        }
        assert_eq!(
            members(&["fillrandom"]),
            [Workload::Fillrandom],
            "not those with larger values"
        );
        let asked = members(&["seekrandom", "fillseq", "seekrandom-forward"]);
        let expected =
            [Workload::SeekrandomForward, Workload::SeekrandomReverse, Workload::Fillseq];
        assert_eq!(asked, expected, "each once, in the order asked for");
        assert_eq!(members(&[]), Workload::ALL);
    }

    #[test]
    fn data_to_read_is_sized_by_the_memory_and_work_by_the_size() {
        let memory = 64 << 20;
        for workload in Workload::ALL {
            let extent = workload.extent(100_000, memory);
            assert_eq!(extent.operations % extent.threads, 0, "{workload:?}");
            if workload.reads_loaded_data() {
                let share = extent.records as f64 * RECORD_LEN as f64 / memory as f64;
                let cached = [Workload::ReadrandomCached, Workload::ReadrandomZipf];
                let expected = if cached.contains(&workload) { 0.5 } else { 4.0 };
                assert!((share - expected).abs() < 0.01, "{workload:?} reads {share}");
            }
        }
        assert_eq!(Workload::Fillsync64.extent(100_000, memory).operations, 1024);
        assert_eq!(Workload::Readrandom4x.name(), "readrandom-4x");
        let (short, long) = (Workload::Recovery100, Workload::Recovery1k);
        let log = |of: Workload| of.record_bytes(of.extent(1 << 20, memory).records) as f64;
        assert!((log(short) / log(long) - 1.0).abs() < 1e-6, "the same log in other records");
        assert_eq!(Workload::Readmissing50x.memory(memory), memory * 4 / 50);
    }

    /// Runs a workload in this process, as a child would.
    fn outcome(workload: Workload) -> Outcome {
        let dir = tempfile::tempdir().unwrap();
        let config = engines::Config {
            dir: dir.path().to_owned(),
            memory: 8 << 20,
            synced: false,
            record_cache: true,
            separate_above: crate::size::Threshold(Some(512)),
            io: engines::Io::Auto,
            direct: engines::Direct::Log,
            pool: Default::default(),
            value_len: workload.value_len(),
            unflushed: None,
        };
        let engine = engines::open(engines::Name::Atoll, &config).unwrap();
        let extent = workload.extent(2000, 64 << 10);
        if workload.reads_loaded_data() {
            load(&*engine, workload, extent.records).unwrap();
        }
        let outcome = run(workload, &*engine, dir.path(), extent).unwrap();
        engine.close().unwrap();
        outcome
    }

    #[test]
    fn every_workload_runs_to_its_end_and_counts_its_operations() {
        let in_child = [
            Workload::Fillseq,
            Workload::Fillrandom,
            Workload::Fillsync1,
            Workload::Fillsync64,
            Workload::ReadrandomCached,
            Workload::Readrandom4x,
            Workload::Readmissing,
            Workload::SeekrandomForward,
            Workload::SeekrandomReverse,
        ];
        for workload in Workload::ALL {
            if in_child.contains(&workload) || workload.recovers() {
                continue;
            }
            let outcome = outcome(workload);
            let expected = workload.extent(2000, 64 << 10).operations;
            let counted = (outcome.operations, outcome.timings.operations());
            if workload == Workload::Readcompacting {
                assert!(counted.0 >= 1 && counted.0 == counted.1, "{counted:?}");
                assert!(outcome.p99_by_idle.is_some_and(|ratio| ratio > 0.0));
            } else {
                assert_eq!(counted, (expected, expected), "{workload:?}");
            }
        }
    }

    #[test]
    fn space_is_measured_while_the_keyspace_idles_and_the_snapshot_is_held() {
        for workload in [Workload::Idlekeyspace, Workload::Longsnapshot] {
            assert!(outcome(workload).space.is_some_and(|bytes| bytes > 0), "{workload:?}");
        }
    }
}
