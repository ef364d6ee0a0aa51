//! What holds for every strategy, and what for those with a region.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use atoll_env::random::Prng;

use super::*;

/// An empty pool of each strategy.
fn pools(capacity: usize) -> impl Iterator<Item = (PoolStrategy, Arc<dyn Pool>)> {
    PoolStrategy::ALL.into_iter().map(move |strategy| (strategy, open(strategy, capacity)))
}

/// An empty pool of each strategy that has a region.
fn regions(capacity: usize) -> impl Iterator<Item = (PoolStrategy, Arc<dyn Pool>)> {
    pools(capacity).filter(|(strategy, _)| *strategy != PoolStrategy::Heap)
}

fn key(file: u64, n: u64) -> BlockKey {
    BlockKey { file, offset: n * 4096 }
}

fn put(pool: &dyn Pool, key: BlockKey, admit: Admit) -> Block {
    let mut frame = pool.frame(1000);
    frame[..8].copy_from_slice(&key.offset.to_le_bytes());
    pool.insert(key, frame, admit)
}

/// Reads as a table does: takes the block from the pool or inserts it. Returns whether it hit.
fn read(pool: &dyn Pool, key: BlockKey, admit: Admit) -> bool {
    match pool.get(key, admit) {
        Some(block) => {
            assert_eq!(block[..8], key.offset.to_le_bytes());
            true
        }
        None => {
            put(pool, key, admit);
            false
        }
    }
}

/// A seeded generator, enough for choosing keys.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[test]
fn the_budget_is_never_exceeded_whatever_is_inserted_or_resized() {
    for (strategy, pool) in pools(4 << 20) {
        eprintln!("{}", strategy.name());
        let pool = &*pool;
        let mut seed = 1;
        for step in 0..50_000 {
            let n = random(&mut seed);
            let admit = if n.is_multiple_of(7) { Admit::Index } else { Admit::Data };
            let frame = pool.frame((n % 9000) as usize);
            pool.insert(key(n % 11, n >> 4), frame, admit);
            if step % 5000 == 4999 {
                pool.set_capacity(((step % 3) + 1) << 20);
            }
            if step % 777 == 0 {
                pool.forget(n % 11);
            }
            if step % 50 == 0 {
                let stats = pool.stats();
                assert!(stats.bytes <= stats.capacity, "{stats:?}");
            }
        }
        pool.set_capacity(0);
        assert_eq!(pool.stats().blocks, 0);
        assert_eq!(pool.stats().bytes, 0);
        assert!(pool.stats().evictions > 10_000);
    }
}

#[test]
fn a_hot_set_survives_a_scan_ten_times_the_cache() {
    for (strategy, pool) in pools(1 << 20) {
        eprintln!("{}", strategy.name());
        let pool = &*pool;
        let hot: Vec<_> = (0..300).map(|n| key(1, n)).collect();
        for _ in 0..3 {
            hot.iter().for_each(|&k| {
                read(pool, k, Admit::Data);
            });
        }
        for n in 0..10_000 {
            read(pool, key(2, n), Admit::Data);
            if n % 100 == 0 {
                // The hot set is still in use, far less often than the scan goes on.
                read(pool, hot[(n / 100) as usize % hot.len()], Admit::Data);
            }
        }
        let kept = hot.iter().filter(|&&k| pool.get(k, Admit::No).is_some()).count();
        assert!(kept >= 290, "{kept} of 300 hot blocks survived");
    }
}

#[test]
fn a_scan_that_does_not_admit_changes_nothing() {
    for (strategy, pool) in pools(1 << 20) {
        eprintln!("{}", strategy.name());
        let pool = &*pool;
        (0..500).for_each(|n| {
            read(pool, key(1, n), Admit::Data);
        });
        let before = pool.stats().blocks;
        (0..5000).for_each(|n| {
            read(pool, key(2, n), Admit::No);
        });
        assert_eq!(pool.stats().blocks, before);
        assert_eq!(pool.stats().evictions, 0);
    }
}

#[test]
fn a_block_that_comes_back_soon_goes_to_the_main_ring() {
    for (strategy, pool) in pools(512 << 10) {
        eprintln!("{}", strategy.name());
        let pool = &*pool;
        // The main ring has an owner, so that probation is a tenth; then block 0 leaves unread.
        (0..500).for_each(|n| {
            put(pool, key(1, n), Admit::Index);
        });
        let mut n = 1000;
        read(pool, key(2, 0), Admit::Data);
        while pool.get(key(2, 0), Admit::No).is_some() {
            read(pool, key(2, n), Admit::Data);
            n += 1;
        }
        read(pool, key(2, 0), Admit::Data);
        for m in 0..200 {
            read(pool, key(3, m), Admit::Data);
        }
        assert!(pool.get(key(2, 0), Admit::No).is_some(), "a ghost is admitted to the main ring");
        assert!(pool.get(key(3, 0), Admit::No).is_none(), "a stranger passes through");
    }
}

