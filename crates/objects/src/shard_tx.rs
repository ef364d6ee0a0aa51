//! A shard's evaluation as a transaction for commands.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::ops::Deref;
use std::rc::Rc;

use atoll_mvcc::{Value, value};
use atoll_redis::object::{Meta, Object};
use atoll_redis::tx::{Facts, Looked, Tx};
use atoll_redis::{LastReads, Stats, StoreError};
use atoll_shard::eval::{Bytes, Eval, Interrupt};
use atoll_shard::leader::Base;

use crate::{databases, dead};

/// The absent flag of a version: the other bits are the moment at which nothing was there.
pub(crate) const ABSENT: u64 = 1 << 63;

/// What commands tell the program about beside their reply.
pub(crate) struct Hearing<'p> {
    pub stats: &'p Stats,
    pub last_reads: &'p RefCell<LastReads>,
    pub generation: &'p Cell<u64>,
}

/// A shard's state, as a command may change it.
pub(crate) struct ShardTx<'t, 'e, B: Base> {
    pub eval: &'t mut Eval<'e, B>,
    /// Why the command has to be run again; it waits for ever then.
    pub interrupt: &'t Cell<Option<Interrupt>>,
    pub hearing: &'t Hearing<'t>,
    /// A buffer for keys: the name of the last one.
    pub key: &'t mut Vec<u8>,
    /// A buffer for values.
    pub value: &'t mut Vec<u8>,
    /// Keys that the command has met and that have parts, with the generation of these.
    pub generations: Vec<(Vec<u8>, u64)>,
}

/// A record: the bytes of a stored value behind its head.
#[derive(Clone)]
pub(crate) struct RecordBytes<V> {
    bytes: V,
    at: usize,
}

impl<V: Deref<Target = [u8]>> Deref for RecordBytes<V> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.bytes.get(self.at..).unwrap_or(&[])
    }
}

/// Takes stored bytes apart.
pub(crate) fn record<V: Deref<Target = [u8]>>(bytes: V) -> (RecordBytes<V>, Option<u64>) {
    let (deadline_ms, at) = match Value::decode(&bytes) {
        Ok(value) => (value.deadline_ms, bytes.len() - value.payload.len()),
        // An unknown record: it can be counted, listed and removed.
        Err(_) => (None, 0),
    };
    (RecordBytes { bytes, at }, deadline_ms)
}

/// Returns the stored form of a record.
pub(crate) fn stored(meta: &Meta, payload: &[u8]) -> Vec<u8> {
    let room = value::head_len(meta.deadline_ms) + atoll_redis::object::MAX_HEADER;
    let mut bytes = Vec::with_capacity(room + payload.len());
    put_stored(&mut bytes, meta, payload);
    bytes
}

/// Replaces `out` by the stored form of a record.
fn put_stored(out: &mut Vec<u8>, meta: &Meta, payload: &[u8]) {
    out.clear();
    value::put_head(out, meta.deadline_ms);
    meta.encode(out);
    out.extend_from_slice(payload);
}

impl<B: Base> ShardTx<'_, '_, B> {
    /// Gives up: the command will be run again.
    async fn interrupted<T>(&self, interrupt: Interrupt) -> T {
        self.interrupt.set(Some(interrupt));
        pending().await
    }

    /// Brings the name of a key into [`Self::key`].
    fn name(&mut self, keyspace: u32, key: &[u8]) {
        // A command that writes a key has read it before, mostly.
        if databases::user_key(self.key) != key || !self.key.starts_with(&keyspace.to_be_bytes()) {
            databases::put_key(self.key, keyspace, key);
        }
    }

    async fn keyspace(&self, db: usize) -> u32 {
        match self.eval.local(&databases::name(db)) {
            Ok(entry) => databases::keyspace(db, entry.as_deref()),
            Err(interrupt) => self.interrupted(interrupt).await,
        }
    }

    /// Reads what a key holds, expired or not; its name is in [`Self::key`] then.
    async fn read(&mut self, db: usize, key: &[u8]) -> Option<Bytes<B::Value>> {
        let keyspace = self.keyspace(db).await;
        self.name(keyspace, key);
        match self.eval.version(self.key) {
            Ok(found) => found.and_then(|seen| seen.value),
            Err(interrupt) => self.interrupted(interrupt).await,
        }
    }

    /// Notes that the parts which the key had are dead, unless it keeps them.
    fn leave(&mut self, keyspace: u32, key: &[u8], kept: Option<u64>) {
        let Some(at) = self.generations.iter().position(|(name, _)| *name == *self.key) else {
            return;
        };
        let (_, generation) = self.generations[at];
        if kept != Some(generation) {
            self.generations.swap_remove(at);
            let note = dead::note(keyspace, key, generation);
            self.eval.put(&note, Some(Rc::from(dead::value())));
        }
    }

