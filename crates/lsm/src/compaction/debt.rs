//! Debt: the bytes that merges must still rewrite until every level is within its target.
//!
//! A byte that is written now is rewritten once on its way into the base level and about
//! `1 + ratio` times for each level below; until then it is owed. So debt is what level 0 costs,
//! and what the excess of each level costs, flowed downwards:
//!
//! ```text
//!   L0   x bytes                   x + its share of the base level   (all of it from the trigger on)
//!   L4   b + x against target 10   what is above 10 goes down, each byte with what it meets in L5
//!   L5   ... + that against 100    what is above 100 goes down, each byte with what it meets in L6
//!   L6                             owes nothing
//! ```
//!
//! A byte that leaves a level of s bytes meets n / s bytes in the next one, which holds n. To bring s
//! down to t this way takes `(s + n) ln(s / t)` bytes; the logarithm is taken as `(s - t) / sqrt(s t)`,
//! a hundredth too much at twice the target, and the same on every machine.
//!
//! The delay of writers follows from it, so it must not jump. RocksDB's figure of this kind does: it
//! counts level 0 only from the trigger on, and derives the other targets from level 0's size, so a
//! merge that empties level 0 makes everything below it too large at once (its issue 9423). Here:
//! - Targets do not depend on level 0.
//! - Level 0 is owed from the first byte on: below the trigger a proportionate share of the base
//!   level.
//! - Level 0 flows down as if it were in the base level already. So moving bytes from level 0 into
//!   the base level, or from any level to the next, never raises the debt.
//!
//! What it does not know is how much of a merge disappears (overwritten, deleted, expired) and how
//! much moves unread: it is an upper estimate for random writes.

use crate::compaction::choose::{Targets, targets_of};
use crate::version::LEVELS;

/// What a version owes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Debt {
    /// Bytes to be rewritten.
    pub(crate) bytes: f64,
    /// Bytes that one more written byte costs once every level is at its target.
    pub(crate) per_byte: f64,
}

/// Returns the debt of levels that hold so many bytes. `trigger` are the bytes at which level 0 is
/// merged. What is in memory may be counted into level 0, where it will be.
pub(crate) fn debt(bytes: &[f64; LEVELS], trigger: f64, targets: Targets) -> Debt {
    let trigger = trigger.max(1.0);
    let whole = bytes.map(|b| b as u64);
    let (base, sizes) = targets_of(&whole, targets);
    let level0 = bytes[0];
    let overlap = bytes[base] / level0.max(trigger);
    let mut owed = level0 * (1.0 + overlap);
    let mut per_byte = 1.0 + sizes[base] as f64 / trigger;
    let mut arrives = level0;
    for level in base..LEVELS - 1 {
        let (holds, target) = (bytes[level] + arrives, sizes[level] as f64);
        arrives = (holds - target).max(0.0);
        // What it meets includes what went down before it.
        owed += (holds + bytes[level + 1]) * arrives / (holds * target).sqrt().max(1.0);
        per_byte += 1.0 + sizes[level + 1] as f64 / target.max(1.0);
    }
    Debt { bytes: owed, per_byte }
}

#[cfg(test)]
mod tests {
    use atoll_env::random::Prng;

    use super::*;

    const TARGETS: Targets = Targets {
        level0_tables: 4,
        level_base_size: 4000,
        level_ratio: 10,
        value_file_size: 1 << 20,
    };
    const TRIGGER: f64 = 400.0;

    fn owed(bytes: [f64; LEVELS]) -> f64 {
        debt(&bytes, TRIGGER, TARGETS).bytes
    }

    #[test]
    fn an_empty_tree_and_one_within_its_targets_owe_nothing() {
        assert_eq!(owed([0.0; LEVELS]), 0.0);
        assert_eq!(owed([0.0, 0.0, 0.0, 0.0, 0.0, 900.0, 10_000.0]), 0.0);
    }

