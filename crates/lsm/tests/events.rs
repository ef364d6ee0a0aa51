//! What a listener is told: in order, complete, and with the figures of the statistics.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic too")]

#[expect(dead_code, reason = "not all of it is needed here")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atoll_env::random::Prng;
use atoll_env::sim::{Fault, FaultKind, OpKind, Sim};
use atoll_env::{Env, block_on};
use atoll_lsm::{
    BackgroundError, CompactionBegun, CompactionEnded, CompactionKind, CompactionReason,
    Compression, CorruptionFound, Database, Durability, Error, EventListener, FlushBegun,
    FlushEnded, FlushReason, JobEnd, Keyspace, KeyspaceOptions, Options, TableInfo, WriteDelayed,
    WriteOptions, WriteStalled,
};
use support::{dir, options, run};

#[derive(Clone, Debug)]
enum Told {
    FlushBegun(FlushBegun),
    FlushEnded(FlushEnded),
    CompactionBegun(CompactionBegun),
    CompactionEnded(CompactionEnded),
    Created(TableInfo),
    Deleted(u64),
    Delayed,
    DelayEnded,
    Stalled,
    StallEnded,
    Failed(BackgroundError),
    ReadOnly,
    Writable,
    Stopped,
    Corruption(CorruptionFound),
}

/// Keeps what it is told.
#[derive(Default)]
struct Witness {
    told: Mutex<Vec<Told>>,
    panics: bool,
}

impl Witness {
    fn note(&self, told: Told) {
        self.told.lock().unwrap().push(told);
        assert!(!self.panics, "it cannot bear any of it");
    }

    fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }
}

impl EventListener for Witness {
    fn flush_begun(&self, store: &Path, event: &FlushBegun) {
        assert_eq!(store, dir());
        self.note(Told::FlushBegun(event.clone()));
    }
    fn flush_ended(&self, _: &Path, event: &FlushEnded) {
        self.note(Told::FlushEnded(event.clone()));
    }
    fn compaction_begun(&self, _: &Path, event: &CompactionBegun) {
        self.note(Told::CompactionBegun(event.clone()));
    }
    fn compaction_ended(&self, _: &Path, event: &CompactionEnded) {
        self.note(Told::CompactionEnded(event.clone()));
    }
    fn table_created(&self, _: &Path, event: &TableInfo) {
        self.note(Told::Created(event.clone()));
    }
    fn table_deleted(&self, _: &Path, id: u64) {
        self.note(Told::Deleted(id));
    }
    fn write_delayed(&self, _: &Path, _: &WriteDelayed) {
        self.note(Told::Delayed);
    }
    fn write_delay_ended(&self, _: &Path) {
        self.note(Told::DelayEnded);
    }
    fn write_stalled(&self, _: &Path, _: &WriteStalled) {
        self.note(Told::Stalled);
    }
    fn write_stall_ended(&self, _: &Path, _: Duration) {
        self.note(Told::StallEnded);
    }
    fn background_error(&self, _: &Path, event: &BackgroundError) {
        self.note(Told::Failed(event.clone()));
    }
    fn read_only_entered(&self, _: &Path, _: &Error) {
        self.note(Told::ReadOnly);
    }
    fn read_only_left(&self, _: &Path) {
        self.note(Told::Writable);
    }
    fn stopped(&self, _: &Path, _: &Error) {
        self.note(Told::Stopped);
    }
    fn corruption_found(&self, _: &Path, event: &CorruptionFound) {
        self.note(Told::Corruption(event.clone()));
    }
}

async fn open(env: &Env, witness: &Arc<Witness>) -> (Database, Keyspace) {
    let listener: Arc<dyn EventListener> = witness.clone();
    let options = Options {
        listener: Some(listener),
        level0_slowdown: 3,
        compression: Compression::None,
        ..options(env.clone())
    };
    let db = Database::builder(dir()).options(options).open_async().await.unwrap();
    let ks = db.keyspace_async("k", KeyspaceOptions::default()).await.unwrap();
    (db, ks)
}

