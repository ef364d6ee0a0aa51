//! Batches: comparisons and what is done if they hold, as one transaction that runs where the data
//! is. What one request of a remote client can say, it says as a batch: no conversation, and the
//! retries after a conflict are nobody's business but ours.

use atoll_kv::{Core, Program};
use atoll_mvcc::request;

use crate::error::{Error, Result};
use crate::range::KeyRange;
use crate::registry::Keyspace;
use crate::work::{CoreTxn, Expiry, Found, Limits, Rows, Used, Work, enter};

/// Bytes that a batch may read in all: its outcome is one answer, in memory.
pub const READ_BYTES_MAX: usize = 64 << 20;

/// Comparisons, and what is done if all of them hold, or else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// What has to hold.
    pub compare: Vec<Compare>,
    /// What is done then.
    pub success: Vec<Action>,
    /// What is done otherwise.
    pub failure: Vec<Action>,
}

/// A comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The keyspace.
    pub keyspace: Keyspace,
    /// The key.
    pub key: Vec<u8>,
    /// What has to hold for it.
    pub test: Test,
}

/// What has to hold for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// It has a value, or has none.
    Exists(bool),
    /// How its version compares; that of a key without value is 0.
    Version(Relation, u64),
    /// Its version is one of these, or (`false`) none of them.
    VersionIn(Vec<u64>, bool),
    /// How its value compares, byte by byte. Without one it is only `NotEqual`.
    Value(Relation, Vec<u8>),
}

/// How what is there compares with what is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// They are equal.
    Equal,
    /// They differ.
    NotEqual,
    /// What is there is less.
    Less,
    /// What is there is greater.
    Greater,
}

impl Relation {
    fn holds<T: Ord + ?Sized>(self, there: &T, given: &T) -> bool {
        match self {
            Relation::Equal => there == given,
            Relation::NotEqual => there != given,
            Relation::Less => there < given,
            Relation::Greater => there > given,
        }
    }
}

impl Test {
    fn holds(&self, found: Option<&Found>) -> bool {
        // What the batch itself has written has no version; comparisons come before all writes.
        let version = || found.and_then(|found| found.version).unwrap_or(0);
        match self {
            Test::Exists(exists) => found.is_some() == *exists,
            Test::Version(relation, given) => relation.holds(&version(), given),
            Test::VersionIn(given, is_in) => given.contains(&version()) == *is_in,
            Test::Value(relation, given) => match found {
                Some(found) => relation.holds(&found.value, given),
                None => *relation == Relation::NotEqual,
            },
        }
    }
}

/// One thing that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read a key.
    Get {
        /// The keyspace.
        keyspace: Keyspace,
        /// The key.
        key: Vec<u8>,
    },
    /// Write a value.
    Put {
        /// The keyspace.
        keyspace: Keyspace,
        /// The key.
        key: Vec<u8>,
        /// The value.
        value: Vec<u8>,
        /// When it expires.
        expiry: Expiry,
    },
    /// Delete a key, and tell whether it had a value.
    Delete {
        /// The keyspace.
        keyspace: Keyspace,
        /// The key.
        key: Vec<u8>,
    },
    /// Read a range.
    Scan {
        /// The keyspace.
        keyspace: Keyspace,
        /// The range.
        range: KeyRange,
        /// From its end.
        reverse: bool,
        /// Most rows.
        limit: usize,
        /// Most bytes of keys and values; the first row always comes.
        bytes_max: usize,
    },
}

impl Action {
    fn is_write(&self) -> bool {
        matches!(self, Action::Put { .. } | Action::Delete { .. })
    }
}

/// What became of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// What was read.
    Got(Option<Found>),
    /// It was written.
    Put,
    /// It was deleted, or (`false`) was not there.
    Deleted(bool),
    /// Rows.
    Scanned(Rows),
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// All comparisons held.
    pub succeeded: bool,
    /// The moment at which it happened: the version of everything that it wrote.
    pub version: u64,
    /// What became of each action, in order.
    pub results: Vec<Done>,
}

