//! The areas of a store's tree.
//!
//! ```text
//!   B                                                             bound of the lane's timestamps
//!   D | keyspace | [slot] | user key                              versions of a value   (versioned)
//!   E | deadline_ms | keyspace | [slot] | user key                what expires when
//!   F | keyspace | escaped rest of the key | 00 01 | txn          fences
//!   I | keyspace | [slot] | user key                              intents
//!   R | keyspace | escaped rest of the primary | 00 01 | txn      transaction records
//!   S | shard | what                                              state of a shard
//!   X | keyspace | slot | len | user key | generation | sub key   parts of an object    (versioned)
//! ```
//!
//! Integers are big-endian: keyspace 4 bytes, slot and len 2, deadline, generation and shard 8, txn
//! 16. An area of its own for intents, rather than a mark on the newest version, lets a scan for
//! versions run without meeting them, and a scan for intents (usually: none) cost one seek.
//!
//! # Why records are escaped
//! A transaction record must lie inside the tree range of the shard that its primary key is routed
//! to, wherever that shard is split later. With `key | txn` it does not: under the boundary "ab", the
//! record of the primary "a" whose transaction id begins with a byte above `b` sorts *behind* the
//! boundary while the primary is in front of it. So the key is written with an end that sorts below
//! everything that may follow: each `00` becomes `00 ff`, and `00 01` ends it. Then `a < b` and
//! `escaped(a) ... < escaped(b) ...` say the same, whatever stands behind the ends; no escaped key is
//! the beginning of another, so decoding knows where the id starts. The keyspace has a fixed length
//! and stays as it is. The price is a byte for each zero byte of a key; the alternative of groups of
//! nine bytes costs an eighth of every key.
//!
//! # Bounds
//! [`Area::bounds`] turns a span of keys into the tree range of an area; areas `E`, `S` and `B` have
//! no such range: they belong to a store or are found by shard.

use atoll_encoding::{Malformed, Reader};

use super::placement::{HEADER_MAX, Parts, SLOTS};
use crate::request::{Span, TxnId};

/// The areas, by their first byte. The letters are on disk: never change one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Area {
    /// The lane's bound.
    Bound = b'B',
    /// Versions of values.
    Data = b'D',
    /// What expires when.
    Expiry = b'E',
    /// Fences.
    Fence = b'F',
    /// Intents.
    Intent = b'I',
    /// Transaction records.
    Record = b'R',
    /// State of shards.
    Shard = b'S',
    /// Parts of objects.
    Sub = b'X',
}

impl Area {
    /// All of them, in tree order.
    pub const ALL: [Area; 8] = [
        Area::Bound,
        Area::Data,
        Area::Expiry,
        Area::Fence,
        Area::Intent,
        Area::Record,
        Area::Shard,
        Area::Sub,
    ];

    /// The areas whose keys belong to ranges of shards.
    pub const RANGED: [Area; 5] = [Area::Data, Area::Fence, Area::Intent, Area::Record, Area::Sub];

    /// Returns the area of a first byte.
    pub fn from_u8(byte: u8) -> Option<Area> {
        Area::ALL.into_iter().find(|area| *area as u8 == byte)
    }

    /// Returns the tree range, end exclusive, in which this area keeps what belongs to the keys of
    /// a span; `None` for an area that is not laid out by keys.
    ///
    /// In area `X` this is right for spans that begin and end at slots or keyspaces, as all spans of
    /// a keyspace placed by slots do ([`super::Range::span`]); ordered keyspaces have no objects.
    pub fn bounds(self, span: &Span) -> Option<(Vec<u8>, Vec<u8>)> {
        let bound = |key: &[u8]| {
            let mut out = Vec::with_capacity(1 + key.len());
            out.push(self as u8);
            match self {
                Area::Data | Area::Intent | Area::Sub => out.extend_from_slice(key),
                // Without an end: below every record of the key and of the keys that follow it,
                // above every record of the keys before it.
                Area::Fence | Area::Record => {
                    let (keyspace, rest) = key.split_at(key.len().min(4));
                    out.extend_from_slice(keyspace);
                    escape(&mut out, rest);
                }
                Area::Bound | Area::Expiry | Area::Shard => return None,
            }
            Some(out)
        };
        Some((bound(&span.start)?, bound(&span.end)?))
    }
}

