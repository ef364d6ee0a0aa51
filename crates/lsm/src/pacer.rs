//! The pacer: how fast writers may write, and how hard merges may work.
//!
//! Flushes and merges turn what was written into sorted levels. If they fall behind, memory fills,
//! reads consult ever more tables, and in the end somebody must wait. An engine that lets writers go
//! on until then stalls them for as long as a merge takes. Here both sides follow one figure, the
//! *pressure*, which rises with each written byte and falls with each merged record:
//!
//! ```text
//!   pressure    0 .................. 1/2 .................. 1 ......
//!   writers     |  no delay           |  a slope, steep at the end  |  the steepest
//!   merges      |  rest between beats |  no rest                    |
//! ```
//!
//! Pressure is the largest of three shares of what may be behind:
//! - **memory**: what is not flushed, of what memtables may take. At 1 there is no room left, and
//!   writers must wait.
//! - **level 0**: its tables, those that memory will become included.
//! - **debt**: bytes to be rewritten ([`debt`]), in memtables: so many of them cost as much on their
//!   way down. It may be the work of as many memtables as level 0 may have tables.
//!
//! # Why it does not jump
//! A flush of 64 MiB or a merge of a gigabyte changes the levels at once, when it is installed.
//! Pressure goes by the work that is *left*: of what a flush or merge will have done for memory, level
//! 0 and debt, the share of its records that it has read counts as done. So between two beats of a
//! job, which are a thousand records, there is a small step, and at its end none.
//!
//! The delay is a function of the pressure alone, without a memory of its own: where writes and
//! merges are equally fast the pressure stays where it is. A seventh of the slope more or less
//! doubles or halves the rate, so that a slow disk and a fast one both find their place on it.
//!
//! # Rests
//! Below one half nothing is urgent, and a merge shares the processors and the disk with those who
//! are: it rests after each beat, the longer the lower the pressure, as long as somebody writes. If
//! nobody does there is nobody to spare but readers. *Their* guard is [`Guard`]: while the reads
//! beside a merge are more than [`HARM`] times as slow as those without one, merges rest more.
//!
//! A plain state machine: time and measurements are handed in, nothing is read and nobody sleeps.
//!
//! Rejected: a rate that is adjusted step by step to what merges were seen to do, as RocksDB's. It
//! lags behind by a merge, and swings.

use std::time::Duration;

use atoll_env::Instant;

use crate::compaction::choose::Targets;
use crate::compaction::debt::{Debt, debt};
use crate::version::LEVELS;

/// How many times as slow reads may become by merges.
pub(crate) const HARM: u64 = 2;
/// Where the slope of the writers' delay begins.
const SLOPE_BEGINS: f64 = 0.5;
/// Delay of a written byte at pressure 1: a quarter of a mebibyte a second.
const STEEPEST_NANOS: f64 = 4000.0;
/// The slope is this power of the way up.
const POWER: i32 = 6;
/// How far beyond pressure 1 it goes on.
const BEYOND: f64 = 1.25;
/// The share of the time for which a merge works when nothing is urgent.
const LEAST_WORK: f64 = 0.35;
/// Who has written within this time is writing.
const WRITING: Duration = Duration::from_millis(50);
/// Longest rest after one beat.
const REST_MAX: Duration = Duration::from_millis(10);
/// Longest delay of a small write, and of each byte of a large one.
const DELAY_MAX: Duration = Duration::from_millis(20);
const DELAY_MAX_NANOS_PER_BYTE: u64 = 250;

/// What the pressure is measured by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of a memtable.
    pub(crate) memtable: u64,
    /// Bytes that all memtables may take.
    pub(crate) memory: u64,
    /// Tables in level 0 that are too many by half.
    pub(crate) level0_slowdown: usize,
    /// When compaction starts.
    pub(crate) targets: Targets,
}

/// A flush or a merge.
#[derive(Clone, Debug, Default)]
pub(crate) struct Job {
    pub(crate) id: u64,
    /// Bytes it takes out of each level.
    pub(crate) from: [u64; LEVELS],
    /// Tables it takes out of level 0.
    pub(crate) tables: usize,
    /// Bytes of memory it flushes.
    pub(crate) memory: u64,
    /// The level it writes.
    pub(crate) to: usize,
    /// Records it has to read, and those that it has.
    pub(crate) records: u64,
    pub(crate) done: u64,
}

impl Job {
    fn share(&self) -> f64 {
        (self.done as f64 / self.records.max(1) as f64).min(1.0)
    }
}

/// What happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// The levels hold so many bytes now, level 0 so many tables, because a job has ended (its id and
    /// the bytes it wrote) or for another reason.
    Levels { bytes: [u64; LEVELS], tables: usize, ended: Option<(u64, u64)> },
    /// Somebody writes; memtables that are not flushed have so many bytes.
    Write { memory: u64 },
    /// A job begins.
    Begin(Job),
    /// A job has read so many more records, in this time.
    Beat { id: u64, records: u64, took: Duration },
    /// A job has ended without effect.
    GiveUp { id: u64 },
}

