//! Timestamps: 64 bits that order every version and every read.
//!
//! ```text
//!   63 ............................ 12 | 11 ........ 0
//!    epoch: microseconds since 2020     | sub
//!
//!   sub   0x000 - 0x7ff   derived from a read point or from another timestamp below 0x800
//!         0x800           commit point: what the oracle gives to a commit
//!         0x801 - 0xffe   derived from a commit point
//!         0xfff           read point: what the oracle gives to a read
//! ```
//!
//! The oracle allocates epochs, each at most once as a commit point; reads of one batch may share
//! one. Everything else is *derived*: [`Timestamp::next`] of something known. The invariant that all
//! rules lean on: **a timestamp computed before a moment is lower than every commit point and every
//! read point whose epoch is allocated after that moment.** Therefore a derivation may not step on a
//! commit or read point: it answers `None` there, and the caller asks the oracle for an epoch.
//!
//! Deriving by "next epoch, sub 0" was rejected: timestamps derived from derived ones ran ahead of
//! the oracle, and a transaction that began later read below them.
//!
//! Epochs follow the wall clock as long as it moves forward, which makes them good enough for
//! deadlines and for people; no rule needs more than that they ascend.

use std::fmt;

/// Bits of the sub part.
const SUB_BITS: u32 = 12;
/// Sub part of a commit point.
const COMMIT: u64 = 0x800;
/// Sub part of a read point.
const READ: u64 = 0xfff;
/// 2020-01-01T00:00:00Z in microseconds of the Unix epoch.
const START_UNIX_US: u64 = 1_577_836_800_000_000;

/// Microseconds since 2020-01-01T00:00:00Z, at most 52 bits: until the year 2162.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The largest one.
    pub const MAX: Epoch = Epoch((1 << (64 - SUB_BITS)) - 1);

    /// Returns the epoch at a wall time in milliseconds of the Unix epoch, clamped to what fits.
    pub fn from_unix_ms(ms: u64) -> Epoch {
        Epoch(ms.saturating_mul(1_000).saturating_sub(START_UNIX_US)).min(Epoch::MAX)
    }

    /// Returns the wall time in milliseconds of the Unix epoch.
    pub fn unix_ms(self) -> u64 {
        (self.0 + START_UNIX_US) / 1_000
    }

    /// Returns the epoch `us` microseconds later, saturating.
    pub fn after_us(self, us: u64) -> Epoch {
        Epoch(self.0.saturating_add(us)).min(Epoch::MAX)
    }
}

/// A point in the history of the whole database.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Before everything.
    pub const ZERO: Timestamp = Timestamp(0);
    /// After everything.
    pub const MAX: Timestamp = Timestamp(u64::MAX);

    /// Returns the commit point of an epoch.
    pub fn commit_at(epoch: Epoch) -> Timestamp {
        Timestamp(epoch.min(Epoch::MAX).0 << SUB_BITS | COMMIT)
    }

    /// Returns the read point of an epoch: it sees every timestamp of the epoch but itself.
    pub fn read_at(epoch: Epoch) -> Timestamp {
        Timestamp(epoch.min(Epoch::MAX).0 << SUB_BITS | READ)
    }

    /// Returns the epoch part.
    pub fn epoch(self) -> Epoch {
        Epoch(self.0 >> SUB_BITS)
    }

    /// Returns the sub part.
    pub fn sub(self) -> u64 {
        self.0 & READ
    }

    /// Derives the next timestamp; `None` where that is a commit or read point and only the oracle
    /// may go on.
    pub fn next(self) -> Option<Timestamp> {
        let next = Timestamp(self.0.checked_add(1)?);
        (next.sub() != COMMIT && next.sub() != READ).then_some(next)
    }

    /// Returns the timestamp just below.
    pub fn prev(self) -> Timestamp {
        Timestamp(self.0.saturating_sub(1))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03x}", self.epoch().0, self.sub())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_derived_before_is_below_every_point_allocated_after() {
        for start in
            [Timestamp::commit_at(Epoch(7)), Timestamp::read_at(Epoch(6)), Timestamp(7 << 12)]
        {
            let mut derived = start;
            let mut steps = 0;
            while let Some(next) = derived.next() {
                assert!(next > derived);
                derived = next;
                steps += 1;
            }
            assert!(steps <= 0x800);
            assert!(derived < Timestamp::commit_at(Epoch(8)), "{derived}");
            assert!(derived < Timestamp::read_at(Epoch(8)), "{derived}");
        }
    }

    #[test]
    fn a_read_point_sees_its_whole_epoch_and_nothing_of_the_next() {
        let read = Timestamp::read_at(Epoch(4));
        assert!(Timestamp::commit_at(Epoch(4)) < read);
        assert!(Timestamp::commit_at(Epoch(5)) > read);
        assert_eq!(read.next(), Some(Timestamp(5 << 12)));
    }

    #[test]
    fn epochs_and_wall_time_convert_both_ways() {
        let ms = 1_767_225_600_123;
        assert_eq!(Epoch::from_unix_ms(ms).unix_ms(), ms);
        assert_eq!(Epoch::from_unix_ms(0), Epoch(0));
        assert_eq!(Epoch::from_unix_ms(u64::MAX), Epoch::MAX);
        assert_eq!(Timestamp::commit_at(Epoch(3)).to_string(), "3.800");
    }
}
