//! The record cache never shows what is not so any more, whatever overtakes whom.
//!
//! In builds with the feature `mutants` the same tests are run without one of its rules each, in a process
//! of its own, and must fail: `cargo test -p atoll-lsm --features mutants --test records`.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic too")]

#[expect(dead_code, reason = "the model in it is for other questions")]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use atoll_env::random::Prng;
use atoll_env::sim::{DiskFaults, DiskOptions, Sim};
use atoll_env::{Env, os};
use atoll_lsm::{
    Batch, Candidate, CompactionFilter, Database, Decision, Durability, Error, Keyspace,
    KeyspaceOptions, Options, WriteOptions,
};

const BUFFERED: WriteOptions = WriteOptions { durability: Some(Durability::Buffered) };

/// Options of a small tree with a record cache of a hundredth of its memory: some 200 records.
fn options(env: Env) -> Options {
    #[cfg(feature = "mutants")]
    mutants::choose();
    Options {
        memtable_size: 8 << 10,
        block_size: 256,
        record_cache_percent: 1,
        ..support::options(env)
    }
}

async fn open(env: &Env) -> (Database, Keyspace) {
    open_with(options(env.clone())).await
}

async fn open_with(options: Options) -> (Database, Keyspace) {
    let db = Database::builder(support::dir()).options(options).open_async().await.unwrap();
    let ks = db.keyspace_async("k", KeyspaceOptions::default()).await.unwrap();
    (db, ks)
}

fn key(n: usize) -> Vec<u8> {
    format!("key {n:04}").into_bytes()
}

/// Draws a number below `n`, small ones far more often.
fn skewed(prng: &mut Prng, n: usize) -> usize {
    let within = prng.index(n) + 1;
    prng.index(within)
}

/// What was written to a key: numbers, ascending.
#[derive(Default)]
struct Cell {
    /// The last one that a write was begun with.
    begun: AtomicU64,
    /// The last one whose write was acknowledged.
    done: AtomicU64,
    /// The last one whose removal was begun.
    leaving: AtomicU64,
    /// The last one whose removal was acknowledged.
    removed: AtomicU64,
}

impl Cell {
    /// Takes what has to be known before a read.
    fn before(&self) -> (u64, u64) {
        // Removals first: what is removed later may be missing, too.
        (self.removed.load(SeqCst), self.done.load(SeqCst))
    }

    /// Judges what was read since.
    fn judge(&self, key: usize, (removed, done): (u64, u64), found: Option<&[u8]>) {
        let begun = self.begun.load(SeqCst);
        let left = self.leaving.load(SeqCst) >= done;
        match found {
            None => assert!(left, "key {key} lost what was written, {done}"),
            Some(value) => {
                let number = u64::from_le_bytes(*value.first_chunk().unwrap());
                assert!(
                    number > removed && number >= done && number <= begun,
                    "key {key} holds {number}: {done} was written, {removed} was removed"
                );
            }
        }
    }
}

