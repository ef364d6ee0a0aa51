//! What a transaction asks of a shard, and what a shard answers.
//!
//! A coordinator turns a transaction into requests, each to one shard; a shard evaluates a request
//! in one step over its state (ARCHITECTURE.md, transactions). Neither knows how the words travel:
//! by a function call, over a ring between cores, or over a network.
//!
//! | request | log entry? | who sends it |
//! |---|---|---|
//! | `Get` `Scan` | no | reads at a timestamp |
//! | `Lock` `Unlock` | no | pessimistic reads, multi-key commands |
//! | `Waits` | no | the search for deadlocks: whom does this transaction wait for? |
//! | `Commit` | one | a transaction with one shard: all in one step |
//! | `Validate` | no | serializable, shards that were read and not written, *before* any `Prewrite` |
//! | `Prewrite` | one | each written shard, in parallel |
//! | `Restage` `Finish` | one | the transaction's record changes state, at the primary |
//! | `Status` | no | somebody met an intent |
//! | `Probe` | one, if it fences | recovery: is this intent there, or can it never come? |
//! | `Resolve` | one | intents become versions, or go |
//! | `Forget` | one | their coordinator no longer needs the records |
//! | `Heartbeat` | no | the coordinator lives |
//!
//! # What a shard promises
//! - **Checks** are made over the edge: what is applied and what is in flight. A key with another's
//!   intent answers `Blocked`, be it read or written. A written key is refused if another holds its
//!   lock, if it has a fence against this transaction, or a version that the transaction has not
//!   seen: above its entry in [`ReadSet::locked`] if it has one, else above `read_ts`. A *blind*
//!   write (neither) is never refused for a version: its timestamp goes above it.
//! - **Timestamps.** `Commit` and `Prewrite` choose `max(commit_ts, next(max_read), next(newest
//!   version))` over the written keys; serializable reads are checked and `max_read` raised at the
//!   timestamp chosen by `Commit`, at `commit_ts` by `Prewrite`, at `at` by `Validate`; not that of
//!   keys that are written as well, which keep others off by the write.
//! - **Order.** A read raises `max_read` of its keys, or of the whole range that it looked at, before
//!   it looks; then it waits for writes in flight at or below its moment. What an answer tells is in
//!   the log (applied) when the answer leaves.
//! - **Memory.** The entry of a `Commit` leaves a record `Committed` under the transaction's id, at
//!   the first written key: the answer to a coordinator that lost its own. Records of `Commit`,
//!   `Aborted` records and fences stay until the safepoint has passed their stamp; a `Commit` or
//!   `Prewrite` whose `commit_ts` is not above the safepoint is refused (`SnapshotTooOld`), and so
//!   is a read. `Commit` and a `Prewrite` with a record are refused (`Fenced`) if the transaction
//!   has a record already.
//! - **Locks** are held in memory by the leader, first come first served, and end by `Unlock`, by
//!   `Commit` (all of the transaction on this shard, unless nothing was decided: `Blocked`,
//!   `NotMine`, `Unavailable`), by `Resolve` (its keys), when the transaction was not heard of for
//!   three seconds, and with the leader. No rule of safety leans on them: what was read under a lock
//!   is checked again by its entry in [`ReadSet::locked`].
//! - **Life.** A transaction is heard of by `Lock`, `Prewrite` with a record, `Restage` and
//!   `Heartbeat`. A new leader takes every transaction for alive that it holds a staged record of,
//!   until it has led for three seconds.

use std::fmt;
use std::sync::Arc;

use crate::timestamp::Timestamp;

/// Names a transaction for ever. Drawn at random by its coordinator.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TxnId(pub u128);

impl fmt::Debug for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Bytes of a key as shards know it: a tree key without its area (see `keys`).
pub type Key = Vec<u8>;

/// A range of keys, the end exclusive.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// First key in it.
    pub start: Key,
    /// First key behind it.
    pub end: Key,
}

impl Span {
    /// Returns whether `key` lies in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start.as_slice() <= key && key < self.end.as_slice()
    }
}

/// How much a transaction may notice of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Isolation {
    /// Strictly serializable: as if all ran one after the other, in an order that agrees with time.
    #[default]
    Serializable,
    /// Reads of one moment; of two that write the same key one is refused. Write skew is possible.
    Snapshot,
    /// Each statement reads what is committed when it starts; writes wait for locks.
    ReadCommitted,
}

