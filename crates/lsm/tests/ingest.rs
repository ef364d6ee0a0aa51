//! Sorted bulk ingest: where it stands among writes, snapshots, merges, crashes and failures.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic too")]

#[expect(dead_code, reason = "only its options and its runner are of use here")]
mod support;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::random::Prng;
use atoll_env::sim::{CrashMode, CrashTiming, FaultKind, Outcome, Sim};
use atoll_lsm::{
    Cursor, Database, Durability, Error, Ingested, Keyspace, KeyspaceOptions, Snapshot,
    WriteOptions, verify_async,
};
use support::{cut_by, dir, in_sim, open, run};

const BUFFERED: WriteOptions = WriteOptions { durability: Some(Durability::Buffered) };

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

fn key(n: u64) -> Vec<u8> {
    format!("key-{n:05}").into_bytes()
}

fn value(n: u64, by: &str) -> Vec<u8> {
    format!("{by} {n} ").repeat(1 + n as usize % 20).into_bytes()
}

fn records(keys: impl IntoIterator<Item = u64>, by: &str) -> Rows {
    keys.into_iter().map(|n| (key(n), value(n, by))).collect()
}

async fn rows(mut cursor: Cursor, backward: bool) -> Rows {
    let mut rows = Rows::new();
    loop {
        let next = if backward { cursor.next_back().await } else { cursor.next().await };
        let Some(guard) = next.unwrap() else { return rows };
        let (key, value) = guard.into_inner_async().await.unwrap();
        assert!(rows.insert(key, value.to_vec()).is_none(), "a key comes twice");
    }
}

/// Checks every way of reading against `expected`.
async fn check(ks: &Keyspace, expected: &Rows, what: &str) {
    for backward in [false, true] {
        assert!(rows(ks.cursor::<&[u8]>(..), backward).await == *expected, "{what}: a scan");
    }
    for n in (0..700).step_by(7) {
        let found = ks.get_async(key(n)).await.unwrap();
        let expected = expected.get(&key(n)).map(|v| &v[..]);
        assert_eq!(found.as_deref(), expected, "{what}: key {n}");
    }
}

#[test]
fn what_is_ingested_is_in_the_last_level_at_once_and_survives() {
    in_sim(1, async |env, node| {
        let (db, ks) = open(env).await.unwrap();
        let all = records(0..3000, "ingested");
        let done = ks.ingest_async(&all).await.unwrap();
        let stats = db.stats();
        assert_eq!((done.records, done.tables), (3000, stats.levels[6].tables as u64));
        assert!(done.tables > 3 && stats.levels[..6].iter().all(|l| l.tables == 0), "{stats:?}");
        check(&ks, &all, "at once").await;
        node.crash_with(CrashMode::DropAll);
    });
}

#[test]
fn an_ingest_that_was_answered_survives_a_power_cut() {
    let sim = Sim::new(2);
    let node = sim.node("n");
    let all = records(0..500, "ingested");
    let env = node.env();
    run(&sim, &node, "ingest", async {
        let (_db, ks) = open(&env).await.unwrap();
        ks.insert_async("a", "lost perhaps", BUFFERED).await.unwrap();
        ks.ingest_async(&all).await.unwrap();
    });
    node.crash_with(CrashMode::DropAll);
    node.restart();
    let env = node.env();
    run(&sim, &node, "again", async {
        assert!(verify_async(&env, &dir(), &mut |_| {}).await.unwrap().is_sound());
        let (db, ks) = open(&env).await.unwrap();
        let mut all = all;
        // It was written before: no write survives without the ones before it.
        all.insert(b"a".to_vec(), b"lost perhaps".to_vec());
        check(&ks, &all, "after the cut").await;
        db.compact_async().await.unwrap();
        check(&ks, &all, "merged").await;
        db.close_async().await.unwrap();
    });
}

