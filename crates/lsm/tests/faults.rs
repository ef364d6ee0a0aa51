//! A disk that fails: at every call, once and for ever.
//!
//! A fixed script runs in the simulator while its n-th disk operation of some kind fails, for every
//! n. Whatever fails, there is no panic, no hang and no wrong answer, and what was acknowledged is
//! there after the disk is well again and the power was cut.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic too")]

mod support;

use std::cell::RefCell;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::sim::{CrashMode, DiskOptions, Fault, FaultKind, Node, OpKind, Sim};
use atoll_lsm::{Error, Keyspace, Result, WriteOptions, verify_async};
use support::{Model, dir, open, run};

const SYNCED: WriteOptions = WriteOptions { durability: None };

/// What a run met.
#[derive(Default)]
struct Met {
    model: Model,
    /// Failures of writes and of maintenance, in order.
    writes: Vec<Error>,
    /// Failures of reads.
    reads: Vec<Error>,
    /// Failure of opening.
    opening: Option<Error>,
}

impl Met {
    fn outcome(&mut self, result: Result<()>) -> bool {
        let done = result.is_ok();
        self.writes.extend(result.err());
        done
    }
}

fn key(n: usize) -> Vec<u8> {
    format!("key {:02}", n % 40).into_bytes()
}

/// Inserts, overwrites, removes, reads, flushes and compacts.
async fn script(env: &Env, met: &RefCell<Met>) {
    let opened = open(env).await;
    let (db, ks) = match opened {
        Ok(opened) => opened,
        Err(e) => {
            met.borrow_mut().opening = Some(e);
            return;
        }
    };
    for round in 0..6 {
        for n in 0..12 {
            let (key, value) = (key(n * 7 + round * 3), vec![(round * 16 + n) as u8; 700]);
            let done = ks.insert_async(&key, &value, SYNCED).await;
            let mut met = met.borrow_mut();
            let done = met.outcome(done);
            met.model.wrote(&key, Some(value), done);
        }
        let gone = key(round * 5);
        let done = ks.remove_async(&gone, SYNCED).await;
        let done = met.borrow_mut().outcome(done);
        met.borrow_mut().model.wrote(&gone, None, done);
        if round % 3 == 1 {
            let (start, end) = (key(10), key(14));
            let done = ks.remove_range_async(&start[..]..&end[..], SYNCED).await;
            let done = met.borrow_mut().outcome(done);
            met.borrow_mut().model.removed(&start, &end, done);
        }
        let done = db.flush_async().await;
        met.borrow_mut().outcome(done);
        read(&ks, met, round).await;
    }
    let done = db.compact_async().await;
    met.borrow_mut().outcome(done);
    read(&ks, met, 0).await;
    let done = db.close_async().await;
    met.borrow_mut().outcome(done);
}

/// Reads some keys, alone and in a scan.
async fn read(ks: &Keyspace, met: &RefCell<Met>, from: usize) {
    for n in (from..40).step_by(9) {
        match ks.get_async(key(n)).await {
            Ok(found) => {
                let allowed = met.borrow().model.allows(&key(n), found.as_deref());
                assert!(allowed, "get {n}: {:?}", found.map(|v| v.first().copied()));
            }
            Err(e) => met.borrow_mut().reads.push(e),
        }
    }
    let mut cursor = ks.cursor::<&[u8]>(..);
    loop {
        match cursor.next().await {
            Ok(None) => break,
            Ok(Some(guard)) => match guard.value_async().await {
                Ok(value) => assert!(met.borrow().model.allows(guard.key(), Some(&value))),
                Err(e) => met.borrow_mut().reads.push(e),
            },
            Err(e) => {
                met.borrow_mut().reads.push(e);
                break;
            }
        }
    }
}

/// Runs the script under `fault`, heals the disk, restarts the process, cuts the power, and checks
/// everything. Returns what the run met, `None` if the fault did not hit.
///
/// The restart before the power cut matters: what was read after it may be in the page cache only,
/// and is built upon.
fn run_under(fault: &Fault, what: &str) -> Option<Met> {
    let sim = Sim::new(7);
    let node = sim.node("a");
    let met = RefCell::new(Met::default());
    node.disk().inject(fault.clone());
    run(&sim, &node, what, script(&node.env(), &met));
    let met = met.into_inner();
    if node.disk().fault_hits() == 0 {
        assert!(met.writes.is_empty() && met.reads.is_empty() && met.opening.is_none());
        return None;
    }
    for e in met.reads.iter().chain(&met.writes).chain(&met.opening) {
        assert!(!e.is_corruption(), "{what}: nothing is corrupt, but {e}");
    }
    node.disk().clear_faults();
    let at_the_end = node.disk().snapshot();
    for crashes in [&[CrashMode::DropAll][..], &[CrashMode::KeepAll, CrashMode::DropAll]] {
        node.disk().restore(&at_the_end);
        for &crash in crashes {
            node.crash_with(crash);
            node.restart();
            run(&sim, &node, what, check(&node.env(), &met.model, what));
        }
    }
    Some(met)
}

