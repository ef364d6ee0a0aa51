//! A database that is open: opening, keyspaces, single steps, the retry helper, closing.
//!
//! ```text
//!   open:   lock the directory -> cores open their stores -> all shards serve -> clients may ask
//!   close:  no new transactions -> what was begun ends -> stores are closed -> the lock is given back
//! ```

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use atoll_env::sync::{Either, select_biased};
use atoll_env::{Env, block_on, os};
use atoll_keyspaces::{
    Action, Batch, Client, Done, Error, Expiry, Hall, Info, Isolation, KeyRange, Keyspace, Mute,
    Options, Outcome, Result, Unknown, ids,
};
use atoll_kv::{Core, Node, NodeOptions};
use atoll_lsm::{Durability, Error as OpenError};
use event_listener::Event;

use crate::transaction::Transaction;

/// Most stores of a directory, and so most cores that can share them.
const STORES_MAX: usize = 64;
/// Between two looks for the space of dropped keyspaces.
const RECLAIM: Duration = Duration::from_secs(10);
/// How often the retry helper runs a transaction, and its first and longest wait.
const ATTEMPTS: u32 = 32;
const WAIT_FIRST: Duration = Duration::from_millis(1);
const WAIT_MOST: Duration = Duration::from_millis(200);
/// Keyspaces listed at a time.
const NAMES: usize = 1_000;

/// How to open a database.
pub struct Builder {
    path: PathBuf,
    env: std::result::Result<Env, OpenError>,
    cores: usize,
    stores: Option<u16>,
    memory: Option<usize>,
    durability: Durability,
}

impl Builder {
    /// Sets how many threads serve. The default is half of the processors; a directory cannot use
    /// more than it has stores.
    pub fn cores(mut self, cores: usize) -> Builder {
        self.cores = cores;
        self
    }

    /// Sets how many stores a new directory gets, a power of two. The default is the cores. It is
    /// fixed when the directory is made.
    pub fn stores(mut self, stores: u16) -> Builder {
        self.stores = Some(stores);
        self
    }

    /// Sets everything that the stores may hold in memory together, in bytes: memtables and block
    /// cache. The default is 256 MiB.
    pub fn memory(mut self, bytes: usize) -> Builder {
        self.memory = Some(bytes);
        self
    }

    /// Sets when commits are answered. The default is [`Durability::Synced`]. What spans stores is
    /// always synced: of a part of it that a power cut takes, the other part would stay.
    pub fn durability(mut self, durability: Durability) -> Builder {
        self.durability = durability;
        self
    }

    /// Sets the world to run in.
    pub fn env(mut self, env: Env) -> Builder {
        self.env = Ok(env);
        self
    }

    /// Opens the database, making it if the directory is missing or empty.
    ///
    /// # Errors
    /// `Locked` if somebody has it open, a server or another process; `Foreign` if the directory is
    /// not one of ours or newer; `Corruption` if stored bytes do not verify.
    pub fn open(self) -> std::result::Result<Database, OpenError> {
        block_on(self.open_with(true))
    }

    /// Async twin of [`Builder::open`]. Close such a database with [`Database::close_async`]:
    /// dropping it does not wait for the end of its cores.
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub async fn open_async(self) -> std::result::Result<Database, OpenError> {
        self.open_with(false).await
    }

    async fn open_with(self, may_wait: bool) -> std::result::Result<Database, OpenError> {
        let wrong = |what: String| Err(OpenError::InvalidInput(what));
        if !(1..=STORES_MAX).contains(&self.cores) {
            return wrong(format!("cores must be from 1 to {STORES_MAX}, not {}", self.cores));
        }
        let fitting = || u16::try_from(self.cores.next_power_of_two()).unwrap_or(1);
        let stores = self.stores.unwrap_or_else(fitting);
        if !stores.is_power_of_two() || usize::from(stores) > STORES_MAX {
            return wrong(format!(
                "stores must be a power of two up to {STORES_MAX}, not {stores}"
            ));
        }
        let env = self.env?;
        let mut options = NodeOptions::new(env.clone(), self.path);
        options.cores = self.cores;
        options.stores = stores;
        options.shards = stores.max(2);
        options.engine.durability = self.durability;
        if let Some(memory) = self.memory {
            options.memory = memory;
        }
        Database::start(env, options, may_wait).await
    }
}

