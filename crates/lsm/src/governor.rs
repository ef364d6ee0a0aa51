//! The governor: one ledger for all memtable memory, and what it leaves to the block cache.
//!
//! ```text
//!   budget  | active | sealed ...      |                block cache                |   as usual
//!           |<------- share ---------->|
//!   budget  | active | one large batch, sealed at once    | held by readers |  cache  |   at times
//! ```
//!
//! Memtables have a *share* of the budget, in which one is active and the others wait for their
//! flush; the cache has the rest. Writers wait for memory by bytes: a new memtable is made when it
//! fits into the share beside those that are not flushed. A batch that is larger than the share
//! gets a memtable of its own size once all others are flushed; the cache gives up what the share
//! lacks and has it back when that one is flushed. So the sum stays within the budget, and no batch
//! ever waits for itself.
//!
//! Of what the cache has, hot records get up to [`Options::record_cache_percent`], and blocks the rest.
//! Where reads are skewed a record's place answers more of them than a block's; where every key is as
//! likely as any other it answers one, and the block that had to go for it many. So the records' part is
//! cut while few lookups are answered and blocks are missing, down to a remainder that notices when that
//! changes: the hottest thousandth of a skewed load answers half of it ([`next_percent`]).
//!
//! A memtable that was flushed may live on in the hands of a reader. Nobody waits for readers; if
//! one holds it longer than until the next [`Governor::look`], the cache is smaller by its bytes as
//! long as it is held.
//!
//! Rejected: comparing what a hit of either kind saves. It differs by what a miss costs, which is the
//! disk's and the page cache's to know; the hit ratio tells skewed from even well enough.
//!
//! Rejected: counting memtables. Those sealed early are nearly empty and those of large batches are
//! many times as large as the usual ones: a bound on the number bounds neither.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::memtable::{self, Memtable};
use crate::options::Options;
use crate::pool::Pool;
use crate::records::{RecordStats, Records};

/// Divides the memory budget between memtables and cache.
pub(crate) struct Governor {
    budget: usize,
    /// What memtables may take without taking it from the cache.
    share: usize,
    /// What the cache has then.
    cache: usize,
    /// How many parts in a hundred of it are the record cache's at most.
    record_percent: usize,
    pool: Arc<dyn Pool>,
    records: Arc<Records>,
    ledger: Mutex<Ledger>,
}

/// Lookups from which on their answers say something of the load.
const LOOKUPS_MIN: u64 = 4096;

#[derive(Default)]
struct Ledger {
    /// How many parts in a hundred of the cache are the record cache's now.
    record_percent: usize,
    /// What caches had done when that was looked at.
    looked_at: Lookups,
    /// In the order in which they were made: the last one is active.
    entries: Vec<Entry>,
    /// What the cache has now, if it is not what it has by the options.
    shrunk: Option<usize>,
}

/// What was asked of caches.
#[derive(Clone, Copy, Default)]
struct Lookups {
    records: u64,
    hits: u64,
    /// Blocks that had to be read.
    block_misses: u64,
}

struct Entry {
    memtable: Weak<Memtable>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Active, or waiting for its flush.
    Unflushed,
    /// Flushed a moment ago: its last readers are about to let go of it.
    Flushed,
    /// Flushed, and still held by readers when that was looked at.
    Held,
}

impl Ledger {
    fn alive(&self, state: State) -> impl Iterator<Item = Arc<Memtable>> {
        let of_state = self.entries.iter().filter(move |entry| entry.state == state);
        of_state.filter_map(|entry| entry.memtable.upgrade()).filter(|m| !m.is_empty())
    }

    fn bytes(&self, state: State) -> usize {
        self.alive(state).map(|memtable| memtable.bytes_used()).sum()
    }

    /// Returns what the active memtable may still grow by.
    fn growth(&self) -> usize {
        let active = self.entries.last().and_then(|entry| entry.memtable.upgrade());
        active.map_or(0, |m| if m.is_empty() { m.capacity() } else { m.room() })
    }
}

