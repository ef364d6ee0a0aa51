//! Negative controls: rules that can be switched off to prove that the crash tests notice.
//!
//! With the cargo feature `mutants` the crash harness chooses one rule to leave out; without it
//! [`is`] is the constant `false` and costs nothing. The names:
//!
//! | name | the rule it removes |
//! |---|---|
//! | `ack-before-sync` | an answer waits for the sync |
//! | `no-synced-to-check` | a hole below a synced position is corruption, not a torn tail |
//! | `no-salt` | frames of a recycled segment's former life do not verify |
//! | `no-dir-sync` | a file's name is synced before anything relies on it |
//! | `early-tombstone-drop` | a tombstone stays until nothing older lies below it |
//! | `pointer-without-checksum` | what a pointer leads to is held against the pointer |
//! | `value-file-removed-early` | a value file stays while a table points into it |
//! | `checkpoint-links-a-segment` | a checkpoint copies the log, which is written again |

/// Those that a power cut shows.
pub const ALL: [&str; 8] = [
    "ack-before-sync",
    "no-synced-to-check",
    "no-salt",
    "no-dir-sync",
    "early-tombstone-drop",
    "pointer-without-checksum",
    "value-file-removed-early",
    "checkpoint-links-a-segment",
];

/// Rules of the optimistic transactions, which the histories in `transaction/histories.rs` must
/// miss, and the last one a test in `tests/transactions.rs`.
///
/// | name | the rule it removes |
/// |---|---|
/// | `keys-not-validated` | a key that was read and changed is a conflict |
/// | `ranges-not-validated` | a range that was read and changed is one |
/// | `tree-not-validated` | what was written before the commit counts |
/// | `recent-not-validated` | what was written while the tree was asked counts |
/// | `group-not-validated` | earlier members of the same commit group count |
/// | `empty-ranges-not-noted` | a range in which nothing was found was read, too |
/// | `expired-dropped-early` | a table of expired records stays while a snapshot is older |
pub const TRANSACTIONS: [&str; 7] = [
    "keys-not-validated",
    "ranges-not-validated",
    "tree-not-validated",
    "recent-not-validated",
    "group-not-validated",
    "empty-ranges-not-noted",
    "expired-dropped-early",
];

/// Rules of the record cache, which `tests/records.rs` must miss: what their absence does is undone by
/// a restart. The model checker misses the first two as well (`cargo xtask loom`).
///
/// | name | the rule it removes |
/// |---|---|
/// | `record-cache-not-invalidated` | a flush forgets what its keys have in the record cache |
/// | `record-cache-late-fill` | a reader overtaken by a flush does not fill the record cache |
/// | `record-cache-keeps-pointers` | it keeps no record that points into a value file |
///
/// Two more rules, of the lead, are missed by the model checker alone:
///
/// | name | the rule it removes |
/// |---|---|
/// | `lead-not-passed-on` | a call to lead that nobody hears any more is passed on |
/// | `leader-leaves-unlocked` | a leader looks for waiters and leaves in one step |
pub const READS: [&str; 3] =
    ["record-cache-not-invalidated", "record-cache-late-fill", "record-cache-keeps-pointers"];

#[cfg(feature = "mutants")]
static CHOSEN: std::sync::OnceLock<&'static str> = std::sync::OnceLock::new();

/// Chooses the rule to leave out, for the rest of the process. The first choice stays.
#[cfg(feature = "mutants")]
pub fn choose(name: &'static str) {
    let _ = CHOSEN.set(name);
}

/// Returns whether the rule is left out.
#[cfg(all(feature = "mutants", not(all(test, atoll_loom))))]
pub fn is(name: &str) -> bool {
    CHOSEN.get() == Some(&name)
}

/// Returns whether the model checker's test leaves the rule out.
#[cfg(all(test, atoll_loom))]
pub fn is(name: &str) -> bool {
    crate::sync::is_left_out(name)
}

/// Returns whether the rule is left out: never, in a build without the feature.
#[cfg(not(any(feature = "mutants", all(test, atoll_loom))))]
#[inline(always)]
pub fn is(_name: &str) -> bool {
    false
}
