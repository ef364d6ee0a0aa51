//! A set of keys as ranges that neither overlap nor touch.
//!
//! ```text
//!   insert [c,f)      [a,b)      [d,e)   [f,g)
//!                     [a,b)   [c,                g)
//! ```
//!
//! A single key `k` is the range from `k` to `k` with a zero byte behind it, which is the next key
//! there can be. So what was read key by key and what was read as a range is one set with one
//! question: does it contain this key, does it meet this range?

use std::collections::BTreeMap;
use std::ops::Bound;

/// A range of user keys: the first one, and the first one behind it.
pub(crate) type Span = (Vec<u8>, Vec<u8>);

/// Ranges of user keys, ascending, with a gap between any two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SpanSet {
    /// End by start.
    spans: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Bytes of all bounds.
    bytes: usize,
}

/// Returns the first key behind `key`.
pub(crate) fn behind(key: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next
}

/// Returns the key of a range that holds no other one.
pub(crate) fn single<'a>(start: &'a [u8], end: &[u8]) -> Option<&'a [u8]> {
    let is_single = end.len() == start.len() + 1 && end.starts_with(start) && end.ends_with(&[0]);
    is_single.then_some(start)
}

impl SpanSet {
    pub(crate) fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Returns the number of ranges.
    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }

    /// Returns the bytes of their bounds.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the ranges in key order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.spans.iter().map(|(start, end)| (&start[..], &end[..]))
    }

    /// Returns the range that contains `key`.
    pub(crate) fn containing(&self, key: &[u8]) -> Option<(&[u8], &[u8])> {
        let up_to = (Bound::Unbounded, Bound::Included(key));
        let (start, end) = self.spans.range::<[u8], _>(up_to).next_back()?;
        (key < &end[..]).then_some((start, end))
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        self.containing(key).is_some()
    }

    /// Returns whether a key of `[start, end)` is in the set.
    pub(crate) fn meets(&self, start: &[u8], end: &[u8]) -> bool {
        let before = (Bound::Unbounded, Bound::Excluded(end));
        let last = self.spans.range::<[u8], _>(before).next_back();
        start < end && last.is_some_and(|(_, its_end)| start < &its_end[..])
    }

    /// Adds `[start, end)`. Returns the range that it became part of and those that this one took
    /// the place of, for [`SpanSet::undo`].
    pub(crate) fn insert(&mut self, start: &[u8], end: &[u8]) -> Option<(Span, Vec<Span>)> {
        if start >= end || self.containing(start).is_some_and(|(_, its_end)| end <= its_end) {
            return None;
        }
        let (mut from, mut to) = (start.to_vec(), end.to_vec());
        let mut swallowed = Vec::new();
        // What begins at or before the end and ends at or after the start touches it.
        while let Some((s, e)) = self.last_up_to(&to).filter(|(_, e)| e[..] >= from[..]) {
            self.remove(&s);
            from = from.min(s.clone());
            to = to.max(e.clone());
            swallowed.push((s, e));
        }
        self.add(from.clone(), to.clone());
        Some(((from, to), swallowed))
    }

    /// Adds `[start, end)` where no account of it is needed. A range that only grows at its end, as
    /// that of a walk does, grows in place.
    pub(crate) fn extend(&mut self, start: &[u8], end: &[u8]) {
        let next = {
            let behind_start = (Bound::Excluded(start), Bound::Unbounded);
            self.spans.range::<[u8], _>(behind_start).next().map(|(next, _)| next[..] <= *end)
        };
        let up_to = (Bound::Unbounded, Bound::Included(start));
        if let (None | Some(false), Some((_, its_end))) =
            (next, self.spans.range_mut::<[u8], _>(up_to).next_back())
            && start <= &its_end[..]
        {
            if end > &its_end[..] {
                self.bytes = self.bytes - its_end.len() + end.len();
                its_end.clear();
                its_end.extend_from_slice(end);
            }
            return;
        }
        self.insert(start, end);
    }

    /// Takes the last [`SpanSet::insert`] back, given what it returned.
    pub(crate) fn undo(&mut self, (united, swallowed): (Span, Vec<Span>)) {
        self.remove(&united.0);
        swallowed.into_iter().for_each(|(start, end)| self.add(start, end));
    }

    /// Unites neighbours, the nearest first, until at most half of the ranges are left or no two
    /// are of the same keyspace (the first four bytes): the set grows, its description shrinks.
    ///
    /// Near are those whose bounds begin alike: of two gaps the one between keys that share more
    /// bytes is the smaller one, as far as can be told without knowing the keys in it.
    pub(crate) fn coarsen(&mut self) {
        let spans: Vec<Span> = std::mem::take(&mut self.spans).into_iter().collect();
        self.bytes = 0;
        let shared = |pair: &[Span]| {
            let bytes = pair[0].1.iter().zip(&pair[1].0);
            let same_keyspace = pair[0].0.get(..4) == pair[1].0.get(..4);
            same_keyspace.then(|| bytes.take_while(|(a, b)| a == b).count())
        };
        let mut nearness: Vec<Option<usize>> = spans.windows(2).map(shared).collect();
        nearness.sort_unstable();
        // At least half of the gaps are at or above the median.
        let least = nearness.get(nearness.len() / 2).copied().flatten().unwrap_or(0);
        let mut spans = spans.into_iter();
        let Some(mut last) = spans.next() else { return };
        for next in spans {
            let pair = [last, next];
            let near = shared(&pair).is_some_and(|bytes| bytes >= least);
            let [before, next] = pair;
            if near {
                last = (before.0, next.1);
            } else {
                self.add(before.0, before.1);
                last = next;
            }
        }
        self.add(last.0, last.1);
    }

    fn last_up_to(&self, key: &[u8]) -> Option<Span> {
        let up_to = (Bound::Unbounded, Bound::Included(key));
        let (start, end) = self.spans.range::<[u8], _>(up_to).next_back()?;
        Some((start.clone(), end.clone()))
    }

    fn add(&mut self, start: Vec<u8>, end: Vec<u8>) {
        self.bytes += start.len() + end.len();
        self.spans.insert(start, end);
    }

    fn remove(&mut self, start: &[u8]) {
        if let Some(end) = self.spans.remove(start) {
            self.bytes -= start.len() + end.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use atoll_env::random::Prng;

    use super::*;

    fn drawn(set: &SpanSet) -> String {
        let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        set.iter().map(|(s, e)| format!("[{},{})", text(s), text(e))).collect()
    }

    fn set(spans: &[(&str, &str)]) -> SpanSet {
        let mut set = SpanSet::default();
        for (start, end) in spans {
            set.insert(start.as_bytes(), end.as_bytes());
        }
        set
    }

    #[test]
    fn ranges_that_overlap_or_touch_become_one() {
        for (spans, expected) in [
            (&[("a", "b"), ("d", "e"), ("f", "g"), ("c", "f")][..], "[a,b)[c,g)"),
            (&[("a", "b"), ("b", "c")], "[a,c)"),
            (&[("b", "c"), ("a", "b")], "[a,c)"),
            (&[("a", "z"), ("b", "c")], "[a,z)"),
            (&[("b", "c"), ("a", "z")], "[a,z)"),
            (&[("a", "b"), ("c", "d"), ("e", "f"), ("a", "f")], "[a,f)"),
            (&[("b", "a"), ("c", "c")], ""),
        ] {
            assert_eq!(drawn(&set(spans)), expected);
        }
    }

    #[test]
    fn a_single_key_is_a_range_that_only_it_lies_in() {
        let mut keys = SpanSet::default();
        keys.insert(b"k", &behind(b"k"));
        assert!(keys.contains(b"k") && !keys.contains(b"k\0") && !keys.contains(b"j"));
        assert_eq!(single(b"k", &behind(b"k")), Some(&b"k"[..]));
        assert_eq!(
            (single(b"k", b"k\x01"), single(b"k", b"k\0\0"), single(b"", b"b")),
            (None, None, None)
        );
        assert!(keys.meets(b"a", b"k\0") && !keys.meets(b"a", b"k") && !keys.meets(b"k\0", b"z"));
    }

    #[test]
    fn coarsening_keeps_what_was_in_and_unites_the_nearest_first() {
        let mut near = set(&[
            ("aaaa1", "aaaa2"),
            ("aaaa3", "aaaa4"),
            ("aaaaz1", "aaaaz2"),
            ("bbbb1", "bbbb2"),
        ]);
        near.coarsen();
        assert_eq!(drawn(&near), "[aaaa1,aaaaz2)[bbbb1,bbbb2)");
        near.coarsen();
        assert_eq!(near.len(), 2, "ranges of two keyspaces stay two");
    }

    #[test]
    fn random_sets_answer_as_a_list_of_keys_does() {
        let key = |prng: &mut Prng| -> Vec<u8> {
            let len = prng.index(4);
            (0..len).map(|_| b"\0ab"[prng.index(3)]).collect()
        };
        let mut all = vec![Vec::new()];
        for len in 1..=4u32 {
            all.extend(
                (0..3usize.pow(len))
                    .map(|n| (0..len).map(|i| b"\0ab"[n / 3usize.pow(i) % 3]).collect::<Vec<u8>>()),
            );
        }
        for seed in 0..2000 {
            let mut prng = Prng::new(seed);
            let (mut set, mut model) = (SpanSet::default(), Vec::<Span>::new());
            let mut undo = Vec::new();
            for _ in 0..prng.index(8) {
                let (a, b) = (key(&mut prng), key(&mut prng));
                let (a, b) = (a.clone().min(b.clone()), a.max(b));
                if prng.chance(0.5) {
                    set.extend(&a, &b);
                    undo.clear();
                } else {
                    let before = set.clone();
                    match set.insert(&a, &b) {
                        Some(account) => undo.push((before, account)),
                        None => assert_eq!(set, before),
                    }
                }
                model.push((a, b));
            }
            let inside = |k: &Vec<u8>| model.iter().any(|(s, e)| s <= k && k < e);
            for k in &all {
                assert_eq!(set.contains(k), inside(k), "seed {seed}: {set:?} {k:?}");
            }
            for _ in 0..10 {
                let (a, b) = (key(&mut prng), key(&mut prng));
                let meets = model.iter().any(|(s, e)| s.max(&a) < e.min(&b));
                assert_eq!(set.meets(&a, &b), meets, "seed {seed}: {set:?} {a:?} {b:?}");
            }
            let ends: Vec<_> = set.iter().map(|(s, e)| (s.to_vec(), e.to_vec())).collect();
            assert!(ends.windows(2).all(|pair| pair[0].1 < pair[1].0), "seed {seed}: {set:?}");
            assert_eq!(set.bytes(), ends.iter().map(|(s, e)| s.len() + e.len()).sum::<usize>());
            let mut coarse = set.clone();
            coarse.coarsen();
            assert!(all.iter().filter(|k| set.contains(k)).all(|k| coarse.contains(k)));
            while let Some((before, account)) = undo.pop() {
                set.undo(account);
                assert_eq!(set, before, "seed {seed}");
            }
        }
    }
}
