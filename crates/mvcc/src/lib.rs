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
//! The crate is pure: encodings and small state machines, no I/O, no clock, no threads. It knows
//! neither the log nor the network; [`request`] is the vocabulary between a coordinator and a
//! shard, whoever carries the words.

pub mod keys;
pub mod request;
pub mod timestamp;
pub mod value;

pub use request::{Request, Response, TxnId};
pub use timestamp::{Epoch, Timestamp};
pub use value::Value;
