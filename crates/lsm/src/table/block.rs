//! Blocks of sorted records: built, searched, and walked in both directions.
//!
//! ```text
//!   +---------+---------+-----+------------------------------+-------------+
//!   | record  | record  | ... | restart offsets, u32 each    | their count |
//!   |         |         |     |                              | u32         |
//!   +---------+---------+-----+------------------------------+-------------+
//!
//!   record:
//!   +--------+----------+-----------+-------------+------------+-----------+
//!   | shared | unshared | value len | key suffix  | trailer    | value     |
//!   | varint | varint   | varint    | unshared    | u64        | value len |
//!   +--------+----------+-----------+-------------+------------+-----------+
//! ```
//!
//! `shared` bytes of the user key are those of the record before. At each restart point `shared`
//! is 0, so that a search can start there: binary over the restart points, then along one interval.
//!
//! Two readers, because they want different things:
//! - [`BlockView`] looks one target up. It never puts a key together: it knows how many bytes of
//!   the target the last record matched, and `shared` against that number decides most records
//!   without a comparison.
//! - [`Cursor`] walks. It decodes a whole interval into a list of keys and value ranges; a step in
//!   either direction is then a step in the list. The rejected alternative, one key buffer that is
//!   extended record by record, makes a step back decode the interval from its start.
//!
//! Index partitions and the top index are blocks with a restart point at every record.

use std::cmp::Ordering;
use std::ops::Range;

use atoll_encoding::{Malformed, varint};

use super::{KEY_MAX, RESTART_INTERVAL_MAX};
use crate::key::{InternalKey, Trailer};
use crate::pool::Block;

const TRAILER_LEN: usize = 8;

/// Writes one block after another.
pub(super) struct BlockBuilder {
    restart_interval: usize,
    buf: Vec<u8>,
    restarts: Vec<u32>,
    since_restart: usize,
    last_key: Vec<u8>,
}

impl BlockBuilder {
    pub(super) fn new(restart_interval: usize) -> BlockBuilder {
        BlockBuilder {
            restart_interval,
            buf: Vec::new(),
            restarts: Vec::new(),
            since_restart: 0,
            last_key: Vec::new(),
        }
    }

    /// Appends a record. The caller keeps the order, and the block below 4 GiB.
    pub(super) fn add(&mut self, key: InternalKey<'_>, value: &[u8]) {
        let shared = if self.restarts.is_empty() || self.since_restart == self.restart_interval {
            self.restarts.push(self.buf.len() as u32);
            self.since_restart = 0;
            0
        } else {
            common_prefix(&self.last_key, key.user_key)
        };
        self.since_restart += 1;
        let suffix = &key.user_key[shared..];
        varint::put(&mut self.buf, shared as u64);
        varint::put(&mut self.buf, suffix.len() as u64);
        varint::put(&mut self.buf, value.len() as u64);
        self.buf.extend_from_slice(suffix);
        self.buf.extend_from_slice(&key.trailer.0.to_le_bytes());
        self.buf.extend_from_slice(value);
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(suffix);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.restarts.is_empty()
    }

    /// Returns the bytes of the block if it were finished now.
    pub(super) fn size(&self) -> usize {
        self.buf.len() + 4 * self.restarts.len() + 4
    }

    /// Completes the block. Call [`BlockBuilder::clear`] before the next.
    pub(super) fn finish(&mut self) -> &[u8] {
        for restart in &self.restarts {
            self.buf.extend_from_slice(&restart.to_le_bytes());
        }
        self.buf.extend_from_slice(&(self.restarts.len() as u32).to_le_bytes());
        &self.buf
    }

    pub(super) fn clear(&mut self) {
        self.buf.clear();
        self.restarts.clear();
        self.last_key.clear();
        self.since_restart = 0;
    }
}

