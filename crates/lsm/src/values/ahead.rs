//! Reading ahead: a scan takes values out of larger pieces of their files.
//!
//! The records of a value file stand in key order, so the values that a scan asks for lie one behind
//! another, in as many files as the range was written by flushes and merges. For each of the last few files
//! the scan keeps a piece, in the direction in which it goes:
//!
//! ```text
//!   keys       a   b   c   d   e ...
//!   file 7     a1      c1  d1          a window of file 7
//!   file 31        b1          e1      a window of file 31
//! ```
//!
//! The first value of a file is read alone, because most scans are short; a second one close behind or
//! before it fetches a piece, and pieces double.
//!
//! The values of a scan's beginning go into the pool, as the blocks of tables do: short scans of the same
//! ranges come again. What a long scan reads after that does not: nobody needs the copies that it would
//! cost, and the pool need not turn them away.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use atoll_env::IoBuf;
use parking_lot::Mutex;

use crate::slice::Slice;

/// Files of which a scan keeps a piece.
const FILES: usize = 16;
/// Bytes of the first piece. A short scan asks each of many files for a few values.
const PIECE_MIN: u64 = 4 << 10;
/// Bytes of the largest piece.
const PIECE_MAX: u64 = 64 << 10;
/// Bytes of values at the beginning of a scan that are kept in the pool.
const KEPT_MAX: usize = 256 << 10;
/// What may lie between two values that follow each other: garbage.
const GAP_MAX: u64 = 32 << 10;

/// What a scan read ahead. Guards of one scan may be asked for their values on several threads.
#[derive(Default)]
pub(crate) struct Ahead {
    /// The one used last is the last.
    windows: Mutex<Vec<Window>>,
    /// Bytes of values that went into the pool.
    kept: AtomicUsize,
}

struct Window {
    file: u64,
    /// Where `bytes` begin in the file.
    start: u64,
    bytes: Arc<IoBuf>,
    /// The record asked for last.
    last: Range<u64>,
    /// Bytes of the next piece.
    next: u64,
}

impl Window {
    fn get(&self, range: &Range<u64>) -> Option<Slice> {
        let start = usize::try_from(range.start.checked_sub(self.start)?).ok()?;
        let end = usize::try_from(range.end.checked_sub(self.start)?).ok()?;
        (end <= self.bytes.len()).then(|| Slice::new(self.bytes.clone(), start..end))
    }
}

impl Ahead {
    /// Returns whether a value of so many bytes that was read is to be kept in the pool: whether the scan
    /// is at its beginning.
    pub(super) fn keeps(&self, len: usize) -> bool {
        self.kept.fetch_add(len, Relaxed) + len <= KEPT_MAX
    }

    /// Returns the record at `range` of `file`, if it was read ahead.
    pub(super) fn get(&self, file: u64, range: &Range<u64>) -> Option<Slice> {
        let mut windows = self.windows.lock();
        let at = windows.iter().position(|w| w.file == file)?;
        let found = windows[at].get(range)?;
        windows[at].last = range.clone();
        windows[at..].rotate_left(1);
        Some(found)
    }

    /// Returns what to read in order to have the record at `range`; records of the file lie in `all`.
    pub(super) fn piece(&self, file: u64, range: &Range<u64>, all: Range<u64>) -> Range<u64> {
        let windows = self.windows.lock();
        let Some(window) = windows.iter().find(|w| w.file == file) else { return range.clone() };
        let (last, len) = (&window.last, window.next);
        if range.start >= last.end && range.start - last.end <= GAP_MAX {
            range.start..range.start.saturating_add(len).min(all.end).max(range.end)
        } else if range.end <= last.start && last.start - range.end <= GAP_MAX {
            range.end.saturating_sub(len).max(all.start).min(range.start)..range.end
        } else {
            range.clone()
        }
    }

    /// Keeps the piece that was read for the record at `range`.
    pub(super) fn put(&self, file: u64, range: Range<u64>, start: u64, bytes: IoBuf) -> Arc<IoBuf> {
        let bytes = Arc::new(bytes);
        let mut windows = self.windows.lock();
        let before = windows.iter().position(|w| w.file == file).map(|at| windows.remove(at));
        let alone = bytes.len() as u64 == range.end - range.start;
        let next = match before {
            // It did not follow the one before: begin anew.
            _ if alone => PIECE_MIN,
            Some(window) => (window.next * 2).min(PIECE_MAX),
            None => PIECE_MIN,
        };
        if windows.len() == FILES {
            windows.remove(0);
        }
        windows.push(Window { file, start, bytes: bytes.clone(), last: range, next });
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Range<u64> = 32..1_000_000;

    /// Asks for a record; returns what was read for it, nothing if it was there.
    fn ask(ahead: &Ahead, file: u64, range: Range<u64>) -> Range<u64> {
        if let Some(found) = ahead.get(file, &range) {
            assert_eq!(found.len() as u64, range.end - range.start);
            return 0..0;
        }
        let piece = ahead.piece(file, &range, ALL);
        assert!(piece.start <= range.start && piece.end >= range.end);
        let bytes = IoBuf::zeroed((piece.end - piece.start) as usize);
        ahead.put(file, range.clone(), piece.start, bytes);
        piece
    }

    #[test]
    fn the_first_value_is_read_alone_and_pieces_grow_as_the_scan_goes_on() {
        let ahead = Ahead::default();
        assert_eq!(ask(&ahead, 7, 100..1100), 100..1100);
        assert_eq!(ask(&ahead, 7, 1100..2100), 1100..1100 + PIECE_MIN);
        assert_eq!(ask(&ahead, 7, 2500..3500), 0..0, "it is in the piece");
        let behind = 1100 + PIECE_MIN - 10;
        ask(&ahead, 7, 4000..5000);
        let piece = ask(&ahead, 7, behind..behind + 1000);
        assert_eq!(piece, behind..behind + 2 * PIECE_MIN);
    }

    #[test]
    fn a_scan_backwards_reads_what_lies_before() {
        let ahead = Ahead::default();
        ask(&ahead, 7, 90_000..91_000);
        assert_eq!(ask(&ahead, 7, 88_000..89_000), 89_000 - PIECE_MIN..89_000);
        assert_eq!(ask(&ahead, 7, 85_000..86_000), 0..0);
        ask(&ahead, 8, 500..1000);
        assert_eq!(ask(&ahead, 8, 40..300), 32..300, "nothing lies before the first record");
    }

    #[test]
    fn values_of_several_files_by_turns_are_read_ahead_in_each() {
        let ahead = Ahead::default();
        let mut reads = 0;
        for n in 0..200 {
            for file in 1..=4 {
                reads += u32::from(!ask(&ahead, file, 32 + n * 1000..1032 + n * 1000).is_empty());
            }
        }
        assert!(reads < 4 * 10, "{reads} reads of 800 values");
    }

    #[test]
    fn jumps_and_many_files_read_single_values() {
        let ahead = Ahead::default();
        for n in 0..40 {
            let at = 500_000 - n * 9_999 * (n % 2) + n * 3_333;
            let range = at..at + 500;
            assert_eq!(ask(&ahead, n, range.clone()), range);
        }
        ask(&ahead, 1, 100..200);
        assert_eq!(ask(&ahead, 1, 500_000..500_100), 500_000..500_100);
    }
}
