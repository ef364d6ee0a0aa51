//! Iterators: one ordered stream out of memtables and tables.
//!
//! ```text
//!   Scan      what a snapshot sees: newest visible record of each key, tombstones applied
//!    Merge    all records of all sources, in internal-key order
//!     Source  a memtable | a table of L0 | the tables of a level, one after the other
//! ```
//!
//! An iterator has one direction for life; a two-ended range is two of them. A step is first tried
//! in memory and only then awaited ([`Advance`]), because nearly all steps stay inside a block and
//! must cost nanoseconds.
//!
//! After an error an iterator stays at it: going on would skip records silently.

pub(crate) mod merge;
pub(crate) mod scan;
pub(crate) mod source;

pub(crate) use merge::Merge;
pub(crate) use scan::Scan;
pub(crate) use source::Source;

pub(crate) use crate::table::{Advance, Direction};
