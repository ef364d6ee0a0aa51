//! Versions in time: what it means that a key has many values, and who may see which.
//!
//! ```text
//!            time --->   (5,0x800)      (9,0x800)       (9,0x801)
//!   key a        .........."x"..............................."y"......   versions
//!   key b        ..........................(gone)....................
//!   key c        ..........................[intent of txn 7, at (9,0x800) or later]
//! ```
//!
//! A version of a key is valid from its commit [`Timestamp`] until the next one. An *intent* is a
//! value of a transaction whose fate is decided elsewhere: at its record. A transaction reads the
//! versions of one moment, its read timestamp, and writes all of its own at one other, its commit
//! timestamp.
//!
//! | module | subject |
//! |---|---|
//! | [`timestamp`] | 64 bits that order every version and every read |
//! | [`oracle`] | who allocates them, and why not again after a restart |
//! | [`keys`] | where a key belongs among the shards, and its names in a store's tree |
//! | [`record`] | bytes of intents, transaction records, fences, the lane's bound |
//! | [`max_read`] | at which moment was a key read last? Nothing may appear below that |
//! | [`locks`] | pessimistic locks: queues, grants, circles |
//! | [`request`] | what a transaction asks of a shard, and what a shard answers |
//! | [`wire`] | both as bytes, for a shard on another engine |
//!
//! The crate is pure: encodings and small state machines, no I/O, no clock, no threads of its own
//! (only the [`oracle`] may be shared by several). It knows neither the log nor the network;
//! [`request`] is the vocabulary between a coordinator and a shard, whoever carries the words.

pub mod keys;
pub mod locks;
pub mod max_read;
pub mod oracle;
pub mod record;
pub mod request;
pub mod timestamp;
pub mod value;
pub mod wire;

pub use locks::LockTable;
pub use max_read::MaxRead;
pub use oracle::{Bound, Oracle};
pub use request::{Record, Request, Response, TxnId};
pub use timestamp::{Epoch, Timestamp};
pub use value::Value;
