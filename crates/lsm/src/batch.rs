//! Batches: writes that take effect together. A batch is the payload of one log entry.
//!
//! ```text
//!   +---------+---------------------------------------------------------------+
//!   | version | record, record, ...                                           |
//!   +---------+---------------------------------------------------------------+
//!   insert           1 | key | value               bytes: varint length, content
//!   insert expiring  2 | key | deadline u64 | value
//!   remove           3 | key
//!   remove range     4 | start | end               end is exclusive
//!   insert version   5 | key | stamp u64 | value
//!   remove version   6 | key | stamp u64
//!   merge            7 | key | deadline u64 | operand      deadline 0: none
//! ```
//!
//! Every record takes one sequence number or, for a long value, one for each chunk and one for the
//! head. A record is never shorter in bytes than the numbers it takes, so numbers counted from the
//! entry's log position never reach those of the next entry.
//!
//! Keys of a [`Batch`] carry the 4-byte big-endian keyspace id in front, those of a store's owner
//! ([`crate::driven::Writes`]) are as it likes. The page is docs/formats/batch.md.

use atoll_encoding::{Malformed, Reader, varint};

use crate::error::{Error, Result};
use crate::iter::scan::Bounds;
use crate::key::SeqNo;
use crate::keyspace::Keyspace;
use crate::memtable::Memtable;
use crate::merge;
use crate::options::{KEY_LEN_MAX, VALUE_LEN_MAX};

/// Format version of a batch.
pub(crate) const VERSION: u8 = 1;
/// Values longer than this are stored in chunks.
pub(crate) const CHUNKED_ABOVE: usize = 1 << 20;
/// Length of a chunk.
pub(crate) const CHUNK_LEN: usize = 256 << 10;

pub(crate) const INSERT: u8 = 1;
const INSERT_EXPIRING: u8 = 2;
pub(crate) const REMOVE: u8 = 3;
pub(crate) const REMOVE_RANGE: u8 = 4;
pub(crate) const INSERT_VERSION: u8 = 5;
pub(crate) const REMOVE_VERSION: u8 = 6;
pub(crate) const MERGE: u8 = 7;

/// Writes to any keyspaces of one database that become visible, and durable, together.
///
/// Records apply in the order they were added; a later one on the same key wins.
#[derive(Clone, Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    records: usize,
    /// The most arena bytes that the records take.
    arena: usize,
    removes_range: bool,
    /// First mistake, reported when the batch is written: a builder that fails half-way would
    /// tempt callers into writing the rest.
    mistake: Option<Error>,
}

impl Default for Batch {
    fn default() -> Batch {
        Batch::new()
    }
}

impl Batch {
    /// Returns an empty batch.
    pub fn new() -> Batch {
        Batch { bytes: vec![VERSION], records: 0, arena: 0, removes_range: false, mistake: None }
    }

    /// Sets `key` to `value`.
    pub fn insert(&mut self, keyspace: &Keyspace, key: &[u8], value: &[u8]) -> &mut Batch {
        match keyspace.default_deadline() {
            Some(deadline) => self.insert_expiring(keyspace, key, value, deadline),
            None => self.insert_raw(keyspace.id(), key, value, None),
        }
    }

    /// Sets `key` to `value` until `deadline`, in milliseconds since the Unix epoch.
    pub fn insert_expiring(
        &mut self,
        keyspace: &Keyspace,
        key: &[u8],
        value: &[u8],
        deadline: u64,
    ) -> &mut Batch {
        self.insert_raw(keyspace.id(), key, value, Some(deadline))
    }

    /// Sets `key` to `value` without a deadline, also where the keyspace has a time to live.
    pub fn insert_lasting(&mut self, keyspace: &Keyspace, key: &[u8], value: &[u8]) -> &mut Batch {
        self.insert_raw(keyspace.id(), key, value, None)
    }

    /// Removes `key`.
    pub fn remove(&mut self, keyspace: &Keyspace, key: &[u8]) -> &mut Batch {
        self.remove_raw(keyspace.id(), key)
    }

    /// Has the keyspace's merge operator change the value of `key` by `operand`, of at most 1 MiB,
    /// without reading it: see [`MergeOperator`](crate::MergeOperator).
    pub fn merge(&mut self, keyspace: &Keyspace, key: &[u8], operand: &[u8]) -> &mut Batch {
        let deadline = keyspace.window_deadline();
        self.merge_checked(keyspace, key, operand, deadline)
    }

