//! An open table: point lookups, filter checks, and the reading of blocks for everyone else.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_encoding::Malformed;
use atoll_encoding::checksum::Place;
use atoll_encoding::hash::hash64;
use atoll_env::disk::IoClass;
use atoll_env::{Disk, File, FileUse, IoBuf, IoTag, OpenMode};

use super::block::BlockView;
use super::codec::{BlockKind, unseal};
use super::footer::{FOOTER_LEN, Footer, FooterError};
use super::index::{TopIndex, data_block, locate};
use super::properties::{Properties, range_tombstones};
use super::{BLOCK_MAX, Handle, PrefixRule, filter};
use crate::error::{Error, Result};
use crate::key::{InternalKey, SeqNo, Trailer};
use crate::pool::{Admit, Block, BlockKey, Pool, passing};
use crate::slice::Slice;
use crate::tombstone::RangeTombstone;

/// What the manifest says about a table; a file that is not this one is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Length of the file in bytes.
    pub size: u64,
    /// Salt of its checksums.
    pub salt: u64,
    /// What the sequence numbers in it are relative to: 0, but for a table that was written before its
    /// place in the order of writes was known.
    pub base: SeqNo,
}

/// A record found by a lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its sequence number and kind.
    pub trailer: Trailer,
    /// Its value, which keeps the block in memory.
    pub value: Slice,
}

/// An open table. It may be read from any thread.
///
/// Removing the file is its owner's business, who then also tells the pool ([`Pool::forget`]).
pub struct Table {
    path: PathBuf,
    id: u64,
    salt: u64,
    base: SeqNo,
    size: u64,
    file: Arc<dyn File>,
    pool: Arc<dyn Pool>,
    top: TopIndex,
    properties: Properties,
    range_tombstones: Vec<RangeTombstone>,
}

impl Table {
    /// Opens the table `id` at `path` and loads what stays in memory: top index, properties, range
    /// tombstones.
    pub async fn open(
        disk: &dyn Disk,
        path: &Path,
        id: u64,
        expected: Expected,
        pool: Arc<dyn Pool>,
    ) -> Result<Arc<Table>> {
        let io = |e| Error::io("opening table", path, e);
        let file = disk.open_for(path, OpenMode::Read, FileUse::Table).await.map_err(io)?;
        let found = file.len().await.map_err(io)?;
        let Expected { size, salt, base } = expected;
        if found != size || size < FOOTER_LEN as u64 {
            let what = format!("the table has {found} bytes, {size} were expected");
            return Err(Error::corruption(path, found.min(size), what));
        }
        let mut table = Table {
            path: path.to_owned(),
            id,
            salt,
            base,
            size,
            file,
            pool,
            top: TopIndex::default(),
            properties: Properties::default(),
            range_tombstones: Vec::new(),
        };
        let footer = table.read_footer().await?;
        let handle = footer.properties;
        let block = table.read_block(handle, BlockKind::Properties, IoClass::Read, None).await?;
        table.properties = Properties::decode(&block).map_err(|e| table.malformed(handle, e))?;
        let handle = footer.top_index;
        let block = table.read_block(handle, BlockKind::TopIndex, IoClass::Read, None).await?;
        table.top = TopIndex::decode(&block).map_err(|e| table.malformed(handle, e))?;
        for handle in table.properties.range_tombstone_blocks.clone() {
            let kind = BlockKind::RangeTombstones;
            let block = table.read_block(handle, kind, IoClass::Read, None).await?;
            let more = range_tombstones(&block).map_err(|e| table.malformed(handle, e))?;
            table.range_tombstones.extend(more);
        }
        table.check_properties(footer)?;
        Ok(Arc::new(table))
    }

    /// Returns the table id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns the path it was opened at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns what its sequence numbers are relative to; properties and the bare blocks have these.
    pub(super) fn base(&self) -> SeqNo {
        self.base
    }

    /// Returns the length of the file in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns what is in it.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// Returns its range tombstones, sorted by start, newest first.
    pub fn range_tombstones(&self) -> &[RangeTombstone] {
        &self.range_tombstones
    }

    /// Returns the bytes that the open table keeps in memory outside of the pool.
    pub fn memory(&self) -> usize {
        let tombstones = self.range_tombstones.iter();
        let tombstones = tombstones.map(|t| t.start.len() + t.end.len() + size_of_val(t));
        size_of::<Table>() + self.top.memory() + tombstones.sum::<usize>()
    }

