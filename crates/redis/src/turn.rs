//! The executor's turn as what commands run on: the staged writes over a store.
//!
//! ```text
//!   get   --> Writes of the turn --> Store
//!   put   --> Writes of the turn
//! ```
//!
//! Everything a turn reads is as of its time and includes what it staged; the whole is committed
//! as one batch, so the turn is one transaction and each command in it runs in a consistent
//! moment. What has to outlive a turn is kept here too: the numbering of the databases, the
//! versions of watched keys, the times of last reads.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow, Deref};
use std::rc::Rc;
use std::sync::Arc;

use atoll_env::random::Prng;

use crate::last_reads::LastReads;
use crate::layout;
use crate::object::{self, Meta, Object};
use crate::stats::Stats;
use crate::store::{DATABASES, Store, StoreError, Visitor};
use crate::tx::{Counts, Facts, Keyspaces, Looked, Tx};
use crate::writes::{Numbering, Staged, Writes};

/// The turn over a store.
pub(crate) struct Turn<S: Store> {
    pub store: S,
    pub writes: Writes,
    /// Wall time of the turn, in milliseconds of the Unix epoch.
    pub now_ms: u64,
    /// Whether the command under way staged a write or saw one.
    pub dependent: bool,
    pub stats: Arc<Stats>,
    /// As it is after the turn's writes.
    numbering: Numbering,
    /// As it is stored.
    stored_numbering: Numbering,
    /// The storage key of the read or write under way; a buffer that is reused.
    key: Vec<u8>,
    /// The last generation given.
    generation: u64,
    /// Generations of the keys that the turn read or claimed, if they have one: what is to be
    /// dropped when they are written.
    generations: [BTreeMap<Box<[u8]>, u64>; DATABASES],
    pub watches: Watches,
    last_reads: LastReads,
    prng: Prng,
}

/// Bytes read, wherever they lie.
#[derive(Clone)]
pub(crate) enum Bytes<V> {
    Stored(V),
    Staged(Rc<Vec<u8>>),
}

impl<V: Deref<Target = [u8]>> Deref for Bytes<V> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Stored(value) => value,
            Bytes::Staged(value) => value,
        }
    }
}

impl<S: Store> Turn<S> {
    pub fn new(store: S, stats: Arc<Stats>, seed: u64, now_ms: u64) -> Turn<S> {
        let numbering = store.numbering();
        Turn {
            store,
            writes: Writes::new(),
            now_ms,
            dependent: false,
            stats,
            numbering,
            stored_numbering: numbering,
            key: Vec::new(),
            generation: 0,
            generations: Default::default(),
            watches: Watches::default(),
            last_reads: LastReads::new(),
            prng: Prng::new(seed),
        }
    }

    /// Forgets the turn's writes, which were committed or could not be.
    pub fn finish(&mut self, committed: bool) {
        if committed {
            self.stored_numbering = self.numbering;
        } else {
            self.numbering = self.stored_numbering;
            // What a client saw when it began to watch may be gone.
            self.watches.changed_all();
        }
        self.writes.reset();
        self.generations.iter_mut().for_each(BTreeMap::clear);
    }

    /// Returns the store's number of a client's database.
    fn stored_db(&self, db: usize) -> usize {
        usize::from(self.numbering[db])
    }

    /// Notes the generation of a record that was read at [`Self::key`]; returns whether it is live.
    fn meet(&mut self, db: usize, meta: &Meta) -> bool {
        if let Some(generation) = meta.generation {
            self.generations[db].insert(self.key.as_slice().into(), generation);
        }
        let live = meta.deadline_ms.is_none_or(|deadline_ms| deadline_ms > self.now_ms);
        if !live {
            self.stats.expired_keys.add(1);
            if meta.generation.is_some() {
                // The store keeps such a record until it is told; no reply depends on that.
                self.drop_old_generation(db, None);
                self.writes.put(db, &self.key, None);
            }
        }
        live
    }

    /// Drops the sub-records of the key under way unless they are of the generation it gets.
    fn drop_old_generation(&mut self, db: usize, new: Option<u64>) {
        let generations = &mut self.generations[db];
        let old = match new {
            Some(new) => generations.insert(self.key.as_slice().into(), new),
            None if generations.is_empty() => return,
            None => generations.remove(&*self.key),
        };
        if let Some(old) = old.filter(|old| Some(*old) != new) {
            self.writes.drop_subs(db, &layout::sub_key(&self.key, old, &[]));
        }
    }
}

impl<S: Store> Tx for Turn<S> {
    type Value = Bytes<S::Value>;

    fn now_ms(&self) -> u64 {
        self.now_ms
    }

    fn epoch_us(&self) -> u64 {
        object::epoch_us(self.now_ms)
    }