    #[test]
    fn level_0_owes_itself_and_its_share_of_the_base_level() {
        // L6 is the base: there is nothing below it.
        assert_eq!(owed([400.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1000.0]), 1400.0);
        assert_eq!(owed([100.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1000.0]), 350.0, "a quarter");
        assert_eq!(owed([800.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1000.0]), 1800.0);
    }

    #[test]
    fn what_exceeds_a_target_is_owed_with_what_it_meets_below() {
        // L5 has 1000 too much. The first byte of them meets 10000 / 2000, the last 11000 / 1000.
        let owed = owed([0.0, 0.0, 0.0, 0.0, 0.0, 2000.0, 10_000.0]);
        assert!((8000.0..9000.0).contains(&owed), "{owed}");
    }

    #[test]
    fn a_written_byte_costs_one_way_down() {
        // Base L5 with target 1000: 1 + 1000/400, then 1 + 10000/1000.
        let cost = debt(&[0.0, 0.0, 0.0, 0.0, 0.0, 900.0, 10_000.0], TRIGGER, TARGETS).per_byte;
        assert!((cost - 14.5).abs() < 0.1, "{cost}");
    }

    /// Levels at any sizes around their targets.
    fn drawn(prng: &mut Prng) -> [f64; LEVELS] {
        let mut bytes = [0.0; LEVELS];
        let mut size = prng.range(1..2_000_000) as f64;
        for level in (1..LEVELS).rev() {
            bytes[level] = size;
            size = size / 10.0 * (0.5 + prng.range(0..3000) as f64 / 1000.0);
            if size < 100.0 {
                break;
            }
        }
        bytes[0] = prng.range(0..4000) as f64;
        bytes
    }

    #[test]
    fn a_step_of_a_merge_never_raises_it_and_lowers_it_by_little() {
        let mut prng = Prng::new(7);
        for _ in 0..20_000 {
            let bytes = drawn(&mut prng);
            let (base, sizes) = targets_of(&bytes.map(|b| b as u64), TARGETS);
            let before = debt(&bytes, TRIGGER, TARGETS);
            let from = if prng.chance(0.5) { 0 } else { base + prng.index(LEVELS - base) };
            let to = if from == 0 { base } else { from + 1 };
            let excess = bytes[from] - sizes[from] as f64;
            if to >= LEVELS || excess < bytes[from] / 100.0 {
                continue;
            }
            let mut after = bytes;
            // A hundredth of a merge: what goes by between two looks at it.
            let piece = bytes[from] / 100.0;
            after[from] -= piece;
            after[to] += piece;
            if targets_of(&after.map(|b| b as u64), TARGETS).0 != base {
                // A level more or less: that one may be cheaper.
                continue;
            }
            let now = debt(&after, TRIGGER, TARGETS);
            assert!(
                now.bytes <= before.bytes * 1.0001 + 1.0,
                "{bytes:?} {from}->{to}: {before:?} {now:?}"
            );
        }
    }

    #[test]
    fn it_is_continuous_in_level_0() {
        let mut prng = Prng::new(8);
        for _ in 0..20_000 {
            let mut bytes = drawn(&mut prng);
            let before = debt(&bytes, TRIGGER, TARGETS);
            bytes[0] += 1.0;
            let step = debt(&bytes, TRIGGER, TARGETS).bytes - before.bytes;
            // No more than its way down through levels of these sizes, level by level.
            let (base, _) = targets_of(&bytes.map(|b| b as u64), TARGETS);
            let below: f64 = bytes[base..].iter().sum::<f64>() + bytes[0];
            let (_, sizes) = targets_of(&bytes.map(|b| b as u64), TARGETS);
            let way: f64 = (base..LEVELS - 1).map(|l| 2.0 * below / sizes[l] as f64).sum();
            let most = 2.0 + bytes[base] / TRIGGER + way;
            assert!((0.0..=most).contains(&step), "{bytes:?}: {step} of {most}");
        }
    }
}
