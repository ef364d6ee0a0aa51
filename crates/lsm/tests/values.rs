//! Values in value files: they are read as if they stood in tables, damage costs the value that it
//! hit and no other, and space comes back.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic too")]

#[expect(dead_code, reason = "this file opens databases in its own way")]
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::random::Prng;
use atoll_env::sim::{CrashMode, DiskSnapshot, Fault, FaultKind, Node, Sim};
use atoll_lsm::{
    Compression, Database, Error, Keyspace, KeyspaceOptions, Options, RepairOptions, Result,
    ValuePlacement, WriteOptions, repair_async, verify_async,
};
use support::{Model, dir, run};

const SYNCED: WriteOptions = WriteOptions { durability: None };

fn key(n: u32) -> Vec<u8> {
    format!("key {n:03}").into_bytes()
}

/// Bytes that do not compress.
fn value(seed: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Prng::new(u64::from(seed)).fill(&mut bytes);
    bytes
}

/// Options under which most values are in value files.
fn separated(env: Env) -> Options {
    Options { separate_above: Some(48), value_file_size: 8 << 10, ..support::options(env) }
}

async fn open(env: &Env) -> Result<(Database, Keyspace)> {
    let options = separated(env.clone());
    let db = Database::builder(dir()).options(options).open_async().await?;
    let ks = db.keyspace_async("k", KeyspaceOptions::default()).await?;
    Ok((db, ks))
}

async fn put(ks: &Keyspace, model: &mut Model, n: u32, seed: u32, len: usize) {
    let value = value(seed, len);
    ks.insert_async(key(n), &value, SYNCED).await.unwrap();
    model.wrote(&key(n), Some(value), true);
}

fn value_files(node: &Node) -> Vec<String> {
    node.disk().files().into_iter().filter(|file| file.ends_with(".val")).collect()
}

/// A closed database whose values are in several value files, some of them garbage.
fn fixture() -> (DiskSnapshot, Model) {
    let sim = Sim::new(5);
    let node = sim.node("a");
    let mut model = Model::default();
    run(&sim, &node, "build", async {
        let (db, ks) = open(&node.env()).await.unwrap();
        for n in 0..90 {
            put(&ks, &mut model, n * 7 % 90, n, 300).await;
        }
        db.compact_async().await.unwrap();
        for n in 0..20 {
            put(&ks, &mut model, n * 11 % 90, n + 100, 200).await;
        }
        db.flush_async().await.unwrap();
        drop(ks);
        db.close_async().await.unwrap();
    });
    let files = value_files(&node);
    assert!(files.len() >= 4, "{files:?}");
    (node.disk().snapshot(), model)
}

/// Opens a copy of the fixture.
fn with<T>(
    fixture: &DiskSnapshot,
    what: &str,
    story: impl AsyncFnOnce(&Node, Database, Keyspace) -> T,
) -> T {
    let sim = Sim::new(6);
    let node = sim.node("a");
    node.disk().restore(fixture);
    run(&sim, &node, what, async {
        let (db, ks) = open(&node.env()).await.unwrap();
        story(&node, db, ks).await
    })
}

/// Reads every key; returns those whose value does not verify, each of which must name `file`.
async fn refused(ks: &Keyspace, model: &Model, file: &str) -> Vec<Vec<u8>> {
    let mut refused = Vec::new();
    for key in model.keys() {
        match ks.get_async(key).await {
            Ok(found) => assert!(model.allows(key, found.as_deref()), "{file}: a wrong answer"),
            Err(Error::Corruption { file: named, .. }) => {
                assert_eq!(named, Path::new(file));
                refused.push(key.to_vec());
            }
            Err(e) => panic!("{file}: {e}"),
        }
    }
    refused
}

