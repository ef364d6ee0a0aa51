//! A transaction against a map: its own writes over a snapshot, savepoints, cursors from both ends.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;

use atoll_env::random::Prng;
use atoll_env::sim::Sim;

use crate::{Database, Error, Keyspace, KeyspaceOptions, Options, Savepoint, WriteOptions};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Options under which a few hundred writes reach every path.
pub(super) fn options(env: atoll_env::Env) -> Options {
    Options {
        memory: 4 << 20,
        memtable_size: 8 << 10,
        log_segment_size: 16 << 10,
        block_size: 256,
        table_size: 4 << 10,
        level0_tables: 2,
        level_base_size: 8 << 10,
        level_ratio: 3,
        ..Options::new(env)
    }
}

async fn open(env: &atoll_env::Env) -> (Database, Keyspace) {
    let options = options(env.clone());
    let db = Database::builder(Path::new("db")).options(options).open_async().await.unwrap();
    let merge_operator = Some("atoll.append:".to_owned());
    let appended = KeyspaceOptions { merge_operator, ..KeyspaceOptions::default() };
    let ks = db.keyspace_async("k", appended).await.unwrap();
    (db, ks)
}

fn key(prng: &mut Prng) -> Vec<u8> {
    match prng.index(12) {
        0 => Vec::new(),
        1 => vec![0xff; prng.index(3)],
        _ => format!("{:02}", prng.below(60)).into_bytes(),
    }
}

/// Walks a cursor from the ends by turns; returns the rows in ascending order.
async fn walk(mut cursor: crate::Cursor, prng: &mut Prng) -> Vec<(Vec<u8>, Vec<u8>)> {
    let forward = [0.0, 1.0, 0.5, 0.9][prng.index(4)];
    let (mut front, mut back) = (Vec::new(), Vec::new());
    loop {
        let ahead = prng.chance(forward);
        let step = if ahead { cursor.next().await } else { cursor.next_back().await };
        let Some(guard) = step.unwrap() else { break };
        let value = guard.value_async().await.unwrap().to_vec();
        assert_eq!(guard.size(), value.len());
        (if ahead { &mut front } else { &mut back }).push((guard.key().to_vec(), value));
    }
    // Both ends have met, whichever is asked.
    assert!(cursor.next().await.unwrap().is_none() && cursor.next_back().await.unwrap().is_none());
    front.extend(back.into_iter().rev());
    front
}

