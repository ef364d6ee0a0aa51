//! Entries: the effects of a turn, as they are logged and applied.
//!
//! ```text
//!   +------+---------------+----------------------------+---------------------------+
//!   | kind | bound u64 LE  | split: the two descriptors | writes: an encoded batch  |
//!   +------+---------------+----------------------------+---------------------------+
//!   kind 1  effects: only writes
//!   kind 2  the shard is split: left and right descriptor, then writes
//!   + 128   a new bound of the lane's timestamps stands behind the kind
//! ```
//!
//! The bound is also among the writes: it is read from there once the entry is applied, and from
//! here at a start, before anything is.
//!
//! The writes are physical and unconditional, in the encoding of the tree's batches, so that
//! applying an entry is one call with a part of its bytes. The page is docs/formats/shard.md.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use atoll_encoding::{Malformed, Reader, varint};
use atoll_lsm::driven::Writes;
use atoll_mvcc::keys::tree;
use atoll_mvcc::record::{Fence, LaneBound, TxnRecord};
use atoll_mvcc::request::{Key, Record, Span};
use atoll_mvcc::{Epoch, Timestamp, TxnId};

use crate::descriptor::{Descriptor, ShardId};
use crate::edge::EntrySeq;
use crate::intent::Intent;
use crate::leader::Count;
use crate::state;

const EFFECTS: u8 = 1;
const SPLIT: u8 = 2;
const BOUND: u8 = 128;

/// An entry that still takes effects.
#[derive(Default)]
pub(crate) struct Open {
    /// Effects other than versions without a timestamp: they are encoded at once.
    writes: Writes,
    /// What the entry's timestamp has to exceed.
    above: Timestamp,
    /// Reads that hold up to the entry's timestamp.
    reads: Vec<Key>,
    read_spans: Vec<Span>,
    /// Transactions that commit with it, and where their records go.
    committed: Vec<(Key, TxnId)>,
    /// About how many bytes its versions have.
    bytes: usize,
    /// Keyspaces whose counts changed.
    counts: BTreeSet<u32>,
    /// A buffer for tree keys.
    key: Vec<u8>,
    /// One for what stands before the value of an intent.
    head: Vec<u8>,
}

/// An entry that is complete.
pub struct Closed {
    /// Its number.
    pub seq: EntrySeq,
    /// Largest timestamp of a version in it or before it.
    pub stamp: Timestamp,
    /// Its effects. The owner may add records of its own before it encodes the payload.
    pub writes: Writes,
    /// How the shard is split by it, if it is.
    pub split: Option<Split>,
    /// The bound of the lane that it records.
    bound: Option<Epoch>,
}

/// A split, as its entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// The shard as it is from now on.
    pub left: Descriptor,
    /// The new shard.
    pub right: Descriptor,
}

impl Open {
    pub(crate) fn is_empty(&self) -> bool {
        self.writes.is_empty()
            && self.reads.is_empty()
            && self.read_spans.is_empty()
            && self.committed.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.writes.bytes().len() + self.bytes
    }

    pub(crate) fn grow(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    pub(crate) fn above(&self) -> Timestamp {
        self.above
    }

    pub(crate) fn stamp_above(&mut self, ts: Timestamp) {
        self.above = self.above.max(ts);
    }

    pub(crate) fn has_reads(&self) -> bool {
        !self.reads.is_empty() || !self.read_spans.is_empty()
    }

    pub(crate) fn read(&mut self, key: &[u8]) {
        self.reads.push(key.to_vec());
    }

    pub(crate) fn read_span(&mut self, span: Span) {
        self.read_spans.push(span);
    }

    pub(crate) fn commit_record(&mut self, at: Key, txn: TxnId) {
        self.committed.push((at, txn));
    }

    pub(crate) fn take_committed(&mut self) -> Vec<(Key, TxnId)> {
        std::mem::take(&mut self.committed)
    }

    pub(crate) fn take_reads(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.reads)
    }

    pub(crate) fn take_read_spans(&mut self) -> Vec<Span> {
        std::mem::take(&mut self.read_spans)
    }

    pub(crate) fn counts_changed(&mut self, keyspace: u32) {
        self.counts.insert(keyspace);
    }

    pub(crate) fn put_version(&mut self, key: &[u8], stamp: Timestamp, value: Option<&[u8]>) {
        tree::data(&mut self.key, key);
        match value {
            Some(value) => self.writes.insert_version(&self.key, stamp.0, &[value]),
            None => self.writes.remove_version(&self.key, stamp.0),
        }
    }

    /// Removes all versions of a span, whatever their timestamps.
    pub(crate) fn remove_data(&mut self, span: &Span) {
        let mut end = Vec::new();
        tree::data(&mut self.key, &span.start);
        tree::data(&mut end, &span.end);
        self.writes.remove_range(&self.key, &end);
    }

    pub(crate) fn put_intent(&mut self, key: &[u8], intent: &Intent) {
        tree::intent(&mut self.key, key);
        self.head.clear();
        intent.put_head(&mut self.head);
        let value = intent.value.as_deref().unwrap_or_default();
        self.writes.insert(&self.key, &[&self.head, value]);
    }

    pub(crate) fn remove_intent(&mut self, key: &[u8]) {
        tree::intent(&mut self.key, key);
        self.writes.remove(&self.key);
    }

    pub(crate) fn put_record(
        &mut self,
        primary: &[u8],
        txn: TxnId,
        record: &Record,
        written: Timestamp,
    ) {
        tree::record(&mut self.key, primary, txn);
        let record = TxnRecord { written: written.epoch(), state: record.clone() };
        self.writes.insert(&self.key, &[&record.encode()]);
    }