/// A tree key, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeKey<'a> {
    /// The lane's bound.
    Bound,
    /// A version of a key.
    Data(&'a [u8]),
    /// A key expires.
    Expiry {
        /// When, in milliseconds since the Unix epoch.
        deadline_ms: u64,
        /// Which.
        key: &'a [u8],
    },
    /// A transaction can never place an intent here.
    Fence {
        /// The key.
        key: Vec<u8>,
        /// The transaction.
        txn: TxnId,
    },
    /// An intent on a key.
    Intent(&'a [u8]),
    /// The record of a transaction.
    Record {
        /// Its primary key.
        primary: Vec<u8>,
        /// The transaction.
        txn: TxnId,
    },
    /// Something that a shard keeps about itself.
    Shard {
        /// Which shard.
        shard: u64,
        /// What.
        what: &'a [u8],
    },
    /// A part of an object.
    Sub {
        /// The object's key.
        of: Parts<'a>,
        /// Which life of the object.
        generation: u64,
        /// Which part.
        sub_key: &'a [u8],
    },
}

impl<'a> TreeKey<'a> {
    /// Takes a tree key apart.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(bytes: &'a [u8]) -> Result<TreeKey<'a>, Malformed> {
        let mut input = Reader::new(bytes);
        let area = Area::from_u8(input.u8("an area")?);
        let area = area.ok_or(Malformed { offset: 0, expected: "a known area" })?;
        let key = match area {
            Area::Bound => {
                input.finish("nothing behind the bound's name")?;
                TreeKey::Bound
            }
            Area::Data => TreeKey::Data(rest_key(&mut input)?),
            Area::Intent => TreeKey::Intent(rest_key(&mut input)?),
            Area::Expiry => {
                TreeKey::Expiry { deadline_ms: be64(&mut input)?, key: rest_key(&mut input)? }
            }
            Area::Fence => {
                let (key, txn) = owned_key(&mut input)?;
                TreeKey::Fence { key, txn }
            }
            Area::Record => {
                let (primary, txn) = owned_key(&mut input)?;
                TreeKey::Record { primary, txn }
            }
            Area::Shard => TreeKey::Shard { shard: be64(&mut input)?, what: input.rest() },
            Area::Sub => {
                let keyspace = u32::from_be_bytes(input.array("a keyspace")?);
                let slot = u16::from_be_bytes(input.array("a slot")?);
                if slot >= SLOTS {
                    return Err(Malformed { offset: 5, expected: "a slot below 16384" });
                }
                let len = u16::from_be_bytes(input.array("the length of a key")?);
                let user_key = input.take(usize::from(len), "a key")?;
                let of = Parts { keyspace, slot: Some(slot), user_key };
                TreeKey::Sub { of, generation: be64(&mut input)?, sub_key: input.rest() }
            }
        };
        Ok(key)
    }
}

/// Replaces `out` by the name of the lane's bound.
pub fn bound(out: &mut Vec<u8>) {
    start(out, Area::Bound);
}

/// Replaces `out` by the name of a key's versions.
pub fn data(out: &mut Vec<u8>, key: &[u8]) {
    start(out, Area::Data);
    out.extend_from_slice(key);
}

/// Replaces `out` by the name of a key's intent.
pub fn intent(out: &mut Vec<u8>, key: &[u8]) {
    start(out, Area::Intent);
    out.extend_from_slice(key);
}

/// Replaces `out` by the name of a deadline.
pub fn expiry(out: &mut Vec<u8>, deadline_ms: u64, key: &[u8]) {
    start(out, Area::Expiry);
    out.extend_from_slice(&deadline_ms.to_be_bytes());
    out.extend_from_slice(key);
}

