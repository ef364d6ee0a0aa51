//! A disk that fails at one call: at every call in turn, once and for ever.
//!
//! A *story* is a fixed run of a small database in the simulator. It is told again and again while
//! its n-th disk operation fails, for every n. Whatever fails, there is no panic, no hang and no
//! wrong answer, and what was acknowledged is there after the disk is well again and the power was
//! cut.
//!
//! | story | begins with | does |
//! |---|---|---|
//! | `life` | an empty directory | every kind of small write, reads, flushes, compaction, a new opening |
//! | `long` | an empty directory | a value in chunks, overwritten, merged, read |
//! | `opening` | tables, a log with long and short entries | opens; fails in recovery only |
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic too")]

#[expect(dead_code, reason = "this file opens with options of its own")]
mod support;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::sim::{CrashMode, DiskSnapshot, Fault, FaultKind, Node, OpKind, Sim};
use atoll_lsm::{
    Batch, Compression, Database, Durability, Error, Keyspace, KeyspaceOptions, Options, Result,
    WriteOptions, verify_async,
};
use support::{Model, dir, run};

const SYNCED: WriteOptions = WriteOptions { durability: None };
const BUFFERED: WriteOptions = WriteOptions { durability: Some(Durability::Buffered) };
const HOUR: Duration = Duration::from_secs(3600);
/// The keys that only batches write, always both with one value.
const PAIR: [&[u8]; 2] = [b"pair a", b"pair b"];

// ---- what is told ----

type Telling<'n> = Pin<Box<dyn Future<Output = ()> + 'n>>;

/// A fixed run of a database.
struct Story {
    /// What is on the disk before, and what is known of it; nothing if there is none.
    begin: Option<(DiskSnapshot, Known)>,
    segment: u64,
    /// Whether its runs end in one of two ways in turn, rather than in both.
    takes_turns: bool,
    tell: for<'n> fn(&'n Node, &'n Teller) -> Telling<'n>,
}

/// What may be read.
#[derive(Clone, Default)]
struct Known {
    /// Of the two keyspaces.
    models: [Model; 2],
    /// Per dropped keyspace, whether its end was acknowledged.
    dropped: BTreeMap<String, bool>,
}

/// What a run met.
#[derive(Default)]
struct Met {
    known: Known,
    /// Failures of writes and of maintenance, in order.
    writes: Vec<Error>,
    /// Failures of reads.
    reads: Vec<Error>,
    /// Failures of opening.
    openings: Vec<Error>,
}

/// Tells a story and notes what it met.
struct Teller {
    met: RefCell<Met>,
    segment: u64,
}

/// An open database.
struct Open {
    db: Database,
    keyspaces: [Keyspace; 2],
}

fn key(n: usize) -> Vec<u8> {
    format!("key {:02}", n % 40).into_bytes()
}

/// Returns a value of `len` bytes that does not shrink to nothing and that a cut would show in.
fn value(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|n| (n / 64 + seed) as u8).collect()
}

/// Options under which the manifest is replaced again and again, too.
fn options(env: Env, segment: u64) -> Options {
    Options {
        log_segment_size: segment,
        manifest_size: 1,
        compression: Compression::Lz4,
        separate_above: Some(48),
        value_file_size: 8 << 10,
        ..support::options(env)
    }
}

async fn open(env: &Env, segment: u64) -> Result<Open> {
    let options = options(env.clone(), segment);
    let db = Database::builder(dir()).options(options).open_async().await?;
    let first = db.keyspace_async("k", KeyspaceOptions::default()).await?;
    let second = db.keyspace_async("k/nested", KeyspaceOptions::default()).await?;
    Ok(Open { db, keyspaces: [first, second] })
}

impl Teller {
    async fn open(&self, env: &Env) -> Option<Open> {
        let opened = open(env, self.segment).await;
        opened.map_err(|e| self.met.borrow_mut().openings.push(e)).ok()
    }

