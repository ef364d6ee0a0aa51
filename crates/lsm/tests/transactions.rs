//! Transactions by the anomalies they rule out, each by its name in the field.
//!
//! The interleavings are written out by hand; random ones are `src/transaction/histories.rs`.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic too")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use atoll_env::random::Prng;
use atoll_env::sim::{CrashTiming, Sim};
use atoll_env::{block_on, os};
use atoll_lsm::{
    Batch, Database, Durability, Error, Keyspace, KeyspaceOptions, OptimisticTransaction, Options,
    Result, WriteOptions,
};

const BUFFERED: WriteOptions = WriteOptions { durability: Some(Durability::Buffered) };

/// A database on the real disk that is gone with the test.
struct Scratch {
    db: Database,
    ks: Keyspace,
    _dir: tempfile::TempDir,
}

fn scratch() -> Scratch {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        memory: 8 << 20,
        memtable_size: 256 << 10,
        durability: Durability::Buffered,
        level0_tables: 2,
        ..Options::new(os::env().unwrap())
    };
    let db = Database::builder(dir.path().join("db")).options(options).open().unwrap();
    let ks = db.keyspace("k", KeyspaceOptions::default()).unwrap();
    Scratch { db, ks, _dir: dir }
}

impl Scratch {
    fn with(rows: &[(&str, &str)]) -> Scratch {
        let scratch = scratch();
        rows.iter().for_each(|(key, value)| scratch.ks.insert(key, value).unwrap());
        scratch
    }

    fn begin(&self) -> OptimisticTransaction {
        self.db.optimistic_transaction()
    }

    fn rows(&self) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let rows = self.ks.iter().map(|guard| guard.unwrap().into_inner().unwrap());
        rows.map(|(key, value)| (text(&key), text(&value))).collect()
    }

    fn value(&self, key: &str) -> Option<String> {
        self.rows().into_iter().find(|(k, _)| k == key).map(|(_, value)| value)
    }
}

fn text(tx: &OptimisticTransaction, ks: &Keyspace, key: &str) -> Option<String> {
    let value = tx.get(ks, key).unwrap()?;
    Some(String::from_utf8(value.to_vec()).unwrap())
}

fn commits(tx: OptimisticTransaction) {
    tx.commit(BUFFERED).unwrap();
}

fn conflicts(tx: OptimisticTransaction) {
    let answer = tx.commit(BUFFERED);
    assert!(matches!(answer, Err(Error::Conflict(_))), "{answer:?}");
}

// ---- what serializability rules out ----

#[test]
fn a_lost_update_is_refused() {
    let s = Scratch::with(&[("x", "10")]);
    let (mut a, mut b) = (s.begin(), s.begin());
    assert_eq!(
        (text(&a, &s.ks, "x"), text(&b, &s.ks, "x")),
        (Some("10".into()), Some("10".into()))
    );
    a.insert(&s.ks, "x", "11").unwrap();
    b.insert(&s.ks, "x", "12").unwrap();
    commits(a);
    conflicts(b);
    assert_eq!(s.value("x").unwrap(), "11");
}

#[test]
fn a_lost_update_by_a_plain_write_is_refused() {
    for plain in 0..4 {
        let s = Scratch::with(&[("x", "10")]);
        let mut tx = s.begin();
        assert_eq!(text(&tx, &s.ks, "x").unwrap(), "10");
        match plain {
            0 => s.ks.insert("x", "11").unwrap(),
            1 => s.ks.remove("x").unwrap(),
            2 => s.ks.clear().unwrap(),
            _ => {
                let mut batch = Batch::new();
                batch.insert(&s.ks, b"a", b"1").insert(&s.ks, b"x", b"11");
                s.db.write(batch, BUFFERED).unwrap();
            }
        }
        tx.insert(&s.ks, "x", "12").unwrap();
        conflicts(tx);
    }
}

#[test]
fn write_skew_is_refused() {
    let s = Scratch::with(&[("x", "1"), ("y", "1")]);
    let (mut a, mut b) = (s.begin(), s.begin());
    for tx in [&a, &b] {
        assert_eq!(
            (text(tx, &s.ks, "x").unwrap(), text(tx, &s.ks, "y").unwrap()),
            ("1".into(), "1".into())
        );
    }
    a.insert(&s.ks, "x", "0").unwrap();
    b.insert(&s.ks, "y", "0").unwrap();
    commits(a);
    conflicts(b);
    assert_eq!((s.value("x").unwrap(), s.value("y").unwrap()), ("0".into(), "1".into()));
}

