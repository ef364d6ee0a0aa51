//! How long operations took, what else the process did meanwhile, and a line that says how far it is.
//!
//! ```text
//!   thread 0   | op | op |  op  | ...         a histogram, the slow ones, operations by second
//!   thread 1   | op |   op   | op | ...       the same, added up in the end
//!   process    processor time, allocations and bytes read, from the common start to the last answer
//! ```
//!
//! Nothing here allocates while operations run, so that what is counted is the engine's.

use std::io::{IsTerminal, Write};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::Failure;
use crate::alloc::Counts;
use crate::process;
use crate::report::Figures;
use crate::workload::Extent;

/// An operation that takes longer is a stall.
const STALL: Duration = Duration::from_millis(100);

/// The longest time that is told apart from longer ones.
const LONGEST: Duration = Duration::from_secs(100);

/// Seconds whose operations are counted one by one; later ones count in the total only.
const SECONDS: usize = 4096;

/// What the process has used so far, or between two moments.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    counts: Counts,
    processor: Duration,
    read: u64,
}

impl Usage {
    /// Returns what the process has used since its start.
    pub fn of_process() -> Usage {
        Usage {
            counts: Counts::of_process(),
            processor: process::processor_time(),
            read: process::bytes_read().unwrap_or(0),
        }
    }

    /// Returns what it has used since an earlier moment.
    pub fn since(self, earlier: Usage) -> Usage {
        Usage {
            counts: self.counts - earlier.counts,
            processor: self.processor.saturating_sub(earlier.processor),
            read: self.read.saturating_sub(earlier.read),
        }
    }
}

/// How long operations took.
pub struct Timings {
    wall: Duration,
    /// Nanoseconds per operation.
    latency: Histogram<u32>,
    stall: Duration,
    /// Operations that ended in each second.
    seconds: Vec<u32>,
    /// What the whole process used meanwhile.
    usage: Usage,
}

