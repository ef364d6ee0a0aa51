//! The structures behind one face.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use atoll_encoding::hash::HashMap;
use atoll_lsm::key::{InternalKey, Kind as Record, SEQNO_MAX, Trailer};
use atoll_lsm::memtable::{CAPACITY_MAX, Memtable, Writer};
#[cfg(feature = "peers-rust")]
use crossbeam_skiplist::SkipMap;

use super::measure;
use super::report::Figures;
use crate::Failure;
use crate::data::{KEY_LEN, VALUE_LEN};
use crate::engines::Direction;

/// Records up to which a sorted vector is filled: an insert moves half of it, so that filling it
/// is quadratic and takes seconds beyond.
const SORTED_VEC_MAX: u64 = 50_000;

/// A structure that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// The engine's memtable.
    ArenaSkiplist,
    /// A lock-free skip list of many writers, a heap allocation for each node.
    #[cfg(feature = "peers-rust")]
    CrossbeamSkiplist,
    /// The standard library's B-tree.
    BtreeMap,
    /// A vector kept in order: the least that can be searched.
    SortedVec,
    /// The standard library's hash map with a fixed seed: the fastest lookup, without an order.
    HashMap,
}

/// Returns the structures this program was built with, ours first.
pub fn built_in() -> Vec<Kind> {
    <Kind as clap::ValueEnum>::value_variants().to_vec()
}

impl Kind {
    /// Returns the name, as table and JSON spell it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::ArenaSkiplist => "arena-skiplist",
            #[cfg(feature = "peers-rust")]
            Kind::CrossbeamSkiplist => "crossbeam-skiplist",
            Kind::BtreeMap => "btree-map",
            Kind::SortedVec => "sorted-vec",
            Kind::HashMap => "hash-map",
        }
    }

    /// Returns how many of so many records it is measured with.
    pub fn entries(self, asked: u64) -> u64 {
        if self == Kind::SortedVec { asked.min(SORTED_VEC_MAX) } else { asked }
    }

    /// Fails if it cannot hold so many records.
    pub fn admit(self, entries: u64) -> Result<(), Failure> {
        if self == Kind::ArenaSkiplist && capacity(entries).is_none() {
            let most = CAPACITY_MAX / Memtable::record_bytes(KEY_LEN, VALUE_LEN) / 1_100_000;
            return Err(format!(
                "{entries} entries are more than one memtable holds; ask for at most {most}M"
            )
            .into());
        }
        Ok(())
    }
}

/// Measures a structure in this process.
pub fn measure(kind: Kind, entries: u64) -> Result<Figures, Failure> {
    kind.admit(entries)?;
    match kind {
        Kind::ArenaSkiplist => measure::of::<ArenaSkiplist>(entries),
        #[cfg(feature = "peers-rust")]
        Kind::CrossbeamSkiplist => measure::of::<SkipMap<Bytes, Bytes>>(entries),
        Kind::BtreeMap => measure::of::<BTreeMap<Bytes, Bytes>>(entries),
        Kind::SortedVec => measure::of::<SortedVec>(entries),
        Kind::HashMap => measure::of::<HashMap<Bytes, Bytes>>(entries),
    }
}

/// What is measured of a structure. Not an object-safe face: a call through a table of functions
/// would be a noticeable part of a lookup.
pub trait Structure: Sized {
    /// Makes an empty one. Only the memtable, whose capacity is fixed, looks at `entries`.
    fn new(entries: u64) -> Self;
    /// Inserts a record whose key is not there.
    fn insert(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure>;
    /// Touches a key's value, and returns whether it was there.
    fn get(&self, key: &[u8]) -> bool;
    /// Touches all records in key order and returns how many there were, or `None` if it has no
    /// order.
    fn scan(&self, direction: Direction) -> Option<u64>;
    /// Returns the bytes it uses that did not come from the allocator.
    fn mapped(&self) -> usize {
        0
    }
}

/// Owned bytes of any length, without spare room.
type Bytes = Box<[u8]>;

/// Reads both ends, so that the bytes have to come to the processor.
#[inline]
fn touch(bytes: &[u8]) {
    black_box((bytes.first().copied(), bytes.last().copied()));
}

/// Touches what an iterator yields and counts it.
fn walk<'a>(records: impl Iterator<Item = (&'a Bytes, &'a Bytes)>) -> u64 {
    records.fold(0, |met, (key, value)| {
        touch(key);
        touch(value);
        met + 1
    })
}

/// Returns a memtable's capacity for so many records, unless it is beyond what one can have.
fn capacity(entries: u64) -> Option<usize> {
    let bytes = usize::try_from(entries).ok()?;
    let bytes = bytes.checked_mul(Memtable::record_bytes(KEY_LEN, VALUE_LEN))?;
    (bytes <= CAPACITY_MAX / 11 * 10).then(|| Memtable::capacity_for(bytes))
}

struct ArenaSkiplist {
    writer: Writer,
    table: Arc<Memtable>,
    /// Number of the next record, as every record of the engine has one.
    seqno: u64,
}

impl Structure for ArenaSkiplist {
    fn new(entries: u64) -> Self {
        let (writer, table) = Memtable::new(capacity(entries).unwrap_or(CAPACITY_MAX));
        ArenaSkiplist { writer, table, seqno: 0 }
    }

