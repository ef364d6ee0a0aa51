//! Checkpoints: what they hold, while others write, after crashes and failures.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic too")]
#![expect(clippy::disallowed_methods, reason = "what a real file system does is looked at")]

#[expect(dead_code, reason = "only its options and its runner are of use here")]
mod support;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::sim::{CrashMode, CrashTiming, FaultKind, Outcome, Sim};
use atoll_lsm::{
    Database, Durability, Error, Keyspace, KeyspaceOptions, Result, WriteOptions, verify_async,
};
use support::{cut_by, dir, open_with, run, with_value_files as options};

const BUFFERED: WriteOptions = WriteOptions { durability: Some(Durability::Buffered) };

async fn open(env: &Env) -> Result<(Database, Keyspace)> {
    open_with(options(env.clone())).await
}

fn copy() -> PathBuf {
    PathBuf::from("/copies/one")
}

fn key(n: u32) -> String {
    format!("key-{n:05}")
}

fn value(n: u32) -> Vec<u8> {
    format!("value {n} ").repeat(1 + n as usize % 40).into_bytes()
}

async fn put(ks: &Keyspace, n: u32) {
    ks.insert_async(key(n), value(n), BUFFERED).await.unwrap();
}

/// Opens the directory and returns how many keys it holds; they must be the first ones, each whole.
async fn count(env: &Env, path: &Path) -> u32 {
    let report = verify_async(env, path, &mut |_| {}).await.unwrap();
    assert!(report.is_sound(), "{}: {:?}", path.display(), report.problems);
    let db = Database::builder(path).options(options(env.clone())).open_async().await.unwrap();
    let ks = db.find_keyspace("k").unwrap();
    let mut cursor = ks.cursor::<&[u8]>(..);
    let mut count = 0;
    while let Some(guard) = cursor.next().await.unwrap() {
        let (found, content) = guard.into_inner_async().await.unwrap();
        assert_eq!(found, key(count).as_bytes(), "{} has a hole", path.display());
        assert_eq!(&content[..], &value(count)[..]);
        count += 1;
    }
    db.close_async().await.unwrap();
    count
}

#[test]
fn a_checkpoint_holds_what_was_acknowledged_whatever_becomes_of_the_database() {
    let sim = Sim::new(3);
    let node = sim.node("n");
    let env = node.env();
    run(&sim, &node, "checkpoint", async {
        let (db, ks) = open(&env).await.unwrap();
        for n in 0..300 {
            put(&ks, n).await;
        }
        db.checkpoint_async(copy()).await.unwrap();
        // Everything that it was made of is used again or removed.
        for n in 0..900 {
            ks.insert_async(key(n % 300), b"later", BUFFERED).await.unwrap();
        }
        db.compact_async().await.unwrap();
        ks.clear_async(BUFFERED).await.unwrap();
        db.compact_async().await.unwrap();
        assert_eq!(count(&env, &copy()).await, 300);
        // It goes on as a database, without harm to the other.
        let again = Database::builder(copy()).options(options(env.clone()));
        let again = again.open_async().await.unwrap();
        let of_copy = again.find_keyspace("k").unwrap();
        for n in 300..900 {
            put(&of_copy, n).await;
        }
        again.compact_async().await.unwrap();
        ks.insert_async("of the database", b"1", BUFFERED).await.unwrap();
        assert!(ks.get_async(key(1)).await.unwrap().is_none());
        again.close_async().await.unwrap();
        db.close_async().await.unwrap();
        assert_eq!(count(&env, &copy()).await, 900);
        assert!(verify_async(&env, &dir(), &mut |_| {}).await.unwrap().is_sound());
    });
}

#[test]
fn keyspaces_and_what_they_know_are_in_a_checkpoint() {
    let sim = Sim::new(4);
    let node = sim.node("n");
    let env = node.env();
    run(&sim, &node, "keyspaces", async {
        let (db, _) = open(&env).await.unwrap();
        let ttl = KeyspaceOptions {
            ttl: Some(Duration::from_secs(60)),
            filter_prefix_len: 3,
            ..Default::default()
        };
        let fleeting = db.keyspace_async("fleeting", ttl.clone()).await.unwrap();
        fleeting.insert_async("a", vec![7; 1_300_000], WriteOptions::default()).await.unwrap();
        db.keyspace_async("dropped", KeyspaceOptions::default()).await.unwrap();
        db.drop_keyspace_async("dropped").await.unwrap();
        let snapshot = db.snapshot();
        db.checkpoint_async(copy()).await.unwrap();
        drop(snapshot);
        let again = Database::builder(copy()).options(options(env.clone()));
        let again = again.open_async().await.unwrap();
        assert_eq!(again.keyspaces(), ["fleeting", "k"]);
        let of_copy = again.find_keyspace("fleeting").unwrap();
        assert_eq!(of_copy.options(), ttl);
        let record = of_copy.record_async("a").await.unwrap().unwrap();
        assert_eq!((record.value.len(), &record.value[..3]), (1_300_000, &[7; 3][..]));
        env.clock.sleep(Duration::from_secs(61)).await;
        assert!(of_copy.get_async("a").await.unwrap().is_none(), "its time is over there, too");
        // A number that was used is not given out again.
        let new = again.keyspace_async("new", KeyspaceOptions::default()).await.unwrap();
        assert!(format!("{new:?}").ends_with("id 4)"), "{new:?}");
        again.close_async().await.unwrap();
        db.close_async().await.unwrap();
    });
}

