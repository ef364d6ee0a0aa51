//! Hashes with fixed seeds: equal on every run and machine, so they may reach disk and output.

use std::hash::{BuildHasherDefault, Hasher};

use xxhash_rust::xxh3;

/// Returns the 64-bit XXH3 of `bytes`.
pub fn hash64(bytes: &[u8]) -> u64 {
    xxh3::xxh3_64(bytes)
}

/// A fixed-seed hasher for maps whose keys a client cannot choose freely.
#[derive(Default, Clone)]
pub struct FixedHasher(u64);

impl Hasher for FixedHasher {
    fn finish(&self) -> u64 {
        // Finalised, because tables take their bucket from either end of the word.
        let mut x = self.0;
        x ^= x >> 32;
        x = x.wrapping_mul(0xd6e8_feb8_6659_fd93);
        x ^ (x >> 32)
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3::xxh3_64_with_seed(bytes, self.0);
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }
}

/// A hash map with a fixed seed. Its order is still nobody's business: sort before output.
#[expect(clippy::disallowed_types, reason = "this is the replacement, with a fixed hasher")]
pub type HashMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<FixedHasher>>;
/// A hash set with a fixed seed.
#[expect(clippy::disallowed_types, reason = "this is the replacement, with a fixed hasher")]
pub type HashSet<K> = std::collections::HashSet<K, BuildHasherDefault<FixedHasher>>;
