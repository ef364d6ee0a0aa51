//! Commands and units whose keys lie on several shards: a transaction with its keys locked first.
//!
//! ```text
//!   keys from the command table --+--> read them at one moment --------------------+--> run -> commit
//!                                 +--> lock in key order -> compare watched keys --+
//! ```
//!
//! Nobody else writes these keys meanwhile, mostly: then they are just read, and the commit finds that
//! nothing has changed. If something has, it is tried again with locks, which make the commands wait for
//! each other instead of failing. After that it is tried with locks at once for a while: keys that are
//! fought over once are fought over again. What may still go wrong (a shard was split, a database was
//! flushed) is tried again from the start, unseen by the client.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use atoll_env::sometimes;
use atoll_kv::Core;
use atoll_mvcc::keys::{RoutingKey, slot};
use atoll_mvcc::request::{Isolation, Key};
use atoll_mvcc::{Epoch, Timestamp, Value};
use atoll_redis::cursors::Cursors;
use atoll_redis::data::{self, DataCall};
use atoll_redis::task::Manner;
use atoll_redis::{Durability, keyspace};
use atoll_resp::Protocol;
use atoll_shard::leader::local_key;
use atoll_txn::{Abort, Error};
use parking_lot::Mutex;

use crate::call::{Item, Reply, Watched, encode_error, encode_text};
use crate::databases::{self, DATABASES};
use crate::inside::Inside;
use crate::program::{ObjectProgram, is_unchanged};
use crate::shard_tx::ABSENT;
use crate::txn_tx::{NodeTxn, TxnTx};
use crate::whole::{self, Change, Map};

/// Transactions that lock their keys at once after one that had to be tried again.
const WARY: u32 = 64;

/// A part of a transaction.
#[derive(Clone, Debug)]
pub enum Step {
    /// A command of named keys.
    Keys(Item),
    /// A question about whole databases.
    Question(Item),
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
    cursors: &Mutex<Cursors>,
    manner: &Manner,
) -> Reply {
    let asks = steps.iter().any(|step| matches!(step, Step::Question(_)));
    let commands = Commands {
        steps,
        watched,
        cursors,
        protocol: manner.protocol,
        touch: manner.touch,
        locks: false,
    };
    let isolation = Isolation::Serializable;
    let mut done = transact(core, isolation, commands, manner.durability).await;
    // What was asked of whole databases cannot be locked, and where others never stop writing it never
    // holds until the commit. It is told as of one moment then; keys are locked as ever.
    if asks && matches!(&done, Err(Error::Aborted(why)) if why.is_retryable()) {
        sometimes!(true, "a question inside of MULTI is answered as of its moment");
        done = transact(core, Isolation::Snapshot, commands, manner.durability).await;
    }
    match done {
        Ok(replies) => Reply::Unit(replies),
        Err(error) => Reply::Failed(explain(manner.protocol, &error)),
    }
}

/// Runs commands until they commit; returns the replies, `None` if a watched key has changed.
async fn transact(
    core: &Core<ObjectProgram>,
    isolation: Isolation,
    commands: Commands<'_>,
    durability: Durability,
) -> Result<Option<Vec<Vec<u8>>>, Error> {
    let wary = core.program().wary();
    wary.set(wary.get().saturating_sub(1));
    let mut attempts = 0;
    let done = core
        .coordinator()
        .run(isolation, async |txn| {
            txn.set_lasting(durability == Durability::Synced);
            if attempts == 1 {
                // The first one has met somebody.
                wary.set(WARY);
            }
            let serializable = isolation == Isolation::Serializable;
            let locks = attempts > 0 || wary.get() > 0 || !serializable;
            attempts += 1;
            attempt(core, txn, Commands { locks, ..commands }).await
        })
        .await;
    done.map(|(replies, _)| replies)
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
    let dbs: BTreeSet<usize> = items.iter().map(|item| item.db).collect();
    let keyspaces = keyspaces(core, &mut txn, first.unwrap_or(0), dbs).await?;
    let mut names: Vec<Key> = Vec::new();
    for item in items {
        for key in item.keys() {
            names.push(databases::key(keyspaces[item.db], key));
        }
    }
    // All shards at once; what the commands ask for is there then.
    let found = txn.multi_get(&names).await?;
    let values = names.into_iter().zip(found.into_iter().map(|value| value.map(Rc::from)));
    let values = values.collect();
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

/// What a transaction is to do.
#[derive(Clone, Copy)]
struct Commands<'a> {
    steps: &'a [Step],
    watched: &'a [Watched],
    cursors: &'a Mutex<Cursors>,
    protocol: Protocol,
    touch: bool,
    /// Keys are locked first.
    locks: bool,
}