#[test]
fn a_deleted_file_leaves_and_others_stay() {
    for (strategy, pool) in pools(8 << 20) {
        eprintln!("{}", strategy.name());
        let pool = &*pool;
        for n in 0..1000 {
            put(pool, key(n % 4, n), Admit::Data);
        }
        let held = pool.get(key(2, 2), Admit::Data).unwrap();
        pool.forget(2);
        for n in 0..1000 {
            assert_eq!(pool.get(key(n % 4, n), Admit::Data).is_some(), n % 4 != 2, "{n}");
        }
        assert_eq!(pool.stats().blocks, 750);
        assert_eq!(held[..8], (2 * 4096u64).to_le_bytes(), "a held block stays readable");
        pool.forget(2);
    }
}

#[test]
fn the_second_of_two_equal_inserts_gets_the_first_one_s_copy() {
    for (strategy, pool) in pools(1 << 20) {
        eprintln!("{}", strategy.name());
        let pool = &*pool;
        let first = put(pool, key(1, 1), Admit::Data);
        let second = put(pool, key(1, 1), Admit::Data);
        assert!(std::ptr::eq(&first[..], &second[..]));
        assert_eq!(pool.stats().blocks, 1);
    }
}

/// The bytes of a block, by its key: long and short ones, which end up in different classes.
fn filled(pool: &dyn Pool, key: BlockKey, len: usize) -> Frame {
    let mut frame = pool.frame(len);
    frame.fill((key.offset >> 12) as u8);
    if let Some(start) = frame.first_chunk_mut() {
        *start = key.offset.to_le_bytes();
    }
    frame
}