    /// Takes in how a write or some maintenance ended.
    fn ended(&self, result: Result<()>) -> bool {
        let done = result.is_ok();
        self.met.borrow_mut().writes.extend(result.err());
        done
    }

    fn wrote(&self, keyspace: usize, key: &[u8], value: Option<Vec<u8>>, result: Result<()>) {
        let done = self.ended(result);
        self.met.borrow_mut().known.models[keyspace].wrote(key, value, done);
    }

    async fn insert(&self, at: &Open, key: &[u8], value: Vec<u8>) {
        let result = at.keyspaces[0].insert_async(key, &value, SYNCED).await;
        self.wrote(0, key, Some(value), result);
    }

    async fn remove(&self, at: &Open, key: &[u8]) {
        let result = at.keyspaces[0].remove_async(key, SYNCED).await;
        self.wrote(0, key, None, result);
    }

    async fn remove_range(&self, at: &Open, start: &[u8], end: &[u8]) {
        let done = self.ended(at.keyspaces[0].remove_range_async(start..end, SYNCED).await);
        self.met.borrow_mut().known.models[0].removed(start, end, done);
    }

    /// Inserts a key that lives for an hour, and one that is dead before anybody looks.
    async fn insert_expiring(&self, env: &Env, at: &Open, n: usize) {
        let ks = &at.keyspaces[0];
        let lives = ks.insert_for_async("lives", [n as u8; 300], HOUR, SYNCED).await;
        self.wrote(0, b"lives", Some(vec![n as u8; 300]), lives);
        let dies = ks.insert_for_async("dies", "soon", Duration::from_millis(1), SYNCED).await;
        env.clock.sleep(Duration::from_millis(2)).await;
        self.wrote(0, b"dies", None, dies);
    }

    /// Writes both keyspaces in one batch.
    async fn write_pair(&self, at: &Open, n: usize) {
        let mut batch = Batch::new();
        for (keyspace, key) in at.keyspaces.iter().zip(PAIR) {
            batch.insert(keyspace, key, &[n as u8; 200]);
        }
        let done = self.ended(at.db.write_async(batch, SYNCED).await);
        for (model, key) in self.met.borrow_mut().known.models.iter_mut().zip(PAIR) {
            model.wrote(key, Some(vec![n as u8; 200]), done);
        }
    }

    /// Creates a keyspace, writes to it and drops it.
    async fn create_and_drop(&self, at: &Open, name: &str) {
        let made = at.db.keyspace_async(name, KeyspaceOptions::default()).await;
        let Ok(made) = made.map_err(|e| self.ended(Err(e))) else { return };
        self.ended(made.insert_async("x", "y", SYNCED).await);
        let dropped = self.ended(at.db.drop_keyspace_async(name).await);
        self.met.borrow_mut().known.dropped.insert(name.to_owned(), dropped);
    }

    /// Reads some keys, alone and in scans in both directions.
    async fn read(&self, at: &Open, from: usize) {
        let names = (from..40).step_by(9).map(key).chain([b"lives".to_vec(), b"long".to_vec()]);
        for key in names {
            match at.keyspaces[0].get_async(&key).await {
                Ok(found) => {
                    let allowed = self.met.borrow().known.models[0].allows(&key, found.as_deref());
                    assert!(allowed, "get {key:?}: {:?}", found.map(|v| v.first().copied()));
                }
                Err(e) => self.met.borrow_mut().reads.push(e),
            }
        }
        let snapshot = at.db.snapshot();
        let first = snapshot.get_async(&at.keyspaces[0], PAIR[0]).await;
        let second = snapshot.get_async(&at.keyspaces[1], PAIR[1]).await;
        match (first, second) {
            (Ok(first), Ok(second)) => {
                assert_eq!(first.as_deref(), second.as_deref(), "a batch is whole or not at all");
            }
            (first, second) => {
                self.met.borrow_mut().reads.extend(first.err().into_iter().chain(second.err()));
            }
        }
        for backward in [false, true] {
            let mut cursor = at.keyspaces[0].cursor::<&[u8]>(..);
            loop {
                let next = if backward { cursor.next_back().await } else { cursor.next().await };
                match next {
                    Ok(None) => break,
                    Ok(Some(guard)) => match guard.value_async().await {
                        Ok(value) => {
                            let met = self.met.borrow();
                            assert!(met.known.models[0].allows(guard.key(), Some(&value)));
                        }
                        Err(e) => self.met.borrow_mut().reads.push(e),
                    },
                    Err(e) => {
                        self.met.borrow_mut().reads.push(e);
                        break;
                    }
                }
            }
        }
    }
}

