//! Filter partitions: most lookups of what is not there end here.
//!
//! There are two kinds, told apart by the last byte of a partition. Which a table gets follows from
//! how long it lives and how much it holds ([`Filter::of_level`]):
//!
//! | tables | kind | bits per key | absent keys that pass |
//! |---|---|---|---|
//! | of the last level: nine tenths of the data | binary fuse ([`fuse`]) | 10 | 0.4 % |
//! | above | blocked Bloom ([`bloom`]) | the option and 4 more, by default 14 | 0.3 % |
//!
//! A lookup of an absent key pays for every level what that level lets pass, but a level's bits cost
//! memory by its size; so the small levels get more of them (Dayan et al., *Monkey*, SIGMOD 2017), and
//! are rewritten often enough that filters must be cheap to build.
//!
//! A prefix is put in as if it were a key.

mod bloom;
mod fuse;

use crate::version::LEVELS;

/// Bits per key that levels above the last have more.
const BITS_ABOVE_LAST: u32 = 4;
/// With fewer bits per key than this, a fuse filter would be larger than what was asked for.
const FUSE_BITS_MIN: u32 = 10;

/// What filters a table gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filter {
    /// None.
    #[default]
    None,
    /// Blocked Bloom filters with so many bits per key.
    Bloom(u32),
    /// Binary fuse filters with eight bits of fingerprint.
    Fuse,
}

/// Which kinds of filters an engine writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FilterPolicy {
    /// Binary fuse in the last level, Bloom filters with more bits above.
    #[default]
    ByLevel,
    /// Bloom filters of the same bits everywhere.
    Bloom,
}

impl Filter {
    /// Returns what a table of `level` gets where `bits` per key are asked for.
    pub(crate) fn of_level(policy: FilterPolicy, bits: u32, level: usize) -> Filter {
        match policy {
            _ if bits == 0 => Filter::None,
            FilterPolicy::Bloom => Filter::Bloom(bits),
            FilterPolicy::ByLevel if level < LEVELS - 1 => Filter::Bloom(bits + BITS_ABOVE_LAST),
            FilterPolicy::ByLevel if bits < FUSE_BITS_MIN => Filter::Bloom(bits),
            FilterPolicy::ByLevel => Filter::Fuse,
        }
    }
}

/// Collects the hashes of one partition.
pub(super) struct FilterBuilder {
    filter: Filter,
    hashes: Vec<u64>,
}

impl FilterBuilder {
    pub(super) fn new(filter: Filter) -> FilterBuilder {
        FilterBuilder { filter, hashes: Vec::new() }
    }

    pub(super) fn add(&mut self, hash: u64) {
        if self.filter != Filter::None {
            self.hashes.push(hash);
        }
    }

    /// Returns the bytes the filter would take now.
    pub(super) fn size(&self) -> usize {
        match self.filter {
            _ if self.hashes.is_empty() => 0,
            Filter::None => 0,
            Filter::Bloom(bits) => bloom::size(self.hashes.len(), bits),
            Filter::Fuse => fuse::size(self.hashes.len()),
        }
    }

    /// Returns the filter over what was added, or `None` if there is none to write, and starts
    /// anew.
    pub(super) fn finish(&mut self) -> Option<Vec<u8>> {
        if self.hashes.is_empty() {
            return None;
        }
        let filter = match self.filter {
            Filter::None => None,
            Filter::Bloom(bits) => Some(bloom::build(&self.hashes, bits)),
            Filter::Fuse => {
                // A key and a prefix may be the same bytes.
                self.hashes.sort_unstable();
                self.hashes.dedup();
                let built = fuse::build(&self.hashes);
                Some(built.unwrap_or_else(|| bloom::build(&self.hashes, FUSE_BITS_MIN)))
            }
        };
        self.hashes.clear();
        filter
    }
}

/// Returns whether the key with this hash may be in, or `None` if the bytes are no filter.
pub(super) fn may_contain(filter: &[u8], hash: u64) -> Option<bool> {
    match filter.last()? {
        &fuse::KIND => fuse::may_contain(filter, hash),
        _ => bloom::may_contain(filter, hash),
    }
}

#[cfg(test)]
mod tests {
    use atoll_encoding::hash::hash64;

    use super::*;

    #[test]
    fn a_partition_of_either_kind_is_read_by_its_last_byte() {
        for filter in [Filter::Bloom(10), Filter::Fuse] {
            let mut builder = FilterBuilder::new(filter);
            for round in 0..2u64 {
                let keys = (0..1000u64).map(|n| hash64(&(n + round * 5000).to_be_bytes()));
                // Each twice, as keys that are prefixes, too.
                keys.clone().chain(keys.clone()).for_each(|hash| builder.add(hash));
                assert!(builder.size() > 1000, "{filter:?}");
                let built = builder.finish().expect("there are keys");
                assert!(keys.clone().all(|hash| may_contain(&built, hash) == Some(true)));
                let absent = (0..1000u64).map(|n| hash64(&(n + 100_000).to_be_bytes()));
                let passed = absent.filter(|hash| may_contain(&built, *hash) == Some(true)).count();
                assert!(passed < 50, "{filter:?}: {passed}");
            }
            assert_eq!(builder.finish(), None);
        }
    }

    #[test]
    fn the_last_level_has_fuse_filters_and_those_above_more_bits() {
        let by_level = |bits, level| Filter::of_level(FilterPolicy::ByLevel, bits, level);
        assert_eq!(by_level(10, LEVELS - 1), Filter::Fuse);
        assert_eq!(by_level(10, LEVELS - 2), Filter::Bloom(14));
        assert_eq!(by_level(10, 0), Filter::Bloom(14));
        assert_eq!(by_level(4, LEVELS - 1), Filter::Bloom(4), "no more memory than asked for");
        assert_eq!(by_level(0, 0), Filter::None);
        assert_eq!(Filter::of_level(FilterPolicy::Bloom, 10, LEVELS - 1), Filter::Bloom(10));
    }
}
