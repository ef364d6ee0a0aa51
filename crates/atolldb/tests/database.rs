//! The database as a program uses it: on the real disk, with real threads.

#![expect(clippy::unwrap_used, reason = "a test helper fails its test by panicking")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use atolldb::{
    Action, Batch, Compare, Database, Done, Durability, Error, Expiry, Isolation, KeyRange,
    Keyspace, Kind, OpenError, Options, Test,
};

fn open(dir: &tempfile::TempDir) -> Database {
    let builder = Database::builder(dir.path().join("db")).cores(2).stores(2);
    builder.memory(32 << 20).durability(Durability::Buffered).open().unwrap()
}

fn hashed() -> Options {
    Options { kind: Kind::hashed(16).unwrap(), ttl: None }
}

fn sleep(duration: Duration) {
    atoll_env::block_on(atoll_env::os::env().unwrap().clock.sleep(duration));
}

fn number(value: Option<Vec<u8>>) -> i64 {
    value.map_or(0, |bytes| String::from_utf8(bytes).unwrap().parse().unwrap())
}

#[test]
fn what_was_committed_is_there_when_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3u32 {
        let db = open(&dir);
        let log = db.create_keyspace("log", hashed()).unwrap();
        for n in 0..round * 10 {
            let expected = n.to_string().into_bytes();
            assert_eq!(db.get(&log, n.to_be_bytes()).unwrap(), Some(expected), "{round} {n}");
        }
        assert_eq!(db.count(&log).unwrap(), u64::from(round) * 10);
        let mut tx = db.begin(Isolation::Serializable);
        for n in round * 10..(round + 1) * 10 {
            tx.put(&log, n.to_be_bytes(), n.to_string()).unwrap();
        }
        tx.commit().unwrap();
        let mut lost = db.begin(Isolation::Serializable);
        lost.put(&log, b"never", b"committed").unwrap();
        drop(lost);
        // One is closed, one is dropped: both leave the directory to the next.
        if round % 2 == 0 {
            db.close().unwrap();
        }
    }
    let db = open(&dir);
    let log = db.keyspace("log").unwrap();
    assert_eq!(db.get(&log, b"never").unwrap(), None);
    let second = Database::open(dir.path().join("db"));
    assert!(matches!(second, Err(OpenError::Locked(_))), "{second:?}");
}

#[test]
fn money_moves_between_accounts_and_none_is_made() {
    const ACCOUNTS: usize = 10;
    const THREADS: usize = 4;
    const EACH: usize = 60;
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir);
    for (isolation, options) in [
        (Isolation::Serializable, hashed()),
        (Isolation::Snapshot, hashed()),
        (Isolation::Serializable, Options::default()),
    ] {
        let name = format!("bank {isolation:?} {options}");
        let bank = db.create_keyspace(&name, options).unwrap();
        for n in 0..ACCOUNTS {
            db.put(&bank, n.to_string(), "100").unwrap();
        }
        let sum = |tx: &mut atolldb::Transaction| -> Result<i64, Error> {
            let mut sum = 0;
            for row in tx.scan(&bank, KeyRange::all()) {
                sum += number(Some(row?.value));
            }
            Ok(sum)
        };
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (db, bank) = (&db, &bank);
                scope.spawn(move || {
                    for n in 0..EACH {
                        let from = (n * 7 + thread) % ACCOUNTS;
                        let to = (n * 3 + thread * 5 + 1) % ACCOUNTS;
                        if from == to {
                            continue;
                        }
                        db.transaction_at(isolation, |tx| {
                            let amount = (n % 5) as i64;
                            let a = number(tx.get(bank, from.to_string())?);
                            let b = number(tx.get(bank, to.to_string())?);
                            tx.put(bank, from.to_string(), (a - amount).to_string())?;
                            tx.put(bank, to.to_string(), (b + amount).to_string())
                        })
                        .unwrap();
                    }
                });
            }
            for _ in 0..20 {
                let seen = sum(&mut db.begin(Isolation::Snapshot)).unwrap();
                assert_eq!(seen, 100 * ACCOUNTS as i64, "a moment in between");
            }
        });
        let sum = db.transaction(sum).unwrap();
        assert_eq!(sum, 100 * ACCOUNTS as i64);
    }
}

