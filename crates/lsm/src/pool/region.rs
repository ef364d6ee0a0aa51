//! The strategies `auto`, `pinned` and `vm`: frames in a region of their own.
//!
//! ```text
//!   frame(len) ── room in a run, or for a run? ── yes ──► frame in the region
//!                              │ no
//!                              └─► frame on the heap ── to be kept? ──► the cheapest run is cleared,
//!                                                                       the block moves in
//! ```
//!
//! | | pages | memory that is free |
//! |---|---|---|
//! | `auto` | huge, as they are touched | stays, chunks beyond the budget go back |
//! | `pinned` | huge, all at the start, locked | stays, chunks beyond the budget go back |
//! | `vm` | small, as they are touched | each run goes back as its last frame does |
//!
//! # The budget
//! What counts is not what blocks ask for but what the region gives: runs with all their free frames,
//! blocks that are on the heap because they found no room or are large, and the cache's bookkeeping. The
//! sum stays within the capacity. The policy is given a thirty-second less, so that each class usually
//! has a free frame for the block that comes before another one goes.
//!
//! What is read and not kept (by a scan, by a compaction) goes to the heap, see [`super::passing`]. A
//! block that a reader holds beyond its eviction keeps its run, which counts unless its chunk is closed.
//!
//! # Why the region is not registered with io_uring
//! A registered buffer spares the kernel looking up its pages, for reads that end in it. Blocks of
//! tables are packed and lie at any offset: a read past the page cache has to be widened to whole blocks
//! of the disk, into memory of its own, from where a block is *unpacked* into its frame; there is no
//! copy to save. That memory is registered, a set for each core (`env`'s rings). A read through the
//! page cache is copied by the kernel in any case.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use atoll_env::os::memory::{Backing, CHUNK, Grant, Region};
use parking_lot::Mutex;

use super::cache::{Frames, OVERHEAD, Policy};
use super::frame::{Frame, HEADER, tagged};
use super::runs::{Class, Freed, Runs, Turned};
use super::{Block, BlockKey, Placement, PoolStats};

/// The largest run is such a part of the capacity: what needs a larger one is on the heap.
const RUN_PARTS: usize = 16;
/// Part of the capacity that the policy leaves free.
const SLACK_PARTS: usize = 32;
/// Runs that are cleared for one block, at most. One is enough unless readers hold frames there, or the
/// block is much longer than those.
const CLEARED_MAX: usize = 8;
/// The policy evicts so many times the length of a block that finds no room.
const PRESSURE: usize = 2;
/// Below it, there is no chunk: what little there is fits the heap better. So chunks are to the nearest.
const CAPACITY_MIN: usize = CHUNK / 2;
/// Below it, rounding up to huge pages would be a noticeable part of the memory.
const HUGE_MIN: usize = 8 << 20;

/// Evicts blocks that are in the way. Returns whether any was.
fn evict_all(blocks: Vec<(BlockKey, usize)>, policy: &dyn Policy) -> bool {
    blocks.into_iter().fold(false, |any, (key, address)| policy.evict(key, address) || any)
}

/// Frames in a region.
pub struct InRegion {
    home: Arc<Home>,
    placement: Placement,
    /// Bytes of blocks that are kept on the heap.
    heap: AtomicUsize,
    /// Blocks that are there although they would fit a run.
    strayed: AtomicU64,
    cleared: AtomicU64,
}

/// A region and its map: what a frame has to know to go back.
pub(super) struct Home {
    region: Region,
    runs: Mutex<Runs>,
    /// The largest run that is made.
    run_max: usize,
    capacity: AtomicUsize,
    /// Pages go back to the machine with each run.
    discards: bool,
}

