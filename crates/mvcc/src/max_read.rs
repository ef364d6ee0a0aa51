//! The table of read timestamps: at which moment was a key read last?
//!
//! A reader at timestamp r has seen a key's newest version at or below r, or that there is none. No
//! version may appear at or below r any more, so a shard remembers the highest timestamp each key
//! was read at, and commits its writes above. Forgetting is never allowed, exactness is not needed:
//! an answer that is too high costs a writer a later timestamp, one that is too low breaks a
//! snapshot.
//!
//! ```text
//!                hash of the key
//!   points       [ 12 | 40 |  0 | 33 | ... ]   1024 of them, keys that share one share its maximum
//!   ranges       (a..f, 35) (k..z, 41)         the last 16 that were scanned
//!   floor        30                            everything, whatever was forgotten
//!
//!   get(k) = max(points[hash k], ranges that hold k, floor)
//! ```
//!
//! # Invariants
//! - What `get` answers is at or above every timestamp that the key was raised to, by itself or in a
//!   span; the same for `get_span` and every key in it.
//! - The floor only rises. A range that has to make room raises it to its own timestamp; the one
//!   with the lowest goes, because that costs the least.
//!
//! An exact map of intervals was rejected: it grows with the reads and has to be folded into a floor
//! in the end, with an allocation for each read on the way. A new leader of a shard starts with a
//! floor above every read that the old one may have served.

use atoll_encoding::hash::hash64;

use crate::request::Span;
use crate::timestamp::Timestamp;

/// Keys are told apart by so many points: 8 KiB a shard. A power of two.
const POINTS: usize = 1024;
/// Scans that are told apart.
const RANGES: usize = 16;

/// See the module.
#[derive(Clone, Debug)]
pub struct MaxRead {
    points: Box<[Timestamp; POINTS]>,
    /// The highest of all points: what a span may hold.
    highest_point: Timestamp,
    /// At most [`RANGES`], in no order. Each is above the floor.
    ranges: Vec<(Span, Timestamp)>,
    /// The highest of all ranges: a point above it need not look at them.
    highest_range: Timestamp,
    floor: Timestamp,
}

impl MaxRead {
    /// Returns a table that knows of no read above `floor`.
    pub fn new(floor: Timestamp) -> MaxRead {
        MaxRead {
            points: Box::new([Timestamp::ZERO; POINTS]),
            highest_point: Timestamp::ZERO,
            ranges: Vec::new(),
            highest_range: Timestamp::ZERO,
            floor,
        }
    }

    /// Remembers that a key was read at `ts`.
    pub fn raise(&mut self, key: &[u8], ts: Timestamp) {
        let point = &mut self.points[point_of(key)];
        *point = ts.max(*point);
        self.highest_point = ts.max(self.highest_point);
    }

    /// Remembers that the keys from `start` up to `end`, which is not among them, were read at `ts`:
    /// those that are there and those that are not.
    pub fn raise_span(&mut self, start: &[u8], end: &[u8], ts: Timestamp) {
        if ts <= self.floor || start >= end {
            return;
        }
        // A table that is scanned again and again takes one place.
        for (span, at) in &mut self.ranges {
            if span.start.as_slice() <= start && end <= span.end.as_slice() && *at >= ts {
                return;
            }
            if span.start == start && span.end == end {
                *at = ts;
                self.highest_range = ts.max(self.highest_range);
                return;
            }
        }
        if self.ranges.len() < RANGES {
            self.ranges.push((Span { start: start.to_vec(), end: end.to_vec() }, ts));
        } else {
            let lowest = self.ranges.iter_mut().min_by_key(|(_, at)| *at);
            let (span, at) = lowest.expect("a list that is full has a lowest range");
            if ts <= *at {
                // The new one is the lowest itself.
                return self.raise_floor(ts);
            }
            let forgotten = *at;
            // In the memory of the one that goes: scans do not allocate either.
            span.start.clear();
            span.start.extend_from_slice(start);
            span.end.clear();
            span.end.extend_from_slice(end);
            *at = ts;
            self.raise_floor(forgotten);
        }
        self.highest_range = ts.max(self.highest_range);
    }

    /// Raises what every key answers at least.
    pub fn raise_floor(&mut self, ts: Timestamp) {
        if ts > self.floor {
            self.floor = ts;
            self.ranges.retain(|(_, at)| *at > ts);
            let highest = self.ranges.iter().map(|(_, at)| *at).max();
            self.highest_range = highest.unwrap_or_default();
        }
    }

    /// Returns a timestamp at or above every read of a key.
    pub fn get(&self, key: &[u8]) -> Timestamp {
        let known = self.points[point_of(key)].max(self.floor);
        if known >= self.highest_range {
            return known;
        }
        let holding = self.ranges.iter().filter(|(span, _)| span.contains(key));
        holding.fold(known, |known, (_, at)| known.max(*at))
    }

    /// Returns a timestamp at or above every read of every key from `start` up to `end`, which is
    /// not among them. Which keys the points stand for is not known: the highest counts.
    pub fn get_span(&self, start: &[u8], end: &[u8]) -> Timestamp {
        let known = self.highest_point.max(self.floor);
        let meeting = self
            .ranges
            .iter()
            .filter(|(span, _)| span.start.as_slice() < end && start < span.end.as_slice());
        meeting.fold(known, |known, (_, at)| known.max(*at))
    }

    /// Returns what every key answers at least.
    pub fn floor(&self) -> Timestamp {
        self.floor
    }
}

