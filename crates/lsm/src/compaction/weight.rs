//! Dead weight: what of a table is worth nothing, or will be, counted while the table is written.
//!
//! Sizes alone bring a merge late to a table that is mostly dead, and to one whose tombstones lie side
//! by side: a queue leaves a twentieth of a table dead, and it is the twentieth that every reader of the
//! queue's head walks over. So two more figures are kept of a table:
//!
//! ```text
//!   by key        |...x....|xxxxxxxx|xxx.xxxx|....x...|     windows of 64 records, x a tombstone:
//!                           dense    dense                  dense if half of them are
//!   by deadline    o  o  o o o | o  o    o       o   o      half of the records have expired here
//! ```
//!
//! A window is counted in records, not in blocks, because that is what a scan steps over; blocks of long
//! values hold few.
//!
//! The deadline is taken from a sample: every n-th, n doubled whenever the sample is full. Rejected: only
//! the latest deadline, which one record that lives for ever puts off for ever; and all deadlines, which
//! are megabytes for a table of short records.

/// Records to a window.
const WINDOW: u32 = 64;
/// Tombstones that make a window dense.
const DENSE_FROM: u32 = WINDOW / 2;
/// Deadlines in a sample.
const SAMPLE_MAX: usize = 512;

/// What is counted of a table that is being written, record by record in the order of keys.
#[derive(Default)]
pub(crate) struct Weight {
    records: u32,
    tombstones: u32,
    dense: u64,
    deadlines: Vec<u64>,
    /// Of so many deadlines one is in the sample; 0 means 1.
    stride: u64,
    expiring: u64,
}

impl Weight {
    /// Counts a record.
    pub(crate) fn count(&mut self, is_tombstone: bool) {
        self.records += 1;
        self.tombstones += u32::from(is_tombstone);
        if self.records == WINDOW {
            if self.tombstones >= DENSE_FROM {
                self.dense += u64::from(self.tombstones);
            }
            (self.records, self.tombstones) = (0, 0);
        }
    }

    /// Counts the deadline of a record.
    pub(crate) fn count_deadline(&mut self, deadline: u64) {
        let stride = self.stride.max(1);
        if self.expiring.is_multiple_of(stride) {
            if self.deadlines.len() == SAMPLE_MAX {
                let mut n = 0;
                self.deadlines.retain(|_| {
                    n += 1;
                    n % 2 == 1
                });
                self.stride = 2 * stride;
            }
            // The sample's length is even, so this one is in the thinner one as well.
            self.deadlines.push(deadline);
        }
        self.expiring += 1;
    }

    /// Returns the tombstones in dense windows.
    pub(crate) fn dense(&self) -> u64 {
        self.dense
    }

    /// Returns when half of so many records will have expired, to the precision of the sample; 0 if
    /// they never will.
    pub(crate) fn half_expired(mut self, entries: u64) -> u64 {
        let half = entries.div_ceil(2);
        if half == 0 || self.expiring < half {
            return 0;
        }
        self.deadlines.sort_unstable();
        let before = (half * self.deadlines.len() as u64).div_ceil(self.expiring);
        let at = before.saturating_sub(1) as usize;
        self.deadlines.get(at).or(self.deadlines.last()).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use atoll_env::random::Prng;

    use super::*;

    #[test]
    fn tombstones_count_where_they_lie_side_by_side() {
        let mut spread = Weight::default();
        let mut queue = Weight::default();
        for n in 0..6400 {
            spread.count(n % 20 == 0);
            queue.count(n < 320);
        }
        assert_eq!((spread.dense(), queue.dense()), (0, 320));
    }

    #[test]
    fn few_deadlines_are_told_exactly() {
        let of = |deadlines: &[u64], entries| {
            let mut weight = Weight::default();
            deadlines.iter().for_each(|&d| weight.count_deadline(d));
            weight.half_expired(entries)
        };
        assert_eq!(of(&[], 0), 0);
        assert_eq!(of(&[7], 1), 7);
        assert_eq!(of(&[7, 3, 9], 3), 7, "two of three");
        assert_eq!(of(&[7, 3, 9], 6), 9, "three of six");
        assert_eq!(of(&[7, 3, 9], 7), 0, "never half");
    }

    #[test]
    fn of_many_deadlines_the_sample_is_near() {
        let mut prng = Prng::new(3);
        for count in [512, 513, 1025, 100_000] {
            let mut weight = Weight::default();
            let mut all: Vec<u64> = (0..count).map(|_| prng.range(1..1_000_000)).collect();
            all.iter().for_each(|&d| weight.count_deadline(d));
            assert!(weight.deadlines.len() <= SAMPLE_MAX);
            all.sort_unstable();
            let told = weight.half_expired(count);
            let share = all.partition_point(|&d| d <= told) as f64 / count as f64;
            assert!((0.42..0.58).contains(&share), "{count}: {share}");
        }
    }
}