#[test]
fn write_skew_over_absent_keys_is_refused() {
    let s = scratch();
    let (mut a, mut b) = (s.begin(), s.begin());
    assert_eq!((text(&a, &s.ks, "b"), text(&b, &s.ks, "a")), (None, None));
    a.insert(&s.ks, "a", "1").unwrap();
    b.insert(&s.ks, "b", "1").unwrap();
    commits(a);
    conflicts(b);
}

#[test]
fn a_long_fork_is_refused() {
    // Two writers, and two readers who see them in different orders: snapshots are of one line.
    let s = Scratch::with(&[("x", "0"), ("y", "0")]);
    let (mut w1, mut w2) = (s.begin(), s.begin());
    w1.insert(&s.ks, "x", "1").unwrap();
    w2.insert(&s.ks, "y", "1").unwrap();
    let before = s.begin();
    commits(w1);
    let between = s.begin();
    commits(w2);
    let after = s.begin();
    let seen =
        |tx: &OptimisticTransaction| text(tx, &s.ks, "x").unwrap() + &text(tx, &s.ks, "y").unwrap();
    assert_eq!([seen(&before), seen(&between), seen(&after)], ["00", "10", "11"]);
    for tx in [before, between, after] {
        // Who only reads is right as of its snapshot.
        commits(tx);
    }
}

#[test]
fn the_read_only_anomaly_is_refused() {
    // Fekete, O'Neil, O'Neil 2004: under snapshot isolation the report sees the deposit and not the
    // withdrawal, although the withdrawal was charged as if the deposit had not been there.
    let s = Scratch::with(&[("checking", "0"), ("saving", "0")]);
    let mut withdrawal = s.begin();
    assert_eq!(text(&withdrawal, &s.ks, "checking").unwrap(), "0");
    assert_eq!(text(&withdrawal, &s.ks, "saving").unwrap(), "0");
    let mut deposit = s.begin();
    assert_eq!(text(&deposit, &s.ks, "saving").unwrap(), "0");
    deposit.insert(&s.ks, "saving", "20").unwrap();
    commits(deposit);
    let report = s.begin();
    assert_eq!(text(&report, &s.ks, "checking").unwrap(), "0");
    assert_eq!(text(&report, &s.ks, "saving").unwrap(), "20");
    commits(report);
    withdrawal.insert(&s.ks, "checking", "-11").unwrap();
    conflicts(withdrawal);
}

#[test]
fn a_phantom_in_a_range_is_refused() {
    type Read = fn(&OptimisticTransaction, &Keyspace) -> usize;
    let reads: [(&str, Read); 4] = [
        ("a range", |tx, ks| tx.range(ks, "b".."d").count()),
        ("against the order", |tx, ks| tx.range(ks, "b".."d").rev().count()),
        ("a prefix", |tx, ks| tx.prefix(ks, "c").count()),
        ("everything", |tx, ks| tx.iter(ks).count()),
    ];
    for (what, read) in reads {
        for rows in [&[("a", "1"), ("z", "1")][..], &[], &[("b", "1"), ("cc", "1")]] {
            let s = Scratch::with(rows);
            let mut tx = s.begin();
            let before = read(&tx, &s.ks);
            s.ks.insert("c", "new").unwrap();
            assert_eq!(read(&tx, &s.ks), before, "{what}: it shows in the snapshot");
            tx.insert(&s.ks, "count", before.to_string()).unwrap();
            conflicts(tx);
        }
    }
}

#[test]
fn a_phantom_by_range_delete_is_refused() {
    let s = Scratch::with(&[("b", "1"), ("c", "1")]);
    for (start, end, meets) in [
        ("c", "d", true),
        ("a", "z", true),
        ("bb", "bc", true),
        ("e", "f", false),
        ("", "b", false),
    ] {
        let mut tx = s.begin();
        let _ = tx.range(&s.ks, "b".."d").count();
        let mut other = s.begin();
        other.remove_range(&s.ks, start..end).unwrap();
        commits(other);
        tx.insert(&s.ks, "result", "").unwrap();
        if meets {
            conflicts(tx)
        } else {
            commits(tx)
        }
        s.ks.insert("b", "1").unwrap();
        s.ks.insert("c", "1").unwrap();
    }
}

#[test]
fn a_key_under_a_range_delete_is_a_conflict_for_who_read_it() {
    let s = Scratch::with(&[("b", "1")]);
    for (start, end, meets) in
        [("a", "c", true), ("b", "b\0", true), ("c", "d", false), ("a", "b", false)]
    {
        let mut tx = s.begin();
        let _ = text(&tx, &s.ks, "b");
        s.ks.remove_range(start..end).unwrap();
        tx.insert(&s.ks, "result", "").unwrap();
        if meets {
            conflicts(tx)
        } else {
            commits(tx)
        }
        s.ks.insert("b", "1").unwrap();
    }
}

