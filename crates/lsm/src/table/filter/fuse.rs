//! Binary fuse filters: an eighth of the false positives of a Bloom filter of the same size, for
//! tables that live long.
//!
//! ```text
//!   +--------------------------------------+----------+----------------+------+
//!   | fingerprints: one byte per slot,     | seed     | log2 of slots  | 0x80 |
//!   | in segments of equal length          | u64 LE   | a segment, u8  | u8   |
//!   +--------------------------------------+----------+----------------+------+
//!           ^ s      ^ s+1     ^ s+2
//!           +--------+---------+---- three slots of a key, in three adjacent segments
//! ```
//!
//! The bytes in a key's three slots, combined by exclusive or, give the key's fingerprint. An absent
//! key does so with a chance of 1/256. To build one, slots are *peeled*: a slot that only one key
//! uses can be set last, so that key is taken away, which leaves other slots with one key, until all
//! are gone; then the bytes are given in the opposite order. It fails for about one seed in a hundred
//! and is tried with the next. (Graf and Lemire, *Binary Fuse Filters: Fast and Smaller Than Xor
//! Filters*, ACM JEA 2022.)
//!
//! A filter takes about 9 bits per key when it is large and 10 at the few thousand keys of a
//! partition: as many as a Bloom filter that lets one in a hundred pass. A lookup touches three cache
//! lines instead of one and building costs several times as much, which is why short-lived tables
//! keep Bloom filters.
//!
//! Rejected: 16-bit fingerprints (1/65,536 for twice the memory: a level has far fewer wrong reads
//! from what its neighbours let pass), and one filter for a whole table (what is read in a piece has
//! to be bounded, and to build one takes 24 bytes a key of memory).

/// The last byte of a filter of this kind; Bloom filters have the number of probes there.
pub(super) const KIND: u8 = 0x80;
/// Seed, length of a segment, kind.
const TAIL: usize = 8 + 1 + 1;
/// Slots in a segment at most, as a power of two.
const SEGMENT_LOG2_MAX: u8 = 18;
/// Seeds that are tried.
const ATTEMPTS: u64 = 100;

/// Where the slots of a key lie.
#[derive(Clone, Copy)]
struct Layout {
    segment_log2: u8,
    /// Segments in which a key's first slot may lie; two more follow.
    segments: u32,
}

/// Returns about how many bytes a filter over `keys` hashes takes.
pub(super) fn size(keys: usize) -> usize {
    Layout::for_keys(keys).slots() + TAIL
}

/// Returns the filter over `hashes`, which are sorted and without duplicates; `None` if none can be
/// built, which is not worth waiting for.
pub(super) fn build(hashes: &[u64]) -> Option<Vec<u8>> {
    let layout = Layout::for_keys(hashes.len());
    // Seeds in order: the same keys give the same bytes.
    (0..ATTEMPTS).find_map(|seed| build_with(hashes, layout, seed))
}

fn build_with(hashes: &[u64], layout: Layout, seed: u64) -> Option<Vec<u8>> {
    let slots = layout.slots();
    // Of each slot: how many keys use it, and the exclusive or of their hashes.
    let mut users = vec![0u32; slots];
    let mut sums = vec![0u64; slots];
    for hash in hashes {
        let h = mix(*hash, seed);
        for slot in layout.slots_of(h) {
            users[slot] += 1;
            sums[slot] ^= h;
        }
    }
    let mut alone: Vec<usize> = (0..slots).filter(|slot| users[*slot] == 1).collect();
    let mut order: Vec<(u64, usize)> = Vec::with_capacity(hashes.len());
    while let Some(slot) = alone.pop() {
        // It may have lost its only key since.
        if users[slot] != 1 {
            continue;
        }
        let h = sums[slot];
        order.push((h, slot));
        for other in layout.slots_of(h) {
            users[other] -= 1;
            sums[other] ^= h;
            if users[other] == 1 {
                alone.push(other);
            }
        }
    }
    if order.len() != hashes.len() {
        return None;
    }
    let mut filter = vec![0; slots + TAIL];
    for (h, slot) in order.into_iter().rev() {
        let others = layout.slots_of(h).into_iter().filter(|other| *other != slot);
        filter[slot] = others.fold(fingerprint(h), |byte, other| byte ^ filter[other]);
    }
    let tail = &mut filter[slots..];
    tail[..8].copy_from_slice(&seed.to_le_bytes());
    tail[8] = layout.segment_log2;
    tail[9] = KIND;
    Some(filter)
}

