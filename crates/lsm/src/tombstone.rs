//! Range tombstones: one record that deletes every older record of a range of user keys.
//!
//! Tombstones overlap as they please. [`Fragmented`] cuts them at every start and end, so that a
//! key lies in at most one fragment and a fragment says everything about its keys:
//!
//! ```text
//!   tombstones                        fragments
//!        a   b   c   d   e   f             a   b   c   d   e   f
//!   90           [=======)            [a,b)  40
//!   70       [=======)                [b,c)      70 40
//!   40   [=======)                    [c,d)          90 70
//!   20                   [===)        [d,e)              90
//!                                     [e,f)                  20
//! ```
//!
//! Bounds are user keys (with the keyspace before them), the end exclusive. A tombstone deletes
//! what is older than itself: a record at sequence number 70 is not covered by a tombstone at 70.
//!
//! The set is immutable. Where it changes (a memtable gets another tombstone), a new one is built
//! and swapped in. Sequence numbers are kept per fragment, so tombstones that all overlap each
//! other take quadratic space; they are few per memtable and table.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::key::SeqNo;

/// Deletes the records of the user keys from `start` up to, not including, `end` whose sequence
/// number is less than `seqno`. Empty if `start >= end`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RangeTombstone {
    /// First user key that is deleted.
    pub start: Vec<u8>,
    /// First user key behind it that is not.
    pub end: Vec<u8>,
    /// Sequence number of the deletion.
    pub seqno: SeqNo,
}

/// Range tombstones cut into fragments that do not overlap, in key order.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Fragmented {
    /// Ascending. Gap `i` is `[bounds[i], bounds[i + 1])`: a fragment, or covered by nothing.
    bounds: Vec<Vec<u8>>,
    /// Where the sequence numbers of gap `i` end in `seqnos`; they start where those of gap
    /// `i - 1` end. One less than `bounds`, or as empty.
    ends: Vec<usize>,
    /// Descending and without repetition in each gap.
    seqnos: Vec<SeqNo>,
}

impl Fragmented {
    /// Cuts tombstones, in any order. Empty ones are dropped.
    pub fn new(tombstones: impl IntoIterator<Item = RangeTombstone>) -> Fragmented {
        let tombstones: Vec<_> = tombstones.into_iter().collect();
        Fragmented::cut(tombstones.iter().map(|t| (&t.start[..], &t.end[..], t.seqno)))
    }

