//! The policy: which blocks are kept. CLOCK with a probationary ring, as in S3-FIFO, whatever the
//! strategy; where their frames lie is the business of [`Frames`].
//!
//! ```text
//!                   seen lately                 touched again
//!   new block ──┬───────────────► main ring ◄───────────┐
//!               │                 │   ▲                 │
//!               │            count 0  │ count > 0: -1   │
//!               │                 ▼   └──┐              │
//!               │               out      └─ the hand    │
//!               └─► probationary ring (a tenth) ── the hand ──► out, key remembered
//! ```
//!
//! A block that is read once passes through the probationary ring and leaves the main ring alone:
//! a scan cannot push out what is hot. A block that comes back soon after it left goes straight to
//! the main ring, because the list of keys that left lately (*ghosts*) knows it.
//!
//! # Invariants
//! - The charges of a shard never exceed its share of the capacity, not even for a moment.
//! - No lock of a frame's home is held while a shard is locked for eviction at its request.
//! - A hit takes a shared lock, and writes one counter of the block while that is below its
//!   maximum; no list is touched. Rings move only when something is inserted. The counter and the
//!   handle lie in the hash table's entry, so that a hit does not even read the slot: in a cache
//!   larger than the processor's, each line it reads costs more than all it computes.
//! - Every block is in one ring and in the chain of its file, so that both eviction and
//!   [`Pool::forget`] cost time for the blocks that go.
//!
//! The cache is split into shards by the hash of the key; each has its own lock, rings and share.
//! A block larger than a share is handed out and not kept.
//!
//! Frames may ask for a block to leave before its turn, because of where it lies ([`Policy`]).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use atoll_encoding::hash::{HashMap, HashSet};
use parking_lot::RwLock;

use super::frame::HEADER;
use super::{Admit, Block, BlockKey, Frame, Placement, Pool, PoolStats};

/// Shards are at least this large, so that usual blocks are small against a share.
const SHARD_MIN_BYTES: usize = 512 << 10;
/// More shards than this do not lower contention on any machine we know.
const SHARDS_MAX: usize = 64;
/// Largest value of a block's counter (two bits).
const HEAT_MAX: u8 = 3;
/// An index or filter partition survives the probationary ring without a second look.
const HEAT_INDEX: u8 = 2;
/// Share of the probationary ring: one part in this many.
const PROBATION_PARTS: usize = 10;
/// What a kept block costs beside its frame: its slot, its entry in the hash table at usual load, the
/// ghost it may leave behind, and an allocator's header.
pub(super) const OVERHEAD: usize = size_of::<Slot>() + 2 * size_of::<(BlockKey, Kept)>() + 32 + 16;

/// What frames may ask of the policy. Nothing of theirs is locked meanwhile.
pub trait Policy {
    /// Evicts a block because of where it lies, if it still lies there. Returns whether it did.
    fn evict(&self, key: BlockKey, address: usize) -> bool;
    /// Evicts so many bytes of what is next in turn.
    fn press(&self, bytes: usize);
}

/// A cache on behalf of a block that is to be kept, or of a new capacity.
struct Asked<'a, F> {
    cache: &'a Cache<F>,
    shard: &'a Shard,
}

impl<F: Frames> Policy for Asked<'_, F> {
    fn evict(&self, key: BlockKey, address: usize) -> bool {
        let shard = self.cache.shard(key);
        self.cache.change(shard, |rings, evicted| rings.evict(key, address, evicted))
    }

    fn press(&self, bytes: usize) {
        self.cache.change(self.shard, |rings, evicted| {
            let unused = rings.capacity.saturating_sub(rings.bytes());
            rings.make_room(unused + bytes, evicted);
        });
    }
}

/// Where frames live.
pub trait Frames: Send + Sync + 'static {
    /// Returns a frame of `len` bytes. Evicts nothing.
    fn frame(&self, len: usize) -> Frame;
    /// Returns what of a capacity the policy may give to blocks.
    fn policy_capacity(&self, bytes: usize) -> usize;
    /// Returns what a block's memory takes.
    fn footprint(&self, block: &Block) -> usize;
    /// Returns a frame in which a block can be kept, with the same bytes.
    fn settle(&self, frame: Frame, policy: &dyn Policy) -> Frame;
    /// Is told what blocks on the heap take in a shard, before and after a change.
    fn heap_changed(&self, before: usize, after: usize);
    /// Is told that a block was offered to the policy. Nothing is locked.
    fn settled(&self, on_heap: bool, policy: &dyn Policy);
    /// Takes a new capacity, to which the policy keeps already.
    fn set_capacity(&self, bytes: usize, policy: &dyn Policy);
    /// Adds what they know to the policy's account.
    fn add_stats(&self, stats: &mut PoolStats);
    /// Returns what they are made of.
    fn placement(&self) -> Placement;
}