impl Timings {
    /// Runs operations `(thread, n)` with `n` counting in each thread, all threads starting
    /// together.
    pub fn of(
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
            let before_all = (thread == 0).then(Usage::of_process);
            barrier.wait();
            let start = Instant::now();
            let mut before = start;
            for n in 0..per_thread {
                operation(thread, n)?;
                let after = Instant::now();
                timings.add(after - before, after - start);
                // The clock is read once per operation: its end is the next one's start.
                before = after;
                progress.step(&done, after);
            }
            timings.wall = before - start;
            timings.usage = before_all.unwrap_or_default();
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
                sum.add_seconds(&other.seconds);
            }
            sum.usage = Usage::of_process().since(sum.usage);
            Ok(sum)
        })
    }

    /// Runs operations in this thread as long as a flag says so, one at least.
    pub fn while_set(
        running: &AtomicBool,
        operation: impl Fn(u64) -> Result<(), Failure>,
    ) -> Result<Timings, Failure> {
        let mut timings = Timings::none();
        let before_all = Usage::of_process();
        let start = Instant::now();
        let mut before = start;
        for n in 0.. {
            operation(n)?;
            let after = Instant::now();
            timings.add(after - before, after - start);
            before = after;
            if !running.load(Ordering::Acquire) {
                break;
            }
        }
        timings.wall = before - start;
        timings.usage = Usage::of_process().since(before_all);
        Ok(timings)
    }

    /// Returns those of one operation that was timed elsewhere.
    pub fn single(took: Duration, usage: Usage) -> Timings {
        let mut timings = Timings::none();
        timings.add(took, took);
        Timings { wall: took, usage, ..timings }
    }

    fn none() -> Timings {
        // With fixed bounds, for a histogram that grows would allocate during the measurement.
        let latency = Histogram::new_with_bounds(1, LONGEST.as_nanos() as u64, 3)
            .expect("invariant: the bounds are in order and three digits a valid precision");
        let seconds = Vec::with_capacity(SECONDS);
        Timings {
            wall: Duration::ZERO,
            latency,
            stall: Duration::ZERO,
            seconds,
            usage: Usage::default(),
        }
    }

    fn add(&mut self, took: Duration, since_start: Duration) {
        self.latency.saturating_record(took.as_nanos() as u64);
        if took > STALL {
            self.stall += took;
        }
        let second = since_start.as_secs() as usize;
        if second < SECONDS {
            if second >= self.seconds.len() {
                self.seconds.resize(second + 1, 0);
            }
            self.seconds[second] += 1;
        }
    }

    fn add_seconds(&mut self, other: &[u32]) {
        let len = self.seconds.len().max(other.len());
        self.seconds.resize(len, 0);
        self.seconds.iter_mut().zip(other).for_each(|(own, other)| *own += other);
    }

    /// Returns how many operations were timed.
    pub fn operations(&self) -> u64 {
        self.latency.len()
    }

    /// Returns the 99th percentile of an operation's time.
    pub fn p99(&self) -> Duration {
        Duration::from_nanos(self.latency.value_at_quantile(0.99))
    }

    /// Returns the operations of the worst whole second by the mean of all time; `None` of less than
    /// two whole seconds.
    fn worst_second(&self) -> Option<f64> {
        // A second without the end of an operation may lie behind the last one that has some.
        let whole = usize::try_from(self.wall.as_secs()).ok()?.min(SECONDS);
        if whole < 2 {
            return None;
        }
        let worst = (0..whole).map(|n| self.seconds.get(n).copied().unwrap_or(0)).min()?;
        Some(f64::from(worst) * self.wall.as_secs_f64() / self.latency.len() as f64)
    }

    /// Returns the figures for so many operations (or records, where the operation is an opening).
    pub fn figures(&self, operations: u64) -> Figures {
        let us = |nanos: u64| nanos as f64 / 1000.0;
        let by_operation = |sum: f64| Some(sum / operations as f64);
        let Usage { counts, processor, read } = self.usage;
        Figures {
            ops_per_s: operations as f64 / self.wall.as_secs_f64(),
            p50_us: us(self.latency.value_at_quantile(0.5)),
            p99_us: us(self.latency.value_at_quantile(0.99)),
            p999_us: us(self.latency.value_at_quantile(0.999)),
            max_us: us(self.latency.max()),
            stall_s: self.stall.as_secs_f64(),
            cpu_us_per_op: by_operation(processor.as_secs_f64() * 1e6),
            read_bytes_per_op: by_operation(read as f64),
            worst_second: self.worst_second(),
            allocs_per_op: by_operation(counts.allocations as f64),
            alloc_bytes_per_op: by_operation(counts.bytes as f64),
            ..Figures::default()
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

    #[test]
    fn the_worst_whole_second_is_compared_with_the_mean() {
        let mut timings = Timings::none();
        let at = |millis| Duration::from_millis(millis);
        // Ten in the first second, none in the second, two in the third, one in what is no whole one.
        for n in 1..=10 {
            timings.add(at(1), at(n * 10));
        }
        for end in [2100, 2900, 3500] {
            timings.add(at(1), at(end));
        }
        timings.wall = at(1900);
        assert_eq!(timings.worst_second(), None, "one whole second is no series");
        timings.wall = at(3500);
        assert_eq!(timings.worst_second(), Some(0.0));
        timings.add_seconds(&[0, 6]);
        let worst = timings.worst_second().unwrap();
        assert!((worst - 2.0 * 3.5 / 13.0).abs() < 1e-9, "{worst}");
    }

    #[test]
    fn operations_end_when_the_flag_is_taken_back() {
        let running = AtomicBool::new(true);
        let timings = Timings::while_set(&running, |n| {
            running.store(n < 9, Ordering::Release);
            Ok(())
        })
        .unwrap();
        assert_eq!(timings.operations(), 10);
    }
}
