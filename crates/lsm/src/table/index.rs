//! The index: separators between blocks, partitions of them, and the top index over those.
//!
//! A separator sorts after every record of its block and not after any record behind it. Between
//! user keys it is the shortest start of the next user key that is greater than the last one:
//!
//! ```text
//!   last record of the block     next record            separator
//!   user:alice  @92              user:bob  @40          user:b  @NEWEST
//!   user:bob    @40              user:bob  @17          user:bob  just older than @40
//!   user:zoe    @12              (end of table)         user:zoe\0  @NEWEST
//! ```
//!
//! A lookup of (key, snapshot) goes to the first block whose separator is *greater*. In the first
//! case everything of `user:bob` is at or after the separator, hence behind it; in the second, a
//! snapshot below 40 is at or after the separator too. So the block found is the only one that can
//! hold the answer.

use atoll_encoding::{Malformed, Reader, varint};

use super::block::BlockView;
use super::{Handle, block::common_prefix};
use crate::key::{InternalKey, Trailer};

/// Writes the separator between `last` and `next` into `user_key` and returns its trailer.
pub(super) fn separator(
    user_key: &mut Vec<u8>,
    last: InternalKey<'_>,
    next: Option<InternalKey<'_>>,
) -> Trailer {
    user_key.clear();
    match next {
        Some(next) if next.user_key == last.user_key => {
            user_key.extend_from_slice(last.user_key);
            // Not below zero: the next record is older.
            Trailer(last.trailer.0.saturating_sub(1))
        }
        Some(next) => {
            let same = common_prefix(last.user_key, next.user_key);
            user_key.extend_from_slice(&next.user_key[..same + 1]);
            Trailer::NEWEST
        }
        None => {
            user_key.extend_from_slice(last.user_key);
            user_key.push(0);
            Trailer::NEWEST
        }
    }
}

/// Appends a handle as the value of an index record.
pub(super) fn put_handle(out: &mut Vec<u8>, handle: Handle) {
    varint::put(out, handle.offset);
    varint::put(out, u64::from(handle.len));
}

/// Decodes a handle. Whether it points into the file is checked where it is read.
pub(super) fn handle(reader: &mut Reader<'_>) -> Result<Handle, Malformed> {
    let offset = reader.varint("the offset of a block")?;
    let len = reader.varint("the length of a block")?;
    let len = u32::try_from(len).map_err(|_| reader.malformed("the length of a block"))?;
    Ok(Handle { offset, len })
}

/// Returns the number of the entry of an index partition for `target`, or `None` behind its end.
pub(super) fn locate(
    index: BlockView<'_>,
    target: InternalKey<'_>,
) -> Result<Option<usize>, Malformed> {
    let n = index.partition_restarts(|separator| separator <= target)?;
    Ok((n < index.restarts()).then_some(n))
}

/// Returns the data block of entry `n` of an index partition.
pub(super) fn data_block(index: BlockView<'_>, n: usize) -> Result<Handle, Malformed> {
    let (_, value) = index.at_restart(n)?;
    let mut reader = Reader::new(value);
    let found = handle(&mut reader)?;
    reader.finish("the end of an index entry")?;
    Ok(found)
}

/// An index partition and the filter partition over the same records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Partition {
    pub(super) index: Handle,
    pub(super) filter: Option<Handle>,
}

impl Partition {
    /// Appends the value of a record of the top index.
    pub(super) fn put(self, out: &mut Vec<u8>) {
        put_handle(out, self.index);
        if let Some(filter) = self.filter {
            put_handle(out, filter);
        }
    }
}

/// The top index, in memory while its table is open.
#[derive(Debug, Default)]
pub(super) struct TopIndex {
    /// All separators' user keys, one after another.
    keys: Vec<u8>,
    partitions: Vec<TopEntry>,
}

#[derive(Debug)]
struct TopEntry {
    /// End of the separator's user key in `keys`; it starts where the one before ends.
    key_end: usize,
    trailer: Trailer,
    partition: Partition,
}

impl TopIndex {
    /// Decodes the block, in which separators ascend.
    pub(super) fn decode(block: &[u8]) -> Result<TopIndex, Malformed> {
        let mut top = TopIndex::default();
        // A table of range tombstones alone has no partitions.
        if block.is_empty() {
            return Ok(top);
        }
        let view = BlockView::new(block)?;
        for n in 0..view.restarts() {
            let (key, value) = view.at_restart(n)?;
            if n > 0 && top.separator(n - 1) >= key {
                return Err(Malformed { offset: n, expected: "ascending separators" });
            }
            let mut reader = Reader::new(value);
            let index = handle(&mut reader)?;
            let filter = (!reader.is_empty()).then(|| handle(&mut reader)).transpose()?;
            reader.finish("the end of a top index entry")?;
            top.keys.extend_from_slice(key.user_key);
            top.partitions.push(TopEntry {
                key_end: top.keys.len(),
                trailer: key.trailer,
                partition: Partition { index, filter },
            });
        }
        Ok(top)
    }

    pub(super) fn len(&self) -> usize {
        self.partitions.len()
    }

    pub(super) fn partition(&self, n: usize) -> Option<Partition> {
        self.partitions.get(n).map(|entry| entry.partition)
    }

    /// Returns the number of the partition for `target`, or `None` behind the last record.
    pub(super) fn locate(&self, target: InternalKey<'_>) -> Option<usize> {
        let (mut low, mut high) = (0, self.partitions.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.separator(middle) <= target {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        (low < self.partitions.len()).then_some(low)
    }

    /// Returns the separator behind partition `n`. Panics if there is none.
    pub(super) fn separator(&self, n: usize) -> InternalKey<'_> {
        let start = n.checked_sub(1).map_or(0, |before| self.partitions[before].key_end);
        let entry = &self.partitions[n];
        InternalKey::new(&self.keys[start..entry.key_end], entry.trailer)
    }

    /// Returns the user keys of the separators, ascending.
    pub(super) fn separators(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.partitions.len()).map(|n| self.separator(n).user_key)
    }

    /// Returns the bytes it takes in memory.
    pub(super) fn memory(&self) -> usize {
        self.keys.capacity() + self.partitions.capacity() * size_of::<TopEntry>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Kind;

    fn key(user_key: &[u8], seqno: u64) -> InternalKey<'_> {
        InternalKey::new(user_key, Trailer::new(seqno, Kind::Value))
    }

    #[test]
    fn a_separator_is_above_its_block_and_at_most_the_next_lookup_target() {
        let keys: Vec<&[u8]> = vec![b"", b"\0", b"a", b"a\0", b"aa", b"ab", b"abc", b"b", b"\xff"];
        let mut records = Vec::new();
        for user_key in keys {
            records.extend([9, 5, 0].map(|seqno| key(user_key, seqno)));
        }
        let mut buf = Vec::new();
        for (i, &last) in records.iter().enumerate() {
            for &next in &records[i + 1..] {
                let trailer = separator(&mut buf, last, Some(next));
                let found = InternalKey::new(&buf, trailer);
                assert!(last < found && found <= next, "{last:?} {found:?} {next:?}");
                for snapshot in next.trailer.seqno()..12 {
                    let target = InternalKey::new(next.user_key, Trailer::visible_at(snapshot));
                    // The first record at or after the target is `next`: it must not be looked
                    // for in the block before.
                    if target > last {
                        assert!(found <= target, "{last:?} {found:?} {target:?}");
                    }
                }
            }
            let trailer = separator(&mut buf, last, None);
            assert!(last < InternalKey::new(&buf, trailer));
        }
    }
}