#[test]
fn a_dirty_read_and_a_dirty_write_do_not_occur() {
    let s = Scratch::with(&[("x", "0")]);
    let mut a = s.begin();
    a.insert(&s.ks, "x", "1").unwrap();
    assert_eq!(text(&s.begin(), &s.ks, "x").unwrap(), "0");
    assert_eq!(s.value("x").unwrap(), "0");
    a.rollback();
    // Blind writes of two keys come whole, one after the other, in the order of their commits.
    let (mut a, mut b) = (s.begin(), s.begin());
    for (tx, value) in [(&mut a, "a"), (&mut b, "b")] {
        tx.insert(&s.ks, "x", value).unwrap();
        tx.insert(&s.ks, "y", value).unwrap();
    }
    commits(b);
    commits(a);
    assert_eq!((s.value("x").unwrap(), s.value("y").unwrap()), ("a".into(), "a".into()));
}

#[test]
fn a_fractured_read_does_not_occur() {
    let s = Scratch::with(&[("x", "0"), ("y", "0")]);
    let reader = s.begin();
    assert_eq!(text(&reader, &s.ks, "x").unwrap(), "0");
    let mut writer = s.begin();
    writer.insert(&s.ks, "x", "1").unwrap();
    writer.insert(&s.ks, "y", "1").unwrap();
    commits(writer);
    assert_eq!(text(&reader, &s.ks, "y").unwrap(), "0", "half of a transaction is seen");
    commits(reader);
}

#[test]
fn an_intermediate_read_does_not_occur() {
    let s = Scratch::with(&[("x", "0")]);
    let mut writer = s.begin();
    writer.insert(&s.ks, "x", "1").unwrap();
    let seen = |when: &str| assert_eq!(s.value("x").unwrap(), "0", "{when}");
    seen("after its first write");
    writer.insert(&s.ks, "x", "2").unwrap();
    seen("after its second");
    commits(writer);
    assert_eq!(s.value("x").unwrap(), "2");
}

// ---- what is no conflict ----

#[test]
fn merges_of_one_key_do_not_conflict_and_none_is_lost() {
    let s = scratch();
    let by = Some("atoll.append:".to_owned());
    let options = KeyspaceOptions { merge_operator: by, ..KeyspaceOptions::default() };
    let list = s.db.keyspace("list", options).unwrap();
    list.insert("k", "0").unwrap();
    let (mut a, mut b, mut reader) = (s.begin(), s.begin(), s.begin());
    a.merge(&list, "k", "a").unwrap();
    b.merge(&list, "k", "b").unwrap();
    assert_eq!(text(&reader, &list, "k").unwrap(), "0");
    reader.merge(&list, "k", "r").unwrap();
    assert_eq!(text(&reader, &list, "k").unwrap(), "0r");
    commits(b);
    list.merge("k", "p").unwrap();
    commits(a);
    assert_eq!(list.get("k").unwrap().as_deref(), Some(&b"0bpa"[..]), "in the order of commits");
    // It has read what is not true any more.
    conflicts(reader);
    // Its own operands are read from the snapshot's base, in cursors too, and that is a read.
    for way in 0..3 {
        let mut tx = s.begin();
        tx.merge(&list, "k", "x").unwrap();
        match way {
            0 => assert_eq!(text(&tx, &list, "k").unwrap(), "0bpax"),
            1 => assert_eq!(tx.iter(&list).count(), 1),
            _ => assert_eq!(tx.iter(&list).rev().count(), 1),
        }
        list.merge("k", "").unwrap();
        conflicts(tx);
    }
    // What it has put or removed itself it has not read.
    let mut tx = s.begin();
    tx.insert(&list, "k", "new").unwrap();
    tx.merge(&list, "k", "er").unwrap();
    tx.remove(&list, "j").unwrap();
    tx.merge(&list, "j", "only").unwrap();
    tx.remove_range(&list, "l".."m").unwrap();
    tx.merge(&list, "l", "also").unwrap();
    let own = ["j", "k", "l"].map(|key| text(&tx, &list, key).unwrap());
    assert_eq!(own, ["only", "newer", "also"]);
    list.merge("k", "lost").unwrap();
    list.merge("l", "lost").unwrap();
    commits(tx);
    let values = ["j", "k", "l"].map(|key| list.get(key).unwrap().unwrap());
    assert_eq!(values.each_ref().map(|value| &value[..]), [&b"only"[..], b"newer", b"also"]);
    let mut tx = s.begin();
    let refused = tx.merge(&s.ks, "k", "1");
    assert!(matches!(refused, Err(Error::InvalidInput(_))), "it has no operator");
}

