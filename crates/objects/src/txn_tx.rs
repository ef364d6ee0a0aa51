//! A transaction over many shards, for commands whose keys lie apart.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use atoll_kv::{CoreShards, NodeOracle};
use atoll_mvcc::Value;
use atoll_mvcc::request::Key;
use atoll_redis::object::{Meta, Object};
use atoll_redis::tx::{Facts, Looked, Tx};
use atoll_redis::{Stats, StoreError};
use atoll_txn::{Error, Transaction};

use crate::program::ObjectProgram;
use crate::shard_tx::{RecordBytes, record, stored};
use crate::{databases, dead};

/// A transaction on this node.
pub(crate) type NodeTxn = Transaction<CoreShards<ObjectProgram>, NodeOracle<ObjectProgram>>;

/// A transaction whose keys are locked, as commands use it.
pub(crate) struct TxnTx<'t> {
    pub txn: &'t mut NodeTxn,
    /// The moment of the commands, in microseconds since 2020.
    pub epoch_us: u64,
    /// Keyspaces of the databases.
    pub keyspaces: [u32; databases::DATABASES],
    /// What locked keys hold, own writes included.
    pub values: BTreeMap<Key, Option<Rc<[u8]>>>,
    /// Writes that are to be staged: the transaction takes them when all commands have run.
    pub writes: BTreeMap<Key, Option<Vec<u8>>>,
    pub generation: u64,
    /// Keys that commands have met and that have parts, with the generation of these.
    pub generations: BTreeMap<Key, u64>,
    pub stats: Arc<Stats>,
    /// Why the transaction cannot go on; commands end with an error that nobody sees then.
    pub failure: Option<Error>,
}

impl TxnTx<'_> {
    fn key(&self, db: usize, key: &[u8]) -> Key {
        databases::key(self.keyspaces[db], key)
    }

    async fn read(&mut self, name: Key) -> Result<Option<Rc<[u8]>>, StoreError> {
        if let Some(written) = self.writes.get(&name) {
            return Ok(written.as_deref().map(Rc::from));
        }
        if let Some(value) = self.values.get(&name) {
            return Ok(value.clone());
        }
        match self.txn.get(&name).await {
            Ok(value) => {
                let value: Option<Rc<[u8]>> = value.map(Rc::from);
                self.values.insert(name, value.clone());
                Ok(value)
            }
            Err(error) => {
                let text = StoreError(error.to_string());
                self.failure.get_or_insert(error);
                Err(text)
            }
        }
    }

    /// Notes that the parts which a key had are dead, unless it keeps them.
    fn leave(&mut self, db: usize, key: &[u8], name: &Key, kept: Option<u64>) {
        let Some(generation) = self.generations.get(name).copied() else { return };
        if kept != Some(generation) {
            self.generations.remove(name);
            let note = dead::note(self.keyspaces[db], key, generation);
            self.writes.insert(note, Some(dead::value()));
        }
    }
}

impl Tx for TxnTx<'_> {
    type Value = RecordBytes<Rc<[u8]>>;

    fn now_ms(&self) -> u64 {
        atoll_redis::object::unix_ms(self.epoch_us)
    }

    fn epoch_us(&self) -> u64 {
        self.epoch_us
    }

    async fn get(
        &mut self,
        db: usize,
        key: &[u8],
    ) -> Result<Option<Object<Self::Value>>, StoreError> {
        let name = self.key(db, key);
        let Some(bytes) = self.read(name.clone()).await? else { return Ok(None) };
        let (record, deadline_ms) = record(bytes);
        let object = Object::decode(record, deadline_ms);
        if let Some(generation) = object.meta.generation {
            self.generations.insert(name, generation);
        }
        let live = deadline_ms.is_none_or(|deadline_ms| deadline_ms > self.now_ms());
        Ok(live.then_some(object))
    }

    async fn claim(&mut self, db: usize, key: &[u8]) -> Result<Option<u64>, StoreError> {
        Ok(self.get(db, key).await?.map(|object| object.meta.created_us))
    }

    fn put(&mut self, db: usize, key: &[u8], meta: &Meta, payload: &[u8]) {
        let name = self.key(db, key);
        self.leave(db, key, &name, meta.generation);
        self.writes.insert(name, Some(stored(meta, payload)));
    }

    fn remove(&mut self, db: usize, key: &[u8]) {
        let name = self.key(db, key);
        self.leave(db, key, &name, None);
        // Removing what is not there is no write.
        if self.values.get(&name).is_some_and(Option::is_none) {
            self.writes.remove(&name);
        } else {
            self.writes.insert(name, None);
        }
    }

    async fn sub_get(
        &mut self,
        db: usize,
        key: &[u8],
        generation: u64,
        sub_key: &[u8],
    ) -> Result<Option<Self::Value>, StoreError> {
        let name = databases::part_key(self.keyspaces[db], key, generation, sub_key);
        let value = self.read(name).await?;
        Ok(value.map(|bytes| record(bytes).0))
    }

    fn sub_put(&mut self, db: usize, key: &[u8], generation: u64, sub_key: &[u8], bytes: &[u8]) {
        let name = databases::part_key(self.keyspaces[db], key, generation, sub_key);
        let value = Value { deadline_ms: None, payload: bytes }.encode();
        self.writes.insert(name, Some(value));
    }

    fn new_generation(&mut self) -> u64 {
        self.generation = (self.generation + 1).max(self.epoch_us << 4);
        self.generation
    }

    async fn version(&mut self, _: usize, _: &[u8]) -> Result<u64, StoreError> {
        // Watched keys are compared when they are locked, before any command runs.
        Ok(u64::MAX)
    }

    fn facts(&mut self, _: usize, _: &[u8]) -> Facts {
        Facts::default()
    }

    fn looked_up(&mut self, _: usize, _: &[u8], looked: Looked) {
        match looked {
            Looked::Read | Looked::Glimpsed => self.stats.keyspace_hits.add(1),
            Looked::Missed => self.stats.keyspace_misses.add(1),
        }
    }
}
