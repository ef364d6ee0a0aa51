//! The writing end of the lane: staging, handing to the kernel, syncing, and the segments.
//!
//! ```text
//!    synced          written                end
//!      |  unsynced     |  staged runs        |
//!   ---+---------------+---------------------+--> lane position
//!      the kernel has it; memory only;
//!      a power cut may    a kill may
//!      take it            take it
//! ```
//!
//! Staging needs no file: number, base and salt of a segment are chosen when the first frame for it
//! is staged ([`Slot`] without a segment); the file is made when it is written at the latest.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use atoll_env::random::Random;
use atoll_env::{IoBuf, IoTag};

use super::cut::{Holds, LaneCut};
use super::frame::{BLOCK, FrameHeader, FrameKind, HEADER_LEN, MAX_FRAME, extent};
use super::groups::Group;
use super::segment::{
    Directory, FIRST_FRAME, Preparation, Prepared, SEGMENT_REUSE, Segment, SegmentHeader, Source,
    stopped,
};
use super::{EntryId, FRAME_SYNC, GroupId, LogOptions, LogStats, ROTATION, WRITE_BACK_START};
use crate::error::{Error, Result};

/// Bytes that are written before the kernel is told to begin with them.
const WRITE_BACK: u64 = 1 << 20;

/// What a segment holds of one group.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pin {
    /// Highest index of an entry, 0 for none.
    highest: u64,
    /// Position of the last `state`.
    state: Option<u64>,
}

impl Pin {
    /// Returns whether the group may still need something here. May say yes too often (an entry
    /// that was overwritten later); copying forward finds out.
    pub fn holds(&self, group: Option<&Group>) -> bool {
        group.is_some_and(|g| {
            (self.highest >= g.first && g.first < g.next)
                || (self.state.is_some() && self.state == g.state_position)
        })
    }
}

/// Per group, what a segment holds.
pub(super) type Content = BTreeMap<GroupId, Pin>;

/// Records that `frame` lies in the segment of `content`.
pub(super) fn note_content(content: &mut Content, frame: &FrameHeader) {
    let pin = content.entry(frame.group).or_default();
    match frame.kind {
        FrameKind::State => pin.state = Some(frame.position),
        FrameKind::Append | FrameKind::Rewrite => pin.highest = pin.highest.max(frame.index),
    }
}

/// A segment of the lane, or the plan of one.
pub(super) struct Slot {
    pub header: SegmentHeader,
    /// `None` while planned.
    pub segment: Option<Segment>,
    pub content: Content,
}

/// Staged bytes for one place in one segment.
struct Run {
    number: u64,
    offset: u64,
    bytes: IoBuf,
}

/// Where the next frame goes.
#[derive(Clone, Copy)]
struct Tail {
    number: u64,
    offset: u64,
}

/// Files of the log that are not segments of the lane.
#[derive(Default)]
pub(super) struct Spares {
    /// Numbers of the spares.
    pub numbers: Vec<u64>,
    /// The number the next spare or new file gets.
    pub next: u64,
}