    /// Unites several sets into one that covers what any of them covers.
    pub fn merge<'a>(sets: impl IntoIterator<Item = &'a Fragmented>) -> Fragmented {
        Fragmented::cut(sets.into_iter().flat_map(|set| {
            set.iter().flat_map(|f| f.seqnos.iter().map(move |&seqno| (f.start, f.end, seqno)))
        }))
    }

    fn cut<'a>(spans: impl Iterator<Item = (&'a [u8], &'a [u8], SeqNo)>) -> Fragmented {
        // Sweeps over the starts and ends in key order, with the tombstones open at the time.
        let mut events = Vec::new();
        for (start, end, seqno) in spans.filter(|(start, end, _)| start < end) {
            events.push((start, true, seqno));
            events.push((end, false, seqno));
        }
        events.sort_unstable();

        let mut set = Fragmented::default();
        let mut open: BTreeMap<Reverse<SeqNo>, usize> = BTreeMap::new();
        for at_bound in events.chunk_by(|a, b| a.0 == b.0) {
            for &(_, starts, seqno) in at_bound {
                // Counted, because tombstones of one number may overlap. An end never meets a count
                // of zero: its start lies at an earlier bound.
                let count = open.entry(Reverse(seqno)).or_default();
                *count = if starts { *count + 1 } else { *count - 1 };
            }
            open.retain(|_, count| *count != 0);
            set.push_bound(at_bound[0].0, open.keys().map(|seqno| seqno.0));
        }
        // Behind the last bound nothing is open: it closes the gap before it and opens none.
        debug_assert!(open.is_empty(), "every start has an end");
        set.ends.pop();
        set
    }

    /// Opens a gap with these sequence numbers, unless the gap before has the same.
    fn push_bound(&mut self, bound: &[u8], seqnos: impl Iterator<Item = SeqNo>) {
        let from = self.seqnos.len();
        self.seqnos.extend(seqnos);
        let last = self.ends.len().checked_sub(1).map(|gap| self.range(gap));
        if last.is_some_and(|last| self.seqnos[last] == self.seqnos[from..]) {
            self.seqnos.truncate(from);
            return;
        }
        self.bounds.push(bound.to_vec());
        self.ends.push(self.seqnos.len());
    }

    /// Returns whether nothing is deleted.
    pub fn is_empty(&self) -> bool {
        self.bounds.is_empty()
    }

    /// Returns the first covered key and the end (exclusive) of the last covered range, or `None`
    /// if nothing is covered.
    pub fn bounds(&self) -> Option<(&[u8], &[u8])> {
        Some((self.bounds.first()?, self.bounds.last()?))
    }

    /// Returns the newest sequence number of a tombstone over the key that is visible at
    /// `snapshot`, or 0 for none. Records of the key below it are deleted for that snapshot.
    pub fn max_covering(&self, user_key: &[u8], snapshot: SeqNo) -> SeqNo {
        self.fragment_containing(user_key).map_or(0, |fragment| fragment.covering(snapshot))
    }

    /// Returns the fragment that contains the key, if any.
    pub fn fragment_containing(&self, user_key: &[u8]) -> Option<Fragment<'_>> {
        self.fragment(self.gap_of(user_key)?)
    }

    /// Returns a cursor for lookups of keys that lie near each other.
    pub fn cursor(self: &Arc<Self>) -> Cursor {
        Cursor { set: self.clone(), gap: 0 }
    }

    /// Returns the fragments in key order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Fragment<'_>> {
        (0..self.ends.len()).filter_map(|gap| self.fragment(gap))
    }

    /// Returns the fragments in key order as far as they lie in `[lo, hi)`, cut where they reach
    /// beyond. `None` for `hi` means no upper limit.
    pub fn clipped<'a>(
        &'a self,
        lo: &'a [u8],
        hi: Option<&'a [u8]>,
    ) -> impl DoubleEndedIterator<Item = Fragment<'a>> {
        let first = self.bounds.partition_point(|bound| &bound[..] <= lo).saturating_sub(1);
        let end = match hi {
            Some(hi) => self.bounds.partition_point(|bound| &bound[..] < hi).min(self.ends.len()),
            None => self.ends.len(),
        };
        (first.min(end)..end).filter_map(|gap| self.fragment(gap)).filter_map(move |f| {
            let start = f.start.max(lo);
            let end = hi.map_or(f.end, |hi| f.end.min(hi));
            (start < end).then_some(Fragment { start, end, ..f })
        })
    }

    /// Returns the gap the key lies in, unless it lies before the first or behind the last.
    fn gap_of(&self, user_key: &[u8]) -> Option<usize> {
        let gap = self.bounds.partition_point(|bound| &bound[..] <= user_key).checked_sub(1)?;
        (gap < self.ends.len()).then_some(gap)
    }

    fn fragment(&self, gap: usize) -> Option<Fragment<'_>> {
        let seqnos = &self.seqnos[self.range(gap)];
        (!seqnos.is_empty()).then(|| Fragment {
            start: &self.bounds[gap],
            end: &self.bounds[gap + 1],
            seqnos,
        })
    }

    fn range(&self, gap: usize) -> Range<usize> {
        gap.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[gap]
    }
}

impl std::fmt::Debug for Fragmented {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A range of user keys and the deletions that cover all of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fragment<'a> {
    /// First user key.
    pub start: &'a [u8],
    /// First user key behind it.
    pub end: &'a [u8],
    /// Sequence numbers of the deletions, descending. Never empty.
    pub seqnos: &'a [SeqNo],
}

impl Fragment<'_> {
    /// Returns the newest deletion that is visible at `snapshot`, or 0 for none.
    pub fn covering(&self, snapshot: SeqNo) -> SeqNo {
        let newer = self.seqnos.partition_point(|&seqno| seqno > snapshot);
        self.seqnos.get(newer).copied().unwrap_or(0)
    }
}

impl std::fmt::Debug for Fragment<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (start, end) = (self.start.escape_ascii(), self.end.escape_ascii());
        write!(f, "[{start},{end}) {:?}", self.seqnos)
    }
}

