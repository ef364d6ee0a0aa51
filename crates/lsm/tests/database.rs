//! What a user of the library sees, on a real disk.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic too")]

use std::time::Duration;

use atoll_lsm::{
    Batch, Database, Durability, Error, KEY_LEN_MAX, KeyspaceOptions, VALUE_LEN_MAX, WriteOptions,
};

fn open(path: &std::path::Path) -> Database {
    Database::builder(path).memory(16 << 20).open().unwrap()
}

fn keys(range: impl Iterator<Item = atoll_lsm::Result<atoll_lsm::Guard>>) -> Vec<String> {
    range.map(|guard| String::from_utf8(guard.unwrap().key().to_vec()).unwrap()).collect()
}

#[test]
fn what_was_written_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    {
        let db = open(dir.path());
        let users = db.keyspace("users", KeyspaceOptions::default()).unwrap();
        users.insert("ada", "1815").unwrap();
        users.insert("alan", "1912").unwrap();
        users.remove("ada").unwrap();
        db.flush().unwrap();
        users.insert("grace", "1906").unwrap();
    }
    let db = open(dir.path());
    assert_eq!(db.keyspaces(), ["users"]);
    let users = db.find_keyspace("users").unwrap();
    assert_eq!(users.get("ada").unwrap(), None);
    assert_eq!(users.get("alan").unwrap().as_deref(), Some(&b"1912"[..]));
    assert_eq!(users.get("grace").unwrap().as_deref(), Some(&b"1906"[..]));
    db.close().unwrap();
}

#[test]
fn iteration_runs_from_both_ends_and_meets_once() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path());
    let ks = db.keyspace("k", KeyspaceOptions::default()).unwrap();
    for key in ["a", "b", "c", "d", "e"] {
        ks.insert(key, key).unwrap();
    }
    ks.remove("c").unwrap();
    db.flush().unwrap();
    ks.insert("bb", "").unwrap();
    assert_eq!(keys(ks.iter()), ["a", "b", "bb", "d", "e"]);
    assert_eq!(keys(ks.iter().rev()), ["e", "d", "bb", "b", "a"]);
    assert_eq!(keys(ks.range("b".."d")), ["b", "bb"]);
    assert_eq!(keys(ks.range("b"..="d").rev()), ["d", "bb", "b"]);
    assert_eq!(keys(ks.prefix("b")), ["b", "bb"]);
    let mut both = ks.iter();
    let mut seen = Vec::new();
    loop {
        let front = both.next().map(|g| g.unwrap().key().to_vec());
        let back = both.next_back().map(|g| g.unwrap().key().to_vec());
        let ended = front.is_none() && back.is_none();
        seen.extend(front.into_iter().chain(back));
        if ended {
            break;
        }
    }
    seen.sort();
    assert_eq!(seen, [&b"a"[..], b"b", b"bb", b"d", b"e"]);
}

#[test]
fn a_snapshot_does_not_move() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path());
    let ks = db.keyspace("k", KeyspaceOptions::default()).unwrap();
    ks.insert("a", "1").unwrap();
    ks.insert("b", "1").unwrap();
    ks.insert_for("ab", "1", Duration::from_secs(3600)).unwrap();
    let before = db.snapshot();
    ks.insert("a", "2").unwrap();
    ks.remove("b").unwrap();
    ks.clear().unwrap();
    db.flush().unwrap();
    db.compact().unwrap();
    assert_eq!(before.get(&ks, "a").unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(keys(before.range::<&[u8]>(&ks, ..)), ["a", "ab", "b"]);
    assert_eq!(keys(before.prefix(&ks, "a")), ["a", "ab"]);
    assert_eq!(keys(before.prefix(&ks, "a").rev()), ["ab", "a"]);
    let values = before.multi_get(&ks, &["b", "c", "a"]).unwrap();
    let values: Vec<_> = values.iter().map(|value| value.as_deref()).collect();
    assert_eq!(values, [Some(&b"1"[..]), None, Some(b"1")]);
    assert!(before.record(&ks, "ab").unwrap().unwrap().deadline.is_some());
    assert!(before.record(&ks, "a").unwrap().unwrap().deadline.is_none());
    assert_eq!(keys(ks.iter()), Vec::<String>::new());
    drop(before);
    db.compact().unwrap();
    assert_eq!(db.stats().levels.iter().map(|l| l.entries).sum::<u64>(), 1, "the keyspace's name");
}

