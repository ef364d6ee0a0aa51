//! Directories that earlier programs wrote, byte for byte: they open, hold what they held, and go on.
//!
//! ```text
//!   tests/formats/database-1.txt      an embedded database of format 1: every kind of record, of
//!                                     block and of codec; entries that are in the log only
//!   tests/formats/database-2.txt      the same with tables of version 2: fuse filters in the last level
//!   tests/formats/database-3.txt      the same with values in value files, and merged back
//!   tests/formats/database-4.txt      merge operands and keyspace records that name who merges: folded,
//!                                     in a table, in the log, onto a value in a value file
//!   tests/formats/database-5.txt      tables that were ingested, in the last level and in level 0
//!   tests/formats/database-6.txt      a row of tombstones and records that expire: dead weight is counted
//!   tests/formats/backup-1.txt        a backup of format 1 with two generations, values in value files
//!   tests/formats/store-1.txt         a store of shards of format 1: versions, several groups
//!   tests/formats/store-2.txt         the same with values in value files
//! ```
//!
//! What a file says is never changed: a program that cannot read it any more has broken somebody's
//! data. When a format gets a new version, or a new thing to say, a file is added:
//!
//! ```sh
//! ATOLL_FIXTURES=crates/lsm/tests/formats cargo test -p atoll-lsm --test formats -- --ignored
//! ```
//!
//! writes those that are not there yet. Their lines are a file's name and length, then rows of 32
//! bytes behind their offset; rows of zeros are left out, as are spare segments, which mean nothing.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic too")]

#[expect(dead_code, reason = "this file has no model")]
mod support;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use atoll_env::Env;
use atoll_env::sim::{CrashMode, Node, Sim};
use atoll_lsm::backup::{Backups, Mode};
use atoll_lsm::driven::{self, EntryId, GroupState, OpenOptions, Writes};
use atoll_lsm::{
    Batch, Compression, Database, Keyspace, KeyspaceOptions, Options, ValuePlacement, WriteOptions,
    verify_async,
};
use support::{dir, run};

const ROW: usize = 32;
const FIXTURES: [&str; 9] = [
    "database-1.txt",
    "database-2.txt",
    "database-3.txt",
    "database-4.txt",
    "database-5.txt",
    "database-6.txt",
    "backup-1.txt",
    "store-1.txt",
    "store-2.txt",
];
/// Values above this length are in value files, in those fixtures that have some.
const SEPARATED: Option<u32> = Some(20);
const SYNCED: WriteOptions = WriteOptions { durability: None };
/// The first moment of the year 2100, in milliseconds: a deadline that nobody sees pass.
const FAR: u64 = 4_102_444_800_000;
/// A length that is stored in chunks.
const LONG: usize = (1 << 20) + 300_000;
/// A length that takes several frames of the log, in several segments.
const WIDE: usize = 160_000;

// ---- fixtures as text ----

/// Writes down the files of the node's directory.
fn write_down(node: &Node) -> String {
    let mut text = String::new();
    let root = dir();
    for path in node.disk().files() {
        if path.ends_with(".spare") || path.ends_with("LOCK") {
            continue;
        }
        if !path.starts_with(root.to_str().unwrap()) {
            continue;
        }
        let bytes = node.disk().read_file(&path).unwrap();
        let name = Path::new(&path).strip_prefix(&root).unwrap().display();
        writeln!(text, "file {name} {}", bytes.len()).unwrap();
        for (row, bytes) in bytes.chunks(ROW).enumerate().filter(|(_, b)| b.iter().any(|b| *b != 0))
        {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(text, "{:08x} {hex}", row * ROW).unwrap();
        }
    }
    text
}

