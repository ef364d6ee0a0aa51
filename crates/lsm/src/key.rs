//! Internal keys: a user key, the sequence number of the write, and what kind of write it was.
//!
//! Inside the engine every write of a key is kept as a record of its own until nobody can see it
//! any more. Records sort by user key ascending, then newest first, so that the first record at or
//! below a snapshot is the answer:
//!
//! ```text
//!   user key   seqno  kind
//!   a          92     Tombstone      <- a reader at 100 stops here: deleted
//!   a          40     Value          <- a reader at 50 stops here
//!   b          77     Value
//! ```
//!
//! A sequence number derives from the log position of the entry that carries the write
//! (ARCHITECTURE.md, storage engine), so an entry that is replayed overwrites itself.
//!
//! The user key is what the layer above calls a key, with the 4-byte keyspace id before it: the
//! engine has one ordered byte space, keyspaces are ranges in it.
//!
//! # Versions
//! A layer with timestamps of its own keeps several values of a key that all stay readable. Their
//! records are *versioned*: they carry a 64-bit *stamp*, and a read at stamp `s` finds the newest
//! record whose stamp is at most `s`:
//!
//! ```text
//!   user key   seqno  kind                stamp
//!   a          92     VersionedValue      700    <- a read at 700 or later stops here
//!   a          40     VersionedTombstone  650    <- a read at 699 stops here: deleted
//!   a          17     VersionedValue      320    <- a read at 649 stops here
//! ```
//!
//! Of one key the stamps never descend while the sequence numbers ascend; so one order serves both,
//! and a source that holds a version for a stamp answers alone. A key holds either versioned or
//! plain records, never both. How long versions stay is the *horizon*'s matter
//! (`compaction/stream.rs`).
//!
//! # Separated values
//! In a table a long value may stand elsewhere, in a value file (`values/`). Its record is
//! *separated*: the kind is what it was, a flag beside it says so, and of the bytes the part that
//! everybody looks at, a deadline or a stamp, stays in front of a pointer that is in the value's place.

use std::cmp::Ordering;

/// Order of writes inside one store: the lane position of the entry plus the record's number in
/// it. At most 56 bits.
pub type SeqNo = u64;

/// Largest sequence number: a reader at it sees everything.
pub const SEQNO_MAX: SeqNo = (1 << 56) - 1;

/// What a record says about its user key. The numbers are on disk: never change one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The key is deleted.
    Tombstone = 0,
    /// The record's bytes are the value.
    Value = 1,
    /// The first 8 bytes (little-endian) are a deadline in milliseconds since the Unix epoch; the
    /// rest is the value. Absent once the clock is at or past the deadline.
    ExpiringValue = 2,
    /// The value is long: it stands in `Chunk` records of the same user key, with the sequence
    /// numbers just below this one, in order, newest (first chunk) first. The bytes are: deadline
    /// (8 bytes, 0 for none), total length (8), number of chunks (4), little-endian.
    ChunkedValue = 3,
    /// A piece of the chunked value whose head is the next newer record that is no chunk.
    Chunk = 4,
    /// A version: the first 8 bytes (little-endian) are its stamp, the rest is the value.
    VersionedValue = 5,
    /// A version that says that the key is deleted. The bytes are its stamp (8).
    VersionedTombstone = 6,
    /// A version whose value is long, like `ChunkedValue` with the stamp in the deadline's place:
    /// stamp (8 bytes), total length (8), number of chunks (4), little-endian.
    VersionedChunked = 7,
    /// A merge operand (`crate::merge`): what to do with the next older value of the key. The first 8
    /// bytes (little-endian) are its deadline, 0 for none; the rest is the operand.
    Merge = 8,
}

impl Kind {
    /// Decodes the on-disk number.
    pub fn from_u8(n: u8) -> Option<Kind> {
        Some(match n {
            0 => Kind::Tombstone,
            1 => Kind::Value,
            2 => Kind::ExpiringValue,
            3 => Kind::ChunkedValue,
            4 => Kind::Chunk,
            5 => Kind::VersionedValue,
            6 => Kind::VersionedTombstone,
            7 => Kind::VersionedChunked,
            8 => Kind::Merge,
            _ => return None,
        })
    }

    /// Returns whether a record of this kind has a stamp in front.
    #[inline]
    pub fn is_versioned(self) -> bool {
        matches!(self, Kind::VersionedValue | Kind::VersionedTombstone | Kind::VersionedChunked)
    }

