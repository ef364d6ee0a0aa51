//! What is measured: flags, their defaults, and the cases that follow from them.
//!
//! A case is one row of the table for each server. Most are points of a grid (workload, key space,
//! size of values, pipeline, tool); some workloads fix a dimension, because they mean nothing at its
//! other points, and then come once. Cases of one size of values stand together, so that data is
//! loaded anew as rarely as possible.

use std::path::PathBuf;
use std::time::Duration;

use super::encode::Kind;
use super::load::Extent;
use super::subject::Durability;
use crate::size;

/// Flags of `atoll-bench server`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Ends in about two minutes: 64-byte values, 100k keys, pipelines 1 and 16, one run of a second
    /// each; other flags still win.
    #[arg(long)]
    quick: bool,
    /// Workloads, all if none is named.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME,…")]
    workload: Vec<Workload>,
    /// What an acknowledged write survives: synced is Redis's `appendfsync always`, interval its
    /// `everysec` [default: synced,interval]
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "MODE,…",
        hide_possible_values = true
    )]
    durability: Vec<Durability>,
    /// Operations a connection sends at a time [default: 1,16,64]
    #[arg(long, short = 'P', value_parser = size::count, value_delimiter = ',', value_name = "N,…")]
    pipeline: Vec<u64>,
    /// Bytes of a value [default: 64,1KiB]
    #[arg(long, short = 'd', value_parser = size::bytes, value_delimiter = ',', value_name = "SIZE,…")]
    value_size: Vec<u64>,
    /// Keys to draw from; 1 is a single key in all requests, which flatters every server
    /// [default: 1,100k]
    #[arg(long, short = 'r', value_parser = size::count, value_delimiter = ',', value_name = "N,…")]
    keyspace: Vec<u64>,
    /// Connections, each waiting for its replies before it sends again.
    #[arg(long, short = 'c', value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000), default_value_t = 50)]
    connections: u32,
    /// Serving threads of AtollDB; several are several rows.
    #[arg(long, value_delimiter = ',', value_name = "N,…", value_parser = clap::value_parser!(u32).range(1..), default_values_t = [1])]
    cores: Vec<u32>,
    /// Operations of a measurement, instead of a time.
    #[arg(long, short = 'n', value_name = "N", value_parser = size::count, conflicts_with = "seconds")]
    requests: Option<u64>,
    /// Seconds of a measurement [default: 3]
    #[arg(long, value_name = "S", value_parser = seconds)]
    seconds: Option<Duration>,
    /// Times each measurement is taken, in turns; medians are shown [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    runs: Option<u32>,
    /// Who sends the load; redis-benchmark knows set, get, incr and mset only.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME,…", default_values_t = [Tool::Own])]
    tool: Vec<Tool>,
    /// Servers to compare with.
    #[arg(long, value_enum, value_name = "NAME", default_value_t = Peers::Redis)]
    pub peers: Peers,
    /// The `atoll` program [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    pub atoll: Option<PathBuf>,
    /// The Redis server: a path, or a name in PATH.
    #[arg(long, value_name = "PATH", default_value = "redis-server")]
    pub redis: PathBuf,
    /// Redis's own load generator: a path, or a name in PATH.
    #[arg(long, value_name = "PATH", default_value = "redis-benchmark")]
    pub redis_benchmark: PathBuf,
    /// Memory of AtollDB in set-4x, whose data is four times as much [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = size::bytes)]
    memory: Option<u64>,
    /// Data of `restart`, such as 1GiB [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = size::bytes)]
    size: Option<u64>,
    /// Writes a second beside the reads of get-under-writes.
    #[arg(long, value_name = "N", value_parser = size::count, default_value = "2000")]
    write_rate: u64,
    /// Where the servers' data is made and removed again: choose the disk to measure
    /// [default: the directory for temporary files]
    #[arg(long, value_name = "PATH")]
    pub dir: Option<PathBuf>,
    /// Also writes a row for each measurement to a file, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// SET.
    Set,
    /// GET of keys that exist.
    Get,
    /// INCR of many counters.
    Incr,
    /// INCR of one counter by all connections.
    IncrOne,
    /// MSET of ten keys; an operation is ten of them.
    Mset,
    /// MULTI, five SETs, EXEC; an operation is all of it.
    Multi,
    /// GET nine times of ten, else SET; keys by Zipf's law with exponent 0.99.
    Mix,
    /// GET while other connections write at a steady rate; synced only.
    GetUnderWrites,
    /// SET over data of four times AtollDB's memory; values of 1 KiB, pipeline 16.
    #[value(name = "set-4x")]
    Set4x,
    /// A server nobody asks for anything: its start, processor and memory.
    Idle,
    /// The time to a first reply after kill -9 and after a stop in order.
    Restart,
}