#[test]
fn an_ingest_is_newer_than_what_is_before_and_older_than_what_comes_after() {
    in_sim(3, async |env, _| {
        let (db, ks) = open(env).await.unwrap();
        // Below, in level 0, in memory: as records, tombstones and range tombstones.
        ks.ingest_async(records((0..600).step_by(3), "deep")).await.unwrap();
        for n in (0..600).step_by(5) {
            ks.insert_async(key(n), value(n, "flat"), BUFFERED).await.unwrap();
        }
        db.flush_async().await.unwrap();
        ks.remove_range_async(key(200)..key(300), BUFFERED).await.unwrap();
        ks.remove_async(key(10), BUFFERED).await.unwrap();
        ks.insert_async(key(11), value(11, "memory"), BUFFERED).await.unwrap();
        let before = db.snapshot();
        let old = rows(before.cursor::<&[u8]>(&ks, ..), false).await;
        let ingested = records((0..600).step_by(2), "ingested");
        ks.ingest_async(&ingested).await.unwrap();
        let mut all = old.clone();
        all.extend(ingested);
        check(&ks, &all, "at once").await;
        let after = db.snapshot();
        ks.remove_async(key(20), BUFFERED).await.unwrap();
        ks.remove_range_async(key(400)..key(410), BUFFERED).await.unwrap();
        ks.insert_async(key(30), value(30, "later"), BUFFERED).await.unwrap();
        for merged in [false, true] {
            let seen = rows(before.cursor::<&[u8]>(&ks, ..), true).await;
            assert!(seen == old, "the snapshot from before, merged: {merged}");
            assert!(rows(after.cursor::<&[u8]>(&ks, ..), false).await == all, "{merged}");
            db.compact_async().await.unwrap();
        }
        drop((before, after));
        all.remove(&key(20));
        all.retain(|k, _| !(key(400)..key(410)).contains(k));
        all.insert(key(30), value(30, "later"));
        check(&ks, &all, "in the end").await;
        db.compact_async().await.unwrap();
        check(&ks, &all, "merged").await;
        db.close_async().await.unwrap();
    });
}

#[test]
fn what_is_out_of_order_is_named_and_changes_nothing() {
    in_sim(4, async |env, node| {
        let (db, ks) = open(env).await.unwrap();
        ks.insert_async("m", "1", BUFFERED).await.unwrap();
        let large = |n: u64| (key(n), vec![7; 3000]);
        for (bad, says) in [
            (vec![large(1), large(2), large(3), large(2)], "'key-00002' is below the one before"),
            (vec![large(1), large(2), large(3), large(3)], "record 4: the key 'key-00003' comes"),
            (vec![large(1), large(2), (vec![0x81; 70_000], vec![])], "a key of 70000 bytes"),
        ] {
            let refused = ks.ingest_async(bad).await.unwrap_err();
            let Error::InvalidInput(what) = &refused else { panic!("{refused}") };
            assert!(what.contains(says), "{what}");
        }
        assert_eq!(ks.ingest_async(Rows::new()).await.unwrap(), Ingested::default());
        env.clock.sleep(Duration::from_secs(3)).await;
        assert_eq!(rows(ks.cursor::<&[u8]>(..), false).await.len(), 1);
        let tables = |f: &&String| f.ends_with(".sst");
        assert_eq!(node.disk().files().iter().filter(tables).count(), 0, "files are removed");
        db.drop_keyspace_async("k").await.unwrap();
        assert!(matches!(ks.ingest_async([("a", "b")]).await, Err(Error::InvalidInput(_))));
        let other = db.keyspace_async("o", KeyspaceOptions::default()).await.unwrap();
        db.close_async().await.unwrap();
        assert!(matches!(other.ingest_async([("a", "b")]).await, Err(Error::Stopped(_))));
    });
}

#[test]
fn long_values_and_times_to_live_are_ingested_as_they_are_written() {
    in_sim(5, async |env, _| {
        let (db, _) = open(env).await.unwrap();
        let ttl = KeyspaceOptions { ttl: Some(Duration::from_secs(60)), ..Default::default() };
        let ks = db.keyspace_async("fleeting", ttl.clone()).await.unwrap();
        // More chunks than one entry of the log has numbers for.
        let long: Vec<u8> = (0..40_000_000u32).map(|n| (n / 1000) as u8).collect();
        let all = [(b"a".to_vec(), b"short".to_vec()), (b"b".to_vec(), long.clone())];
        let written = db.keyspace_async("written", ttl).await.unwrap();
        ks.ingest_async(all.clone()).await.unwrap();
        written.insert_async("z", "1", BUFFERED).await.unwrap();
        let record = ks.record_async("b").await.unwrap().unwrap();
        assert!(record.value[..] == long[..]);
        let other = written.record_async("z").await.unwrap().unwrap();
        assert!(other.deadline.unwrap() - record.deadline.unwrap() < 10_000);
        let snapshot = db.snapshot();
        ks.ingest_async([("a", "again"), ("b", "short now")]).await.unwrap();
        db.compact_async().await.unwrap();
        assert!(snapshot.get_async(&ks, "b").await.unwrap().unwrap()[..] == long[..]);
        assert_eq!(ks.get_async("b").await.unwrap().as_deref(), Some(&b"short now"[..]));
        env.clock.sleep(Duration::from_secs(61)).await;
        assert!(ks.get_async("a").await.unwrap().is_none());
        db.close_async().await.unwrap();
    });
}

