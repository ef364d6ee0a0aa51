//! Writing a table: records in, blocks out, the index and filters behind them.
//!
//! ```text
//!   add ─► data block ── full ──► sealed ─► piece ── 256 KiB ──► queue ── write_out ──► file
//!              │                                                  ▲
//!              ├─► separator -> index partition ── full ─┐        │ at the end
//!              └─► hashes    -> filter partition ────────┴────────┘
//! ```
//!
//! [`TableWriter::add`] never waits: it fills memory. The caller writes out when
//! [`TableWriter::is_full`] says that a piece is complete, which bounds the memory at one piece and
//! the partitions written so far (about 1 % of the file).
//!
//! A writer that is dropped leaves a file without footer, which nobody can open; its owner removes
//! it. After a failed or interrupted write the writer refuses everything.

use std::path::Path;

use atoll_encoding::checksum::Place;
use atoll_encoding::hash::hash64;
use atoll_env::disk::IoClass;
use atoll_env::{Disk, FileUse, OpenMode};

use super::block::BlockBuilder;
use super::codec::{BlockKind, SEAL_LEN, Sealed, Sealer};
use super::filter::{Filter, FilterBuilder};
use super::footer::{FOOTER_LEN, Footer};
use super::index::{Partition, put_handle, separator};
use super::properties::{Properties, put_range_tombstone};
use super::{BLOCK_MAX, Handle, KEY_MAX, RESTART_INTERVAL_MAX, TableOptions, VALUE_MAX};
use crate::error::{Error, Result};
use crate::key::{InternalKey, Trailer};
use crate::pieces::{Pieces, Subject};
use crate::tombstone::RangeTombstone;

/// Bytes of a block of range tombstones.
const RANGE_TOMBSTONE_BLOCK: usize = 64 << 10;

/// What the owner of a finished table must remember to open it again, and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableMeta {
    /// Table id.
    pub id: u64,
    /// Salt of its checksums.
    pub salt: u64,
    /// Length of the file in bytes.
    pub size: u64,
    /// What is in it.
    pub properties: Properties,
}

/// Writes one table.
pub struct TableWriter {
    options: TableOptions,
    id: u64,
    salt: u64,
    output: Pieces,
    sealer: Sealer,
    /// The data block being filled.
    block: BlockBuilder,
    /// The separators of the index partition being filled.
    index: BlockBuilder,
    filter: FilterBuilder,
    /// Finished partitions, written behind the data.
    partitions: Vec<FinishedPartition>,
    partition_bytes: usize,
    range_tombstones: Vec<RangeTombstone>,
    range_tombstone_bytes: usize,
    /// The record added last: user key and trailer.
    last_key: Vec<u8>,
    last: Option<Trailer>,
    /// Hashes of the key and the prefix that were added last to the filter being filled.
    last_hash: Option<u64>,
    last_prefix: Option<u64>,
    properties: Properties,
    /// Reused for separators and index values.
    separator: Vec<u8>,
    value: Vec<u8>,
}

/// A partition in memory until the data is complete.
struct FinishedPartition {
    index: Vec<u8>,
    filter: Option<Vec<u8>>,
    /// Separator behind it.
    user_key: Vec<u8>,
    trailer: Trailer,
}

impl TableWriter {
    /// Creates the file `path`, which must not exist, for the table `id`. `salt` is random: it
    /// tells this file from an earlier one with the same id. `class` schedules the writes.
    pub async fn create(
        disk: &dyn Disk,
        path: &Path,
        id: u64,
        salt: u64,
        options: TableOptions,
        class: IoClass,
    ) -> Result<TableWriter> {
        if !(1..=RESTART_INTERVAL_MAX).contains(&options.restart_interval) {
            return Err(Error::InvalidInput(format!(
                "a restart interval of {} is not possible; choose 1 to {RESTART_INTERVAL_MAX}",
                options.restart_interval
            )));
        }
        let file = disk.open_for(path, OpenMode::CreateNew, FileUse::Table).await;
        let file = file.map_err(|e| Error::io("creating table", path, e))?;
        let properties = Properties {
            level: options.level,
            created: options.created,
            prefix_rule: options.prefix_rule.as_ref().map_or(0, |rule| rule.id),
            ..Properties::counting()
        };
        Ok(TableWriter {
            id,
            salt,
            output: Pieces::new(file, path, Subject::Table, class),
            sealer: Sealer::new(options.codec),
            block: BlockBuilder::new(options.restart_interval),
            index: BlockBuilder::new(1),
            filter: FilterBuilder::new(options.filter),
            partitions: Vec::new(),
            partition_bytes: 0,
            range_tombstones: Vec::new(),
            range_tombstone_bytes: 0,
            last_key: Vec::new(),
            last: None,
            last_hash: None,
            last_prefix: None,
            properties,
            separator: Vec::new(),
            value: Vec::new(),
            options,
        })
    }

