//! The workloads, what their names on the command line mean, and how large each is.

use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

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
    #[value(name = "seekrandom-forward")]
    SeekrandomForward,
    /// A seek and 100 steps backwards, data four times the memory budget.
    #[value(name = "seekrandom-reverse")]
    SeekrandomReverse,
    /// Opening after the process was killed behind the last insert. The operation is the opening;
    /// ops/s are records opened per second.
    Recovery,
}

/// A name on the command line: that of a workload, or of all those that begin with it and a dash, as
/// `fillsync` stands for `fillsync-1` and `fillsync-64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family(pub Vec<Workload>);

impl Family {
    /// The names of several workloads.
    const SHARED: [&str; 3] = ["fillsync", "readrandom", "seekrandom"];

    /// Returns the parser of names.
    pub fn parser() -> impl TypedValueParser<Value = Family> {
        let names = Workload::ALL.iter().filter_map(ValueEnum::to_possible_value);
        let shared = Family::SHARED.into_iter().map(PossibleValue::new);
        PossibleValuesParser::new(names.chain(shared)).map(|name| Family::named(&name))
    }

    fn named(name: &str) -> Family {
        let is_meant = |own: &str| {
            own.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
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
    pub const ALL: [Workload; 10] = [
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
            Workload::ReadrandomCached => (cached, size, 1),
            Workload::Readrandom4x | Workload::Readmissing => (large, size, 1),
            Workload::SeekrandomForward | Workload::SeekrandomReverse => {
                (large, size.div_ceil(20), 1)
            }
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
            | Workload::SeekrandomForward
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
    fn a_name_means_its_workload_or_all_that_begin_with_it() {
        let members = |names: &[&str]| {
            let families: Vec<Family> = names.iter().map(|name| Family::named(name)).collect();
            Family::members(&families)
        };
        for workload in Workload::ALL {
            assert_eq!(members(&[&workload.name()]), [workload]);
        }
        for shared in Family::SHARED {
            assert_eq!(members(&[shared]).len(), 2, "{shared}");
        }
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
                let expected = if workload == Workload::ReadrandomCached { 0.5 } else { 4.0 };
                assert!((share - expected).abs() < 0.01, "{workload:?} reads {share}");
            }
        }
        assert_eq!(Workload::Fillsync64.extent(100_000, memory).operations, 1024);
        assert_eq!(Workload::Readrandom4x.name(), "readrandom-4x");
    }
}
