//! The memtable against a model, at its bounds, and under readers on other threads.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::key::{Kind, SEQNO_MAX};

type Key = (Vec<u8>, Reverse<Trailer>);
type Model = BTreeMap<Key, Vec<u8>>;

struct Prng(u64);

impl Prng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
        (self.0 >> 33) % n
    }

    /// Keys of all lengths around the prefix, over few bytes, so that all ways to compare occur.
    fn key(&mut self) -> Vec<u8> {
        let common = self.below(20) as usize;
        let mut key = b"\0\0\0\x07user:profile:"[..common.min(17)].to_vec();
        key.extend((0..self.below(5)).map(|_| [0, 1, b'a', 0xff][self.below(4) as usize]));
        key
    }

    fn trailer(&mut self) -> Trailer {
        let kind = [Kind::Tombstone, Kind::Value, Kind::ExpiringValue][self.below(3) as usize];
        Trailer::new(1 + self.below(50), kind)
    }
}

fn value(seqno: SeqNo) -> Trailer {
    Trailer::new(seqno, Kind::Value)
}

fn filled(prng: &mut Prng, records: usize) -> (Writer, Arc<Memtable>, Model) {
    let (mut writer, table) = Memtable::new(1 << 20);
    let mut model = Model::new();
    for n in 0..records {
        let (key, trailer) = (prng.key(), prng.trailer());
        let bytes = n.to_string().into_bytes();
        let (head, tail) = bytes.split_at(bytes.len() / 2);
        writer.insert_parts(InternalKey::new(&key, trailer), [head, tail]).unwrap();
        // The first one stays: a record that comes twice is the same record.
        model.entry((key, Reverse(trailer))).or_insert(bytes);
    }
    (writer, table, model)
}

fn at(iter: &MemtableIter) -> Option<(Key, Vec<u8>)> {
    iter.valid().then(|| {
        let key = iter.key();
        assert_eq!(iter.value_slice(), *iter.value());
        ((key.user_key.to_vec(), Reverse(key.trailer)), iter.value().to_vec())
    })
}

fn owned(record: Option<(&Key, &Vec<u8>)>) -> Option<(Key, Vec<u8>)> {
    record.map(|(key, value)| (key.clone(), value.clone()))
}

#[test]
fn random_records_read_like_a_sorted_map() {
    // Miri is some thousand times slower.
    let (seeds, most, seeks) = if cfg!(miri) { (3, 30, 30) } else { (60, 400, 400) };
    for seed in 0..seeds {
        let mut prng = Prng(seed);
        let records = prng.below(most) as usize;
        let (_writer, table, model) = filled(&mut prng, records);
        assert_eq!(table.entries(), model.len());
        let seqnos = model.keys().map(|key| key.1.0.seqno());
        assert_eq!(table.seqnos(), seqnos.clone().min().zip(seqnos.max()));

        let mut iter = table.iter();
        assert!(!iter.valid());
        iter.first();
        for record in &model {
            assert_eq!(at(&iter), owned(Some(record)), "seed {seed}, forwards");
            iter.next();
        }
        assert!(!iter.valid());
        iter.last();
        for record in model.iter().rev() {
            assert_eq!(at(&iter), owned(Some(record)), "seed {seed}, backwards");
            iter.prev();
        }
        assert!(!iter.valid());

        for _ in 0..seeks {
            let (key, trailer) = (prng.key(), prng.trailer());
            let bound = (key.clone(), Reverse(trailer));
            iter.seek(InternalKey::new(&key, trailer));
            assert_eq!(at(&iter), owned(model.range(bound.clone()..).next()), "seed {seed}, seek");
            iter.seek_before(InternalKey::new(&key, trailer));
            assert_eq!(at(&iter), owned(model.range(..bound).next_back()), "seed {seed}, before");

            let snapshot = prng.below(60);
            let newest = (key.clone(), Reverse(Trailer::visible_at(snapshot)));
            let expected = model.range(newest..).next().filter(|(k, _)| k.0 == key);
            let found = table.get(&key, snapshot).map(|(trailer, value)| {
                assert_eq!(value.to_slice(), *value);
                ((key.clone(), Reverse(trailer)), value.to_vec())
            });
            assert_eq!(found, owned(expected), "seed {seed}, {key:?} at {snapshot}");
        }
    }
}