#[test]
fn values_of_every_kind_and_length_are_read_as_they_were_written() {
    let sim = Sim::new(1);
    let node = sim.node("a");
    run(&sim, &node, "all", async {
        let env = node.env();
        for compression in [Compression::None, Compression::Lz4ThenZstd] {
            let options =
                Options { memtable_size: 64 << 10, compression, ..separated(env.clone()) };
            let path = format!("/data/{compression:?}");
            let mut expected = BTreeMap::new();
            let far = env.clock.wall().0 + 3_600_000;
            let db = Database::builder(&path).options(options.clone()).open_async().await.unwrap();
            let ks = db.keyspace_async("k", KeyspaceOptions::default()).await.unwrap();
            for (n, len) in [0, 1, 47, 48, 49, 500, 5000, 200_000, 1 << 20, (1 << 20) + 5]
                .into_iter()
                .enumerate()
            {
                for (kind, content) in [("noise", value(n as u32, len)), ("flat", vec![7; len])] {
                    let name = format!("{kind} {n}");
                    ks.insert_async(&name, &content, SYNCED).await.unwrap();
                    expected.insert(name.into_bytes(), (content.clone(), None));
                    let name = format!("{kind} {n} expiring");
                    let mut batch = atoll_lsm::Batch::new();
                    batch.insert_expiring(&ks, name.as_bytes(), &content, far);
                    db.write_async(batch, SYNCED).await.unwrap();
                    expected.insert(name.into_bytes(), (content, Some(far)));
                }
            }
            let check = async |db: &Database, ks: &Keyspace, what: &str| {
                for (key, (value, deadline)) in &expected {
                    let found = ks.record_async(key).await.unwrap().unwrap();
                    assert!(found.value == value[..] && found.deadline == *deadline, "{what}");
                    let mut reader = ks.reader_async(key).await.unwrap().unwrap();
                    assert_eq!((reader.len(), reader.deadline()), (value.len(), *deadline));
                    let mut read = Vec::new();
                    while let Some(piece) = reader.next_async().await.unwrap() {
                        assert!(piece.len() <= 1 << 20, "{what}: a piece of {}", piece.len());
                        read.extend_from_slice(&piece);
                    }
                    assert!(read == *value, "{what}");
                }
                let snapshot = db.snapshot();
                for backward in [false, true] {
                    let mut cursor = snapshot.cursor::<&[u8]>(ks, ..);
                    let mut rows = BTreeMap::new();
                    while let Some(guard) = match backward {
                        true => cursor.next_back().await.unwrap(),
                        false => cursor.next().await.unwrap(),
                    } {
                        let record = guard.record_async().await.unwrap();
                        assert_eq!(guard.size(), record.value.len(), "{what}");
                        assert_eq!(guard.deadline(), record.deadline, "{what}");
                        rows.insert(guard.key().to_vec(), (record.value.to_vec(), record.deadline));
                    }
                    assert!(rows == expected, "{what}, backward: {backward}");
                }
            };
            check(&db, &ks, "in memory").await;
            db.flush_async().await.unwrap();
            assert!(db.stats().value_files > 1);
            check(&db, &ks, "flushed").await;
            db.compact_async().await.unwrap();
            check(&db, &ks, "compacted").await;
            drop(ks);
            db.close_async().await.unwrap();
            let report = verify_async(&env, Path::new(&path), &mut |_| {}).await.unwrap();
            assert!(report.is_sound() && report.values > 20, "{report}: {:?}", report.problems);
            let db = Database::builder(&path).options(options).open_async().await.unwrap();
            let ks = db.find_keyspace("k").unwrap();
            check(&db, &ks, "opened again").await;
        }
    });
}

#[test]
fn space_of_what_was_overwritten_comes_back_while_writes_go_on() {
    let sim = Sim::new(2);
    let node = sim.node("a");
    run(&sim, &node, "overwrite", async {
        let (db, ks) = open(&node.env()).await.unwrap();
        let mut model = Model::default();
        let mut prng = Prng::new(3);
        let live = 100 * 300;
        for n in 0..3000 {
            put(&ks, &mut model, prng.below(100) as u32, n, 300).await;
            if n % 300 == 299 {
                db.flush_async().await.unwrap();
                // The background work of a simulated second.
                node.env().clock.sleep(Duration::from_secs(1)).await;
                let stats = db.stats();
                // Thirty percent of garbage, the memtable's share of a tiny store and what upper
                // levels still hide.
                assert!(stats.value_file_bytes < 3 * live, "{n}: {} bytes", stats.value_file_bytes);
            }
        }
        let stats = db.stats();
        assert!(stats.values_moved_bytes > 0, "files went by moving what was live in them");
        assert!(stats.values_written_bytes > 2500 * 300);
        db.compact_async().await.unwrap();
        let stats = db.stats();
        let garbage = stats.value_file_bytes - stats.value_live_bytes;
        assert!(garbage * 10 < stats.value_file_bytes, "{garbage} of {}", stats.value_file_bytes);
        model.check(&ks).await.unwrap();
        ks.remove_range_async::<&[u8]>(.., SYNCED).await.unwrap();
        db.compact_async().await.unwrap();
        assert_eq!((db.stats().value_files, value_files(&node).len()), (0, 0));
    });
}

