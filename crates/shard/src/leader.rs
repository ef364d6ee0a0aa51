//! The leader's half of a shard: it decides; what it decided is logged, and applying only obeys.
//!
//! ```text
//!   request --> check (locks, intents, fences, read timestamps) --> effects in the open entry
//!                                                                       | close: one timestamp T
//!   answer  <---------------- applied <-------- log, quorum <-----------+
//! ```
//!
//! # One entry is one transaction
//! Everything a shard decides between two proposals goes into one *open entry*. When it is closed
//! it gets one timestamp T, above every timestamp the shard has used and above every read of a key
//! that it writes. Its commands are serialised in the order of their evaluation, all at T: who
//! reads at T or later sees all of them, who reads before sees none. Giving each command a
//! timestamp of its own was rejected: it costs one version per command of a hot key and lets a
//! reader fall between two commands, one of which has seen the other.
//!
//! # Invariants
//! - Timestamps of versions ascend in the order of the log. So what is applied is older than what
//!   is in flight, and a read of the applied state needs no look at the edge: it is a read just
//!   below the oldest entry in flight. It misses no acknowledged write, because a write is
//!   acknowledged when it is applied.
//! - A read at `r` raises the read timestamp of its keys *before* it looks. Every later version of
//!   them lies above `r`.
//! - Effects are unconditional. An entry is proposed only if every entry before it is; if
//!   leadership is lost, everything that is not applied is unknown, and the next leader starts from
//!   the applied state.
//! - A prewrite's intents and a one-step commit's reads never share an open entry: the intents'
//!   timestamps must lie above a T that is not known before closing.
//!
//! The rules are those of the transaction protocol in ARCHITECTURE.md; nothing here waits, reads a
//! disk or a clock. What is missing in memory is asked for through [`Base`]; a [`Miss`] leaves the
//! state unchanged (but for raised read timestamps, which are always allowed) and the request is
//! evaluated again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use atoll_mvcc::keys::{self, Placement};
use atoll_mvcc::locks::{Acquired, LockTable, Mode};
use atoll_mvcc::max_read::MaxRead;
use atoll_mvcc::request::{
    Fate, Isolation, Key, Obstacle, Outcome, ReadSet, Record, Refusal, Request, Response, Span,
    Version, Write,
};
use atoll_mvcc::{Epoch, Timestamp, TxnId, Value};

use crate::descriptor::Descriptor;
use crate::edge::{Edge, EdgeValue, EntrySeq, Presence, SharedKey};
use crate::entry::{Closed, Open, Split};
use crate::intent::Intent;
use crate::mutants;

/// A transaction whose coordinator was not heard of for this long is given up for dead.
pub const ALIVE_MS: u64 = 3_000;

/// The keyspace of values that every shard with slots has for itself, at its first slot: what all
/// its commands have to know, like the map from database numbers to keyspaces. They are ordinary
/// keys, written by ordinary transactions, and kept in memory besides. The right half of a split
/// inherits them.
pub const LOCAL: u32 = keys::SLOTTED;

/// Names the own value that tells how often the shard's range has changed: the epoch of its
/// descriptor, absent as long as it was never split. Every split writes it in both halves. So a
/// transaction over *all* shards (FLUSHDB) reads it in each, and its commit fails if one of them was
/// split meanwhile: the half that it does not know would keep the old values.
pub const EPOCH: &[u8] = b"e";
/// Bytes of a local value's key before its name.
const LOCAL_HEAD: usize = 6;

/// What was looked for is not in memory: bring it there and ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss;

/// A version of the applied state.
#[derive(Clone, Debug)]
pub struct Found<V> {
    /// Since when.
    pub ts: Timestamp,
    /// The stored bytes, `None` if the key was removed then.
    pub value: Option<V>,
}

/// The applied state of the shard, as far as memory reaches.
pub trait Base {
    /// Bytes of a value.
    type Value: std::ops::Deref<Target = [u8]> + Clone;

    /// Returns the newest version of `key` at or below `at`.
    fn version(&mut self, key: &[u8], at: Timestamp) -> Result<Option<Found<Self::Value>>, Miss>;

    /// Returns a key of `span` that has a version above `after`, if there is one.
    fn changed(&mut self, span: &Span, after: Timestamp) -> Result<Option<Key>, Miss>;
}

/// The moment at which something is evaluated.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// The latest epoch that the oracle has given to this engine.
    pub epoch: Epoch,
    /// Monotonic time in milliseconds, for the liveness of coordinators only.
    pub monotonic_ms: u64,
}

/// What comes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The answer.
    Answer(Response),
    /// The answer, to be given when the open entry is applied.
    AnswerWith(Response),
    /// The answer, to be given when this entry is applied.
    AnswerAt(EntrySeq, Response),
    /// Ask again when this entry is applied.
    AwaitEntry(EntrySeq),
    /// Ask again when somebody gave locks back.
    AwaitLock,
    /// Close the open entry and ask again at once.
    CloseFirst,
    /// Nothing is in the way: read the applied state at the timestamp asked for. What is read will
    /// not change any more.
    Read,
}

/// An intent and the entry that places it.
#[derive(Clone, Debug)]
pub struct HeldIntent {
    /// The intent.
    pub intent: Intent,
    /// The entry; 0 if it was there when the leadership began.
    pub entry: EntrySeq,
}

/// The record of a transaction whose primary key is here.
#[derive(Clone, Debug)]
pub struct HeldRecord {
    /// Where it is stored.
    pub primary: Key,
    /// How far the transaction has come.
    pub record: Record,
    /// When that was written.
    pub written: Timestamp,
    /// The entry that carries it; 0 if it was there when the leadership began.
    pub entry: EntrySeq,
}

/// A promise that an intent will never be placed.
#[derive(Clone, Copy, Debug)]
pub struct HeldFence {
    /// When it was written.
    pub written: Timestamp,
    /// The entry that carries it.
    pub entry: EntrySeq,
}

/// Keys of one keyspace in one shard. Halves of a split shard share what was counted before, so a
/// count may be negative; sums over shards are exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Count {
    /// Keys stored, expired ones included until they are reaped.
    pub keys: i64,
    /// Of these, keys with a deadline.
    pub expiring: i64,
}

/// What the leader starts from: the shard's applied state that is kept in memory.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// All intents.
    pub intents: Vec<(Key, Intent)>,
    /// All records.
    pub records: Vec<(TxnId, Key, Record, Timestamp)>,
    /// All fences.
    pub fences: Vec<(Key, TxnId, Timestamp)>,
    /// The counts by keyspace.
    pub counts: BTreeMap<u32, Count>,
    /// The stored bytes of the shard's own values, by their keys.
    pub locals: Vec<(Key, Vec<u8>)>,
    /// How far the horizon was raised: records and fences that would stop what is stamped below are
    /// gone, so it is refused from the first moment on.
    pub horizon: Timestamp,
}

/// One of the shard's own values and the entry that changed it last.
type Local = (Option<Rc<[u8]>>, EntrySeq);

/// The state of a leadership.
pub struct Leader {
    descriptor: Descriptor,
    edge: Edge,
    open: Open,
    max_read: MaxRead,
    locks: LockTable,
    /// Transactions that hold locks or wait for some.
    lockers: BTreeSet<TxnId>,
    intents: BTreeMap<Key, HeldIntent>,
    /// Intents whose resolution is not applied: the entry that carries it, and the intent's
    /// timestamp. Oldest first.
    resolving: VecDeque<(EntrySeq, Timestamp)>,
    records: BTreeMap<TxnId, HeldRecord>,
    fences: BTreeMap<(Key, TxnId), HeldFence>,
    /// When the coordinator of a transaction was last heard of.
    heard: BTreeMap<TxnId, u64>,
    counts: BTreeMap<u32, Count>,
    /// Values of the shard's own (see [`LOCAL`]), by the end of their keys, and the entry that
    /// changed each last.
    locals: BTreeMap<Vec<u8>, Local>,
    /// When one of them changed last, at the latest; [`Timestamp::MAX`] if an open entry does it.
    locals_changed: Timestamp,
    /// Number of the open entry.
    seq: EntrySeq,
    /// Last entry applied.
    applied: EntrySeq,
    /// Largest timestamp of a version in an entry, closed ones included.
    edge_max: Timestamp,
    /// The same for applied entries.
    applied_max: Timestamp,
    /// Versions below may be gone.
    horizon: Timestamp,
    /// Counts how often locks were given back.
    unlocks: u64,
    /// When the leadership began, in monotonic milliseconds.
    since_ms: u64,
}

