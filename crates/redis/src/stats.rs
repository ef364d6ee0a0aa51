//! Counters of the Redis surface: each core writes its own, anybody reads the sums.
//!
//! INFO shows them, and so does the metrics page, which another thread may render. Each counter
//! has one writer, so an increment is a load and a store, without a locked instruction; what the
//! server shows is [`Stats::sum`] of what its cores counted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::table::COMMANDS;

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Returns the value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds to the value. One thread at a time may do so.
    pub fn add(&self, amount: u64) {
        self.set(self.get().wrapping_add(amount));
    }

    /// Replaces the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

/// Number of buckets of a [`Histogram`].
pub const BUCKETS: usize = 26;

/// Durations in powers of two of a microsecond: bucket `i` counts those below `2^i` us and not
/// below `2^(i-1)`; the last one counts all longer ones (16 s and more).
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; BUCKETS],
    sum_ns: Counter,
}

impl Histogram {
    /// Counts a duration.
    pub fn record(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let us = ns / 1_000;
        let bucket = (u64::BITS - us.leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)].add(1);
        self.sum_ns.add(ns);
    }

    /// Returns how many durations are in each bucket.
    pub fn counts(&self) -> [u64; BUCKETS] {
        std::array::from_fn(|i| self.buckets[i].get())
    }

    /// Returns the upper bound of a bucket in seconds, `None` for the last one.
    pub fn bound_s(bucket: usize) -> Option<f64> {
        (bucket + 1 < BUCKETS).then(|| (1u64 << bucket) as f64 / 1e6)
    }

    /// Returns the sum of all durations.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns.get())
    }

    fn counters(&self) -> impl Iterator<Item = &Counter> {
        self.buckets.iter().chain([&self.sum_ns])
    }
}

/// What is counted for one command.
#[derive(Debug, Default)]
pub struct CommandStats {
    /// Executions, failed ones included.
    pub calls: Counter,
    /// Executions that answered an error.
    pub failed: Counter,
    /// Requests refused before execution: arity, authentication.
    pub rejected: Counter,
    /// Time of execution, without the commit of the turn.
    pub latency: Histogram,
}

impl CommandStats {
    fn counters(&self) -> impl Iterator<Item = &Counter> {
        [&self.calls, &self.failed, &self.rejected].into_iter().chain(self.latency.counters())
    }
}

/// All counters of a core, or sums of them.
#[derive(Debug)]
pub struct Stats {
    commands: Vec<CommandStats>,
    /// Connections accepted.
    pub connections_received: Counter,
    /// Connections refused because there were too many.
    pub connections_rejected: Counter,
    /// Connections open now.
    pub connected_clients: Counter,
    /// Bytes of memory that the stores hold now: caches, memtables.
    pub store_bytes: Counter,
    /// Bytes of memory that clients' buffers hold, as of the last second.
    pub client_bytes: Counter,
    /// Bytes of requests taken in.
    pub input_bytes: Counter,
    /// Bytes of replies given out.
    pub output_bytes: Counter,
    /// Commands executed.
    pub commands_processed: Counter,
    /// Error replies, refused requests and broken frames included.
    pub error_replies: Counter,
    /// Error replies by their code.
    errors: Mutex<BTreeMap<String, u64>>,
    /// Reads that found their key.
    pub keyspace_hits: Counter,
    /// Reads that did not.
    pub keyspace_misses: Counter,
    /// Keys removed because their deadline had come.
    pub expired_keys: Counter,
    /// Turns executed.
    pub turns: Counter,
    /// Turns that wrote something, by how long their commit took.
    pub commits: Histogram,
    /// Commits that failed.
    pub commits_failed: Counter,
}

impl Stats {
    /// Starts at zero.
    pub fn new() -> Stats {
        Stats {
            commands: COMMANDS.iter().map(|_| CommandStats::default()).collect(),
            connections_received: Counter::default(),
            connections_rejected: Counter::default(),
            connected_clients: Counter::default(),
            store_bytes: Counter::default(),
            client_bytes: Counter::default(),
            input_bytes: Counter::default(),
            output_bytes: Counter::default(),
            commands_processed: Counter::default(),
            error_replies: Counter::default(),
            errors: Mutex::default(),
            keyspace_hits: Counter::default(),
            keyspace_misses: Counter::default(),
            expired_keys: Counter::default(),
            turns: Counter::default(),
            commits: Histogram::default(),
            commits_failed: Counter::default(),
        }
    }

