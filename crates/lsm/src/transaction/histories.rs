//! Random histories: clients whose transactions interleave as the seed says, judged by replay.
//!
//! Every transaction and every plain write also writes a record of its own that nobody reads, so
//! that afterwards the sequence numbers of these records tell the order of all commits. The judge
//! runs what was committed in that order on a map, one after the other: each read, of keys and of
//! ranges, must have been what it is there. (That order is then one without a cycle; a graph has
//! nothing to add.) A transaction that only read must fit at its snapshot.
//!
//! ```sh
//! ATOLL_LSM_SEEDS=20000 cargo test -p atoll-lsm --lib histories_are
//! ATOLL_LSM_MUTANT=group-not-validated cargo test -p atoll-lsm --features mutants --lib histories_are
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use atoll_env::random::Prng;
use atoll_env::sim::Sim;
use atoll_env::{Env, task};
use parking_lot::Mutex;

use crate::key::SeqNo;
use crate::keyspace::user_key;
use crate::transaction::{Mode, Transaction};
use crate::{
    Batch, Database, Durability, Error, Keyspace, KeyspaceOptions, Options, ValuePlacement,
    WriteOptions,
};

type Key = u8;
type Value = Vec<u8>;
type Map = BTreeMap<Key, Value>;

const KEYS: u64 = 12;
const CLIENTS: u64 = 5;
const STEPS: u64 = 7;

/// What was done, with what was seen.
#[derive(Clone, Debug)]
enum Op {
    Get(Key, Option<Value>),
    /// The first so many rows from one end.
    Scan {
        start: Key,
        end: Key,
        forward: bool,
        most: usize,
        rows: Vec<(Key, Value)>,
    },
    Put(Key, Value),
    /// Appends.
    Merge(Key, Value),
    Remove(Key),
    RemoveRange(Key, Key),
}

/// Something that may have taken effect.
struct Done {
    /// The name of its own record.
    name: u64,
    ops: Vec<Op>,
    /// The snapshot of one that only read.
    at: Option<SeqNo>,
    acknowledged: bool,
}

#[derive(Default)]
struct Log {
    next: u64,
    done: Vec<Done>,
    conflicts: u64,
}

fn value(name: u64, prng: &mut Prng) -> Value {
    let mut value = name.to_be_bytes().to_vec();
    value.resize(8 + prng.index(120), 7);
    value
}

/// One client's part.
struct Client {
    db: Database,
    ks: Keyspace,
    own: Keyspace,
    prng: Prng,
    log: Arc<Mutex<Log>>,
}

impl Client {
    fn draw_name(&self) -> u64 {
        let mut log = self.log.lock();
        log.next += 1;
        log.next
    }

    fn note(&self, name: u64, ops: Vec<Op>, answer: &crate::Result<()>) {
        let mut log = self.log.lock();
        match answer {
            Ok(()) => log.done.push(Done { name, ops, at: None, acknowledged: true }),
            Err(Error::Conflict(_)) => log.conflicts += 1,
            Err(e) => panic!("{e}"),
        }
    }

    fn key(&mut self) -> Key {
        // A few keys are asked for most.
        if self.prng.chance(0.5) { self.prng.below(3) as Key } else { self.prng.below(KEYS) as Key }
    }

    fn span(&mut self) -> (Key, Key) {
        let start = self.prng.below(KEYS) as Key;
        (start, start + 1 + self.prng.below(4) as Key)
    }

    async fn dawdle(&mut self) {
        match self.prng.index(4) {
            0 => {}
            1 => task::yield_now().await,
            _ => {
                let pause = Duration::from_micros(self.prng.below(300));
                self.db.env().clock.sleep(pause).await;
            }
        }
    }

    fn options(&mut self) -> WriteOptions {
        let modes = [Durability::Synced, Durability::Synced, Durability::Buffered];
        WriteOptions::durability(modes[self.prng.index(3)])
    }

    /// Fills a transaction with operations.
    async fn fill<M: Mode>(&mut self, tx: &mut Transaction<M>, name: u64) -> Vec<Op> {
        let mut ops = Vec::new();
        let writes = self.prng.chance(0.85);
        let ks = self.ks.clone();
        for _ in 0..1 + self.prng.index(5) {
            self.dawdle().await;
            match self.prng.index(if writes { 11 } else { 5 }) {
                0..=2 => {
                    let key = self.key();
                    let found = tx.get_async(&ks, [key]).await.unwrap();
                    ops.push(Op::Get(key, found.map(|v| v.to_vec())));
                }
                3 | 4 => {
                    let (start, end) = self.span();
                    let (forward, most) = (self.prng.chance(0.5), 1 + self.prng.index(4));
                    let mut cursor = tx.cursor(&ks, [start]..[end]);
                    let mut rows = Vec::new();
                    while rows.len() < most {
                        let step =
                            if forward { cursor.next().await } else { cursor.next_back().await };
                        let Some(guard) = step.unwrap() else { break };
                        let value = guard.value_async().await.unwrap().to_vec();
                        rows.push((guard.key()[0], value));
                    }
                    ops.push(Op::Scan { start, end, forward, most, rows });
                }
                5 | 6 => {
                    let (key, value) = (self.key(), value(name, &mut self.prng));
                    tx.insert(&ks, [key], &value).unwrap();
                    ops.push(Op::Put(key, value));
                }
                7 | 8 => {
                    let (key, operand) = (self.key(), value(name, &mut self.prng));
                    tx.merge(&ks, [key], &operand).unwrap();
                    ops.push(Op::Merge(key, operand));
                }
                9 => {
                    let key = self.key();
                    tx.remove(&ks, [key]).unwrap();
                    ops.push(Op::Remove(key));
                }
                _ => {
                    let (start, end) = self.span();
                    tx.remove_range(&ks, [start]..[end]).unwrap();
                    ops.push(Op::RemoveRange(start, end));
                }
            }
        }
        self.dawdle().await;
        ops
    }