impl Spares {
    /// Chooses what to make a segment from.
    pub fn source(&mut self) -> Source {
        match self.numbers.pop() {
            Some(number) => Source::Spare(number),
            None => Source::New(self.number()),
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Takes a segment out of the lane: it becomes a spare if one is wanted. Durable on return, so
    /// that segments that go one after the other never leave a gap.
    pub async fn retire(
        &mut self,
        directory: &Directory,
        options: &LogOptions,
        segment: &Segment,
    ) -> Result<()> {
        let fits = segment.header.capacity == options.segment_capacity;
        if fits && self.numbers.len() < options.spares_max {
            let number = self.number();
            let spare = directory.spare_path(number);
            directory.rename(SEGMENT_REUSE, &segment.path, &spare).await?;
            directory.sync(SEGMENT_REUSE).await?;
            self.numbers.push(number);
            return Ok(());
        }
        directory.remove(&segment.path).await?;
        directory.sync(SEGMENT_REUSE).await
    }
}

pub(super) struct Writer {
    pub directory: Directory,
    pub options: LogOptions,
    pub random: Arc<dyn Random>,
    pub epoch: u32,
    /// Oldest first, numbers without a gap; planned ones at the end. Never empty.
    slots: VecDeque<Slot>,
    /// The slots with files, for readers.
    lane: Arc<[Segment]>,
    /// Number of the segment that was written last.
    writing: u64,
    staged: VecDeque<Run>,
    tail: Tail,
    /// Checksum of the last staged frame.
    prev: u32,
    /// Position that is durable by the time a frame at `tail` is written: the end of the segment
    /// before.
    floor: u64,
    pub end: u64,
    pub written: u64,
    pub synced: u64,
    /// Write-back was started up to here.
    writing_back: u64,
    spares: Spares,
    /// Segments that somebody copies.
    holds: Holds,
    /// Memory of the last written run, to be staged into again.
    idle: IoBuf,
    /// Why the log stopped.
    failed: Option<String>,
    pub appended_bytes: u64,
}

impl Writer {
    /// Starts in the last of `slots`, an empty or planned segment, after a lane that is durable up
    /// to `end` and whose last frame has the checksum `prev`. At least one slot has a file.
    pub fn new(
        directory: Directory,
        options: LogOptions,
        random: Arc<dyn Random>,
        slots: VecDeque<Slot>,
        spares: Spares,
        (end, prev): (u64, u32),
    ) -> Writer {
        let newest = slots.back().map(|s| s.header);
        let newest = newest.expect("a lane has at least the segment that opening planned");
        let written = slots.iter().rev().find(|s| s.segment.is_some()).map(|s| s.header.number);
        let mut writer = Writer {
            directory,
            options,
            random,
            epoch: newest.epoch,
            slots,
            lane: Arc::new([]),
            writing: written.unwrap_or(newest.number),
            staged: VecDeque::new(),
            tail: Tail { number: newest.number, offset: FIRST_FRAME },
            prev,
            floor: end,
            end,
            written: end,
            synced: end,
            writing_back: end,
            spares,
            holds: Holds::default(),
            idle: IoBuf::new(),
            failed: None,
            appended_bytes: 0,
        };
        writer.refresh_lane();
        writer
    }

    /// Answers the first failure for ever.
    pub fn check(&self) -> Result<()> {
        self.failed.as_ref().map_or(Ok(()), |why| Err(Error::Stopped(why.clone())))
    }

    /// Remembers a failure that is final.
    pub fn note<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(Error::Stopped(why)) = &result
            && self.failed.is_none()
        {
            self.failed = Some(why.clone());
        }
        result
    }

    fn payload_max(&self) -> usize {
        let room = (self.options.segment_capacity - FIRST_FRAME) as usize;
        room.min(MAX_FRAME) - HEADER_LEN
    }

    /// Stages an entry or a state, in as many fragments as it takes. Returns the positions of its
    /// first frame and behind its last one.
    pub fn stage(
        &mut self,
        kind: FrameKind,
        id: EntryId,
        origin: Option<u64>,
        payload: &[&[u8]],
    ) -> Result<(u64, u64)> {
        let mut left: usize = payload.iter().map(|part| part.len()).sum();
        if u32::try_from(left).is_err() {
            return Err(Error::InvalidInput(format!("an entry of {left} bytes: 4 GiB at most")));
        }
        if left <= self.payload_max() {
            // Nearly every entry is one frame.
            let position = self.place_frame(left);
            let header = self.header(kind, id, origin.unwrap_or(position), (position, left));
            self.stage_frame(&header, payload);
            return Ok((position, self.end));
        }
        let mut start = None;
        let mut parts = payload.iter().copied();
        let mut part: &[u8] = &[];
        loop {
            let len = left.min(self.payload_max());
            left -= len;
            let mut fragment = Vec::with_capacity(payload.len() + 1);
            let mut missing = len;
            while missing > 0 {
                if part.is_empty() {
                    part = parts.next().expect("the parts add up to their total length");
                }
                let (taken, rest) = part.split_at(missing.min(part.len()));
                fragment.push(taken);
                missing -= taken.len();
                part = rest;
            }
            let first = start.is_none();
            let position = self.place_frame(len);
            let start = *start.get_or_insert(position);
            let header = self.header(kind, id, origin.unwrap_or(start), (position, len));
            self.stage_frame(&FrameHeader { first, last: left == 0, ..header }, &fragment);
            if left == 0 {
                return Ok((start, self.end));
            }
        }
    }

    /// Returns the header of a frame that is a whole entry, of `len` bytes at `position`.
    fn header(
        &self,
        kind: FrameKind,
        id: EntryId,
        origin: u64,
        (position, len): (u64, usize),
    ) -> FrameHeader {
        FrameHeader {
            checksum: 0,
            len: len as u32,
            position,
            origin,
            group: id.group,
            index: id.index,
            term: id.term,
            unsynced: u32::try_from(position - self.synced.max(self.floor)).unwrap_or(u32::MAX),
            prev: self.prev,
            epoch: self.epoch,
            kind,
            first: true,
            last: true,
        }
    }

    /// Chooses where a frame with `len` bytes of payload goes and returns its position.
    fn place_frame(&mut self, len: usize) -> u64 {
        if self.tail.offset + extent(len) > self.slot(self.tail.number).header.capacity {
            self.tail = Tail { number: self.tail.number + 1, offset: FIRST_FRAME };
            self.floor = self.end;
            if self.tail.number > self.newest() {
                self.plan();
            }
        }
        self.slot(self.tail.number).header.base + self.tail.offset
    }

    fn stage_frame(&mut self, header: &FrameHeader, payload: &[&[u8]]) {
        let tail = self.tail;
        let continues = self.staged.back().is_some_and(|run| run.number == tail.number);
        if !continues {
            let mut bytes = std::mem::take(&mut self.idle);
            bytes.clear();
            self.staged.push_back(Run { number: tail.number, offset: tail.offset, bytes });
        }
        let slot = self.slot_mut(tail.number);
        note_content(&mut slot.content, header);
        let place = slot.header.place(tail.offset);
        let run = self.staged.back_mut().expect("a run was pushed above");
        self.prev = header.encode(place, payload, &mut run.bytes);
        self.tail.offset += header.extent();
        self.end = header.position + header.extent();
        self.appended_bytes += header.extent();
    }

    /// Adds the plan of one more segment.
    fn plan(&mut self) {
        let newest = self.slot(self.newest()).header;
        let header = SegmentHeader {
            lane: self.options.lane,
            number: newest.number + 1,
            base: newest.end(),
            capacity: self.options.segment_capacity,
            salt: self.random.next_u64(),
            epoch: self.epoch,
            cut: None,
        };
        self.slots.push_back(Slot { header, segment: None, content: Content::new() });
    }

    /// See [`super::Log::reserve`]. Walks the way staging will take.
    pub async fn reserve(&mut self, payload_lens: impl Iterator<Item = usize>) -> Result<()> {
        self.check()?;
        let Tail { mut number, mut offset } = self.tail;
        let max = self.payload_max();
        for mut left in payload_lens {
            loop {
                let len = left.min(max);
                left -= len;
                if offset + extent(len) > self.slot(number).header.capacity {
                    (number, offset) = (number + 1, FIRST_FRAME);
                    if number > self.newest() {
                        self.plan();
                    }
                }
                offset += extent(len);
                if left == 0 {
                    break;
                }
            }
        }
        self.make_segments_to(number).await
    }

    /// See [`super::Log::write`].
    pub async fn write(&mut self, site: IoTag) -> Result<()> {
        self.hand_over(site, false).await
    }

    /// See [`super::Log::write_synced`].
    pub async fn write_synced(&mut self, site: IoTag) -> Result<()> {
        self.hand_over(site, true).await?;
        self.sync_written(FRAME_SYNC).await?;
        self.tail.offset = self.tail.offset.next_multiple_of(BLOCK);
        Ok(())
    }

    /// Writes what is staged. With `sync` the last run is written and synced in one step, as far as
    /// the end of its last block: no frame will begin there any more, and whole blocks can go past the
    /// page cache.
    ///
    /// Without, a block is written whole when its first byte is: what stands there is the segment's
    /// former life, and to keep the rest of it the kernel would have to read the block first, while
    /// the writer waits.
    async fn hand_over(&mut self, site: IoTag, sync: bool) -> Result<()> {
        self.check()?;
        while let Some(number) = self.staged.front().map(|run| run.number) {
            if number != self.writing {
                self.rotate_to(number).await?;
            }
            let Some(mut run) = self.staged.pop_front() else { break };
            let segment = self.segment(number);
            let sync = sync && self.staged.is_empty();
            let file_end = run.offset + run.bytes.len() as u64;
            let end = segment.header.base + file_end;
            self.failed = Some("a write of the log was abandoned half-way".into());
            let written = if sync {
                run.bytes.resize((file_end.next_multiple_of(BLOCK) - run.offset) as usize);
                segment.file.write_sync(site, FRAME_SYNC, run.offset, run.bytes).await
            } else {
                if file_end > run.offset.next_multiple_of(BLOCK) {
                    run.bytes.resize((file_end.next_multiple_of(BLOCK) - run.offset) as usize);
                }
                segment.file.write_at(site, run.offset, run.bytes).await
            };
            self.failed = None;
            match written {
                Ok(bytes) => {
                    self.written = end;
                    if sync {
                        self.synced = end;
                    }
                    if bytes.capacity() <= MAX_FRAME {
                        self.idle = bytes;
                    }
                    self.start_write_back(&segment);
                }
                Err(e) => {
                    let doing = if sync { "writing and syncing" } else { "writing" };
                    let why = format!("{doing} {} failed: {e}", segment.path.display());
                    return self.note(Err(Error::Stopped(why)));
                }
            }
        }
        Ok(())
    }

    /// Keeps what a sync has to write below [`WRITE_BACK`]: a segment that is full is synced while its
    /// writer waits, as is what a memtable holds that is sealed.
    fn start_write_back(&mut self, segment: &Segment) {
        let base = segment.header.base;
        let from = self.writing_back.max(self.synced).max(base);
        // Without the last block: more is about to be written there, and would wait for the disk.
        let to = self.written - (self.written - base) % BLOCK;
        if to >= from + WRITE_BACK {
            segment.file.start_write_back(WRITE_BACK_START, from - base..to - base);
            self.writing_back = to;
        }
    }

    async fn sync_written(&mut self, site: IoTag) -> Result<()> {
        if self.written == self.synced {
            return Ok(());
        }
        let segment = self.segment(self.writing);
        self.failed = Some("a sync of the log was abandoned half-way".into());
        let result = segment.file.sync(site).await;
        self.failed = None;
        self.note(result.map_err(|e| stopped(&segment.path, &e)))?;
        self.synced = self.written;
        Ok(())
    }

    /// Ends the segment being written: it is durable before the next one gets a frame.
    async fn rotate_to(&mut self, number: u64) -> Result<()> {
        self.sync_written(ROTATION).await?;
        self.make_segments_to(number).await?;
        self.writing = number;
        Ok(())
    }

    /// Makes the files of planned segments up to `number`.
    async fn make_segments_to(&mut self, number: u64) -> Result<()> {
        while let Some(planned) = self.first_planned().filter(|h| h.number <= number) {
            let prepared = self.preparation(planned).run().await;
            let prepared = self.note(prepared)?;
            self.adopt(prepared).await?;
        }
        Ok(())
    }

    /// See [`super::Log::prepare`].
    pub fn prepare(&mut self) -> Option<Preparation> {
        if self.failed.is_some() || self.newest_file() > self.tail.number {
            return None;
        }
        if self.first_planned().is_none() {
            self.plan();
        }
        self.first_planned().map(|header| self.preparation(header))
    }

    /// See [`super::Log::adopt`].
    pub async fn adopt(&mut self, prepared: Prepared) -> Result<()> {
        self.check()?;
        let Prepared { mut segment, tag } = prepared;
        if self.first_planned() != Some(segment.header) {
            let number = self.spares.number();
            let path = self.directory.spare_path(number);
            self.directory.rename(SEGMENT_REUSE, &segment.path, &path).await?;
            self.spares.numbers.push(number);
            return Ok(());
        }
        let path = self.directory.segment_path(segment.header.number);
        self.directory.rename(tag, &segment.path, &path).await?;
        let synced = self.directory.sync(tag).await;
        self.note(synced)?;
        segment.path = path.into();
        let number = segment.header.number;
        self.slot_mut(number).segment = Some(segment);
        self.refresh_lane();
        Ok(())
    }

    fn preparation(&mut self, header: SegmentHeader) -> Preparation {
        let source = self.spares.source();
        Preparation { directory: self.directory.clone(), header, source }
    }

    /// See [`super::Log::cut`].
    pub fn cut(&self) -> LaneCut {
        let oldest = self.lane.first().map_or(0, |s| s.header.number);
        LaneCut::new(&self.lane, self.synced, Some(self.holds.hold(oldest)))
    }

    /// Counts the oldest segments before the one being written, and before those that are held, of
    /// which `dead`, called with the segment's end and content, says that nobody needs them.
    pub fn obsolete(&self, dead: impl Fn(u64, &Content) -> bool) -> usize {
        let held = self.holds.oldest().unwrap_or(u64::MAX);
        let before = self.writing.min(held);
        let old = self.slots.iter().take_while(|s| s.header.number < before);
        old.take_while(|s| dead(s.header.end(), &s.content)).count()
    }

    /// Returns the groups that need something in the segments in front of `position`, with the
    /// highest index that lies there.
    pub fn held_in_front_of(
        &self,
        position: u64,
        groups: &BTreeMap<GroupId, Group>,
    ) -> BTreeMap<GroupId, u64> {
        let mut held: BTreeMap<GroupId, u64> = BTreeMap::new();
        for slot in self.slots.iter().take_while(|s| s.header.end() <= position) {
            for (&id, pin) in slot.content.iter().filter(|(id, pin)| pin.holds(groups.get(id))) {
                let highest = held.entry(id).or_default();
                *highest = pin.highest.max(*highest);
            }
        }
        held
    }

    /// See [`super::Log::newest_segments`].
    pub fn newest_segments(&self, bytes: u64) -> u64 {
        let mut kept = 0;
        let fits = |s: &&Segment| {
            kept += s.header.capacity;
            kept <= bytes
        };
        self.lane.iter().rev().take_while(fits).last().map_or(self.end, |s| s.header.base)
    }

    /// Returns the number of segments with files.
    pub fn segments(&self) -> usize {
        self.lane.len()
    }

    /// Takes the `count` oldest segments out of the lane.
    pub async fn recycle(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            let Some(segment) = self.slots.front().and_then(|s| s.segment.clone()) else { break };
            self.failed = Some("the recycling of a log segment was abandoned half-way".into());
            let retired = self.spares.retire(&self.directory, &self.options, &segment).await;
            self.failed = None;
            self.note(retired)?;
            self.slots.pop_front();
            self.refresh_lane();
        }
        Ok(())
    }

