//! Numbers by which keys are drawn: a cheap generator, and Zipf's law over it.
//!
//! ```text
//!   rank        0      1      2      3   ...        weight of rank r: 1 / (r + 1)^0.99
//!   share     ####    ##     #     .                scattered over the key space, so that
//!   key       77213   40116  3019  65922 ...        neighbours in rank are no neighbours in order
//! ```
//!
//! The ranks are those of Gray et al., "Quickly generating billion-record synthetic databases"
//! (1994), which YCSB uses: one division of the unit interval by a closed form, after a sum over all
//! ranks that is made once. Equal seeds give equal sequences.

use crate::data;

/// The exponent of YCSB's skewed loads.
pub const EXPONENT: f64 = 0.99;

/// A sequence of pseudo-random numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Returns the sequence of a seed.
    pub fn new(seed: u64) -> Random {
        Random(data::mix(seed))
    }

    /// Returns the next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        data::mix(self.0)
    }

    /// Returns a number below `bound`, uniformly (the bias is below 2^-32 for any key space).
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// Returns a number in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Zipf's law over a number of keys.
#[derive(Clone, Debug)]
pub struct Zipf {
    keys: u64,
    zeta: f64,
    alpha: f64,
    eta: f64,
    /// Shares no divisor with `keys`, so that multiplying by it permutes them.
    stride: u64,
}

impl Zipf {
    /// Prepares the law; takes time in proportion to the number of keys.
    pub fn new(keys: u64) -> Zipf {
        let keys = keys.max(1);
        let sum = |count: u64| (1..=count).map(|rank| (rank as f64).powf(-EXPONENT)).sum::<f64>();
        let (zeta, zeta2) = (sum(keys), sum(keys.min(2)));
        let eta = (1.0 - (2.0 / keys as f64).powf(1.0 - EXPONENT)) / (1.0 - zeta2 / zeta);
        // The golden ratio leaves the widest gaps between the keys of the first ranks.
        let golden = (keys as f64 * 0.618) as u64;
        let stride = (golden.max(1)..).find(|&stride| gcd(stride, keys) == 1).unwrap_or(1);
        Zipf { keys, zeta, alpha: 1.0 / (1.0 - EXPONENT), eta, stride }
    }

    /// Draws a key below the number of keys.
    pub fn draw(&self, random: &mut Random) -> u64 {
        let rank = self.draw_rank(random);
        ((u128::from(rank) * u128::from(self.stride)) % u128::from(self.keys)) as u64
    }

    /// Draws a rank, for keys that are not scattered.
    pub fn draw_rank(&self, random: &mut Random) -> u64 {
        self.rank(random.unit())
    }

    /// Returns the rank at a place of the unit interval, 0 for the most frequent one.
    fn rank(&self, unit: f64) -> u64 {
        let place = unit * self.zeta;
        if place < 1.0 {
            return 0;
        }
        if place < 1.0 + 0.5_f64.powf(EXPONENT) {
            return 1.min(self.keys - 1);
        }
        let rank = self.keys as f64 * (self.eta * unit - self.eta + 1.0).powf(self.alpha);
        (rank as u64).min(self.keys - 1)
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: u64 = 200_000;

    #[test]
    fn shares_fall_as_the_law_says() {
        let zipf = Zipf::new(1000);
        let mut random = Random::new(1);
        let mut hits = vec![0_u32; 1000];
        for _ in 0..DRAWS {
            hits[zipf.rank(random.unit()) as usize] += 1;
        }
        let weight = |rank: u64| ((rank + 1) as f64).powf(-EXPONENT);
        let zeta: f64 = (0..1000).map(weight).sum();
        // The first two are exact; the closed form for the others is close in sum.
        for (from, to, slack) in [(0, 1, 0.03), (1, 2, 0.05), (0, 10, 0.06), (0, 100, 0.05)] {
            let share = hits[from as usize..to as usize].iter().sum::<u32>() as f64 / DRAWS as f64;
            let law = (from..to).map(weight).sum::<f64>() / zeta;
            assert!((share / law - 1.0).abs() < slack, "{from}..{to}: {share} against {law}");
        }
        assert!(hits[900..].iter().sum::<u32>() > 0, "the tail is drawn too");
    }

    #[test]
    fn every_rank_has_a_key_of_its_own_and_neighbours_are_scattered() {
        for keys in [1, 2, 3, 10, 97, 1000] {
            let zipf = Zipf::new(keys);
            let mut seen: Vec<u64> = (0..keys).map(|rank| rank * zipf.stride % keys).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..keys).collect::<Vec<_>>(), "{keys} keys");
        }
        let zipf = Zipf::new(100_000);
        assert!(zipf.stride > 1000 && zipf.stride < 99_000, "{}", zipf.stride);
        let mut random = Random::new(2);
        assert!((0..DRAWS).all(|_| zipf.draw(&mut random) < 100_000));
    }

    #[test]
    fn a_seed_names_its_sequence() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (0..100).map(|_| random.below(10)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!((0..10).all(|digit| draw(1).contains(&digit)));
    }
}
