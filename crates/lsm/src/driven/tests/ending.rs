//! Full and failing disks, closing, and directories of the other kind.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use atoll_env::sim::{DiskOptions, Fault, FaultKind, OpKind};
use atoll_env::sync::{oneshot, select_biased};
use atoll_env::{block_on, os};
use parking_lot::Mutex;

use super::{Owner, dir, options, run};
use crate::database::Database;
use crate::driven::{Direction, Driver, EntryId, OpenOptions, Tree, Writes, open};
use crate::error::Error;
use crate::options::Options;
use crate::repair::{RepairOptions, repair_async};
use crate::verify::verify_async;

fn writes(n: u64) -> Writes {
    let mut writes = Writes::new();
    writes.insert_version(&n.to_be_bytes(), n, &[&[n as u8; 400]]);
    writes
}

#[test]
fn a_full_disk_refuses_before_anything_is_staged_and_goes_on_when_there_is_space_again() {
    run(1, async |env, node| {
        let mut owner = Owner::open(&env).await.unwrap();
        owner.commit(1, &writes(0)).await.unwrap();
        let disk = node.disk();
        let used = disk.space();
        disk.set_options(DiskOptions { capacity: Some(used + (20 << 10)), ..disk.options() });
        let mut written = 1;
        let refused = loop {
            let before = (owner.driver.end(), owner.driver.group(1).unwrap().next);
            match owner.commit(1, &writes(written)).await {
                Ok(()) => written += 1,
                Err(e) => {
                    let after = (owner.driver.end(), owner.driver.group(1).unwrap().next);
                    assert_eq!(before, after, "nothing was staged");
                    break e;
                }
            }
            assert!(written < 1000, "the disk does not fill up");
        };
        assert!(matches!(refused, Error::NoSpace(_)), "{refused}");
        assert!(matches!(owner.tree.refusal(), Some(Error::NoSpace(_))));
        for n in 0..written {
            assert!(owner.tree.get_version(&n.to_be_bytes(), n).await.unwrap().is_some());
        }
        disk.set_options(DiskOptions { capacity: None, ..disk.options() });
        let due = owner.driver.chores_due();
        while owner.tree.refusal().is_some() {
            select_biased(due.notified(), env.clock.sleep(Duration::from_secs(1))).await;
            owner.driver.chores().await.unwrap();
        }
        for n in written..written + 50 {
            owner.commit(1, &writes(n)).await.unwrap();
        }
        owner.driver.close().await.unwrap();
        let owner = Owner::open(&env).await.unwrap();
        for n in 0..written + 50 {
            assert!(owner.tree.get_version(&n.to_be_bytes(), n).await.unwrap().is_some(), "{n}");
        }
        owner.driver.close().await.unwrap();
    });
}

#[test]
fn a_failed_sync_stops_the_store_and_what_was_synced_before_is_there() {
    for kind in [FaultKind::Error, FaultKind::SyncLoses, FaultKind::SyncForgets] {
        run(2, async |env, node| {
            let mut owner = Owner::open(&env).await.unwrap();
            for n in 0..10 {
                owner.commit(1, &writes(n)).await.unwrap();
            }
            owner.driver.sync().await.unwrap();
            owner.commit(1, &writes(10)).await.unwrap();
            node.disk().inject(Fault::new(kind).on(OpKind::Sync).site("frame sync"));
            assert!(matches!(owner.driver.sync().await, Err(Error::Stopped(_))), "{kind:?}");
            let stopped = |result: crate::Result<()>| matches!(result, Err(Error::Stopped(_)));
            assert!(stopped(owner.driver.sync().await));
            assert!(stopped(owner.driver.chores().await));
            assert!(stopped(owner.driver.reserve(100, &[100]).await));
            assert!(stopped(owner.flush().await));
            assert!(matches!(owner.tree.refusal(), Some(Error::Stopped(_))));
            let read = owner.tree.get_version(&3u64.to_be_bytes(), 3).await.unwrap();
            assert!(read.is_some(), "reads go on");
            drop(owner);
            env.clock.sleep(Duration::from_secs(5)).await;
            let owner = Owner::open(&env).await.unwrap();
            for n in 0..10 {
                let read = owner.tree.get_version(&u64::to_be_bytes(n), n).await.unwrap();
                assert!(read.is_some(), "{kind:?}: {n}");
            }
            owner.driver.close().await.unwrap();
        });
    }
}

