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
use std::ops::Bound;
use std::sync::Arc;

use atoll_env::sync::{Either, select_biased};
use atoll_env::Instant;
use atoll_mvcc::request::{Isolation, Key, Obstacle, Request, Response, Span, Version};
use atoll_mvcc::{Timestamp, TxnId};

use crate::buffer::{Parts, ReadLog, WriteBuffer, after};
use crate::cleaner::{Job, Staged, Work, unlock};
use crate::coordinator::{Coordinator, Core};
use crate::deadlock::{Age, Waiting};
use crate::error::{Abort, Error};
use crate::join::join_all;
use crate::life::{Busy, Life};
use crate::mutants;
use crate::oracle::Oracle;
use crate::pace::Backoff;
use crate::recovery::{nonsense, status};
use crate::shards::{Shards, by_shard};

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
        Transaction {
            coordinator,
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
        let _busy = self.enter()?;
        if let Some(value) = self.writes.get(key) {
            return Ok(value.clone());
        }
        let at = self.moment().await?;
        let result = read_one(&self.core().clone(), self.id, key, at).await;
        let version = self.notice(result)?;
        self.remember_key(key.to_vec());
        Ok(version.and_then(|version| version.value))
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
        self.write(key, Some(value)).await
    }

    /// Deletes a key. At read committed it is locked first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete(&mut self, key: &[u8]) -> Result<(), Error> {
        self.write(key, None).await
    }

    async fn write(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), Error> {
        let _busy = self.enter()?;
        if self.read_only {
            return Err(Error::Misuse("a transaction at a chosen moment cannot write"));
        }
        let options = &self.core().options;
        if self.writes.bytes_with(key, value) > options.write_bytes_max {
            let what = format!("it writes more than {} bytes", options.write_bytes_max);
            return Err(Error::TooLarge { what });
        }
        if self.writes.len() >= options.write_keys_max && self.writes.get(key).is_none() {
            let what = format!("it writes more than {} keys", options.write_keys_max);
            return Err(Error::TooLarge { what });
        }
        let is_locked = self.locked.get(key).is_some_and(|locked| locked.exclusive);
        if self.isolation == Isolation::ReadCommitted && !is_locked {
            self.lock(vec![key.to_vec()], true).await?;
        }
        self.writes.put(key, value.map(<[u8]>::to_vec));
        Ok(())
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

// ---- questions to shards ----

/// Makes sure that a question can be asked again, after an answer that was none.
async fn again<S: Shards, O: Oracle>(
    core: &Core<S, O>,
    backoff: &mut Backoff<'_>,
    question: &str,
    answer: Response,
) -> Result<(), Error> {
    match answer {
        Response::Blocked(obstacles) => return core.clear_way(&obstacles).await,
        Response::NotMine => backoff.pause("a shard is moving").await?,
        Response::Unknown => backoff.pause("a shard has lost its leader").await?,
        Response::Unavailable(why) => backoff.pause(&why).await?,
        Response::Refused(refusal) => return Err(Error::Aborted(refusal.into())),
        other => return Err(Error::Unavailable(nonsense(question, &other))),
    }
    Ok(())
}

async fn read_one<S: Shards, O: Oracle>(
    core: &Core<S, O>,
    txn: TxnId,
    key: &[u8],
    at: Timestamp,
) -> Result<Option<Version>, Error> {
    let mut backoff = core.backoff(core.options.operation);
    let mut moment = at;
    loop {
        let request = Request::Get { txn: Some(txn), keys: vec![key.to_vec()], at: moment };
        match core.shards.send(request).await {
            Response::Values(mut values) => return Ok(values.pop().flatten()),
            Response::Blocked(obstacles) if mutants::is("missing-is-aborted") => {
                let Obstacle { txn, primary, min_commit_ts, .. } = &obstacles[0];
                if status(&core.shards, &mut backoff, *txn, primary).await?.0.is_none() {
                    // Aborted, so it seems: look past the intent.
                    moment = min_commit_ts.prev();
                } else {
                    core.clear_way(&obstacles).await?;
                }
            }
            answer => again(core, &mut backoff, "Get", answer).await?,
        }
    }
}

/// Reads ascending keys.
async fn read_many<S: Shards, O: Oracle>(
    core: &Core<S, O>,
    txn: TxnId,
    keys: &[Key],
    at: Timestamp,
) -> Result<Vec<Option<Version>>, Error> {
    let mut backoff = core.backoff(core.options.operation);
    let mut found: Vec<Option<Version>> = vec![None; keys.len()];
    let mut open = keys.to_vec();
    while !open.is_empty() {
        let groups = by_shard(&core.shards, std::mem::take(&mut open));
        let get = |keys: &Vec<Key>| Request::Get { txn: Some(txn), keys: keys.clone(), at };
        let answers = join_all(groups.iter().map(|(_, keys)| core.shards.send(get(keys)))).await;
        for ((_, group), answer) in groups.into_iter().zip(answers) {
            match answer {
                Response::Values(values) => {
                    for (key, version) in group.iter().zip(values) {
                        if let Ok(at) = keys.binary_search(key) {
                            found[at] = version;
                        }
                    }
                }
                answer => {
                    again(core, &mut backoff, "Get", answer).await?;
                    open.extend(group);
                }
            }
        }
        open.sort_unstable();
    }
    Ok(found)
}

/// Part of a scan.
struct Piece {
    rows: Vec<(Key, Version)>,
    /// All of this was looked at.
    covered: Span,
    /// What is left of the range.
    rest: Option<Span>,
}

/// Scans the next piece of a range: as far as one shard and the limit go.
async fn scan_piece<S: Shards, O: Oracle>(
    core: &Core<S, O>,
    txn: TxnId,
    span: &Span,
    at: Timestamp,
    limit: usize,
    reverse: bool,
) -> Result<Piece, Error> {
    let mut backoff = core.backoff(core.options.operation);
    loop {
        let pieces = core.shards.pieces(span);
        let next = if reverse { pieces.into_iter().next_back() } else { pieces.into_iter().next() };
        let Some((_, piece)) = next else {
            return Ok(Piece { rows: Vec::new(), covered: span.clone(), rest: None });
        };
        let request = Request::Scan { txn: Some(txn), span: piece.clone(), at, limit, reverse };
        match core.shards.send(request).await {
            Response::Rows { rows, more } => {
                let mut covered = piece;
                match more {
                    Some(last) if reverse => covered.start = last,
                    Some(last) => covered.end = after(&last),
                    None => {}
                }
                let rest = if reverse {
                    Span { start: span.start.clone(), end: covered.start.clone() }
                } else {
                    Span { start: covered.end.clone(), end: span.end.clone() }
                };
                let rest = (rest.start < rest.end).then_some(rest);
                return Ok(Piece { rows, covered, rest });
            }
            answer => again(core, &mut backoff, "Scan", answer).await?,
        }
    }
}

/// Appends stored rows and own writes inside of `covered`, in order.
fn merge(
    rows: &mut Vec<(Key, Vec<u8>)>,
    stored: Vec<(Key, Version)>,
    covered: &Span,
    writes: &WriteBuffer,
    reverse: bool,
) {
    let inside = (Bound::Included(covered.start.as_slice()), Bound::Excluded(covered.end.as_slice()));
    let own = writes.values().range::<[u8], _>(inside);
    let own: Vec<_> = if reverse { own.rev().collect() } else { own.collect() };
    let mut own = own.into_iter().peekable();
    let mut stored = stored.into_iter().peekable();
    let comes_first = |a: &Key, b: &Key| if reverse { a > b } else { a < b };
    loop {
        match (own.peek(), stored.peek()) {
            (Some((mine, _)), Some((theirs, _))) if comes_first(theirs, mine) => {}
            (Some((mine, _)), theirs) => {
                let hidden = theirs.is_some_and(|(theirs, _)| theirs == *mine);
                if let Some((key, Some(value))) = own.next() {
                    rows.push((key.clone(), value.clone()));
                }
                if hidden {
                    stored.next();
                }
                continue;
            }
            (None, Some(_)) => {}
            (None, None) => return,
        }
        if let Some((key, Version { value: Some(value), .. })) = stored.next() {
            rows.push((key, value));
        }
    }
}

/// A transaction that takes locks.
struct LockWait<'a, S: Shards, O: Oracle> {
    core: &'a Core<S, O>,
    life: &'a Life,
    txn: TxnId,
    age: Age,
}

