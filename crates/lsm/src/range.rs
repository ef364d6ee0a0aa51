//! Iterating over keys, from both ends.

use std::sync::Arc;

use atoll_env::block_on;

use crate::error::{Error, Result};
use crate::iter::scan::{Bounds, Wanted, key_kind};
use crate::iter::{Direction, Scan};
use crate::key::{Kind, SeqNo};
use crate::keyspace::Keyspace;
use crate::merge;
use crate::read::{Record, Stored};
use crate::slice::Slice;
use crate::table::PrefixRule;
use crate::transaction::overlay::{Next, Overlay, OwnMerge};
use crate::values::Ahead;
use crate::view::View;

/// An async two-ended iterator over the keys of a range, as of the moment it was made.
///
/// It pins tables and memtables: drop it when you are done. After an error it ends: every further
/// call returns that error.
///
/// # Cancellation
/// A call whose future is dropped half-way leaves the cursor between two keys: further calls return
/// `InvalidInput`, and a new cursor takes over.
pub struct Cursor {
    pinned: Arc<Pinned>,
    snapshot: SeqNo,
    now: u64,
    bounds: Bounds,
    /// The bounds it was made with, where they may have moved.
    whole: Bounds,
    /// A key prefix known to the filters that the whole range has.
    filter: Option<(PrefixRule, Vec<u8>)>,
    front: Option<Box<Scan>>,
    back: Option<Box<Scan>>,
    /// Every key of the range was returned from one end or the other.
    met: bool,
    /// A step was begun and has not ended: its future was dropped, unless it is the present one.
    stepping: bool,
    /// Steps that were begun.
    steps: u64,
    error: Option<Error>,
    /// What a transaction lays over it.
    overlay: Option<Box<Overlay>>,
}

/// What a cursor and its guards keep alive.
struct Pinned {
    keyspace: Keyspace,
    view: Arc<View>,
    ahead: Ahead,
}

/// What there is of a key's value; or why its merge operator does not answer, which is an error of this
/// value and not of the iteration.
type Content = Result<Stored>;

/// Turns a merge into content, if there is any.
fn content(merged: Result<Option<Stored>>) -> Result<Option<Content>> {
    match merged {
        Ok(merged) => Ok(merged.map(Ok)),
        Err(refused @ Error::InvalidInput(_)) => Ok(Some(Err(refused))),
        Err(e) => Err(e),
    }
}

impl Pinned {
    /// Merges a key whose newest record is an operand; `None` if it has no value.
    async fn merged(&self, user_key: &[u8], snapshot: SeqNo, now: u64) -> Result<Option<Content>> {
        let Pinned { keyspace, view, .. } = self;
        content(keyspace.db.store.merged(view, &keyspace.about, user_key, snapshot, now).await)
    }
}

impl Cursor {
    pub(crate) fn new(
        keyspace: Keyspace,
        bounds: Bounds,
        filter: Option<(PrefixRule, Vec<u8>)>,
        (view, snapshot): (Arc<View>, SeqNo),
    ) -> Cursor {
        let now = keyspace.db.store.now();
        let error = keyspace.check_alive().and(keyspace.db.check_open()).err();
        let met = bounds.start >= bounds.end;
        let pinned = Arc::new(Pinned { keyspace, view, ahead: Ahead::default() });
        Cursor {
            pinned,
            snapshot,
            now,
            whole: bounds.clone(),
            bounds,
            filter,
            front: None,
            back: None,
            met,
            stepping: false,
            steps: 0,
            error,
            overlay: None,
        }
    }

    /// Lays a transaction's writes over it, before the first step.
    pub(crate) fn lay_over(&mut self, overlay: Overlay) {
        self.overlay = Some(Box::new(overlay));
    }

    /// Lets every step fail.
    pub(crate) fn fail(&mut self, error: Error) {
        self.error.get_or_insert(error);
    }

    /// Returns the next key from the front.
    pub async fn next(&mut self) -> Result<Option<Guard>> {
        self.step(Direction::Forward).await
    }

    /// Returns the next key from the back.
    pub async fn next_back(&mut self) -> Result<Option<Guard>> {
        self.step(Direction::Backward).await
    }

