//! AtollDB's storage engine as a library: an LSM tree whose log is written once.
//!
//! ```text
//!   Database, Keyspace, Snapshot, Batch, Range,         the API
//!   WriteTransaction, OptimisticTransaction
//!        |                     |
//!      commit                 view                      one leader writes, anybody reads
//!        |                     |
//!       log -> memtable -> sealed memtable -> tables -> compaction
//!                                      '---> value files    long values, which tables point to
//! ```
//!
//! The engine has two halves with a seam between them. The *log* ([`log`]) appends frames of many
//! groups, syncs, reads and cuts; the *tree* (memtables and tables) applies a batch that is stamped
//! with its place in the log, and never logs. So the log of a consensus group can be the
//! write-ahead log. The seam has two clients: [`Database`] (group 0, one term, durable means
//! committed) and [`driven`], which hands both halves to an owner with groups of his own.
//!
//! # Invariants
//! - An acknowledged write survives the death of the process in every [`Durability`] mode, and a
//!   power cut in [`Durability::Synced`].
//! - What survives a power cut is a prefix of what was written, without a hole.
//! - Bytes that do not verify are reported with file and offset, and never served.
//! - All time, randomness, files and tasks come from [`atoll_env`]: under its simulator a seed
//!   names one execution, flush and compaction included.
//!
//! # Limits
//! | what | at most | beyond it |
//! |---|---|---|
//! | a key | [`KEY_LEN_MAX`], 64 KiB | `InvalidInput`, also when reading |
//! | a value | [`VALUE_LEN_MAX`], 512 MiB; above 1 MiB it is stored in chunks, and may be read so ([`ValueReader`]) | `InvalidInput` |
//! | a merge operand | [`OPERAND_LEN_MAX`], 1 MiB | `InvalidInput`: merge it in parts |
//! | a batch | half of [`Options::memory`], its keys and values together | `InvalidInput`: write it in parts |
//! | a keyspace's name | 255 bytes | `InvalidInput` |
//! | keyspaces, ever | 2^32 - 2 | `InvalidInput` |
//!
//! So a value is bounded by the memory budget, too. A batch of very short records counts 128 bytes
//! more for each, of which seven eighths of the budget may be used. What is refused changes nothing.
//!
//! The engine knows nothing of shards, replication, distributed transactions, SQL or any wire
//! protocol.

mod background;
pub mod backup;
mod batch;
mod checkpoint;
mod commit;
mod compaction;
mod database;
pub mod driven;
mod error;
mod events;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod governor;
mod header;
mod identity;
mod image;
mod ingest;
mod iter;
pub mod key;
mod keyspace;
pub mod log;
mod long;
pub mod memtable;
mod merge;
pub mod mutants;
mod opening;
mod options;
mod pacer;
mod pacing;
mod pieces;
pub mod pool;
mod range;
mod read;
mod records;
mod recovery;
mod repair;
mod scrub;
mod slice;
mod stats;
mod store;
mod stretches;
mod sync;
pub mod table;
mod tables;
pub mod tombstone;
mod transaction;
mod values;
mod verify;
mod version;
mod view;

pub use batch::Batch;
pub use compaction::filter::{Candidate, CompactionFilter, Decision};
pub use database::{Builder, Database, Snapshot};
pub use error::{Error, Result};
pub use events::{
    BackgroundError, CompactionBegun, CompactionEnded, CompactionKind, CompactionReason,
    CorruptionFound, EventListener, FlushBegun, FlushEnded, FlushReason, JobEnd, TableInfo,
    WriteDelayed, WriteStalled,
};
pub use image::Image;
pub use ingest::Ingested;
pub use keyspace::Keyspace;
pub use long::ValueReader;
pub use merge::{Add, Append, Max, MergeOperator, OPERAND_LEN_MAX, Refusal};
pub use options::{
    Compression, Durability, FilterPolicy, KEY_LEN_MAX, KeyspaceOptions, Options, PoolStrategy,
    VALUE_LEN_MAX, ValuePlacement, WriteOptions,
};
pub use range::{Cursor, Guard, Range};
pub use read::Record;
pub use records::RecordStats;
pub use repair::{DroppedTable, RepairOptions, RepairReport, repair, repair_async};
pub use slice::{Owner, Slice};
pub use stats::{Latency, LevelStats, Stats};
pub use transaction::{
    Mode, Optimistic, OptimisticTransaction, Savepoint, SingleWriter, Transaction, WriteTransaction,
};
pub use verify::{VerifyReport, verify, verify_async};
