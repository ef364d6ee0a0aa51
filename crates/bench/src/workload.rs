//! The workloads, and how large each is.

use crate::data::RECORD_LEN;

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
    Seekrandom,
    /// A seek and 100 steps backwards, data four times the memory budget.
    #[value(name = "seekrandom-reverse")]
    SeekrandomReverse,
    /// Opening after the process was killed behind the last insert. The operation is the opening;
    /// ops/s are records opened per second.
    Recovery,
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
    pub const ALL: [Workload; 10] = [
        Workload::Fillseq,
        Workload::Fillrandom,
        Workload::Fillsync1,
        Workload::Fillsync64,
        Workload::ReadrandomCached,
        Workload::Readrandom4x,
        Workload::Readmissing,
        Workload::Seekrandom,
        Workload::SeekrandomReverse,
        Workload::Recovery,
    ];

    /// Returns the name, as flags, table and JSON spell it.
    pub fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map_or_else(String::new, |v| v.get_name().into())
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
            Workload::ReadrandomCached => (cached, size, 1),
            Workload::Readrandom4x | Workload::Readmissing => (large, size, 1),
            Workload::Seekrandom | Workload::SeekrandomReverse => (large, size.div_ceil(20), 1),
            Workload::Recovery => (size, 1, 1),
        };
        Extent { records, operations, threads }
    }

    /// Returns whether it reads data that is loaded before and left as it is, so that workloads of
    /// the same extent can share it.
    pub fn reads_loaded_data(self) -> bool {
        match self {
            Workload::Fillseq
            | Workload::Fillrandom
            | Workload::Fillsync1
            | Workload::Fillsync64
            | Workload::Recovery => false,
            Workload::ReadrandomCached
            | Workload::Readrandom4x
            | Workload::Readmissing
            | Workload::Seekrandom
            | Workload::SeekrandomReverse => true,
        }
    }

    /// Returns whether every write is on stable storage before it is answered.
    pub fn synced(self) -> bool {
        matches!(self, Workload::Fillsync1 | Workload::Fillsync64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_to_read_is_sized_by_the_memory_and_work_by_the_size() {
        let memory = 64 << 20;
        for workload in Workload::ALL {
            let extent = workload.extent(100_000, memory);
            assert_eq!(extent.operations % extent.threads, 0, "{workload:?}");
            if workload.reads_loaded_data() {
                let share = extent.records as f64 * RECORD_LEN as f64 / memory as f64;
                let expected = if workload == Workload::ReadrandomCached { 0.5 } else { 4.0 };
                assert!((share - expected).abs() < 0.01, "{workload:?} reads {share}");
            }
        }
        assert_eq!(Workload::Fillsync64.extent(100_000, memory).operations, 1024);
        assert_eq!(Workload::Readrandom4x.name(), "readrandom-4x");
    }
}
