//! Stretches: ranges of keys in which everything is deleted, as scans found them.
//!
//! Whoever deletes what he has read leaves a run of tombstones in front of the next reader, who steps
//! over all of them to the first live key. A queue, which is read at its head, so takes time in the
//! square of its throughput until a flush and a merge have dropped the tombstones:
//!
//! ```text
//!   scan 1     x x x x x x x x x x [ head ... tail ]      steps over ten
//!              |<---- stretch --->|                       ... and leaves a note
//!   scan 2     ------------------> x [ head ... tail ]    jumps, steps over one, makes the note longer
//! ```
//!
//! A note says: of the records up to sequence number `as_of` all in `[start, end)` are deleted, and
//! nothing was inserted there since. It is about keys and numbers, so it holds whatever flushes and
//! merges do, for every snapshot that is not older. Records that have expired end a run: the wall
//! clock may be set back.
//!
//! # Keeping it true
//! A writer that inserts into a stretch cuts it there, before its batch becomes visible: then no
//! reader that could see the key finds the note. What is harder is a batch that comes between a scan's
//! snapshot and its note. So as long as somebody is *interested*, writers also leave the keys of their
//! last [`RECENT`] batches, and a note is taken only if those newer than the snapshot are all known and
//! miss it. Interest begins with the first long run and ends some thousand batches after the last; who
//! has no such readers pays one store and one load a batch.
//!
//! The order of writer and reader around the flag is Dekker's: the writer stores its position and
//! then looks at the flag, the reader raises the flag and then reads the position. One of them sees
//! the other.
//!
//! Not for stores with an owner: there entries of several groups become visible out of order.
//!
//! Rejected: making flushes and merges follow scans. They take a second where a note takes a
//! microsecond, and rewrite all of the queue for its head.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::batch::{Record, Records};
use crate::key::SeqNo;

/// Deleted keys in a row that are worth a note. A jump looks blocks up again and ends reading ahead: for a
/// hundred keys, some blocks, it costs more than the steps.
pub(crate) const LONG: usize = 512;
/// Notes that are kept.
const NOTES_MAX: usize = 1024;
/// Batches whose keys are kept.
const RECENT: usize = 256;
/// Batches after which interest ends, if no scan has met a long run since.
const FORGET: u64 = 10_000;

/// The notes of a store.
#[derive(Default)]
pub(crate) struct Stretches {
    /// Whether writers have to look.
    interest: AtomicBool,
    /// Position of the batch that was applied last or is being applied.
    applying: AtomicU64,
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    /// By start; disjoint.
    stretches: BTreeMap<Vec<u8>, Stretch>,
    /// Batches at positions above this one are in `recent`.
    known_from: SeqNo,
    /// Position, first and last key inserted.
    recent: VecDeque<(SeqNo, Vec<u8>, Vec<u8>)>,
    /// Batches since a scan met a long run.
    idle: u64,
}

struct Stretch {
    end: Vec<u8>,
    as_of: SeqNo,
}

impl Stretches {
    /// A batch is about to become visible, whose records begin at this position.
    #[inline]
    pub(crate) fn wrote(&self, position: SeqNo, payload: &[u8]) {
        self.applying.store(position, Ordering::SeqCst);
        if self.interest.load(Ordering::SeqCst) {
            self.cut(position, payload);
        }
    }

    #[cold]
    fn cut(&self, position: SeqNo, payload: &[u8]) {
        let mut notes = self.notes.lock();
        notes.idle += 1;
        if notes.idle > FORGET {
            *notes = Notes::default();
            self.interest.store(false, Ordering::SeqCst);
            return;
        }
        let mut keys: Option<(&[u8], &[u8])> = None;
        // A batch that does not decode was refused before.
        for record in Records::new(payload).into_iter().flatten().flatten() {
            match record {
                // What an operand makes of a deleted key may be a value.
                Record::Insert { key, .. } | Record::Merge { key, .. } => {
                    keys = Some(keys.map_or((key, key), |(a, b)| (a.min(key), b.max(key))));
                    notes.cut_at(key);
                }
                // What is deleted stays so, and versions are for other scans.
                Record::Remove { .. }
                | Record::RemoveRange { .. }
                | Record::InsertVersion { .. }
                | Record::RemoveVersion { .. } => {}
            }
        }
        if let Some((first, last)) = keys {
            if notes.recent.len() == RECENT
                && let Some((oldest, ..)) = notes.recent.pop_front()
            {
                notes.known_from = oldest;
            }
            notes.recent.push_back((position, first.to_vec(), last.to_vec()));
        }
    }

