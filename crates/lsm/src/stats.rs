//! What the engine did: counters and latency histograms.
//!
//! Two looks at the clock cost as much as a tenth of a read from memory. So reads, steps of scans and
//! commits are counted all and timed one in [`SAMPLED`]; syncs, flushes and merges are timed all.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atoll_env::{Clock, Instant};
use hdrhistogram::Histogram;
use parking_lot::Mutex;

use crate::error::Error;
use crate::pool::{Placement, PoolStats};
use crate::records::RecordStats;
use crate::version::LEVELS;

/// One in so many short operations is timed: the first, and each that comes so many later.
const SAMPLED: u64 = 64;

/// Counters and histograms as the engine keeps them.
pub(crate) struct Recorder {
    batches: AtomicU64,
    batch_bytes: AtomicU64,
    syncs: Mutex<Histogram<u64>>,
    flushes: Mutex<Histogram<u64>>,
    flushed_bytes: AtomicU64,
    compactions: Mutex<Histogram<u64>>,
    compaction_read: AtomicU64,
    compaction_written: AtomicU64,
    values_written: AtomicU64,
    values_moved: AtomicU64,
    scrubbed_bytes: AtomicU64,
    scrub_problems: AtomicU64,
    stalls: AtomicU64,
    stall_micros: AtomicU64,
    delay_micros: AtomicU64,
    gets: AtomicU64,
    get_nanos: Mutex<Histogram<u64>>,
    scans: AtomicU64,
    seek_nanos: Mutex<Histogram<u64>>,
    step_nanos: Mutex<Histogram<u64>>,
    commits: AtomicU64,
    commit_nanos: Mutex<Histogram<u64>>,
    callback_failures: AtomicU64,
    callback_failure: Mutex<Option<String>>,
}

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder {
            batches: AtomicU64::new(0),
            batch_bytes: AtomicU64::new(0),
            syncs: Mutex::new(micros()),
            flushes: Mutex::new(micros()),
            flushed_bytes: AtomicU64::new(0),
            compactions: Mutex::new(micros()),
            compaction_read: AtomicU64::new(0),
            compaction_written: AtomicU64::new(0),
            values_written: AtomicU64::new(0),
            values_moved: AtomicU64::new(0),
            scrubbed_bytes: AtomicU64::new(0),
            scrub_problems: AtomicU64::new(0),
            stalls: AtomicU64::new(0),
            stall_micros: AtomicU64::new(0),
            delay_micros: AtomicU64::new(0),
            gets: AtomicU64::new(0),
            get_nanos: Mutex::new(nanos()),
            scans: AtomicU64::new(0),
            seek_nanos: Mutex::new(nanos()),
            step_nanos: Mutex::new(nanos()),
            commits: AtomicU64::new(0),
            commit_nanos: Mutex::new(nanos()),
            callback_failures: AtomicU64::new(0),
            callback_failure: Mutex::new(None),
        }
    }
}

/// A histogram of microseconds up to ten minutes, to two digits.
fn micros() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 2).expect("constant bounds")
}

/// A histogram of nanoseconds up to ten minutes, to two digits.
fn nanos() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000_000, 2).expect("constant bounds")
}

/// Times what it lives for.
pub(crate) struct Timer<'s> {
    clock: &'s dyn Clock,
    histogram: &'s Mutex<Histogram<u64>>,
    since: Instant,
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        record_nanos(self.histogram, self.clock.now().since(self.since));
    }
}

fn record_nanos(histogram: &Mutex<Histogram<u64>>, took: Duration) {
    histogram.lock().saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1));
}

fn record(histogram: &Mutex<Histogram<u64>>, took: Duration) {
    histogram.lock().saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1));
}

