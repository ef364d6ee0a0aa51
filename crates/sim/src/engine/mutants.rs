//! Negative controls: rules of shards and transactions that the server can be run without.
//!
//! With the feature `mutants` a campaign leaves one out, and has succeeded when a seed fails. The
//! proofs of `atoll-txn` and `atoll-shard` leave out each rule there is, one by one, and notice it
//! faster, because their schedules are made to meet; here are those whose absence a whole server with
//! ordinary clients shows within a hundred seeds. (`commands-pass-locks` and `validate-after-staging` were
//! among them until a transaction took a third of its time: what they need to meet is over too soon now.)

/// Rules of the shard (`atoll_shard`'s mutants).
pub const OF_SHARDS: [&str; 12] = [
    "no-low-water",
    "reads-do-not-wait",
    "fast-passes-intents",
    "read-the-edge-at-once",
    "resolved-not-awaited",
    "intent-below-reads",
    "writes-pass-intents",
    "edge-not-checked",
    "spans-not-checked",
    "records-dropped-early",
    "intents-not-counted",
    "split-forgets-locals",
];
/// Rules of the coordinator (`atoll_txn`'s mutants).
pub const OF_TRANSACTIONS: [&str; 2] = ["no-refresh", "recovery-forgets"];

/// Leaves a rule out on this thread, or none.
#[cfg(feature = "mutants")]
pub fn choose(mutant: Option<&'static str>) {
    atoll_shard::mutants::choose(mutant);
    atoll_txn::mutants::choose(mutant);
}

/// Nothing, in this build.
#[cfg(not(feature = "mutants"))]
pub fn choose(_mutant: Option<&'static str>) {}