    /// Adds a record, which sorts after the one before. Fills memory only: write it out when
    /// [`TableWriter::is_full`].
    pub fn add(&mut self, key: InternalKey<'_>, value: &[u8]) -> Result<()> {
        self.check(key, value)?;
        let new_key = self.last.is_none() || self.last_key != key.user_key;
        let estimate = self.block.size() + key.user_key.len() + value.len() + 16;
        if estimate > self.options.block_bytes && !self.block.is_empty() {
            self.cut_block(Some(key));
        }
        self.block.add(key, value);
        // A partition cut inside of a run of one key's versions has the key in both filters.
        if new_key || self.last_hash.is_none() {
            self.add_to_filter(key.user_key);
        }
        self.properties.count(key, value);
        self.last_key.clear();
        self.last_key.extend_from_slice(key.user_key);
        self.last = Some(key.trailer);
        Ok(())
    }

    /// Adds a range tombstone; any order.
    pub fn add_range_tombstone(&mut self, tombstone: &RangeTombstone) -> Result<()> {
        if tombstone.start >= tombstone.end || tombstone.end.len() > KEY_MAX {
            return Err(Error::InvalidInput(format!(
                "a range tombstone ends after its start, with keys of at most {KEY_MAX} bytes"
            )));
        }
        self.range_tombstone_bytes += tombstone.start.len() + tombstone.end.len() + 12;
        self.range_tombstones.push(tombstone.clone());
        Ok(())
    }

    /// Returns whether a piece of the file is complete and waits in memory to be written.
    pub fn is_full(&self) -> bool {
        self.output.is_full()
    }

    /// Writes the complete pieces.
    pub async fn write_out(&mut self) -> Result<()> {
        self.output.write_out().await
    }

    /// Returns the size the file would have if it were finished now, in bytes, within a few
    /// percent.
    pub fn estimated_size(&self) -> u64 {
        let buffered = self.block.size() + self.index.size() + self.filter.size();
        let behind = self.partition_bytes + self.range_tombstone_bytes;
        self.output.end() + (buffered + behind) as u64
    }

    /// Returns the number of records added.
    pub fn entries(&self) -> u64 {
        self.properties.entries
    }

    /// Completes the file and syncs it. Its name is durable once the caller has synced the
    /// directory.
    pub async fn finish(mut self) -> Result<TableMeta> {
        if self.last.is_none() && self.range_tombstones.is_empty() {
            return Err(Error::InvalidInput(
                "an empty table is not written; drop the writer and remove the file".into(),
            ));
        }
        if !self.block.is_empty() {
            self.cut_block(None);
        }
        self.properties.data_bytes = self.output.end();
        let top_index = self.put_partitions().await?;
        self.put_range_tombstones().await?;
        let properties = self.properties.encode();
        let properties = self.put(BlockKind::Properties, &properties)?;
        let top_index = self.put(BlockKind::TopIndex, &top_index)?;
        let size = self.output.end() + FOOTER_LEN as u64;
        let (id, salt) = (self.id, self.salt);
        let footer = Footer { properties, top_index, table: id, salt, size };
        self.output.append(&footer.encode());
        self.output.finish().await?;
        Ok(TableMeta { id, salt, size, properties: self.properties })
    }

    fn check(&self, key: InternalKey<'_>, value: &[u8]) -> Result<()> {
        if key.user_key.len() > KEY_MAX || value.len() > VALUE_MAX {
            return Err(Error::InvalidInput(format!(
                "a record with a key of {} and a value of {} bytes does not fit into a table; \
                 the limits are {KEY_MAX} and {VALUE_MAX}",
                key.user_key.len(),
                value.len()
            )));
        }
        if let Some(trailer) = self.last
            && InternalKey::new(&self.last_key, trailer) >= key
        {
            return Err(Error::InvalidInput("records of a table must ascend".into()));
        }
        let Some(kind) = key.trailer.kind() else {
            return Err(Error::InvalidInput("a record needs a kind".into()));
        };
        if value.len() < kind.head_len() {
            return Err(Error::InvalidInput(
                "a record with a deadline or a stamp starts with it".into(),
            ));
        }
        Ok(())
    }

