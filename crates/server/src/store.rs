//! The engine as the Redis surface's store.
//!
//! | keyspace | holds |
//! |---|---|
//! | `redis/0` to `redis/15` | records of keys, one keyspace per database |
//! | `redis-sub/0` to `redis-sub/15` | their sub-records, made when the first is written |
//! | `redis-state` | which number clients know each database by, once SWAPDB has changed it |
//!
//! A record that expires is written with its deadline, and compaction drops it when that is due;
//! not so one that has sub-records, because nobody would know of them any more: it stays until a
//! command meets it. Visits read the deadline of such records from the record.

use std::cell::RefCell;
use std::ops::{Bound, ControlFlow};

use atoll_env::task;
use atoll_lsm::{Batch, Database, Keyspace, KeyspaceOptions, Slice, WriteOptions};
use atoll_redis::layout;
use atoll_redis::object::{MAX_HEADER, Meta};
use atoll_redis::store::{DATABASES, Visitor};
use atoll_redis::{Durability, Numbering, Record, Store, StoreError, Writes};

/// The key of the numbering in `redis-state`.
const NUMBERING: &[u8] = b"numbering";
/// A record that has sub-records is not longer: a header and the length of a string.
const RECORD_WITH_SUBS_MAX: usize = MAX_HEADER + 8;

/// A database of the engine, seen as sixteen databases of Redis.
pub struct EngineStore {
    database: Database,
    keyspaces: Vec<Keyspace>,
    state: Keyspace,
    /// Keyspaces of sub-records, of the databases that ever had some.
    subs: RefCell<Vec<Option<Keyspace>>>,
    numbering: RefCell<Numbering>,
}

impl EngineStore {
    /// Finds the keyspaces, or creates them in a new database.
    ///
    /// # Errors
    /// The engine's: a keyspace could not be created, or what `redis-state` says is damaged.
    pub async fn open(database: Database) -> atoll_lsm::Result<EngineStore> {
        let mut keyspaces = Vec::with_capacity(DATABASES);
        let mut subs = Vec::with_capacity(DATABASES);
        for db in 0..DATABASES {
            let name = format!("redis/{db}");
            keyspaces.push(database.keyspace_async(&name, KeyspaceOptions::default()).await?);
            subs.push(database.find_keyspace(&sub_name(db)));
        }
        let state = database.keyspace_async("redis-state", KeyspaceOptions::default()).await?;
        let numbering = match state.get_async(NUMBERING).await? {
            None => std::array::from_fn(|db| db as u8),
            Some(stored) => decode_numbering(&stored).ok_or_else(|| {
                let what = "the numbering of the Redis databases in keyspace redis-state is no \
                            permutation of 0 to 15: restore the directory from a copy";
                atoll_lsm::Error::InvalidInput(what.to_owned())
            })?,
        };
        let (subs, numbering) = (RefCell::new(subs), RefCell::new(numbering));
        Ok(EngineStore { database, keyspaces, state, subs, numbering })
    }

    /// Makes the keyspaces of sub-records that a commit is the first to write to.
    async fn prepare_subs(&self, writes: &Writes) -> Result<(), StoreError> {
        for db in 0..DATABASES {
            if writes.changes(db).subs().next().is_some() && !self.has_subs(db) {
                let name = sub_name(db);
                let made = self.database.keyspace_async(&name, KeyspaceOptions::default()).await;
                let keyspace = made.map_err(explain)?;
                self.subs.borrow_mut()[db] = Some(keyspace);
            }
        }
        Ok(())
    }
}

fn sub_name(db: usize) -> String {
    format!("redis-sub/{db}")
}

fn decode_numbering(stored: &[u8]) -> Option<Numbering> {
    let numbering: Numbering = stored.try_into().ok()?;
    let mut seen = [false; DATABASES];
    for db in numbering {
        *seen.get_mut(usize::from(db))? = true;
    }
    seen.iter().all(|seen| *seen).then_some(numbering)
}

