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
//! # Parts
//! | module | what it knows |
//! |---|---|
//! | `cache` | the policy: which blocks are kept, and for how long. One for all strategies |
//! | `frame` | the memory of a block and the counted handles on it |
//! | `region` | frames in a region of memory of our own, within a budget |
//! | `runs` | where in the region: a buddy system with classes of frames; arithmetic only |
//!
//! # Decisions
//! - Where frames live is the pool's own business, therefore memory to fill comes *from* the pool and a
//!   block is an opaque handle. [`PoolStrategy`] has the choices.
//! - Two readers that miss the same block at the same time both read it, and the second is given
//!   the first one's copy. Waiting for each other would save one read of a few KiB and cost a
//!   registration on each miss.
//! - Blocks held by readers after their eviction are not counted if they lie on the heap: the budget
//!   bounds what the cache keeps alive, readers bound what they hold. In a region they are counted as
//!   long as they are in the way of others.
//! - A strategy never decides what is kept beyond what room there is, so a seed of the simulator names
//!   one execution with each of them, on every machine that can map the region.

mod cache;
mod frame;
#[cfg(all(test, atoll_loom))]
mod model;
mod pins;
mod region;
mod runs;
#[cfg(all(test, not(atoll_loom)))]
mod tests;

use std::sync::{Arc, LazyLock};

use atoll_env::os::memory::Backing;
pub use atoll_env::os::memory::Grant;

use cache::Cache;
pub use frame::{Block, Frame};
use region::InRegion;

use crate::error::Error;

/// A cache whose blocks are single allocations.
pub type HeapPool = Cache<cache::OnHeap>;

/// Where the block cache has its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PoolStrategy {
    /// A region of huge pages that grows as it is used. The default.
    #[default]
    Auto,
    /// The same, but all of it from the start, and locked into memory: no page fault later, and a
    /// machine that is short of memory takes it from others.
    Pinned,
    /// A region of small pages; what is free goes back to the machine at once.
    Vm,
    /// The allocator, block by block.
    Heap,
}

impl PoolStrategy {
    /// All strategies.
    pub const ALL: [PoolStrategy; 4] =
        [PoolStrategy::Auto, PoolStrategy::Pinned, PoolStrategy::Vm, PoolStrategy::Heap];

    /// The strategy's name, as flags and settings spell it.
    pub fn name(self) -> &'static str {
        match self {
            PoolStrategy::Auto => "auto",
            PoolStrategy::Pinned => "pinned",
            PoolStrategy::Vm => "vm",
            PoolStrategy::Heap => "heap",
        }
    }
}

impl std::str::FromStr for PoolStrategy {
    type Err = Error;
    fn from_str(name: &str) -> crate::error::Result<PoolStrategy> {
        PoolStrategy::ALL.into_iter().find(|strategy| strategy.name() == name).ok_or_else(|| {
            Error::InvalidInput(format!(
                "'{name}' is no pool strategy: choose auto, pinned, vm or heap"
            ))
        })
    }
}

/// Returns an empty cache that keeps at most `capacity` bytes, now or later. Where the machine has no
/// room for a region it is on the heap, and [`Pool::placement`] says why.
pub fn open(strategy: PoolStrategy, capacity: usize) -> Arc<dyn Pool> {
    let backing = match strategy {
        PoolStrategy::Heap => return Arc::new(HeapPool::new(capacity)),
        PoolStrategy::Auto => Backing::Huge,
        PoolStrategy::Pinned => Backing::Pinned,
        PoolStrategy::Vm => Backing::Small,
    };
    match InRegion::map(strategy.name(), backing, capacity) {
        Ok(frames) => Arc::new(Cache::with(frames, capacity)),
        Err(error) => Arc::new(Refused {
            heap: HeapPool::new(capacity),
            why: format!("no region of {} KiB: {error}", capacity >> 10),
        }),
    }
}

/// Returns a pool that keeps nothing: memory for blocks that are read once. They would be in the way of
/// those that stay.
pub(crate) fn passing() -> &'static dyn Pool {
    static PASSING: LazyLock<HeapPool> = LazyLock::new(|| HeapPool::new(0));
    &*PASSING
}

/// What a pool is made of: what was wished for, and what the machine granted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Name of the strategy in force; empty if there is no pool.
    pub strategy: &'static str,
    /// Huge pages.
    pub huge_pages: Grant,
    /// All of it in memory, and never swapped out.
    pub lock: Grant,
    /// Known to the rings of the disk.
    pub registered: Grant,
}

impl Placement {
    /// Returns a line for each thing that the machine did not grant.
    pub fn refusals(&self) -> Vec<String> {
        let wishes = [("huge pages", &self.huge_pages), ("locked memory", &self.lock)];
        let refused = wishes.into_iter().filter_map(|(what, grant)| Some((what, grant.refusal()?)));
        refused.map(|(what, why)| format!("{what}: {why}")).collect()
    }
}

/// The heap in place of a region that could not be had.
struct Refused {
    heap: HeapPool,
    why: String,
}

impl Pool for Refused {
    fn frame(&self, len: usize) -> Frame {
        self.heap.frame(len)
    }
    fn get(&self, key: BlockKey, admit: Admit) -> Option<Block> {
        self.heap.get(key, admit)
    }
    fn insert(&self, key: BlockKey, frame: Frame, admit: Admit) -> Block {
        self.heap.insert(key, frame, admit)
    }
    fn forget(&self, file: u64) {
        self.heap.forget(file);
    }
    fn set_capacity(&self, bytes: usize) {
        self.heap.set_capacity(bytes);
    }
    fn stats(&self) -> PoolStats {
        self.heap.stats()
    }
    fn placement(&self) -> Placement {
        let refused = || Grant::Refused(self.why.clone());
        Placement { huge_pages: refused(), lock: refused(), ..self.heap.placement() }
    }
}

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
    /// Of the bytes, those in runs of the region, free frames between blocks included.
    pub region_bytes: u64,
    /// Of the bytes, those of blocks on the heap.
    pub heap_bytes: u64,
    /// Blocks that went to the heap because the region had no room for them.
    pub strayed: u64,
    /// Runs of the region that were cleared to make room for blocks of another length.
    pub cleared_runs: u64,
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
    /// Returns what the pool is made of.
    fn placement(&self) -> Placement;
}