    pub(crate) fn remove_record(&mut self, primary: &[u8], txn: TxnId) {
        tree::record(&mut self.key, primary, txn);
        self.writes.remove(&self.key);
    }

    pub(crate) fn put_fence(&mut self, key: &[u8], txn: TxnId, written: Timestamp) {
        tree::fence(&mut self.key, key, txn);
        self.writes.insert(&self.key, &[&Fence { start: written }.encode()]);
    }

    pub(crate) fn remove_fence(&mut self, key: &[u8], txn: TxnId) {
        tree::fence(&mut self.key, key, txn);
        self.writes.remove(&self.key);
    }

    pub(crate) fn put_descriptor(&mut self, descriptor: &Descriptor) {
        tree::shard(&mut self.key, descriptor.id.0, state::DESCRIPTOR);
        self.writes.insert(&self.key, &[&descriptor.encode()]);
    }

    /// Moves a key in the expiry index.
    pub(crate) fn move_deadline(&mut self, key: &[u8], old: Option<u64>, new: Option<u64>) {
        if old == new {
            return;
        }
        if let Some(old) = old {
            tree::expiry(&mut self.key, old, key);
            self.writes.remove(&self.key);
        }
        if let Some(new) = new {
            tree::expiry(&mut self.key, new, key);
            self.writes.insert(&self.key, &[]);
        }
    }

    /// Adds what is due at closing and returns the entry; the open one is empty afterwards.
    pub(crate) fn close(
        &mut self,
        seq: EntrySeq,
        stamp: Timestamp,
        shard: ShardId,
        counts: &BTreeMap<u32, Count>,
    ) -> Closed {
        for keyspace in std::mem::take(&mut self.counts) {
            let count = counts.get(&keyspace).copied().unwrap_or_default();
            tree::shard(&mut self.key, shard.0, &state::count(keyspace));
            self.writes.insert(&self.key, &[&encode_count(count)]);
        }
        self.bytes = 0;
        self.above = Timestamp::ZERO;
        Closed { seq, stamp, writes: std::mem::take(&mut self.writes), split: None, bound: None }
    }
}

impl Closed {
    /// Records a bound of the lane with the entry.
    pub fn set_bound(&mut self, bound: Epoch) {
        let mut name = Vec::new();
        tree::bound(&mut name);
        self.writes.insert(&name, &[&LaneBound(bound).encode()]);
        self.bound = Some(bound);
    }

    /// Returns an entry that records the bound of the database's oracle, and nothing else. Its shard has
    /// no keys; nobody waits for it.
    pub fn of_oracle(shard: ShardId, bound: Epoch) -> Closed {
        let mut name = Vec::new();
        tree::shard(&mut name, shard.0, state::ORACLE);
        let mut writes = Writes::new();
        writes.insert(&name, &[&LaneBound(bound).encode()]);
        Closed { seq: 0, stamp: Timestamp::ZERO, writes, split: None, bound: Some(bound) }
    }

    /// Returns the bound that it records.
    pub fn bound(&self) -> Option<Epoch> {
        self.bound
    }

    /// Returns the bytes to propose.
    pub fn payload(&self) -> Vec<u8> {
        let writes = self.writes.bytes();
        let mut payload = Vec::with_capacity(writes.len() + 16);
        let kind = if self.split.is_some() { SPLIT } else { EFFECTS };
        payload.push(kind | if self.bound.is_some() { BOUND } else { 0 });
        if let Some(bound) = self.bound {
            payload.extend_from_slice(&bound.0.to_le_bytes());
        }
        if let Some(split) = &self.split {
            varint::put_bytes(&mut payload, &split.left.encode());
            varint::put_bytes(&mut payload, &split.right.encode());
        }
        payload.extend_from_slice(writes);
        payload
    }
}

/// A logged entry, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Payload<'a> {
    /// The bound of the lane that it records.
    pub bound: Option<Epoch>,
    /// How the shard is split by it, if it is.
    pub split: Option<Split>,
    /// What to apply to the tree.
    pub writes: &'a [u8],
}

impl<'a> Payload<'a> {
    /// Takes an entry apart.
    ///
    /// # Errors
    /// The bytes are no entry of a known form.
    pub fn decode(bytes: &'a [u8]) -> Result<Payload<'a>, Malformed> {
        let mut reader = Reader::new(bytes);
        let unknown = reader.malformed("a known kind of entry");
        let kind = reader.u8("the kind of an entry")?;
        let bound = match kind & BOUND {
            0 => None,
            _ => Some(Epoch(reader.u64("a bound")?)),
        };
        let split = match kind & !BOUND {
            EFFECTS => None,
            SPLIT => {
                let left = Descriptor::decode(reader.bytes("a descriptor")?)?;
                let right = Descriptor::decode(reader.bytes("a descriptor")?)?;
                Some(Split { left, right })
            }
            _ => return Err(unknown),
        };
        Ok(Payload { bound, split, writes: &bytes[reader.offset()..] })
    }
}

/// Returns the stored form of a count.
pub fn encode_count(count: Count) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&count.keys.to_le_bytes());
    bytes[8..].copy_from_slice(&count.expiring.to_le_bytes());
    bytes
}

/// Reads a stored count.
///
/// # Errors
/// It has another length.
pub fn decode_count(bytes: &[u8]) -> Result<Count, Malformed> {
    let mut reader = Reader::new(bytes);
    let keys = reader.u64("a count of keys")? as i64;
    let expiring = reader.u64("a count of keys with a deadline")? as i64;
    reader.finish("nothing behind a count")?;
    Ok(Count { keys, expiring })
}