/// What a transaction has read on one shard, to be validated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadSet {
    /// Single keys, present or absent.
    pub keys: Vec<Key>,
    /// Ranges that were scanned: a key that appears in one is a phantom.
    pub spans: Vec<Span>,
    /// Keys read under a lock, each with the timestamp of the version found, [`Timestamp::ZERO`] if
    /// there was none: nothing newer may be there. `read_ts` does not matter for them. Sent at every
    /// isolation for keys that are written too: a lock may be lost with its leader, the check not.
    /// Ascending.
    pub locked: Vec<(Key, Timestamp)>,
}

impl ReadSet {
    /// Returns whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.spans.is_empty() && self.locked.is_empty()
    }

    /// Returns some key that was read, to find the shard by; empty if nothing was.
    pub fn first_key(&self) -> &[u8] {
        let keys = self.keys.first().map(Vec::as_slice);
        keys.or_else(|| self.spans.first().map(|span| span.start.as_slice()))
            .or_else(|| self.locked.first().map(|(key, _)| key.as_slice()))
            .unwrap_or_default()
    }
}

/// One write of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Where.
    pub key: Key,
    /// What, `None` to delete.
    pub value: Option<Vec<u8>>,
}

/// A value as it was at some moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Since when.
    pub ts: Timestamp,
    /// What, `None` if the key was deleted then.
    pub value: Option<Vec<u8>>,
}

/// How far a staged transaction has come: the state of its record, at the shard of its primary key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// All participants were sent their intents. It is committed as soon as every intent is in
    /// place and, if it is serializable, none of them lies above `commit_ts`.
    Staged {
        /// The timestamp it wants.
        commit_ts: Timestamp,
        /// How strict it is.
        isolation: Isolation,
        /// All keys written, ascending: who recovers it asks for each of their intents.
        keys: Arc<[Key]>,
    },
    /// Committed, whatever becomes of its coordinator.
    Committed(Timestamp),
    /// Aborted for ever.
    Aborted,
}

/// A transaction's end, as its intents learn it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Intents become versions at this timestamp.
    Committed(Timestamp),
    /// Intents go.
    Aborted,
}

/// An intent that stands in somebody's way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// The key it lies on.
    pub key: Key,
    /// Whose it is.
    pub txn: TxnId,
    /// Where that transaction's record is.
    pub primary: Key,
    /// Lowest timestamp it can become visible at.
    pub min_commit_ts: Timestamp,
}