/// Returns a timer for operation number `n`, if it is one to be timed.
fn sample<'s>(
    n: u64,
    histogram: &'s Mutex<Histogram<u64>>,
    clock: &'s dyn Clock,
) -> Option<Timer<'s>> {
    n.is_multiple_of(SAMPLED).then(|| Timer { clock, histogram, since: clock.now() })
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Recorder {
    pub(crate) fn wrote(&self, bytes: usize) {
        add(&self.batches, 1);
        add(&self.batch_bytes, bytes as u64);
    }
    /// Counts a point read; returns whether it is to be timed.
    #[inline]
    pub(crate) fn times_read(&self) -> bool {
        self.gets.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLED)
    }
    /// Counts a commit. What is returned, if it is one to be timed, is to be kept to its end.
    #[must_use]
    pub(crate) fn commit<'s>(&'s self, clock: &'s dyn Clock) -> Option<Timer<'s>> {
        sample(self.commits.fetch_add(1, Ordering::Relaxed), &self.commit_nanos, clock)
    }
    /// Counts a scan at its step 0; returns whether the step is to be timed.
    #[inline]
    pub(crate) fn times_step(&self, step: u64) -> bool {
        let n = if step == 0 { self.scans.fetch_add(1, Ordering::Relaxed) } else { step };
        n.is_multiple_of(SAMPLED)
    }
    pub(crate) fn stepped(&self, step: u64, took: Duration) {
        let histogram = if step == 0 { &self.seek_nanos } else { &self.step_nanos };
        record_nanos(histogram, took);
    }
    /// Counts a table that a scrub read.
    pub(crate) fn scrubbed(&self, bytes: u64, problem: bool) {
        add(&self.scrubbed_bytes, bytes);
        add(&self.scrub_problems, u64::from(problem));
    }
    pub(crate) fn synced(&self, took: Duration) {
        record(&self.syncs, took);
    }
    pub(crate) fn flushed(&self, bytes: u64, took: Duration) {
        add(&self.flushed_bytes, bytes);
        record(&self.flushes, took);
    }
    pub(crate) fn compacted(&self, read: u64, written: u64, took: Duration) {
        add(&self.compaction_read, read);
        add(&self.compaction_written, written);
        record(&self.compactions, took);
    }
    /// Counts bytes written to value files, and of these those that were in another one before.
    pub(crate) fn wrote_values(&self, written: u64, moved: u64) {
        add(&self.values_written, written);
        add(&self.values_moved, moved);
    }
    pub(crate) fn stalled(&self, took: Duration) {
        add(&self.stalls, 1);
        add(&self.stall_micros, took.as_micros() as u64);
    }
    pub(crate) fn delayed(&self, took: Duration) {
        add(&self.delay_micros, took.as_micros() as u64);
    }

    /// Takes in how long a read took that was timed.
    pub(crate) fn read_took(&self, took: Duration) {
        record_nanos(&self.get_nanos, took);
    }

    /// Notes that a merge operator or a compaction filter did not answer background work.
    pub(crate) fn callback_failed(&self, why: &Error) {
        add(&self.callback_failures, 1);
        *self.callback_failure.lock() = Some(why.to_string());
    }

    pub(crate) fn snapshot(&self) -> Stats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            batches: get(&self.batches),
            batch_bytes: get(&self.batch_bytes),
            gets: get(&self.gets),
            get_nanos: Latency::of(&self.get_nanos),
            scans: get(&self.scans),
            seek_nanos: Latency::of(&self.seek_nanos),
            step_nanos: Latency::of(&self.step_nanos),
            commit_nanos: Latency::of(&self.commit_nanos),
            syncs: Latency::of(&self.syncs),
            flushes: Latency::of(&self.flushes),
            flushed_bytes: get(&self.flushed_bytes),
            compactions: Latency::of(&self.compactions),
            compaction_read_bytes: get(&self.compaction_read),
            compaction_written_bytes: get(&self.compaction_written),
            values_written_bytes: get(&self.values_written),
            values_moved_bytes: get(&self.values_moved),
            scrubbed_bytes: get(&self.scrubbed_bytes),
            scrub_problems: get(&self.scrub_problems),
            stalls: get(&self.stalls),
            stall_seconds: get(&self.stall_micros) as f64 / 1e6,
            delay_seconds: get(&self.delay_micros) as f64 / 1e6,
            callback_failures: get(&self.callback_failures),
            callback_failure: self.callback_failure.lock().clone(),
            ..Stats::default()
        }
    }
}