#[test]
fn an_operand_that_expired_and_was_dropped_meanwhile_is_still_a_conflict() {
    let sim = Sim::new(6);
    let node = sim.node("db");
    let env = node.env();
    sim.block_on(&node, async {
        let options = Options { memory: 4 << 20, level0_tables: 1, ..Options::new(env.clone()) };
        let db = Database::builder("db").options(options).open_async().await.unwrap();
        let by = Some("atoll.append:".to_owned());
        let list = KeyspaceOptions { merge_operator: by, ..KeyspaceOptions::default() };
        let ks = db.keyspace_async("k", list).await.unwrap();
        ks.insert_async("x", "0", WriteOptions::default()).await.unwrap();
        let mut tx = db.optimistic_transaction();
        assert_eq!(tx.get_async(&ks, "x").await.unwrap().as_deref(), Some(&b"0"[..]));
        let mut batch = Batch::new();
        batch.merge_expiring(&ks, b"x", b"1", env.clock.wall().0 + 5_000);
        db.write_async(batch, WriteOptions::default()).await.unwrap();
        env.clock.sleep(Duration::from_secs(60)).await;
        db.compact_async().await.unwrap();
        assert_eq!(ks.get_async("x").await.unwrap().as_deref(), Some(&b"0"[..]));
        tx.insert(&ks, "y", "1").unwrap();
        let answer = tx.commit_async(WriteOptions::default()).await;
        assert!(matches!(answer, Err(Error::Conflict(_))), "{answer:?}");
        db.compact_async().await.unwrap();
        assert_eq!(db.stats().levels[6].entries, 2, "without anybody who minds it goes");
        db.close_async().await.unwrap();
    })
    .done();
}

#[test]
fn transactions_that_do_not_meet_commit() {
    let s = Scratch::with(&[("a", "1"), ("b", "1"), ("c", "1"), ("m", "1")]);
    let (mut a, mut b, mut first) = (s.begin(), s.begin(), s.begin());
    let _ = text(&a, &s.ks, "a");
    let _ = text(&b, &s.ks, "b");
    // Only the first key is looked at, so what is behind it does not matter.
    let key = first.iter(&s.ks).next().unwrap().unwrap().key().to_vec();
    assert_eq!(key, b"a");
    a.insert(&s.ks, "new of a", "1").unwrap();
    b.insert(&s.ks, "new of b", "1").unwrap();
    first.insert(&s.ks, "new of first", "1").unwrap();
    commits(a);
    commits(b);
    s.ks.insert("m", "2").unwrap();
    commits(first);
    // But what comes before the first key does.
    let mut first = s.begin();
    assert!(first.iter(&s.ks).next().is_some());
    first.insert(&s.ks, "new", "").unwrap();
    s.ks.insert("A", "").unwrap();
    conflicts(first);
}

#[test]
fn what_a_transaction_overwrote_or_removed_itself_it_has_not_read() {
    let s = Scratch::with(&[("x", "0"), ("y", "0")]);
    let mut tx = s.begin();
    tx.insert(&s.ks, "x", "1").unwrap();
    tx.remove_range(&s.ks, "y".."z").unwrap();
    assert_eq!((text(&tx, &s.ks, "x").unwrap(), text(&tx, &s.ks, "y")), ("1".into(), None));
    s.ks.insert("x", "2").unwrap();
    s.ks.insert("y", "2").unwrap();
    commits(tx);
    assert_eq!((s.value("x").unwrap(), s.value("y")), ("1".into(), None));
}

#[test]
fn reads_stay_validated_after_a_rollback_to_a_savepoint() {
    let s = Scratch::with(&[("x", "0")]);
    let mut tx = s.begin();
    let savepoint = tx.savepoint();
    let _ = text(&tx, &s.ks, "x");
    tx.rollback_to(&savepoint).unwrap();
    tx.insert(&s.ks, "y", "").unwrap();
    s.ks.insert("x", "1").unwrap();
    conflicts(tx);
}