#[test]
fn a_flush_that_fails_is_tried_again_and_writers_are_told_once_memory_is_full() {
    run(3, async |env, node| {
        let mut owner = Owner::open(&env).await.unwrap();
        let fault = Fault::new(FaultKind::Error).on(OpKind::Sync).path("tables/").sticky();
        node.disk().inject(fault);
        let mut written = 0;
        let refused = loop {
            match owner.commit(1, &writes(written)).await {
                Ok(()) => written += 1,
                Err(e) => break e,
            }
            assert!(written < 10_000, "memory does not fill up");
        };
        assert!(matches!(refused, Error::Io { .. }), "{refused}");
        node.disk().clear_faults();
        let due = owner.driver.chores_due();
        for _ in 0..5 {
            select_biased(due.notified(), env.clock.sleep(Duration::from_secs(1))).await;
            owner.driver.chores().await.unwrap();
        }
        owner.commit(1, &writes(written)).await.unwrap();
        owner.driver.close().await.unwrap();
    });
}

#[test]
fn an_entry_is_applied_in_its_turn_or_not_at_all() {
    run(4, async |env, _| {
        let mut owner = Owner::open(&env).await.unwrap();
        let driver = &mut owner.driver;
        let mut positions = Vec::new();
        for index in 1..=3 {
            let id = EntryId { group: 1, index, term: 1 };
            positions.push(driver.append(id, &[b"x", writes(index).bytes()]).unwrap());
        }
        driver.write().await.unwrap();
        for wrong in [0, 2, 3] {
            let bytes = writes(wrong);
            let refused = driver.apply(1, wrong, positions[0], bytes.bytes()).await;
            assert!(matches!(refused, Err(Error::InvalidInput(_))));
        }
        driver.apply(1, 1, positions[0], writes(1).bytes()).await.unwrap();
        assert!(driver.apply(1, 1, positions[0], writes(1).bytes()).await.is_err());
        // An entry that writes nothing.
        driver.apply(1, 2, positions[1], b"").await.unwrap();
        driver.apply(1, 3, positions[2], Writes::new().bytes()).await.unwrap();
        assert_eq!(driver.applied(1), 3);
        assert!(owner.tree.get_version(&1u64.to_be_bytes(), 9).await.unwrap().is_some());
        owner.driver.close().await.unwrap();
        let owner = Owner::open(&env).await.unwrap();
        assert_eq!(owner.driver.applied(1), 3, "flushed");
        owner.driver.close().await.unwrap();
    });
}

#[test]
fn each_kind_of_directory_is_refused_by_the_other_ones_opener() {
    run(5, async |env, _| {
        let owner = Owner::open(&env).await.unwrap();
        let locked = open(dir(), OpenOptions { options: options(&env) }).await;
        assert!(matches!(locked, Err(Error::Locked(_))));
        owner.driver.close().await.unwrap();
        let database = Database::builder(dir()).options(options(&env)).open_async().await;
        let refused = database.expect_err("it is a store");
        assert!(matches!(&refused, Error::Foreign { what, .. } if what.contains("atoll-store")));
        let path = dir().with_file_name("db");
        let database = Database::builder(&path).options(options(&env)).open_async().await;
        database.unwrap().close_async().await.unwrap();
        let store = open(&path, OpenOptions { options: options(&env) }).await;
        let refused = store.map(|_| ()).expect_err("it is a database");
        assert!(matches!(&refused, Error::Foreign { what, .. } if what.contains("atoll-lsm")));
        assert!(!refused.to_string().trim_end_matches('.').contains(". "), "one sentence");
    });
}