async fn fill(ks: &Keyspace, prng: &mut Prng, count: usize) {
    let options = WriteOptions::durability(Durability::Buffered);
    for _ in 0..count {
        let key = format!("{:04}", prng.below(2000));
        match prng.index(10) {
            0 => ks.remove_async(&key, options).await.unwrap(),
            1 if prng.chance(0.1) => {
                ks.remove_range_async(key.clone()..format!("{key}~"), options).await.unwrap();
            }
            _ => ks.insert_async(&key, vec![1; prng.index(600)], options).await.unwrap(),
        }
    }
}

/// Checks that the events of one life of a store add up: every begun job has one end, tables come
/// before they go, states are entered and left by turns. Returns the tables that are left.
fn check(told: &[Told], about: &str) -> BTreeMap<u64, TableInfo> {
    let mut open = BTreeSet::new();
    let mut tables: BTreeMap<u64, TableInfo> = BTreeMap::new();
    let (mut delayed, mut stalled, mut read_only) = (false, false, false);
    let enter = |state: &mut bool, to: bool| {
        assert_ne!(*state, to, "{about}: entered or left twice");
        *state = to;
    };
    for event in told {
        match event {
            Told::FlushBegun(FlushBegun { job, .. })
            | Told::CompactionBegun(CompactionBegun { job, .. }) => {
                assert!(open.insert(*job), "{about}: job {job} began twice");
                if let Told::CompactionBegun(begun) = event {
                    assert!(!begun.inputs.is_empty(), "{about}: {begun}");
                    for input in &begun.inputs {
                        let known = tables.get(&input.id).map(|t| (t.bytes, t.entries));
                        assert_eq!(known, Some((input.bytes, input.entries)), "{about}: {begun}");
                    }
                }
            }
            Told::FlushEnded(FlushEnded { job, outputs, bytes, .. })
            | Told::CompactionEnded(CompactionEnded { job, outputs, written: bytes, .. }) => {
                assert!(open.remove(job), "{about}: job {job} ended and had not begun");
                assert_eq!(outputs.iter().map(|t| t.bytes).sum::<u64>(), *bytes, "{about}");
                for table in outputs {
                    assert_eq!(tables.get(&table.id), Some(table), "{about}: it was not told of");
                }
            }
            Told::Created(table) => {
                assert!(tables.insert(table.id, table.clone()).is_none(), "{about}: {table:?}");
            }
            Told::Deleted(id) => {
                assert!(tables.remove(id).is_some(), "{about}: table {id} goes and never came");
            }
            Told::Delayed => enter(&mut delayed, true),
            Told::DelayEnded => enter(&mut delayed, false),
            Told::Stalled => enter(&mut stalled, true),
            Told::StallEnded => enter(&mut stalled, false),
            Told::ReadOnly => enter(&mut read_only, true),
            Told::Writable => enter(&mut read_only, false),
            Told::Failed(_) | Told::Stopped | Told::Corruption(_) => {}
        }
    }
    assert!(open.is_empty(), "{about}: jobs {open:?} never ended");
    assert!(!stalled, "{about}: still waiting");
    tables
}