/// Returns whether the key with this hash may be in, or `None` if the bytes are no filter.
pub(super) fn may_contain(filter: &[u8], hash: u64) -> Option<bool> {
    let (fingerprints, tail) = filter.split_at_checked(filter.len().checked_sub(TAIL)?)?;
    let (seed, rest) = tail.split_first_chunk::<8>()?;
    let &[segment_log2, KIND] = rest else { return None };
    let layout = Layout::of(fingerprints.len(), segment_log2)?;
    let h = mix(hash, u64::from_le_bytes(*seed));
    let found = layout
        .slots_of(h)
        .into_iter()
        .try_fold(0, |byte, slot| fingerprints.get(slot).map(|found| byte ^ found))?;
    Some(found == fingerprint(h))
}

impl Layout {
    /// The sizes for which peeling succeeds nearly always, from the paper.
    fn for_keys(keys: usize) -> Layout {
        let n = keys.max(2) as f64;
        let segment_log2 = (n.ln() / 3.33f64.ln() + 2.25) as u8;
        let segment_log2 = segment_log2.min(SEGMENT_LOG2_MAX);
        let factor = (0.875 + 0.25 * 1e6f64.ln() / n.ln()).max(1.125);
        let slots = (n * factor).round() as usize;
        let segments = slots.div_ceil(1 << segment_log2).saturating_sub(2).max(1);
        Layout { segment_log2, segments: segments as u32 }
    }

    /// The layout of a filter that was read.
    fn of(slots: usize, segment_log2: u8) -> Option<Layout> {
        if segment_log2 > SEGMENT_LOG2_MAX || !slots.is_multiple_of(1 << segment_log2) {
            return None;
        }
        let segments = u32::try_from(slots >> segment_log2).ok()?.checked_sub(2)?;
        (segments > 0).then_some(Layout { segment_log2, segments })
    }

    fn slots(self) -> usize {
        (self.segments as usize + 2) << self.segment_log2
    }

    /// Returns the slots of a mixed hash, all below [`Layout::slots`].
    #[inline]
    fn slots_of(self, h: u64) -> [usize; 3] {
        let first = u64::from(self.segments) << self.segment_log2;
        let at = ((u128::from(h) * u128::from(first)) >> 64) as usize;
        let mask = (1usize << self.segment_log2) - 1;
        let next = at + (1 << self.segment_log2);
        let last = next + (1 << self.segment_log2);
        [at, next ^ ((h >> 18) as usize & mask), last ^ (h as usize & mask)]
    }
}

/// Makes another hash of a hash (the finaliser of MurmurHash3).
#[inline]
fn mix(hash: u64, seed: u64) -> u64 {
    let mut h = hash.wrapping_add(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

#[inline]
fn fingerprint(h: u64) -> u8 {
    (h ^ (h >> 32)) as u8
}

#[cfg(test)]
mod tests {
    use atoll_encoding::hash::hash64;

    use super::*;

    fn hashes(numbers: std::ops::Range<u32>) -> Vec<u64> {
        let mut hashes: Vec<u64> = numbers.map(|n| hash64(&n.to_be_bytes())).collect();
        hashes.sort_unstable();
        hashes
    }

    #[test]
    fn nothing_added_is_ever_denied_and_four_absent_keys_in_a_thousand_pass() {
        for keys in [1u32, 2, 3, 10, 100, 1000, 13_000, 100_000] {
            let added = hashes(0..keys);
            let filter = build(&added).expect("a seed in a hundred");
            assert_eq!(filter.len(), size(keys as usize));
            for hash in &added {
                assert_eq!(may_contain(&filter, *hash), Some(true), "{keys} keys");
            }
            let absent = hashes(keys..keys + 100_000);
            let passed = absent.iter().filter(|h| may_contain(&filter, **h) == Some(true)).count();
            assert!(passed < 500, "{passed} of 100000 false positives with {keys} keys");
        }
    }

    #[test]
    fn a_partition_takes_ten_bits_a_key() {
        let bits = 8.0 * size(13_000) as f64 / 13_000.0;
        assert!((9.0..10.5).contains(&bits), "{bits}");
    }

    #[test]
    fn every_small_number_of_keys_has_a_filter() {
        for keys in 1..400 {
            assert!(build(&hashes(0..keys)).is_some(), "{keys}");
        }
    }

    #[test]
    fn bytes_that_are_no_filter_are_told_apart() {
        let filter = build(&hashes(0..100)).expect("a seed in a hundred");
        assert_eq!(may_contain(&[], 1), None);
        assert_eq!(may_contain(&[KIND], 1), None);
        assert_eq!(may_contain(&filter[1..], 1), None, "no whole number of segments");
        let (mut long, mut short) = (filter.clone(), filter);
        let at = long.len() - 2;
        long[at] = SEGMENT_LOG2_MAX + 1;
        assert_eq!(may_contain(&long, 1), None, "segments too long");
        short[at] = 63;
        assert_eq!(may_contain(&short, 1), None, "segments absurdly long");
    }
}
