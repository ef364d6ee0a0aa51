//! What must not be kept for longer than needed.
//!
//! - A keyspace with one record in memory and no more to come holds the log from that record on,
//!   unless the engine flushes it for the log's sake.
//! - A snapshot keeps the versions it sees, and no version between two that are seen.
//!
//! Both show in the space amplification, which is that of the moment after the last operation: with
//! the engine open, and the snapshot held.

use super::{Outcome, Run};
use crate::Failure;
use crate::data;
use crate::process;
use crate::timings::Timings;

/// Records that are read through the snapshot in the end.
const SEEN: u64 = 1000;

impl Run<'_> {
    /// Inserts in random key order.
    pub(super) fn beside_idle_keyspace(&self) -> Result<Outcome, Failure> {
        let mut value = [0; data::VALUE_LEN];
        data::fill(0, &mut value);
        self.engine.insert_beside(&data::key(0), &value)?;
        let timings = Timings::of(self.extent, |_, n| self.write(n, 0))?;
        let space = Some(process::bytes_on_disk(self.dir)?);
        Ok(Outcome { space, ..Outcome::of(timings) })
    }

    /// Overwrites records, picked uniformly, and reads their first versions.
    pub(super) fn under_snapshot(&self) -> Result<Outcome, Failure> {
        self.load()?;
        let snapshot = self.engine.snapshot()?;
        let timings =
            Timings::of(self.extent, |thread, n| self.write(self.pick(thread, n), n + 1))?;
        let space = Some(process::bytes_on_disk(self.dir)?);
        let mut first = vec![0; self.workload.value_len()];
        for n in 0..SEEN {
            let n = self.pick(1, n);
            data::fill(n, &mut first);
            if snapshot.get(&data::key(n))?.as_ref() != Some(&first) {
                return Err("a snapshot does not show what there was when it was taken".into());
            }
        }
        let written = Some(self.extent.records + self.extent.operations);
        Ok(Outcome { written, space, ..Outcome::of(timings) })
    }
}
