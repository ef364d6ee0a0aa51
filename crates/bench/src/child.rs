//! One measurement: joins its cgroup, opens an engine, works, and prints a line of figures.

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::process::{Signal, getpid, kill_process, set_parent_process_death_signal};

use crate::Failure;
use crate::alloc::Counts;
use crate::data;
use crate::engines::{self, Config, Direct, Direction, Engine, Io, Name};
use crate::process;
use crate::report::Figures;
use crate::workload::{Extent, Workload};

/// An operation that takes longer is a stall.
const STALL: Duration = Duration::from_millis(100);

/// The longest time that is told apart from longer ones.
const LONGEST: Duration = Duration::from_secs(100);

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
    let extent = args.workload.extent(args.size, args.memory);
    let config = Config {
        dir: args.dir.clone(),
        memory: args.memory,
        synced: args.workload.synced() && args.phase == Phase::Measure,
        io: args.io,
        direct: args.direct,
    };
    match args.phase {
        Phase::Load => {
            let engine = engines::open(args.engine, &config)?;
            load(&*engine, extent)?;
            engine.close()
        }
        Phase::Die => {
            let engine = engines::open(args.engine, &config)?;
            // One by one, as a client's writes would lie in the log.
            let all = Extent { operations: extent.records, ..extent };
            Timings::of(all, |_, n| engine.insert(&data::key(n), &data::value(n)))?;
            Ok(kill_process(getpid(), Signal::KILL)?)
        }
        Phase::Measure => {
            let figures = measure(&args, &config, extent)?;
            println!("{}", figures.to_line());
            Ok(())
        }
    }
}

fn load(engine: &dyn Engine, extent: Extent) -> Result<(), Failure> {
    engine.load(&mut (0..extent.records).map(|n| (data::key(n), data::value(n))))
}

fn measure(args: &Args, config: &Config, extent: Extent) -> Result<Figures, Failure> {
    let before = Counts::of_process();
    let started = Instant::now();
    let engine = engines::open(args.engine, config)?;
    let opened = started.elapsed();
    let opening = Counts::of_process() - before;
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
        Workload::Recovery => {
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
            Timings::single(opened, opening)
        }
    };
    engine.close()?;

    let user_bytes = (records * data::RECORD_LEN) as f64;
    let wrote = !args.workload.reads_loaded_data() && args.workload != Workload::Recovery;
    let operations = if args.workload == Workload::Recovery { records } else { extent.operations };
    let mut figures = timings.figures(operations);
    // Where the kernel counts no bytes (a file system in memory), there is nothing to divide.
    let written = process::bytes_written().filter(|&bytes| wrote && bytes > 0);
    figures.write_amp = written.map(|bytes| bytes as f64 / user_bytes);
    figures.peak_rss_mib = process::peak_resident().map(|bytes| bytes as f64 / f64::from(1 << 20));
    Ok(figures)
}

/// How long operations took.
struct Timings {
    wall: Duration,
    /// Nanoseconds per operation.
    latency: Histogram<u32>,
    stall: Duration,
    /// What the whole process allocated meanwhile.
    counts: Counts,
}

impl Timings {
    /// Runs operations `(thread, n)` with `n` counting in each thread, all threads starting
    /// together.
    fn of(
        extent: Extent,
        operation: impl Fn(u64, u64) -> Result<(), Failure> + Sync,
    ) -> Result<Timings, Failure> {
        let per_thread = extent.operations / extent.threads;
        let done = AtomicU64::new(0);
        let barrier = Barrier::new(extent.threads as usize);
        let one = |thread: u64| -> Result<Timings, Failure> {
            let mut timings = Timings::none();
            let mut progress = Progress::new(extent.operations, thread == 0);
            // Between the two barriers every thread is there and none allocates.
            barrier.wait();
            let before_all = (thread == 0).then(Counts::of_process);
            barrier.wait();
            let start = Instant::now();
            let mut before = start;
            for n in 0..per_thread {
                operation(thread, n)?;
                let after = Instant::now();
                timings.add(after - before);
                // The clock is read once per operation: its end is the next one's start.
                before = after;
                progress.step(&done, after);
            }
            timings.wall = before - start;
            timings.counts = before_all.unwrap_or_default();
            Ok(timings)
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..extent.threads)
                .map(|thread| scope.spawn(move || one_of(&one, thread)))
                .collect();
            let mut sum = one(0)?;
            for other in others {
                let other = other.join().map_err(|_| "a benchmark thread panicked")??;
                sum.wall = sum.wall.max(other.wall);
                sum.stall += other.stall;
                sum.latency.add(&other.latency)?;
            }
            sum.counts = Counts::of_process() - sum.counts;
            Ok(sum)
        })
    }

    fn single(took: Duration, counts: Counts) -> Timings {
        let mut timings = Timings::none();
        timings.add(took);
        Timings { wall: took, counts, ..timings }
    }

    fn none() -> Timings {
        // With fixed bounds, for a histogram that grows would allocate during the measurement.
        let latency = Histogram::new_with_bounds(1, LONGEST.as_nanos() as u64, 3)
            .expect("invariant: the bounds are in order and three digits a valid precision");
        Timings { wall: Duration::ZERO, latency, stall: Duration::ZERO, counts: Counts::default() }
    }

    fn add(&mut self, took: Duration) {
        self.latency.saturating_record(took.as_nanos() as u64);
        if took > STALL {
            self.stall += took;
        }
    }

    fn figures(&self, operations: u64) -> Figures {
        let us = |nanos: u64| nanos as f64 / 1000.0;
        Figures {
            ops_per_s: operations as f64 / self.wall.as_secs_f64(),
            p50_us: us(self.latency.value_at_quantile(0.5)),
            p99_us: us(self.latency.value_at_quantile(0.99)),
            p999_us: us(self.latency.value_at_quantile(0.999)),
            max_us: us(self.latency.max()),
            stall_s: self.stall.as_secs_f64(),
            write_amp: None,
            space_amp: None,
            peak_rss_mib: None,
            allocs_per_op: Some(self.counts.allocations as f64 / operations as f64),
            alloc_bytes_per_op: Some(self.counts.bytes as f64 / operations as f64),
        }
    }
}

