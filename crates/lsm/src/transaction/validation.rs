//! Whether anything that a transaction has read was changed since.
//!
//! ```text
//!   sequence numbers   ---- snapshot ------------- since ----------- now --->
//!                              |   the tree is asked  | recent batches |
//!   who                        | the transaction's    | the leader,    |
//!                              | own task             | between entries|
//! ```
//!
//! The long part is the transaction's own: it asks the *tree* whether a record of what it has read
//! is newer than its snapshot. Nothing has to be kept for that: the snapshot is registered, so
//! whatever flush and compaction make of a newer write, of each key (and each removed range) the
//! newest record above the snapshot stays, tombstones included. A source whose newest record is not
//! above the snapshot is passed over unread, and that is all of the tables for a transaction that is
//! shorter than a flush; in the active memtable a key costs one hash.
//!
//! What was written while the tree was asked is seen by the leader, who alone writes: from the
//! moment a transaction notes the present (`since`) and asks the tree, leaders keep the batches
//! they apply, as bytes that are in memory anyway, and before the transaction's entry is staged its
//! reads are held against them and against the members of the leader's own group that come before.
//! So a leader never reads a table, never walks a memtable, and his work is proportional to what was
//! written during one commit.
//!
//! The batches that are kept are bounded; a transaction that they do not reach back for asks the
//! tree again for the time since, a few times at most.
//!
//! Rejected:
//! - The write sets of all recent commits until the oldest open transaction has ended (fjall, Badger):
//!   plain writes would have to record their keys as long as a transaction is open, however long
//!   that is, and with a bound old transactions must fail.
//! - Asking only the memtables (RocksDB's optimistic transactions): what was flushed meanwhile is
//!   "try again", and memtables have to be kept for it.
//! - Asking the tree from the leader: everybody would wait for the reads of one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use atoll_encoding::hash::hash64;
use atoll_env::task;
use parking_lot::Mutex;

use crate::batch::{Record, Records};
use crate::error::{Error, Result};
use crate::iter::{Advance, Direction, Source};
use crate::key::{InternalKey, SEQNO_MAX, SeqNo, Trailer};
use crate::mutants;
use crate::store::Store;
use crate::tables::ReadMode;
use crate::tombstone::Fragmented;
use crate::transaction::spans::{SpanSet, behind, single};
use crate::version::{LEVELS, TableHandle};
use crate::view::View;

/// Records of a range between two chances for others to run.
const RECORDS_PER_TURN: usize = 1024;

/// What a transaction has read, as ranges; at most so many bytes of them.
pub(crate) struct Reads {
    spans: SpanSet,
    bytes_max: usize,
}

impl Reads {
    pub(crate) fn new(bytes_max: usize) -> Reads {
        Reads { spans: SpanSet::default(), bytes_max }
    }

    /// Notes that a key was looked up.
    pub(crate) fn key(&mut self, key: &[u8]) {
        if !self.spans.contains(key) {
            self.range(key, &behind(key));
        }
    }

    /// Notes that it was seen which keys are in a range.
    pub(crate) fn range(&mut self, start: &[u8], end: &[u8]) {
        self.spans.extend(start, end);
        while self.spans.bytes() > self.bytes_max {
            let before = self.spans.len();
            // What is in between counts as read, too: safe, and cheaper to remember.
            self.spans.coarsen();
            if self.spans.len() == before {
                return;
            }
        }
    }

    /// Takes all of it.
    pub(crate) fn take(&mut self) -> SpanSet {
        std::mem::take(&mut self.spans)
    }
}

// ---- what the tree says ----

/// Returns the answer to a transaction that read a key which was changed.
pub(crate) fn conflict(user_key: &[u8]) -> Error {
    let key = user_key.get(4..).unwrap_or_default().escape_ascii();
    Error::Conflict(format!("key \"{key}\", or a range it lies in, was read and then changed"))
}

/// Fails with a conflict if a record of `reads` is newer than `since`; what is newer than the
/// present may or may not be found.
pub(crate) async fn ask_tree(store: &Store, reads: &SpanSet, since: SeqNo) -> Result<()> {
    if mutants::is("tree-not-validated") {
        return Ok(());
    }
    let (view, _) = store.pin_owned();
    for (start, end) in reads.iter() {
        let changed = match single(start, end) {
            Some(key) => key_changed(store, &view, key, since).await,
            None => range_changed(store, &view, start, end, since).await,
        };
        match changed {
            Ok(None) => {}
            Ok(Some(key)) => return Err(conflict(&key)),
            Err(e) => {
                store.tables.confirm(&view.version, &e).await;
                return Err(e);
            }
        }
    }
    Ok(())
}