impl Leader {
    /// Starts a leadership. `low_water` is a read point that the oracle gave after the last entry
    /// of an earlier leader was applied: no version of this leadership lies at or below it.
    pub fn new(
        descriptor: Descriptor,
        loaded: Loaded,
        low_water: Timestamp,
        since_ms: u64,
    ) -> Leader {
        let floor = if mutants::is("no-low-water") { Timestamp::ZERO } else { low_water };
        let max_read = MaxRead::new(floor);
        let intents = loaded.intents.into_iter();
        let records = loaded.records.into_iter();
        let fences = loaded.fences.into_iter();
        Leader {
            descriptor,
            edge: Edge::default(),
            open: Open::default(),
            max_read,
            locks: LockTable::new(),
            lockers: BTreeSet::new(),
            intents: intents.map(|(k, intent)| (k, HeldIntent { intent, entry: 0 })).collect(),
            resolving: VecDeque::new(),
            records: records
                .map(|(txn, primary, record, written)| {
                    (txn, HeldRecord { primary, record, written, entry: 0 })
                })
                .collect(),
            fences: fences
                .map(|(key, txn, written)| ((key, txn), HeldFence { written, entry: 0 }))
                .collect(),
            heard: BTreeMap::new(),
            counts: loaded.counts,
            // Somewhen before this leadership.
            locals_changed: if loaded.locals.is_empty() { Timestamp::ZERO } else { low_water },
            locals: loaded
                .locals
                .into_iter()
                .map(|(key, value)| (key[LOCAL_HEAD..].to_vec(), (Some(Rc::from(value)), 0)))
                .collect(),
            seq: 1,
            applied: 0,
            edge_max: Timestamp::ZERO,
            applied_max: Timestamp::ZERO,
            horizon: if mutants::is("horizon-forgotten") {
                Timestamp::ZERO
            } else {
                loaded.horizon
            },
            unlocks: 0,
            since_ms,
        }
    }

    /// Goes on with the numbers of a leadership whose state was made anew: everything before entry
    /// `seq` is applied, or never was proposed.
    pub fn resume_at(&mut self, seq: EntrySeq) {
        self.seq = seq;
        self.applied = seq - 1;
    }

    // ---- what the owner asks ----

    /// Returns which part of the keys it is.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Returns the number of the open entry.
    pub fn open_entry(&self) -> EntrySeq {
        self.seq
    }

    /// Returns whether the open entry has effects.
    pub fn is_open(&self) -> bool {
        !self.open.is_empty() || self.edge.open_len() > 0
    }

    /// Returns whether everything that was decided is applied.
    pub fn is_settled(&self) -> bool {
        !self.is_open() && self.applied + 1 == self.seq
    }

    /// Returns about how many bytes the open entry has.
    pub fn open_bytes(&self) -> usize {
        self.open.bytes()
    }

    /// Returns the counts by keyspace, entries in flight included.
    pub fn counts(&self) -> &BTreeMap<u32, Count> {
        &self.counts
    }

    /// Returns the number of intents, for statistics.
    pub fn intents(&self) -> usize {
        self.intents.len()
    }

    /// Returns how often locks were given back: whoever waits for one asks again when it changed.
    pub fn unlocks(&self) -> u64 {
        self.unlocks
    }

    /// Returns the last entry that is applied.
    pub fn applied_entry(&self) -> EntrySeq {
        self.applied
    }

    /// Returns the lock table, for the detection of deadlocks across shards.
    pub fn locks(&self) -> &LockTable {
        &self.locks
    }

    /// Returns the lowest timestamp of an intent: the horizon may not pass it. An intent is there
    /// until the entry that resolves it is *applied*: if the leader is lost before, the next one
    /// finds the intent again and asks for the transaction's record, which another shard would have
    /// dropped by then. The commit would be taken for one that never was, and half of an
    /// acknowledged transaction undone.
    pub fn oldest_intent(&self) -> Option<Timestamp> {
        let resolving = self.resolving.iter().map(|(_, ts)| *ts);
        let resolving = resolving.filter(|_| !mutants::is("resolving-not-held"));
        self.intents.values().map(|held| held.intent.min_commit_ts).chain(resolving).min()
    }

    /// Returns intents below a timestamp, at most so many.
    pub fn intents_below(&self, ts: Timestamp, most: usize) -> Vec<Obstacle> {
        let below = self.intents.iter().filter(|(_, held)| held.intent.min_commit_ts < ts);
        below.take(most).map(|(key, held)| obstacle(key, &held.intent)).collect()
    }

    /// Raises the horizon: what is stamped below it is refused from now on, and records and fences
    /// that only such requests could meet are removed. No shard has an intent below it.
    pub fn raise_horizon(&mut self, horizon: Timestamp) {
        if horizon <= self.horizon {
            return;
        }
        self.horizon = horizon;
        let old = |written: Timestamp| written < horizon || mutants::is("records-dropped-early");
        // No intent is older than the horizon, so nobody will ask for these records any more.
        let ended = |record: &Record| !matches!(record, Record::Staged { .. });
        let records: Vec<TxnId> = self
            .records
            .iter()
            .filter(|(_, r)| ended(&r.record) && old(r.written))
            .map(|(txn, _)| *txn)
            .collect();
        for txn in records {
            if let Some(held) = self.records.remove(&txn) {
                self.open.remove_record(&held.primary, txn);
            }
        }
        let fences: Vec<(Key, TxnId)> =
            self.fences.iter().filter(|(_, f)| old(f.written)).map(|(at, _)| at.clone()).collect();
        for at in fences {
            self.fences.remove(&at);
            self.open.remove_fence(&at.0, at.1);
        }
    }

    // ---- entries ----

    /// Returns what the timestamp of the open entry has to be above.
    fn open_above(&self) -> Timestamp {
        let mut above =
            if mutants::is("close-below-edge") { Timestamp::ZERO } else { self.edge_max };
        if !mutants::is("close-below-commits") {
            above = above.max(self.open.above());
        }
        if !mutants::is("close-below-reads") {
            for key in self.edge.open_keys() {
                above = above.max(self.max_read.get(key));
            }
        }
        above
    }

    /// Closes the open entry; `None` if it has no effects. `epoch` asks the oracle for a fresh
    /// epoch where no timestamp can be derived.
    pub fn close(&mut self, mut epoch: impl FnMut() -> Epoch) -> Option<Closed> {
        self.try_close(|_| Some(epoch()))
    }

    /// As [`Leader::close`], for an owner who cannot always have a fresh epoch at once: the entry stays
    /// open if there is none. It has to be above the timestamp that `epoch` is given.
    pub fn try_close(&mut self, epoch: impl FnOnce(Timestamp) -> Option<Epoch>) -> Option<Closed> {
        if !self.is_open() {
            return None;
        }
        let mut stamp = self.edge_max;
        if self.edge.open_len() > 0 {
            let above = self.open_above();
            stamp = match above.next() {
                Some(next) => next,
                None => Timestamp::commit_at(epoch(above)?),
            };
            debug_assert!(stamp > above, "the oracle ran behind {above}: {stamp}");
        }
        for change in self.edge.close(self.seq, stamp) {
            self.count(&change.key, change.before, Presence::of(change.value.as_deref()));
            self.open.put_version(&change.key, stamp, change.value.as_deref());
        }
        let raises = !mutants::is("commit-reads-do-not-raise");
        for key in self.open.take_reads().iter().filter(|_| raises) {
            self.max_read.raise(key, stamp);
        }
        for span in self.open.take_read_spans().iter().filter(|_| raises) {
            self.max_read.raise_span(&span.start, &span.end, stamp);
        }
        for (key, txn) in self.open.take_committed() {
            let record = Record::Committed(stamp);
            self.open.put_record(&key, txn, &record, stamp);
            let held = HeldRecord { primary: key, record, written: stamp, entry: self.seq };
            self.records.insert(txn, held);
        }
        self.edge_max = self.edge_max.max(stamp);
        if self.locals_changed == Timestamp::MAX {
            self.locals_changed = stamp;
        }
        let seq = self.seq;
        self.seq += 1;
        Some(self.open.close(seq, self.edge_max, self.descriptor.id, &self.counts))
    }

