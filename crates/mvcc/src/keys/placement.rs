//! How a keyspace lays its keys out over the shards.
//!
//! ```text
//!   ordered      keyspace u32 | user key                neighbours stay neighbours
//!   slots        keyspace u32 | slot u16 | user key     Redis Cluster's slot: {tags} keep together
//!   hashed(n)    keyspace u32 | slot u16 | user key     n buckets, each at one slot
//! ```
//!
//! Numbers are big-endian, so that they sort. The slot is Redis Cluster's: CRC-16/XMODEM of the key
//! modulo 16384, or of what lies between the first `{` and the next `}` if that is not empty.
//!
//! `hashed(n)` divides a keyspace into a power of two of buckets by the *high* bits of XXH3 and puts
//! bucket b at slot `b * (16384 / n)`. Inside a bucket keys are in order. With the high bits, bucket
//! b of n is made of the buckets 2b and 2b + 1 of 2n; low bits would deal a bucket's keys out over
//! the whole table when it is doubled. Slots of their own for hashed keyspaces were rejected: there
//! would be a second space to divide among shards, and nothing gained.

use std::fmt;

use atoll_encoding::Malformed;
use atoll_encoding::hash::hash64;

use super::routing::RoutingKey;

/// Number of slots.
pub const SLOTS: u16 = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 14;
/// Longest header of a key: keyspace and slot.
pub(super) const HEADER_MAX: usize = 6;

/// How many buckets a hashed keyspace has: a power of two, at most [`SLOTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Buckets(u16);

impl Buckets {
    /// Returns `n` buckets, `None` unless it is a power of two from 1 to 16384.
    pub fn new(n: u16) -> Option<Buckets> {
        (n.is_power_of_two() && n <= SLOTS).then_some(Buckets(n))
    }

    /// Returns how many there are.
    pub fn count(self) -> u16 {
        self.0
    }

    /// Returns the slot of a bucket.
    pub fn slot(self, bucket: u16) -> u16 {
        debug_assert!(bucket < self.0, "bucket {bucket} of {}", self.0);
        bucket * (SLOTS / self.0)
    }

    /// Returns the bucket of a user key.
    pub fn of(self, user_key: &[u8]) -> u16 {
        let finest = (hash64(user_key) >> (u64::BITS - SLOT_BITS)) as u16;
        finest / (SLOTS / self.0)
    }
}

/// How a keyspace lays its keys out. Fixed when the keyspace is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Placement {
    /// By the order of the keys.
    Ordered,
    /// By Redis slot.
    Slots,
    /// By hash.
    Hashed(Buckets),
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Placement::Ordered => f.write_str("ordered"),
            Placement::Slots => f.write_str("slots"),
            Placement::Hashed(buckets) => write!(f, "hashed({})", buckets.count()),
        }
    }
}

/// What a key is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts<'a> {
    /// The keyspace.
    pub keyspace: u32,
    /// The slot, `None` in an ordered keyspace.
    pub slot: Option<u16>,
    /// What the client calls the key.
    pub user_key: &'a [u8],
}

impl<'a> Parts<'a> {
    /// Returns the place of the key among the shards.
    pub fn routing_key(&self) -> RoutingKey<&'a [u8]> {
        match self.slot {
            Some(slot) => RoutingKey::Slot(slot),
            None => RoutingKey::Ordered { keyspace: self.keyspace, key: self.user_key },
        }
    }
}

impl Placement {
    /// Returns the slot of a user key, `None` in an ordered keyspace.
    pub fn slot(self, user_key: &[u8]) -> Option<u16> {
        match self {
            Placement::Ordered => None,
            Placement::Slots => Some(slot(user_key)),
            Placement::Hashed(buckets) => Some(buckets.slot(buckets.of(user_key))),
        }
    }

    /// Appends the key of a user key.
    pub fn put_key(self, out: &mut Vec<u8>, keyspace: u32, user_key: &[u8]) {
        put_header(out, keyspace, self.slot(user_key));
        out.extend_from_slice(user_key);
    }

    /// Returns the key of a user key.
    pub fn key(self, keyspace: u32, user_key: &[u8]) -> Vec<u8> {
        let mut key = Vec::with_capacity(HEADER_MAX + user_key.len());
        self.put_key(&mut key, keyspace, user_key);
        key
    }

    /// Takes a key of this placement apart.
    ///
    /// # Errors
    /// It is shorter than its header, or names a slot that does not exist.
    pub fn parts(self, key: &[u8]) -> Result<Parts<'_>, Malformed> {
        let malformed = |offset, expected| Malformed { offset, expected };
        let keyspace = keyspace(key).ok_or(malformed(0, "a keyspace"))?;
        let rest = &key[4..];
        if self == Placement::Ordered {
            return Ok(Parts { keyspace, slot: None, user_key: rest });
        }
        let (slot, user_key) = rest.split_first_chunk().ok_or(malformed(4, "a slot"))?;
        let slot = u16::from_be_bytes(*slot);
        if slot >= SLOTS {
            return Err(malformed(4, "a slot below 16384"));
        }
        Ok(Parts { keyspace, slot: Some(slot), user_key })
    }
}

/// Returns the keyspace of a key, whatever its placement.
pub fn keyspace(key: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*key.first_chunk()?))
}