/// Frames that are allocations, one each.
pub struct OnHeap;

impl Frames for OnHeap {
    fn frame(&self, len: usize) -> Frame {
        Frame::on_heap(len)
    }

    fn policy_capacity(&self, bytes: usize) -> usize {
        bytes
    }

    fn footprint(&self, block: &Block) -> usize {
        HEADER + block.len()
    }

    fn settle(&self, frame: Frame, _: &dyn Policy) -> Frame {
        frame
    }

    fn heap_changed(&self, _: usize, _: usize) {}

    fn settled(&self, _: bool, _: &dyn Policy) {}

    fn set_capacity(&self, _: usize, _: &dyn Policy) {}

    fn add_stats(&self, stats: &mut PoolStats) {
        stats.heap_bytes = stats.bytes;
    }

    fn placement(&self) -> Placement {
        Placement { strategy: "heap", ..Placement::default() }
    }
}

/// A cache of blocks in such frames.
pub struct Cache<F> {
    /// A power of two of them.
    shards: Box<[Shard]>,
    frames: F,
}

impl Cache<OnHeap> {
    /// Returns an empty cache that keeps at most `capacity` bytes, each block in an allocation.
    pub fn new(capacity: usize) -> Cache<OnHeap> {
        Cache::with(OnHeap, capacity)
    }
}

impl<F: Frames> Cache<F> {
    /// Returns an empty cache that keeps at most `capacity` bytes.
    pub(super) fn with(frames: F, capacity: usize) -> Cache<F> {
        let shards = (capacity / SHARD_MIN_BYTES).clamp(1, SHARDS_MAX);
        let shards = if shards.is_power_of_two() { shards } else { shards.next_power_of_two() / 2 };
        let shards = (0..shards).map(|_| Shard::default()).collect();
        let pool = Cache { shards, frames };
        pool.set_capacity(capacity);
        pool
    }

    fn shard(&self, key: BlockKey) -> &Shard {
        &self.shards[key_hash(key) as usize & (self.shards.len() - 1)]
    }

    /// Changes the content of a shard. What leaves it is dropped after the lock: freeing memory is not
    /// the shard's business.
    fn change<T>(&self, shard: &Shard, by: impl FnOnce(&mut Rings, &mut Vec<Block>) -> T) -> T {
        let mut leaving = Vec::new();
        let mut rings = shard.rings.write();
        let before = rings.heap;
        let done = by(&mut rings, &mut leaving);
        if rings.heap != before {
            self.frames.heap_changed(before, rings.heap);
        }
        drop(rings);
        done
    }
}

impl<F: Frames> Pool for Cache<F> {
    fn frame(&self, len: usize) -> Frame {
        self.frames.frame(len)
    }

    fn get(&self, key: BlockKey, admit: Admit) -> Option<Block> {
        let shard = self.shard(key);
        let rings = shard.rings.read();
        let found = rings.find(key, admit);
        let counter = if found.is_some() { &shard.hits } else { &shard.misses };
        counter.fetch_add(1, Relaxed);
        found
    }

    fn insert(&self, key: BlockKey, frame: Frame, admit: Admit) -> Block {
        if admit == Admit::No {
            return Block::from(frame);
        }
        let shard = self.shard(key);
        let policy = Asked { cache: self, shard };
        let frame = self.frames.settle(frame, &policy);
        frame.tag(key);
        let block = Block::from(frame);
        let (footprint, on_heap) = (self.frames.footprint(&block), block.is_on_heap());
        let block = self
            .change(shard, |rings, evicted| rings.insert(key, block, footprint, admit, evicted));
        self.frames.settled(on_heap, &policy);
        block
    }

    fn forget(&self, file: u64) {
        for shard in &self.shards {
            self.change(shard, |rings, dropped| rings.forget(file, dropped));
        }
    }

