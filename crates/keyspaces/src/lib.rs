//! Keyspaces by name, over shards: what people and programs call a map of keys to values.
//!
//! ```text
//!   any thread                          a core
//!   Client -- batch, catalog question -> Hall --> coordinator --> shards
//!          -- Session: get, put, ... --> Hall --> one open transaction
//!      \_________ Registry: keyspaces that are known, and who may commit in them ________/
//! ```
//!
//! | module | subject |
//! |---|---|
//! | `catalog` | which keyspaces there are: records in a keyspace of the system's own |
//! | [`ids`] | ids that are never given twice, and the space of those that were dropped |
//! | `registry` | the catalog's cache, and what makes it safe: no commit meets a drop |
//! | `work` | reads, writes and scans of one transaction, by keyspace and key |
//! | [`batch`] | compare and write in one step: what one request of a remote client can say |
//! | `hall` | the core's end: runs what clients ask |
//! | [`client`] | the other end, for any thread and any executor |
//!
//! # Invariants
//! - A keyspace's id is never used for another one. Dropping is one transaction over the catalog,
//!   whatever the number of keys; their space comes back by range, once no reader can ask for them.
//! - A transaction commits only if every keyspace that it used is still there: a drop and a commit
//!   in the same keyspace come one after the other.
//! - A scan returns keys in order, whichever way the keyspace lays them out.
//!
//! The crate knows no wire protocol and no data type; values are bytes with a deadline.

pub mod batch;
mod catalog;
pub mod client;
mod error;
mod hall;
pub mod ids;
mod mute;
mod range;
mod registry;
#[cfg(test)]
mod tests;
mod work;

pub use batch::{Action, Batch, Compare, Done, Outcome, READ_BYTES_MAX, Relation, Test};
pub use catalog::{BUCKETS_DEFAULT, Info, Kind, NAME_LEN_MAX, Options};
pub use client::{Client, Isolation, Savepoint, Session};
pub use error::{Error, Result, Unknown};
pub use hall::{Door, Hall};
pub use mute::Mute;
pub use range::{KeyRange, after};
pub use registry::Keyspace;
pub use work::{Expiry, Found, Row, Rows};

/// The ordered keyspace of what the system itself keeps: the catalog, counters of ids.
pub const SYSTEM: u32 = 1;
