//! The seam to storage: what commands ask of it.
//!
//! Sixteen ordered byte maps of records, each with a map of sub-records beside it, a point read with
//! deadline, an ordered visit, one atomic commit. Which number clients know a map by is stored too.
//! Reads are asynchronous (they may go to disk) and see committed data only; what the turn staged
//! lies above, in [`Writes`]. Expiry is the caller's business: a store returns records with their
//! deadlines, due or not, and may drop due ones whenever it likes, except those that have
//! sub-records.

use std::fmt;
use std::future::Future;
use std::ops::{Bound, ControlFlow, Deref};

use crate::writes::{Numbering, Writes};

/// Number of databases, `SELECT 0` to `SELECT 15`.
pub const DATABASES: usize = 16;

/// A stored record.
#[derive(Clone, Debug)]
pub struct Record<V> {
    /// The record's bytes (see [`object`](crate::object)).
    pub value: V,
    /// The deadline the store kept beside them, if any, in milliseconds of the Unix epoch. The
    /// record's own counts; this one is for records of the layout that had none.
    pub deadline_ms: Option<u64>,
}

/// What an acknowledged write survives, the strongest promise first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Durability {
    /// A power cut.
    #[default]
    Synced,
    /// The end of the process at once; a power cut may take the last second.
    Interval,
    /// The end of the process; nothing is promised against a power cut.
    Buffered,
}

impl Durability {
    /// Returns the mode's name.
    pub fn name(self) -> &'static str {
        match self {
            Durability::Synced => "synced",
            Durability::Interval => "interval",
            Durability::Buffered => "buffered",
        }
    }

    /// Returns Redis's name of the nearest mode, the value of `appendfsync`.
    pub fn appendfsync(self) -> &'static str {
        match self {
            Durability::Synced => "always",
            Durability::Interval => "everysec",
            Durability::Buffered => "no",
        }
    }
}

/// Why the store could not answer: a sentence that says what to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError(pub String);

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StoreError {}

/// Sees a record's key and deadline; says whether to go on.
pub type Visitor<'a> = &'a mut dyn FnMut(&[u8], Option<u64>) -> ControlFlow<()>;

/// Storage of the sixteen databases. `db` is below [`DATABASES`] in every call, and a number of the
/// store, not of a client.
pub trait Store {
    /// Bytes read: cheap to clone, valid for as long as they are held.
    type Value: Deref<Target = [u8]> + Clone;

    /// Reads a record, due or not.
    fn get(
        &self,
        db: usize,
        key: &[u8],
    ) -> impl Future<Output = Result<Option<Record<Self::Value>>, StoreError>>;

    /// Reads a sub-record.
    fn get_sub(
        &self,
        db: usize,
        key: &[u8],
    ) -> impl Future<Output = Result<Option<Self::Value>, StoreError>>;

    /// Returns whether a database may have sub-records. If not, writes need not look for some that
    /// they would leave behind.
    fn has_subs(&self, db: usize) -> bool;

    /// Returns the numbering of the databases as it is committed.
    fn numbering(&self) -> Numbering;

    /// Visits records in key order from `from` on, until the end or until the visitor breaks.
    fn visit(
        &self,
        db: usize,
        from: Bound<&[u8]>,
        visitor: Visitor<'_>,
    ) -> impl Future<Output = Result<(), StoreError>>;

    /// Applies all of `writes` or, with an error, makes none of them visible. Returns when they
    /// are as durable as `durability` says.
    fn commit(
        &self,
        writes: &Writes,
        durability: Durability,
    ) -> impl Future<Output = Result<(), StoreError>>;

    /// Returns the bytes of memory the store holds: caches, memtables.
    fn memory_bytes(&self) -> u64;
}
