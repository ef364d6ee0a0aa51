//! Scripts of bugs that the crash harness found. A seed means another history once the harness
//! changes; these stay.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use atoll_env::disk::IoClass;
use atoll_env::sim::{CrashMode, Node, Sim};
use atoll_env::{Env, IoTag};
use atoll_lsm::{
    Batch, Database, Durability, Error, Keyspace, KeyspaceOptions, Options, WriteOptions,
};

const PATH: &str = "some/where/db";

fn tiny(env: Env) -> Options {
    Options {
        memory: 4 << 20,
        memtable_size: 8 << 10,
        log_segment_size: 16 << 10,
        block_size: 512,
        table_size: 4 << 10,
        level0_tables: 1,
        level_base_size: 4 << 10,
        level_ratio: 2,
        ..Options::new(env)
    }
}

async fn open(options: Options) -> (Database, Keyspace) {
    let db = Database::builder(PATH).options(options).open_async().await.expect("it opens");
    let ks = db.keyspace_async("k", KeyspaceOptions::default()).await.expect("it opens");
    (db, ks)
}

fn buffered() -> WriteOptions {
    WriteOptions::durability(Durability::Buffered)
}

/// Runs `story` on the node; an hour of virtual time is for ever.
fn run<T, F: Future<Output = T>>(sim: &Sim, node: &Node, story: impl FnOnce(Env) -> F) -> T {
    let env = node.env();
    let clock = env.clock.clone();
    let limited = async move {
        let hour = Duration::from_secs(3600);
        atoll_env::sync::timeout(clock.as_ref(), hour, story(env)).await.expect("it ends")
    };
    sim.block_on(node, limited).done()
}

fn reboot(node: &Node, mode: CrashMode) {
    node.crash_with(mode);
    node.restart();
}

#[test]
fn a_database_in_new_directories_survives_a_power_cut() {
    // Only the name in the direct parent was synced.
    let sim = Sim::new(1);
    let node = sim.node("db");
    run(&sim, &node, |env| async move {
        let (_db, ks) = open(tiny(env)).await;
        ks.insert_async("a", "1", WriteOptions::default()).await.unwrap();
    });
    reboot(&node, CrashMode::DropAll);
    run(&sim, &node, |env| async move {
        let (_db, ks) = open(tiny(env)).await;
        assert_eq!(ks.get_async("a").await.unwrap().as_deref(), Some(&b"1"[..]));
    });
}

#[test]
fn a_database_that_was_let_go_of_is_locked_until_its_tasks_have_ended() {
    // The lock went with the handle, and the next opening met a flush and a compaction at work.
    for seed in 0..30 {
        let sim = Sim::new(seed);
        let node = sim.node("db");
        run(&sim, &node, |env| async move {
            let mut refused = 0;
            for round in 0..6 {
                let (db, ks) = loop {
                    let builder = Database::builder(PATH).options(tiny(env.clone()));
                    match builder.open_async().await {
                        Ok(db) => {
                            let options = KeyspaceOptions::default();
                            let ks = db.keyspace_async("k", options).await.unwrap();
                            break (db, ks);
                        }
                        Err(Error::Locked(_)) => refused += 1,
                        Err(e) => panic!("{e}"),
                    }
                    env.clock.sleep(Duration::from_millis(1)).await;
                };
                for key in 0..round {
                    let found = ks.get_async([key]).await.unwrap();
                    assert_eq!(found.as_deref(), Some(&[key; 3000][..]));
                }
                for key in 0..=round {
                    ks.insert_async([key], [key; 3000], buffered()).await.unwrap();
                }
                drop((db, ks));
            }
            assert!(refused > 0, "the lock is held for a while");
        });
    }
}

#[test]
fn more_memtables_than_may_wait_come_out_of_the_log_and_are_flushed() {
    // The flush waited for the leader to cut the log, and the leader for the flush.
    let sim = Sim::new(3);
    let node = sim.node("db");
    run(&sim, &node, |env| async move {
        let (_db, ks) = open(Options { memtable_size: 1 << 20, ..tiny(env) }).await;
        for key in 0..60u8 {
            ks.insert_async([key], [key; 1000], buffered()).await.unwrap();
        }
    });
    reboot(&node, CrashMode::KeepAll);
    run(&sim, &node, |env| async move {
        let options = Options { memtable_size: 4 << 10, sealed_memtables_max: 1, ..tiny(env) };
        let (db, ks) = open(options).await;
        for key in 60..120u8 {
            ks.insert_async([key], [key; 1000], buffered()).await.unwrap();
        }
        db.flush_async().await.unwrap();
        for key in 0..120u8 {
            let found = ks.get_async([key]).await.unwrap();
            assert_eq!(found.as_deref(), Some(&[key; 1000][..]));
        }
    });
}

