//! The space that shards divide among themselves.
//!
//! ```text
//!   01 0000 ........ 01 1fff | 01 2000 ........ 01 3fff | 02 00000007 "" .... 02 00000007 "m" | ...
//!   slots 0 to 8191            slots 8192 to 16383        ordered keyspace 7
//!   shard 1                    shard 2                                    shard 3 ...
//! ```
//!
//! Everything placed by slot comes first, whatever its keyspace: the same slot of all keyspaces is
//! always in the same shard. Behind it lie the ordered keyspaces, one after the other. A shard's
//! [`Range`] may cover both kinds.
//!
//! In memory a routing key is an enum, because a command is routed by comparing two integers; as
//! bytes (in descriptors) it sorts the same way.

use std::fmt;

use atoll_encoding::Malformed;

use super::placement::{Placement, SLOTS, put_header};
use crate::request::Span;

/// A place in the space. `RoutingKey<&[u8]>` is one that borrows its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RoutingKey<K = Vec<u8>> {
    /// Everything with this slot. Below 16384.
    Slot(u16),
    /// A key of an ordered keyspace.
    Ordered {
        /// The keyspace.
        keyspace: u32,
        /// The user key in it.
        key: K,
    },
    /// Behind everything: only ever the end of a range.
    End,
}

const TAG_SLOT: u8 = 1;
const TAG_ORDERED: u8 = 2;
const TAG_END: u8 = 3;

impl<K: AsRef<[u8]>> RoutingKey<K> {
    /// Borrows it.
    pub fn borrowed(&self) -> RoutingKey<&[u8]> {
        match self {
            RoutingKey::Slot(slot) => RoutingKey::Slot(*slot),
            RoutingKey::Ordered { keyspace, key } => {
                RoutingKey::Ordered { keyspace: *keyspace, key: key.as_ref() }
            }
            RoutingKey::End => RoutingKey::End,
        }
    }

    /// Appends its bytes, which sort as it does.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            RoutingKey::Slot(slot) => {
                out.push(TAG_SLOT);
                out.extend_from_slice(&slot.to_be_bytes());
            }
            RoutingKey::Ordered { keyspace, key } => {
                out.push(TAG_ORDERED);
                out.extend_from_slice(&keyspace.to_be_bytes());
                out.extend_from_slice(key.as_ref());
            }
            RoutingKey::End => out.push(TAG_END),
        }
    }
}

impl RoutingKey {
    /// The first place of all.
    pub const START: RoutingKey = RoutingKey::Slot(0);
    /// The first place behind the slots.
    pub const ORDERED: RoutingKey = RoutingKey::Ordered { keyspace: 0, key: Vec::new() };
}

impl<'a> RoutingKey<&'a [u8]> {
    /// Decodes bytes.
    ///
    /// # Errors
    /// They are no routing key.
    pub fn decode(bytes: &'a [u8]) -> Result<RoutingKey<&'a [u8]>, Malformed> {
        let malformed = |offset, expected| Malformed { offset, expected };
        match bytes.split_first() {
            Some((&TAG_SLOT, rest)) => {
                let slot = rest.try_into().map_err(|_| malformed(1, "a slot of two bytes"))?;
                let slot = u16::from_be_bytes(slot);
                if slot >= SLOTS {
                    return Err(malformed(1, "a slot below 16384"));
                }
                Ok(RoutingKey::Slot(slot))
            }
            Some((&TAG_ORDERED, rest)) => {
                let (keyspace, key) = rest.split_first_chunk().ok_or(malformed(1, "a keyspace"))?;
                Ok(RoutingKey::Ordered { keyspace: u32::from_be_bytes(*keyspace), key })
            }
            Some((&TAG_END, [])) => Ok(RoutingKey::End),
            _ => Err(malformed(0, "a kind of routing key")),
        }
    }

    /// Makes it its own.
    pub fn into_owned(self) -> RoutingKey {
        match self {
            RoutingKey::Slot(slot) => RoutingKey::Slot(slot),
            RoutingKey::Ordered { keyspace, key } => {
                RoutingKey::Ordered { keyspace, key: key.to_vec() }
            }
            RoutingKey::End => RoutingKey::End,
        }
    }
}

impl<K: AsRef<[u8]>> fmt::Display for RoutingKey<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RoutingKey::Slot(slot) => write!(f, "slot {slot}"),
            RoutingKey::Ordered { keyspace, key } => {
                write!(f, "keyspace {keyspace} \"{}\"", key.as_ref().escape_ascii())
            }
            RoutingKey::End => f.write_str("end"),
        }
    }
}

/// What a shard is responsible for: the places from `start` up to `end`, which is not in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    /// The first place in it.
    pub start: RoutingKey,
    /// The first place behind it.
    pub end: RoutingKey,
}

