//! The log lane: one append-only stream of frames, shared by many groups, that is both the Raft log
//! and the write-ahead log.
//!
//! A *group* is whoever numbers its entries itself: a consensus group, or the embedded database
//! (group 0, one term, what is durable is committed). All groups of a store share one lane, so that
//! one sync serves them all. The lane knows entries by (group, index) and never what is in them.
//!
//! ```text
//!   lane position  0                    base                     base+capacity
//!                  +--------------------+------------------------+----------------- - -
//!   segments       |H| frames ...       |H|f|f|f|  |f|f|         |H|  (prepared)
//!                  +--------------------+------------------------+----------------- - -
//!                   0000000001.log       0000000002.log  ^        0000000003.log
//!                                                   a sync was here: next block
//! ```
//!
//! A lane position is a byte count that only grows: segment base plus offset in the file. It is the
//! identity of an entry inside a store; sequence numbers derive from it.
//!
//! # Life of an entry
//! 1. [`Log::append`] stages it in memory. No I/O, so a batch of many groups is staged at once.
//! 2. [`Log::write`] hands what is staged to the kernel: it survives the death of the process.
//! 3. [`Log::sync`] makes it survive a power cut. The next frame starts in a fresh block.
//! 4. [`Log::release`] says that the tree has it; the entry is dead from then on.
//! 5. [`Log::reclaim`] recycles the oldest segments once everything in them is dead. An idle group
//!    with a few live entries in an old segment does not hold it: [`Log::copy_forward`] appends
//!    them again (as `rewrite`, with their old position as origin).
//!
//! # Invariants
//! - **Prefix without a hole.** What recovery accepts is a prefix of what was staged. Frames are a
//!   chain (each holds the checksum of the one before); a segment is synced before a frame of the
//!   next one is written; a block acknowledged as synced is never written again.
//! - **Torn or corrupt is decided, not guessed.** Each frame tells what was known durable when it
//!   was written. A damaged frame below such a mark is corruption, above every mark it is the torn
//!   tail (`lane.rs`).
//! - **A position names one entry for ever.** After a recovery the lane goes on in a fresh segment,
//!   whose header says where the part before it ends (the *cut*).
//! - **A failed write or sync is final.** Afterwards every call answers [`Error::Stopped`] with the
//!   first cause. A disk without space for a new segment is not: nothing was written yet, and the
//!   call may be repeated.
//!
//! # Decisions
//! - *Staging and I/O are apart*, and the owner drives both: which commits share a sync (group
//!   commit) and when a client is answered (durability) are its business.
//! - *Replay is pulled* ([`Recovery::next_entry`]) instead of calling back, because the owner must
//!   be able to flush in the middle of it.
//! - *No place per entry* unless a group is read back ([`LogOptions::indexed`]): see `groups.rs`.
//! - *One writer.* All that changes the lane takes `&mut self`; slow work that need not
//!   ([`Preparation::run`]) is apart so that it runs on another task.
//!
//! The format is in docs/formats/log.md. The parts: `frame.rs` and `segment.rs` (what is on disk),
//! `groups.rs` (what is live), `writer.rs`, `lane.rs` (reading), `recovery.rs`, `repair.rs`.

mod cut;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod groups;
mod lane;
mod recovery;
mod repair;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use atoll_env::disk::IoClass;
use atoll_env::{Env, IoTag};

pub(crate) use cut::LaneCut;
pub use frame::{FrameHeader, FrameKind};
pub use groups::GroupState;
pub use recovery::{Recovery, Replayed, Rest};
pub use repair::{CutReport, LaneSummary, repair_cut, verify};
pub(crate) use segment::FIRST_FRAME;
pub use segment::{LOG_READ, Preparation, Prepared, SEGMENT_CREATE, SEGMENT_REUSE};

use crate::error::{Error, Result};
use frame::{BLOCK, FrameKind as Kind};
use groups::{Group, Location};
use lane::Cursor;
use recovery::Assembly;
use writer::Writer;

/// Site of the writes that hand frames to the kernel; the default of [`Log::write`].
pub const FRAME_WRITE: IoTag = IoTag::new(IoClass::Log, "frame write");
/// Site of the sync that commits wait for.
pub const FRAME_SYNC: IoTag = IoTag::new(IoClass::Log, "frame sync");
/// Site of the start of write-back, which is not waited for.
pub const WRITE_BACK_START: IoTag = IoTag::new(IoClass::Log, "write-back");
/// Site of the sync of a full segment, before the first frame of the next one is written.
pub const ROTATION: IoTag = IoTag::new(IoClass::Log, "rotation");

