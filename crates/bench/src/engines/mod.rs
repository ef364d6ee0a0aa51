//! The engines behind one face, each at the settings its documentation recommends for the workload,
//! within the same budget and at the same promise. The module of each names its settings and why.

mod atoll;
#[cfg(feature = "peers-rust")]
mod fjall;
#[cfg(feature = "peers")]
mod lmdb;
#[cfg(feature = "peers-rust")]
mod redb;
#[cfg(feature = "peers")]
mod rocksdb;

use std::path::PathBuf;

use atoll_lsm::PoolStrategy;

use crate::Failure;
use crate::data::KEY_LEN;
use crate::size::Threshold;

/// An engine that can be measured. The crate's documentation has the table of settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Name {
    /// AtollDB's storage engine.
    Atoll,
    /// The same with Bloom filters in all levels.
    AtollBloom,
    /// The same by blocking calls through the page cache, whatever `--io` and `--direct` say.
    AtollThreads,
    /// The same without pacing.
    AtollUnpaced,
    /// An LSM tree.
    Fjall,
    /// A copy-on-write B-tree.
    Redb,
    /// An LSM tree in C++.
    Rocksdb,
    /// The same with large values in blob files.
    RocksdbBlob,
    /// A copy-on-write B-tree in a shared mapping, in C.
    Lmdb,
}

impl Name {
    /// Returns the name, as flags, table and JSON spell it.
    pub fn name(self) -> &'static str {
        match self {
            Name::Atoll => "atoll",
            Name::AtollBloom => "atoll-bloom",
            Name::AtollThreads => "atoll-threads",
            Name::AtollUnpaced => "atoll-unpaced",
            Name::Fjall => "fjall",
            Name::Redb => "redb",
            Name::Rocksdb => "rocksdb",
            Name::RocksdbBlob => "rocksdb-blob",
            Name::Lmdb => "lmdb",
        }
    }

    /// Returns whether this program was built with it.
    pub fn is_built_in(self) -> bool {
        match self.feature() {
            None => true,
            Some("peers-rust") => cfg!(feature = "peers-rust"),
            Some(_) => cfg!(feature = "peers"),
        }
    }

    /// Returns the feature that builds it in, if it is not always there.
    fn feature(self) -> Option<&'static str> {
        match self {
            Name::Atoll | Name::AtollBloom | Name::AtollThreads | Name::AtollUnpaced => None,
            Name::Fjall | Name::Redb => Some("peers-rust"),
            Name::Rocksdb | Name::RocksdbBlob | Name::Lmdb => Some("peers"),
        }
    }
}

/// Returns the peers this program was built with.
pub fn peers() -> Vec<Name> {
    let peers = [Name::Rocksdb, Name::RocksdbBlob, Name::Fjall, Name::Lmdb, Name::Redb];
    peers.into_iter().filter(|name| name.is_built_in()).collect()
}

/// How an engine is opened.
#[derive(Clone)]
pub struct Config {
    /// Its directory; it exists.
    pub dir: PathBuf,
    /// Bytes it may hold in memory.
    pub memory: u64,
    /// Whether a write is on stable storage, or else in the kernel, before it is answered.
    pub synced: bool,
    /// Whether hot records are cached one by one, where there is a choice.
    pub record_cache: bool,
    /// Which values stand in files of their own, where there is a choice.
    pub separate_above: Threshold,
    /// What carries its transfers out, where it has a choice.
    pub io: Io,
    /// What of it goes past the page cache, where it has a choice.
    pub direct: Direct,
    /// Where its block cache has its memory, where it has a choice.
    pub pool: PoolStrategy,
    /// Bytes of a value.
    #[cfg_attr(not(feature = "peers"), expect(dead_code, reason = "only RocksDB wants to know"))]
    pub value_len: usize,
    /// Bytes of keys and values that are to stay in the log, whatever memory that takes.
    pub unflushed: Option<u64>,
}

/// What carries transfers out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Io {
    /// As the engine chooses.
    Auto,
    /// io_uring, also on the threads that wait.
    Uring,
    /// Blocking calls.
    Threads,
}

/// What goes past the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Direct {
    /// Nothing.
    Off,
    /// Synced writes of the log.
    Log,
    /// These, and tables.
    All,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Switch {
    /// As the engine comes.
    On,
    /// Without it.
    Off,
}

/// The direction of a scan.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To larger keys.
    Forward,
    /// To smaller keys.
    Reverse,
}

/// What is measured of an engine.
pub trait Engine: Send + Sync {
    /// Inserts a record and returns when it is as durable as the configuration says.
    fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), Failure>;
    /// Writes many records, in the way the engine does that best.
    fn load(
        &self,
        records: &mut dyn Iterator<Item = ([u8; KEY_LEN], Vec<u8>)>,
    ) -> Result<(), Failure> {
        for (key, value) in records {
            self.insert(&key, &value)?;
        }
        Ok(())
    }
    /// Inserts a record into another keyspace, which is kept from then on.
    fn insert_beside(&self, key: &[u8], value: &[u8]) -> Result<(), Failure>;
    /// Removes a key, as durably as it would be inserted.
    fn remove(&self, key: &[u8]) -> Result<(), Failure>;
    /// Returns the length of a key's value. The value is in memory then.
    fn get(&self, key: &[u8]) -> Result<Option<usize>, Failure>;
    /// Returns how many of the keys there are. Their values are in memory then.
    fn multi_get(&self, keys: &[[u8; KEY_LEN]]) -> Result<usize, Failure> {
        keys.iter().try_fold(0, |found, key| Ok(found + usize::from(self.get(key)?.is_some())))
    }
    /// Reads up to `count` keys and values from `key` on, and returns how many there were.
    fn scan(&self, key: &[u8], direction: Direction, count: usize) -> Result<usize, Failure>;
    /// Takes a snapshot.
    fn snapshot(&self) -> Result<Box<dyn Frozen + '_>, Failure>;
    /// Merges everything into one level and returns when that is done.
    fn compact(&self) -> Result<(), Failure>;
    /// Closes it in order.
    fn close(self: Box<Self>) -> Result<(), Failure>;
}