/// One writer, four readers, and whatever the background does, on a simulated disk.
fn overwrite_and_read(seed: u64) {
    const KEYS: usize = 400;
    let sim = Sim::new(seed);
    let node = sim.node("a");
    // Many a read takes longer than a flush.
    let faults = DiskFaults { slow: 0.02, ..DiskFaults::default() };
    node.disk().set_options(DiskOptions { faults, ..node.disk().options() });
    support::run(&sim, &node, "overwriting", async {
        let env = node.env();
        // In value files all values, or the longer ones, or none.
        let separate_above = [Some(0), None, Some(100)][seed as usize % 3];
        let value_file_size = 4 << 10;
        let options = Options { separate_above, value_file_size, ..options(env.clone()) };
        let (db, ks) = open_with(options).await;
        let cells: Arc<Vec<Cell>> = Arc::new((0..KEYS).map(|_| Cell::default()).collect());
        let (writing, reading) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(4)));
        for number in 0..4 {
            let (ks, db, cells, writing, reading) =
                (ks.clone(), db.clone(), cells.clone(), writing.clone(), reading.clone());
            let (env, mut prng) = (env.clone(), Prng::new(seed * 10 + number));
            let task = async move {
                while writing.load(SeqCst) {
                    for _ in 0..prng.index(40) {
                        let n = skewed(&mut prng, KEYS);
                        let before = cells[n].before();
                        let found = ks.get_async(key(n)).await.unwrap();
                        cells[n].judge(n, before, found.as_deref());
                    }
                    if prng.chance(0.05) {
                        // What an old snapshot reads is its own, and not kept for others.
                        let snapshot = db.snapshot();
                        let n = skewed(&mut prng, KEYS);
                        let first = snapshot.get_async(&ks, key(n)).await.unwrap();
                        env.clock.sleep(Duration::from_micros(prng.below(20_000))).await;
                        let second = snapshot.get_async(&ks, key(n)).await.unwrap();
                        assert_eq!(first, second, "key {n} of a snapshot");
                    }
                    env.clock.sleep(Duration::from_micros(prng.below(500))).await;
                }
                reading.fetch_sub(1, SeqCst);
            };
            env.tasks.spawn("reader", Box::pin(task));
        }
        let mut prng = Prng::new(seed);
        for number in 1..1500u64 {
            // The hot keys are read more often than they are written.
            let n = prng.index(KEYS);
            match prng.index(60) {
                0 => {
                    let end = (n + 1 + prng.index(30)).min(KEYS);
                    let range = n..end;
                    for cell in &cells[range.clone()] {
                        cell.leaving.store(cell.done.load(SeqCst), SeqCst);
                    }
                    ks.remove_range_async(&key(n)[..]..&key(end)[..], BUFFERED).await.unwrap();
                    for cell in &cells[range] {
                        cell.removed.store(cell.done.load(SeqCst), SeqCst);
                    }
                }
                1 => {
                    cells[n].leaving.store(cells[n].done.load(SeqCst), SeqCst);
                    ks.remove_async(key(n), BUFFERED).await.unwrap();
                    cells[n].removed.store(cells[n].done.load(SeqCst), SeqCst);
                }
                2 => db.flush_async().await.unwrap(),
                3 if prng.chance(0.2) => db.compact_async().await.unwrap(),
                _ => {
                    let mut value = number.to_le_bytes().to_vec();
                    value.resize(8 + prng.index(200), 0);
                    cells[n].begun.store(number, SeqCst);
                    ks.insert_async(key(n), value, BUFFERED).await.unwrap();
                    cells[n].done.store(number, SeqCst);
                }
            }
            if prng.chance(0.1) {
                env.clock.sleep(Duration::from_micros(prng.below(2000))).await;
            }
        }
        writing.store(false, SeqCst);
        while reading.load(SeqCst) > 0 {
            env.clock.sleep(Duration::from_millis(1)).await;
        }
        let stats = db.stats().records;
        assert!(stats.bytes <= stats.capacity && stats.capacity < 48 << 10, "{stats:?}");
        assert!(stats.hits > 200 && stats.invalidations > 20, "{stats:?} are no test");
        drop(ks);
        db.close_async().await.unwrap();
    });
}

#[test]
fn no_read_goes_back_behind_a_write_whatever_is_flushed_and_compacted_meanwhile() {
    (0..6).for_each(overwrite_and_read);
}

