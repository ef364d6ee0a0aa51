//! A part of the cache: a hash table whose slots are a clock.
//!
//! ```text
//!   slots   | a | . | b | c | . | . | d | . |     open addressing, the next free slot behind a key's own
//!                     ^ the hand               heat 0: may go; else it cools by one
//! ```
//!
//! A hit warms its slot, up to [`HEAT_MAX`]. When there is no room the hand looks for a slot that has
//! cooled, and the record in it goes if the one that comes was asked for more often lately
//! ([`Sketch`], which counts misses, and hits that warm a slot): so what is asked for once in a while does not push out what is asked for all the time,
//! and a run of keys that never come again is turned away whole (TinyLFU over CLOCK).
//!
//! Rejected: the rings of the block cache (`pool/heap.rs`). Links and ghosts take as much memory as a
//! short record, and the table alone can be walked as a ring.
//!
//! # Invariants
//! - `slots` has a power of two of slots or none, and of four at least one is free: a search ends.
//! - Between a key's own slot and the one it is in, no slot is free.
//! - `slots` and the records in them take no more than `capacity`.

use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;

use super::inline::{self, Packed};
use super::sketch::Sketch;
use super::{Reader, RecordStats};
use crate::key::Trailer;
use crate::slice::Slice;
use crate::tombstone::Fragmented;

/// Largest heat of a slot (two bits).
const HEAT_MAX: u8 = 3;
/// Slots of the smallest table.
const SLOTS_MIN: usize = 16;

#[derive(Default)]
pub(super) struct Shard {
    slots: Vec<Slot>,
    /// Slots that are not free.
    used: usize,
    /// Memory of the records.
    held: usize,
    capacity: usize,
    hand: usize,
    /// Changes whenever a record may have moved to another slot.
    generation: u64,
    admitted: u64,
    evictions: u64,
    invalidations: u64,
}

#[derive(Default)]
struct Slot {
    hash: u64,
    trailer: Trailer,
    epoch: u64,
    /// `None` in a free slot.
    record: Option<Packed>,
    heat: AtomicU8,
}

/// What became of a record that was offered. It has what had to go, to be freed without the lock.
pub(super) struct Filled {
    pub(super) taken: bool,
    /// Most records take the place of one.
    first: Option<Packed>,
    others: Vec<Packed>,
}

impl Filled {
    fn add(&mut self, gone: Option<Packed>) {
        match self.first {
            None => self.first = gone,
            Some(_) => self.others.extend(gone),
        }
    }
}

/// A place in the table, as long as no record moves.
#[derive(Clone, Copy, Default)]
pub(super) struct Spot {
    at: usize,
    generation: u64,
}

/// What a step over the slots found.
pub(super) struct Step {
    /// Where to go on.
    pub(super) next: Option<Spot>,
    _gone: Vec<Packed>,
}

