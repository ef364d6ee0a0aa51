//! Two classes of keyspace ids, so that a key tells by itself where it belongs.
//!
//! ```text
//!   0x0000_0000 - 0x7fff_ffff   ordered           keyspace | user key
//!   0x8000_0000 - 0xfffe_ffff   placed by slot    keyspace | slot | user key
//!     with bit 30:              parts of the objects of the keyspace without it
//! ```
//!
//! Shards, routers and recovery see keys and no catalog; a lookup of every key's keyspace would put
//! one on their path. Whether a keyspace is hashed, and into how many buckets, matters only to who
//! makes the key.

use super::routing::RoutingKey;
use crate::request::Span;

/// The first id of a keyspace that is placed by slot.
pub const SLOTTED: u32 = 1 << 31;
/// The bit of a keyspace that holds the parts of another one's objects.
pub const PARTS: u32 = 1 << 30;

/// Returns whether a keyspace is placed by slot.
pub fn is_slotted(keyspace: u32) -> bool {
    keyspace >= SLOTTED
}

/// Returns the place of a key, `None` if it is too short to have one.
pub fn place_of(key: &[u8]) -> Option<RoutingKey<&[u8]>> {
    let (keyspace, rest) = key.split_first_chunk::<4>()?;
    let keyspace = u32::from_be_bytes(*keyspace);
    if !is_slotted(keyspace) {
        return Some(RoutingKey::Ordered { keyspace, key: rest });
    }
    let slot = rest.first_chunk::<2>()?;
    Some(RoutingKey::Slot(u16::from_be_bytes(*slot)))
}

/// Returns the first place that is behind all keys of a span, `None` if the span's bounds are no
/// keys or beginnings of keys. The span lies in one keyspace.
pub fn place_behind(span: &Span) -> Option<RoutingKey<&[u8]>> {
    let keyspace = u32::from_be_bytes(*span.start.first_chunk::<4>()?);
    let (end_keyspace, rest) = span.end.split_first_chunk::<4>()?;
    let end_keyspace = u32::from_be_bytes(*end_keyspace);
    if !is_slotted(keyspace) {
        return Some(RoutingKey::Ordered { keyspace: end_keyspace, key: rest });
    }
    if end_keyspace != keyspace {
        return Some(RoutingKey::Ordered { keyspace: 0, key: &[] });
    }
    let slot = u16::from_be_bytes(*rest.first_chunk::<2>()?);
    let inside = rest.len() > 2;
    Some(if slot + u16::from(inside) >= super::SLOTS {
        RoutingKey::Ordered { keyspace: 0, key: &[] }
    } else {
        RoutingKey::Slot(slot + u16::from(inside))
    })
}

/// Returns the first place of a span, `None` as above.
pub fn place_before(span: &Span) -> Option<RoutingKey<&[u8]>> {
    let (keyspace, rest) = span.start.split_first_chunk::<4>()?;
    let keyspace = u32::from_be_bytes(*keyspace);
    if !is_slotted(keyspace) {
        return Some(RoutingKey::Ordered { keyspace, key: rest });
    }
    let slot = rest.first_chunk::<2>().map_or(0, |slot| u16::from_be_bytes(*slot));
    Some(RoutingKey::Slot(slot))
}

#[cfg(test)]
mod tests {
    use super::super::{Placement, Range, SLOTS};
    use super::*;

    #[test]
    fn a_key_tells_its_place() {
        let slotted = Placement::Slots.key(SLOTTED, b"foo");
        assert_eq!(place_of(&slotted), Some(RoutingKey::Slot(12_182)));
        let ordered = Placement::Ordered.key(7, b"foo");
        assert_eq!(place_of(&ordered), Some(RoutingKey::Ordered { keyspace: 7, key: &b"foo"[..] }));
        assert_eq!(place_of(b"ab"), None);
        assert_eq!(place_of(&SLOTTED.to_be_bytes()), None, "a slot is missing");
    }

    #[test]
    fn a_shards_span_of_a_keyspace_lies_between_the_shards_places() {
        for range in Range::divide(4) {
            let slots = range.span(SLOTTED + 3, Placement::Slots).unwrap();
            assert_eq!(place_before(&slots).unwrap().into_owned(), range.start);
            let behind = place_behind(&slots).unwrap().into_owned();
            assert!(behind <= range.end, "{behind} {}", range.end);
            let last = RoutingKey::Slot(range.slots().end - 1);
            assert!(behind > last && range.slots().end <= SLOTS);
        }
    }
}