/// What the delay is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Memory,
    Level0,
    Debt,
}

impl Reason {
    /// Returns the reason in words, for statistics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Reason::Memory => "memory",
            Reason::Level0 => "level 0",
            Reason::Debt => "debt",
        }
    }
}

/// What is behind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pressure {
    pub(crate) of: f64,
    pub(crate) reason: Reason,
    /// Bytes that merges have to rewrite.
    pub(crate) debt: f64,
}

/// An answer to an event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Allowance {
    /// Delay of each byte that is written, in nanoseconds.
    pub(crate) nanos_per_byte: f64,
    /// How long the one whose beat it was should rest.
    pub(crate) rest: Duration,
}

/// The state.
pub(crate) struct Pacer {
    limits: Limits,
    bytes: [u64; LEVELS],
    tables: usize,
    memory: u64,
    jobs: Vec<Job>,
    /// Bytes of a table for each byte of a memtable, by the last flushes.
    shrinks: f64,
    wrote: Option<Instant>,
    pub(crate) guard: Guard,
}

impl Pacer {
    pub(crate) fn new(limits: Limits) -> Pacer {
        Pacer {
            limits,
            bytes: [0; LEVELS],
            tables: 0,
            memory: 0,
            jobs: Vec::new(),
            shrinks: 1.0,
            wrote: None,
            guard: Guard::default(),
        }
    }

    /// Takes in what happens and says what may be done.
    pub(crate) fn step(&mut self, now: Instant, event: Event) -> Allowance {
        let mut beat = None;
        match event {
            Event::Levels { bytes, tables, ended } => {
                (self.bytes, self.tables) = (bytes, tables);
                if let Some((id, written)) = ended {
                    self.end(id, written);
                }
            }
            Event::Write { memory } => {
                self.memory = memory;
                self.wrote = Some(now);
            }
            Event::Begin(job) => self.jobs.push(job),
            Event::Beat { id, records, took } => {
                if let Some(job) = self.jobs.iter_mut().find(|job| job.id == id) {
                    job.done += records;
                    // A flush is never late enough.
                    beat = (job.memory == 0).then_some(took);
                }
            }
            Event::GiveUp { id } => self.jobs.retain(|job| job.id != id),
        }
        self.guard.merging = self.jobs.iter().any(|job| job.memory == 0);
        let pressure = self.pressure();
        Allowance {
            nanos_per_byte: nanos_per_byte(pressure.of),
            rest: beat.map_or(Duration::ZERO, |took| self.rest(now, pressure.of, took)),
        }
    }

    fn end(&mut self, id: u64, written: u64) {
        let Some(at) = self.jobs.iter().position(|job| job.id == id) else { return };
        let job = self.jobs.swap_remove(at);
        // What it flushed is in level 0 now; the next write will say so, too.
        self.memory = self.memory.saturating_sub(job.memory);
        // A small one has more frame than content.
        if job.memory >= self.limits.memtable / 8 {
            let seen = (written as f64 / job.memory as f64).clamp(0.05, 2.0);
            self.shrinks += (seen - self.shrinks) / 4.0;
        }
    }

    /// Returns what is behind now.
    pub(crate) fn pressure(&self) -> Pressure {
        let Limits { memtable, memory: room, targets, .. } = self.limits;
        let memtable = memtable.max(1) as f64;
        let table = memtable * self.shrinks;
        let (mut bytes, mut tables) = (self.bytes.map(|b| b as f64), self.tables as f64);
        let mut memory = self.memory as f64;
        for flush in self.jobs.iter().filter(|job| job.memory > 0) {
            let flushed = (flush.memory as f64 * flush.share()).min(memory);
            memory -= flushed;
            bytes[0] += flushed * self.shrinks;
            tables += flush.share();
        }
        // What is in memory will be in level 0, in tables as large as memtables.
        tables += memory / memtable;
        bytes[0] += memory * self.shrinks;
        let owed =
            |bytes: &[f64; LEVELS]| debt(bytes, table * targets.level0_tables as f64, targets);
        let Debt { bytes: mut behind, per_byte } = owed(&bytes);
        let mut before = behind;
        for merge in self.jobs.iter().filter(|job| job.memory == 0) {
            for (level, from) in merge.from.iter().enumerate() {
                let part = (*from as f64).min(bytes[level]);
                bytes[level] -= part;
                bytes[merge.to] += part;
            }
            let after = owed(&bytes).bytes;
            behind += (after - before) * merge.share();
            before = after;
            tables -= merge.tables as f64 * merge.share();
        }
        // Fewer tables than a merge waits for are nothing to be slow for.
        let soft = self.limits.level0_slowdown.max(targets.level0_tables + 2) as f64;
        let shares = [
            (self.of_memory(memory, memtable, room as f64), Reason::Memory),
            (tables / (2.0 * soft), Reason::Level0),
            (behind / (soft * table * per_byte), Reason::Debt),
        ];
        let (of, reason) = shares
            .into_iter()
            .fold((0.0, Reason::Memory), |most, share| if share.0 > most.0 { share } else { most });
        Pressure { of, reason, debt: behind.max(0.0) }
    }

