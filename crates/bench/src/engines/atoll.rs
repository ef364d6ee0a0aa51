//! AtollDB's engine.

use atoll_env::os::{Backend, DirectIo, IoOptions, env_with};
use atoll_lsm::{Builder, Database, Durability, Keyspace, Options, Range, Snapshot};

use super::{Config, Direct, Direction, Engine, Frozen, Io};
use crate::Failure;
use crate::data::KEY_LEN;

pub(super) fn open(
    config: &Config,
    variant: impl FnOnce(Builder) -> Builder,
) -> Result<Box<dyn Engine>, Failure> {
    let durability = if config.synced { Durability::Synced } else { Durability::Buffered };
    let memory = usize::try_from(config.memory)?;
    let backend = match config.io {
        Io::Auto => Backend::Auto,
        Io::Uring => Backend::Uring,
        Io::Threads => Backend::Threads,
    };
    let direct = match config.direct {
        Direct::Off => DirectIo::Off,
        Direct::Log => DirectIo::Log,
        Direct::All => DirectIo::All,
    };
    let io = IoOptions { backend, direct, ..IoOptions::default() };
    let mut options = Options::new(env_with(io)?);
    if !config.record_cache {
        options.record_cache_percent = 0;
    }
    options.separate_above = config.separate_above.0;
    let builder = Database::builder(&config.dir);
    let builder = match config.unflushed {
        None => builder.options(options).memory(memory),
        Some(bytes) => {
            // Nodes and heads take up to as much again; 2 GiB are a memtable's end.
            options.memtable_size = usize::try_from(bytes * 2)?.min(2_000_000_000);
            options.memory = options.memtable_size * 4;
            builder.options(options)
        }
    };
    let builder = builder.durability(durability).pool(config.pool);
    let database = variant(builder).open()?;
    let keyspace = database.keyspace("bench", Default::default())?;
    Ok(Box::new(Atoll { database, keyspace }))
}

struct Atoll {
    database: Database,
    keyspace: Keyspace,
}

impl Engine for Atoll {
    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        Ok(self.keyspace.insert(key, value)?)
    }

    fn insert_beside(&self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        Ok(self.database.keyspace("beside", Default::default())?.insert(key, value)?)
    }

    fn remove(&self, key: &[u8]) -> Result<(), Failure> {
        Ok(self.keyspace.remove(key)?)
    }

    fn get(&self, key: &[u8]) -> Result<Option<usize>, Failure> {
        Ok(self.keyspace.get(key)?.map(|value| value.len()))
    }

    fn multi_get(&self, keys: &[[u8; KEY_LEN]]) -> Result<usize, Failure> {
        Ok(self.keyspace.multi_get(keys)?.iter().flatten().count())
    }

    fn scan(&self, key: &[u8], direction: Direction, count: usize) -> Result<usize, Failure> {
        let mut range: Range = match direction {
            Direction::Forward => self.keyspace.range(key..),
            Direction::Reverse => self.keyspace.range(..=key),
        };
        for met in 0..count {
            let next = match direction {
                Direction::Forward => range.next(),
                Direction::Reverse => range.next_back(),
            };
            let Some(guard) = next else { return Ok(met) };
            std::hint::black_box(guard?.into_inner()?);
        }
        Ok(count)
    }

    fn snapshot(&self) -> Result<Box<dyn Frozen + '_>, Failure> {
        Ok(Box::new((self.database.snapshot(), &self.keyspace)))
    }

    fn compact(&self) -> Result<(), Failure> {
        Ok(self.database.compact()?)
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        drop(self.keyspace);
        Ok(self.database.close()?)
    }
}

impl Frozen for (Snapshot, &Keyspace) {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        Ok(self.0.get(self.1, key)?.map(|value| value.to_vec()))
    }
}
