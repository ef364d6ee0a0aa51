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
//! Six things complicate this:
//! 1. **Tombstones** are kept like values, because something older may lie below the output level.
//!    In the oldest stripe, with nothing below, they go too.
//! 2. **Range tombstones** hide the records of their range that are older, within their stripe;
//!    in another stripe a snapshot still sees beneath them.
//! 3. **Deadlines.** An expired record hides what is older but says nothing itself: it becomes a
//!    tombstone. Expired is expired for every snapshot, since time does not run back for them.
//! 4. **Chunks** stand right behind the head of their value and share its fate.
//! 5. **Versions** hide nothing from a reader who asks for an older stamp. Nobody asks below the
//!    *horizon* any more, so in a stripe every version above it stays, and of the others the newest,
//!    which is what a read at the horizon finds:
//!
//!    ```text
//!      horizon                 40
//!      stamps of k   12  17  31 | 44  60
//!      survivors             31   44  60     (31x, a tombstone, goes too with nothing below)
//!    ```
//!
//!    Of several versions with one stamp only the newest can be read.
//! 6. **Merge operands** hide nothing: they are folded, those of a stripe together, onto the record
//!    that its readers see beneath them (`fold.rs`). One that has expired says nothing, but that its key
//!    was written.

use crate::key::{InternalKey, Kind, SeqNo, stamp_of};
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
    /// An operand, to be folded with its neighbours.
    Fold,
}

/// Decides over the records of one merge, fed in internal-key order.
pub(crate) struct Survivors<'a> {
    /// Ascending, the present last.
    snapshots: Vec<SeqNo>,
    expire_before: u64,
    /// Nobody reads versions at a stamp below it.
    horizon: u64,
    /// The range tombstones of the inputs.
    covering: &'a Fragmented,
    /// The user key of the last record.
    user_key: Vec<u8>,
    /// The stripe of the last record of this user key that survived or was elided.
    stripe: Option<usize>,
    /// The stamp of the last version of this user key and stripe that was not covered.
    stamp: Option<u64>,
    /// Whether chunks that follow belong to a kept head.
    keep_chunks: bool,
    started: bool,
}