impl Shard {
    pub(super) fn new() -> Shard {
        Shard::default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Returns whether a record that comes would push out another.
    pub(super) fn is_full(&self) -> bool {
        self.bytes() + super::LEN_MAX > self.capacity || !self.may_grow() && self.is_crowded()
    }

    /// Returns the record of a key, if `reader` may see it, and warms its slot; `sketch` counts it if
    /// the slot was not hot.
    #[inline]
    pub(super) fn get(
        &self,
        key: &[u8],
        hash: u64,
        reader: Reader,
        sketch: &Sketch,
    ) -> Option<(Trailer, Slice)> {
        let slot = &self.slots[self.find(key, hash)?];
        if slot.epoch > reader.epoch || slot.trailer.seqno() > reader.snapshot {
            return None;
        }
        let heat = slot.heat.load(Relaxed);
        if heat < HEAT_MAX {
            slot.heat.store(heat + 1, Relaxed);
            sketch.touch(hash);
        }
        Some((slot.trailer, slot.record.as_ref()?.value()))
    }

    pub(super) fn contains(&self, key: &[u8], hash: u64) -> bool {
        self.find(key, hash).is_some()
    }

    /// Takes a record if there is room, or if it is asked for more often than what has to go for it.
    pub(super) fn fill(
        &mut self,
        (key, value): (&[u8], &[u8]),
        hash: u64,
        epoch: u64,
        trailer: Trailer,
        sketch: &Sketch,
    ) -> Filled {
        let mut filled = Filled { taken: true, first: None, others: Vec::new() };
        if self.find(key, hash).is_some() {
            // Another reader was faster. Both found the newest record in tables.
            return filled;
        }
        let charge = inline::charge(key.len() + value.len());
        if self.is_crowded() && self.may_grow() {
            self.resize((2 * self.slots.len()).max(SLOTS_MIN));
        }
        while self.bytes() + charge > self.capacity || self.is_crowded() {
            let Some(victim) = self.cooled() else {
                return Filled { taken: false, ..filled };
            };
            if sketch.count(hash) <= sketch.count(self.slots[victim].hash) {
                // It has its turn again when the hand comes round.
                self.hand = victim + 1;
                return Filled { taken: false, ..filled };
            }
            self.evictions += 1;
            filled.add(self.take(victim));
        }
        self.admitted += 1;
        self.held += charge;
        self.used += 1;
        // Only now: what is turned away costs no allocation.
        let record = Some(inline::pack(key, value));
        let slot = Slot { hash, trailer, epoch, record, heat: AtomicU8::new(0) };
        let at = self.free_from(hash);
        self.slots[at] = slot;
        filled
    }

    /// Forgets a key, since a newer record of it comes into tables.
    pub(super) fn forget(&mut self, key: &[u8], hash: u64) -> Option<Packed> {
        let at = self.find(key, hash)?;
        self.invalidations += 1;
        self.take(at)
    }

    /// Looks at up to `count` slots from `spot` and forgets the records that `tombstones` cover. It
    /// begins anew if records have moved since.
    pub(super) fn forget_covered(
        &mut self,
        spot: Spot,
        count: usize,
        tombstones: &Fragmented,
    ) -> Step {
        let mut gone = Vec::new();
        let mut at = if spot.generation == self.generation { spot.at } else { 0 };
        for _ in 0..count {
            let Some(slot) = self.slots.get(at) else { break };
            let covered = slot.record.as_ref().is_some_and(|record| {
                let newest = tombstones.max_covering(record.key(), crate::key::SEQNO_MAX);
                newest > slot.trailer.seqno()
            });
            if covered {
                self.invalidations += 1;
                gone.extend(self.take(at));
                // What moved here lay behind, or over the end of the table: looked at, or still to be.
            } else {
                at += 1;
            }
        }
        let spot = Spot { at, generation: self.generation };
        Step { next: (at < self.slots.len()).then_some(spot), _gone: gone }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) -> Vec<Packed> {
        self.invalidations += self.used as u64;
        self.empty()
    }

    /// Changes the budget; returns what no longer fits.
    pub(super) fn set_capacity(&mut self, capacity: usize) -> Vec<Packed> {
        let shrinks = capacity < self.capacity;
        self.capacity = capacity;
        let mut gone = Vec::new();
        if !shrinks {
            return gone;
        }
        // The table may take half at most: it would leave no room for records.
        let mut len = self.slots.len();
        while len * size_of::<Slot>() > capacity / 2 {
            len /= 2;
        }
        if len < SLOTS_MIN {
            self.evictions += self.used as u64;
            return self.empty();
        }
        let table = len * size_of::<Slot>();
        while self.used > len / 4 * 3 || self.held + table > capacity {
            let Some(victim) = self.cooled() else { break };
            self.evictions += 1;
            gone.extend(self.take(victim));
        }
        if len < self.slots.len() {
            self.resize(len);
        }
        gone
    }

    pub(super) fn add_to(&self, stats: &mut RecordStats) {
        stats.admitted += self.admitted;
        stats.evictions += self.evictions;
        stats.invalidations += self.invalidations;
        stats.records += self.used as u64;
        stats.bytes += self.bytes() as u64;
        stats.capacity += self.capacity as u64;
    }

    fn bytes(&self) -> usize {
        self.held + self.slots.len() * size_of::<Slot>()
    }

    /// Returns whether one record more would be too many for the slots.
    fn is_crowded(&self) -> bool {
        self.used >= self.slots.len() / 4 * 3
    }

    /// Returns whether there is room for a table of twice as many slots, and as much again for records.
    fn may_grow(&self) -> bool {
        let table = (2 * self.slots.len()).max(SLOTS_MIN) * size_of::<Slot>();
        table <= self.capacity / 2 && self.held + table <= self.capacity
    }

    fn home(&self, hash: u64) -> usize {
        (hash >> 16) as usize & self.slots.len().wrapping_sub(1)
    }

    /// Returns the slot of a key.
    #[inline]
    fn find(&self, key: &[u8], hash: u64) -> Option<usize> {
        let mut at = self.home(hash);
        loop {
            // The table may have no slots at all.
            let slot = self.slots.get(at)?;
            let record = slot.record.as_ref()?;
            if slot.hash == hash && record.key() == key {
                return Some(at);
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }

    /// Returns the first free slot for a key.
    fn free_from(&self, hash: u64) -> usize {
        let mut at = self.home(hash);
        while self.slots[at].record.is_some() {
            at = (at + 1) & (self.slots.len() - 1);
        }
        at
    }

    /// Moves the hand to a slot that has cooled, cooling those that it passes.
    fn cooled(&mut self) -> Option<usize> {
        if self.used == 0 {
            return None;
        }
        loop {
            self.hand &= self.slots.len() - 1;
            let slot = &mut self.slots[self.hand];
            if slot.record.is_some() {
                match slot.heat.get_mut() {
                    0 => return Some(self.hand),
                    heat => *heat -= 1,
                }
            }
            self.hand += 1;
        }
    }

    /// Frees a slot, and moves up those behind it that would no longer be found.
    fn take(&mut self, at: usize) -> Option<Packed> {
        let mask = self.slots.len() - 1;
        let gone = std::mem::take(&mut self.slots[at]).record?;
        self.generation += 1;
        self.used -= 1;
        self.held -= gone.charge();
        let (mut free, mut next) = (at, (at + 1) & mask);
        while self.slots[next].record.is_some() {
            let home = self.home(self.slots[next].hash);
            // It may move if its own slot does not lie behind the free one.
            if next.wrapping_sub(home) & mask >= next.wrapping_sub(free) & mask {
                self.slots.swap(free, next);
                free = next;
            }
            next = (next + 1) & mask;
        }
        Some(gone)
    }

    fn resize(&mut self, len: usize) {
        let fresh = (0..len).map(|_| Slot::default()).collect();
        let slots = std::mem::replace(&mut self.slots, fresh);
        for slot in slots.into_iter().filter(|slot| slot.record.is_some()) {
            let at = self.free_from(slot.hash);
            self.slots[at] = slot;
        }
        self.generation += 1;
        self.hand = 0;
    }

    fn empty(&mut self) -> Vec<Packed> {
        (self.used, self.held, self.hand) = (0, 0, 0);
        let slots = std::mem::take(&mut self.slots);
        slots.into_iter().filter_map(|slot| slot.record).collect()
    }
}

#[cfg(test)]
#[cfg(not(atoll_loom))]
mod tests {
    use std::collections::BTreeMap;

    use atoll_encoding::hash::hash64;
    use atoll_env::random::Prng;

    use super::*;
    use crate::key::{Kind, SEQNO_MAX};
    use crate::tombstone::RangeTombstone;

    const ALL: Reader = Reader { epoch: u64::MAX, snapshot: SEQNO_MAX };

    fn put(shard: &mut Shard, sketch: &Sketch, key: &[u8], seqno: u64, len: usize) -> bool {
        sketch.touch(hash64(key));
        let value = vec![seqno as u8; len];
        let trailer = Trailer::new(seqno, Kind::Value);
        shard.fill((key, &value), hash64(key), 0, trailer, sketch).taken
    }

    fn get(shard: &Shard, sketch: &Sketch, key: &[u8]) -> Option<u64> {
        let (trailer, value) = shard.get(key, hash64(key), ALL, sketch)?;
        assert!(value.iter().all(|byte| *byte == trailer.seqno() as u8));
        Some(trailer.seqno())
    }

    #[test]
    fn the_table_is_a_map_that_forgets_some_and_never_exceeds_its_budget() {
        let mut prng = Prng::new(1);
        let (mut shard, sketch) = (Shard::new(), Sketch::new(64 << 10));
        shard.set_capacity(64 << 10);
        // The keys that may be in it: what was put last and not forgotten.
        let mut model = BTreeMap::new();
        for step in 0..60_000 {
            let key = format!("{:04}", prng.below(900)).into_bytes();
            match prng.index(100) {
                0..=59 => {
                    let seqno = model.get(&key).copied().unwrap_or(step);
                    if put(&mut shard, &sketch, &key, seqno, prng.index(300)) {
                        model.insert(key, seqno);
                    }
                }
                60..=89 => {
                    if let Some(found) = get(&shard, &sketch, &key) {
                        assert_eq!(model.get(&key), Some(&found), "step {step}");
                    }
                }
                90..=97 => {
                    shard.forget(&key, hash64(&key));
                    assert_eq!(get(&shard, &sketch, &key), None, "step {step}");
                    model.remove(&key);
                }
                98 => drop(shard.set_capacity((prng.index(64) << 10).max(1))),
                _ => {
                    let mut end = key.clone();
                    end[3] = b'5';
                    let all = Fragmented::new([RangeTombstone {
                        start: key.clone(),
                        end: end.clone(),
                        seqno: SEQNO_MAX,
                    }]);
                    let mut from = Some(Spot::default());
                    while let Some(spot) = from {
                        from = shard.forget_covered(spot, 7, &all).next;
                    }
                    let covered = |k: &Vec<u8>| k >= &key && k < &end;
                    assert!(shard.slots.iter().all(|slot| {
                        slot.record.as_ref().is_none_or(|r| !covered(&r.key().to_vec()))
                    }));
                    model.retain(|key, _| !covered(key));
                }
            }
            assert!(shard.bytes() <= shard.capacity, "step {step}");
            if step % 1000 == 0 {
                let used = shard.slots.iter().filter(|slot| slot.record.is_some()).count();
                assert_eq!(used, shard.used);
                shard.set_capacity(64 << 10);
            }
        }
        let stats = &mut RecordStats::default();
        shard.add_to(stats);
        assert!(stats.evictions > 1000 && stats.admitted > 10_000, "{stats:?}");
        drop(shard.clear());
        assert_eq!((shard.used, shard.held, shard.bytes()), (0, 0, 0));
    }

    #[test]
    fn a_reader_sees_nothing_of_a_later_epoch_or_above_his_snapshot() {
        let (mut shard, sketch) = (Shard::new(), Sketch::new(0));
        shard.set_capacity(32 << 10);
        let hash = hash64(b"k");
        shard.fill((b"k", b"v"), hash, 7, Trailer::new(100, Kind::Value), &sketch);
        for (epoch, snapshot, seen) in
            [(7, 100, true), (9, 500, true), (6, 500, false), (7, 99, false)]
        {
            let found = shard.get(b"k", hash, Reader { epoch, snapshot }, &sketch);
            assert_eq!(found.is_some(), seen, "epoch {epoch}, snapshot {snapshot}");
        }
    }
}
