//! The engine for an owner who drives log and tree himself, as consensus does.
//!
//! A [`Database`](crate::Database) decides when its batches are durable and applies them at once. An
//! owner with consensus groups cannot leave that to the engine: an entry is appended, perhaps
//! overwritten, committed later by others, and applied later still. So he gets both halves:
//!
//! ```text
//!             owner's thread                                 any thread
//!   Driver    append -> write -> sync ... apply              Tree   get, get_version, scan
//!               |                           |                         |
//!              log lane (all groups)     memtable -> tables ----------+
//!               ^                                     |
//!               +---- chores: seal, release, ... -----+               background tasks
//! ```
//!
//! # A turn of the owner
//! ```text
//!   1  reserve(arena, lens)   room in memory and in the log, or a refusal; nothing is staged yet
//!   2  append(id, payload)    for each entry of each group; memory only
//!   3  write() or sync()      one for all groups: kernel, or stable storage
//!   4  apply(group, index, position, writes)   for each entry that is committed, in order
//!   5  chores()               what background work asked for
//! ```
//! Calls 2 and `set_state` never wait. The others complete at the first poll as long as the disk is
//! not needed or answers at once.
//!
//! The writes of an entry are built with [`Writes`], whose bytes may stand anywhere in the payload:
//! what else is in it is the owner's business.
//!
//! # Invariants
//! - The owner leads for good: background work never touches the log, it leaves requests that
//!   [`Driver::chores`] serves. An owner who stops calling it stops flushes from freeing the log.
//! - A refusal comes before anything is staged. What is in the log can only be applied.
//! - Opening applies nothing. [`Driver::applied`] tells, for each group, up to where the tables hold
//!   its entries; the owner reads those behind it and applies what consensus says is committed.
//! - Sequence numbers derive from lane positions, so an entry that is applied again after a restart
//!   overwrites itself.
//! - Of two records of a key the later one has the higher lane position, and of two versions also no
//!   lower stamp. It follows if a key is written by one group at a time, whose entries are applied in
//!   order, and is handed to another group only by an entry that both have applied. Where it does not
//!   hold reads find either of the two.
//! - An entry is one for readers on the owner's thread. One that is applied late, behind entries of
//!   other groups with higher positions, can be seen in part by other threads meanwhile; reads at a
//!   stamp below the entry's do not see any of it.
//!
//! # Cancellation
//! The futures of a [`Driver`] must be run to their end. Dropping one of `write`, `sync`, `apply` or
//! `chores` half-way leaves the state of the files unknown: the log counts as failed then.

mod cursor;
mod driver;
mod tree;
mod writes;

#[cfg(test)]
mod tests;

pub use cursor::{Cursor, Row};
pub use driver::{Driver, OpenOptions, open};
pub use tree::{Tree, Version};
pub use writes::{KEY_LEN_MAX, Stamp, Write, Writes, arena_bytes, decode};

pub use crate::log::{Entry, EntryId, GroupId, GroupState, GroupSummary, LogStats};
pub use crate::table::Direction;