    fn add_to_filter(&mut self, user_key: &[u8]) {
        if self.options.filter == Filter::None {
            return;
        }
        let hash = hash64(user_key);
        self.filter.add(hash);
        self.last_hash = Some(hash);
        let prefix_len = self.options.prefix_rule.as_ref().and_then(|r| (r.prefix_len)(user_key));
        if let Some(prefix) = prefix_len.and_then(|len| user_key.get(..len)) {
            let hash = hash64(prefix);
            if self.last_prefix != Some(hash) {
                self.filter.add(hash);
                self.last_prefix = Some(hash);
            }
        }
    }

    /// Seals the data block; `next` is the record that comes behind it.
    fn cut_block(&mut self, next: Option<InternalKey<'_>>) {
        let place = self.place();
        let sealed = self.sealer.seal(place, BlockKind::Data, self.block.finish());
        let handle = append_sealed(&mut self.output, place, &sealed);
        self.block.clear();
        self.properties.data_blocks += 1;
        // There is a last record, because the block was not empty.
        let Some(trailer) = self.last else { return };
        let last = InternalKey::new(&self.last_key, trailer);
        let trailer = separator(&mut self.separator, last, next);
        self.value.clear();
        put_handle(&mut self.value, handle);
        self.index.add(InternalKey::new(&self.separator, trailer), &self.value);
        let limit = self.options.partition_bytes;
        if next.is_none() || self.index.size() >= limit || self.filter.size() >= 4 * limit {
            self.cut_partition(trailer);
        }
    }

    /// Completes index and filter partition; the last separator is in `self.separator`.
    fn cut_partition(&mut self, trailer: Trailer) {
        let finished = FinishedPartition {
            index: self.index.finish().to_vec(),
            filter: self.filter.finish(),
            user_key: self.separator.clone(),
            trailer,
        };
        self.index.clear();
        self.last_hash = None;
        self.last_prefix = None;
        self.partition_bytes +=
            finished.index.len() + finished.filter.as_ref().map_or(0, Vec::len) + 2 * SEAL_LEN;
        self.partitions.push(finished);
    }

    /// Writes filter and index partitions; returns the top index.
    async fn put_partitions(&mut self) -> Result<Vec<u8>> {
        let partitions = std::mem::take(&mut self.partitions);
        let mut filters = Vec::with_capacity(partitions.len());
        for partition in &partitions {
            filters.push(match &partition.filter {
                Some(filter) => Some(self.put(BlockKind::Filter, filter)?),
                None => None,
            });
            self.output.write_out().await?;
        }
        let mut top = BlockBuilder::new(1);
        for (partition, filter) in partitions.iter().zip(filters) {
            let index = self.put(BlockKind::Index, &partition.index)?;
            self.output.write_out().await?;
            self.value.clear();
            Partition { index, filter }.put(&mut self.value);
            top.add(InternalKey::new(&partition.user_key, partition.trailer), &self.value);
        }
        Ok(if top.is_empty() { Vec::new() } else { top.finish().to_vec() })
    }

    /// Writes the range tombstones, sorted, and takes them into the bounds.
    async fn put_range_tombstones(&mut self) -> Result<()> {
        let mut tombstones = std::mem::take(&mut self.range_tombstones);
        tombstones.sort_by(|a, b| {
            a.start.cmp(&b.start).then(b.seqno.cmp(&a.seqno)).then(a.end.cmp(&b.end))
        });
        self.properties.complete(&self.last_key, &tombstones);
        let mut block = Vec::new();
        for (i, tombstone) in tombstones.iter().enumerate() {
            put_range_tombstone(&mut block, tombstone);
            if block.len() >= RANGE_TOMBSTONE_BLOCK || i + 1 == tombstones.len() {
                let handle = self.put(BlockKind::RangeTombstones, &block)?;
                self.properties.range_tombstone_blocks.push(handle);
                self.output.write_out().await?;
                block.clear();
            }
        }
        Ok(())
    }

    fn put(&mut self, kind: BlockKind, raw: &[u8]) -> Result<Handle> {
        if raw.len() > BLOCK_MAX {
            return Err(Error::InvalidInput(format!(
                "the {} of a table would take {} bytes; write smaller tables",
                kind.name(),
                raw.len()
            )));
        }
        let place = self.place();
        Ok(append_sealed(&mut self.output, place, &self.sealer.seal(place, kind, raw)))
    }

    /// Returns where the next block goes.
    fn place(&self) -> Place {
        Place { file: self.id, salt: self.salt, offset: self.output.end() }
    }
}

/// Appends a block that was sealed for `place`, which is the end of `output`.
fn append_sealed(output: &mut Pieces, place: Place, sealed: &Sealed<'_>) -> Handle {
    output.append(sealed.stored);
    output.append(&sealed.seal);
    Handle { offset: place.offset, len: sealed.stored.len() as u32 }
}