/// A database with something everywhere that an ingest meets.
async fn prepare(env: &Env) -> (Database, Keyspace, Rows) {
    let (db, ks) = open(env).await.unwrap();
    for n in (0..120).step_by(3) {
        ks.insert_async(key(n), value(n, "flat"), BUFFERED).await.unwrap();
    }
    db.compact_async().await.unwrap();
    ks.remove_range_async(key(60)..key(80), BUFFERED).await.unwrap();
    ks.insert_async(key(61), value(61, "memory"), BUFFERED).await.unwrap();
    db.sync_async().await.unwrap();
    let rows = rows(ks.cursor::<&[u8]>(..), false).await;
    (db, ks, rows)
}

#[test]
fn a_power_cut_at_any_point_leaves_all_of_it_or_nothing() {
    let ingested = records((40..100).step_by(2), "ingested");
    for mode in [CrashMode::DropAll, CrashMode::Random, CrashMode::KeepAll] {
        let (mut whole, mut nothing) = (0, 0);
        for at in 0.. {
            let sim = Sim::new(at + 60);
            let node = sim.node("n");
            let env = node.env();
            let disk = node.disk();
            cut_by(&node, mode);
            let before = Rc::new(std::cell::RefCell::new(Rows::new()));
            let outcome = sim.block_on(&node, async {
                let (_db, ks, rows) = prepare(&env).await;
                *before.borrow_mut() = rows;
                disk.crash_at(disk.mutations() + at, CrashTiming::Any);
                ks.ingest_async(&ingested).await.unwrap();
                disk.cancel_crash();
            });
            let answered = matches!(outcome, Outcome::Done(()));
            if answered {
                node.crash_with(mode);
            }
            node.restart();
            let env = node.env();
            run(&sim, &node, "after the cut", async {
                let report = verify_async(&env, &dir(), &mut |_| {}).await.unwrap();
                assert!(report.is_sound(), "{mode:?} {at}: {:?}", report.problems);
                let (db, ks) = open(&env).await.unwrap();
                let before = before.borrow().clone();
                let mut after = before.clone();
                after.extend(ingested.clone());
                let found = rows(ks.cursor::<&[u8]>(..), false).await;
                let there = found == after;
                assert!(there || found == before && !answered, "{mode:?} {at}: a part of it");
                whole += u32::from(there);
                nothing += u32::from(!there);
                // What is written now is above it, whatever became of its numbers.
                ks.insert_async(key(50), b"new", BUFFERED).await.unwrap();
                ks.remove_async(key(60), BUFFERED).await.unwrap();
                db.compact_async().await.unwrap();
                let mut found = if there { after } else { before.clone() };
                found.insert(key(50), b"new".to_vec());
                found.remove(&key(60));
                check(&ks, &found, "merged").await;
                db.close_async().await.unwrap();
            });
            if answered {
                assert!(at > 8, "{at}");
                break;
            }
        }
        assert!(whole > 0 && nothing > 3, "{mode:?}: {whole} whole, {nothing} without it");
    }
}

