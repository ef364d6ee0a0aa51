//! The sorted table: an immutable file of internal keys and their values.
//!
//! Flush and compaction write tables, in key order, with [`TableWriter`]; readers open them as
//! [`Table`] and look a key up or walk them with [`TableIter`]. The bytes are specified in
//! docs/formats/table.md; the shape is:
//!
//! ```text
//!   data blocks ─────────────────────┐  sorted records, prefix compressed        (pool)
//!   filter partitions                │  Bloom or fuse filters over the keys      (pool)
//!   index partitions ────────────────┤  separator -> data block                  (pool)
//!   range tombstone blocks           │                                           (memory)
//!   properties                       │  counts, bounds                           (memory)
//!   top index ───────────────────────┘  separator -> index and filter partition  (memory)
//!   footer                              where properties and top index are
//! ```
//!
//! A point lookup finds the partition in the top index, asks its filter, finds the block in the
//! index partition, and searches the block: three pool lookups, and three small reads if none is
//! in memory. Outside of the pool an open table keeps a few hundred bytes per MiB of file.
//!
//! # Invariants
//! - **Separators are exclusive upper bounds.** A separator sorts after everything in its block and
//!   not after anything behind it; the block for a target is the first whose separator is greater.
//!   Then exactly one block and one filter can hold the answer to a lookup, even where versions of
//!   one user key run across blocks (`index.rs`).
//! - **No byte is outside of a checksum**, and each checksum is seeded with table id, salt and
//!   offset: a block of another table, of an earlier file with this id, or from another place in
//!   this one does not verify. Verified bytes are still decoded with every length checked.
//! - An error names file and offset. An iterator that met one stays there: it never skips.
//!
//! # Decisions
//! - Index and filters are partitioned and go through the pool like data, instead of being loaded
//!   whole at open: memory follows what is read, not what is stored.
//! - All partitions stand behind the data, so that data is contiguous and scans read it ahead in
//!   large pieces without looking at the index.
//! - One filter partition per index partition: one search in the top index finds both.
//! - A block decodes one restart interval at a time into a list, and both directions walk the list
//!   (`block.rs`): going back costs what going forward costs.

mod block;
pub(crate) mod codec;
mod filter;
mod footer;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod index;
mod iter;
mod properties;
mod readahead;
mod reader;
mod verify;
mod writer;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use atoll_env::{WallTime, disk::IoClass};

pub use codec::Codec;
pub use filter::{Filter, FilterPolicy};
pub use iter::{Advance, Direction, Seek, TableIter};
pub use properties::Properties;
pub use reader::{Expected, Found, Table};
pub use verify::Verified;
pub use writer::{TableMeta, TableWriter};

/// Longest user key, in bytes: 64 KiB and the keyspace id before it.
pub const KEY_MAX: usize = (64 << 10) + 4;
/// Longest value of one record, in bytes. Longer ones are the caller's to cut into chunks.
pub const VALUE_MAX: usize = 16 << 20;
/// Longest block before compression, in bytes: nothing larger is ever allocated for one.
const BLOCK_MAX: usize = 32 << 20;
const _: () = assert!(BLOCK_MAX > KEY_MAX + VALUE_MAX + 64);
/// Most records in a restart interval.
const RESTART_INTERVAL_MAX: usize = 64;

/// How a table is written.
#[derive(Clone, Debug)]
pub struct TableOptions {
    /// Bytes of a data block before compression; a record larger than that gets a block of its own.
    pub block_bytes: usize,
    /// Bytes of an index partition before compression; a filter partition may take four times that.
    pub partition_bytes: usize,
    /// Records between restart points, 1 to 64.
    pub restart_interval: usize,
    /// Compression of data and index blocks.
    pub codec: Codec,
    /// Filters over the keys.
    pub filter: Filter,
    /// Prefixes that are put into the filter beside the keys.
    pub prefix_rule: Option<PrefixRule>,
    /// Level the table is written for, kept as a property.
    pub level: u32,
    /// Wall time kept as a property.
    pub created: WallTime,
}

impl Default for TableOptions {
    fn default() -> TableOptions {
        TableOptions {
            block_bytes: 4 << 10,
            partition_bytes: 4 << 10,
            restart_interval: 16,
            codec: Codec::Lz4,
            filter: Filter::Bloom(10),
            prefix_rule: None,
            level: 0,
            created: WallTime(0),
        }
    }
}

/// Which part of a user key a prefix filter knows.
#[derive(Clone)]
pub struct PrefixRule {
    /// Name of the rule, not 0; those below 2^32 belong to [`PrefixRule::fixed`]. It is stored: a
    /// filter written under another rule answers "maybe", so that a changed rule never hides a key.
    pub id: u64,
    /// Returns the length of a user key's prefix, or `None` if it has none.
    pub prefix_len: PrefixLen,
}

/// The function of a [`PrefixRule`].
pub type PrefixLen = Arc<dyn Fn(&[u8]) -> Option<usize> + Send + Sync>;

impl PrefixRule {
    /// Returns the rule "the first `len` bytes", under the id `len`. `len` is not 0.
    pub fn fixed(len: usize) -> PrefixRule {
        let prefix_len = move |key: &[u8]| (key.len() >= len).then_some(len);
        PrefixRule { id: len as u64, prefix_len: Arc::new(prefix_len) }
    }
}

impl fmt::Debug for PrefixRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrefixRule({})", self.id)
    }
}

/// How an iterator reads what is not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    /// Whether blocks it reads are offered to the pool.
    pub admit: bool,
    /// Bytes read at once when a scan meets the second block that is not in memory; 0 reads block
    /// by block.
    pub readahead_start: usize,
    /// The window doubles with each further read up to this size.
    pub readahead_max: usize,
    /// Scheduling class of its reads.
    pub class: IoClass,
}

impl ReadOptions {
    /// For a client's scan: starts small, because most scans are short.
    pub const SCAN: ReadOptions = ReadOptions {
        admit: true,
        readahead_start: 16 << 10,
        readahead_max: 256 << 10,
        class: IoClass::Read,
    };
    /// For compaction: large pieces from the start, nothing is kept.
    pub const COMPACTION: ReadOptions = ReadOptions {
        admit: false,
        readahead_start: 256 << 10,
        readahead_max: 256 << 10,
        class: IoClass::Compaction,
    };
}

impl Default for ReadOptions {
    fn default() -> ReadOptions {
        ReadOptions::SCAN
    }
}

/// Where a sealed block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Handle {
    offset: u64,
    /// Bytes as stored, without the seal.
    len: u32,
}

impl Handle {
    /// Returns the offset behind the block's seal.
    fn end(self) -> u64 {
        self.offset.saturating_add(u64::from(self.len) + codec::SEAL_LEN as u64)
    }
}
