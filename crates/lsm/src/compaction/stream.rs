//! Which records of a merged run survive.
//!
//! The live snapshots cut time into *stripes*; within a stripe all readers see the same record of
//! a key, the newest, so the others can go:
//!
//! ```text
//!   snapshots            20            50          present
//!   stripes      ---------|-------------|------------|
//!   records of k  12  17       31  44       60            (60 is seen first)
//!   survivors         17           44       60
//! ```
//!
//! Four things complicate this:
//! 1. **Tombstones** are kept like values, because something older may lie below the output level.
//!    In the oldest stripe, with nothing below, they go too.
//! 2. **Range tombstones** hide the records of their range that are older, within their stripe;
//!    in another stripe a snapshot still sees beneath them.
//! 3. **Deadlines.** An expired record hides what is older but says nothing itself: it becomes a
//!    tombstone. Expired is expired for every snapshot, since time does not run back for them.
//! 4. **Chunks** stand right behind the head of their value and share its fate.

use crate::key::{InternalKey, Kind, SeqNo};
use crate::mutants;
use crate::tombstone::Fragmented;

/// What becomes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Written as it is.
    Keep,
    /// Written as a tombstone of the same sequence number.
    Bury,
    /// Not written.
    Drop,
}

/// Decides over the records of one merge, fed in internal-key order.
pub(crate) struct Survivors<'a> {
    /// Ascending, the present last.
    snapshots: Vec<SeqNo>,
    expire_before: u64,
    /// The range tombstones of the inputs.
    covering: &'a Fragmented,
    /// The user key of the last record.
    user_key: Vec<u8>,
    /// The stripe of the last record of this user key that survived or was elided.
    stripe: Option<usize>,
    /// Whether chunks that follow belong to a kept head.
    keep_chunks: bool,
    started: bool,
}

impl<'a> Survivors<'a> {
    /// Starts a merge. `snapshots` ascends and ends with the present.
    pub(crate) fn new(
        snapshots: Vec<SeqNo>,
        expire_before: u64,
        covering: &'a Fragmented,
    ) -> Survivors<'a> {
        Survivors {
            snapshots,
            expire_before,
            covering,
            user_key: Vec::new(),
            stripe: None,
            keep_chunks: false,
            started: false,
        }
    }

    /// Decides over the next record. `is_bottom` tells whether no table below the output can hold
    /// the key; it is asked only for tombstones.
    pub(crate) fn fate(
        &mut self,
        key: InternalKey<'_>,
        kind: Kind,
        value: &[u8],
        is_bottom: impl FnOnce() -> bool,
    ) -> Fate {
        if !self.started || self.user_key != key.user_key {
            self.started = true;
            self.user_key.clear();
            self.user_key.extend_from_slice(key.user_key);
            self.stripe = None;
            self.keep_chunks = false;
        }
        if kind == Kind::Chunk {
            return if self.keep_chunks { Fate::Keep } else { Fate::Drop };
        }
        self.keep_chunks = false;
        let stripe = self.stripe_of(key.trailer.seqno());
        if self.stripe == Some(stripe) || self.is_covered(key, stripe) {
            return Fate::Drop;
        }
        self.stripe = Some(stripe);
        let dead = match kind {
            Kind::Tombstone => true,
            Kind::ExpiringValue | Kind::ChunkedValue => {
                deadline_of(value).is_some_and(|d| d <= self.expire_before)
            }
            Kind::Value | Kind::Chunk => false,
        };
        if !dead {
            self.keep_chunks = kind == Kind::ChunkedValue;
            return Fate::Keep;
        }
        let elide = stripe == 0 && (is_bottom() || mutants::is("early-tombstone-drop"));
        match (elide, kind) {
            (true, _) => Fate::Drop,
            (false, Kind::Tombstone) => Fate::Keep,
            (false, _) => Fate::Bury,
        }
    }

    /// Returns the number of the oldest snapshot that sees `seqno`; beyond the present (records
    /// that came after the merge began) every record is its own stripe's.
    fn stripe_of(&self, seqno: SeqNo) -> usize {
        stripe_of(&self.snapshots, seqno)
    }

    fn is_covered(&self, key: InternalKey<'_>, stripe: usize) -> bool {
        if self.covering.is_empty() {
            return false;
        }
        let newest_of_stripe = self.snapshots.get(stripe).copied().unwrap_or(SeqNo::MAX >> 8);
        self.covering.max_covering(key.user_key, newest_of_stripe) > key.trailer.seqno()
    }
}

