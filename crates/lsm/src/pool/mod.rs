//! The block cache: blocks of table files in memory, within one budget.
//!
//! A reader asks the [`Pool`] for the block at (file, offset). On a miss it reads the file, unpacks
//! the block into a [`Frame`] taken from the pool, and hands it in; what it gets back is a
//! [`Block`], a counted handle that stays valid for as long as anybody holds it, evicted or not:
//!
//! ```text
//!   get(file 7, offset 4096) ── hit ──────────────────────────────► Block
//!        │ miss                                                       ▲
//!        └─► read_at ─► frame(len) ─► unpack, verify ─► insert(..) ───┘
//! ```
//!
//! The bytes of a block never change, and a file id is never reused, so there is nothing to
//! invalidate: [`Pool::forget`] only gives memory back early when a table is deleted.
//!
//! # Decisions
//! - Where frames live is the pool's own business (`heap` allocates each; a region of pinned huge
//!   pages can take its place), therefore memory to fill comes *from* the pool and a block is an
//!   opaque handle.
//! - Two readers that miss the same block at the same time both read it, and the second is given
//!   the first one's copy. Waiting for each other would save one read of a few KiB and cost a
//!   registration on each miss.
//! - Blocks held by readers after their eviction are not counted: the budget bounds what the
//!   cache keeps alive, readers bound what they hold.

mod heap;

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

pub use heap::HeapPool;

use crate::slice::{Owner, Slice};

/// Name of a block: where its sealed bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockKey {
    /// Table id, never reused.
    pub file: u64,
    /// Offset of the block in the file.
    pub offset: u64,
}

/// How much a reader thinks of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    /// Part of an index or a filter: many lookups need it, so it starts ahead of data.
    Index,
    /// Data that a lookup asked for.
    Data,
    /// Read once (scan, compaction): a hit does not count and a miss is not kept.
    No,
}

/// What a pool did and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Lookups answered from memory.
    pub hits: u64,
    /// Lookups that were not.
    pub misses: u64,
    /// Blocks pushed out to stay within the capacity.
    pub evictions: u64,
    /// Blocks held now.
    pub blocks: u64,
    /// Bytes charged now, bookkeeping included.
    pub bytes: u64,
    /// Budget in bytes.
    pub capacity: u64,
}

/// A cache of blocks. All methods may be called from any thread and never wait for I/O.
pub trait Pool: Send + Sync {
    /// Returns memory for a block of `len` bytes, to be filled and handed to [`Pool::insert`].
    fn frame(&self, len: usize) -> Frame;
    /// Returns a block if it is in memory.
    fn get(&self, key: BlockKey, admit: Admit) -> Option<Block>;
    /// Makes a filled frame readable, and keeps it if the policy agrees. If another reader was
    /// faster, its equal copy is returned and this one is dropped.
    fn insert(&self, key: BlockKey, frame: Frame, admit: Admit) -> Block;
    /// Drops all blocks of a deleted file; costs time for these only.
    fn forget(&self, file: u64);
    /// Changes the budget, evicting what no longer fits.
    fn set_capacity(&self, bytes: usize);
    /// Returns counters and sizes.
    fn stats(&self) -> PoolStats;
}

/// Memory of a pool that its one holder fills.
pub struct Frame {
    bytes: Box<[u8]>,
}

impl Frame {
    /// Allocates `len` zero bytes from the heap.
    fn on_heap(len: usize) -> Frame {
        Frame { bytes: vec![0; len].into_boxed_slice() }
    }
}

impl Deref for Frame {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Frame {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Owner for Frame {
    fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }
}

/// A filled frame: a counted handle on bytes that never change.
#[derive(Clone)]
pub struct Block(Arc<Frame>);

impl Block {
    /// Returns a part of the block that keeps it in memory. Panics outside of it.
    pub fn slice(&self, range: Range<usize>) -> Slice {
        assert!(range.start <= range.end && range.end <= self.len(), "slice out of its block");
        Slice::new(self.0.clone(), range)
    }
}

impl From<Frame> for Block {
    fn from(frame: Frame) -> Block {
        Block(Arc::new(frame))
    }
}

impl Deref for Block {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        &self.0.bytes
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} bytes)", self.len())
    }
}
