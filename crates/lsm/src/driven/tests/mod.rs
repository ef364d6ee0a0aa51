//! A store and its owner in the simulator.
//!
//! | file | question |
//! |---|---|
//! | `consensus` | is what was committed there after a power cut, and nothing that was not? |
//! | `ending` | what becomes of a full or failing disk, of closing, of other kinds of directories? |
//! | `lane` | does the log stay short, whoever is idle? |
//! | `versions` | does a read at a stamp find what was written, whatever was flushed and compacted? |

mod consensus;
mod ending;
mod lane;
mod versions;

use std::path::PathBuf;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::sim::{Node, Sim};
use atoll_env::sync::{Either, select_biased};

use super::{Driver, EntryId, OpenOptions, Tree, Writes, open};
use crate::error::Result;
use crate::options::Options;

/// Options under which a few hundred writes reach every path.
fn options(env: &Env) -> Options {
    Options {
        memory: 4 << 20,
        memtable_size: 16 << 10,
        log_segment_size: 16 << 10,
        block_size: 1 << 10,
        table_size: 8 << 10,
        level0_tables: 2,
        level_base_size: 24 << 10,
        level_ratio: 3,
        separate_above: Some(48),
        value_file_size: 8 << 10,
        ..Options::new(env.clone())
    }
}

/// Where the store is.
fn dir() -> PathBuf {
    PathBuf::from("/data/store")
}

/// Runs `test` on a node of its own, which nobody crashes.
fn run<T>(seed: u64, test: impl AsyncFnOnce(Env, &Node) -> T) -> T {
    let sim = Sim::new(seed);
    let node = sim.node("n");
    let env = node.env();
    let limit = env.clock.sleep(Duration::from_secs(3600));
    match sim.block_on(&node, select_biased(test(env, &node), limit)).done() {
        Either::Left(output) => output,
        Either::Right(()) => panic!("seed {seed}: no end after an hour"),
    }
}

/// An owner whose entries are committed once they are written: one voter.
struct Owner {
    driver: Driver,
    tree: Tree,
}

impl Owner {
    async fn open(env: &Env) -> Result<Owner> {
        Owner::open_with(options(env)).await
    }

    async fn open_with(options: Options) -> Result<Owner> {
        let (driver, tree) = open(dir(), OpenOptions { options }).await?;
        let mut owner = Owner { driver, tree };
        owner.catch_up().await?;
        Ok(owner)
    }

    /// Applies what is in the log and not in tables.
    async fn catch_up(&mut self) -> Result<()> {
        let groups: Vec<_> = self.driver.groups().collect();
        for group in groups {
            let mut next = self.driver.applied(group.group) + 1;
            while next < group.next {
                let range = next..group.next;
                for entry in self.driver.entries_up_to(group.group, range, 8 << 10).await? {
                    let (index, position) = (entry.id.index, entry.position);
                    self.driver.apply(group.group, index, position, &entry.payload).await?;
                    next = index + 1;
                }
            }
        }
        Ok(())
    }

    /// Carries an entry of `group` through.
    async fn commit(&mut self, group: u64, writes: &Writes) -> Result<()> {
        let driver = &mut self.driver;
        driver.chores().await?;
        driver.reserve(writes.arena_bytes(), &[writes.bytes().len()]).await?;
        let index = driver.group(group).map_or(1, |g| g.next);
        let position = driver.append(EntryId { group, index, term: 1 }, &[writes.bytes()])?;
        driver.write().await?;
        driver.apply(group, index, position, writes.bytes()).await
    }

    async fn flush(&mut self) -> Result<()> {
        let tree = self.tree.clone();
        self.driver.attend(tree.flush()).await
    }

    async fn compact(&mut self) -> Result<()> {
        let tree = self.tree.clone();
        self.driver.attend(tree.compact()).await
    }
}