/// Identity of a group. The embedded database is group 0.
pub type GroupId = u64;

/// Names an entry: no two entries of a group have the same index and term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId {
    /// The group.
    pub group: GroupId,
    /// Place in the group's log, from 1.
    pub index: u64,
    /// Term of the leader that proposed it.
    pub term: u64,
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}@{}", self.group, self.index, self.term)
    }
}

/// Bytes of the payload of a state: vote, first needed index, term before that.
pub(crate) const STATE_LEN: usize = 24;

/// An entry read back by [`Log::entries`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which one.
    pub id: EntryId,
    /// Lane position at which it was first appended: the base of its sequence numbers.
    pub position: u64,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// How a lane is kept.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// Identity of the lane, in every segment header: files of another store are refused.
    pub lane: u64,
    /// Size of a new segment in bytes, a multiple of 4 KiB from 16 KiB to 1 GiB. Existing ones
    /// keep theirs.
    pub segment_capacity: u64,
    /// Most spare segments kept for reuse.
    pub spares_max: usize,
    /// Whether new segments are filled with zeroes, and not only allocated: then no sync of the
    /// first round through them has to make the file system convert extents. It writes every
    /// segment once more in its life; a lane that is hardly ever synced can do without.
    pub fill: bool,
    /// Which groups are read back by (group, index); they cost memory for each live entry.
    pub indexed: fn(GroupId) -> bool,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions {
            lane: 0,
            segment_capacity: 64 << 20,
            spares_max: 2,
            fill: true,
            indexed: |_| false,
        }
    }
}

impl LogOptions {
    fn check(&self) -> Result<()> {
        let capacity = self.segment_capacity;
        if !capacity.is_multiple_of(BLOCK) || !(16 << 10..=1 << 30).contains(&capacity) {
            return Err(Error::InvalidInput(format!(
                "a log segment of {capacity} bytes: choose a multiple of 4 KiB from 16 KiB to 1 GiB"
            )));
        }
        Ok(())
    }
}

/// What a group looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupSummary {
    /// The group.
    pub group: GroupId,
    /// Its last recorded state.
    pub state: GroupState,
    /// Lowest index still needed.
    pub first: u64,
    /// One above the last index: what the next append may be at most.
    pub next: u64,
}

/// Sizes and counts of a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Segments of the lane, a prepared one included.
    pub segments: usize,
    /// Bytes they take on disk.
    pub segment_bytes: u64,
    /// Spare segments, not counted above.
    pub spares: usize,
    /// Bytes of frames staged since opening.
    pub appended_bytes: u64,
    /// Of these, bytes of entries and states copied forward.
    pub copied_bytes: u64,
    /// Bytes staged but not handed to the kernel.
    pub staged_bytes: u64,
    /// Lane position behind the last staged frame.
    pub end: u64,
    /// Lane position known durable.
    pub synced: u64,
}

/// A log lane, open for writing. Made by [`Log::open`] and [`Recovery::finish`].
///
/// # Cancellation
/// Dropping the future of `write`, `sync` or `reclaim` half-way leaves the state of the files
/// unknown; the log counts as failed then, as after an error.
pub struct Log {
    options: LogOptions,
    writer: Writer,
    groups: BTreeMap<GroupId, Group>,
    /// Everything live in front of this lane position was copied forward by this process.
    copied_to: u64,
    copied_bytes: u64,
}

impl Log {
    /// Reads the lane in `dir` (made if missing), verifies it and finds its end. Nothing is
    /// changed before [`Recovery::finish`].
    ///
    /// `known_durable` is a lane position the owner knows to be durable from elsewhere (the
    /// flushed position in its manifest), 0 for none: a lane that ends before it is corruption.
    pub async fn open(
        env: &Env,
        dir: &Path,
        options: LogOptions,
        known_durable: u64,
    ) -> Result<Recovery> {
        options.check()?;
        Recovery::open(env, dir, options, known_durable).await
    }