/// Readers of a table that is new, and so not in memory, while the next one is made.
#[test]
fn no_read_goes_back_behind_a_flush_that_overtook_another_reader() {
    let sim = Sim::new(1);
    let node = sim.node("a");
    support::run(&sim, &node, "overtaking", async {
        let env = node.env();
        let (db, ks) = open(&env).await;
        let cell = Arc::new(Cell::default());
        let reading = Arc::new(AtomicU64::new(0));
        // From here on half of the operations take a hundred times as long.
        let faults = DiskFaults { slow: 0.5, ..DiskFaults::default() };
        node.disk().set_options(DiskOptions { faults, ..node.disk().options() });
        for number in 1..150u64 {
            cell.begun.store(number, SeqCst);
            ks.insert_async(key(0), number.to_le_bytes(), BUFFERED).await.unwrap();
            cell.done.store(number, SeqCst);
            db.flush_async().await.unwrap();
            if number.is_multiple_of(2) {
                // What the readers of the table before have left is what this one is shown.
                env.clock.sleep(Duration::from_millis(50)).await;
                let before = cell.before();
                cell.judge(0, before, ks.get_async(key(0)).await.unwrap().as_deref());
                continue;
            }
            for _ in 0..3 {
                reading.fetch_add(1, SeqCst);
                let (ks, cell, reading) = (ks.clone(), cell.clone(), reading.clone());
                let task = async move {
                    let before = cell.before();
                    cell.judge(0, before, ks.get_async(key(0)).await.unwrap().as_deref());
                    reading.fetch_sub(1, SeqCst);
                };
                env.tasks.spawn("reader", Box::pin(task));
            }
        }
        while reading.load(SeqCst) > 0 {
            env.clock.sleep(Duration::from_millis(1)).await;
        }
        let stats = db.stats().records;
        assert!(stats.late > 10 || cfg!(feature = "mutants"), "{stats:?} are no test");
        drop(ks);
        db.close_async().await.unwrap();
    });
}

#[test]
fn values_of_a_key_only_rise_for_threads_that_read_beside_the_writer() {
    const KEYS: usize = 64;
    let dir = tempfile::tempdir().unwrap();
    let options = options(os::env().unwrap());
    let db = Database::builder(dir.path().join("db")).options(options).open().unwrap();
    let ks = db.keyspace("k", KeyspaceOptions::default()).unwrap();
    let cells: Vec<Cell> = (0..KEYS).map(|_| Cell::default()).collect();
    let writing = AtomicBool::new(true);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (ks, cells, writing) = (&ks, &cells, &writing);
            scope.spawn(move || {
                let mut prng = Prng::new(thread);
                while writing.load(SeqCst) {
                    let n = prng.index(KEYS);
                    let before = cells[n].before();
                    let found = ks.get(key(n)).unwrap();
                    cells[n].judge(n, before, found.as_deref());
                }
            });
        }
        let _stop = Stop(&writing);
        let mut prng = Prng::new(9);
        for number in 1..20_000u64 {
            let n = prng.index(KEYS);
            let mut value = number.to_le_bytes().to_vec();
            value.resize(100, 0);
            cells[n].begun.store(number, SeqCst);
            ks.insert_with(key(n), value, BUFFERED).unwrap();
            cells[n].done.store(number, SeqCst);
            if number % 100 == 0 {
                db.flush().unwrap();
            }
        }
    });
    assert!(db.stats().records.hits > 100, "{:?}", db.stats().records);
    drop(ks);
    db.close().unwrap();
}

/// Lets the readers end, if the writer panics too.
struct Stop<'w>(&'w AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}