impl Range {
    /// Everything.
    pub const ALL: Range = Range { start: RoutingKey::START, end: RoutingKey::End };

    /// Divides everything into `shards` ranges with equally many slots, as far as that goes. The
    /// ordered keyspaces are in the last one until it is split.
    pub fn divide(shards: u16) -> Vec<Range> {
        let shards = shards.clamp(1, SLOTS);
        let place = |n: u16| match n {
            n if n == shards => RoutingKey::End,
            n => {
                let slot = u32::from(n) * u32::from(SLOTS) / u32::from(shards);
                RoutingKey::Slot(slot as u16)
            }
        };
        (0..shards).map(|n| Range { start: place(n), end: place(n + 1) }).collect()
    }

    /// Returns whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// Returns whether a place is in it.
    pub fn contains(&self, place: RoutingKey<&[u8]>) -> bool {
        self.start.borrowed() <= place && place < self.end.borrowed()
    }

    /// Returns the parts below and above a place; `None` if one of them would be empty.
    pub fn split(&self, at: RoutingKey) -> Option<(Range, Range)> {
        if !(self.start < at && at < self.end) {
            return None;
        }
        let below = Range { start: self.start.clone(), end: at.clone() };
        Some((below, Range { start: at, end: self.end.clone() }))
    }

    /// Returns the place that halves its slots; with one slot left, the place where the ordered
    /// keyspaces begin, if it has some. `None` where arithmetic cannot help: a range of ordered
    /// keys alone has its middle where its keys are, and one slot alone cannot be split.
    pub fn midpoint(&self) -> Option<RoutingKey> {
        let slots = self.slots();
        match slots.len() {
            0 => None,
            1 => (self.end > RoutingKey::ORDERED).then_some(RoutingKey::ORDERED),
            len => Some(RoutingKey::Slot(slots.start + len as u16 / 2)),
        }
    }

    /// Returns the slots in it.
    pub fn slots(&self) -> std::ops::Range<u16> {
        let bound = |place: &RoutingKey| match place {
            RoutingKey::Slot(slot) => *slot,
            RoutingKey::Ordered { .. } | RoutingKey::End => SLOTS,
        };
        bound(&self.start)..bound(&self.end)
    }

    /// Returns the keys of a keyspace in it; `None` if there can be none.
    ///
    /// The tree ranges of a shard are those of this span: [`super::tree::Area::bounds`].
    pub fn span(&self, keyspace: u32, placement: Placement) -> Option<Span> {
        debug_assert!(keyspace != u32::MAX, "the last keyspace id has no successor: never given");
        let (mut start, mut end) = (Vec::new(), Vec::new());
        let behind = |out: &mut Vec<u8>| put_header(out, keyspace.saturating_add(1), None);
        if placement != Placement::Ordered {
            let slots = self.slots();
            if slots.is_empty() {
                return None;
            }
            put_header(&mut start, keyspace, Some(slots.start));
            match slots.end {
                SLOTS => behind(&mut end),
                slot => put_header(&mut end, keyspace, Some(slot)),
            }
            return Some(Span { start, end });
        }
        let first = RoutingKey::Ordered { keyspace, key: &[][..] };
        put_header(&mut start, keyspace, None);
        match self.start.borrowed() {
            place if place <= first => {}
            RoutingKey::Ordered { keyspace: of, key } if of == keyspace => {
                start.extend_from_slice(key);
            }
            _ => return None, // begins behind the keyspace
        }
        match self.end.borrowed() {
            place if place <= first => return None, // ends before it
            RoutingKey::Ordered { keyspace: of, key } if of == keyspace => {
                put_header(&mut end, keyspace, None);
                end.extend_from_slice(key);
            }
            _ => behind(&mut end),
        }
        (start < end).then_some(Span { start, end })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} .. {}", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use atoll_env::random::Prng;

    use super::*;
    use crate::keys::placement::Buckets;

    fn ordered(keyspace: u32, key: &[u8]) -> RoutingKey {
        RoutingKey::Ordered { keyspace, key: key.to_vec() }
    }

    fn random(prng: &mut Prng) -> RoutingKey {
        match prng.below(8) {
            0 => RoutingKey::End,
            1..4 => RoutingKey::Slot([0, 1, 255, 256, 8192, SLOTS - 1][prng.index(6)]),
            _ => {
                let len = prng.index(4);
                let key: Vec<u8> = (0..len).map(|_| [0, 1, 0xff][prng.index(3)]).collect();
                ordered(prng.below(3) as u32, &key)
            }
        }
    }