impl Governor {
    /// Returns the governor of a store that starts with `memtables`, the newest first.
    pub(crate) fn new(
        options: &Options,
        (pool, records): (Arc<dyn Pool>, Arc<Records>),
        memtables: &[Arc<Memtable>],
    ) -> Governor {
        // What the record cache needs beside its records stays taken.
        let fixed = records.fixed_bytes();
        let governor = Governor {
            budget: options.memory - fixed,
            share: options.memtable_share(),
            cache: options.cache_capacity() - fixed,
            record_percent: options.record_cache_percent,
            pool,
            records,
            ledger: Mutex::default(),
        };
        let mut ledger = governor.ledger.lock();
        ledger.entries.extend(memtables.iter().rev().map(entry));
        ledger.record_percent = governor.record_percent;
        governor.share_out(governor.cache, ledger.record_percent);
        governor.divide(&mut ledger, 0);
        drop(ledger);
        governor
    }

    /// Returns whether a memtable of `capacity` may be made now. If not, that changes when one is
    /// flushed.
    pub(crate) fn admits(&self, capacity: usize) -> bool {
        let unflushed = self.ledger.lock().bytes(State::Unflushed);
        unflushed == 0 || unflushed + capacity <= self.share
    }

    /// Makes the memtable that will be the active one. The cache makes room for it first.
    pub(crate) fn make(&self, capacity: usize) -> (memtable::Writer, Arc<Memtable>) {
        let mut ledger = self.ledger.lock();
        self.divide(&mut ledger, capacity);
        let (writer, memtable) = Memtable::new(capacity);
        ledger.entries.push(entry(&memtable));
        (writer, memtable)
    }

    /// Takes in that a memtable was flushed and left the view.
    pub(crate) fn flushed(&self, memtable: &Arc<Memtable>) {
        let mut ledger = self.ledger.lock();
        for entry in &mut ledger.entries {
            if std::ptr::eq(entry.memtable.as_ptr(), Arc::as_ptr(memtable)) {
                entry.state = State::Flushed;
            }
        }
        let growth = ledger.growth();
        self.divide(&mut ledger, growth);
    }

    /// Looks which memtables readers hold, and what the caches are asked for. To be called now and then.
    pub(crate) fn look(&self) {
        let mut ledger = self.ledger.lock();
        self.look_at_lookups(&mut ledger);
        for entry in ledger.entries.iter_mut().filter(|entry| entry.state == State::Flushed) {
            entry.state = State::Held;
        }
        let growth = ledger.growth();
        self.divide(&mut ledger, growth);
    }

    /// Returns the bytes in memtables, those that only readers hold included.
    pub(crate) fn bytes(&self) -> usize {
        let ledger = self.ledger.lock();
        [State::Unflushed, State::Flushed, State::Held]
            .map(|state| ledger.bytes(state))
            .iter()
            .sum()
    }

    /// Gives the cache what memtables leave, `more` bytes on top of what they have now.
    fn divide(&self, ledger: &mut Ledger, more: usize) {
        ledger.entries.retain(|entry| entry.memtable.strong_count() > 0);
        let taken = ledger.bytes(State::Unflushed) + ledger.bytes(State::Held) + more;
        let left = self.budget.saturating_sub(taken);
        let shrunk = (left < self.cache).then_some(left);
        if shrunk != std::mem::replace(&mut ledger.shrunk, shrunk) {
            self.share_out(shrunk.unwrap_or(self.cache), ledger.record_percent);
        }
    }

    /// Gives records more of the cache or less, as they answer lookups.
    fn look_at_lookups(&self, ledger: &mut Ledger) {
        if !self.records.is_on() {
            return;
        }
        let RecordStats { hits, misses, .. } = self.records.stats();
        let now = Lookups { records: hits + misses, hits, block_misses: self.pool.stats().misses };
        // Counters only rise.
        let since = ledger.looked_at;
        let lookups = Lookups {
            records: now.records - since.records,
            hits: now.hits - since.hits,
            block_misses: now.block_misses - since.block_misses,
        };
        if lookups.records < LOOKUPS_MIN {
            return;
        }
        ledger.looked_at = now;
        let percent = next_percent(ledger.record_percent, self.record_percent, lookups);
        if percent != std::mem::replace(&mut ledger.record_percent, percent) {
            self.share_out(ledger.shrunk.unwrap_or(self.cache), percent);
        }
    }

    /// Divides what caches may take between records and blocks.
    fn share_out(&self, cache: usize, record_percent: usize) {
        let (records, blocks) = parts(&self.records, cache, record_percent);
        self.records.set_capacity(records);
        self.pool.set_capacity(blocks);
    }
}