/// Runs a batch, again if another transaction was in the way.
pub(crate) async fn run<P: Program>(core: &Core<P>, batch: &Batch) -> Result<Outcome> {
    let writes = batch.success.iter().chain(&batch.failure).any(Action::is_write);
    // Without writes the present moment is as good as the end of the commit.
    let isolation =
        if writes { request::Isolation::Serializable } else { request::Isolation::Snapshot };
    let mut entered = Vec::new();
    let coordinator = core.coordinator();
    let done = coordinator.run(isolation, async |txn| {
        entered.clear();
        let mut used = Used::new();
        let done = attempt(core, txn, &mut used, batch).await?;
        entered = enter(&used)?;
        Ok::<_, Error>(done)
    });
    let ((succeeded, results), ts) = done.await?;
    Ok(Outcome { succeeded, version: ts.0, results })
}

async fn attempt<P: Program>(
    core: &Core<P>,
    txn: &mut CoreTxn<P>,
    used: &mut Used,
    batch: &Batch,
) -> Result<(bool, Vec<Done>)> {
    let mut work = Work { core, txn, used };
    let mut succeeded = true;
    for Compare { keyspace, key, test } in &batch.compare {
        if !test.holds(work.get(keyspace, key, false).await?.as_ref()) {
            succeeded = false;
            break;
        }
    }
    let actions = if succeeded { &batch.success } else { &batch.failure };
    let mut results = Vec::with_capacity(actions.len());
    let mut read = 0;
    for action in actions {
        let done = match action {
            Action::Get { keyspace, key } => Done::Got(work.get(keyspace, key, false).await?),
            Action::Put { keyspace, key, value, expiry } => {
                work.put(keyspace, key, value, *expiry).await?;
                Done::Put
            }
            Action::Delete { keyspace, key } => {
                let is_there = work.get(keyspace, key, false).await?.is_some();
                if is_there {
                    work.delete(keyspace, key).await?;
                }
                Done::Deleted(is_there)
            }
            Action::Scan { keyspace, range, reverse, limit, bytes_max } => {
                let limits = Limits { rows: *limit, bytes: *bytes_max };
                Done::Scanned(work.scan(keyspace, range, *reverse, limits).await?)
            }
        };
        read += match &done {
            Done::Got(Some(found)) => found.value.len(),
            Done::Scanned(rows) => {
                rows.rows.iter().map(|row| row.key.len() + row.value.len()).sum()
            }
            Done::Got(None) | Done::Put | Done::Deleted(_) => 0,
        };
        if read > READ_BYTES_MAX {
            return Err(Error::TooLarge(format!("it reads more than {READ_BYTES_MAX} bytes")));
        }
        results.push(done);
    }
    Ok((succeeded, results))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_without_value_has_version_zero_and_equals_no_value() {
        let there = Found { value: b"m".to_vec(), version: Some(9), deadline_ms: None };
        for (test, with, without) in [
            (Test::Exists(true), true, false),
            (Test::Exists(false), false, true),
            (Test::Version(Relation::Equal, 9), true, false),
            (Test::Version(Relation::Equal, 0), false, true),
            (Test::Version(Relation::Greater, 8), true, false),
            (Test::Version(Relation::Less, 9), false, true),
            (Test::VersionIn(vec![3, 9], true), true, false),
            (Test::VersionIn(vec![3, 9], false), false, true),
            (Test::Value(Relation::Equal, b"m".to_vec()), true, false),
            (Test::Value(Relation::NotEqual, b"m".to_vec()), false, true),
            (Test::Value(Relation::Less, b"n".to_vec()), true, false),
            (Test::Value(Relation::Greater, b"".to_vec()), true, false),
        ] {
            assert_eq!(test.holds(Some(&there)), with, "{test:?} of a value");
            assert_eq!(test.holds(None), without, "{test:?} of none");
        }
    }
}
