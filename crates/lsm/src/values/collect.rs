//! Which value files should go: a pure function of what is live in each.
//!
//! ```text
//!   file     7 [####......]   12 [########..]   31 [##########]     # live, . garbage
//!            goes: most garbage per live byte that has to be moved
//! ```
//!
//! Garbage may be a share of all bytes ([`Options::value_garbage_percent`]). Above it, files go, those
//! with the largest share of garbage first, until what would be left is within the share again: moving
//! as little as possible for the space that is needed (the greedy policy of log-structured stores,
//! Rosenblum and Ousterhout, TOCS 1992). A file that began to go is emptier from merge to merge, so it
//! stays first until it is gone. Once it began, collection goes on somewhat below the share
//! ([`low_water`]): else each file would be chosen alone, and all tables be written again for it.
//!
//! [`Options::value_garbage_percent`]: crate::Options::value_garbage_percent

use std::collections::BTreeSet;

/// A value file as the choice sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) id: u64,
    /// Bytes of its records.
    pub(crate) bytes: u64,
    /// Bytes of records that tables point to.
    pub(crate) live: u64,
    /// It cannot be read, and stays.
    pub(crate) stuck: bool,
}

impl Candidate {
    fn garbage(&self) -> u64 {
        self.bytes.saturating_sub(self.live)
    }
}

/// Returns the files that should go, so that garbage is at most `percent` of all bytes.
pub(crate) fn choose(files: &[Candidate], percent: u64) -> BTreeSet<u64> {
    let movable = || files.iter().filter(|f| !f.stuck);
    let mut bytes: u64 = movable().map(|f| f.bytes).sum();
    let mut garbage: u64 = movable().map(Candidate::garbage).sum();
    let mut order: Vec<&Candidate> = movable().filter(|f| f.garbage() > 0).collect();
    order.sort_by(|a, b| {
        let share = |f: &Candidate| f.garbage() as f64 / f.bytes as f64;
        share(b).total_cmp(&share(a)).then(a.id.cmp(&b.id))
    });
    let mut chosen = BTreeSet::new();
    for file in order {
        if garbage * 100 <= bytes * percent {
            break;
        }
        garbage -= file.garbage();
        bytes -= file.garbage();
        chosen.insert(file.id);
    }
    chosen
}

/// Returns the share, in percent, down to which a collection goes that began at `percent`.
pub(crate) fn low_water(percent: u64) -> u64 {
    percent - percent / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(id: u64, bytes: u64, live: u64) -> Candidate {
        Candidate { id, bytes, live, stuck: false }
    }

    #[test]
    fn nothing_goes_while_garbage_is_within_its_share() {
        assert!(choose(&[], 30).is_empty());
        assert!(choose(&[file(1, 100, 70), file(2, 100, 100)], 30).is_empty());
        assert!(choose(&[file(1, 100, 71)], 30).is_empty());
    }

    #[test]
    fn the_emptiest_files_go_until_the_share_is_kept() {
        let files = [file(1, 100, 50), file(2, 100, 10), file(3, 100, 90), file(4, 100, 100)];
        // 150 of 400 are garbage; without file 2 it is 60 of 310, without file 1 too 10 of 260.
        assert_eq!(choose(&files, 30), [2].into());
        assert_eq!(choose(&files, 10), [1, 2].into());
        assert_eq!(choose(&files, 0), [1, 2, 3].into());
    }

    #[test]
    fn a_file_that_began_to_go_stays_chosen() {
        let before = [file(1, 100, 40), file(2, 100, 45), file(3, 200, 200)];
        assert_eq!(choose(&before, 25), [1].into());
        // Half of its live bytes were moved into file 4.
        let during = [file(1, 100, 20), file(2, 100, 45), file(3, 200, 200), file(4, 20, 20)];
        assert_eq!(choose(&during, 25), [1].into());
    }

    #[test]
    fn a_file_that_cannot_be_read_stays() {
        let stuck = Candidate { stuck: true, ..file(1, 100, 10) };
        assert_eq!(choose(&[stuck, file(2, 100, 60)], 30), [2].into());
        let stuck = Candidate { stuck: true, ..file(1, 1000, 50) };
        assert!(choose(&[stuck, file(2, 2000, 1999)], 30).is_empty(), "its garbage is not theirs");
    }
}
