//! The protocol step by step, in orders that a run meets seldom.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use atoll_encoding::hash::hash64;

use super::*;
use crate::key::{InternalKey, SEQNO_MAX};
use crate::tombstone::RangeTombstone;

const NOW: u64 = SEQNO_MAX;

fn reader(epoch: u64) -> Reader {
    Reader { epoch, snapshot: NOW }
}

fn fill(records: &Records, key: &[u8], epoch: u64, seqno: SeqNo, value: &[u8]) {
    let trailer = Trailer::new(seqno, Kind::Value);
    records.fill(key, hash64(key), epoch, trailer, value);
}

fn get(records: &Records, key: &[u8], epoch: u64) -> Option<Vec<u8>> {
    records.get(key, hash64(key), reader(epoch)).map(|(_, value)| value.to_vec())
}

/// Runs a future that waits for nothing but its turn.
fn finish(future: impl Future<Output = ()>) {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    while future.as_mut().poll(&mut cx).is_pending() {}
}

fn memtable(keys: &[&[u8]], ranges: &[(&[u8], &[u8])]) -> Arc<Memtable> {
    let (mut writer, memtable) = Memtable::new(1 << 20);
    for key in keys {
        writer.insert(InternalKey::new(key, Trailer::new(50, Kind::Value)), b"new").unwrap();
    }
    for (start, end) in ranges {
        writer.delete_range(start, end, 50).unwrap();
    }
    memtable
}

/// A flush of `memtable`, whole.
fn flush(records: &Records, memtable: &Arc<Memtable>) {
    let change = records.begin_change();
    finish(change.forget_memtable(memtable));
    change.installed();
}

#[test]
fn a_flush_forgets_what_it_brings_and_leaves_the_rest() {
    let records = Records::new(1 << 20);
    for key in [b"a", b"b", b"c", b"d", b"e"] {
        fill(&records, key, 0, 10, b"old");
    }
    flush(&records, &memtable(&[b"b"], &[(b"d", b"e")]));
    assert_eq!(records.epoch(), 1);
    for (key, kept) in [(b"a", true), (b"b", false), (b"c", true), (b"d", false), (b"e", true)] {
        assert_eq!(get(&records, key, 1).is_some(), kept, "{key:?}");
    }
    assert_eq!(records.stats().invalidations, 2);
}

#[test]
fn a_record_newer_than_the_range_tombstone_stays() {
    let records = Records::new(1 << 20);
    fill(&records, b"older", 0, 49, b"v");
    fill(&records, b"same", 0, 50, b"v");
    flush(&records, &memtable(&[], &[(b"a", b"z")]));
    assert_eq!(get(&records, b"older", 1), None);
    assert_eq!(get(&records, b"same", 1).as_deref(), Some(&b"v"[..]));
}

#[test]
fn a_reader_overtaken_by_a_flush_does_not_fill() {
    let records = Records::new(1 << 20);
    let new = memtable(&[b"k"], &[]);
    let change = records.begin_change();
    fill(&records, b"k", 0, 10, b"old");
    finish(change.forget_memtable(&new));
    fill(&records, b"k", 0, 10, b"old");
    change.installed();
    fill(&records, b"k", 0, 10, b"old");
    fill(&records, b"k", 1, 50, b"new");
    assert_eq!(get(&records, b"k", 1), None, "nobody fills before the change is over");
    drop(change);
    fill(&records, b"k", 0, 10, b"old");
    assert_eq!(get(&records, b"k", 1), None);
    fill(&records, b"k", 1, 50, b"new");
    assert_eq!(get(&records, b"k", 1).as_deref(), Some(&b"new"[..]));
    assert_eq!(get(&records, b"k", 0), None, "it is too new for an earlier view");
    assert_eq!(records.stats().late, 5);
}

#[test]
fn a_flush_that_failed_changes_nothing_and_two_changes_wait_for_each_other() {
    let records = Records::new(1 << 20);
    let (failed, other) = (records.begin_change(), records.begin_change());
    drop(failed);
    fill(&records, b"k", 0, 10, b"v");
    assert_eq!(get(&records, b"k", 0), None, "another change is under way");
    drop(other);
    fill(&records, b"k", 0, 10, b"v");
    assert!(get(&records, b"k", 0).is_some());
    assert_eq!(records.epoch(), 0);
}