#[test]
fn a_failure_at_any_point_leaves_all_of_it_or_nothing() {
    let ingested = records((40..100).step_by(2), "ingested");
    for kind in [FaultKind::NoSpace, FaultKind::Error] {
        for nth in 0.. {
            let sim = Sim::new(70);
            let node = sim.node("n");
            let env = node.env();
            let reached = run(&sim, &node, "failures", async {
                let (db, ks, before) = prepare(&env).await;
                let mut after = before.clone();
                after.extend(ingested.clone());
                node.disk().reset_counters();
                node.disk().fail_nth(nth, kind, false);
                let result = ks.ingest_async(&ingested).await;
                let hit = node.disk().fault_hits() > 0;
                node.disk().clear_faults();
                let found = rows(ks.cursor::<&[u8]>(..), false).await;
                match &result {
                    Ok(_) => assert!(found == after),
                    // What proves it could not be written, or its answer got lost: it may be there.
                    Err(Error::Stopped(_)) => assert!(found == before || found == after),
                    Err(_) => assert!(found == before, "{kind:?} {nth}: {result:?}"),
                }
                let mut wait = 0;
                while db.stats().refusal.is_some() && wait < 20 {
                    env.clock.sleep(Duration::from_secs(1)).await;
                    wait += 1;
                }
                if db.stats().refusal.is_none() {
                    ks.ingest_async(&ingested).await.unwrap();
                    check(&ks, &after, "the second try").await;
                    db.close_async().await.unwrap();
                } else {
                    // It stopped; the next opening decides.
                    drop((db, ks));
                    env.clock.sleep(Duration::from_secs(1)).await;
                }
                let (db, ks) = open(&env).await.unwrap();
                let found = rows(ks.cursor::<&[u8]>(..), false).await;
                assert!(found == after || found == before && result.is_err());
                db.close_async().await.unwrap();
                hit
            });
            if !reached {
                assert!(nth > 8, "{nth}");
                break;
            }
        }
    }
}

/// What a random history does to a database and to a map.
struct History {
    db: Database,
    ks: Keyspace,
    model: Rows,
    snapshots: Vec<(Snapshot, Rows)>,
}

impl History {
    async fn step(&mut self, env: &Env, prng: &mut Prng, n: u64) {
        let of = prng.below(200);
        match prng.below(30) {
            0..=9 => {
                self.model.insert(key(of), value(n, "put"));
                self.ks.insert_async(key(of), value(n, "put"), BUFFERED).await.unwrap();
            }
            10..=13 => {
                self.model.remove(&key(of));
                self.ks.remove_async(key(of), BUFFERED).await.unwrap();
            }
            14 => {
                let to = of + prng.below(40);
                self.model.retain(|k, _| !(key(of)..key(to)).contains(k));
                self.ks.remove_range_async(key(of)..key(to), BUFFERED).await.unwrap();
            }
            15..=18 => {
                let count = 1 + prng.below(60);
                let step = 1 + prng.below(4);
                let keys = (0..count).map(|i| of + i * step).filter(|n| *n < 300);
                let by = format!("ingest {n}");
                let records = records(keys, &by);
                self.model.extend(records.clone());
                self.ks.ingest_async(records).await.unwrap();
            }
            19 | 20 => self.db.flush_async().await.unwrap(),
            21 if prng.chance(0.5) => self.db.compact_async().await.unwrap(),
            22 | 23 => self.snapshots.push((self.db.snapshot(), self.model.clone())),
            24 if !self.snapshots.is_empty() => {
                let at = prng.index(self.snapshots.len());
                let (snapshot, rows_then) = self.snapshots.swap_remove(at);
                let backward = prng.chance(0.5);
                let found = rows(snapshot.cursor::<&[u8]>(&self.ks, ..), backward).await;
                assert!(found == rows_then, "a snapshot, at step {n}");
            }
            25 => {
                self.snapshots.clear();
                self.db.clone().close_async().await.unwrap();
                (self.db, self.ks) = open(env).await.unwrap();
            }
            26 => env.clock.sleep(Duration::from_millis(prng.below(30))).await,
            _ => {
                let found = self.ks.get_async(key(of)).await.unwrap();
                let expected = self.model.get(&key(of)).map(|v| &v[..]);
                assert_eq!(found.as_deref(), expected, "key {of}, at step {n}");
            }
        }
    }
}

#[test]
fn a_random_history_with_ingests_agrees_with_a_map() {
    for seed in 0..60 {
        in_sim(seed, async |env, _| {
            let mut prng = Prng::new(seed).fork("history");
            let (db, ks) = open(env).await.unwrap();
            let mut history = History { db, ks, model: Rows::new(), snapshots: Vec::new() };
            for n in 0..150 {
                history.step(env, &mut prng, n).await;
            }
            for (snapshot, rows_then) in std::mem::take(&mut history.snapshots) {
                assert!(rows(snapshot.cursor::<&[u8]>(&history.ks, ..), false).await == rows_then);
            }
            check(&history.ks, &history.model, &format!("seed {seed}")).await;
            history.db.close_async().await.unwrap();
            assert!(verify_async(env, &dir(), &mut |_| {}).await.unwrap().is_sound());
        });
    }
}

