//! redb: every write is a transaction; reads share one until the next write.
//!
//! | setting      | value                              | why                                          |
//! |--------------|------------------------------------|----------------------------------------------|
//! | `cache_size` | all of the budget                  | it has no other memory                       |
//! | durability   | `Immediate` if synced, else `None` | it has nothing between these two             |
//! | reads        | one transaction between two writes | beginning one costs as much as a cached read |
//!
//! It keeps no log, so that a long one cannot be recovered from, and has no levels to compact.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use redb::{Database, Durability, ReadOnlyTable, ReadableDatabase, TableDefinition};

use super::{Config, Direction, Engine, Frozen, without_log};
use crate::Failure;
use crate::data::KEY_LEN;

const TABLE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("bench");
const BESIDE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("beside");

type Reader = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// Unsynced transactions between two synced ones. The pages of unsynced ones stay in memory and
/// cannot be used again before the next synced one, so there must be some.
const SYNC_EVERY: u64 = 1000;

/// Records of a transaction when many are loaded.
const LOAD_BATCH: usize = 10_000;

pub(super) fn open(config: &Config) -> Result<Box<dyn Engine>, Failure> {
    without_log(config)?;
    let mut builder = Database::builder();
    builder.set_cache_size(usize::try_from(config.memory)?);
    let database = builder.create(config.dir.join("redb"))?;
    Ok(Box::new(Redb {
        database,
        synced: config.synced,
        writes: AtomicU64::new(0),
        reader: RwLock::new(None),
    }))
}

struct Redb {
    database: Database,
    synced: bool,
    writes: AtomicU64,
    reader: RwLock<Option<Arc<Reader>>>,
}

impl Redb {
    /// Removes a key, or inserts it with a value.
    fn write(
        &self,
        table: TableDefinition<&[u8], &[u8]>,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), Failure> {
        let nth = self.writes.fetch_add(1, Ordering::Relaxed) + 1;
        let synced = self.synced || nth.is_multiple_of(SYNC_EVERY);
        let mut transaction = self.database.begin_write()?;
        let durability = if synced { Durability::Immediate } else { Durability::None };
        transaction.set_durability(durability)?;
        let mut opened = transaction.open_table(table)?;
        match value {
            Some(value) => drop(opened.insert(key, value)?),
            None => drop(opened.remove(key)?),
        }
        drop(opened);
        transaction.commit()?;
        self.forget_reader();
        Ok(())
    }

    fn forget_reader(&self) {
        let is_there = self.reader.read().unwrap_or_else(PoisonError::into_inner).is_some();
        if is_there {
            *self.reader.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    fn new_reader(&self) -> Result<Reader, Failure> {
        Ok(self.database.begin_read()?.open_table(TABLE)?)
    }

    fn reader(&self) -> Result<Arc<Reader>, Failure> {
        if let Some(reader) = &*self.reader.read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(Arc::clone(reader));
        }
        // Made under the lock: one made before a write must not take its place after it.
        let mut place = self.reader.write().unwrap_or_else(PoisonError::into_inner);
        let reader = Arc::new(self.new_reader()?);
        *place = Some(Arc::clone(&reader));
        Ok(reader)
    }
}

impl Engine for Redb {
    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.write(TABLE, key, Some(value))
    }

    fn insert_beside(&self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.write(BESIDE, key, Some(value))
    }

    fn remove(&self, key: &[u8]) -> Result<(), Failure> {
        self.write(TABLE, key, None)
    }

    fn load(
        &self,
        records: &mut dyn Iterator<Item = ([u8; KEY_LEN], Vec<u8>)>,
    ) -> Result<(), Failure> {
        let mut records = records.peekable();
        while records.peek().is_some() {
            let transaction = self.database.begin_write()?;
            let mut table = transaction.open_table(TABLE)?;
            for (key, value) in records.by_ref().take(LOAD_BATCH) {
                table.insert(&key[..], &value[..])?;
            }
            drop(table);
            transaction.commit()?;
        }
        self.forget_reader();
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<usize>, Failure> {
        Ok(self.reader()?.get(key)?.map(|value| value.value().len()))
    }

    fn scan(&self, key: &[u8], direction: Direction, count: usize) -> Result<usize, Failure> {
        let reader = self.reader()?;
        let mut range = match direction {
            Direction::Forward => reader.range(key..)?,
            Direction::Reverse => reader.range(..=key)?,
        };
        for met in 0..count {
            let next = match direction {
                Direction::Forward => range.next(),
                Direction::Reverse => range.next_back(),
            };
            let Some(record) = next else { return Ok(met) };
            let (key, value) = record?;
            std::hint::black_box((key.value(), value.value()));
        }
        Ok(count)
    }

    fn snapshot(&self) -> Result<Box<dyn Frozen + '_>, Failure> {
        Ok(Box::new(self.new_reader()?))
    }

    fn compact(&self) -> Result<(), Failure> {
        Err("it has no levels to compact".into())
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        Ok(transaction.commit()?)
    }
}

impl Frozen for Reader {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        Ok(ReadOnlyTable::get(self, key)?.map(|value| value.value().to_vec()))
    }
}