    /// Returns the keyspace of a database whose map entry was read before.
    fn known_keyspace(&self, db: usize) -> u32 {
        let entry = self.eval.local(&databases::name(db)).ok().flatten();
        databases::keyspace(db, entry.as_deref())
    }
}

impl<B: Base> Tx for ShardTx<'_, '_, B> {
    type Value = RecordBytes<Bytes<B::Value>>;

    fn now_ms(&self) -> u64 {
        self.eval.now().epoch.unix_ms()
    }

    fn epoch_us(&self) -> u64 {
        self.eval.now().epoch.0
    }

    async fn get(
        &mut self,
        db: usize,
        key: &[u8],
    ) -> Result<Option<Object<Self::Value>>, StoreError> {
        let Some(bytes) = self.read(db, key).await else { return Ok(None) };
        let (record, deadline_ms) = record(bytes);
        let object = Object::decode(record, deadline_ms);
        if let Some(generation) = object.meta.generation
            && !self.generations.iter().any(|(name, _)| *name == *self.key)
        {
            self.generations.push((self.key.clone(), generation));
        }
        let live = deadline_ms.is_none_or(|deadline_ms| deadline_ms > self.now_ms());
        Ok(live.then_some(object))
    }

    async fn claim(&mut self, db: usize, key: &[u8]) -> Result<Option<u64>, StoreError> {
        // Counts have to know whether the key is there, so it is read in any case.
        let found = self.get(db, key).await?;
        Ok(found.map(|object| object.meta.created_us))
    }

    fn put(&mut self, db: usize, key: &[u8], meta: &Meta, payload: &[u8]) {
        let keyspace = self.known_keyspace(db);
        self.name(keyspace, key);
        self.leave(keyspace, key, meta.generation);
        put_stored(self.value, meta, payload);
        self.eval.put(self.key, Some(Rc::from(&self.value[..])));
    }

    fn remove(&mut self, db: usize, key: &[u8]) {
        let keyspace = self.known_keyspace(db);
        self.name(keyspace, key);
        self.leave(keyspace, key, None);
        self.eval.put(self.key, None);
    }

    async fn sub_get(
        &mut self,
        db: usize,
        key: &[u8],
        generation: u64,
        sub_key: &[u8],
    ) -> Result<Option<Self::Value>, StoreError> {
        let name = databases::part_key(self.keyspace(db).await, key, generation, sub_key);
        match self.eval.get(&name) {
            Ok(found) => Ok(found.map(|bytes| record(bytes).0)),
            Err(interrupt) => self.interrupted(interrupt).await,
        }
    }

    fn sub_put(&mut self, db: usize, key: &[u8], generation: u64, sub_key: &[u8], bytes: &[u8]) {
        let name = databases::part_key(self.known_keyspace(db), key, generation, sub_key);
        let value = Value { deadline_ms: None, payload: bytes }.encode();
        self.eval.put(&name, Some(Rc::from(value)));
    }

    fn new_generation(&mut self) -> u64 {
        let next = (self.hearing.generation.get() + 1).max(self.epoch_us() << 4);
        self.hearing.generation.set(next);
        next
    }

    async fn version(&mut self, db: usize, key: &[u8]) -> Result<u64, StoreError> {
        let keyspace = self.keyspace(db).await;
        self.name(keyspace, key);
        let now = self.eval.now().epoch;
        let seen = match self.eval.version(self.key) {
            Ok(seen) => seen,
            Err(interrupt) => return self.interrupted(interrupt).await,
        };
        let live = seen.as_ref().and_then(|seen| seen.value.as_deref()).is_some_and(|bytes| {
            !Value::decode(bytes).is_ok_and(|value| value.is_expired(now.unix_ms()))
        });
        let ts = seen.map(|seen| seen.ts);
        Ok(match (live, ts) {
            // Its entry has no timestamp yet: no earlier version was like it.
            (_, Some(None)) => u64::MAX,
            (true, Some(Some(ts))) => ts.0,
            (false, Some(Some(ts))) => ABSENT | ts.0,
            (_, None) => ABSENT,
        })
    }

    fn facts(&mut self, db: usize, key: &[u8]) -> Facts {
        Facts { read_us: self.hearing.last_reads.borrow().get(db, key), pending: false }
    }

    fn looked_up(&mut self, db: usize, key: &[u8], looked: Looked) {
        let Hearing { stats, last_reads, .. } = self.hearing;
        match looked {
            Looked::Read => {
                stats.keyspace_hits.add(1);
                last_reads.borrow_mut().set(db, key, self.eval.now().epoch.0);
            }
            Looked::Glimpsed => stats.keyspace_hits.add(1),
            Looked::Missed => stats.keyspace_misses.add(1),
        }
    }
}
