//! Memory stays in its budget, whatever is written: memtables, block and record cache together.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic too")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use atoll_env::random::Prng;
use atoll_env::sim::{DiskOptions, Sim};
use atoll_env::sync::{Either, select_biased};
use atoll_lsm::{
    Batch, Compression, Database, Durability, Error, Keyspace, KeyspaceOptions, Options,
    PoolStrategy, ValuePlacement, WriteOptions,
};

const MEMORY: usize = 8 << 20;

/// Opens a database with the usual proportions in a small budget.
async fn open(env: atoll_env::Env) -> (Database, Keyspace) {
    open_with(env, PoolStrategy::default()).await
}

async fn open_with(env: atoll_env::Env, pool: PoolStrategy) -> (Database, Keyspace) {
    let options = Options {
        // It is the cache of blocks that is to be filled.
        separate_above: None,
        memory: MEMORY,
        pool,
        durability: Durability::Buffered,
        compression: Compression::None,
        ..Options::new(env)
    };
    let db = Database::builder("/data/db").options(options).open_async().await.unwrap();
    let ks = db.keyspace_async("k", KeyspaceOptions::default()).await.unwrap();
    (db, ks)
}

/// Runs `future` in the simulator; what takes longer than an hour hangs.
fn run<T>(seed: u64, future: impl AsyncFnOnce(atoll_env::Env) -> T) -> T {
    let sim = Sim::new(seed);
    let node = sim.node("a");
    let env = node.env();
    let limit = env.clock.sleep(Duration::from_secs(3600));
    match sim.block_on(&node, select_biased(Box::pin(future(env)), limit)).done() {
        Either::Left(output) => output,
        Either::Right(()) => panic!("seed {seed}: no end after an hour"),
    }
}

fn held(db: &Database) -> u64 {
    let stats = db.stats();
    stats.memtable_bytes + stats.cache.bytes + stats.records.bytes
}

/// Returns what caches may hold, however it is divided.
fn capacity(db: &Database) -> u64 {
    let stats = db.stats();
    stats.cache.capacity + stats.records.capacity
}

/// Returns a batch of about `bytes` in memory, of records of one size.
fn batch(ks: &Keyspace, bytes: usize, value_len: usize, first: usize) -> Batch {
    let mut batch = Batch::new();
    // A record takes up to 144 bytes of a memtable beside its key and value.
    for n in 0..bytes / (value_len + 12 + 144) {
        batch.insert(ks, format!("{:08}", first + n).as_bytes(), &vec![n as u8; value_len]);
    }
    batch
}

/// Fills the cache with blocks.
async fn warm(db: &Database, ks: &Keyspace) {
    for n in 0..16 {
        let batch = batch(ks, 512 << 10, 1000, n * 1000);
        db.write_async(batch, WriteOptions::default()).await.unwrap();
    }
    db.flush_async().await.unwrap();
    for _ in 0..2 {
        let mut cursor = ks.cursor::<&[u8]>(..);
        while let Some(guard) = cursor.next().await.unwrap() {
            guard.value_async().await.unwrap();
        }
    }
    for n in (0..16_000).chain(0..16_000) {
        ks.get_async(format!("{n:08}")).await.unwrap();
    }
    let records = db.stats().records;
    assert!(records.bytes > records.capacity / 2, "{records:?}");
    assert!(db.stats().cache.bytes > MEMORY as u64 / 2, "{:?}", db.stats().cache);
}

#[test]
fn memtables_and_cache_stay_in_the_budget_whatever_the_batches() {
    for seed in 0..6 {
        let pool = PoolStrategy::ALL[seed as usize % PoolStrategy::ALL.len()];
        run(seed, async |env| {
            let (db, ks) = open_with(env.clone(), pool).await;
            assert_eq!(db.stats().pool.strategy, pool.name());
            warm(&db, &ks).await;
            let usual = capacity(&db);
            let (running, peak) = (Arc::new(AtomicUsize::new(4)), Arc::new(AtomicUsize::new(0)));
            for writer in 0..4 {
                let (db, ks, running, peak) =
                    (db.clone(), ks.clone(), running.clone(), peak.clone());
                let mut prng = Prng::new(seed * 10 + writer);
                let task = async move {
                    for _ in 0..12 {
                        let most = MEMORY / 5 * 4;
                        let bytes = prng.range(1000..most as u64) as usize >> prng.range(0..9);
                        let value_len = [0, 100, 30_000][prng.index(3)];
                        let batch = batch(&ks, bytes.min(MEMORY / 2), value_len, prng.index(9000));
                        db.write_async(batch, WriteOptions::default()).await.unwrap();
                        peak.fetch_max(held(&db) as usize, Ordering::Relaxed);
                    }
                    running.fetch_sub(1, Ordering::Relaxed);
                };
                env.tasks.spawn("writer", Box::pin(task));
            }
            while running.load(Ordering::Relaxed) > 0 {
                env.clock.sleep(Duration::from_micros(200)).await;
                let key = format!("{:08}", 37 * running.load(Ordering::Relaxed));
                ks.get_async(key).await.unwrap();
                peak.fetch_max(held(&db) as usize, Ordering::Relaxed);
            }
            let peak = peak.load(Ordering::Relaxed);
            assert!(peak <= MEMORY, "seed {seed}, {pool:?}: {peak} of {MEMORY} bytes");
            assert!(peak > MEMORY * 3 / 4, "seed {seed}: {peak} bytes are no test");
            db.flush_async().await.unwrap();
            assert_eq!(capacity(&db), usual, "seed {seed}: the cache grows again");
            db.close_async().await.unwrap();
        });
    }
}