/// Two doctors go off duty, each after seeing that the other is on.
fn off_duty(db: &Database, ward: &Keyspace, isolation: Isolation) -> [Result<u64, Error>; 2] {
    for name in ["a", "b"] {
        db.put(ward, name, "on").unwrap();
    }
    let mut both = [db.begin(isolation), db.begin(isolation)];
    for tx in &mut both {
        let mut on = 0;
        for row in tx.scan(ward, KeyRange::all()) {
            on += usize::from(row.unwrap().value == b"on");
        }
        assert_eq!(on, 2);
    }
    let [mut first, mut second] = both;
    first.put(ward, "a", "off").unwrap();
    second.put(ward, "b", "off").unwrap();
    [first.commit(), second.commit()]
}

#[test]
fn write_skew_is_possible_under_snapshot_and_not_under_serializable() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir);
    for options in [Options::default(), hashed()] {
        let ward = db.create_keyspace(&format!("ward {options}"), options).unwrap();
        let skewed = off_duty(&db, &ward, Isolation::Snapshot);
        assert!(skewed.iter().all(Result::is_ok), "{skewed:?}");
        let [first, second] = off_duty(&db, &ward, Isolation::Serializable);
        assert!(first.is_ok(), "{first:?}");
        let refused = second.unwrap_err();
        assert!(matches!(refused, Error::Conflict(_)) && refused.is_retryable(), "{refused:?}");
        assert_eq!(db.get(&ward, "b").unwrap().as_deref(), Some(&b"on"[..]));
    }
}

#[test]
fn a_phantom_in_a_scanned_range_is_a_conflict() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir);
    let rooms = db.create_keyspace("rooms", hashed()).unwrap();
    let mut tx = db.begin(Isolation::Serializable);
    assert_eq!(tx.prefix(&rooms, "7/").count(), 0);
    db.put(&rooms, "7/monday", "taken").unwrap();
    tx.put(&rooms, "7/tuesday", "taken").unwrap();
    assert!(matches!(tx.commit(), Err(Error::Conflict(_))));
    let mut tx = db.begin(Isolation::Serializable);
    assert_eq!(tx.prefix(&rooms, "7/").count(), 1);
    db.put(&rooms, "8/monday", "taken").unwrap();
    tx.put(&rooms, "7/tuesday", "taken").unwrap();
    tx.commit().unwrap();
}

#[test]
fn isolations_differ_in_what_an_open_transaction_sees() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir);
    let k = db.create_keyspace("k", hashed()).unwrap();
    db.put(&k, "a", "1").unwrap();
    let mut committed = db.begin(Isolation::ReadCommitted);
    let mut snapshot = db.begin(Isolation::Snapshot);
    for tx in [&mut committed, &mut snapshot] {
        assert_eq!(number(tx.get(&k, "a").unwrap()), 1);
    }
    db.put(&k, "a", "2").unwrap();
    assert_eq!(number(snapshot.get(&k, "a").unwrap()), 1);
    assert_eq!(number(committed.get(&k, "a").unwrap()), 2);
    snapshot.put(&k, "a", "3").unwrap();
    assert!(matches!(snapshot.commit(), Err(Error::Conflict(_))), "first committer wins");
    committed.put(&k, "a", "4").unwrap();
    committed.commit().unwrap();
    sleep(Duration::from_millis(30));
    let mut stale = db.begin(Isolation::BoundedStale(Duration::from_millis(10)));
    assert_eq!(number(stale.get(&k, "a").unwrap()), 4);
    assert!(matches!(stale.put(&k, "a", "5"), Err(Error::InvalidInput(_))));
}

#[test]
fn a_lock_makes_the_next_one_wait_instead_of_fail() {
    const THREADS: usize = 4;
    const EACH: usize = 25;
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir);
    let k = db.create_keyspace("k", Options::default()).unwrap();
    let runs = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..EACH {
                    db.transaction(|tx| {
                        runs.fetch_add(1, Ordering::Relaxed);
                        let n = number(tx.get_for_update(&k, "n")?);
                        tx.put(&k, "n", (n + 1).to_string())
                    })
                    .unwrap();
                }
            });
        }
    });
    assert_eq!(number(db.get(&k, "n").unwrap()), (THREADS * EACH) as i64);
    assert_eq!(runs.into_inner(), THREADS * EACH, "nobody had to run again");
}