/// What is there when the commands of a transaction begin.
struct Ground {
    /// Their moment.
    now: Epoch,
    /// What the databases mean at first.
    before: Map,
    /// What they mean from each step on, if that changes.
    maps: Vec<Map>,
    values: BTreeMap<Key, Option<Rc<[u8]>>>,
}

/// Returns the slot of some key, by which a shard is found that knows the databases.
fn first_slot(steps: &[Step]) -> u16 {
    let slots = steps.iter().find_map(|step| match step {
        Step::Keys(item) => item.keys().next().map(slot),
        Step::Question(_) | Step::Databases { .. } => None,
    });
    slots.unwrap_or(0)
}

/// Reads the keys of commands that change no databases, at one moment; `None` if that does not do.
async fn read_ground(
    core: &Core<ObjectProgram>,
    txn: &mut NodeTxn,
    steps: &[Step],
) -> Result<Option<Ground>, Error> {
    let dbs = databases_of(steps, &[]);
    // What the databases mean is known, mostly. The transaction reads it all the same, with the keys.
    let known = core.leader_at(RoutingKey::Slot(first_slot(steps)), |leader| {
        let mut map = [0; DATABASES];
        let mut names = Vec::with_capacity(dbs.len());
        for db in &dbs {
            let name = databases::name(*db);
            map[*db] = databases::keyspace(*db, leader.local(&name, true).ok()?.as_deref());
            names.push(leader.local_key(&name)?);
        }
        Some((map, names))
    });
    let Some((before, mut names)) = known.flatten() else { return Ok(None) };
    for step in steps {
        let item = match step {
            Step::Keys(item) => item,
            Step::Question(_) => continue,
            Step::Databases { .. } => return Ok(None),
        };
        let of_item = [Some(item.db), other_database(item)];
        for db in of_item.into_iter().flatten() {
            names.extend(item.keys().map(|key| databases::key(before[db], key)));
        }
    }
    let found = txn.multi_get(&names).await?;
    let mut entries = dbs.iter().zip(&found);
    if entries.any(|(db, entry)| databases::keyspace(*db, entry.as_deref()) != before[*db]) {
        return Ok(None);
    }
    let Some(read_ts) = txn.read_ts() else { return Ok(None) };
    let values = names.into_iter().zip(found).skip(dbs.len());
    let values = values.map(|(key, value)| (key, value.map(Rc::from))).collect();
    Ok(Some(Ground { now: read_ts.epoch(), before, maps: Vec::new(), values }))
}

