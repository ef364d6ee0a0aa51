//! The merge of sorted sources into one sorted stream.
//!
//! A binary heap of source numbers, ordered by their current keys. The source on top usually stays
//! on top after its step (runs of neighbouring keys come from one source), which the sift finds
//! with two comparisons.

use crate::error::{Error, Result};
use crate::iter::{Advance, Direction, Source};
use crate::key::{InternalKey, SeqNo, Trailer};
use crate::slice::Slice;

/// All records of all sources, in internal-key order or against it.
pub(crate) struct Merge {
    sources: Vec<Source>,
    /// Numbers of the valid sources; the next record is at the root.
    heap: Vec<usize>,
    direction: Direction,
    /// The first error; it repeats for ever.
    error: Option<Error>,
}

impl Merge {
    /// Takes sources that are not positioned yet.
    pub(crate) fn new(sources: Vec<Source>, direction: Direction) -> Merge {
        Merge { heap: Vec::with_capacity(sources.len()), sources, direction, error: None }
    }

    /// Positions on the first record at or after `target` (forward) or the last before it.
    pub(crate) async fn seek(&mut self, target: InternalKey<'_>) -> Result<()> {
        for source in &mut self.sources {
            let sought = match self.direction {
                Direction::Forward => source.seek(target).await,
                Direction::Backward => source.seek_before(target).await,
            };
            sticky(&mut self.error, sought)?;
        }
        self.rebuild();
        Ok(())
    }

    /// Positions on the first record of the direction.
    pub(crate) async fn seek_start(&mut self) -> Result<()> {
        for source in &mut self.sources {
            let sought = match self.direction {
                Direction::Forward => source.seek_first().await,
                Direction::Backward => source.seek_last().await,
            };
            sticky(&mut self.error, sought)?;
        }
        self.rebuild();
        Ok(())
    }

    /// Moves the sources that hold nothing as new as `newest` ([`SeqNo::MAX`]: all sources) to
    /// `target`, if they stand before it: what they would yield on the way is known to be hidden.
    pub(crate) async fn skip_to(&mut self, target: &[u8], newest: SeqNo) -> Result<()> {
        let direction = self.direction;
        let target = InternalKey::new(target, Trailer::NEWEST);
        for source in &mut self.sources {
            if !source.valid() || (source.newest >= newest && newest != SeqNo::MAX) {
                continue;
            }
            let behind = match direction {
                Direction::Forward => source.key() < target,
                Direction::Backward => source.key() >= target,
            };
            if !behind {
                continue;
            }
            let sought = match direction {
                Direction::Forward => source.seek(target).await,
                Direction::Backward => source.seek_before(target).await,
            };
            sticky(&mut self.error, sought)?;
        }
        self.rebuild();
        Ok(())
    }

    /// Moves one record on.
    #[inline]
    pub(crate) async fn step(&mut self) -> Result<()> {
        let Some(&top) = self.heap.first() else { return self.failed() };
        if self.sources[top].advance(self.direction) == Advance::NeedsBlock {
            let loaded = self.sources[top].load().await;
            sticky(&mut self.error, loaded)?;
        }
        if !self.sources[top].valid() {
            self.heap.swap_remove(0);
        }
        self.sift_down(0);
        Ok(())
    }

    /// Returns the error that ended the iteration, if one did.
    fn failed(&self) -> Result<()> {
        self.error.clone().map_or(Ok(()), Err)
    }

    /// Returns whether it stands on a record. False after an error.
    #[inline]
    pub(crate) fn valid(&self) -> bool {
        self.error.is_none() && !self.heap.is_empty()
    }

    /// Returns the record's key. Call only while valid.
    #[inline]
    pub(crate) fn key(&self) -> InternalKey<'_> {
        self.sources[self.heap[0]].key()
    }

    /// Returns the record's value. Call only while valid.
    #[inline]
    pub(crate) fn value(&self) -> &[u8] {
        self.sources[self.heap[0]].value()
    }

    /// Returns the record's value as bytes that outlive the iterator. Call only while valid.
    #[inline]
    pub(crate) fn value_slice(&self) -> Slice {
        self.sources[self.heap[0]].value_slice()
    }

    fn rebuild(&mut self) {
        self.heap.clear();
        self.heap.extend((0..self.sources.len()).filter(|&i| self.sources[i].valid()));
        for at in (0..self.heap.len() / 2).rev() {
            self.sift_down(at);
        }
    }

    #[inline]
    fn sift_down(&mut self, mut at: usize) {
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            if left >= self.heap.len() {
                return;
            }
            let child =
                if right < self.heap.len() && self.before(right, left) { right } else { left };
            if !self.before(child, at) {
                return;
            }
            self.heap.swap(child, at);
            at = child;
        }
    }

    /// Returns whether the source in heap slot `a` comes before the one in `b`.
    #[inline]
    fn before(&self, a: usize, b: usize) -> bool {
        let (a, b) = (self.sources[self.heap[a]].key(), self.sources[self.heap[b]].key());
        match self.direction {
            Direction::Forward => a < b,
            Direction::Backward => b < a,
        }
    }
}

/// Remembers the first error.
fn sticky(error: &mut Option<Error>, result: Result<()>) -> Result<()> {
    if let Err(e) = &result {
        error.get_or_insert_with(|| e.clone());
    }
    result
}