    /// Returns the pressure of memory, of which `left` bytes are still to be flushed.
    ///
    /// A memtable that is being flushed takes its room until that has ended. One that is filled as fast
    /// as the one before it is flushed leaves `left` at one memtable: that is one half. The wall is
    /// where `left` and what is flushed of a memtable fill the room, at the earliest one memtable below
    /// it.
    fn of_memory(&self, left: f64, memtable: f64, room: f64) -> f64 {
        let wall = (room - memtable).max(1.5 * memtable);
        if left <= memtable {
            SLOPE_BEGINS * left / memtable
        } else {
            SLOPE_BEGINS + (1.0 - SLOPE_BEGINS) * (left - memtable) / (wall - memtable)
        }
    }

    /// Returns how long a merge rests after a beat of this length.
    fn rest(&mut self, now: Instant, pressure: f64, took: Duration) -> Duration {
        if pressure >= SLOPE_BEGINS {
            return Duration::ZERO;
        }
        let mut work = 1.0;
        if self.wrote.is_some_and(|at| now.since(at) < WRITING) {
            work = LEAST_WORK + (1.0 - LEAST_WORK) * pressure / SLOPE_BEGINS;
        }
        work = work.min(self.guard.work(now));
        took.mul_f64(1.0 / work - 1.0).min(REST_MAX)
    }
}

/// Returns the delay of a written byte under a pressure.
pub(crate) fn nanos_per_byte(pressure: f64) -> f64 {
    let up = (pressure - SLOPE_BEGINS) / (1.0 - SLOPE_BEGINS);
    STEEPEST_NANOS * up.clamp(0.0, BEYOND).powi(POWER)
}

/// Returns the longest time that writes of so many bytes, which go together, are delayed.
pub(crate) fn delay_max(bytes: u64) -> Duration {
    DELAY_MAX.max(Duration::from_nanos(bytes.saturating_mul(DELAY_MAX_NANOS_PER_BYTE)))
}

/// The guard of readers: whether merges make reads slow.
///
/// It follows the 99th percentile of the reads that are timed, those beside a merge and the others
/// apart: a read above the estimate raises it by 99 parts, one below lowers it by one. That is no
/// histogram, but costs a multiplication and forgets what was long ago.
pub(crate) struct Guard {
    merging: bool,
    /// Nanoseconds; quiet and beside a merge.
    p99: [f64; 2],
    seen: [u64; 2],
    /// Share of the time for which merges work.
    share: f64,
    looked: Instant,
    /// Reads beside a merge since then.
    fresh: u64,
}

impl Default for Guard {
    fn default() -> Guard {
        Guard {
            merging: false,
            p99: [0.0; 2],
            seen: [0; 2],
            share: 1.0,
            looked: Instant::default(),
            fresh: 0,
        }
    }
}

impl Guard {
    /// Part of the estimate that one read may move it by.
    const GAIN: f64 = 0.05;
    /// Reads that an estimate needs.
    const ENOUGH: u64 = 200;
    /// Nobody minds a read that is faster.
    const FAST: f64 = 5000.0;
    /// Between two changes of the share.
    const LOOK: Duration = Duration::from_millis(20);
    /// The least share.
    const LEAST: f64 = 0.25;

    /// A read took so long.
    pub(crate) fn read(&mut self, took: Duration) {
        let of = usize::from(self.merging);
        let nanos = took.as_nanos() as f64;
        let p99 = &mut self.p99[of];
        self.seen[of] += 1;
        self.fresh += of as u64;
        if self.seen[of] == 1 {
            *p99 = nanos;
        } else if nanos > *p99 {
            *p99 *= 1.0 + 0.99 * Guard::GAIN;
        } else {
            *p99 *= 1.0 - 0.01 * Guard::GAIN;
        }
    }

    /// Returns the share of the time for which merges may work.
    fn work(&mut self, now: Instant) -> f64 {
        if now.since(self.looked) < Guard::LOOK {
            return self.share;
        }
        self.looked = now;
        let known = self.seen.iter().all(|&seen| seen >= Guard::ENOUGH);
        let read = std::mem::take(&mut self.fresh) > 0;
        let bound = self.p99[0].max(Guard::FAST) * HARM as f64;
        if known && read && self.p99[1] > bound {
            self.share = (self.share * 0.8).max(Guard::LEAST);
        } else {
            self.share = (self.share * 1.1).min(1.0);
        }
        self.share
    }
}

#[cfg(test)]
mod tests;