impl InRegion {
    /// Maps a region for `capacity` bytes.
    ///
    /// # Errors
    /// The machine has no room for it.
    pub(super) fn map(
        strategy: &'static str,
        backing: Backing,
        capacity: usize,
    ) -> std::io::Result<InRegion> {
        let backing = match backing {
            Backing::Huge if capacity < HUGE_MIN => Backing::Small,
            backing => backing,
        };
        let region = Region::map(capacity, backing)?;
        let placement = Placement {
            strategy,
            huge_pages: region.grants().huge_pages.clone(),
            lock: region.grants().lock.clone(),
            registered: Grant::Refused(
                "blocks are unpacked into their frames from buffers that are".into(),
            ),
        };
        let mut runs = Runs::new(region.len());
        if backing == Backing::Pinned {
            runs.add_all();
        }
        let home = Home {
            runs: Mutex::new(runs),
            region,
            run_max: capacity / RUN_PARTS,
            capacity: AtomicUsize::new(capacity),
            discards: strategy == "vm",
        };
        let (heap, strayed, cleared) = Default::default();
        Ok(InRegion { home: Arc::new(home), placement, heap, strayed, cleared })
    }

    /// Returns what may still be used for runs.
    fn room(&self, runs: &Runs) -> usize {
        self.home.capacity.load(Relaxed).saturating_sub(self.used(runs))
    }

    fn used(&self, runs: &Runs) -> usize {
        runs.bytes() + runs.frames() * OVERHEAD + self.heap.load(Relaxed)
    }

    fn take(&self, class: Class, len: usize) -> Option<Frame> {
        let mut runs = self.home.runs.lock();
        let room = self.room(&runs).checked_sub(OVERHEAD)?;
        let offset = runs.take(class, room)?;
        drop(runs);
        // SAFETY: the map gave out this frame, which has room for as much as its class; frames
        // begin at multiples of 16, and the region's memory is initialised by the kernel.
        Some(unsafe { Frame::in_region(self.home.at(offset), len, self.home.clone()) })
    }

    /// Evicts what lies in the cheapest run. Returns whether something was.
    fn clear(&self, policy: &dyn Policy) -> bool {
        let runs = self.home.runs.lock();
        let Some(frames) = runs.cheapest() else { return false };
        let blocks = self.home.blocks_in(&runs, frames);
        drop(runs);
        let evicted = evict_all(blocks, policy);
        self.cleared.fetch_add(u64::from(evicted), Relaxed);
        evicted
    }

    /// Clears runs until the sum is within the capacity, or readers hold what is left.
    fn shed(&self, policy: &dyn Policy) {
        let over = || self.used(&self.home.runs.lock()) > self.home.capacity.load(Relaxed);
        while over() && self.clear(policy) {}
    }
}

impl Frames for InRegion {
    fn frame(&self, len: usize) -> Frame {
        let class = self.home.class(len);
        let frame = class.and_then(|class| self.take(class, len));
        frame.unwrap_or_else(|| Frame::on_heap(len))
    }

    fn policy_capacity(&self, bytes: usize) -> usize {
        bytes - bytes / SLACK_PARTS
    }

    fn footprint(&self, block: &Block) -> usize {
        match self.home.class(block.len()) {
            Some(class) if !block.is_on_heap() => class.share(),
            _ => HEADER + block.len(),
        }
    }

    fn settle(&self, frame: Frame, policy: &dyn Policy) -> Frame {
        if !frame.is_on_heap() {
            return frame;
        }
        // Without a chunk there is no room to make.
        let has_room = self.home.capacity.load(Relaxed) >= CAPACITY_MIN;
        if let Some(class) = self.home.class(frame.len()).filter(|_| has_room) {
            for _ in 0..CLEARED_MAX {
                if let Some(mut moved) = self.take(class, frame.len()) {
                    moved.copy_from_slice(&frame);
                    return moved;
                }
                // What is cold goes first: without this the policy would never feel the shortage, and
                // runs of blocks that nobody wants would stand for ever.
                policy.press(PRESSURE * class.share());
                if !self.clear(policy) {
                    break;
                }
            }
            self.strayed.fetch_add(1, Relaxed);
        }
        frame
    }