    /// Says that an entry, and so every one before it, is applied.
    pub fn applied(&mut self, entry: EntrySeq, stamp: Timestamp) {
        self.applied = self.applied.max(entry);
        self.applied_max = self.applied_max.max(stamp);
        self.edge.applied(entry);
        while self.resolving.front().is_some_and(|(carries, _)| *carries <= entry) {
            self.resolving.pop_front();
        }
    }

    /// Changes a keyspace's counts by what became of one key.
    fn count(&mut self, key: &[u8], before: Presence, after: Presence) {
        if before == after {
            return;
        }
        let deadline = |p: &Presence| p.deadline_ms.filter(|_| p.exists);
        let (old, new) = (deadline(&before), deadline(&after));
        self.open.move_deadline(key, old, new);
        let keys = i64::from(after.exists) - i64::from(before.exists);
        let expiring = i64::from(new.is_some()) - i64::from(old.is_some());
        if keys != 0 || expiring != 0 {
            let Some(keyspace) = keys::placement::keyspace(key) else { return };
            let count = self.counts.entry(keyspace).or_default();
            count.keys += keys;
            count.expiring += expiring;
            self.open.counts_changed(keyspace);
        }
    }

    // ---- the fast lane: commands of one shard, see `eval` ----

    /// Returns what stands in the way of a command that reads or writes `key` now: an intent, an
    /// entry to wait for, or a lock.
    pub fn hindrance(&self, key: &[u8], writes: bool) -> Option<Step> {
        if let Some(held) = self.intents.get(key)
            && !mutants::is("fast-passes-intents")
        {
            return Some(self.obstacle(key, held));
        }
        if writes
            && self.locks.blocks(key, None, Mode::Exclusive)
            && !mutants::is("commands-pass-locks")
        {
            return Some(Step::AwaitLock);
        }
        None
    }

    /// Returns whether nothing can stand in a command's way, whatever its keys.
    pub fn is_unhindered(&self) -> bool {
        self.intents.is_empty() && self.locks.is_empty()
    }

    /// Prepares a read of the applied state by a command that has written nothing on this shard:
    /// raises the key's read timestamp to the moment it reads at.
    pub fn read_applied(&mut self, key: &[u8], now: Now) -> Option<Step> {
        if !self.intents.is_empty()
            && let Some(held) = self.intents.get(key)
            && !mutants::is("fast-passes-intents")
        {
            return Some(self.obstacle(key, held));
        }
        if let Some(entry) = self.edge.resolved(key)
            && !mutants::is("resolved-not-awaited")
        {
            // The transaction may be acknowledged already.
            return Some(Step::AwaitEntry(entry));
        }
        if !mutants::is("fast-reads-do-not-raise") {
            let at = self.applied_max.max(Timestamp::commit_at(now.epoch));
            self.max_read.raise(key, at);
        }
        None
    }

    /// Notes that a command which wrote nothing has read a key at the edge and has seen the entries
    /// up to `seen`.
    pub(crate) fn read_edge(&mut self, key: &[u8], seen: Option<EntrySeq>, now: Now) {
        if mutants::is("edge-reads-do-not-raise") {
            return;
        }
        if seen == Some(self.seq) {
            self.open.read(key);
        }
        let at = self.edge_max.max(Timestamp::commit_at(now.epoch));
        self.max_read.raise(key, at);
    }

    /// Returns the edge's value of a key, if it has one.
    pub(crate) fn edge_value(&self, key: &[u8]) -> Option<EdgeValue> {
        self.edge.newest(key, self.seq)
    }

    /// Returns one of the shard's own values, stored form, as the edge has it.
    ///
    /// # Errors
    /// What stands in the way of whoever wants the applied state, or anything decided.
    pub fn local(&self, name: &[u8], applied: bool) -> Result<Option<Rc<[u8]>>, Step> {
        if !self.intents.is_empty()
            && let Some(key) = self.local_key(name)
            && let Some(held) = self.intents.get(&key)
            && !mutants::is("local-passes-intents")
        {
            return Err(self.obstacle(&key, held));
        }
        match self.locals.get(name) {
            None => Ok(None),
            Some((_, entry))
                if applied && *entry > self.applied && !mutants::is("local-not-awaited") =>
            {
                Err(Step::AwaitEntry(*entry))
            }
            Some((value, _)) => Ok(value.clone()),
        }
    }

    /// Returns one of the shard's own values, stored form, as it was at a timestamp.
    ///
    /// # Errors
    /// What stands in the way; that it is too old if it is not known how it was then.
    pub(crate) fn local_at(&self, name: &[u8], at: Timestamp) -> Result<Option<Rc<[u8]>>, Step> {
        if at < self.locals_changed {
            return Err(Step::Answer(Response::Refused(Refusal::SnapshotTooOld)));
        }
        if !self.intents.is_empty()
            && let Some(key) = self.local_key(name)
            && let Some(step) = self.intent_at(None, &key, at)
        {
            return Err(step);
        }
        match self.locals.get(name) {
            None => Ok(None),
            Some((_, entry)) if *entry > self.applied => Err(Step::AwaitEntry(*entry)),
            Some((value, _)) => Ok(value.clone()),
        }
    }

    /// Prepares a read of a key at a timestamp by a command of this shard alone, as
    /// [`Leader::evaluate`] does for transactions.
    ///
    /// # Errors
    /// What stands in the way.
    pub(crate) fn read_at_moment(&mut self, key: &[u8], at: Timestamp) -> Result<(), Step> {
        if at < self.horizon {
            return Err(Step::Answer(Response::Refused(Refusal::SnapshotTooOld)));
        }
        if !mutants::is("reads-do-not-raise") {
            self.max_read.raise(key, at);
            // It has read what its database is, too.
            let slots = self.descriptor.range.slots();
            if !slots.is_empty() {
                let end = local_key(slots.start, &[0xff]);
                self.max_read.raise_span(&local_key(slots.start, &[]), &end, at);
            }
        }
        if let Some(entry) = self.edge.awaited_at(key, at)
            && !mutants::is("reads-do-not-wait")
        {
            return Err(Step::AwaitEntry(entry));
        }
        match self.intent_at(None, key, at) {
            Some(step) if !mutants::is("reads-pass-intents") => Err(step),
            _ => Ok(()),
        }
    }

    /// Returns the entry that changed one of the shard's own values last.
    pub(crate) fn local_entry(&self, name: &[u8]) -> Option<EntrySeq> {
        self.locals.get(name).map(|(_, entry)| *entry)
    }

    /// Returns the key of one of the shard's own values, `None` if it has no slots.
    pub fn local_key(&self, name: &[u8]) -> Option<Key> {
        let slots = self.descriptor.range.slots();
        (!slots.is_empty()).then(|| local_key(slots.start, name))
    }

    /// Returns whether a key is one of the shard's own values.
    fn is_local(&self, key: &[u8]) -> bool {
        let first_slot = || self.descriptor.range.slots().start.to_be_bytes();
        key.starts_with(&LOCAL.to_be_bytes()) && key[4..].starts_with(&first_slot())
    }