/// Puts the files of a fixture on the node's disk.
fn put_down(text: &str, node: &Node) {
    let mut files: Vec<(&str, Vec<u8>)> = Vec::new();
    for line in text.lines() {
        let (first, rest) = line.split_once(' ').unwrap();
        if first == "file" {
            let (name, len) = rest.split_once(' ').unwrap();
            files.push((name, vec![0; len.parse().unwrap()]));
            continue;
        }
        let at = usize::from_str_radix(first, 16).unwrap();
        let byte = |n: usize| u8::from_str_radix(&rest[n..n + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..rest.len()).step_by(2).map(byte).collect();
        files.last_mut().unwrap().1[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    for (name, bytes) in files {
        node.disk().write_file(dir().join(name), &bytes).unwrap();
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats").join(name)
}

/// Puts a fixture on a disk and runs `check`, then a power cut and `check` once more.
fn read<F: Future<Output = ()>>(name: &str, check: impl Fn(Env) -> F) {
    let sim = Sim::new(9);
    let node = sim.node("reader");
    put_down(&std::fs::read_to_string(fixture(name)).unwrap(), &node);
    for what in ["as it was written", "after it was opened"] {
        let what = format!("{name} {what}");
        let env = node.env();
        run(&sim, &node, &what, async {
            let report = verify_async(&env, &dir(), &mut |_| {}).await.unwrap();
            assert!(report.is_sound(), "{what}: {:?}", report.problems);
            check(env.clone()).await;
        });
        node.crash_with(CrashMode::DropAll);
        node.restart();
    }
}

// ---- what the database holds ----

/// Options under which what is flushed stays where and as it is until it is asked to move.
fn small(env: &Env, compression: Compression, separate_above: Option<u32>) -> Options {
    Options {
        compression,
        separate_above,
        memtable_size: 1 << 20,
        log_segment_size: 64 << 10,
        level0_tables: 8,
        ..support::options(env.clone())
    }
}

/// The value of record `n`: text, so that it can be compressed.
fn value(n: u32) -> Vec<u8> {
    format!("value of record {n}, ").repeat(1 + n as usize % 9).into_bytes()
}

/// Zeros, which take no room in a fixture, and something in each piece of them, so that none can stand
/// for another.
fn sparse(len: usize) -> Vec<u8> {
    let mut value = vec![0; len];
    (0..len).step_by(50_000).for_each(|at| value[at] = (at / 50_000) as u8 + 1);
    value
}

fn key(n: u32) -> Vec<u8> {
    format!("key-{n:03}").into_bytes()
}

/// What is in each keyspace; of `expiring` the deadline as well.
fn contents() -> [BTreeMap<Vec<u8>, Vec<u8>>; 3] {
    let mut plain: BTreeMap<_, _> = (0..120).map(|n| (key(n), value(n))).collect();
    plain.retain(|key, _| !(&b"key-020"[..]..&b"key-030"[..]).contains(&&key[..]));
    plain.insert(key(7), value(700));
    plain.remove(&key(8));
    plain.insert(key(90), value(900));
    plain.remove(&key(91));
    plain.retain(|key, _| !(&b"key-100"[..]..&b"key-104"[..]).contains(&&key[..]));
    plain.insert(b"long".to_vec(), sparse(LONG));
    plain.insert(b"wide".to_vec(), sparse(WIDE));
    plain.insert(Vec::new(), b"of the empty key".to_vec());
    let nested = (0..40).map(|n| (key(n), value(n + 1000))).collect();
    [plain, nested, [(b"alive".to_vec(), b"until 2100".to_vec())].into()]
}

async fn make_database(env: Env, separate_above: Option<u32>) {
    let open = async |compression| {
        let options = small(&env, compression, separate_above);
        let db = Database::builder(dir()).options(options).open_async().await.unwrap();
        let values = match separate_above {
            Some(above) => ValuePlacement::MergeBack { above, up_to: 1 << 10 },
            None => ValuePlacement::Usual,
        };
        let prefixed = KeyspaceOptions { filter_prefix_len: 5, values, ..Default::default() };
        let keyspaces = [
            db.keyspace_async("plain", KeyspaceOptions::default()).await.unwrap(),
            db.keyspace_async("plain/nested", prefixed).await.unwrap(),
            db.keyspace_async("expiring", KeyspaceOptions::default()).await.unwrap(),
        ];
        (db, keyspaces)
    };
    // The last level with zstd, the ones above with LZ4 and with nothing; then the log.
    let (db, [plain, nested, expiring]) = open(Compression::Lz4ThenZstd).await;
    for n in 0..60 {
        plain.insert_async(key(n), value(n), SYNCED).await.unwrap();
    }
    plain.insert_async("long", sparse(LONG), SYNCED).await.unwrap();
    db.keyspace_async("gone", KeyspaceOptions::default()).await.unwrap();
    db.compact_async().await.unwrap();
    for n in 0..40 {
        nested.insert_async(key(n), value(n + 1000), SYNCED).await.unwrap();
    }
    db.drop_keyspace_async("gone").await.unwrap();
    let mut batch = Batch::new();
    batch.insert_expiring(&expiring, b"alive", b"until 2100", FAR);
    batch.insert_expiring(&expiring, b"dead", b"since 1970", 1);
    db.write_async(batch, SYNCED).await.unwrap();
    db.flush_async().await.unwrap();
    drop((plain, nested, expiring));
    db.close_async().await.unwrap();

    let (db, [plain, _, _]) = open(Compression::None).await;
    for n in 60..120 {
        plain.insert_async(key(n), value(n), SYNCED).await.unwrap();
    }
    plain.remove_range_async("key-020".."key-030", SYNCED).await.unwrap();
    plain.insert_async(key(7), value(700), SYNCED).await.unwrap();
    plain.remove_async(key(8), SYNCED).await.unwrap();
    db.flush_async().await.unwrap();

    let mut batch = Batch::new();
    batch.insert(&plain, &key(90), &value(900)).remove(&plain, &key(91));
    batch.remove_range(&plain, b"key-100", b"key-104");
    db.write_async(batch, SYNCED).await.unwrap();
    plain.insert_async("wide", sparse(WIDE), SYNCED).await.unwrap();
    plain.insert_async("", "of the empty key", SYNCED).await.unwrap();
}

async fn check_database(env: Env) {
    let options = small(&env, Compression::Lz4, None);
    let db = Database::builder(dir()).options(options).open_async().await.unwrap();
    assert_eq!(db.keyspaces(), ["expiring", "plain", "plain/nested"]);
    let keyspaces = ["plain", "plain/nested", "expiring"].map(|n| db.find_keyspace(n).unwrap());
    for compacted in [false, true] {
        for (keyspace, expected) in keyspaces.iter().zip(contents()) {
            holds(keyspace, &expected).await;
        }
        let alive = keyspaces[2].record_async("alive").await.unwrap().unwrap();
        assert_eq!(alive.deadline, Some(FAR));
        if !compacted {
            db.compact_async().await.unwrap();
        }
    }
    // Ids of keyspaces that are gone stay used, and what is written now is found.
    let fresh = db.keyspace_async("fresh", KeyspaceOptions::default()).await.unwrap();
    fresh.insert_async("a", "1", SYNCED).await.unwrap();
    assert_eq!(fresh.get_async("a").await.unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(keyspaces[1].options().filter_prefix_len, 5);
    db.drop_keyspace_async("fresh").await.unwrap();
}

/// A row of tombstones over records in the last level, and records that expire: tables of which it is
/// counted what will be dead weight.
async fn make_weighed(env: Env) {
    let options = small(&env, Compression::Lz4, None);
    let db = Database::builder(dir()).options(options).open_async().await.unwrap();
    let plain = db.keyspace_async("plain", KeyspaceOptions::default()).await.unwrap();
    for n in 0..200 {
        plain.insert_async(key(n), value(n), SYNCED).await.unwrap();
    }
    db.compact_async().await.unwrap();
    for n in 50..150 {
        plain.remove_async(key(n), SYNCED).await.unwrap();
    }
    db.flush_async().await.unwrap();
    let expiring = db.keyspace_async("expiring", KeyspaceOptions::default()).await.unwrap();
    let mut batch = Batch::new();
    (0..3).for_each(|n| _ = batch.insert_expiring(&expiring, &key(n), &value(n), FAR));
    db.write_async(batch, SYNCED).await.unwrap();
    db.flush_async().await.unwrap();
}

async fn check_weighed(env: Env) {
    let options = small(&env, Compression::Lz4, None);
    let db = Database::builder(dir()).options(options).open_async().await.unwrap();
    assert_eq!(db.stats().levels[0].tombstones, 100);
    let plain = db.find_keyspace("plain").unwrap();
    let expiring = db.find_keyspace("expiring").unwrap();
    let left = (0..50).chain(150..200).map(|n| (key(n), value(n))).collect();
    holds(&plain, &left).await;
    holds(&expiring, &(0..3).map(|n| (key(n), value(n))).collect()).await;
    let record = expiring.record_async(key(1)).await.unwrap().unwrap();
    assert_eq!(record.deadline, Some(FAR));
}

async fn holds(keyspace: &Keyspace, expected: &BTreeMap<Vec<u8>, Vec<u8>>) {
    for (key, value) in expected {
        let found = keyspace.get_async(key).await.unwrap();
        assert!(found.as_deref() == Some(&value[..]), "{keyspace:?}: {}", key.escape_ascii());
    }
    for absent in ["key-008", "key-020", "key-029", "key-091", "key-103", "dead", "z"] {
        if !expected.contains_key(absent.as_bytes()) {
            assert_eq!(keyspace.get_async(absent).await.unwrap(), None, "{keyspace:?} {absent}");
        }
    }
    let mut cursor = keyspace.cursor::<&[u8]>(..);
    for (key, value) in expected {
        let guard = cursor.next().await.unwrap().unwrap();
        assert!(guard.into_inner_async().await.unwrap() == (key.clone(), value.as_slice().into()));
    }
    assert!(cursor.next().await.unwrap().is_none());
    let mut cursor = keyspace.cursor::<&[u8]>(..);
    for key in expected.keys().rev() {
        assert_eq!(cursor.next_back().await.unwrap().unwrap().key(), key);
    }
}

// ---- what a database with merge operators holds ----

async fn make_merged(env: Env) {
    let options = small(&env, Compression::Lz4, SEPARATED);
    let db = Database::builder(dir()).options(options).open_async().await.unwrap();
    let by = |name: &str| KeyspaceOptions {
        merge_operator: Some(name.to_owned()),
        ..KeyspaceOptions::default()
    };
    let values = ValuePlacement::MergeBack { above: 30, up_to: 35 };
    let named = KeyspaceOptions { filter_prefix_len: 1, values, ..by("atoll.append:2c20") };
    let list = db.keyspace_async("list", named).await.unwrap();
    let count = db.keyspace_async("count", by("atoll.add")).await.unwrap();
    list.insert_async("a", "base", SYNCED).await.unwrap();
    list.insert_async("s", "a base that stands in a value file", SYNCED).await.unwrap();
    list.insert_async("t", "a base that stands in a value file too", SYNCED).await.unwrap();
    let step = async |word: &str| {
        let mut batch = Batch::new();
        batch.merge(&list, b"a", word.as_bytes()).merge(&list, b"b", word.as_bytes());
        batch.merge(&count, b"n", &3u64.to_le_bytes());
        db.write_async(batch, SYNCED).await.unwrap();
    };
    step("folded").await;
    step("too").await;
    db.compact_async().await.unwrap();
    step("in a table").await;
    let mut batch = Batch::new();
    batch.merge(&list, b"t", b"and an operand");
    batch.merge_expiring(&list, b"a", b"until 2100", FAR);
    batch.merge_expiring(&list, b"a", b"since 1970", 1);
    db.write_async(batch, SYNCED).await.unwrap();
    db.flush_async().await.unwrap();
    step("in the log").await;
}

async fn check_merged(env: Env) {
    let options = small(&env, Compression::Lz4, None);
    let db = Database::builder(dir()).options(options).open_async().await.unwrap();
    let [list, count] = ["list", "count"].map(|name| db.find_keyspace(name).unwrap());
    let options = list.options();
    assert_eq!(options.merge_operator.as_deref(), Some("atoll.append:2c20"));
    assert_eq!(options.values, ValuePlacement::MergeBack { above: 30, up_to: 35 });
    for compacted in [false, true] {
        for (key, expected) in [
            ("a", "base, folded, too, in a table, until 2100, in the log"),
            ("b", "folded, too, in a table, in the log"),
            ("s", "a base that stands in a value file"),
            ("t", "a base that stands in a value file too, and an operand"),
        ] {
            let found = list.get_async(key).await.unwrap().unwrap();
            assert_eq!(String::from_utf8_lossy(&found), expected, "{compacted}");
        }
        let sum = count.get_async("n").await.unwrap().unwrap();
        assert_eq!(sum[..], 12u64.to_le_bytes());
        db.compact_async().await.unwrap();
    }
}

// ---- what the store holds ----

/// Entries of a group; those behind the flush are in the log only.
const ENTRIES: u64 = 12;
const GROUPS: [u64; 2] = [3, 4];
/// Stamps between two entries of a group.
const STAMPS: u64 = 10;

fn store_options(env: &Env, separate_above: Option<u32>) -> OpenOptions {
    OpenOptions { options: small(env, Compression::Lz4ThenZstd, separate_above) }
}

/// What entry `index` of `group` writes.
fn writes(group: u64, index: u64) -> Writes {
    let mut writes = Writes::new();
    let versioned = format!("v{group}");
    match index % 4 {
        3 => writes.remove_version(versioned.as_bytes(), index * STAMPS),
        _ => writes.insert_version(versioned.as_bytes(), index * STAMPS, &[&value(index as u32)]),
    }
    writes.insert(format!("plain{group}/{index:02}").as_bytes(), &[b"entry ", &[index as u8]]);
    if index == 5 {
        writes.remove(format!("plain{group}/02").as_bytes());
    }
    if index == 9 {
        let bound = |n| format!("plain{group}/{n:02}");
        writes.remove_range(bound(3).as_bytes(), bound(5).as_bytes());
    }
    writes
}

async fn make_store(env: Env, separate_above: Option<u32>) {
    let options = store_options(&env, separate_above);
    let (mut driver, tree) = driven::open(dir(), options).await.unwrap();
    for index in 1..=ENTRIES {
        for group in GROUPS {
            let writes = writes(group, index);
            driver.chores().await.unwrap();
            driver.reserve(writes.arena_bytes(), &[writes.bytes().len()]).await.unwrap();
            let id = EntryId { group, index, term: 1 + index / 6 };
            let position = driver.append(id, &[writes.bytes()]).unwrap();
            driver.sync().await.unwrap();
            driver.apply(group, index, position, writes.bytes()).await.unwrap();
        }
        if index == 4 {
            driver.attend(tree.compact()).await.unwrap();
        }
        if index == 8 {
            driver.attend(tree.flush()).await.unwrap();
        }
    }
    for group in GROUPS {
        let state = GroupState { term: 3, vote: group, commit: ENTRIES };
        driver.set_state(group, state).unwrap();
    }
    driver.sync().await.unwrap();
}

async fn check_store(env: Env) {
    let (mut driver, tree) = driven::open(dir(), store_options(&env, None)).await.unwrap();
    for group in GROUPS {
        let summary = driver.group(group).unwrap();
        assert_eq!((summary.next, summary.state.term), (ENTRIES + 1, 3));
        assert_eq!((summary.state.vote, summary.state.commit), (group, ENTRIES));
        let first = driver.applied(group) + 1;
        for entry in driver.entries(group, first..ENTRIES + 1).await.unwrap() {
            let index = entry.id.index;
            assert_eq!(&entry.payload[..], writes(group, index).bytes());
            assert_eq!(entry.id.term, 1 + index / 6);
            driver.apply(group, index, entry.position, &entry.payload).await.unwrap();
        }
    }
    for group in GROUPS {
        for index in 1..=ENTRIES {
            let at = index * STAMPS + STAMPS / 2;
            let found = tree.get_version(format!("v{group}").as_bytes(), at).await.unwrap();
            let found = found.unwrap();
            assert_eq!(found.stamp, index * STAMPS);
            let expected = (index % 4 != 3).then(|| value(index as u32));
            assert_eq!(found.value.as_deref(), expected.as_deref(), "{group} at {at}");
            let plain = tree.get(format!("plain{group}/{index:02}").as_bytes()).await.unwrap();
            let expected =
                (![2, 3, 4].contains(&index)).then(|| [b"entry ", &[index as u8][..]].concat());
            assert_eq!(plain.as_deref(), expected.as_deref(), "{group}/{index}");
        }
    }
    driver.attend(tree.compact()).await.unwrap();
    driver.close().await.unwrap();
}

// ---- the tests ----

#[test]
fn a_database_of_format_1_holds_what_it_held() {
    read("database-1.txt", check_database);
}

#[test]
fn a_database_with_tables_of_version_2_holds_what_it_held() {
    read("database-2.txt", check_database);
}

/// A database with a table in the last level and one in level 0 that were ingested, around one that was
/// flushed.
async fn make_ingested(env: Env) {
    let options = small(&env, Compression::Lz4, None);
    let db = Database::builder(dir()).options(options).open_async().await.unwrap();
    let ks = db.keyspace_async("k", KeyspaceOptions::default()).await.unwrap();
    ks.ingest_async((0..60).map(|n| (key(n), value(n)))).await.unwrap();
    ks.insert_async(key(7), b"written", SYNCED).await.unwrap();
    ks.insert_async(key(8), b"written", SYNCED).await.unwrap();
    ks.ingest_async((8..10).map(|n| (key(n), b"ingested again"))).await.unwrap();
    ks.remove_async(key(9), SYNCED).await.unwrap();
}

async fn check_ingested(env: Env) {
    let mut expected: BTreeMap<_, _> = (0..60).map(|n| (key(n), value(n))).collect();
    expected.insert(key(7), b"written".to_vec());
    expected.insert(key(8), b"ingested again".to_vec());
    expected.remove(&key(9));
    let options = small(&env, Compression::Lz4, None);
    let db = Database::builder(dir()).options(options).open_async().await.unwrap();
    let ks = db.find_keyspace("k").unwrap();
    holds(&ks, &expected).await;
    db.close_async().await.unwrap();
}

/// Two generations of a database with values in value files, the second with one key more.
async fn make_backup(env: Env) {
    let options = small(&env, Compression::Lz4, SEPARATED);
    let db = Database::builder("/source").options(options).open_async().await.unwrap();
    let ks = db.keyspace_async("k", KeyspaceOptions::default()).await.unwrap();
    for n in 0..40 {
        ks.insert_async(key(n), value(n), SYNCED).await.unwrap();
    }
    db.flush_async().await.unwrap();
    let backups = Backups::in_env(&env, dir());
    backups.take_async(&db, Mode::Incremental, &mut |_| {}).await.unwrap();
    ks.insert_async(key(40), value(40), SYNCED).await.unwrap();
    backups.take_async(&db, Mode::Incremental, &mut |_| {}).await.unwrap();
    db.close_async().await.unwrap();
}

#[test]
fn a_database_with_ingested_tables_holds_what_it_held() {
    read("database-5.txt", check_ingested);
}

#[test]
fn a_backup_of_format_1_restores_what_it_held() {
    let sim = Sim::new(9);
    let node = sim.node("reader");
    let text = std::fs::read_to_string(fixture("backup-1.txt")).unwrap();
    assert!(text.contains(".sst ") && text.contains(".val "));
    put_down(&text, &node);
    let env = node.env();
    run(&sim, &node, "backup", async {
        let backups = Backups::in_env(&env, dir());
        assert!(backups.verify_async(&mut |_| {}).await.unwrap().is_sound());
        for (number, keys) in [(1, 40), (2, 41)] {
            let to = format!("/restored/{number}");
            backups.restore_async(Some(number), &to, &mut |_| {}).await.unwrap();
            let options = small(&env, Compression::Lz4, SEPARATED);
            let db = Database::builder(&to).options(options).open_async().await.unwrap();
            let expected = (0..keys).map(|n| (key(n), value(n))).collect();
            holds(&db.find_keyspace("k").unwrap(), &expected).await;
            db.close_async().await.unwrap();
        }
    });
}

#[test]
fn a_database_with_merge_operands_holds_what_it_held() {
    assert!(std::fs::read_to_string(fixture("database-4.txt")).unwrap().contains(".val "));
    read("database-4.txt", check_merged);
}

#[test]
fn a_store_of_format_1_holds_what_it_held() {
    read("store-1.txt", check_store);
}

#[test]
fn a_database_with_value_files_holds_what_it_held() {
    assert!(std::fs::read_to_string(fixture("database-3.txt")).unwrap().contains(".val "));
    read("database-3.txt", check_database);
}

#[test]
fn a_store_with_value_files_holds_what_it_held() {
    assert!(std::fs::read_to_string(fixture("store-2.txt")).unwrap().contains(".val "));
    read("store-2.txt", check_store);
}

#[test]
fn a_database_whose_dead_weight_was_counted_holds_what_it_held() {
    read("database-6.txt", check_weighed);
}

#[test]
#[ignore = "writes fixtures"]
#[expect(clippy::disallowed_methods, reason = "a fixture is a file of the repository")]
fn fixtures_that_are_missing_are_written() {
    let folder = PathBuf::from(std::env::var_os("ATOLL_FIXTURES").unwrap());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
    for name in FIXTURES {
        if folder.join(name).exists() {
            continue;
        }
        let sim = Sim::new(1);
        let node = sim.node("writer");
        let env = node.env();
        run(&sim, &node, name, async {
            match name {
                "store-1.txt" => make_store(env.clone(), None).await,
                "store-2.txt" => make_store(env.clone(), SEPARATED).await,
                "database-3.txt" => make_database(env.clone(), SEPARATED).await,
                "database-4.txt" => make_merged(env.clone()).await,
                "database-5.txt" => make_ingested(env.clone()).await,
                "backup-1.txt" => make_backup(env.clone()).await,
                "database-6.txt" => make_weighed(env.clone()).await,
                _ => make_database(env.clone(), None).await,
            }
            // What runs in the background ends before the process does.
            env.clock.sleep(Duration::from_secs(5)).await;
        });
        node.crash_with(CrashMode::DropAll);
        std::fs::write(folder.join(name), write_down(&node)).unwrap();
    }
}