#[test]
fn distrust_forgets_everything_and_refuses_readers_from_before() {
    let records = Records::new(1 << 20);
    for n in 0..100u32 {
        fill(&records, &n.to_le_bytes(), 0, 10, b"v");
    }
    records.distrust();
    assert_eq!(records.stats().records, 0);
    fill(&records, b"k", 0, 10, b"v");
    assert_eq!(get(&records, b"k", 1), None);
    fill(&records, b"k", records.epoch(), 10, b"v");
    assert!(get(&records, b"k", 1).is_some());
}

#[test]
fn what_is_large_or_refers_to_other_places_is_not_kept() {
    let records = Records::new(1 << 20);
    fill(&records, b"k", 0, 10, &[0; LEN_MAX]);
    for kind in
        [Kind::Tombstone, Kind::Chunk, Kind::ChunkedValue, Kind::VersionedChunked, Kind::Merge]
    {
        let hash = hash64(b"k");
        records.fill(b"k", hash, 0, Trailer::new(10, kind), b"v");
    }
    records.fill(b"k", hash64(b"k"), 0, Trailer(10 << 8 | 0x7f), b"of a later program");
    for kind in [Kind::Value, Kind::ExpiringValue, Kind::VersionedValue] {
        let pointer = Trailer::new(10, kind).separated();
        records.fill(b"k", hash64(b"k"), 0, pointer, &[0; 36]);
    }
    assert_eq!(records.stats().records, 0);
}

#[test]
fn a_cache_of_too_little_memory_is_none() {
    for capacity in [0, CAPACITY_MIN - 1] {
        let records = Records::new(capacity);
        fill(&records, b"k", 0, 10, b"v");
        assert_eq!(get(&records, b"k", 0), None);
        flush(&records, &memtable(&[b"k"], &[(b"a", b"b")]));
        records.distrust();
        records.set_capacity(1 << 20);
        assert_eq!(records.stats(), RecordStats::default());
    }
}

#[test]
fn the_budget_holds_when_it_changes() {
    let records = Records::new(2 << 20);
    for step in 0..60_000u64 {
        let key = (step * 7919 % 20_000).to_le_bytes();
        fill(&records, &key, 0, 10, &vec![1; (step % 500) as usize]);
        if step % 10_000 == 9_999 {
            records.set_capacity((((step / 10_000 * 5 + 3) % 8) << 18) as usize);
        }
        if step % 100 == 0 {
            let stats = records.stats();
            assert!(stats.bytes <= stats.capacity, "{stats:?}");
        }
    }
    assert!(records.stats().evictions > 1000, "{:?}", records.stats());
    let gone = Fragmented::new([RangeTombstone {
        start: Vec::new(),
        end: vec![0xff; 9],
        seqno: SEQNO_MAX,
    }]);
    let change = records.begin_change();
    finish(change.forget_covered(&gone));
    assert_eq!(records.stats().records, 0);
}

#[test]
fn what_is_hot_stays_when_strangers_pass() {
    let records = Records::new(128 << 10);
    let hot: Vec<String> = (0..200).map(|n| format!("hot{n}")).collect();
    let read = |key: &str| {
        let found = get(&records, key.as_bytes(), 0).is_some();
        if !found {
            fill(&records, key.as_bytes(), 0, 10, &[1; 100]);
        }
        found
    };
    (0..3).for_each(|_| {
        hot.iter().for_each(|key| {
            read(key);
        });
    });
    let mut prng = atoll_env::random::Prng::new(3);
    let mut hits = 0;
    for n in 0..40_000 {
        // Some come twice.
        read(&format!("stranger{}", n - prng.below(2) * prng.below(n + 1).min(50)));
        hits += u32::from(read(&hot[prng.index(hot.len())]));
    }
    assert!(hits > 39_000, "{hits} of 40000 reads of hot records were hits");
}