#[test]
fn reading_for_update_answers_at_once_and_counts_without_writes() {
    let s = Scratch::with(&[("x", "0")]);
    let mut tx = s.begin();
    assert_eq!(tx.get_for_update(&s.ks, "x").unwrap().as_deref(), Some(&b"0"[..]));
    s.ks.insert("x", "1").unwrap();
    conflicts(tx);
    // The same read without it: true as of the snapshot.
    let tx = s.begin();
    let _ = text(&tx, &s.ks, "x");
    s.ks.insert("x", "2").unwrap();
    commits(tx);
    let mut late = s.begin();
    s.ks.insert("x", "3").unwrap();
    let answer = late.get_for_update(&s.ks, "x");
    assert!(matches!(answer, Err(Error::Conflict(_))), "{answer:?}");
    late.insert(&s.ks, "y", "").unwrap();
    conflicts(late);
}

// ---- flush and compaction in between ----

#[test]
fn a_change_that_was_flushed_or_compacted_meanwhile_is_still_a_conflict() {
    type Change = fn(&Keyspace) -> Result<()>;
    let changes: [(&str, Change); 5] = [
        ("an insert", |ks| ks.insert("key 050", "new")),
        ("a removal", |ks| ks.remove("key 050")),
        ("a range delete", |ks| ks.remove_range("key 049".."key 051")),
        ("an insert that was removed again", |ks| {
            ks.insert("key 050", "new")?;
            ks.remove("key 050")
        }),
        ("a value that expires at once", |ks| ks.insert_for("key 050", "new", Duration::ZERO)),
    ];
    for (what, change) in changes {
        for moves in 0..4 {
            for by_range in [false, true] {
                for there in [false, true] {
                    let s = scratch();
                    for n in (0..100).filter(|n| there || *n != 50) {
                        s.ks.insert(format!("key {n:03}"), [7; 100]).unwrap();
                    }
                    if moves > 1 {
                        s.db.compact().unwrap();
                    }
                    let mut tx = s.begin();
                    if by_range {
                        let _ = tx.range(&s.ks, "key 050".."key 051").count();
                    } else {
                        let _ = tx.get(&s.ks, "key 050").unwrap();
                    }
                    let mut elsewhere = s.begin();
                    let _ = elsewhere.range(&s.ks, "key 052"..).count();
                    change(&s.ks).unwrap();
                    match moves {
                        0 => {}
                        1 => s.db.flush().unwrap(),
                        _ => s.db.compact().unwrap(),
                    }
                    if moves == 3 {
                        s.ks.insert("something else", "").unwrap();
                        s.db.compact().unwrap();
                    }
                    let about = format!("{what}, moved {moves}, range {by_range}, there {there}");
                    tx.insert(&s.ks, "result", "").unwrap();
                    elsewhere.insert(&s.ks, "key 051 a", "").unwrap();
                    let answer = tx.commit(BUFFERED);
                    assert!(matches!(answer, Err(Error::Conflict(_))), "{about}: {answer:?}");
                    let answer = elsewhere.commit(BUFFERED);
                    assert_eq!(answer.is_ok(), moves != 3, "{about}: {answer:?}");
                }
            }
        }
    }
}

/// The last level drops a table whole, unread, once all in it has expired.
#[test]
fn a_change_that_expired_and_was_dropped_meanwhile_is_still_a_conflict() {
    #[cfg(feature = "mutants")]
    if std::env::var_os("ATOLL_LSM_MUTANT").is_some() {
        atoll_lsm::mutants::choose("expired-dropped-early");
    }
    let sim = Sim::new(5);
    let node = sim.node("db");
    let env = node.env();
    sim.block_on(&node, async {
        let options = Options { memory: 4 << 20, level0_tables: 1, ..Options::new(env.clone()) };
        let db = Database::builder("db").options(options).open_async().await.unwrap();
        let ks = db.keyspace_async("k", KeyspaceOptions::default()).await.unwrap();
        // The keyspace's name is in a table of its own.
        db.compact_async().await.unwrap();
        let mut tx = db.optimistic_transaction();
        assert!(tx.get_async(&ks, "x").await.unwrap().is_none());
        let ttl = Duration::from_secs(30);
        ks.insert_for_async("x", "1", ttl, WriteOptions::default()).await.unwrap();
        db.flush_async().await.unwrap();
        env.clock.sleep(Duration::from_secs(5)).await;
        let tables = |db: &Database| db.stats().levels.map(|level| level.tables);
        assert_eq!(tables(&db), [0, 0, 0, 0, 0, 0, 2], "it was moved to the last level");
        env.clock.sleep(Duration::from_secs(60)).await;
        // Whoever looks now finds as little as the transaction did, but in between somebody could
        // have read what the transaction is about to write, and have seen it come after.
        assert!(ks.get_async("x").await.unwrap().is_none());
        tx.insert(&ks, "y", "1").unwrap();
        let answer = tx.commit_async(WriteOptions::default()).await;
        assert!(matches!(answer, Err(Error::Conflict(_))), "{answer:?}");
        // Without anybody who minds it goes.
        env.clock.sleep(Duration::from_secs(60)).await;
        assert_eq!(tables(&db)[6], 1, "it was dropped");
        db.close_async().await.unwrap();
    })
    .done();
}

