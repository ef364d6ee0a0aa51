//! Descriptors: which part of the keys a shard is responsible for.
//!
//! ```text
//!   +---------+--------+-----------+-----------------+-----------------+
//!   | version | id u64 | epoch u64 | start: len, ... | end: len, ...   |
//!   +---------+--------+-----------+-----------------+-----------------+
//! ```
//!
//! The epoch counts how often the range changed. A request that was routed by an older descriptor
//! finds keys that are not here any more and is told so.

use std::fmt;

use atoll_encoding::{Malformed, Reader, varint};
use atoll_mvcc::keys::{Range, RoutingKey, class};
use atoll_mvcc::request::Span;

const VERSION: u8 = 1;

/// Names a shard for ever; also the id of its log group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u64);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

/// The shard without keys that every engine of a database knows: whoever leads it gives out timestamps.
pub const ROOT: ShardId = ShardId(0);

/// A shard and its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Which shard.
    pub id: ShardId,
    /// Places of the keys it is responsible for.
    pub range: Range,
    /// Counts changes of the range.
    pub epoch: u64,
}

impl Descriptor {
    /// Returns that of the root shard.
    pub fn root() -> Descriptor {
        let range = Range { start: RoutingKey::End, end: RoutingKey::End };
        Descriptor { id: ROOT, range, epoch: 1 }
    }

    /// Returns whether a key is in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        class::place_of(key).is_some_and(|place| self.range.contains(place))
    }

    /// Returns whether all keys of a span are. The span lies in one keyspace.
    pub fn contains_span(&self, span: &Span) -> bool {
        let first = class::place_before(span).is_some_and(|place| self.range.contains(place));
        first && class::place_behind(span).is_some_and(|end| end <= self.range.end.borrowed())
    }

    /// Returns the two halves of the shard cut at `at`; the right one is the new shard `id`.
    pub fn split(&self, at: RoutingKey, id: ShardId) -> Option<(Descriptor, Descriptor)> {
        let (below, above) = self.range.split(at)?;
        let epoch = self.epoch + 1;
        let left = Descriptor { id: self.id, range: below, epoch };
        Some((left, Descriptor { id, range: above, epoch }))
    }

    /// Returns the stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.id.0.to_le_bytes());
        bytes.extend_from_slice(&self.epoch.to_le_bytes());
        for place in [&self.range.start, &self.range.end] {
            let mut encoded = Vec::new();
            place.encode(&mut encoded);
            varint::put_bytes(&mut bytes, &encoded);
        }
        bytes
    }

    /// Reads a stored descriptor.
    ///
    /// # Errors
    /// The bytes are no descriptor of a known form.
    pub fn decode(bytes: &[u8]) -> Result<Descriptor, Malformed> {
        let mut reader = Reader::new(bytes);
        let unknown = reader.malformed("a known version of a descriptor");
        if reader.u8("the version of a descriptor")? != VERSION {
            return Err(unknown);
        }
        let id = ShardId(reader.u64("the id of a shard")?);
        let epoch = reader.u64("the epoch of a shard")?;
        let start = RoutingKey::decode(reader.bytes("the start of a range")?)?.into_owned();
        let end = RoutingKey::decode(reader.bytes("the end of a range")?)?.into_owned();
        reader.finish("nothing behind a descriptor")?;
        Ok(Descriptor { id, range: Range { start, end }, epoch })
    }
}

impl fmt::Display for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}, {})@{}", self.id, self.range.start, self.range.end, self.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_round_trip_and_every_cut_is_refused() {
        let whole = Descriptor { id: ShardId(3), range: Range::ALL, epoch: 7 };
        let (left, right) = whole.split(RoutingKey::Slot(8192), ShardId(9)).unwrap();
        assert_eq!(left.epoch, 8);
        for descriptor in [&whole, &left, &right] {
            let bytes = descriptor.encode();
            assert_eq!(Descriptor::decode(&bytes).as_ref(), Ok(descriptor));
            for len in 0..bytes.len() {
                assert!(Descriptor::decode(&bytes[..len]).is_err(), "{len}");
            }
        }
    }
}
