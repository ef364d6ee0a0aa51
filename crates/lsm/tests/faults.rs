//! A disk that fails for a while, at one site: the store says why, goes on reading, and resumes.
//!
//! That it does so wherever a call fails is for `nth_failure.rs` to show.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic too")]

#[expect(dead_code, reason = "this file removes no ranges")]
mod support;

use std::time::Duration;

use atoll_env::Env;
use atoll_env::sim::{CrashMode, DiskOptions, Fault, FaultKind, Node, Sim};
use atoll_lsm::{Error, Keyspace, WriteOptions, verify_async};
use support::{Model, dir, open, run};

const SYNCED: WriteOptions = WriteOptions { durability: None };

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