    /// Stages an entry and returns its lane position. `payload` is the concatenation of its parts.
    ///
    /// The index is at most one above the group's last; a lower one drops the entries at and above
    /// it. A wrong one is refused with `InvalidInput` and nothing changes.
    pub fn append(&mut self, id: EntryId, payload: &[&[u8]]) -> Result<u64> {
        self.writer.check()?;
        let indexed = (self.options.indexed)(id.group);
        let group = self.groups.entry(id.group).or_insert_with(|| Group::new(indexed));
        group.check_append(id)?;
        let (position, end) = self.writer.stage(Kind::Append, id, None, payload)?;
        group.append(id, Location { position, end, term: id.term });
        Ok(position)
    }

    /// Stages a group's state. It replaces the one before; the released prefix is kept.
    pub fn set_state(&mut self, group: GroupId, state: GroupState) -> Result<()> {
        self.stage_state(group, |g| g.state = state)
    }

    /// Says that entries of `group` below `first_needed` are dead, and stages that fact. Beyond
    /// the last index it also moves the next index: the owner took a snapshot from elsewhere.
    ///
    /// The owner calls it once what made them dead (a flush) is durable.
    pub fn release(&mut self, group: GroupId, first_needed: u64) -> Result<()> {
        if self.groups.get(&group).is_some_and(|g| g.first >= first_needed) {
            return Ok(());
        }
        self.stage_state(group, |g| g.release(first_needed))
    }

    fn stage_state(&mut self, id: GroupId, change: impl FnOnce(&mut Group)) -> Result<()> {
        self.writer.check()?;
        let indexed = (self.options.indexed)(id);
        let group = self.groups.entry(id).or_insert_with(|| Group::new(indexed));
        change(group);
        let (state, first, term) = (group.state, group.first, group.term_before);
        let header = EntryId { group: id, index: state.commit, term: state.term };
        let mut payload = [0; STATE_LEN];
        let words = [state.vote, first, term];
        for (place, word) in payload.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let (position, _) = self.writer.stage(Kind::State, header, None, &[&payload])?;
        group.set_state(state, (first, term), position);
        Ok(())
    }

    /// Makes sure that entries of these payload lengths can be staged and written without a new
    /// file. With it a full disk (`NoSpace`) shows before anything was staged, and the owner can
    /// refuse the write instead of holding a staged one.
    pub async fn reserve(&mut self, payload_lens: impl IntoIterator<Item = usize>) -> Result<()> {
        self.writer.reserve(payload_lens.into_iter()).await
    }

    /// Hands what is staged to the kernel: one write for each contiguous run. `site` is
    /// [`FRAME_WRITE`] unless the owner wants to see the write under another name.
    ///
    /// `NoSpace` means that the next segment could not be made: what is staged stays, call again.
    pub async fn write(&mut self, site: IoTag) -> Result<()> {
        self.writer.write(site).await
    }

    /// Writes what is staged and makes it durable.
    pub async fn sync(&mut self) -> Result<()> {
        self.write_synced(FRAME_WRITE).await
    }

    /// Writes what is staged, as [`Log::write`] does, and makes it durable in the same step.
    pub async fn write_synced(&mut self, site: IoTag) -> Result<()> {
        self.writer.write_synced(site).await
    }

    /// Returns the making of the next segment if it is due: run it on another task and give the
    /// result to [`Log::adopt`] before asking again. A writer that needs the segment earlier makes
    /// one itself.
    pub fn prepare(&mut self) -> Option<Preparation> {
        self.writer.prepare()
    }

    /// Takes a prepared segment into the lane, or among the spares if it came too late.
    pub async fn adopt(&mut self, prepared: Prepared) -> Result<()> {
        self.writer.adopt(prepared).await
    }

    /// Makes the next segment now if it is due.
    pub async fn prepare_next(&mut self) -> Result<()> {
        match self.prepare() {
            Some(preparation) => {
                let prepared = self.writer.note(preparation.run().await)?;
                self.adopt(prepared).await
            }
            None => Ok(()),
        }
    }

