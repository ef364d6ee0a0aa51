//! Entries of a group's log, in memory and as they are logged.
//!
//! ```text
//!   logged   | kind u8 | payload ...   to the end |
//! ```
//!
//! The payload is one reference-counted allocation from the proposal to the state machine: the
//! entry cache, messages to peers and what is handed out for the log and for applying all point
//! into it. The kind byte is a part of its own ([`Entry::log_parts`]), so that logging an entry
//! does not copy it either.
//!
//! The format is described in docs/formats/consensus.md.

use bytes::Bytes;
use raft::eraftpb;

use super::members::{Change, decode_changes};
use atoll_encoding::Malformed;

/// What an entry is for. The numbers are on disk and on the wire: do not change them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// A payload for the state machine.
    Normal = 1,
    /// Nothing: a new leader commits one so that what came before it is committed.
    Empty = 2,
    /// A change of the group's members; the owner gives it to `apply_change`.
    Change = 3,
}

impl EntryKind {
    pub(super) fn from_byte(byte: u8) -> Option<EntryKind> {
        match byte {
            1 => Some(EntryKind::Normal),
            2 => Some(EntryKind::Empty),
            3 => Some(EntryKind::Change),
            _ => None,
        }
    }
}

/// An entry of a group's log. Cheap to clone: the payload is shared.
#[derive(Clone, PartialEq)]
#[repr(transparent)]
pub struct Entry(pub(super) eraftpb::Entry);

impl Entry {
    /// Makes an entry from its parts. An empty payload makes it [`EntryKind::Empty`].
    pub(super) fn new(index: u64, term: u64, change: bool, payload: Bytes) -> Entry {
        let mut entry = eraftpb::Entry { index, term, data: payload, ..Default::default() };
        if change {
            entry.entry_type = eraftpb::EntryType::EntryConfChangeV2;
        }
        Entry(entry)
    }

    /// Decodes what [`Entry::log_parts`] gave to the log. The payload is not copied.
    pub fn decode(index: u64, term: u64, logged: impl Into<Bytes>) -> Result<Entry, Malformed> {
        let logged: Bytes = logged.into();
        let malformed = |expected| Malformed { offset: 0, expected };
        let kind = logged.first().copied().and_then(EntryKind::from_byte);
        let kind = kind.ok_or(malformed("the kind of an entry"))?;
        let entry = Entry::new(index, term, kind == EntryKind::Change, logged.slice(1..));
        if entry.kind() != kind {
            return Err(Malformed { offset: 1, expected: "a payload unless the entry is empty" });
        }
        if kind == EntryKind::Change {
            entry.changes()?;
        }
        Ok(entry)
    }

    /// Returns its place in the group's log, from 1.
    pub fn index(&self) -> u64 {
        self.0.index
    }

    /// Returns the term of the leader that proposed it.
    pub fn term(&self) -> u64 {
        self.0.term
    }

    /// Returns what it is for.
    pub fn kind(&self) -> EntryKind {
        if self.0.entry_type != eraftpb::EntryType::EntryNormal {
            EntryKind::Change
        } else if self.0.data.is_empty() {
            EntryKind::Empty
        } else {
            EntryKind::Normal
        }
    }

    /// Returns what was proposed.
    pub fn payload(&self) -> &Bytes {
        &self.0.data
    }

    /// Returns what is logged, as the parts it is the concatenation of.
    pub fn log_parts(&self) -> [&[u8]; 2] {
        const KINDS: [u8; 4] = [0, 1, 2, 3];
        let kind = self.kind() as usize;
        [&KINDS[kind..=kind], &self.0.data]
    }

    /// Returns the member changes of a [`EntryKind::Change`].
    pub(super) fn changes(&self) -> Result<Vec<Change>, Malformed> {
        decode_changes(&self.0.data)
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{} {:?}", self.index(), self.term(), self.kind())?;
        if self.kind() == EntryKind::Change {
            return match self.changes() {
                Ok(changes) => write!(f, " {changes:?}"),
                Err(error) => write!(f, " {error}"),
            };
        }
        write!(f, " {} bytes", self.payload().len())
    }
}

/// Wraps or unwraps a list of entries in place.
pub(super) fn wrap(entries: Vec<eraftpb::Entry>) -> Vec<Entry> {
    entries.into_iter().map(Entry).collect()
}