    /// As [`merge`](Self::merge), with an operand that counts until `deadline`, in milliseconds since
    /// the Unix epoch.
    pub fn merge_expiring(
        &mut self,
        keyspace: &Keyspace,
        key: &[u8],
        operand: &[u8],
        deadline: u64,
    ) -> &mut Batch {
        // Zero stands for no deadline in what is stored.
        self.merge_checked(keyspace, key, operand, Some(deadline.max(1)))
    }

    fn merge_checked(
        &mut self,
        keyspace: &Keyspace,
        key: &[u8],
        operand: &[u8],
        deadline: Option<u64>,
    ) -> &mut Batch {
        if let Err(mistake) = merge::check_operand(&keyspace.about, operand) {
            self.mistake.get_or_insert(mistake);
            return self;
        }
        self.merge_raw(keyspace.id(), key, operand, deadline)
    }

    /// Removes every key from `start` to before `end`, at a cost independent of their number.
    pub fn remove_range(&mut self, keyspace: &Keyspace, start: &[u8], end: &[u8]) -> &mut Batch {
        self.check_key(start);
        self.check_key(end);
        let id = keyspace.id().to_be_bytes();
        self.push_range(&[&id, start].concat(), &[&id, end].concat())
    }

    /// Removes every key of `keyspace`, at a cost independent of their number.
    pub fn clear(&mut self, keyspace: &Keyspace) -> &mut Batch {
        self.clear_raw(keyspace.id())
    }

    /// Returns whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.records == 0 && self.mistake.is_none()
    }

    /// Returns the number of records.
    pub fn len(&self) -> usize {
        self.records
    }

    /// Returns the encoded size, in bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn insert_raw(
        &mut self,
        keyspace: u32,
        key: &[u8],
        value: &[u8],
        deadline: Option<u64>,
    ) -> &mut Batch {
        self.check_key(key);
        if value.len() > VALUE_LEN_MAX {
            self.mistake(format!(
                "a value of {} bytes is too long: the limit is {VALUE_LEN_MAX}, split it",
                value.len()
            ));
            return self;
        }
        self.bytes.reserve(key.len() + value.len() + 32);
        self.bytes.push(if deadline.is_some() { INSERT_EXPIRING } else { INSERT });
        self.push_key(keyspace, key);
        if let Some(deadline) = deadline {
            // Zero stands for no deadline in what is stored.
            self.bytes.extend_from_slice(&deadline.max(1).to_le_bytes());
        }
        varint::put_bytes(&mut self.bytes, value);
        self.records += 1;
        self.arena += value_arena_bytes(4 + key.len(), value.len());
        self
    }

    pub(crate) fn merge_raw(
        &mut self,
        keyspace: u32,
        key: &[u8],
        operand: &[u8],
        deadline: Option<u64>,
    ) -> &mut Batch {
        self.check_key(key);
        if let Err(mistake) = merge::check_len(operand) {
            self.mistake.get_or_insert(mistake);
            return self;
        }
        self.bytes.reserve(key.len() + operand.len() + 32);
        self.bytes.push(MERGE);
        self.push_key(keyspace, key);
        self.bytes.extend_from_slice(&deadline.unwrap_or(0).to_le_bytes());
        varint::put_bytes(&mut self.bytes, operand);
        self.records += 1;
        self.arena += Memtable::record_bytes(4 + key.len(), 8 + operand.len());
        self
    }

    pub(crate) fn remove_raw(&mut self, keyspace: u32, key: &[u8]) -> &mut Batch {
        self.check_key(key);
        self.bytes.push(REMOVE);
        self.push_key(keyspace, key);
        self.records += 1;
        self.arena += Memtable::record_bytes(4 + key.len(), 0);
        self
    }

    pub(crate) fn remove_bounds(&mut self, bounds: Bounds) -> &mut Batch {
        for key in [&bounds.start, &bounds.end] {
            self.check_key(&key[4.min(key.len())..]);
        }
        self.push_range(&bounds.start, &bounds.end)
    }

    pub(crate) fn clear_raw(&mut self, keyspace: u32) -> &mut Batch {
        self.push_range(&keyspace.to_be_bytes(), &(keyspace + 1).to_be_bytes())
    }

    fn push_range(&mut self, start: &[u8], end: &[u8]) -> &mut Batch {
        if start >= end {
            return self;
        }
        self.bytes.push(REMOVE_RANGE);
        varint::put_bytes(&mut self.bytes, start);
        varint::put_bytes(&mut self.bytes, end);
        self.records += 1;
        self.arena += Memtable::range_bytes(start.len(), end.len());
        self.removes_range = true;
        self
    }

    fn push_key(&mut self, keyspace: u32, key: &[u8]) {
        varint::put(&mut self.bytes, key.len() as u64 + 4);
        self.bytes.extend_from_slice(&keyspace.to_be_bytes());
        self.bytes.extend_from_slice(key);
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

    /// Gives up the encoded bytes, or the first mistake.
    pub(crate) fn into_payload(self) -> Result<Payload> {
        match self.mistake {
            Some(mistake) => Err(mistake),
            None => {
                let Batch { bytes, arena, removes_range, .. } = self;
                Ok(Payload { bytes, arena, removes_range })
            }
        }
    }
}