#[test]
fn seeking_at_the_bounds_finds_the_ends_or_nothing() {
    let (mut writer, table) = Memtable::new(1 << 16);
    let mut iter = table.iter();
    for go in [MemtableIter::first, MemtableIter::last] {
        go(&mut iter);
        assert!(!iter.valid(), "an empty memtable has no record");
    }
    iter.seek(InternalKey::new(b"", Trailer::NEWEST));
    assert!(!iter.valid());
    assert!(table.get(b"b", SEQNO_MAX).is_none());
    assert!(table.is_empty() && table.seqnos().is_none());

    writer.insert(InternalKey::new(b"b", value(5)), b"five").unwrap();
    writer.insert(InternalKey::new(b"b", value(7)), b"seven").unwrap();
    for (key, trailer, after, before) in [
        (&b""[..], Trailer::NEWEST, Some(7), None),
        (b"b", Trailer::NEWEST, Some(7), None),
        (b"b", value(7), Some(7), None),
        (b"b", value(6), Some(5), Some(7)),
        (b"b", value(5), Some(5), Some(7)),
        (b"b", Trailer::OLDEST, None, Some(5)),
        (b"b\0", Trailer::NEWEST, None, Some(5)),
    ] {
        let key = InternalKey::new(key, trailer);
        iter.seek(key);
        assert_eq!(iter.valid().then(|| iter.key().trailer.seqno()), after, "after {key:?}");
        iter.seek_before(key);
        assert_eq!(iter.valid().then(|| iter.key().trailer.seqno()), before, "before {key:?}");
    }
    let at = |snapshot| table.get(b"b", snapshot).map(|(_, value)| value.to_vec());
    assert_eq!(at(SEQNO_MAX).as_deref(), Some(&b"seven"[..]));
    assert_eq!(at(6).as_deref(), Some(&b"five"[..]));
    assert_eq!(at(4), None);
}

