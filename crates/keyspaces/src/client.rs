//! Clients: the database from any thread, under any executor.
//!
//! A [`Client`] asks in single questions: batches, keyspaces. A [`Session`] is a transaction with a
//! conversation: it lives on a core, and its operations travel there one by one. Writes are noted
//! without a wait, up to a mebibyte ahead: what is wrong with one is told by the next operation that
//! waits, and the transaction cannot commit.
//!
//! Futures of this module may be dropped at any time. A question that has left is answered to
//! nobody; a batch or a commit that has left may take effect.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use atoll_env::sync::{QueueSender, oneshot, queue};

use crate::batch::{Action, Batch, Outcome};
use crate::catalog::{self, Info, Options};
use crate::error::{Error, Result, Unknown};
use crate::hall::{Answer, Ask, Op};
use crate::range::KeyRange;
use crate::registry::{Keyspace, Registry};
use crate::work::{Expiry, Found, Limits, Rows};

/// Bytes of writes that a session sends ahead.
const AHEAD_MAX: usize = 1 << 20;
/// Bytes that a page of a session's scan may have.
const PAGE_BYTES: usize = 4 << 20;

/// How much a transaction may notice of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Isolation {
    /// Strictly serializable: as if all ran one after the other, in an order that agrees with time.
    #[default]
    Serializable,
    /// Reads of one moment; of two that write the same key one is refused. Write skew is possible.
    Snapshot,
    /// Each operation reads what is committed when it starts; writes wait for locks.
    ReadCommitted,
    /// Reads of one moment at most so far in the past (at most 2.5 s), which wait for nobody; no
    /// writes.
    BoundedStale(Duration),
}

/// A way to all cores of an open directory. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    registry: Arc<Registry>,
    doors: Arc<[QueueSender<Ask>]>,
    /// Whose turn it is.
    next: Arc<AtomicUsize>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client(of {} cores)", self.doors.len())
    }
}

impl Client {
    pub(crate) fn new(registry: Arc<Registry>, doors: Vec<QueueSender<Ask>>) -> Client {
        Client { registry, doors: doors.into(), next: Arc::default() }
    }

    /// Sends a question to a core.
    fn send(&self, ask: Ask) -> Result<()> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let door = self.doors.get(turn % self.doors.len().max(1)).ok_or(Error::Closed)?;
        door.send(ask).map_err(|_| Error::Closed)
    }

    async fn ask<T>(&self, ask: impl FnOnce(Answer<T>) -> Ask) -> Result<T> {
        let (answer, receiver) = oneshot::channel();
        self.send(ask(answer))?;
        receiver.await.unwrap_or(Err(Error::Closed))
    }

    // ---- keyspaces ----

    /// Returns a keyspace.
    ///
    /// # Errors
    /// There is none of this name, or those of a transaction.
    pub async fn keyspace(&self, name: &str) -> Result<Keyspace> {
        let found = self.find_keyspace(name).await?;
        found.ok_or_else(|| Error::NotFound(name.to_owned()))
    }

    /// Returns a keyspace if there is one of this name.
    ///
    /// # Errors
    /// Those of a transaction.
    pub async fn find_keyspace(&self, name: &str) -> Result<Option<Keyspace>> {
        if let Some(known) = self.registry.known(name)
            && known.check().is_ok()
        {
            return Ok(Some(known));
        }
        if catalog::check_name(name).is_err() {
            return Ok(None);
        }
        self.ask(|answer| Ask::Find(name.to_owned(), answer)).await
    }

    /// Creates a keyspace unless it is there with the same options; tells whether it is new.
    ///
    /// # Errors
    /// The name cannot be, or is taken by one with other options; those of a transaction.
    pub async fn create_keyspace(&self, name: &str, options: Options) -> Result<(Keyspace, bool)> {
        self.ask(|answer| Ask::Create(name.to_owned(), options, answer)).await
    }

    /// Drops a keyspace and those below it, at a cost independent of the number of keys. Returns
    /// their names.
    ///
    /// # Errors
    /// There is none, or those of a transaction.
    pub async fn drop_keyspace(&self, name: &str) -> Result<Vec<String>> {
        self.ask(|answer| Ask::Drop(name.to_owned(), answer)).await
    }

    /// Lists the keyspaces whose names are in a range, by name, and tells whether there are more.
    ///
    /// # Errors
    /// Those of a transaction.
    pub async fn keyspaces(&self, names: KeyRange, limit: usize) -> Result<(Vec<Info>, bool)> {
        self.ask(|answer| Ask::List(names, limit, answer)).await
    }

    /// Counts the keys of a keyspace, at a cost independent of their number: those of every transaction
    /// that was acknowledged before are counted.
    ///
    /// # Errors
    /// A shard does not serve, or the database is closed.
    pub async fn count(&self, keyspace: &Keyspace) -> Result<u64> {
        let mut receivers = Vec::with_capacity(self.doors.len());
        for door in self.doors.iter() {
            let (answer, receiver) = oneshot::channel();
            door.send(Ask::Count(keyspace.id(), answer)).map_err(|_| Error::Closed)?;
            receivers.push(receiver);
        }
        // A single shard's count may be negative; the sum is exact.
        let mut sum = 0;
        for receiver in receivers {
            sum += receiver.await.unwrap_or(Err(Error::Closed))?;
        }
        Ok(u64::try_from(sum).unwrap_or(0))
    }

    // ---- transactions ----

    /// Runs a batch as one serializable transaction.
    ///
    /// # Errors
    /// Those of a transaction. After a conflict it was tried many times already.
    pub async fn batch(&self, batch: Batch) -> Result<Outcome> {
        let writes = |actions: &[Action]| {
            actions
                .iter()
                .any(|action| matches!(action, Action::Put { .. } | Action::Delete { .. }))
        };
        let writes = writes(&batch.success) || writes(&batch.failure);
        let (answer, receiver) = oneshot::channel();
        self.send(Ask::Batch(batch, answer))?;
        receiver.await.unwrap_or(Err(if writes {
            Error::closed_in_commit()
        } else {
            Error::Closed
        }))
    }

    /// Begins a transaction.
    pub fn begin(&self, isolation: Isolation) -> Session {
        let (ops, receiver) = queue();
        // A database that is closed answers the first operation.
        let _ = self.send(Ask::Begin(isolation, receiver));
        Session { ops, isolation, ahead: 0, savepoints: 0 }
    }

    /// Asks again what became of a transaction that was left in doubt: the moment of its commit,
    /// `None` if it did not commit and never will.
    ///
    /// # Errors
    /// Nobody can tell (any more).
    pub async fn settle(&self, unknown: &Unknown) -> Result<Option<u64>> {
        let Some(doubt) = unknown.doubt.clone() else {
            return Err(Error::Unavailable("its database was closed; look at the data".to_owned()));
        };
        self.ask(|answer| Ask::Settle(doubt, answer)).await
    }
}