    async fn get(
        &mut self,
        db: usize,
        key: &[u8],
    ) -> Result<Option<Object<Self::Value>>, StoreError> {
        layout::storage_key(&mut self.key, key);
        let db = self.stored_db(db);
        let changes = self.writes.changes(db);
        let object = match changes.get(&self.key) {
            None if !changes.cleared() => match self.store.get(db, &self.key).await? {
                Some(record) => Object::decode(Bytes::Stored(record.value), record.deadline_ms),
                None => return Ok(None),
            },
            staged => {
                self.dependent = true;
                let Some(Some(staged)) = staged else { return Ok(None) };
                Object::decode(Bytes::Staged(staged.record.clone()), staged.deadline_ms)
            }
        };
        if object.meta.deadline_ms.is_some() || object.meta.generation.is_some() {
            return Ok(self.meet(db, &object.meta).then_some(object));
        }
        Ok(Some(object))
    }

    async fn claim(&mut self, db: usize, key: &[u8]) -> Result<Option<u64>, StoreError> {
        // The store is asked only where it may hold fragments that would be left behind: a write
        // that needs no read should not wait for the disk.
        let stored_db = self.stored_db(db);
        if self.store.has_subs(stored_db) || self.writes.changes(stored_db).has_subs() {
            let dependent = self.dependent;
            self.get(db, key).await?;
            self.dependent = dependent;
        }
        // Told only sometimes it would be told at random.
        Ok(None)
    }

    fn put(&mut self, db: usize, key: &[u8], meta: &Meta, payload: &[u8]) {
        let stored_db = self.stored_db(db);
        layout::storage_key(&mut self.key, key);
        self.drop_old_generation(stored_db, meta.generation);
        let mut record = Vec::with_capacity(meta.encoded_len() + payload.len());
        meta.encode(&mut record);
        record.extend_from_slice(payload);
        let staged = Staged {
            record: Rc::new(record),
            deadline_ms: meta.deadline_ms,
            has_subs: meta.generation.is_some(),
        };
        self.writes.put(stored_db, &self.key, Some(staged));
        self.watches.changed(db, key);
        self.dependent = true;
    }

    fn remove(&mut self, db: usize, key: &[u8]) {
        let stored_db = self.stored_db(db);
        layout::storage_key(&mut self.key, key);
        self.drop_old_generation(stored_db, None);
        self.writes.put(stored_db, &self.key, None);
        self.watches.changed(db, key);
        self.dependent = true;
    }

    async fn sub_get(
        &mut self,
        db: usize,
        key: &[u8],
        generation: u64,
        sub_key: &[u8],
    ) -> Result<Option<Self::Value>, StoreError> {
        let stored_db = self.stored_db(db);
        layout::storage_key(&mut self.key, key);
        let sub_key = layout::sub_key(&self.key, generation, sub_key);
        let changes = self.writes.changes(stored_db);
        if let Some(staged) = changes.get_sub(&sub_key) {
            return Ok(Some(Bytes::Staged(staged.clone())));
        }
        if changes.cleared() {
            return Ok(None);
        }
        Ok(self.store.get_sub(stored_db, &sub_key).await?.map(Bytes::Stored))
    }

    fn sub_put(&mut self, db: usize, key: &[u8], generation: u64, sub_key: &[u8], value: &[u8]) {
        let stored_db = self.stored_db(db);
        layout::storage_key(&mut self.key, key);
        let sub_key = layout::sub_key(&self.key, generation, sub_key);
        self.writes.put_sub(stored_db, &sub_key, value);
    }

    fn new_generation(&mut self) -> u64 {
        // Above those of earlier runs, whose clock was not ahead of ours by much.
        self.generation = (self.generation + 1).max(self.epoch_us());
        self.generation
    }

    async fn version(&mut self, db: usize, key: &[u8]) -> Result<u64, StoreError> {
        let live = self.get(db, key).await?.is_some();
        Ok(self.watches.version(db, key, live))
    }

    fn facts(&mut self, db: usize, key: &[u8]) -> Facts {
        let stored_db = self.stored_db(db);
        layout::storage_key(&mut self.key, key);
        Facts {
            read_us: self.last_reads.get(db, key),
            pending: self.writes.changes(stored_db).get(&self.key).is_some(),
        }
    }

    fn looked_up(&mut self, db: usize, key: &[u8], looked: Looked) {
        match looked {
            Looked::Read => {
                self.stats.keyspace_hits.add(1);
                let now = self.epoch_us();
                self.last_reads.set(db, key, now);
            }
            Looked::Glimpsed => self.stats.keyspace_hits.add(1),
            Looked::Missed => self.stats.keyspace_misses.add(1),
        }
    }
}

impl<S: Store> Keyspaces for Turn<S> {
    fn now_ms(&self) -> u64 {
        self.now_ms
    }