    fn insert(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.seqno += 1;
        let trailer = Trailer::new(self.seqno, Record::Value);
        Ok(self.writer.insert(InternalKey::new(key, trailer), value)?)
    }

    fn get(&self, key: &[u8]) -> bool {
        self.table.get(key, SEQNO_MAX).map(|(_, value)| touch(&value)).is_some()
    }

    fn scan(&self, direction: Direction) -> Option<u64> {
        let mut iter = self.table.iter();
        let mut met = 0;
        match direction {
            Direction::Forward => iter.first(),
            Direction::Reverse => iter.last(),
        }
        while iter.valid() {
            touch(iter.key().user_key);
            touch(iter.value());
            met += 1;
            match direction {
                Direction::Forward => iter.next(),
                Direction::Reverse => iter.prev(),
            }
        }
        Some(met)
    }

    fn mapped(&self) -> usize {
        self.table.bytes_used()
    }
}

#[cfg(feature = "peers-rust")]
impl Structure for SkipMap<Bytes, Bytes> {
    fn new(_: u64) -> Self {
        SkipMap::new()
    }

    fn insert(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        SkipMap::insert(self, key.into(), value.into());
        Ok(())
    }

    fn get(&self, key: &[u8]) -> bool {
        SkipMap::get(self, key).map(|entry| touch(entry.value())).is_some()
    }

    fn scan(&self, direction: Direction) -> Option<u64> {
        let mut met = 0;
        let mut iter = self.iter();
        let mut next = || match direction {
            Direction::Forward => iter.next(),
            Direction::Reverse => iter.next_back(),
        };
        while let Some(entry) = next() {
            touch(entry.key());
            touch(entry.value());
            met += 1;
        }
        Some(met)
    }
}

impl Structure for BTreeMap<Bytes, Bytes> {
    fn new(_: u64) -> Self {
        BTreeMap::new()
    }

    fn insert(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        BTreeMap::insert(self, key.into(), value.into());
        Ok(())
    }

    fn get(&self, key: &[u8]) -> bool {
        BTreeMap::get(self, key).map(|value| touch(value)).is_some()
    }

    fn scan(&self, direction: Direction) -> Option<u64> {
        Some(match direction {
            Direction::Forward => walk(self.iter()),
            Direction::Reverse => walk(self.iter().rev()),
        })
    }
}

struct SortedVec(Vec<(Bytes, Bytes)>);

impl SortedVec {
    /// Returns where a key is, or where it would have to be.
    fn search(&self, key: &[u8]) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| (**other).cmp(key))
    }
}

impl Structure for SortedVec {
    fn new(_: u64) -> Self {
        SortedVec(Vec::new())
    }

    fn insert(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        let (Ok(at) | Err(at)) = self.search(key);
        self.0.insert(at, (key.into(), value.into()));
        Ok(())
    }

    fn get(&self, key: &[u8]) -> bool {
        let found = self.search(key).ok().and_then(|at| self.0.get(at));
        found.map(|(_, value)| touch(value)).is_some()
    }

    fn scan(&self, direction: Direction) -> Option<u64> {
        let records = self.0.iter().map(|(key, value)| (key, value));
        Some(match direction {
            Direction::Forward => walk(records),
            Direction::Reverse => walk(records.rev()),
        })
    }
}

impl Structure for HashMap<Bytes, Bytes> {
    fn new(_: u64) -> Self {
        HashMap::default()
    }

    fn insert(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        HashMap::insert(self, key.into(), value.into());
        Ok(())
    }

    fn get(&self, key: &[u8]) -> bool {
        HashMap::get(self, key).map(|value| touch(value)).is_some()
    }

    fn scan(&self, _: Direction) -> Option<u64> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data;

    fn check<S: Structure>(ordered: bool) {
        let mut structure = S::new(1000);
        for n in 0..1000 {
            structure.insert(&data::key(n), &data::value(n)).unwrap();
        }
        assert!((0..1000).all(|n| structure.get(&data::key(n))));
        assert!(!structure.get(&data::absent_key(7)));
        let expected = ordered.then_some(1000);
        assert_eq!(structure.scan(Direction::Forward), expected);
        assert_eq!(structure.scan(Direction::Reverse), expected);
    }

    #[test]
    fn every_structure_finds_and_walks_what_it_was_given() {
        check::<ArenaSkiplist>(true);
        #[cfg(feature = "peers-rust")]
        check::<SkipMap<Bytes, Bytes>>(true);
        check::<BTreeMap<Bytes, Bytes>>(true);
        check::<SortedVec>(true);
        check::<HashMap<Bytes, Bytes>>(false);
    }

    #[test]
    fn what_a_memtable_cannot_hold_is_refused_in_a_sentence() {
        assert!(Kind::ArenaSkiplist.admit(15_000_000).is_ok());
        let refused = Kind::ArenaSkiplist.admit(17_000_000).unwrap_err().to_string();
        assert!(refused.contains("at most 15M") || refused.contains("at most 16M"), "{refused}");
        assert!(Kind::ArenaSkiplist.admit(u64::MAX).is_err());
        assert_eq!(Kind::SortedVec.entries(1_000_000), SORTED_VEC_MAX);
    }
}
