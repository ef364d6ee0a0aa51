//! `atoll-bench`: what the engine does under load, and what its peers do under the same.
//!
//! ```text
//! cargo run --release -p atoll-bench --features peers-rust -- engine
//! cargo xtask bench-peers --quick
//! cargo run --release -p atoll-bench -- engine --workload fillrandom,readrandom-4x --memory 256MiB
//! cargo run --release -p atoll-bench --features peers-rust -- structures
//! cargo run --release -p atoll-bench -- pools
//! cargo run --release -p atoll-bench -- server --quick
//! ```
//!
//! What follows is about `engine`; `structures` compares structures in memory, `pools` the strategies of
//! the block cache and `server` the server with Redis, and they explain themselves in their modules.
//!
//! # What is compared
//!
//! Every measurement is a process of its own, inside a memory cgroup of the budget plus 64 MiB in
//! which the page cache counts too: an engine that leaves its memory to the kernel cannot borrow
//! the machine's. Where no cgroup can be made the row says `not comparable`. Engines take turns,
//! run by run and in changing order, and the run with the median rate is shown.
//!
//! ```text
//!   parent   cgroup, directory          du, table, JSON
//!      |  spawn                            ^  one line of figures
//!      +--> child   join the cgroup, open, run the workload, close, read /proc/self
//! ```
//!
//! | meaning       | atoll      | RocksDB, with and without blobs | fjall                    | redb                            | LMDB               |
//! |---------------|------------|---------------------------------|--------------------------|---------------------------------|--------------------|
//! | synced        | `Synced`   | `sync`                          | insert, `SyncData`       | one transaction, `Immediate`    | one transaction    |
//! | in the kernel | `Buffered` | the default                     | insert (journal written) | `None`, each 1000th `Immediate` | `MDB_NOSYNC`       |
//! | memory budget | all of it  | one cache, memtables in it      | half cache, half buffers | all of it is cache              | what the cgroup has |
//!
//! *In the kernel* means that the death of the process loses no acknowledged write. redb has no
//! such mode: its `None` promises less, and its rows of the unsynced workloads flatter it. LMDB's
//! survives the process, but not a power cut, after which the file may be no database; an engine with
//! a log loses the end of it then. The modules of `engines` name all settings and why.
//!
//! # Data
//!
//! Keys have 16 bytes: 8 of a hash of the record's number (uniform over the key space), then the
//! number; `fillseq` and `queue` take ascending ones. Values have 100 bytes (1 KiB in `overwrite`, YCSB
//! and where the name says so), half of them a repetition of the other half. Numbers and order derive from fixed seeds: all engines and runs get the same.
//!
//! # Columns
//!
//! - **ops/s**: operations by the time from the first to the last answer.
//! - **p50, p99, p99.9, max**: time of one operation. A seek with its 100 steps is one.
//! - **stall**: time spent in operations that took longer than 100 ms, added up over all threads.
//! - **worst s**: operations in the worst whole second by the mean; of two seconds or more.
//! - **write amp**: bytes the process caused to be written to storage, closing included, by the
//!   bytes of keys and values it was given. The log is in it. A preallocated log counts in full, which dominates a short run;
//!   work owed to later compactions is in nobody's figure.
//! - **space amp**: blocks taken by the directory after closing, by the bytes of keys and values.
//!   `idlekeyspace` and `longsnapshot` measure it before that, `deletescan` by what it deleted.
//! - **read B**: bytes read from files by an operation: by calls (page cache included), or by page
//!   faults and rings, of storage alone.
//! - **RSS**: the largest resident set of the process. Page cache is not in it unless it is mapped, as
//!   LMDB's is.
//! - **CPU us**: time on a processor by an operation, background threads and the kernel included.
//! - **allocs, alloc B**: allocations and bytes allocated while the operations ran, by operations.
//!   Background threads count; mapped memory (our memtables) and C code (zstd) do not. All engines
//!   are counted by the same allocator, which adds about 1 ns to an allocation and its release.
//! - **p99 x idle**: of `readcompacting`, the 99th percentile by that of the same reads before.
//! - **x peer**: our rate by the peer's.
//!
//! Left out: a time series. Engines in C and C++ allocate where nobody counts.

#![deny(unsafe_code)]
#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark is a shell: it measures the machine's clock, disk and threads"
)]

mod alloc;
mod cgroup;
mod child;
mod data;
mod engines;
mod heap;
mod parent;
mod pools;
mod process;
mod report;
mod server;
mod size;
mod structures;
mod timings;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use atoll_lsm::PoolStrategy;
use clap::{Args, Parser, Subcommand};

use crate::engines::{Direct, Io, Name, Switch};
use crate::workload::Family;

/// Why a benchmark could not be run, as a sentence.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Benchmarks of AtollDB.
#[derive(Parser)]
#[command(name = "atoll-bench", version = heap::VERSION)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures the storage engine and its peers.
    #[command(after_help = "\