    #[test]
    fn bytes_come_back_and_sort_as_the_places_do() {
        let mut prng = Prng::new(1);
        for _ in 0..10_000 {
            let (a, b) = (random(&mut prng), random(&mut prng));
            let (mut a_bytes, mut b_bytes) = (Vec::new(), Vec::new());
            a.encode(&mut a_bytes);
            b.encode(&mut b_bytes);
            assert_eq!(RoutingKey::decode(&a_bytes).map(RoutingKey::into_owned), Ok(a.clone()));
            assert_eq!(a.cmp(&b), a_bytes.cmp(&b_bytes), "{a} {b}");
        }
    }

    #[test]
    fn bytes_that_name_no_place_are_refused() {
        let refused: [&[u8]; 8] =
            [b"", &[0], &[1], &[1, 0], &[1, 0, 0, 0], &[1, 0x40, 0], &[2, 0, 0, 0], &[3, 0]];
        for bytes in refused {
            assert!(RoutingKey::decode(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn everything_is_in_exactly_one_of_the_ranges_it_was_divided_into() {
        let mut prng = Prng::new(2);
        for shards in [1, 2, 3, 16, SLOTS] {
            let ranges = Range::divide(shards);
            assert_eq!(ranges.len(), usize::from(shards));
            for _ in 0..50 {
                let place = random(&mut prng);
                let holders = ranges.iter().filter(|r| r.contains(place.borrowed())).count();
                assert_eq!(holders, usize::from(place != RoutingKey::End), "{place}");
            }
            let slots: Vec<usize> = ranges.iter().map(|r| r.slots().len()).collect();
            assert!(slots.iter().max().unwrap() - slots.iter().min().unwrap() <= 1);
        }
    }

    #[test]
    fn splitting_everything_at_its_midpoints_doubles_the_shards() {
        let mut ranges = Range::divide(1);
        for shards in [2, 4, 8, 16] {
            let split = |range: &Range| range.split(range.midpoint()?);
            let halves: Vec<_> = ranges.iter().map(|range| split(range).unwrap()).collect();
            ranges = halves.into_iter().flat_map(|(below, above)| [below, above]).collect();
            assert_eq!(ranges, Range::divide(shards));
        }
    }

    #[test]
    fn what_cannot_be_halved_has_no_midpoint() {
        let range = |start, end| Range { start, end };
        let slot = RoutingKey::Slot;
        for (range, expected) in [
            (range(slot(7), slot(8)), None),
            (range(slot(7), slot(9)), Some(slot(8))),
            (range(slot(SLOTS - 1), RoutingKey::ORDERED), None),
            (range(slot(SLOTS - 1), RoutingKey::End), Some(RoutingKey::ORDERED)),
            (range(slot(SLOTS - 2), RoutingKey::End), Some(slot(SLOTS - 1))),
            (range(RoutingKey::ORDERED, RoutingKey::End), None),
            (range(ordered(7, b"a"), ordered(7, b"z")), None),
        ] {
            assert_eq!(range.midpoint(), expected, "{range}");
        }
    }

    #[test]
    fn a_split_needs_a_place_strictly_inside() {
        let range = Range { start: RoutingKey::Slot(5), end: ordered(7, b"m") };
        for at in [RoutingKey::Slot(5), ordered(7, b"m"), RoutingKey::End, RoutingKey::START] {
            assert_eq!(range.split(at), None);
        }
        let (below, above) = range.split(ordered(7, b"c")).unwrap();
        assert_eq!(below.to_string(), "slot 5 .. keyspace 7 \"c\"");
        assert_eq!(above.to_string(), "keyspace 7 \"c\" .. keyspace 7 \"m\"");
    }

    #[test]
    fn the_span_of_a_keyspace_holds_the_keys_that_are_routed_into_the_range() {
        let mut prng = Prng::new(3);
        let placements = [
            Placement::Ordered,
            Placement::Slots,
            Placement::Hashed(Buckets::new(1).unwrap()),
            Placement::Hashed(Buckets::new(64).unwrap()),
        ];
        let (mut inside, mut outside) = (0, 0);
        for _ in 0..50_000 {
            let range = Range { start: random(&mut prng), end: random(&mut prng) };
            let placement = placements[prng.index(4)];
            let keyspace = prng.below(3) as u32;
            let user_key: Vec<u8> =
                (0..prng.index(4)).map(|_| [0, 1, 0xff][prng.index(3)]).collect();
            let key = placement.key(keyspace, &user_key);
            let place = placement.parts(&key).unwrap().routing_key();
            let span = range.span(keyspace, placement);
            let contained = span.as_ref().is_some_and(|span| span.contains(&key));
            assert_eq!(contained, range.contains(place), "{placement} {place} in {range}");
            *(if contained { &mut inside } else { &mut outside }) += 1;
            // Another keyspace's keys are never in it.
            let other = placement.key(keyspace + 1, &user_key);
            assert!(span.is_none_or(|span| !span.contains(&other)));
        }
        assert!(inside > 5_000 && outside > 5_000, "{inside} {outside}");
    }
}
