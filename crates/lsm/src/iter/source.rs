//! The inputs of a merge behind one face.

use std::sync::Arc;

use crate::error::Result;
use crate::iter::{Advance, Direction};
use crate::key::{InternalKey, SeqNo};
use crate::memtable::MemtableIter;
use crate::slice::Slice;
use crate::table::TableIter;
use crate::tables::{ReadMode, Tables};
use crate::version::TableHandle;

/// A sorted run of records.
pub(crate) struct Source {
    run: Run,
    /// No record in it is newer.
    pub(crate) newest: SeqNo,
}

enum Run {
    Memtable(MemtableIter),
    Table(Box<TableIter>),
    Level(Level),
}

impl Source {
    /// A memtable.
    pub(crate) fn memtable(iter: MemtableIter, newest: SeqNo) -> Source {
        Source { run: Run::Memtable(iter), newest }
    }

    /// One table.
    pub(crate) fn table(iter: TableIter, newest: SeqNo) -> Source {
        Source { run: Run::Table(Box::new(iter)), newest }
    }

    /// The tables of a level below L0, in key order.
    pub(crate) fn level(
        tables: Arc<Tables>,
        handles: Vec<Arc<TableHandle>>,
        mode: ReadMode,
    ) -> Source {
        let newest = handles.iter().map(|h| h.desc.seqnos.1).max().unwrap_or(0);
        let level = Level { tables, handles, mode, at: 0, open: None, step: None };
        Source { run: Run::Level(level), newest }
    }

    /// Positions on the first record at or after `target`.
    pub(crate) async fn seek(&mut self, target: InternalKey<'_>) -> Result<()> {
        match &mut self.run {
            Run::Memtable(iter) => {
                iter.seek(target);
                Ok(())
            }
            Run::Table(iter) => iter.seek(target).await,
            Run::Level(level) => level.seek(target).await,
        }
    }

    /// Positions on the last record before `target`, whose trailer is [`Trailer::NEWEST`].
    pub(crate) async fn seek_before(&mut self, target: InternalKey<'_>) -> Result<()> {
        match &mut self.run {
            Run::Memtable(iter) => {
                iter.seek_before(target);
                Ok(())
            }
            // No record has the trailer of a target, so "at or before" is "before".
            Run::Table(iter) => iter.seek_for_prev(target).await,
            Run::Level(level) => level.seek_before(target).await,
        }
    }

    /// Positions on the first record.
    pub(crate) async fn seek_first(&mut self) -> Result<()> {
        match &mut self.run {
            Run::Memtable(iter) => {
                iter.first();
                Ok(())
            }
            Run::Table(iter) => iter.first().await,
            Run::Level(level) => level.enter(0, Direction::Forward).await,
        }
    }

    /// Positions on the last record.
    pub(crate) async fn seek_last(&mut self) -> Result<()> {
        match &mut self.run {
            Run::Memtable(iter) => {
                iter.last();
                Ok(())
            }
            Run::Table(iter) => iter.last().await,
            Run::Level(level) => {
                let count = level.handles.len();
                if count == 0 { Ok(()) } else { level.enter(count - 1, Direction::Backward).await }
            }
        }
    }

    /// Moves one record on, as far as memory reaches.
    #[inline]
    pub(crate) fn advance(&mut self, direction: Direction) -> Advance {
        match &mut self.run {
            Run::Memtable(iter) => {
                match direction {
                    Direction::Forward => iter.next(),
                    Direction::Backward => iter.prev(),
                }
                Advance::Done
            }
            Run::Table(iter) => iter.advance(direction),
            Run::Level(level) => level.advance(direction),
        }
    }

    /// Completes a move that memory could not.
    pub(crate) async fn load(&mut self) -> Result<()> {
        match &mut self.run {
            Run::Memtable(_) => Ok(()),
            Run::Table(iter) => iter.load().await,
            Run::Level(level) => level.load().await,
        }
    }

    /// Returns whether it stands on a record.
    #[inline]
    pub(crate) fn valid(&self) -> bool {
        match &self.run {
            Run::Memtable(iter) => iter.valid(),
            Run::Table(iter) => iter.valid(),
            Run::Level(level) => level.open.as_ref().is_some_and(|iter| iter.valid()),
        }
    }