/// Returns `user_key` if a record of it, or a range tombstone over it, is newer than `since`.
async fn key_changed(
    store: &Store,
    view: &View,
    user_key: &[u8],
    since: SeqNo,
) -> Result<Option<Vec<u8>>> {
    if mutants::is("keys-not-validated") {
        return Ok(None);
    }
    let covered = |set: &Fragmented| set.max_covering(user_key, SEQNO_MAX) > since;
    for memtable in &view.memtables {
        if memtable.seqnos().is_none_or(|(_, newest)| newest <= since) {
            continue;
        }
        let newer = memtable.get(user_key, SEQNO_MAX).is_some_and(|(t, _)| t.seqno() > since);
        if newer || memtable.range_tombstones().is_some_and(|set| covered(&set)) {
            return Ok(Some(user_key.to_vec()));
        }
    }
    let hash = hash64(user_key);
    let in_range = |handle: &&Arc<TableHandle>| {
        handle.desc.smallest.as_slice() <= user_key && handle.desc.ends_at_or_after(user_key)
    };
    let level0 = view.version.levels[0].iter().filter(in_range);
    let below = (1..LEVELS).filter_map(|level| view.version.covering(level, user_key));
    for handle in level0.chain(below).filter(|handle| handle.desc.seqnos.1 > since) {
        let tombstones = handle.desc.range_tombstones > 0;
        if tombstones && covered(&store.tables.open(handle).await?.range_tombstones) {
            return Ok(Some(user_key.to_vec()));
        }
        let found = store.tables.get(handle, user_key, hash, SEQNO_MAX).await?;
        if found.is_some_and(|found| found.trailer.seqno() > since) {
            return Ok(Some(user_key.to_vec()));
        }
    }
    Ok(None)
}

/// Returns a key of `[start, end)` of which a record is newer than `since`, or the start of what a
/// newer range tombstone covers of it.
async fn range_changed(
    store: &Store,
    view: &View,
    start: &[u8],
    end: &[u8],
    since: SeqNo,
) -> Result<Option<Vec<u8>>> {
    if mutants::is("ranges-not-validated") {
        return Ok(None);
    }
    let covered = |set: &Fragmented| {
        let newer = set.clipped(start, Some(end)).find(|f| f.covering(SEQNO_MAX) > since);
        newer.map(|fragment| fragment.start.to_vec())
    };
    for memtable in &view.memtables {
        let Some((_, newest)) = memtable.seqnos().filter(|(_, newest)| *newest > since) else {
            continue;
        };
        if let Some(key) = memtable.range_tombstones().and_then(|set| covered(&set)) {
            return Ok(Some(key));
        }
        let source = Source::memtable(memtable.iter(), newest);
        if let Some(key) = newer_in(source, start, end, since).await? {
            return Ok(Some(key));
        }
    }
    for handle in view.version.levels.iter().flatten() {
        let desc = &handle.desc;
        let meets = desc.smallest.as_slice() < end && desc.ends_at_or_after(start);
        if desc.seqnos.1 <= since || !meets {
            continue;
        }
        if desc.range_tombstones > 0
            && let Some(key) = covered(&store.tables.open(handle).await?.range_tombstones)
        {
            return Ok(Some(key));
        }
        let iter = store.tables.iter(handle, ReadMode::Scan).await?;
        if let Some(key) = newer_in(Source::table(iter, desc.seqnos.1), start, end, since).await? {
            return Ok(Some(key));
        }
    }
    Ok(None)
}

/// Returns the first key of a source in `[start, end)` with a record newer than `since`.
async fn newer_in(
    mut source: Source,
    start: &[u8],
    end: &[u8],
    since: SeqNo,
) -> Result<Option<Vec<u8>>> {
    source.seek(InternalKey::new(start, Trailer::NEWEST)).await?;
    let mut records = 0usize;
    while source.valid() {
        let key = source.key();
        if key.user_key >= end {
            break;
        }
        if key.trailer.seqno() > since {
            return Ok(Some(key.user_key.to_vec()));
        }
        if source.advance(Direction::Forward) == Advance::NeedsBlock {
            source.load().await?;
        }
        records += 1;
        if records.is_multiple_of(RECORDS_PER_TURN) {
            task::yield_now().await;
        }
    }
    Ok(None)
}