#[test]
fn a_reader_keeps_the_files_it_may_still_read() {
    let (disk, model) = fixture();
    with(&disk, "a reader", async |node, db, ks| {
        let before = value_files(node);
        let mut cursor = ks.cursor::<&[u8]>(..);
        let first = cursor.next().await.unwrap().unwrap();
        for n in 0..90 {
            ks.insert_async(key(n), value(n + 900, 300), SYNCED).await.unwrap();
        }
        db.compact_async().await.unwrap();
        let during = value_files(node);
        assert!(before.iter().all(|file| during.contains(file)));
        let mut seen = vec![(first.key().to_vec(), first.value_async().await.unwrap())];
        while let Some(guard) = cursor.next().await.unwrap() {
            seen.push((guard.key().to_vec(), guard.value_async().await.unwrap()));
        }
        assert!(seen.iter().all(|(key, value)| model.allows(key, Some(value))));
        drop((first, cursor));
        db.compact_async().await.unwrap();
        let after = value_files(node);
        assert!(before.iter().all(|file| !after.contains(file)), "{before:?} {after:?}");
    });
}

#[test]
fn a_flipped_bit_costs_the_value_it_is_in_and_is_found_by_verification() {
    let (disk, model) = fixture();
    let sim = Sim::new(6);
    let node = sim.node("a");
    node.disk().restore(&disk);
    let mut prng = Prng::new(7);
    let mut hit = 0;
    for file in value_files(&node) {
        node.disk().restore(&disk);
        let bits = node.disk().read_file(&file).unwrap().len() as u64 * 8;
        for _ in 0..60 {
            let bit = prng.range(256..bits);
            node.crash();
            node.restart();
            node.disk().restore(&disk);
            assert!(node.disk().corrupt(&file, bit / 8, (bit % 8) as u32));
            let env = node.env();
            run(&sim, &node, &file, async {
                let report = verify_async(&env, &dir(), &mut |_| {}).await.unwrap();
                let [Error::Corruption { file: named, .. }] = &report.problems[..] else {
                    panic!("bit {bit} of {file}: {:?}", report.problems)
                };
                assert_eq!(named, Path::new(&file));
                let (db, ks) = open(&env).await.unwrap();
                let lost = refused(&ks, &model, &file).await;
                assert!(lost.len() <= 1, "{} values by one bit", lost.len());
                hit += lost.len();
                // A merge of everything goes on, and keeps the damage as it was found.
                db.compact_async().await.unwrap();
                assert_eq!(refused(&ks, &model, &file).await, lost);
                assert_eq!(db.stats().quarantined, 0);
                // Written again it is whole, and the file can go.
                let mut model = model.clone();
                for key in &lost {
                    ks.insert_async(key, b"new", SYNCED).await.unwrap();
                    model.wrote(key, Some(b"new".to_vec()), true);
                }
                db.compact_async().await.unwrap();
                model.check(&ks).await.unwrap();
                drop(ks);
                db.close_async().await.unwrap();
            });
        }
    }
    assert!(hit > 100, "{hit} values were hit");
}

#[test]
fn bytes_of_another_record_are_not_taken_for_a_value() {
    let (disk, model) = fixture();
    let sim = Sim::new(6);
    let node = sim.node("a");
    let mut lost = 0;
    node.disk().restore(&disk);
    for file in value_files(&node) {
        node.crash();
        node.restart();
        node.disk().restore(&disk);
        let mut bytes = node.disk().read_file(&file).unwrap();
        let size = 28 + u32::from_le_bytes(bytes[36..40].try_into().unwrap()) as usize;
        if bytes.len() < 32 + 3 * size {
            continue;
        }
        // The second record in the place of the first, checksum and all.
        bytes.copy_within(32 + size..32 + 2 * size, 32);
        node.disk().write_file(&file, &bytes).unwrap();
        run(&sim, &node, &file, async {
            let (_db, ks) = open(&node.env()).await.unwrap();
            lost += refused(&ks, &model, &file).await.len();
        });
    }
    assert!(lost > 1, "{lost}");
}

#[test]
fn a_lost_file_is_named_and_a_repair_serves_what_is_left() {
    let (disk, model) = fixture();
    let sim = Sim::new(6);
    let node = sim.node("a");
    node.disk().restore(&disk);
    for file in value_files(&node) {
        for cut in [None, Some(700), Some(1 << 20)] {
            node.crash();
            node.restart();
            node.disk().restore(&disk);
            let bytes = node.disk().read_file(&file).unwrap();
            match cut {
                None => node.disk().remove_file(&file).unwrap(),
                Some(len) => {
                    let mut bytes = bytes;
                    bytes.resize(len, 9);
                    node.disk().write_file(&file, &bytes).unwrap();
                }
            }
            let env = node.env();
            run(&sim, &node, &file, async {
                let Err(Error::Corruption { file: named, .. }) = open(&env).await else {
                    panic!("{file}: it is missed")
                };
                assert_eq!(named, Path::new(&file));
                let repair =
                    async |options| repair_async(&env, &dir(), options, &mut |_| {}).await.unwrap();
                let careful = repair(RepairOptions::default()).await;
                assert_eq!((careful.remaining.len(), careful.stood_in.len()), (1, 0));
                let options = RepairOptions { drop_lost_values: true, ..Default::default() };
                assert_eq!(repair(options).await.stood_in.len(), 1);
                assert_eq!(repair(options).await.stood_in.len(), 0, "once is enough");
                let (db, ks) = open(&env).await.unwrap();
                let lost = refused(&ks, &model, &file).await;
                assert!(lost.len() < model.keys().count() && (cut.is_some() || !lost.is_empty()));
                for key in &lost {
                    ks.remove_async(key, SYNCED).await.unwrap();
                }
                db.compact_async().await.unwrap();
                assert!(refused(&ks, &Model::default(), &file).await.is_empty());
                drop(ks);
                db.close_async().await.unwrap();
            });
        }
    }
}