impl<'a> Survivors<'a> {
    /// Starts a merge. `snapshots` ascends and ends with the present.
    pub(crate) fn new(
        snapshots: Vec<SeqNo>,
        expire_before: u64,
        horizon: u64,
        covering: &'a Fragmented,
    ) -> Survivors<'a> {
        Survivors {
            snapshots,
            expire_before,
            horizon,
            covering,
            user_key: Vec::new(),
            stripe: None,
            stamp: None,
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
            self.stamp = None;
            self.keep_chunks = false;
        }
        if kind == Kind::Chunk {
            return if self.keep_chunks { Fate::Keep } else { Fate::Drop };
        }
        self.keep_chunks = false;
        let stripe = self.stripe_of(key.trailer.seqno());
        if kind.is_versioned() {
            return self.fate_of_version(key, kind, stamp_of(value), stripe, is_bottom);
        }
        if self.stripe == Some(stripe) || self.is_covered(key, stripe) {
            return Fate::Drop;
        }
        if kind == Kind::Merge {
            // While an older snapshot is open, somebody may have to find out that the key was written
            // since; and a tombstone in its place would hide what lies below.
            let dead = deadline_of(value).is_some_and(|d| d <= self.expire_before);
            return if dead && stripe == 0 { Fate::Drop } else { Fate::Fold };
        }
        self.stripe = Some(stripe);
        let dead = match kind {
            Kind::Tombstone => true,
            Kind::ExpiringValue | Kind::ChunkedValue => {
                deadline_of(value).is_some_and(|d| d <= self.expire_before)
            }
            // Versions and operands were dealt with above.
            Kind::Value
            | Kind::Chunk
            | Kind::Merge
            | Kind::VersionedValue
            | Kind::VersionedTombstone
            | Kind::VersionedChunked => false,
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

    /// Returns what becomes of the last record, which was kept, now that somebody wants it removed.
    pub(crate) fn remove(&mut self, is_bottom: impl FnOnce() -> bool) -> Fate {
        self.keep_chunks = false;
        if self.stripe == Some(0) && is_bottom() { Fate::Drop } else { Fate::Bury }
    }

    /// Notes that the last record, which was kept, is replaced by one without chunks.
    pub(crate) fn replace(&mut self) {
        self.keep_chunks = false;
    }

    fn fate_of_version(
        &mut self,
        key: InternalKey<'_>,
        kind: Kind,
        stamp: u64,
        stripe: usize,
        is_bottom: impl FnOnce() -> bool,
    ) -> Fate {
        debug_assert!(
            self.stamp.is_none_or(|newer| stamp <= newer),
            "of one key the stamps ascend with the sequence numbers"
        );
        if self.is_covered(key, stripe) {
            return Fate::Drop;
        }
        let newer = self.stamp.replace(stamp).filter(|_| self.stripe == Some(stripe));
        self.stripe = Some(stripe);
        // Whoever could read this one reads a newer one of the stripe instead.
        if newer.is_some_and(|newer| newer <= self.horizon || newer == stamp) {
            return Fate::Drop;
        }
        if kind == Kind::VersionedTombstone && stamp <= self.horizon && stripe == 0 {
            // All that is older in this merge goes by the rule above.
            let elide = is_bottom() || mutants::is("early-tombstone-drop");
            return if elide { Fate::Drop } else { Fate::Keep };
        }
        self.keep_chunks = kind == Kind::VersionedChunked;
        Fate::Keep
    }

    /// Returns the number of the oldest snapshot that sees `seqno`; beyond the present (records
    /// that came after the merge began) every record is its own stripe's.
    pub(crate) fn stripe_of(&self, seqno: SeqNo) -> usize {
        stripe_of(&self.snapshots, seqno)
    }

    /// Returns whether only the present sees `seqno`.
    pub(crate) fn is_newest_stripe(&self, seqno: SeqNo) -> bool {
        self.stripe_of(seqno) + 1 >= self.snapshots.len()
    }

    /// Returns the lowest sequence number that no older stripe sees.
    pub(crate) fn floor_of(&self, stripe: usize) -> SeqNo {
        stripe.checked_sub(1).and_then(|older| self.snapshots.get(older)).map_or(0, |s| s + 1)
    }

    /// Returns whether a range tombstone of the stripe covers `user_key`: what is older than the
    /// records of the key that it does not hide is hidden from the stripe's readers.
    pub(crate) fn hides_older(&self, user_key: &[u8], stripe: usize) -> bool {
        if self.covering.is_empty() {
            return false;
        }
        let newest_of_stripe = self.snapshots.get(stripe).copied().unwrap_or(SeqNo::MAX >> 8);
        let covering = self.covering.max_covering(user_key, newest_of_stripe);
        covering > 0 && self.stripe_of(covering) == stripe
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
        horizon: u64,
        range: Option<(&'a str, &'a str, SeqNo)>,
        bottom: bool,
    }

    const PLAIN: Case<'static> =
        Case { snapshots: &[100], expire_before: 0, horizon: 0, range: None, bottom: false };

    /// Runs records like `k@60`, `k@44x` (tombstone), `k@31t9` (deadline 9), `k@30h` (long, `k@29c`
    /// its chunk), operands like `k@60m9` (deadline 9, `m0` none), and versions of stamp 7 like `k@60v7`, `k@60d7` (tombstone), `k@60l7` (long);
    /// prints survivors.
    fn survivors(case: Case<'_>, records: &str) -> String {
        let range = case.range.map(|(start, end, seqno)| RangeTombstone {
            start: start.into(),
            end: end.into(),
            seqno,
        });
        let covering = Fragmented::new(range);
        let Case { snapshots, expire_before, horizon, bottom, .. } = case;
        let mut stream = Survivors::new(snapshots.to_vec(), expire_before, horizon, &covering);
        let mut out = Vec::new();
        for record in records.split_whitespace() {
            let (key, rest) = record.split_once('@').unwrap();
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let seqno: SeqNo = rest[..digits].parse().unwrap();
            let word = |n: &str| n.parse::<u64>().unwrap().to_le_bytes().to_vec();
            let (kind, value) = match rest[digits..].split_at_checked(1) {
                Some(("x", _)) => (Kind::Tombstone, Vec::new()),
                Some(("m", deadline)) => (Kind::Merge, word(deadline)),
                Some(("t", deadline)) => (Kind::ExpiringValue, word(deadline)),
                Some(("v", stamp)) => (Kind::VersionedValue, word(stamp)),
                Some(("d", stamp)) => (Kind::VersionedTombstone, word(stamp)),
                Some(("l", stamp)) => (Kind::VersionedChunked, word(stamp)),
                Some(("h", _)) => (Kind::ChunkedValue, vec![0; 20]),
                Some(("c", _)) => (Kind::Chunk, vec![1]),
                _ => (Kind::Value, b"v".to_vec()),
            };
            let internal = InternalKey::new(key.as_bytes(), Trailer::new(seqno, kind));
            match stream.fate(internal, kind, &value, || bottom) {
                Fate::Keep => out.push(record.to_owned()),
                Fate::Bury => out.push(format!("{key}@{seqno}buried")),
                Fate::Fold => out.push(format!("{key}@{seqno}fold")),
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

    #[test]
    fn operands_hide_nothing_and_go_with_what_hides_or_outlives_them() {
        assert_eq!(survivors(PLAIN, "k@60m0 k@44m0 k@31 k@20m0"), "k@60fold k@44fold k@31");
        assert_eq!(survivors(PLAIN, "k@60 k@44m0 k@31"), "k@60");
        assert_eq!(survivors(PLAIN, "k@60m0 k@44x k@31m0"), "k@60fold k@44x");
        let seen = Case { snapshots: &[50, 100], ..PLAIN };
        assert_eq!(survivors(seen, "k@60m0 k@44m0 k@31"), "k@60fold k@44fold k@31");
        let expired = Case { expire_before: 9, ..PLAIN };
        assert_eq!(survivors(expired, "k@60m9 k@44m10 k@31t9"), "k@44fold k@31buried");
        let seen = Case { snapshots: &[50, 100], expire_before: 9, ..PLAIN };
        assert_eq!(survivors(seen, "k@60m9 k@44m9 k@31"), "k@60fold k@31");
        let range = Some(("a", "m", 50));
        assert_eq!(survivors(Case { range, ..PLAIN }, "k@60m0 k@44m0 k@31"), "k@60fold");
    }

    #[test]
    fn versions_above_the_horizon_stay_and_below_it_the_newest() {
        let at = |horizon| Case { horizon, ..PLAIN };
        for (horizon, all, kept) in [
            (0, "k@60v6 k@44v4 k@31v3 k@17v1", "k@60v6 k@44v4 k@31v3 k@17v1"),
            (1, "k@60v6 k@44v4 k@31v3 k@17v1", "k@60v6 k@44v4 k@31v3 k@17v1"),
            (2, "k@60v6 k@44v4 k@31v3 k@17v1", "k@60v6 k@44v4 k@31v3 k@17v1"),
            (3, "k@60v6 k@44v4 k@31v3 k@17v1", "k@60v6 k@44v4 k@31v3"),
            (5, "k@60v6 k@44v4 k@31v3 k@17v1", "k@60v6 k@44v4"),
            (6, "k@60v6 k@44v4 k@31v3 k@17v1", "k@60v6"),
            (9, "k@60v6 k@44v4 l@31v3 l@17v1", "k@60v6 l@31v3"),
            // A tombstone is a version like others while something older may lie below.
            (5, "k@60v6 k@44d4 k@31v3", "k@60v6 k@44d4"),
            (3, "k@60v6 k@44d4 k@31v3", "k@60v6 k@44d4 k@31v3"),
            // Written twice under one stamp: the later one is the answer, whatever is asked.
            (0, "k@60v6 k@59v6 k@58d6 k@44v4", "k@60v6 k@44v4"),
            (0, "k@60d6 k@59v6 k@44v4", "k@60d6 k@44v4"),
        ] {
            assert_eq!(survivors(at(horizon), all), kept, "horizon {horizon}");
        }
    }

    #[test]
    fn a_versioned_tombstone_goes_at_the_bottom_once_the_horizon_has_passed_it() {
        let at = |horizon| Case { horizon, bottom: true, ..PLAIN };
        for (horizon, kept) in [
            (0, "k@60v6 k@44d4 k@31v3 k@17d1"),
            (2, "k@60v6 k@44d4 k@31v3"),
            (3, "k@60v6 k@44d4 k@31v3"),
            (4, "k@60v6"),
            (5, "k@60v6"),
        ] {
            assert_eq!(survivors(at(horizon), "k@60v6 k@44d4 k@31v3 k@17d1"), kept, "{horizon}");
        }
        assert_eq!(survivors(at(1), "k@17d1"), "");
        assert_eq!(survivors(at(0), "k@17d1"), "k@17d1");
    }

    #[test]
    fn each_stripe_keeps_the_versions_that_its_snapshot_may_ask_for() {
        let seen = Case { snapshots: &[50, 100], horizon: 5, bottom: true, ..PLAIN };
        assert_eq!(survivors(seen, "k@70v5 k@60v4 k@44v3 k@31v2"), "k@70v5 k@44v3");
        let seen = Case { snapshots: &[50, 100], horizon: 5, bottom: true, ..PLAIN };
        assert_eq!(survivors(seen, "k@70d5 k@44v3 k@31v2"), "k@70d5 k@44v3", "seen beneath");
        let seen = Case { snapshots: &[50, 100], ..PLAIN };
        assert_eq!(survivors(seen, "k@70v5 k@60v5 k@44v5"), "k@70v5 k@44v5");
    }

    #[test]
    fn a_range_tombstone_hides_versions_whatever_their_stamps() {
        let range = Some(("a", "m", 40));
        let case = Case { range, horizon: 1, ..PLAIN };
        assert_eq!(survivors(case, "b@60v9 b@39v8 b@30v1 m@30v1"), "b@60v9 m@30v1");
        let case = Case { range, horizon: 9, ..PLAIN };
        assert_eq!(survivors(case, "b@39v8 b@30v1 c@41v7 c@39v2"), "c@41v7");
    }

    #[test]
    fn chunks_share_the_fate_of_their_version() {
        let at = |horizon| Case { horizon, ..PLAIN };
        let all = "k@60l6 k@59c k@58c k@40l4 k@39c k@20v2";
        assert_eq!(survivors(at(0), all), all);
        assert_eq!(survivors(at(4), all), "k@60l6 k@59c k@58c k@40l4 k@39c");
        assert_eq!(survivors(at(6), all), "k@60l6 k@59c k@58c");
        assert_eq!(survivors(at(9), "k@70v7 k@60l6 k@59c"), "k@70v7");
    }
}