// ---- what the leader says ----

/// Transactions that are between noting the present and the answer to their commit.
#[derive(Default)]
pub(crate) struct Committing {
    /// Counted by the present that they noted.
    since: Mutex<BTreeMap<SeqNo, usize>>,
}

impl Committing {
    /// Notes the present, read by `present`: leaders keep what they apply from there on.
    pub(crate) fn begin(&self, present: impl FnOnce() -> SeqNo) -> Since<'_> {
        // Read under the lock: a leader who finds nobody here has published all that he applied.
        let mut all = self.since.lock();
        let since = present();
        *all.entry(since).or_default() += 1;
        Since { committing: self, since }
    }

    fn oldest(&self) -> Option<SeqNo> {
        self.since.lock().keys().next().copied()
    }
}

/// One of them; dropped when it is answered.
pub(crate) struct Since<'c> {
    committing: &'c Committing,
    since: SeqNo,
}

impl Since<'_> {
    pub(crate) fn seqno(&self) -> SeqNo {
        self.since
    }
}

impl Drop for Since<'_> {
    fn drop(&mut self) {
        let mut all = self.committing.since.lock();
        if let Some(count) = all.get_mut(&self.since) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.since);
            }
        }
    }
}

/// The batches that were applied lately. The leader's.
#[derive(Default)]
pub(crate) struct Recent {
    /// Payloads with their first sequence numbers, ascending. The present is always the last number
    /// of a batch, so a batch is either wholly behind it or not at all.
    batches: VecDeque<(SeqNo, Vec<u8>)>,
    bytes: usize,
    /// Everything that was applied above it is in `batches`.
    complete_above: SeqNo,
}

impl Recent {
    /// Takes in the batches of a group that was applied; forgets those that nobody needs, and the
    /// oldest beyond `bytes_max`. `last` is the last sequence number that was applied.
    pub(crate) fn applied<'p>(
        &mut self,
        committing: &Committing,
        group: impl Iterator<Item = (SeqNo, &'p [u8])>,
        last: SeqNo,
        bytes_max: usize,
    ) {
        let Some(oldest) = committing.oldest() else {
            return self.written_past(last);
        };
        for (seqno, payload) in group {
            self.bytes += payload.len();
            self.batches.push_back((seqno, payload.to_vec()));
        }
        let unwanted = |first: &(SeqNo, Vec<u8>), bytes| first.0 <= oldest || bytes > bytes_max;
        while self.batches.front().is_some_and(|first| unwanted(first, self.bytes)) {
            if let Some((seqno, payload)) = self.batches.pop_front() {
                self.bytes -= payload.len();
                self.complete_above = seqno;
            }
        }
    }

    /// Notes that something else than batches was written, up to `last`: it has to be looked for in the
    /// tree.
    pub(crate) fn written_past(&mut self, last: SeqNo) {
        self.batches.clear();
        (self.bytes, self.complete_above) = (0, last);
    }
}

/// What a transaction's entry requires of those before it: nothing it has read is changed by one
/// above `since`.
pub(crate) struct Condition {
    pub(crate) reads: SpanSet,
    pub(crate) since: SeqNo,
    /// The batches that were kept do not reach back so far: nothing is known, ask again.
    pub(crate) overtaken: AtomicBool,
}