/// Appends what stands in front of the user key.
pub(super) fn put_header(out: &mut Vec<u8>, keyspace: u32, slot: Option<u16>) {
    out.extend_from_slice(&keyspace.to_be_bytes());
    if let Some(slot) = slot {
        out.extend_from_slice(&slot.to_be_bytes());
    }
}

/// Returns the Redis slot of a user key.
pub fn slot(user_key: &[u8]) -> u16 {
    crc16(hash_tag(user_key).unwrap_or(user_key)) % SLOTS
}

/// Returns what of a key is hashed, if it has a tag.
fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    let open = memchr::memchr(b'{', key)?;
    let tag = &key[open + 1..];
    let close = memchr::memchr(b'}', tag)?;
    if close == 0 { None } else { Some(&tag[..close]) }
}

/// CRC-16/XMODEM: polynomial 0x1021, start 0, not reflected. Four bytes at a time: `TABLES[n]` has what
/// a byte does to the remainder when n more follow it.
fn crc16(bytes: &[u8]) -> u16 {
    static TABLES: [[u16; 256]; 4] = {
        let mut tables = [[0; 256]; 4];
        let mut i = 0;
        while i < 256 {
            let mut crc = (i as u16) << 8;
            let mut bit = 0;
            while bit < 32 {
                crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
                bit += 1;
                if bit % 8 == 0 {
                    tables[bit / 8 - 1][i] = crc;
                }
            }
            i += 1;
        }
        tables
    };
    let of = |table: usize, byte: u8| TABLES[table][usize::from(byte)];
    let (fours, rest) = bytes.as_chunks::<4>();
    let crc = fours.iter().fold(0u16, |crc, [a, b, c, d]| {
        let [high, low] = crc.to_be_bytes();
        of(3, a ^ high) ^ of(2, b ^ low) ^ of(1, *c) ^ of(0, *d)
    });
    rest.iter().fold(crc, |crc, &byte| (crc << 8) ^ of(0, (crc >> 8) as u8 ^ byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis_cluster() {
        assert_eq!(crc16(b"123456789"), 0x31c3, "the check value of CRC-16/XMODEM");
        let by_bits = |bytes: &[u8]| {
            bytes.iter().fold(0u16, |crc, &byte| {
                (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| match crc >> 15 {
                    0 => crc << 1,
                    _ => crc << 1 ^ 0x1021,
                })
            })
        };
        for len in 0..40u8 {
            let bytes: Vec<u8> = (0..len).map(|n| n.wrapping_mul(37) ^ len).collect();
            assert_eq!(crc16(&bytes), by_bits(&bytes), "{bytes:?}");
        }
        for (key, expected) in [
            ("foo", 12_182),
            ("bar", 5_061),
            ("{user1000}.following", slot(b"user1000")),
            ("foo{}{bar}", crc16(b"foo{}{bar}") % SLOTS),
            ("foo{{bar}}zap", slot(b"{bar")),
            ("foo{bar}{zap}", slot(b"bar")),
            ("{", crc16(b"{") % SLOTS),
        ] {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
    }

    #[test]
    fn a_key_comes_apart_into_what_it_was_made_of() {
        let hashed = Placement::Hashed(Buckets::new(8).unwrap());
        for user_key in [&b""[..], b"a", b"\0\xff", b"{tag}x"] {
            for placement in [Placement::Ordered, Placement::Slots, hashed] {
                let key = placement.key(0x0102_0304, user_key);
                let parts = placement.parts(&key).unwrap();
                let slot = placement.slot(user_key);
                assert_eq!(parts, Parts { keyspace: 0x0102_0304, slot, user_key }, "{placement}");
            }
        }
        let too_high = [0, 0, 0, 1, 0x40, 0];
        let error = Placement::Slots.parts(&too_high).unwrap_err();
        assert_eq!(error.to_string(), "expected a slot below 16384 at byte 4");
        for cut in 0..6 {
            assert!(Placement::Slots.parts(&[0; 6][..cut]).is_err(), "{cut} bytes");
        }
        assert!(Placement::Ordered.parts(&[0; 3]).is_err());
    }

    #[test]
    fn doubling_the_buckets_cuts_each_of_them_in_two() {
        for n in 0..1000u32 {
            let key = n.to_le_bytes();
            let mut buckets = Buckets::new(1).unwrap();
            assert_eq!(buckets.of(&key), 0);
            while let Some(finer) = Buckets::new(buckets.count() * 2) {
                assert_eq!(finer.of(&key) / 2, buckets.of(&key));
                let bucket = buckets.of(&key);
                assert_eq!(finer.slot(2 * bucket), buckets.slot(bucket), "the lower half stays");
                buckets = finer;
            }
            assert_eq!(buckets.count(), SLOTS);
        }
    }

    #[test]
    fn every_bucket_gets_its_share() {
        let buckets = Buckets::new(16).unwrap();
        let mut counts = [0; 16];
        for n in 0..16_000u32 {
            counts[usize::from(buckets.of(n.to_string().as_bytes()))] += 1;
        }
        assert!(counts.iter().all(|n| (850..1150).contains(n)), "{counts:?}");
        for n in [0, 3, 12, 16_385, 32_768] {
            assert_eq!(Buckets::new(n), None);
        }
    }
}