#[test]
fn a_full_memtable_says_so_and_stays_as_it_was() {
    for capacity in [0, 200, 1000, 10_000, 70_000] {
        let (mut writer, table) = Memtable::new(capacity);
        let mut prng = Prng(1);
        let mut model = BTreeMap::new();
        let mut refused = 0;
        for seqno in 0..if cfg!(miri) { 60 } else { 5_000 } {
            let key = prng.below(1 << 30).to_be_bytes();
            let bytes = vec![b'v'; prng.below(100) as usize];
            let needed = key.len() + bytes.len() + OVERHEAD_MAX;
            let (room, used) = (table.room(), table.bytes_used());
            match writer.insert(InternalKey::new(&key, value(seqno)), &bytes) {
                Ok(()) => {
                    model.insert(key, bytes);
                    assert!(table.bytes_used() <= capacity);
                }
                Err(Full) => {
                    refused += 1;
                    assert!(room < needed, "{room} bytes are enough for {needed}");
                    assert_eq!(table.bytes_used(), used);
                    assert!(table.get(&key, SEQNO_MAX).is_none_or(|_| model.contains_key(&key)));
                }
            }
        }
        assert!(refused > 0);
        assert_eq!(table.entries(), model.len());
        let mut iter = table.iter();
        iter.first();
        for (key, bytes) in &model {
            assert_eq!((iter.key().user_key, iter.value()), (&key[..], &bytes[..]));
            iter.next();
        }
        assert!(!iter.valid());
        let room = table.room();
        let long = vec![0; room + 1];
        assert_eq!(writer.delete_range(b"", &long, 1), Err(Full));
        assert!(table.range_tombstones().is_none());
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes hours there, and others insert as well")]
fn keys_in_any_order_end_up_sorted() {
    let orders: [fn(u32) -> u32; 4] =
        [|n| n, |n| 9_999 - n, |n| n.wrapping_mul(7_919) % 10_000, |n| n / 2 + n % 2 * 5_000];
    for order in orders {
        let (mut writer, table) = Memtable::new(4 << 20);
        for n in 0..10_000 {
            let key = order(n).to_be_bytes();
            writer.insert(InternalKey::new(&key, value(1)), &key).unwrap();
        }
        let mut iter = table.iter();
        iter.first();
        for n in 0..10_000_u32 {
            assert_eq!(
                (iter.key().user_key, iter.value()),
                (&n.to_be_bytes()[..], &n.to_be_bytes()[..])
            );
            iter.next();
        }
        assert!(!iter.valid());
    }
}

#[test]
fn range_tombstones_are_seen_by_the_reader_after_the_write() {
    let (mut writer, table) = Memtable::new(1 << 16);
    assert!(table.range_tombstones().is_none());
    writer.delete_range(b"c", b"c", 4).unwrap();
    writer.delete_range(b"d", b"c", 4).unwrap();
    assert!(table.range_tombstones().is_none() && table.is_empty(), "empty ranges are dropped");

    writer.delete_range(b"a", b"c", 4).unwrap();
    let first = table.range_tombstones().unwrap();
    writer.delete_range(b"b", b"d", 9).unwrap();
    let second = table.range_tombstones().unwrap();
    assert_eq!((first.max_covering(b"b", 100), second.max_covering(b"b", 100)), (4, 9));
    assert!(Arc::ptr_eq(&second, &table.range_tombstones().unwrap()), "built once per write");
    assert_eq!((table.seqnos(), table.is_empty(), table.entries()), (Some((4, 9)), false, 0));
}

#[test]
fn a_slice_outlives_the_memtable() {
    let (mut writer, table) = Memtable::new(1 << 16);
    writer.insert(InternalKey::new(b"k", value(1)), b"bytes").unwrap();
    let slice = table.get(b"k", SEQNO_MAX).unwrap().1.to_slice();
    drop((writer, table));
    assert_eq!(slice, b"bytes"[..]);
}

/// Readers walk both ways and look up keys while the writer inserts. Whatever the writer has
/// published must be found, and the order must hold at every step.
#[test]
fn readers_see_every_published_record_in_order_while_the_writer_inserts() {
    let records: u64 = if cfg!(miri) { 60 } else { 60_000 };
    let key_of = |n: u64| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1).to_be_bytes();
    let (mut writer, table) = Memtable::new(16 << 20);
    let published = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for reader in 0..3 {
            let (table, published) = (&table, &published);
            scope.spawn(move || {
                let mut prng = Prng(reader);
                let mut iter = table.iter();
                loop {
                    let visible = published.load(Ordering::Acquire);
                    let forwards = prng.below(2) == 0;
                    let (mut met, mut last) = (0, None::<Vec<u8>>);
                    if forwards {
                        iter.first()
                    } else {
                        iter.last()
                    }
                    while iter.valid() {
                        let key = iter.key();
                        met += u64::from(key.trailer.seqno() <= visible);
                        assert_eq!(iter.value(), key.user_key);
                        if let Some(last) = &last {
                            assert_eq!(&last[..] < key.user_key, forwards, "out of order");
                        }
                        last = Some(key.user_key.to_vec());
                        if forwards { iter.next() } else { iter.prev() }
                    }
                    assert_eq!(met, visible, "a published record was not met");
                    for _ in 0..visible.min(200) {
                        let n = 1 + prng.below(visible);
                        let (trailer, found) = table.get(&key_of(n), visible).expect("published");
                        assert_eq!((trailer, &*found), (value(n), &key_of(n)[..]));
                    }
                    if visible == records {
                        return;
                    }
                }
            });
        }
        for n in 1..=records {
            writer.insert(InternalKey::new(&key_of(n), value(n)), &key_of(n)).unwrap();
            published.store(n, Ordering::Release);
        }
    });
    assert_eq!(table.entries() as u64, records);
}