/// A place in a transaction to come back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Savepoint(usize);

/// A transaction. Dropping it rolls it back.
pub struct Session {
    ops: QueueSender<Op>,
    isolation: Isolation,
    /// Bytes of writes that nobody has waited for.
    ahead: usize,
    savepoints: usize,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({:?})", self.isolation)
    }
}

impl Session {
    async fn ask<T>(&mut self, op: impl FnOnce(Answer<T>) -> Op) -> Result<T> {
        self.ahead = 0;
        let (answer, receiver) = oneshot::channel();
        self.ops.send(op(answer)).map_err(|_| Error::Closed)?;
        receiver.await.unwrap_or(Err(Error::Closed))
    }

    /// Reads a key, own writes included.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get(&mut self, keyspace: &Keyspace, key: &[u8]) -> Result<Option<Found>> {
        let (keyspace, key) = (keyspace.clone(), key.to_vec());
        self.ask(|answer| Op::Get { keyspace, key, lock: false, answer }).await
    }

    /// Locks a key until the end of the transaction and reads its newest value.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_for_update(
        &mut self,
        keyspace: &Keyspace,
        key: &[u8],
    ) -> Result<Option<Found>> {
        let (keyspace, key) = (keyspace.clone(), key.to_vec());
        self.ask(|answer| Op::Get { keyspace, key, lock: true, answer }).await
    }

    /// Writes a value.
    ///
    /// # Errors
    /// See [`Error`]; also what an earlier write has met.
    pub async fn put(
        &mut self,
        keyspace: &Keyspace,
        key: &[u8],
        value: &[u8],
        expiry: Expiry,
    ) -> Result<()> {
        let bytes = key.len() + value.len();
        let (keyspace, key, value) = (keyspace.clone(), key.to_vec(), value.to_vec());
        self.write(bytes, |answer| Op::Put { keyspace, key, value, expiry, answer }).await
    }

    /// Deletes a key.
    ///
    /// # Errors
    /// See [`Error`]; also what an earlier write has met.
    pub async fn delete(&mut self, keyspace: &Keyspace, key: &[u8]) -> Result<()> {
        let (keyspace, key) = (keyspace.clone(), key.to_vec());
        self.write(key.len(), |answer| Op::Delete { keyspace, key, answer }).await
    }

    async fn write(
        &mut self,
        bytes: usize,
        op: impl FnOnce(Option<Answer<()>>) -> Op,
    ) -> Result<()> {
        // At read committed a write waits for a lock; one that cannot be is told at once.
        let waits = matches!(self.isolation, Isolation::ReadCommitted | Isolation::BoundedStale(_));
        self.ahead = self.ahead.saturating_add(bytes).saturating_add(64);
        if waits || self.ahead > AHEAD_MAX {
            return self.ask(|answer| op(Some(answer))).await;
        }
        self.ops.send(op(None)).map_err(|_| Error::Closed)
    }

    /// Returns the first rows of a range, or the last ones in descending order: at most `limit`, and
    /// at most about 4 MiB of them. Own writes are included.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn scan(
        &mut self,
        keyspace: &Keyspace,
        range: KeyRange,
        reverse: bool,
        limit: usize,
    ) -> Result<Rows> {
        let limits = Limits { rows: limit, bytes: PAGE_BYTES };
        let keyspace = keyspace.clone();
        self.ask(|answer| Op::Scan { keyspace, range, reverse, limits, answer }).await
    }

    /// Marks a place to come back to.
    ///
    /// # Errors
    /// The database is closed.
    pub fn savepoint(&mut self) -> Result<Savepoint> {
        self.ops.send(Op::Savepoint).map_err(|_| Error::Closed)?;
        self.savepoints += 1;
        Ok(Savepoint(self.savepoints - 1))
    }

    /// Takes back the writes since a savepoint. What was read stays read, what was locked locked.
    ///
    /// # Errors
    /// The savepoint is gone: an earlier one was gone back to.
    pub async fn rollback_to(&mut self, savepoint: Savepoint) -> Result<()> {
        self.ask(|answer| Op::RollbackTo(savepoint.0, answer)).await
    }

    /// Commits; returns the moment at which everything happened, the version of all that it wrote.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn commit(self) -> Result<u64> {
        let (answer, receiver) = oneshot::channel();
        self.ops.send(Op::Commit(answer)).map_err(|_| Error::Closed)?;
        receiver.await.unwrap_or_else(|_| Err(Error::closed_in_commit()))
    }
}
