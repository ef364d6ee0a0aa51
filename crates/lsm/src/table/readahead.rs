//! Reading ahead: a scan takes consecutive blocks out of a larger piece of the file.
//!
//! Data blocks lie one behind another, so the piece is chosen by offset alone: from the missing
//! block on, or, for a scan that goes back, up to its end. A window that follows a scan starts
//! small and doubles, because most scans end soon; the first block after a jump is read alone.

use std::ops::Range;

use atoll_env::IoBuf;

use super::iter::Direction;
use super::reader::Table;
use super::{Handle, ReadOptions};
use crate::error::Result;

/// The piece of the file that an iterator holds.
#[derive(Default)]
pub(super) struct Window {
    start: u64,
    bytes: IoBuf,
    /// Length of the next piece; 0 after a jump.
    next: usize,
}

impl Window {
    /// Forgets that reads follow each other: the scan jumped.
    pub(super) fn jumped(&mut self) {
        self.next = 0;
    }

    /// Returns the bytes of `range`, if they are in.
    pub(super) fn get(&self, range: Range<u64>) -> Option<&[u8]> {
        let start = range.start.checked_sub(self.start)? as usize;
        let end = range.end.checked_sub(self.start)? as usize;
        self.bytes.get(start..end)
    }

    /// Reads the block at `handle` and its neighbours in `direction`, within the data.
    pub(super) async fn fill(
        &mut self,
        table: &Table,
        handle: Handle,
        direction: Direction,
        options: &ReadOptions,
    ) -> Result<()> {
        let block = table.range(handle)?;
        let data_end = table.properties().data_bytes;
        let piece = self.next_len(options) as u64;
        let range = match direction {
            Direction::Forward => {
                let end = block.start.saturating_add(piece).min(data_end);
                block.start..end.max(block.end)
            }
            Direction::Backward => block.start.min(block.end.saturating_sub(piece))..block.end,
        };
        let buf = std::mem::take(&mut self.bytes);
        self.bytes = table.read(range.clone(), buf, options.class).await?;
        self.start = range.start;
        Ok(())
    }

    fn next_len(&mut self, options: &ReadOptions) -> usize {
        let now = self.next;
        self.next = match now {
            0 => options.readahead_start,
            _ => now.saturating_mul(2).min(options.readahead_max),
        };
        // A scan that starts with its largest piece was told that it is long.
        if options.readahead_start >= options.readahead_max { self.next } else { now }
    }
}
