//! Work that ends early: a database closed under its users, futures dropped half-way.

#[expect(dead_code, reason = "this file makes no copies")]
mod support;

use std::time::Duration;

use atoll_env::Env;
use atoll_env::sim::{CrashMode, Fault, FaultKind, Node, OpKind, Sim};
use atoll_env::sync::{Either, oneshot, select_biased};
use atoll_lsm::{
    Batch, Database, Durability, Error, Keyspace, KeyspaceOptions, Options, Result, WriteOptions,
};
use support::{Model, dir, open, options, run};

/// Polls `future` for `time` at most and drops it.
async fn for_a_while<T>(env: &Env, time: Duration, future: impl Future<Output = T>) -> Option<T> {
    match select_biased(future, env.clock.sleep(time)).await {
        Either::Left(output) => Some(output),
        Either::Right(()) => None,
    }
}

/// Starts `work` as a task of its own; returns its answer to come.
fn start<T: Send + 'static>(
    env: &Env,
    work: impl Future<Output = T> + Send + 'static,
) -> oneshot::Receiver<T> {
    let (sender, receiver) = oneshot::channel();
    let task = async move {
        let _ = sender.send(work.await);
    };
    env.tasks.spawn("test", Box::pin(task));
    receiver
}

/// Makes flushes slower than writers.
fn slow_tables(node: &Node) {
    node.disk().inject(Fault::new(FaultKind::Slow).on(OpKind::Sync).path("tables/").sticky());
}