Examples:
  atoll-bench engine --quick                           everything, small
  atoll-bench engine                                   everything, at the default size
  atoll-bench engine --workload fillrandom --size 10M  one workload, ten million records
  atoll-bench engine --workload fillsync,recovery      with 1 and 64 writers, and recovery
  atoll-bench engine --pool heap --workload readrandom the block cache in the allocator
  atoll-bench engine --io uring --peers atoll-threads  io_uring beside blocking calls
  atoll-bench engine --workload ycsb,overwrite --peers rocksdb,rocksdb-blob
  atoll-bench engine --peers fjall --runs 1 --json rows.jsonl

fjall and redb need a build with `--features peers-rust`, RocksDB and LMDB one with `--features peers`
(cargo xtask bench-peers).")]
    Engine(EngineArgs),
    /// Measures ordered structures in memory beside the engine's memtable.
    #[command(after_help = "\
Examples:
  atoll-bench structures                               a million records in each
  atoll-bench structures --entries 50k --runs 5        as many as a sorted vector is filled with

crossbeam's skip list needs a build with `--features peers-rust`.")]
    Structures(structures::Args),
    /// Measures the server beside Redis 7, under equal promises.
    #[command(after_help = "\
Examples:
  atoll-bench server --quick                           a table in about two minutes
  atoll-bench server                                   everything: about an hour
  atoll-bench server --workload get,set -P 16 -r 100k  a few rows
  atoll-bench server --cores 1,2 --durability synced   one and two serving threads
  atoll-bench server --tool own,redis-benchmark -P 16  with a second opinion
  atoll-bench server --workload restart --size 1GiB    the first reply with 1 GiB of data
  atoll-bench server --peers none --json rows.jsonl    without Redis

Needs `atoll` beside this program (cargo build --release -p atoll) and redis-server in PATH.")]
    Server(Box<server::Args>),
    /// Measures the block cache with each strategy.
    #[command(after_help = "\
Examples:
  atoll-bench pools                                    hit and eviction at a budget of 256 MiB
  atoll-bench pools --memory 1GiB --mixed              blocks of many lengths")]
    Pools(pools::Args),
    /// Runs one measurement; started by `engine`.
    #[command(hide = true)]
    Child(child::Args),
    /// Runs one measurement; started by `structures`.
    #[command(hide = true)]
    StructuresChild(structures::ChildArgs),
    /// Becomes a server; started by `server`.
    #[command(hide = true)]
    ServerExec(server::exec::Args),
}

#[derive(Args)]
struct EngineArgs {
    /// Workloads to run, all if none is named; a name without a dash means those with one too.
    #[arg(long, value_parser = Family::parser(), value_delimiter = ',', value_name = "NAME,…")]
    workload: Vec<Family>,
    /// Engines to compare with.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME,…", default_values_t = engines::peers())]
    peers: Vec<Name>,
    /// Records to write and keys to read, such as 500k or 2M; synced writes are a hundredth of it,
    /// seeks a twentieth, records of 1 KiB a quarter. Most data that is read is sized by the memory.
    #[arg(long, value_name = "SPEC", value_parser = size::count, default_value = "1M")]
    #[arg(default_value_if("quick", "true", "50k"))]
    size: u64,
    /// Memory budget of an engine, such as 64MiB or 1GiB.
    #[arg(long, value_name = "SIZE", value_parser = size::bytes, default_value = "64MiB")]
    #[arg(default_value_if("quick", "true", "16MiB"))]
    memory: u64,
    /// What carries the transfers of our engine out.
    #[arg(long, value_enum, value_name = "MODE", default_value_t = Io::Auto)]
    io: Io,
    /// What of our engine goes past the page cache.
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Direct::Log)]
    direct: Direct,
    /// Where the block cache of our engine has its memory: auto, pinned, vm or heap.
    #[arg(long, value_name = "STRATEGY", default_value = "auto")]
    pool: PoolStrategy,
    /// Whether our engine caches hot records one by one, beside blocks.
    #[arg(long, value_enum, value_name = "WHETHER", default_value_t = Switch::On)]
    record_cache: Switch,
    /// Length above which our engine keeps values in files of their own, such as 512 or 4KiB; `off` for
    /// never.
    #[arg(long, value_name = "SIZE", value_parser = size::threshold, default_value = "512")]
    separate_above: size::Threshold,
    /// Times each measurement is taken; the median is shown.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), default_value_t = 3)]
    #[arg(default_value_if("quick", "true", "1"))]
    runs: u32,
    /// Everything small, in minutes: a size of 50k, 16 MiB of memory, one run.
    #[arg(long)]
    quick: bool,
    /// Where the databases are made and removed again: choose the disk to measure.
    #[arg(long, value_name = "PATH", default_value = "atoll-bench-data")]
    dir: PathBuf,
    /// Also writes the rows to a file, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Engine(args) => parent::run(args),
        Command::Structures(args) => structures::run(args),
        Command::Pools(args) => pools::run(args),
        Command::Child(args) => child::run(args),
        Command::StructuresChild(args) => structures::run_child(args),
        Command::Server(args) => server::run(*args),
        Command::ServerExec(args) => server::exec::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("atoll-bench: {failure}");
            ExitCode::FAILURE
        }
    }
}