#[test]
fn a_batch_is_seen_whole_or_not_at_all_by_a_reader_with_an_older_view() {
    for seed in 0..6 {
        let sim = Sim::new(seed);
        let node = sim.node("a");
        support::run(&sim, &node, "batches", async {
            let env = node.env();
            let (db, ks) = open(&env).await;
            let keys: Vec<_> = (0..20).map(key).collect();
            let (writing, reading) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(3)));
            for number in 0..3 {
                let (ks, keys, writing, reading) =
                    (ks.clone(), keys.clone(), writing.clone(), reading.clone());
                let (clock, mut prng) = (env.clock.clone(), Prng::new(number));
                let task = async move {
                    while writing.load(SeqCst) {
                        let values = ks.multi_get_async(&keys).await.unwrap();
                        assert!(values.windows(2).all(|pair| pair[0] == pair[1]), "{values:?}");
                        clock.sleep(Duration::from_micros(prng.below(100))).await;
                    }
                    reading.fetch_sub(1, SeqCst);
                };
                env.tasks.spawn("reader", Box::pin(task));
            }
            for number in 0..150u64 {
                let mut batch = Batch::new();
                for key in &keys {
                    batch.insert(&ks, key, &number.to_le_bytes().repeat(10));
                }
                db.write_async(batch, BUFFERED).await.unwrap();
                if number % 5 == 0 {
                    db.flush_async().await.unwrap();
                }
            }
            writing.store(false, SeqCst);
            while reading.load(SeqCst) > 0 {
                env.clock.sleep(Duration::from_millis(1)).await;
            }
            assert!(db.stats().records.hits > 100, "{:?}", db.stats().records);
            db.close_async().await.unwrap();
        });
    }
}

/// Runs a story with one keyspace on a simulated disk.
fn story(test: impl AsyncFnOnce(&Env, &atoll_env::sim::Node, &Database, &Keyspace)) {
    story_with(|options| options, test);
}

/// Runs a story with one keyspace under other options.
fn story_with(
    tune: impl FnOnce(Options) -> Options,
    test: impl AsyncFnOnce(&Env, &atoll_env::sim::Node, &Database, &Keyspace),
) {
    let sim = Sim::new(1);
    let node = sim.node("a");
    support::run(&sim, &node, "a story", async {
        let env = node.env();
        let (db, ks) = open_with(tune(options(env.clone()))).await;
        test(&env, &node, &db, &ks).await;
        drop(ks);
        db.close_async().await.unwrap();
    });
}

#[test]
fn what_is_read_again_costs_no_look_at_a_table_and_a_scan_changes_nothing() {
    story(async |_, _, db, ks| {
        for n in 0..300 {
            ks.insert_async(key(n), [1; 100], BUFFERED).await.unwrap();
        }
        db.flush_async().await.unwrap();
        for _ in 0..4 {
            for n in 0..50 {
                assert!(ks.get_async(key(n)).await.unwrap().is_some());
            }
        }
        let warm = db.stats();
        assert_eq!((warm.records.records, warm.records.hits), (50, 150));
        let mut cursor = ks.cursor::<&[u8]>(..);
        let mut rows = 0;
        while let Some(guard) = cursor.next().await.unwrap() {
            guard.value_async().await.unwrap();
            rows += 1;
        }
        assert_eq!((rows, db.stats().records), (300, warm.records));
        let blocks = db.stats().cache;
        for n in 0..50 {
            assert_eq!(ks.get_async(key(n)).await.unwrap().as_deref(), Some(&[1; 100][..]));
        }
        assert_eq!(db.stats().cache, blocks, "no block was asked for");
    });
}

#[test]
fn a_cached_value_expires_and_goes_with_its_keyspace() {
    story(async |env, _, db, ks| {
        let ttl = Duration::from_secs(10);
        ks.insert_for_async("short", "v", ttl, BUFFERED).await.unwrap();
        ks.insert_async("long", "v", BUFFERED).await.unwrap();
        db.flush_async().await.unwrap();
        for _ in 0..2 {
            let record = ks.record_async("short").await.unwrap().unwrap();
            assert!(record.deadline.is_some() && &record.value[..] == b"v");
            assert!(ks.get_async("long").await.unwrap().is_some());
        }
        env.clock.sleep(ttl).await;
        assert_eq!(ks.get_async("short").await.unwrap(), None);
        assert!(db.stats().records.hits >= 3, "{:?}", db.stats().records);
        // From the memtable, from a table, and from a merged one.
        ks.clear_async(BUFFERED).await.unwrap();
        assert_eq!(ks.get_async("long").await.unwrap(), None);
        db.flush_async().await.unwrap();
        assert_eq!(ks.get_async("long").await.unwrap(), None);
        db.compact_async().await.unwrap();
        assert_eq!(ks.get_async("long").await.unwrap(), None);
    });
}

