//! What a snapshot sees of a range of keys.

use std::sync::Arc;

use crate::compaction::stream::deadline_of;
use crate::error::Result;
use crate::iter::{Direction, Merge};
use crate::key::{InternalKey, Kind, SeqNo, Trailer};
use crate::slice::Slice;
use crate::tombstone::Fragmented;

/// Covered records in a row after which the sources are moved past the covering tombstone.
const SKIP_AFTER: usize = 16;

/// What a scan is asked for. Keys carry the keyspace id.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    /// First key.
    pub(crate) start: Vec<u8>,
    /// The key behind the last one.
    pub(crate) end: Vec<u8>,
}

/// Yields, in key order or against it, the newest visible record of each key that is not deleted.
pub(crate) struct Scan {
    merge: Merge,
    direction: Direction,
    bounds: Bounds,
    snapshot: SeqNo,
    /// Milliseconds since the Unix epoch; deadlines at or below it have passed.
    now: u64,
    tombstones: Vec<Arc<Fragmented>>,
    started: bool,
    /// The entry it stands on; also the last key dealt with.
    entry: Entry,
    has_entry: bool,
    covered_in_row: usize,
}

/// A live record.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) user_key: Vec<u8>,
    pub(crate) trailer: Trailer,
    pub(crate) value: Slice,
}

impl Scan {
    /// Starts a scan over `merge`, which must have the same direction.
    pub(crate) fn new(
        merge: Merge,
        direction: Direction,
        bounds: Bounds,
        snapshot: SeqNo,
        now: u64,
        tombstones: Vec<Arc<Fragmented>>,
    ) -> Scan {
        let entry = Entry {
            user_key: Vec::new(),
            trailer: Trailer::OLDEST,
            value: Slice::from(Vec::new()),
        };
        Scan {
            merge,
            direction,
            bounds,
            snapshot,
            now,
            tombstones,
            started: false,
            entry,
            has_entry: false,
            covered_in_row: 0,
        }
    }

    /// Moves to the next entry; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<&Entry>> {
        if !self.started {
            self.started = true;
            let edge = match self.direction {
                Direction::Forward => &self.bounds.start,
                Direction::Backward => &self.bounds.end,
            };
            self.merge.seek(InternalKey::new(edge, Trailer::NEWEST)).await?;
        }
        let found = match self.direction {
            Direction::Forward => self.next_forward().await?,
            Direction::Backward => self.next_backward().await?,
        };
        Ok(found.then_some(&self.entry))
    }

    /// Returns the last user key that was returned.
    pub(crate) fn last(&self) -> Option<&[u8]> {
        self.has_entry.then_some(self.entry.user_key.as_slice())
    }

    async fn next_forward(&mut self) -> Result<bool> {
        loop {
            if !self.merge.valid() {
                // An error is repeated, the end is the end.
                self.merge.step().await?;
                return Ok(false);
            }
            let key = self.merge.key();
            if self.has_entry && key.user_key == self.entry.user_key.as_slice() {
                // An older record, or a chunk, of a key that was dealt with.
                self.merge.step().await?;
                continue;
            }
            if key.user_key >= self.bounds.end.as_slice() {
                return Ok(false);
            }
            if key.trailer.seqno() > self.snapshot {
                self.merge.step().await?;
                continue;
            }
            self.has_entry = true;
            self.entry.user_key.clear();
            self.entry.user_key.extend_from_slice(key.user_key);
            self.entry.trailer = key.trailer;
            if self.pass_if_hidden().await? {
                continue;
            }
            if is_dead(key_kind(self.entry.trailer), self.merge.value(), self.now) {
                continue;
            }
            self.entry.value = self.merge.value_slice();
            return Ok(true);
        }
    }

    async fn next_backward(&mut self) -> Result<bool> {
        // Against the order a key's records come oldest first: the last visible one counts.
        let mut candidate = false;
        loop {
            let more = if self.merge.valid() {
                let key = self.merge.key();
                key.user_key >= self.bounds.start.as_slice()
                    && !(candidate && key.user_key != self.entry.user_key.as_slice())
            } else {
                self.merge.step().await?;
                false
            };
            if !more {
                if !candidate {
                    return Ok(false);
                }
                candidate = false;
                self.has_entry = true;
                if self.pass_if_hidden().await? {
                    continue;
                }
                if is_dead(key_kind(self.entry.trailer), &self.entry.value, self.now) {
                    continue;
                }
                return Ok(true);
            }
            let key = self.merge.key();
            let kind = key_kind(key.trailer);
            if key.trailer.seqno() <= self.snapshot && kind != Kind::Chunk {
                if !candidate {
                    self.entry.user_key.clear();
                    self.entry.user_key.extend_from_slice(key.user_key);
                    candidate = true;
                }
                self.entry.trailer = key.trailer;
                self.entry.value = self.merge.value_slice();
            }
            self.merge.step().await?;
        }
    }

    /// Returns whether a range tombstone hides the entry. After a run of hidden ones the sources are
    /// moved past the tombstone.
    async fn pass_if_hidden(&mut self) -> Result<bool> {
        let Some((far_edge, seqno)) = self.hidden_by(self.direction) else {
            self.covered_in_row = 0;
            return Ok(false);
        };
        self.covered_in_row += 1;
        if self.covered_in_row > SKIP_AFTER {
            self.covered_in_row = 0;
            self.merge.skip_to(&far_edge, seqno).await?;
        }
        Ok(true)
    }

    /// Returns the far edge and the sequence number of a range tombstone that hides the entry.
    fn hidden_by(&self, direction: Direction) -> Option<(Vec<u8>, SeqNo)> {
        let key = &self.entry.user_key;
        for set in &self.tombstones {
            let seqno = set.max_covering(key, self.snapshot);
            if seqno > self.entry.trailer.seqno() {
                let fragment = set.fragment_containing(key)?;
                let edge = match direction {
                    Direction::Forward => fragment.end,
                    Direction::Backward => fragment.start,
                };
                return Some((edge.to_vec(), seqno));
            }
        }
        None
    }
}

/// Returns the kind of a record that was checked when its block was decoded.
pub(crate) fn key_kind(trailer: Trailer) -> Kind {
    trailer.kind().expect("memtables and tables yield only known kinds")
}

/// Returns whether a record stands for nothing at `now`.
pub(crate) fn is_dead(kind: Kind, value: &[u8], now: u64) -> bool {
    match kind {
        Kind::Tombstone | Kind::Chunk => true,
        Kind::Value => false,
        Kind::ExpiringValue | Kind::ChunkedValue => deadline_of(value).is_some_and(|d| d <= now),
    }
}
