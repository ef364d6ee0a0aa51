//! The oracle: who allocates epochs, here for all cores of one process.
//!
//! ```text
//!            clock: 1000   1000   1002    998 (jumped)   1010
//!   epoch allocated: 1000   1001   1002   1003           1010
//!                                         ^ never back   ^ catches up
//! ```
//!
//! One shared integer, the last epoch allocated. An allocation takes the clock or the next number,
//! whichever is higher, so that no two callers get the same epoch and each is above every one that
//! was given before, on any core.
//!
//! # Over a restart
//! Epochs live in memory. What must not happen after a restart is a commit at or below a version
//! that was committed before it. So every lane records a *bound* in front of the first entry that
//! exceeds the last one ([`Bound`]), in the same batch and the same sync as that entry, and the
//! oracle starts above the bounds of all lanes. The bound is [`AHEAD_US`] in the future, which makes
//! it a record four times a second on a busy lane, none on an idle one, and 250 ms by which deadlines
//! may come early after a crash.
//!
//! Reads are not recorded. A read served above the bound, and forgotten in the crash, has seen only
//! versions at or below the bound, so everything that commits later is above all that it saw.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::timestamp::{Epoch, Timestamp};

/// How far a lane's bound lies ahead of the entry that needs it, in microseconds.
pub const AHEAD_US: u64 = 250_000;

/// A clock beyond this is not followed (it is 2153): a machine whose clock was set to a wild date
/// still has 2^48 epochs to allocate one by one.
const CLOCK_MAX: Epoch = Epoch(Epoch::MAX.0 - (1 << 48));

/// Allocates epochs. Shared by all cores.
#[derive(Debug)]
pub struct Oracle {
    /// The last epoch allocated; only grows.
    ///
    /// Relaxed everywhere: changes of one atomic have one order that agrees with what happened
    /// before what, and nothing else is published by it.
    last: AtomicU64,
}

impl Oracle {
    /// Returns an oracle whose epochs are above `start`: the highest bound of all lanes.
    pub fn new(start: Epoch) -> Oracle {
        Oracle { last: AtomicU64::new(start.0) }
    }

    /// Allocates an epoch: that of the clock, or the next one if the clock is behind.
    pub fn epoch(&self, now: Epoch) -> Epoch {
        let now = now.min(CLOCK_MAX).0;
        let mut last = self.last.load(Ordering::Relaxed);
        loop {
            let epoch = now.max(last + 1);
            match self.last.compare_exchange_weak(last, epoch, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return Epoch(epoch),
                Err(moved) => last = moved,
            }
        }
    }

    /// Allocates a read point. Reads that already wait may share it; one that begins later may not.
    pub fn read_ts(&self, now: Epoch) -> Timestamp {
        Timestamp::read_at(self.epoch(now))
    }

    /// Allocates a commit point.
    pub fn commit_ts(&self, now: Epoch) -> Timestamp {
        Timestamp::commit_at(self.epoch(now))
    }

    /// Allocates `count` epochs in a row and returns the first, none of them above `bound`; `None` if
    /// there are not so many left.
    pub fn epochs_within(&self, now: Epoch, count: u64, bound: Epoch) -> Option<Epoch> {
        let now = now.min(CLOCK_MAX).0;
        let mut last = self.last.load(Ordering::Relaxed);
        loop {
            let first = now.max(last + 1);
            let end = first.checked_add(count.max(1) - 1).filter(|end| *end <= bound.0)?;
            match self.last.compare_exchange_weak(last, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(Epoch(first)),
                Err(moved) => last = moved,
            }
        }
    }

    /// Makes sure that every epoch allocated from now on is above `epoch`.
    pub fn raise(&self, epoch: Epoch) {
        self.last.fetch_max(epoch.0, Ordering::Relaxed);
    }

    /// Returns the last epoch allocated to anybody.
    pub fn last(&self) -> Epoch {
        Epoch(self.last.load(Ordering::Relaxed))
    }
}

/// The bound of one lane: no entry in it has a timestamp of a later epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    recorded: Epoch,
}

impl Bound {
    /// Returns the bound as the lane has it; [`Epoch`] 0 for a new lane.
    pub fn new(recorded: Epoch) -> Bound {
        Bound { recorded }
    }

    /// Returns what the lane says now.
    pub fn recorded(self) -> Epoch {
        self.recorded
    }

    /// Returns the bound to record in front of an entry at `ts`; `None` if the last one covers it.
    pub fn bound_for(self, ts: Timestamp) -> Option<Epoch> {
        (ts.epoch() > self.recorded).then(|| ts.epoch().after_us(AHEAD_US))
    }