    /// Records up to `newest` are about to become visible that were in no batch: what was noted before
    /// does not hold any more, nor what a scan notes that does not see them.
    pub(crate) fn forget(&self, newest: SeqNo) {
        self.applying.fetch_max(newest, Ordering::SeqCst);
        let mut notes = self.notes.lock();
        notes.stretches.clear();
        notes.recent.clear();
        notes.known_from = notes.known_from.max(newest);
    }

    /// Returns whether there may be notes.
    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        self.interest.load(Ordering::Relaxed)
    }

    /// Returns where a scan that stands on the dead `key` may go on.
    pub(crate) fn end_of(&self, key: &[u8], snapshot: SeqNo) -> Option<Vec<u8>> {
        let notes = self.notes.lock();
        let (_, stretch) = notes
            .stretches
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
            .next_back()?;
        (stretch.as_of <= snapshot && key < stretch.end.as_slice()).then(|| stretch.end.clone())
    }

    /// A scan at `snapshot` found everything in `[start, end)` deleted.
    pub(crate) fn note(&self, start: &[u8], end: &[u8], snapshot: SeqNo) {
        let mut notes = self.notes.lock();
        notes.idle = 0;
        if !self.interest.swap(true, Ordering::SeqCst) {
            // What was applied before now is in nobody's list.
            notes.known_from = self.applying.load(Ordering::SeqCst);
        }
        let missed = snapshot < notes.known_from;
        let hit = notes.recent.iter().any(|(position, first, last)| {
            *position > snapshot && first.as_slice() < end && last.as_slice() >= start
        });
        if missed || hit || start >= end {
            return;
        }
        notes.add(start, end, snapshot);
    }
}

impl Notes {
    fn cut_at(&mut self, key: &[u8]) {
        let before = (Bound::Unbounded, Bound::Included(key));
        let Some((start, stretch)) = self.stretches.range_mut::<[u8], _>(before).next_back() else {
            return;
        };
        if key >= stretch.end.as_slice() {
            return;
        }
        if start == key {
            let start = start.clone();
            self.stretches.remove(&start);
        } else {
            stretch.end = key.to_vec();
        }
    }