/// A summary of a latency histogram, in microseconds unless its field says nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Operations that were timed.
    pub count: u64,
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// Longest.
    pub max: u64,
}

impl Latency {
    fn of(histogram: &Mutex<Histogram<u64>>) -> Latency {
        let h = histogram.lock();
        Latency {
            count: h.len(),
            p50: h.value_at_quantile(0.5),
            p99: h.value_at_quantile(0.99),
            p999: h.value_at_quantile(0.999),
            max: h.max(),
        }
    }
}

/// One level of tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LevelStats {
    /// Tables.
    pub tables: usize,
    /// Their bytes on disk.
    pub bytes: u64,
    /// Records in them, shadowed ones and tombstones included.
    pub entries: u64,
    /// Of these, tombstones of single keys.
    pub tombstones: u64,
}

/// What the engine did since it was opened, and what it holds now.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Batches written.
    pub batches: u64,
    /// Their encoded bytes.
    pub batch_bytes: u64,
    /// Point reads.
    pub gets: u64,
    /// Of one in 64 of them, how long it took, in nanoseconds.
    pub get_nanos: Latency,
    /// Scans that took a first step.
    pub scans: u64,
    /// Of one in 64 of them, how long the first step took, in nanoseconds.
    pub seek_nanos: Latency,
    /// Of each 64th later step of a scan, how long it took, in nanoseconds.
    pub step_nanos: Latency,
    /// Of one in 64 batches, the time from its hand-over to its answer, in nanoseconds.
    pub commit_nanos: Latency,
    /// Syncs of the log.
    pub syncs: Latency,
    /// Flushes of memtables.
    pub flushes: Latency,
    /// Bytes of tables they wrote.
    pub flushed_bytes: u64,
    /// Merges.
    pub compactions: Latency,
    /// Bytes of tables they read.
    pub compaction_read_bytes: u64,
    /// Bytes of tables they wrote.
    pub compaction_written_bytes: u64,
    /// Bytes written to value files.
    pub values_written_bytes: u64,
    /// Of these, bytes of values that were in another value file before, which then could go.
    pub values_moved_bytes: u64,
    /// Live value files.
    pub value_files: usize,
    /// Their bytes on disk.
    pub value_file_bytes: u64,
    /// Of these, bytes of values that tables point to.
    pub value_live_bytes: u64,
    /// Bytes of tables that scrubs read.
    pub scrubbed_bytes: u64,
    /// Tables that scrubs could not verify.
    pub scrub_problems: u64,
    /// Times a writer waited for memory.
    pub stalls: u64,
    /// How long they waited in all.
    pub stall_seconds: f64,
    /// How long writers were slowed down in all.
    pub delay_seconds: f64,
    /// Bytes that merges have to rewrite until every level is within its target.
    pub compaction_debt: u64,
    /// How much is behind, of what may be: from one half on writers are slowed down.
    pub pressure: f64,
    /// By how much a written KiB is delayed now, in nanoseconds.
    pub delay_nanos: u64,
    /// What for: `memory`, `level 0` or `debt`.
    pub delay_reason: Option<&'static str>,
    /// Bytes in memtables, those that only readers still hold included.
    pub memtable_bytes: u64,
    /// Sealed memtables that wait for their flush.
    pub sealed_memtables: usize,
    /// Live snapshots.
    pub snapshots: usize,
    /// Per level, what it holds.
    pub levels: [LevelStats; LEVELS],
    /// Tables in quarantine.
    pub quarantined: usize,
    /// The block cache.
    pub cache: PoolStats,
    /// What the block cache is made of, and what the machine did not grant. Of several stores, the one
    /// that was granted the least.
    pub pool: Placement,
    /// Times a merge operator or a compaction filter did not answer background work. What it was asked
    /// about stayed as it was.
    pub callback_failures: u64,
    /// Why, the last time.
    pub callback_failure: Option<String>,
    /// The record cache.
    pub records: RecordStats,
    /// Why writes are refused, if they are.
    pub refusal: Option<String>,
    /// Why the last flush or compaction failed, if it did. It is tried again. If none did, why a merge
    /// operator or a compaction filter failed, if one did.
    pub background_failure: Option<String>,
}

