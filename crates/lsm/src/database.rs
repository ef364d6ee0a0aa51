//! The database: keyspaces by name, snapshots, closing.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_env::{Env, block_on, os};

use crate::background::Background;
use crate::batch::Batch;
use crate::commit::{self, Work};
use crate::compaction::filter::CompactionFilter;
use crate::error::{Error, Result};
use crate::events::EventListener;
use crate::identity::Kind;
use crate::key::SeqNo;
use crate::keyspace::{
    About, CATALOG, Keyspace, Keyspaces, LAST_ID, check_name, decode_about, encode_about,
    encode_last_id,
};
use crate::merge::MergeOperator;
use crate::opening;
use crate::options::{
    Durability, FilterPolicy, KeyspaceOptions, Options, PoolStrategy, WriteOptions,
};
use crate::pacer::nanos_per_byte;
use crate::range::Cursor;
use crate::read::Record;
use crate::slice::Slice;
use crate::stats::{LevelStats, Stats};
use crate::store::{Chore, Gate, Store};
use crate::transaction::Transactions;
use crate::transaction::validation::Condition;
use crate::view::View;

/// An open database. Cheap to clone; the last clone (keyspaces and snapshots count) closes it.
///
/// ```
/// # fn main() -> atoll_lsm::Result<()> {
/// # let dir = tempfile::tempdir().expect("a temporary directory");
/// # let path = dir.path().join("db");
/// use atoll_lsm::{Batch, Database, KeyspaceOptions, WriteOptions};
///
/// let db = Database::builder(&path).memory(64 << 20).open()?;
/// let users = db.keyspace("users", KeyspaceOptions::default())?;
/// users.insert("ada", "1815")?;                            // on stable storage when it returns
/// assert_eq!(users.get("ada")?.as_deref(), Some(&b"1815"[..]));
///
/// let mut batch = Batch::new();                            // all or nothing, across keyspaces
/// batch.insert(&users, b"alan", b"1912").remove(&users, b"ada");
/// db.write(batch, WriteOptions::default())?;
///
/// let names: Vec<_> = users.iter().map(|guard| Ok(guard?.key().to_vec()))
///     .collect::<atoll_lsm::Result<_>>()?;
/// assert_eq!(names, [b"alan"]);
/// # db.close()
/// # }
/// ```
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

/// What database, keyspaces and snapshots share.
pub(crate) struct Inner {
    pub(crate) store: Arc<Store>,
    pub(crate) keyspaces: Arc<Keyspaces>,
    pub(crate) background: Arc<Background>,
    /// Held while keyspaces are created or dropped, so that names and records agree.
    naming: Gate<()>,
    pub(crate) transactions: Transactions,
    /// Whether dropping the last handle may wait for background work on the calling thread.
    may_wait: bool,
}

/// How to open a database.
pub struct Builder {
    path: PathBuf,
    options: Result<Options>,
}

impl Builder {
    /// Replaces all options, the world to run in included.
    pub fn options(mut self, options: Options) -> Builder {
        self.options = Ok(options);
        self
    }

    /// Sets the memory budget, in bytes: memtables and block cache together.
    pub fn memory(self, bytes: usize) -> Builder {
        self.change(|options| options.memory = bytes)
    }

    /// Sets where the block cache has its memory.
    pub fn pool(self, strategy: PoolStrategy) -> Builder {
        self.change(|options| options.pool = strategy)
    }

    /// Sets the durability of writes that name none. The default is [`Durability::Synced`].
    pub fn durability(self, durability: Durability) -> Builder {
        self.change(|options| options.durability = durability)
    }

    /// Sets which kinds of filters tables get.
    pub fn filter_policy(self, policy: FilterPolicy) -> Builder {
        self.change(|options| options.filter_policy = policy)
    }

    /// Tells `listener` what goes on in the background.
    pub fn listener(self, listener: Arc<dyn EventListener>) -> Builder {
        self.change(|options| options.listener = Some(listener))
    }

    /// Sets whether writers are slowed down in time, see [`Options::pacing`].
    pub fn pacing(self, pacing: bool) -> Builder {
        self.change(|options| options.pacing = pacing)
    }

