//! A transaction as its user holds it.
//!
//! ```text
//!   begin --> open -----------------------------------+--> commit --> committed | aborted | unknown
//!              |  reads: at read_ts, asked of shards   |
//!              |  writes: kept here until the commit   +--> rollback, drop: background gives locks back
//!              |  locks: taken at once                 |
//!              +-- an abort on the way: every later operation answers the same abort
//! ```
//!
//! | isolation | reads | writes | what is validated |
//! |---|---|---|---|
//! | serializable | of one moment, remembered | buffered | all that was read still holds at the commit |
//! | snapshot | of one moment | buffered | nobody else has written what it writes |
//! | read committed | of the moment of each statement | locked first | what it locked is as it was |
//! | at a timestamp | of that moment | none | nothing |
//!
//! The read timestamp is taken at the first read, so that a transaction which locks first reads what
//! it locked, and one that only writes asks for none.
//!
//! # Locks
//! `get_for_update` and `lock_all` lock and return the *newest* value, which may be newer than the
//! transaction's moment. Then the moment is moved: a serializable transaction validates what it has
//! read up to a new moment and goes on there; a snapshot transaction can do so only if it has read
//! nothing. `lock_all` locks in key order, so programs that lock everything at once never wait in a
//! circle; the others are told by the search for deadlocks (`deadlock.rs`).
//!
//! A lock is a courtesy: it makes conflicts wait instead of fail. It lives in one leader's memory
//! and may be lost; that no update is lost is checked at the commit by the version found.

use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_mvcc::request::{Isolation, Key, Span, Version};
use atoll_mvcc::{Timestamp, TxnId};

use crate::buffer::{Parts, ReadLog, WriteBuffer, after};
use crate::cleaner::{Job, Staged, Work};
use crate::coordinator::{Coordinator, Core};
use crate::deadlock::Age;
use crate::error::{Abort, Error};
use crate::life::{Busy, Life};
use crate::locks::LockWait;
use crate::mutants;
use crate::oracle::Oracle;
use crate::reads::{merge, read_many, read_one, scan_piece};
use crate::shards::Shards;

/// A place in a transaction to come back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Savepoint(usize);

/// How a range is scanned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanOptions {
    /// Most rows returned.
    pub limit: usize,
    /// From the end of the range.
    pub reverse: bool,
}

/// Rows of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Keys and values, in the order asked for.
    pub rows: Vec<(Key, Vec<u8>)>,
    /// What is left of the range, if the limit ended the page.
    pub more: Option<Span>,
}

/// A transaction. Dropping it rolls it back, in the background.
pub struct Transaction<S: Shards, O: Oracle> {
    pub(crate) coordinator: Coordinator<S, O>,
    pub(crate) life: Arc<Life>,
    pub(crate) id: TxnId,
    pub(crate) isolation: Isolation,
    /// It reads at a chosen moment and may not write.
    pub(crate) read_only: bool,
    /// Its commit survives a power cut.
    pub(crate) lasting: bool,
    age: Age,
    /// The moment of its reads: of the transaction, or of the statement.
    pub(crate) read_ts: Option<Timestamp>,
    /// Something was read at `read_ts`.
    has_read: bool,
    /// The user says where statements begin (read committed).
    in_statements: bool,
    pub(crate) reads: ReadLog,
    pub(crate) writes: WriteBuffer,
    /// Locked keys with the version that was found.
    pub(crate) locked: BTreeMap<Key, Locked>,
    /// Why it is over.
    pub(crate) aborted: Option<Abort>,
    /// What recovery has to decide if the commit is not waited for.
    pub(crate) staged: Option<Staged>,
    /// The background has taken over.
    pub(crate) handed_over: bool,
}

/// A lock and what it showed.
#[derive(Clone, Copy)]
pub(crate) struct Locked {
    /// Timestamp of the newest version, zero if there was none.
    pub(crate) found: Timestamp,
    exclusive: bool,
}

