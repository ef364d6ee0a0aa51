//! A disk that lies to a running database: bits that flip on the way, writes that are acknowledged
//! and lost, or stored elsewhere.
//!
//! What lies once and tells the truth when asked again costs nothing. What is lost costs an error
//! that names the file, in the same process or after the next opening. Nothing false is served.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic too")]

#[expect(dead_code, reason = "this file opens with options of its own and removes no ranges")]
mod support;

use atoll_env::Env;
use atoll_env::random::Prng;
use atoll_env::sim::{CrashMode, DiskSnapshot, Fault, FaultKind, Node, OpKind, Sim};
use atoll_lsm::{
    Database, Error, Keyspace, KeyspaceOptions, Options, Result, WriteOptions, verify_async,
};
use support::{Model, dir, options, run};

const SYNCED: WriteOptions = WriteOptions { durability: None };

/// A manifest that is replaced again and again, and one that never is.
const SHORT: u64 = 1;
const LONG: u64 = 1 << 20;

async fn open(env: &Env, manifest_size: u64) -> Result<(Database, Keyspace)> {
    let options = Options { manifest_size, ..options(env.clone()) };
    let db = Database::builder(dir()).options(options).open_async().await?;
    let ks = db.keyspace_async("k", KeyspaceOptions::default()).await?;
    Ok((db, ks))
}

async fn put(ks: &Keyspace, model: &mut Model, n: usize, seed: usize) {
    // Bytes that do not compress: there are several tables.
    let (key, mut value) = (format!("key {n:02}").into_bytes(), vec![0; 500]);
    Prng::new(seed as u64).fill(&mut value);
    ks.insert_async(&key, &value, SYNCED).await.unwrap();
    model.wrote(&key, Some(value), true);
}

/// Reads every key, alone and in scans in both directions. Returns the first error.
async fn read(ks: &Keyspace, model: &Model, what: &str) -> Result<()> {
    let mut first = Ok(());
    for key in model.keys() {
        match ks.get_async(key).await {
            Ok(found) => assert!(model.allows(key, found.as_deref()), "{what}: a wrong answer"),
            Err(e) => first = first.and(Err(e)),
        }
    }
    for backward in [false, true] {
        let (mut cursor, mut seen) = (ks.cursor::<&[u8]>(..), 0);
        let end = loop {
            let next = if backward { cursor.next_back().await } else { cursor.next().await };
            match next {
                Ok(Some(guard)) => {
                    seen += 1;
                    let value = guard.value_async().await;
                    match value {
                        Ok(value) => assert!(model.allows(guard.key(), Some(&value)), "{what}"),
                        Err(e) => break Err(e),
                    }
                }
                Ok(None) => break Ok(()),
                Err(e) => break Err(e),
            }
        };
        if end.is_ok() {
            let alive = model.keys().filter(|key| !model.allows(key, None)).count();
            assert!(seen >= alive, "{what}: a scan left something out");
        }
        first = first.and(end);
    }
    first
}

/// A database with tables in several levels, closed.
fn fixture() -> (DiskSnapshot, Model) {
    let sim = Sim::new(2);
    let node = sim.node("a");
    let mut model = Model::default();
    run(&sim, &node, "build", async {
        let (db, ks) = open(&node.env(), LONG).await.unwrap();
        for n in 0..80 {
            put(&ks, &mut model, n * 7 % 80, n).await;
        }
        db.compact_async().await.unwrap();
        for n in 0..30 {
            put(&ks, &mut model, n * 11 % 80, n + 100).await;
        }
        db.flush_async().await.unwrap();
        drop(ks);
        db.close_async().await.unwrap();
    });
    (node.disk().snapshot(), model)
}

/// Opens the fixture.
fn with<T>(
    fixture: &DiskSnapshot,
    what: &str,
    story: impl AsyncFnOnce(&Node, Database, Keyspace) -> T,
) -> T {
    let sim = Sim::new(3);
    let node = sim.node("a");
    node.disk().restore(fixture);
    run(&sim, &node, what, async {
        let (db, ks) = open(&node.env(), LONG).await.unwrap();
        story(&node, db, ks).await
    })
}

#[test]
fn a_bit_that_flips_on_the_way_is_read_again_and_nobody_notices() {
    let (disk, model) = fixture();
    for n in 0.. {
        let what = format!("read {n} of a table");
        let fault = Fault::new(FaultKind::Flip).site("table read").skip(n);
        let hits = with(&disk, &what, async |node, db, ks| {
            node.disk().inject(fault);
            let answered = read(&ks, &model, &what).await;
            answered.unwrap_or_else(|e| panic!("{what}: {e}"));
            // A merge reads it, too.
            put(&ks, &mut model.clone(), 5, 5).await;
            db.compact_async().await.unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(db.stats().quarantined, 0, "{what}");
            node.disk().fault_hits()
        });
        if hits == 0 {
            assert!(n > 20, "the fixture is read by {n} reads only");
            return;
        }
    }
}

