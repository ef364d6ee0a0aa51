//! Values of 1 and 4 KiB: once each, and over and over.
//!
//! Overwriting is where an engine pays for what it put off. The table of rows therefore has the
//! worst second beside the mean, and the write amplification is by all bytes that were given to the
//! engine, those before the clock started included.

use super::{Outcome, Run};
use crate::Failure;
use crate::timings::Timings;

impl Run<'_> {
    /// Inserts in random key order.
    pub(super) fn fill(&self) -> Result<Outcome, Failure> {
        Ok(Outcome::of(Timings::of(self.extent, |_, n| self.write(n, 0))?))
    }

    /// Overwrites records, picked uniformly.
    pub(super) fn overwrite(&self) -> Result<Outcome, Failure> {
        self.load()?;
        let timings =
            Timings::of(self.extent, |thread, n| self.write(self.pick(thread, n), n + 1))?;
        let written = Some(self.extent.records + self.extent.operations);
        Ok(Outcome { written, ..Outcome::of(timings) })
    }
}
