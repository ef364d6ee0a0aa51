//! What a transaction has written and not committed, for its own eyes and for the batch.
//!
//! Only the outcome is kept, not the way to it: the last write of each key with what was merged onto it
//! since (the operands one by one: what they make depends on their deadlines), and the ranges whose
//! older contents are gone. A range that is removed takes the writes in it with it, so whatever is
//! in the map came after:
//!
//! ```text
//!   insert b, remove [a,d), insert c      map      c = ...          the batch: remove [a,d)
//!                                         removed  [a,d)                       insert c
//! ```
//!
//! # Savepoints
//! While there are any, each write leaves behind what takes it back. Rolling back walks that list
//! from its end. A savepoint that is released leaves the list to the one before it.
//!
//! Rejected: the batch's bytes with an index over them (RocksDB's `WriteBatchWithIndex`). Rolling
//! back is cheaper there, but a key that is written often is kept, indexed and committed as often,
//! and a range that is removed hides the older entries of the batch only by comparing numbers at
//! each read.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::batch::{Batch, value_arena_bytes};
use crate::compaction::stream::deadline_of;
use crate::error::{Error, Result};
use crate::iter::Direction;
use crate::iter::scan::{Bounds, is_dead, key_kind};
use crate::key::{Kind, Trailer};
use crate::keyspace::check_key;
use crate::memtable::Memtable;
use crate::merge::Operand;
use crate::options::VALUE_LEN_MAX;
use crate::read::Stored;
use crate::slice::Slice;
use crate::store::Store;
use crate::transaction::spans::{Span, SpanSet};

/// Most bytes that a record of a batch takes beside its key, value and deadline: kind and lengths.
const RECORD_OVERHEAD: usize = 12;

/// What the transaction has made of a key.
#[derive(Clone)]
pub(crate) struct Write {
    base: Base,
    /// What was merged onto it since, oldest first.
    operands: Vec<Operand>,
}

#[derive(Clone)]
enum Base {
    /// What the snapshot sees: there are only operands.
    Theirs,
    Put(Stored),
    Removed,
}

impl Write {
    fn new(base: Base) -> Write {
        Write { base, operands: Vec::new() }
    }

    /// Returns what it has put there, if that is alive at `now`.
    pub(crate) fn alive(&self, now: u64) -> Option<&Stored> {
        match &self.base {
            Base::Put(stored) => {
                (!is_dead(key_kind(stored.trailer), &stored.value, now)).then_some(stored)
            }
            Base::Theirs | Base::Removed => None,
        }
    }

    /// Returns whether its operands are merged onto what the snapshot sees.
    pub(crate) fn is_on_theirs(&self) -> bool {
        matches!(self.base, Base::Theirs)
    }

    /// Returns what was merged onto what was put, oldest first.
    pub(crate) fn operands(&self) -> &[Operand] {
        &self.operands
    }

    /// Returns what it adds to the batch: encoded bytes, and bytes in the memtable.
    fn size(&self, key: &[u8]) -> (usize, usize) {
        let base = match &self.base {
            Base::Theirs => (0, 0),
            Base::Put(stored) => {
                let bytes = RECORD_OVERHEAD + key.len() + stored.value.len();
                (bytes, value_arena_bytes(key.len(), stored.len()))
            }
            Base::Removed => (RECORD_OVERHEAD + key.len(), Memtable::record_bytes(key.len(), 0)),
        };
        let add = |(bytes, arena), operand: &Operand| {
            let (more_bytes, more_arena) = operand_size(key, operand);
            (bytes + more_bytes, arena + more_arena)
        };
        self.operands.iter().fold(base, add)
    }
}

/// Returns what an operand adds to the batch: encoded bytes, and bytes in the memtable.
fn operand_size(key: &[u8], operand: &Operand) -> (usize, usize) {
    let stored = 8 + operand.bytes.len();
    (RECORD_OVERHEAD + key.len() + stored, Memtable::record_bytes(key.len(), stored))
}

/// The uncommitted writes of a transaction. Keys carry the keyspace id.
#[derive(Clone, Default)]
pub(crate) struct Own {
    writes: BTreeMap<Vec<u8>, Write>,
    removed: SpanSet,
    /// What `writes` takes in the batch and in the memtable.
    bytes: usize,
    arena: usize,
    undo: Vec<Undo>,
    savepoints: Vec<Mark>,
}

/// Takes one write back.
#[derive(Clone)]
enum Undo {
    Wrote { key: Vec<u8>, before: Option<Write> },
    Merged { key: Vec<u8> },
    Removed { span: Option<(Span, Vec<Span>)>, dropped: Vec<(Vec<u8>, Write)> },
}