    /// Notes a change of one of the shard's own values, at `ts` or when the open entry closes.
    fn note_local(&mut self, key: &[u8], value: Option<&[u8]>, ts: Option<Timestamp>) {
        if self.is_local(key) {
            self.locals_changed = self.locals_changed.max(ts.unwrap_or(Timestamp::MAX));
            let name = key[LOCAL_HEAD..].to_vec();
            self.locals.insert(name, (value.map(Rc::from), self.seq));
        }
    }

    /// Writes a value in the open entry.
    pub(crate) fn put(
        &mut self,
        key: SharedKey,
        value: Option<Rc<[u8]>>,
        before: Presence,
        now: Now,
    ) {
        self.note_local(&key, value.as_deref(), None);
        self.open.stamp_above(Timestamp::commit_at(now.epoch));
        self.open.grow(key.len() + value.as_ref().map_or(0, |v| v.len()));
        self.edge.put(key, value, before);
    }

    /// Adds the read of a key to the open entry: later versions lie above its timestamp.
    pub(crate) fn read_with_entry(&mut self, key: &[u8]) {
        if mutants::is("command-reads-do-not-raise") {
            return;
        }
        self.open.read(key);
    }

    /// Returns what a key holds at the edge, for counts.
    pub(crate) fn presence(&self, key: &[u8], base: &mut impl Base) -> Result<Presence, Miss> {
        match self.edge_value(key) {
            Some(edge) => Ok(Presence::of(edge.value.as_deref())),
            None => {
                let found = base.version(key, Timestamp::MAX)?;
                Ok(Presence::of(found.as_ref().and_then(|f| f.value.as_deref())))
            }
        }
    }

    // ---- requests of transactions ----

    /// Evaluates a request.
    ///
    /// # Errors
    /// [`Miss`]: something is not in memory. Nothing was changed.
    pub fn evaluate(
        &mut self,
        request: &Request,
        base: &mut impl Base,
        now: Now,
    ) -> Result<Step, Miss> {
        match request {
            Request::Get { txn, keys, at } => {
                let spans = &[];
                Ok(self.read_at(*txn, keys, spans, *at))
            }
            Request::Scan { txn, span, at, .. } => {
                let spans = std::slice::from_ref(span);
                Ok(self.read_at(*txn, &[], spans, *at))
            }
            Request::Lock { txn, keys, exclusive } => self.lock(*txn, keys, *exclusive, base, now),
            Request::Unlock { txn, keys } => {
                self.unlock(*txn, keys);
                Ok(Step::Answer(Response::Done))
            }
            Request::Waits { txn, keys } => {
                let mut waits: Vec<TxnId> =
                    keys.iter().flat_map(|key| self.locks.waits_at(*txn, key)).collect();
                waits.sort_unstable();
                waits.dedup();
                Ok(Step::Answer(Response::Waits(waits)))
            }
            Request::Commit { txn, isolation, read_ts, reads, writes, commit_ts } => {
                let claim = Claim {
                    txn: *txn,
                    isolation: *isolation,
                    read_ts: *read_ts,
                    reads,
                    writes,
                    commit_ts: *commit_ts,
                };
                self.commit(&claim, base)
            }
            Request::Validate { txn, reads, read_ts, at } => {
                self.validate(*txn, reads, *read_ts, *at, base)
            }
            Request::Prewrite {
                txn,
                isolation,
                read_ts,
                reads,
                writes,
                commit_ts,
                primary,
                record,
            } => {
                let claim = Claim {
                    txn: *txn,
                    isolation: *isolation,
                    read_ts: *read_ts,
                    reads,
                    writes,
                    commit_ts: *commit_ts,
                };
                self.prewrite(&claim, primary, record.as_ref(), base, now)
            }
            Request::Restage { txn, primary, from, to } => {
                Ok(self.restage(*txn, primary, *from, *to, now))
            }
            Request::Finish { txn, primary, expect, outcome, stamp, keys } => {
                let end = End { expect: *expect, outcome: *outcome, stamp: *stamp, keys };
                Ok(self.finish(*txn, primary, &end, now))
            }
            Request::Status { txn, primary } => Ok(self.status(*txn, primary, now)),
            Request::Probe { txn, keys, fence } => Ok(self.probe(*txn, keys, *fence)),
            Request::Resolve { txn, keys, outcome } => Ok(self.resolve(*txn, keys, *outcome)),
            Request::Forget { txns } => Ok(self.forget(txns)),
            Request::Heartbeat { txn, key } => {
                if !self.owns(key) {
                    return Ok(Step::Answer(Response::NotMine));
                }
                self.heard.insert(*txn, now.monotonic_ms);
                Ok(Step::Answer(Response::Done))
            }
        }
    }

    fn owns(&self, key: &[u8]) -> bool {
        self.descriptor.contains(key)
    }

    fn obstacle(&self, key: &[u8], held: &HeldIntent) -> Step {
        if held.entry > self.applied {
            return Step::AwaitEntry(held.entry);
        }
        Step::Answer(Response::Blocked(vec![obstacle(key, &held.intent)]))
    }

    /// Returns an intent of somebody else in the way of a reader at `at`.
    fn intent_at(&self, txn: Option<TxnId>, key: &[u8], at: Timestamp) -> Option<Step> {
        let held = self.intents.get(key)?;
        if mutants::is("reads-pass-intents") {
            return None;
        }
        let foreign = Some(held.intent.txn) != txn && held.intent.min_commit_ts <= at;
        foreign.then(|| self.obstacle(key, held))
    }

    fn intent_in(&self, txn: Option<TxnId>, span: &Span, at: Timestamp) -> Option<Step> {
        if span.start >= span.end || mutants::is("reads-pass-intents") {
            return None;
        }
        let within = self.intents.range(span.start.clone()..span.end.clone());
        let mut in_way = within
            .filter(|(_, held)| Some(held.intent.txn) != txn && held.intent.min_commit_ts <= at);
        in_way.next().map(|(key, held)| self.obstacle(key, held))
    }

    fn read_at(&mut self, txn: Option<TxnId>, keys: &[Key], spans: &[Span], at: Timestamp) -> Step {
        let mine = keys.iter().all(|key| self.owns(key))
            && spans.iter().all(|span| self.descriptor.contains_span(span));
        if !mine {
            return Step::Answer(Response::NotMine);
        }
        if at < self.horizon && !mutants::is("reads-below-horizon") {
            return Step::Answer(Response::Refused(Refusal::SnapshotTooOld));
        }
        // Raised before looking: what is written from here on lies above.
        if !mutants::is("reads-do-not-raise") {
            keys.iter().for_each(|key| self.max_read.raise(key, at));
        }
        if !mutants::is("scans-do-not-raise") {
            spans.iter().for_each(|span| self.max_read.raise_span(&span.start, &span.end, at));
        }
        let mut awaited = None;
        for key in keys {
            awaited = awaited.max(self.edge.awaited_at(key, at));
        }
        for span in spans {
            awaited = awaited.max(self.edge.awaited_in(span, at));
        }
        if let Some(entry) = awaited
            && !mutants::is("reads-do-not-wait")
        {
            return Step::AwaitEntry(entry);
        }
        let in_way = keys
            .iter()
            .find_map(|key| self.intent_at(txn, key, at))
            .or_else(|| spans.iter().find_map(|span| self.intent_in(txn, span, at)));
        in_way.unwrap_or(Step::Read)
    }

