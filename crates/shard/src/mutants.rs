//! Negative controls: rules of the shard that can be left out to prove that the schedules notice.
//!
//! In tests a thread chooses one rule to leave out; otherwise [`is`] is the constant `false` and
//! costs nothing. The names, and the rule that each removes:
//!
//! | name | rule |
//! |---|---|
//! | `no-low-water` | a new leader writes above every read that the old one served |
//! | `horizon-forgotten` | a new leader refuses what the old one refused |
//! | `reads-below-horizon` | a read below the horizon is refused: versions it would find may be gone |
//! | `reads-do-not-raise` | a read of keys raises their read timestamps |
//! | `scans-do-not-raise` | a scan raises those of its range |
//! | `reads-do-not-wait` | a read waits for what is in flight at or below its moment |
//! | `reads-pass-intents` | a read waits for intents at or below its moment |
//! | `validation-does-not-raise` | validated reads hold up to the moment asked for |
//! | `prewrite-reads-do-not-raise` | so do the reads of a prewrite |
//! | `commit-reads-do-not-raise` | reads of an entry hold up to its timestamp |
//! | `command-reads-do-not-raise` | those of commands that write, too |
//! | `edge-reads-do-not-raise` | so do reads of the edge by a command that only reads |
//! | `fast-reads-do-not-raise` | a read of the applied state raises the key's read timestamp |
//! | `fast-passes-intents` | a command waits for intents on its keys |
//! | `fast-above-oracle` | a command's moment is an epoch that the oracle has given out |
//! | `commands-pass-locks` | a command that writes waits for locks on its keys |
//! | `commits-pass-locks` | a transaction does not write what another has locked |
//! | `locks-pass-intents` | a lock is granted when no intent is left on its key |
//! | `locks-do-not-wait` | and when nothing of it is in flight |
//! | `locked-may-vanish` | what was read under a lock is there at the commit, not merely nothing newer |
//! | `locked-not-checked` | what was read under a lock is checked at the commit: leaders forget locks |
//! | `read-the-edge-at-once` | who saw the edge is answered with the entry that he saw |
//! | `no-delete-at-once` | a removal of what the edge has removed waits for it |
//! | `locals-at-once` | so does who saw one of the shard's own values |
//! | `local-passes-intents` | an own value waits for the intent on it |
//! | `local-not-awaited` | who wants the applied own value waits for one in flight |
//! | `local-below-commands` | an intent on an own value lies above every command that read it |
//! | `resolved-not-awaited` | a read of the applied state does not look past a resolved intent |
//! | `close-below-reads` | an entry's timestamp lies above every read of its keys |
//! | `close-below-edge` | it lies above every entry before |
//! | `close-below-commits` | it lies above the commit points of its transactions |
//! | `resolved-below-edge` | so it does above every resolved intent |
//! | `intent-below-reads` | an intent lies above every read of its key |
//! | `intent-below-open` | it lies above what is in the open entry |
//! | `intent-with-reads` | it lies above reads of the open entry, which has no timestamp yet |
//! | `writes-pass-intents` | a transaction does not overwrite another's intent |
//! | `writes-not-checked` | what it writes was not written since it read |
//! | `reads-not-checked` | what it read still holds |
//! | `edge-not-checked` | it is checked against what is in flight, too |
//! | `spans-not-checked` | a scanned range is checked for new keys |
//! | `late-prewrites-pass` | what is stamped below the horizon is refused |
//! | `records-dropped-early` | records and fences stay until the horizon has passed them |
//! | `resolving-not-held` | and until intents that they decided on are gone for good |
//! | `record-not-checked` | a transaction that has a record stages nothing |
//! | `no-commit-record` | a one-step commit leaves a record |
//! | `commit-record-at-closing` | it is known from its evaluation on |
//! | `fences-not-checked` | a fence keeps its intent from coming |
//! | `status-at-once` | a record is told when it is in the log |
//! | `probe-at-once` | so is the fate of an intent |
//! | `restage-anything` | a record moves only from where it is said to stand |
//! | `finish-anything` | and ends only from there |
//! | `refusal-leaves-effects` | what is refused has changed nothing |
//! | `intents-not-counted` | a resolved intent counts as the change of its key |
//! | `split-forgets-locals` | the right half of a split inherits the shard's own values |
//!
//! Two belong to whoever follows the leader, here the proof's host:
//!
//! | name | rule |
//! |---|---|
//! | `answer-before-apply` | an answer that waits for an entry waits until it is applied |
//! | `own-writes-not-seen` | who has a write in flight sees it |
//!
//! And some to replicas, which `crates/kv/tests/cluster.rs` leaves out:
//!
//! | name | rule |
//! |---|---|
//! | `read-without-lease` | a leader answers reads while its lease holds |
//! | `promise-before-sync` | votes and confirmations wait until what they promise is durable |
//! | `oracle-starts-anywhere` | a new holder of the oracle starts above what the last one may have given |
//! | `votes-after-a-start` | who was restarted votes for nobody while an old lease may run |
//!
//! The proof (`proof::tests`) leaves out each of them in turn and wants it noticed. With the feature
//! `mutants` a whole server can be run without one (`cargo xtask sim --mutants`).

#[cfg(any(test, feature = "mutants"))]
thread_local! {
    static CHOSEN: std::cell::Cell<Option<&'static str>> = const { std::cell::Cell::new(None) };
}

/// Chooses the rule that this thread leaves out, or none.
#[cfg(any(test, feature = "mutants"))]
pub fn choose(name: Option<&'static str>) {
    CHOSEN.set(name);
}

/// Returns whether the rule is left out.
#[cfg(any(test, feature = "mutants"))]
pub fn is(name: &str) -> bool {
    CHOSEN.get() == Some(name)
}

/// Returns whether the rule is left out: never, in an ordinary build.
#[cfg(not(any(test, feature = "mutants")))]
#[inline(always)]
pub fn is(_name: &str) -> bool {
    false
}
