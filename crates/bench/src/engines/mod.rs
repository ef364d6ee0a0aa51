//! The engines behind one face, each at the settings its documentation recommends.

mod atoll;
#[cfg(feature = "peers-rust")]
mod fjall;
#[cfg(feature = "peers-rust")]
mod redb;

use std::path::PathBuf;

use crate::Failure;
use crate::data::{KEY_LEN, VALUE_LEN};

/// An engine that can be measured. The crate's documentation has the table of settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Name {
    /// AtollDB's storage engine.
    Atoll,
    /// The same with Bloom filters in all levels.
    AtollBloom,
    /// The same by blocking calls through the page cache, whatever `--io` and `--direct` say.
    AtollThreads,
    /// An LSM tree.
    Fjall,
    /// A copy-on-write B-tree.
    Redb,
}

impl Name {
    /// Returns the name, as flags, table and JSON spell it.
    pub fn name(self) -> &'static str {
        match self {
            Name::Atoll => "atoll",
            Name::AtollBloom => "atoll-bloom",
            Name::AtollThreads => "atoll-threads",
            Name::Fjall => "fjall",
            Name::Redb => "redb",
        }
    }

    /// Returns whether this program was built with it.
    pub fn is_built_in(self) -> bool {
        !matches!(self, Name::Fjall | Name::Redb) || cfg!(feature = "peers-rust")
    }
}

/// Returns the peers this program was built with.
pub fn peers() -> Vec<Name> {
    [Name::Fjall, Name::Redb].into_iter().filter(|name| name.is_built_in()).collect()
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
    /// What carries its transfers out, where it has a choice.
    pub io: Io,
    /// What of it goes past the page cache, where it has a choice.
    pub direct: Direct,
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
        records: &mut dyn Iterator<Item = ([u8; KEY_LEN], [u8; VALUE_LEN])>,
    ) -> Result<(), Failure> {
        for (key, value) in records {
            self.insert(&key, &value)?;
        }
        Ok(())
    }
    /// Returns the length of a key's value. The value is in memory then.
    fn get(&self, key: &[u8]) -> Result<Option<usize>, Failure>;
    /// Reads up to `count` keys and values from `key` on, and returns how many there were.
    fn scan(&self, key: &[u8], direction: Direction, count: usize) -> Result<usize, Failure>;
    /// Closes it in order.
    fn close(self: Box<Self>) -> Result<(), Failure>;
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
        #[cfg(feature = "peers-rust")]
        Name::Fjall => fjall::open(config),
        #[cfg(feature = "peers-rust")]
        Name::Redb => redb::open(config),
        #[cfg(not(feature = "peers-rust"))]
        Name::Fjall | Name::Redb => Err(missing(name).into()),
    }
}

/// Says how to get a peer that this program was built without.
pub fn missing(name: Name) -> String {
    format!("{} is not built in; build with `--features peers-rust`", name.name())
}