/// Locks the keys of commands; `None` if a watched key has changed.
async fn lock_ground(
    core: &Core<ObjectProgram>,
    txn: &mut NodeTxn,
    steps: &[Step],
    watched: &[Watched],
) -> Result<Option<Ground>, Error> {
    let before = keyspaces(core, txn, first_slot(steps), databases_of(steps, watched)).await?;
    // What the databases mean from each step on.
    let mut maps = Vec::with_capacity(steps.len());
    let mut map = before;
    let mut names: Vec<Key> = Vec::new();
    let name = |map: &Map, db: usize, key: &[u8]| databases::key(map[db], key);
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
            Step::Question(_) => {}
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
        let (ts, value) = version.map_or((0, None), |version| (version.ts.0, version.value));
        if !watched.is_empty() {
            let live = value.as_ref().is_some_and(|bytes| {
                !Value::decode(bytes).is_ok_and(|value| value.is_expired(now.unix_ms()))
            });
            versions.insert(key.clone(), if live { ts } else { ABSENT | ts });
        }
        values.insert(key, value.map(Rc::from));
    }
    for watched in watched {
        let seen =
            versions.get(&name(&before, watched.db, &watched.key)).copied().unwrap_or(ABSENT);
        if !is_unchanged(watched.version, seen) {
            return Ok(None);
        }
    }
    Ok(Some(Ground { now, before, maps, values }))
}

/// Returns the replies, `None` if a watched key has changed.
async fn attempt(
    core: &Core<ObjectProgram>,
    txn: &mut NodeTxn,
    commands: Commands<'_>,
) -> Result<Option<Vec<Vec<u8>>>, Error> {
    let Commands { steps, watched, cursors, protocol, touch, locks } = commands;
    let mut ground = None;
    if !locks && watched.is_empty() {
        ground = read_ground(core, txn, steps).await?;
    }
    if ground.is_none() {
        ground = lock_ground(core, txn, steps, watched).await?;
    }
    let Some(Ground { now, before, maps, values }) = ground else { return Ok(None) };
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
    for (at, step) in steps.iter().enumerate() {
        tx.keyspaces = maps.get(at).copied().unwrap_or(before);
        let item = match step {
            Step::Keys(item) | Step::Question(item) => item,
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
        let outcome = match step {
            Step::Question(_) => {
                let mut inside = Inside::new(core, &mut tx);
                keyspace::run(&call, &mut inside, cursors, &mut out).await
            }
            _ => data::run(&call, &mut tx, &mut out).await,
        };
        if let Err(error) = outcome {
            out = encode_error(protocol, &error);
        }
        if let Some(failure) = tx.failure.take() {
            return Err(failure);
        }
        replies.push(out);
    }
    for (key, value) in std::mem::take(&mut tx.writes) {
        txn.set(key, value).await?;
    }
    let after = maps.last().copied().unwrap_or(before);
    if after != before {
        whole::renumber(core, txn, &before, &after).await?;
    }
    Ok(Some(replies))
}

/// Returns the databases that a transaction has to know the keyspaces of.
fn databases_of(steps: &[Step], watched: &[Watched]) -> BTreeSet<usize> {
    let mut dbs: BTreeSet<usize> = watched.iter().map(|watched| watched.db).collect();
    for step in steps {
        match step {
            Step::Keys(item) => {
                dbs.insert(item.db);
                dbs.extend(other_database(item));
            }
            Step::Question(item) => {
                dbs.insert(item.db);
            }
            // It compares all of them with what they were.
            Step::Databases { .. } => return (0..DATABASES).collect(),
        }
    }
    dbs
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

/// Reads the map of some databases at the shard of a slot; all shards have the same one. Of the
/// others the map tells nothing.
pub(crate) async fn keyspaces(
    core: &Core<ObjectProgram>,
    txn: &mut NodeTxn,
    slot: u16,
    dbs: impl IntoIterator<Item = usize>,
) -> Result<Map, Error> {
    let first = {
        let table = core.table();
        let route = table.find(RoutingKey::Slot(slot));
        route.descriptor.range.slots().start
    };
    let dbs: Vec<usize> = dbs.into_iter().collect();
    let names: Vec<Key> = dbs.iter().map(|db| local_key(first, &databases::name(*db))).collect();
    let entries = txn.multi_get(&names).await?;
    let mut keyspaces = [0; DATABASES];
    for (db, entry) in dbs.into_iter().zip(entries) {
        keyspaces[db] = databases::keyspace(db, entry.as_deref());
    }
    Ok(keyspaces)
}