#[test]
fn an_old_snapshot_is_answered_by_what_it_sees_and_fills_nothing() {
    story(async |_, _, db, ks| {
        ks.insert_async("k", "old", BUFFERED).await.unwrap();
        let snapshot = db.snapshot();
        ks.insert_async("k", "new", BUFFERED).await.unwrap();
        db.flush_async().await.unwrap();
        for _ in 0..3 {
            let found = snapshot.get_async(ks, "k").await.unwrap();
            assert_eq!(found.as_deref(), Some(&b"old"[..]));
        }
        assert_eq!(db.stats().records.records, 0, "an old snapshot fills nothing");
        for _ in 0..2 {
            assert_eq!(ks.get_async("k").await.unwrap().as_deref(), Some(&b"new"[..]));
            let found = snapshot.get_async(ks, "k").await.unwrap();
            assert_eq!(found.as_deref(), Some(&b"old"[..]));
        }
    });
}

#[test]
fn a_table_in_quarantine_is_not_hidden_by_what_was_cached_of_it() {
    story(async |_, node, db, ks| {
        for n in 0..40 {
            ks.insert_async(key(n), [n as u8; 100], BUFFERED).await.unwrap();
        }
        db.flush_async().await.unwrap();
        assert!(ks.get_async(key(0)).await.unwrap().is_some());
        assert!(ks.get_async(key(0)).await.unwrap().is_some());
        assert_eq!(db.stats().records.hits, 1);
        let disk = node.disk();
        for path in disk.files().iter().filter(|path| path.contains("/tables/")) {
            for offset in (0..4000).step_by(50) {
                disk.corrupt(path, offset, 3);
            }
        }
        let mut failed = false;
        for n in 1..40 {
            failed |= matches!(ks.get_async(key(n)).await, Err(Error::Corruption { .. }));
        }
        assert!(failed, "the damage is noticed");
        let answer = ks.get_async(key(0)).await;
        assert!(matches!(answer, Err(Error::Corruption { .. })), "{answer:?}");
    });
}

/// Options under which nearly all values are in value files, of which few bytes may be garbage.
fn separated(options: Options) -> Options {
    Options {
        separate_above: Some(16),
        value_file_size: 4 << 10,
        value_garbage_percent: 5,
        ..options
    }
}

fn value_files(node: &atoll_env::sim::Node) -> Vec<String> {
    let files = node.disk().files();
    files.into_iter().filter(|file| file.ends_with(".val")).collect()
}

#[test]
fn a_short_value_of_a_value_file_is_kept_and_where_it_stands_is_not() {
    story_with(separated, async |env, node, db, ks| {
        for n in 0..100 {
            ks.insert_async(key(n), [n as u8; 150], BUFFERED).await.unwrap();
        }
        db.flush_async().await.unwrap();
        let before = value_files(node);
        assert!(before.len() > 2, "{before:?}");
        let hot = || (0..100).step_by(5);
        for _ in 0..3 {
            for n in hot() {
                assert_eq!(
                    ks.get_async(key(n)).await.unwrap().as_deref(),
                    Some(&[n as u8; 150][..])
                );
            }
        }
        let warm = db.stats();
        assert_eq!((warm.records.records, warm.records.hits), (20, 40));
        // Their neighbours are overwritten, so that their files go, and they into others.
        for n in (0..100).filter(|n| n % 5 != 0) {
            ks.insert_async(key(n), [1; 150], BUFFERED).await.unwrap();
        }
        db.compact_async().await.unwrap();
        env.clock.sleep(Duration::from_secs(5)).await;
        let after = value_files(node);
        assert!(!before.iter().any(|file| after.contains(file)), "{before:?} {after:?}");
        let blocks = db.stats().cache;
        for n in hot() {
            let found = ks.get_async(key(n)).await;
            let found = found.unwrap_or_else(|e| panic!("key {n} lost its value: {e}"));
            assert_eq!(found.as_deref(), Some(&[n as u8; 150][..]));
        }
        let last = db.stats();
        assert_eq!(last.records.hits - warm.records.hits, 20);
        assert_eq!(last.cache, blocks, "no block was asked for");
    });
}

