//! The engine as the Redis surface's store: one keyspace per database, `redis/0` to `redis/15`.

use std::ops::{Bound, ControlFlow};

use atoll_env::task;
use atoll_lsm::{Batch, Database, Keyspace, KeyspaceOptions, Slice, WriteOptions};
use atoll_redis::store::{DATABASES, Visitor};
use atoll_redis::{Durability, Record, Store, StoreError, Writes};

/// A database of the engine, seen as sixteen databases of Redis.
pub struct EngineStore {
    database: Database,
    keyspaces: Vec<Keyspace>,
}

impl EngineStore {
    /// Finds the keyspaces, or creates them in a new database.
    ///
    /// # Errors
    /// The engine's: a keyspace could not be created.
    pub async fn open(database: Database) -> atoll_lsm::Result<EngineStore> {
        let mut keyspaces = Vec::with_capacity(DATABASES);
        for db in 0..DATABASES {
            let name = format!("redis/{db}");
            keyspaces.push(database.keyspace_async(&name, KeyspaceOptions::default()).await?);
        }
        Ok(EngineStore { database, keyspaces })
    }
}

impl Store for EngineStore {
    type Value = Slice;

    async fn get(&self, db: usize, key: &[u8]) -> Result<Option<Record<Slice>>, StoreError> {
        let found = self.keyspaces[db].record_async(key).await.map_err(explain)?;
        Ok(found.map(|record| Record { value: record.value, deadline_ms: record.deadline }))
    }

    async fn visit(
        &self,
        db: usize,
        from: Bound<&[u8]>,
        visitor: Visitor<'_>,
    ) -> Result<(), StoreError> {
        let mut cursor = self.keyspaces[db].cursor::<&[u8]>((from, Bound::Unbounded));
        while let Some(guard) = cursor.next().await.map_err(explain)? {
            if let ControlFlow::Break(()) = visitor(guard.key(), guard.deadline()) {
                break;
            }
        }
        Ok(())
    }

    async fn commit(&self, writes: &Writes, durability: Durability) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        for (db, keyspace) in self.keyspaces.iter().enumerate() {
            let changes = writes.changes(db);
            if changes.cleared() {
                batch.clear(keyspace);
            }
            for (key, staged) in changes.iter() {
                match staged {
                    None => batch.remove(keyspace, key),
                    Some(staged) => match staged.deadline_ms {
                        None => batch.insert(keyspace, key, &staged.record),
                        Some(deadline_ms) => {
                            batch.insert_expiring(keyspace, key, &staged.record, deadline_ms)
                        }
                    },
                };
            }
        }
        let mode = match durability {
            Durability::Synced => atoll_lsm::Durability::Synced,
            Durability::Interval => atoll_lsm::Durability::Interval,
            Durability::Buffered => atoll_lsm::Durability::Buffered,
        };
        let write = self.database.write_async(batch, WriteOptions::durability(mode));
        // Without a sync a commit is a copy into the page cache, and costs less than the two
        // changes of threads that spare the event loop from waiting for it.
        let written = match durability {
            Durability::Synced => write.await,
            Durability::Interval | Durability::Buffered => task::inline(write).await,
        };
        written.map_err(explain)
    }

    fn memory_bytes(&self) -> u64 {
        let stats = self.database.stats();
        stats.memtable_bytes + stats.cache.bytes
    }
}

/// The engine's errors are sentences that say what to do.
fn explain(error: atoll_lsm::Error) -> StoreError {
    StoreError(error.to_string())
}