#[test]
fn a_batch_is_all_or_nothing_across_keyspaces() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path());
    let a = db.keyspace("a", KeyspaceOptions::default()).unwrap();
    let b = db.keyspace("b", KeyspaceOptions::default()).unwrap();
    let mut batch = Batch::new();
    batch.insert(&a, b"k", b"1").insert(&b, b"k", b"2").remove(&a, b"k");
    db.write(batch, WriteOptions::durability(Durability::Buffered)).unwrap();
    assert_eq!(a.get("k").unwrap(), None);
    assert_eq!(b.get("k").unwrap().as_deref(), Some(&b"2"[..]));
    let mut wrong = Batch::new();
    wrong.insert(&a, b"fine", b"1").insert(&a, &vec![0; 70_000], b"");
    assert!(matches!(db.write(wrong, WriteOptions::default()), Err(Error::InvalidInput(_))));
    assert_eq!(a.get("fine").unwrap(), None);
}

#[test]
fn dropping_a_keyspace_drops_its_children_and_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path());
    let make = |name: &str| db.keyspace(name, KeyspaceOptions::default()).unwrap();
    let (a, child, other) = (make("a"), make("a/b"), make("ab"));
    for ks in [&a, &child, &other] {
        ks.insert("k", "v").unwrap();
    }
    db.drop_keyspace("a").unwrap();
    assert_eq!(db.keyspaces(), ["ab"]);
    assert!(matches!(child.get("k"), Err(Error::InvalidInput(_))));
    let again = make("a/b");
    assert_eq!(again.get("k").unwrap(), None);
    assert_eq!(other.get("k").unwrap().as_deref(), Some(&b"v"[..]));
}

#[test]
fn values_expire_by_key_and_by_keyspace() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path());
    let short = KeyspaceOptions { ttl: Some(Duration::from_millis(30)), ..Default::default() };
    let short = db.keyspace("short", short).unwrap();
    let plain = db.keyspace("plain", KeyspaceOptions::default()).unwrap();
    short.insert("a", "1").unwrap();
    plain.insert_for("b", "1", Duration::from_millis(30)).unwrap();
    plain.insert_for("c", "1", Duration::from_secs(3600)).unwrap();
    assert!(plain.record("c").unwrap().unwrap().deadline.is_some());
    std::thread::park_timeout(Duration::from_millis(60));
    assert_eq!(short.get("a").unwrap(), None);
    assert_eq!(keys(plain.iter()), ["c"]);
    db.compact().unwrap();
    let left: u64 = db.stats().levels.iter().map(|l| l.entries).sum();
    assert_eq!(left, 3, "two names and one value: expired ones are gone from the tables");
}

#[test]
fn long_values_are_stored_in_chunks_and_come_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let value: Vec<u8> = (0..3_000_001u32).map(|n| ((n * 7) >> 3) as u8).collect();
    {
        let db = Database::builder(dir.path()).memory(64 << 20).open().unwrap();
        let ks = db.keyspace("k", KeyspaceOptions::default()).unwrap();
        ks.insert("long", &value).unwrap();
        ks.insert("long2", &value[1..]).unwrap();
        ks.insert("other", "x").unwrap();
        assert_eq!(*ks.get("long").unwrap().unwrap(), value[..]);
        let sizes: Vec<_> = ks.iter().map(|g| g.unwrap().size()).collect();
        assert_eq!(sizes, [3_000_001, 3_000_000, 1]);
    }
    let db = Database::builder(dir.path()).memory(64 << 20).open().unwrap();
    let ks = db.find_keyspace("k").unwrap();
    db.compact().unwrap();
    assert_eq!(*ks.get("long").unwrap().unwrap(), value[..]);
    assert_eq!(*ks.iter().nth(1).unwrap().unwrap().value().unwrap(), value[1..]);
    ks.remove("long").unwrap();
    ks.insert("long2", "short now").unwrap();
    db.compact().unwrap();
    assert!(db.stats().table_bytes() < 100_000, "the chunks are gone");
}

