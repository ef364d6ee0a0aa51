//! What a coordinator allows and how long it waits.

use std::time::Duration;

/// Limits and times of a coordinator.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of keys and values that one transaction may write.
    pub write_bytes_max: usize,
    /// Keys that one transaction may write.
    pub write_keys_max: usize,
    /// Keys that a transaction remembers to have read one by one; more are folded into ranges, and
    /// a change anywhere in a range counts as a change.
    pub read_keys_max: usize,
    /// Keys up to which a commit over several shards is one parallel round. Its record names them
    /// all; above, the commit is a record of its own (two rounds).
    pub staged_keys_max: usize,
    /// Shards up to which it is one round.
    pub staged_shards_max: usize,
    /// A transaction that does nothing for so long is aborted.
    pub idle: Duration,
    /// How often a shard hears that the coordinator lives. Shards take it for dead after three.
    pub heartbeat: Duration,
    /// How long an operation waits for shards that do not serve.
    pub operation: Duration,
    /// How long a commit waits before it says that it does not know.
    pub commit: Duration,
    /// How long a lock is waited for.
    pub lock: Duration,
    /// After so long a wait for a lock the search for a deadlock begins, and goes on at this rate.
    pub deadlock: Duration,
    /// How long a reader or a lock waits for a living transaction before it decides its fate by
    /// recovery: it commits if all of it is there, and is aborted if not.
    pub push: Duration,
    /// How long a commit waits for another's intents. Two that hold what the other needs wait for
    /// each other, so this is short; the second attempt comes at another time.
    pub yield_after: Duration,
    /// Commits survive a power cut, unless a transaction says otherwise
    /// ([`Transaction::set_lasting`](crate::Transaction::set_lasting)).
    pub lasting: bool,
    /// How often [`Coordinator::run`](crate::Coordinator::run) runs a transaction.
    pub attempts: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            write_bytes_max: 64 << 20,
            write_keys_max: 1 << 20,
            read_keys_max: 4_096,
            staged_keys_max: 4_096,
            staged_shards_max: 64,
            idle: Duration::from_secs(60),
            heartbeat: Duration::from_secs(1),
            operation: Duration::from_secs(10),
            commit: Duration::from_secs(10),
            lock: Duration::from_secs(10),
            deadlock: Duration::from_millis(20),
            push: Duration::from_secs(1),
            yield_after: Duration::from_millis(30),
            lasting: true,
            attempts: 32,
        }
    }
}
