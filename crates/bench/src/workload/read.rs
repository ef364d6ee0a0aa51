//! Reads that are skewed, batched, in vain, or not alone.
//!
//! ```text
//!   readwhilewriting   | load |  gets ------------------->  |
//!                             |  an overwrite each 58 us     |      2 MB/s, as RocksDB's benchmark.sh
//!
//!   readcompacting     | load | compact | gets | overwrite a fifth | compact -> |
//!                                         idle                     | gets --->  |   p99 by p99
//! ```
//!
//! The reads beside a compaction are those of the whole compaction, however many; the engine is
//! compacted before the idle ones, so that both phases read a tree of the same shape.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Outcome, Run};
use crate::Failure;
use crate::data;
use crate::server::zipf::{Random, Zipf};
use crate::timings::Timings;
use crate::workload::Extent;

/// Gets of a batch.
const BATCH: u64 = 32;

/// Bytes of keys and values a second that the writer beside readers asks for.
const WRITER_RATE: u64 = 2_000_000;

impl Run<'_> {
    /// Gets by Zipf's law, all blocks asked for before.
    pub(super) fn zipf(&self) -> Result<Outcome, Failure> {
        let Extent { records, .. } = self.extent;
        Timings::of(Extent { operations: records, ..self.extent }, |_, n| self.find(n))?;
        let zipf = Zipf::new(records);
        let timings = Timings::of(self.extent, |thread, n| {
            self.find(zipf.draw(&mut Random::new(data::mix(thread) ^ n)))
        })?;
        Ok(Outcome::of(timings))
    }

    /// Gets of several keys at once.
    pub(super) fn batches(&self) -> Result<Outcome, Failure> {
        let timings = Timings::of(self.extent, |thread, n| {
            let keys: [_; BATCH as usize] =
                std::array::from_fn(|i| data::key(self.pick(thread, n * BATCH + i as u64)));
            match self.engine.multi_get(&keys)? == keys.len() {
                true => Ok(()),
                false => Err("a key that was written is missing".into()),
            }
        })?;
        Ok(Outcome::of(timings))
    }

    /// Gets of keys that are not there.
    pub(super) fn absent(&self) -> Result<Outcome, Failure> {
        let timings = Timings::of(self.extent, |thread, n| {
            match self.engine.get(&data::absent_key(self.pick(thread, n)))? {
                Some(_) => Err("a key that was never written is there".into()),
                None => Ok(()),
            }
        })?;
        Ok(Outcome::of(timings))
    }

    /// Gets while another thread overwrites at a steady rate.
    pub(super) fn beside_writer(&self) -> Result<Outcome, Failure> {
        self.load()?;
        let pause = Duration::from_secs(self.workload.record_bytes(1)) / WRITER_RATE as u32;
        let reading = AtomicBool::new(true);
        let (timings, written) = std::thread::scope(|scope| {
            let writer = scope.spawn(|| -> Result<u64, Failure> {
                let start = Instant::now();
                let mut written = 0;
                while reading.load(Ordering::Acquire) {
                    self.write(self.pick(1, written), written + 1)?;
                    written += 1;
                    // What is behind its time is made up for, as by a client that does not wait.
                    let due = pause.saturating_mul(u32::try_from(written)?);
                    std::thread::sleep(due.saturating_sub(start.elapsed()));
                }
                Ok(written)
            });
            let timings = Timings::of(self.extent, |thread, n| self.find(self.pick(thread, n)));
            reading.store(false, Ordering::Release);
            let written = writer.join().map_err(|_| "the writer panicked")??;
            Ok::<_, Failure>((timings?, written))
        })?;
        let written = Some(self.extent.records + written);
        Ok(Outcome { written, ..Outcome::of(timings) })
    }

    /// Gets on an idle engine, then during a compaction of everything.
    pub(super) fn beside_compaction(&self) -> Result<Outcome, Failure> {
        self.load()?;
        self.engine.compact()?;
        let idle = Timings::of(self.extent, |thread, n| self.find(self.pick(thread, n)))?;
        let again = self.extent.records.div_ceil(5);
        for n in 0..again {
            self.write(self.pick(1, n), n + 1)?;
        }
        let compacting = AtomicBool::new(true);
        let timings = std::thread::scope(|scope| {
            let compaction = scope.spawn(|| {
                let done = self.engine.compact();
                compacting.store(false, Ordering::Release);
                done
            });
            let timings = Timings::while_set(&compacting, |n| self.find(self.pick(2, n)));
            compaction.join().map_err(|_| "the compaction panicked")??;
            timings
        })?;
        let p99_by_idle = Some(timings.p99().as_secs_f64() / idle.p99().as_secs_f64());
        let written = Some(self.extent.records + again);
        Ok(Outcome { written, p99_by_idle, ..Outcome::of(timings) })
    }
}
