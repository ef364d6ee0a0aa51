//! The writes of one entry, encoded as they are logged and applied.

use atoll_encoding::{Malformed, varint};

use crate::batch::{
    INSERT, INSERT_VERSION, REMOVE, REMOVE_RANGE, REMOVE_VERSION, Record, Records, VERSION,
    value_arena_bytes,
};
use crate::error::{Error, Result};
use crate::memtable::Memtable;
use crate::options::VALUE_LEN_MAX;

/// Longest key, in bytes.
pub const KEY_LEN_MAX: usize = crate::options::KEY_LEN_MAX;

/// What stands for a stamp in [`Writes`].
#[derive(Clone, Copy, Debug)]
pub enum Stamp {}

impl Stamp {
    /// A stamp that [`Writes::set_stamp`] gives later. The largest number: no version has it.
    pub const LATER: u64 = u64::MAX;
}

/// Writes that take effect together, in the order in which they are added.
///
/// A builder that is used again and again: [`Writes::clear`] keeps the memory. Keys are raw bytes. A
/// key has either plain records or versions, never both; the stamps of a key never descend.
///
/// The commit timestamp of an entry is known only when it is proposed, and its writes are built
/// before: stamps given as [`Stamp::LATER`] are put in by [`Writes::set_stamp`].
#[derive(Clone, Debug)]
pub struct Writes {
    bytes: Vec<u8>,
    /// The most arena bytes that the records take.
    arena: usize,
    /// Where in `bytes` the stamps are that are given later.
    later: Vec<usize>,
    /// Whether they were given.
    stamped: bool,
    mistake: Option<Error>,
}

impl Default for Writes {
    fn default() -> Writes {
        Writes::new()
    }
}

impl Writes {
    /// Returns a builder without writes.
    pub fn new() -> Writes {
        let (later, mistake) = (Vec::new(), None);
        Writes { bytes: vec![VERSION], arena: 0, later, stamped: true, mistake }
    }

