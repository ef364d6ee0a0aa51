//! Verification: every byte of the file is read and held against everything that is known of it.

use std::collections::BTreeMap;

use atoll_encoding::hash::hash64;
use atoll_env::disk::IoClass;

use super::block::{BlockView, Cursor};
use super::codec::BlockKind;
use super::footer::FOOTER_LEN;
use super::index::data_block;
use super::iter::Direction;
use super::properties::{Properties, range_tombstones};
use super::readahead::Window;
use super::reader::Table;
use super::{Handle, ReadOptions, filter};
use crate::error::Result;
use crate::key::{InternalKey, Trailer};
use crate::pool::Block;
use crate::values::Pointer;

/// What a verification read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Data blocks.
    pub data_blocks: u64,
    /// Records.
    pub entries: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of records in value files that it points to, by file, ascending.
    pub values: Vec<(u64, u64)>,
}

impl Table {
    /// Reads the whole file past the pool and returns the first contradiction as a corruption:
    /// checksums, the order of keys and separators, filters that deny a key, blocks that overlap
    /// or leave a gap, counts and bounds that differ from the properties.
    pub async fn verify(&self) -> Result<Verified> {
        let footer = self.read_footer().await?;
        let mut check = Check {
            table: self,
            seen: Properties::counting(),
            values: BTreeMap::new(),
            last: None,
            floor: None,
        };
        let mut window = Window::default();
        let mut tail = vec![footer.properties, footer.top_index];
        for n in 0..self.top().len() {
            let Some(partition) = self.top().partition(n) else { break };
            let index = self.read_past(partition.index, BlockKind::Index).await?;
            tail.push(partition.index);
            let filter = match partition.filter {
                Some(handle) => Some(self.read_past(handle, BlockKind::Filter).await?),
                None => None,
            };
            tail.extend(partition.filter);
            let in_index = |e| self.malformed(partition.index, e);
            let view = BlockView::new(&index).map_err(in_index)?;
            for entry in 0..view.restarts() {
                let (separator, _) = view.at_restart(entry).map_err(in_index)?;
                let handle = data_block(view, entry).map_err(in_index)?;
                let range = self.range(handle)?;
                if window.get(range.clone()).is_none() {
                    window.fill(self, handle, Direction::Forward, &READ).await?;
                }
                let sealed = window.get(range).unwrap_or_default();
                let block = match self.unseal(handle, BlockKind::Data, sealed, None) {
                    Err(e) if e.is_corruption() => self.read_past(handle, BlockKind::Data).await?,
                    block => block?,
                };
                check.block(handle, block, separator, filter.as_deref())?;
            }
            let last = view.at_restart(view.restarts() - 1).map_err(in_index)?.0;
            if last != self.top().separator(n) {
                let what = "top index and index partition have different separators";
                return Err(self.corruption(footer.top_index.offset, what));
            }
        }
        let mut tombstones = Vec::new();
        for &handle in &self.properties().range_tombstone_blocks {
            let block = self.read_past(handle, BlockKind::RangeTombstones).await?;
            tombstones.extend(range_tombstones(&block).map_err(|e| self.malformed(handle, e))?);
            tail.push(handle);
        }
        self.read_past(footer.properties, BlockKind::Properties).await?;
        self.read_past(footer.top_index, BlockKind::TopIndex).await?;
        check.tiling(tail)?;
        let Check { seen, values, last, .. } = check;
        let verified = Verified {
            data_blocks: seen.data_blocks,
            entries: seen.entries,
            bytes: self.size(),
            values: values.into_iter().collect(),
        };
        let last_key = last.map(|(user_key, _)| user_key).unwrap_or_default();
        if !seen.agrees_with(self.properties(), &last_key, &tombstones) {
            let what = "the properties do not describe the records";
            return Err(self.corruption(footer.properties.offset, what));
        }
        Ok(verified)
    }

    async fn read_past(&self, handle: Handle, kind: BlockKind) -> Result<Block> {
        self.read_block(handle, kind, IoClass::Scrub, None).await
    }
}

const READ: ReadOptions = ReadOptions { class: IoClass::Scrub, ..ReadOptions::COMPACTION };

/// What was seen so far of a table.
struct Check<'a> {
    table: &'a Table,
    /// Counted as the writer counts.
    seen: Properties,
    /// Bytes that are pointed to, by value file.
    values: BTreeMap<u64, u64>,
    /// The last record.
    last: Option<(Vec<u8>, Trailer)>,
    /// The last block's separator.
    floor: Option<(Vec<u8>, Trailer)>,
}

impl Check<'_> {
    fn block(
        &mut self,
        handle: Handle,
        block: Block,
        separator: InternalKey<'_>,
        filter: Option<&[u8]>,
    ) -> Result<()> {
        let bad = |what| Err(self.table.corruption(handle.offset, what));
        if handle.offset != self.seen.data_bytes {
            return bad("data blocks do not follow each other");
        }
        self.seen.data_bytes = handle.end();
        self.seen.data_blocks += 1;
        let mut cursor = Cursor::default();
        let in_block = |e| self.table.malformed(handle, e);
        cursor.enter(block).map_err(in_block)?;
        cursor.first().map_err(in_block)?;
        if borrowed(&self.floor).is_some_and(|floor| cursor.key() < floor) {
            return bad("a record is below the separator of the block before");
        }
        while cursor.valid() {
            let key = cursor.key();
            if borrowed(&self.last).is_some_and(|last| last >= key) {
                return bad("records do not ascend");
            }
            if key >= separator {
                return bad("a record is not below the separator of its block");
            }
            let denied = |filter| filter::may_contain(filter, hash64(key.user_key)) != Some(true);
            if filter.is_some_and(denied) {
                return bad("the filter denies a key that is there");
            }
            let (block, value) = cursor.value();
            let value = &block[value];
            if key.trailer.is_separated() {
                let Some(pointer) = Pointer::of(key.trailer, value) else {
                    return bad("a separated record has no pointer");
                };
                *self.values.entry(pointer.file).or_default() += u64::from(pointer.size);
            }
            self.seen.count(key, value);
            remember(&mut self.last, key);
            if !cursor.step() {
                cursor.next_interval().map_err(in_block)?;
            }
        }
        remember(&mut self.floor, separator);
        Ok(())
    }

    /// Checks that the blocks behind the data leave no byte out and share none.
    fn tiling(&self, mut tail: Vec<Handle>) -> Result<()> {
        tail.sort_by_key(|handle| handle.offset);
        let mut at = self.seen.data_bytes;
        for handle in tail {
            if handle.offset != at {
                let what = "bytes that belong to no block or to two";
                return Err(self.table.corruption(at, what));
            }
            at = handle.end();
        }
        if at != self.table.size() - FOOTER_LEN as u64 {
            return Err(self.table.corruption(at, "bytes that belong to no block"));
        }
        Ok(())
    }
}

fn borrowed(key: &Option<(Vec<u8>, Trailer)>) -> Option<InternalKey<'_>> {
    key.as_ref().map(|(user_key, trailer)| InternalKey::new(user_key, *trailer))
}

fn remember(place: &mut Option<(Vec<u8>, Trailer)>, key: InternalKey<'_>) {
    let (user_key, trailer) = place.get_or_insert_with(|| (Vec::new(), key.trailer));
    user_key.clear();
    user_key.extend_from_slice(key.user_key);
    *trailer = key.trailer;
}