#[test]
fn a_store_is_told_from_others_by_a_number_that_stays() {
    run(5, async |env, _| {
        let mut numbers = Vec::new();
        for name in ["one", "two", "one", "two"] {
            let path = dir().with_file_name(name);
            let (driver, _) = open(&path, OpenOptions { options: options(&env) }).await.unwrap();
            numbers.push(driver.identity());
            driver.close().await.unwrap();
        }
        assert_ne!(numbers[0], numbers[1]);
        assert_eq!(numbers[..2], numbers[2..]);
    });
}

#[test]
fn a_store_is_verified_and_repaired_like_a_database() {
    run(6, async |env, node| {
        let mut owner = Owner::open(&env).await.unwrap();
        for n in 0..200 {
            owner.commit(1 + n % 2, &writes(n)).await.unwrap();
        }
        owner.flush().await.unwrap();
        for n in 200..220 {
            let id = EntryId { group: 3, index: n - 199, term: 1 };
            owner.driver.append(id, &[b"of the owner's own making"]).unwrap();
        }
        owner.driver.sync().await.unwrap();
        owner.driver.close().await.unwrap();
        let report = verify_async(&env, &dir(), &mut |_| {}).await.unwrap();
        assert!(report.is_sound() && report.tables > 0 && report.log_entries == 20, "{report}");

        let table = node.disk().files().into_iter().find(|f| f.ends_with(".sst")).unwrap();
        assert!(node.disk().corrupt(&table, 100, 3));
        let report = verify_async(&env, &dir(), &mut |_| {}).await.unwrap();
        assert_eq!(report.problems.len(), 1, "{report}");
        let options =
            RepairOptions { drop_corrupt_tables: true, cut_log: true, drop_lost_values: true };
        let report = repair_async(&env, &dir(), options, &mut |_| {}).await.unwrap();
        assert_eq!(report.dropped.len(), 1);
        assert!(report.cut.unwrap().problem.is_none(), "the log is sound and stays");
        let (driver, _tree) =
            open(dir(), OpenOptions { options: super::options(&env) }).await.unwrap();
        assert_eq!(driver.entries(3, 1..21).await.unwrap().len(), 20);
        driver.close().await.unwrap();
    });
}

#[test]
fn a_store_whose_driver_is_gone_answers_and_can_be_opened_again() {
    run(7, async |env, _| {
        let mut owner = Owner::open(&env).await.unwrap();
        owner.commit(1, &writes(1)).await.unwrap();
        let Owner { driver, tree } = owner;
        let (sender, flushed) = oneshot::channel();
        let waiting = tree.clone();
        let task = async move {
            let _ = sender.send(waiting.flush().await);
        };
        env.tasks.spawn("test", Box::pin(task));
        env.clock.sleep(Duration::from_millis(10)).await;
        drop(driver);
        assert!(matches!(flushed.await, Ok(Err(Error::Stopped(_)))));
        assert!(matches!(tree.flush().await, Err(Error::Stopped(_))));
        assert!(matches!(tree.get(b"k").await, Err(Error::Stopped(_))));
        let mut cursor = tree.scan(b"", b"\xff", Direction::Forward);
        assert!(cursor.next().await.is_err());
        drop((tree, cursor));
        env.clock.sleep(Duration::from_secs(5)).await;
        let owner = Owner::open(&env).await.unwrap();
        assert!(owner.tree.get_version(&1u64.to_be_bytes(), 1).await.unwrap().is_some());
        owner.driver.close().await.unwrap();
    });
}

#[test]
fn what_was_only_written_survives_the_death_of_the_process() {
    run(8, async |env, _| {
        let mut owner = Owner::open(&env).await.unwrap();
        for n in 0..30 {
            owner.commit(1, &writes(n)).await.unwrap();
        }
        assert!(owner.driver.synced() < owner.driver.end());
        drop(owner);
        env.clock.sleep(Duration::from_secs(5)).await;
        let owner = Owner::open(&env).await.unwrap();
        assert_eq!(owner.driver.applied(1), 30);
        owner.driver.close().await.unwrap();
    });
}

