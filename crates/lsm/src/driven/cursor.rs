//! Walking over a range of keys, in one direction.

use std::sync::Arc;

use super::tree::Tree;
use crate::error::{Error, Result};
use crate::iter::scan::{Bounds, Entry, Wanted, key_kind};
use crate::iter::{Direction, Scan};
use crate::key::{Kind, SeqNo, stamp_of};
use crate::read::Stored;
use crate::slice::Slice;
use crate::values::Ahead;
use crate::view::View;

/// An iterator over the keys of a range, as of the moment it was made.
///
/// It pins tables and memtables: drop it when you are done. After an error it ends: every further
/// call returns that error. A call whose future is dropped half-way ends it too.
pub struct Cursor {
    tree: Tree,
    view: Arc<View>,
    snapshot: SeqNo,
    direction: Direction,
    wanted: Wanted,
    bounds: Bounds,
    ahead: Ahead,
    /// Made by the first step.
    scan: Option<Box<Scan>>,
    on_row: bool,
    /// A step was begun and has not ended.
    stepping: bool,
    /// Steps that were begun.
    steps: u64,
    error: Option<Error>,
}

impl Cursor {
    pub(super) fn new(tree: Tree, bounds: Bounds, direction: Direction, wanted: Wanted) -> Cursor {
        let (view, snapshot) = tree.store.pin_owned();
        let error = tree.check_open().err();
        Cursor {
            tree,
            view,
            snapshot,
            direction,
            wanted,
            bounds,
            ahead: Ahead::default(),
            scan: None,
            on_row: false,
            stepping: false,
            steps: 0,
            error,
        }
    }

    /// Steps to the next key of its direction and returns it; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Row<'_>>> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        if std::mem::replace(&mut self.stepping, true) {
            let what = "an earlier step of this cursor was dropped half-way: make a new cursor";
            return Err(Error::InvalidInput(what.to_owned()));
        }
        self.on_row = false;
        let began = self.tree.store.begin_step(self.steps);
        let step = self.step().await;
        self.tree.store.end_step(self.steps, began);
        self.steps += 1;
        self.stepping = false;
        match step {
            Ok(found) => {
                self.on_row = found;
                Ok(self.row())
            }
            Err(e) => {
                self.tree.store.tables.confirm(&self.view.version, &e).await;
                self.error = Some(e.clone());
                Err(e)
            }
        }
    }

    /// Returns the key it stands on: the one that `next` returned last.
    pub fn row(&self) -> Option<Row<'_>> {
        let scan = self.scan.as_ref().filter(|_| self.on_row)?;
        Some(Row { cursor: self, entry: scan.entry() })
    }

    async fn step(&mut self) -> Result<bool> {
        if self.bounds.start >= self.bounds.end {
            return Ok(false);
        }
        let scan = match &mut self.scan {
            Some(scan) => scan,
            none => {
                let bounds = self.bounds.clone();
                let tables = &self.tree.store.tables;
                let scan = self
                    .view
                    .scan(tables, self.direction, bounds, self.snapshot, self.wanted, None)
                    .await?;
                none.insert(Box::new(scan))
            }
        };
        Ok(scan.next().await?.is_some())
    }
}

/// A key that a cursor stands on.
#[derive(Clone, Copy)]
pub struct Row<'c> {
    cursor: &'c Cursor,
    entry: &'c Entry,
}

impl<'c> Row<'c> {
    /// Returns the key.
    pub fn key(&self) -> &'c [u8] {
        &self.entry.user_key
    }

    /// Returns the stamp of the version, 0 for a plain record.
    pub fn stamp(&self) -> u64 {
        if self.kind().is_versioned() { stamp_of(&self.entry.value) } else { 0 }
    }

    /// Returns whether the version says that the key is deleted.
    pub fn is_tombstone(&self) -> bool {
        self.kind() == Kind::VersionedTombstone
    }

    /// Returns the length of the value, without reading a long one.
    pub fn value_len(&self) -> usize {
        self.stored().len()
    }

    /// Returns the value; `None` of a tombstone. A long one is read only now.
    pub async fn value(&self) -> Result<Option<Slice>> {
        let Cursor { tree, view, ahead, .. } = self.cursor;
        if self.is_tombstone() {
            return Ok(None);
        }
        let stored = self.stored();
        let record = tree.store.complete_with(view, self.key(), stored, Some(ahead)).await?;
        Ok(Some(record.value))
    }

    fn kind(&self) -> Kind {
        key_kind(self.entry.trailer)
    }

    fn stored(&self) -> Stored {
        Stored { trailer: self.entry.trailer, value: self.entry.value.clone() }
    }
}
