//! Objects on shards: where Redis commands meet the key-value layer.
//!
//! ```text
//!   command, all keys on one shard      command or EXEC over several shards      whole databases
//!            |                                      |                                 |
//!       ObjectProgram                          distributed::run                    whole
//!     ShardTx over Eval                    TxnTx over a transaction          counts, flush, scans
//!            |                                      |                                 |
//!            +------------------------------ atoll-kv -------------------------------+
//! ```
//!
//! The commands themselves are pure functions of `atoll-redis`; this crate gives them transactions.
//! A command of one shard is evaluated there in one step. One of several shards locks its keys in
//! key order, so that it cannot fail for a conflict with its like, and commits as a transaction.
//!
//! # Invariants
//! - No command is answered with CROSSSLOT or asks its client to retry because keys lie apart.
//! - Databases are numbers for keyspaces; every shard knows the mapping and evaluates by it, so
//!   FLUSHDB and SWAPDB are one transaction over the shards, whatever the number of keys.

pub mod call;
pub mod databases;
pub mod dead;
pub mod distributed;
pub mod inside;
pub mod program;
mod shard_tx;
mod txn_tx;
pub mod whole;
pub mod wire;

pub use call::{Call, Item, Moment, Reply, Watched, Work};
pub use program::{Ask, ObjectProgram};
pub use wire::CallError;