/// What is asked. Every request names keys of one shard only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Reads keys at a timestamp; a transaction sees its own intents.
    Get {
        /// The reader, if it is a transaction.
        txn: Option<TxnId>,
        /// Which keys.
        keys: Vec<Key>,
        /// The moment.
        at: Timestamp,
    },
    /// Reads a range at a timestamp.
    Scan {
        /// The reader, if it is a transaction.
        txn: Option<TxnId>,
        /// The range.
        span: Span,
        /// The moment.
        at: Timestamp,
        /// Most keys returned; the answer tells where to go on.
        limit: usize,
        /// From the end.
        reverse: bool,
    },
    /// Takes locks one after the other, waits for each, and returns the newest committed values,
    /// deletions included: their timestamps are what [`ReadSet::locked`] wants. Locks that the
    /// transaction has are kept, a shared one may become exclusive. `Blocked` leaves the locks taken
    /// so far; asking again goes on.
    Lock {
        /// The owner.
        txn: TxnId,
        /// Which keys, ascending.
        keys: Vec<Key>,
        /// Nobody else may lock, rather than nobody else may write.
        exclusive: bool,
    },
    /// Gives locks of a transaction back, and leaves the queues in which it waits for them.
    Unlock {
        /// The owner.
        txn: TxnId,
        /// Which keys.
        keys: Vec<Key>,
    },
    /// Asks whom a transaction waits for at these keys: who holds or wants them before it. If it is
    /// in a queue twice, because a question came late and was asked again meanwhile, only the
    /// foremost place counts: what that one gets, the transaction has.
    Waits {
        /// The one that waits.
        txn: TxnId,
        /// The keys of its `Lock`.
        keys: Vec<Key>,
    },
    /// Commits a transaction of one shard.
    Commit {
        /// Which.
        txn: TxnId,
        /// How strict.
        isolation: Isolation,
        /// The moment it read at; `None` if it read nothing.
        read_ts: Option<Timestamp>,
        /// What it read.
        reads: Arc<ReadSet>,
        /// What it writes, ascending.
        writes: Vec<Write>,
        /// The oracle's commit point.
        commit_ts: Timestamp,
    },
    /// Checks that reads still hold at a later moment, and keeps them so.
    Validate {
        /// Which transaction.
        txn: TxnId,
        /// What it read.
        reads: ReadSet,
        /// When it read.
        read_ts: Timestamp,
        /// The moment at which it wants to commit.
        at: Timestamp,
    },
    /// Places intents.
    Prewrite {
        /// Which transaction.
        txn: TxnId,
        /// How strict.
        isolation: Isolation,
        /// The moment it read at; `None` if it read nothing.
        read_ts: Option<Timestamp>,
        /// What it read on this shard.
        reads: Arc<ReadSet>,
        /// What it writes on this shard, ascending.
        writes: Vec<Write>,
        /// The oracle's commit point.
        commit_ts: Timestamp,
        /// Where its record is.
        primary: Key,
        /// The record, if the primary is on this shard.
        record: Option<Record>,
    },
    /// Moves a staged record to a later timestamp, if it still stands at `from`.
    Restage {
        /// Which transaction.
        txn: TxnId,
        /// Where its record is.
        primary: Key,
        /// What it says.
        from: Timestamp,
        /// What it is to say.
        to: Timestamp,
    },
    /// Ends a transaction: its record says so from now on. Refused if the record says otherwise.
    Finish {
        /// Which transaction.
        txn: TxnId,
        /// Where its record is.
        primary: Key,
        /// The staged timestamp that must still stand; `None`: there must be no record.
        expect: Option<Timestamp>,
        /// How it ends.
        outcome: Outcome,
        /// Not below the commit point of any of its prewrites: an `Aborted` record stays until the
        /// safepoint has passed it.
        stamp: Timestamp,
        /// Of its intents, those on this shard that are resolved in the same entry.
        keys: Vec<Key>,
    },
    /// Asks for the state of a transaction.
    Status {
        /// Which transaction.
        txn: TxnId,
        /// Where its record is.
        primary: Key,
    },
    /// Asks for the fate of intents: they are there, they became versions, or they are missing.
    /// Recovery makes sure that a missing one can never come.
    Probe {
        /// Which transaction.
        txn: TxnId,
        /// Which keys.
        keys: Vec<Key>,
        /// Places a fence where nothing is, to stay until the safepoint has passed this timestamp,
        /// which is not below the commit point of the transaction. `None` only looks.
        fence: Option<Timestamp>,
    },
    /// Turns intents into versions or removes them.
    Resolve {
        /// Which transaction.
        txn: TxnId,
        /// Which keys.
        keys: Vec<Key>,
        /// How it ended.
        outcome: Outcome,
    },
    /// Removes the records of transactions that committed and whose intents are all resolved. Only
    /// their coordinator may ask for that: anybody else could take away the answer it is waiting for.
    Forget {
        /// Which transactions, and where their records are.
        txns: Vec<(TxnId, Key)>,
    },
    /// Says that the coordinator lives, to a shard where its record or a lock of it is.
    Heartbeat {
        /// Which transaction.
        txn: TxnId,
        /// The primary key, or a locked one.
        key: Key,
    },
}

impl Request {
    /// Returns the latest timestamp that it speaks of, [`Timestamp::ZERO`] if of none.
    pub fn latest(&self) -> Timestamp {
        let of = |outcome: &Outcome| match outcome {
            Outcome::Committed(ts) => *ts,
            Outcome::Aborted => Timestamp::ZERO,
        };
        match self {
            Request::Get { at, .. } | Request::Scan { at, .. } => *at,
            Request::Validate { at, read_ts, .. } => *at.max(read_ts),
            Request::Commit { read_ts, commit_ts, .. }
            | Request::Prewrite { read_ts, commit_ts, .. } => {
                read_ts.unwrap_or_default().max(*commit_ts)
            }
            Request::Restage { from, to, .. } => *from.max(to),
            Request::Finish { outcome, stamp, .. } => of(outcome).max(*stamp),
            Request::Probe { fence, .. } => fence.unwrap_or_default(),
            Request::Resolve { outcome, .. } => of(outcome),
            Request::Lock { .. }
            | Request::Unlock { .. }
            | Request::Waits { .. }
            | Request::Status { .. }
            | Request::Forget { .. }
            | Request::Heartbeat { .. } => Timestamp::ZERO,
        }
    }