async fn drive(
    db: &Database,
    ks: &Keyspace,
    committed: &mut Map,
    prng: &mut Prng,
    optimistic: bool,
) {
    let about = format!("seed, optimistic {optimistic}");
    let mut single =
        if optimistic { None } else { Some(db.write_transaction_async().await.unwrap()) };
    let mut free = optimistic.then(|| db.optimistic_transaction());
    let mut model = committed.clone();
    let mut savepoints: Vec<(Savepoint, Map)> = Vec::new();
    // The two kinds have the same methods and are two types.
    macro_rules! tx {
        ($tx:ident, $do:expr) => {
            match (&mut single, &mut free) {
                (Some($tx), _) => $do,
                (_, Some($tx)) => $do,
                _ => unreachable!(),
            }
        };
    }
    for _ in 0..10 + prng.index(60) {
        match prng.index(24) {
            0..=5 => {
                let (key, value) = (key(prng), vec![prng.below(256) as u8; prng.index(40)]);
                tx!(tx, tx.insert(ks, &key, &value)).unwrap();
                model.insert(key, value);
            }
            6 | 7 => {
                let key = key(prng);
                tx!(tx, tx.remove(ks, &key)).unwrap();
                model.remove(&key);
            }
            8 => {
                let (a, b) = (key(prng), key(prng));
                let (a, b) = (a.clone().min(b.clone()), a.max(b));
                tx!(tx, tx.remove_range(ks, a.clone()..b.clone())).unwrap();
                model.retain(|key, _| *key < a || *key >= b);
            }
            9..=11 => {
                let key = key(prng);
                let found = tx!(tx, tx.get_async(ks, &key).await).unwrap().map(|v| v.to_vec());
                assert_eq!(found, model.get(&key).cloned(), "{about}: {key:?}");
            }
            12..=15 => {
                let mut bound = || match prng.index(4) {
                    0 => Bound::Unbounded,
                    1 => Bound::Excluded(key(prng)),
                    _ => Bound::Included(key(prng)),
                };
                let bounds = (bound(), bound());
                let cursor = tx!(tx, tx.cursor(ks, bounds.clone()));
                let inside = |key: &Vec<u8>| {
                    let (after, before) = (&bounds.0, &bounds.1);
                    (match after {
                        Bound::Included(start) => key >= start,
                        Bound::Excluded(start) => key > start,
                        Bound::Unbounded => true,
                    }) && match before {
                        Bound::Included(end) => key <= end,
                        Bound::Excluded(end) => key < end,
                        Bound::Unbounded => true,
                    }
                };
                let expected: Vec<_> = model
                    .iter()
                    .filter(|(k, _)| inside(k))
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect();
                assert_eq!(walk(cursor, prng).await, expected, "{about}: {bounds:?}");
            }
            16 => savepoints.push((tx!(tx, tx.savepoint()), model.clone())),
            17 if !savepoints.is_empty() => {
                savepoints.truncate(1 + prng.index(savepoints.len()));
                let (savepoint, then) = savepoints.last().unwrap();
                tx!(tx, tx.rollback_to(savepoint)).unwrap();
                model.clone_from(then);
            }
            18 if !savepoints.is_empty() => {
                savepoints.truncate(1 + prng.index(savepoints.len()));
                let (savepoint, _) = savepoints.pop().unwrap();
                tx!(tx, tx.release(savepoint)).unwrap();
            }
            20..=23 => {
                let (key, operand) = (key(prng), vec![prng.below(256) as u8; prng.index(40)]);
                tx!(tx, tx.merge(ks, &key, &operand)).unwrap();
                model.entry(key).or_default().extend_from_slice(&operand);
            }
            19 if prng.chance(0.3) => db.flush_async().await.unwrap(),
            _ => {}
        }
    }
    match prng.index(3) {
        0 => drop((single, free)),
        _ => {
            if let Some(tx) = single {
                tx.commit_async(WriteOptions::default()).await.unwrap();
            }
            if let Some(tx) = free {
                tx.commit_async(WriteOptions::default()).await.unwrap();
            }
            *committed = model;
        }
    }
    let rows = walk(ks.cursor::<&[u8]>(..), prng).await;
    assert_eq!(rows, committed.clone().into_iter().collect::<Vec<_>>(), "{about}");
}

#[test]
fn transactions_of_both_kinds_answer_as_a_map_does() {
    for seed in 0..300 {
        let sim = Sim::new(seed);
        let node = sim.node("db");
        let env = node.env();
        sim.block_on(&node, async {
            let mut prng = Prng::new(seed);
            let (db, ks) = open(&env).await;
            let mut committed = Map::new();
            for _ in 0..8 {
                let optimistic = prng.chance(0.5);
                drive(&db, &ks, &mut committed, &mut prng, optimistic).await;
                if prng.chance(0.1) {
                    db.compact_async().await.unwrap();
                }
            }
            assert_eq!(db.stats().snapshots, 0, "a transaction that ended holds a snapshot");
            drop(ks);
            db.close_async().await.unwrap();
        })
        .done();
    }
}

#[test]
fn a_large_range_that_the_transaction_removed_is_stepped_over_from_both_ends() {
    let sim = Sim::new(1);
    let node = sim.node("db");
    let env = node.env();
    sim.block_on(&node, async {
        let (db, ks) = open(&env).await;
        let mut batch = crate::Batch::new();
        for n in 0..1000 {
            batch.insert(&ks, format!("{n:04}").as_bytes(), b"v");
        }
        db.write_async(batch, WriteOptions::default()).await.unwrap();
        let mut tx = db.optimistic_transaction();
        tx.remove_range(&ks, "0010".."0990").unwrap();
        tx.insert(&ks, "0500", "own").unwrap();
        let keys = |rows: Vec<(Vec<u8>, Vec<u8>)>| rows.len();
        for seed in 0..40 {
            let cursor = tx.cursor::<&[u8]>(&ks, ..);
            let rows = walk(cursor, &mut Prng::new(seed)).await;
            assert_eq!(keys(rows), 21, "turns {seed}");
        }
        // What was stepped over unread is nobody's conflict.
        ks.insert_async("0700", "v", WriteOptions::default()).await.unwrap();
        tx.commit_async(WriteOptions::default()).await.unwrap();
        assert_eq!(ks.get_async("0700").await.unwrap(), None, "the removal came later");
        db.close_async().await.unwrap();
    })
    .done();
}