#[cfg(feature = "mutants")]
#[test]
fn a_table_that_is_dropped_too_early_is_missed() {
    let test = "a_change_that_expired_and_was_dropped_meanwhile_is_still_a_conflict";
    let mut run = std::process::Command::new(std::env::current_exe().unwrap());
    let output = run.args(["--exact", test]).env("ATOLL_LSM_MUTANT", "1").output().unwrap();
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_dropped_keyspace_is_a_conflict_for_who_read_it() {
    let s = Scratch::with(&[("x", "0")]);
    let other = s.db.keyspace("other", KeyspaceOptions::default()).unwrap();
    let mut tx = s.begin();
    let _ = text(&tx, &s.ks, "x");
    tx.insert(&other, "copy", "0").unwrap();
    s.db.drop_keyspace("k").unwrap();
    conflicts(tx);
}

// ---- the single-writer one ----

#[test]
fn writes_of_others_wait_for_the_single_writer_and_come_after_it() {
    let s = Scratch::with(&[("x", "0")]);
    let mut tx = s.db.write_transaction().unwrap();
    let committed = AtomicBool::new(false);
    let mut overtaken = s.begin();
    let _ = text(&overtaken, &s.ks, "x");
    overtaken.insert(&s.ks, "late", "").unwrap();
    std::thread::scope(|scope| {
        let plain = scope.spawn(|| {
            s.ks.insert("x", "plain").unwrap();
            assert!(committed.load(Ordering::SeqCst), "a plain write went by");
        });
        let optimistic = scope.spawn(|| {
            let answer = overtaken.commit(BUFFERED);
            assert!(committed.load(Ordering::SeqCst), "an optimistic commit went by");
            answer
        });
        let next = scope.spawn(|| {
            let tx = s.db.write_transaction().unwrap();
            assert!(committed.load(Ordering::SeqCst), "a second single writer began");
            tx.commit(BUFFERED).unwrap();
        });
        let dropped = scope.spawn(|| {
            s.db.keyspace("other", KeyspaceOptions::default()).unwrap();
            s.db.drop_keyspace("other").unwrap();
            assert!(committed.load(Ordering::SeqCst), "a keyspace was dropped");
        });
        for n in 0..20 {
            block_on(s.db.env().clock.sleep(Duration::from_millis(1)));
            assert_eq!(
                tx.get(&s.ks, "x").unwrap().unwrap().to_vec(),
                if n == 0 { "0".into() } else { (n - 1).to_string().into_bytes() }
            );
            tx.insert(&s.ks, "x", n.to_string()).unwrap();
        }
        committed.store(true, Ordering::SeqCst);
        tx.commit(BUFFERED).unwrap();
        plain.join().unwrap();
        next.join().unwrap();
        dropped.join().unwrap();
        let answer = optimistic.join().unwrap();
        assert!(matches!(answer, Err(Error::Conflict(_))), "{answer:?}");
    });
    assert_eq!(s.value("x").unwrap(), "plain");
}

#[test]
fn a_single_writer_that_is_dropped_leaves_nothing_and_lets_others_write() {
    let s = Scratch::with(&[("x", "0")]);
    let mut tx = s.db.write_transaction().unwrap();
    tx.clear(&s.ks).unwrap();
    tx.insert(&s.ks, "y", "1").unwrap();
    drop(tx);
    s.ks.insert("z", "1").unwrap();
    assert_eq!(s.rows(), [("x".into(), "0".into()), ("z".into(), "1".into())]);
}

#[test]
fn closing_sends_those_away_who_wait_for_a_single_writer() {
    let s = scratch();
    let tx = s.db.write_transaction().unwrap();
    std::thread::scope(|scope| {
        let plain = scope.spawn(|| s.ks.insert("x", "1"));
        let next = scope.spawn(|| s.db.write_transaction().map(drop));
        block_on(s.db.env().clock.sleep(Duration::from_millis(20)));
        s.db.clone().close().unwrap();
        for answer in [plain.join().unwrap(), next.join().unwrap(), tx.commit(BUFFERED)] {
            // The empty commit has nothing to write.
            assert!(matches!(answer, Err(Error::Stopped(_)) | Ok(())), "{answer:?}");
        }
        assert!(matches!(s.ks.insert("x", "1"), Err(Error::Stopped(_))));
    });
}

// ---- threads ----

#[test]
fn transfers_of_many_threads_neither_make_nor_lose_money() {
    const ACCOUNTS: u64 = 8;
    let s = scratch();
    let name = |n: u64| format!("account {n}");
    (0..ACCOUNTS).for_each(|n| s.ks.insert(name(n), 100u64.to_le_bytes()).unwrap());
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    let sum = |rows: atoll_lsm::Range| -> u64 {
        rows.map(|guard| number(&guard.unwrap().value().unwrap())).sum()
    };
    let moved = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (s, moved) = (&s, &moved);
            scope.spawn(move || {
                let mut prng = Prng::new(thread);
                for step in 0..400 {
                    let (from, to) = (prng.below(ACCOUNTS), prng.below(ACCOUNTS));
                    let amount = prng.below(50);
                    let run = |tx: &mut OptimisticTransaction| {
                        let balance = |tx: &OptimisticTransaction, n| -> Result<u64> {
                            Ok(number(&tx.get(&s.ks, name(n))?.unwrap()))
                        };
                        let before = balance(tx, from)?;
                        if before < amount {
                            return Ok(0);
                        }
                        tx.insert(&s.ks, name(from), (before - amount).to_le_bytes())?;
                        let after = balance(tx, to)? + amount;
                        tx.insert(&s.ks, name(to), after.to_le_bytes())?;
                        Ok(amount)
                    };
                    match step % 10 {
                        0 => assert_eq!(sum(s.db.optimistic_transaction().iter(&s.ks)), 800),
                        1 => {
                            let mut tx = s.db.write_transaction().unwrap();
                            let all = sum(tx.iter(&s.ks));
                            assert_eq!(all, 800);
                            let first = number(&tx.get(&s.ks, name(0)).unwrap().unwrap());
                            let taken = first.min(3);
                            tx.insert(&s.ks, name(0), (first - taken).to_le_bytes()).unwrap();
                            let second = number(&tx.get(&s.ks, name(1)).unwrap().unwrap());
                            tx.insert(&s.ks, name(1), (second + taken).to_le_bytes()).unwrap();
                            tx.commit(BUFFERED).unwrap();
                        }
                        2 if step % 100 == 2 => s.db.flush().unwrap(),
                        _ => drop(moved.fetch_add(s.db.transact(run).unwrap(), Ordering::Relaxed)),
                    }
                }
            });
        }
    });
    assert_eq!(sum(s.ks.iter()), 800);
    assert!(moved.load(Ordering::Relaxed) > 1000, "too little was moved");
}

