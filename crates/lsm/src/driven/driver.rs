//! The writing half: the log lane and what is applied of it, in the owner's hand.

use std::fmt;
use std::future::Future;
use std::iter;
use std::ops::Range;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use atoll_env::sometimes;
use atoll_env::sync::{Either, Notify, select_biased};

use super::tree::Tree;
use crate::background::Background;
use crate::database::closed;
use crate::error::{Error, Result};
use crate::events::FlushReason;
use crate::identity::Kind;
use crate::keyspace::Keyspaces;
use crate::log::{Entry, EntryId, GroupId, GroupState, GroupSummary, LogStats, STATE_LEN};
use crate::opening;
use crate::options::Options;
use crate::store::{Stamp, Store, Writer};

/// Most bytes of idle groups' entries that one call of [`Driver::chores`] moves forward; a quarter of
/// a segment where that is less.
const MOVE_MAX: u64 = 1 << 20;

/// How a store is opened.
#[derive(Clone)]
pub struct OpenOptions {
    /// The engine's options. `durability` says how the log's segments are made ready: where hardly
    /// anything is synced they need not be.
    pub options: Options,
}

/// Opens the store in the directory `path`, making it if the directory is missing or empty.
///
/// # Errors
/// `Locked` if somebody has it open, `Foreign` if the directory is of another kind or newer,
/// `Corruption` if stored bytes do not verify: nothing is changed then.
pub async fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<(Driver, Tree)> {
    let path = path.as_ref().to_owned();
    let opening::Opened { store, next_file, .. } =
        opening::open(path, options.options, Kind::Store).await?;
    let writer = store.take_writer().ok_or_else(closed)?;
    let background = Background::start(store.clone(), Arc::new(Keyspaces::default()), next_file);
    let tree = Tree { store: store.clone(), background: background.clone() };
    let trim = Trim { segments: 0, again: true, reclaim: false };
    Ok((Driver { store, background, writer, trim, closed: false }, tree))
}

/// The one who writes a store; see [the module](super) for the turns of its owner.
pub struct Driver {
    store: Arc<Store>,
    background: Arc<Background>,
    writer: Box<Writer>,
    trim: Trim,
    closed: bool,
}

/// When to look whether the lane is too long.
struct Trim {
    /// How many segments it had at the last look.
    segments: usize,
    /// Whether there is a reason to look although it has as many.
    again: bool,
    /// Whether entries were let go that no flush has released.
    reclaim: bool,
}

impl Driver {
    /// Returns the random number that the store was given when it was made. It tells the owner of
    /// several stores one from the other, and his own from somebody else's; a copy has that of the
    /// original.
    pub fn identity(&self) -> u64 {
        self.store.id
    }

    // ---- what the log holds ----

