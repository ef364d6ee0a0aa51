//! Negative controls: rules of the protocol that can be left out to prove that the schedules notice.
//!
//! In tests and with the cargo feature `proof` a thread chooses one rule to leave out; otherwise
//! [`is`] is the constant `false` and costs nothing. The names of the coordinator's rules:
//!
//! | name | the rule it removes |
//! |---|---|
//! | `validate-after-staging` | shards that were only read are validated before anything is staged |
//! | `no-refresh` | a serializable transaction that was pushed validates its reads again |
//! | `no-restage` | its record moves to the new timestamp before the answer |
//! | `spans-not-validated` | a scanned range is validated, not only the keys found in it |
//! | `abort-without-record` | a failed prewrite is an abort only once the record says so |
//! | `lost-is-aborted` | a lost answer to a commit is asked for before anything is told |
//! | `resend-under-new-id` | a commit with an unknown outcome is never sent under another name |
//! | `missing-is-aborted` | a missing status is followed by another look at the key |
//! | `recovery-forgets` | only the coordinator removes the record of a committed transaction |
//! | `no-fences` | recovery makes sure that a missing intent can never come |
//! | `recovery-ignores-pushes` | recovery aborts a serializable transaction with an intent above its record |
//! | `snapshot-at-commit-point` | a snapshot transaction commits at the highest of its intents |
//! | `locks-not-checked` | what was read under a lock is checked again at the commit |
//! | `locks-in-any-order` | several keys are locked in one order by everybody |
//! | `no-deadlock-search` | who waits for a lock looks for circles |
//!
//! The reference shard (`proof::reference`) adds those of the shard's side.

#[cfg(any(test, feature = "proof"))]
thread_local! {
    static CHOSEN: std::cell::Cell<Option<&'static str>> = const { std::cell::Cell::new(None) };
}

/// Chooses the rule that this thread leaves out, or none.
#[cfg(any(test, feature = "proof"))]
pub fn choose(name: Option<&'static str>) {
    CHOSEN.set(name);
}

/// Returns whether the rule is left out.
#[cfg(any(test, feature = "proof"))]
pub fn is(name: &str) -> bool {
    CHOSEN.get() == Some(name)
}

/// Returns whether the rule is left out: never, in a build without the feature.
#[cfg(not(any(test, feature = "proof")))]
#[inline(always)]
pub fn is(_name: &str) -> bool {
    false
}