    /// Notes that a bound is in the lane, in front of the entry that needed it. Call it when it was
    /// appended: what is behind it in the lane cannot survive without it.
    pub fn set(&mut self, recorded: Epoch) {
        self.recorded = recorded.max(self.recorded);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn the_clock_is_followed_forwards_only() {
        let oracle = Oracle::new(Epoch(900));
        let allocated = [1000, 1000, 1002, 998, 0, 1010].map(|now| oracle.epoch(Epoch(now)).0);
        assert_eq!(allocated, [1000, 1001, 1002, 1003, 1004, 1010]);
        assert_eq!(oracle.last(), Epoch(1010));
        assert_eq!(oracle.read_ts(Epoch(0)), Timestamp::read_at(Epoch(1011)));
        assert_eq!(oracle.commit_ts(Epoch(0)), Timestamp::commit_at(Epoch(1012)));
    }

    #[test]
    fn a_start_above_the_clock_is_not_undercut() {
        let oracle = Oracle::new(Epoch(5_000));
        assert_eq!(oracle.epoch(Epoch(4_000)), Epoch(5_001));
    }

    #[test]
    fn a_wild_clock_leaves_epochs_to_allocate() {
        let oracle = Oracle::new(Epoch(0));
        let first = oracle.epoch(Epoch::MAX);
        assert_eq!(first, CLOCK_MAX);
        assert_eq!(oracle.epoch(Epoch::MAX), Epoch(first.0 + 1));
    }

    #[test]
    fn epochs_in_a_row_are_given_up_to_the_bound_and_nothing_is_taken_when_they_do_not_fit() {
        let oracle = Oracle::new(Epoch(10));
        assert_eq!(oracle.epochs_within(Epoch(0), 3, Epoch(15)), Some(Epoch(11)));
        assert_eq!(oracle.epochs_within(Epoch(0), 3, Epoch(15)), None);
        assert_eq!(oracle.epochs_within(Epoch(99), 1, Epoch(15)), None, "the clock is past it");
        assert_eq!(oracle.epochs_within(Epoch(0), u64::MAX, Epoch(15)), None);
        assert_eq!(oracle.last(), Epoch(13));
        assert_eq!(oracle.epochs_within(Epoch(0), 2, Epoch(15)), Some(Epoch(14)));
        oracle.raise(Epoch(20));
        assert_eq!(oracle.epochs_within(Epoch(30), 2, Epoch(99)), Some(Epoch(30)));
        assert_eq!(oracle.last(), Epoch(31));
    }

    #[test]
    fn threads_never_share_a_commit_epoch_and_each_sees_them_ascend() {
        const THREADS: u64 = 4;
        const EACH: u64 = 20_000;
        let (oracle, start) = (Oracle::new(Epoch(0)), Barrier::new(THREADS as usize));
        let mut all: Vec<u64> = std::thread::scope(|scope| {
            let work = |thread: u64| {
                let (oracle, start) = (&oracle, &start);
                scope.spawn(move || {
                    start.wait();
                    let mut mine = Vec::new();
                    for n in 0..EACH {
                        let before = oracle.last();
                        // Clocks that differ, and jump back now and then.
                        let now = Epoch(n * (thread + 1) - if n % 100 == 99 { n / 2 } else { 0 });
                        let ts = oracle.commit_ts(now);
                        assert!(ts.epoch() > before && ts.epoch() <= oracle.last());
                        mine.push(ts.epoch().0);
                    }
                    assert!(mine.is_sorted(), "epochs of one caller ascend");
                    mine
                })
            };
            let threads: Vec<_> = (0..THREADS).map(work).collect();
            threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
        });
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len() as u64, THREADS * EACH, "no epoch twice");
    }

    #[test]
    fn a_lane_records_a_bound_when_an_entry_exceeds_it_and_not_again_for_250_ms() {
        let mut bound = Bound::new(Epoch(0));
        let mut recorded = Vec::new();
        for ms in 0..1_000 {
            let ts = Timestamp::commit_at(Epoch(1_000_000 + ms * 1_000));
            if let Some(epoch) = bound.bound_for(ts) {
                recorded.push(epoch.0);
                bound.set(epoch);
            }
            assert!(ts.epoch() <= bound.recorded());
        }
        assert_eq!(recorded, [1_250_000, 1_501_000, 1_752_000, 2_003_000]);
        bound.set(Epoch(5));
        assert_eq!(bound.recorded(), Epoch(2_003_000), "a bound never falls");
    }
}