#[test]
fn a_late_batch_for_a_dropped_keyspace_is_not_seen_in_the_next_one() {
    // The id of the dropped keyspace was drawn again after a restart.
    let sim = Sim::new(4);
    let node = sim.node("db");
    run(&sim, &node, |env| async move {
        let (db, ks) = open(tiny(env.clone())).await;
        let mut late = Batch::new();
        late.insert(&ks, b"ghost", b"boo");
        db.drop_keyspace_async("k").await.unwrap();
        db.write_async(late, WriteOptions::default()).await.unwrap();
        drop(ks);
        db.close_async().await.unwrap();

        let (db, ks) = open(tiny(env)).await;
        assert_eq!(ks.get_async("ghost").await.unwrap(), None);
        db.close_async().await.unwrap();
    });
}

#[test]
fn the_remains_of_a_manifest_replacement_do_not_take_the_next_one_with_them() {
    // Opening replaced a torn manifest under the name of a stray, and then removed the stray.
    let sim = Sim::new(5);
    let node = sim.node("db");
    run(&sim, &node, |env| async move {
        let (db, ks) = open(tiny(env)).await;
        ks.insert_async("a", "1", WriteOptions::default()).await.unwrap();
        drop(ks);
        db.close_async().await.unwrap();
    });
    let disk = node.disk();
    let manifest = format!("{PATH}/manifest-000001");
    let mut torn = disk.read_file(&manifest).expect("the first manifest");
    torn.extend_from_slice(b"an edit that was cut");
    disk.write_file(&manifest, &torn).unwrap();
    disk.write_file(format!("{PATH}/manifest-000002"), b"the beginning of").unwrap();
    for _ in 0..2 {
        run(&sim, &node, |env| async move {
            let (db, ks) = open(tiny(env)).await;
            assert_eq!(ks.get_async("a").await.unwrap().as_deref(), Some(&b"1"[..]));
            drop(ks);
            db.close_async().await.unwrap();
        });
    }
}

#[test]
fn a_spare_that_is_the_second_name_of_a_segment_is_not_used() {
    // A power cut inside of a rename left both names; the segment was overwritten as a spare.
    let sim = Sim::new(6);
    let node = sim.node("db");
    run(&sim, &node, |env| async move {
        let (_db, ks) = open(tiny(env)).await;
        ks.insert_async("a", "1", WriteOptions::default()).await.unwrap();
    });
    reboot(&node, CrashMode::KeepAll);
    let disk = node.disk();
    let live = disk.files().into_iter().find(|f| f.ends_with(".log")).expect("a segment");
    let spare = format!("{PATH}/log/0000000099.spare");
    disk.write_file(&spare, &disk.read_file(&live).expect("it can be read")).unwrap();
    run(&sim, &node, |env| async move {
        let (_db, ks) = open(tiny(env)).await;
        assert_eq!(ks.get_async("a").await.unwrap().as_deref(), Some(&b"1"[..]));
    });
    assert_eq!(disk.read_file(&spare), None, "it was removed, not written");
}

#[test]
fn a_spare_whose_name_is_not_durable_is_not_written() {
    // Death of the process between the renaming of a segment to a spare and the sync of that, then
    // a power cut: the segment was back under its old name, with the header of its next life.
    for seed in 0..40 {
        let sim = Sim::new(seed);
        let node = sim.node("db");
        let disk = node.disk();
        let options = |env| Options { memtable_size: 1 << 20, ..tiny(env) };
        run(&sim, &node, |env| async move {
            let (db, ks) = open(options(env)).await;
            for key in 0..12u8 {
                ks.insert_async([key], [key; 3000], WriteOptions::default()).await.unwrap();
            }
            drop(ks);
            db.close_async().await.unwrap();
        });
        // What retiring the oldest segment does before its sync.
        let env = node.env();
        let log = |name: &str| Path::new(PATH).join("log").join(name);
        let oldest = disk.files().into_iter().find(|f| f.ends_with(".log")).expect("a segment");
        let spare = log("0000000099.spare");
        let tag = IoTag::new(IoClass::Log, "segment reuse");
        let renamed = async { env.disk.rename(tag, Path::new(&oldest), &spare).await.unwrap() };
        sim.block_on(&node, renamed).done();
        reboot(&node, CrashMode::KeepAll);
        run(&sim, &node, |env| async move {
            let (_db, ks) = open(options(env)).await;
            ks.insert_async("a", "1", WriteOptions::default()).await.unwrap();
        });
        reboot(&node, CrashMode::Random);
        run(&sim, &node, |env| async move {
            let (_db, ks) = open(options(env)).await;
            assert_eq!(ks.get_async("a").await.unwrap().as_deref(), Some(&b"1"[..]));
            for key in 0..12u8 {
                let found = ks.get_async([key]).await.unwrap();
                assert_eq!(found.as_deref(), Some(&[key; 3000][..]));
            }
        });
    }
}