    /// Returns the key that says which shard is asked: the first one named.
    pub fn key(&self) -> &[u8] {
        match self {
            Request::Get { keys, .. }
            | Request::Lock { keys, .. }
            | Request::Unlock { keys, .. }
            | Request::Waits { keys, .. }
            | Request::Probe { keys, .. }
            | Request::Resolve { keys, .. } => keys.first().map_or(&[], Vec::as_slice),
            Request::Scan { span, .. } => &span.start,
            Request::Commit { writes, .. } | Request::Prewrite { writes, .. } => {
                writes.first().map_or(&[], |write| &write.key)
            }
            Request::Validate { reads, .. } => reads.first_key(),
            Request::Restage { primary, .. }
            | Request::Finish { primary, .. }
            | Request::Status { primary, .. } => primary,
            Request::Forget { txns } => txns.first().map_or(&[], |(_, primary)| primary),
            Request::Heartbeat { key, .. } => key,
        }
    }
}

/// Why a transaction cannot commit as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A key that it writes has a newer version, or another's intent or lock.
    WriteConflict {
        /// The key.
        key: Key,
    },
    /// Something that it read has changed.
    ReadConflict {
        /// The key, or the start of the range.
        key: Key,
    },
    /// Somebody gave it up for dead and fenced it off.
    Fenced,
    /// Waiting for its lock would wait for itself.
    Deadlock,
    /// The moment it reads at is too old: versions of it may be gone.
    SnapshotTooOld,
    /// What it writes to one shard is more than fits into memory. A sentence with the limit.
    TooLarge(String),
}

/// What the fate of one intent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The intent is there.
    Intent {
        /// Its lowest commit timestamp.
        min_commit_ts: Timestamp,
    },
    /// It became a version. A shard that does not remember whose its versions are may say `Fenced`
    /// or `Missing`: a resolved intent means that the record is decided, so whoever asks finds out
    /// when he tries to change it.
    Version {
        /// At this timestamp.
        ts: Timestamp,
    },
    /// It is not there and never will be.
    Fenced,
    /// It is not there now; nothing keeps it from coming.
    Missing,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// To `Get`, in the order of the keys; to `Lock`, the newest committed values.
    Values(Vec<Option<Version>>),
    /// To `Scan`.
    Rows {
        /// Keys with their versions, in the order asked for; no deleted ones.
        rows: Vec<(Key, Version)>,
        /// Where to go on: the last key looked at, if the limit ended the scan.
        more: Option<Key>,
    },
    /// Intents of others are in the way: find out what became of them, resolve them, ask again.
    Blocked(Vec<Obstacle>),
    /// To `Commit`: it is committed at this timestamp.
    Committed(Timestamp),
    /// To `Prewrite`: the intents are in the log; they commit no lower than this.
    Prewritten(Timestamp),
    /// Done.
    Done,
    /// To `Status`, `Restage` and `Finish`: the record as it is. For the latter two this means that
    /// it was not what was expected and nothing was changed.
    Record {
        /// The record, if there is one.
        record: Option<Record>,
        /// Whether the coordinator was heard of lately.
        alive: bool,
    },
    /// To `Probe`, in the order of the keys.
    Fates(Vec<Fate>),
    /// To `Waits`.
    Waits(Vec<TxnId>),
    /// No: nothing was changed.
    Refused(Refusal),
    /// A key does not belong to this shard (any more): ask the router again.
    NotMine,
    /// The shard could not find out what became of the request: leadership was lost, or the engine
    /// stops. It may have taken effect.
    Unknown,
    /// The shard cannot serve now, and nothing was changed: a sentence for people.
    Unavailable(String),
}
