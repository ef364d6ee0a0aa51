//! Commands and units whose keys lie on several shards: a transaction with its keys locked first.
//!
//! ```text
//!   keys from the command table -> lock in key order -> compare watched -> run -> commit
//! ```
//!
//! The locks make the commands wait for each other instead of failing; what may still go wrong (a
//! shard was split, a database was flushed) is tried again from the start, unseen by the client.

use std::collections::BTreeMap;

use atoll_kv::Core;
use atoll_mvcc::keys::slot;
use atoll_mvcc::request::{Isolation, Key};
use atoll_mvcc::{Timestamp, Value};
use atoll_redis::data::{self, DataCall};
use atoll_resp::Protocol;
use atoll_shard::leader::local_key;
use atoll_txn::{Abort, Error};

use crate::call::{Item, Reply, Watched, encode_error, encode_text};
use crate::databases::{self, DATABASES};
use crate::program::{ObjectProgram, is_unchanged};
use crate::shard_tx::ABSENT;
use crate::txn_tx::{NodeTxn, TxnTx};
use crate::whole::{self, Change, Map};

/// A part of a transaction.
#[derive(Clone, Debug)]
pub enum Step {
    /// A command of named keys.
    Keys(Item),
    /// A command that changes which databases mean what, with its reply.
    Databases {
        /// What it changes.
        changes: Vec<Change>,
        /// Its reply, encoded.
        reply: Vec<u8>,
    },
}

/// Runs commands as one transaction; they see each other's effects.
pub async fn run(
    core: &Core<ObjectProgram>,
    steps: &[Step],
    watched: &[Watched],
    protocol: Protocol,
    touch: bool,
) -> Reply {
    let done = core
        .coordinator()
        .run(Isolation::Serializable, async |txn| {
            attempt(core, txn, steps, watched, protocol, touch).await
        })
        .await;
    let replies = match done {
        Ok((None, _)) => return Reply::Unit(None),
        Ok((Some(replies), _)) => Ok(replies),
        Err(error) => Err(error),
    };
    match replies {
        Ok(replies) => Reply::Unit(Some(replies)),
        Err(error) => Reply::Failed(explain(protocol, &error)),
    }
}

/// Runs commands that only read over the state at one timestamp: without locks, and without
/// waiting for anything above it. A timestamp that is too old is exchanged for the present.
pub async fn read(
    core: &Core<ObjectProgram>,
    items: &[&Item],
    at: Timestamp,
    protocol: Protocol,
    touch: bool,
) -> Reply {
    let done = match read_at(core, items, at, protocol, touch).await {
        Err(Error::Aborted(Abort::SnapshotTooOld)) => {
            read_at(core, items, core.read_point(), protocol, touch).await
        }
        done => done,
    };
    match done {
        Ok(replies) => Reply::Unit(Some(replies)),
        Err(error) => Reply::Failed(explain(protocol, &error)),
    }
}

async fn read_at(
    core: &Core<ObjectProgram>,
    items: &[&Item],
    at: Timestamp,
    protocol: Protocol,
    touch: bool,
) -> Result<Vec<Vec<u8>>, Error> {
    let mut txn = core.coordinator().begin_at(at)?;
    let first = items.iter().find_map(|item| item.keys().next().map(slot));
    let keyspaces = keyspaces(core, &mut txn, first.unwrap_or(0)).await?;
    let mut names: Vec<Key> = Vec::new();
    for item in items {
        for key in item.keys() {
            let mut name = Vec::new();
            databases::put_key(&mut name, keyspaces[item.db], key);
            names.push(name);
        }
    }
    // All shards at once; what the commands ask for is there then.
    let found = txn.multi_get(&names).await?;
    let values = names.into_iter().zip(found).collect();
    let mut tx = TxnTx {
        txn: &mut txn,
        epoch_us: at.epoch().0,
        keyspaces,
        values,
        writes: BTreeMap::new(),
        generation: 0,
        generations: BTreeMap::new(),
        stats: core.program().stats().clone(),
        failure: None,
    };
    let mut replies = Vec::with_capacity(items.len());
    for item in items {
        let command = item.command;
        let request = item.request.as_request();
        let call = DataCall { command, request, protocol, db: item.db, touch };
        let mut out = Vec::new();
        if let Err(error) = data::run(&call, &mut tx, &mut out).await {
            out = encode_error(protocol, &error);
        }
        if let Some(failure) = tx.failure.take() {
            return Err(failure);
        }
        replies.push(out);
    }
    Ok(replies)
}

/// Encodes why a transaction was not committed.
pub fn explain(protocol: Protocol, error: &Error) -> Vec<u8> {
    let text = match error {
        Error::Unknown(_) => format!("UNKNOWN {error}"),
        _ => format!("ERR {error}"),
    };
    encode_text(protocol, text.as_bytes())
}