impl<S: Shards, O: Oracle> LockWait<'_, S, O> {
    /// Takes locks in the order of the keys; one question for neighbours of one shard.
    async fn take(
        &self,
        keys: Vec<Key>,
        exclusive: bool,
    ) -> Result<Vec<(Key, Option<Version>)>, Error> {
        let core = self.core;
        let deadline = core.pace.clock.now().after(core.options.lock);
        let mut backoff = core.backoff(core.options.lock);
        let mut found = Vec::with_capacity(keys.len());
        let mut ahead = keys.as_slice();
        while let [first, ..] = ahead {
            let shard = core.shards.shard_of(first);
            let run = ahead.iter().take_while(|key| core.shards.shard_of(key) == shard).count();
            let (now, later) = ahead.split_at(run);
            // Written down first: whoever gives up in the middle gives back what he may have got.
            self.life.add_locks(now);
            match self.wait(now, exclusive, deadline).await? {
                Response::Values(values) => {
                    found.extend(now.iter().cloned().zip(values));
                    ahead = later;
                }
                answer => again(core, &mut backoff, "Lock", answer).await?,
            }
        }
        Ok(found)
    }

    /// Waits for the locks of one shard, and looks for deadlocks if that takes long.
    async fn wait(
        &self,
        keys: &[Key],
        exclusive: bool,
        deadline: Instant,
    ) -> Result<Response, Error> {
        let core = self.core;
        let keys = || keys.to_vec();
        let lock = Request::Lock { txn: self.txn, keys: keys(), exclusive };
        let mut locked = std::pin::pin!(core.shards.send(lock));
        let pause = || core.pace.clock.sleep(core.options.deadlock);
        if let Either::Left(answer) = select_biased(locked.as_mut(), pause()).await {
            return Ok(answer);
        }
        let waiting = core.deadlocks.enter(self.txn, self.age);
        let looking = async {
            loop {
                if core.pace.clock.now() >= deadline {
                    return Abort::LockTimeout(keys().swap_remove(0));
                }
                if !mutants::is("no-deadlock-search") {
                    self.look(&waiting, keys()).await;
                }
                if let Either::Left(()) = select_biased(waiting.chosen(), pause()).await {
                    return Abort::Deadlock;
                }
            }
        };
        match select_biased(locked.as_mut(), looking).await {
            Either::Left(answer) => Ok(answer),
            Either::Right(why) => {
                // Others wait behind us: leave the queue before anything else.
                unlock(core, self.txn, self.life.take_locks()).await;
                Err(Error::Aborted(why))
            }
        }
    }

    /// Asks once whom the transaction waits for.
    async fn look(&self, waiting: &Waiting, keys: Vec<Key>) {
        let asked = waiting.ask();
        let request = Request::Waits { txn: self.txn, keys };
        // A shard that does not answer is asked again soon, and has lost its locks perhaps.
        if let Response::Waits(blockers) = self.core.shards.send(request).await {
            waiting.report(asked, &blockers);
        }
    }
}