impl Workload {
    const ALL: [Workload; 11] = [
        Workload::Set,
        Workload::Get,
        Workload::Incr,
        Workload::IncrOne,
        Workload::Mset,
        Workload::Multi,
        Workload::Mix,
        Workload::GetUnderWrites,
        Workload::Set4x,
        Workload::Idle,
        Workload::Restart,
    ];

    /// Returns the name, as flags, table and JSON spell it.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Set => "set",
            Workload::Get => "get",
            Workload::Incr => "incr",
            Workload::IncrOne => "incr-one",
            Workload::Mset => "mset",
            Workload::Multi => "multi",
            Workload::Mix => "mix",
            Workload::GetUnderWrites => "get-under-writes",
            Workload::Set4x => "set-4x",
            Workload::Idle => "idle",
            Workload::Restart => "restart",
        }
    }

    /// Returns what an operation is, for workloads that are loads.
    pub fn kind(self) -> Option<Kind> {
        match self {
            Workload::Set | Workload::Set4x => Some(Kind::Set),
            Workload::Get | Workload::GetUnderWrites => Some(Kind::Get),
            Workload::Incr | Workload::IncrOne => Some(Kind::Incr),
            Workload::Mset => Some(Kind::Mset),
            Workload::Multi => Some(Kind::Multi),
            Workload::Mix => Some(Kind::Mix),
            Workload::Idle | Workload::Restart => None,
        }
    }

    /// Returns what redis-benchmark calls it.
    pub fn redis_benchmark_test(self) -> Option<&'static str> {
        match self {
            Workload::Set => Some("set"),
            Workload::Get => Some("get"),
            Workload::Incr | Workload::IncrOne => Some("incr"),
            Workload::Mset => Some("mset"),
            _ => None,
        }
    }
}

/// Who sends the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Tool {
    /// This program.
    Own,
    /// Redis's own program, where it is installed.
    RedisBenchmark,
}

impl Tool {
    /// Returns the name, as flags and JSON spell it.
    pub fn name(self) -> &'static str {
        match self {
            Tool::Own => "own",
            Tool::RedisBenchmark => "redis-benchmark",
        }
    }
}

/// What is measured beside AtollDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Peers {
    /// Redis.
    Redis,
    /// Nothing.
    None,
}

/// Flags with their defaults filled in.
#[derive(Clone, Debug)]
pub struct Settings {
    /// In the order in which they run.
    pub durabilities: Vec<Durability>,
    /// Connections of a load.
    pub connections: u32,
    /// `--cores` of each AtollDB.
    pub cores: Vec<u32>,
    /// How much of a load.
    pub extent: Extent,
    /// Times each measurement is taken.
    pub runs: u32,
    /// AtollDB's memory in set-4x.
    pub memory: u64,
    /// Data of `restart`.
    pub size: u64,
    /// Writes a second in get-under-writes.
    pub write_rate: u64,
    workloads: Vec<Workload>,
    pipelines: Vec<u64>,
    value_sizes: Vec<u64>,
    keyspaces: Vec<u64>,
    tools: Vec<Tool>,
}

/// One row for each server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// What clients do.
    pub workload: Workload,
    /// What the servers promise.
    pub durability: Durability,
    /// Who sends the load.
    pub tool: Tool,
    /// Keys to draw from.
    pub keyspace: u64,
    /// Bytes of a value.
    pub value_size: u64,
    /// Operations a connection sends at a time; 0 where there are none.
    pub pipeline: u64,
}

/// Bytes of a value where a workload fixes it.
const LARGE_VALUE: u64 = 1 << 10;
/// Bytes a record of such a value has for its user.
const LARGE_RECORD: u64 = LARGE_VALUE + 16;