impl Store for EngineStore {
    type Value = Slice;

    async fn get(&self, db: usize, key: &[u8]) -> Result<Option<Record<Slice>>, StoreError> {
        let found = self.keyspaces[db].record_async(key).await.map_err(explain)?;
        Ok(found.map(|record| Record { value: record.value, deadline_ms: record.deadline }))
    }

    async fn get_sub(&self, db: usize, key: &[u8]) -> Result<Option<Slice>, StoreError> {
        let keyspace = self.subs.borrow()[db].clone();
        match keyspace {
            Some(keyspace) => keyspace.get_async(key).await.map_err(explain),
            None => Ok(None),
        }
    }

    fn has_subs(&self, db: usize) -> bool {
        self.subs.borrow()[db].is_some()
    }

    fn numbering(&self) -> Numbering {
        *self.numbering.borrow()
    }

    async fn visit(
        &self,
        db: usize,
        from: Bound<&[u8]>,
        visitor: Visitor<'_>,
    ) -> Result<(), StoreError> {
        let has_subs = self.has_subs(db);
        let mut cursor = self.keyspaces[db].cursor::<&[u8]>((from, Bound::Unbounded));
        while let Some(guard) = cursor.next().await.map_err(explain)? {
            let mut deadline_ms = guard.deadline();
            if has_subs && deadline_ms.is_none() && guard.size() <= RECORD_WITH_SUBS_MAX {
                let record = guard.value_async().await.map_err(explain)?;
                deadline_ms = Meta::decode(&record, None).0.deadline_ms;
            }
            if let ControlFlow::Break(()) = visitor(guard.key(), deadline_ms) {
                break;
            }
        }
        Ok(())
    }

    async fn commit(&self, writes: &Writes, durability: Durability) -> Result<(), StoreError> {
        self.prepare_subs(writes).await?;
        let batch = self.batch(writes);
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
        written.map_err(explain)?;
        if let Some(numbering) = writes.numbering() {
            *self.numbering.borrow_mut() = *numbering;
        }
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        let stats = self.database.stats();
        stats.memtable_bytes + stats.cache.bytes
    }
}

impl EngineStore {
    fn batch(&self, writes: &Writes) -> Batch {
        let mut batch = Batch::new();
        let subs = self.subs.borrow();
        for (db, keyspace) in self.keyspaces.iter().enumerate() {
            let changes = writes.changes(db);
            if changes.cleared() {
                batch.clear(keyspace);
            }
            for (key, staged) in changes.iter() {
                match staged {
                    None => batch.remove(keyspace, key),
                    Some(staged) => match staged.deadline_ms.filter(|_| !staged.has_subs) {
                        None => batch.insert(keyspace, key, &staged.record),
                        Some(deadline_ms) => {
                            batch.insert_expiring(keyspace, key, &staged.record, deadline_ms)
                        }
                    },
                };
            }
            let Some(subs) = &subs[db] else { continue };
            if changes.cleared() {
                batch.clear(subs);
            }
            for prefix in changes.dropped() {
                batch.remove_range(subs, prefix, &layout::prefix_end(prefix));
            }
            for (key, value) in changes.subs() {
                batch.insert(subs, key, value);
            }
        }
        if let Some(numbering) = writes.numbering() {
            batch.insert(&self.state, NUMBERING, numbering);
        }
        batch
    }
}

/// The engine's errors are sentences that say what to do.
fn explain(error: atoll_lsm::Error) -> StoreError {
    StoreError(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_permutation_is_a_numbering() {
        let mut stored: Vec<u8> = (0..16).rev().collect();
        assert!(decode_numbering(&stored).is_some());
        assert!(decode_numbering(&stored[1..]).is_none());
        stored[0] = 0;
        assert!(decode_numbering(&stored).is_none(), "0 twice");
        stored[0] = 16;
        assert!(decode_numbering(&stored).is_none());
    }
}