#[test]
fn checkpoints_taken_while_others_write_are_prefixes_with_all_that_was_acknowledged() {
    for seed in 0..12 {
        let sim = Sim::new(seed);
        let node = sim.node("n");
        let env = node.env();
        run(&sim, &node, "writers", async {
            let (db, ks) = open(&env).await.unwrap();
            let acknowledged = Rc::new(Cell::new(0));
            let writes = acknowledged.clone();
            let (of_writer, writer_db) = (ks.clone(), db.clone());
            env.tasks.spawn_local(
                "writer",
                Box::pin(async move {
                    for n in 0..1500 {
                        put(&of_writer, n).await;
                        writes.set(n + 1);
                        if n % 400 == 399 {
                            writer_db.compact_async().await.unwrap();
                        }
                    }
                }),
            );
            let mut taken = Vec::new();
            while acknowledged.get() < 1500 {
                env.clock.sleep(Duration::from_micros(1 + seed * 700)).await;
                let before = acknowledged.get();
                let path = PathBuf::from(format!("/copies/{}", taken.len()));
                db.checkpoint_async(&path).await.unwrap();
                taken.push((path, before, acknowledged.get() + 1));
                if taken.len() == 20 {
                    break;
                }
            }
            for (path, least, most) in &taken {
                let found = count(&env, path).await;
                assert!((*least..=*most).contains(&found), "{least} <= {found} <= {most}");
            }
            assert!(taken.len() > 2, "{} checkpoints", taken.len());
            while acknowledged.get() < 1500 {
                env.clock.sleep(Duration::from_millis(1)).await;
            }
            db.close_async().await.unwrap();
        });
    }
}

#[test]
fn a_directory_that_holds_a_file_is_refused_and_stays_as_it_is() {
    let sim = Sim::new(5);
    let node = sim.node("n");
    let env = node.env();
    run(&sim, &node, "refusals", async {
        let (db, ks) = open(&env).await.unwrap();
        put(&ks, 0).await;
        node.disk().write_file(copy().join("deep/in/notes.txt"), b"mine").unwrap();
        let refused = db.checkpoint_async(copy()).await.unwrap_err();
        assert!(matches!(&refused, Error::InvalidInput(what) if what.contains("notes.txt")));
        assert!(matches!(db.checkpoint_async(dir()).await, Err(Error::InvalidInput(_))));
        node.disk().remove_file(copy().join("deep/in/notes.txt")).unwrap();
        db.checkpoint_async(copy()).await.unwrap();
        assert!(matches!(db.checkpoint_async(copy()).await, Err(Error::InvalidInput(_))));
        let handle = db.clone();
        db.close_async().await.unwrap();
        assert!(matches!(handle.checkpoint_async("/late").await, Err(Error::Stopped(_))));
        assert_eq!(count(&env, &copy()).await, 1);
    });
}

/// Writes something into every part of a database.
async fn prepare(env: &Env) -> Database {
    let (db, ks) = open(env).await.unwrap();
    for n in 0..100 {
        put(&ks, n).await;
    }
    db.flush_async().await.unwrap();
    for n in 100..120 {
        put(&ks, n).await;
    }
    db
}

#[test]
fn a_failure_at_any_point_leaves_no_file_and_the_next_try_succeeds() {
    for kind in [FaultKind::NoSpace, FaultKind::Error] {
        for nth in 0.. {
            let sim = Sim::new(6);
            let node = sim.node("n");
            let env = node.env();
            let reached = run(&sim, &node, "failures", async {
                let db = prepare(&env).await;
                let disk = node.disk();
                disk.reset_counters();
                disk.fail_nth(nth, kind, false);
                let first = db.checkpoint_async(copy()).await;
                let hit = disk.fault_hits() > 0;
                disk.clear_faults();
                let held = disk.files().iter().any(|f| f.starts_with("/copies"));
                match &first {
                    Ok(()) => assert!(held),
                    Err(Error::Stopped(_)) => return true, // the log's own write failed
                    Err(_) => assert!(!held, "operation {nth}: {first:?} {:?}", disk.files()),
                }
                if first.is_err() {
                    db.checkpoint_async(copy()).await.unwrap();
                }
                assert_eq!(count(&env, &copy()).await, 120);
                db.close_async().await.unwrap();
                hit
            });
            if !reached {
                assert!(nth > 20, "{nth}");
                break;
            }
        }
    }
}

