//! The metadata record: what is known about a key beside its value.
//!
//! ```text
//!   | layout u8 = 2 | type and flags u8 | created u64 | [updated u64] | [deadline u64] |
//!   | [generation u64] | payload ...
//! ```
//!
//! One record per key. A string's payload is its bytes; a string kept in fragments has a
//! generation, and its payload is its length. `docs/formats/object.md` is the format in full.
//!
//! Layout 1 is that of version 0.1.0, `| 1 | bytes of a string ... |`, the deadline kept by the
//! store: it is read as a string that was created at no known time, and becomes layout 2 when it
//! is written. Anything else decodes to [`Kind::Unknown`]: such a key can be counted, listed and
//! removed, not read.
//!
//! Created and updated are on the operation's clock; updated is left out while it equals created.
//! A store of versions knows when each was committed and may tell that as updated instead.

use std::ops::Deref;

/// The layout that is written.
const LAYOUT: u8 = 2;
/// The layout of version 0.1.0: a string without metadata.
const LAYOUT_BARE_STRING: u8 = 1;

const TYPE_MASK: u8 = 0x0f;
const TYPE_STRING: u8 = 1;
const HAS_UPDATED: u8 = 0x10;
const HAS_DEADLINE: u8 = 0x20;
const HAS_GENERATION: u8 = 0x40;
/// Not used yet; a record that has it is of a later version.
const RESERVED: u8 = 0x80;

/// Bytes before the payload at most.
pub const MAX_HEADER: usize = 2 + 4 * 8;

/// Microseconds from the Unix epoch to 2020-01-01T00:00:00Z, where times of metadata start.
pub const EPOCH_START_US: u64 = 1_577_836_800_000_000;

/// Returns a time of the Unix epoch, in milliseconds, as a time of metadata.
pub fn epoch_us(unix_ms: u64) -> u64 {
    unix_ms.saturating_mul(1_000).saturating_sub(EPOCH_START_US)
}

/// Returns a time of metadata in milliseconds of the Unix epoch.
pub fn unix_ms(epoch_us: u64) -> u64 {
    epoch_us.saturating_add(EPOCH_START_US) / 1_000
}

/// What a key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    String,
    /// Something this version cannot read: of a later one, or damaged.
    Unknown,
}

/// What is known about a key beside its value. Times are in microseconds since 2020.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// What the key holds.
    pub kind: Kind,
    /// When the key came into being; 0 if unknown.
    pub created_us: u64,
    /// When it was last changed; `created_us` at first, never below it.
    pub updated_us: u64,
    /// When it expires, in milliseconds of the Unix epoch; `None` is never.
    pub deadline_ms: Option<u64>,
    /// The name under which its sub-records lie, if it has some.
    pub generation: Option<u64>,
}

impl Meta {
    /// Returns the metadata of a string that comes into being, without deadline.
    pub fn string(now_us: u64) -> Meta {
        Meta {
            kind: Kind::String,
            created_us: now_us,
            updated_us: now_us,
            deadline_ms: None,
            generation: None,
        }
    }

    /// Returns the length of the record's header.
    pub fn encoded_len(&self) -> usize {
        let updated = self.updated_us > self.created_us;
        let fields = [updated, self.deadline_ms.is_some(), self.generation.is_some()];
        2 + 8 + 8 * fields.into_iter().map(usize::from).sum::<usize>()
    }

