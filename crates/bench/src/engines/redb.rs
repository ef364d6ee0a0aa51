//! redb: every insert is a transaction; reads share one, as no workload writes after it has read.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::{Database, Durability, ReadOnlyTable, ReadableDatabase, TableDefinition};

use super::{Config, Direction, Engine};
use crate::Failure;
use crate::data::{KEY_LEN, VALUE_LEN};

const TABLE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("bench");

/// Unsynced transactions between two synced ones. The pages of unsynced ones stay in memory and
/// cannot be used again before the next synced one, so there must be some.
const SYNC_EVERY: u64 = 1000;

/// Records of a transaction when many are loaded.
const LOAD_BATCH: usize = 10_000;

pub(super) fn open(config: &Config) -> Result<Box<dyn Engine>, Failure> {
    let mut builder = Database::builder();
    builder.set_cache_size(usize::try_from(config.memory)?);
    let database = builder.create(config.dir.join("redb"))?;
    Ok(Box::new(Redb {
        database,
        synced: config.synced,
        inserts: AtomicU64::new(0),
        reader: OnceLock::new(),
    }))
}

struct Redb {
    database: Database,
    synced: bool,
    inserts: AtomicU64,
    reader: OnceLock<ReadOnlyTable<&'static [u8], &'static [u8]>>,
}

impl Redb {
    fn commit(
        &self,
        durability: Durability,
        record: Option<(&[u8], &[u8])>,
    ) -> Result<(), Failure> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(durability)?;
        if let Some((key, value)) = record {
            transaction.open_table(TABLE)?.insert(key, value)?;
        }
        Ok(transaction.commit()?)
    }

    fn reader(&self) -> Result<&ReadOnlyTable<&'static [u8], &'static [u8]>, Failure> {
        if let Some(reader) = self.reader.get() {
            return Ok(reader);
        }
        let table = self.database.begin_read()?.open_table(TABLE)?;
        Ok(self.reader.get_or_init(|| table))
    }
}

impl Engine for Redb {
    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        let nth = self.inserts.fetch_add(1, Ordering::Relaxed) + 1;
        let synced = self.synced || nth.is_multiple_of(SYNC_EVERY);
        let durability = if synced { Durability::Immediate } else { Durability::None };
        self.commit(durability, Some((key, value)))
    }

    fn load(
        &self,
        records: &mut dyn Iterator<Item = ([u8; KEY_LEN], [u8; VALUE_LEN])>,
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
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<usize>, Failure> {
        Ok(self.reader()?.get(key)?.map(|value| value.value().len()))
    }

    fn scan(&self, key: &[u8], direction: Direction, count: usize) -> Result<usize, Failure> {
        let mut range = match direction {
            Direction::Forward => self.reader()?.range(key..)?,
            Direction::Reverse => self.reader()?.range(..=key)?,
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

    fn close(self: Box<Self>) -> Result<(), Failure> {
        self.commit(Durability::Immediate, None)
    }
}