    async fn run(mut self) {
        for _ in 0..STEPS {
            self.dawdle().await;
            let name = self.draw_name();
            let options = self.options();
            match self.prng.index(20) {
                0..=11 => {
                    let mut tx = self.db.optimistic_transaction();
                    let ops = self.fill(&mut tx, name).await;
                    if ops.iter().all(|op| matches!(op, Op::Get(..) | Op::Scan { .. })) {
                        let at = Some(tx.snapshot().seqno());
                        tx.commit_async(options).await.unwrap();
                        self.log.lock().done.push(Done { name, ops, at, acknowledged: true });
                        continue;
                    }
                    tx.insert(&self.own, name.to_be_bytes(), "").unwrap();
                    let answer = tx.commit_async(options).await;
                    self.note(name, ops, &answer);
                }
                12..=13 => {
                    let mut tx = self.db.write_transaction_async().await.unwrap();
                    let ops = self.fill(&mut tx, name).await;
                    tx.insert(&self.own, name.to_be_bytes(), "").unwrap();
                    let answer = tx.commit_async(options).await;
                    self.note(name, ops, &answer);
                }
                14..=17 => {
                    let (key, value) = (self.key(), value(name, &mut self.prng));
                    let (start, end) = self.span();
                    let mut batch = Batch::new();
                    let op = match self.prng.index(4) {
                        0 => {
                            batch.merge(&self.ks, &[key], &value);
                            Op::Merge(key, value)
                        }
                        3 => {
                            batch.insert(&self.ks, &[key], &value);
                            Op::Put(key, value)
                        }
                        1 => {
                            batch.remove(&self.ks, &[key]);
                            Op::Remove(key)
                        }
                        _ => {
                            batch.remove_range(&self.ks, &[start], &[end]);
                            Op::RemoveRange(start, end)
                        }
                    };
                    batch.insert(&self.own, &name.to_be_bytes(), b"");
                    let answer = self.db.write_async(batch, options).await;
                    self.note(name, vec![op], &answer);
                }
                18 => self.db.flush_async().await.unwrap(),
                _ => self.db.compact_async().await.unwrap(),
            }
        }
    }
}

/// Runs the operations on the map; returns the first whose answer was another.
fn replay(map: &mut Map, ops: &[Op]) -> Result<(), String> {
    for op in ops {
        match op {
            Op::Get(key, seen) if map.get(key) != seen.as_ref() => {
                return Err(format!("{op:?}, but it was {:?}", map.get(key)));
            }
            Op::Get(..) => {}
            Op::Scan { start, end, forward, most, rows } => {
                let inside = map.range(start..end).map(|(key, value)| (*key, value.clone()));
                let expected: Vec<_> = match forward {
                    true => inside.take(*most).collect(),
                    false => inside.rev().take(*most).collect(),
                };
                if expected != *rows {
                    return Err(format!("{op:?}, but it was {expected:?}"));
                }
            }
            Op::Put(key, value) => drop(map.insert(*key, value.clone())),
            Op::Merge(key, operand) => map.entry(*key).or_default().extend_from_slice(operand),
            Op::Remove(key) => drop(map.remove(key)),
            Op::RemoveRange(start, end) => map.retain(|key, _| key < start || key >= end),
        }
    }
    Ok(())
}