    /// Registers an operator for the keyspaces that name it. The ready-made ones
    /// ([`Add`](crate::Add), [`Max`](crate::Max), [`Append`](crate::Append)) need none.
    pub fn merge_operator(self, operator: impl MergeOperator) -> Builder {
        self.change(|options| options.merge_operators.push(Arc::new(operator)))
    }

    /// Has `filter` decide over the values of the keyspace of that name when they are compacted.
    pub fn compaction_filter(self, keyspace: &str, filter: impl CompactionFilter) -> Builder {
        let keyspace = keyspace.to_owned();
        self.change(|options| options.compaction_filters.push((keyspace, Arc::new(filter))))
    }

    fn change(mut self, change: impl FnOnce(&mut Options)) -> Builder {
        if let Ok(options) = &mut self.options {
            change(options);
        }
        self
    }

    /// Opens the database, making it if the directory is missing or empty.
    ///
    /// # Errors
    /// `Locked` if somebody has it open, `Foreign` if the directory is not one of ours or newer,
    /// `Corruption` if stored bytes do not verify: nothing is changed then.
    pub fn open(self) -> Result<Database> {
        let options = self.options?;
        block_on(Database::open(self.path, options, true))
    }

    /// Async twin of [`Builder::open`]. Close such a database with [`Database::close_async`]:
    /// dropping it does not wait for background work.
    pub async fn open_async(self) -> Result<Database> {
        Database::open(self.path, self.options?, false).await
    }
}

impl Database {
    /// Starts describing how to open the database in the directory `path`.
    pub fn builder(path: impl AsRef<Path>) -> Builder {
        let env =
            os::env().map_err(|e| Error::io("reaching the operating system for", path.as_ref(), e));
        Builder { path: path.as_ref().to_owned(), options: env.map(Options::new) }
    }

    async fn open(path: PathBuf, options: Options, may_wait: bool) -> Result<Database> {
        let opened = opening::open(path, options, Kind::Database).await?;
        let store = opened.store;
        let keyspaces = Arc::new(opening::read_keyspaces(&store).await?);
        let background = Background::start(store.clone(), keyspaces.clone(), opened.next_file);
        let (naming, transactions) = (Gate::new(()), Transactions::default());
        let inner = Inner { store, keyspaces, background, naming, transactions, may_wait };
        let replayed = match opened.rest {
            None => Ok(()),
            Some(rest) => opening::replay(&inner.store, &inner.keyspaces, rest).await,
        };
        if let Err(e) = replayed {
            inner.shut_down().await;
            return Err(e);
        }
        Ok(Database { inner: Arc::new(inner) })
    }

    // ---- keyspaces ----

    /// Returns the keyspace of that name, creating it with `options` if there is none. The options
    /// of an existing one stay as they are.
    pub fn keyspace(&self, name: &str, options: KeyspaceOptions) -> Result<Keyspace> {
        block_on(self.keyspace_async(name, options))
    }

    /// Async twin of [`Database::keyspace`].
    pub async fn keyspace_async(&self, name: &str, options: KeyspaceOptions) -> Result<Keyspace> {
        check_name(name)?;
        let inner = &self.inner;
        if let Some(found) = self.find_keyspace(name) {
            return Ok(found);
        }
        let _naming = inner.naming.enter().await;
        if let Some(found) = self.find_keyspace(name) {
            return Ok(found);
        }
        inner.keyspaces.check_options(&options)?;
        let id = inner.keyspaces.draw_id()?;
        let record = encode_about(id, &options);
        let mut batch = Batch::new();
        batch.insert_raw(CATALOG, name.as_bytes(), &record, None);
        // A transaction that is alone may make one, and nobody has read it.
        inner.write_now(batch, WriteOptions::default(), None).await?;
        let about = decode_about(name.as_bytes(), &record)
            .map_err(|e| Error::Stopped(format!("a keyspace record does not decode: {e}")))?;
        Ok(Keyspace { db: inner.clone(), about: inner.keyspaces.add(about) })
    }