#[test]
fn ingests_and_writes_at_the_same_time_are_each_whole_for_every_snapshot() {
    for seed in 0..20 {
        in_sim(seed, async |env, _| {
            let (db, ks) = open(env).await.unwrap();
            let left = Rc::new(std::cell::Cell::new(3));
            for task in 0..3u64 {
                let (ks, left, env) = (ks.clone(), left.clone(), env.clone());
                let tasks = env.tasks.clone();
                tasks.spawn_local(
                    "worker",
                    Box::pin(async move {
                        for round in 0..25u64 {
                            if task == 0 {
                                // All keys of a round, or of an earlier one.
                                let by = format!("round {round:02}");
                                let all = (0..50).map(|n| (key(n), by.clone()));
                                ks.ingest_async(all).await.unwrap();
                            } else {
                                for n in 0..20 {
                                    let own = format!("own-{task}-{n}");
                                    let value = vec![round as u8; 400];
                                    ks.insert_async(own, value, BUFFERED).await.unwrap();
                                }
                            }
                            env.clock.sleep(Duration::from_micros(seed * 50)).await;
                        }
                        left.set(left.get() - 1);
                    }),
                );
            }
            let mut last = String::new();
            while left.get() > 0 {
                let snapshot = db.snapshot();
                let cursor = snapshot.prefix_cursor(&ks, "key-");
                let found = rows(cursor, seed % 2 == 0).await;
                let rounds: std::collections::BTreeSet<Vec<u8>> = found.into_values().collect();
                assert!(rounds.len() <= 1, "a snapshot shows a part of an ingest: {rounds:?}");
                let round = rounds.into_iter().next().unwrap_or_default();
                let round = String::from_utf8(round).unwrap();
                assert!(round >= last, "{round} after {last}");
                last = round;
                env.clock.sleep(Duration::from_micros(300)).await;
            }
            for task in 1..3 {
                for n in 0..20 {
                    let own = ks.get_async(format!("own-{task}-{n}")).await.unwrap().unwrap();
                    assert_eq!(own[0], 24);
                }
            }
            db.close_async().await.unwrap();
        });
    }
}

#[test]
fn a_scan_that_jumps_over_what_was_deleted_finds_what_was_ingested_there() {
    let sim = Sim::new(12);
    let node = sim.node("a");
    run(&sim, &node, "jump", async {
        let (db, ks) = open(&node.env()).await.unwrap();
        let key = |n: u32| format!("k{n:05}");
        for n in 0..2000 {
            ks.insert_async(key(n), "old", WriteOptions::default()).await.unwrap();
        }
        for n in 0..1999 {
            ks.remove_async(key(n), WriteOptions::default()).await.unwrap();
        }
        let first = async || ks.cursor::<&[u8]>(..).next().await.unwrap().unwrap().key().to_vec();
        for _ in 0..3 {
            assert_eq!(first().await, key(1999).as_bytes());
        }
        let rows = (500..600).map(|n| (key(n).into_bytes(), b"new".to_vec()));
        ks.ingest_async(rows).await.unwrap();
        assert_eq!(first().await, key(500).as_bytes());
        drop(db);
    });
}