    fn lock(
        &mut self,
        txn: TxnId,
        keys: &[Key],
        exclusive: bool,
        base: &mut impl Base,
        now: Now,
    ) -> Result<Step, Miss> {
        if !keys.iter().all(|key| self.owns(key)) {
            return Ok(Step::Answer(Response::NotMine));
        }
        self.heard.insert(txn, now.monotonic_ms);
        self.lockers.insert(txn);
        let mode = if exclusive { Mode::Exclusive } else { Mode::Shared };
        for key in keys {
            match self.locks.acquire(txn, key, mode) {
                Acquired::Granted => {}
                Acquired::Waiting(_) => return Ok(Step::AwaitLock),
                Acquired::Deadlock => {
                    return Ok(Step::Answer(Response::Refused(Refusal::Deadlock)));
                }
            }
        }
        // Nobody else writes these keys any more. What is under way has to end first.
        for key in keys {
            if let Some(held) = self.intents.get(key)
                && held.intent.txn != txn
                && !mutants::is("locks-pass-intents")
            {
                return Ok(self.obstacle(key, held));
            }
        }
        let awaited = keys.iter().filter_map(|key| self.edge.entry_of(key, self.seq)).max();
        if let Some(entry) = awaited
            && !mutants::is("locks-do-not-wait")
        {
            return Ok(Step::AwaitEntry(entry));
        }
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            let found = base.version(key, Timestamp::MAX)?;
            values.push(found.map(|f| Version { ts: f.ts, value: f.value.map(|v| v.to_vec()) }));
        }
        Ok(Step::Answer(Response::Values(values)))
    }

    fn unlock(&mut self, txn: TxnId, keys: &[Key]) {
        if !self.lockers.contains(&txn) {
            return;
        }
        for key in keys {
            // Who waits asks again and is told then: grants need no delivery.
            self.locks.release(txn, key);
        }
        if !self.locks.knows(txn) {
            self.lockers.remove(&txn);
            self.forget_life(txn);
        }
        self.unlocks += 1;
    }

    fn unlock_all(&mut self, txn: TxnId) {
        if self.lockers.remove(&txn) {
            self.locks.release_all(txn);
            self.unlocks += 1;
        }
        self.forget_life(txn);
    }

    fn forget_life(&mut self, txn: TxnId) {
        if !self.records.contains_key(&txn) {
            self.heard.remove(&txn);
        }
    }

    /// Gives back the locks of transactions whose coordinators are silent, and returns those
    /// transactions: they do not wait for locks any more either.
    pub fn expire_locks(&mut self, now: Now) -> Vec<TxnId> {
        let dead: Vec<TxnId> =
            self.lockers.iter().copied().filter(|txn| !self.is_alive(*txn, now)).collect();
        dead.iter().for_each(|txn| self.unlock_all(*txn));
        // Who was not heard of for so long need not be remembered for it.
        self.heard.retain(|_, heard| now.monotonic_ms.saturating_sub(*heard) <= ALIVE_MS);
        dead
    }

    fn is_alive(&self, txn: TxnId, now: Now) -> bool {
        // A new leader has heard nobody yet.
        let heard = self.heard.get(&txn).copied().or_else(|| {
            let staged = |held: &&HeldRecord| matches!(held.record, Record::Staged { .. });
            self.records.get(&txn).filter(staged).map(|_| self.since_ms)
        });
        heard.is_some_and(|heard| now.monotonic_ms.saturating_sub(heard) <= ALIVE_MS)
    }

    /// Returns the edge's value of a key that a transaction is checked against.
    fn checked_edge(&self, key: &[u8]) -> Option<EdgeValue> {
        if mutants::is("edge-not-checked") { None } else { self.edge_value(key) }
    }

    /// Checks the writes of a transaction. Returns how each of its keys stands, or what is in their way.
    fn check_writes(
        &self,
        claim: &Claim<'_>,
        base: &mut impl Base,
    ) -> Result<Result<Vec<Standing>, Step>, Miss> {
        let mut standings = Vec::with_capacity(claim.writes.len());
        for write in claim.writes {
            let key = &write.key;
            if !self.fences.is_empty()
                && self.fences.contains_key(&(key.clone(), claim.txn))
                && !mutants::is("fences-not-checked")
            {
                return Ok(Err(Step::Answer(Response::Refused(Refusal::Fenced))));
            }
            let conflict = || {
                let refusal = Refusal::WriteConflict { key: key.clone() };
                Ok(Err(Step::Answer(Response::Refused(refusal))))
            };
            if self.locks.blocks(key, Some(claim.txn), Mode::Exclusive)
                && !mutants::is("commits-pass-locks")
            {
                // Waiting here would be a wait that no search for deadlocks sees.
                return conflict();
            }
            if let Some(held) = self.intents.get(key)
                && held.intent.txn != claim.txn
                && !mutants::is("writes-pass-intents")
            {
                return Ok(Err(self.obstacle(key, held)));
            }
            let standing = self.standing(key, base)?;
            // What was read under a lock has to be what is there; else nothing newer than the moment
            // of reading. A blind write has seen nothing that could have changed.
            let newest = match self.checked_edge(key) {
                Some(edge) => edge.stamp,
                None if standing.on_edge => Some(applied_ts(key, base)?),
                None => Some(standing.newest),
            };
            standings.push(standing);
            if mutants::is("writes-not-checked") {
                continue;
            }
            let locked = &claim.reads.locked;
            let stands = match locked.binary_search_by(|(of, _)| of.cmp(key)) {
                Ok(at) => is_as_found(newest, locked[at].1),
                Err(_) => claim.read_ts.is_none_or(|read_ts| newest.is_some_and(|n| n <= read_ts)),
            };
            if !stands {
                return conflict();
            }
        }
        Ok(Ok(standings))
    }

    /// Returns how a key stands at the edge.
    fn standing(&self, key: &[u8], base: &mut impl Base) -> Result<Standing, Miss> {
        if let Some(edge) = self.edge_value(key) {
            let newest = edge.stamp.unwrap_or(self.edge_max);
            let before = Presence::of(edge.value.as_deref());
            return Ok(Standing { newest, before, on_edge: true });
        }
        let found = base.version(key, Timestamp::MAX)?;
        let newest = found.as_ref().map_or(Timestamp::ZERO, |f| f.ts);
        let before = Presence::of(found.as_ref().and_then(|f| f.value.as_deref()));
        Ok(Standing { newest, before, on_edge: false })
    }

    /// Returns when a key was written last, `None` if that is in the open entry.
    fn newest_checked(&self, key: &[u8], base: &mut impl Base) -> Result<Option<Timestamp>, Miss> {
        match self.checked_edge(key) {
            Some(edge) => Ok(edge.stamp),
            None => applied_ts(key, base).map(Some),
        }
    }

    /// Checks that what was read at `read_ts` still holds at `at`; `None` if it does.
    fn check_reads(
        &self,
        txn: TxnId,
        reads: &ReadSet,
        writes: &[Write],
        read_ts: Timestamp,
        at: Timestamp,
        base: &mut impl Base,
    ) -> Result<Option<Step>, Miss> {
        let conflict = |key: &[u8]| {
            let refusal = Refusal::ReadConflict { key: key.to_vec() };
            Some(Step::Answer(Response::Refused(refusal)))
        };
        for key in reads.keys.iter().filter(|_| !mutants::is("reads-not-checked")) {
            // A key that is written as well was checked as a write.
            if writes_key(writes, key) {
                continue;
            }
            if let Some(step) = self.intent_at(Some(txn), key, at) {
                return Ok(Some(step));
            }
            match self.checked_edge(key) {
                Some(edge) if edge.stamp.is_none_or(|stamp| stamp > read_ts) => {
                    return Ok(conflict(key));
                }
                Some(_) => {}
                None => {
                    let newest = base.version(key, Timestamp::MAX)?;
                    if newest.is_some_and(|found| found.ts > read_ts) {
                        return Ok(conflict(key));
                    }
                }
            }
        }
        for (key, found) in reads.locked.iter().filter(|_| !mutants::is("locked-not-checked")) {
            if writes_key(writes, key) {
                continue;
            }
            if let Some(step) = self.intent_at(Some(txn), key, at) {
                return Ok(Some(step));
            }
            if !is_as_found(self.newest_checked(key, base)?, *found) {
                return Ok(conflict(key));
            }
        }
        for span in reads.spans.iter().filter(|_| !mutants::is("spans-not-checked")) {
            if let Some(step) = self.intent_in(Some(txn), span, at) {
                return Ok(Some(step));
            }
            if let Some(key) = self.edge.touches(span)
                && !mutants::is("edge-not-checked")
            {
                let newer = self
                    .edge
                    .newest(key, self.seq)
                    .is_none_or(|v| v.stamp.is_none_or(|stamp| stamp > read_ts));
                // An older one that is not applied yet hides others behind it: wait for it.
                return Ok(if newer {
                    conflict(key)
                } else {
                    self.edge.entry_of(key, self.seq).map(Step::AwaitEntry)
                });
            }
            if let Some(key) = base.changed(span, read_ts)? {
                return Ok(conflict(&key));
            }
        }
        Ok(None)
    }

    fn refuse_foreign(&self, claim: &Claim<'_>) -> Option<Step> {
        let mine = claim.writes.iter().all(|write| self.owns(&write.key))
            && claim.reads.keys.iter().all(|key| self.owns(key))
            && claim.reads.locked.iter().all(|(key, _)| self.owns(key))
            && claim.reads.spans.iter().all(|span| self.descriptor.contains_span(span));
        if !mine {
            return Some(Step::Answer(Response::NotMine));
        }
        // Records and fences that would stop it may be gone, and versions that it depends on.
        let started = claim.read_ts.unwrap_or(claim.commit_ts).min(claim.commit_ts);
        if started <= self.horizon && !mutants::is("late-prewrites-pass") {
            return Some(Step::Answer(Response::Refused(Refusal::SnapshotTooOld)));
        }
        None
    }

    fn commit(&mut self, claim: &Claim<'_>, base: &mut impl Base) -> Result<Step, Miss> {
        let step = self.try_commit(claim, base)?;
        let refused = matches!(step, Step::Answer(Response::Refused(_)));
        if refused || matches!(step, Step::AnswerWith(_) | Step::AnswerAt(..)) {
            // It has ended.
            self.unlock_all(claim.txn);
        }
        Ok(step)
    }

    fn try_commit(&mut self, claim: &Claim<'_>, base: &mut impl Base) -> Result<Step, Miss> {
        if let Some(step) = self.refuse_foreign(claim) {
            return Ok(step);
        }
        if let Some(held) = self.records.get(&claim.txn)
            && !mutants::is("record-not-checked")
        {
            // Somebody gave it up before it came, or it came before.
            return Ok(self.fenced_by(held));
        }
        let standings = match self.check_writes(claim, base)? {
            Ok(standings) => standings,
            Err(step) => return Ok(step),
        };
        let Some(first) = claim.writes.first() else { return Ok(nothing_written()) };
        let serializable = claim.isolation == Isolation::Serializable;
        if serializable {
            // Its timestamp will be that of the entry, which may lie above any intent's.
            let at = Timestamp::MAX;
            let (reads, writes) = (claim.reads, claim.writes);
            let read_ts = claim.read_ts.unwrap_or(Timestamp::MAX);
            if let Some(step) = self.check_reads(claim.txn, reads, writes, read_ts, at, base)? {
                return Ok(step);
            }
        }
        // From here on nothing fails.
        self.open.stamp_above(claim.commit_ts);
        for (write, Standing { before, .. }) in claim.writes.iter().zip(standings) {
            self.note_local(&write.key, write.value.as_deref(), None);
            let value = write.value.as_deref().map(Rc::from);
            self.open.grow(write.key.len() + write.value.as_ref().map_or(0, Vec::len));
            self.edge.put(write.key.as_slice(), value, before);
        }
        if serializable {
            let keys = claim.reads.keys.iter().chain(claim.reads.locked.iter().map(|(key, _)| key));
            let keys = keys.filter(|key| !writes_key(claim.writes, key));
            keys.for_each(|key| self.open.read(key));
            claim.reads.spans.iter().for_each(|span| self.open.read_span(span.clone()));
        }
        if !mutants::is("no-commit-record") {
            // The answer to a coordinator that loses its own. Its timestamp is known at closing; who
            // asks before waits for the entry.
            let primary = first.key.clone();
            self.open.commit_record(primary.clone(), claim.txn);
            if !mutants::is("commit-record-at-closing") {
                let (record, written) = (Record::Committed(Timestamp::MAX), Timestamp::MAX);
                let held = HeldRecord { primary, record, written, entry: self.seq };
                self.records.insert(claim.txn, held);
            }
        }
        Ok(Step::AnswerWith(Response::Committed(Timestamp::ZERO)))
    }

    fn validate(
        &mut self,
        txn: TxnId,
        reads: &ReadSet,
        read_ts: Timestamp,
        at: Timestamp,
        base: &mut impl Base,
    ) -> Result<Step, Miss> {
        let mine = reads.keys.iter().all(|key| self.owns(key))
            && reads.locked.iter().all(|(key, _)| self.owns(key))
            && reads.spans.iter().all(|span| self.descriptor.contains_span(span));
        if !mine {
            return Ok(Step::Answer(Response::NotMine));
        }
        if read_ts < self.horizon {
            return Ok(Step::Answer(Response::Refused(Refusal::SnapshotTooOld)));
        }
        // An entry that is open would get a timestamp above `at` only after the raise below; what
        // it writes is a conflict all the same, found by the check.
        if !mutants::is("validation-does-not-raise") {
            self.raise(reads, &[], at);
        }
        let step = self.check_reads(txn, reads, &[], read_ts, at, base)?;
        Ok(step.unwrap_or(Step::Answer(Response::Done)))
    }

    /// Makes reads hold up to `at`: later versions of what was read lie above. What is written as
    /// well is left out: the write does that, whoever comes later lies above it.
    fn raise(&mut self, reads: &ReadSet, writes: &[Write], at: Timestamp) {
        let keys = reads.keys.iter().chain(reads.locked.iter().map(|(key, _)| key));
        keys.filter(|key| !writes_key(writes, key)).for_each(|key| self.max_read.raise(key, at));
        reads.spans.iter().for_each(|span| self.max_read.raise_span(&span.start, &span.end, at));
    }

    fn prewrite(
        &mut self,
        claim: &Claim<'_>,
        primary: &Key,
        record: Option<&Record>,
        base: &mut impl Base,
        now: Now,
    ) -> Result<Step, Miss> {
        if let Some(step) = self.refuse_foreign(claim) {
            return Ok(step);
        }
        if record.is_some() && !self.owns(primary) {
            return Ok(Step::Answer(Response::NotMine));
        }
        if claim.writes.is_empty() {
            return Ok(nothing_written());
        }
        if record.is_some()
            && let Some(held) = self.records.get(&claim.txn)
            && !mutants::is("record-not-checked")
        {
            // Somebody gave it up before it came.
            return Ok(self.fenced_by(held));
        }
        if self.open.has_reads() && !mutants::is("intent-with-reads") {
            return Ok(Step::CloseFirst);
        }
        let standings = match self.check_writes(claim, base)? {
            Ok(standings) => standings,
            Err(step) => return Ok(step),
        };
        if claim.isolation == Isolation::Serializable {
            let (reads, writes, at) = (claim.reads, claim.writes, claim.commit_ts);
            let read_ts = claim.read_ts.unwrap_or(Timestamp::MAX);
            // Raised before looking, as for any read. Not what it writes as well: its own intent would
            // have to lie above that, and the intent keeps others off by itself.
            if !mutants::is("prewrite-reads-do-not-raise") {
                self.raise(reads, writes, at);
            }
            if let Some(step) = self.check_reads(claim.txn, reads, writes, read_ts, at, base)?
                && !mutants::is("refusal-leaves-effects")
            {
                return Ok(step);
            }
        }
        // The intent has to lie above a version whose timestamp is not known yet. The shard's own
        // values are read by every command, which is noted nowhere: theirs above everything.
        let below_open = |write: &Write| {
            self.edge.is_open(&write.key)
                || (self.is_local(&write.key)
                    && self.is_open()
                    && !mutants::is("local-below-commands"))
        };
        if claim.writes.iter().any(below_open) && !mutants::is("intent-below-open") {
            return Ok(Step::CloseFirst);
        }
        let mut min = claim.commit_ts;
        for (write, standing) in claim.writes.iter().zip(&standings) {
            let mut above = standing.newest;
            if !mutants::is("intent-below-reads") {
                above = above.max(self.max_read.get(&write.key));
            }
            if self.is_local(&write.key) && !mutants::is("local-below-commands") {
                above = above.max(self.edge_max);
            }
            if above >= min {
                match above.next() {
                    Some(next) => min = min.max(next),
                    // Only the oracle may go on: the coordinator asks it for a later commit point.
                    None => {
                        let key = write.key.clone();
                        let refusal = Refusal::WriteConflict { key };
                        return Ok(Step::Answer(Response::Refused(refusal)));
                    }
                }
            }
        }
        // From here on nothing fails.
        let shared: Rc<[u8]> = Rc::from(primary.as_slice());
        for (write, Standing { before, .. }) in claim.writes.iter().zip(standings) {
            let intent = Intent {
                txn: claim.txn,
                primary: shared.clone(),
                min_commit_ts: min,
                value: write.value.as_deref().map(Rc::from),
                before,
            };
            self.open.put_intent(&write.key, &intent);
            self.intents.insert(write.key.clone(), HeldIntent { intent, entry: self.seq });
        }
        if let Some(record) = record {
            self.heard.insert(claim.txn, now.monotonic_ms);
            self.put_record(claim.txn, primary, record.clone(), claim.commit_ts);
        }
        Ok(Step::AnswerWith(Response::Prewritten(min)))
    }

    /// Refuses a transaction because of its record, when that is in the log.
    fn fenced_by(&self, held: &HeldRecord) -> Step {
        let fenced = Response::Refused(Refusal::Fenced);
        if held.entry > self.applied {
            return Step::AnswerAt(held.entry, fenced);
        }
        Step::Answer(fenced)
    }

    fn put_record(&mut self, txn: TxnId, primary: &Key, record: Record, written: Timestamp) {
        self.open.put_record(primary, txn, &record, written);
        let held = HeldRecord { primary: primary.clone(), record, written, entry: self.seq };
        self.records.insert(txn, held);
    }

    /// Answers with the record as it is.
    fn as_it_is(&self, txn: TxnId, now: Now) -> Step {
        match self.records.get(&txn) {
            Some(held) if held.entry > self.applied && !mutants::is("status-at-once") => {
                Step::AwaitEntry(held.entry)
            }
            held => Step::Answer(Response::Record {
                record: held.map(|h| h.record.clone()),
                alive: self.is_alive(txn, now),
            }),
        }
    }

    fn status(&self, txn: TxnId, primary: &Key, now: Now) -> Step {
        if !self.owns(primary) {
            return Step::Answer(Response::NotMine);
        }
        self.as_it_is(txn, now)
    }

    fn restage(
        &mut self,
        txn: TxnId,
        primary: &Key,
        from: Timestamp,
        to: Timestamp,
        now: Now,
    ) -> Step {
        if !self.owns(primary) {
            return Step::Answer(Response::NotMine);
        }
        match self.records.get(&txn).map(|held| &held.record) {
            Some(Record::Staged { commit_ts, isolation, keys })
                if *commit_ts == from || mutants::is("restage-anything") =>
            {
                let record =
                    Record::Staged { commit_ts: to, isolation: *isolation, keys: keys.clone() };
                self.heard.insert(txn, now.monotonic_ms);
                self.put_record(txn, primary, record, to);
                Step::AnswerWith(Response::Done)
            }
            _ => self.as_it_is(txn, now),
        }
    }

    fn finish(&mut self, txn: TxnId, primary: &Key, end: &End<'_>, now: Now) -> Step {
        let End { expect, outcome, stamp, keys } = *end;
        if !self.owns(primary) || !keys.iter().all(|key| self.owns(key)) {
            return Step::Answer(Response::NotMine);
        }
        let staged = match self.records.get(&txn).map(|held| &held.record) {
            None => None,
            Some(Record::Staged { commit_ts, .. }) => Some(*commit_ts),
            Some(_) => return self.as_it_is(txn, now),
        };
        if staged != expect && !mutants::is("finish-anything") {
            return self.as_it_is(txn, now);
        }
        if staged.is_none()
            && matches!(outcome, Outcome::Committed(_))
            && stamp <= self.horizon
            && !mutants::is("late-prewrites-pass")
        {
            // An `Aborted` record that would stop it may be gone.
            return Step::Answer(Response::Refused(Refusal::SnapshotTooOld));
        }
        // Never before the intents it decides on: see `raise_horizon`.
        let (record, written) = match outcome {
            Outcome::Committed(ts) => (Record::Committed(ts), stamp.max(ts)),
            Outcome::Aborted => (Record::Aborted, stamp),
        };
        self.put_record(txn, primary, record, written);
        // In the entry that decides: whoever finds one of them resolved finds the record decided.
        self.resolve_intents(txn, keys, outcome);
        Step::AnswerWith(Response::Done)
    }

    fn probe(&mut self, txn: TxnId, keys: &[Key], fence: Option<Timestamp>) -> Step {
        if !keys.iter().all(|key| self.owns(key)) {
            return Step::Answer(Response::NotMine);
        }
        let mut fates = Vec::with_capacity(keys.len());
        for key in keys {
            let at = (key.clone(), txn);
            fates.push(match self.intents.get(key).filter(|held| held.intent.txn == txn) {
                Some(held) => Fate::Intent { min_commit_ts: held.intent.min_commit_ts },
                None if self.fences.contains_key(&at) => Fate::Fenced,
                None => match fence {
                    None => Fate::Missing,
                    Some(written) => {
                        self.open.put_fence(key, txn, written);
                        self.fences.insert(at, HeldFence { written, entry: self.seq });
                        Fate::Fenced
                    }
                },
            });
        }
        // What is told is in the log when it is told.
        if mutants::is("probe-at-once") {
            return Step::Answer(Response::Fates(fates));
        }
        self.with_entry(Response::Fates(fates))
    }

    /// Answers when everything that was decided so far is applied.
    fn with_entry(&self, response: Response) -> Step {
        if self.is_open() {
            Step::AnswerWith(response)
        } else if self.applied + 1 < self.seq {
            Step::AnswerAt(self.seq - 1, response)
        } else {
            Step::Answer(response)
        }
    }

    fn resolve(&mut self, txn: TxnId, keys: &[Key], outcome: Outcome) -> Step {
        if !keys.iter().all(|key| self.owns(key)) {
            return Step::Answer(Response::NotMine);
        }
        self.resolve_intents(txn, keys, outcome);
        self.with_entry(Response::Done)
    }

    fn resolve_intents(&mut self, txn: TxnId, keys: &[Key], outcome: Outcome) {
        for key in keys {
            if self.intents.get(key).is_none_or(|held| held.intent.txn != txn) {
                continue;
            }
            let Some(HeldIntent { intent, .. }) = self.intents.remove(key) else { continue };
            self.resolving.push_back((self.seq, intent.min_commit_ts));
            self.open.remove_intent(key);
            if let Outcome::Committed(ts) = outcome {
                let value = intent.value;
                let after = Presence::of(value.as_deref());
                self.note_local(key, value.as_deref(), Some(ts));
                self.open.put_version(key, ts, value.as_deref());
                if !mutants::is("intents-not-counted") {
                    self.count(key, intent.before, after);
                }
                self.edge.put_resolved(key.as_slice(), value, ts, self.seq);
                if !mutants::is("resolved-below-edge") {
                    self.edge_max = self.edge_max.max(ts);
                }
            }
        }
        self.unlock(txn, keys);
    }

    fn forget(&mut self, txns: &[(TxnId, Key)]) -> Step {
        if !txns.iter().all(|(_, primary)| self.owns(primary)) {
            return Step::Answer(Response::NotMine);
        }
        for (txn, primary) in txns {
            self.heard.remove(txn);
            // An aborted record stays until nothing of the transaction can come any more.
            let committed = |held: &HeldRecord| matches!(held.record, Record::Committed(_));
            if self.records.get(txn).is_some_and(committed) {
                self.records.remove(txn);
                self.open.remove_record(primary, *txn);
            }
        }
        self.with_entry(Response::Done)
    }

    // ---- splitting ----

    /// Returns the intents on the shard's own values. A shard is split only without any: the right
    /// half inherits what the values are, and would not learn what a committed transaction makes of
    /// them.
    pub fn local_obstacles(&self) -> Vec<Obstacle> {
        let slots = self.descriptor.range.slots();
        if slots.is_empty() {
            return Vec::new();
        }
        let first = local_key(slots.start, b"");
        let mine = self.intents.range(first..).take_while(|(key, _)| self.is_local(key));
        mine.map(|(key, held)| obstacle(key, &held.intent)).collect()
    }

    /// Closes the entry that splits the shard. Nothing is open or in flight, no intent lies on its own
    /// values ([`Leader::local_obstacles`]); nothing is evaluated before it is applied, and then both
    /// halves start from the applied state. `epoch` as in [`Leader::close`].
    ///
    /// Counts stay with the left half: sums over shards are what is exact.
    pub fn close_split(&mut self, split: Split, mut epoch: impl FnMut() -> Epoch) -> Closed {
        self.begin_split(&split);
        let mut closed = self.close(&mut epoch).expect("invariant: two descriptors are effects");
        closed.split = Some(split);
        closed
    }

    /// Puts what a split writes into the open entry: its owner closes it, and says in it how the shard is
    /// split ([`Closed::split`]), before anything else is evaluated.
    pub fn begin_split(&mut self, split: &Split) {
        debug_assert!(self.is_settled(), "a shard is split between two entries");
        let slots = split.right.range.slots();
        // Writes like any other: above whoever has read that they are not there.
        if !slots.is_empty() && !mutants::is("split-forgets-locals") {
            for (name, (value, _)) in &self.locals {
                if value.is_some() && name != EPOCH {
                    let key = local_key(slots.start, name);
                    self.edge.put(key, value.clone(), Presence::default());
                }
            }
        }
        let before = self.locals.get(EPOCH).and_then(|(value, _)| value.as_deref());
        let before = Presence::of(before);
        for (half, before) in [(&split.left, before), (&split.right, Presence::default())] {
            let slots = half.range.slots();
            if !slots.is_empty() {
                let value = epoch_value(half.epoch).into();
                self.edge.put(local_key(slots.start, EPOCH), Some(value), before);
            }
        }
        self.open.put_descriptor(&split.left);
        self.open.put_descriptor(&split.right);
    }

    /// Removes an entry of the expiry index that says nothing true.
    pub fn forget_deadline(&mut self, key: &[u8], deadline_ms: u64) {
        self.open.move_deadline(key, Some(deadline_ms), None);
    }

    /// Removes what is left of a keyspace that nobody can name any more: every version, whatever
    /// its timestamp. Nothing older than the horizon may need it.
    pub fn drop_keyspace(&mut self, keyspace: u32) {
        let placement =
            if keys::is_slotted(keyspace) { Placement::Slots } else { Placement::Ordered };
        for id in [Some(keyspace), keys::is_slotted(keyspace).then_some(keyspace | keys::PARTS)] {
            let Some(id) = id else { continue };
            if let Some(span) = self.descriptor.range.span(id, placement) {
                self.open.remove_data(&span);
            }
            if self.counts.remove(&id).is_some() {
                self.open.counts_changed(id);
            }
        }
    }

    /// Removes a range of keys that no reader can name any more, and the note that said so, in one
    /// entry. Returns whether the note was still there.
    pub fn remove_dead(&mut self, note: &[u8], span: &Span, now: Now) -> bool {
        let here = self.owns(note) && self.descriptor.contains_span(span);
        // One that is in flight was removed before, or is younger than the caller thinks.
        if !here || self.edge_value(note).is_some() || self.intents.contains_key(note) {
            return false;
        }
        self.open.remove_data(span);
        let before = Presence { exists: true, deadline_ms: None };
        self.put(SharedKey::from(note), None, before, now);
        true
    }

    /// Returns the largest timestamp of an applied version.
    pub fn applied_max(&self) -> Timestamp {
        self.applied_max
    }
}

