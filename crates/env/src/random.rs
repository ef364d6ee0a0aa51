//! Randomness as seeds: the environment hands out 64 random bits, components make generators of
//! their own from them.
//!
//! One generator, [`Prng`], serves everything that must be repeated: the simulator's schedule, its
//! faults, workloads, skip list heights. It is xoshiro256++ seeded through SplitMix64, written out
//! here (thirty lines) rather than taken from a crate, because a seed in a bug report must mean the
//! same run after every dependency update. It is fast and well mixed and *not* a source of secrets.
//!
//! A component takes its own stream by [`Prng::fork`], named by a label. Then one more draw in the
//! network does not shift the draws of the disk, and a failing seed stays close to itself while its
//! code is being debugged.

use std::ops::Range;

/// A source of random bits.
pub trait Random: Send + Sync {
    /// Returns 64 random bits.
    fn next_u64(&self) -> u64;
}

/// A seeded generator: equal seeds give equal streams, on every machine and version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prng {
    state: [u64; 4],
}

impl Prng {
    /// Returns the generator of `seed`.
    pub fn new(seed: u64) -> Prng {
        // SplitMix64 spreads a small seed over the state and never yields the all-zero state, in
        // which xoshiro would stay forever.
        let mut x = seed;
        let state = std::array::from_fn(|_| {
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix(x)
        });
        Prng { state }
    }

    /// Returns an independent generator, named by `label`, and advances this one by one draw.
    pub fn fork(&mut self, label: &str) -> Prng {
        let mut seed = self.next_u64();
        for byte in label.bytes() {
            seed = mix(seed ^ u64::from(byte));
        }
        Prng::new(seed)
    }

    /// Returns 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let result = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// Returns a number in `0..n`, and 0 for `n == 0`.
    pub fn below(&mut self, n: u64) -> u64 {
        // Multiply-shift: the bias is below n / 2^64, which no test can see.
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// Returns an index below `len`, and 0 for `len == 0`.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// Returns a number in `range`, and its start if it is empty.
    pub fn range(&mut self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end.saturating_sub(range.start))
    }

    /// Returns true with probability `p`; never for `p <= 0`, always for `p >= 1`.
    pub fn chance(&mut self, p: f64) -> bool {
        // 53 bits fill a double exactly. A draw is spent on every call, so that changing one
        // probability does not shift the rest of the stream.
        let unit = (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        unit < p
    }

    /// Fills `bytes` with random bits.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    /// Permutes `items`, every order being equally likely.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.index(last + 1));
        }
    }

    /// Returns one of `items`, `None` if there are none.
    pub fn choose<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.index(items.len()))
    }
}

/// SplitMix64's finaliser: a bijection in which every input bit reaches every output bit.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_of_a_seed_never_changes() {
        // The state {1, 2, 3, 4} and its first outputs are from the authors' reference code.
        let mut reference = Prng { state: [1, 2, 3, 4] };
        let outputs: Vec<u64> = (0..4).map(|_| reference.next_u64()).collect();
        assert_eq!(outputs, [41943041, 58720359, 3588806011781223, 3591011842654386]);
        // SplitMix64 of seed 0 is published as e220a8397b1dcdaf, 6e789e6aa1b965f4, ...
        assert_eq!(Prng::new(0).state[..2], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
    }

    #[test]
    fn draws_stay_in_their_ranges_and_reach_all_of_them() {
        let mut prng = Prng::new(7);
        let mut seen = [0u32; 6];
        for _ in 0..6000 {
            seen[prng.index(6)] += 1;
            assert!((10..13).contains(&prng.range(10..13)));
        }
        assert!(seen.iter().all(|n| (850..1150).contains(n)), "{seen:?}");
        assert_eq!((prng.below(0), prng.below(1)), (0, 0));
        assert_eq!(prng.range(5..5), 5);
        let hits = (0..10_000).filter(|_| prng.chance(0.25)).count();
        assert!((2300..2700).contains(&hits), "{hits}");
        assert!(!prng.chance(0.0) && prng.chance(1.0));
    }

    #[test]
    fn forks_are_independent_of_each_other_and_of_later_draws() {
        let fork = |label| Prng::new(1).fork(label).next_u64();
        assert_eq!(fork("disk"), fork("disk"));
        assert_ne!(fork("disk"), fork("network"));
        let mut parent = Prng::new(1);
        let mut disk = parent.fork("disk");
        parent.next_u64();
        assert_eq!(disk.next_u64(), fork("disk"));
    }

    #[test]
    fn shuffle_permutes_and_fill_fills_odd_lengths() {
        let mut prng = Prng::new(3);
        let mut items: Vec<u32> = (0..50).collect();
        prng.shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
        let mut bytes = [0u8; 13];
        prng.fill(&mut bytes);
        assert!(bytes[8..].iter().any(|b| *b != 0));
        assert_eq!(prng.choose::<u8>(&[]), None);
    }
}
