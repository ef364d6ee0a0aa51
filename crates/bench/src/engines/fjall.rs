//! fjall, with half of the memory budget for its block cache and half for its write buffers.
//!
//! | setting              | value                  | why                                                     |
//! |----------------------|------------------------|---------------------------------------------------------|
//! | `cache_size`         | half of the budget     | the other half is memtables                             |
//! | `max_memtable_size`  | a sixth, at most 64 MiB | one active, one in flush, one to come                   |
//! | key-value separation | for values of 1 KiB    | where its documentation advises it, at its threshold    |
//! | filters, compression, block size | defaults   | its documentation names no better ones for these loads  |
//!
//! A write is in the journal, and the journal in the kernel, before `insert` returns; synced ones
//! call `persist(SyncData)`. It has no batched get: a batch is gets.

use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode, Readable, Snapshot,
};

use super::{Config, Direction, Engine, Frozen};
use crate::Failure;

pub(super) fn open(config: &Config) -> Result<Box<dyn Engine>, Failure> {
    let half = config.memory / 2;
    let mut builder = Database::builder(&config.dir).cache_size(half);
    // The active memtable, one in flush and the next to come share the half. Its default of 64 MiB
    // stays where the budget has room for it.
    let mut memtable = (half / 3).min(64 << 20);
    if let Some(bytes) = config.unflushed {
        memtable = bytes * 2;
        builder = builder.max_journaling_size(memtable.max(512 << 20));
    }
    let separated = (config.value_len >= 1024).then(KvSeparationOptions::default);
    let options = || {
        let options = KeyspaceCreateOptions::default().max_memtable_size(memtable);
        options.with_kv_separation(separated.clone())
    };
    let database = builder.open()?;
    let keyspace = database.keyspace("bench", options)?;
    Ok(Box::new(Fjall { database, keyspace, synced: config.synced }))
}

struct Fjall {
    database: Database,
    keyspace: Keyspace,
    synced: bool,
}

impl Fjall {
    fn persist(&self) -> Result<(), Failure> {
        if self.synced {
            self.database.persist(PersistMode::SyncData)?;
        }
        Ok(())
    }
}

impl Engine for Fjall {
    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.keyspace.insert(key, value)?;
        self.persist()
    }

    fn insert_beside(&self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        let beside = self.database.keyspace("beside", KeyspaceCreateOptions::default)?;
        beside.insert(key, value)?;
        self.persist()
    }

    fn remove(&self, key: &[u8]) -> Result<(), Failure> {
        self.keyspace.remove(key)?;
        self.persist()
    }

    fn get(&self, key: &[u8]) -> Result<Option<usize>, Failure> {
        Ok(self.keyspace.get(key)?.map(|value| value.len()))
    }

    fn scan(&self, key: &[u8], direction: Direction, count: usize) -> Result<usize, Failure> {
        let mut range = match direction {
            Direction::Forward => self.keyspace.range(key..),
            Direction::Reverse => self.keyspace.range(..=key),
        };
        for met in 0..count {
            let next = match direction {
                Direction::Forward => range.next(),
                Direction::Reverse => range.next_back(),
            };
            let Some(guard) = next else { return Ok(met) };
            std::hint::black_box(guard.into_inner()?);
        }
        Ok(count)
    }

    fn snapshot(&self) -> Result<Box<dyn Frozen + '_>, Failure> {
        Ok(Box::new((self.database.snapshot(), &self.keyspace)))
    }

    fn compact(&self) -> Result<(), Failure> {
        self.keyspace.rotate_memtable_and_wait()?;
        Ok(self.keyspace.major_compact()?)
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        self.database.persist(PersistMode::SyncAll)?;
        Ok(())
    }
}

impl Frozen for (Snapshot, &Keyspace) {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        Ok(Readable::get(&self.0, self.1, key)?.map(|value| value.to_vec()))
    }
}