#[test]
fn events_are_complete_in_order_and_add_up_with_the_statistics() {
    let mut kinds = BTreeSet::new();
    let (mut delays, mut stalls) = (0, 0);
    for seed in 0..60 {
        let about = format!("seed {seed}");
        let sim = Sim::new(seed);
        let node = sim.node("a");
        let env = node.env();
        if seed % 3 == 0 {
            node.disk()
                .inject(Fault::new(FaultKind::Slow).on(OpKind::Sync).path("tables/").sticky());
        }
        let witness = Arc::new(Witness::default());
        let stats = run(&sim, &node, &about, async {
            let mut prng = Prng::new(seed);
            let (db, ks) = open(&env, &witness).await;
            for _ in 0..4 {
                fill(&ks, &mut prng, 400).await;
                if prng.chance(0.3) {
                    db.compact_async().await.unwrap();
                }
            }
            db.flush_async().await.unwrap();
            db.compact_async().await.unwrap();
            let stats = db.stats();
            drop(ks);
            db.close_async().await.unwrap();
            stats
        });
        let told = witness.told();
        let left = check(&told, &about);
        let (mut flushed, mut flushes, mut read, mut written, mut merges) = (0, 0, 0, 0, 0);
        for event in &told {
            match event {
                Told::FlushEnded(FlushEnded { bytes, end: JobEnd::Done, .. }) => {
                    flushed += bytes;
                    flushes += 1;
                }
                Told::CompactionEnded(CompactionEnded {
                    kind: CompactionKind::Merge,
                    read: r,
                    written: w,
                    end: JobEnd::Done,
                    ..
                }) => {
                    (read, written, merges) = (read + r, written + w, merges + 1);
                }
                Told::CompactionBegun(CompactionBegun { reason, .. }) => {
                    kinds.insert(format!("{reason:?}"));
                }
                Told::FlushBegun(FlushBegun { reason, .. }) => {
                    kinds.insert(format!("{reason:?}"));
                }
                Told::Delayed => delays += 1,
                Told::Stalled => stalls += 1,
                _ => {}
            }
        }
        assert_eq!((flushed, flushes), (stats.flushed_bytes, stats.flushes.count), "{about}");
        let counted = (stats.compaction_read_bytes, stats.compaction_written_bytes);
        assert_eq!(
            (read, written, merges),
            (counted.0, counted.1, stats.compactions.count),
            "{about}"
        );
        let bytes: u64 = left.values().map(|table| table.bytes).sum();
        assert!(bytes >= stats.table_bytes(), "{about}: tables that nobody was told of");
    }
    for reason in [FlushReason::Full, FlushReason::Asked] {
        assert!(kinds.contains(&format!("{reason:?}")), "{kinds:?}");
    }
    for reason in [CompactionReason::Level0, CompactionReason::LevelSize, CompactionReason::Asked] {
        assert!(kinds.contains(&format!("{reason:?}")), "{kinds:?}");
    }
    assert!(delays > 0 && stalls > 0, "{delays} delays, {stalls} stalls");
}

#[test]
fn a_full_disk_is_told_when_it_fills_and_when_there_is_space_again() {
    let sim = Sim::new(1);
    let node = sim.node("a");
    let env = node.env();
    let witness = Arc::new(Witness::default());
    run(&sim, &node, "a full disk", async {
        let (db, ks) = open(&env, &witness).await;
        fill(&ks, &mut Prng::new(1), 100).await;
        let full = Fault::new(FaultKind::NoSpace).path("tables/").sticky();
        node.disk().inject(full);
        let failed = db.flush_async().await;
        assert!(matches!(failed, Err(Error::NoSpace(_))), "{failed:?}");
        let refused = ks.insert_async("x", "1", WriteOptions::default()).await;
        assert!(matches!(refused, Err(Error::NoSpace(_))), "{refused:?}");
        node.disk().clear_faults();
        env.clock.sleep(Duration::from_secs(5)).await;
        ks.insert_async("x", "1", WriteOptions::default()).await.unwrap();
        drop(ks);
        db.close_async().await.unwrap();
    });
    let told = witness.told();
    check(&told, "a full disk");
    let place = |what: fn(&Told) -> bool| told.iter().position(what);
    let failed = place(|t| matches!(t, Told::Failed(e) if e.chore == "flush")).unwrap();
    let entered = place(|t| matches!(t, Told::ReadOnly)).unwrap();
    let left = place(|t| matches!(t, Told::Writable)).unwrap();
    assert!(failed < left && entered < left, "{told:?}");
}