    /// Appends what is live in the oldest segments again, entry by entry, until about `limit`
    /// bytes were staged or nothing is left to copy but the segment being written. Returns the
    /// bytes staged; 0 means that [`Log::reclaim`] can recycle all but the newest segment.
    ///
    /// For the owner that finds the log larger than it wants although the busy groups released
    /// their entries: what is left belongs to idle ones, and is little.
    pub async fn copy_forward(&mut self, limit: u64) -> Result<u64> {
        self.writer.check()?;
        let (lane, newest) = self.writer.written_lane();
        let mut cursor = Cursor::new(lane);
        if self.copied_to > cursor.position() {
            cursor.seek(self.copied_to);
        }
        let start = self.writer.appended_bytes;
        let mut assembly = Assembly::default();
        while self.writer.appended_bytes - start < limit {
            let Some(frame) = cursor.next().await? else {
                if cursor.position() < newest {
                    let (path, offset) = self.writer.file_at(cursor.position());
                    let what = "frames that were good when the log was opened do not verify";
                    return Err(Error::corruption(&path, offset, what));
                }
                break;
            };
            let header = frame.header;
            if header.position >= newest && !assembly.is_open() {
                self.copied_to = newest;
                break;
            }
            let group = self.groups.get(&header.group);
            if header.kind == Kind::State {
                if group.is_some_and(|g| g.state_position == Some(header.position)) {
                    self.stage_state(header.group, |_| {})?;
                }
            } else {
                let live = group.is_some_and(|g| g.is_live(header.index, header.origin));
                if let Some(whole) = assembly.feed(&frame, live)
                    && live
                {
                    let (id, origin) = (whole.id, whole.origin);
                    let payload = [assembly.payload()];
                    let (position, end) =
                        self.writer.stage(Kind::Rewrite, id, Some(origin), &payload)?;
                    if let Some(group) = self.groups.get_mut(&id.group) {
                        group.rewrite(id, origin, Location { position, end, term: id.term });
                    }
                }
            }
            if !assembly.is_open() {
                self.copied_to = cursor.position();
            }
        }
        let copied = self.writer.appended_bytes - start;
        self.copied_bytes += copied;
        Ok(copied)
    }

    /// Appends what is live in front of lane position `before` again, of the groups that are indexed:
    /// at most about `limit` bytes. Returns whether there was nothing more; then [`Log::reclaim`] can
    /// recycle everything in front of it, if the other groups need nothing there either.
    ///
    /// Unlike [`Log::copy_forward`] it reads nothing but what it copies, and it stops where the
    /// entries begin that will soon be released anyway.
    pub async fn move_forward(&mut self, before: u64, limit: u64) -> Result<bool> {
        self.writer.check()?;
        let (lane, newest) = self.writer.written_lane();
        let before = before.min(newest);
        let mut cursor = Cursor::new(lane);
        cursor.read_pieces_of(frame::BLOCK);
        let start = self.writer.appended_bytes;
        let mut done = true;
        for (id, highest) in self.writer.held_in_front_of(before, &self.groups) {
            let Some(group) = self.groups.get(&id) else { continue };
            if group.state_position.is_some_and(|position| position < before) {
                self.stage_state(id, |_| {})?;
            }
            let Some(places) = self.groups.get(&id).and_then(|g| g.index.as_ref()) else {
                done = false;
                continue;
            };
            let old = places.range(..=highest).filter(|(_, place)| place.position < before);
            let old: Vec<(u64, Location)> = old.map(|(&index, &place)| (index, place)).collect();
            for (index, place) in old {
                if self.writer.appended_bytes - start >= limit {
                    done = false;
                    break;
                }
                let wanted = EntryId { group: id, index, term: place.term };
                let entry = recovery::read_entry(&mut cursor, place.position).await?;
                let Some(entry) = entry.filter(|entry| entry.id == wanted) else {
                    return Err(self.entry_is_gone(wanted, place));
                };
                let (origin, payload) = (entry.position, [&entry.payload[..]]);
                let (position, end) =
                    self.writer.stage(Kind::Rewrite, wanted, Some(origin), &payload)?;
                if let Some(group) = self.groups.get_mut(&id) {
                    group.rewrite(wanted, origin, Location { position, end, term: place.term });
                }
            }
        }
        if done {
            self.copied_to = self.copied_to.max(before);
        }
        self.copied_bytes += self.writer.appended_bytes - start;
        Ok(done)
    }

    fn entry_is_gone(&self, id: EntryId, place: Location) -> Error {
        let (path, offset) = self.writer.file_at(place.position);
        Error::corruption(&path, offset, format!("entry {id} is gone"))
    }

    /// Returns the lane position of the oldest segment among the newest ones that take at most
    /// `bytes` together.
    pub fn newest_segments(&self, bytes: u64) -> u64 {
        self.writer.newest_segments(bytes)
    }

    /// Returns the number of segments.
    pub fn segments(&self) -> usize {
        self.writer.segments()
    }