/// Returns the tree range of all deadlines below `deadline_ms`, end exclusive.
pub fn expiry_before(deadline_ms: u64) -> (Vec<u8>, Vec<u8>) {
    let (mut first, mut end) = (Vec::new(), Vec::new());
    start(&mut first, Area::Expiry);
    expiry(&mut end, deadline_ms, &[]);
    (first, end)
}

/// Replaces `out` by the name of a transaction's record.
pub fn record(out: &mut Vec<u8>, primary: &[u8], txn: TxnId) {
    start(out, Area::Record);
    owned_by(out, primary, txn);
}

/// Replaces `out` by the name of a fence.
pub fn fence(out: &mut Vec<u8>, key: &[u8], txn: TxnId) {
    start(out, Area::Fence);
    owned_by(out, key, txn);
}

/// Replaces `out` by the name of something that a shard keeps about itself.
pub fn shard(out: &mut Vec<u8>, shard: u64, what: &[u8]) {
    start(out, Area::Shard);
    out.extend_from_slice(&shard.to_be_bytes());
    out.extend_from_slice(what);
}

/// Replaces `out` by the name of a part of an object. `key` is that of a keyspace placed by slots.
///
/// # Panics
/// The key is none of those, or is longer than [`super::MAX_USER_KEY`] allows.
pub fn sub(out: &mut Vec<u8>, key: &[u8], generation: u64, sub_key: &[u8]) {
    start(out, Area::Sub);
    let (header, user_key) = key.split_at(HEADER_MAX);
    out.extend_from_slice(header);
    let len = u16::try_from(user_key.len()).expect("a user key is at most MAX_USER_KEY bytes long");
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(user_key);
    out.extend_from_slice(&generation.to_be_bytes());
    out.extend_from_slice(sub_key);
}

/// Returns the tree range of all parts of an object in one of its lives, end exclusive.
///
/// # Panics
/// As [`sub`].
pub fn sub_bounds(key: &[u8], generation: u64) -> (Vec<u8>, Vec<u8>) {
    let (mut first, mut end) = (Vec::new(), Vec::new());
    sub(&mut first, key, generation, &[]);
    // Generations are timestamps' epochs; the last number is never reached.
    sub(&mut end, key, generation.saturating_add(1), &[]);
    (first, end)
}

fn start(out: &mut Vec<u8>, area: Area) {
    out.clear();
    out.push(area as u8);
}

/// Appends a key and a transaction such that the key's order decides.
fn owned_by(out: &mut Vec<u8>, key: &[u8], txn: TxnId) {
    let (keyspace, rest) = key.split_at(key.len().min(4));
    debug_assert!(keyspace.len() == 4, "a key begins with its keyspace");
    out.extend_from_slice(keyspace);
    escape(out, rest);
    out.extend_from_slice(&END);
    out.extend_from_slice(&txn.0.to_be_bytes());
}

/// Ends an escaped key: below `00 ff`, an escaped zero, and below every other byte.
const END: [u8; 2] = [0, 1];
/// Stands for a zero byte.
const ZERO: [u8; 2] = [0, 0xff];

fn escape(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut pieces = bytes.split(|&byte| byte == 0);
    out.extend_from_slice(pieces.next().unwrap_or(&[]));
    for piece in pieces {
        out.extend_from_slice(&ZERO);
        out.extend_from_slice(piece);
    }
}

/// Reads what [`owned_by`] wrote.
fn owned_key(input: &mut Reader<'_>) -> Result<(Vec<u8>, TxnId), Malformed> {
    let mut key = input.take(4, "a keyspace")?.to_vec();
    loop {
        let byte = input.u8("the end of an escaped key")?;
        if byte != 0 {
            key.push(byte);
            continue;
        }
        match input.u8("what an escape means")? {
            0xff => key.push(0),
            1 => break,
            _ => return Err(input.malformed("an escaped zero or the end of a key before here")),
        }
    }
    let txn = TxnId(u128::from_be_bytes(input.array("a transaction")?));
    input.finish("nothing behind the transaction")?;
    Ok((key, txn))
}