    /// Forgets all writes and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.truncate(1);
        self.arena = 0;
        self.later.clear();
        self.stamped = true;
        self.mistake = None;
    }

    /// Returns whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == 1
    }

    /// Sets `key` to `value`, the concatenation of its parts.
    pub fn insert(&mut self, key: &[u8], value: &[&[u8]]) {
        let len = self.begin(INSERT, key, value);
        self.push_value(value, len);
        self.arena += value_arena_bytes(key.len(), len);
    }

    /// Removes `key`.
    pub fn remove(&mut self, key: &[u8]) {
        self.begin(REMOVE, key, &[]);
        self.arena += Memtable::record_bytes(key.len(), 0);
    }

    /// Adds a version of `key`; its value is the concatenation of its parts.
    pub fn insert_version(&mut self, key: &[u8], stamp: u64, value: &[&[u8]]) {
        let len = self.begin(INSERT_VERSION, key, value);
        self.push_stamp(stamp);
        self.push_value(value, len);
        self.arena += value_arena_bytes(key.len(), len);
    }

    /// Adds a version of `key` that says that it is deleted.
    pub fn remove_version(&mut self, key: &[u8], stamp: u64) {
        self.begin(REMOVE_VERSION, key, &[]);
        self.push_stamp(stamp);
        self.arena += Memtable::record_bytes(key.len(), 8);
    }

    /// Removes every key from `start` to before `end` with all its versions, whatever their stamps,
    /// at a cost independent of their number. An empty range is dropped.
    pub fn remove_range(&mut self, start: &[u8], end: &[u8]) {
        if start >= end {
            return;
        }
        self.begin(REMOVE_RANGE, start, &[end]);
        self.check_key(end);
        varint::put_bytes(&mut self.bytes, end);
        self.arena += Memtable::range_bytes(start.len(), end.len());
    }

    /// Puts `stamp` wherever [`Stamp::LATER`] was given since the last [`Writes::clear`]. May be
    /// called again: the last one counts.
    pub fn set_stamp(&mut self, stamp: u64) {
        for &at in &self.later {
            self.bytes[at..at + 8].copy_from_slice(&stamp.to_le_bytes());
        }
        self.stamped = true;
    }

    /// Fails if a key or value was too long: such writes must not get into the log.
    pub fn check(&self) -> Result<()> {
        self.mistake.clone().map_or(Ok(()), Err)
    }

    /// Returns the encoding, for the payload of an entry and for [`Driver::apply`].
    ///
    /// # Panics
    /// A key or value was too long, and the caller did not [`check`](Writes::check).
    ///
    /// [`Driver::apply`]: super::Driver::apply
    pub fn bytes(&self) -> &[u8] {
        if let Some(mistake) = &self.mistake {
            panic!("writes that cannot be logged: {mistake}");
        }
        debug_assert!(self.stamped, "a stamp that was to be given later was not");
        &self.bytes
    }

    /// Returns the memtable room that the writes take, at the most.
    pub fn arena_bytes(&self) -> usize {
        self.arena
    }

    /// Begins a record; returns the length of its value.
    fn begin(&mut self, kind: u8, key: &[u8], value: &[&[u8]]) -> usize {
        self.check_key(key);
        let len = value.iter().map(|part| part.len()).sum();
        if len > VALUE_LEN_MAX {
            self.mistake(format!(
                "a value of {len} bytes is too long: the limit is {VALUE_LEN_MAX}, split it"
            ));
        }
        self.bytes.reserve(1 + 8 + 2 * varint::MAX_LEN + key.len() + len);
        self.bytes.push(kind);
        varint::put_bytes(&mut self.bytes, key);
        len
    }

    fn push_value(&mut self, value: &[&[u8]], len: usize) {
        varint::put(&mut self.bytes, len as u64);
        value.iter().for_each(|part| self.bytes.extend_from_slice(part));
    }

    fn push_stamp(&mut self, stamp: u64) {
        if stamp == Stamp::LATER {
            self.later.push(self.bytes.len());
            self.stamped = false;
        }
        self.bytes.extend_from_slice(&stamp.to_le_bytes());
    }

    fn check_key(&mut self, key: &[u8]) {
        if key.len() > KEY_LEN_MAX {
            self.mistake(format!(
                "a key of {} bytes is too long: the limit is {KEY_LEN_MAX}",
                key.len()
            ));
        }
    }

    fn mistake(&mut self, what: String) {
        self.mistake.get_or_insert(Error::InvalidInput(what));
    }
}

/// Returns the memtable room that encoded writes take, at the most: [`Writes::arena_bytes`] of writes that
/// somebody else has built.
///
/// # Errors
/// `InvalidInput`: the bytes are no writes.
pub fn arena_bytes(writes: &[u8]) -> Result<usize> {
    if writes.is_empty() { Ok(0) } else { crate::store::arena_bytes(writes) }
}