    /// Returns the newest record of `user_key` visible at `snapshot`, tombstones included; range
    /// tombstones are the caller's business. `hash` is `hash64(user_key)`, computed once for all
    /// tables of a lookup. Completes at the first poll if the blocks are in memory.
    pub async fn get(&self, user_key: &[u8], snapshot: SeqNo, hash: u64) -> Result<Option<Found>> {
        let visible = Trailer::visible_at(snapshot).relative_to(self.base);
        let target = InternalKey::new(user_key, visible);
        let Some(partition) = self.top.locate(target).and_then(|n| self.top.partition(n)) else {
            return Ok(None);
        };
        if let Some(filter) = partition.filter
            && !self.ask_filter(filter, hash).await?
        {
            return Ok(None);
        }
        let index = self.block(partition.index, BlockKind::Index, Admit::Index).await?;
        let found = BlockView::new(&index)
            .and_then(|index| locate(index, target)?.map(|n| data_block(index, n)).transpose());
        let Some(handle) = found.map_err(|e| self.malformed(partition.index, e))? else {
            return Ok(None);
        };
        let block = self.block(handle, BlockKind::Data, Admit::Data).await?;
        let found = BlockView::new(&block).and_then(|view| view.find(target));
        match found.map_err(|e| self.malformed(handle, e))? {
            Some((trailer, _)) if trailer.kind().is_none() => {
                Err(self.corruption(handle.offset, "a record of unknown kind"))
            }
            Some((trailer, value)) => {
                let trailer = trailer.above(self.base);
                Ok(Some(Found { trailer, value: block.slice(value) }))
            }
            None => Ok(None),
        }
    }

    /// Returns false only if no record of the user key is in the table that is visible at
    /// `snapshot`. Reads at most one filter partition.
    pub async fn may_contain(&self, user_key: &[u8], snapshot: SeqNo, hash: u64) -> Result<bool> {
        let visible = Trailer::visible_at(snapshot).relative_to(self.base);
        let target = InternalKey::new(user_key, visible);
        match self.top.locate(target).and_then(|n| self.top.partition(n)) {
            None => Ok(false),
            Some(partition) => match partition.filter {
                None => Ok(true),
                Some(filter) => self.ask_filter(filter, hash).await,
            },
        }
    }

    /// Returns false only if the table has no record of a user key that starts with `prefix`,
    /// which must be the prefix that `rule` gives to such keys. A table that was written under
    /// another rule, or without filter, may have one. Reads at most one filter partition.
    pub async fn may_contain_prefix(&self, rule: &PrefixRule, prefix: &[u8]) -> Result<bool> {
        // The first record with the prefix, if there is one, is also the first at or after this
        // target, and so it is in the partition found: a separator before it is a start of the
        // prefix at most, because the record before does not have the prefix.
        let target = InternalKey::new(prefix, Trailer::NEWEST);
        let Some(partition) = self.top.locate(target).and_then(|n| self.top.partition(n)) else {
            return Ok(false);
        };
        match partition.filter {
            Some(filter) if rule.id != 0 && self.properties.prefix_rule == rule.id => {
                self.ask_filter(filter, hash64(prefix)).await
            }
            _ => Ok(true),
        }
    }

    async fn ask_filter(&self, handle: Handle, hash: u64) -> Result<bool> {
        let block = self.block(handle, BlockKind::Filter, Admit::Index).await?;
        let answer = filter::may_contain(&block, hash);
        answer.ok_or_else(|| self.corruption(handle.offset, "a block that is no filter"))
    }

    /// Returns a block from the pool or the file.
    #[inline]
    async fn block(&self, handle: Handle, kind: BlockKind, admit: Admit) -> Result<Block> {
        match self.cached(handle, admit) {
            Some(block) => Ok(block),
            None => self.read_block(handle, kind, IoClass::Read, Some(admit)).await,
        }
    }

    /// Returns a block if it is in memory.
    #[inline]
    pub(super) fn cached(&self, handle: Handle, admit: Admit) -> Option<Block> {
        self.pool.get(BlockKey { file: self.id, offset: handle.offset }, admit)
    }