/// Returns how many bytes `a` and `b` start with in common.
pub(super) fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let word = |chunk: &[u8; 8]| u64::from_le_bytes(*chunk);
    let (a_words, _) = a.as_chunks::<8>();
    let (b_words, _) = b.as_chunks::<8>();
    let mut same = 0;
    for (x, y) in a_words.iter().zip(b_words) {
        let differ = word(x) ^ word(y);
        if differ != 0 {
            return same + (differ.trailing_zeros() / 8) as usize;
        }
        same += 8;
    }
    same + a[same..].iter().zip(&b[same..]).take_while(|(x, y)| x == y).count()
}

/// The lengths before a record and where its bytes lie, checked to be inside of the records.
struct Record {
    shared: usize,
    suffix: Range<usize>,
    trailer: Trailer,
    value: Range<usize>,
}

/// Decodes the record at `at`.
#[inline(always)]
fn record(records: &[u8], at: usize) -> Result<Record, Malformed> {
    const EXPECTED: &str = "a record within the block";
    let bad = || Malformed { offset: at, expected: EXPECTED };
    let rest = records.get(at..).ok_or_else(bad)?;
    let (shared, unshared, value_len, start) = match *rest {
        // The usual case: three lengths of one byte each.
        [a, b, c, ..] if (a | b | c) < 0x80 => (a.into(), b.into(), c.into(), at + 3),
        _ => long_lengths(rest).map(|(a, b, c, n)| (a, b, c, at + n)).ok_or_else(bad)?,
    };
    // Each length is below 2^32, so the sums cannot overflow.
    let key_end = start + unshared;
    let trailer = records.get(key_end..key_end + TRAILER_LEN).and_then(|t| t.first_chunk());
    let trailer = Trailer(u64::from_le_bytes(*trailer.ok_or_else(bad)?));
    let value = key_end + TRAILER_LEN..key_end + TRAILER_LEN + value_len;
    if value.end > records.len() {
        return Err(bad());
    }
    Ok(Record { shared, suffix: start..key_end, trailer, value })
}

/// Decodes three lengths; returns them and the bytes they took.
#[cold]
fn long_lengths(bytes: &[u8]) -> Option<(usize, usize, usize, usize)> {
    let mut at = 0;
    let mut lengths = [0; 3];
    for length in &mut lengths {
        let (value, taken) = varint::get(&bytes[at..])?;
        *length = u32::try_from(value).ok()? as usize;
        at += taken;
    }
    Some((lengths[0], lengths[1], lengths[2], at))
}

/// A block to search.
#[derive(Clone, Copy)]
pub(super) struct BlockView<'a> {
    records: &'a [u8],
    restarts: &'a [[u8; 4]],
}