#[test]
fn a_long_value_of_a_value_file_is_not_kept_and_an_expiring_one_keeps_its_deadline() {
    story_with(separated, async |env, _, db, ks| {
        let ttl = Duration::from_secs(10);
        ks.insert_async("long", [1; 2000], BUFFERED).await.unwrap();
        ks.insert_async("longest", vec![1; 3 << 19], BUFFERED).await.unwrap();
        ks.insert_for_async("short", [2; 200], ttl, BUFFERED).await.unwrap();
        db.flush_async().await.unwrap();
        let first = ks.record_async("short").await.unwrap().unwrap();
        for _ in 0..3 {
            assert_eq!(ks.get_async("long").await.unwrap().unwrap(), &[1; 2000]);
            assert_eq!(ks.get_async("longest").await.unwrap().unwrap().len(), 3 << 19);
            let record = ks.record_async("short").await.unwrap().unwrap();
            assert_eq!((&record.value[..], record.deadline), (&[2; 200][..], first.deadline));
            assert!(first.deadline.is_some());
            assert!(ks.contains_key_async("short").await.unwrap());
        }
        let stats = db.stats().records;
        assert_eq!((stats.records, stats.hits), (1, 6), "{stats:?}");
        env.clock.sleep(ttl).await;
        assert_eq!(ks.get_async("short").await.unwrap(), None);
        assert!(!ks.contains_key_async("short").await.unwrap());
    });
}

#[test]
fn a_transaction_reads_its_moment_through_the_cache_and_is_told_of_what_came_since() {
    for tune in [separated, |options| options] {
        story_with(tune, async |_, _, db, ks| {
            for n in 0..20 {
                ks.insert_async(key(n), [1; 100], BUFFERED).await.unwrap();
            }
            db.flush_async().await.unwrap();
            let warm = async |value: &[u8]| {
                for n in (0..20).chain(0..20) {
                    let found = ks.get_async(key(n)).await.unwrap();
                    assert_eq!(found.as_deref(), Some(if n == 0 { value } else { &[1; 100] }));
                }
            };
            warm(&[1; 100]).await;
            let begin = || db.optimistic_transaction();
            let commit = async |mut tx: atoll_lsm::OptimisticTransaction| {
                tx.insert(ks, "other", "v").unwrap();
                tx.commit_async(BUFFERED).await
            };
            // Two that only looked at what is cached: of one nothing was changed, of the other all.
            let (unharmed, early, late) = (begin(), begin(), begin());
            assert_eq!(unharmed.get_async(ks, key(1)).await.unwrap().unwrap(), &[1; 100]);
            assert_eq!(early.get_async(ks, key(0)).await.unwrap().unwrap(), &[1; 100]);
            let hits = db.stats().records.hits;
            assert!(hits >= 20, "{hits}");
            ks.insert_async(key(0), [2; 100], BUFFERED).await.unwrap();
            db.flush_async().await.unwrap();
            warm(&[2; 100]).await;
            // The cache has the newer record by now. It is not theirs, nor may they bring theirs back.
            for _ in 0..3 {
                assert_eq!(early.get_async(ks, key(0)).await.unwrap().unwrap(), &[1; 100]);
                assert_eq!(late.get_async(ks, key(0)).await.unwrap().unwrap(), &[1; 100]);
            }
            db.compact_async().await.unwrap();
            assert_eq!(late.get_async(ks, key(0)).await.unwrap().unwrap(), &[1; 100]);
            warm(&[2; 100]).await;
            commit(unharmed).await.unwrap();
            for tx in [early, late] {
                assert!(matches!(commit(tx).await, Err(Error::Conflict(_))));
            }
            // One that sees the present, from the cache.
            let now = begin();
            assert_eq!(now.get_async(ks, key(0)).await.unwrap().unwrap(), &[2; 100]);
            commit(now).await.unwrap();
        });
    }
}