    /// Returns the keyspace of that name, if there is one.
    pub fn find_keyspace(&self, name: &str) -> Option<Keyspace> {
        let about = self.inner.keyspaces.find(name)?;
        Some(Keyspace { db: self.inner.clone(), about })
    }

    /// Returns the names of all keyspaces, sorted.
    pub fn keyspaces(&self) -> Vec<String> {
        self.inner.keyspaces.names()
    }

    /// Drops the keyspace of that name and those nested in it (`name/...`), with all their keys,
    /// at a cost independent of the number of keys.
    pub fn drop_keyspace(&self, name: &str) -> Result<()> {
        block_on(self.drop_keyspace_async(name))
    }

    /// Async twin of [`Database::drop_keyspace`].
    pub async fn drop_keyspace_async(&self, name: &str) -> Result<()> {
        let inner = &self.inner;
        // In this order: a transaction that is alone may want to make a keyspace.
        let _pass = inner.transactions.turnstile.pass().await?;
        let _naming = inner.naming.enter().await;
        let family = inner.keyspaces.family(name);
        if family.is_empty() {
            return Err(Error::InvalidInput(format!("there is no keyspace '{name}' to drop")));
        }
        let mut batch = Batch::new();
        // A batch made before may still be written after: its keys must not show in a later keyspace.
        let last = inner.keyspaces.last_id();
        batch.insert_raw(CATALOG, LAST_ID, &encode_last_id(last), None);
        for about in &family {
            batch.remove_raw(CATALOG, about.name.as_bytes());
            batch.clear_raw(about.id);
        }
        // The batch is written even if nobody waits for it any more: then, too, the names must not
        // be used again.
        let mut forgetting = Forgetting { keyspaces: &inner.keyspaces, family };
        let written = inner.write_now(batch, WriteOptions::default(), None).await;
        if written.is_err() {
            forgetting.family.clear();
        }
        written
    }

    // ---- writes and reads across keyspaces ----

    /// Writes a batch: all of it or nothing.
    pub fn write(&self, batch: Batch, options: WriteOptions) -> Result<()> {
        block_on(self.write_async(batch, options))
    }

    /// Async twin of [`Database::write`]. Dropping the future does not take the write back.
    pub async fn write_async(&self, batch: Batch, options: WriteOptions) -> Result<()> {
        self.inner.write(batch, options).await
    }

    /// Returns a view of the present that later writes do not change.
    pub fn snapshot(&self) -> Snapshot {
        self.inner.snapshot()
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Makes every earlier write durable, in whatever mode it was written.
    pub fn sync(&self) -> Result<()> {
        block_on(self.sync_async())
    }

    /// Async twin of [`Database::sync`].
    pub async fn sync_async(&self) -> Result<()> {
        commit::submit(&self.inner.store, Work::Sync).await
    }

    // ---- care ----

    /// Writes what is in memory into tables and waits for it.
    pub fn flush(&self) -> Result<()> {
        block_on(self.flush_async())
    }

    /// Async twin of [`Database::flush`].
    pub async fn flush_async(&self) -> Result<()> {
        self.inner.background.flush_all().await
    }

    /// Merges all tables into the last level, which drops all dead records, and waits for it.
    pub fn compact(&self) -> Result<()> {
        block_on(self.compact_async())
    }

    /// Async twin of [`Database::compact`].
    pub async fn compact_async(&self) -> Result<()> {
        self.inner.background.compact_all().await
    }

    /// Returns counters, sizes and latencies.
    pub fn stats(&self) -> Stats {
        self.inner.store.gather_stats()
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        self.inner.check_open()
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.inner.store
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        &self.inner.store.paths.root
    }

    /// Returns the environment the database runs in.
    pub fn env(&self) -> &Env {
        &self.inner.store.options.env
    }

    /// Flushes, ends background work and releases the directory, whatever handles remain: they
    /// answer `Stopped`.
    pub fn close(self) -> Result<()> {
        block_on(self.close_async())
    }

    /// Async twin of [`Database::close`].
    pub async fn close_async(self) -> Result<()> {
        let inner = &self.inner;
        let flushed = inner.background.flush_all().await;
        inner.shut_down().await;
        match flushed {
            // The log has what could not be flushed.
            Err(Error::NoSpace(_)) => Ok(()),
            other => other,
        }
    }
}

/// Forgets dropped keyspaces when it is dropped itself, and so also when a future is.
struct Forgetting<'k> {
    keyspaces: &'k Keyspaces,
    family: Vec<Arc<About>>,
}