impl Condition {
    /// Decides, given the recent batches and the payloads of the group that are staged but not
    /// applied yet. Fails with a conflict, also if it cannot decide.
    pub(crate) fn check<'p>(
        &self,
        recent: &'p Recent,
        staged: impl Iterator<Item = &'p [u8]>,
    ) -> Result<()> {
        if self.since < recent.complete_above {
            self.overtaken.store(true, Ordering::Release);
            return Err(Error::Conflict("too much was written meanwhile".to_owned()));
        }
        let (ignores_recent, ignores_group) =
            (mutants::is("recent-not-validated"), mutants::is("group-not-validated"));
        let later = recent.batches.iter().rev().take_while(|(first, _)| *first > self.since);
        let later = later.map(|(_, payload)| &payload[..]).filter(|_| !ignores_recent);
        for payload in later.chain(staged.filter(|_| !ignores_group)) {
            self.admits(payload)?;
        }
        Ok(())
    }

    fn admits(&self, payload: &[u8]) -> Result<()> {
        let damaged = |e| Error::Stopped(format!("a batch in memory does not decode: {e}"));
        for record in Records::new(payload).map_err(damaged)? {
            let (key, changed) = match record.map_err(damaged)? {
                Record::Insert { key, .. }
                | Record::Merge { key, .. }
                | Record::Remove { key }
                | Record::InsertVersion { key, .. }
                | Record::RemoveVersion { key, .. } => (key, self.reads.containing(key)),
                Record::RemoveRange { start, end } => {
                    let met = self.reads.meets(start, end);
                    (start, met.then_some((start, end)))
                }
            };
            let changed = changed.filter(|(start, end)| match single(start, end) {
                Some(_) => !mutants::is("keys-not-validated"),
                None => !mutants::is("ranges-not-validated"),
            });
            if changed.is_some() {
                return Err(conflict(key));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(change: impl FnOnce(&mut crate::Batch) -> &mut crate::Batch) -> Vec<u8> {
        let mut batch = crate::Batch::new();
        change(&mut batch);
        batch.into_payload().unwrap().bytes
    }

    fn condition(reads: &[(&[u8], &[u8])], since: SeqNo) -> Condition {
        let mut spans = SpanSet::default();
        for (start, end) in reads {
            spans.extend(start, end);
        }
        Condition { reads: spans, since, overtaken: AtomicBool::new(false) }
    }

    #[test]
    fn a_condition_sees_recent_batches_and_its_own_group() {
        let insert = payload(|b| b.insert_raw(1, b"k", b"v", None));
        let clear = payload(|b| b.clear_raw(1));
        let reads: &[(&[u8], &[u8])] = &[(b"\0\0\0\x01k", b"\0\0\0\x01k\0")];
        let committing = Committing::default();
        let since = committing.begin(|| 10);
        let mut recent = Recent::default();
        recent.applied(&committing, [(9, &insert[..]), (20, &insert[..])].into_iter(), 20, 1000);
        assert_eq!(recent.batches.len(), 1, "who noted 10 does not need what came before");
        let none = || std::iter::empty();
        let decide = |since| condition(reads, since).check(&recent, none()).is_ok();
        assert!(decide(20) && !decide(19) && !decide(10));
        assert!(condition(&[(b"\0\0\0\x01l", b"\0\0\0\x02")], 10).check(&recent, none()).is_ok());
        for staged in [&insert, &clear] {
            let in_group = condition(reads, 20).check(&recent, std::iter::once(&staged[..]));
            assert!(matches!(in_group, Err(Error::Conflict(_))));
        }
        drop(since);
        recent.applied(&committing, std::iter::empty(), 30, 1000);
        assert!(recent.batches.is_empty(), "nobody commits");
        let late = condition(&[], 29);
        assert!(late.check(&recent, none()).is_err() && late.overtaken.load(Ordering::Acquire));
    }

    #[test]
    fn batches_beyond_the_limit_are_forgotten_and_that_is_known() {
        let committing = Committing::default();
        let _since = committing.begin(|| 0);
        let mut recent = Recent::default();
        let group = (1..=10).map(|n| (n, &[0; 100][..]));
        recent.applied(&committing, group, 10, 350);
        assert_eq!((recent.batches.len(), recent.bytes, recent.complete_above), (3, 300, 7));
    }

    #[test]
    fn reads_beyond_the_limit_become_coarser_and_lose_nothing() {
        let mut reads = Reads::new(1000);
        let keys: Vec<Vec<u8>> = (0..500u32)
            .map(|n| format!("\0\0\0\x01{:05}", n * 7919 % 10_007).into_bytes())
            .collect();
        for key in &keys {
            reads.key(key);
            assert!(reads.spans.bytes() <= 1000);
        }
        let spans = reads.take();
        assert!(keys.iter().all(|key| spans.contains(key)));
        assert!(spans.len() > 5, "it is not one range of everything: {}", spans.len());
    }
}