    /// Returns the record's key. Call only while valid.
    #[inline]
    pub(crate) fn key(&self) -> InternalKey<'_> {
        match &self.run {
            Run::Memtable(iter) => iter.key(),
            Run::Table(iter) => iter.key(),
            Run::Level(level) => level.iter().key(),
        }
    }

    /// Returns the record's value. Call only while valid.
    #[inline]
    pub(crate) fn value(&self) -> &[u8] {
        match &self.run {
            Run::Memtable(iter) => iter.value(),
            Run::Table(iter) => iter.value(),
            Run::Level(level) => level.iter().value(),
        }
    }

    /// Returns the record's value as bytes that outlive the iterator. Call only while valid.
    pub(crate) fn value_slice(&self) -> Slice {
        match &self.run {
            Run::Memtable(iter) => iter.value_slice(),
            Run::Table(iter) => iter.value_slice(),
            Run::Level(level) => level.iter().value_slice(),
        }
    }
}

/// The tables of a level as one run: at most one of them is open for reading.
struct Level {
    tables: Arc<Tables>,
    handles: Vec<Arc<TableHandle>>,
    mode: ReadMode,
    /// The table that is or was last read.
    at: usize,
    open: Option<Box<TableIter>>,
    /// The move that waits for [`Level::load`].
    step: Option<Step>,
}

#[derive(Clone, Copy)]
enum Step {
    Block,
    Table(Direction),
}

impl Level {
    fn iter(&self) -> &TableIter {
        self.open.as_ref().expect("only asked while valid")
    }

    async fn seek(&mut self, target: InternalKey<'_>) -> Result<()> {
        let at = self.handles.partition_point(|h| !h.desc.ends_at_or_after(target.user_key));
        self.open = None;
        if at == self.handles.len() {
            return Ok(());
        }
        let mut iter = self.tables.iter(&self.handles[at], self.mode).await?;
        iter.seek(target).await?;
        self.keep(at, iter, Direction::Forward).await
    }

    async fn seek_before(&mut self, target: InternalKey<'_>) -> Result<()> {
        let after = self.handles.partition_point(|h| h.desc.smallest.as_slice() <= target.user_key);
        self.open = None;
        let Some(at) = after.checked_sub(1) else { return Ok(()) };
        let mut iter = self.tables.iter(&self.handles[at], self.mode).await?;
        iter.seek_for_prev(target).await?;
        self.keep(at, iter, Direction::Backward).await
    }

    /// Keeps `iter` if it found a record, else goes on to the neighbour. (A table may hold only
    /// range tombstones, so the neighbour may have nothing either.)
    async fn keep(&mut self, at: usize, iter: TableIter, direction: Direction) -> Result<()> {
        self.at = at;
        let found = iter.valid();
        self.open = Some(Box::new(iter));
        if found { Ok(()) } else { self.enter_neighbour(direction).await }
    }

    async fn enter_neighbour(&mut self, direction: Direction) -> Result<()> {
        self.open = None;
        let next = match direction {
            Direction::Forward => self.at + 1,
            Direction::Backward => match self.at.checked_sub(1) {
                Some(at) => at,
                None => return Ok(()),
            },
        };
        self.enter(next, direction).await
    }

    /// Opens table `at`, or the next one with a record in it, at its near end.
    async fn enter(&mut self, mut at: usize, direction: Direction) -> Result<()> {
        self.open = None;
        while at < self.handles.len() {
            let mut iter = self.tables.iter(&self.handles[at], self.mode).await?;
            match direction {
                Direction::Forward => iter.first().await?,
                Direction::Backward => iter.last().await?,
            }
            self.at = at;
            if iter.valid() {
                self.open = Some(Box::new(iter));
                break;
            }
            at = match direction {
                Direction::Forward => at + 1,
                Direction::Backward => match at.checked_sub(1) {
                    Some(at) => at,
                    None => break,
                },
            };
        }
        Ok(())
    }

    #[inline]
    fn advance(&mut self, direction: Direction) -> Advance {
        let Some(iter) = &mut self.open else { return Advance::Done };
        match iter.advance(direction) {
            Advance::NeedsBlock => {
                self.step = Some(Step::Block);
                Advance::NeedsBlock
            }
            Advance::Done if iter.valid() => Advance::Done,
            Advance::Done => {
                self.step = Some(Step::Table(direction));
                Advance::NeedsBlock
            }
        }
    }

    async fn load(&mut self) -> Result<()> {
        match self.step.take() {
            None => Ok(()),
            Some(Step::Table(direction)) => self.enter_neighbour(direction).await,
            Some(Step::Block) => match &mut self.open {
                Some(iter) => iter.load().await,
                None => Ok(()),
            },
        }
    }
}