    /// Returns the segments with files, and the lane position at which the one being written
    /// begins.
    pub fn written_lane(&self) -> (Arc<[Segment]>, u64) {
        (self.lane.clone(), self.slot(self.writing).header.base)
    }

    /// Returns the lane position of the oldest segment.
    pub fn oldest_position(&self) -> u64 {
        self.slots.front().map_or(0, |s| s.header.base)
    }

    /// Returns the file and the offset of a lane position.
    pub fn file_at(&self, position: u64) -> (PathBuf, u64) {
        let after = self.slots.partition_point(|s| s.header.base <= position);
        let header = self.slots.get(after.saturating_sub(1)).map(|s| s.header);
        header.map_or((self.directory.path.clone(), 0), |h| {
            (self.directory.segment_path(h.number), position.saturating_sub(h.base))
        })
    }

    /// Returns sizes and counts.
    pub fn stats(&self) -> LogStats {
        LogStats {
            segments: self.lane.len(),
            segment_bytes: self.lane.iter().map(|s| s.header.capacity).sum(),
            spares: self.spares.numbers.len(),
            appended_bytes: self.appended_bytes,
            copied_bytes: 0,
            staged_bytes: self.staged.iter().map(|run| run.bytes.len() as u64).sum(),
            end: self.end,
            synced: self.synced,
        }
    }