#[test]
fn a_merge_goes_around_values_that_the_disk_does_not_read() {
    let (disk, model) = fixture();
    let file = with(&disk, "find", async |node, _, _| value_files(node)[0].clone());
    with(&disk, "merge", async |node, db, ks| {
        let fault = Fault::new(FaultKind::Error).site("value read").path(&file).sticky();
        node.disk().inject(fault);
        for n in 0..60 {
            ks.insert_async(key(n), b"short", SYNCED).await.unwrap();
        }
        db.compact_async().await.unwrap();
        node.disk().clear_faults();
        for n in 60..90 {
            let found = ks.get_async(key(n)).await.unwrap();
            assert!(model.allows(&key(n), found.as_deref()));
        }
    });
}

#[test]
fn values_that_are_merged_back_stand_in_the_tables_of_the_last_level() {
    let sim = Sim::new(8);
    let node = sim.node("a");
    run(&sim, &node, "merge back", async {
        let db = Database::builder(dir()).options(separated(node.env()));
        let db = db.open_async().await.unwrap();
        let values = ValuePlacement::MergeBack { above: 48, up_to: 400 };
        let options = KeyspaceOptions { values, ..KeyspaceOptions::default() };
        let ks = db.keyspace_async("k", options).await.unwrap();
        let mut model = Model::default();
        for n in 0..60 {
            put(&ks, &mut model, n, n, if n % 10 == 0 { 500 } else { 300 }).await;
        }
        db.flush_async().await.unwrap();
        assert!(db.stats().value_live_bytes > 54 * 300);
        db.compact_async().await.unwrap();
        let stats = db.stats();
        assert!(stats.value_live_bytes < 6 * 600, "{} bytes", stats.value_live_bytes);
        assert!(stats.table_bytes() > 54 * 300);
        model.check(&ks).await.unwrap();
        drop(ks);
        db.close_async().await.unwrap();
        let db = Database::builder(dir()).options(separated(node.env()));
        let db = db.open_async().await.unwrap();
        let ks = db.find_keyspace("k").unwrap();
        assert_eq!(ks.options().values, values);
        model.check(&ks).await.unwrap();
    });
}

#[test]
fn a_power_cut_at_any_place_of_a_merge_that_moves_values_loses_none() {
    let (disk, model) = fixture();
    let mut points = 0;
    for point in 0.. {
        let sim = Sim::new(point);
        let node = sim.node("a");
        node.disk().restore(&disk);
        let env = node.env();
        let at = node.disk().mutations() + point;
        node.disk().crash_at(at, atoll_env::sim::CrashTiming::Any);
        let done = sim.block_on(&node, async {
            let (db, ks) = open(&env).await.unwrap();
            for n in 0..60 {
                ks.insert_async(key(n), value(n, 300), SYNCED).await.unwrap();
            }
            db.compact_async().await.unwrap();
            drop(ks);
            db.close_async().await.unwrap();
        });
        if done.ok().is_some() {
            break;
        }
        points += 1;
        node.crash_with(CrashMode::DropAll);
        node.restart();
        run(&sim, &node, "after", async {
            let report = verify_async(&node.env(), &dir(), &mut |_| {}).await.unwrap();
            assert!(report.is_sound(), "{:?}", report.problems);
            let (_db, ks) = open(&node.env()).await.unwrap();
            for n in 60..90 {
                let found = ks.get_async(key(n)).await.unwrap();
                assert!(model.allows(&key(n), found.as_deref()), "key {n} at {point}");
            }
            for n in 0..60 {
                let found = ks.get_async(key(n)).await.unwrap();
                let old = model.allows(&key(n), found.as_deref());
                assert!(old || found.is_some_and(|v| v == value(n, 300)[..]), "key {n} at {point}");
            }
        });
    }
    assert!(points > 100, "{points} points");
}