/// Returns the record cache's next part, at most `most`, after `lookups` with the part `percent`.
///
/// It is cut to a quarter while records answer less than one lookup in five and one lookup in fifty or
/// more has to read a block, down to an eighth of what it may be; and doubled while they answer three in
/// ten. Between the two it stays: what is cut because of a ratio does not come back by the same one.
fn next_percent(percent: usize, most: usize, lookups: Lookups) -> usize {
    let Lookups { records, hits, block_misses } = lookups;
    if hits * 10 >= records * 3 {
        (2 * percent).min(most)
    } else if hits * 5 < records && block_misses * 50 >= records {
        (percent / 4).max(most / 8).max(most.min(1))
    } else {
        percent
    }
}

/// Divides `cache` bytes between records and blocks.
pub(crate) fn parts(records: &Records, cache: usize, percent: usize) -> (usize, usize) {
    let part = if records.is_on() { record_part(cache, percent) } else { 0 };
    (part, cache - part)
}

/// Returns the record cache's part of `cache` bytes.
pub(crate) fn record_part(cache: usize, percent: usize) -> usize {
    cache / 100 * percent
}

fn entry(memtable: &Arc<Memtable>) -> Entry {
    Entry { memtable: Arc::downgrade(memtable), state: State::Unflushed }
}

#[cfg(test)]
mod tests {
    use atoll_env::sim::Sim;

    use super::*;
    use crate::key::{InternalKey, Kind, Trailer};
    use crate::pool::HeapPool;

    const MIB: usize = 1 << 20;

    fn fill(writer: &mut memtable::Writer, bytes: usize) {
        let key = InternalKey::new(b"k", Trailer::new(1, Kind::Value));
        writer.insert(key, &vec![0; bytes]).unwrap();
    }

    #[test]
    fn records_have_their_part_while_they_answer_and_little_while_blocks_are_missing() {
        let lookups = |hits, block_misses| Lookups { records: 1000, hits, block_misses };
        let even = lookups(60, 500);
        assert_eq!([15, 3, 1].map(|percent| next_percent(percent, 15, even)), [3, 1, 1]);
        let skewed = lookups(600, 200);
        assert_eq!([1, 2, 8, 15].map(|percent| next_percent(percent, 15, skewed)), [2, 4, 15, 15]);
        // Blocks fit, so nobody needs the room; or records answer too much to go and too little to grow.
        assert_eq!(next_percent(15, 15, lookups(60, 19)), 15);
        assert_eq!(next_percent(3, 15, lookups(250, 500)), 3);
        assert_eq!(next_percent(0, 0, even), 0);
    }

    #[test]
    fn memory_is_divided_by_bytes_and_readers_are_counted_but_not_waited_for() {
        let options = Options {
            memory: 16 * MIB,
            record_cache_percent: 0,
            ..Options::new(Sim::new(1).node("a").env())
        };
        assert_eq!((options.memtable_share(), options.cache_capacity()), (6 * MIB, 10 * MIB));
        let pool = Arc::new(HeapPool::new(options.cache_capacity()));
        let (mut first, memtable) = Memtable::new(2 * MIB);
        let caches = (pool.clone() as Arc<dyn Pool>, Arc::new(Records::new(0)));
        let governor = Governor::new(&options, caches, std::slice::from_ref(&memtable));
        let cache = || pool.stats().capacity as usize / MIB;
        assert!(governor.admits(14 * MIB), "an empty memtable is in nobody's way");
        fill(&mut first, MIB);
        assert!(governor.admits(4 * MIB) && !governor.admits(5 * MIB));
        // Many small ones may wait, or few large ones.
        let (mut second, small) = governor.make(2 * MIB);
        fill(&mut second, 1000);
        assert!(governor.admits(4 * MIB) && !governor.admits(5 * MIB));
        assert_eq!(cache(), 10);
        governor.flushed(&memtable);
        governor.flushed(&small);
        drop(small);
        let (mut large, held) = governor.make(12 * MIB);
        assert_eq!(cache(), 4, "the reader of the first is about to go");
        fill(&mut large, 11 * MIB);
        assert!(!governor.admits(2 * MIB));
        governor.look();
        assert_eq!(cache(), 2, "it did not go");
        governor.flushed(&held);
        assert!(governor.admits(12 * MIB));
        drop((memtable, first, held, large));
        governor.look();
        assert_eq!((cache(), governor.bytes() / MIB), (10, 0));
    }
}
