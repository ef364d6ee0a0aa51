//! Counters of a coordinator, for operators and tests.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Returns it.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a coordinator has done since it was made.
#[derive(Debug, Default)]
pub struct Stats {
    /// Transactions begun.
    pub begun: Counter,
    /// Committed without writing.
    pub read_only: Counter,
    /// Committed on one shard, in one step.
    pub one_shard: Counter,
    /// Committed on many shards in one parallel round.
    pub many_shards: Counter,
    /// Committed on many shards by a record of their own.
    pub two_rounds: Counter,
    /// Moved to a later timestamp and validated again, because others had read what they write.
    pub pushed: Counter,
    /// Aborted.
    pub aborted: Counter,
    /// Ended for idleness.
    pub idle: Counter,
    /// Commits whose answer was lost and had to be asked for.
    pub settled: Counter,
    /// Of these, found committed.
    pub settled_committed: Counter,
    /// Commits whose outcome could not be told.
    pub unknown: Counter,
    /// Reads moved to a later moment, because a lock showed something newer.
    pub refreshed: Counter,
    /// Records that contradict what a client was told. Must stay zero.
    pub broken: Counter,
}