/// Writes until it is refused; returns how many writes were acknowledged.
async fn write_on(ks: Keyspace, writer: usize, durability: Durability) -> usize {
    let mut written = 0;
    loop {
        let key = format!("{writer} {written}");
        let options = WriteOptions::durability(durability);
        match ks.insert_async(&key, [7; 900], options).await {
            Ok(()) => written += 1,
            Err(Error::Stopped(_)) => return written,
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn closing_under_writers_that_wait_for_memory_ends_and_keeps_what_was_answered() {
    for seed in 0..24 {
        let sim = Sim::new(seed);
        let node = sim.node("a");
        let env = node.env();
        slow_tables(&node);
        run(&sim, &node, &format!("seed {seed}"), async {
            let (db, ks) = open(&env).await.unwrap();
            let writers: Vec<_> = (0..60)
                .map(|n| start(&env, write_on(ks.clone(), n, Durability::Buffered)))
                .collect();
            env.clock.sleep(Duration::from_millis(100 + 17 * seed)).await;
            db.close_async().await.unwrap();
            let mut written = Vec::new();
            for writer in writers {
                written.push(writer.await.unwrap());
            }
            drop(ks);
            let (db, ks) = open(&env).await.unwrap();
            for (writer, count) in written.into_iter().enumerate() {
                for n in 0..count {
                    let found = ks.get_async(format!("{writer} {n}")).await.unwrap();
                    assert!(found.is_some(), "seed {seed}: writer {writer} lost {n} of {count}");
                }
            }
            db.close_async().await.unwrap();
        });
    }
}

#[test]
fn whoever_waits_for_a_flush_or_a_compaction_is_answered_when_the_database_is_closed() {
    for seed in 0..40 {
        let sim = Sim::new(seed);
        let node = sim.node("a");
        let env = node.env();
        run(&sim, &node, &format!("seed {seed}"), async {
            let (db, ks) = open(&env).await.unwrap();
            for n in 0..30 {
                let options = WriteOptions::durability(Durability::Buffered);
                ks.insert_async(format!("{n}"), [7; 900], options).await.unwrap();
            }
            let (other, third) = (db.clone(), db.clone());
            let pause = |ms| env.clock.sleep(Duration::from_micros(ms));
            let compacting = start(&env, async move { other.compact_async().await });
            pause(seed * 500).await;
            let closing = start(&env, async move { third.close_async().await });
            pause(seed * 50).await;
            let flushing = start(&env, {
                let db = db.clone();
                async move { db.flush_async().await }
            });
            let second = db.close_async().await;
            for answer in [Ok(second), compacting.await, closing.await, flushing.await] {
                let answer = answer.unwrap();
                assert!(matches!(answer, Ok(()) | Err(Error::Stopped(_))), "{answer:?}");
            }
        });
    }
}

#[test]
fn a_flush_is_answered_however_much_others_write() {
    let sim = Sim::new(3);
    let node = sim.node("a");
    let env = node.env();
    slow_tables(&node);
    run(&sim, &node, "flush", async {
        let (db, ks) = open(&env).await.unwrap();
        let writers: Vec<_> =
            (0..12).map(|n| start(&env, write_on(ks.clone(), n, Durability::Buffered))).collect();
        for _ in 0..5 {
            let flushed = for_a_while(&env, Duration::from_secs(5), db.flush_async()).await;
            flushed.expect("a flush waits for what was written before it").unwrap();
        }
        db.close_async().await.unwrap();
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

#[test]
fn a_drop_of_a_keyspace_that_nobody_waits_for_any_more_loses_no_later_write() {
    let sim = Sim::new(5);
    let node = sim.node("a");
    let env = node.env();
    run(&sim, &node, "drop", async {
        let (db, ks) = open(&env).await.unwrap();
        ks.insert_async("early", "1", WriteOptions::default()).await.unwrap();
        let dropped =
            for_a_while(&env, Duration::from_micros(1), db.drop_keyspace_async("k")).await;
        assert!(dropped.is_none(), "the future was to be dropped half-way");
        env.clock.sleep(Duration::from_millis(50)).await;
        let late = ks.insert_async("late", "2", WriteOptions::default()).await;
        let there = db.find_keyspace("k").is_some();
        drop(ks);
        db.close_async().await.unwrap();

        let db = Database::builder(dir()).options(options(env.clone())).open_async().await.unwrap();
        assert_eq!(there, db.find_keyspace("k").is_some(), "a restart changes nothing");
        if late.is_ok() {
            let ks = db.find_keyspace("k").unwrap();
            assert!(ks.get_async("late").await.unwrap().is_some(), "an acknowledged write is lost");
        }
        db.close_async().await.unwrap();
    });
}

#[test]
fn a_cursor_whose_step_was_dropped_half_way_skips_nothing() {
    for micros in (0..3000).step_by(40) {
        let sim = Sim::new(micros);
        let node = sim.node("a");
        let env = node.env();
        run(&sim, &node, "cursor", async {
            let (db, ks) = open(&env).await.unwrap();
            for n in 0..200 {
                let options = WriteOptions::durability(Durability::Buffered);
                ks.insert_async(format!("{n:03}"), [n as u8; 300], options).await.unwrap();
            }
            db.compact_async().await.unwrap();
            drop(ks);
            db.close_async().await.unwrap();
            // Nothing is in the cache.
            let (db, ks) = open(&env).await.unwrap();
            let mut cursor = ks.cursor::<&[u8]>(..);
            let mut seen = 0;
            let time = Duration::from_micros(micros);
            let read = for_a_while(&env, time, async {
                while cursor.next().await.unwrap().is_some() {
                    seen += 1;
                }
            });
            if read.await.is_none() {
                // The step that was dropped may be the next one's, but it is not left out.
                loop {
                    match cursor.next().await {
                        Ok(Some(guard)) => {
                            assert_eq!(guard.key(), format!("{seen:03}").as_bytes());
                            seen += 1;
                        }
                        Ok(None) => break assert_eq!(seen, 200),
                        Err(e) => break assert!(matches!(e, Error::InvalidInput(_)), "{e}"),
                    }
                }
            }
            drop((cursor, ks));
            db.close_async().await.unwrap();
        });
    }
}

#[test]
fn a_deadline_at_the_beginning_of_time_has_passed() {
    let sim = Sim::new(1);
    let node = sim.node("a");
    let env = node.env();
    run(&sim, &node, "deadline", async {
        let (db, ks) = open(&env).await.unwrap();
        let mut batch = Batch::new();
        batch.insert_expiring(&ks, b"short", b"v", 0);
        batch.insert_expiring(&ks, b"long", &vec![1; (1 << 20) + 1], 0);
        db.write_async(batch, WriteOptions::default()).await.unwrap();
        assert!(ks.get_async("short").await.unwrap().is_none());
        assert!(ks.get_async("long").await.unwrap().is_none());
        db.close_async().await.unwrap();
    });
}

#[test]
fn a_batch_whose_records_take_more_memory_than_there_is_is_refused() {
    let sim = Sim::new(1);
    let node = sim.node("a");
    let env = node.env();
    run(&sim, &node, "large batch", async {
        let (db, ks) = open(&env).await.unwrap();
        let mut batch = Batch::new();
        for _ in 0..250_000 {
            batch.remove(&ks, b"");
        }
        assert!(batch.size() < 2 << 20, "its bytes alone would do");
        let written = db.write_async(batch, WriteOptions::default()).await;
        assert!(matches!(written, Err(Error::InvalidInput(_))), "{written:?}");
        db.close_async().await.unwrap();
    });
}

/// Writes and flushes, with a manifest that is replaced often; returns what was acknowledged. Once
/// the first fault has hit, no manifest can be made any more.
async fn flush_often(env: &Env, node: &Node) -> Result<Model> {
    let options = Options { manifest_size: 256, ..options(env.clone()) };
    let db = Database::builder(dir()).options(options).open_async().await?;
    let ks = db.keyspace_async("k", KeyspaceOptions::default()).await?;
    let mut model = Model::default();
    let mut hit = false;
    for n in 0..24u8 {
        let key = format!("key {}", n % 9);
        let written = ks.insert_async(&key, [n; 500], WriteOptions::default()).await;
        model.wrote(key.as_bytes(), Some(vec![n; 500]), written.is_ok());
        if n % 10 == 5 {
            let removed = ks.remove_range_async("key 2".."key 4", WriteOptions::default()).await;
            model.removed(b"key 2", b"key 4", removed.is_ok());
        }
        let _ = db.flush_async().await;
        if !std::mem::replace(&mut hit, node.disk().fault_hits() > 0) && hit {
            let fault = Fault::new(FaultKind::NoSpace).on(OpKind::Create).path("manifest-");
            node.disk().inject(fault.sticky());
        }
        env.clock.sleep(Duration::from_secs(2)).await;
    }
    let _ = db.close_async().await;
    Ok(model)
}

#[test]
fn a_full_disk_while_the_manifest_is_replaced_loses_nothing() {
    let mut hits = 0;
    for op in [OpKind::SyncDir, OpKind::Rename, OpKind::Write, OpKind::Sync] {
        for n in 0..30 {
            let what = format!("{op:?} {n}");
            let sim = Sim::new(n);
            let node = sim.node("a");
            let fault = Fault::new(FaultKind::NoSpace).on(op).path("/data/db").skip(n);
            node.disk().inject(fault.site("manifest swap"));
            let env = node.env();
            let run_on = flush_often(&env, &node);
            let Ok(model) = run(&sim, &node, &what, run_on) else { continue };
            hits += node.disk().fault_hits();
            node.disk().clear_faults();
            node.crash_with(CrashMode::KeepAll);
            node.restart();
            let env = node.env();
            run(&sim, &node, &what, async {
                let (db, ks) = open(&env).await.unwrap_or_else(|e| panic!("{what}: {e}"));
                model.check(&ks).await.unwrap_or_else(|e| panic!("{what}: {e}"));
                db.close_async().await.unwrap();
            });
        }
    }
    assert!(hits > 10, "{hits} faults hit");
}