    /// Returns the bytes of a deadline or stamp that a record of this kind begins with.
    #[inline]
    pub fn head_len(self) -> usize {
        match self {
            Kind::Tombstone | Kind::Value | Kind::Chunk => 0,
            Kind::ExpiringValue
            | Kind::ChunkedValue
            | Kind::Merge
            | Kind::VersionedValue
            | Kind::VersionedTombstone
            | Kind::VersionedChunked => 8,
        }
    }

    /// Returns whether the bytes behind the head are a value, and so may stand elsewhere.
    #[inline]
    pub fn has_value(self) -> bool {
        matches!(self, Kind::Value | Kind::ExpiringValue | Kind::Chunk | Kind::VersionedValue)
    }
}

/// The flag of a separated record, beside its kind. It is on disk.
const SEPARATED: u8 = 0x10;

/// Returns the stamp of a versioned record, given its bytes. The writer of a table refuses records
/// without one.
#[inline]
pub fn stamp_of(value: &[u8]) -> u64 {
    value.first_chunk().map_or(0, |stamp| u64::from_le_bytes(*stamp))
}

/// Sequence number and kind in one word: `seqno << 8 | kind`. Larger is newer and sorts first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Trailer(pub u64);

impl Trailer {
    /// Sorts before every record of its user key: seek here for the newest.
    pub const NEWEST: Trailer = Trailer(u64::MAX);
    /// Sorts after every record of its user key.
    pub const OLDEST: Trailer = Trailer(0);

    /// Packs a sequence number and a kind.
    pub fn new(seqno: SeqNo, kind: Kind) -> Trailer {
        debug_assert!(seqno <= SEQNO_MAX, "sequence number {seqno} beyond 56 bits");
        Trailer(seqno << 8 | kind as u64)
    }

    /// Seek target for the newest record visible at `seqno`.
    pub fn visible_at(seqno: SeqNo) -> Trailer {
        Trailer(seqno << 8 | 0xff)
    }

    /// Returns the trailer of a record whose sequence number is given relative to `base`.
    #[inline]
    pub(crate) fn above(self, base: SeqNo) -> Trailer {
        Trailer(self.0.wrapping_add(base << 8))
    }

    /// Returns what to look for among records whose sequence numbers are relative to `base`. What is
    /// below it sorts behind all of them.
    #[inline]
    pub(crate) fn relative_to(self, base: SeqNo) -> Trailer {
        Trailer(self.0.saturating_sub(base << 8))
    }

    /// Returns the sequence number.
    pub fn seqno(self) -> SeqNo {
        self.0 >> 8
    }

    /// Returns the kind, or `None` if the bytes came from a disk and are none of ours.
    #[inline]
    pub fn kind(self) -> Option<Kind> {
        let kind = Kind::from_u8(self.0 as u8 & !SEPARATED)?;
        (!self.is_separated() || kind.has_value()).then_some(kind)
    }

    /// Returns whether the value stands in a value file.
    #[inline]
    pub fn is_separated(self) -> bool {
        self.0 as u8 & SEPARATED != 0
    }

    /// Returns the trailer of the same record with its value elsewhere.
    pub(crate) fn separated(self) -> Trailer {
        Trailer(self.0 | u64::from(SEPARATED))
    }

    /// Returns the trailer of the same record with its value in it.
    pub(crate) fn inline(self) -> Trailer {
        Trailer(self.0 & !u64::from(SEPARATED))
    }
}

/// A borrowed internal key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InternalKey<'a> {
    /// Keyspace id and key.
    pub user_key: &'a [u8],
    /// Sequence number and kind.
    pub trailer: Trailer,
}

impl<'a> InternalKey<'a> {
    /// Puts the two parts together.
    pub fn new(user_key: &'a [u8], trailer: Trailer) -> InternalKey<'a> {
        InternalKey { user_key, trailer }
    }

    /// As [`Trailer::relative_to`].
    #[inline]
    pub(crate) fn relative_to(self, base: SeqNo) -> InternalKey<'a> {
        InternalKey { trailer: self.trailer.relative_to(base), ..self }
    }
}

impl Ord for InternalKey<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.user_key.cmp(other.user_key).then(other.trailer.cmp(&self.trailer))
    }
}

impl PartialOrd for InternalKey<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_a_value_may_be_separated() {
        let separated =
            (0..=u8::MAX).filter(|n| Trailer(u64::from(n | SEPARATED)).kind().is_some());
        let kinds: Vec<u8> = separated.filter(|n| n & SEPARATED != 0).collect();
        assert_eq!(kinds, [1, 2, 4, 5].map(|kind| kind | SEPARATED), "an operand never is");
    }
}
