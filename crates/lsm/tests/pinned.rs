//! The pinned block cache on a machine that lets it lock its memory, and on one that does not.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic too")]

use atoll_lsm::pool::{self, Admit, BlockKey, Grant};
use atoll_lsm::{Database, PoolStrategy};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

const MIB: usize = 1 << 20;

/// Returns the bytes that this process has locked.
fn locked() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    value.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// One test, because the limit is the process's.
#[test]
fn a_pinned_pool_is_locked_whole_where_that_is_allowed_and_serves_where_it_is_not() {
    let before = locked();
    let pool = pool::open(PoolStrategy::Pinned, 32 * MIB);
    match pool.placement().lock {
        Grant::Granted(_) => {
            assert_eq!(locked() - before, 32 * MIB);
            pool.set_capacity(8 * MIB);
            assert_eq!(locked() - before, 8 * MIB);
            pool.set_capacity(32 * MIB);
            assert_eq!(locked() - before, 32 * MIB);
        }
        refused => eprintln!("not here: {refused}"),
    }
    drop(pool);
    assert_eq!(locked(), before, "a pool that is gone locks nothing");

    let limit = getrlimit(Resource::Memlock);
    let low = Rlimit { current: Some(64 << 10), maximum: limit.maximum };
    setrlimit(Resource::Memlock, low).unwrap();
    // The administrator may lock beyond the limit: not any more.
    let mut sets = capabilities(None).unwrap();
    sets.effective.remove(CapabilitySet::IPC_LOCK);
    set_capabilities(None, sets).unwrap();

    let pool = pool::open(PoolStrategy::Pinned, 32 * MIB);
    let why = pool.placement().refusals().join("\n");
    assert!(why.contains("RLIMIT_MEMLOCK is 64 KiB"), "{why}");
    let key = BlockKey { file: 1, offset: 0 };
    let mut frame = pool.frame(5000);
    frame.fill(7);
    pool.insert(key, frame, Admit::Data);
    assert_eq!(pool.get(key, Admit::Data).unwrap()[..], [7; 5000]);
    assert!(pool.stats().region_bytes > 0, "it is in the region all the same");

    let dir = tempfile::tempdir().unwrap();
    let builder = Database::builder(dir.path()).memory(32 * MIB).pool(PoolStrategy::Pinned);
    let db = builder.open().unwrap();
    let ks = db.keyspace("k", Default::default()).unwrap();
    ks.insert("key", "value").unwrap();
    let stats = db.stats();
    assert_eq!(stats.pool.strategy, "pinned");
    assert!(stats.pool.refusals().iter().any(|why| why.contains("RLIMIT_MEMLOCK")));
    assert_eq!(ks.get("key").unwrap().as_deref(), Some(&b"value"[..]));
    db.close().unwrap();
}
