//! A small database in the simulator, and a model that knows what may be read from it.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::sim::{CrashMode, Node, Sim};
use atoll_env::sync::{Either, select_biased};
use atoll_lsm::{Database, Keyspace, KeyspaceOptions, Options, Result};

/// Where the database is.
pub fn dir() -> PathBuf {
    PathBuf::from("/data/db")
}

/// Options under which a few hundred writes reach every path.
pub fn options(env: Env) -> Options {
    Options {
        memory: 4 << 20,
        memtable_size: 16 << 10,
        log_segment_size: 32 << 10,
        block_size: 1 << 10,
        table_size: 8 << 10,
        level0_tables: 2,
        level_base_size: 24 << 10,
        level_ratio: 3,
        separate_above: None,
        ..Options::new(env)
    }
}

/// The same with half of the values that copies are made of in value files.
pub fn with_value_files(env: Env) -> Options {
    Options { separate_above: Some(150), ..options(env) }
}

pub async fn open(env: &Env) -> Result<(Database, Keyspace)> {
    open_with(options(env.clone())).await
}

pub async fn open_with(options: Options) -> Result<(Database, Keyspace)> {
    let db = Database::builder(dir()).options(options).open_async().await?;
    let ks = db.keyspace_async("k", KeyspaceOptions::default()).await?;
    Ok((db, ks))
}

/// Sets what becomes of the node's unsynced writes in a power cut.
pub fn cut_by(node: &Node, mode: CrashMode) {
    let mut options = node.disk().options();
    options.crash_mode = mode;
    node.disk().set_options(options);
}

/// Runs `body` on a node of a simulation of its own.
pub fn in_sim(seed: u64, body: impl AsyncFnOnce(&Env, &Node)) {
    let sim = Sim::new(seed);
    let node = sim.node("n");
    let env = node.env();
    run(&sim, &node, &format!("seed {seed}"), body(&env, &node));
}

/// Runs `future` on the node; a run that takes more than ten minutes of virtual time hangs.
pub fn run<T>(sim: &Sim, node: &Node, what: &str, future: impl Future<Output = T>) -> T {
    let env = node.env();
    let limited = select_biased(future, env.clock.sleep(Duration::from_secs(600)));
    match sim.block_on(node, limited).done() {
        Either::Left(output) => output,
        Either::Right(()) => panic!("{what}: no end after ten minutes"),
    }
}

pub type Value = Option<Vec<u8>>;

/// What each key may hold: the last acknowledged value, and those whose writes failed after it in a
/// way that leaves their fate open.
#[derive(Clone, Default)]
pub struct Model {
    keys: BTreeMap<Vec<u8>, Vec<Value>>,
}

impl Model {
    /// Takes in a write of `value` to `key`.
    pub fn wrote(&mut self, key: &[u8], value: Value, certain: bool) {
        let values = self.keys.entry(key.to_vec()).or_insert_with(|| vec![None]);
        if certain {
            values.clear();
        }
        values.push(value);
    }

    /// Takes in the removal of the keys in `[start, end)`.
    pub fn removed(&mut self, start: &[u8], end: &[u8], certain: bool) {
        for (_, values) in self.keys.range_mut(start.to_vec()..end.to_vec()) {
            if certain {
                values.clear();
            }
            values.push(None);
        }
    }

    pub fn allows(&self, key: &[u8], found: Option<&[u8]>) -> bool {
        match self.keys.get(key) {
            None => found.is_none(),
            Some(values) => values.iter().any(|v| v.as_deref() == found),
        }
    }

    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.keys.keys().map(Vec::as_slice)
    }

    /// Reads every key, alone and in a scan, and returns the first contradiction.
    pub async fn check(&self, ks: &Keyspace) -> Result<(), String> {
        let fail = |what: &str, key: &[u8]| {
            Err(format!("{what} of '{}' is not what was written", String::from_utf8_lossy(key)))
        };
        for key in self.keys() {
            let found = ks.get_async(key).await.map_err(|e| e.to_string())?;
            if !self.allows(key, found.as_deref()) {
                return fail("a get", key);
            }
        }
        let mut seen = BTreeMap::new();
        let mut cursor = ks.cursor::<&[u8]>(..);
        while let Some(guard) = cursor.next().await.map_err(|e| e.to_string())? {
            let value = guard.value_async().await.map_err(|e| e.to_string())?;
            seen.insert(guard.key().to_vec(), value.to_vec());
        }
        for key in self.keys() {
            if !self.allows(key, seen.get(key).map(Vec::as_slice)) {
                return fail("a scan", key);
            }
        }
        match seen.keys().find(|key| !self.keys.contains_key(*key)) {
            Some(key) => fail("a scan", key),
            None => Ok(()),
        }
    }
}
