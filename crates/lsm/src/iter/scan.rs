//! What a snapshot sees of a range of keys.

use std::sync::Arc;

use crate::compaction::stream::deadline_of;
use crate::error::Result;
use crate::iter::{Direction, Merge};
use crate::key::{InternalKey, Kind, SeqNo, Trailer, stamp_of};
use crate::slice::Slice;
use crate::stretches::{LONG, Stretches};
use crate::tombstone::Fragmented;

/// Records in a row that do not count, after which the sources are moved past all of their kind: what
/// a range tombstone covers, and older records of a key that was dealt with.
const SKIP_AFTER: usize = 16;

/// Which records a scan yields.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted {
    /// The newest plain record of each key that is alive at this time (milliseconds since the Unix
    /// epoch: deadlines at or below it have passed).
    Live(u64),
    /// The newest version of each key with a stamp of at most `at`.
    Versions {
        at: u64,
        /// Whether versions that say "deleted" are yielded too.
        tombstones: bool,
    },
}

impl Wanted {
    /// Returns whether a record may stand for its key: a newer one that may not is as if it were not
    /// there.
    #[inline]
    fn may_see(self, kind: Kind, value: &[u8]) -> bool {
        match self {
            Wanted::Live(_) => kind != Kind::Chunk,
            Wanted::Versions { at, .. } => kind.is_versioned() && stamp_of(value) <= at,
        }
    }

    /// Returns whether the record that stands for its key is passed over.
    #[inline]
    fn passes(self, kind: Kind, value: &[u8]) -> bool {
        match self {
            Wanted::Live(now) => is_dead(kind, value, now),
            Wanted::Versions { tombstones, .. } => kind == Kind::VersionedTombstone && !tombstones,
        }
    }
}

/// What a scan is asked for. Keys carry the keyspace id.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    /// First key.
    pub(crate) start: Vec<u8>,
    /// The key behind the last one.
    pub(crate) end: Vec<u8>,
}

/// Yields, in key order or against it, for each key the newest visible record that is wanted, unless
/// it is deleted.
pub(crate) struct Scan {
    merge: Merge,
    direction: Direction,
    bounds: Bounds,
    snapshot: SeqNo,
    wanted: Wanted,
    tombstones: Vec<Arc<Fragmented>>,
    started: bool,
    /// The entry it stands on; also the last key dealt with.
    entry: Entry,
    has_entry: bool,
    covered_in_row: usize,
    older_in_row: usize,
    stretches: Option<Arc<Stretches>>,
    run: Run,
}

/// Deleted keys in a row.
#[derive(Default)]
struct Run {
    first: Vec<u8>,
    len: usize,
    /// A note led over a part of it.
    jumped: bool,
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
        wanted: Wanted,
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
            wanted,
            tombstones,
            started: false,
            entry,
            has_entry: false,
            covered_in_row: 0,
            older_in_row: 0,
            stretches: None,
            run: Run::default(),
        }
    }

    /// Lets the scan use the notes of those before it and leave its own.
    pub(crate) fn with_stretches(mut self, stretches: Arc<Stretches>) -> Scan {
        self.stretches = Some(stretches);
        self
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

    /// Returns the entry that the last step returned.
    pub(crate) fn entry(&self) -> &Entry {
        &self.entry
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
                self.end_run(None);
                return Ok(false);
            }
            let key = self.merge.key();
            if self.has_entry && key.user_key == self.entry.user_key.as_slice() {
                // An older record, or a chunk, of a key that was dealt with.
                self.older_in_row += 1;
                if self.older_in_row > SKIP_AFTER {
                    self.pass_key().await?;
                } else {
                    self.merge.step().await?;
                }
                continue;
            }
            self.older_in_row = 0;
            if key.user_key >= self.bounds.end.as_slice() {
                self.end_run(None);
                return Ok(false);
            }
            let kind = key_kind(key.trailer);
            if key.trailer.seqno() > self.snapshot || !self.wanted.may_see(kind, self.merge.value())
            {
                self.merge.step().await?;
                continue;
            }
            self.has_entry = true;
            self.entry.user_key.clear();
            self.entry.user_key.extend_from_slice(key.user_key);
            self.entry.trailer = key.trailer;
            if self.pass_if_hidden().await? {
                self.pass_deleted().await?;
                continue;
            }
            if self.wanted.passes(kind, self.merge.value()) {
                if kind == Kind::Tombstone {
                    self.pass_deleted().await?;
                } else if self.run.len > 0 {
                    // What has expired may come back with the wall clock.
                    self.end_run_at_entry();
                }
                continue;
            }
            if self.run.len > 0 {
                self.end_run_at_entry();
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
                if self.wanted.passes(key_kind(self.entry.trailer), &self.entry.value) {
                    continue;
                }
                return Ok(true);
            }
            let key = self.merge.key();
            let kind = key_kind(key.trailer);
            if key.trailer.seqno() <= self.snapshot && self.wanted.may_see(kind, self.merge.value())
            {
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

    /// Takes in that the entry is deleted, and moves on to where a note of another scan leads.
    async fn pass_deleted(&mut self) -> Result<()> {
        let Some(stretches) = &self.stretches else { return Ok(()) };
        if self.run.len == 0 {
            self.run.first.clear();
            self.run.first.extend_from_slice(&self.entry.user_key);
        }
        self.run.len += 1;
        if (self.run.len == 1 || self.run.len.is_multiple_of(LONG))
            && stretches.is_active()
            && let Some(end) = stretches.end_of(&self.entry.user_key, self.snapshot)
        {
            self.run.jumped = true;
            self.merge.skip_to(&end, SeqNo::MAX).await?;
        }
        Ok(())
    }

    /// Leaves a note of the keys that were passed before the entry, if they were many.
    fn end_run_at_entry(&mut self) {
        let end = std::mem::take(&mut self.entry.user_key);
        self.end_run(Some(&end));
        self.entry.user_key = end;
    }

    /// Leaves a note of the keys that were passed before `end`, the bound of the scan if it has none.
    fn end_run(&mut self, end: Option<&[u8]>) {
        let Run { first, len, jumped } = &mut self.run;
        if let Some(stretches) = &self.stretches
            && (*len >= LONG || *jumped && *len > 1)
        {
            stretches.note(first, end.unwrap_or(&self.bounds.end), self.snapshot);
        }
        (*len, *jumped) = (0, false);
    }

    /// Moves forward past every record of the entry's key.
    async fn pass_key(&mut self) -> Result<()> {
        let mut behind = std::mem::take(&mut self.entry.user_key);
        behind.push(0);
        let passed = self.merge.skip_to(&behind, SeqNo::MAX).await;
        behind.pop();
        self.entry.user_key = behind;
        passed
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
        // Versions are not for who reads plain records.
        Kind::VersionedValue | Kind::VersionedTombstone | Kind::VersionedChunked => true,
        // Whether an operand stands for anything depends on what it is merged with.
        Kind::Value | Kind::Merge => false,
        Kind::ExpiringValue | Kind::ChunkedValue => deadline_of(value).is_some_and(|d| d <= now),
    }
}