#[test]
fn the_retry_helper_runs_again_after_a_conflict_and_not_after_an_error_of_the_body() {
    #[derive(Debug, PartialEq)]
    enum Mine {
        Database(Error),
        Broke,
    }
    impl From<Error> for Mine {
        fn from(error: Error) -> Mine {
            Mine::Database(error)
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir);
    let k = db.create_keyspace("k", hashed()).unwrap();
    let mut runs = 0;
    let read = db.transaction::<_, Mine>(|tx| {
        runs += 1;
        let read = number(tx.get(&k, "a")?);
        if runs <= 2 {
            db.put(&k, "a", runs.to_string())?;
        }
        tx.put(&k, "b", "x")?;
        Ok(read)
    });
    assert_eq!((read, runs), (Ok(2), 3));
    let mut runs = 0;
    let refused = db.transaction::<(), _>(|tx| {
        runs += 1;
        tx.put(&k, "b", "y")?;
        Err(Mine::Broke)
    });
    assert_eq!((refused, runs), (Err(Mine::Broke), 1));
    assert_eq!(db.get(&k, "b").unwrap().as_deref(), Some(&b"x"[..]));
}

#[test]
fn a_transaction_sees_its_own_writes_and_goes_back_to_savepoints() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir);
    let k = db.create_keyspace("k", hashed()).unwrap();
    for n in 0..5 {
        db.put(&k, format!("stored{n}"), "old").unwrap();
    }
    let mut tx = db.begin(Isolation::Serializable);
    tx.put(&k, "stored1", "new").unwrap();
    tx.delete(&k, "stored2").unwrap();
    let savepoint = tx.savepoint().unwrap();
    tx.put(&k, "own", "x").unwrap();
    tx.delete(&k, "stored1").unwrap();
    let keys = |tx: &mut atolldb::Transaction, reverse: bool| -> Vec<String> {
        let scan = tx.scan(&k, KeyRange::all());
        let scan = if reverse { scan.reverse() } else { scan };
        scan.map(|row| String::from_utf8(row.unwrap().key).unwrap()).collect()
    };
    assert_eq!(keys(&mut tx, false), ["own", "stored0", "stored3", "stored4"]);
    assert_eq!(keys(&mut tx, true), ["stored4", "stored3", "stored0", "own"]);
    tx.rollback_to(savepoint).unwrap();
    assert_eq!(keys(&mut tx, false), ["stored0", "stored1", "stored3", "stored4"]);
    assert_eq!(tx.get(&k, "stored1").unwrap().as_deref(), Some(&b"new"[..]));
    assert_eq!(tx.record(&k, "stored1").unwrap().unwrap().version, None, "not committed yet");
    let version = tx.commit().unwrap();
    let mut after = db.begin(Isolation::Snapshot);
    assert_eq!(after.record(&k, "stored1").unwrap().unwrap().version, Some(version));
    assert_eq!(after.get(&k, "own").unwrap(), None);
}

#[test]
fn a_long_scan_goes_over_its_pages_in_order_in_both_kinds() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir);
    let kinds = [Options::default(), hashed()];
    let mut keyspaces = Vec::new();
    for options in kinds {
        keyspaces.push(db.create_keyspace(&format!("{options}"), options).unwrap());
    }
    // An odd factor: keys differ, and come in no order.
    let key = |n: u32| n.wrapping_mul(2_654_435).to_be_bytes();
    for chunk in 0..5u32 {
        let mut tx = db.begin(Isolation::Serializable);
        for n in chunk * 700..(chunk + 1) * 700 {
            for keyspace in &keyspaces {
                tx.put(keyspace, key(n), n.to_be_bytes()).unwrap();
            }
        }
        tx.commit().unwrap();
    }
    let mut tx = db.begin(Isolation::Snapshot);
    let mut rows = Vec::new();
    for keyspace in &keyspaces {
        let forward: Vec<_> = tx.scan(keyspace, KeyRange::all()).map(Result::unwrap).collect();
        let mut backward: Vec<_> =
            tx.scan(keyspace, KeyRange::all()).reverse().map(Result::unwrap).collect();
        assert_eq!(forward.len(), 3_500);
        assert!(forward.is_sorted_by(|a, b| a.key < b.key));
        backward.reverse();
        assert!(forward == backward);
        let some: Vec<_> = tx.range(keyspace, key(100)..=key(200)).map(Result::unwrap).collect();
        assert!(!some.is_empty() && some.iter().all(|row| forward.contains(row)));
        rows.push(forward);
    }
    assert!(rows[0] == rows[1]);
}

