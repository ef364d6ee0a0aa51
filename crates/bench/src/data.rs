//! Keys and values: the same for every engine and run.

/// Bytes of a key.
pub const KEY_LEN: usize = 16;
/// Bytes of a value.
pub const VALUE_LEN: usize = 100;

/// Bytes a record has for its user.
pub const RECORD_LEN: u64 = (KEY_LEN + VALUE_LEN) as u64;

/// Returns the key of record `n`, at a place in the key order that has nothing to do with `n`.
pub fn key(n: u64) -> [u8; KEY_LEN] {
    join(mix(n), n)
}

/// Returns the key of record `n` in ascending order.
pub fn ascending_key(n: u64) -> [u8; KEY_LEN] {
    join(0, n)
}

/// Returns a key that lies beside that of record `n` and belongs to no record.
pub fn absent_key(n: u64) -> [u8; KEY_LEN] {
    join(mix(n), n | 1 << 63)
}

/// Returns the value of record `n`: half noise, half a repetition of the noise.
pub fn value(n: u64) -> [u8; VALUE_LEN] {
    let mut value = [0; VALUE_LEN];
    fill(n, &mut value);
    value
}

/// Makes a value of any even length in the same way.
pub fn fill(n: u64, value: &mut [u8]) {
    let (noise, repetition) = value.split_at_mut(value.len() / 2);
    for (i, part) in noise.chunks_mut(8).enumerate() {
        let word = mix(n ^ (i as u64 + 1) << 56).to_le_bytes();
        part.copy_from_slice(&word[..part.len()]);
    }
    repetition.copy_from_slice(noise);
}

/// Returns the number whose value is the one of record `n` after it was written again so many times.
pub fn version(n: u64, times: u64) -> u64 {
    n ^ times << 40
}

/// Returns the record that step `n` of a thread asks for, uniform over `records`.
pub fn pick(thread: u64, n: u64, records: u64) -> u64 {
    let random = mix(mix(thread + 1) ^ n);
    ((u128::from(random) * u128::from(records)) >> 64) as u64
}

fn join(high: u64, low: u64) -> [u8; KEY_LEN] {
    (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
}

/// A bijection of 64-bit numbers that leaves no trace of their order (splitmix64's finaliser).
pub fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ n >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_are_uniform_and_never_outside() {
        let mut hits = [0_u32; 10];
        for n in 0..10_000 {
            hits[pick(3, n, 10) as usize] += 1;
        }
        assert!(hits.iter().all(|hits| (850..1150).contains(hits)), "{hits:?}");
        assert_ne!(pick(0, 7, u64::MAX), pick(1, 7, u64::MAX), "threads read different keys");
    }

    #[test]
    fn values_of_all_lengths_and_versions_differ() {
        let filled = |n, len| {
            let mut value = vec![0; len];
            fill(n, &mut value);
            value
        };
        assert_eq!(filled(7, VALUE_LEN), value(7));
        let long = filled(7, 4096);
        assert_eq!(long[..2048], long[2048..]);
        let words: std::collections::BTreeSet<_> = long[..2048].chunks(8).collect();
        assert_eq!(words.len(), 256, "noise of any length");
        assert_ne!(filled(version(7, 1), 1024), filled(version(7, 2), 1024));
        assert_ne!(filled(version(7, 1), 1024), filled(7, 1024));
    }

    #[test]
    fn values_are_half_noise_and_keys_are_distinct() {
        let (a, b) = (value(1), value(2));
        assert_eq!(a[..50], a[50..]);
        assert_ne!(a[..50], b[..50]);
        assert_ne!(key(1), absent_key(1));
        assert!(ascending_key(1) < ascending_key(2));
    }
}