/// Readers on threads of their own while the owner writes, flushes and compacts: what they see of a
/// stamp that is known to be applied never changes.
#[test]
fn readers_on_other_threads_see_whole_entries_at_their_stamps() {
    const KEYS: u64 = 16;
    let directory = tempfile::tempdir().unwrap();
    let mut options = Options::new(os::env().unwrap());
    options.memory = 8 << 20;
    options.memtable_size = 128 << 10;
    options.log_segment_size = 256 << 10;
    options.level_base_size = 256 << 10;
    let (mut driver, tree) =
        block_on(open(directory.path().join("store"), OpenOptions { options })).unwrap();
    let (applied, over) = (AtomicU64::new(0), AtomicBool::new(false));
    // At which stamp each reader reads: the horizon stays below.
    let reading = Mutex::new([0; 3]);
    let read = |reader: usize| {
        let mut reads = 0;
        while !over.load(Ordering::Acquire) {
            let at = {
                let mut reading = reading.lock();
                let newest = applied.load(Ordering::Acquire);
                reading[reader] = newest - newest.min(reads % 40);
                reading[reader]
            };
            if at == 0 {
                std::thread::yield_now();
                continue;
            }
            let key = (reads * 7 + reader as u64) % KEYS;
            let found = block_on(tree.get_version(&key.to_be_bytes(), at)).unwrap();
            let found = found.expect("every entry writes every key");
            let value = found.value.expect("nothing is removed");
            assert_eq!((found.stamp, &value[..8]), (at, &at.to_le_bytes()[..]));
            if reads % 16 == 0 {
                let direction = [Direction::Forward, Direction::Backward][reads as usize / 16 % 2];
                let mut cursor = tree.scan_versions(b"", b"\xff", at, direction);
                let mut rows = 0;
                while let Some(row) = block_on(cursor.next()).unwrap() {
                    assert_eq!(row.stamp(), at);
                    rows += 1;
                }
                assert_eq!(rows, KEYS);
            }
            reads += 1;
        }
        reads
    };
    let reads: u64 = std::thread::scope(|scope| {
        let read = &read;
        let readers: Vec<_> = (0..3).map(|n| scope.spawn(move || read(n))).collect();
        write_entries(&mut driver, &tree, KEYS, (&applied, &reading));
        over.store(true, Ordering::Release);
        readers.into_iter().map(|reader| reader.join().unwrap()).sum()
    });
    assert!(reads > 100, "{reads} reads");
    block_on(driver.close()).unwrap();
}

/// Writes entries that each set every key, and says in `applied` which one was applied last.
fn write_entries(
    driver: &mut Driver,
    tree: &Tree,
    keys: u64,
    (applied, reading): (&AtomicU64, &Mutex<[u64; 3]>),
) {
    let mut writes = Writes::new();
    for index in 1..=3000u64 {
        writes.clear();
        for key in 0..keys {
            writes.insert_version(&key.to_be_bytes(), index, &[&index.to_le_bytes(), &[1; 40]]);
        }
        block_on(async {
            driver.chores().await.unwrap();
            driver.reserve(writes.arena_bytes(), &[writes.bytes().len()]).await.unwrap();
            let id = EntryId { group: 1, index, term: 1 };
            let position = driver.append(id, &[writes.bytes()]).unwrap();
            driver.write().await.unwrap();
            driver.apply(1, index, position, writes.bytes()).await.unwrap();
        });
        applied.store(index, Ordering::Release);
        let reading = reading.lock();
        // Whoever reads next looks back forty entries at most.
        let oldest = reading.iter().copied().chain([index.saturating_sub(40)]).min();
        tree.set_horizon(oldest.unwrap_or(0));
        drop(reading);
        if index % 1000 == 0 {
            block_on(driver.attend(tree.compact())).unwrap();
        }
    }
}
