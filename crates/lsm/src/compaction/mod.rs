//! Compaction: merging sorted tables so that reads consult few of them and dead bytes go.
//!
//! Leveled, in parts that know nothing of each other:
//! - [`choose`]: a pure function from a view of the levels to a [`choose::Plan`].
//! - [`debt`]: how much of it is due, as a number that does not jump.
//! - [`parts`]: where a large merge is cut in two.
//! - [`stream`]: which records of a merged run survive: the newest one that each snapshot can see.
//! - [`fold`]: what becomes of merge operands; [`filter`]: what a program says about values.
//! - [`run`]: reads the inputs, feeds the stream, writes the outputs.
//! - [`weight`]: what of an output is, or will be, dead weight.
//!
//! # Invariants
//! - The records of a user key move down in order: a plan that takes a table takes every older
//!   record of its keys between it and the output level along.
//! - A tombstone is dropped only when no table below the output level can hold its key, and no
//!   snapshot can see beneath it.
//! - A quarantined table is no input, and nothing newer that overlaps it moves past it: what lies
//!   in it is unknown, so its place in the order must not change.

pub(crate) mod choose;
pub(crate) mod debt;
pub(crate) mod filter;
pub(crate) mod fold;
pub(crate) mod parts;
pub(crate) mod run;
pub(crate) mod stream;
pub(crate) mod weight;