    /// Returns what is known of every group, by ascending id.
    pub fn groups(&self) -> impl Iterator<Item = GroupSummary> + '_ {
        self.writer.log.groups()
    }

    /// Returns what is known of a group, `None` if nothing is.
    pub fn group(&self, group: GroupId) -> Option<GroupSummary> {
        self.writer.log.group(group)
    }

    /// Returns the index of the last entry of a group that was applied, 0 for none. After opening it
    /// is the last one that is in tables: apply those behind it again.
    pub fn applied(&self, group: GroupId) -> u64 {
        self.writer.applied.get(&group).copied().unwrap_or(0)
    }

    /// Reads entries back. They were written; an index that is not there is refused.
    pub async fn entries(&self, group: GroupId, range: Range<u64>) -> Result<Vec<Entry>> {
        self.writer.log.entries(group, range).await
    }

    /// Reads the first entries of `range` back that take at most `bytes_max` bytes in the log, but
    /// at least one.
    pub async fn entries_up_to(
        &self,
        group: GroupId,
        range: Range<u64>,
        bytes_max: u64,
    ) -> Result<Vec<Entry>> {
        self.writer.log.entries_up_to(group, range, bytes_max).await
    }

    /// Returns the term of an entry, or of the one before the group's first; `None` if it is not
    /// known.
    pub fn term(&self, group: GroupId, index: u64) -> Option<u64> {
        self.writer.log.term(group, index)
    }

    /// Returns the lane position behind the last staged frame.
    pub fn end(&self) -> u64 {
        self.writer.log.end()
    }

    /// Returns the lane position up to which the lane is known durable.
    pub fn synced(&self) -> u64 {
        self.writer.log.synced()
    }

    /// Returns sizes and counts of the log.
    pub fn log_stats(&self) -> LogStats {
        self.writer.log.stats()
    }

    // ---- a turn ----

    /// Makes sure that entries of these payload lengths can be staged, with as many states, and their
    /// writes applied, which take `arena_bytes` ([`Writes::arena_bytes`], all together). Slower the
    /// more flushes and merges lag behind; waits for memory when there is none.
    ///
    /// # Errors
    /// `NoSpace`: the disk is full; try again later, when [`Tree::refusal`] is `None`. `Stopped`. `Io`
    /// or `Corruption`: memory is full and its flush fails for that reason. `InvalidInput`: more than
    /// the memory budget allows at once. Nothing was staged.
    ///
    /// [`Writes::arena_bytes`]: super::Writes::arena_bytes
    pub async fn reserve(&mut self, arena_bytes: usize, payload_lens: &[usize]) -> Result<()> {
        self.store.check_arena(arena_bytes)?;
        self.store.slow_down(&mut self.writer, payload_lens.iter().sum()).await?;
        let states = iter::repeat_n(STATE_LEN, payload_lens.len());
        let lens = payload_lens.iter().copied().chain(states);
        self.store.make_room(&mut self.writer, arena_bytes, lens).await
    }

    /// Returns about the most that can be reserved at once: twice as much is `InvalidInput`.
    pub fn arena_most(&self) -> usize {
        self.store.arena_most() / 2
    }

    /// Stages an entry and returns its lane position. `payload` is the concatenation of its parts.
    ///
    /// The index is at most one above the group's last; a lower one drops the entries at and above
    /// it. A wrong one is refused with `InvalidInput` and nothing changes.
    pub fn append(&mut self, id: EntryId, payload: &[&[u8]]) -> Result<u64> {
        self.writer.log.append(id, payload)
    }

    /// Stages a group's term, vote and commit index, in the place of those before.
    pub fn set_state(&mut self, group: GroupId, state: GroupState) -> Result<()> {
        self.writer.log.set_state(group, state)
    }

    /// Hands what is staged to the kernel: it survives the death of the process.
    ///
    /// # Errors
    /// `NoSpace`: what is staged stays so, call again; a reservation rules it out. After any other one
    /// the store has stopped.
    pub async fn write(&mut self) -> Result<()> {
        self.store.write_log(&mut self.writer, false).await
    }

    /// Makes everything that is staged or written durable.
    ///
    /// # Errors
    /// As [`Driver::write`]. A failed sync stops the store: what the disk kept is not known.
    pub async fn sync(&mut self) -> Result<()> {
        self.store.write_log(&mut self.writer, true).await
    }

    /// Applies an entry, which was appended at lane position `position`, and makes it visible.
    /// `writes` are [`Writes::bytes`], or nothing if the entry writes nothing.
    ///
    /// The entries of a group are applied in the order of their indexes, without a gap. Entries that
    /// are applied cannot be overwritten any more.
    ///
    /// # Errors
    /// `InvalidInput`: it is not the next one of its group. After any other one the store has stopped.
    ///
    /// [`Writes::bytes`]: super::Writes::bytes
    pub async fn apply(
        &mut self,
        group: GroupId,
        index: u64,
        position: u64,
        writes: &[u8],
    ) -> Result<()> {
        let applied = self.applied(group);
        if index != applied + 1 {
            return Err(Error::InvalidInput(format!(
                "apply entry {index} of group {group}: the next one is {}",
                applied + 1
            )));
        }
        if writes.is_empty() {
            self.writer.applied.insert(group, index);
            return Ok(());
        }
        let stamp = Stamp { group, index, position };
        let applied = self.store.apply(&mut self.writer, stamp, writes).await;
        applied.inspect_err(|e| self.store.stop(e))
    }

    /// Keeps the entries of a group from `first` on in the log although they are in tables: somebody may
    /// still ask for them. `u64::MAX` ends that. A hold lasts until it is moved, or until the log has become
    /// too long for it ([`Options::held_log_max`]): then all are given up, and who lacks more than the log
    /// has needs a copy of the tree. Memory only: after opening nothing is held, and nothing let go before
    /// the first flush.
    ///
    /// # Errors
    /// The log has failed.
    pub fn hold(&mut self, group: GroupId, first: u64) -> Result<()> {
        let before = self.writer.held.insert(group, first);
        if before.is_some_and(|before| before < first) {
            // What was let go of goes now, its segments with the next chores.
            let first_of = |writer: &Writer| writer.log.group(group).map(|summary| summary.first);
            let had = first_of(&self.writer);
            self.writer.release(group)?;
            if first_of(&self.writer) != had {
                (self.trim.again, self.trim.reclaim) = (true, true);
            }
        }
        Ok(())
    }

    // ---- chores ----

    /// Returns the flag that is raised whenever background work has something for
    /// [`Driver::chores`].
    pub fn chores_due(&self) -> Arc<Notify> {
        self.store.queue.due.clone()
    }

    /// Does what background work asked for: seals the memtable, lets the log forget what is in
    /// tables, takes a new segment into use. Also keeps the lane short: what idle groups still need of
    /// its oldest segments is moved to its end, a piece at a time. Costs next to nothing when there is
    /// nothing to do.
    ///
    /// # Errors
    /// `Stopped`, if the store has.
    pub async fn chores(&mut self) -> Result<()> {
        for request in self.store.queue.take_all() {
            let served = self.store.serve(&mut self.writer, &request.work).await;
            self.trim.again |= request.work.shortens_log();
            request.ticket.answer(served);
        }
        let segments = self.writer.log.segments();
        if self.trim.again || segments != self.trim.segments {
            self.trim = Trim { segments, again: false, ..self.trim };
            self.trim_lane().await;
        }
        self.store.prepare_segment(&mut self.writer);
        self.store.stopped().map_or(Ok(()), Err)
    }

    /// Runs `future` to its end and does the chores meanwhile: for one that waits for them, as
    /// [`Tree::flush`] does.
    pub async fn attend<F: Future>(&mut self, future: F) -> F::Output {
        let due = self.chores_due();
        let mut future = pin!(future);
        loop {
            match select_biased(future.as_mut(), due.notified()).await {
                Either::Left(output) => return output,
                // If the store has stopped, so will whoever waits.
                Either::Right(()) => {
                    let _ = self.chores().await;
                }
            }
        }
    }

    /// Gives segments back that a log of a reasonable length does not have.
    ///
    /// A flush releases the entries of all groups that are in its tables. What may still pin an old
    /// segment is what was applied since and does not fill a memtable, which is flushed then; and
    /// entries that an idle group has not applied, and its state: these are appended again.
    async fn trim_lane(&mut self) {
        let Driver { store, writer, trim, .. } = self;
        let mut most = store.lane_bytes_max();
        let long = writer.log.stats().segment_bytes;
        if writer.holds() {
            let held = store.options.held_log_max;
            if long > most + held && !store.is_stopping() {
                sometimes!(true, "entries are held in vain: the log is too long");
                let groups: Vec<GroupId> = writer.held.keys().copied().collect();
                writer.held.clear();
                let released = groups.into_iter().try_for_each(|group| writer.release(group));
                if let Err(e) = released {
                    store.stop(&e);
                    return;
                }
            } else {
                most += held;
            }
        }
        if store.is_stopping() || long <= most {
            // Segments may have become free all the same.
            if trim.reclaim && !store.is_stopping() {
                trim.reclaim = false;
                if let Err(e @ Error::Stopped(_)) = writer.log.reclaim().await {
                    store.stop(&e);
                }
            }
            return;
        }
        let before = writer.log.newest_segments(most);
        let oldest_in = |memtable: &crate::memtable::Memtable| {
            memtable.seqnos().is_some_and(|(oldest, _)| oldest < before)
        };
        if store.sealed.lock().iter().any(|sealed| oldest_in(&sealed.memtable)) {
            // Its flush ends with a release.
            return;
        }
        if oldest_in(writer.active.memtable()) {
            // A failure has stopped the store, or lacks space, and then nothing is lost.
            let usual = store.options.memtable_capacity();
            let _ = store.seal(writer, usual, FlushReason::LogLength).await;
            return;
        }
        // Room for the copies first: on a full disk they must not stand in front of the writes that
        // are to be refused.
        let piece = MOVE_MAX.min(store.options.segment_capacity() / 4);
        if store.make_room(writer, 0, [2 * piece as usize]).await.is_err() {
            return;
        }
        let moved = match writer.log.move_forward(before, piece).await {
            Ok(true) => writer.log.reclaim().await.map(|_| true),
            other => other,
        };
        match moved {
            Ok(true) => trim.segments = writer.log.segments(),
            Ok(false) => {
                trim.again = true;
                store.queue.due.notify();
            }
            Err(e @ Error::NoSpace(_)) => store.run_out_of_space(&e),
            // An entry that cannot be read back stops nobody who does not ask for it.
            Err(Error::Io { .. } | Error::Corruption { .. }) => {}
            Err(e) => store.stop(&e),
        }
    }

    // ---- the end ----

    /// Flushes, ends background work and releases the directory. Trees that remain answer `Stopped`.
    pub async fn close(mut self) -> Result<()> {
        let background = self.background.clone();
        let flushed = self.attend(background.flush_all()).await;
        // An orderly end loses nothing to a power cut, whatever was synced before.
        let synced = self.sync().await;
        self.store.begin_shutdown();
        self.attend(background.ended()).await;
        self.closed = true;
        self.store.queue.owner_goes();
        self.store.unlock().await;
        match flushed.and(synced) {
            // The log has what could not be flushed.
            Err(Error::NoSpace(_)) => Ok(()),
            other => other,
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if !self.closed {
            self.store.begin_shutdown();
            self.store.queue.owner_goes();
        }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Driver({})", self.store.paths.root.display())
    }
}
