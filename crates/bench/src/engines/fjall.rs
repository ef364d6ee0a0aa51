//! fjall, with half of the memory budget for its block cache and half for its write buffers.

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{Config, Direction, Engine};
use crate::Failure;

pub(super) fn open(config: &Config) -> Result<Box<dyn Engine>, Failure> {
    let half = config.memory / 2;
    let database = Database::builder(&config.dir).cache_size(half).open()?;
    let keyspace = database.keyspace("bench", || {
        // The active memtable, one in flush and the next to come share the half. Its default of
        // 64 MiB stays where the budget has room for it.
        KeyspaceCreateOptions::default().max_memtable_size((half / 3).min(64 << 20))
    })?;
    Ok(Box::new(Fjall { database, keyspace, synced: config.synced }))
}

struct Fjall {
    database: Database,
    keyspace: Keyspace,
    synced: bool,
}

impl Engine for Fjall {
    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.keyspace.insert(key, value)?;
        if self.synced {
            self.database.persist(PersistMode::SyncData)?;
        }
        Ok(())
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

    fn close(self: Box<Self>) -> Result<(), Failure> {
        self.database.persist(PersistMode::SyncAll)?;
        Ok(())
    }
}
