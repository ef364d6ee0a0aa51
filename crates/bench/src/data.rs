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
    const NOISE: usize = VALUE_LEN / 2;
    let mut value = [0; VALUE_LEN];
    for (i, part) in value[..NOISE].chunks_mut(8).enumerate() {
        let word = mix(n ^ (i as u64 + 1) << 56).to_le_bytes();
        part.copy_from_slice(&word[..part.len()]);
    }
    value.copy_within(..NOISE, NOISE);
    value
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
    fn values_are_half_noise_and_keys_are_distinct() {
        let (a, b) = (value(1), value(2));
        assert_eq!(a[..50], a[50..]);
        assert_ne!(a[..50], b[..50]);
        assert_ne!(key(1), absent_key(1));
        assert!(ascending_key(1) < ascending_key(2));
    }
}