impl<S: Shards, O: Oracle> std::fmt::Debug for Transaction<S, O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Transaction({} {:?} at {:?})", self.id, self.isolation, self.read_ts)
    }
}

impl<S: Shards, O: Oracle> Transaction<S, O> {
    pub(crate) fn new(
        coordinator: Coordinator<S, O>,
        life: Arc<Life>,
        isolation: Isolation,
        at: Option<Timestamp>,
        age: Age,
    ) -> Transaction<S, O> {
        let lasting = coordinator.core().options.lasting;
        Transaction {
            coordinator,
            lasting,
            id: life.txn,
            life,
            isolation,
            read_only: at.is_some(),
            age,
            read_ts: at,
            has_read: false,
            in_statements: false,
            reads: ReadLog::default(),
            writes: WriteBuffer::default(),
            locked: BTreeMap::new(),
            aborted: None,
            staged: None,
            handed_over: false,
        }
    }

    /// Returns the name.
    pub fn id(&self) -> TxnId {
        self.id
    }

    /// Returns the moment that it reads at, once that is chosen.
    pub fn read_ts(&self) -> Option<Timestamp> {
        self.read_ts
    }

    /// Returns why the transaction is over, if it was aborted.
    pub fn abort_reason(&self) -> Option<&Abort> {
        self.aborted.as_ref()
    }

    // ---- reads ----