/// Returns the stripe of a sequence number: how many snapshots are too old to see it.
pub(crate) fn stripe_of(snapshots: &[SeqNo], seqno: SeqNo) -> usize {
    snapshots.partition_point(|s| *s < seqno)
}

/// Returns the deadline in front of an expiring or chunked value.
pub(crate) fn deadline_of(value: &[u8]) -> Option<u64> {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(value.get(..8)?);
    let deadline = u64::from_le_bytes(bytes);
    (deadline != 0).then_some(deadline)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Trailer;
    use crate::tombstone::RangeTombstone;

    struct Case<'a> {
        snapshots: &'a [SeqNo],
        expire_before: u64,
        range: Option<(&'a str, &'a str, SeqNo)>,
        bottom: bool,
    }

    const PLAIN: Case<'static> =
        Case { snapshots: &[100], expire_before: 0, range: None, bottom: false };

    /// Runs records like `k@60`, `k@44x` (tombstone), `k@31t9` (deadline 9) and prints survivors.
    fn survivors(case: Case<'_>, records: &str) -> String {
        let range = case.range.map(|(start, end, seqno)| RangeTombstone {
            start: start.into(),
            end: end.into(),
            seqno,
        });
        let covering = Fragmented::new(range);
        let mut stream = Survivors::new(case.snapshots.to_vec(), case.expire_before, &covering);
        let mut out = Vec::new();
        for record in records.split_whitespace() {
            let (key, rest) = record.split_once('@').unwrap();
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let seqno: SeqNo = rest[..digits].parse().unwrap();
            let (kind, value) = match rest[digits..].split_at_checked(1) {
                Some(("x", _)) => (Kind::Tombstone, Vec::new()),
                Some(("t", d)) => {
                    (Kind::ExpiringValue, d.parse::<u64>().unwrap().to_le_bytes().to_vec())
                }
                Some(("h", _)) => (Kind::ChunkedValue, vec![0; 20]),
                Some(("c", _)) => (Kind::Chunk, vec![1]),
                _ => (Kind::Value, b"v".to_vec()),
            };
            let internal = InternalKey::new(key.as_bytes(), Trailer::new(seqno, kind));
            match stream.fate(internal, kind, &value, || case.bottom) {
                Fate::Keep => out.push(record.to_owned()),
                Fate::Bury => out.push(format!("{key}@{seqno}buried")),
                Fate::Drop => {}
            }
        }
        out.join(" ")
    }

    #[test]
    fn each_stripe_keeps_its_newest_record() {
        let case = Case { snapshots: &[20, 50, 100], ..PLAIN };
        assert_eq!(survivors(case, "k@60 k@44 k@31 k@17 k@12 l@3"), "k@60 k@44 k@17 l@3");
    }

    #[test]
    fn a_tombstone_stays_until_nothing_lies_below() {
        assert_eq!(survivors(PLAIN, "k@60x k@44"), "k@60x");
        assert_eq!(survivors(Case { bottom: true, ..PLAIN }, "k@60x k@44 l@1"), "l@1");
        let seen = Case { snapshots: &[50, 100], bottom: true, ..PLAIN };
        assert_eq!(survivors(seen, "k@60x k@44"), "k@60x k@44", "a snapshot sees beneath it");
    }

    #[test]
    fn a_range_tombstone_hides_what_is_older_in_its_stripe_only() {
        let range = Some(("a", "m", 40));
        assert_eq!(survivors(Case { range, ..PLAIN }, "b@60 c@30 m@30"), "b@60 m@30");
        let seen = Case { range, snapshots: &[35, 100], ..PLAIN };
        assert_eq!(survivors(seen, "b@60 c@37 c@30"), "b@60 c@30");
    }

    #[test]
    fn an_expired_value_becomes_a_tombstone_and_at_the_bottom_nothing() {
        let case = Case { expire_before: 9, ..PLAIN };
        assert_eq!(survivors(case, "k@60t9 k@44 l@50t10"), "k@60buried l@50t10");
        let bottom = Case { expire_before: 9, bottom: true, ..PLAIN };
        assert_eq!(survivors(bottom, "k@60t9 k@44 l@50t10"), "l@50t10");
    }

    #[test]
    fn chunks_share_the_fate_of_their_head() {
        assert_eq!(survivors(PLAIN, "k@60h k@59c k@58c k@44"), "k@60h k@59c k@58c");
        assert_eq!(survivors(PLAIN, "k@70 k@60h k@59c k@58c"), "k@70");
        assert_eq!(survivors(PLAIN, "k@70h k@69c k@60h k@59c"), "k@70h k@69c");
    }
}
