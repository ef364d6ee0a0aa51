//! The engine against a `BTreeMap`: one list of operations, many option sets, the same answers.
//!
//! Most of it runs in the simulator, where background work interleaves by the seed and time passes
//! only when the list says so; a part runs on the real disk with real threads. Power cuts are the
//! crash harness's subject (crates/sim).
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic too")]

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::time::Duration;

use atoll_env::os::{Backend, DirectIo, IoOptions};
use atoll_env::random::Prng;
use atoll_env::sim::Sim;
use atoll_env::{Env, block_on, os};
use atoll_lsm::{
    Batch, Compression, Cursor, Database, Durability, Keyspace, KeyspaceOptions, Options, Snapshot,
    ValuePlacement, WriteOptions,
};

/// Values of the last keyspace expire after this; `Op::Sleep` takes twice as long, and everything
/// else together much less.
const TTL: Duration = Duration::from_secs(100);
const KEYSPACES: [&str; 3] = ["plain", "prefixed", "expiring"];
const PREFIX_LEN: usize = 3;

#[derive(Clone, Debug)]
enum Op {
    Write(Vec<Change>, Durability),
    Get(usize, Vec<u8>),
    MultiGet(usize, Vec<Vec<u8>>),
    Scan(usize, Bound<Vec<u8>>, Bound<Vec<u8>>, Walk),
    Prefix(usize, Vec<u8>, Walk),
    TakeSnapshot,
    ReadSnapshot(usize, Walk),
    DropSnapshot,
    Flush,
    Compact,
    Reopen,
    Sleep,
}