    async fn step(&mut self, direction: Direction) -> Result<Option<Guard>> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        if std::mem::replace(&mut self.stepping, true) {
            let what = "an earlier step of this cursor was dropped half-way: make a new cursor";
            return Err(Error::InvalidInput(what.to_owned()));
        }
        let began = self.pinned.keyspace.db.store.begin_step(self.steps);
        let step = match self.overlay.take() {
            None => self.try_step(direction).await,
            Some(mut overlay) => {
                let step = self.step_under(&mut overlay, direction).await;
                self.overlay = Some(overlay);
                step
            }
        };
        self.pinned.keyspace.db.store.end_step(self.steps, began);
        self.steps += 1;
        self.stepping = false;
        if let Err(e) = &step {
            let Pinned { keyspace, view, .. } = &*self.pinned;
            keyspace.db.store.tables.confirm(&view.version, e).await;
            self.error = Some(e.clone());
        }
        step
    }

    /// Takes a step over what the snapshot sees with the writes of a transaction over it.
    async fn step_under(
        &mut self,
        overlay: &mut Overlay,
        direction: Direction,
    ) -> Result<Option<Guard>> {
        loop {
            let mut theirs = overlay.take_waiting(direction);
            if theirs.is_none() {
                let had_met = self.met;
                theirs = self.try_step(direction).await?;
                // A walk that began before the other end went on from elsewhere.
                let inside = |guard: &Guard| {
                    *guard.user_key() >= self.bounds.start[..]
                        && *guard.user_key() < self.bounds.end[..]
                };
                theirs = theirs.filter(inside);
                self.met |= theirs.is_none();
                if !had_met {
                    let found = theirs.as_ref().map(Guard::user_key);
                    overlay.note(direction, (&self.bounds.start, &self.bounds.end), found);
                }
                theirs = theirs.or_else(|| overlay.take_last(direction));
            }
            let bounds = (&self.whole.start[..], &self.whole.end[..]);
            match overlay.decide(direction, bounds, theirs, self.now) {
                Next::Theirs(guard) => return Ok(Some(guard)),
                Next::Own(user_key, stored) => {
                    return Ok(Some(self.guard(user_key, Ok(stored))));
                }
                Next::Merge(merge) => {
                    if let Some(guard) = Box::pin(self.merge_own(merge)).await? {
                        return Ok(Some(guard));
                    }
                }
                Next::Hidden => {}
                Next::HiddenUpTo(edge) => self.start_anew(direction, edge),
                Next::End => return Ok(None),
            }
        }
    }

    fn guard(&self, user_key: Vec<u8>, content: Content) -> Guard {
        Guard { pinned: self.pinned.clone(), user_key, content }
    }

    /// Puts together what a transaction has merged into a key; `None` if there is no value.
    async fn merge_own(&self, merge: OwnMerge) -> Result<Option<Guard>> {
        let OwnMerge { user_key, own, theirs, operands } = merge;
        let base = match (own, theirs) {
            (Some(stored), _) => stored.into_record().ok(),
            (None, Some(Guard { content: Err(refused), .. })) => {
                return Ok(Some(self.guard(user_key, Err(refused))));
            }
            (None, Some(theirs)) => Some(theirs.record_async().await?),
            (None, None) => None,
        };
        let about = &self.pinned.keyspace.about;
        let merged = merge::merged(about, &user_key, base, &operands, self.now);
        let content = content(merged.map(|merged| merged.map(Stored::of)))?;
        Ok(content.map(|content| self.guard(user_key, content)))
    }

    /// Lets one end go on from `edge`: there is nothing before it.
    fn start_anew(&mut self, direction: Direction, edge: Vec<u8>) {
        match direction {
            Direction::Forward => {
                self.bounds.start = edge;
                self.front = None;
            }
            Direction::Backward => {
                self.bounds.end = edge;
                self.back = None;
            }
        }
        self.met |= self.bounds.start >= self.bounds.end;
    }

    async fn try_step(&mut self, direction: Direction) -> Result<Option<Guard>> {
        if self.met {
            return Ok(None);
        }
        let scan = match direction {
            Direction::Forward => &mut self.front,
            Direction::Backward => &mut self.back,
        };
        let scan = match scan {
            Some(scan) => scan,
            none => none.insert(Box::new(
                self.pinned
                    .view
                    .scan(
                        &self.pinned.keyspace.db.store.tables,
                        direction,
                        self.bounds.clone(),
                        self.snapshot,
                        Wanted::Live(self.now),
                        self.filter.as_ref().map(|(rule, prefix)| (rule, &prefix[..])),
                    )
                    .await?
                    .with_stretches(self.pinned.keyspace.db.store.stretches.clone()),
            )),
        };
        let (user_key, content) = loop {
            let Some(entry) = scan.next().await? else {
                self.met = true;
                return Ok(None);
            };
            let user_key = entry.user_key.clone();
            if key_kind(entry.trailer) == Kind::Merge {
                let merged = self.pinned.merged(&user_key, self.snapshot, self.now);
                match Box::pin(merged).await? {
                    Some(content) => break (user_key, content),
                    // All that there was of it has expired, or the operator wants it gone.
                    None => continue,
                }
            }
            let stored = Stored { trailer: entry.trailer, value: entry.value.clone() };
            break (user_key, Ok(stored));
        };
        // The two ends meet where one returns a key that the other has passed.
        match direction {
            Direction::Forward => {
                if self.back.as_ref().is_some_and(|b| b.last().is_some_and(|k| k <= &user_key[..]))
                {
                    self.met = true;
                    return Ok(None);
                }
            }
            Direction::Backward => {
                if self.front.as_ref().is_some_and(|f| f.last().is_some_and(|k| k >= &user_key[..]))
                {
                    self.met = true;
                    return Ok(None);
                }
            }
        }
        Ok(Some(self.guard(user_key, content)))
    }
}