#[test]
fn no_transaction_overwrites_what_was_ingested_after_it_read() {
    let number = |value: Option<atoll_lsm::Slice>| -> u64 {
        value.map_or(0, |value| String::from_utf8(value.to_vec()).unwrap().parse().unwrap())
    };
    let mut conflicts = 0;
    for seed in 0..60 {
        in_sim(seed, async |env, _| {
            let (db, ks) = open(env).await.unwrap();
            let prng = Rc::new(std::cell::RefCell::new(Prng::new(seed)));
            let left = Rc::new(std::cell::Cell::new(3));
            let refused = Rc::new(std::cell::Cell::new(0));
            for task in 0..3 {
                let (db, ks, left, clock) =
                    (db.clone(), ks.clone(), left.clone(), env.clock.clone());
                let (prng, refused) = (prng.clone(), refused.clone());
                let work = async move {
                    for _ in 0..20 {
                        let pause = Duration::from_micros(prng.borrow_mut().below(2500));
                        let (counter, options) = ("key-counter", BUFFERED);
                        if task == 0 {
                            let mut tx = db.optimistic_transaction();
                            let found = number(tx.get_async(&ks, counter).await.unwrap());
                            clock.sleep(pause).await;
                            tx.insert(&ks, counter, (found + 1).to_string()).unwrap();
                            match tx.commit_async(options).await {
                                Err(Error::Conflict(_)) => refused.set(refused.get() + 1),
                                committed => committed.unwrap(),
                            }
                        } else if task == 1 {
                            let mut tx = db.write_transaction_async().await.unwrap();
                            let found = number(tx.get_async(&ks, counter).await.unwrap());
                            clock.sleep(pause).await;
                            tx.insert(&ks, counter, (found + 1).to_string()).unwrap();
                            tx.commit_async(options).await.unwrap();
                        } else {
                            clock.sleep(pause).await;
                        }
                        clock.sleep(pause / 3).await;
                    }
                    left.set(left.get() - 1);
                };
                env.tasks.spawn_local("client", Box::pin(work));
            }
            let mut round = 0;
            while left.get() > 0 {
                round += 1;
                let row = [("key-counter", (round * 1000).to_string())];
                if round % 5 == 0 {
                    // Nobody waits for its end.
                    let limit = env.clock.sleep(Duration::from_micros(round * 37 % 900));
                    let ingest = ks.ingest_async(row);
                    match atoll_env::sync::select_biased(ingest, limit).await {
                        atoll_env::sync::Either::Left(done) => _ = done.unwrap(),
                        atoll_env::sync::Either::Right(()) => continue,
                    }
                } else {
                    ks.ingest_async(row).await.unwrap();
                }
                let found = number(ks.get_async("key-counter").await.unwrap());
                assert!(found / 1000 == round, "seed {seed}: {found} after round {round}");
                let pause = Duration::from_micros(prng.borrow_mut().below(900));
                env.clock.sleep(pause).await;
                let found = number(ks.get_async("key-counter").await.unwrap());
                assert!(found / 1000 == round, "seed {seed}: {found} after round {round}");
            }
            conflicts += refused.get();
            db.close_async().await.unwrap();
        });
    }
    assert!(conflicts > 100, "{conflicts} conflicts");
}

#[test]
fn what_is_merged_before_an_ingest_is_gone_and_after_it_goes_onto_what_was_ingested() {
    in_sim(14, async |env, _| {
        let (db, _) = open(env).await.unwrap();
        let merge_operator = Some("atoll.append:".to_owned());
        let options = KeyspaceOptions { merge_operator, ..Default::default() };
        let ks = db.keyspace_async("lists", options).await.unwrap();
        for flush in [false, true] {
            for n in 0..3 {
                ks.merge_async(key(n), b"-before", BUFFERED).await.unwrap();
            }
            if flush {
                db.compact_async().await.unwrap();
            }
            ks.ingest_async([(key(1), b"base"), (key(2), b"base")]).await.unwrap();
            ks.merge_async(key(2), b"-after", BUFFERED).await.unwrap();
            for _ in 0..2 {
                for (n, expected) in [(1, &b"base"[..]), (2, b"base-after")] {
                    let found = ks.get_async(key(n)).await.unwrap();
                    assert_eq!(found.as_deref(), Some(expected), "{n}");
                }
                db.compact_async().await.unwrap();
            }
        }
        let found = ks.get_async(key(0)).await.unwrap();
        assert_eq!(found.as_deref(), Some(&b"-before-before"[..]));
        db.close_async().await.unwrap();
    });
}

#[test]
fn a_key_that_is_read_again_and_again_is_read_as_it_was_ingested() {
    in_sim(15, async |env, _| {
        let (db, ks) = open(env).await.unwrap();
        for n in 0..40 {
            ks.insert_async(key(n), "written", BUFFERED).await.unwrap();
        }
        db.compact_async().await.unwrap();
        for round in 0..30 {
            for _ in 0..4 {
                for n in 0..40 {
                    assert!(ks.get_async(key(n)).await.unwrap().is_some());
                }
            }
            let value = format!("round {round}");
            ks.ingest_async((10..30).map(|n| (key(n), value.clone()))).await.unwrap();
            for n in 0..40 {
                let found = ks.get_async(key(n)).await.unwrap().unwrap();
                let expected = if (10..30).contains(&n) { &value[..] } else { "written" };
                assert_eq!(&found[..], expected.as_bytes(), "key {n}");
            }
        }
        db.close_async().await.unwrap();
    });
}
