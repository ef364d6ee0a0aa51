//! Errors, sorted by what the caller does next.
//!
//! | error | what has happened | what to do |
//! |---|---|---|
//! | `Conflict` | nothing | the same in a new transaction, at once |
//! | `Unknown` | all of it or nothing | look before doing it again; ask by [`Client::settle`](crate::Client::settle) |
//! | `Unavailable` | nothing | later |
//! | `Aborted` | nothing | something else: shorter, sooner |
//! | `NotFound` `Dropped` `Exists` | nothing | create the keyspace, or name another one |
//! | `InvalidInput` `TooLarge` | nothing | correct the call |
//! | `Corruption` | nothing | verify the database |
//! | `Closed` | nothing | open it again |

use std::fmt;

use atoll_txn::{Abort, Doubt};

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something was not done, or may not have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Another transaction was in the way. Nothing of this one has happened: run it again.
    Conflict(String),
    /// It is not known whether the transaction committed.
    Unknown(Unknown),
    /// The database could not serve in time. Nothing has happened: try again later.
    Unavailable(String),
    /// The transaction was ended, and the same would end the same way: it was idle for too long,
    /// or reads a moment that is gone.
    Aborted(String),
    /// There is no keyspace of this name.
    NotFound(String),
    /// The keyspace was dropped since it was opened.
    Dropped(String),
    /// There is a keyspace of this name with other options.
    Exists {
        /// The name.
        name: String,
        /// What it is.
        is: String,
    },
    /// The call was wrong: correct it.
    InvalidInput(String),
    /// A limit would be exceeded.
    TooLarge(String),
    /// Stored bytes are not what they should be.
    Corruption(String),
    /// The database is closed, or closes.
    Closed,
}

/// A transaction of which nobody could say in time whether it committed: all of it did, or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// What is needed to ask again; `None` if the database was closed meanwhile.
    pub(crate) doubt: Option<Doubt>,
}

impl Error {
    /// Returns whether the same work in a new transaction may succeed at once.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Error::Conflict(_))
    }

    /// The database was closed before it said how a commit ended.
    pub(crate) fn closed_in_commit() -> Error {
        Error::Unknown(Unknown { doubt: None })
    }
}

impl From<atoll_txn::Error> for Error {
    fn from(error: atoll_txn::Error) -> Error {
        match error {
            atoll_txn::Error::Aborted(why) if why.is_retryable() => {
                Error::Conflict(why.to_string())
            }
            atoll_txn::Error::Aborted(Abort::Unavailable(why)) => Error::Unavailable(why),
            atoll_txn::Error::Aborted(Abort::TooLarge(what)) => Error::TooLarge(what),
            atoll_txn::Error::Aborted(why) => Error::Aborted(why.to_string()),
            atoll_txn::Error::Unknown(doubt) => Error::Unknown(Unknown { doubt: Some(doubt) }),
            atoll_txn::Error::Unavailable(why) => Error::Unavailable(why.0),
            atoll_txn::Error::TooLarge { what } => Error::TooLarge(what),
            atoll_txn::Error::Misuse(what) => Error::InvalidInput(what.to_owned()),
        }
    }
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.doubt {
            Some(doubt) => write!(
                f,
                "it is not known whether transaction {} committed; look before you run it again",
                doubt.txn
            ),
            None => f.write_str(
                "the database was closed before it said whether the transaction committed; look \
                 before you run it again",
            ),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Conflict(why) => write!(f, "the transaction was aborted: {why}; run it again"),
            Error::Unknown(unknown) => unknown.fmt(f),
            Error::Unavailable(why) => {
                write!(f, "the database could not serve in time: {why}; try again")
            }
            Error::Aborted(why) => write!(f, "the transaction was aborted: {why}"),
            Error::NotFound(name) => {
                write!(f, "there is no keyspace '{}'; create it first", name.escape_debug())
            }
            Error::Dropped(name) => write!(
                f,
                "keyspace '{}' was dropped; open or create it again to use it",
                name.escape_debug()
            ),
            Error::Exists { name, is } => write!(
                f,
                "keyspace '{}' exists already and is {is}; options cannot be changed: drop it, or \
                 choose another name",
                name.escape_debug()
            ),
            Error::InvalidInput(what) => f.write_str(what),
            Error::TooLarge(what) => write!(f, "the transaction is too large: {what}; split it"),
            Error::Corruption(what) => write!(f, "{what}; run `atoll verify` on the directory"),
            Error::Closed => f.write_str("the database is closed; open it again"),
        }
    }
}

impl std::error::Error for Unknown {}
impl std::error::Error for Error {}