/// Opens the database and checks that the model describes it, that it takes writes, and that its
/// files are sound.
async fn check(env: &Env, model: &Model, what: &str) {
    let (db, ks) = open(env).await.unwrap_or_else(|e| panic!("{what}: opening again: {e}"));
    model.check(&ks).await.unwrap_or_else(|e| panic!("{what}: {e}"));
    ks.insert_async("later", "value", SYNCED).await.unwrap();
    db.compact_async().await.unwrap();
    assert_eq!(ks.get_async("later").await.unwrap().as_deref(), Some(&b"value"[..]));
    ks.remove_async("later", SYNCED).await.unwrap();
    model.check(&ks).await.unwrap_or_else(|e| panic!("{what}, after a compaction: {e}"));
    drop(ks);
    db.close_async().await.unwrap();
    let report = verify_async(env, &dir(), &mut |_| {}).await.unwrap();
    assert!(report.is_sound(), "{what}: {:?}", report.problems);
}

/// Lets every operation of one kind fail in turn.
fn fail_each(op: OpKind, kind: FaultKind, mut judge: impl FnMut(&Met, bool, &str)) {
    for (sticky, stride) in [(false, 1), (true, 5)] {
        let mut hits = 0;
        for n in (0..).step_by(stride) {
            let what = format!("{op:?} {n} fails with {kind:?}, for ever: {sticky}");
            let fault = Fault { sticky, ..Fault::new(kind).on(op).skip(n) };
            let Some(met) = run_under(&fault, &what) else { break };
            judge(&met, sticky, &what);
            hits += 1;
        }
        assert!(hits > 0, "the script has no {op:?}");
    }
}

fn stopped(met: &Met) -> bool {
    met.writes.iter().any(|e| matches!(e, Error::Stopped(_)))
}

#[test]
fn a_failing_read_fails_one_call_and_never_stops_the_store() {
    for op in [OpKind::Read, OpKind::Open, OpKind::Len] {
        fail_each(op, FaultKind::Error, |met, sticky, what| {
            assert!(!stopped(met), "{what}: {:?}", met.writes);
            if !sticky {
                assert!(met.reads.len() + met.writes.len() <= 1, "{what}: more than one failed");
            }
        });
    }
}