/// Every kind of small write, with reads, flushes, a compaction, and a second opening.
fn life<'n>(node: &'n Node, teller: &'n Teller) -> Telling<'n> {
    Box::pin(async move {
        let env = node.env();
        let Some(mut at) = teller.open(&env).await else { return };
        for round in 0..4 {
            for n in 0..8 {
                let value = value(round * 16 + n, 900);
                teller.insert(&at, &key(n * 7 + round * 3), value).await;
            }
            teller.remove(&at, &key(round * 5)).await;
            teller.write_pair(&at, round).await;
            match round {
                0 => teller.create_and_drop(&at, "gone").await,
                1 => teller.remove_range(&at, &key(10), &key(14)).await,
                2 => teller.insert_expiring(&env, &at, round).await,
                _ => {
                    teller.ended(at.db.close_async().await);
                    let Some(again) = teller.open(&env).await else { return };
                    at = again;
                }
            }
            teller.ended(at.db.flush_async().await);
            teller.read(&at, round).await;
        }
        teller.ended(at.db.compact_async().await);
        teller.read(&at, 0).await;
        teller.ended(at.db.close_async().await);
    })
}

/// A value in chunks, which is longer than a memtable, overwritten and merged.
fn long<'n>(node: &'n Node, teller: &'n Teller) -> Telling<'n> {
    Box::pin(async move {
        let Some(at) = teller.open(&node.env()).await else { return };
        teller.insert(&at, b"long", value(1, (1 << 20) + 9)).await;
        teller.read(&at, 0).await;
        teller.insert(&at, b"long", b"short".to_vec()).await;
        teller.insert(&at, b"long", value(2, (1 << 20) + 77)).await;
        teller.ended(at.db.compact_async().await);
        teller.read(&at, 0).await;
        teller.ended(at.db.close_async().await);
    })
}

/// An opening that fails, and the next one, in the same process, that must not.
fn opening<'n>(node: &'n Node, teller: &'n Teller) -> Telling<'n> {
    Box::pin(async move {
        let env = node.env();
        // The directory was filled in another run: its clock was ahead.
        env.clock.sleep(Duration::from_secs(10)).await;
        let mut opened = teller.open(&env).await;
        node.disk().clear_faults();
        if opened.is_none() {
            opened = Some(open(&env, teller.segment).await.unwrap());
        }
        let Some(at) = opened else { return };
        teller.read(&at, 0).await;
        teller.insert(&at, b"after", b"the opening".to_vec()).await;
    })
}

/// Returns a disk after a process died on it that left work for a recovery: tables in two levels,
/// a log with short and long entries behind them and a torn end, dropped keyspaces, a replaced
/// manifest with a torn end.
fn filled(segment: u64) -> (DiskSnapshot, Known) {
    // How far flushes come until the process dies is the seed's affair.
    let filled = (0..50).find_map(|seed| fill(seed, segment));
    filled.expect("a seed in which the long value is not flushed yet")
}