/// Returns the replies, `None` if a watched key has changed.
async fn attempt(
    core: &Core<ObjectProgram>,
    txn: &mut NodeTxn,
    steps: &[Step],
    watched: &[Watched],
    protocol: Protocol,
    touch: bool,
) -> Result<Option<Vec<Vec<u8>>>, Error> {
    let first = steps.iter().find_map(|step| match step {
        Step::Keys(item) => item.keys().next().map(slot),
        Step::Databases { .. } => None,
    });
    let before = keyspaces(core, txn, first.unwrap_or(0)).await?;
    // What the databases mean from each step on.
    let mut maps = Vec::with_capacity(steps.len());
    let mut map = before;
    let mut names: Vec<Key> = Vec::new();
    let name = |map: &Map, db: usize, key: &[u8]| {
        let mut name = Vec::new();
        databases::put_key(&mut name, map[db], key);
        name
    };
    for step in steps {
        match step {
            Step::Keys(item) => {
                for key in item.keys() {
                    names.push(name(&map, item.db, key));
                    if let Some(other) = other_database(item) {
                        names.push(name(&map, other, key));
                    }
                }
            }
            Step::Databases { changes, .. } => {
                for change in changes {
                    whole::plan(txn, &mut map, change).await?;
                }
            }
        }
        maps.push(map);
    }
    for watched in watched {
        names.push(name(&before, watched.db, &watched.key));
    }
    // The moment is drawn when everybody else has to wait: nothing that is there is newer.
    let locked = txn.lock_versions(names, true).await?;
    core.refresh();
    let now = core.now().epoch;
    let mut values = BTreeMap::new();
    let mut versions = BTreeMap::new();
    for (key, version) in locked {
        let value = version.as_ref().and_then(|version| version.value.clone());
        let live = value.as_ref().is_some_and(|bytes| {
            !Value::decode(bytes).is_ok_and(|value| value.is_expired(now.unix_ms()))
        });
        let ts = version.map_or(0, |version| version.ts.0);
        versions.insert(key.clone(), if live { ts } else { ABSENT | ts });
        values.insert(key, value);
    }
    for watched in watched {
        let seen =
            versions.get(&name(&before, watched.db, &watched.key)).copied().unwrap_or(ABSENT);
        if !is_unchanged(watched.version, seen) {
            return Ok(None);
        }
    }
    let (writes, generation) = (BTreeMap::new(), 0);
    let epoch_us = now.0;
    let keyspaces = before;
    let stats = core.program().stats().clone();
    let mut tx = TxnTx {
        txn,
        epoch_us,
        keyspaces,
        values,
        writes,
        generation,
        generations: BTreeMap::new(),
        stats,
        failure: None,
    };
    let mut replies = Vec::with_capacity(steps.len());
    for (step, map) in steps.iter().zip(maps) {
        tx.keyspaces = map;
        let item = match step {
            Step::Keys(item) => item,
            Step::Databases { reply, .. } => {
                replies.push(reply.clone());
                continue;
            }
        };
        let call = DataCall {
            command: item.command,
            request: item.request.as_request(),
            protocol,
            db: item.db,
            touch,
        };
        let mut out = Vec::new();
        if let Err(error) = data::run(&call, &mut tx, &mut out).await {
            out = encode_error(protocol, &error);
        }
        if let Some(failure) = tx.failure.take() {
            return Err(failure);
        }
        replies.push(out);
    }
    for (key, value) in std::mem::take(&mut tx.writes) {
        match value {
            Some(value) => txn.put(&key, &value).await?,
            None => txn.delete(&key).await?,
        }
    }
    if map != before {
        whole::renumber(core, txn, &before, &map).await?;
    }
    Ok(Some(replies))
}

/// Returns the database that MOVE and COPY write to, if it is another one.
fn other_database(item: &Item) -> Option<usize> {
    let request = item.request.as_request();
    let number = match item.command.name {
        "move" => request.get(2),
        "copy" => {
            let at = request.tail(3).position(|word| word.eq_ignore_ascii_case(b"db"));
            at.and_then(|at| request.get(3 + at + 1))
        }
        _ => None,
    };
    let number = atoll_resp::number::parse_i64(number?)?;
    usize::try_from(number).ok().filter(|db| *db < DATABASES)
}

/// Reads the map of the databases at the shard of a slot; all shards have the same one.
pub(crate) async fn keyspaces(
    core: &Core<ObjectProgram>,
    txn: &mut NodeTxn,
    slot: u16,
) -> Result<Map, Error> {
    let first = {
        let table = core.table();
        let route = table.find(atoll_mvcc::keys::RoutingKey::Slot(slot));
        route.descriptor.range.slots().start
    };
    let names: Vec<Key> = (0..DATABASES).map(|db| local_key(first, &databases::name(db))).collect();
    let entries = txn.multi_get(&names).await?;
    let mut keyspaces = [0; DATABASES];
    for (db, (keyspace, entry)) in keyspaces.iter_mut().zip(entries).enumerate() {
        *keyspace = databases::keyspace(db, entry.as_deref());
    }
    Ok(keyspaces)
}