    /// Adds a stretch and joins it with those it meets: what they say was checked by the same scan, or
    /// holds for its snapshot, too.
    fn add(&mut self, start: &[u8], end: &[u8], as_of: SeqNo) {
        let (mut start, mut end) = (start.to_vec(), end.to_vec());
        let before = (Bound::Unbounded, Bound::Included(start.as_slice()));
        if let Some((first, stretch)) = self.stretches.range::<[u8], _>(before).next_back()
            && stretch.end >= start
        {
            if stretch.as_of > as_of {
                // A newer scan knows better; this one adds little.
                return;
            }
            start = first.clone();
        }
        let met: Vec<Vec<u8>> = self
            .stretches
            .range::<[u8], _>((Bound::Included(start.as_slice()), Bound::Included(end.as_slice())))
            .map(|(start, _)| start.clone())
            .collect();
        if met.iter().any(|start| self.stretches[start].as_of > as_of) {
            return;
        }
        for start in met {
            if let Some(stretch) = self.stretches.remove(&start) {
                end = end.max(stretch.end);
            }
        }
        if self.stretches.len() < NOTES_MAX {
            self.stretches.insert(start, Stretch { end, as_of });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driven::Writes;

    fn insert(stretches: &Stretches, position: SeqNo, keys: &[&str]) {
        let mut writes = Writes::new();
        keys.iter().for_each(|key| writes.insert(key.as_bytes(), &[b"v"]));
        stretches.wrote(position, writes.bytes());
    }

    fn end(stretches: &Stretches, key: &str, snapshot: SeqNo) -> Option<String> {
        let end = stretches.end_of(key.as_bytes(), snapshot)?;
        Some(String::from_utf8(end).unwrap())
    }

    /// Notes with interest from position 10 on.
    fn interested() -> Stretches {
        let stretches = Stretches::default();
        insert(&stretches, 10, &["z"]);
        stretches.note(b"y", b"z", 9);
        assert_eq!(end(&stretches, "y", 50), None, "what came at 10 is not known");
        stretches
    }

    #[test]
    fn a_note_leads_every_snapshot_that_is_not_older() {
        let stretches = interested();
        stretches.note(b"b", b"f", 20);
        assert_eq!(end(&stretches, "b", 20), Some("f".into()));
        assert_eq!(end(&stretches, "e", 30), Some("f".into()));
        assert_eq!(end(&stretches, "e", 19), None);
        assert_eq!(end(&stretches, "f", 30), None);
        assert_eq!(end(&stretches, "a", 30), None);
    }

    #[test]
    fn a_note_grows_by_what_the_next_scan_finds() {
        let stretches = interested();
        stretches.note(b"b", b"f", 20);
        stretches.note(b"d", b"h", 25);
        assert_eq!(end(&stretches, "b", 25), Some("h".into()));
        assert_eq!(end(&stretches, "b", 24), None);
        stretches.note(b"k", b"m", 25);
        stretches.note(b"a", b"z", 26);
        assert_eq!(end(&stretches, "a", 26), Some("z".into()));
        assert_eq!(stretches.notes.lock().stretches.len(), 1);
        stretches.note(b"a", b"zz", 22);
        assert_eq!(end(&stretches, "a", 26), Some("z".into()), "an older scan changes nothing");
    }

    #[test]
    fn an_insert_cuts_the_stretch_it_falls_into() {
        let stretches = interested();
        stretches.note(b"b", b"f", 20);
        insert(&stretches, 21, &["f", "a", "d"]);
        assert_eq!(end(&stretches, "b", 30), Some("d".into()));
        assert_eq!(end(&stretches, "d", 30), None);
        insert(&stretches, 22, &["b"]);
        assert_eq!(end(&stretches, "b", 30), None);
    }

    #[test]
    fn an_operand_cuts_as_an_insert_does() {
        let stretches = interested();
        stretches.note(b"b", b"f", 20);
        let mut batch = crate::Batch::new();
        batch.merge_raw(0, b"d", b"+1", None);
        let payload = batch.into_payload().unwrap().bytes;
        // Keys of a batch carry the id of their keyspace.
        stretches.note(b"\0\0\0\0a", b"\0\0\0\0z", 20);
        stretches.wrote(21, &payload);
        assert_eq!(end(&stretches, "\0\0\0\0a", 30), Some("\0\0\0\0d".into()));
        assert_eq!(end(&stretches, "\0\0\0\0e", 30), None);
    }

    #[test]
    fn a_batch_between_the_snapshot_and_the_note_rules_it_out_if_it_hits() {
        let stretches = interested();
        insert(&stretches, 21, &["d"]);
        stretches.note(b"b", b"f", 20);
        assert_eq!(end(&stretches, "b", 30), None);
        stretches.note(b"e", b"f", 20);
        assert_eq!(end(&stretches, "e", 30), Some("f".into()));
        stretches.note(b"b", b"c", 20);
        assert_eq!(end(&stretches, "b", 30), Some("c".into()));
        // As many as are kept: the oldest is not known any more.
        for n in 0..RECENT as u64 {
            insert(&stretches, 30 + n, &["x"]);
        }
        stretches.note(b"g", b"h", 20);
        assert_eq!(end(&stretches, "g", 300), None);
        stretches.note(b"g", b"h", 29);
        assert_eq!(end(&stretches, "g", 300), Some("h".into()));
    }

    #[test]
    fn interest_ends_when_no_scan_meets_a_run() {
        let stretches = interested();
        stretches.note(b"b", b"f", 20);
        for n in 0..=FORGET {
            insert(&stretches, 30 + n, &["x"]);
        }
        assert!(!stretches.is_active());
        assert_eq!(end(&stretches, "b", 30), None);
    }

    #[test]
    fn there_is_a_bound_to_the_notes() {
        let stretches = interested();
        for n in 0..NOTES_MAX as u32 + 50 {
            stretches.note(&(2 * n).to_be_bytes(), &(2 * n + 1).to_be_bytes(), 20);
        }
        assert_eq!(stretches.notes.lock().stretches.len(), NOTES_MAX);
    }
}
