//! One measurement: joins its cgroup, opens an engine, works, and prints a line of figures.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use rustix::process::{Signal, getpid, kill_process, set_parent_process_death_signal};

use atoll_lsm::PoolStrategy;

use crate::Failure;
use crate::data;
use crate::engines::{self, Config, Direct, Direction, Engine, Io, Name, Switch};
use crate::process;
use crate::report::Figures;
use crate::size;
use crate::timings::{Timings, Usage};
use crate::workload::{self, Extent, Outcome, Workload};

/// What a line begins with in which a child tells its parent why it failed.
pub const FAILURE: &str = "failure ";

/// Steps of a scan after its seek.
const SCAN_STEPS: usize = 100;

/// What the parent asks for.
#[derive(clap::Args)]
pub struct Args {
    #[arg(long, value_enum)]
    engine: Name,
    #[arg(long, value_enum)]
    workload: Workload,
    #[arg(long, value_enum)]
    phase: Phase,
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    memory: u64,
    #[arg(long)]
    size: u64,
    #[arg(long, value_enum)]
    io: Io,
    #[arg(long, value_enum)]
    direct: Direct,
    #[arg(long)]
    pool: PoolStrategy,
    #[arg(long, value_enum)]
    record_cache: Switch,
    #[arg(long, value_parser = size::threshold)]
    separate_above: size::Threshold,
    /// Where to write the process's id before anything else.
    #[arg(long)]
    join: Option<PathBuf>,
}

/// What a child does before it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Phase {
    /// Writes the records that a later child reads, and closes.
    Load,
    /// Writes the records and kills itself.
    Die,
    /// Runs the workload and prints its figures.
    Measure,
}

impl Phase {
    /// Returns the word that asks for it.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Load => "load",
            Phase::Die => "die",
            Phase::Measure => "measure",
        }
    }
}

/// Runs the child.
pub fn run(args: Args) -> Result<(), Failure> {
    // Nobody is left to read the figures or to stop this process when the parent has ended.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if let Some(processes) = &args.join {
        fs::write(processes, std::process::id().to_string())
            .map_err(|e| format!("joining the cgroup by {}: {e}", processes.display()))?;
    }
    let done = run_phase(&args);
    if let Err(reason) = &done {
        println!("{FAILURE}{reason}");
    }
    done
}

fn run_phase(args: &Args) -> Result<(), Failure> {
    let extent = args.workload.extent(args.size, args.memory);
    let config = Config {
        dir: args.dir.clone(),
        memory: args.workload.memory(args.memory),
        synced: args.workload.synced() && args.phase == Phase::Measure,
        io: args.io,
        direct: args.direct,
        pool: args.pool,
        record_cache: args.record_cache == Switch::On,
        separate_above: args.separate_above,
        value_len: args.workload.value_len(),
        unflushed: (args.phase == Phase::Die && args.workload.fills_the_log())
            .then(|| args.workload.record_bytes(extent.records)),
    };
    match args.phase {
        Phase::Load => {
            let engine = engines::open(args.engine, &config)?;
            workload::load(&*engine, args.workload, extent.records)?;
            engine.close()
        }
        Phase::Die => {
            let engine = engines::open(args.engine, &config)?;
            // One by one, as a client's writes would lie in the log.
            let all = Extent { operations: extent.records, ..extent };
            Timings::of(all, |_, n| args.workload.insert(&*engine, &data::key(n), n))?;
            Ok(kill_process(getpid(), Signal::KILL)?)
        }
        Phase::Measure => {
            let figures = measure(args, &config, extent)?;
            println!("{}", figures.to_line());
            Ok(())
        }
    }
}

fn measure(args: &Args, config: &Config, extent: Extent) -> Result<Figures, Failure> {
    let before = Usage::of_process();
    let started = Instant::now();
    let engine = engines::open(args.engine, config)?;
    let opened = started.elapsed();
    let opening = Usage::of_process().since(before);
    let records = extent.records;
    let per_thread = extent.operations / extent.threads;
    let picked = |thread, n| data::key(data::pick(thread, n, records));
    let found = |key: &[u8]| match engine.get(key)? {
        Some(_) => Ok(()),
        None => Err(Failure::from("a key that was written is missing")),
    };
    let scan =
        |thread, n, direction| engine.scan(&picked(thread, n), direction, SCAN_STEPS + 1).map(drop);

    let timings = match args.workload {
        Workload::Fillseq => {
            Timings::of(extent, |_, n| engine.insert(&data::ascending_key(n), &data::value(n)))?
        }
        Workload::Fillrandom | Workload::Fillsync1 | Workload::Fillsync64 => {
            Timings::of(extent, |thread, n| {
                let n = thread * per_thread + n;
                engine.insert(&data::key(n), &data::value(n))
            })?
        }
        Workload::ReadrandomCached => {
            // Every block is asked for before the clock starts.
            Timings::of(Extent { operations: records, ..extent }, |_, n| found(&data::key(n)))?;
            Timings::of(extent, |thread, n| found(&picked(thread, n)))?
        }
        Workload::Readrandom4x => {
            // A quarter as many reads fill the cache with what stays in it.
            let operations = extent.operations.div_ceil(4);
            Timings::of(Extent { operations, ..extent }, |_, n| found(&picked(u64::MAX - 1, n)))?;
            Timings::of(extent, |thread, n| found(&picked(thread, n)))?
        }
        Workload::Readmissing => Timings::of(extent, |thread, n| {
            match engine.get(&data::absent_key(data::pick(thread, n, records)))? {
                Some(_) => Err("a key that was never written is there".into()),
                None => Ok(()),
            }
        })?,
        Workload::SeekrandomForward => Timings::of(extent, |t, n| scan(t, n, Direction::Forward))?,
        Workload::SeekrandomReverse => Timings::of(extent, |t, n| scan(t, n, Direction::Reverse))?,
        Workload::Recovery | Workload::Recovery1k | Workload::Recovery100 => {
            let mut missing = 0;
            for n in 0..1000 {
                missing += u32::from(engine.get(&picked(0, n))?.is_none());
            }
            if missing > 0 {
                eprintln!(
                    "    {}: {missing} of 1000 acknowledged records are gone after the kill",
                    args.engine.name()
                );
            }
            // What is opened are the records.
            let timings = Timings::single(opened, opening);
            return finish(args, engine, Outcome { operations: records, ..Outcome::of(timings) });
        }
        other => {
            return workload::run(other, &*engine, &args.dir, extent)
                .and_then(|outcome| finish(args, engine, outcome));
        }
    };
    finish(args, engine, Outcome::of(timings))
}

/// Closes the engine and gathers what the process as a whole has to say.
fn finish(args: &Args, engine: Box<dyn Engine>, outcome: Outcome) -> Result<Figures, Failure> {
    engine.close()?;
    let mut figures = outcome.timings.figures(outcome.operations);
    let records = args.workload.extent(args.size, args.memory).records;
    // Where the kernel counts no bytes (a file system in memory), there is nothing to divide.
    let written = process::bytes_written().filter(|&bytes| args.workload.writes() && bytes > 0);
    let user_bytes = args.workload.record_bytes(outcome.written.unwrap_or(records)) as f64;
    figures.write_amp = written.map(|bytes| bytes as f64 / user_bytes);
    let live_bytes = args.workload.record_bytes(records) as f64;
    figures.space_amp = outcome.space.map(|bytes| bytes as f64 / live_bytes);
    figures.p99_by_idle = outcome.p99_by_idle;
    figures.peak_rss_mib = process::peak_resident().map(|bytes| bytes as f64 / f64::from(1 << 20));
    Ok(figures)
}
