//! The log as the consensus library sees it: entries in memory, terms of all entries, and a list
//! of what has to be read from disk.
//!
//! ```text
//!   index    first-1   first ........ applied | applied+1 ......... last
//!   terms    known, as runs: (first-1, 3) (210, 4) (388, 7)
//!   entries            on disk only ...[ kept ][ always in memory       ]
//!                                       bounded
//! ```
//!
//! The library reads entries synchronously. Nothing here waits for a disk: an entry above the
//! applied index is always in memory, and so are the terms of all entries, which take a few bytes
//! for each leader the log has seen. Below the applied index entries stay as long as their bytes
//! fit in a budget, and a group without followers keeps none. A follower that lags further
//! behind is served by asking the owner: [`Cache::entries`] notes the range, the library forgets
//! the attempt, and repeats it when the entries were handed in ([`Cache::stash`]).

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use raft::eraftpb::Entry as RaftEntry;
use raft::eraftpb::{ConfState, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, StorageError};

use super::entry::Entry;

/// Most entries asked for at once.
const FETCH_MAX: u64 = 256;
/// Most attempts that wait for one range.
const WAITERS_MAX: usize = 16;

/// Terms of a log as runs: where each term begins, ascending in both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Terms(VecDeque<(u64, u64)>);

impl Terms {
    /// Starts at the entry before the first one.
    pub fn new(index: u64, term: u64) -> Terms {
        Terms(VecDeque::from([(index, term)]))
    }

    pub fn push(&mut self, index: u64, term: u64) {
        if self.0.back().is_none_or(|&(_, last)| last != term) {
            self.0.push_back((index, term));
        }
    }

    pub fn get(&self, index: u64) -> Option<u64> {
        match self.0.back() {
            Some(&(from, term)) if index >= from => Some(term),
            _ => {
                let above = self.0.partition_point(|&(from, _)| from <= index);
                above.checked_sub(1).map(|at| self.0[at].1)
            }
        }
    }

    /// Forgets the terms at and above `index`.
    pub fn truncate(&mut self, index: u64) {
        while self.0.back().is_some_and(|&(from, _)| from >= index) {
            self.0.pop_back();
        }
    }

    /// Forgets the terms below `index`.
    pub fn release(&mut self, index: u64) {
        while self.0.get(1).is_some_and(|&(from, _)| from <= index) {
            self.0.pop_front();
        }
        if let Some((from, _)) = self.0.front_mut() {
            *from = (*from).max(index);
        }
    }
}

/// A range of entries that attempts wait for.
struct Wanted {
    range: Range<u64>,
    /// The owner was told.
    told: bool,
    attempts: Vec<GetEntriesContext>,
}

/// What attempts to read left behind. Apart, because the library reads through `&self`.
#[derive(Default)]
struct Requests {
    wanted: Vec<Wanted>,
    /// Followers that need a snapshot, for the owner to build one.
    snapshots: Vec<u64>,
}

/// The log of one group in memory.
pub(super) struct Cache {
    hard_state: HardState,
    conf_state: ConfState,
    first: u64,
    last: u64,
    terms: Terms,
    /// Contiguous, up to `last`.
    entries: VecDeque<RaftEntry>,
    /// Bytes of `entries`.
    bytes: usize,
    /// Of these, up to the applied index.
    applied_bytes: usize,
    applied: u64,
    /// Entries the owner read, during the call that hands them in.
    stash: Vec<RaftEntry>,
    /// Every member knows the first members: they never changed.
    founded: bool,
    /// Snapshots that may be sent, by follower.
    offered: BTreeMap<u64, Snapshot>,
    requests: RefCell<Requests>,
}

impl Cache {
    /// Starts with nothing above `applied`; `terms` covers everything up to it.
    pub fn new(
        hard_state: HardState,
        conf_state: ConfState,
        first: u64,
        applied: u64,
        terms: Terms,
    ) -> Cache {
        Cache {
            hard_state,
            conf_state,
            first,
            last: applied,
            terms,
            entries: VecDeque::new(),
            bytes: 0,
            applied_bytes: 0,
            applied,
            stash: Vec::new(),
            founded: false,
            offered: BTreeMap::new(),
            requests: RefCell::default(),
        }
    }

