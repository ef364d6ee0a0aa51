//! What commands may do to the keyspace.
//!
//! Two seams. A [`Tx`] reads, writes and removes keys as of one consistent moment; every command
//! on named keys is a pure function on one (see [`crate::data`]). [`Keyspaces`] are the databases
//! as wholes: iteration, counts, flushing. Both are implemented by the executor's turn; a shard that
//! evaluates commands over its pending state, and a transaction over many shards, implement the
//! same traits.
//!
//! # What a command promises a transaction
//! - It names every key it touches in its row of the table ([`crate::table`]): a router finds the
//!   shards, and takes locks in order, before the command runs.
//! - It reads ([`Tx::get`]) or claims ([`Tx::claim`]) a key before it puts or removes it, and does
//!   all of its reads before its first write: a read that fails leaves nothing half done.
//! - It decides by [`Tx::now_ms`] alone, so that it can be evaluated again.
//!
//! # What a transaction promises a command
//! - Reads see the writes of earlier commands of the same transaction.
//! - A key whose deadline is at or before `now_ms` is not there.
//! - Sub-records live as long as a record names their generation: when a key is removed, or put
//!   with another generation, those of the old one are dropped, at a cost independent of their
//!   number.

use std::future::Future;
use std::ops::{Bound, Deref};

use crate::object::{Meta, Object};
use crate::store::{StoreError, Visitor};

/// The keys of the databases at one consistent moment, and what was done to them since. `db` is
/// below [`DATABASES`](crate::store::DATABASES) and `key` at most
/// [`MAX_KEY`](crate::layout::MAX_KEY) long in every call.
pub trait Tx {
    /// Bytes read: cheap to clone, valid for as long as they are held.
    type Value: Deref<Target = [u8]> + Clone;

    /// Returns the operation's time in milliseconds of the Unix epoch: it decides what is expired.
    fn now_ms(&self) -> u64;

    /// Returns the operation's time for metadata, in microseconds since 2020.
    fn epoch_us(&self) -> u64;

    /// Reads a live key.
    fn get(
        &mut self,
        db: usize,
        key: &[u8],
    ) -> impl Future<Output = Result<Option<Object<Self::Value>>, StoreError>>;

    /// Prepares for a put or a removal that does not depend on what the key holds. Returns when
    /// the live key was created, `None` if there is none or if telling it would take a read that
    /// the transaction can do without.
    fn claim(
        &mut self,
        db: usize,
        key: &[u8],
    ) -> impl Future<Output = Result<Option<u64>, StoreError>>;

    /// Writes a key. The deadline in `meta` is in the future.
    fn put(&mut self, db: usize, key: &[u8], meta: &Meta, payload: &[u8]);

    /// Removes a key and drops its sub-records.
    fn remove(&mut self, db: usize, key: &[u8]);

    /// Reads a sub-record of a generation that the key's record names.
    fn sub_get(
        &mut self,
        db: usize,
        key: &[u8],
        generation: u64,
        sub_key: &[u8],
    ) -> impl Future<Output = Result<Option<Self::Value>, StoreError>>;

    /// Writes a sub-record; a put of the key with this generation goes with it.
    fn sub_put(&mut self, db: usize, key: &[u8], generation: u64, sub_key: &[u8], value: &[u8]);

    /// Returns a number that names sub-records and was never returned before.
    fn new_generation(&mut self) -> u64;

    /// Returns a number that changes whenever the key is written, removed, or expires: what WATCH
    /// remembers and EXEC compares.
    fn version(&mut self, db: usize, key: &[u8]) -> impl Future<Output = Result<u64, StoreError>>;

    /// Returns what is known about a live key beyond its record.
    fn facts(&mut self, db: usize, key: &[u8]) -> Facts;

    /// Hears that a command read a key, or looked for one that is not there: for the statistics and
    /// the time of the last read. Commands that only write do not tell.
    fn looked_up(&mut self, db: usize, key: &[u8], looked: Looked);
}

/// How a command that reads looked for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looked {
    /// It read it.
    Read,
    /// It looked at it without the right to count as a reader: CLIENT NO-TOUCH, OBJECT.
    Glimpsed,
    /// It is not there.
    Missed,
}

/// What is known about a live key beyond its record. Times are in microseconds since 2020.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// When it was last read. Kept in memory, approximately; `None` if forgotten.
    pub read_us: Option<u64>,
    /// Whether the record was written by a turn that is not committed yet.
    pub pending: bool,
}

/// How many keys a database has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Live keys.
    pub keys: u64,
    /// Those of them that have a deadline.
    pub expiring: u64,
    /// Mean time until their deadline, in milliseconds.
    pub mean_ttl_ms: u64,
}

/// The databases as wholes.
pub trait Keyspaces {
    /// Returns the operation's time in milliseconds of the Unix epoch.
    fn now_ms(&self) -> u64;

    /// Visits the records of a database in the order of their storage keys (see
    /// [`layout`](crate::layout)), those past their deadline too, until the visitor breaks.
    fn visit(
        &mut self,
        db: usize,
        from: Bound<&[u8]>,
        visitor: Visitor<'_>,
    ) -> impl Future<Output = Result<(), StoreError>>;

    /// Counts a database's live keys.
    fn count(&mut self, db: usize) -> impl Future<Output = Result<Counts, StoreError>>;

    /// Removes all keys of a database.
    fn flush(&mut self, db: usize);

    /// Exchanges the keys of two databases.
    fn swap(&mut self, a: usize, b: usize);

    /// Returns a random number below `bound`, which is not 0.
    fn random_below(&mut self, bound: u64) -> u64;
}