#[test]
fn a_table_whose_bits_flip_whenever_it_is_read_is_named_and_put_away() {
    let (disk, model) = fixture();
    let sim = Sim::new(4);
    let node = sim.node("a");
    node.disk().restore(&disk);
    let tables: Vec<String> =
        node.disk().files().into_iter().filter(|file| file.ends_with(".sst")).collect();
    assert!(tables.len() >= 3, "{tables:?}");
    let mut put_away = 0;
    for table in &tables {
        let fault = Fault::new(FaultKind::Flip).site("table read").path(table).sticky();
        with(&disk, table, async |node, db, ks| {
            node.disk().inject(fault);
            let mut served = 0;
            for key in model.keys() {
                match ks.get_async(key).await {
                    Ok(found) => {
                        assert!(model.allows(key, found.as_deref()), "{table}: a wrong answer");
                        served += 1;
                    }
                    Err(Error::Corruption { file, .. }) => {
                        assert_eq!(file.to_string_lossy(), *table);
                    }
                    Err(e) => panic!("{table}: {e}"),
                }
            }
            if node.disk().fault_hits() == 0 {
                // What a crash left behind, and the opening removed.
                return;
            }
            let refused = read(&ks, &model, table).await.is_err();
            assert!(served > 0 && refused, "{table}: {served} served");
            assert_eq!(db.stats().quarantined, 1, "{table}");
            // Asked again it is not read: what it would say is not known.
            node.disk().clear_faults();
            assert!(read(&ks, &model, table).await.unwrap_err().is_corruption());
            put_away += 1;
        });
    }
    assert!(put_away >= 3, "{put_away} tables");
}

/// Writes, flushes and merges while the n-th matching write is not stored where it should be, and
/// then writes on, so that the log does not end where it was hit. Returns whether the fault hit.
fn write_under(fault: &Fault, manifest_size: u64, what: &str) -> (bool, bool) {
    let sim = Sim::new(6);
    let node = sim.node("a");
    let mut model = Model::default();
    let mut noticed = false;
    run(&sim, &node, what, async {
        let (db, ks) = open(&node.env(), manifest_size).await.unwrap();
        node.disk().inject(fault.clone());
        for round in 0..4 {
            for n in 0..20 {
                put(&ks, &mut model, (n * 7 + round) % 60, round * 20 + n).await;
            }
            // What is asked of a table that is not what it should be may fail, and say so.
            for done in [db.flush_async().await, db.compact_async().await] {
                noticed |= failed_for_a_reason(done, what);
            }
        }
        node.disk().clear_faults();
        for n in 0..6 {
            put(&ks, &mut model, n, n + 200).await;
        }
        noticed |= failed_for_a_reason(read(&ks, &model, what).await, what);
    });
    let hit = node.disk().fault_hits() > 0;
    for crash in [CrashMode::KeepAll, CrashMode::DropAll] {
        node.crash_with(crash);
        node.restart();
        let env = node.env();
        run(&sim, &node, what, async {
            let verified = verify_async(&env, &dir(), &mut |_| {}).await;
            let sound = verified.as_ref().is_ok_and(|report| report.is_sound());
            let opened = match open(&env, manifest_size).await {
                Ok((db, ks)) => {
                    let read = read(&ks, &model, what).await;
                    drop(ks);
                    let closed = db.close_async().await;
                    read.and(closed)
                }
                Err(e) => Err(e),
            };
            let failed = failed_for_a_reason(opened, what);
            assert!(!failed || !sound, "{what}: verify says that all is well");
            noticed |= failed;
        });
    }
    (hit, noticed)
}

/// Returns whether something failed; if so, then with stored bytes that were named.
fn failed_for_a_reason(done: Result<()>, what: &str) -> bool {
    match done {
        Ok(()) => false,
        Err(Error::Corruption { file, .. } | Error::Foreign { path: file, .. }) => {
            assert!(file.starts_with("/data/db"), "{what}: {}", file.display());
            true
        }
        Err(e) => panic!("{what}: it is about stored bytes, but says: {e}"),
    }
}

/// Lets every write of `site` go astray in turn; returns how many were noticed, of how many.
fn each_goes_astray(
    kind: FaultKind,
    op: OpKind,
    site: &'static str,
    manifest_size: u64,
) -> (u32, u32) {
    let (mut total, mut noticed) = (0, 0);
    for n in 0.. {
        let fault = Fault::new(kind).on(op).site(site).skip(n);
        let what = format!("{op:?} {n} of '{site}' is {kind:?}");
        let (hit, seen) = write_under(&fault, manifest_size, &what);
        if !hit {
            break;
        }
        total += 1;
        noticed += u32::from(seen);
    }
    assert!(total > 0, "nobody writes to '{site}'");
    (noticed, total)
}

#[test]
fn a_lost_or_misdirected_write_of_a_table_is_noticed_and_nothing_false_is_served() {
    for kind in [FaultKind::Lost, FaultKind::Misdirected] {
        let (noticed, total) = each_goes_astray(kind, OpKind::Write, "table write", LONG);
        assert_eq!(noticed, total, "{kind:?}");
    }
}

#[test]
fn a_lost_or_misdirected_write_of_the_manifest_is_noticed_and_nothing_false_is_served() {
    for kind in [FaultKind::Lost, FaultKind::Misdirected] {
        for site in ["flush install", "compaction install"] {
            let (noticed, total) = each_goes_astray(kind, OpKind::Write, site, LONG);
            assert_eq!(noticed, total, "{kind:?} at '{site}'");
            // A replacement holds what the lost edit said.
            each_goes_astray(kind, OpKind::Write, site, SHORT);
        }
    }
    for (kind, op) in [
        (FaultKind::Lost, OpKind::Write),
        (FaultKind::Misdirected, OpKind::Write),
        (FaultKind::Lost, OpKind::Rename),
    ] {
        each_goes_astray(kind, op, "manifest swap", SHORT);
    }
}