    /// Reads a block from the file, and once more if it does not verify: a bit may have flipped on
    /// the way. `admit` offers it to the pool.
    pub(super) async fn read_block(
        &self,
        handle: Handle,
        kind: BlockKind,
        class: IoClass,
        admit: Option<Admit>,
    ) -> Result<Block> {
        let range = self.range(handle)?;
        let sealed = self.read(range.clone(), IoBuf::new(), class).await?;
        match self.unseal(handle, kind, &sealed, admit) {
            Err(e) if e.is_corruption() => {
                let sealed = self.read(range, sealed, class).await?;
                self.unseal(handle, kind, &sealed, admit)
            }
            result => result,
        }
    }

    /// Reads a range of the file, which lies within it.
    pub(super) async fn read(
        &self,
        range: Range<u64>,
        mut buf: IoBuf,
        class: IoClass,
    ) -> Result<IoBuf> {
        buf.resize((range.end - range.start) as usize);
        let read = self.file.read_at(IoTag::new(class, "table read"), range.start, buf).await;
        read.map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                self.corruption(range.start, "the file ends before its footer said")
            }
            _ => Error::io("reading table", &self.path, e),
        })
    }

    /// Verifies and unpacks a block that was read. `admit` offers it to the pool.
    pub(super) fn unseal(
        &self,
        handle: Handle,
        kind: BlockKind,
        sealed: &[u8],
        admit: Option<Admit>,
    ) -> Result<Block> {
        let place = Place { file: self.id, salt: self.salt, offset: handle.offset };
        let stays = admit.is_some_and(|admit| admit != Admit::No);
        let memory = if stays { &*self.pool } else { passing() };
        let frame = unseal(memory, place, kind, sealed);
        let frame = frame.map_err(|what| self.corruption(handle.offset, what))?;
        let key = BlockKey { file: self.id, offset: handle.offset };
        Ok(match admit {
            Some(admit) => self.pool.insert(key, frame, admit),
            None => Block::from(frame),
        })
    }

    /// Returns where the sealed bytes of a block lie, checked against the file.
    pub(super) fn range(&self, handle: Handle) -> Result<Range<u64>> {
        let end = handle.end();
        if end > self.size - FOOTER_LEN as u64 || handle.len as usize > BLOCK_MAX {
            let what = format!("a block of {} bytes does not lie in the file", handle.len);
            return Err(self.corruption(handle.offset, what));
        }
        Ok(handle.offset..end)
    }

    pub(super) fn top(&self) -> &TopIndex {
        &self.top
    }

    /// Returns keys that cut the table into parts of about equal size, ascending; the last is behind
    /// its last record.
    pub fn cuts(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.top().separators()
    }

    pub(super) fn corruption(&self, offset: u64, what: impl Into<String>) -> Error {
        Error::corruption(&self.path, offset, what)
    }

    /// Names a block that verified and does not decode.
    pub(super) fn malformed(&self, handle: Handle, e: Malformed) -> Error {
        self.corruption(handle.offset, format!("in the block there: {e}"))
    }

    pub(super) async fn read_footer(&self) -> Result<Footer> {
        let at = self.size - FOOTER_LEN as u64;
        let footer = self.read(at..self.size, IoBuf::new(), IoClass::Read).await?;
        let footer = footer.first_chunk().ok_or_else(|| self.corruption(at, "no footer"))?;
        Footer::decode(footer, self.id, self.salt, self.size).map_err(|e| match e {
            FooterError::Bad(what) => self.corruption(at, what),
            FooterError::Newer(version) => Error::Foreign {
                path: self.path.clone(),
                what: format!(
                    "the table has format version {version}, this program reads up to {}; \
                     start a newer program",
                    super::footer::VERSION
                ),
            },
        })
    }

    /// Refuses properties that contradict what else was read.
    fn check_properties(&self, footer: Footer) -> Result<()> {
        let p = &self.properties;
        let at = footer.properties.offset;
        let what = if p.data_bytes > footer.properties.offset {
            "the data does not lie before the properties"
        } else if p.range_tombstones != self.range_tombstones.len() as u64 {
            "the number of range tombstones differs"
        } else if (p.entries == 0) != (self.top.len() == 0) {
            "the number of records and the index contradict each other"
        } else {
            return Ok(());
        };
        Err(self.corruption(at, what))
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Table({}, {} records)", self.id, self.properties.entries)
    }
}