/// Looks up keys of a scan: a key near the one before, in either direction, costs a constant.
pub struct Cursor {
    set: Arc<Fragmented>,
    /// Where the last key was found; only a place to start from.
    gap: usize,
}

impl Cursor {
    /// Answers what [`Fragmented::max_covering`] answers.
    pub fn covering(&mut self, user_key: &[u8], snapshot: SeqNo) -> SeqNo {
        self.fragment_containing(user_key).map_or(0, |fragment| fragment.covering(snapshot))
    }

    /// Answers what [`Fragmented::fragment_containing`] answers: whoever finds a record covered
    /// may seek to the fragment's `end`, or backwards to before its `start`.
    pub fn fragment_containing(&mut self, user_key: &[u8]) -> Option<Fragment<'_>> {
        /// Gaps to walk before a binary search is cheaper.
        const STEPS: usize = 4;
        let (first, last) = self.set.bounds()?;
        if user_key < first || user_key >= last {
            return None;
        }
        let bounds = &self.set.bounds;
        for _ in 0..STEPS {
            // The first bound is at or before the key and the last behind it, so a step in either
            // direction stays inside.
            if user_key < bounds[self.gap].as_slice() {
                self.gap -= 1;
            } else if user_key >= bounds[self.gap + 1].as_slice() {
                self.gap += 1;
            } else {
                return self.set.fragment(self.gap);
            }
        }
        self.gap = self.set.gap_of(user_key)?;
        self.set.fragment(self.gap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(start: &str, end: &str, seqno: SeqNo) -> RangeTombstone {
        RangeTombstone { start: start.into(), end: end.into(), seqno }
    }

    /// A small generator: the tests need numbers that repeat, not good ones.
    struct Prng(u64);

    impl Prng {
        fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 33) % n
        }
        fn key(&mut self) -> Vec<u8> {
            // Short keys over two letters, so that bounds meet and prefixes occur.
            (0..self.below(4)).map(|_| b"ab"[self.below(2) as usize]).collect()
        }
        fn tombstones(&mut self) -> Vec<RangeTombstone> {
            (0..self.below(8))
                .map(|_| RangeTombstone {
                    start: self.key(),
                    end: self.key(),
                    seqno: 1 + self.below(6),
                })
                .collect()
        }
    }

    fn all_keys() -> Vec<Vec<u8>> {
        let mut keys = vec![vec![]];
        for len in 1..=4 {
            for bits in 0..1 << len {
                keys.push((0..len).map(|i| b"ab"[bits >> i & 1]).collect());
            }
        }
        keys.sort();
        keys
    }

    fn naive(tombstones: &[RangeTombstone], key: &[u8], snapshot: SeqNo) -> SeqNo {
        tombstones
            .iter()
            .filter(|t| &t.start[..] <= key && key < &t.end[..] && t.seqno <= snapshot)
            .map(|t| t.seqno)
            .max()
            .unwrap_or(0)
    }

    #[test]
    fn overlapping_tombstones_are_cut_at_every_bound() {
        for (tombstones, expected) in [
            (vec![], "[]"),
            (vec![t("b", "b", 9), t("c", "a", 9)], "[]"),
            (vec![t("a", "c", 9)], "[[a,c) [9]]"),
            (
                vec![t("c", "e", 90), t("b", "d", 70), t("a", "c", 40), t("e", "f", 20)],
                "[[a,b) [40], [b,c) [70, 40], [c,d) [90, 70], [d,e) [90], [e,f) [20]]",
            ),
            // A gap between two fragments belongs to none.
            (vec![t("a", "b", 1), t("c", "d", 1)], "[[a,b) [1], [c,d) [1]]"),
            // Fragments that say the same become one.
            (vec![t("a", "b", 1), t("b", "c", 1), t("a", "c", 1)], "[[a,c) [1]]"),
            (vec![t("a", "d", 1), t("b", "c", 2)], "[[a,b) [1], [b,c) [2, 1], [c,d) [1]]"),
        ] {
            assert_eq!(format!("{:?}", Fragmented::new(tombstones)), expected);
        }
    }

    #[test]
    fn a_snapshot_sees_the_newest_deletion_at_or_below_it() {
        let set = Fragmented::new([t("a", "d", 10), t("b", "c", 30)]);
        for (key, snapshot, seqno) in [
            ("a", 100, 10),
            ("b", 100, 30),
            ("b", 30, 30),
            ("b", 29, 10),
            ("b", 9, 0),
            ("c", 100, 10),
            ("d", 100, 0),
            ("", 100, 0),
        ] {
            assert_eq!(set.max_covering(key.as_bytes(), snapshot), seqno, "{key} at {snapshot}");
        }
        assert_eq!(set.bounds(), Some((&b"a"[..], &b"d"[..])));
        assert_eq!(Fragmented::default().max_covering(b"a", 100), 0);
    }

    #[test]
    fn clipping_cuts_the_outer_fragments_and_drops_those_outside() {
        let set = Fragmented::new([t("b", "d", 1), t("d", "f", 2), t("h", "k", 3)]);
        for (lo, hi, expected) in [
            ("", None, "[[b,d) [1], [d,f) [2], [h,k) [3]]"),
            ("c", Some("e"), "[[c,d) [1], [d,e) [2]]"),
            ("c", Some("d"), "[[c,d) [1]]"),
            ("f", Some("h"), "[]"),
            ("f", None, "[[h,k) [3]]"),
            ("a", Some("b"), "[]"),
            ("k", None, "[]"),
            ("z", None, "[]"),
            ("e", Some("a"), "[]"),
        ] {
            let clipped: Vec<_> = set.clipped(lo.as_bytes(), hi.map(str::as_bytes)).collect();
            assert_eq!(format!("{clipped:?}"), expected, "[{lo}, {hi:?})");
        }
    }

    #[test]
    fn random_sets_answer_like_a_list_that_is_searched() {
        let keys = all_keys();
        for seed in 0..2000 {
            let mut prng = Prng(seed);
            let tombstones = prng.tombstones();
            let set = Arc::new(Fragmented::new(tombstones.clone()));
            let (mut up, mut down, mut jumping) = (set.cursor(), set.cursor(), set.cursor());
            for (i, key) in keys.iter().enumerate() {
                let (back, far) = (&keys[keys.len() - 1 - i], &keys[i * 17 % keys.len()]);
                for snapshot in 0..=7 {
                    let case = format!("seed {seed}, snapshot {snapshot}, {tombstones:?}");
                    assert_eq!(
                        set.max_covering(key, snapshot),
                        naive(&tombstones, key, snapshot),
                        "{case}"
                    );
                    assert_eq!(
                        up.covering(key, snapshot),
                        naive(&tombstones, key, snapshot),
                        "{case}"
                    );
                    assert_eq!(
                        down.covering(back, snapshot),
                        naive(&tombstones, back, snapshot),
                        "{case}"
                    );
                    assert_eq!(
                        jumping.covering(far, snapshot),
                        naive(&tombstones, far, snapshot),
                        "{case}"
                    );
                }
            }
            let fragments: Vec<_> = set.iter().collect();
            assert!(
                fragments.iter().all(|f| f.start < f.end && f.seqnos.is_sorted_by(|a, b| a > b))
            );
            assert!(fragments.windows(2).all(|f| f[0].end <= f[1].start));
        }
    }

    #[test]
    fn merging_and_clipping_commute_with_cutting() {
        let keys = all_keys();
        for seed in 0..500 {
            let mut prng = Prng(seed);
            let parts: Vec<_> = (0..3).map(|_| prng.tombstones()).collect();
            let sets: Vec<_> = parts.iter().cloned().map(Fragmented::new).collect();
            let merged = Fragmented::merge(&sets);
            assert_eq!(merged, Fragmented::new(parts.concat()), "seed {seed}");

            let (lo, hi) = (prng.key(), prng.key());
            let clipped = Fragmented::new(merged.clipped(&lo, Some(&hi)).flat_map(|f| {
                f.seqnos.iter().map(move |&seqno| RangeTombstone {
                    start: f.start.to_vec(),
                    end: f.end.to_vec(),
                    seqno,
                })
            }));
            for key in &keys {
                let inside = lo <= *key && *key < hi;
                let expected = if inside { merged.max_covering(key, 9) } else { 0 };
                assert_eq!(clipped.max_covering(key, 9), expected, "seed {seed} {key:?}");
            }
        }
    }
}
