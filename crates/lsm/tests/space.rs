//! Space comes back: what users of other engines complain about, as tests.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic too")]

use atoll_env::os;
use atoll_lsm::{Compression, Database, Durability, KeyspaceOptions, Options};

/// A database small enough that a few thousand writes reach every level.
fn small(path: &std::path::Path) -> Database {
    of_tables(path, 64 << 10)
}

/// The same with tables of this size.
fn of_tables(path: &std::path::Path, bytes: u64) -> Database {
    let mut options = Options::new(os::env().unwrap());
    options.memory = 8 << 20;
    options.memtable_size = 32 << 10;
    options.log_segment_size = 128 << 10;
    options.table_size = bytes;
    options.level_base_size = 256 << 10;
    options.compression = Compression::None;
    options.durability = Durability::Buffered;
    Database::builder(path).options(options).open().unwrap()
}

fn value(n: u64) -> Vec<u8> {
    n.to_le_bytes().repeat(16)
}

/// Waits until compaction finds nothing to do: the levels have not changed for a second.
fn settle(db: &Database) {
    db.flush().unwrap();
    let (mut before, mut still) = (db.stats().levels, 0);
    for _ in 0..600 {
        std::thread::park_timeout(std::time::Duration::from_millis(100));
        let now = db.stats().levels;
        still = if now == before { still + 1 } else { 0 };
        if still == 10 {
            return;
        }
        before = now;
    }
    panic!("the levels do not settle: {:?}", db.stats().levels);
}

fn log_bytes(path: &std::path::Path) -> u64 {
    let entries = std::path::Path::new(path).join("log").read_dir().unwrap();
    entries.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn ten_overwrites_leave_less_than_a_fifth_of_dead_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let db = small(dir.path());
    let ks = db.keyspace("k", KeyspaceOptions::default()).unwrap();
    let keys = 20_000u64;
    for round in 0..10 {
        for n in 0..keys {
            // A permutation of the keys, another one each round.
            let key = (n * 7919 + round * 31) % keys;
            ks.insert(key.to_be_bytes(), value(key + round)).unwrap();
        }
    }
    settle(&db);
    let settled = db.stats().table_bytes();
    db.compact().unwrap();
    let live = db.stats().table_bytes();
    let amplification = settled as f64 / live as f64;
    assert!(amplification < 1.2, "{settled} bytes for {live} live ones: {amplification:.2}");
    assert!(db.stats().levels[6].entries >= keys, "all of them are there");
}

#[test]
fn rows_of_tombstones_go_down_though_their_level_has_room() {
    let dir = tempfile::tempdir().unwrap();
    let db = of_tables(dir.path(), 512 << 10);
    let ks = db.keyspace("k", KeyspaceOptions::default()).unwrap();
    // Of eight megabytes in the last level, the level above may have 800 KiB.
    let keys = 60_000u64;
    (0..keys).for_each(|n| ks.insert(n.to_be_bytes(), value(n)).unwrap());
    db.compact().unwrap();
    // Many queues: the first fifth of each is dead, the rest of it is written.
    for n in 0..keys {
        // Every number below a third once, in another order.
        let n = n * 7919 % keys;
        match n % 1000 < 200 {
            _ if n > keys / 3 => {}
            true => ks.remove(n.to_be_bytes()).unwrap(),
            false => ks.insert(n.to_be_bytes(), n.to_be_bytes()).unwrap(),
        }
    }
    settle(&db);
    let levels = db.stats().levels;
    let standing: u64 = levels[1..].iter().map(|level| level.tombstones).sum();
    assert!(levels[0].tables < 4 && standing < 1024, "{standing} tombstones: {levels:?}");
    assert!(ks.get(8_000u64.to_be_bytes()).unwrap().is_none());
}