/// Fills a disk, unless the long value is in a table in the end.
fn fill(seed: u64, segment: u64) -> Option<(DiskSnapshot, Known)> {
    let sim = Sim::new(seed);
    let node = sim.node("a");
    let teller = Teller { met: RefCell::default(), segment };
    run(&sim, &node, "filling", async {
        let env = node.env();
        let at = teller.open(&env).await.unwrap();
        for round in 0..3 {
            for n in 0..12 {
                teller.insert(&at, &key(n * 7 + round * 3), value(round * 16 + n, 900)).await;
            }
            teller.create_and_drop(&at, &format!("gone/{round}")).await;
            teller.write_pair(&at, round).await;
            if round < 2 {
                teller.ended(at.db.compact_async().await);
            }
        }
        teller.insert_expiring(&env, &at, 7).await;
        teller.remove_range(&at, &key(10), &key(14)).await;
        teller.write_pair(&at, 9).await;
        teller.insert(&at, b"long", value(3, (1 << 20) + 5)).await;
        // What a power cut leaves of these is up to it.
        for n in 0..6 {
            let value = value(90 + n, 2000);
            at.keyspaces[0].insert_async(key(n), &value, BUFFERED).await.unwrap();
            teller.met.borrow_mut().known.models[0].wrote(&key(n), Some(value), false);
        }
    });
    let met = teller.met.into_inner();
    assert!(met.writes.is_empty() && met.openings.is_empty());
    node.crash_with(CrashMode::Random);
    let in_log = node.disk().files().iter().filter(|path| path.ends_with(".log")).count();
    if in_log as u64 * segment <= 1 << 20 {
        return None;
    }
    // Without spares the opening has to take a segment of the log for its own, or make one.
    for spare in node.disk().files().iter().filter(|path| path.ends_with(".spare")) {
        node.disk().remove_file(spare).unwrap();
    }
    // An append to the manifest that was cut short.
    let manifest = dir().join("manifest-000002");
    let torn = [&node.disk().read_file(&manifest).unwrap()[..], b"Edit\0"].concat();
    node.disk().write_file(&manifest, &torn).unwrap();
    Some((node.disk().snapshot(), met.known))
}

// ---- how it fails ----

/// Tells the story under `fault`, heals the disk, restarts the process, cuts the power, and checks
/// everything. Returns what the run met, `None` if the fault did not hit.
///
/// The restart before the power cut matters: what was read after it may be in the page cache only,
/// and is built upon. Where values are long, runs take turns with it.
fn run_under(story: &Story, fault: &Fault, what: &str) -> Option<Met> {
    let sim = Sim::new(7);
    let node = sim.node("a");
    let teller = Teller { met: RefCell::default(), segment: story.segment };
    if let Some((disk, known)) = &story.begin {
        node.disk().restore(disk);
        teller.met.borrow_mut().known = known.clone();
    }
    node.disk().inject(fault.clone());
    run(&sim, &node, what, (story.tell)(&node, &teller));
    let met = teller.met.into_inner();
    if node.disk().fault_hits() == 0 {
        assert!(met.writes.is_empty() && met.reads.is_empty() && met.openings.is_empty());
        return None;
    }
    for e in met.reads.iter().chain(&met.writes).chain(&met.openings) {
        assert!(!e.is_corruption(), "{what}: nothing is corrupt, but {e}");
    }
    node.disk().clear_faults();
    let at_the_end = node.disk().snapshot();
    let ends = [&[CrashMode::DropAll][..], &[CrashMode::KeepAll, CrashMode::DropAll]];
    for (n, crashes) in (0..).zip(ends) {
        if story.takes_turns && n != fault.skip % 2 {
            continue;
        }
        node.disk().restore(&at_the_end);
        for &crash in crashes {
            node.crash_with(crash);
            node.restart();
            run(&sim, &node, what, check(&node.env(), story.segment, &met.known, what));
        }
    }
    Some(met)
}