impl<'a> BlockView<'a> {
    /// Finds the restart points. Costs the same for every size: they are checked where they are
    /// used.
    pub(super) fn new(block: &'a [u8]) -> Result<BlockView<'a>, Malformed> {
        let bad = Malformed { offset: block.len(), expected: "restart points" };
        let (rest, count) = block.split_last_chunk::<4>().ok_or(bad)?;
        let len = (u32::from_le_bytes(*count) as usize).checked_mul(4).ok_or(bad)?;
        let at = rest.len().checked_sub(len).ok_or(bad)?;
        let (records, restarts) = rest.split_at(at);
        let (restarts, _) = restarts.as_chunks::<4>();
        if restarts.is_empty() || records.is_empty() {
            return Err(bad);
        }
        Ok(BlockView { records, restarts })
    }

    /// Returns the number of restart points, at least 1; in an index block that of its records.
    pub(super) fn restarts(&self) -> usize {
        self.restarts.len()
    }

    fn restart(&self, n: usize) -> usize {
        self.restarts.get(n).map_or(self.records.len(), |at| u32::from_le_bytes(*at) as usize)
    }

    /// Returns the record at restart point `n`: its key and value.
    pub(super) fn at_restart(&self, n: usize) -> Result<(InternalKey<'a>, &'a [u8]), Malformed> {
        let record = record(self.records, self.restart(n))?;
        if record.shared != 0 {
            let offset = self.restart(n);
            return Err(Malformed { offset, expected: "a whole key at a restart point" });
        }
        let key = InternalKey::new(&self.records[record.suffix], record.trailer);
        Ok((key, &self.records[record.value]))
    }

    /// Returns the number of the first restart point whose key makes `is_before` false; all before
    /// it make it true.
    pub(super) fn partition_restarts(
        &self,
        mut is_before: impl FnMut(InternalKey<'a>) -> bool,
    ) -> Result<usize, Malformed> {
        let (mut low, mut high) = (0, self.restarts.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if is_before(self.at_restart(middle)?.0) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// Returns the newest record of the target's user key that is not newer than the target: its
    /// trailer and the place of its value in the block.
    pub(super) fn find(
        &self,
        target: InternalKey<'_>,
    ) -> Result<Option<(Trailer, Range<usize>)>, Malformed> {
        let behind = self.partition_restarts(|key| key < target)?;
        let mut at = self.restart(behind.saturating_sub(1));
        // Invariant of the loop: the record before is smaller than the target, and its user key
        // has exactly `matched` bytes in common with the target's.
        let mut matched = 0;
        while at < self.records.len() {
            let record = record(self.records, at)?;
            at = record.value.end;
            if record.shared > matched {
                // Like the record before, it differs at byte `matched`, to the smaller side.
                continue;
            }
            let suffix = &self.records[record.suffix];
            let wanted = &target.user_key[record.shared..];
            let same = common_prefix(suffix, wanted);
            match suffix.get(same).cmp(&wanted.get(same)) {
                Ordering::Greater => return Ok(None),
                Ordering::Less => {}
                Ordering::Equal if record.trailer <= target.trailer => {
                    return Ok(Some((record.trailer, record.value)));
                }
                // The same key, written after the snapshot.
                Ordering::Equal => {}
            }
            matched = record.shared + same;
        }
        Ok(None)
    }
}

/// A record of the decoded interval.
struct Entry {
    /// End of the user key in `Cursor::keys`; it starts where the one before ends.
    key_end: usize,
    trailer: Trailer,
    value: Range<usize>,
}

/// Walks data blocks, one at a time. Its buffers are reused from block to block.
///
/// It is *at* a record, or nowhere. Moving is infallible within an interval.
#[derive(Default)]
pub(super) struct Cursor {
    block: Option<Block>,
    /// Number of the decoded interval.
    interval: usize,
    intervals: usize,
    keys: Vec<u8>,
    entries: Vec<Entry>,
    /// The record in `entries`; `entries` is empty while the cursor is nowhere.
    at: usize,
}

impl Cursor {
    /// Enters a block. The cursor is nowhere until told where to.
    pub(super) fn enter(&mut self, block: Block) -> Result<(), Malformed> {
        self.leave();
        self.intervals = BlockView::new(&block)?.restarts();
        self.block = Some(block);
        Ok(())
    }

    /// Is nowhere from now on; the block stays.
    pub(super) fn leave(&mut self) {
        self.entries.clear();
        self.keys.clear();
        self.at = 0;
    }

    /// Returns whether the cursor is at a record.
    #[inline]
    pub(super) fn valid(&self) -> bool {
        self.at < self.entries.len()
    }

    /// Moves to the next record of the interval; returns false, without moving, at its end.
    #[inline]
    pub(super) fn step(&mut self) -> bool {
        let next = self.at + 1;
        let inside = next < self.entries.len();
        if inside {
            self.at = next;
        }
        inside
    }

    /// Moves to the record before; returns false, without moving, at the start of the interval.
    #[inline]
    pub(super) fn step_back(&mut self) -> bool {
        let inside = self.at > 0;
        if inside {
            self.at -= 1;
        }
        inside
    }

    /// Moves to the next interval's first record; returns false, and is nowhere, if there is none.
    pub(super) fn next_interval(&mut self) -> Result<bool, Malformed> {
        if self.interval + 1 >= self.intervals {
            self.leave();
            return Ok(false);
        }
        self.decode(self.interval + 1)?;
        Ok(true)
    }

    /// Moves to the interval before, last record; returns false, and is nowhere, if there is none.
    pub(super) fn previous_interval(&mut self) -> Result<bool, Malformed> {
        if self.interval == 0 {
            self.leave();
            return Ok(false);
        }
        self.decode(self.interval - 1)?;
        self.at = self.entries.len().saturating_sub(1);
        Ok(true)
    }

    /// Moves to the first record.
    pub(super) fn first(&mut self) -> Result<(), Malformed> {
        self.decode(0)
    }

    /// Moves to the last record.
    pub(super) fn last(&mut self) -> Result<(), Malformed> {
        self.decode(self.intervals.saturating_sub(1))?;
        self.at = self.entries.len().saturating_sub(1);
        Ok(())
    }

    /// Moves to the first record at or after `target`; returns false, and is nowhere, if there is
    /// none.
    pub(super) fn seek(&mut self, target: InternalKey<'_>) -> Result<bool, Malformed> {
        let at = self.rank(|key| key < target)?;
        if at < self.entries.len() {
            self.at = at;
            return Ok(true);
        }
        self.next_interval()
    }

    /// Moves to the last record at or before `target`; returns false, and is nowhere, if there is
    /// none.
    pub(super) fn seek_for_prev(&mut self, target: InternalKey<'_>) -> Result<bool, Malformed> {
        let above = self.rank(|key| key <= target)?;
        match above.checked_sub(1) {
            Some(at) => self.at = at,
            None => self.leave(),
        }
        Ok(above > 0)
    }

    /// Decodes the interval in which `is_below` turns false, and returns how many of its records
    /// are below.
    fn rank(
        &mut self,
        mut is_below: impl FnMut(InternalKey<'_>) -> bool,
    ) -> Result<usize, Malformed> {
        let Some(block) = &self.block else { return Ok(0) };
        let behind = BlockView::new(block)?.partition_restarts(&mut is_below)?;
        self.decode(behind.saturating_sub(1))?;
        let (mut low, mut high) = (0, self.entries.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if is_below(self.key_at(middle)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// Decodes an interval and is at its first record.
    fn decode(&mut self, interval: usize) -> Result<(), Malformed> {
        self.leave();
        let Some(block) = &self.block else { return Ok(()) };
        let view = BlockView::new(block)?;
        let (mut at, end) = (view.restart(interval), view.restart(interval + 1));
        let bad = |offset, expected| Malformed { offset, expected };
        let records = view.records.get(..end).ok_or(bad(at, "ascending restart points"))?;
        let mut last = 0..0;
        while at < end {
            let record = record(records, at)?;
            if record.shared > last.len() {
                return Err(bad(at, "a prefix no longer than the key before"));
            }
            // Both bound what a hostile block can make this buffer grow to.
            if record.shared + record.suffix.len() > KEY_MAX {
                return Err(bad(at, "a key within the limit"));
            }
            if self.entries.len() == RESTART_INTERVAL_MAX {
                return Err(bad(at, "a restart point"));
            }
            if record.trailer.kind().is_none() {
                return Err(bad(record.suffix.end, "a kind of record"));
            }
            let start = self.keys.len();
            self.keys.extend_from_within(last.start..last.start + record.shared);
            self.keys.extend_from_slice(&records[record.suffix]);
            last = start..self.keys.len();
            at = record.value.end;
            let Record { trailer, value, .. } = record;
            self.entries.push(Entry { key_end: last.end, trailer, value });
        }
        if self.entries.is_empty() {
            return Err(bad(at, "ascending restart points"));
        }
        self.interval = interval;
        Ok(())
    }

    fn key_at(&self, n: usize) -> InternalKey<'_> {
        let start = n.checked_sub(1).map_or(0, |before| self.entries[before].key_end);
        let entry = &self.entries[n];
        InternalKey::new(&self.keys[start..entry.key_end], entry.trailer)
    }

    /// Returns the key. Panics if the cursor is nowhere.
    #[inline]
    pub(super) fn key(&self) -> InternalKey<'_> {
        self.key_at(self.at)
    }

    /// Returns the block and the place of the value in it. Panics if the cursor is nowhere.
    #[inline]
    pub(super) fn value(&self) -> (&Block, Range<usize>) {
        let block = self.block.as_ref().expect("invariant: a cursor at a record is in a block");
        (block, self.entries[self.at].value.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Kind;
    use crate::pool::{HeapPool, Pool};

    /// All keys of up to three letters, each with two versions, but for every fifth record.
    fn records() -> Vec<(Vec<u8>, Trailer)> {
        let mut keys = vec![Vec::new()];
        for len in 0..3 {
            let longer: Vec<Vec<u8>> =
                keys.iter().filter(|key| key.len() == len).cloned().collect();
            keys.extend(longer.iter().flat_map(|key| b"ab\xff".map(|c| [&key[..], &[c]].concat())));
        }
        keys.sort();
        let versions = keys.iter().flat_map(|key| [(key, 20), (key, 10)]);
        let records = versions.map(|(key, n)| (key.clone(), Trailer::new(n, Kind::Value)));
        records.enumerate().filter(|(i, _)| i % 5 != 3).map(|(_, record)| record).collect()
    }

    #[test]
    fn every_target_is_found_at_every_restart_interval() {
        let records = records();
        for restart_interval in 1..=16 {
            let mut builder = BlockBuilder::new(restart_interval);
            for (n, (user_key, trailer)) in records.iter().enumerate() {
                builder.add(InternalKey::new(user_key, *trailer), &[n as u8]);
            }
            let bytes = builder.finish();
            let mut frame = HeapPool::new(0).frame(bytes.len());
            frame.copy_from_slice(bytes);
            let block = Block::from(frame);
            let view = BlockView::new(&block).unwrap();
            let mut cursor = Cursor::default();
            cursor.enter(block.clone()).unwrap();
            let here =
                |cursor: &Cursor| cursor.valid().then(|| block[cursor.value().1][0] as usize);
            for (user_key, _) in &records {
                for n in [5, 10, 15, 20, 25] {
                    let target = InternalKey::new(user_key, Trailer::visible_at(n));
                    let key = |n: usize| InternalKey::new(&records[n].0, records[n].1);
                    let after = (0..records.len()).find(|&n| key(n) >= target);
                    let before = (0..records.len()).rfind(|&n| key(n) <= target);
                    let same = after.filter(|&n| records[n].0 == *user_key);
                    let found = view.find(target).unwrap();
                    assert_eq!(found.map(|(_, value)| block[value][0] as usize), same);
                    assert_eq!(cursor.seek(target).unwrap(), after.is_some());
                    assert_eq!(here(&cursor), after);
                    assert_eq!(cursor.seek_for_prev(target).unwrap(), before.is_some());
                    assert_eq!(here(&cursor), before);
                }
            }
        }
    }

    #[test]
    fn a_key_that_a_hostile_block_grows_beyond_the_limit_is_refused() {
        // Each record repeats all of the key before and adds to it.
        let mut bytes = Vec::new();
        for n in 0..20 {
            varint::put(&mut bytes, n * 5000);
            varint::put(&mut bytes, 5000);
            varint::put(&mut bytes, 0);
            bytes.extend_from_slice(&[b'k'; 5000]);
            bytes.extend_from_slice(&Trailer::new(1, Kind::Value).0.to_le_bytes());
        }
        bytes.extend_from_slice(&[0, 0, 0, 0, 1, 0, 0, 0]);
        let mut frame = HeapPool::new(0).frame(bytes.len());
        frame.copy_from_slice(&bytes);
        let mut cursor = Cursor::default();
        cursor.enter(frame.into()).unwrap();
        assert!(cursor.first().is_err());
    }
}