/// Lends a closure to a thread.
fn one_of<T>(one: &(impl Fn(u64) -> T + Sync), thread: u64) -> T {
    one(thread)
}

/// A line on a terminal that says how far the work is, once a second.
struct Progress {
    total: u64,
    shown: bool,
    counted: u64,
    next: Instant,
}

impl Progress {
    /// Operations between two looks at the shared counter.
    const STRIDE: u64 = 256;

    fn new(total: u64, first: bool) -> Progress {
        let shown = first && std::io::stderr().is_terminal();
        Progress { total, shown, counted: 0, next: Instant::now() + Duration::from_secs(1) }
    }

    fn step(&mut self, done: &AtomicU64, now: Instant) {
        self.counted += 1;
        if !self.counted.is_multiple_of(Self::STRIDE) {
            return;
        }
        let done = done.fetch_add(Self::STRIDE, Ordering::Relaxed) + Self::STRIDE;
        if self.shown && now >= self.next {
            self.next = now + Duration::from_secs(1);
            eprint!("\r    {:3} %\r", done * 100 / self.total);
            // A progress line that cannot be written is no reason to stop.
            let _ = std::io::stderr().flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_of_all_threads_are_counted_and_slow_ones_are_stalls() {
        let extent = Extent { records: 1, operations: 12, threads: 4 };
        let slow = Duration::from_millis(120);
        let calls = AtomicU64::new(0);
        let timings = Timings::of(extent, |thread, n| {
            calls.fetch_add(1, Ordering::Relaxed);
            if (thread, n) == (2, 1) {
                std::thread::sleep(slow);
            }
            Ok(())
        })
        .unwrap();
        assert_eq!((calls.into_inner(), timings.latency.len()), (12, 12));
        assert!(timings.stall >= slow && timings.wall >= slow);
        let figures = timings.figures(12);
        assert!(figures.max_us >= 120_000.0, "{figures:?}");
        assert!(figures.ops_per_s <= 100.0, "{figures:?}");
    }

    #[test]
    fn allocations_of_all_threads_are_counted_by_operation() {
        let extent = Extent { records: 1, operations: 200_000, threads: 4 };
        let timings = Timings::of(extent, |_, _| {
            drop(std::hint::black_box(Box::new([1_u8; 100])));
            Ok(())
        })
        .unwrap();
        let figures = timings.figures(extent.operations);
        // Other tests run in this process. What they allocate meanwhile is little beside it.
        let (allocs, bytes) = (figures.allocs_per_op.unwrap(), figures.alloc_bytes_per_op.unwrap());
        assert!((1.0..1.9).contains(&allocs), "{allocs} allocations an operation");
        assert!((100.0..190.0).contains(&bytes), "{bytes} bytes an operation");
    }

    #[test]
    fn a_failed_operation_ends_the_measurement() {
        let extent = Extent { records: 1, operations: 8, threads: 2 };
        let outcome = Timings::of(extent, |thread, _| match thread {
            1 => Err("refused".into()),
            _ => Ok(()),
        });
        assert_eq!(outcome.err().map(|e| e.to_string()).as_deref(), Some("refused"));
    }
}
