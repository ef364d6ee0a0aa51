//! Ranges of user keys.

use std::ops::{Bound, RangeBounds};

/// Keys from `start` up to `end`, which is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key in it.
    pub start: Vec<u8>,
    /// The first key behind it; `None`: all that follow are in it.
    pub end: Option<Vec<u8>>,
}

impl KeyRange {
    /// All keys.
    pub fn all() -> KeyRange {
        KeyRange::default()
    }

    /// The keys that begin with a prefix.
    pub fn prefix(prefix: impl AsRef<[u8]>) -> KeyRange {
        let start = prefix.as_ref().to_vec();
        let end = successor(&start);
        KeyRange { start, end }
    }

    /// The keys between two bounds.
    pub fn between<K: AsRef<[u8]>>(bounds: impl RangeBounds<K>) -> KeyRange {
        let start = match bounds.start_bound() {
            Bound::Included(key) => key.as_ref().to_vec(),
            Bound::Excluded(key) => after(key.as_ref()),
            Bound::Unbounded => Vec::new(),
        };
        let end = match bounds.end_bound() {
            Bound::Included(key) => Some(after(key.as_ref())),
            Bound::Excluded(key) => Some(key.as_ref().to_vec()),
            Bound::Unbounded => None,
        };
        KeyRange { start, end }
    }

    /// Returns the keys that are in both.
    pub fn and(self, other: KeyRange) -> KeyRange {
        let end = match (self.end, other.end) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        KeyRange { start: self.start.max(other.start), end }
    }

    /// Returns whether no key can be in it.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Returns whether a key is in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start.as_slice() <= key && self.end.as_ref().is_none_or(|end| key < end.as_slice())
    }

    /// Returns what is left of it behind `last`, the last key that was seen.
    pub fn rest(mut self, last: &[u8], reverse: bool) -> KeyRange {
        if reverse {
            self.end = Some(last.to_vec());
        } else {
            self.start = after(last);
        }
        self
    }
}

/// Returns the first key behind `key`.
pub fn after(key: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next
}

/// Returns the first key behind all that begin with `prefix`, `None` if there is none.
fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_the_range_of_the_keys_that_begin_with_it() {
        for (prefix, inside, outside) in [
            (&b"a"[..], &b"a\xff\xff"[..], &b"b"[..]),
            (b"a\xff", b"a\xff\xff", b"b"),
            (b"", b"\xff\xff", b""),
            (b"\xff", b"\xff\xff", b"\xfe"),
        ] {
            let range = KeyRange::prefix(prefix);
            assert!(range.contains(prefix) && range.contains(inside), "{prefix:?}");
            assert!(outside.is_empty() || !range.contains(outside), "{prefix:?}");
        }
    }

    #[test]
    fn bounds_mean_what_they_mean_in_rust() {
        let range =
            KeyRange::between::<&[u8]>((Bound::Excluded(&b"a"[..]), Bound::Included(&b"c"[..])));
        assert!(!range.contains(b"a") && range.contains(b"a\0") && range.contains(b"c"));
        assert!(!range.contains(b"c\0"));
        assert!(KeyRange::between(&b"b"[..]..&b"a"[..]).is_empty());
        let both = KeyRange::prefix("a").and(KeyRange::between(&b"ab"[..]..));
        assert_eq!(both, KeyRange { start: b"ab".to_vec(), end: Some(b"b".to_vec()) });
        assert_eq!(both.clone().rest(b"abc", false).start, b"abc\0");
        assert_eq!(both.rest(b"abc", true).end.as_deref(), Some(&b"abc"[..]));
    }
}
