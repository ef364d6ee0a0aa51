//! What may go wrong, sorted by what the caller does next.
//!
//! | error | what happened | what to do |
//! |---|---|---|
//! | [`Error::Aborted`] | the transaction is over and has no effect | begin a new one, if the abort says that this may help |
//! | [`Error::Unknown`] | nobody could say in time whether it committed | ask again by the [`Doubt`], or tell a person |
//! | [`Error::Unavailable`] | a shard did not serve in time | the transaction is as before: go on, or roll back |
//! | [`Error::TooLarge`] | it would exceed a limit | the transaction is as before: commit in smaller parts |
//! | [`Error::Misuse`] | the program asked for what makes no sense | correct the program |

use std::fmt;

use atoll_mvcc::request::{Key, Refusal};
use atoll_mvcc::{Timestamp, TxnId};

/// Why an operation of a transaction failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The transaction is over; nothing of it has happened or ever will.
    Aborted(Abort),
    /// It is not known whether the transaction committed.
    Unknown(Doubt),
    /// A shard or the oracle could not serve in time.
    Unavailable(Unavailable),
    /// A limit of a transaction would be exceeded; the operation was not done.
    TooLarge {
        /// What there would be too much of, with the limit.
        what: String,
    },
    /// The operation is not allowed here.
    Misuse(&'static str),
}

impl Error {
    /// Returns whether the same work in a new transaction may succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Error::Aborted(why) if why.is_retryable())
    }
}

/// Why a transaction was aborted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Abort {
    /// Somebody else wrote a key, or is about to.
    WriteConflict(Key),
    /// What it read has changed, seen at this key or at the range that starts there.
    ReadConflict(Key),
    /// It waited for a lock in a circle, and was the youngest there.
    Deadlock,
    /// It waited too long for a lock on this key.
    LockTimeout(Key),
    /// It was taken for dead by somebody whom it was in the way of.
    Fenced,
    /// The answer to its commit was lost, and so was the commit.
    Lost,
    /// It did nothing for too long.
    Idle(std::time::Duration),
    /// The moment it reads at lies below the safepoint: what was then may be gone.
    SnapshotTooOld,
    /// What it writes to one shard is more than fits into memory. A sentence with the limit.
    TooLarge(String),
    /// A shard did not serve until the time for the commit had passed.
    Unavailable(String),
}

impl Abort {
    /// Returns whether the same work in a new transaction may succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Abort::WriteConflict(_)
            | Abort::ReadConflict(_)
            | Abort::Deadlock
            | Abort::LockTimeout(_)
            | Abort::Fenced
            | Abort::Lost => true,
            Abort::Idle(_) | Abort::SnapshotTooOld | Abort::TooLarge(_) | Abort::Unavailable(_) => {
                false
            }
        }
    }
}

impl From<Refusal> for Abort {
    fn from(refusal: Refusal) -> Abort {
        match refusal {
            Refusal::WriteConflict { key } => Abort::WriteConflict(key),
            Refusal::ReadConflict { key } => Abort::ReadConflict(key),
            Refusal::Fenced => Abort::Fenced,
            Refusal::Deadlock => Abort::Deadlock,
            Refusal::SnapshotTooOld => Abort::SnapshotTooOld,
            Refusal::TooLarge(what) => Abort::TooLarge(what),
        }
    }
}

/// A transaction of which nobody could say in time whether it committed, and what is needed to ask
/// again (`Coordinator::settle`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// Its name.
    pub txn: TxnId,
    /// Where its record would be.
    pub primary: Key,
    /// Its commit point. Once the safepoint has passed it nobody can answer any more.
    pub commit_ts: Timestamp,
}

/// Something did not serve in time, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable(pub String);

impl From<Unavailable> for Error {
    fn from(unavailable: Unavailable) -> Error {
        Error::Unavailable(unavailable)
    }
}

impl From<Abort> for Error {
    fn from(abort: Abort) -> Error {
        Error::Aborted(abort)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Aborted(why) if why.is_retryable() => {
                write!(f, "the transaction was aborted: {why}; run it again")
            }
            Error::Aborted(why) => write!(f, "the transaction was aborted: {why}"),
            Error::Unknown(doubt) => write!(
                f,
                "it is not known whether transaction {} committed; look before you run it again",
                doubt.txn
            ),
            Error::Unavailable(why) => why.fmt(f),
            Error::TooLarge { what } => {
                write!(f, "the transaction is too large: {what}; split it into smaller ones")
            }
            Error::Misuse(what) => f.write_str(what),
        }
    }
}

impl fmt::Display for Abort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Abort::WriteConflict(key) => {
                write!(f, "another transaction writes key \"{}\"", key.escape_ascii())
            }
            Abort::ReadConflict(key) => {
                write!(f, "what it read at key \"{}\" has changed", key.escape_ascii())
            }
            Abort::Deadlock => f.write_str("it waited for a lock in a circle with others"),
            Abort::LockTimeout(key) => {
                write!(f, "the lock on key \"{}\" was not free in time", key.escape_ascii())
            }
            Abort::Fenced => {
                f.write_str("it was taken for dead while it was in the way of another")
            }
            Abort::Lost => f.write_str("a shard lost its leader, and the commit with it"),
            Abort::Idle(limit) => write!(f, "it did nothing for {} s", limit.as_secs()),
            Abort::SnapshotTooOld => {
                f.write_str("the moment it reads at is older than the versions that are kept")
            }
            Abort::TooLarge(what) => f.write_str(what),
            Abort::Unavailable(why) => write!(f, "a shard could not serve in time: {why}"),
        }
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the database could not serve in time: {}; try again", self.0)
    }
}

impl std::error::Error for Error {}
impl std::error::Error for Abort {}
impl std::error::Error for Unavailable {}