/// A database as it was when the snapshot was taken.
pub trait Frozen {
    /// Returns the value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure>;
}

/// Opens an engine, making its database if there is none.
pub fn open(name: Name, config: &Config) -> Result<Box<dyn Engine>, Failure> {
    match name {
        Name::Atoll => atoll::open(config, |builder| builder),
        Name::AtollThreads => {
            let config = Config { io: Io::Threads, direct: Direct::Off, ..config.clone() };
            atoll::open(&config, |builder| builder)
        }
        Name::AtollBloom => {
            atoll::open(config, |builder| builder.filter_policy(atoll_lsm::FilterPolicy::Bloom))
        }
        Name::AtollUnpaced => atoll::open(config, |builder| builder.pacing(false)),
        #[cfg(feature = "peers-rust")]
        Name::Fjall => fjall::open(config),
        #[cfg(feature = "peers-rust")]
        Name::Redb => redb::open(config),
        #[cfg(feature = "peers")]
        Name::Rocksdb => rocksdb::open(config, false),
        #[cfg(feature = "peers")]
        Name::RocksdbBlob => rocksdb::open(config, true),
        #[cfg(feature = "peers")]
        Name::Lmdb => lmdb::open(config),
        #[cfg(not(feature = "peers-rust"))]
        Name::Fjall | Name::Redb => Err(missing(name).into()),
        #[cfg(not(feature = "peers"))]
        Name::Rocksdb | Name::RocksdbBlob | Name::Lmdb => Err(missing(name).into()),
    }
}

/// Says how to get a peer that this program was built without.
pub fn missing(name: Name) -> String {
    let feature = name.feature().unwrap_or_default();
    format!("{} is not built in; build with `--features {feature}`", name.name())
}

/// Says that an engine keeps no log in which records could wait.
#[cfg(any(feature = "peers", feature = "peers-rust"))]
fn without_log(config: &Config) -> Result<(), Failure> {
    match config.unflushed {
        Some(_) => Err("it has no log to recover from".into()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns all engines this program was built with.
    fn built_in() -> impl Iterator<Item = Name> {
        <Name as clap::ValueEnum>::value_variants()
            .iter()
            .copied()
            .filter(|name| name.is_built_in())
    }

    fn config(dir: &std::path::Path) -> Config {
        let dir = dir.to_owned();
        Config {
            dir,
            memory: 16 << 20,
            synced: false,
            record_cache: true,
            separate_above: Threshold(Some(512)),
            io: Io::Auto,
            direct: Direct::Log,
            pool: PoolStrategy::default(),
            value_len: 100,
            unflushed: None,
        }
    }

    #[test]
    fn every_engine_does_what_its_face_says() {
        for name in built_in() {
            let dir = tempfile::tempdir().unwrap();
            let engine = open(name, &config(dir.path())).unwrap();
            let key = |n: u8| [n; KEY_LEN];
            engine.load(&mut (0..100).map(|n| (key(n), vec![n; 100]))).unwrap();
            assert_eq!(engine.get(&key(7)).unwrap(), Some(100), "{name:?}");
            let snapshot = engine.snapshot().unwrap();

            engine.insert(&key(7), &[1; 50]).unwrap();
            engine.remove(&key(8)).unwrap();
            engine.insert_beside(&key(200), &[1; 10]).unwrap();
            assert_eq!(engine.get(&key(7)).unwrap(), Some(50), "{name:?} reads what it wrote");
            assert_eq!(engine.get(&key(8)).unwrap(), None, "{name:?}");
            assert_eq!(engine.get(&key(200)).unwrap(), None, "{name:?}: it lies beside");
            assert_eq!(engine.multi_get(&[key(7), key(8), key(9)]).unwrap(), 2, "{name:?}");
            let scan = |direction, count| engine.scan(&key(95), direction, count).unwrap();
            assert_eq!(scan(Direction::Forward, 10), 5, "{name:?}");
            assert_eq!(scan(Direction::Reverse, usize::MAX), 95, "{name:?}");
            assert_eq!(snapshot.get(&key(8)).unwrap(), Some(vec![8; 100]), "{name:?}");
            assert_eq!(snapshot.get(&key(7)).unwrap(), Some(vec![7; 100]), "{name:?}");
            drop(snapshot);

            let compacts = engine.compact();
            let has_levels = !matches!(name, Name::Redb | Name::Lmdb);
            assert_eq!(compacts.is_ok(), has_levels, "{name:?}: {compacts:?}");
            engine.close().unwrap();
            // LMDB's environment lives as long as the process, which opens it once.
            if name != Name::Lmdb {
                let engine = open(name, &config(dir.path())).unwrap();
                assert_eq!(engine.get(&key(7)).unwrap(), Some(50), "{name:?} keeps it");
                engine.close().unwrap();
            }
        }
    }
}