/// Reads a key to the end of the input.
fn rest_key<'a>(input: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    let short = input.malformed("a keyspace");
    let key = input.rest();
    if key.len() < 4 { Err(short) } else { Ok(key) }
}

fn be64(input: &mut Reader<'_>) -> Result<u64, Malformed> {
    Ok(u64::from_be_bytes(input.array("eight bytes of a number")?))
}

#[cfg(test)]
mod tests {
    use atoll_env::random::Prng;

    use super::*;
    use crate::keys::placement::{Buckets, Placement};
    use crate::keys::routing::{Range, RoutingKey};

    /// Keys that are hard to tell apart: few bytes, mostly those that escapes are made of.
    fn random_user_key(prng: &mut Prng) -> Vec<u8> {
        (0..prng.index(5)).map(|_| [0, 0, 1, 2, 0xfe, 0xff][prng.index(6)]).collect()
    }

    fn random_txn(prng: &mut Prng) -> TxnId {
        TxnId([0, 1, u128::MAX, u128::from(prng.next_u64()) << 64][prng.index(4)])
    }

    fn random_placement(prng: &mut Prng) -> Placement {
        let buckets = Buckets::new(1 << prng.below(15)).unwrap();
        [Placement::Ordered, Placement::Slots, Placement::Hashed(buckets)][prng.index(3)]
    }

    /// All tree keys of a key, by area.
    fn names(key: &[u8], txn: TxnId, slots: bool) -> Vec<(Area, Vec<u8>)> {
        let mut names = Vec::new();
        let mut add = |area, put: &dyn Fn(&mut Vec<u8>)| {
            let mut out = b"what was there before".to_vec();
            put(&mut out);
            names.push((area, out));
        };
        add(Area::Data, &|out| data(out, key));
        add(Area::Intent, &|out| intent(out, key));
        add(Area::Record, &|out| record(out, key, txn));
        add(Area::Fence, &|out| fence(out, key, txn));
        if slots {
            add(Area::Sub, &|out| sub(out, key, txn.0 as u64, b"\0field"));
        }
        names
    }

    #[test]
    fn every_tree_key_comes_apart_into_what_it_was_made_of() {
        let mut prng = Prng::new(1);
        for _ in 0..5_000 {
            let (placement, user_key) = (random_placement(&mut prng), random_user_key(&mut prng));
            let (key, txn) = (placement.key(9, &user_key), random_txn(&mut prng));
            for (area, bytes) in names(&key, txn, placement != Placement::Ordered) {
                let expected = match area {
                    Area::Data => TreeKey::Data(&key),
                    Area::Intent => TreeKey::Intent(&key),
                    Area::Record => TreeKey::Record { primary: key.clone(), txn },
                    Area::Fence => TreeKey::Fence { key: key.clone(), txn },
                    _ => {
                        let of = placement.parts(&key).unwrap();
                        TreeKey::Sub { of, generation: txn.0 as u64, sub_key: b"\0field" }
                    }
                };
                assert_eq!(TreeKey::decode(&bytes), Ok(expected));
                assert_eq!(Area::from_u8(bytes[0]), Some(area));
            }
            let (mut out, number) = (Vec::new(), prng.next_u64());
            expiry(&mut out, number, &key);
            let expected = TreeKey::Expiry { deadline_ms: number, key: &key };
            assert_eq!(TreeKey::decode(&out), Ok(expected));
            shard(&mut out, number, &user_key);
            let expected = TreeKey::Shard { shard: number, what: &user_key };
            assert_eq!(TreeKey::decode(&out), Ok(expected));
            bound(&mut out);
            assert_eq!(TreeKey::decode(&out), Ok(TreeKey::Bound));
        }
    }