#[derive(Clone, Copy)]
struct Mark {
    number: u64,
    /// Length of the list when it was set.
    undo: usize,
}

impl Own {
    pub(crate) fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.removed.is_empty()
    }

    /// Returns the last write of a key.
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Write> {
        self.writes.get(key)
    }

    /// Returns the ranges whose older contents are gone.
    pub(crate) fn removed(&self) -> &SpanSet {
        &self.removed
    }

    /// Returns the first write between two bounds, seen from the end that `direction` starts at.
    pub(crate) fn next(
        &self,
        between: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
    ) -> Option<(&Vec<u8>, &Write)> {
        let empty = match between {
            (Bound::Included(a), Bound::Included(b)) => a > b,
            (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => {
                a >= b
            }
            _ => false,
        };
        if empty {
            return None;
        }
        let mut inside = self.writes.range::<[u8], _>(between);
        match direction {
            Direction::Forward => inside.next(),
            Direction::Backward => inside.next_back(),
        }
    }

    // ---- writes ----

    /// Sets a key. Refused, with nothing changed, if the batch would become larger than a batch may.
    pub(crate) fn put(
        &mut self,
        store: &Store,
        key: Vec<u8>,
        value: &[u8],
        deadline: Option<u64>,
    ) -> Result<()> {
        check_key(key.get(4..).unwrap_or_default())?;
        if value.len() > VALUE_LEN_MAX {
            return Err(Error::InvalidInput(format!(
                "a value of {} bytes is too long: the limit is {VALUE_LEN_MAX}, split it",
                value.len()
            )));
        }
        // As a memtable would hold it, so that cursors meet one kind of record.
        let (kind, bytes) = match deadline {
            // Zero stands for no deadline in what is stored.
            Some(at) => (Kind::ExpiringValue, [&at.max(1).to_le_bytes(), value].concat()),
            None => (Kind::Value, value.to_vec()),
        };
        let stored = Stored { trailer: Trailer::new(0, kind), value: Slice::from(bytes) };
        self.write(store, key, Write::new(Base::Put(stored)))
    }

    /// Removes a key.
    pub(crate) fn remove(&mut self, store: &Store, key: Vec<u8>) -> Result<()> {
        check_key(key.get(4..).unwrap_or_default())?;
        self.write(store, key, Write::new(Base::Removed))
    }

    /// Merges an operand, which was checked, into a key. `deadline` is 0 for none.
    pub(crate) fn merge(
        &mut self,
        store: &Store,
        key: Vec<u8>,
        operand: &[u8],
        deadline: u64,
    ) -> Result<()> {
        check_key(key.get(4..).unwrap_or_default())?;
        let operand = Operand { seqno: 0, deadline, bytes: Slice::from(operand) };
        let (bytes, arena) = operand_size(&key, &operand);
        // The range that was removed came before; what it hides is no base.
        let hidden = self.removed.contains(&key) && !self.writes.contains_key(&key);
        if hidden {
            let mut write = Write::new(Base::Removed);
            write.operands.push(operand);
            return self.write(store, key, write);
        }
        let (bytes, arena) = (self.bytes + bytes, self.arena + arena);
        self.check(store, bytes, arena, &self.removed)?;
        (self.bytes, self.arena) = (bytes, arena);
        if !self.savepoints.is_empty() {
            self.undo.push(Undo::Merged { key: key.clone() });
        }
        let write = self.writes.entry(key).or_insert_with(|| Write::new(Base::Theirs));
        write.operands.push(operand);
        Ok(())
    }

    /// Takes the last operand of a key back.
    fn unmerge(&mut self, key: &[u8]) {
        let Some(write) = self.writes.get_mut(key) else { return };
        let Some(operand) = write.operands.pop() else { return };
        let (bytes, arena) = operand_size(key, &operand);
        self.bytes -= bytes;
        self.arena -= arena;
        if write.is_on_theirs() && write.operands.is_empty() {
            self.writes.remove(key);
        }
    }

    fn write(&mut self, store: &Store, key: Vec<u8>, write: Write) -> Result<()> {
        let (bytes, arena) = write.size(&key);
        let before = self.writes.get(&key).map_or((0, 0), |before| before.size(&key));
        let (bytes, arena) = (self.bytes - before.0 + bytes, self.arena - before.1 + arena);
        self.check(store, bytes, arena, &self.removed)?;
        (self.bytes, self.arena) = (bytes, arena);
        if self.savepoints.is_empty() {
            self.writes.insert(key, write);
        } else {
            let before = self.writes.insert(key.clone(), write);
            self.undo.push(Undo::Wrote { key, before });
        }
        Ok(())
    }

    /// Removes what is in a range.
    pub(crate) fn remove_range(&mut self, store: &Store, bounds: &Bounds) -> Result<()> {
        let (start, end) = (&bounds.start[..], &bounds.end[..]);
        for key in [start, end] {
            check_key(key.get(4..).unwrap_or_default())?;
        }
        if start >= end {
            return Ok(());
        }
        let span = self.removed.insert(start, end);
        if let Err(too_large) = self.check(store, self.bytes, self.arena, &self.removed) {
            span.into_iter().for_each(|span| self.removed.undo(span));
            return Err(too_large);
        }
        let inside = (Bound::Included(start), Bound::Excluded(end));
        let keys: Vec<Vec<u8>> =
            self.writes.range::<[u8], _>(inside).map(|(key, _)| key.clone()).collect();
        let mut dropped = Vec::new();
        for key in keys {
            if let Some(write) = self.take(&key) {
                dropped.push((key, write));
            }
        }
        if !self.savepoints.is_empty() {
            self.undo.push(Undo::Removed { span, dropped });
        }
        Ok(())
    }

    /// Takes a write out.
    fn take(&mut self, key: &[u8]) -> Option<Write> {
        let write = self.writes.remove(key)?;
        let (bytes, arena) = write.size(key);
        self.bytes -= bytes;
        self.arena -= arena;
        Some(write)
    }

    /// Puts a write back.
    fn restore(&mut self, key: Vec<u8>, write: Write) {
        let (bytes, arena) = write.size(&key);
        self.bytes += bytes;
        self.arena += arena;
        self.writes.insert(key, write);
    }

    fn check(&self, store: &Store, bytes: usize, arena: usize, removed: &SpanSet) -> Result<()> {
        let ranges = removed.len() * RECORD_OVERHEAD + removed.bytes();
        let in_memory = removed.len() * Memtable::range_bytes(0, 0) + removed.bytes();
        store.check_bytes(bytes + ranges)?;
        store.check_arena(arena + in_memory)
    }

    // ---- savepoints ----

    /// Sets a savepoint with a number that was not used before.
    pub(crate) fn set_savepoint(&mut self, number: u64) {
        self.savepoints.push(Mark { number, undo: self.undo.len() });
    }

    /// Undoes what was written since a savepoint, which stays, and forgets those set since. Returns
    /// whether there is such a savepoint.
    pub(crate) fn roll_back_to(&mut self, number: u64) -> bool {
        let Some(at) = self.savepoints.iter().rposition(|mark| mark.number == number) else {
            return false;
        };
        self.savepoints.truncate(at + 1);
        let from = self.savepoints[at].undo;
        for undo in self.undo.split_off(from).into_iter().rev() {
            match undo {
                Undo::Wrote { key, before } => {
                    self.take(&key);
                    if let Some(before) = before {
                        self.restore(key, before);
                    }
                }
                Undo::Merged { key } => self.unmerge(&key),
                Undo::Removed { span, dropped } => {
                    span.into_iter().for_each(|span| self.removed.undo(span));
                    dropped.into_iter().for_each(|(key, write)| self.restore(key, write));
                }
            }
        }
        true
    }

    /// Forgets a savepoint and those set since; what was written stays. Returns whether there is
    /// such a savepoint.
    pub(crate) fn release(&mut self, number: u64) -> bool {
        let Some(at) = self.savepoints.iter().rposition(|mark| mark.number == number) else {
            return false;
        };
        self.savepoints.truncate(at);
        if at == 0 {
            self.undo = Vec::new();
        }
        true
    }

    // ---- the end ----

    /// Returns the batch of all that was written.
    pub(crate) fn to_batch(&self) -> Batch {
        let mut batch = Batch::new();
        // What is in the map came after the ranges were emptied.
        for (start, end) in self.removed.iter() {
            batch.remove_bounds(Bounds { start: start.to_vec(), end: end.to_vec() });
        }
        for (key, write) in &self.writes {
            let (id, key) = key.split_first_chunk().unwrap_or((&[0; 4], &[]));
            let id = u32::from_be_bytes(*id);
            match &write.base {
                Base::Theirs => {}
                Base::Removed => drop(batch.remove_raw(id, key)),
                Base::Put(Stored { trailer, value }) => {
                    let (value, deadline) = match key_kind(*trailer) {
                        Kind::ExpiringValue => {
                            (value.get(8..).unwrap_or_default(), deadline_of(value))
                        }
                        _ => (&value[..], None),
                    };
                    batch.insert_raw(id, key, value, deadline);
                }
            }
            for Operand { deadline, bytes, .. } in &write.operands {
                batch.merge_raw(id, key, bytes, Some(*deadline).filter(|at| *at != 0));
            }
        }
        batch
    }
}