#[test]
fn a_failing_listing_lock_or_directory_fails_the_opening_only() {
    for op in [OpKind::List, OpKind::Lock, OpKind::CreateDir] {
        fail_each(op, FaultKind::Error, |met, _, what| {
            assert!(met.writes.is_empty() && met.reads.is_empty(), "{what}: {:?}", met.writes);
        });
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
        fail_each(op, kind, |met, _, what| {
            assert!(met.reads.is_empty(), "{what}: reads go on, but {:?}", met.reads);
        });
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
        fail_each(op, kind, |met, _, what| {
            assert!(met.reads.is_empty(), "{what}: reads go on, but {:?}", met.reads);
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
        fail_each(op, FaultKind::NoSpace, |met, _, what| {
            assert!(met.reads.is_empty(), "{what}: reads go on, but {:?}", met.reads);
        });
    }
}

#[test]
fn a_failed_sync_of_the_log_stops_the_store_and_says_so() {
    let sim = Sim::new(1);
    let node = sim.node("a");
    run(&sim, &node, "stop", async {
        let (db, ks) = open(&node.env()).await.unwrap();
        ks.insert_async("a", "1", SYNCED).await.unwrap();
        node.disk().inject(Fault::new(FaultKind::SyncLoses).site("frame sync"));
        let failed = ks.insert_async("b", "2", SYNCED).await.unwrap_err();
        let later = ks.insert_async("c", "3", SYNCED).await.unwrap_err();
        for e in [failed, later, db.flush_async().await.unwrap_err()] {
            assert!(matches!(e, Error::Stopped(_)), "{e}");
            assert!(e.to_string().contains("syncing") && e.to_string().contains(".log"), "{e}");
        }
        assert_eq!(ks.get_async("a").await.unwrap().as_deref(), Some(&b"1"[..]), "reads go on");
        assert!(db.stats().refusal.is_some());
    });
    // The process ends; the kernel still shows the lost frame until the power is cut.
    node.crash_with(CrashMode::KeepAll);
    node.restart();
    run(&sim, &node, "go on", async {
        let (_, ks) = open(&node.env()).await.unwrap();
        assert_eq!(ks.get_async("a").await.unwrap().as_deref(), Some(&b"1"[..]));
        ks.insert_async("d", "4", SYNCED).await.unwrap();
    });
    node.crash_with(CrashMode::DropAll);
    node.restart();
    run(&sim, &node, "check", async {
        let (_, ks) = open(&node.env()).await.unwrap();
        assert_eq!(ks.get_async("a").await.unwrap().as_deref(), Some(&b"1"[..]));
        assert_eq!(ks.get_async("d").await.unwrap().as_deref(), Some(&b"4"[..]));
        assert_eq!(ks.get_async("c").await.unwrap(), None, "it was refused");
    });
}

/// Writes until the disk is full; returns what was acknowledged, and the refusal.
async fn fill(ks: &Keyspace, model: &mut Model) -> Error {
    for n in 0.. {
        let (key, value) = (format!("{n:05}").into_bytes(), vec![n as u8; 900]);
        match ks.insert_async(&key, &value, SYNCED).await {
            Ok(()) => model.wrote(&key, Some(value), true),
            Err(e) => return e,
        }
    }
    unreachable!("the disk is bounded")
}

#[test]
fn a_full_disk_makes_the_store_read_only_until_space_returns() {
    for extra in (64u64..640).step_by(37) {
        let sim = Sim::new(extra);
        let node = sim.node("a");
        let what = format!("{extra} KiB");
        let set_capacity = |capacity: Option<u64>| {
            node.disk().set_options(DiskOptions { capacity, ..DiskOptions::default() });
        };
        let mut model = Model::default();
        run(&sim, &node, &what, async {
            let env = node.env();
            let (db, ks) = open(&env).await.unwrap();
            set_capacity(Some(node.disk().space() + (extra << 10)));
            let refusal = fill(&ks, &mut model).await;
            assert!(matches!(refusal, Error::NoSpace(_)), "{what}: {refusal}");
            model.check(&ks).await.unwrap_or_else(|e| panic!("{what}: reads go on, but {e}"));
            env.clock.sleep(Duration::from_secs(20)).await;
            set_capacity(None);
            env.clock.sleep(Duration::from_secs(3)).await;
            let resumed = ks.insert_async("after", "space returned", SYNCED).await;
            resumed.unwrap_or_else(|e| panic!("{what}: it does not resume: {e}"));
            model.wrote(b"after", Some(b"space returned".to_vec()), true);
            db.compact_async().await.unwrap();
            model.check(&ks).await.unwrap_or_else(|e| panic!("{what}: {e}"));
        });
        node.crash_with(CrashMode::DropAll);
        node.restart();
        run(&sim, &node, &what, check(&node.env(), &model, &what));
    }
}

/// Fails `site` for ever and writes much; then heals it, without reopening.
fn outlasts(site: &'static str, kind: FaultKind, reads_go_on: bool) -> Vec<Error> {
    let sim = Sim::new(3);
    let node: Node = sim.node("a");
    let mut model = Model::default();
    let mut failures = Vec::new();
    run(&sim, &node, site, async {
        let env = node.env();
        let (db, ks) = open(&env).await.unwrap();
        for n in 0..200u32 {
            if n == 60 {
                node.disk().inject(Fault::new(kind).site(site).sticky());
            }
            let (key, value) = (format!("{:03}", n * 7 % 80).into_bytes(), vec![n as u8; 700]);
            let done = ks.insert_async(&key, &value, SYNCED).await;
            model.wrote(&key, Some(value), done.is_ok());
            failures.extend(done.err());
        }
        assert!(node.disk().fault_hits() > 0, "{site} was never reached");
        env.clock.sleep(Duration::from_secs(10)).await;
        if reads_go_on {
            model.check(&ks).await.unwrap_or_else(|e| panic!("{site}: {e}"));
        }
        node.disk().clear_faults();
        env.clock.sleep(Duration::from_secs(5)).await;
        ks.insert_async("after", "all", SYNCED).await.unwrap_or_else(|e| panic!("{site}: {e}"));
        db.flush_async().await.unwrap_or_else(|e| panic!("{site}: {e}"));
        model.wrote(b"after", Some(b"all".to_vec()), true);
        model.check(&ks).await.unwrap_or_else(|e| panic!("{site}: {e}"));
        assert_eq!(db.stats().quarantined, 0, "nothing was corrupt");
    });
    node.crash_with(CrashMode::DropAll);
    node.restart();
    run(&sim, &node, site, check(&node.env(), &model, site));
    failures
}

#[test]
fn a_table_that_cannot_be_written_is_tried_again_and_the_store_goes_on() {
    for site in ["table write", "table sync", "table names"] {
        let failures = outlasts(site, FaultKind::Error, true);
        assert!(failures.iter().all(|e| matches!(e, Error::Io { .. })), "{site}: {failures:?}");
        assert!(!failures.is_empty(), "{site}: memory is not endless");
    }
}

#[test]
fn a_table_that_cannot_be_read_is_tried_again_and_the_store_goes_on() {
    let failures = outlasts("table read", FaultKind::Error, false);
    assert!(failures.is_empty(), "writes do not read: {failures:?}");
}

#[test]
fn space_that_lacks_for_tables_segments_or_the_manifest_is_waited_for() {
    for site in ["table write", "segment create", "flush install", "compaction install"] {
        let failures = outlasts(site, FaultKind::NoSpace, true);
        assert!(failures.iter().all(|e| matches!(e, Error::NoSpace(_))), "{site}: {failures:?}");
    }
}