    /// Returns the sums of several cores' counters.
    pub fn sum<'s>(all: impl IntoIterator<Item = &'s Stats>) -> Stats {
        let total = Stats::new();
        for stats in all {
            let counters = total.counted().zip(stats.counted());
            counters.for_each(|(sum, counter)| sum.add(counter.get()));
            total.levels().into_iter().zip(stats.levels()).for_each(|(sum, l)| sum.add(l.get()));
            let mut sums = total.errors.lock();
            for (code, count) in &*stats.errors.lock() {
                *sums.entry(code.clone()).or_default() += count;
            }
        }
        total
    }

    /// Takes away what was counted before, as CONFIG RESETSTAT asks; levels stay what they are.
    pub(crate) fn less(self, before: &Stats) -> Stats {
        for (counter, before) in self.counted().zip(before.counted()) {
            counter.set(counter.get().saturating_sub(before.get()));
        }
        let before = before.errors.lock();
        self.errors.lock().retain(|code, count| {
            *count -= before.get(code).copied().unwrap_or(0).min(*count);
            *count > 0
        });
        self
    }

    /// Returns the statistics of each command that was called or refused, by full name.
    pub fn commands(&self) -> impl Iterator<Item = (&'static str, &CommandStats)> {
        COMMANDS
            .iter()
            .zip(&self.commands)
            .filter(|(_, stats)| stats.calls.get() + stats.rejected.get() > 0)
            .map(|(command, stats)| (command.name, stats))
    }

    /// Returns the number of error replies by their code.
    pub fn errors(&self) -> BTreeMap<String, u64> {
        self.errors.lock().clone()
    }

    /// Returns the statistics of a row of the command table.
    pub(crate) fn command(&self, id: crate::table::Id) -> &CommandStats {
        &self.commands[id as usize]
    }

    /// Counts an error reply.
    pub(crate) fn count_error(&self, text: &[u8]) {
        self.error_replies.add(1);
        // Codes are ours, never the client's, so their number is bounded.
        let code = text.split(|&byte| byte == b' ').next().unwrap_or(&[]);
        let code = String::from_utf8_lossy(code);
        let mut errors = self.errors.lock();
        match errors.get_mut(code.as_ref()) {
            Some(count) => *count += 1,
            None => {
                errors.insert(code.into_owned(), 1);
            }
        }
    }

    /// Returns everything that only grows.
    fn counted(&self) -> impl Iterator<Item = &Counter> {
        [
            &self.connections_received,
            &self.connections_rejected,
            &self.input_bytes,
            &self.output_bytes,
            &self.commands_processed,
            &self.error_replies,
            &self.keyspace_hits,
            &self.keyspace_misses,
            &self.expired_keys,
            &self.turns,
            &self.commits_failed,
        ]
        .into_iter()
        .chain(self.commits.counters())
        .chain(self.commands.iter().flat_map(CommandStats::counters))
    }

    /// Returns what tells how things are now.
    fn levels(&self) -> [&Counter; 3] {
        [&self.connected_clients, &self.store_bytes, &self.client_bytes]
    }
}

impl Default for Stats {
    fn default() -> Stats {
        Stats::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_below_its_buckets_bound_and_not_below_the_one_before() {
        for us in [0u64, 1, 2, 3, 4, 1_000, 1_024, 60_000_000] {
            let histogram = Histogram::default();
            histogram.record(Duration::from_micros(us));
            let bucket = histogram.counts().iter().position(|&count| count == 1).unwrap();
            let seconds = us as f64 / 1e6;
            assert!(Histogram::bound_s(bucket).is_none_or(|bound| seconds < bound), "{us}");
            if bucket > 0 {
                assert!(Histogram::bound_s(bucket - 1).unwrap() <= seconds, "{us}");
            }
            assert_eq!(histogram.sum(), Duration::from_micros(us));
        }
    }

    #[test]
    fn sums_are_of_all_cores_and_a_reset_takes_away_what_was_before() {
        let cores = [Stats::new(), Stats::new()];
        for (core, clients) in cores.iter().zip([2, 3]) {
            core.connected_clients.set(clients);
            core.turns.add(10);
            core.command(crate::table::Id::Get).calls.add(1);
            core.count_error(b"ERR no");
        }
        let before = Stats::sum(&cores);
        assert_eq!((before.connected_clients.get(), before.turns.get()), (5, 20));
        cores[1].turns.add(1);
        cores[1].count_error(b"NOAUTH no");
        let since = Stats::sum(&cores).less(&before);
        assert_eq!((since.connected_clients.get(), since.turns.get()), (5, 1));
        assert_eq!(since.commands().count(), 0);
        assert_eq!(since.errors().into_iter().collect::<Vec<_>>(), [("NOAUTH".to_owned(), 1)]);
    }
}