fn verify(block: &Block, key: BlockKey) {
    assert_eq!(block[..8], key.offset.to_le_bytes());
    assert!(block[8..].iter().all(|&byte| byte == (key.offset >> 12) as u8), "{key:?}");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the cache is shared by real threads")]
fn many_threads_read_right_bytes_while_files_are_forgotten_and_the_budget_changes() {
    for (strategy, pool) in pools(6 << 20) {
        let hits = Arc::new(AtomicUsize::new(0));
        let threads = (0..4).map(|thread| {
            let (pool, hits) = (pool.clone(), hits.clone());
            std::thread::spawn(move || {
                let mut seed = thread;
                let mut held = Vec::new();
                for step in 0..20_000 {
                    let n = random(&mut seed) % 1500;
                    let key = key(n % 8, n);
                    let block = pool.get(key, Admit::Data);
                    hits.fetch_add(block.is_some().into(), Relaxed);
                    let block = block.unwrap_or_else(|| {
                        // The lengths change as time goes on.
                        let len = 600 + (n as usize * 37 + step / 4000 * 5000) % 9000;
                        let admit = if n.is_multiple_of(5) { Admit::No } else { Admit::Data };
                        pool.insert(key, filled(&*pool, key, len), admit)
                    });
                    verify(&block, key);
                    held.push((block, key));
                    if held.len() > 40 {
                        let (block, key) = held.swap_remove(n as usize % 40);
                        verify(&block, key);
                    }
                    match step % 1000 {
                        0 => pool.forget(n % 8),
                        500 => pool.set_capacity((n as usize % 6 + 1) << 20),
                        _ => {}
                    }
                }
                held.iter().for_each(|(block, key)| verify(block, *key));
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        pool.set_capacity(6 << 20);
        let stats = pool.stats();
        assert!(stats.bytes <= stats.capacity, "{strategy:?} {stats:?}");
        assert!(hits.load(Relaxed) > 5_000, "{strategy:?} {hits:?}");
        pool.set_capacity(0);
        let stats = pool.stats();
        assert_eq!((stats.blocks, stats.bytes, stats.region_bytes), (0, 0, 0), "{strategy:?}");
    }
}

#[test]
fn names_are_read_as_they_are_written() {
    for (strategy, pool) in pools(4 << 20) {
        assert_eq!(strategy.name().parse::<PoolStrategy>().unwrap(), strategy);
        let placement = pool.placement();
        assert_eq!(placement.strategy, strategy.name(), "{placement:?}");
        assert_eq!(placement.lock == Grant::Unasked, strategy != PoolStrategy::Pinned);
    }
    let refusal = "fixed".parse::<PoolStrategy>().unwrap_err().to_string();
    assert!(refusal.contains("pinned, vm or heap"), "{refusal}");
}

#[test]
fn what_blocks_of_new_lengths_need_is_taken_from_the_old_ones() {
    for (strategy, pool) in regions(32 << 20) {
        let mut prng = Prng::new(1);
        for (phase, low, high) in
            [(0, 4096, 4300), (1, 1200, 4200), (2, 9000, 20_000), (3, 600, 700)]
        {
            for n in 0..60_000 {
                let key = key(phase, n);
                let frame = filled(&*pool, key, prng.range(low..high) as usize);
                pool.insert(key, frame, Admit::Data);
                if n % 100 == 0 {
                    let stats = pool.stats();
                    assert!(stats.bytes <= stats.capacity, "{strategy:?} {stats:?}");
                }
            }
            let stats = pool.stats();
            let used = stats.blocks * (low + high) / 2;
            eprintln!("{} {low}..{high}: {used} in {stats:?}", strategy.name());
            // What blocks ask for, of all: bookkeeping is a quarter of the shortest; mixed lengths
            // leave free frames between them.
            let least = if high < 1000 { 0.65 } else { 0.8 };
            assert!(used as f64 > stats.capacity as f64 * least, "{strategy:?} {low} {stats:?}");
            assert!(stats.strayed < 300, "{strategy:?} {stats:?}");
            let last = key(phase, 59_999);
            verify(&pool.get(last, Admit::No).unwrap(), last);
            if phase > 0 {
                let old = (0..60_000).filter(|&n| pool.get(key(phase - 1, n), Admit::No).is_some());
                assert_eq!(old.count(), 0, "{strategy:?}: blocks nobody asked for since have gone");
            }
        }
    }
}

#[test]
fn blocks_that_readers_hold_stay_as_they_are_and_the_heap_takes_what_has_no_room() {
    for (strategy, pool) in regions(4 << 20) {
        let keys = (0..900).map(|n| key(1, n));
        let held: Vec<_> =
            keys.map(|k| (pool.insert(k, filled(&*pool, k, 4100), Admit::Data), k)).collect();
        for n in 0..2000 {
            let key = key(2, n);
            let block = pool.insert(key, filled(&*pool, key, 9000), Admit::Data);
            verify(&block, key);
        }
        held.iter().for_each(|(block, key)| verify(block, *key));
        assert!(pool.stats().strayed > 0, "{strategy:?} {:?}", pool.stats());
        pool.set_capacity(1 << 20);
        held.iter().for_each(|(block, key)| verify(block, *key));
        // A slice outlives the pool.
        let (block, key) = &held[7];
        let slice = block.slice(0..8);
        let expected = key.offset.to_le_bytes();
        drop((pool, held));
        assert_eq!(slice, expected[..]);
    }
}

/// Returns a figure of this process, in bytes.
#[cfg(target_os = "linux")]
#[expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "what the kernel says of this process; a test's helpers may panic too"
)]
fn status(field: &str) -> usize {
    let status = std::fs::read("/proc/self/status").unwrap();
    let status = String::from_utf8(status).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    value.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[cfg(target_os = "linux")]
#[test]
fn memory_goes_back_to_the_machine_when_the_budget_falls() {
    const MIB: usize = 1 << 20;
    for (strategy, pool) in regions(128 * MIB) {
        let fill = |file| {
            for n in 0..40_000 {
                let key = key(file, n);
                pool.insert(key, filled(&*pool, key, 4100), Admit::Data);
            }
        };
        fill(1);
        let full = status("VmRSS:");
        pool.set_capacity(32 * MIB);
        let small = status("VmRSS:");
        // Other tests run in this process, with small pools.
        assert!(small + 64 * MIB < full, "{strategy:?}: {full} and then {small}");
        assert!(pool.stats().region_bytes <= 32 << 20);
        assert!(pool.stats().blocks > 4000, "{strategy:?}: some stay: {:?}", pool.stats());
        pool.set_capacity(128 * MIB);
        fill(2);
        assert!(pool.stats().region_bytes > 100 << 20, "{strategy:?} {:?}", pool.stats());
        let last = key(2, 39_999);
        verify(&pool.get(last, Admit::No).unwrap(), last);
    }
}