impl Drop for Forgetting<'_> {
    fn drop(&mut self) {
        self.family.iter().for_each(|about| self.keyspaces.forget(about));
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database({})", self.path().display())
    }
}

impl Inner {
    /// Returns a view of the present.
    pub(crate) fn snapshot(self: &Arc<Self>) -> Snapshot {
        let (seqno, view) = self.store.open_snapshot();
        Snapshot { held: Arc::new(HeldSnapshot { db: self.clone(), seqno, view }) }
    }

    /// Writes a batch when no transaction is alone.
    pub(crate) async fn write(&self, batch: Batch, options: WriteOptions) -> Result<()> {
        let _pass = self.transactions.turnstile.pass().await?;
        self.write_now(batch, options, None).await
    }

    /// Writes a batch, for somebody who has a pass or is alone; if the condition holds.
    pub(crate) async fn write_now(
        &self,
        batch: Batch,
        options: WriteOptions,
        condition: Option<Arc<Condition>>,
    ) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let payload = batch.into_payload()?;
        self.store.check_size(&payload)?;
        self.check_open()?;
        if let Some(stopped) = self.store.stopped() {
            return Err(stopped);
        }
        let durability = options.durability.unwrap_or(self.store.options.durability);
        let _timer = self.store.stats.commit(self.store.clock());
        commit::submit(&self.store, Work::Write { payload, durability, condition }).await
    }

    /// Refuses calls after [`Database::close`].
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.store.is_closed() {
            return Err(closed());
        }
        Ok(())
    }

    async fn shut_down(&self) {
        self.transactions.turnstile.close();
        // The log is synced whatever the mode was: an orderly end loses nothing to a power cut.
        let _ = commit::submit(&self.store, Work::Sync).await;
        self.store.begin_shutdown();
        self.background.ended().await;
        // Whoever is still in the queue is answered before the directory is another's.
        let _ = commit::submit(&self.store, Work::End).await;
        self.store.unlock().await;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.may_wait && !self.store.is_closed() {
            block_on(self.shut_down());
        } else {
            self.store.begin_shutdown();
        }
    }
}

/// The answer to calls after the end.
pub(crate) fn closed() -> Error {
    Error::Stopped("the database was closed".to_owned())
}

/// A view of one moment. Cheap to clone; keeps what it sees from being compacted away, so drop it
/// when you are done.
#[derive(Clone)]
pub struct Snapshot {
    held: Arc<HeldSnapshot>,
}

struct HeldSnapshot {
    db: Arc<Inner>,
    seqno: SeqNo,
    /// The sources it reads, if later ones may not hold what it sees.
    view: Option<Arc<View>>,
}

impl HeldSnapshot {
    /// Returns the sources to read from.
    fn view(&self) -> Arc<View> {
        self.view.clone().unwrap_or_else(|| self.db.store.pin_owned().0)
    }
}

impl Drop for HeldSnapshot {
    fn drop(&mut self) {
        self.db.store.close_snapshot(self.seqno);
    }
}

impl Snapshot {
    pub(crate) fn seqno(&self) -> SeqNo {
        self.held.seqno
    }

    /// Returns the sources to read from.
    pub(crate) fn view(&self) -> Arc<View> {
        self.held.view()
    }

    /// Returns the value of `key` at that moment.
    pub fn get(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        block_on(self.get_async(keyspace, key))
    }

    /// Async twin of [`Snapshot::get`].
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