impl Args {
    /// Fills in the defaults.
    pub fn settings(&self) -> Settings {
        fn or<T: Clone>(given: &[T], default: &[T]) -> Vec<T> {
            if given.is_empty() { default.to_vec() } else { given.to_vec() }
        }
        let quick = self.quick;
        let (runs, seconds, bytes) = if quick { (1, 1, 32 << 20) } else { (3, 3, 64 << 20) };
        let (pipelines, value_sizes, keyspaces): (&[u64], &[u64], &[u64]) = match quick {
            true => (&[1, 16], &[64], &[100_000]),
            false => (&[1, 16, 64], &[64, 1 << 10], &[1, 100_000]),
        };
        Settings {
            durabilities: or(&self.durability, &[Durability::Synced, Durability::Interval]),
            connections: self.connections,
            cores: self.cores.clone(),
            extent: match self.requests {
                Some(requests) => Extent::Operations(requests),
                None => Extent::Time(self.seconds.unwrap_or(Duration::from_secs(seconds))),
            },
            runs: self.runs.unwrap_or(runs),
            memory: self.memory.unwrap_or(bytes),
            size: self.size.unwrap_or(bytes),
            write_rate: self.write_rate,
            workloads: or(&self.workload, &Workload::ALL),
            pipelines: or(&self.pipeline, pipelines),
            value_sizes: or(&self.value_size, value_sizes),
            keyspaces: or(&self.keyspace, keyspaces),
            tools: self.tool.clone(),
        }
    }
}

impl Settings {
    /// Returns whether redis-benchmark is to be run.
    pub fn uses_redis_benchmark(&self) -> bool {
        self.tools.contains(&Tool::RedisBenchmark)
    }

    /// Returns the cases of a durability, each once, in the order in which they run.
    pub fn cases(&self, durability: Durability) -> Vec<Case> {
        let mut cases = Vec::new();
        let mut add = |case: Case| {
            if !cases.contains(&case) {
                cases.push(case);
            }
        };
        for &value_size in &self.value_sizes {
            for &workload in &self.workloads {
                for case in self.of_grid(workload, durability, value_size) {
                    add(case);
                }
            }
        }
        for &workload in &self.workloads {
            let data = match workload {
                Workload::Set4x => 4 * self.memory,
                Workload::Restart => self.size,
                // What an idle server costs has nothing to do with what it would promise.
                Workload::Idle if Some(&durability) == self.durabilities.first() => 0,
                _ => continue,
            };
            add(Case {
                workload,
                durability,
                tool: Tool::Own,
                keyspace: data / LARGE_RECORD,
                value_size: if data == 0 { 0 } else { LARGE_VALUE },
                pipeline: if workload == Workload::Set4x { 16 } else { 0 },
            });
        }
        cases
    }

    fn of_grid(&self, workload: Workload, durability: Durability, value_size: u64) -> Vec<Case> {
        let mut keyspaces = self.keyspaces.clone();
        let mut pipelines = self.pipelines.clone();
        // Zero stands for "no value" in the row.
        let mut value_size = value_size;
        match workload {
            Workload::Set | Workload::Get | Workload::Mset | Workload::Multi => {}
            Workload::Incr => {
                keyspaces.retain(|&keys| keys > 1);
                value_size = 0;
            }
            Workload::IncrOne => {
                keyspaces = vec![1];
                value_size = 0;
            }
            Workload::Mix => keyspaces.retain(|&keys| keys > 1),
            Workload::GetUnderWrites if durability == Durability::Synced => {
                keyspaces.retain(|&keys| keys > 1);
                pipelines = vec![1];
            }
            _ => return Vec::new(),
        }
        let mut cases = Vec::new();
        for &keyspace in &keyspaces {
            for &pipeline in &pipelines {
                for &tool in &self.tools {
                    if tool == Tool::Own || workload.redis_benchmark_test().is_some() {
                        let case =
                            Case { workload, durability, tool, keyspace, value_size, pipeline };
                        cases.push(case);
                    }
                }
            }
        }
        cases
    }
}