    /// Appends the record's header; the payload follows. Of [`Kind::Unknown`] there is none to
    /// write: records of such keys are kept as they are, or removed.
    pub fn encode(&self, out: &mut Vec<u8>) {
        debug_assert!(self.kind == Kind::String, "only what can be read is written");
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let updated = self.updated_us > self.created_us;
        out.push(LAYOUT);
        out.push(
            TYPE_STRING
                | flag(updated, HAS_UPDATED)
                | flag(self.deadline_ms.is_some(), HAS_DEADLINE)
                | flag(self.generation.is_some(), HAS_GENERATION),
        );
        out.extend_from_slice(&self.created_us.to_le_bytes());
        if updated {
            out.extend_from_slice(&self.updated_us.to_le_bytes());
        }
        for field in [self.deadline_ms, self.generation].into_iter().flatten() {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }

    /// Decodes a record's header; returns it with the offset of the payload. `stored_deadline_ms`
    /// is the deadline the store kept beside the record, which the bare layout relies on.
    pub fn decode(record: &[u8], stored_deadline_ms: Option<u64>) -> (Meta, usize) {
        let unknown = Meta {
            kind: Kind::Unknown,
            created_us: 0,
            updated_us: 0,
            deadline_ms: stored_deadline_ms,
            generation: None,
        };
        match record {
            [LAYOUT_BARE_STRING, ..] => (Meta { kind: Kind::String, ..unknown }, 1),
            [LAYOUT, flags, rest @ ..]
                if flags & TYPE_MASK == TYPE_STRING && flags & RESERVED == 0 =>
            {
                let meta = fields(*flags, rest);
                meta.map_or((unknown, record.len()), |(meta, len)| (meta, 2 + len))
            }
            _ => (unknown, record.len()),
        }
    }
}

/// Decodes the fields that the flags announce; `None` if they are cut off.
fn fields(flags: u8, bytes: &[u8]) -> Option<(Meta, usize)> {
    let mut at = 0;
    let mut field = |present: bool| -> Option<Option<u64>> {
        if !present {
            return Some(None);
        }
        let bytes = bytes.get(at..at + 8)?;
        at += 8;
        Some(Some(u64::from_le_bytes(bytes.try_into().ok()?)))
    };
    let created_us = field(true)??;
    let updated_us = field(flags & HAS_UPDATED != 0)?.unwrap_or(created_us).max(created_us);
    let deadline_ms = field(flags & HAS_DEADLINE != 0)?;
    let generation = field(flags & HAS_GENERATION != 0)?;
    Some((Meta { kind: Kind::String, created_us, updated_us, deadline_ms, generation }, at))
}

/// A live key as a transaction read it.
#[derive(Clone, Debug)]
pub struct Object<V> {
    /// Its metadata.
    pub meta: Meta,
    record: V,
    payload_at: usize,
}

impl<V: Deref<Target = [u8]>> Object<V> {
    /// Decodes a record, see [`Meta::decode`].
    pub fn decode(record: V, stored_deadline_ms: Option<u64>) -> Object<V> {
        let (meta, payload_at) = Meta::decode(&record, stored_deadline_ms);
        Object { meta, record, payload_at }
    }

    /// Returns the length of the record, its header included.
    pub fn record_len(&self) -> usize {
        self.record.len()
    }

    /// Returns what follows the header.
    pub fn payload(&self) -> &[u8] {
        self.record.get(self.payload_at..).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_fields_reads_back_with_its_payload() {
        for updated_us in [7, 9] {
            for deadline_ms in [None, Some(0), Some(u64::MAX)] {
                for generation in [None, Some(3)] {
                    let meta = Meta { updated_us, deadline_ms, generation, ..Meta::string(7) };
                    let mut record = Vec::new();
                    meta.encode(&mut record);
                    assert!(record.len() <= MAX_HEADER);
                    assert_eq!(record.len(), meta.encoded_len());
                    let header = record.len();
                    record.extend_from_slice(b"payload");
                    assert_eq!(Meta::decode(&record, Some(1)), (meta, header));
                    assert_eq!(Object::decode(&record[..], None).payload(), b"payload");
                }
            }
        }
    }

    #[test]
    fn the_format_is_the_one_on_its_page() {
        let mut record = Vec::new();
        let meta = Meta { deadline_ms: Some(0x0102), ..Meta::string(5) };
        meta.encode(&mut record);
        assert_eq!(record, [2, 0x21, 5, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_bare_string_is_read_with_the_deadline_its_store_kept() {
        let object = Object::decode(&b"\x01value"[..], Some(99));
        assert_eq!(object.payload(), b"value");
        assert_eq!(object.meta.kind, Kind::String);
        assert_eq!((object.meta.created_us, object.meta.deadline_ms), (0, Some(99)));
    }

    #[test]
    fn bytes_that_are_no_record_are_of_an_unknown_kind() {
        let mut whole = Vec::new();
        let meta =
            Meta { updated_us: 8, deadline_ms: Some(1), generation: Some(2), ..Meta::string(7) };
        meta.encode(&mut whole);
        for cut in 0..whole.len() {
            assert_eq!(Meta::decode(&whole[..cut], Some(4)).0.kind, Kind::Unknown, "cut at {cut}");
        }
        for first in [0, 3, 200] {
            assert_eq!(Meta::decode(&[first, 1], None).0.kind, Kind::Unknown);
        }
        for flags in [0x02, 0x0f, 0x81] {
            whole[1] = flags;
            assert_eq!(Meta::decode(&whole, None).0.kind, Kind::Unknown, "flags {flags:#x}");
        }
    }

    #[test]
    fn times_of_metadata_start_with_2020() {
        assert_eq!(epoch_us(1_577_836_800_001), 1_000);
        assert_eq!(unix_ms(1_999), 1_577_836_800_001);
        assert_eq!(epoch_us(0), 0, "a clock before 2020");
    }
}
