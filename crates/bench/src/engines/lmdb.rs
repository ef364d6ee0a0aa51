//! LMDB, by heed: every write is a transaction; reads share one until the next write.
//!
//! | setting           | value                          | why                                                    |
//! |-------------------|--------------------------------|--------------------------------------------------------|
//! | memory            | none to set                    | it serves from the page cache, which the cgroup bounds |
//! | `MDB_WRITEMAP`    | on                             | "faster and uses fewer mallocs"                        |
//! | `MDB_NOSYNC`      | for unsynced writes            | the mapping is the kernel's: the process may die       |
//! | `MDB_NORDAHEAD`   | on                             | "may help random read performance" beyond the memory   |
//! | reads             | one transaction between writes | beginning one costs as much as a cached read           |
//! | map size          | 64 GiB                         | a sparse file, of which blocks count, not the length   |
//!
//! It keeps no log, so that a long one cannot be recovered from, and has no levels to compact. Its
//! largest resident set has the mapped part of the page cache in it. It does not compress.

#![expect(unsafe_code, reason = "a mapped file is the operating system's to keep unchanged")]

use std::ops::{Bound, Deref};
use std::sync::{Mutex, PoisonError};

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, RoTxn, WithoutTls};

use super::{Config, Direction, Engine, Frozen, without_log};
use crate::Failure;
use crate::data::KEY_LEN;

const MAP_LEN: usize = 64 << 30;

/// Records of a transaction when many are loaded.
const LOAD_BATCH: usize = 10_000;

type Table = Database<'static, Bytes, Bytes>;
type Reader = RoTxn<'static, WithoutTls>;

pub(super) fn open(config: &Config) -> Result<Box<dyn Engine>, Failure> {
    without_log(config)?;
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(MAP_LEN).max_dbs(2);
    let mut flags = EnvFlags::WRITE_MAP | EnvFlags::NO_READ_AHEAD;
    if !config.synced {
        flags |= EnvFlags::NO_SYNC;
    }
    // SAFETY: the flags ask for nothing that needs care of ours (no NOLOCK), and the file lies in a
    // directory of this process, which nobody else maps or changes.
    let env = unsafe { options.flags(flags).open(&config.dir)? };
    // Tables borrow the environment. A process opens one, and ends with it.
    let env: &'static Env<WithoutTls> = Box::leak(Box::new(env));
    let made = env.create_databases_and_commit(env.write_txn()?, |opener, transaction| {
        let table = opener.create_database::<Bytes, Bytes>(transaction, Some("bench"))?;
        let beside = opener.create_database::<Bytes, Bytes>(transaction, Some("beside"))?;
        Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit((table, beside)))
    })?;
    let CommitOrAbort::Commit((table, beside)) = made else {
        return Err("the tables were not made".into());
    };
    Ok(Box::new(Lmdb { env, table, beside, reader: Mutex::new(None) }))
}

struct Lmdb {
    env: &'static Env<WithoutTls>,
    table: Table,
    beside: Table,
    reader: Mutex<Option<Reader>>,
}

impl Lmdb {
    /// Removes a key, or inserts it with a value.
    fn write(&self, table: Table, key: &[u8], value: Option<&[u8]>) -> Result<(), Failure> {
        let mut transaction = self.env.write_txn()?;
        match value {
            Some(value) => table.put(&mut transaction, key, value)?,
            None => drop(table.delete(&mut transaction, key)?),
        }
        transaction.commit()?;
        self.forget_reader();
        Ok(())
    }

    fn forget_reader(&self) {
        *self.reader.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Reads in the shared transaction, made anew after a write.
    fn read<T>(&self, read: impl FnOnce(&Reader) -> Result<T, Failure>) -> Result<T, Failure> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let reader = match reader.deref() {
            Some(_) => reader.as_ref(),
            None => Some(&*reader.insert(self.env.read_txn()?)),
        };
        read(reader.ok_or("invariant: a reader was just put there")?)
    }
}

impl Engine for Lmdb {
    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.write(self.table, key, Some(value))
    }

    fn load(
        &self,
        records: &mut dyn Iterator<Item = ([u8; KEY_LEN], Vec<u8>)>,
    ) -> Result<(), Failure> {
        let mut records = records.peekable();
        while records.peek().is_some() {
            let mut transaction = self.env.write_txn()?;
            for (key, value) in records.by_ref().take(LOAD_BATCH) {
                self.table.put(&mut transaction, &key, &value)?;
            }
            transaction.commit()?;
        }
        self.forget_reader();
        Ok(())
    }

    fn insert_beside(&self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.write(self.beside, key, Some(value))
    }

    fn remove(&self, key: &[u8]) -> Result<(), Failure> {
        self.write(self.table, key, None)
    }

    fn get(&self, key: &[u8]) -> Result<Option<usize>, Failure> {
        self.read(|reader| Ok(found(self.table.get(reader, key)?)))
    }

    fn multi_get(&self, keys: &[[u8; KEY_LEN]]) -> Result<usize, Failure> {
        self.read(|reader| {
            keys.iter().try_fold(0, |count, key| {
                Ok(count + usize::from(found(self.table.get(reader, key)?).is_some()))
            })
        })
    }

    fn scan(&self, key: &[u8], direction: Direction, count: usize) -> Result<usize, Failure> {
        self.read(|reader| match direction {
            Direction::Forward => {
                let range = (Bound::Included(key), Bound::Unbounded);
                walk(self.table.range(reader, &range)?, count)
            }
            Direction::Reverse => {
                let range = (Bound::Unbounded, Bound::Included(key));
                walk(self.table.rev_range(reader, &range)?, count)
            }
        })
    }

    fn snapshot(&self) -> Result<Box<dyn Frozen + '_>, Failure> {
        Ok(Box::new((self.env.read_txn()?, self.table)))
    }

    fn compact(&self) -> Result<(), Failure> {
        Err("it has no levels to compact".into())
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        self.forget_reader();
        Ok(self.env.force_sync()?)
    }
}

impl Frozen for (Reader, Table) {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        Ok(self.1.get(&self.0, key)?.map(<[u8]>::to_vec))
    }
}

/// Returns the length of a value that lies in the mapping, after every page of it was touched.
fn found(value: Option<&[u8]>) -> Option<usize> {
    value.map(|value| {
        value.iter().step_by(4096).chain(value.last()).for_each(|byte| {
            std::hint::black_box(*byte);
        });
        value.len()
    })
}

fn walk<'t>(
    records: impl Iterator<Item = heed::Result<(&'t [u8], &'t [u8])>>,
    count: usize,
) -> Result<usize, Failure> {
    let mut met = 0;
    for record in records.take(count) {
        std::hint::black_box(found(Some(record?.1)));
        met += 1;
    }
    Ok(met)
}