#[cfg(test)]
impl Leader {
    /// Returns the largest timestamp of a version in an entry.
    pub(crate) fn edge_max(&self) -> Timestamp {
        self.edge_max
    }

    /// Returns all intents.
    pub(crate) fn obstacles(&self) -> Vec<Obstacle> {
        self.intents.iter().map(|(key, held)| obstacle(key, &held.intent)).collect()
    }
}

/// Returns the key of a shard's own value, by the shard's first slot.
pub fn local_key(first_slot: u16, name: &[u8]) -> Key {
    let mut key = Vec::with_capacity(LOCAL_HEAD + name.len());
    key.extend_from_slice(&LOCAL.to_be_bytes());
    key.extend_from_slice(&first_slot.to_be_bytes());
    key.extend_from_slice(name);
    key
}

/// Returns the stored form of an epoch of a descriptor.
fn epoch_value(epoch: u64) -> Vec<u8> {
    Value { deadline_ms: None, payload: &epoch.to_le_bytes() }.encode()
}

/// Reads the own value [`EPOCH`]; `None` if the shard was never split, or the value is none.
pub fn epoch_of(value: Option<&[u8]>) -> Option<u64> {
    let payload = Value::decode(value?).ok()?.payload;
    Some(u64::from_le_bytes(payload.try_into().ok()?))
}

