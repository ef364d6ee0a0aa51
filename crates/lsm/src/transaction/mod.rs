//! Transactions: reads and writes that take effect as if nothing else had happened meanwhile.
//!
//! ```text
//!                  WriteTransaction                      OptimisticTransaction
//!   how many       one at a time                         any number
//!   others write   nobody, they wait                     everybody
//!   commit         always (but for the disk)             or a conflict: run it again
//!   for            long, or certain to write the         short, and rarely on the same keys
//!                  same keys
//! ```
//!
//! Both read from a snapshot with their own writes laid over it, keep these in memory ([`own`]) and
//! commit them as one batch. Both are serializable: the outcome is that of running them one after
//! the other in the order of their commits, and one that only reads, as of its snapshot.
//!
//! # The optimistic one
//! It remembers what it reads: keys, also absent ones, and ranges as far as a cursor went, with the
//! gaps in them. Its commit is refused with [`Error::Conflict`] if any of this was changed since its
//! snapshot, by whomever: another transaction, a plain write, a range delete, a dropped keyspace.
//! So at the point of its commit all that it saw is still true, which is all that serializability
//! asks. How that is found out at little cost is told in [`validation`]. What it writes without
//! having read it (a blind write) conflicts with nothing. A merge is one: its operand is folded after
//! all that was committed before, whatever that is, which is the order of the commits. Whoever has read
//! the key conflicts with it as with any write.
//!
//! # The single-writer one, and plain writes
//! While it is open every other write waits: plain ones, batches, optimistic commits, dropping a
//! keyspace. That is what makes it serializable, and not only against its own kind. The choice was
//! between four ways to treat a plain write ([`turnstile`] is how ours is done):
//! - There is none (redb, LMDB): not for an engine whose users mostly write single keys.
//! - It is a transaction of its own that takes the one lock (fjall): they queue even among
//!   themselves when nobody needs it, and lose group commit.
//! - It locks its key (RocksDB's TransactionDB): each plain write pays for a table of locks, and
//!   ranges are not covered.
//! - It passes through a turnstile which a transaction locks: two additions for whoever writes, and
//!   group commit stays. This one.
//!
//! The price is the same as of any lock: a thread or task that holds a `WriteTransaction` and writes
//! past it waits for itself, for good. Creating a keyspace does not wait: nobody can have read it.
//!
//! # Limits
//! - The passing of a deadline is no change: a key that a transaction has read may expire before the
//!   commit, and one that it reads twice in between. Nor is what a compaction filter does.
//! - What was read is remembered in a bounded number of bytes. Beyond it neighbouring ranges become
//!   one: more conflicts then, never fewer.
//! - Writes are bounded as those of a batch are, and refused as early.
//! - A snapshot is held as long as the transaction is open: what it sees is not compacted away.

#[cfg(test)]
mod histories;
pub(crate) mod overlay;
pub(crate) mod own;
pub(crate) mod spans;
#[cfg(test)]
mod tests;
pub(crate) mod turnstile;
pub(crate) mod validation;

use std::fmt;
use std::ops::RangeBounds;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use atoll_env::block_on;
use parking_lot::Mutex;

use crate::commit::{self, Work};
use crate::database::{Database, Inner, Snapshot};
use crate::error::{Error, Result};
use crate::iter::scan::Bounds;
use crate::key::SeqNo;
use crate::keyspace::{Keyspace, bounds_of, check_key, user_key};
use crate::merge;
use crate::options::WriteOptions;
use crate::range::{Cursor, Range};
use crate::read::Record;
use crate::slice::Slice;
use crate::table::PrefixRule;

use self::overlay::Overlay;
use self::own::Own;
use self::turnstile::{Alone, Turnstile};
use self::validation::{Condition, Reads, ask_tree};

/// Times that a commit asks the tree before it gives up: writers outrun it.
const ROUNDS: usize = 4;
/// Times that [`Database::transact`] runs a transaction again.
const RETRIES: u32 = 64;
/// The longest pause before it does, at first; later ones double up to sixty-four times this.
const PAUSE: Duration = Duration::from_micros(50);

/// What the transactions of a database share.
#[derive(Default)]
pub(crate) struct Transactions {
    pub(crate) turnstile: Arc<Turnstile>,
    /// The next number of a transaction or savepoint.
    next: AtomicU64,
}