async fn judge(db: &Database, ks: &Keyspace, own: &Keyspace, log: &Log) -> Result<u64, String> {
    let store = db.store();
    let mut order: Vec<(SeqNo, u64)> = Vec::new();
    let mut cursor = own.cursor::<&[u8]>(..);
    while let Some(guard) = cursor.next().await.unwrap() {
        let (view, present) = store.pin_owned();
        let name = user_key(own.id(), guard.key());
        let hit = view.get(&store.tables, &name, present, 0).await.unwrap().unwrap();
        let name = u64::from_be_bytes(guard.key().try_into().unwrap());
        order.push((hit.trailer.seqno(), name));
    }
    order.sort_unstable();
    let by_name: BTreeMap<u64, &Done> =
        log.done.iter().filter(|done| done.at.is_none()).map(|done| (done.name, done)).collect();
    for (name, _) in by_name.iter().filter(|(_, done)| done.acknowledged) {
        if !order.iter().any(|(_, there)| there == name) {
            return Err(format!("transaction {name} was acknowledged and is not there"));
        }
    }
    let mut readers: Vec<(SeqNo, &Done)> =
        log.done.iter().filter_map(|done| Some((done.at?, done))).collect();
    readers.sort_by_key(|(at, done)| (*at, done.name));
    let mut readers = readers.into_iter().peekable();
    let mut map = Map::new();
    for (seqno, name) in order {
        while let Some((at, reader)) = readers.next_if(|(at, _)| *at < seqno) {
            replay(&mut map, &reader.ops)
                .map_err(|what| format!("reader {} at {at}: {what}", reader.name))?;
        }
        let done = by_name.get(&name).ok_or_else(|| format!("{name} conflicted and is there"))?;
        replay(&mut map, &done.ops).map_err(|what| format!("{name} at {seqno}: {what}"))?;
    }
    for (at, reader) in readers {
        replay(&mut map, &reader.ops)
            .map_err(|what| format!("reader {} at {at}: {what}", reader.name))?;
    }
    let mut rows = Map::new();
    let mut cursor = ks.cursor::<&[u8]>(..);
    while let Some(guard) = cursor.next().await.unwrap() {
        rows.insert(guard.key()[0], guard.value_async().await.unwrap().to_vec());
    }
    if rows != map {
        return Err(format!("the end is {rows:?}, but it was {map:?}"));
    }
    Ok(log.done.len() as u64)
}

fn tune(prng: &mut Prng, env: Env) -> Options {
    Options { memtable_size: [4 << 10, 16 << 10][prng.index(2)], ..super::tests::options(env) }
}

/// Returns what was committed and what conflicted, or what is wrong.
fn history(seed: u64) -> Result<(u64, u64), String> {
    let sim = Sim::new(seed);
    let node = sim.node("db");
    let env = node.env();
    let whole = async {
        let mut prng = Prng::new(seed);
        let options = tune(&mut prng, env.clone());
        let db = Database::builder(Path::new("db")).options(options).open_async().await.unwrap();
        let values = ValuePlacement::Separate { above: 60 };
        let merge_operator = Some("atoll.append:".to_owned());
        let appended = KeyspaceOptions { values, merge_operator, ..KeyspaceOptions::default() };
        let ks = db.keyspace_async("k", appended).await.unwrap();
        let own = db.keyspace_async("own", KeyspaceOptions::default()).await.unwrap();
        let log = Arc::new(Mutex::new(Log::default()));
        let ended = Arc::new(Mutex::new(0));
        for client in 0..CLIENTS {
            let prng = Prng::new(seed * 100 + client);
            let (db, ks, own, log) = (db.clone(), ks.clone(), own.clone(), log.clone());
            let (client, ended) = (Client { db, ks, own, prng, log }, ended.clone());
            let task = async move {
                client.run().await;
                *ended.lock() += 1;
            };
            env.tasks.spawn("client", Box::pin(task));
        }
        while *ended.lock() < CLIENTS {
            env.clock.sleep(Duration::from_millis(5)).await;
        }
        let log = std::mem::take(&mut *log.lock());
        let committed = judge(&db, &ks, &own, &log).await?;
        if db.stats().snapshots != 0 {
            return Err("a snapshot is held".to_owned());
        }
        drop((ks, own));
        db.close_async().await.unwrap();
        Ok((committed, log.conflicts))
    };
    sim.block_on(&node, whole).done().map_err(|what: String| format!("seed {seed}: {what}"))
}

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn histories_are_serializable() {
    #[cfg(feature = "mutants")]
    super::tests::choose_mutant();
    let (seeds, first) = (variable("ATOLL_LSM_SEEDS", 500), variable("ATOLL_LSM_SEED", 0));
    let (mut committed, mut conflicts) = (0, 0);
    for seed in first..first + seeds {
        let (more, refused) =
            history(seed).unwrap_or_else(|what| panic!("not serializable: {what}"));
        committed += more;
        conflicts += refused;
    }
    println!("{seeds} histories: {committed} committed, {conflicts} conflicts");
    if seeds >= 100 {
        assert!(conflicts * 50 > committed, "{conflicts} conflicts among {committed} commits");
        assert!(committed > seeds * CLIENTS * 2, "hardly anything commits: {committed}");
    }
}

/// Each rule that is left out is noticed, in a process of its own.
#[cfg(feature = "mutants")]
#[test]
fn every_rule_is_missed() {
    for mutant in crate::mutants::TRANSACTIONS {
        if mutant == "expired-dropped-early" {
            // A rule of compaction with a story of its own, in `tests/transactions.rs`.
            continue;
        }
        let test = std::env::current_exe().unwrap();
        let mut run = std::process::Command::new(test);
        run.args(["--exact", "transaction::histories::histories_are_serializable"]);
        let output = run.env("ATOLL_LSM_MUTANT", mutant).output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{mutant} was not noticed");
        assert!(text.contains("not serializable"), "{mutant}: {text}");
    }
}