/// One of [`Writes`], as it was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the parameters of the methods of `Writes`")]
pub enum Write<'a> {
    /// [`Writes::insert`].
    Insert { key: &'a [u8], value: &'a [u8] },
    /// [`Writes::remove`].
    Remove { key: &'a [u8] },
    /// [`Writes::insert_version`].
    InsertVersion { key: &'a [u8], stamp: u64, value: &'a [u8] },
    /// [`Writes::remove_version`].
    RemoveVersion { key: &'a [u8], stamp: u64 },
    /// [`Writes::remove_range`].
    RemoveRange { start: &'a [u8], end: &'a [u8] },
}

impl<'a> Write<'a> {
    /// Returns what a record says; a merge operand is none of an owner's.
    fn of(record: Record<'a>) -> Option<Write<'a>> {
        Some(match record {
            // A deadline is nothing that an owner can give.
            Record::Insert { key, value, deadline: _ } => Write::Insert { key, value },
            Record::Remove { key } => Write::Remove { key },
            Record::InsertVersion { key, stamp, value } => {
                Write::InsertVersion { key, stamp, value }
            }
            Record::RemoveVersion { key, stamp } => Write::RemoveVersion { key, stamp },
            Record::RemoveRange { start, end } => Write::RemoveRange { start, end },
            Record::Merge { .. } => return None,
        })
    }
}

/// Takes [`Writes::bytes`] apart, in the order in which the writes were added: for whoever looks at
/// a log, or keeps what it says elsewhere.
///
/// # Errors
/// The bytes are of an unknown version; from then on, of each write: it is cut, or of an unknown
/// kind.
pub fn decode(
    bytes: &[u8],
) -> Result<impl Iterator<Item = Result<Write<'_>, Malformed>>, Malformed> {
    let mut records = Records::new(bytes)?;
    Ok(std::iter::from_fn(move || {
        let foreign = records.here("a write that an owner can make");
        let record = records.next()?;
        Some(record.and_then(|record| Write::of(record).ok_or(foreign)))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::CHUNKED_ABOVE;
    use crate::store::arena_bytes;

    fn records(writes: &Writes) -> Vec<Record<'_>> {
        Records::new(writes.bytes()).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn writes_decode_to_what_was_added_and_know_their_room() {
        let mut writes = Writes::new();
        assert!(writes.is_empty() && records(&writes).is_empty());
        for _ in 0..2 {
            writes.insert(b"a", &[b"1", b"", b"23"]);
            writes.remove(b"b");
            writes.insert_version(b"c", 7, &[b"v"]);
            writes.remove_version(b"d", 8);
            writes.remove_range(b"e", b"f");
            writes.remove_range(b"f", b"f");
            writes.insert(b"", &[]);
            let expected = [
                Record::Insert { key: b"a", value: b"123", deadline: None },
                Record::Remove { key: b"b" },
                Record::InsertVersion { key: b"c", stamp: 7, value: b"v" },
                Record::RemoveVersion { key: b"d", stamp: 8 },
                Record::RemoveRange { start: b"e", end: b"f" },
                Record::Insert { key: b"", value: b"", deadline: None },
            ];
            assert_eq!(records(&writes), expected);
            let decoded: Vec<Write<'_>> =
                decode(writes.bytes()).unwrap().map(|write| write.unwrap()).collect();
            let added = [
                Write::Insert { key: b"a", value: b"123" },
                Write::Remove { key: b"b" },
                Write::InsertVersion { key: b"c", stamp: 7, value: b"v" },
                Write::RemoveVersion { key: b"d", stamp: 8 },
                Write::RemoveRange { start: b"e", end: b"f" },
                Write::Insert { key: b"", value: b"" },
            ];
            assert_eq!(decoded, added);
            assert_eq!(writes.arena_bytes(), arena_bytes(writes.bytes()).unwrap());
            writes.clear();
            assert!(writes.is_empty() && writes.arena_bytes() == 0);
        }
        writes.insert_version(b"long", 1, &[&vec![1; CHUNKED_ABOVE], b"x"]);
        assert_eq!(writes.arena_bytes(), arena_bytes(writes.bytes()).unwrap());
    }

    #[test]
    fn stamps_given_later_are_put_in_and_others_stay() {
        let mut writes = Writes::new();
        writes.insert_version(b"a", Stamp::LATER, &[b"v"]);
        writes.insert_version(b"b", 5, &[b"v"]);
        writes.remove_version(b"c", Stamp::LATER);
        for stamp in [9, 10] {
            writes.set_stamp(stamp);
            let expected = [
                Record::InsertVersion { key: b"a", stamp, value: b"v" },
                Record::InsertVersion { key: b"b", stamp: 5, value: b"v" },
                Record::RemoveVersion { key: b"c", stamp },
            ];
            assert_eq!(records(&writes), expected);
        }
        writes.clear();
        writes.insert_version(b"a", 3, &[]);
        writes.set_stamp(11);
        assert_eq!(records(&writes), [Record::InsertVersion { key: b"a", stamp: 3, value: b"" }]);
    }

    #[test]
    fn a_key_that_is_too_long_is_a_mistake_until_the_writes_are_cleared() {
        let mut writes = Writes::new();
        writes.insert(&vec![0; KEY_LEN_MAX], &[]);
        writes.check().unwrap();
        writes.remove_range(b"", &vec![0; KEY_LEN_MAX + 1]);
        assert!(matches!(writes.check(), Err(Error::InvalidInput(_))));
        writes.clear();
        writes.check().unwrap();
    }
}