    fn heap_changed(&self, before: usize, after: usize) {
        if after >= before {
            self.heap.fetch_add(after - before, Relaxed);
        } else {
            self.heap.fetch_sub(before - after, Relaxed);
        }
    }

    fn settled(&self, on_heap: bool, policy: &dyn Policy) {
        if on_heap {
            self.shed(policy);
        }
    }

    fn set_capacity(&self, bytes: usize, policy: &dyn Policy) {
        self.home.capacity.store(bytes, Relaxed);
        evict_all(self.home.set_open((bytes + CAPACITY_MIN) / CHUNK), policy);
        self.shed(policy);
    }

    fn add_stats(&self, stats: &mut PoolStats) {
        let runs = self.home.runs.lock();
        stats.bytes = self.used(&runs) as u64;
        stats.capacity = self.home.capacity.load(Relaxed) as u64;
        stats.region_bytes = runs.bytes() as u64;
        stats.heap_bytes = self.heap.load(Relaxed) as u64;
        stats.strayed = self.strayed.load(Relaxed);
        stats.cleared_runs = self.cleared.load(Relaxed);
    }

    fn placement(&self) -> Placement {
        self.placement.clone()
    }
}

impl Home {
    /// Returns the address of what lies at an offset.
    fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.region.len(), "the map has no frames beyond the region");
        let base = self.region.base();
        // SAFETY: the region is one mapping, and the offset lies in it.
        unsafe { base.add(offset) }
    }

    /// Returns the class of frames for so many bytes, if such are not on the heap in any case.
    fn class(&self, len: usize) -> Option<Class> {
        let class = Class::of(len.checked_add(HEADER)?)?;
        (class.run_bytes() <= self.run_max).then_some(class)
    }

    /// Takes a frame back that nobody holds any more.
    pub(super) fn give_back(&self, address: usize, len: usize) {
        let offset = address - self.region.base().as_ptr() as usize;
        let Some(class) = self.class(len) else {
            unreachable!("invariant: a frame in the region has a class")
        };
        // Pages are given back under the lock: without it they may be somebody's again.
        let mut runs = self.runs.lock();
        match runs.give(offset, class) {
            Freed::Idle(range) => self.discard(&runs, range),
            Freed::Run(range) if self.discards => self.discard(&runs, range),
            Freed::Frame | Freed::Run(_) => {}
        }
    }

    /// Returns the blocks in frames that are taken, with their addresses. Those that are being filled
    /// are none yet.
    fn blocks_in(&self, _: &Runs, frames: Vec<usize>) -> Vec<(BlockKey, usize)> {
        let block = |offset| {
            let at = self.at(offset);
            // SAFETY: the map, which is locked, says that a frame begins there; so the bytes are used
            // as a header as long as it is locked, by whoever has the frame too.
            Some((unsafe { tagged(at) }?, at.as_ptr() as usize))
        };
        frames.into_iter().filter_map(block).collect()
    }

    /// Has so many chunks open at most; returns the blocks that are in others.
    fn set_open(&self, chunks: usize) -> Vec<(BlockKey, usize)> {
        let mut runs = self.runs.lock();
        let Turned { idle, opened, in_the_way } = runs.set_open(chunks);
        let in_the_way = self.blocks_in(&runs, in_the_way);
        for range in idle {
            self.discard(&runs, range);
        }
        opened.into_iter().for_each(|range| self.region.restore(range));
        in_the_way
    }

    /// Gives pages without a frame back to the machine. Holding the map keeps it so.
    fn discard(&self, _: &Runs, range: Range<usize>) {
        // SAFETY: the map has just freed these pages, which are whole ones, and is locked, so that no
        // frame lies there, and nobody looks for one, before this returns.
        unsafe { self.region.discard(range) };
    }
}