#[test]
fn whatever_removes_a_key_removes_it_for_those_who_read_it_from_the_cache() {
    for tune in [separated, |options| options] {
        story_with(tune, async |env, _, db, ks| {
            let other = db.keyspace_async("other", KeyspaceOptions::default()).await.unwrap();
            for ks in [ks, &other] {
                for n in 0..30 {
                    ks.insert_async(key(n), [1; 100], BUFFERED).await.unwrap();
                }
            }
            db.flush_async().await.unwrap();
            for n in (0..30).chain(0..30) {
                assert!(ks.get_async(key(n)).await.unwrap().is_some());
                assert!(other.get_async(key(n)).await.unwrap().is_some());
            }
            assert_eq!(db.stats().records.records, 60);
            ks.remove_async(key(0), BUFFERED).await.unwrap();
            ks.remove_range_async(&key(10)[..]..&key(20)[..], BUFFERED).await.unwrap();
            let mut tx = db.optimistic_transaction();
            tx.remove(ks, key(1)).unwrap();
            tx.remove_range(ks, &key(2)[..]..&key(5)[..]).unwrap();
            tx.commit_async(BUFFERED).await.unwrap();
            let gone = |n: usize| n < 5 || (10..20).contains(&n);
            drop(other);
            db.drop_keyspace_async("other").await.unwrap();
            // From memory, from tables, from merged ones.
            for step in 0..3 {
                for n in 0..30 {
                    assert_eq!(
                        ks.get_async(key(n)).await.unwrap().is_none(),
                        gone(n),
                        "{step} {n}"
                    );
                }
                match step {
                    0 => db.flush_async().await.unwrap(),
                    _ => db.compact_async().await.unwrap(),
                }
                env.clock.sleep(Duration::from_secs(2)).await;
            }
            // What a keyspace of the same name held before is not in the new one.
            let other = db.keyspace_async("other", KeyspaceOptions::default()).await.unwrap();
            for n in 0..30 {
                assert_eq!(other.get_async(key(n)).await.unwrap(), None);
            }
            let stats = db.stats().records;
            assert!(stats.invalidations >= 45, "{stats:?}");
        });
    }
}

/// Removes the values of odd keys and replaces those of the others.
struct Sieve;

impl CompactionFilter for Sieve {
    fn filter(&self, candidate: &Candidate<'_>) -> Decision {
        match candidate.key.last() {
            Some(digit) if digit % 2 == 1 => Decision::Remove,
            _ => Decision::Replace(b"replaced".to_vec()),
        }
    }
}