/// Parses seconds: `3`, `0.5`.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds
        .filter(|time| !time.is_zero() && time.as_secs() < 100_000)
        .ok_or_else(|| format!("'{text}' is no time; write 3 or 0.5"))
}

#[cfg(test)]
mod tests {
    use super::*;

    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parsed(flags: &str) -> Result<Settings, String> {
        let words = ["server"].into_iter().chain(flags.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.args.settings()).map_err(|e| e.to_string())
    }

    fn names(settings: &Settings, durability: Durability) -> Vec<String> {
        let name = |case: &Case| {
            let Case { workload, keyspace, value_size, pipeline, tool, .. } = case;
            format!("{} {keyspace} {value_size} {pipeline} {}", workload.name(), tool.name())
        };
        settings.cases(durability).iter().map(name).collect()
    }

    #[test]
    fn defaults_measure_everything_and_quick_less_of_it() {
        let (all, quick) = (parsed("").unwrap(), parsed("--quick").unwrap());
        for settings in [&all, &quick] {
            let cases = settings.cases(Durability::Synced);
            for workload in Workload::ALL {
                assert!(cases.iter().any(|case| case.workload == workload), "{workload:?}");
            }
        }
        assert_eq!((all.runs, all.extent), (3, Extent::Time(Duration::from_secs(3))));
        assert_eq!((quick.runs, quick.extent), (1, Extent::Time(Duration::from_secs(1))));
        let cases = all.cases(Durability::Interval);
        assert!(cases.iter().all(|case| case.workload != Workload::GetUnderWrites));
        assert!(cases.iter().all(|case| case.workload != Workload::Idle));
        assert!(quick.cases(Durability::Synced).len() < 22);
    }

    #[test]
    fn flags_win_over_presets() {
        let settings = parsed(
            "--quick --workload set,incr,incr-one --pipeline 4,8 --keyspace 1,2k -d 1KiB --runs 5 \
             --requests 10k --cores 1,2 --durability interval",
        )
        .unwrap();
        assert_eq!(settings.extent, Extent::Operations(10_000));
        assert_eq!((settings.runs, &settings.cores[..]), (5, &[1, 2][..]));
        assert_eq!(settings.durabilities, [Durability::Interval]);
        assert_eq!(
            names(&settings, Durability::Interval),
            [
                "set 1 1024 4 own",
                "set 1 1024 8 own",
                "set 2000 1024 4 own",
                "set 2000 1024 8 own",
                "incr 2000 0 4 own",
                "incr 2000 0 8 own",
                "incr-one 1 0 4 own",
                "incr-one 1 0 8 own",
            ]
        );
    }

    #[test]
    fn a_dimension_that_means_nothing_is_not_repeated() {
        let incr = parsed("--workload incr-one -P 16 -d 64,1KiB").unwrap();
        assert_eq!(names(&incr, Durability::Synced), ["incr-one 1 0 16 own"]);
        let reads = parsed("--workload get-under-writes -d 64 -r 1,10").unwrap();
        assert_eq!(names(&reads, Durability::Synced), ["get-under-writes 10 64 1 own"]);
        assert!(reads.cases(Durability::Interval).is_empty());
        let large = parsed("--workload set-4x --memory 26MiB").unwrap();
        assert_eq!(names(&large, Durability::Synced), ["set-4x 104857 1024 16 own"]);
    }

    #[test]
    fn redis_benchmark_measures_what_it_knows() {
        let flags = "--workload set,multi -P 1 -d 64 -r 10 --tool own,redis-benchmark";
        let settings = parsed(flags).unwrap();
        assert!(settings.uses_redis_benchmark());
        assert_eq!(
            names(&settings, Durability::Synced),
            ["set 10 64 1 own", "set 10 64 1 redis-benchmark", "multi 10 64 1 own"]
        );
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for (flags, reason) in [
            ("--seconds 0", "is no time"),
            ("--seconds 1 --requests 5", "cannot be used with"),
            ("--workload sets", "set"),
            ("--runs 0", "0"),
            ("--pipeline 0", "is no count"),
            ("--durability always", "synced"),
        ] {
            let error = parsed(flags).unwrap_err();
            assert!(error.contains(reason), "{flags}: {error}");
        }
    }
}