#[test]
fn a_power_cut_at_any_point_leaves_nothing_that_opens_or_a_whole_checkpoint() {
    let (mut whole, mut refused) = (0, 0);
    for mode in [CrashMode::DropAll, CrashMode::Random, CrashMode::KeepAll] {
        for at in 0.. {
            let sim = Sim::new(at + 7);
            let node = sim.node("n");
            let env = node.env();
            let disk = node.disk();
            cut_by(&node, mode);
            let outcome = sim.block_on(&node, async {
                let db = prepare(&env).await;
                disk.crash_at(disk.mutations() + at, CrashTiming::Any);
                db.checkpoint_async(copy()).await.unwrap();
                disk.cancel_crash();
                // What was answered survives any power cut.
                env.tasks.spawn_local("db", Box::pin(async move { drop(db) }));
            });
            let answered = matches!(outcome, Outcome::Done(()));
            if answered {
                node.crash_with(mode);
            }
            node.restart();
            let env = node.env();
            run(&sim, &node, "after the cut", async {
                let (db, _) = open(&env).await.unwrap();
                db.close_async().await.unwrap();
                let there = node.disk().files().iter().any(|f| f == "/copies/one/ATOLL");
                if there || answered {
                    assert_eq!(count(&env, &copy()).await, 120, "{mode:?} {at}");
                    whole += 1;
                } else if node.disk().files().iter().any(|f| f.starts_with("/copies/one/")) {
                    let opened = Database::builder(copy()).options(options(env.clone()));
                    let error = opened.open_async().await.unwrap_err();
                    assert!(matches!(error, Error::Foreign { .. }), "{mode:?} {at}: {error}");
                    refused += 1;
                }
            });
            if answered {
                assert!(at > 15, "{at}");
                break;
            }
        }
    }
    assert!(whole >= 3 && refused > 20, "{whole} whole, {refused} refused");
}

#[test]
fn tables_are_shared_and_segments_are_not() {
    use std::os::unix::fs::MetadataExt;
    let temp = tempfile::tempdir().unwrap();
    let (path, copy) = (temp.path().join("db"), temp.path().join("copy"));
    let db = Database::builder(&path).memory(16 << 20).open().unwrap();
    let ks = db.keyspace("k", KeyspaceOptions::default()).unwrap();
    for n in 0..100 {
        ks.insert_with(key(n), value(n), BUFFERED).unwrap();
    }
    db.flush().unwrap();
    ks.insert(key(100), vec![7; 2000]).unwrap();
    db.flush().unwrap();
    ks.insert(key(101), value(101)).unwrap();
    db.checkpoint(&copy).unwrap();
    let links = |dir: &str| -> Vec<u64> {
        let files = std::fs::read_dir(copy.join(dir)).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().nlink()).collect()
    };
    assert_eq!((links("tables"), links("values")), (vec![2, 2], vec![2]));
    assert_eq!(links("log").into_iter().max(), Some(1));
    db.close().unwrap();
    std::fs::remove_dir_all(&path).unwrap();
    let again = Database::builder(&copy).open().unwrap();
    let ks = again.find_keyspace("k").unwrap();
    assert_eq!(ks.iter().count(), 102);
    assert_eq!(ks.get(key(100)).unwrap().as_deref(), Some(&[7; 2000][..]));
}

#[test]
fn on_another_file_system_tables_are_copied() {
    use std::os::unix::fs::MetadataExt;
    let temp = tempfile::tempdir().unwrap();
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else { return };
    if other.path().metadata().unwrap().dev() == temp.path().metadata().unwrap().dev() {
        return;
    }
    let db = Database::builder(temp.path().join("db")).memory(16 << 20).open().unwrap();
    let ks = db.keyspace("k", KeyspaceOptions::default()).unwrap();
    ks.insert("a", "1").unwrap();
    db.flush().unwrap();
    db.checkpoint(other.path().join("copy")).unwrap();
    let again = Database::builder(other.path().join("copy")).open().unwrap();
    let of_copy = again.find_keyspace("k").unwrap();
    assert_eq!(of_copy.get("a").unwrap().as_deref(), Some(&b"1"[..]));
}