/// A key of an iteration; its value is read, if it is long, only when asked for.
pub struct Guard {
    pinned: Arc<Pinned>,
    user_key: Vec<u8>,
    content: Content,
}

impl Guard {
    /// Returns the key with the keyspace id before it.
    pub(crate) fn user_key(&self) -> &[u8] {
        &self.user_key
    }

    /// Returns the key.
    pub fn key(&self) -> &[u8] {
        &self.user_key[4..]
    }

    /// Returns the length of the value, without reading it; 0 if its merge operator does not answer.
    pub fn size(&self) -> usize {
        self.content.as_ref().map_or(0, Stored::len)
    }

    /// Returns when the key expires, in milliseconds since the Unix epoch, without reading the
    /// value.
    pub fn deadline(&self) -> Option<u64> {
        self.content.as_ref().ok().and_then(Stored::deadline)
    }

    /// Returns the value.
    pub fn value(&self) -> Result<Slice> {
        block_on(self.value_async())
    }

    /// Async twin of [`Guard::value`].
    pub async fn value_async(&self) -> Result<Slice> {
        Ok(self.record_async().await?.value)
    }

    /// Returns the value with its deadline.
    pub async fn record_async(&self) -> Result<Record> {
        let Pinned { keyspace, view, ahead } = &*self.pinned;
        let stored = self.content.clone()?;
        keyspace.db.store.complete_with(view, &self.user_key, stored, Some(ahead)).await
    }

    /// Returns the key and the value.
    pub fn into_inner(self) -> Result<(Vec<u8>, Slice)> {
        block_on(self.into_inner_async())
    }

    /// Async twin of [`Guard::into_inner`].
    pub async fn into_inner_async(self) -> Result<(Vec<u8>, Slice)> {
        let value = self.value_async().await?;
        let mut key = self.user_key;
        key.drain(..4);
        Ok((key, value))
    }

    /// Returns the key and the value if `wanted` accepts the key; a long value is not read
    /// otherwise.
    pub fn into_inner_if(
        self,
        wanted: impl FnOnce(&[u8]) -> bool,
    ) -> Result<Option<(Vec<u8>, Slice)>> {
        if wanted(self.key()) { self.into_inner().map(Some) } else { Ok(None) }
    }
}

/// A two-ended iterator over the keys of a range, as of the moment it was made.
///
/// Yields an error once and then ends.
pub struct Range {
    cursor: Cursor,
    ended: bool,
}

impl Range {
    pub(crate) fn new(cursor: Cursor) -> Range {
        Range { cursor, ended: false }
    }

    fn yielded(&mut self, step: Result<Option<Guard>>) -> Option<Result<Guard>> {
        self.ended = !matches!(step, Ok(Some(_)));
        step.transpose()
    }
}

impl Iterator for Range {
    type Item = Result<Guard>;
    fn next(&mut self) -> Option<Result<Guard>> {
        if self.ended {
            return None;
        }
        let step = block_on(self.cursor.next());
        self.yielded(step)
    }
}

impl DoubleEndedIterator for Range {
    fn next_back(&mut self) -> Option<Result<Guard>> {
        if self.ended {
            return None;
        }
        let step = block_on(self.cursor.next_back());
        self.yielded(step)
    }
}