#[test]
fn pairs_of_threads_never_skew() {
    // Of each pair of keys at least one stays: each thread removes its own if the other's is there.
    let s = scratch();
    for round in 0..200u32 {
        let keys = [format!("{round} left"), format!("{round} right")];
        keys.iter().for_each(|key| s.ks.insert(key, "").unwrap());
        let gate = std::sync::Barrier::new(2);
        let removed: Vec<bool> = std::thread::scope(|scope| {
            let remove = |own: usize| {
                let (s, keys, gate) = (&s, &keys, &gate);
                move || {
                    let mut tx = s.db.optimistic_transaction();
                    assert!(tx.contains_key(&s.ks, &keys[1 - own]).unwrap());
                    tx.remove(&s.ks, &keys[own]).unwrap();
                    gate.wait();
                    match tx.commit(BUFFERED) {
                        Ok(()) => true,
                        Err(Error::Conflict(_)) => false,
                        Err(e) => panic!("{e}"),
                    }
                }
            };
            let threads = [scope.spawn(remove(0)), scope.spawn(remove(1))];
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(removed[0] != removed[1], "round {round}: {removed:?}");
        assert_eq!(s.ks.prefix(format!("{round} ")).count(), 1, "round {round}");
    }
}

// ---- the helper ----

#[test]
fn running_again_after_conflicts_ends_and_errors_roll_back() {
    let s = Scratch::with(&[("x", "0")]);
    let mut runs = 0;
    let answer = s.db.transact(|tx| {
        runs += 1;
        let _ = tx.get(&s.ks, "x")?;
        if runs < 4 {
            s.ks.insert("x", runs.to_string())?;
        }
        tx.insert(&s.ks, "runs", runs.to_string())?;
        Ok(runs)
    });
    assert_eq!((answer.unwrap(), s.value("runs").unwrap()), (4, "4".into()));
    let always: Result<()> = s.db.transact(|tx| {
        let _ = tx.get(&s.ks, "x")?;
        s.ks.insert("x", "again")?;
        tx.insert(&s.ks, "y", "")
    });
    assert!(matches!(always, Err(Error::Conflict(_))));
    let own: Result<()> = s.db.transact(|tx| {
        tx.insert(&s.ks, "y", "")?;
        Err(Error::InvalidInput("given up".to_owned()))
    });
    assert!(matches!(own, Err(Error::InvalidInput(_))));
    assert_eq!(s.value("y"), None);
}

#[test]
fn the_async_helper_runs_in_a_task() {
    let sim = Sim::new(3);
    let node = sim.node("db");
    let env = node.env();
    sim.block_on(&node, async {
        let options = Options { memory: 4 << 20, ..Options::new(env.clone()) };
        let db = Database::builder("db").options(options).open_async().await.unwrap();
        let ks = db.keyspace_async("k", KeyspaceOptions::default()).await.unwrap();
        let done = Arc::new(AtomicU64::new(0));
        for _ in 0..8 {
            let (db, ks, done) = (db.clone(), ks.clone(), done.clone());
            let task = async move {
                for _ in 0..10 {
                    let count = |mut tx: OptimisticTransaction| {
                        let ks = &ks;
                        async move {
                            let before = tx.get_async(ks, "n").await?.map_or(0, |v| v[0]);
                            tx.insert(ks, "n", [before + 1])?;
                            Ok((tx, ()))
                        }
                    };
                    db.transact_async(count).await.unwrap();
                }
                done.fetch_add(1, Ordering::SeqCst);
            };
            env.tasks.spawn("count", Box::pin(task));
        }
        while done.load(Ordering::SeqCst) < 8 {
            env.clock.sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(ks.get_async("n").await.unwrap().unwrap()[0], 80);
    })
    .done();
}

// ---- power cuts ----

#[test]
fn a_power_cut_inside_of_a_commit_leaves_all_of_it_or_nothing() {
    let (mut whole, mut nothing) = (0, 0);
    for seed in 0..150 {
        let sim = Sim::new(seed);
        let node = sim.node("db");
        let options = |env| Options {
            memory: 4 << 20,
            memtable_size: 16 << 10,
            log_segment_size: 32 << 10,
            ..Options::new(env)
        };
        let keys = |n: u64| (0..20).map(move |k| format!("{n}/{k:02}"));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let answered = acknowledged.clone();
        let env = node.env();
        let outcome = sim.block_on(&node, async {
            let db =
                Database::builder("db").options(options(env.clone())).open_async().await.unwrap();
            let ks = db.keyspace_async("k", KeyspaceOptions::default()).await.unwrap();
            node.disk().crash_at(2 + seed % 50, CrashTiming::Any);
            for n in 1..200 {
                let committed = if n % 2 == 0 {
                    let mut tx = db.write_transaction_async().await.unwrap();
                    keys(n).for_each(|key| tx.insert(&ks, key, [n as u8; 200]).unwrap());
                    tx.clear(
                        &db.keyspace_async("other", KeyspaceOptions::default()).await.unwrap(),
                    )
                    .unwrap();
                    tx.commit_async(WriteOptions::default()).await
                } else {
                    let mut tx = db.optimistic_transaction();
                    let _ = tx.get_async(&ks, "1/00").await;
                    keys(n).for_each(|key| tx.insert(&ks, key, [n as u8; 200]).unwrap());
                    tx.commit_async(WriteOptions::default()).await
                };
                committed.unwrap();
                answered.store(n, Ordering::SeqCst);
            }
        });
        assert!(outcome.ok().is_none(), "seed {seed}: it did not crash");
        node.restart();
        let env = node.env();
        let last = acknowledged.load(Ordering::SeqCst);
        sim.block_on(&node, async {
            let db =
                Database::builder("db").options(options(env.clone())).open_async().await.unwrap();
            let ks = db.keyspace_async("k", KeyspaceOptions::default()).await.unwrap();
            for n in 1..=last + 2 {
                let mut there = 0;
                for key in keys(n) {
                    there += usize::from(ks.get_async(key).await.unwrap().is_some());
                }
                assert!(there == 0 || there == 20, "seed {seed}: {there} keys of transaction {n}");
                assert!(there == 20 || n > last, "seed {seed}: transaction {n} of {last} is gone");
                if n > last {
                    *(if there == 20 { &mut whole } else { &mut nothing }) += 1;
                }
            }
        })
        .done();
    }
    assert!(
        whole > 10 && nothing > 10,
        "{whole} unanswered commits were there, {nothing} were not"
    );
}