/// An open database. Cheap to clone; the last clone closes it.
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

struct Inner {
    env: Env,
    path: PathBuf,
    client: Client,
    node: Node<Mute>,
    house: Arc<House>,
    /// Whether dropping the last clone may wait for the end on the calling thread.
    may_wait: bool,
}

/// What the cores and the handle share.
#[derive(Default)]
struct House {
    hall: Hall,
    ready: AtomicUsize,
    stopping: AtomicBool,
    changed: Event,
}

impl House {
    fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.changed.notify(usize::MAX);
    }

    async fn stopped(&self) {
        loop {
            let changed = self.changed.listen();
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            changed.await;
        }
    }
}

/// What a core does once its shards serve, to the end.
async fn serve(core: Core<Mute>, house: Arc<House>) {
    let door = house.hall.open(&core);
    if core.index() == 0 {
        core.env().tasks.spawn_local("reclaim", Box::pin(reclaim(core.clone())));
    }
    house.ready.fetch_add(1, Ordering::AcqRel);
    house.changed.notify(usize::MAX);
    house.stopped().await;
    door.close().await;
}

/// Gives back the space of dropped keyspaces, for as long as the core lives.
async fn reclaim(core: Core<Mute>) {
    loop {
        core.env().clock.sleep(RECLAIM).await;
        // What fails now is tried again the next time.
        let _ = ids::reclaim(&core).await;
    }
}

impl Database {
    /// Opens the database in a directory, making it if there is none, with the defaults.
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub fn open(path: impl AsRef<Path>) -> std::result::Result<Database, OpenError> {
        Database::builder(path).open()
    }

    /// Async twin of [`Database::open`].
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub async fn open_async(path: impl AsRef<Path>) -> std::result::Result<Database, OpenError> {
        Database::builder(path).open_async().await
    }

    /// Starts describing how to open the database in a directory.
    pub fn builder(path: impl AsRef<Path>) -> Builder {
        let path = path.as_ref().to_owned();
        let env =
            os::env().map_err(|e| OpenError::io("reaching the operating system for", &path, e));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Builder {
            path,
            env,
            cores: (processors / 2).clamp(1, STORES_MAX),
            stores: None,
            memory: None,
            durability: Durability::default(),
        }
    }

    async fn start(
        env: Env,
        options: NodeOptions,
        may_wait: bool,
    ) -> std::result::Result<Database, OpenError> {
        let house: Arc<House> = Arc::default();
        let path = options.path.clone();
        let rooms = house.clone();
        let main = move |core| -> std::pin::Pin<Box<dyn Future<Output = ()>>> {
            Box::pin(serve(core, rooms.clone()))
        };
        let node = Node::start(options, |_| Mute, main).await?;
        {
            let mut ended = pin!(node.wait());
            loop {
                let changed = house.changed.listen();
                if house.ready.load(Ordering::Acquire) >= node.cores() {
                    break;
                }
                if let Either::Left(ended) = select_biased(ended.as_mut(), changed).await {
                    ended?;
                    return Err(OpenError::Stopped("its cores ended at once".to_owned()));
                }
            }
        }
        let client = house.hall.client();
        Ok(Database { inner: Arc::new(Inner { env, path, client, node, house, may_wait }) })
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    fn client(&self) -> &Client {
        &self.inner.client
    }

    // ---- keyspaces ----

    /// Creates a keyspace, or finds it with the same options.
    ///
    /// # Errors
    /// The name cannot be, or is taken by one with other options; see [`Error`].
    pub fn create_keyspace(&self, name: &str, options: Options) -> Result<Keyspace> {
        block_on(self.create_keyspace_async(name, options))
    }

    /// Async twin of [`Database::create_keyspace`].
    ///
    /// # Errors
    /// As its twin.
    pub async fn create_keyspace_async(&self, name: &str, options: Options) -> Result<Keyspace> {
        Ok(self.client().create_keyspace(name, options).await?.0)
    }

    /// Returns the keyspace of a name.
    ///
    /// # Errors
    /// There is none; see [`Error`].
    pub fn keyspace(&self, name: &str) -> Result<Keyspace> {
        block_on(self.keyspace_async(name))
    }

    /// Async twin of [`Database::keyspace`].
    ///
    /// # Errors
    /// As its twin.
    pub async fn keyspace_async(&self, name: &str) -> Result<Keyspace> {
        self.client().keyspace(name).await
    }

    /// Returns all keyspaces, by name.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn keyspaces(&self) -> Result<Vec<Info>> {
        block_on(self.keyspaces_async())
    }

