//! Walking a table in both directions.
//!
//! Every move is split in two, so that a merge of many tables runs as a plain loop and only waits
//! where a disk is really needed:
//!
//! ```text
//!   advance / position ──► Done            the move is complete, in memory
//!                     └──► NeedsBlock ──► load().await ──► the same move is complete
//! ```
//!
//! A move is a [`Goal`]: which partition, which block, and where to land in it. It is carried out
//! as far as memory goes; what is missing is noted, `load` fetches it, and the goal goes on. So a
//! move may need several blocks and every step of it can be interrupted: a `load` that is dropped
//! is simply called again.
//!
//! An error is reported by `load` and stays: from then on every move needs a block and every
//! `load` returns the error.

use std::sync::Arc;

use atoll_encoding::Malformed;

use super::block::{BlockView, Cursor};
use super::codec::BlockKind;
use super::index::{data_block, locate};
use super::readahead::Window;
use super::reader::Table;
use super::{Handle, ReadOptions};
use crate::error::{Error, Result};
use crate::key::{InternalKey, Trailer};
use crate::pool::{Admit, Block};
use crate::slice::Slice;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards larger keys.
    Forward,
    /// Towards smaller keys.
    Backward,
}

/// Whether a move is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Advance {
    /// It is: at a record, or behind the last.
    Done,
    /// It goes on in [`TableIter::load`]. Until then the iterator is nowhere.
    NeedsBlock,
}

/// Where to go in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek<'a> {
    /// To the first record.
    First,
    /// To the last record.
    Last,
    /// To the first record at or after the key.
    AtOrAfter(InternalKey<'a>),
    /// To the last record at or before the key.
    AtOrBefore(InternalKey<'a>),
}

/// An iterator over the records of a table. It starts nowhere.
pub struct TableIter {
    table: Arc<Table>,
    options: ReadOptions,
    /// Where it is.
    cursor: Cursor,
    /// Offset of the block that `cursor` is in.
    entered: Option<u64>,
    /// The index partition it is in, and its number.
    index: Option<(usize, Handle, Block)>,
    /// Entry of the index partition whose block it is in.
    entry: usize,
    goal: Option<Goal>,
    /// What the goal lacks.
    missing: Option<(Handle, BlockKind)>,
    /// What `load` fetched for it.
    fetched: Option<(u64, Block)>,
    /// Where to land, if the goal says so.
    target: Vec<u8>,
    target_trailer: Trailer,
    window: Window,
    failed: Option<Error>,
}

/// A move under way: the next thing to load and where to land.
#[derive(Clone, Copy)]
enum Goal {
    /// Load index partition `n`.
    Partition(usize, Land),
    /// Load the block of entry `n` of the index partition.
    Block(usize, Land),
}

/// Where to land in an index partition or block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Land {
    First,
    Last,
    AtOrAfterTarget,
    AtOrBeforeTarget,
}

impl Land {
    fn direction(self) -> Direction {
        match self {
            Land::First | Land::AtOrAfterTarget => Direction::Forward,
            Land::Last | Land::AtOrBeforeTarget => Direction::Backward,
        }
    }
}

impl TableIter {
    /// Returns an iterator that is nowhere yet.
    pub fn new(table: Arc<Table>, options: ReadOptions) -> TableIter {
        TableIter {
            table,
            options,
            cursor: Cursor::default(),
            entered: None,
            index: None,
            entry: 0,
            goal: None,
            missing: None,
            fetched: None,
            target: Vec::new(),
            target_trailer: Trailer::NEWEST,
            window: Window::default(),
            failed: None,
        }
    }

    /// Returns whether the iterator is at a record.
    #[inline]
    pub fn valid(&self) -> bool {
        self.cursor.valid()
    }

