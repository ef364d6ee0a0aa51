//! The `heap` strategy: every block is an allocation of its own, kept by CLOCK with a probationary
//! ring (the S3-FIFO policy).
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
//! - A hit takes a shared lock, and writes one counter of the block while that is below its
//!   maximum; no list is touched. Rings move only when something is inserted. The counter and the
//!   handle lie in the hash table's entry, so that a hit does not even read the slot: in a cache
//!   larger than the processor's, each line it reads costs more than all it computes.
//! - Every block is in one ring and in the chain of its file, so that both eviction and
//!   [`Pool::forget`] cost time for the blocks that go.
//!
//! The cache is split into shards by the hash of the key; each has its own lock, rings and share.
//! A block larger than a share is handed out and not kept.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use atoll_encoding::hash::{HashMap, HashSet};
use parking_lot::RwLock;

use super::{Admit, Block, BlockKey, Frame, Pool, PoolStats};

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
/// What a kept block costs beside its bytes: its slot and counted frame, its entry in the hash
/// table at usual load, the ghost it may leave behind, and the allocator's headers.
const OVERHEAD: usize =
    size_of::<Slot>() + size_of::<Frame>() + 16 + 2 * size_of::<(BlockKey, Kept)>() + 32 + 32;

/// A cache whose blocks are single allocations.
pub struct HeapPool {
    /// A power of two of them.
    shards: Box<[Shard]>,
}

impl HeapPool {
    /// Returns an empty cache that keeps at most `capacity` bytes.
    pub fn new(capacity: usize) -> HeapPool {
        let shards = (capacity / SHARD_MIN_BYTES).clamp(1, SHARDS_MAX);
        let shards = if shards.is_power_of_two() { shards } else { shards.next_power_of_two() / 2 };
        let shards = (0..shards).map(|_| Shard::default()).collect();
        let pool = HeapPool { shards };
        pool.set_capacity(capacity);
        pool
    }

    fn shard(&self, key: BlockKey) -> &Shard {
        &self.shards[key_hash(key) as usize & (self.shards.len() - 1)]
    }
}

impl Pool for HeapPool {
    fn frame(&self, len: usize) -> Frame {
        Frame::on_heap(len)
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
        let block = Block::from(frame);
        if admit == Admit::No {
            return block;
        }
        // Dropped after the lock: freeing memory is not the shard's business.
        let mut evicted = Vec::new();
        self.shard(key).rings.write().insert(key, block, admit, &mut evicted)
    }

    fn forget(&self, file: u64) {
        for shard in &self.shards {
            let mut dropped = Vec::new();
            shard.rings.write().forget(file, &mut dropped);
        }
    }