    #[test]
    fn what_belongs_to_a_key_lies_in_the_shard_that_the_key_is_routed_to() {
        let mut prng = Prng::new(2);
        let (mut inside, mut outside) = (0, 0);
        let place = |prng: &mut Prng| match prng.below(4) {
            0 => RoutingKey::End,
            1 => RoutingKey::Slot(prng.below(u64::from(SLOTS)) as u16),
            _ => RoutingKey::Ordered { keyspace: prng.below(3) as u32, key: random_user_key(prng) },
        };
        for _ in 0..50_000 {
            let range = Range { start: place(&mut prng), end: place(&mut prng) };
            let placement = random_placement(&mut prng);
            let (keyspace, user_key) = (prng.below(3) as u32, random_user_key(&mut prng));
            let key = placement.key(keyspace, &user_key);
            let mine = range.contains(placement.parts(&key).unwrap().routing_key());
            *(if mine { &mut inside } else { &mut outside }) += 1;
            let span = range.span(keyspace, placement);
            for (area, bytes) in names(&key, random_txn(&mut prng), placement != Placement::Ordered)
            {
                let bounds = span.as_ref().map(|span| area.bounds(span).unwrap());
                let found = bounds.is_some_and(|(start, end)| start <= bytes && bytes < end);
                assert_eq!(found, mine, "{area:?}: {bytes:?} of {key:?} in {range}");
            }
        }
        assert!(inside > 5_000 && outside > 5_000, "{inside} {outside}");
    }

    #[test]
    fn records_sort_by_their_primary_key_and_then_by_transaction() {
        let mut prng = Prng::new(3);
        for _ in 0..50_000 {
            let mut draw = || {
                let key = Placement::Ordered.key(7, &random_user_key(&mut prng));
                (key, random_txn(&mut prng))
            };
            let (a, b) = (draw(), draw());
            let (mut a_name, mut b_name) = (Vec::new(), Vec::new());
            record(&mut a_name, &a.0, a.1);
            record(&mut b_name, &b.0, b.1);
            assert_eq!(a.cmp(&b), a_name.cmp(&b_name), "{a:?} {b:?}");
        }
    }

    #[test]
    fn a_life_of_an_object_has_its_parts_and_nothing_else() {
        let key = |user_key: &[u8]| Placement::Slots.key(1, user_key);
        let (start, end) = sub_bounds(&key(b"{t}a"), 7);
        let holds = |user_key: &[u8], generation, sub_key: &[u8]| {
            let mut out = Vec::new();
            sub(&mut out, &key(user_key), generation, sub_key);
            start <= out && out < end
        };
        assert!(holds(b"{t}a", 7, b"") && holds(b"{t}a", 7, &[0xff; 9]));
        assert!(!holds(b"{t}a", 6, &[0xff; 9]) && !holds(b"{t}a", 8, b""));
        // Without the length in front of the key, this one would be taken for a part of it.
        assert!(!holds(b"{t}a\0\0\0\0\0\0\0\x07", 7, b""));
    }

    #[test]
    fn deadlines_that_are_due_are_a_prefix_of_their_area() {
        let (start, end) = expiry_before(1_000);
        let mut name = Vec::new();
        for (deadline_ms, due) in [(0, true), (999, true), (1_000, false), (u64::MAX, false)] {
            expiry(&mut name, deadline_ms, &[0; 4]);
            assert_eq!(start <= name && name < end, due, "{deadline_ms}");
        }
    }

    #[test]
    fn bytes_that_are_no_tree_key_are_refused() {
        let key = Placement::Slots.key(1, b"a\0b");
        for (area, bytes) in names(&key, TxnId(5), true) {
            let shortest = match area {
                Area::Data | Area::Intent => 5,
                Area::Sub => bytes.len() - b"\0field".len(),
                _ => bytes.len(),
            };
            for cut in 0..shortest {
                assert!(TreeKey::decode(&bytes[..cut]).is_err(), "{area:?} cut at {cut}");
            }
        }
        for bytes in [&b"Z"[..], b"B+", b"S1234567", b"E1234567", b"E12345678abc"] {
            assert!(TreeKey::decode(bytes).is_err(), "{}", bytes.escape_ascii());
        }
        let mut bad_escape = b"R\0\0\0\x01a\0\x02".to_vec();
        bad_escape.extend([0; 16]);
        let error = TreeKey::decode(&bad_escape).unwrap_err().to_string();
        assert!(error.contains("an escaped zero"), "{error}");
    }
}