/// Opens the database and checks that what is known describes it, that it takes writes, and that
/// its files are sound.
async fn check(env: &Env, segment: u64, known: &Known, what: &str) {
    let opened = open(env, segment).await;
    let Open { db, keyspaces } = opened.unwrap_or_else(|e| panic!("{what}: opening again: {e}"));
    for (name, certain) in &known.dropped {
        let found = db.find_keyspace(name);
        assert!(!certain || found.is_none(), "{what}: keyspace '{name}' was dropped");
        if found.is_none() {
            let again = db.keyspace_async(name, KeyspaceOptions::default()).await.unwrap();
            assert_eq!(again.get_async("x").await.unwrap(), None, "{what}: a key resurrects");
            db.drop_keyspace_async(name).await.unwrap();
        }
    }
    for (model, keyspace) in known.models.iter().zip(&keyspaces) {
        model.check(keyspace).await.unwrap_or_else(|e| panic!("{what}: {e}"));
    }
    let [first, second] = &keyspaces;
    let pair = (first.get_async(PAIR[0]).await.unwrap(), second.get_async(PAIR[1]).await.unwrap());
    assert_eq!(pair.0.as_deref(), pair.1.as_deref(), "{what}: a batch is whole or not at all");
    first.insert_async("later", "value", SYNCED).await.unwrap();
    db.compact_async().await.unwrap();
    assert_eq!(first.get_async("later").await.unwrap().as_deref(), Some(&b"value"[..]));
    first.remove_async("later", SYNCED).await.unwrap();
    for (model, keyspace) in known.models.iter().zip(&keyspaces) {
        let checked = model.check(keyspace).await;
        checked.unwrap_or_else(|e| panic!("{what}, after a compaction: {e}"));
    }
    drop(keyspaces);
    db.close_async().await.unwrap();
    let report = verify_async(env, &dir(), &mut |_| {}).await.unwrap();
    assert!(report.is_sound(), "{what}: {:?}", report.problems);
}

/// Lets every operation that `fault` can touch fail in turn, once and for ever.
fn fail_each(story: &Story, fault: Fault, mut judge: impl FnMut(&Met, bool, &str)) {
    for sticky in [false, true] {
        let mut hits = 0;
        for n in 0.. {
            let fault = Fault { sticky, ..fault.clone() }.skip(n);
            let Fault { kind, op, .. } = fault;
            let what = format!("call {n} of {op:?} fails with {kind:?}, for ever: {sticky}");
            let Some(met) = run_under(story, &fault, &what) else { break };
            judge(&met, sticky, &what);
            hits += 1;
        }
        assert!(hits > 0, "the story has no {:?}", fault.op);
    }
}

fn story_of_life() -> Story {
    Story { begin: None, segment: 64 << 10, takes_turns: false, tell: life }
}

fn story_of_long_values() -> Story {
    Story { begin: None, segment: 512 << 10, takes_turns: true, tell: long }
}

fn story_of_opening() -> Story {
    let begin = Some(filled(256 << 10));
    Story { begin, segment: 256 << 10, takes_turns: true, tell: opening }
}

fn stopped(met: &Met) -> bool {
    met.writes.iter().any(|e| matches!(e, Error::Stopped(_)))
}

fn reads_go_on(met: &Met, _sticky: bool, what: &str) {
    assert!(met.reads.is_empty(), "{what}: reads go on, but {:?}", met.reads);
}

fn only_the_opening_fails(met: &Met, _sticky: bool, what: &str) {
    assert!(met.writes.is_empty() && met.reads.is_empty(), "{what}: {:?}", met.writes);
}

// ---- life ----

#[test]
fn the_stories_reach_every_site_of_the_engine() {
    let mut reached = BTreeMap::new();
    for story in [story_of_life(), story_of_long_values(), story_of_opening()] {
        let sim = Sim::new(7);
        let node = sim.node("a");
        let teller = Teller { met: RefCell::default(), segment: story.segment };
        if let Some((disk, known)) = &story.begin {
            node.disk().restore(disk);
            teller.met.borrow_mut().known = known.clone();
        }
        run(&sim, &node, "a healthy disk", (story.tell)(&node, &teller));
        reached.extend(node.disk().sites());
    }
    for site in [
        "frame write",
        "frame sync",
        "rotation",
        "segment create",
        "segment reuse",
        "log read",
        "log recovery",
        "range delete",
        "flush install",
        "compaction install",
        "manifest swap",
        "table write",
        "table sync",
        "table names",
        "table read",
        "table removal",
        "create",
        "open",
    ] {
        assert!(reached.contains_key(site), "no story reaches '{site}': {reached:?}");
    }
}