    fn set_capacity(&self, bytes: usize) {
        let share = bytes / self.shards.len();
        for shard in &self.shards {
            let mut evicted = Vec::new();
            let mut rings = shard.rings.write();
            rings.capacity = share;
            rings.make_room(0, &mut evicted);
        }
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
        stats
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
    evictions: u64,
}

/// What a hit needs of a block.
struct Kept {
    block: Block,
    /// How often it was hit since the hand last passed, up to `HEAT_MAX`.
    heat: AtomicU8,
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
        admit: Admit,
        evicted: &mut Vec<Block>,
    ) -> Block {
        if let Some(earlier) = self.find(key, admit) {
            return earlier;
        }
        let charge = block.len() + OVERHEAD;
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
        self.index.insert(key, Kept { block: block.clone(), heat });
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
        self.index.remove(&key).map(|kept| kept.block)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn key(file: u64, n: u64) -> BlockKey {
        BlockKey { file, offset: n * 4096 }
    }

    fn put(pool: &HeapPool, key: BlockKey, admit: Admit) -> Block {
        let mut frame = pool.frame(1000);
        frame[..8].copy_from_slice(&key.offset.to_le_bytes());
        pool.insert(key, frame, admit)
    }

    /// Reads as a table does: takes the block from the pool or inserts it. Returns whether it hit.
    fn read(pool: &HeapPool, key: BlockKey, admit: Admit) -> bool {
        match pool.get(key, admit) {
            Some(block) => {
                assert_eq!(block[..8], key.offset.to_le_bytes());
                true
            }
            None => {
                put(pool, key, admit);
                false
            }
        }
    }

    /// A seeded generator, enough for choosing keys.
    fn random(state: &mut u64) -> u64 {
        *state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *state >> 33
    }

    #[test]
    fn the_budget_is_never_exceeded_whatever_is_inserted_or_resized() {
        let pool = HeapPool::new(4 << 20);
        let mut seed = 1;
        for step in 0..50_000 {
            let n = random(&mut seed);
            let admit = if n.is_multiple_of(7) { Admit::Index } else { Admit::Data };
            let frame = pool.frame((n % 9000) as usize);
            pool.insert(key(n % 11, n >> 4), frame, admit);
            if step % 5000 == 4999 {
                pool.set_capacity(((step % 3) + 1) << 20);
            }
            if step % 777 == 0 {
                pool.forget(n % 11);
            }
            if step % 50 == 0 {
                let stats = pool.stats();
                assert!(stats.bytes <= stats.capacity, "{stats:?}");
            }
        }
        pool.set_capacity(0);
        assert_eq!(pool.stats().blocks, 0);
        assert_eq!(pool.stats().bytes, 0);
        assert!(pool.stats().evictions > 10_000);
    }

    #[test]
    fn a_hot_set_survives_a_scan_ten_times_the_cache() {
        let pool = HeapPool::new(1 << 20);
        let hot: Vec<_> = (0..300).map(|n| key(1, n)).collect();
        for _ in 0..3 {
            hot.iter().for_each(|&k| {
                read(&pool, k, Admit::Data);
            });
        }
        for n in 0..10_000 {
            read(&pool, key(2, n), Admit::Data);
            if n % 100 == 0 {
                // The hot set is still in use, far less often than the scan goes on.
                read(&pool, hot[(n / 100) as usize % hot.len()], Admit::Data);
            }
        }
        let kept = hot.iter().filter(|&&k| pool.get(k, Admit::No).is_some()).count();
        assert!(kept >= 290, "{kept} of 300 hot blocks survived");
    }

    #[test]
    fn a_scan_that_does_not_admit_changes_nothing() {
        let pool = HeapPool::new(1 << 20);
        (0..500).for_each(|n| {
            read(&pool, key(1, n), Admit::Data);
        });
        let before = pool.stats().blocks;
        (0..5000).for_each(|n| {
            read(&pool, key(2, n), Admit::No);
        });
        assert_eq!(pool.stats().blocks, before);
        assert_eq!(pool.stats().evictions, 0);
    }

    #[test]
    fn a_block_that_comes_back_soon_goes_to_the_main_ring() {
        let pool = HeapPool::new(512 << 10);
        // The main ring has an owner, so that probation is a tenth; then block 0 leaves unread.
        (0..500).for_each(|n| {
            put(&pool, key(1, n), Admit::Index);
        });
        let mut n = 1000;
        read(&pool, key(2, 0), Admit::Data);
        while pool.get(key(2, 0), Admit::No).is_some() {
            read(&pool, key(2, n), Admit::Data);
            n += 1;
        }
        read(&pool, key(2, 0), Admit::Data);
        for m in 0..200 {
            read(&pool, key(3, m), Admit::Data);
        }
        assert!(pool.get(key(2, 0), Admit::No).is_some(), "a ghost is admitted to the main ring");
        assert!(pool.get(key(3, 0), Admit::No).is_none(), "a stranger passes through");
    }

    #[test]
    fn a_deleted_file_leaves_and_others_stay() {
        let pool = HeapPool::new(8 << 20);
        for n in 0..1000 {
            put(&pool, key(n % 4, n), Admit::Data);
        }
        let held = pool.get(key(2, 2), Admit::Data).unwrap();
        pool.forget(2);
        for n in 0..1000 {
            assert_eq!(pool.get(key(n % 4, n), Admit::Data).is_some(), n % 4 != 2, "{n}");
        }
        assert_eq!(pool.stats().blocks, 750);
        assert_eq!(held[..8], (2 * 4096u64).to_le_bytes(), "a held block stays readable");
        pool.forget(2);
    }

    #[test]
    fn the_second_of_two_equal_inserts_gets_the_first_one_s_copy() {
        let pool = HeapPool::new(1 << 20);
        let first = put(&pool, key(1, 1), Admit::Data);
        let second = put(&pool, key(1, 1), Admit::Data);
        assert!(std::ptr::eq(&first[..], &second[..]));
        assert_eq!(pool.stats().blocks, 1);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the cache is shared by real threads")]
    fn many_threads_read_right_bytes_while_files_are_forgotten() {
        let pool = Arc::new(HeapPool::new(1 << 20));
        let hits = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let (pool, hits) = (pool.clone(), hits.clone());
                std::thread::spawn(move || {
                    let mut seed = thread;
                    for step in 0..20_000 {
                        let n = random(&mut seed) % 1500;
                        hits.fetch_add(read(&pool, key(n % 8, n), Admit::Data).into(), Relaxed);
                        if step % 1000 == 0 {
                            pool.forget(n % 8);
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let stats = pool.stats();
        assert!(stats.bytes <= stats.capacity);
        assert!(hits.load(Relaxed) > 10_000);
    }
}
