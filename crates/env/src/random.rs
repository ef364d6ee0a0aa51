//! Randomness as seeds: the environment hands out 64 random bits, components make generators of
//! their own from them.

/// A source of random bits.
pub trait Random: Send + Sync {
    /// Returns 64 random bits.
    fn next_u64(&self) -> u64;
}