    fn set_capacity(&self, bytes: usize) {
        let share = self.frames.policy_capacity(bytes) / self.shards.len();
        for shard in &self.shards {
            self.change(shard, |rings, evicted| {
                rings.capacity = share;
                rings.make_room(0, evicted);
            });
        }
        self.frames.set_capacity(bytes, &Asked { cache: self, shard: &self.shards[0] });
    }

    fn stats(&self) -> PoolStats {
        let mut stats = PoolStats::default();
        for shard in &self.shards {
            let rings = shard.rings.read();
            stats.hits += shard.hits.load(Relaxed);
            stats.misses += shard.misses.load(Relaxed);
            stats.evictions += rings.evictions;
            stats.blocks += rings.index.len() as u64;
            stats.bytes += rings.bytes() as u64;
            stats.capacity += rings.capacity as u64;
        }
        self.frames.add_stats(&mut stats);
        stats
    }

    fn placement(&self) -> Placement {
        self.frames.placement()
    }
}

/// Mixes a key for the choice of the shard and for the ghosts.
fn key_hash(key: BlockKey) -> u64 {
    let x = (key.file ^ key.offset.rotate_left(32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (x ^ x >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 24
}

#[derive(Default)]
struct Shard {
    rings: RwLock<Rings>,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// Position in `Rings::slots`; `NIL` ends a chain.
type SlotId = u32;
const NIL: SlotId = SlotId::MAX;

/// The content of a shard.
#[derive(Default)]
struct Rings {
    index: HashMap<BlockKey, Kept>,
    slots: Vec<Slot>,
    free: Vec<SlotId>,
    probation: Ring,
    main: Ring,
    /// First slot of each file with blocks here.
    files: HashMap<u64, SlotId>,
    ghosts: Ghosts,
    /// Share of the budget, in bytes.
    capacity: usize,
    /// Charges of blocks on the heap.
    heap: usize,
    evictions: u64,
}

/// What a hit needs of a block.
struct Kept {
    block: Block,
    /// How often it was hit since the hand last passed, up to `HEAT_MAX`.
    heat: AtomicU8,
    slot: SlotId,
}

/// What the rings need of a block. A free slot keeps its last content.
struct Slot {
    key: BlockKey,
    charge: usize,
    in_main: bool,
    ring: Links,
    of_file: Links,
}

#[derive(Clone, Copy)]
struct Links {
    /// Towards newer.
    prev: SlotId,
    /// Towards older, where the hand comes from.
    next: SlotId,
}

const UNLINKED: Links = Links { prev: NIL, next: NIL };

struct Ring {
    newest: SlotId,
    oldest: SlotId,
    bytes: usize,
}

impl Default for Ring {
    fn default() -> Ring {
        Ring { newest: NIL, oldest: NIL, bytes: 0 }
    }
}

impl Rings {
    fn bytes(&self) -> usize {
        self.probation.bytes + self.main.bytes
    }

    fn find(&self, key: BlockKey, admit: Admit) -> Option<Block> {
        let kept = self.index.get(&key)?;
        if admit != Admit::No {
            // Two racing hits may count as one: the counter is a hint.
            let heat = kept.heat.load(Relaxed);
            if heat < HEAT_MAX {
                kept.heat.store(heat + 1, Relaxed);
            }
        }
        Some(kept.block.clone())
    }

    fn insert(
        &mut self,
        key: BlockKey,
        block: Block,
        footprint: usize,
        admit: Admit,
        evicted: &mut Vec<Block>,
    ) -> Block {
        if let Some(earlier) = self.find(key, admit) {
            evicted.push(block);
            return earlier;
        }
        let charge = footprint + OVERHEAD;
        if charge > self.capacity {
            return block;
        }
        self.make_room(charge, evicted);
        let at = self.free.pop().unwrap_or(self.slots.len() as SlotId);
        let slot = Slot {
            key,
            charge,
            in_main: self.ghosts.take(key_hash(key)),
            ring: UNLINKED,
            of_file: UNLINKED,
        };
        match self.slots.get_mut(at as usize) {
            Some(free) => *free = slot,
            None => self.slots.push(slot),
        }
        let heat = AtomicU8::new(if admit == Admit::Index { HEAT_INDEX } else { 0 });
        self.index.insert(key, Kept { block: block.clone(), heat, slot: at });
        self.heap += if block.is_on_heap() { charge } else { 0 };
        self.link(at);
        let first = self.files.insert(key.file, at).unwrap_or(NIL);
        self.slots[at as usize].of_file.next = first;
        if first != NIL {
            self.slots[first as usize].of_file.prev = at;
        }
        block
    }

    /// Evicts until `need` more bytes fit. Ends, because each step frees a block, moves one out
    /// of probation, or lowers a counter.
    fn make_room(&mut self, need: usize, evicted: &mut Vec<Block>) {
        while self.bytes() + need > self.capacity {
            let probation_full = self.probation.bytes > self.capacity / PROBATION_PARTS;
            let at = match (probation_full, self.probation.oldest, self.main.oldest) {
                (_, NIL, NIL) => return,
                (true, at, _) if at != NIL => at,
                (_, at, NIL) | (_, _, at) => at,
            };
            let Slot { key, in_main, .. } = self.slots[at as usize];
            let heat = self.index.get_mut(&key).map(|kept| kept.heat.get_mut());
            match heat {
                Some(heat) if *heat > 0 => {
                    *heat -= 1;
                    self.unlink(at);
                    self.slots[at as usize].in_main = true;
                    self.link(at);
                }
                _ => {
                    if !in_main {
                        self.ghosts.add(key_hash(key), self.index.len());
                    }
                    self.evictions += 1;
                    evicted.extend(self.remove(at));
                }
            }
        }
    }

    /// Evicts a block before its turn, if it lies where it is said to.
    fn evict(&mut self, key: BlockKey, address: usize, evicted: &mut Vec<Block>) -> bool {
        let kept = self.index.get(&key).filter(|kept| kept.block.address() == address);
        let Some(at) = kept.map(|kept| kept.slot) else { return false };
        self.evictions += 1;
        evicted.extend(self.remove(at));
        true
    }

    fn forget(&mut self, file: u64, dropped: &mut Vec<Block>) {
        while let Some(&first) = self.files.get(&file) {
            dropped.extend(self.remove(first));
        }
    }

    fn remove(&mut self, at: SlotId) -> Option<Block> {
        self.unlink(at);
        let Slot { key, of_file: links, .. } = self.slots[at as usize];
        if links.next != NIL {
            self.slots[links.next as usize].of_file.prev = links.prev;
        }
        if links.prev != NIL {
            self.slots[links.prev as usize].of_file.next = links.next;
        } else if links.next != NIL {
            self.files.insert(key.file, links.next);
        } else {
            self.files.remove(&key.file);
        }
        self.free.push(at);
        let block = self.index.remove(&key)?.block;
        self.heap -= if block.is_on_heap() { self.slots[at as usize].charge } else { 0 };
        Some(block)
    }

    /// Puts a slot at the young end of the ring it says it is in.
    fn link(&mut self, at: SlotId) {
        let slot = &mut self.slots[at as usize];
        let ring = if slot.in_main { &mut self.main } else { &mut self.probation };
        slot.ring = Links { prev: NIL, next: ring.newest };
        ring.bytes += slot.charge;
        let older = std::mem::replace(&mut ring.newest, at);
        match older {
            NIL => ring.oldest = at,
            older => self.slots[older as usize].ring.prev = at,
        }
    }

    fn unlink(&mut self, at: SlotId) {
        let slot = &self.slots[at as usize];
        let links = slot.ring;
        let ring = if slot.in_main { &mut self.main } else { &mut self.probation };
        ring.bytes -= slot.charge;
        match links.prev {
            NIL => ring.newest = links.next,
            newer => self.slots[newer as usize].ring.next = links.next,
        }
        match links.next {
            NIL => ring.oldest = links.prev,
            older => self.slots[older as usize].ring.prev = links.prev,
        }
    }
}

/// Keys that left the probationary ring lately, as hashes; as many as there are blocks.
#[derive(Default)]
struct Ghosts {
    order: VecDeque<u64>,
    known: HashSet<u64>,
}

impl Ghosts {
    fn add(&mut self, hash: u64, limit: usize) {
        self.order.push_back(hash);
        self.known.insert(hash);
        while self.order.len() > limit.max(1) {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }

    /// Returns whether the key is known, and forgets it.
    fn take(&mut self, hash: u64) -> bool {
        self.known.remove(&hash)
    }
}