#[test]
fn an_idle_keyspace_does_not_pin_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let db = small(dir.path());
    let idle = db.keyspace("idle", KeyspaceOptions::default()).unwrap();
    let busy = db.keyspace("busy", KeyspaceOptions::default()).unwrap();
    idle.insert("once", "and never again").unwrap();
    for n in 0..40_000u64 {
        busy.insert((n % 500).to_be_bytes(), value(n)).unwrap();
    }
    db.flush().unwrap();
    let bytes = log_bytes(dir.path());
    assert!(bytes <= 10 * (128 << 10), "5 MiB were written, the log keeps {bytes}");
    drop((idle, busy));
    db.close().unwrap();
    let db = small(dir.path());
    let idle = db.find_keyspace("idle").unwrap();
    assert_eq!(idle.get("once").unwrap().as_deref(), Some(&b"and never again"[..]));
}

#[test]
fn a_snapshot_keeps_old_versions_and_its_end_frees_them() {
    let dir = tempfile::tempdir().unwrap();
    let db = small(dir.path());
    let ks = db.keyspace("k", KeyspaceOptions::default()).unwrap();
    let write = |salt: u64| {
        for n in 0..2_000u64 {
            ks.insert(n.to_be_bytes(), value(n + salt)).unwrap();
        }
    };
    write(0);
    let snapshot = db.snapshot();
    (1..20).for_each(write);
    db.compact().unwrap();
    let held = db.stats().levels.iter().map(|l| l.entries).sum::<u64>();
    assert!((4_000..=4_001).contains(&held), "two versions of each key, found {held}");
    assert_eq!(*snapshot.get(&ks, 7u64.to_be_bytes()).unwrap().unwrap(), value(7)[..]);
    drop(snapshot);
    db.compact().unwrap();
    let held = db.stats().levels.iter().map(|l| l.entries).sum::<u64>();
    assert!((2_000..=2_001).contains(&held), "one version of each key, found {held}");
}

#[test]
fn a_queue_leaves_nothing_behind_its_head() {
    let dir = tempfile::tempdir().unwrap();
    let db = small(dir.path());
    let queue = db.keyspace("queue", KeyspaceOptions::default()).unwrap();
    for n in 0..20_000u64 {
        queue.insert(n.to_be_bytes(), value(n)).unwrap();
        if n >= 100 {
            queue.remove((n - 100).to_be_bytes()).unwrap();
        }
    }
    settle(&db);
    let left = db.stats().levels.iter().map(|l| l.entries).sum::<u64>();
    assert!(left < 4_000, "100 live keys, {left} records");
    let first = queue.first_key_value().unwrap().unwrap();
    assert_eq!(first.0, 19_900u64.to_be_bytes());
}

#[test]
fn a_dropped_keyspace_gives_its_files_back_unread() {
    let dir = tempfile::tempdir().unwrap();
    let db = small(dir.path());
    let ks = db.keyspace("big", KeyspaceOptions::default()).unwrap();
    for n in 0..20_000u64 {
        ks.insert(n.to_be_bytes(), value(n)).unwrap();
    }
    settle(&db);
    let (full, read) = (db.stats().table_bytes(), db.stats().compaction_read_bytes);
    db.drop_keyspace("big").unwrap();
    settle(&db);
    let stats = db.stats();
    assert!(stats.table_bytes() < full / 10, "{} of {full} bytes are left", stats.table_bytes());
    let reread = stats.compaction_read_bytes - read;
    assert!(reread < full / 2, "dropping {full} bytes read {reread}");
}

#[test]
fn ten_thousand_keyspaces_cost_little_and_survive() {
    let dir = tempfile::tempdir().unwrap();
    let count = 10_000;
    {
        let db = small(dir.path());
        for n in 0..count {
            let ks = db.keyspace(&format!("tenant/{n}"), KeyspaceOptions::default()).unwrap();
            ks.insert("k", n.to_string()).unwrap();
        }
        assert!(db.stats().memtable_bytes < 4 << 20);
    }
    let db = small(dir.path());
    assert_eq!(db.keyspaces().len(), count);
    let ks = db.find_keyspace("tenant/9999").unwrap();
    assert_eq!(ks.get("k").unwrap().as_deref(), Some(&b"9999"[..]));
    db.drop_keyspace("tenant").unwrap();
    assert!(db.keyspaces().is_empty());
}