/// How a transaction is to end.
struct End<'a> {
    expect: Option<Timestamp>,
    outcome: Outcome,
    stamp: Timestamp,
    /// Intents resolved with it.
    keys: &'a [Key],
}

/// A transaction's request to write.
struct Claim<'a> {
    txn: TxnId,
    isolation: Isolation,
    read_ts: Option<Timestamp>,
    reads: &'a ReadSet,
    writes: &'a [Write],
    commit_ts: Timestamp,
}

/// How a key stands that a transaction writes.
struct Standing {
    /// Timestamp of its newest version that is closed or applied; of what is open, one not below.
    newest: Timestamp,
    /// What it holds.
    before: Presence,
    /// It is not applied.
    on_edge: bool,
}

/// Returns the timestamp of a key's newest applied version.
fn applied_ts(key: &[u8], base: &mut impl Base) -> Result<Timestamp, Miss> {
    Ok(base.version(key, Timestamp::MAX)?.map_or(Timestamp::ZERO, |found| found.ts))
}

/// Returns whether a key's newest version is the one that was found under a lock, at timestamp
/// `found`. That nothing newer is there does not say so: the lock may be lost for as long as it takes
/// to remove the key and to compact the removal away. (A removal that was found and is gone looks the
/// same; that is taken for a change, which costs a repetition.)
fn is_as_found(newest: Option<Timestamp>, found: Timestamp) -> bool {
    newest.is_some_and(|newest| {
        newest == found || (newest < found && mutants::is("locked-may-vanish"))
    })
}

/// Returns whether a key is among ascending writes.
fn writes_key(writes: &[Write], key: &[u8]) -> bool {
    writes.binary_search_by(|write| write.key.as_slice().cmp(key)).is_ok()
}

fn nothing_written() -> Step {
    let why = "a transaction that commits without writes; this is a bug of its coordinator";
    Step::Answer(Response::Unavailable(why.to_owned()))
}

fn obstacle(key: &[u8], intent: &Intent) -> Obstacle {
    Obstacle {
        key: key.to_vec(),
        txn: intent.txn,
        primary: intent.primary.to_vec(),
        min_commit_ts: intent.min_commit_ts,
    }
}

#[cfg(test)]
#[path = "leader/tests.rs"]
pub(crate) mod corners;