#[test]
fn a_seed_names_one_execution_with_every_strategy() {
    for pool in PoolStrategy::ALL {
        let story = || {
            run(7, async |env| {
                let (db, ks) = open_with(env.clone(), pool).await;
                warm(&db, &ks).await;
                for n in 0..3000_usize {
                    ks.get_async(format!("{:08}", n * 7919 % 8000)).await.unwrap();
                }
                let stats = db.stats();
                let took = env.clock.now();
                db.close_async().await.unwrap();
                (stats.cache, took)
            })
        };
        let (first, again) = (story(), story());
        assert_eq!(first, again, "{pool:?}");
        assert!(first.0.hits > 1000 && first.0.misses > 1000, "{pool:?} {:?}", first.0);
    }
}

#[test]
fn a_batch_larger_than_the_rest_waits_for_others_and_never_for_itself() {
    run(9, async |env| {
        let (db, ks) = open(env.clone()).await;
        warm(&db, &ks).await;
        for round in 0..3 {
            // What is in the active memtable is in its way, and nobody else would seal it.
            ks.insert_async("small", "value", WriteOptions::default()).await.unwrap();
            // What a reader holds is not waited for.
            let cursor = ks.cursor::<&[u8]>(..);
            let large = batch(&ks, MEMORY / 4 * 3, 0, round);
            db.write_async(large, WriteOptions::default()).await.unwrap();
            assert!(held(&db) <= MEMORY as u64, "{}", held(&db));
            drop(cursor);
        }
        assert_eq!(ks.get_async("small").await.unwrap().as_deref(), Some(&b"value"[..]));
        db.close_async().await.unwrap();
    });
}

#[test]
fn a_memtable_that_a_reader_holds_makes_the_cache_smaller() {
    run(3, async |env| {
        let (db, ks) = open(env.clone()).await;
        warm(&db, &ks).await;
        let usual = capacity(&db);
        let large = batch(&ks, MEMORY / 2, 30_000, 0);
        db.write_async(large, WriteOptions::default()).await.unwrap();
        let cursor = ks.cursor::<&[u8]>(..);
        db.flush_async().await.unwrap();
        env.clock.sleep(Duration::from_secs(2)).await;
        let held = db.stats();
        assert!(held.memtable_bytes > MEMORY as u64 / 3, "the cursor holds it");
        let caches = held.cache.capacity + held.records.capacity;
        assert!(caches < usual, "{:?}", held.cache);
        assert!(held.memtable_bytes + caches <= MEMORY as u64);
        drop(cursor);
        env.clock.sleep(Duration::from_secs(2)).await;
        assert_eq!(capacity(&db), usual);
        db.close_async().await.unwrap();
    });
}

#[test]
fn a_batch_beyond_the_limit_is_refused_and_named() {
    run(5, async |env| {
        let (db, ks) = open(env.clone()).await;
        let mut too_long = Batch::new();
        too_long.insert(&ks, b"k", &vec![0; MEMORY / 2]);
        let mut too_many = Batch::new();
        for n in 0..MEMORY as u32 / 100 {
            too_many.remove(&ks, &n.to_be_bytes());
        }
        for (batch, what) in [(too_long, "limit is 4194304"), (too_many, "limit is 7340032")] {
            let refusal = db.write_async(batch, WriteOptions::default()).await.unwrap_err();
            assert!(
                matches!(&refusal, Error::InvalidInput(why) if why.contains(what)),
                "{refusal}"
            );
        }
        let mut fits = Batch::new();
        fits.insert(&ks, b"k", &vec![7; MEMORY / 2 - 40]);
        db.write_async(fits, WriteOptions::default()).await.unwrap();
        assert_eq!(ks.get_async("k").await.unwrap().map(|v| v.len()), Some(MEMORY / 2 - 40));
        db.close_async().await.unwrap();
    });
}