#[test]
fn removals_are_answered_under_the_durability_they_ask_for() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path());
    let ks = db.keyspace("k", KeyspaceOptions::default()).unwrap();
    for key in ["a", "b", "c", "d"] {
        ks.insert(key, key).unwrap();
    }
    let syncs = || db.stats().syncs.count;
    let (before, buffered) = (syncs(), WriteOptions::durability(Durability::Buffered));
    ks.remove_with("a", buffered).unwrap();
    ks.remove_range_with("b"..="c", buffered).unwrap();
    assert_eq!((syncs(), keys(ks.iter())), (before, vec!["d".to_owned()]));
    atoll_env::block_on(ks.clear_async(buffered)).unwrap();
    assert_eq!((syncs(), keys(ks.iter())), (before, vec![]));
    ks.remove_with("d", WriteOptions::default()).unwrap();
    assert_eq!(syncs(), before + 1, "synced is the default");
}

#[test]
fn reads_steps_and_commits_are_counted_and_one_in_64_is_timed() {
    let dir = tempfile::tempdir().unwrap();
    let db = Database::builder(dir.path()).durability(Durability::Buffered).open().unwrap();
    let ks = db.keyspace("k", KeyspaceOptions::default()).unwrap();
    for n in 0..200u32 {
        ks.insert(n.to_be_bytes(), "value").unwrap();
        ks.get(n.to_be_bytes()).unwrap();
        assert!(ks.iter().next().is_some());
    }
    let before = db.stats();
    assert_eq!(ks.iter().count(), 200);
    let stats = db.stats();
    assert_eq!((stats.gets, stats.get_nanos.count), (200, 4));
    assert_eq!((stats.scans, stats.seek_nanos.count), (201, 4));
    assert_eq!(stats.step_nanos.count - before.step_nanos.count, 3, "of 200 later steps");
    assert_eq!(
        (stats.batches, stats.commit_nanos.count),
        (201, 4),
        "one of them names the keyspace"
    );
    for timed in [stats.get_nanos, stats.seek_nanos, stats.step_nanos, stats.commit_nanos] {
        assert!(0 < timed.p50 && timed.p50 <= timed.p99 && timed.p99 <= timed.max, "{timed:?}");
    }
}

#[test]
fn keys_and_values_beyond_the_limits_are_refused_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path());
    let ks = db.keyspace("k", KeyspaceOptions::default()).unwrap();
    let longest = vec![7; KEY_LEN_MAX];
    ks.insert(&longest, "fits").unwrap();
    assert_eq!(ks.get(&longest).unwrap().as_deref(), Some(&b"fits"[..]));
    let refused = |result: atoll_lsm::Result<()>, what: &str| match result {
        Err(Error::InvalidInput(why)) => assert!(why.contains(what), "{why}"),
        other => panic!("{what}: {other:?}"),
    };
    let longer = vec![7; KEY_LEN_MAX + 1];
    let what = "a key of 65537 bytes is too long: the limit is 65536";
    refused(ks.insert(&longer, "does not"), what);
    refused(ks.get(&longer).map(drop), what);
    refused(ks.remove(&longer), what);
    // Zeroes that nobody touches are no memory; the value is refused unread.
    let too_long = vec![0; VALUE_LEN_MAX + 1];
    let what = "a value of 536870913 bytes is too long: the limit is 536870912";
    refused(ks.insert("v", &too_long), what);
    let mut batch = Batch::new();
    batch.insert(&ks, b"with it", b"fits").insert(&ks, b"v", &too_long);
    refused(db.write(batch, WriteOptions::default()), what);
    // One that is not too long may still not fit the budget, of which half is 8 MiB here.
    refused(ks.insert("v", &too_long[..8 << 20]), "the limit is 8388608");
    ks.insert("v", &too_long[..(8 << 20) - 99]).unwrap();
    assert_eq!(ks.iter().count(), 2);
}

#[test]
fn a_second_opening_is_refused_and_a_foreign_directory_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir.path().join("db"));
    let second = Database::builder(dir.path().join("db")).open();
    assert!(matches!(second, Err(Error::Locked(_))));
    drop(db);
    open(&dir.path().join("db"));
    let foreign = Database::builder(dir.path()).open();
    assert!(matches!(foreign, Err(Error::Foreign { .. })), "it holds 'db'");
}