    /// Returns the value of a key, `None` if it has none.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.get_version(key).await?.map(|(value, _)| value))
    }

    /// Returns the value of a key and since when it is there; `None` for the moment of a value that
    /// the transaction has written itself.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_version(
        &mut self,
        key: &[u8],
    ) -> Result<Option<(Vec<u8>, Option<Timestamp>)>, Error> {
        let _busy = self.enter()?;
        if let Some(value) = self.writes.get(key) {
            return Ok(value.clone().map(|value| (value, None)));
        }
        let at = self.moment().await?;
        let result = read_one(&self.core().clone(), self.id, key, at).await;
        let version = self.notice(result)?;
        self.remember_key(key.to_vec());
        Ok(version.and_then(|version| Some((version.value?, Some(version.ts)))))
    }

    /// Returns the values of keys, in their order, all of one moment.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn multi_get<K: AsRef<[u8]>>(
        &mut self,
        keys: &[K],
    ) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let _busy = self.enter()?;
        let theirs = keys.iter().map(AsRef::as_ref).filter(|key| self.writes.get(key).is_none());
        let mut asked: Vec<Key> = theirs.map(<[u8]>::to_vec).collect();
        asked.sort_unstable();
        asked.dedup();
        let mut found = Vec::new();
        if !asked.is_empty() {
            let at = self.moment().await?;
            let result = read_many(&self.core().clone(), self.id, &asked, at).await;
            found = self.notice(result)?;
        }
        let value = |key: &[u8]| match self.writes.get(key) {
            Some(value) => value.clone(),
            None => {
                let at = asked.binary_search_by(|other| other.as_slice().cmp(key)).ok()?;
                found[at].as_ref().and_then(|version: &Version| version.value.clone())
            }
        };
        let values = keys.iter().map(|key| value(key.as_ref())).collect();
        for key in asked {
            self.remember_key(key);
        }
        Ok(values)
    }

    /// Returns the first rows of a range, or the last ones in descending order, own writes included.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn scan(&mut self, span: Span, options: ScanOptions) -> Result<Page, Error> {
        let _busy = self.enter()?;
        let mut rows: Vec<(Key, Vec<u8>)> = Vec::new();
        let mut rest = (span.start < span.end).then_some(span);
        if options.limit == 0 {
            return Ok(Page { rows, more: rest });
        }
        // One moment for all pieces, whatever the isolation.
        let at = self.moment().await?;
        while let Some(ahead) = rest.take() {
            let wanted = options.limit - rows.len();
            let core = self.core().clone();
            let result = scan_piece(&core, self.id, &ahead, at, wanted, options.reverse).await;
            let piece = self.notice(result)?;
            merge(&mut rows, piece.rows, &piece.covered, &self.writes, options.reverse);
            rest = piece.rest;
            if mutants::is("spans-not-validated") {
                rows.iter().for_each(|(key, _)| self.reads.add_key(key.clone(), usize::MAX));
                self.has_read = true;
            } else {
                self.remember_span(piece.covered.clone());
            }
            if rows.len() >= options.limit {
                rows.truncate(options.limit);
                let last = &rows[rows.len() - 1].0;
                let end = |rest: &Option<Span>, covered: &Span| {
                    rest.as_ref().map_or_else(|| covered.end.clone(), |rest| rest.end.clone())
                };
                let start = |rest: &Option<Span>, covered: &Span| {
                    rest.as_ref().map_or_else(|| covered.start.clone(), |rest| rest.start.clone())
                };
                let more = if options.reverse {
                    Span { start: start(&rest, &piece.covered), end: last.clone() }
                } else {
                    Span { start: after(last), end: end(&rest, &piece.covered) }
                };
                return Ok(Page { rows, more: (more.start < more.end).then_some(more) });
            }
        }
        Ok(Page { rows, more: None })
    }

    /// Begins a statement of a read committed transaction: what is read from here until the next
    /// call is of one moment, the moment of the next read. Without any call every operation is a
    /// statement of its own. At other isolations nothing changes.
    pub fn begin_statement(&mut self) {
        self.in_statements = true;
        if self.isolation == Isolation::ReadCommitted {
            self.read_ts = None;
        }
    }

    // ---- writes ----

    /// Writes a value. At read committed the key is locked first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        self.write(key.to_vec(), Some(value.to_vec())).await
    }

    /// Writes a value, or with `None` deletes, by bytes that are given away.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set(&mut self, key: Key, value: Option<Vec<u8>>) -> Result<(), Error> {
        self.write(key, value).await
    }

    /// Deletes a key. At read committed it is locked first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete(&mut self, key: &[u8]) -> Result<(), Error> {
        self.write(key.to_vec(), None).await
    }

    async fn write(&mut self, key: Key, value: Option<Vec<u8>>) -> Result<(), Error> {
        let _busy = self.enter()?;
        if self.read_only {
            return Err(Error::Misuse("a transaction at a chosen moment cannot write"));
        }
        let options = &self.core().options;
        if self.writes.bytes_with(&key, value.as_deref()) > options.write_bytes_max {
            let what = format!("it writes more than {} bytes", options.write_bytes_max);
            return Err(Error::TooLarge { what });
        }
        if self.writes.len() >= options.write_keys_max && self.writes.get(&key).is_none() {
            let what = format!("it writes more than {} keys", options.write_keys_max);
            return Err(Error::TooLarge { what });
        }
        let is_locked = self.locked.get(&key).is_some_and(|locked| locked.exclusive);
        if self.isolation == Isolation::ReadCommitted && !is_locked {
            self.lock(vec![key.clone()], true).await?;
        }
        self.writes.put(key, value);
        Ok(())
    }

    /// Says whether a commit that was acknowledged has to survive a power cut. One that need not is
    /// acknowledged as soon as all of it is logged, if one log has all of it; a power cut then takes
    /// all of it or nothing.
    pub fn set_lasting(&mut self, lasting: bool) {
        self.lasting = lasting;
    }

    /// Marks a place to come back to.
    pub fn savepoint(&mut self) -> Savepoint {
        Savepoint(self.writes.savepoint())
    }

    /// Takes back the writes since a savepoint. What was read stays read, what was locked locked.
    ///
    /// # Errors
    /// The savepoint is gone: an earlier one was gone back to.
    pub fn rollback_to(&mut self, savepoint: Savepoint) -> Result<(), Error> {
        if self.writes.rollback_to(savepoint.0) {
            return Ok(());
        }
        Err(Error::Misuse("the savepoint is gone: an earlier one was rolled back to"))
    }

    // ---- locks ----

    /// Locks a key and returns its newest value, or what the transaction has written there.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_for_update(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let _busy = self.enter()?;
        if self.read_only {
            return Err(Error::Misuse("a transaction at a chosen moment cannot lock"));
        }
        let mut values = self.lock(vec![key.to_vec()], true).await?;
        if let Some(value) = self.writes.get(key) {
            return Ok(value.clone());
        }
        Ok(values.pop().and_then(|(_, version)| version).and_then(|version| version.value))
    }

    /// Locks keys in key order, to write them or (not `exclusive`) only so that they stay as they
    /// are, and returns their newest values in the order asked for, or what the transaction has
    /// written there.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lock_all<K: AsRef<[u8]>>(
        &mut self,
        keys: &[K],
        exclusive: bool,
    ) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let _busy = self.enter()?;
        if self.read_only {
            return Err(Error::Misuse("a transaction at a chosen moment cannot lock"));
        }
        let mut ordered: Vec<Key> = keys.iter().map(|key| key.as_ref().to_vec()).collect();
        if !mutants::is("locks-in-any-order") {
            ordered.sort_unstable();
        }
        ordered.dedup();
        let mut found = self.lock(ordered, exclusive).await?;
        found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let value = |key: &[u8]| match self.writes.get(key) {
            Some(value) => value.clone(),
            None => {
                let at = found.binary_search_by(|(other, _)| other.as_slice().cmp(key)).ok()?;
                found[at].1.as_ref().and_then(|version| version.value.clone())
            }
        };
        Ok(keys.iter().map(|key| value(key.as_ref())).collect())
    }

    /// Locks keys in key order and returns their newest committed versions, deletions included, by
    /// ascending key. What the transaction has written itself is not looked at.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lock_versions(
        &mut self,
        mut keys: Vec<Key>,
        exclusive: bool,
    ) -> Result<Vec<(Key, Option<Version>)>, Error> {
        let _busy = self.enter()?;
        if self.read_only {
            return Err(Error::Misuse("a transaction at a chosen moment cannot lock"));
        }
        keys.sort_unstable();
        keys.dedup();
        let mut found = self.lock(keys, exclusive).await?;
        found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    /// Locks keys in the order given, shard after shard, and moves the moment of the transaction if
    /// something newer was found.
    async fn lock(
        &mut self,
        keys: Vec<Key>,
        exclusive: bool,
    ) -> Result<Vec<(Key, Option<Version>)>, Error> {
        let core = self.core().clone();
        let waiting = LockWait { core: &core, life: &self.life, txn: self.id, age: self.age };
        let result = waiting.take(keys, exclusive).await;
        let found = self.notice(result)?;
        let mut newest = Timestamp::ZERO;
        for (key, version) in &found {
            let ts = version.as_ref().map_or(Timestamp::ZERO, |version| version.ts);
            let locked = Locked { found: ts, exclusive };
            let held = self.locked.entry(key.clone()).or_insert(locked);
            held.exclusive |= exclusive;
            if held.found != ts {
                // The lock was lost and somebody wrote: this cannot commit any more.
                return Err(self.abort(Abort::WriteConflict(key.clone())));
            }
            newest = newest.max(ts);
        }
        self.move_to(newest).await?;
        Ok(found)
    }

    /// Makes sure that the transaction reads at or above `newest`, a version that a lock has shown.
    async fn move_to(&mut self, newest: Timestamp) -> Result<(), Error> {
        let Some(read_ts) = self.read_ts.filter(|read_ts| *read_ts < newest) else {
            return Ok(());
        };
        if self.isolation == Isolation::ReadCommitted {
            return Ok(());
        }
        if !self.has_read {
            self.read_ts = None;
            return Ok(());
        }
        let key = self.locked.iter().find(|(_, locked)| locked.found == newest);
        let key = key.map(|(key, _)| key.clone()).unwrap_or_default();
        if self.isolation == Isolation::Snapshot {
            return Err(self.abort(Abort::WriteConflict(key)));
        }
        let core = self.core().clone();
        let at = core.oracle.read_point().await?;
        let parts = self.parts(false);
        let result = crate::commit::validate(&core, self.id, parts, read_ts, at).await;
        if let Err(why) = result {
            return Err(self.abort(why));
        }
        core.stats.refreshed.add(1);
        self.read_ts = Some(at);
        self.life.set_read_ts(at);
        Ok(())
    }

    // ---- ends ----

    /// Takes everything back. Nothing was written anywhere, so this cannot fail.
    pub fn rollback(self) {
        drop(self);
    }

    // ---- inside ----

    pub(crate) fn core(&self) -> &Arc<Core<S, O>> {
        self.coordinator.core()
    }

    /// Begins an operation.
    pub(crate) fn enter(&mut self) -> Result<Busy, Error> {
        if let Some(why) = &self.aborted {
            return Err(Error::Aborted(why.clone()));
        }
        match self.life.enter(&self.coordinator.core().pace.clock) {
            Ok(busy) => Ok(busy),
            Err(why) => {
                self.aborted = Some(why.clone());
                Err(Error::Aborted(why))
            }
        }
    }

    /// Returns the moment to read at.
    async fn moment(&mut self) -> Result<Timestamp, Error> {
        let fresh = self.isolation == Isolation::ReadCommitted && !self.in_statements;
        if let Some(at) = self.read_ts.filter(|_| !fresh) {
            return Ok(at);
        }
        let at = self.core().oracle.read_point().await?;
        self.read_ts = Some(at);
        self.life.set_read_ts(at);
        Ok(at)
    }

    fn remember_key(&mut self, key: Key) {
        self.has_read = true;
        if self.isolation == Isolation::Serializable {
            let most = self.core().options.read_keys_max;
            self.reads.add_key(key, most);
        }
    }

    fn remember_span(&mut self, span: Span) {
        self.has_read = true;
        if self.isolation == Isolation::Serializable {
            let most = self.core().options.read_keys_max;
            self.reads.add_span(span, most);
        }
    }

    /// Ends the transaction, and says so.
    pub(crate) fn abort(&mut self, why: Abort) -> Error {
        if self.aborted.is_none() {
            self.aborted = Some(why.clone());
            self.core().stats.aborted.add(1);
            self.hand_over(Work::Unlock);
        }
        Error::Aborted(why)
    }

    /// Ends the transaction if an operation was answered by an abort.
    fn notice<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        match result {
            Err(Error::Aborted(why)) => Err(self.abort(why)),
            other => other,
        }
    }

    /// Groups what it has read, and (`writes`) what it writes, by shard.
    pub(crate) fn parts(&self, writes: bool) -> Parts {
        let shards = &self.core().shards;
        let mut parts = Parts::default();
        let is_serializable = self.isolation == Isolation::Serializable;
        if writes {
            self.writes.values().keys().for_each(|key| parts.write(shards, key));
        }
        // A key that is written is checked as such.
        let skip = |key: &[u8]| writes && self.writes.get(key).is_some();
        self.reads.keys(skip).for_each(|key| parts.read_key(shards, key));
        self.reads.spans().for_each(|span| parts.read_span(shards, &span));
        if !mutants::is("locks-not-checked") {
            for (key, locked) in &self.locked {
                if is_serializable || (writes && self.writes.get(key).is_some()) {
                    parts.read_locked(shards, key, locked.found);
                }
            }
        }
        parts
    }

    /// Hands the rest to the background, once.
    pub(crate) fn hand_over(&mut self, work: Work) {
        if std::mem::replace(&mut self.handed_over, true) {
            return;
        }
        if matches!(work, Work::Unlock) && !self.life.has_locks() {
            self.core().unregister(self.id);
            return;
        }
        self.coordinator.hand_over(Job { life: self.life.clone(), work });
    }
}

impl<S: Shards, O: Oracle> Drop for Transaction<S, O> {
    fn drop(&mut self) {
        let work = self.staged.take().map_or(Work::Unlock, Work::Settle);
        self.hand_over(work);
    }
}