impl Stats {
    /// Adds what another store says, for a process with several: counts and sizes add up, of
    /// latencies the worse quantile stays.
    pub fn add(&mut self, other: &Stats) {
        let worse = |a: &mut Latency, b: &Latency| {
            a.count += b.count;
            a.p50 = a.p50.max(b.p50);
            a.p99 = a.p99.max(b.p99);
            a.p999 = a.p999.max(b.p999);
            a.max = a.max.max(b.max);
        };
        self.batches += other.batches;
        self.batch_bytes += other.batch_bytes;
        self.gets += other.gets;
        worse(&mut self.get_nanos, &other.get_nanos);
        self.scans += other.scans;
        worse(&mut self.seek_nanos, &other.seek_nanos);
        worse(&mut self.step_nanos, &other.step_nanos);
        worse(&mut self.commit_nanos, &other.commit_nanos);
        worse(&mut self.syncs, &other.syncs);
        worse(&mut self.flushes, &other.flushes);
        self.flushed_bytes += other.flushed_bytes;
        self.scrubbed_bytes += other.scrubbed_bytes;
        self.scrub_problems += other.scrub_problems;
        worse(&mut self.compactions, &other.compactions);
        self.compaction_read_bytes += other.compaction_read_bytes;
        self.compaction_written_bytes += other.compaction_written_bytes;
        self.values_written_bytes += other.values_written_bytes;
        self.values_moved_bytes += other.values_moved_bytes;
        self.value_files += other.value_files;
        self.value_file_bytes += other.value_file_bytes;
        self.value_live_bytes += other.value_live_bytes;
        self.stalls += other.stalls;
        self.stall_seconds += other.stall_seconds;
        self.delay_seconds += other.delay_seconds;
        self.compaction_debt += other.compaction_debt;
        self.pressure = self.pressure.max(other.pressure);
        if other.delay_nanos > self.delay_nanos {
            (self.delay_nanos, self.delay_reason) = (other.delay_nanos, other.delay_reason);
        }
        self.memtable_bytes += other.memtable_bytes;
        self.sealed_memtables += other.sealed_memtables;
        self.snapshots += other.snapshots;
        for (level, of) in self.levels.iter_mut().zip(&other.levels) {
            level.tables += of.tables;
            level.bytes += of.bytes;
            level.entries += of.entries;
            level.tombstones += of.tombstones;
        }
        self.quarantined += other.quarantined;
        self.cache.hits += other.cache.hits;
        self.cache.misses += other.cache.misses;
        self.cache.evictions += other.cache.evictions;
        self.cache.blocks += other.cache.blocks;
        self.cache.bytes += other.cache.bytes;
        self.cache.capacity += other.cache.capacity;
        self.cache.region_bytes += other.cache.region_bytes;
        self.cache.heap_bytes += other.cache.heap_bytes;
        self.cache.strayed += other.cache.strayed;
        self.cache.cleared_runs += other.cache.cleared_runs;
        if self.pool.strategy.is_empty() || other.pool.refusals().len() > self.pool.refusals().len()
        {
            self.pool = other.pool.clone();
        }
        self.callback_failures += other.callback_failures;
        let failure = self.callback_failure.take();
        self.callback_failure = failure.or_else(|| other.callback_failure.clone());
        self.records.add(&other.records);
        self.refusal = self.refusal.take().or_else(|| other.refusal.clone());
        let failure = self.background_failure.take();
        self.background_failure = failure.or_else(|| other.background_failure.clone());
    }

    /// Returns the bytes of all tables.
    pub fn table_bytes(&self) -> u64 {
        self.levels.iter().map(|l| l.bytes).sum()
    }

    /// Returns the bytes of all tables and value files.
    pub fn disk_bytes(&self) -> u64 {
        self.table_bytes() + self.value_file_bytes
    }

    /// Returns how many bytes of tables and value files were written for each byte of a batch.
    pub fn write_amplification(&self) -> f64 {
        let written =
            self.flushed_bytes + self.compaction_written_bytes + self.values_written_bytes;
        written as f64 / self.batch_bytes.max(1) as f64
    }
}
