//! Nobody waits long: writers beside merges that fall behind, in simulated time; and readers beside
//! what was deleted.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic too")]

#[expect(dead_code, reason = "there is no model here")]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atoll_env::random::Prng;
use atoll_env::sim::{DiskOptions, Sim};
use atoll_lsm::{Compression, Database, Durability, KeyspaceOptions, Options, Stats, WriteOptions};

/// What writers saw.
struct Seen {
    stats: Stats,
    longest: Duration,
    /// Writes by second, without the last one.
    seconds: Vec<u64>,
}

/// Four writers overwrite two thousand records of 4 KiB on a disk on which merges are slow: each of
/// their operations takes milliseconds, and there are many of them for one write to the log.
fn overwrite(seed: u64, pacing: bool) -> Seen {
    let sim = Sim::new(seed);
    let us = Duration::from_micros;
    let node = sim.node("a");
    node.disk().set_options(DiskOptions {
        latency: us(500)..us(1500),
        sync_latency: us(1000)..us(3000),
        ..DiskOptions::default()
    });
    let env = node.env();
    let run = async {
        let options = Options {
            // What merges have to do is what is tried.
            separate_above: None,
            memory: 8 << 20,
            memtable_size: 512 << 10,
            log_segment_size: 256 << 10,
            table_size: 256 << 10,
            level_base_size: 1 << 20,
            level_ratio: 4,
            compression: Compression::None,
            durability: Durability::Buffered,
            pacing,
            ..Options::new(env.clone())
        };
        let db = Database::builder(support::dir()).options(options).open_async().await.unwrap();
        let ks = db.keyspace_async("k", KeyspaceOptions::default()).await.unwrap();
        let (longest, running) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(4)));
        let seconds = Arc::new([const { AtomicU64::new(0) }; 600]);
        let began = env.clock.now();
        for writer in 0..4 {
            let (ks, longest, running) = (ks.clone(), longest.clone(), running.clone());
            let (clock, seconds) = (env.clock.clone(), seconds.clone());
            let mut prng = Prng::new(seed * 10 + writer);
            let task = async move {
                for n in 0..1500u64 {
                    let key = prng.range(0..2000).to_be_bytes();
                    let value = vec![n as u8; 4096];
                    let before = clock.now();
                    ks.insert_async(key, value, WriteOptions::default()).await.unwrap();
                    let now = clock.now();
                    longest.fetch_max(now.since(before).as_micros() as u64, Ordering::Relaxed);
                    let second = now.since(began).as_secs() as usize;
                    seconds[second].fetch_add(1, Ordering::Relaxed);
                }
                running.fetch_sub(1, Ordering::Relaxed);
            };
            env.tasks.spawn("writer", Box::pin(task));
        }
        while running.load(Ordering::Relaxed) > 0 {
            env.clock.sleep(Duration::from_millis(50)).await;
        }
        let stats = db.stats();
        let mut seconds: Vec<u64> = seconds.iter().map(|s| s.load(Ordering::Relaxed)).collect();
        while seconds.last() == Some(&0) {
            seconds.pop();
        }
        seconds.pop();
        db.close_async().await.unwrap();
        Seen { stats, longest: Duration::from_micros(longest.load(Ordering::Relaxed)), seconds }
    };
    support::run(&sim, &node, "overwriting", run)
}

#[test]
fn writers_beside_slow_merges_are_slowed_down_and_never_stopped() {
    for seed in 0..3 {
        let seen = overwrite(seed, true);
        let Seen { stats, longest, seconds } = &seen;
        let said = format!("seed {seed}: {longest:?} {seconds:?} {stats:?}");
        assert_eq!(stats.stalls, 0, "{said}");
        assert!(stats.delay_seconds > 0.2, "merges were no limit: {said}");
        // A group's delay, and the group before it.
        assert!(*longest < Duration::from_millis(100), "{said}");
        assert!(stats.pressure < 1.25, "{said}");
        let mean = seconds.iter().sum::<u64>() as f64 / seconds.len().max(1) as f64;
        let worst = seconds.iter().min().copied().unwrap_or(0) as f64;
        assert!(worst > mean / 2.0, "{said}");
    }
}

#[test]
fn a_seed_still_names_one_execution() {
    let (a, b) = (overwrite(5, true), overwrite(5, true));
    assert_eq!((a.longest, &a.seconds), (b.longest, &b.seconds));
    assert_eq!(a.stats.delay_seconds.to_bits(), b.stats.delay_seconds.to_bits());
}

#[test]
fn a_scan_jumps_over_what_scans_before_it_found_deleted() {
    let sim = Sim::new(1);
    let node = sim.node("a");
    let env = node.env();
    support::run(&sim, &node, "a queue", async {
        // Nothing is flushed: no merge drops what is deleted.
        let options = Options { memtable_size: 1 << 20, ..support::options(env.clone()) };
        let db = Database::builder(support::dir()).options(options).open_async().await.unwrap();
        let ks = db.keyspace_async("k", KeyspaceOptions::default()).await.unwrap();
        let key = |n: u32| n.to_be_bytes();
        let first = async || {
            let mut cursor = ks.cursor::<&[u8]>(..);
            let first = cursor.next().await.unwrap();
            first.map(|guard| guard.key().to_vec())
        };
        for n in 0..500 {
            ks.insert_async(key(n), b"v", WriteOptions::default()).await.unwrap();
        }
        for head in 0..1500 {
            assert_eq!(first().await, Some(key(head).to_vec()));
            ks.remove_async(key(head), WriteOptions::default()).await.unwrap();
            ks.insert_async(key(500 + head), b"v", WriteOptions::default()).await.unwrap();
            if head % 50 == 49 {
                // Somebody comes back, to the front and into the middle.
                for again in [head - 20, head - 40, 0] {
                    ks.insert_async(key(again), b"w", WriteOptions::default()).await.unwrap();
                    assert_eq!(first().await, Some(key(again).to_vec()), "{head}");
                }
                for again in [0, head - 40, head - 20] {
                    assert_eq!(first().await, Some(key(again).to_vec()), "{head}");
                    ks.remove_async(key(again), WriteOptions::default()).await.unwrap();
                }
            }
        }
        let mut cursor = ks.cursor::<&[u8]>(..);
        let mut count = 0;
        while cursor.next().await.unwrap().is_some() {
            count += 1;
        }
        assert_eq!(count, 500);
    });
}