    /// Recycles the oldest segments in which everything is dead, and returns how many. Writes and
    /// syncs first if there are any: what made the entries dead must be as durable as their end.
    pub async fn reclaim(&mut self) -> Result<usize> {
        self.writer.check()?;
        let (groups, copied_to) = (&self.groups, self.copied_to);
        let dead = self.writer.obsolete(|end, content| {
            end <= copied_to || !content.iter().any(|(id, pin)| pin.holds(groups.get(id)))
        });
        if dead > 0 {
            self.sync().await?;
            self.writer.recycle(dead).await?;
            let oldest = self.writer.oldest_position();
            for group in self.groups.values_mut() {
                group.forget_overwrites_below(oldest);
            }
        }
        Ok(dead)
    }

    /// Reads entries `range` of an indexed group back, from the lowest index on. They have been
    /// handed to the kernel. An index that is not there is refused.
    pub async fn entries(&self, group: GroupId, range: Range<u64>) -> Result<Vec<Entry>> {
        self.entries_up_to(group, range, u64::MAX).await
    }

    /// Reads entries as [`Log::entries`] does, the first ones that take at most `bytes_max` bytes in
    /// the log, but at least one.
    pub async fn entries_up_to(
        &self,
        group: GroupId,
        range: Range<u64>,
        bytes_max: u64,
    ) -> Result<Vec<Entry>> {
        let refuse = |why: String| Error::InvalidInput(format!("read group {group}: {why}"));
        let known = self.groups.get(&group);
        let index = known.and_then(|g| g.index.as_ref());
        let index = index.ok_or_else(|| refuse("the group is not indexed".into()))?;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let places: Vec<(u64, Location)> =
            index.range(range.clone()).map(|(&index, &place)| (index, place)).collect();
        if places.len() as u64 != range.end - range.start {
            let have = known.map_or(0..0, |g| g.first..g.next);
            return Err(refuse(format!("entries {range:?} of {have:?} are not all there")));
        }
        let mut bytes = 0;
        let mut count = 0;
        for (_, place) in &places {
            let len = place.end - place.position;
            if count > 0 && bytes + len > bytes_max {
                break;
            }
            (bytes, count) = (bytes + len, count + 1);
        }
        let mut places = places;
        places.truncate(count);
        let (lane, _) = self.writer.written_lane();
        let mut cursor = Cursor::new(lane);
        cursor.read_pieces_of(bytes);
        let mut entries = Vec::with_capacity(places.len());
        for (index, place) in places {
            if place.end > self.writer.written {
                return Err(refuse(format!("entry {index} is staged but not written")));
            }
            let entry = recovery::read_entry(&mut cursor, place.position).await?;
            let id = EntryId { group, index, term: place.term };
            match entry {
                Some(entry) if entry.id == id => entries.push(entry),
                _ => return Err(self.entry_is_gone(id, place)),
            }
        }
        Ok(entries)
    }

    /// Returns the term of an entry of an indexed group, or of the one before its first; `None` if it
    /// is not known.
    pub fn term(&self, group: GroupId, index: u64) -> Option<u64> {
        self.groups.get(&group)?.term(index)
    }

    /// Returns what is known of a group, `None` if nothing is.
    pub fn group(&self, group: GroupId) -> Option<GroupSummary> {
        self.groups.get(&group).map(|g| summary(group, g))
    }

    /// Returns what is known of every group, by ascending id.
    pub fn groups(&self) -> impl Iterator<Item = GroupSummary> {
        self.groups.iter().map(|(&id, g)| summary(id, g))
    }

    /// Returns the lane up to what is known durable, for a copy. None of its segments is recycled
    /// until the cut is dropped.
    pub(crate) fn cut(&self) -> LaneCut {
        self.writer.cut()
    }

    /// Returns the lane position behind the last staged frame.
    pub fn end(&self) -> u64 {
        self.writer.end
    }

    /// Returns the lane position up to which the lane is known durable.
    pub fn synced(&self) -> u64 {
        self.writer.synced
    }

    /// Returns sizes and counts.
    pub fn stats(&self) -> LogStats {
        LogStats { copied_bytes: self.copied_bytes, ..self.writer.stats() }
    }
}

fn summary(group: GroupId, g: &Group) -> GroupSummary {
    GroupSummary { group, state: g.state, first: g.first, next: g.next }
}

/// Returns whether the rule of this name is left out, for the negative controls of the crash tests.
#[inline]
fn mutant(name: &str) -> bool {
    crate::mutants::is(name)
}
