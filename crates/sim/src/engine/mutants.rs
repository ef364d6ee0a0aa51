//! Negative controls: rules of shards and transactions that the server can be run without.
//!
//! With the feature `mutants` a campaign leaves one out, and has succeeded when a seed fails. The
//! proofs of `atoll-txn` and `atoll-shard` leave out each rule there is, one by one, and notice it
//! faster, because their schedules are made to meet; here are those whose absence a whole server with
//! ordinary clients shows within a hundred seeds.

/// Rules of the shard ([`atoll_shard`]'s mutants).
pub const OF_SHARDS: [&str; 12] = [
    "reads-do-not-wait",
    "edge-reads-do-not-raise",
    "fast-passes-intents",
    "read-the-edge-at-once",
    "close-below-edge",
    "close-below-commits",
    "intent-below-reads",
    "edge-not-checked",
    "spans-not-checked",
    "records-dropped-early",
    "status-at-once",
    "intents-not-counted",
];
/// Rules of the coordinator ([`atoll_txn::mutants`]).
pub const OF_TRANSACTIONS: [&str; 4] =
    ["no-refresh", "spans-not-validated", "lost-is-aborted", "recovery-forgets"];

/// Returns the rule of a name, if a campaign can leave it out.
pub fn find(name: &str) -> Option<&'static str> {
    OF_SHARDS.into_iter().chain(OF_TRANSACTIONS).find(|known| *known == name)
}

/// Leaves a rule out on this thread, or none.
#[cfg(feature = "mutants")]
pub fn choose(mutant: Option<&'static str>) {
    atoll_shard::mutants::choose(mutant);
    atoll_txn::mutants::choose(mutant);
}

/// Nothing, in this build.
#[cfg(not(feature = "mutants"))]
pub fn choose(_mutant: Option<&'static str>) {}