fn point_of(key: &[u8]) -> usize {
    hash64(key) as usize % POINTS
}

#[cfg(test)]
mod tests {
    use atoll_env::random::Prng;

    use super::*;

    /// Every read there was.
    #[derive(Default)]
    struct Model {
        keys: Vec<(Vec<u8>, Timestamp)>,
        spans: Vec<(Span, Timestamp)>,
        floor: Timestamp,
    }

    impl Model {
        fn get(&self, key: &[u8]) -> Timestamp {
            let keys = self.keys.iter().filter(|(k, _)| k == key).map(|(_, ts)| *ts);
            let spans = self.spans.iter().filter(|(s, _)| s.contains(key)).map(|(_, ts)| *ts);
            keys.chain(spans).fold(self.floor, Timestamp::max)
        }

        fn get_span(&self, start: &[u8], end: &[u8]) -> Timestamp {
            let inside = |key: &[u8]| start <= key && key < end;
            let keys = self.keys.iter().filter(|(k, _)| inside(k)).map(|(_, ts)| *ts);
            let meets = |s: &Span| s.start.as_slice() < end && start < s.end.as_slice();
            let spans = self.spans.iter().filter(|(s, _)| meets(s)).map(|(_, ts)| *ts);
            keys.chain(spans).fold(self.floor, Timestamp::max)
        }

        fn highest(&self) -> Timestamp {
            let keys = self.keys.iter().map(|(_, ts)| *ts);
            keys.chain(self.spans.iter().map(|(_, ts)| *ts)).fold(self.floor, Timestamp::max)
        }
    }

    #[test]
    fn the_answer_is_never_below_a_read_whatever_was_forgotten() {
        for seed in 0..40 {
            let mut prng = Prng::new(seed);
            let (mut table, mut model) = (MaxRead::new(Timestamp::ZERO), Model::default());
            for step in 1..1_000u64 {
                // Mostly later and later, as reads are, with some that come late.
                let ts = Timestamp(step * 10 - prng.below(step * 5));
                let key = |prng: &mut Prng| (prng.below(300) as u16).to_be_bytes().to_vec();
                let (a, b) = (key(&mut prng), key(&mut prng));
                match prng.below(20) {
                    0..12 => {
                        table.raise(&a, ts);
                        model.keys.push((a.clone(), ts));
                    }
                    12..19 => {
                        table.raise_span(&a, &b, ts);
                        if a < b {
                            let span = Span { start: a.clone(), end: b.clone() };
                            model.spans.push((span, ts));
                        }
                    }
                    _ if step % 7 == 0 => {
                        table.raise_floor(ts);
                        model.floor = model.floor.max(ts);
                    }
                    _ => {}
                }
                let key = key(&mut prng);
                let (got, exact) = (table.get(&key), model.get(&key));
                assert!(got >= exact && got <= model.highest(), "seed {seed}: {got} for {exact}");
                let (got, exact) = (table.get_span(&a, &b), model.get_span(&a, &b));
                assert!(a >= b || got >= exact && got <= model.highest(), "seed {seed}: {got}");
            }
        }
    }

    #[test]
    fn a_key_that_nobody_read_answers_the_floor_unless_it_shares_a_point() {
        let mut table = MaxRead::new(Timestamp(5));
        for n in 0..100u32 {
            table.raise(&n.to_le_bytes(), Timestamp(u64::from(n) + 10));
        }
        table.raise_span(b"a", b"b", Timestamp(500));
        let untouched = (1_000..2_000u32).filter(|n| table.get(&n.to_le_bytes()) == Timestamp(5));
        assert!(untouched.count() > 850);
        assert_eq!(table.get(b"ab"), Timestamp(500));
        assert!(table.get(b"b") < Timestamp(500), "the end is not in a span");
        assert!(table.get_span(b"b", b"c") < Timestamp(500));
        assert_eq!(table.get_span(b"0", b"a\0"), Timestamp(500));
    }

    #[test]
    fn the_lowest_scan_makes_room_and_becomes_the_floor() {
        let mut table = MaxRead::new(Timestamp::ZERO);
        let span = |n: u64| (n.to_be_bytes(), (n + 1).to_be_bytes());
        for n in 0..RANGES as u64 {
            let (start, end) = span(n);
            table.raise_span(&start, &end, Timestamp(100 + n));
        }
        assert_eq!(table.floor(), Timestamp::ZERO);
        let (start, end) = span(77);
        table.raise_span(&start, &end, Timestamp(200));
        assert_eq!(table.floor(), Timestamp(100));
        assert_eq!(table.get(&start), Timestamp(200));
        assert_eq!(table.get(&span(3).0), Timestamp(103));
        // One that is lower than all of them costs itself only.
        let (start, end) = span(88);
        table.raise_span(&start, &end, Timestamp(101));
        assert_eq!(table.floor(), Timestamp(101));
        assert_eq!(table.ranges.len(), RANGES - 1, "what the floor covers needs no place");
    }

    #[test]
    fn a_table_that_is_scanned_again_takes_one_place() {
        let mut table = MaxRead::new(Timestamp::ZERO);
        for ts in 1..1_000 {
            table.raise_span(b"a", b"z", Timestamp(ts));
            table.raise_span(b"c", b"d", Timestamp(ts)); // covered
        }
        assert_eq!(table.ranges.len(), 1);
        assert_eq!(table.get(b"c"), Timestamp(999));
        assert_eq!(table.floor(), Timestamp::ZERO);
    }
}