#[test]
fn a_failing_read_fails_one_call_and_never_stops_the_store() {
    for op in [OpKind::Read, OpKind::Open, OpKind::Len] {
        fail_each(&story_of_life(), Fault::new(FaultKind::Error).on(op), |met, sticky, what| {
            assert!(!stopped(met), "{what}: {:?}", met.writes);
            let failed = met.reads.len() + met.writes.len() + met.openings.len();
            assert!(sticky || failed <= 1, "{what}: more than one failed");
        });
    }
}

#[test]
fn a_failing_listing_lock_or_directory_fails_the_opening_only() {
    for op in [OpKind::List, OpKind::Lock, OpKind::CreateDir] {
        fail_each(&story_of_life(), Fault::new(FaultKind::Error).on(op), only_the_opening_fails);
    }
}

#[test]
fn a_failing_write_loses_nothing_that_was_acknowledged() {
    for (op, kind) in [
        (OpKind::Write, FaultKind::Error),
        (OpKind::Write, FaultKind::Short),
        (OpKind::Create, FaultKind::Error),
        (OpKind::Rename, FaultKind::Error),
        (OpKind::Remove, FaultKind::Error),
        (OpKind::Allocate, FaultKind::Error),
    ] {
        fail_each(&story_of_life(), Fault::new(kind).on(op), reads_go_on);
    }
}

#[test]
fn a_failing_sync_loses_nothing_that_was_acknowledged() {
    for (op, kind) in [
        (OpKind::Sync, FaultKind::Error),
        // The pages are thrown away, and the next sync reports success.
        (OpKind::Sync, FaultKind::SyncLoses),
        // They are kept and called clean: reads show what a power cut takes.
        (OpKind::Sync, FaultKind::SyncForgets),
        (OpKind::SyncDir, FaultKind::Error),
    ] {
        fail_each(&story_of_life(), Fault::new(kind).on(op), |met, sticky, what| {
            reads_go_on(met, sticky, what);
            // Once stopped, every later write is refused and says so.
            let first = met.writes.iter().position(|e| matches!(e, Error::Stopped(_)));
            let later = met.writes.iter().skip(first.unwrap_or(0));
            if first.is_some() {
                assert!(later.clone().all(|e| matches!(e, Error::Stopped(_))), "{what}");
            }
        });
    }
}

#[test]
fn a_full_disk_at_any_place_loses_nothing() {
    for op in [OpKind::Create, OpKind::Allocate, OpKind::Write, OpKind::Rename, OpKind::Sync] {
        fail_each(&story_of_life(), Fault::new(FaultKind::NoSpace).on(op), reads_go_on);
    }
}

// ---- long values, recovery ----

#[test]
fn a_failure_on_the_way_of_a_value_in_chunks_loses_nothing_and_shows_no_half() {
    let story = story_of_long_values();
    fail_each(&story, Fault::new(FaultKind::Error), |_, _, _| {});
    fail_each(&story, Fault::new(FaultKind::Short).on(OpKind::Write), reads_go_on);
}

#[test]
fn a_failure_during_recovery_fails_the_opening_and_the_next_one_succeeds() {
    let story = story_of_opening();
    fail_each(&story, Fault::new(FaultKind::Error), only_the_opening_fails);
    for (op, kind) in [
        (OpKind::Write, FaultKind::Short),
        (OpKind::Write, FaultKind::NoSpace),
        (OpKind::Create, FaultKind::NoSpace),
        (OpKind::Sync, FaultKind::SyncLoses),
        (OpKind::Sync, FaultKind::SyncForgets),
    ] {
        fail_each(&story, Fault::new(kind).on(op), only_the_opening_fails);
    }
}