#[derive(Clone, Debug)]
enum Change {
    Put(usize, Vec<u8>, Vec<u8>, Ttl),
    /// Appends.
    Merge(usize, Vec<u8>, Vec<u8>, Ttl),
    Remove(usize, Vec<u8>),
    RemoveRange(usize, Vec<u8>, Vec<u8>),
    Clear(usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ttl {
    /// What the keyspace says.
    Usual,
    /// Until the next sleep.
    Short,
    Never,
}

/// How a cursor is read.
#[derive(Clone, Copy, Debug)]
enum Walk {
    Forward,
    Backward,
    /// From the ends by turns drawn from a seed.
    Both(u64),
}

/// What was put and what was appended to it, each with the number of sleeps after which it is gone.
type Entry = Vec<(Vec<u8>, Option<u64>)>;

#[derive(Clone, Default)]
struct Model {
    keys: [BTreeMap<Vec<u8>, Entry>; 3],
}

type Row = (Vec<u8>, Vec<u8>);

impl Model {
    fn apply(&mut self, change: &Change, sleeps: u64) {
        match change {
            Change::Put(ks, key, value, ttl) => {
                let expires = *ttl == Ttl::Short || (*ttl == Ttl::Usual && *ks == 2);
                let entry = vec![(value.clone(), expires.then_some(sleeps))];
                self.keys[*ks].insert(key.clone(), entry);
            }
            Change::Merge(ks, key, operand, ttl) => {
                let expires = *ttl == Ttl::Short || *ks == 2;
                let part = (operand.clone(), expires.then_some(sleeps));
                self.keys[*ks].entry(key.clone()).or_default().push(part);
            }
            Change::Remove(ks, key) => drop(self.keys[*ks].remove(key)),
            Change::RemoveRange(ks, start, end) => {
                self.keys[*ks].retain(|key, _| key < start || key >= end);
            }
            Change::Clear(ks) => self.keys[*ks].clear(),
        }
    }

    fn get(&self, ks: usize, key: &[u8], sleeps: u64) -> Option<Vec<u8>> {
        let parts = self.keys[ks].get(key)?.iter();
        let alive = parts.filter(|(_, deadline)| deadline.is_none_or(|until| sleeps <= until));
        let alive: Vec<&[u8]> = alive.map(|(bytes, _)| &bytes[..]).collect();
        (!alive.is_empty()).then(|| alive.concat())
    }

    fn rows(&self, ks: usize, sleeps: u64, wanted: impl Fn(&[u8]) -> bool) -> Vec<Row> {
        let keys = self.keys[ks].keys().filter(|key| wanted(key));
        keys.filter_map(|key| Some((key.clone(), self.get(ks, key, sleeps)?))).collect()
    }
}

fn key(prng: &mut Prng) -> Vec<u8> {
    let group = prng.below(6);
    match prng.index(30) {
        0 => Vec::new(),
        1 => vec![b'g'],
        2 => [format!("g{group}/").as_bytes(), &[0xff; 4][..prng.index(5)]].concat(),
        3 => [format!("g{group}/").as_bytes(), &[0; 4][..prng.index(5)]].concat(),
        4 => format!("g{group}/{}", "shared".repeat(40)).into_bytes(),
        _ => format!("g{group}/{:02}", prng.below(30)).into_bytes(),
    }
}

fn walk(prng: &mut Prng) -> Walk {
    match prng.index(3) {
        0 => Walk::Forward,
        1 => Walk::Backward,
        _ => Walk::Both(prng.next_u64()),
    }
}

fn bound(prng: &mut Prng) -> Bound<Vec<u8>> {
    match prng.index(5) {
        0 => Bound::Unbounded,
        1 | 2 => Bound::Excluded(key(prng)),
        _ => Bound::Included(key(prng)),
    }
}

fn change(prng: &mut Prng) -> Change {
    let ks = prng.index(3);
    match prng.index(20) {
        0 => Change::Clear(ks),
        1 | 2 => {
            let (a, b) = (key(prng), key(prng));
            Change::RemoveRange(ks, a.clone().min(b.clone()), a.max(b))
        }
        3..=6 => Change::Remove(ks, key(prng)),
        7..=10 if ks != 1 => {
            let mut operand = vec![0; 1 + prng.index(20)];
            prng.fill(&mut operand);
            let ttl = [Ttl::Usual, Ttl::Usual, Ttl::Short][prng.index(3)];
            Change::Merge(ks, key(prng), operand, ttl)
        }
        _ => {
            // Mostly short, sometimes a few blocks long.
            let most = 1 << prng.range(1..11);
            let mut value = vec![0; prng.below(most) as usize];
            let half = value.len() / 2;
            prng.fill(&mut value[half..]);
            let ttl = [Ttl::Usual, Ttl::Usual, Ttl::Usual, Ttl::Short, Ttl::Never][prng.index(5)];
            Change::Put(ks, key(prng), value, ttl)
        }
    }
}

/// Draws a list of operations. `sleeps` allows those that need a clock of our own.
fn draw(prng: &mut Prng, count: usize, sleeps: bool) -> Vec<Op> {
    let modes = [Durability::Synced, Durability::Interval, Durability::Buffered];
    let mut op = |_| match prng.index(100) {
        0..=54 => {
            let changes = if prng.chance(0.2) { 2 + prng.index(6) } else { 1 };
            Op::Write((0..changes).map(|_| change(prng)).collect(), modes[prng.index(3)])
        }
        55..=64 => Op::Get(prng.index(3), key(prng)),
        65..=68 => Op::MultiGet(prng.index(3), (0..5).map(|_| key(prng)).collect()),
        69..=78 => Op::Scan(prng.index(3), bound(prng), bound(prng), walk(prng)),
        79..=84 => {
            let mut prefix = key(prng);
            prefix.truncate(prng.index(6));
            Op::Prefix(prng.index(3), prefix, walk(prng))
        }
        85..=87 => Op::TakeSnapshot,
        88..=91 => Op::ReadSnapshot(prng.index(3), walk(prng)),
        92 => Op::DropSnapshot,
        93..=95 => Op::Flush,
        96 => Op::Compact,
        97 => Op::Reopen,
        _ if sleeps => Op::Sleep,
        _ => Op::Flush,
    };
    (0..count).map(&mut op).collect()
}

/// Draws options that reach every path with little data.
fn tune(prng: &mut Prng, env: Env) -> Options {
    let mut one_of = |choices: &[u64]| choices[prng.index(choices.len())];
    Options {
        memory: 4 << 20,
        memtable_size: one_of(&[4, 8, 32]) as usize * 1024,
        sealed_memtables_max: one_of(&[1, 2]) as usize,
        log_segment_size: one_of(&[16, 64]) * 1024,
        manifest_size: one_of(&[0, 1 << 20]),
        block_size: one_of(&[256, 1024, 4096]) as usize,
        table_size: one_of(&[4, 16, 64]) * 1024,
        level0_tables: one_of(&[1, 2, 4]) as usize,
        level_ratio: one_of(&[2, 4]),
        level_base_size: one_of(&[4, 16]) * 1024,
        compression: match one_of(&[0, 1, 2]) {
            0 => Compression::None,
            1 => Compression::Lz4,
            _ => Compression::Lz4ThenZstd,
        },
        filter_bits: one_of(&[0, 4, 10]) as u32,
        separate_above: [None, Some(0), Some(30), Some(512)][one_of(&[0, 1, 2, 3]) as usize],
        value_file_size: one_of(&[1, 8, 128]) * 1024,
        value_garbage_percent: one_of(&[0, 10, 30, 70]) as u32,
        // None, one that evicts all the time, one for all there is.
        record_cache_percent: one_of(&[0, 1, 15]) as usize,
        ..Options::new(env)
    }
}

/// A database and what it should hold.
struct Pair {
    db: Database,
    keyspaces: Vec<Keyspace>,
    model: Model,
    sleeps: u64,
    snapshots: Vec<(Snapshot, Model)>,
}

async fn open(path: &Path, options: &Options) -> (Database, Vec<Keyspace>) {
    let db = Database::builder(path).options(options.clone()).open_async().await.unwrap();
    let mut keyspaces = Vec::new();
    for (number, name) in KEYSPACES.into_iter().enumerate() {
        let options = KeyspaceOptions {
            ttl: (number == 2).then_some(TTL),
            filter_prefix_len: if number == 1 { PREFIX_LEN as u16 } else { 0 },
            values: match number {
                1 => ValuePlacement::MergeBack { above: 20, up_to: 200 },
                2 => ValuePlacement::Separate { above: 10 },
                _ => ValuePlacement::Usual,
            },
            merge_operator: (number != 1).then(|| "atoll.append:".to_owned()),
        };
        keyspaces.push(db.keyspace_async(name, options).await.unwrap());
    }
    (db, keyspaces)
}

/// Carries out the operations and compares every answer.
async fn run(path: &Path, options: Options, ops: Vec<Op>) {
    let (db, keyspaces) = open(path, &options).await;
    let (model, snapshots) = (Model::default(), Vec::new());
    let mut pair = Pair { db, keyspaces, model, sleeps: 0, snapshots };
    for (number, op) in ops.into_iter().enumerate() {
        if let Op::Reopen = op {
            pair.snapshots.clear();
            pair.keyspaces.clear();
            pair.db.close_async().await.unwrap();
            (pair.db, pair.keyspaces) = open(path, &options).await;
        } else {
            pair.step(number, op).await;
        }
    }
    for (ks, keyspace) in pair.keyspaces.iter().enumerate() {
        let rows = collect(keyspace.cursor::<&[u8]>(..), Walk::Forward).await;
        assert_eq!(
            rows,
            pair.model.rows(ks, pair.sleeps, |_| true),
            "{} at the end",
            KEYSPACES[ks]
        );
    }
    drop((pair.keyspaces, pair.snapshots));
    pair.db.close_async().await.unwrap();
}

impl Pair {
    async fn step(&mut self, number: usize, op: Op) {
        let Pair { db, keyspaces, model, sleeps, .. } = self;
        let about = format!("operation {number}: {op:?}");
        match op {
            Op::Write(changes, durability) => {
                let now = db.env().clock.wall().0;
                let mut batch = Batch::new();
                for change in &changes {
                    add(&mut batch, keyspaces, change, now);
                    model.apply(change, *sleeps);
                }
                let options = WriteOptions::durability(durability);
                db.write_async(batch, options).await.unwrap();
            }
            Op::Get(ks, key) => {
                let found = keyspaces[ks].get_async(&key).await.unwrap().map(|v| v.to_vec());
                assert_eq!(found, model.get(ks, &key, *sleeps), "{about}");
            }
            Op::MultiGet(ks, keys) => {
                let found = keyspaces[ks].multi_get_async(&keys).await.unwrap();
                let found: Vec<_> = found.into_iter().map(|v| v.map(|v| v.to_vec())).collect();
                let expected: Vec<_> = keys.iter().map(|k| model.get(ks, k, *sleeps)).collect();
                assert_eq!(found, expected, "{about}");
            }
            Op::Scan(ks, start, end, walk) => {
                let bounds = (start, end);
                let rows = collect(keyspaces[ks].cursor(bounds.clone()), walk).await;
                let inside = |key: &[u8]| {
                    let after = match &bounds.0 {
                        Bound::Included(start) => key >= &start[..],
                        Bound::Excluded(start) => key > &start[..],
                        Bound::Unbounded => true,
                    };
                    after
                        && match &bounds.1 {
                            Bound::Included(end) => key <= &end[..],
                            Bound::Excluded(end) => key < &end[..],
                            Bound::Unbounded => true,
                        }
                };
                assert_eq!(rows, model.rows(ks, *sleeps, inside), "{about}");
            }
            Op::Prefix(ks, prefix, walk) => {
                let rows = collect(keyspaces[ks].prefix_cursor(&prefix), walk).await;
                let expected = model.rows(ks, *sleeps, |key| key.starts_with(&prefix));
                assert_eq!(rows, expected, "{about}");
            }
            Op::TakeSnapshot => self.snapshots.push((db.snapshot(), model.clone())),
            Op::ReadSnapshot(ks, walk) => {
                for (snapshot, then) in &self.snapshots {
                    let rows = collect(snapshot.cursor::<&[u8]>(&keyspaces[ks], ..), walk).await;
                    assert_eq!(rows, then.rows(ks, *sleeps, |_| true), "{about}");
                    for key in model.keys[ks].keys().take(3) {
                        let found = snapshot.get_async(&keyspaces[ks], key).await.unwrap();
                        let found = found.map(|v| v.to_vec());
                        assert_eq!(found, then.get(ks, key, *sleeps), "{about}");
                    }
                }
            }
            Op::DropSnapshot => drop(self.snapshots.pop()),
            Op::Flush => db.flush_async().await.unwrap(),
            Op::Compact => db.compact_async().await.unwrap(),
            Op::Sleep => {
                db.env().clock.sleep(2 * TTL).await;
                *sleeps += 1;
            }
            Op::Reopen => {}
        }
    }
}

fn add(batch: &mut Batch, keyspaces: &[Keyspace], change: &Change, now: u64) {
    match change {
        Change::Put(ks, key, value, Ttl::Usual) => batch.insert(&keyspaces[*ks], key, value),
        Change::Put(ks, key, value, Ttl::Never) => {
            batch.insert_lasting(&keyspaces[*ks], key, value)
        }
        Change::Put(ks, key, value, Ttl::Short) => {
            let deadline = now + TTL.as_millis() as u64;
            batch.insert_expiring(&keyspaces[*ks], key, value, deadline)
        }
        Change::Merge(ks, key, operand, Ttl::Short) => {
            let deadline = now + TTL.as_millis() as u64;
            batch.merge_expiring(&keyspaces[*ks], key, operand, deadline)
        }
        Change::Merge(ks, key, operand, _) => batch.merge(&keyspaces[*ks], key, operand),
        Change::Remove(ks, key) => batch.remove(&keyspaces[*ks], key),
        Change::RemoveRange(ks, start, end) => batch.remove_range(&keyspaces[*ks], start, end),
        Change::Clear(ks) => batch.clear(&keyspaces[*ks]),
    };
}

/// Reads a cursor to its end; returns the rows in ascending order.
async fn collect(mut cursor: Cursor, walk: Walk) -> Vec<Row> {
    let mut turns = match walk {
        Walk::Both(seed) => Some(Prng::new(seed)),
        Walk::Forward | Walk::Backward => None,
    };
    let (mut front, mut back) = (Vec::new(), Vec::new());
    loop {
        let forward = match &mut turns {
            Some(prng) => prng.chance(0.5),
            None => matches!(walk, Walk::Forward),
        };
        let next = if forward { cursor.next().await } else { cursor.next_back().await };
        let Some(guard) = next.unwrap() else { break };
        let value = guard.value_async().await.unwrap();
        assert_eq!(guard.size(), value.len());
        let rows = if forward { &mut front } else { &mut back };
        rows.push((guard.key().to_vec(), value.to_vec()));
    }
    front.extend(back.into_iter().rev());
    front
}

fn run_simulated(seed: u64, options: impl FnOnce(Env) -> Options, ops: Vec<Op>) {
    let sim = Sim::new(seed);
    let node = sim.node("db");
    let options = options(node.env());
    sim.block_on(&node, run(Path::new("db"), options, ops)).done();
}

#[test]
fn a_list_of_operations_has_the_same_answers_under_all_options() {
    for seed in 0..20 {
        let ops = draw(&mut Prng::new(seed), 700, true);
        for tuning in 0..4 {
            let mut prng = Prng::new(seed * 1000 + tuning);
            run_simulated(seed, |env| tune(&mut prng, env), ops.clone());
        }
    }
}

#[test]
fn the_answers_do_not_depend_on_how_background_work_interleaves() {
    let ops = draw(&mut Prng::new(77), 400, true);
    for seed in 100..112 {
        run_simulated(seed, |env| tune(&mut Prng::new(5), env), ops.clone());
    }
}

#[test]
fn long_values_are_like_others_among_small_tables() {
    let mut prng = Prng::new(9);
    let mut ops = draw(&mut prng, 150, true);
    for at in [20, 60, 61, 120] {
        let mut value = vec![0; 1_050_000 + prng.index(700_000)];
        prng.fill(&mut value);
        let put = Change::Put(prng.index(3), key(&mut prng), value, Ttl::Usual);
        ops.insert(at, Op::Write(vec![put], Durability::Synced));
        ops.insert(at + 1, Op::Flush);
    }
    let tuned = |env| Options { log_segment_size: 256 << 10, ..tune(&mut Prng::new(2), env) };
    run_simulated(9, tuned, ops);
}

#[test]
fn real_disks_answer_as_the_model_does_whatever_carries_them() {
    let kinds = [
        (Backend::Auto, DirectIo::Log),
        (Backend::Threads, DirectIo::Off),
        (Backend::Threads, DirectIo::All),
        (Backend::Uring, DirectIo::Off),
        (Backend::Uring, DirectIo::All),
    ];
    for (seed, (backend, direct)) in (200..).zip(kinds) {
        let dir = tempfile::tempdir().unwrap();
        let mut prng = Prng::new(seed);
        let ops = draw(&mut prng, 300, false);
        let io = IoOptions { backend, direct, ..IoOptions::default() };
        let env = os::env_with(io.clone()).unwrap_or_else(|error| {
            println!("{io:?}: {error}");
            os::env().unwrap()
        });
        let options = tune(&mut prng, env);
        block_on(run(&dir.path().join("db"), options, ops));
    }
}

#[test]
fn threads_that_share_a_real_database_each_see_their_own_writes() {
    const THREADS: u64 = 4;
    let dir = tempfile::tempdir().unwrap();
    let options =
        Options { durability: Durability::Buffered, ..tune(&mut Prng::new(1), os::env().unwrap()) };
    let db = Database::builder(dir.path().join("db")).options(options).open().unwrap();
    let ks = db.keyspace("shared", KeyspaceOptions::default()).unwrap();
    let models: Vec<BTreeMap<Vec<u8>, Vec<u8>>> = std::thread::scope(|scope| {
        let work = |thread: u64| {
            let (ks, db) = (&ks, &db);
            move || {
                let mut prng = Prng::new(thread);
                let mut model = BTreeMap::new();
                for step in 0..1500u32 {
                    let key = format!("{thread}/{:02}", prng.below(60)).into_bytes();
                    match prng.index(10) {
                        0 | 1 => {
                            ks.remove(&key).unwrap();
                            model.remove(&key);
                        }
                        2 => {
                            let found = ks.get(&key).unwrap().map(|v| v.to_vec());
                            assert_eq!(found, model.get(&key).cloned(), "at step {step}");
                        }
                        3 if step % 50 == 0 => db.flush().unwrap(),
                        _ => {
                            let value = format!("{step}").repeat(prng.index(40)).into_bytes();
                            ks.insert(&key, &value).unwrap();
                            model.insert(key, value);
                        }
                    }
                    if step % 300 == 0 {
                        let prefix = format!("{thread}/");
                        let rows = block_on(collect(ks.prefix_cursor(&prefix), Walk::Forward));
                        assert_eq!(rows, model.clone().into_iter().collect::<Vec<_>>());
                    }
                }
                model
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(work(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let expected: Vec<Row> = models.into_iter().flatten().collect();
    assert_eq!(block_on(collect(ks.cursor::<&[u8]>(..), Walk::Backward)), expected);
    drop(ks);
    db.close().unwrap();
}