#[test]
fn what_a_compaction_filter_changed_is_not_answered_from_before() {
    for separate_above in [None, Some(16)] {
        let tune = |options: Options| {
            let mut options = Options { separate_above, level0_tables: 100, ..options };
            let filter = Arc::new(Sieve) as Arc<dyn CompactionFilter>;
            options.compaction_filters.push(("k".to_owned(), filter));
            options
        };
        story_with(tune, async |_, _, db, ks| {
            let other = db.keyspace_async("other", KeyspaceOptions::default()).await.unwrap();
            for n in 0..20 {
                ks.insert_async(key(n), [1; 100], BUFFERED).await.unwrap();
                other.insert_async(key(n), [1; 100], BUFFERED).await.unwrap();
            }
            db.flush_async().await.unwrap();
            for n in (0..20).chain(0..20) {
                assert_eq!(ks.get_async(key(n)).await.unwrap().unwrap(), &[1; 100]);
                assert_eq!(other.get_async(key(n)).await.unwrap().unwrap(), &[1; 100]);
            }
            assert_eq!(db.stats().records.hits, 40);
            db.compact_async().await.unwrap();
            for n in (0..20).chain(0..20) {
                let expected = (n % 2 == 0).then_some(&b"replaced"[..]);
                assert_eq!(ks.get_async(key(n)).await.unwrap().as_deref(), expected, "{n}");
                assert_eq!(other.get_async(key(n)).await.unwrap().unwrap(), &[1; 100]);
            }
            // One that is opened before such a merge sees what it saw.
            for n in 0..20 {
                ks.insert_async(key(n), [2; 100], BUFFERED).await.unwrap();
            }
            db.flush_async().await.unwrap();
            let snapshot = db.snapshot();
            for n in (0..20).chain(0..20) {
                assert_eq!(snapshot.get_async(ks, key(n)).await.unwrap().unwrap(), &[2; 100]);
            }
            db.compact_async().await.unwrap();
            for n in (0..20).chain(0..20) {
                assert_eq!(snapshot.get_async(ks, key(n)).await.unwrap().unwrap(), &[2; 100]);
            }
        });
    }
}

#[test]
fn records_have_less_room_while_every_key_is_as_likely_and_it_comes_back() {
    const KEYS: usize = 40_000;
    let sim = Sim::new(3);
    let node = sim.node("a");
    support::run(&sim, &node, "reading", async {
        let env = node.env();
        let options = Options {
            record_cache_percent: 15,
            separate_above: None,
            durability: Durability::Buffered,
            ..Options::new(env.clone())
        };
        let (db, ks) = open_with(Options { memory: 4 << 20, ..options }).await;
        for n in 0..KEYS {
            // Not to be compressed: ten times what the blocks have room for.
            let mut value = vec![0; 500];
            Prng::new(n as u64).fill(&mut value);
            ks.insert_async(key(n), value, BUFFERED).await.unwrap();
        }
        db.compact_async().await.unwrap();
        let mut prng = Prng::new(4);
        let most = db.stats().records.capacity;
        let interval = Duration::from_secs(2);
        let mut room = Vec::new();
        // The second time the hottest twenty get a third of the reads, each in a block of its own.
        for power in [1, 8] {
            for _ in 0..8 {
                for _ in 0..10_000 {
                    let place = (prng.below(1 << 20) as f64 / (1 << 20) as f64).powi(power);
                    let n = (place * KEYS as f64) as usize * 7919 % KEYS;
                    ks.get_async(key(n)).await.unwrap().unwrap();
                }
                env.clock.sleep(interval).await;
            }
            room.push(db.stats().records.capacity);
        }
        assert!(room[0] < most / 3, "{room:?} of {most}");
        assert_eq!(room[1], most);
        db.close_async().await.unwrap();
    });
}

/// Negative controls.
#[cfg(feature = "mutants")]
mod mutants {
    use std::process::Command;

    const VARIABLE: &str = "ATOLL_MUTANT";

    /// Leaves out the rule that this process was started to do without.
    pub(super) fn choose() {
        if let Ok(name) = std::env::var(VARIABLE) {
            let known = atoll_lsm::mutants::READS.into_iter().find(|known| *known == name);
            atoll_lsm::mutants::choose(known.expect("a mutant of that name"));
        }
    }

    #[test]
    fn a_rule_that_is_left_out_is_noticed() {
        if std::env::var(VARIABLE).is_ok() {
            return;
        }
        for mutant in atoll_lsm::mutants::READS {
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["no_read_goes_back", "a_short_value_of_a_value_file"])
                .env(VARIABLE, mutant)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            let told = text.contains(" holds ") || text.contains(" lost ");
            assert!(!output.status.success() && told, "{mutant}: {text}");
        }
    }
}