impl Transactions {
    fn draw(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

/// A transaction; see [`WriteTransaction`] and [`OptimisticTransaction`] for the two kinds, which
/// differ in how they are opened and in what a commit may answer.
///
/// Dropping one rolls it back. It is `Send`, and committing consumes it.
pub struct Transaction<M: Mode> {
    db: Arc<Inner>,
    snapshot: Snapshot,
    own: Arc<Own>,
    /// What was read, if it has to be validated.
    reads: Option<Arc<Mutex<Reads>>>,
    /// Whether something was read for update.
    for_update: bool,
    /// Whether a read has found a conflict.
    doomed: bool,
    number: u64,
    /// Given up last: what the transaction holds is nobody's before that.
    mode: M,
}

/// A transaction that is the only writer as long as it is open: all other writes wait. It never
/// conflicts. Opened by [`Database::write_transaction`].
///
/// ```
/// # fn main() -> atoll_lsm::Result<()> {
/// # let dir = tempfile::tempdir().expect("a temporary directory");
/// # let path = dir.path().join("db");
/// use atoll_lsm::{Database, KeyspaceOptions, WriteOptions};
///
/// let db = Database::builder(&path).memory(64 << 20).open()?;
/// let stock = db.keyspace("stock", KeyspaceOptions::default())?;
/// let mut tx = db.write_transaction()?;
/// tx.insert(&stock, "apples", "3")?;
/// let before_pears = tx.savepoint();
/// tx.insert(&stock, "pears", "5")?;
/// assert_eq!(tx.iter(&stock).count(), 2);                  // it sees its own writes
/// tx.rollback_to(&before_pears)?;
/// tx.commit(WriteOptions::default())?;                     // one batch: all or nothing
/// assert_eq!(stock.get("apples")?.as_deref(), Some(&b"3"[..]));
/// assert_eq!(stock.get("pears")?, None);
/// # db.close()
/// # }
/// ```
pub type WriteTransaction = Transaction<SingleWriter>;

/// A transaction among others, whose commit is refused with [`Error::Conflict`] if something that it
/// has read was changed meanwhile. Opened by [`Database::optimistic_transaction`] or, with the
/// running again included, by [`Database::transact`].
///
/// ```
/// # fn main() -> atoll_lsm::Result<()> {
/// # let dir = tempfile::tempdir().expect("a temporary directory");
/// # let path = dir.path().join("db");
/// use atoll_lsm::{Database, Error, KeyspaceOptions, WriteOptions};
///
/// let db = Database::builder(&path).memory(64 << 20).open()?;
/// let doctors = db.keyspace("on call", KeyspaceOptions::default())?;
/// doctors.insert("ada", "")?;
/// doctors.insert("alan", "")?;
///
/// // Each may go home as long as somebody else is there.
/// let (mut ada, mut alan) = (db.optimistic_transaction(), db.optimistic_transaction());
/// assert_eq!((ada.iter(&doctors).count(), alan.iter(&doctors).count()), (2, 2));
/// ada.remove(&doctors, "ada")?;
/// alan.remove(&doctors, "alan")?;
/// ada.commit(WriteOptions::default())?;
/// let refused = alan.commit(WriteOptions::default());
/// assert!(matches!(refused, Err(Error::Conflict(_))));     // what alan counted is not true any more
/// # db.close()
/// # }
/// ```
pub type OptimisticTransaction = Transaction<Optimistic>;

/// A kind of transaction.
pub trait Mode: sealed::Sealed + Send + 'static {}

/// The kind that is alone.
pub struct SingleWriter {
    _alone: Alone,
}

/// The kind that is validated.
pub struct Optimistic(());

impl Mode for SingleWriter {}
impl Mode for Optimistic {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::SingleWriter {}
    impl Sealed for super::Optimistic {}
}

/// A point in a transaction to which it can be rolled back.
#[derive(Debug)]
pub struct Savepoint {
    transaction: u64,
    number: u64,
}

// ---- opening ----

impl Database {
    /// Opens the one transaction that writes, when its turn has come and the writes under way have
    /// ended. All other writes wait until it is committed or dropped.
    ///
    /// Whoever holds it must not write past it on the same thread: that write would wait for ever.
    ///
    /// # Errors
    /// `Stopped`, if the database was closed.
    pub fn write_transaction(&self) -> Result<WriteTransaction> {
        block_on(self.write_transaction_async())
    }

    /// Async twin of [`Database::write_transaction`].
    pub async fn write_transaction_async(&self) -> Result<WriteTransaction> {
        let db = self.inner();
        db.check_open()?;
        let alone = db.transactions.turnstile.be_alone().await?;
        // A write that was given up may still wait for a leader: see the turnstile.
        commit::submit(&db.store, Work::Barrier).await?;
        Ok(Transaction::open(db, None, SingleWriter { _alone: alone }))
    }

    /// Opens a transaction as of now. Others write meanwhile; its commit finds out whether that
    /// matters.
    pub fn optimistic_transaction(&self) -> OptimisticTransaction {
        let db = self.inner();
        let reads = Reads::new((db.store.options.memory / 64).clamp(64 << 10, 4 << 20));
        Transaction::open(db, Some(Arc::new(Mutex::new(reads))), Optimistic(()))
    }

    /// Runs `work` in an optimistic transaction and commits it under the database's durability;
    /// after a conflict runs it again, up to 64 times with growing pauses. `work` must be good for
    /// running several times, and not write past its transaction.
    ///
    /// ```
    /// # fn main() -> atoll_lsm::Result<()> {
    /// # let dir = tempfile::tempdir().expect("a temporary directory");
    /// # let path = dir.path().join("db");
    /// # use atoll_lsm::{Database, KeyspaceOptions};
    /// # let db = Database::builder(&path).memory(64 << 20).open()?;
    /// let visits = db.keyspace("visits", KeyspaceOptions::default())?;
    /// let count = db.transact(|tx| {
    ///     let before = tx.get(&visits, "home")?.map_or(0, |value| value[0]);
    ///     tx.insert(&visits, "home", [before + 1])?;
    ///     Ok(before + 1)
    /// })?;
    /// assert_eq!(count, 1);
    /// # db.close()
    /// # }
    /// ```
    ///
    /// # Errors
    /// That of `work`, which rolls back; that of the commit; `Conflict` if it conflicted each time.
    pub fn transact<T>(
        &self,
        mut work: impl FnMut(&mut OptimisticTransaction) -> Result<T>,
    ) -> Result<T> {
        let mut retries = 0;
        loop {
            let mut tx = self.optimistic_transaction();
            let done = work(&mut tx).and_then(|output| {
                tx.commit(WriteOptions::default())?;
                Ok(output)
            });
            match done {
                Err(Error::Conflict(_)) if retries < RETRIES => block_on(self.pause(retries)),
                done => return done,
            }
            retries += 1;
        }
    }

    /// Async twin of [`Database::transact`]. `work` is handed the transaction and hands it back with
    /// its output.
    pub async fn transact_async<T, F>(
        &self,
        mut work: impl FnMut(OptimisticTransaction) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<(OptimisticTransaction, T)>>,
    {
        let mut retries = 0;
        loop {
            let done = match work(self.optimistic_transaction()).await {
                Ok((tx, output)) => tx.commit_async(WriteOptions::default()).await.map(|()| output),
                Err(e) => Err(e),
            };
            match done {
                Err(Error::Conflict(_)) if retries < RETRIES => self.pause(retries).await,
                done => return done,
            }
            retries += 1;
        }
    }

    /// Keeps transactions that ran into each other from doing so again.
    async fn pause(&self, retries: u32) {
        let env = &self.inner().store.options.env;
        let longest = PAUSE * (1 << retries.min(6));
        let nanos = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX).max(1);
        env.clock.sleep(Duration::from_nanos(env.random.next_u64() % nanos)).await;
    }
}

impl<M: Mode> Transaction<M> {
    fn open(db: &Arc<Inner>, reads: Option<Arc<Mutex<Reads>>>, mode: M) -> Transaction<M> {
        Transaction {
            db: db.clone(),
            snapshot: db.snapshot(),
            own: Arc::default(),
            reads,
            for_update: false,
            doomed: false,
            number: db.transactions.draw(),
            mode,
        }
    }

    // ---- reads ----

    /// Returns the value of `key`.
    pub fn get(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        block_on(self.get_async(keyspace, key))
    }

    /// Async twin of [`Transaction::get`].
    pub async fn get_async(
        &self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<Slice>> {
        Ok(self.record_async(keyspace, key).await?.map(|record| record.value))
    }

    /// Returns the value of `key` with its deadline.
    pub fn record(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<Option<Record>> {
        block_on(self.record_async(keyspace, key))
    }

    /// Async twin of [`Transaction::record`].
    pub async fn record_async(
        &self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<Record>> {
        self.check(keyspace)?;
        let key = key.as_ref();
        check_key(key)?;
        let user_key = user_key(keyspace.id(), key);
        let now = self.db.store.now();
        let own = self.own.get(&user_key);
        let base = match own {
            Some(write) if !write.is_on_theirs() => {
                write.alive(now).cloned().and_then(|stored| stored.into_record().ok())
            }
            None if self.own.removed().contains(&user_key) => None,
            _ => {
                if let Some(reads) = &self.reads {
                    reads.lock().key(&user_key);
                }
                self.snapshot.record_async(keyspace, key).await?
            }
        };
        match own {
            None => Ok(base),
            Some(write) => merge::merged(&keyspace.about, &user_key, base, write.operands(), now),
        }
    }

    /// Returns whether `key` has a value.
    pub fn contains_key(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<bool> {
        block_on(self.contains_key_async(keyspace, key))
    }

    /// Async twin of [`Transaction::contains_key`].
    pub async fn contains_key_async(
        &self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
    ) -> Result<bool> {
        Ok(self.record_async(keyspace, key).await?.is_some())
    }

    /// Returns the values of several keys, in the order asked.
    pub fn multi_get<K: AsRef<[u8]>>(
        &self,
        keyspace: &Keyspace,
        keys: &[K],
    ) -> Result<Vec<Option<Slice>>> {
        block_on(self.multi_get_async(keyspace, keys))
    }

    /// Async twin of [`Transaction::multi_get`].
    pub async fn multi_get_async<K: AsRef<[u8]>>(
        &self,
        keyspace: &Keyspace,
        keys: &[K],
    ) -> Result<Vec<Option<Slice>>> {
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            values.push(self.get_async(keyspace, key.as_ref()).await?);
        }
        Ok(values)
    }

    /// Iterates over the keys of `range`, from both ends. Later writes of the transaction do not
    /// show in it.
    pub fn range<K: AsRef<[u8]>>(&self, keyspace: &Keyspace, range: impl RangeBounds<K>) -> Range {
        Range::new(self.cursor(keyspace, range))
    }

    /// Iterates over the keys that begin with `prefix`.
    pub fn prefix(&self, keyspace: &Keyspace, prefix: impl AsRef<[u8]>) -> Range {
        Range::new(self.prefix_cursor(keyspace, prefix))
    }

    /// Iterates over all keys of a keyspace.
    pub fn iter(&self, keyspace: &Keyspace) -> Range {
        self.range::<&[u8]>(keyspace, ..)
    }

    /// Async twin of [`Transaction::range`].
    pub fn cursor<K: AsRef<[u8]>>(
        &self,
        keyspace: &Keyspace,
        range: impl RangeBounds<K>,
    ) -> Cursor {
        self.walk(keyspace, bounds_of(keyspace.id(), &range), None)
    }

    /// Async twin of [`Transaction::prefix`].
    pub fn prefix_cursor(&self, keyspace: &Keyspace, prefix: impl AsRef<[u8]>) -> Cursor {
        let (bounds, filter) = keyspace.prefix_bounds(prefix.as_ref());
        self.walk(keyspace, bounds, filter)
    }

    fn walk(
        &self,
        keyspace: &Keyspace,
        bounds: Bounds,
        filter: Option<(PrefixRule, Vec<u8>)>,
    ) -> Cursor {
        let sources = (self.snapshot.view(), self.snapshot.seqno());
        let mut cursor = Cursor::new(keyspace.clone(), bounds, filter, sources);
        if let Err(foreign) = self.check(keyspace) {
            cursor.fail(foreign);
        }
        if !self.own.is_empty() || self.reads.is_some() {
            cursor.lay_over(Overlay::new(self.own.clone(), self.reads.clone()));
        }
        cursor
    }

    /// Returns the snapshot that the transaction reads from. What is read of it directly has none of
    /// the transaction's writes, and no commit minds if it was changed.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.clone()
    }

    // ---- writes ----

    /// Sets `key` to `value`.
    ///
    /// # Errors
    /// `InvalidInput`: key or value are too long, or all writes together are more than a batch may
    /// be. The write is not made then, and the transaction goes on. So with all writes here.
    pub fn insert(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<()> {
        self.put(keyspace, key.as_ref(), value.as_ref(), keyspace.default_deadline())
    }

    /// Sets `key` to `value` until `deadline`, in milliseconds since the Unix epoch.
    pub fn insert_expiring(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        deadline: u64,
    ) -> Result<()> {
        self.put(keyspace, key.as_ref(), value.as_ref(), Some(deadline))
    }

    /// Sets `key` to `value` without a deadline, also where the keyspace has a time to live.
    pub fn insert_lasting(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<()> {
        self.put(keyspace, key.as_ref(), value.as_ref(), None)
    }

    /// Has the keyspace's merge operator change the value of `key` by `operand`, as [`Keyspace::merge`]
    /// does. It is a blind write: the value is not read, so an optimistic transaction does not
    /// conflict over it with others that merge or write, unless it reads the key as well.
    ///
    /// # Errors
    /// As [`Transaction::insert`]; also if the keyspace has no merge operator, or it refuses the
    /// operand.
    pub fn merge(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        operand: impl AsRef<[u8]>,
    ) -> Result<()> {
        let deadline = keyspace.window_deadline().unwrap_or(0);
        self.merge_until(keyspace, key.as_ref(), operand.as_ref(), deadline)
    }

    /// As [`merge`](Self::merge), with an operand that counts until `deadline`, in milliseconds since
    /// the Unix epoch.
    pub fn merge_expiring(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        operand: impl AsRef<[u8]>,
        deadline: u64,
    ) -> Result<()> {
        // Zero stands for no deadline in what is stored.
        self.merge_until(keyspace, key.as_ref(), operand.as_ref(), deadline.max(1))
    }

    fn merge_until(
        &mut self,
        keyspace: &Keyspace,
        key: &[u8],
        operand: &[u8],
        deadline: u64,
    ) -> Result<()> {
        self.check(keyspace)?;
        merge::check_operand(&keyspace.about, operand)?;
        let user_key = user_key(keyspace.id(), key);
        Arc::make_mut(&mut self.own).merge(&self.db.store, user_key, operand, deadline)
    }

    /// Removes `key`.
    pub fn remove(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<()> {
        self.check(keyspace)?;
        let user_key = user_key(keyspace.id(), key.as_ref());
        Arc::make_mut(&mut self.own).remove(&self.db.store, user_key)
    }

    /// Removes every key of `range`, at a cost independent of their number.
    pub fn remove_range<K: AsRef<[u8]>>(
        &mut self,
        keyspace: &Keyspace,
        range: impl RangeBounds<K>,
    ) -> Result<()> {
        self.check(keyspace)?;
        let bounds = bounds_of(keyspace.id(), &range);
        Arc::make_mut(&mut self.own).remove_range(&self.db.store, &bounds)
    }

    /// Removes every key of `keyspace`, at a cost independent of their number.
    pub fn clear(&mut self, keyspace: &Keyspace) -> Result<()> {
        self.remove_range::<&[u8]>(keyspace, ..)
    }

    fn put(
        &mut self,
        keyspace: &Keyspace,
        key: &[u8],
        value: &[u8],
        deadline: Option<u64>,
    ) -> Result<()> {
        self.check(keyspace)?;
        let user_key = user_key(keyspace.id(), key);
        Arc::make_mut(&mut self.own).put(&self.db.store, user_key, value, deadline)
    }

    /// Refuses keyspaces that are gone or of another database.
    fn check(&self, keyspace: &Keyspace) -> Result<()> {
        if !Arc::ptr_eq(&keyspace.db, &self.db) {
            return Err(Error::InvalidInput(format!(
                "keyspace '{}' is of another database than the transaction",
                keyspace.name()
            )));
        }
        self.db.check_open()?;
        keyspace.check_alive()
    }

    // ---- savepoints ----

    /// Sets a savepoint. They nest.
    pub fn savepoint(&mut self) -> Savepoint {
        let number = self.db.transactions.draw();
        Arc::make_mut(&mut self.own).set_savepoint(number);
        Savepoint { transaction: self.number, number }
    }

    /// Takes back every write since `savepoint`, which stays; savepoints set since are gone. What
    /// was read since is still validated: the program has seen it.
    ///
    /// # Errors
    /// `InvalidInput`: the savepoint is gone, or of another transaction.
    pub fn rollback_to(&mut self, savepoint: &Savepoint) -> Result<()> {
        let known = savepoint.transaction == self.number
            && Arc::make_mut(&mut self.own).roll_back_to(savepoint.number);
        if known { Ok(()) } else { Err(no_savepoint()) }
    }

    /// Forgets `savepoint` and those set since. The writes stay.
    ///
    /// # Errors
    /// `InvalidInput`: the savepoint is gone, or of another transaction.
    pub fn release(&mut self, savepoint: Savepoint) -> Result<()> {
        let known = savepoint.transaction == self.number
            && Arc::make_mut(&mut self.own).release(savepoint.number);
        if known { Ok(()) } else { Err(no_savepoint()) }
    }

    /// Gives up all writes. The same as dropping the transaction, where that should be seen.
    pub fn rollback(self) {}
}

fn no_savepoint() -> Error {
    Error::InvalidInput("the savepoint is of another transaction, or gone".to_owned())
}

impl<M: Mode> fmt::Debug for Transaction<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transaction({}, as of {})", self.number, self.snapshot.seqno())
    }
}

// ---- the end ----

impl WriteTransaction {
    /// Writes everything as one batch.
    ///
    /// # Errors
    /// Those of [`Database::write`].
    pub fn commit(self, options: WriteOptions) -> Result<()> {
        block_on(self.commit_async(options))
    }

    /// Async twin of [`WriteTransaction::commit`]. Dropping the future does not take the commit
    /// back.
    pub async fn commit_async(self, options: WriteOptions) -> Result<()> {
        let committed = self.db.write_now(self.own.to_batch(), options, None).await;
        drop(self.mode);
        committed
    }
}

impl OptimisticTransaction {
    /// Reads `key` as [`Transaction::get`] does, for a transaction that is going to write it or that
    /// must not commit if others do, even if it writes nothing itself. Answers the conflict at once
    /// if the key was changed already.
    ///
    /// Of reads alone a transaction needs no validation: they are true as of its snapshot.
    pub fn get_for_update(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<Slice>> {
        block_on(self.get_for_update_async(keyspace, key))
    }

    /// Async twin of [`OptimisticTransaction::get_for_update`].
    pub async fn get_for_update_async(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<Slice>> {
        self.check(keyspace)?;
        check_key(key.as_ref())?;
        let user_key = user_key(keyspace.id(), key.as_ref());
        self.for_update = true;
        let mut alone = Reads::new(usize::MAX);
        alone.key(&user_key);
        if let Some(reads) = &self.reads {
            // Also where the transaction has written it: it must be nobody else's.
            reads.lock().key(&user_key);
        }
        let changed = ask_tree(&self.db.store, &alone.take(), self.snapshot.seqno()).await;
        self.doomed |= matches!(changed, Err(Error::Conflict(_)));
        changed?;
        self.get_async(keyspace, key).await
    }

    /// Writes everything as one batch, if nothing that was read was changed meanwhile.
    ///
    /// # Errors
    /// `Conflict`: nothing was written; run the transaction again, from its reads on. Otherwise
    /// those of [`Database::write`].
    pub fn commit(self, options: WriteOptions) -> Result<()> {
        block_on(self.commit_async(options))
    }

    /// Async twin of [`OptimisticTransaction::commit`]. If the future is dropped, the transaction is
    /// committed or not.
    pub async fn commit_async(self, options: WriteOptions) -> Result<()> {
        if self.doomed {
            let what = "a key that was read for update was changed before".to_owned();
            return Err(Error::Conflict(what));
        }
        let db = &self.db;
        let reads = self.reads.as_ref().map(|reads| reads.lock().take()).unwrap_or_default();
        let mut checked = self.snapshot.seqno();
        if self.own.is_empty() {
            // True as of the snapshot, and for update as of now.
            return if self.for_update {
                ask_tree(&db.store, &reads, checked).await
            } else {
                Ok(())
            };
        }
        let _pass = db.transactions.turnstile.pass().await?;
        let mut condition = Condition { reads, since: checked, overtaken: AtomicBool::new(false) };
        for _ in 0..ROUNDS {
            let since = db.store.committing.begin(|| db.store.visible());
            if since.seqno() > checked {
                ask_tree(&db.store, &condition.reads, checked).await?;
            }
            checked = since.seqno();
            condition.since = checked;
            let shared = Arc::new(condition);
            let batch = self.own.to_batch();
            match db.write_now(batch, options, Some(shared.clone())).await {
                Err(Error::Conflict(_)) if shared.overtaken.load(Ordering::Acquire) => {}
                answer => return answer,
            }
            condition = again(&shared, checked);
        }
        Err(Error::Conflict("writers were faster than its validation, each time".to_owned()))
    }
}

/// Returns the condition for another round.
fn again(condition: &Condition, since: SeqNo) -> Condition {
    let reads = condition.reads.clone();
    Condition { reads, since, overtaken: AtomicBool::new(false) }
}