    fn refresh_lane(&mut self) {
        self.lane = self.slots.iter().filter_map(|s| s.segment.clone()).collect();
    }

    fn newest(&self) -> u64 {
        self.slots.back().map_or(0, |s| s.header.number)
    }

    fn newest_file(&self) -> u64 {
        self.lane.last().map_or(0, |s| s.header.number)
    }

    fn first_planned(&self) -> Option<SegmentHeader> {
        self.slots.iter().find(|s| s.segment.is_none()).map(|s| s.header)
    }

    fn slot(&self, number: u64) -> &Slot {
        let oldest = self.slots.front().map_or(0, |s| s.header.number);
        let slot = usize::try_from(number - oldest).ok().and_then(|i| self.slots.get(i));
        slot.expect("tail and written segment are in the lane, which has no gaps")
    }

    fn slot_mut(&mut self, number: u64) -> &mut Slot {
        let oldest = self.slots.front().map_or(0, |s| s.header.number);
        let slot = usize::try_from(number - oldest).ok().and_then(|i| self.slots.get_mut(i));
        slot.expect("tail and written segment are in the lane, which has no gaps")
    }

    fn segment(&self, number: u64) -> Segment {
        let segment = self.slot(number).segment.clone();
        segment.expect("a segment is made before it is written")
    }
}
