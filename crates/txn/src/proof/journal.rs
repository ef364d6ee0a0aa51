//! The journal: what happened, as the programs saw it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use atoll_mvcc::Timestamp;
use atoll_mvcc::request::{Isolation, Key, Span};

use super::Moment;
use crate::{Abort, Doubt};

/// A value: unique in its schedule.
pub type Value = Vec<u8>;
/// What a transaction has written so far.
pub type Own = BTreeMap<Key, Option<Value>>;

/// What kind of transaction it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An ordinary one.
    Ordinary(Isolation),
    /// One that reads at a chosen moment.
    Stale,
    /// A command of the fast lane.
    Fast,
}

/// Something that a transaction read.
#[derive(Clone, Debug)]
pub enum Read {
    /// One key, at a moment.
    Key {
        /// When.
        at: Timestamp,
        /// Which.
        key: Key,
        /// What was found.
        value: Option<Value>,
    },
    /// A range, at a moment.
    Scan {
        /// When.
        at: Timestamp,
        /// Which.
        span: Span,
        /// From the end.
        reverse: bool,
        /// What was found: all rows, or the first ones.
        rows: Vec<(Key, Value)>,
        /// There were no more.
        complete: bool,
        /// What the transaction had written by then.
        own: Own,
    },
    /// One key, under a lock.
    Locked {
        /// Which.
        key: Key,
        /// What was found.
        value: Option<Value>,
    },
}

/// What a program was told in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Nothing: its coordinator died.
    Nothing,
    /// It committed.
    Committed(Timestamp),
    /// It did not.
    Aborted(Abort),
    /// It was rolled back or could not go on, before any commit.
    GivenUp,
    /// Nobody knows.
    Unknown(Doubt),
    /// Nobody knows, and nobody can be asked (fast lane).
    Lost,
}

/// One transaction.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What it was.
    pub kind: Kind,
    /// The moment of its reads, in the end.
    pub read_ts: Option<Timestamp>,
    /// Its reads, in order.
    pub reads: Vec<Read>,
    /// Its writes, as they were when it committed.
    pub writes: Own,
    /// It locked all of its keys in one call and nothing else.
    pub locked_at_once: bool,
    /// It has no other reads and writes than under these locks, and all of them on one shard.
    pub locked_all: bool,
    /// When it happened, in the end, as far as it is known.
    pub moment: Option<Moment>,
    /// For a command that did not wait for those of its client before it: which client, and which
    /// of its commands it was.
    pub place: Option<(usize, usize)>,
    /// When it began, by the journal's clock.
    pub start: u64,
    /// When its program was told.
    pub end: Option<u64>,
    /// What.
    pub told: Told,
}

/// All transactions of a schedule.
#[derive(Default)]
pub struct Journal {
    clock: Cell<u64>,
    values: Cell<u64>,
    entries: RefCell<Vec<Entry>>,
    wrong: RefCell<Vec<String>>,
}

impl Journal {
    /// Begins an entry; returns its number.
    pub fn begin(&self, kind: Kind) -> usize {
        let entry = Entry {
            kind,
            read_ts: None,
            reads: Vec::new(),
            writes: Own::new(),
            locked_at_once: false,
            locked_all: false,
            moment: None,
            place: None,
            start: self.tick(),
            end: None,
            told: Told::Nothing,
        };
        self.entries.borrow_mut().push(entry);
        self.entries.borrow().len() - 1
    }

    /// Returns a value that nobody else writes.
    pub fn value(&self) -> Value {
        self.values.set(self.values.get() + 1);
        format!("v{}", self.values.get()).into_bytes()
    }

    /// Changes an entry.
    pub fn with<R>(&self, entry: usize, change: impl FnOnce(&mut Entry) -> R) -> R {
        change(&mut self.entries.borrow_mut()[entry])
    }

    /// Ends an entry.
    pub fn tell(&self, entry: usize, told: Told) {
        let end = self.tick();
        self.with(entry, |entry| {
            entry.end = Some(end);
            entry.told = told;
        });
    }

    /// Notes something that must not be, seen at once.
    pub fn is_wrong(&self, what: String) {
        self.wrong.borrow_mut().push(what);
    }

    /// Returns what was seen at once.
    pub fn wrongs(&self) -> Vec<String> {
        self.wrong.borrow().clone()
    }

    /// Returns all entries.
    pub fn entries(&self) -> Vec<Entry> {
        self.entries.borrow().clone()
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }
}