    async fn visit(
        &mut self,
        db: usize,
        from: Bound<&[u8]>,
        visitor: Visitor<'_>,
    ) -> Result<(), StoreError> {
        let db = self.stored_db(db);
        let changes = self.writes.changes(db);
        self.dependent |= !changes.is_empty();
        let mut staged = changes.range(from).peekable();
        let mut flow = ControlFlow::Continue(());
        if !changes.cleared() {
            let mut merge = |key: &[u8], deadline_ms: Option<u64>| {
                while let Some(&(staged_key, record)) = staged.peek() {
                    if staged_key > key {
                        break;
                    }
                    staged.next();
                    if let Some(record) = record {
                        visitor(staged_key, record.deadline_ms)?;
                    }
                    if staged_key == key {
                        return ControlFlow::Continue(());
                    }
                }
                visitor(key, deadline_ms)
            };
            let mut watched = |key: &[u8], deadline_ms: Option<u64>| {
                flow = merge(key, deadline_ms);
                flow
            };
            self.store.visit(db, from, &mut watched).await?;
        }
        for (key, record) in staged {
            if flow.is_break() {
                break;
            }
            if let Some(record) = record {
                flow = visitor(key, record.deadline_ms);
            }
        }
        Ok(())
    }

    async fn count(&mut self, db: usize) -> Result<Counts, StoreError> {
        let now = self.now_ms;
        let mut counts = Counts::default();
        let mut ttl_ms = 0u128;
        let mut visitor = |_: &[u8], deadline_ms: Option<u64>| {
            match deadline_ms {
                None => counts.keys += 1,
                Some(deadline_ms) if deadline_ms > now => {
                    counts.keys += 1;
                    counts.expiring += 1;
                    ttl_ms += u128::from(deadline_ms - now);
                }
                Some(_) => {}
            }
            ControlFlow::Continue(())
        };
        self.visit(db, Bound::Unbounded, &mut visitor).await?;
        let mean = ttl_ms / u128::from(counts.expiring.max(1));
        Ok(Counts { mean_ttl_ms: u64::try_from(mean).unwrap_or(u64::MAX), ..counts })
    }

    fn flush(&mut self, db: usize) {
        self.writes.clear(self.stored_db(db));
        self.dependent = true;
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.watches.swapped(a);
        self.watches.swapped(b);
        self.numbering.swap(a, b);
        self.writes.set_numbering(self.numbering);
        self.dependent = true;
    }

    fn random_below(&mut self, bound: u64) -> u64 {
        self.prng.below(bound)
    }
}

/// Versions of the keys that clients watch. A key that nobody watches has none.
///
/// A watched key has changed when it was written or removed, when it expired, or when it holds
/// something else because databases were exchanged. A flush needs no version: a key that was there
/// is not there then, one that was not has not changed.
#[derive(Default)]
pub(crate) struct Watches {
    databases: [BTreeMap<Box<[u8]>, Watched>; DATABASES],
    /// Keys watched, all databases together.
    len: usize,
    /// When each database was exchanged last.
    swapped: [u64; DATABASES],
    /// Never the same twice.
    last_version: u64,
}

struct Watched {
    /// When the key was written or removed last.
    version: u64,
    /// Connections that watch it.
    watchers: usize,
}

impl Watches {
    /// Starts to watch a key for one more connection.
    pub fn add(&mut self, db: usize, key: &[u8]) {
        if let Some(watched) = self.databases[db].get_mut(key) {
            watched.watchers += 1;
            return;
        }
        let watched = Watched { version: self.next_version(), watchers: 1 };
        self.databases[db].insert(key.into(), watched);
        self.len += 1;
    }

    /// Stops to watch a key for one connection.
    pub fn remove(&mut self, db: usize, key: &[u8]) {
        let Some(watched) = self.databases[db].get_mut(key) else { return };
        watched.watchers -= 1;
        if watched.watchers == 0 {
            self.databases[db].remove(key);
            self.len -= 1;
        }
    }

    /// Returns a key's version, in which whether it is live is a part.
    fn version(&self, db: usize, key: &[u8], live: bool) -> u64 {
        let version = self.databases[db].get(key).map_or(0, |watched| watched.version);
        if live { version.max(self.swapped[db]) << 1 | 1 } else { version << 1 }
    }

    fn changed(&mut self, db: usize, key: &[u8]) {
        if self.len == 0 {
            return;
        }
        let version = self.next_version();
        if let Some(watched) = self.databases[db].get_mut(key) {
            watched.version = version;
        }
    }

    fn changed_all(&mut self) {
        let version = self.next_version();
        for watched in self.databases.iter_mut().flat_map(BTreeMap::values_mut) {
            watched.version = version;
        }
    }

    fn swapped(&mut self, db: usize) {
        self.swapped[db] = self.next_version();
    }

    fn next_version(&mut self) -> u64 {
        self.last_version += 1;
        self.last_version
    }
}
