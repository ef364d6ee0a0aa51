//! The core workloads of the Yahoo! Cloud Serving Benchmark (Cooper et al., SoCC 2010).
//!
//! Records are picked by Zipf's law with the exponent 0.99, scattered over the key space; in D the
//! most frequent ones are the latest. A record is written whole, as a store of keys and values has no
//! fields of which one could be written alone. Inserts of D and E add records at the end.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Outcome, Run};
use crate::Failure;
use crate::data;
use crate::engines::Direction;
use crate::server::zipf::{Random, Zipf};
use crate::timings::Timings;

/// Most records of a scan.
const SCAN: u64 = 100;

/// What of 100 operations is done with the record that was picked; the rest reads it.
#[derive(Clone, Copy)]
pub(super) struct Mix {
    updates: u64,
    inserts: u64,
    scans: u64,
    /// Updates of what was read just before.
    modifications: u64,
    latest: bool,
}

const READS: Mix = Mix { updates: 0, inserts: 0, scans: 0, modifications: 0, latest: false };

/// Update heavy.
pub(super) const A: Mix = Mix { updates: 50, ..READS };
/// Read mostly.
pub(super) const B: Mix = Mix { updates: 5, ..READS };
/// Read only.
pub(super) const C: Mix = READS;
/// Read latest.
pub(super) const D: Mix = Mix { inserts: 5, latest: true, ..READS };
/// Short ranges.
pub(super) const E: Mix = Mix { inserts: 5, scans: 95, ..READS };
/// Read, modify, write.
pub(super) const F: Mix = Mix { modifications: 50, ..READS };

impl Run<'_> {
    /// Runs a mix.
    pub(super) fn ycsb(&self, mix: Mix) -> Result<Outcome, Failure> {
        self.load()?;
        let zipf = Zipf::new(self.extent.records);
        // One thread runs the operations; atomics only because closures are shared.
        let records = AtomicU64::new(self.extent.records);
        let written = AtomicU64::new(0);
        let write = |n, times| {
            written.fetch_add(1, Ordering::Relaxed);
            self.write(n, times)
        };
        let timings = Timings::of(self.extent, |thread, n| {
            let mut random = Random::new(data::mix(thread) ^ n);
            let record = match mix.latest {
                true => records.load(Ordering::Relaxed) - 1 - zipf.draw_rank(&mut random),
                false => zipf.draw(&mut random),
            };
            let mut choice = random.below(100);
            let mut is_chosen = |share: u64| {
                let chosen = choice < share;
                choice = choice.wrapping_sub(share);
                chosen
            };
            if is_chosen(mix.updates) {
                write(record, n + 1)
            } else if is_chosen(mix.inserts) {
                write(records.fetch_add(1, Ordering::Relaxed), 0)
            } else if is_chosen(mix.scans) {
                let count = 1 + random.below(SCAN) as usize;
                self.engine.scan(&data::key(record), Direction::Forward, count).map(drop)
            } else if is_chosen(mix.modifications) {
                self.find(record)?;
                write(record, n + 1)
            } else {
                self.find(record)
            }
        })?;
        let written = Some(self.extent.records + written.into_inner());
        Ok(Outcome { written, ..Outcome::of(timings) })
    }
}