#[test]
fn corruption_and_the_end_of_a_store_are_told() {
    let sim = Sim::new(2);
    let node = sim.node("a");
    let env = node.env();
    let witness = Arc::new(Witness::default());
    run(&sim, &node, "corruption", async {
        let (db, ks) = open(&env, &witness).await;
        fill(&ks, &mut Prng::new(1), 200).await;
        db.compact_async().await.unwrap();
        drop(ks);
        db.close_async().await.unwrap();
        // Not the first one, which has the keyspace's name.
        let table = node.disk().files().into_iter().rfind(|file| file.ends_with(".sst")).unwrap();
        assert!(node.disk().corrupt(&table, 100, 3));
        witness.told.lock().unwrap().clear();
        let (db, ks) = open(&env, &witness).await;
        let mut found = None;
        for n in 0..2000 {
            if let Err(e) = ks.get_async(format!("{n:04}")).await {
                found.get_or_insert(e);
            }
        }
        assert!(matches!(found, Some(Error::Corruption { .. })), "{found:?}");
        env.clock.sleep(Duration::from_secs(2)).await;
        node.disk().inject(Fault::new(FaultKind::SyncLoses).on(OpKind::Sync).path("log/"));
        let stopped = ks.insert_async("x", "1", WriteOptions::default()).await;
        assert!(matches!(stopped, Err(Error::Stopped(_))), "{stopped:?}");
        drop(ks);
        let _ = db.close_async().await;
    });
    let told = witness.told();
    let corrupt: Vec<_> = told.iter().filter(|t| matches!(t, Told::Corruption(_))).collect();
    assert_eq!(corrupt.len(), 1, "a table is told of once: {corrupt:?}");
    let Told::Corruption(found) = corrupt[0] else { unreachable!() };
    assert!(found.file.to_string_lossy().ends_with(".sst"), "{found}");
    assert_eq!(told.iter().filter(|t| matches!(t, Told::Stopped)).count(), 1);
}

#[test]
fn a_listener_that_panics_harms_nobody() {
    let sim = Sim::new(3);
    let node = sim.node("a");
    let env = node.env();
    let witness = Arc::new(Witness { panics: true, ..Witness::default() });
    run(&sim, &node, "panics", async {
        let (db, ks) = open(&env, &witness).await;
        fill(&ks, &mut Prng::new(1), 300).await;
        db.compact_async().await.unwrap();
        drop(ks);
        db.close_async().await.unwrap();
    });
    check(&witness.told(), "panics");
}

/// Reads and writes the database that it is told of.
struct Curious {
    ks: Mutex<Option<Keyspace>>,
}

impl EventListener for Curious {
    fn flush_ended(&self, _: &Path, event: &FlushEnded) {
        if let Some(ks) = &*self.ks.lock().unwrap() {
            ks.insert(format!("flush {}", event.job), "").unwrap();
            assert!(ks.get("x").unwrap().is_some());
        }
    }
}

#[test]
fn a_listener_may_read_and_write_the_database() {
    let home = tempfile::tempdir().unwrap();
    let curious = Arc::new(Curious { ks: Mutex::new(None) });
    let builder = Database::builder(home.path().join("db")).memory(16 << 20);
    let db = builder.listener(curious.clone()).open().unwrap();
    let ks = db.keyspace("k", KeyspaceOptions::default()).unwrap();
    *curious.ks.lock().unwrap() = Some(ks.clone());
    ks.insert("x", "1").unwrap();
    db.flush().unwrap();
    for _ in 0..200 {
        if ks.prefix("flush ").count() > 0 {
            break;
        }
        block_on(db.env().clock.sleep(Duration::from_millis(10)));
    }
    assert_eq!(ks.prefix("flush ").count(), 1);
    curious.ks.lock().unwrap().take();
    drop(ks);
    db.close().unwrap();
}