#[test]
fn savepoints_nest_and_those_that_are_gone_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let db = Database::builder(dir.path().join("db")).memory(16 << 20).open().unwrap();
    let ks = db.keyspace("k", KeyspaceOptions::default()).unwrap();
    let mut tx = db.optimistic_transaction();
    let mut other = db.optimistic_transaction();
    let refused =
        |answer: crate::Result<()>| assert!(matches!(answer, Err(Error::InvalidInput(_))));
    tx.insert(&ks, "a", "1").unwrap();
    let outer = tx.savepoint();
    tx.insert(&ks, "a", "2").unwrap();
    let inner = tx.savepoint();
    tx.clear(&ks).unwrap();
    assert_eq!(tx.iter(&ks).count(), 0);
    refused(other.rollback_to(&inner));
    tx.rollback_to(&inner).unwrap();
    assert_eq!(tx.get(&ks, "a").unwrap().as_deref(), Some(&b"2"[..]));
    tx.rollback_to(&outer).unwrap();
    refused(tx.rollback_to(&inner));
    refused(tx.release(inner));
    assert_eq!(tx.get(&ks, "a").unwrap().as_deref(), Some(&b"1"[..]));
    tx.remove(&ks, "a").unwrap();
    // Twice to the same one.
    tx.rollback_to(&outer).unwrap();
    assert_eq!(tx.get(&ks, "a").unwrap().as_deref(), Some(&b"1"[..]));
    tx.release(outer).unwrap();
    tx.commit(WriteOptions::default()).unwrap();
    assert_eq!(ks.get("a").unwrap().as_deref(), Some(&b"1"[..]));
    other.rollback();
    db.close().unwrap();
}

#[test]
fn a_transaction_that_is_too_large_is_told_so_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let db = Database::builder(dir.path().join("db")).memory(8 << 20).open().unwrap();
    let ks = db.keyspace("k", KeyspaceOptions::default()).unwrap();
    let mut tx = db.write_transaction().unwrap();
    let mut written = 0u32;
    let refused = loop {
        match tx.insert(&ks, written.to_be_bytes(), vec![7; 10_000]) {
            Ok(()) => written += 1,
            Err(e) => break e,
        }
    };
    assert!(matches!(&refused, Error::InvalidInput(why) if why.contains("batch")), "{refused}");
    assert!(written > 100, "{written}");
    assert_eq!(tx.get(&ks, written.to_be_bytes()).unwrap(), None, "what was refused is not there");
    // The same key again takes no more room.
    tx.insert(&ks, 0u32.to_be_bytes(), vec![8; 10_000]).unwrap();
    assert!(matches!(tx.insert(&ks, vec![0; 70_000], "v"), Err(Error::InvalidInput(_))));
    tx.commit(WriteOptions::default()).unwrap();
    assert_eq!(ks.iter().count(), written as usize);
    db.close().unwrap();
}

#[test]
fn a_keyspace_of_another_database_is_refused_and_one_that_was_dropped_too() {
    let dir = tempfile::tempdir().unwrap();
    let open =
        |name: &str| Database::builder(dir.path().join(name)).memory(8 << 20).open().unwrap();
    let (db, other) = (open("one"), open("two"));
    let theirs = other.keyspace("k", KeyspaceOptions::default()).unwrap();
    let mut tx = db.write_transaction().unwrap();
    // Made while the transaction is alone.
    let ours = db.keyspace("k", KeyspaceOptions::default()).unwrap();
    tx.insert(&ours, "a", "1").unwrap();
    let is_wrong = |answer: crate::Result<()>| matches!(answer, Err(Error::InvalidInput(_)));
    assert!(is_wrong(tx.insert(&theirs, "a", "1")));
    assert!(is_wrong(tx.get(&theirs, "a").map(drop)));
    assert!(is_wrong(tx.iter(&theirs).next().unwrap().map(drop)));
    tx.commit(WriteOptions::default()).unwrap();
    let mut tx = db.optimistic_transaction();
    assert!(tx.get(&ours, "a").unwrap().is_some());
    db.drop_keyspace("k").unwrap();
    assert!(is_wrong(tx.insert(&ours, "a", "2")));
    drop((ours, theirs));
    other.close().unwrap();
    db.close().unwrap();
}

/// Leaves out the rule that `ATOLL_LSM_MUTANT` names.
#[cfg(feature = "mutants")]
pub(super) fn choose_mutant() {
    let Ok(name) = std::env::var("ATOLL_LSM_MUTANT") else { return };
    let known = crate::mutants::TRANSACTIONS.into_iter().find(|known| *known == name);
    crate::mutants::choose(known.unwrap_or_else(|| panic!("there is no rule '{name}'")));
}