    pub fn first(&self) -> u64 {
        self.first
    }

    /// Says that the members of the log's beginning are those of now.
    pub fn found(&mut self) {
        self.founded = true;
    }

    /// Says that they are not any more.
    pub fn members_changed(&mut self) {
        self.founded = false;
    }

    /// Returns the memory that unapplied entries hold.
    pub fn unapplied_bytes(&self) -> usize {
        self.bytes - self.applied_bytes
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends entries that were handed out for the log; the first may overwrite.
    pub fn append(&mut self, entries: &[RaftEntry]) {
        let Some(first) = entries.first() else { return };
        if first.index <= self.last {
            self.truncate(first.index);
        }
        for entry in entries {
            debug_assert_eq!(entry.index, self.last + 1, "entries are handed out in order");
            self.last = entry.index;
            self.terms.push(entry.index, entry.term);
            self.bytes += weight(entry);
            self.entries.push_back(entry.clone());
        }
    }

    fn truncate(&mut self, index: u64) {
        assert!(index > self.applied, "what was applied is not overwritten");
        while self.entries.back().is_some_and(|entry| entry.index >= index) {
            self.bytes -= self.entries.pop_back().map_or(0, |entry| weight(&entry));
        }
        self.last = index - 1;
        self.terms.truncate(index);
    }

    /// Replaces the log by a snapshot of everything up to `index`.
    pub fn install(&mut self, index: u64, term: u64) {
        self.entries.clear();
        (self.bytes, self.applied_bytes) = (0, 0);
        (self.first, self.last, self.applied) = (index + 1, index, index);
        self.terms = Terms::new(index, term);
        self.offered.clear();
        *self.requests.borrow_mut() = Requests::default();
    }

    /// Says that entries up to `index` are applied, and drops the oldest of them until the rest
    /// takes at most `keep` bytes.
    pub fn applied(&mut self, index: u64, keep: usize) {
        if let Some(front) = self.entries.front() {
            // The entries in question are at the front unless many applied ones are kept.
            let from = (self.applied + 1).max(front.index) - front.index;
            let to = (index + 1).saturating_sub(front.index);
            for at in from..to {
                self.applied_bytes += weight(&self.entries[at as usize]);
            }
        }
        self.applied = index;
        while self.applied_bytes > keep {
            let Some(entry) = self.entries.pop_front() else { break };
            self.bytes -= weight(&entry);
            self.applied_bytes -= weight(&entry);
        }
    }

    /// Says that the log below `first` is gone.
    pub fn release(&mut self, first: u64) {
        if first <= self.first {
            return;
        }
        while self.entries.front().is_some_and(|entry| entry.index < first) {
            let weight = self.entries.pop_front().map_or(0, |entry| weight(&entry));
            self.bytes -= weight;
            self.applied_bytes -= weight;
        }
        self.first = first;
        self.terms.release(first - 1);
    }

    /// Returns a range that the owner should read, once.
    pub fn wanted(&mut self) -> Option<Range<u64>> {
        let wanted = self.requests.get_mut().wanted.iter_mut().find(|wanted| !wanted.told)?;
        wanted.told = true;
        Some(wanted.range.clone())
    }

    /// Takes the attempts that wait for `range`, with the entries in reach until
    /// [`Cache::unstash`].
    pub fn stash(&mut self, range: &Range<u64>, entries: Vec<RaftEntry>) -> Vec<GetEntriesContext> {
        let wanted = &mut self.requests.get_mut().wanted;
        let Some(at) = wanted.iter().position(|wanted| wanted.range == *range) else {
            return Vec::new();
        };
        self.stash = entries;
        wanted.swap_remove(at).attempts
    }

    pub fn unstash(&mut self) {
        self.stash = Vec::new();
    }

    /// Forgets what was wanted: another leads now.
    pub fn forget_requests(&mut self) {
        self.offered.clear();
        *self.requests.get_mut() = Requests::default();
    }

    /// Takes the followers that need a snapshot.
    pub fn snapshots_wanted(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.requests.get_mut().snapshots)
    }

    pub fn has_snapshots_wanted(&self) -> bool {
        !self.requests.borrow().snapshots.is_empty()
    }

