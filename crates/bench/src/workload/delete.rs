//! What deletion leaves behind: tombstones, which a scan must step over until a compaction drops them.
//!
//! ```text
//!   deletescan   x x x x 1 x x x x x 2 x x x ...    random deletions; a scan of ten meets hundreds of x
//!   queue        x x x x x x x x [ head ... tail ]  the first record lies behind all that were taken
//! ```

use super::{Outcome, Run};
use crate::Failure;
use crate::data;
use crate::engines::Direction;
use crate::timings::Timings;

/// Of so many records one is left.
const LEFT: u64 = 100;

/// Records of a scan.
const SCAN: usize = 11;

impl Run<'_> {
    /// Scans right after the deletions, from picked keys that were deleted or not.
    pub(super) fn scan_over_deleted(&self) -> Result<Outcome, Failure> {
        self.load()?;
        let records = self.extent.records;
        // The order of insertion has nothing to do with that of the keys.
        for n in (0..records).filter(|n| !n.is_multiple_of(LEFT)) {
            self.engine.remove(&data::key(n))?;
        }
        let timings = Timings::of(self.extent, |thread, n| {
            let key = data::key(self.pick(thread, n));
            self.engine.scan(&key, Direction::Forward, SCAN).map(drop)
        })?;
        let live = self.engine.scan(&[0; data::KEY_LEN], Direction::Forward, usize::MAX)? as u64;
        if live != records.div_ceil(LEFT) {
            return Err(format!("{live} records are left of {records}").into());
        }
        // A deletion gives the engine a key, which is little beside the record it takes.
        Ok(Outcome::of(timings))
    }

    /// Puts a record in at the tail and takes the first one out, found by a seek to the lowest key.
    pub(super) fn queue(&self) -> Result<Outcome, Failure> {
        let len = self.extent.records;
        let push = |n| self.workload.insert(self.engine, &data::ascending_key(n), n);
        (0..len).try_for_each(push)?;
        let timings = Timings::of(self.extent, |_, head| {
            push(len + head)?;
            if self.engine.scan(&[0; data::KEY_LEN], Direction::Forward, 1)? != 1 {
                return Err("the queue is empty".into());
            }
            self.engine.remove(&data::ascending_key(head))
        })?;
        let left = self.engine.scan(&[0; data::KEY_LEN], Direction::Forward, usize::MAX)? as u64;
        if left != len {
            return Err(format!("{left} records are queued, not {len}").into());
        }
        let written = Some(len + self.extent.operations);
        Ok(Outcome { written, ..Outcome::of(timings) })
    }
}