    /// Async twin of [`Snapshot::record`].
    pub async fn record_async(
        &self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<Record>> {
        let view = self.held.view();
        self.held.db.read(&view, keyspace.id(), key.as_ref(), self.held.seqno).await
    }

    /// Returns the values of several keys at that moment, in the order asked.
    pub fn multi_get<K: AsRef<[u8]>>(
        &self,
        keyspace: &Keyspace,
        keys: &[K],
    ) -> Result<Vec<Option<Slice>>> {
        block_on(self.multi_get_async(keyspace, keys))
    }

    /// Async twin of [`Snapshot::multi_get`].
    pub async fn multi_get_async<K: AsRef<[u8]>>(
        &self,
        keyspace: &Keyspace,
        keys: &[K],
    ) -> Result<Vec<Option<Slice>>> {
        let view = self.held.view();
        self.held.db.read_many(&view, keyspace.id(), keys, self.held.seqno).await
    }

    /// Iterates over the keys of `range` at that moment.
    pub fn range<K: AsRef<[u8]>>(
        &self,
        keyspace: &Keyspace,
        range: impl std::ops::RangeBounds<K>,
    ) -> crate::range::Range {
        crate::range::Range::new(self.cursor(keyspace, range))
    }

    /// Async twin of [`Snapshot::range`].
    pub fn cursor<K: AsRef<[u8]>>(
        &self,
        keyspace: &Keyspace,
        range: impl std::ops::RangeBounds<K>,
    ) -> Cursor {
        let bounds = crate::keyspace::bounds_of(keyspace.id(), &range);
        let view = self.held.view();
        Cursor::new(keyspace.clone(), bounds, None, (view, self.held.seqno))
    }

    /// Iterates over the keys that begin with `prefix` at that moment.
    pub fn prefix(&self, keyspace: &Keyspace, prefix: impl AsRef<[u8]>) -> crate::range::Range {
        crate::range::Range::new(self.prefix_cursor(keyspace, prefix))
    }

    /// Async twin of [`Snapshot::prefix`].
    pub fn prefix_cursor(&self, keyspace: &Keyspace, prefix: impl AsRef<[u8]>) -> Cursor {
        let (bounds, filter) = keyspace.prefix_bounds(prefix.as_ref());
        let view = self.held.view();
        Cursor::new(keyspace.clone(), bounds, filter, (view, self.held.seqno))
    }
}

// ---- opening ----

impl Store {
    /// Pins what is visible now, for longer than a call.
    pub(crate) fn pin_owned(&self) -> (Arc<View>, SeqNo) {
        let (view, snapshot) = self.pin();
        (Arc::clone(&view), snapshot)
    }

    pub(crate) fn gather_stats(&self) -> Stats {
        let (view, _) = self.pin();
        let mut stats = self.stats.snapshot();
        stats.memtable_bytes = self.governor.bytes() as u64;
        stats.sealed_memtables = self.sealed.lock().len();
        stats.snapshots = self.live_snapshots().len() - 1;
        for file in &view.version.values {
            stats.value_files += 1;
            stats.value_file_bytes += file.handle.desc.size;
            stats.value_live_bytes += file.live;
        }
        for (level, handle) in view.version.tables() {
            let of = &mut stats.levels[level];
            *of = LevelStats {
                tables: of.tables + 1,
                bytes: of.bytes + handle.desc.size,
                entries: of.entries + handle.desc.entries,
                tombstones: of.tombstones + handle.desc.tombstones,
            };
            stats.quarantined += usize::from(handle.is_quarantined());
        }
        let pressure = self.pacing.pressure();
        stats.compaction_debt = pressure.debt as u64;
        stats.pressure = pressure.of;
        stats.delay_nanos = (nanos_per_byte(pressure.of) * 1024.0) as u64;
        stats.delay_reason = (stats.delay_nanos > 0).then(|| pressure.reason.name());
        stats.cache = self.tables.pool().stats();
        stats.pool = self.tables.pool().placement();
        stats.records = self.tables.records().stats();
        stats.refusal = self.refusal().map(|e| e.to_string());
        let failure = self.failure(Chore::Flush).or(self.failure(Chore::Compaction));
        stats.background_failure =
            failure.map(|e| e.to_string()).or_else(|| stats.callback_failure.clone());
        stats
    }
}