/// A batch ready for the log.
#[derive(Debug)]
pub(crate) struct Payload {
    pub(crate) bytes: Vec<u8>,
    /// The most arena bytes that its records take.
    pub(crate) arena: usize,
    /// Whether a range is removed: the crash harness counts such entries apart.
    pub(crate) removes_range: bool,
}

/// One write of a decoded batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    Insert { key: &'a [u8], value: &'a [u8], deadline: Option<u64> },
    Remove { key: &'a [u8] },
    RemoveRange { start: &'a [u8], end: &'a [u8] },
    InsertVersion { key: &'a [u8], stamp: u64, value: &'a [u8] },
    RemoveVersion { key: &'a [u8], stamp: u64 },
    Merge { key: &'a [u8], deadline: u64, operand: &'a [u8] },
}

impl Record<'_> {
    /// Returns how many sequence numbers the record takes.
    pub(crate) fn seqnos(&self) -> SeqNo {
        match self {
            Record::Insert { value, .. } | Record::InsertVersion { value, .. } => {
                value_seqnos(value.len())
            }
            _ => 1,
        }
    }

    /// Returns the most arena bytes that the record takes.
    pub(crate) fn arena_bytes(&self) -> usize {
        match self {
            Record::Insert { key, value, .. } | Record::InsertVersion { key, value, .. } => {
                value_arena_bytes(key.len(), value.len())
            }
            Record::Remove { key } => Memtable::record_bytes(key.len(), 0),
            Record::RemoveVersion { key, .. } => Memtable::record_bytes(key.len(), 8),
            Record::Merge { key, operand, .. } => {
                Memtable::record_bytes(key.len(), 8 + operand.len())
            }
            Record::RemoveRange { start, end } => Memtable::range_bytes(start.len(), end.len()),
        }
    }
}

/// Returns how many sequence numbers a value of this length takes.
#[inline]
fn value_seqnos(len: usize) -> SeqNo {
    if len > CHUNKED_ABOVE { len.div_ceil(CHUNK_LEN) as SeqNo + 1 } else { 1 }
}

/// Returns the most arena bytes that a value takes, with or without a deadline or stamp.
#[inline]
pub(crate) fn value_arena_bytes(key_len: usize, len: usize) -> usize {
    // Beside the value itself a deadline, a stamp or the head of a chunked one.
    value_seqnos(len) as usize * Memtable::record_bytes(key_len, 20) + len
}

/// Returns a number of arena bytes that no batch of `len` bytes exceeds, without looking into it.
pub(crate) fn arena_bytes_most(len: usize) -> usize {
    // The dearest record by the byte is the removal of an empty key.
    const REMOVE_LEN: usize = 2;
    len.saturating_mul(Memtable::record_bytes(0, 20) / REMOVE_LEN)
}

/// Decodes the records of a payload.
pub(crate) struct Records<'a> {
    reader: Reader<'a>,
}