    /// Lets a snapshot be sent to a follower, at the next attempt.
    pub fn offer(&mut self, to: u64, snapshot: Snapshot) {
        self.offered.insert(to, snapshot);
    }

    pub fn withdraw(&mut self, to: u64) {
        self.offered.remove(&to);
    }

    /// Copies entries from `low` up to `high` as far as they are in memory and within `max` bytes,
    /// but at least one.
    fn in_memory(&self, low: u64, high: u64, max: Option<u64>) -> Option<Vec<RaftEntry>> {
        let copy = |entries: &mut dyn Iterator<Item = &RaftEntry>, room: u64| {
            let mut out = Vec::with_capacity(room.min(high - low) as usize);
            let mut bytes = 0;
            for entry in entries.take((high - low) as usize) {
                bytes += weight(entry) as u64;
                if !out.is_empty() && max.is_some_and(|max| bytes > max) {
                    break;
                }
                out.push(entry.clone());
            }
            out
        };
        if let Some(front) = self.entries.front()
            && front.index <= low
        {
            let from = (low - front.index) as usize;
            let room = (self.entries.len() - from) as u64;
            return Some(copy(&mut self.entries.range(from..), room));
        }
        let from = self.stash.iter().position(|entry| entry.index == low)?;
        let room = (self.stash.len() - from) as u64;
        Some(copy(&mut self.stash[from..].iter(), room))
    }
}

fn weight(entry: &RaftEntry) -> usize {
    size_of::<Entry>() + entry.data.len()
}

impl raft::Storage for Cache {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<RaftEntry>> {
        if low < self.first {
            return Err(StorageError::Compacted.into());
        }
        // A replica that has nothing needs the first members, too, and those are not in the log:
        // it gets a snapshot, unless it was among them. (Before anything is applied there are only the first members.)
        if low == 1 && self.applied > 0 && !self.founded && context.can_async() {
            return Err(StorageError::Compacted.into());
        }
        if let Some(entries) = self.in_memory(low, high, max_size.into()) {
            return Ok(entries);
        }
        if !context.can_async() {
            return Err(StorageError::Unavailable.into());
        }
        let end = self.entries.front().map_or(self.last + 1, |front| front.index);
        let range = low..high.min(end).min(low + FETCH_MAX);
        let wanted = &mut self.requests.borrow_mut().wanted;
        match wanted.iter_mut().find(|wanted| wanted.range == range) {
            // Beyond that an attempt is forgotten; the follower's next answer repeats it.
            Some(wanted) if wanted.attempts.len() >= WAITERS_MAX => {}
            Some(wanted) => wanted.attempts.push(context),
            None => wanted.push(Wanted { range, told: false, attempts: vec![context] }),
        }
        Err(StorageError::LogTemporarilyUnavailable.into())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index > self.last {
            return Err(StorageError::Unavailable.into());
        }
        self.terms.get(index).ok_or(StorageError::Compacted.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        match self.offered.get(&to) {
            Some(snapshot) if snapshot.get_metadata().index >= request_index => {
                Ok(snapshot.clone())
            }
            _ => {
                let snapshots = &mut self.requests.borrow_mut().snapshots;
                if !snapshots.contains(&to) {
                    snapshots.push(to);
                }
                Err(StorageError::SnapshotTemporarilyUnavailable.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_runs_that_are_cut_at_both_ends() {
        let mut terms = Terms::new(4, 2);
        for (index, term) in [(5, 2), (6, 2), (7, 5), (8, 5), (9, 6)] {
            terms.push(index, term);
        }
        let all = |terms: &Terms| (3..10).map(|index| terms.get(index)).collect::<Vec<_>>();
        let [t2, t5, t6] = [Some(2), Some(5), Some(6)];
        assert_eq!(all(&terms), [None, t2, t2, t2, t5, t5, t6]);
        terms.release(6);
        assert_eq!(all(&terms), [None, None, None, t2, t5, t5, t6]);
        terms.truncate(8);
        terms.push(8, 7);
        assert_eq!(all(&terms), [None, None, None, t2, t5, Some(7), Some(7)]);
        terms.release(8);
        assert_eq!(terms, Terms::new(8, 7));
    }
}