/// Opens the database with `memory` for a budget.
async fn open_in(env: &atoll_env::Env, memory: usize) -> (Database, Keyspace) {
    let options = Options {
        memory,
        durability: Durability::Buffered,
        compression: Compression::None,
        ..Options::new(env.clone())
    };
    let db = Database::builder("/data/db").options(options).open_async().await.unwrap();
    let ks = db.keyspace_async("long", KeyspaceOptions::default()).await.unwrap();
    (db, ks)
}

fn long_value(n: usize) -> Vec<u8> {
    vec![n as u8; 3000 + n % 1000]
}

#[test]
fn a_log_longer_than_the_memory_is_flushed_as_it_is_replayed() {
    const COUNT: usize = 5000;
    run(1, async |env| {
        let (db, ks) = open_in(&env, 512 << 20).await;
        for n in 0..COUNT {
            ks.insert_async(format!("{n:05}"), long_value(n), WriteOptions::default())
                .await
                .unwrap();
        }
        // A keyspace that only the log's end knows of: its values are to stay in tables.
        let inline = KeyspaceOptions { values: ValuePlacement::Inline, ..Default::default() };
        let kept = db.keyspace_async("kept", inline.clone()).await.unwrap();
        for n in 0..COUNT {
            let key = format!("{n:05}");
            kept.insert_async(key, long_value(n), WriteOptions::default()).await.unwrap();
        }
        db.sync_async().await.unwrap();
        assert_eq!(db.stats().flushes.count, 0, "all of it is in the log");
        drop((ks, kept, db));
        env.clock.sleep(Duration::from_secs(3)).await;

        let (db, ks) = open_in(&env, MEMORY).await;
        assert!(held(&db) <= MEMORY as u64, "{} of {MEMORY} bytes", held(&db));
        let kept = db.find_keyspace("kept").unwrap();
        assert_eq!(kept.options(), inline);
        for n in 0..COUNT {
            let key = format!("{n:05}");
            assert_eq!(ks.get_async(&key).await.unwrap().as_deref(), Some(&long_value(n)[..]));
            assert_eq!(kept.get_async(&key).await.unwrap().as_deref(), Some(&long_value(n)[..]));
        }
        // The log goes on behind it, and is given back as ever.
        ks.insert_async("more", "later", WriteOptions::default()).await.unwrap();
        db.flush_async().await.unwrap();
        let stats = db.stats();
        assert!((15 << 20..20 << 20).contains(&stats.value_file_bytes), "{stats:?}");
        db.close_async().await.unwrap();
        let (db, ks) = open_in(&env, MEMORY).await;
        assert_eq!(ks.get_async("more").await.unwrap().as_deref(), Some(&b"later"[..]));
        assert_eq!(ks.get_async("04999").await.unwrap().as_deref(), Some(&long_value(4999)[..]));
        db.close_async().await.unwrap();
    });
}

#[test]
fn a_batch_larger_than_all_memtables_and_what_follows_it_are_read_on_a_full_disk() {
    let sim = Sim::new(2);
    let node = sim.node("a");
    sim.block_on(&node, async {
        let env = node.env();
        let (db, ks) = open_in(&env, 512 << 20).await;
        db.flush_async().await.unwrap();
        // It has a memtable of its own, and those of the usual size take less than it together.
        let large = batch(&ks, 6 << 20, 30_000, 0);
        db.write_async(large, WriteOptions::default()).await.unwrap();
        for n in 0..200 {
            let key = format!("{n:05}");
            ks.insert_async(key, long_value(n), WriteOptions::default()).await.unwrap();
        }
        db.sync_async().await.unwrap();
        drop((ks, db));
        env.clock.sleep(Duration::from_secs(3)).await;

        // Room for the log's next segment, and none for a table.
        let capacity = Some(node.disk().space() + (1 << 20) + (64 << 10));
        node.disk().set_options(DiskOptions { capacity, ..node.disk().options() });
        let (db, ks) = open_in(&env, MEMORY).await;
        assert_eq!(db.stats().flushes.count, 0);
        assert_eq!(ks.get_async("00199").await.unwrap().as_deref(), Some(&long_value(199)[..]));
        assert_eq!(
            ks.get_async(format!("{:08}", 100)).await.unwrap().map(|v| v.len()),
            Some(30_000)
        );
        drop((ks, db));
    })
    .done();
}