#[test]
fn dropping_a_keyspace_takes_those_below_it_and_the_transactions_in_them() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir);
    let [parent, child, other] =
        ["a", "a/b", "ab"].map(|name| db.create_keyspace(name, hashed()).unwrap());
    for keyspace in [&parent, &child, &other] {
        db.put(keyspace, "k", "v").unwrap();
    }
    let mut open_in_child = db.begin(Isolation::Serializable);
    assert!(open_in_child.get(&child, "k").unwrap().is_some());
    open_in_child.put(&other, "k", "late").unwrap();
    assert_eq!(db.drop_keyspace("a").unwrap(), ["a", "a/b"]);
    assert_eq!(open_in_child.commit(), Err(Error::Dropped("a/b".to_owned())));
    assert_eq!(db.get(&child, "k"), Err(Error::Dropped("a/b".to_owned())));
    assert_eq!(db.keyspace("a/b").unwrap_err(), Error::NotFound("a/b".to_owned()));
    assert_eq!(db.get(&other, "k").unwrap().as_deref(), Some(&b"v"[..]));
    let names: Vec<String> = db.keyspaces().unwrap().into_iter().map(|info| info.name).collect();
    assert_eq!(names, ["ab"]);
    let again = db.create_keyspace("a/b", hashed()).unwrap();
    assert_eq!(db.get(&again, "k").unwrap(), None);
}

#[test]
fn a_batch_is_one_message_and_one_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir);
    let k = db.create_keyspace("k", hashed()).unwrap();
    let lock = |owner: &str| Batch {
        compare: vec![Compare {
            keyspace: k.clone(),
            key: b"lock".to_vec(),
            test: Test::Exists(false),
        }],
        success: vec![Action::Put {
            keyspace: k.clone(),
            key: b"lock".to_vec(),
            value: owner.into(),
            expiry: Expiry::After(Duration::from_millis(300)),
        }],
        failure: vec![Action::Get { keyspace: k.clone(), key: b"lock".to_vec() }],
    };
    assert!(db.batch(lock("first")).unwrap().succeeded);
    let second = db.batch(lock("second")).unwrap();
    assert!(!second.succeeded);
    let [Done::Got(Some(found))] = second.results.as_slice() else { panic!("{second:?}") };
    assert_eq!(found.value, b"first");
    sleep(Duration::from_millis(400));
    assert!(db.batch(lock("third")).unwrap().succeeded, "the first one's time is over");
}

#[test]
fn the_async_twins_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    atoll_env::block_on(async {
        let db = Database::open_async(&path).await.unwrap();
        let k = db.create_keyspace_async("k", hashed()).await.unwrap();
        let moved = db.transaction_async(Isolation::Serializable, async |tx| {
            let n = number(tx.get_async(&k, "n").await?);
            tx.put_async(&k, "n", (n + 1).to_string()).await?;
            Ok::<_, Error>(n + 1)
        });
        assert_eq!(moved.await, Ok(1));
        let mut tx = db.begin(Isolation::Snapshot);
        let mut scan = tx.prefix(&k, "n");
        assert_eq!(scan.next_async().await.unwrap().unwrap().value, b"1");
        assert_eq!(scan.next_async().await.unwrap(), None);
        drop(tx);
        let clone = db.clone();
        db.close_async().await.unwrap();
        assert_eq!(clone.get_async(&k, "n").await, Err(Error::Closed));
    });
    let db = Database::open(&path).unwrap();
    let k = db.keyspace("k").unwrap();
    assert_eq!(number(db.get(&k, "n").unwrap()), 1);
}

#[test]
fn options_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    for builder in [
        Database::builder(&path).cores(0),
        Database::builder(&path).cores(65),
        Database::builder(&path).stores(3),
        Database::builder(&path).stores(0),
    ] {
        assert!(matches!(builder.open(), Err(OpenError::InvalidInput(_))));
    }
    assert!(!path.exists());
}
