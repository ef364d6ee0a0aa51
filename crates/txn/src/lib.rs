//! Transactions: many keys on many shards, as if one after the other.
//!
//! # The life of a transaction
//! ```text
//!            user                     coordinator                        shards
//!              | begin(Serializable)      |                                 |
//!              | get a                    | oracle: read point R            |
//!              |                          | Get a at R -------------------->| raise max_read(a) to R,
//!              |<-------------------------|<------------------------------- | newest version <= R
//!              | put b                    | kept here                       |
//!              | commit                   | oracle: commit point C          |
//!              |                          | one shard:  Commit ------------>| checks, one log entry
//!              |                          | many:       Validate, Prewrite  | (commit.rs has the picture)
//!              |<------ committed at C ---|                                 |
//!              |                          | background: record, intents     |
//! ```
//!
//! A transaction reads as of one moment and writes as of one other, its commit timestamp. That it
//! was alone is a statement about the time between: **nothing that it read has changed at its commit
//! timestamp.** Shards see to it from both sides. Validation refuses if somebody *has* written in
//! between; and since every read raises `max_read` of what it looked at, whoever writes there *later*
//! gets a timestamp above.
//!
//! That this order agrees with real time is a statement about the oracle: a transaction that begins
//! after another was answered gets points above everything that the first one used.
//!
//! # Where to find what
//! | question | module |
//! |---|---|
//! | What can a user do? | [`Transaction`] |
//! | How do many shards commit at once? | `commit` |
//! | What if the coordinator dies? | `recovery`, `cleaner` |
//! | What if two wait for each other? | `deadlock` |
//! | Where do timestamps come from? | `oracle` |
//! | What does a shard promise? | `atoll_mvcc::request` |
//! | How do we know? | `proof` |
//!
//! # What leaves which traces
//! Until it stages, a transaction exists in its coordinator only (and in lock tables, which forget
//! it after three seconds of silence). A staged one is visible as intents and one record; from then
//! on any stranger can end it. Nothing depends on a coordinator's survival but speed.
//!
//! # What is not here
//! The shard's half, and its fast lane for one-shard commands without an oracle; how requests
//! travel; when the safepoint moves.

mod buffer;
mod cleaner;
mod commit;
mod coordinator;
mod deadlock;
mod error;
mod join;
mod life;
mod locks;
pub mod mutants;
mod options;
mod oracle;
mod pace;
#[cfg(any(test, feature = "proof"))]
pub mod proof;
mod reads;
pub mod recovery;
mod shards;
mod stats;
#[cfg(test)]
mod tests;
mod transaction;

pub use cleaner::Background;
pub use coordinator::Coordinator;
pub use deadlock::Deadlocks;
pub use error::{Abort, Doubt, Error, Unavailable};
pub use options::Options;
pub use oracle::{LocalOracle, Oracle};
pub use pace::Pace;
pub use recovery::{Patience, Resolved, Unresolved, WhenAlive, resolve};
pub use shards::{ShardRef, Shards};
pub use stats::{Counter, Stats};
pub use transaction::{Page, Savepoint, ScanOptions, Transaction};