    /// Async twin of [`Database::keyspaces`].
    ///
    /// # Errors
    /// As its twin.
    pub async fn keyspaces_async(&self) -> Result<Vec<Info>> {
        let mut all: Vec<Info> = Vec::new();
        let mut rest = KeyRange::all();
        loop {
            let (infos, more) = self.client().keyspaces(rest.clone(), NAMES).await?;
            all.extend(infos);
            match all.last() {
                Some(last) if more => rest = rest.rest(last.name.as_bytes(), false),
                _ => return Ok(all),
            }
        }
    }

    /// Drops the keyspace of a name and those below it (`name/...`), with all their keys, at a cost
    /// independent of the number of keys. Returns the names. Open transactions that used one of them
    /// fail.
    ///
    /// # Errors
    /// There is none; see [`Error`].
    pub fn drop_keyspace(&self, name: &str) -> Result<Vec<String>> {
        block_on(self.drop_keyspace_async(name))
    }

    /// Async twin of [`Database::drop_keyspace`].
    ///
    /// # Errors
    /// As its twin.
    pub async fn drop_keyspace_async(&self, name: &str) -> Result<Vec<String>> {
        self.client().drop_keyspace(name).await
    }

    /// Counts the keys of a keyspace, at a cost independent of their number.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn count(&self, keyspace: &Keyspace) -> Result<u64> {
        block_on(self.count_async(keyspace))
    }

    /// Async twin of [`Database::count`].
    ///
    /// # Errors
    /// As its twin.
    pub async fn count_async(&self, keyspace: &Keyspace) -> Result<u64> {
        self.client().count(keyspace).await
    }

    // ---- single steps ----

    /// Reads a key.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn get(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>> {
        block_on(self.get_async(keyspace, key))
    }

    /// Async twin of [`Database::get`].
    ///
    /// # Errors
    /// As its twin.
    pub async fn get_async(
        &self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<Vec<u8>>> {
        let (keyspace, key) = (keyspace.clone(), key.as_ref().to_vec());
        let outcome = self.step(Action::Get { keyspace, key }).await?;
        match outcome.results.into_iter().next() {
            Some(Done::Got(found)) => Ok(found.map(|found| found.value)),
            _ => Ok(None),
        }
    }

    /// Writes a value, as a transaction of its own.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn put(
        &self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<()> {
        block_on(self.put_async(keyspace, key, value))
    }

    /// Async twin of [`Database::put`].
    ///
    /// # Errors
    /// As its twin.
    pub async fn put_async(
        &self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<()> {
        let (key, value) = (key.as_ref().to_vec(), value.as_ref().to_vec());
        let (keyspace, expiry) = (keyspace.clone(), Expiry::Default);
        self.step(Action::Put { keyspace, key, value, expiry }).await?;
        Ok(())
    }

    /// Deletes a key, as a transaction of its own. Returns whether it had a value.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn delete(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<bool> {
        block_on(self.delete_async(keyspace, key))
    }

    /// Async twin of [`Database::delete`].
    ///
    /// # Errors
    /// As its twin.
    pub async fn delete_async(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<bool> {
        let (keyspace, key) = (keyspace.clone(), key.as_ref().to_vec());
        let outcome = self.step(Action::Delete { keyspace, key }).await?;
        Ok(matches!(outcome.results.first(), Some(Done::Deleted(true))))
    }

    async fn step(&self, action: Action) -> Result<Outcome> {
        self.batch_async(Batch { success: vec![action], ..Batch::default() }).await
    }

    /// Compares and writes in one serializable transaction, without a conversation: one message, and
    /// repeated by the database after a conflict.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn batch(&self, batch: Batch) -> Result<Outcome> {
        block_on(self.batch_async(batch))
    }

    /// Async twin of [`Database::batch`].
    ///
    /// # Errors
    /// As its twin.
    pub async fn batch_async(&self, batch: Batch) -> Result<Outcome> {
        self.client().batch(batch).await
    }

    // ---- transactions ----

    /// Begins a transaction. Nothing is asked of anybody before its first operation.
    pub fn begin(&self, isolation: Isolation) -> Transaction {
        Transaction::new(self.client().begin(isolation))
    }

    /// Runs a serializable transaction and commits it; again, after a growing wait, as long as
    /// another one was in the way. `body` may therefore run several times: it must not do anything
    /// that is to happen once, but by the transaction. If it returns an error, nothing is committed.
    ///
    /// # Errors
    /// Those of `body` and of the commit; the last conflict when all attempts are used up.
    pub fn transaction<T, E: From<Error>>(
        &self,
        body: impl FnMut(&mut Transaction) -> Result<T, E>,
    ) -> Result<T, E> {
        self.transaction_at(Isolation::Serializable, body)
    }

    /// As [`Database::transaction`], at a chosen isolation.
    ///
    /// # Errors
    /// As [`Database::transaction`].
    pub fn transaction_at<T, E: From<Error>>(
        &self,
        isolation: Isolation,
        mut body: impl FnMut(&mut Transaction) -> Result<T, E>,
    ) -> Result<T, E> {
        // The body blocks by itself; between attempts and at the commit this thread does.
        block_on(self.transaction_async(isolation, async |tx| body(tx)))
    }

    /// Async twin of [`Database::transaction_at`].
    ///
    /// # Errors
    /// As [`Database::transaction`].
    pub async fn transaction_async<T, E: From<Error>>(
        &self,
        isolation: Isolation,
        mut body: impl AsyncFnMut(&mut Transaction) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut wait = WAIT_FIRST;
        for attempt in 1.. {
            let mut tx = self.begin(isolation);
            let ended = match body(&mut tx).await {
                Ok(output) => tx.commit_async().await.map(|_| output),
                // What the body made of a conflict does not matter: the work can be done again.
                Err(error) => match tx.take_conflict() {
                    Some(conflict) => Err(conflict),
                    None => return Err(error),
                },
            };
            match ended {
                Err(error) if error.is_retryable() && attempt < ATTEMPTS => {
                    self.pause(wait).await;
                    wait = (wait * 2).min(WAIT_MOST);
                }
                ended => return ended.map_err(E::from),
            }
        }
        unreachable!("invariant: the last attempt returns")
    }

    /// Waits for between half of a time and the whole: those who met must not meet again.
    async fn pause(&self, most: Duration) {
        let env = &self.inner.env;
        let half = most / 2;
        let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
        env.clock.sleep(half + Duration::from_nanos(env.random.next_u64() % nanos)).await;
    }

    /// Asks again what became of a transaction that was left in doubt: the version of what it wrote,
    /// `None` if it did not commit and never will.
    ///
    /// # Errors
    /// Nobody can tell (any more).
    pub fn settle(&self, unknown: &Unknown) -> Result<Option<u64>> {
        block_on(self.settle_async(unknown))
    }

    /// Async twin of [`Database::settle`].
    ///
    /// # Errors
    /// As its twin.
    pub async fn settle_async(&self, unknown: &Unknown) -> Result<Option<u64>> {
        self.client().settle(unknown).await
    }

    // ---- the end ----

    /// Ends what was begun, closes the stores and releases the directory, whatever clones remain:
    /// they answer [`Error::Closed`].
    ///
    /// # Errors
    /// A store could not be closed in order. What was acknowledged is there.
    pub fn close(self) -> std::result::Result<(), OpenError> {
        block_on(self.close_async())
    }

    /// Async twin of [`Database::close`].
    ///
    /// # Errors
    /// As its twin.
    pub async fn close_async(self) -> std::result::Result<(), OpenError> {
        self.inner.house.stop();
        self.inner.node.wait().await
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database({})", self.path().display())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.house.stop();
        if self.may_wait {
            // Whoever wants to know calls `close`.
            let _ = block_on(self.node.wait());
        }
    }
}
