//! AtollDB's engine.

use atoll_env::os::{Backend, DirectIo, IoOptions, env_with};
use atoll_lsm::{Builder, Database, Durability, Keyspace, Options, Range};

use super::{Config, Direct, Direction, Engine, Io};
use crate::Failure;

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
    let options = Options::new(env_with(io)?);
    let builder = Database::builder(&config.dir).options(options);
    let builder = builder.memory(memory).durability(durability);
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

    fn get(&self, key: &[u8]) -> Result<Option<usize>, Failure> {
        Ok(self.keyspace.get(key)?.map(|value| value.len()))
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

    fn close(self: Box<Self>) -> Result<(), Failure> {
        drop(self.keyspace);
        Ok(self.database.close()?)
    }
}
