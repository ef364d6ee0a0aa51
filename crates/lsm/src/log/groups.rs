//! What is live: for each group the range of its entries, its last state, and just enough to tell
//! a live entry from a dead one that still lies in an old segment.
//!
//! An entry in the lane is live if nothing after it took its place:
//!
//! ```text
//!   lane      5@1   6@1   7@1   6@2          (index@term)
//!   live       x                 x           6@2 dropped 6@1 and 7@1
//! ```
//!
//! Keeping the place of every entry would tell, but costs memory for each of them, and a store's
//! log holds millions. Overwritten suffixes are rare, so the *overwrites* are kept instead: entry
//! `i`, first appended at `p`, is dead if an overwrite at a later position has an index at or below
//! `i`. Groups whose owner reads entries back are *indexed*: they pay for the place of each entry.

use std::collections::BTreeMap;

use super::EntryId;
use crate::error::{Error, Result};

/// Term, vote and commit index of a group: what consensus must not forget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupState {
    /// The current term.
    pub term: u64,
    /// Who got this member's vote in that term, 0 for nobody.
    pub vote: u64,
    /// Highest index known to be committed. May lag behind the truth.
    pub commit: u64,
}

/// Where a copy of an entry lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    /// Lane position of its first frame.
    pub position: u64,
    /// Lane position behind its last frame.
    pub end: u64,
    /// Term of the entry.
    pub term: u64,
}

/// What is known of one group.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub state: GroupState,
    /// Lowest index that is still needed; entries below are released.
    pub first: u64,
    /// One above the last index.
    pub next: u64,
    /// Term of the last entry, 0 if unknown.
    pub last_term: u64,
    /// Term of entry `first - 1`, which is gone, 0 if unknown: consensus compares it with what others
    /// have before it appends entry `first`.
    pub term_before: u64,
    /// Lowest index whose original append is in the lane and was not dropped by an overwrite.
    pub lowest_original: Option<u64>,
    /// Index from which on no original append is missing before the last one.
    pub unbroken_from: u64,
    /// Position and index of appends that dropped entries, ascending by position.
    overwrites: Vec<(u64, u64)>,
    /// Position of the last `state` frame.
    pub state_position: Option<u64>,
    /// Place of each live entry, if the group is indexed.
    pub index: Option<BTreeMap<u64, Location>>,
}

impl Group {
    /// Starts an unknown group. Its first index is 1 until a release says otherwise.
    pub fn new(indexed: bool) -> Group {
        Group {
            state: GroupState::default(),
            first: 1,
            next: 1,
            last_term: 0,
            term_before: 0,
            lowest_original: None,
            unbroken_from: 1,
            overwrites: Vec::new(),
            state_position: None,
            index: indexed.then(BTreeMap::new),
        }
    }

    /// Refuses an append that would leave a gap, touch released entries, or go back in term.
    pub fn check_append(&self, id: EntryId) -> Result<()> {
        let refuse = |why: String| Err(Error::InvalidInput(format!("append {id}: {why}")));
        if id.index < self.first || id.index > self.next {
            return refuse(format!("the next index is {}, the first {}", self.next, self.first));
        }
        // The entry that stays before this one. (Not the one appended before it: a new leader may
        // overwrite an uncommitted entry of term 4 by one of term 3.)
        let before = self.term(id.index.saturating_sub(1)).unwrap_or(0);
        if id.term < before {
            return refuse(format!("the entry before it has term {before}"));
        }
        Ok(())
    }

    /// Records that an entry was appended; used while writing, after [`Group::check_append`], and
    /// while reading back. Reading back starts in the middle of a group's history, so an index may
    /// be higher than what was seen leads to expect; whether entries are missing shows at the end.
    pub fn append(&mut self, id: EntryId, location: Location) {
        let overwrites = id.index < self.next;
        if overwrites {
            self.overwrites.push((location.position, id.index));
        }
        if self.lowest_original.is_none() || id.index > self.next {
            self.unbroken_from = id.index;
        }
        self.unbroken_from = self.unbroken_from.min(id.index);
        self.lowest_original = Some(self.lowest_original.map_or(id.index, |l| l.min(id.index)));
        self.next = id.index.saturating_add(1);
        self.last_term = id.term;
        if let Some(index) = &mut self.index {
            if overwrites {
                index.split_off(&id.index);
            }
            if id.index >= self.first {
                index.insert(id.index, location);
            }
        }
    }

    /// Records that an entry was copied forward to `location`.
    pub fn rewrite(&mut self, id: EntryId, origin: u64, location: Location) {
        if id.index >= self.next {
            // Reading back begins after the original. The entry was live when it was copied.
            self.next = id.index.saturating_add(1);
            self.last_term = id.term;
        }
        let live = self.is_live(id.index, origin);
        if let Some(index) = self.index.as_mut().filter(|_| live) {
            index.insert(id.index, location);
        }
    }

    /// Records a state at `position`, and the first needed index with the term before it (0 if the
    /// writer did not know).
    pub fn set_state(&mut self, state: GroupState, (first, term): (u64, u64), position: u64) {
        self.state = state;
        self.state_position = Some(position);
        self.release(first);
        if term != 0 && first == self.first {
            self.term_before = term;
            if self.next == self.first {
                self.last_term = term;
            }
        }
    }

    /// Returns the term of an entry, as far as it is known: of all of them and the one before the
    /// first in an indexed group, else of the last one and the one before the first.
    pub fn term(&self, index: u64) -> Option<u64> {
        let term = match &self.index {
            _ if index.saturating_add(1) == self.first => self.term_before,
            Some(places) => places.get(&index).map_or(0, |place| place.term),
            None if index.saturating_add(1) == self.next => self.last_term,
            None => 0,
        };
        (term != 0).then_some(term)
    }

    /// Forgets entries below `first`.
    pub fn release(&mut self, first: u64) {
        if first <= self.first {
            return;
        }
        self.term_before = if first > self.next { 0 } else { self.term(first - 1).unwrap_or(0) };
        self.first = first;
        if first > self.next {
            // The owner took a snapshot from elsewhere: what was here ends before it.
            self.next = first;
            self.last_term = 0;
        }
        if let Some(index) = &mut self.index {
            *index = index.split_off(&first);
        }
    }

    /// Returns whether entry `index`, first appended at `origin`, is needed and was not overwritten.
    pub fn is_live(&self, index: u64, origin: u64) -> bool {
        (self.first..self.next).contains(&index)
            && !self.overwrites.iter().any(|&(at, low)| at > origin && low <= index)
    }

    /// Forgets overwrites whose victims are gone: what they dropped lay before them.
    pub fn forget_overwrites_below(&mut self, position: u64) {
        self.overwrites.retain(|&(at, _)| at >= position);
    }
}
