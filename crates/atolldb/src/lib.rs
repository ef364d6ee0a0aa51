//! AtollDB in your process: the stores, shards and transactions of the server, without a server.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("db");
//! use atolldb::{Database, Isolation, Options};
//!
//! let db = Database::open(&path)?;
//! let accounts = db.create_keyspace("bank/accounts", Options::default())?;
//! db.put(&accounts, "alice", "100")?;                      // on stable storage when it returns
//! db.put(&accounts, "bob", "0")?;
//!
//! // As if alone: repeated if somebody else was in the way.
//! db.transaction(|tx| {
//!     let alice: u64 = number(tx.get(&accounts, "alice")?);
//!     let bob: u64 = number(tx.get(&accounts, "bob")?);
//!     tx.put(&accounts, "alice", (alice - 30).to_string())?;
//!     tx.put(&accounts, "bob", (bob + 30).to_string())
//! })?;
//!
//! let mut tx = db.begin(Isolation::Snapshot);              // one moment
//! for row in tx.range(&accounts, "a".."z") {
//!     let row = row?;
//!     println!("{:?} {:?}", row.key, row.value);
//! }
//! assert_eq!(tx.get(&accounts, "bob")?.as_deref(), Some(&b"30"[..]));
//! drop(tx);
//! db.close()?;
//!
//! fn number(value: Option<Vec<u8>>) -> u64 {
//!     value.and_then(|bytes| String::from_utf8(bytes).ok()?.parse().ok()).unwrap_or(0)
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What runs
//! ```text
//!   your threads, your executor        threads of the database: one for each core
//!   Database, Transaction  --queue-->  transactions, shards, stores        (atoll-kv, atoll-txn)
//! ```
//! Each core owns shards and runs transactions; a call is a message there and back, some ten
//! microseconds. Writes of a transaction are sent ahead without a wait. `atoll start` serves a
//! directory that was made here, and the other way round; one at a time.
//!
//! # Blocking and async
//! Every call that waits has a twin: `get` blocks the thread, `get_async` is a future for any
//! executor. Both are the same code. Do not call the blocking ones on a thread that an executor
//! needs.
//!
//! # Isolation
//! | [`Isolation`] | reads | conflicts |
//! |---|---|---|
//! | `Serializable` | of one moment | as if all transactions ran one after the other, in an order that agrees with time |
//! | `Snapshot` | of one moment | of two that write the same key one fails; write skew is possible |
//! | `ReadCommitted` | each operation what is committed when it starts | writes wait for locks |
//! | `BoundedStale` | of one moment, at most so old | none: no writes, and it waits for nobody |
//!
//! # Errors
//! [`Error`] is sorted by what the caller does next; [`Database::transaction`] does it for conflicts.
//! A commit whose outcome is not known is [`Error::Unknown`], and [`Database::settle`] asks again.

mod database;
mod transaction;

pub use atoll_keyspaces::{
    Action, BUCKETS_DEFAULT, Batch, Compare, Done, Error, Expiry, Found, Info, Isolation, KeyRange,
    Keyspace, Kind, Options, Outcome, Relation, Result, Row, Savepoint, Test, Unknown,
};
/// When a write is answered, and so what it survives.
pub use atoll_lsm::Durability;
/// Why a database could not be opened or closed in order.
pub use atoll_lsm::Error as OpenError;
pub use database::{Builder, Database};
pub use transaction::{Scan, Transaction};