    /// Returns the key. Panics unless [`TableIter::valid`].
    #[inline]
    pub fn key(&self) -> InternalKey<'_> {
        let key = self.cursor.key();
        InternalKey::new(key.user_key, key.trailer.above(self.table.base()))
    }

    /// Returns the value. Panics unless [`TableIter::valid`].
    #[inline]
    pub fn value(&self) -> &[u8] {
        let (block, range) = self.cursor.value();
        &block[range]
    }

    /// Returns the value as a slice that keeps the block. Panics unless [`TableIter::valid`].
    pub fn value_slice(&self) -> Slice {
        let (block, range) = self.cursor.value();
        block.slice(range)
    }

    /// Moves one record on, as far as memory goes. Behind the last record nothing moves.
    #[inline]
    pub fn advance(&mut self, direction: Direction) -> Advance {
        let moved = match direction {
            Direction::Forward => self.cursor.step(),
            Direction::Backward => self.cursor.step_back(),
        };
        if moved { Advance::Done } else { self.leave_interval(direction) }
    }

    /// Moves to a place, as far as memory goes.
    pub fn position(&mut self, to: Seek<'_>) -> Advance {
        if self.failed.is_some() {
            return Advance::NeedsBlock;
        }
        self.cursor.leave();
        self.missing = None;
        self.fetched = None;
        self.window.jumped();
        let base = self.table.base();
        let to = match to {
            Seek::AtOrAfter(target) => Seek::AtOrAfter(target.relative_to(base)),
            Seek::AtOrBefore(target) => Seek::AtOrBefore(target.relative_to(base)),
            end => end,
        };
        if let Seek::AtOrAfter(target) | Seek::AtOrBefore(target) = to {
            self.target.clear();
            self.target.extend_from_slice(target.user_key);
            self.target_trailer = target.trailer;
        }
        let top = self.table.top();
        let last = top.len().checked_sub(1);
        self.goal = match to {
            Seek::First => last.map(|_| Goal::Partition(0, Land::First)),
            Seek::Last => last.map(|n| Goal::Partition(n, Land::Last)),
            Seek::AtOrAfter(target) => {
                top.locate(target).map(|n| Goal::Partition(n, Land::AtOrAfterTarget))
            }
            Seek::AtOrBefore(target) => match top.locate(target) {
                Some(n) => Some(Goal::Partition(n, Land::AtOrBeforeTarget)),
                None => last.map(|n| Goal::Partition(n, Land::Last)),
            },
        };
        self.pursue()
    }

    /// Fetches what the last move lacked and completes it, or reports why it cannot.
    pub async fn load(&mut self) -> Result<()> {
        loop {
            if let Some(e) = &self.failed {
                return Err(e.clone());
            }
            let Some((handle, kind)) = self.missing else { return Ok(()) };
            match self.fetch(handle, kind).await {
                Ok(block) => self.fetched = Some((handle.offset, block)),
                Err(e) => {
                    self.fail(e);
                    continue;
                }
            }
            self.missing = None;
            if self.pursue() == Advance::Done {
                return Ok(());
            }
        }
    }

    /// Moves to the first record.
    pub async fn first(&mut self) -> Result<()> {
        self.go(Seek::First).await
    }

    /// Moves to the last record.
    pub async fn last(&mut self) -> Result<()> {
        self.go(Seek::Last).await
    }

    /// Moves to the first record at or after `target`.
    pub async fn seek(&mut self, target: InternalKey<'_>) -> Result<()> {
        self.go(Seek::AtOrAfter(target)).await
    }

    /// Moves to the last record at or before `target`.
    pub async fn seek_for_prev(&mut self, target: InternalKey<'_>) -> Result<()> {
        self.go(Seek::AtOrBefore(target)).await
    }

    /// Moves to the next record.
    pub async fn next(&mut self) -> Result<()> {
        match self.advance(Direction::Forward) {
            Advance::Done => Ok(()),
            Advance::NeedsBlock => self.load().await,
        }
    }

    /// Moves to the record before.
    pub async fn prev(&mut self) -> Result<()> {
        match self.advance(Direction::Backward) {
            Advance::Done => Ok(()),
            Advance::NeedsBlock => self.load().await,
        }
    }

    async fn go(&mut self, to: Seek<'_>) -> Result<()> {
        match self.position(to) {
            Advance::Done => Ok(()),
            Advance::NeedsBlock => self.load().await,
        }
    }

    /// Goes on from the end of a decoded interval.
    fn leave_interval(&mut self, direction: Direction) -> Advance {
        if !self.cursor.valid() {
            // Behind the last record, within an unfinished move, or failed.
            let waits = self.missing.is_some() || self.failed.is_some();
            return if waits { Advance::NeedsBlock } else { Advance::Done };
        }
        let within = match direction {
            Direction::Forward => self.cursor.next_interval(),
            Direction::Backward => self.cursor.previous_interval(),
        };
        match within {
            Ok(true) => return Advance::Done,
            Ok(false) => {}
            Err(e) => return self.fail_in_block(e),
        }
        self.goal = self.neighbour(direction);
        self.pursue()
    }

    /// Returns the goal "the block after (before) the present one, its first (last) record", or
    /// `None` at the end of the table.
    fn neighbour(&self, direction: Direction) -> Option<Goal> {
        let (partition, _, block) = self.index.as_ref()?;
        let entries = BlockView::new(block).map_or(0, |index| index.restarts());
        match direction {
            Direction::Forward if self.entry + 1 < entries => {
                Some(Goal::Block(self.entry + 1, Land::First))
            }
            Direction::Forward => (partition + 1 < self.table.top().len())
                .then(|| Goal::Partition(partition + 1, Land::First)),
            Direction::Backward => match (self.entry.checked_sub(1), partition.checked_sub(1)) {
                (Some(entry), _) => Some(Goal::Block(entry, Land::Last)),
                (None, Some(partition)) => Some(Goal::Partition(partition, Land::Last)),
                (None, None) => None,
            },
        }
    }

    /// Carries the goal out as far as memory goes.
    fn pursue(&mut self) -> Advance {
        while let Some(goal) = self.goal {
            let went_on = match goal {
                Goal::Partition(n, land) => self.enter_partition(n, land),
                Goal::Block(n, land) => self.enter_block(n, land),
            };
            match went_on {
                Ok(true) => {}
                Ok(false) => return Advance::NeedsBlock,
                Err(e) => {
                    self.fail(e);
                    return Advance::NeedsBlock;
                }
            }
        }
        Advance::Done
    }

    /// Enters an index partition and sets the next goal; returns false if it is not in memory.
    fn enter_partition(&mut self, n: usize, land: Land) -> Result<bool> {
        if self.index.as_ref().is_none_or(|(present, ..)| *present != n) {
            let Some(partition) = self.table.top().partition(n) else {
                self.goal = None;
                return Ok(true);
            };
            let Some(block) = self.obtain(partition.index, BlockKind::Index)? else {
                return Ok(false);
            };
            self.index = Some((n, partition.index, block));
        }
        let Some((_, handle, block)) = &self.index else { return Ok(true) };
        let entry = BlockView::new(block).and_then(|index| {
            let last = index.restarts() - 1;
            Ok(match land {
                Land::First => 0,
                Land::Last => last,
                // The top index led here, so a separator behind the target is in the partition.
                Land::AtOrAfterTarget | Land::AtOrBeforeTarget => {
                    let target = InternalKey::new(&self.target, self.target_trailer);
                    locate(index, target)?.unwrap_or(last)
                }
            })
        });
        let entry = entry.map_err(|e| self.table.malformed(*handle, e))?;
        self.goal = Some(Goal::Block(entry, land));
        Ok(true)
    }

    /// Enters a data block and lands in it, or, if nothing in it is where the target is, sets the
    /// goal to its neighbour; returns false if it is not in memory.
    fn enter_block(&mut self, entry: usize, land: Land) -> Result<bool> {
        let Some((_, index_handle, index)) = &self.index else {
            self.goal = None;
            return Ok(true);
        };
        let handle = BlockView::new(index).and_then(|index| data_block(index, entry));
        let handle = handle.map_err(|e| self.table.malformed(*index_handle, e))?;
        if self.entered != Some(handle.offset) {
            let Some(block) = self.obtain(handle, BlockKind::Data)? else { return Ok(false) };
            self.entered = None;
            self.cursor.enter(block).map_err(|e| self.table.malformed(handle, e))?;
            self.entered = Some(handle.offset);
        }
        self.entry = entry;
        let target = InternalKey::new(&self.target, self.target_trailer);
        let landed = match land {
            Land::First => self.cursor.first().map(|()| true),
            Land::Last => self.cursor.last().map(|()| true),
            Land::AtOrAfterTarget => self.cursor.seek(target),
            Land::AtOrBeforeTarget => self.cursor.seek_for_prev(target),
        };
        self.goal = match landed.map_err(|e| self.table.malformed(handle, e))? {
            true => None,
            false => self.neighbour(land.direction()),
        };
        Ok(true)
    }

    /// Returns a block from memory, or notes that it is missing.
    fn obtain(&mut self, handle: Handle, kind: BlockKind) -> Result<Option<Block>> {
        if let Some((offset, block)) = self.fetched.take()
            && offset == handle.offset
        {
            return Ok(Some(block));
        }
        if let Some(block) = self.table.cached(handle, self.admit(kind).unwrap_or(Admit::No)) {
            return Ok(Some(block));
        }
        if kind == BlockKind::Data
            && let Some(sealed) = self.window.get(self.table.range(handle)?)
        {
            match self.table.unseal(handle, kind, sealed, self.admit(kind)) {
                // Read on its own it may verify.
                Err(e) if e.is_corruption() => self.window = Window::default(),
                block => return block.map(Some),
            }
        }
        self.missing = Some((handle, kind));
        Ok(None)
    }

    async fn fetch(&mut self, handle: Handle, kind: BlockKind) -> Result<Block> {
        let admit = self.admit(kind);
        let ahead = kind == BlockKind::Data && self.options.readahead_max > 0;
        let Some(Goal::Block(_, land)) = self.goal.filter(|_| ahead) else {
            return self.table.read_block(handle, kind, self.options.class, admit).await;
        };
        let range = self.table.range(handle)?;
        self.window.fill(&self.table, handle, land.direction(), &self.options).await?;
        let block = match self.window.get(range) {
            Some(sealed) => self.table.unseal(handle, kind, sealed, admit),
            None => Err(self.table.corruption(handle.offset, "a short read")),
        };
        match block {
            Err(e) if e.is_corruption() => {
                self.table.read_block(handle, kind, self.options.class, admit).await
            }
            block => block,
        }
    }

    /// Returns how a block that is read is offered to the pool.
    fn admit(&self, kind: BlockKind) -> Option<Admit> {
        let admit = if kind == BlockKind::Data { Admit::Data } else { Admit::Index };
        self.options.admit.then_some(admit)
    }

    fn fail_in_block(&mut self, e: Malformed) -> Advance {
        let offset = self.entered.unwrap_or_default();
        let e = self.table.malformed(Handle { offset, len: 0 }, e);
        self.fail(e);
        Advance::NeedsBlock
    }

    fn fail(&mut self, e: Error) {
        self.cursor.leave();
        self.goal = None;
        self.missing = None;
        self.failed = Some(e);
    }
}