impl<'a> Records<'a> {
    pub(crate) fn new(payload: &'a [u8]) -> Result<Records<'a>, Malformed> {
        let mut reader = Reader::new(payload);
        let at_version = reader.malformed("batch version 1");
        if reader.u8("batch version")? != VERSION {
            return Err(at_version);
        }
        Ok(Records { reader })
    }

    /// Says what was expected where the next record begins.
    pub(crate) fn here(&self, expected: &'static str) -> Malformed {
        self.reader.malformed(expected)
    }

    fn record(&mut self) -> Result<Record<'a>, Malformed> {
        let r = &mut self.reader;
        let unknown = r.malformed("a known record kind");
        let kind = r.u8("a record kind")?;
        Ok(match kind {
            INSERT => Record::Insert {
                key: r.bytes("a key")?,
                value: r.bytes("a value")?,
                deadline: None,
            },
            INSERT_EXPIRING => {
                let key = r.bytes("a key")?;
                let deadline = Some(r.u64("a deadline")?);
                Record::Insert { key, value: r.bytes("a value")?, deadline }
            }
            REMOVE => Record::Remove { key: r.bytes("a key")? },
            INSERT_VERSION => {
                let key = r.bytes("a key")?;
                let stamp = r.u64("a stamp")?;
                Record::InsertVersion { key, stamp, value: r.bytes("a value")? }
            }
            REMOVE_VERSION => {
                Record::RemoveVersion { key: r.bytes("a key")?, stamp: r.u64("a stamp")? }
            }
            MERGE => {
                let key = r.bytes("a key")?;
                let deadline = r.u64("a deadline")?;
                Record::Merge { key, deadline, operand: r.bytes("an operand")? }
            }
            REMOVE_RANGE => {
                Record::RemoveRange { start: r.bytes("a key")?, end: r.bytes("a key")? }
            }
            _ => return Err(unknown),
        })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Malformed>;
    fn next(&mut self) -> Option<Self::Item> {
        (!self.reader.is_empty()).then(|| self.record())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip_and_every_cut_is_refused_or_shorter() {
        let mut batch = Batch::new();
        batch.insert_raw(7, b"key", b"value", None);
        batch.insert_raw(7, b"", b"", Some(99));
        batch.remove_raw(8, b"gone");
        batch.clear_raw(9);
        batch.merge_raw(9, b"n", b"+1", None);
        let mut payload = batch.into_payload().unwrap();
        assert!(payload.removes_range);
        assert_eq!(payload.arena, crate::store::arena_bytes(&payload.bytes).unwrap());
        payload.bytes.extend_from_slice(&[
            INSERT_VERSION,
            1,
            b'a',
            7,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            1,
            b'v',
        ]);
        payload.bytes.extend_from_slice(&[REMOVE_VERSION, 1, b'b', 8, 0, 0, 0, 0, 0, 0, 0]);
        let all: Vec<_> = Records::new(&payload.bytes).unwrap().map(Result::unwrap).collect();
        assert_eq!(
            all,
            [
                Record::Insert { key: b"\0\0\0\x07key", value: b"value", deadline: None },
                Record::Insert { key: b"\0\0\0\x07", value: b"", deadline: Some(99) },
                Record::Remove { key: b"\0\0\0\x08gone" },
                Record::RemoveRange { start: b"\0\0\0\x09", end: b"\0\0\0\x0a" },
                Record::Merge { key: b"\0\0\0\x09n", deadline: 0, operand: b"+1" },
                Record::InsertVersion { key: b"a", stamp: 7, value: b"v" },
                Record::RemoveVersion { key: b"b", stamp: 8 },
            ]
        );
        for len in 1..payload.bytes.len() {
            let cut = Records::new(&payload.bytes[..len]).unwrap();
            let good = cut.map_while(Result::ok).count();
            assert!(good < all.len() && good <= len);
        }
    }

    #[test]
    fn a_record_takes_no_more_sequence_numbers_than_bytes() {
        let value = vec![0; CHUNKED_ABOVE + 1];
        let record = Record::Insert { key: b"k", value: &value, deadline: None };
        assert_eq!(record.seqnos(), 6);
        assert!(record.seqnos() < value.len() as u64);
    }

    #[test]
    fn a_key_that_is_too_long_spoils_the_whole_batch() {
        let mut batch = Batch::new();
        batch.insert_raw(1, b"fine", b"v", None);
        batch.insert_raw(1, &vec![0; KEY_LEN_MAX + 1], b"v", None);
        assert!(matches!(batch.into_payload(), Err(Error::InvalidInput(_))));
        let mut batch = Batch::new();
        batch.merge_raw(1, b"k", &vec![0; merge::OPERAND_LEN_MAX + 1], None);
        assert!(matches!(batch.into_payload(), Err(Error::InvalidInput(_))));
    }
}
