//! Opening a lane: verify it, find its end, replay what is live, and go on in a fresh segment.
//!
//! 1. *Verify* ([`Recovery`] is made): follow the chain of frames once, learn what is live, decide
//!    whether what lies behind its end is a torn tail or corruption. Nothing is changed, so a lane
//!    that is refused can still be examined or repaired.
//! 2. *Replay* ([`Recovery::next_entry`]): read the live entries, each exactly once, in the order
//!    in which they were first appended. Copied entries whose original is gone were appended
//!    before everything else in the lane, so they come first, by origin. What memory has no room for
//!    is read again from [`Rest`], when the lane is open.
//! 3. *Go on* ([`Recovery::finish`]): make the tail durable, and start a segment under the next
//!    epoch whose header says where the lane before it ends.
//!
//! The unproven tail, which was read from the page cache perhaps after a failed sync, is written
//! again in place before it is synced: a kernel that dropped dirty pages and calls them clean would
//! otherwise let a sync succeed that stores nothing. The same bytes go to the same sectors, so a
//! power cut in the middle of it changes nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_env::disk::IoClass;
use atoll_env::sometimes;
use atoll_env::{Env, IoBuf, IoTag, OpenMode};

use super::cut::LaneCut;
use super::frame::{ALIGN, BLOCK, FrameHeader, FrameKind, MAX_FRAME};
use super::groups::{Group, GroupState, Location};
use super::lane::{Cursor, Frame, Search};
use super::segment::{
    Cut, Directory, FIRST_FRAME, Listing, Preparation, Segment, SegmentHeader, stopped,
};
use super::writer::{Content, Slot, Spares, Writer, note_content};
use super::{Entry, EntryId, GroupId, GroupSummary, LaneSummary, Log, LogOptions, mutant, summary};
use crate::error::{Error, Result};

/// Site of the writes of opening a lane.
const RECOVERY: IoTag = IoTag::new(IoClass::Log, "log recovery");

/// A live entry, lent by [`Recovery::next_entry`].
#[derive(Clone, Copy, Debug)]
pub struct Replayed<'a> {
    /// Which one.
    pub id: EntryId,
    /// Lane position at which it was first appended: the base of its sequence numbers.
    pub position: u64,
    /// Its payload.
    pub payload: &'a [u8],
}

/// An entry whose last fragment was read.
pub(super) struct Whole {
    pub id: EntryId,
    pub origin: u64,
    /// Lane position of its first frame, and behind its last one.
    pub span: (u64, u64),
}

/// Puts the fragments of entries together. A chain that is not finished when another entry begins
/// (the tail was cut inside of it) does not count, nor does one whose beginning is gone.
#[derive(Default)]
pub(super) struct Assembly {
    open: Option<FrameHeader>,
    payload: Vec<u8>,
}

impl Assembly {
    /// Takes the next frame of the chain; `keep` says whether its payload is wanted. Returns the
    /// entry that ends with it.
    pub fn feed(&mut self, frame: &Frame<'_>, keep: bool) -> Option<Whole> {
        let payload = frame.payload();
        let frame = &frame.header;
        if frame.first {
            self.open = Some(*frame);
            self.payload.clear();
        }
        let first = self.open?;
        if (first.kind, first.group, first.index, first.origin)
            != (frame.kind, frame.group, frame.index, frame.origin)
        {
            self.open = None;
            return None;
        }
        if keep {
            self.payload.extend_from_slice(payload);
        }
        if !frame.last {
            return None;
        }
        self.open = None;
        let id = EntryId { group: frame.group, index: frame.index, term: frame.term };
        let span = (first.position, frame.position + frame.extent());
        Some(Whole { id, origin: frame.origin, span })
    }

    /// Returns whether an entry has begun and not ended.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Returns the payload of the entry that ended last.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }
}

/// Reads the entry whose first frame lies at `position`, `None` if there is none.
pub(super) async fn read_entry(cursor: &mut Cursor, position: u64) -> Result<Option<Entry>> {
    cursor.seek(position);
    let mut assembly = Assembly::default();
    while let Some(frame) = cursor.next().await? {
        if let Some(whole) = assembly.feed(&frame, true) {
            let payload = std::mem::take(&mut assembly.payload);
            return Ok(Some(Entry { id: whole.id, position: whole.origin, payload }));
        }
        if !assembly.is_open() {
            break;
        }
    }
    Ok(None)
}

/// The outcome of following the chain to its end.
pub(super) struct Chain {
    /// Lane position behind the last frame, or where the first one is expected.
    pub end: u64,
    /// Index of the segment of the last frame.
    pub last: Option<usize>,
    /// Checksum of the last frame.
    pub prev: Option<u32>,
    /// Highest position some frame or header proves to have been durable.
    proven: u64,
    /// Where the next frame was expected: segment (an index) and lane position.
    pub expected: (usize, u64),
    pub frames: u64,
    pub frame_bytes: u64,
}

impl Chain {
    /// Follows the chain and shows each frame to `visit`.
    pub async fn follow(
        segments: &Arc<[Segment]>,
        mut visit: impl FnMut(&Frame<'_>),
    ) -> Result<Chain> {
        let first = segments.first().map(|s| s.header);
        let mut cursor = Cursor::new(segments.clone());
        let mut chain = Chain {
            end: cursor.position(),
            last: None,
            prev: first.and_then(|h| h.cut).map(|cut| cut.prev),
            proven: cursor.position(),
            expected: (0, 0),
            frames: 0,
            frame_bytes: 0,
        };
        let mut doubted = None;
        loop {
            let Some(frame) = cursor.next().await? else {
                // A bit that flipped on the way from the disk must not end the lane for ever.
                if doubted == Some(cursor.position()) {
                    break;
                }
                doubted = Some(cursor.position());
                cursor.read_afresh();
                continue;
            };
            let header = &frame.header;
            chain.end = header.position + header.extent();
            chain.last = Some(frame.segment);
            chain.prev = Some(header.checksum);
            chain.proven = chain.proven.max(header.synced_to());
            chain.frames += 1;
            chain.frame_bytes += header.extent();
            visit(&frame);
        }
        chain.expected = (cursor.segment(), cursor.position());
        Ok(chain)
    }

    /// Decides whether what follows the end is a torn tail. Returns the number of valid frames in
    /// it, or the corruption.
    pub async fn judge(
        &self,
        directory: &Directory,
        segments: &Arc<[Segment]>,
        known_durable: u64,
    ) -> Result<u64> {
        let (at, position) = self.expected;
        let Some(segment) = segments.get(at) else {
            if known_durable == 0 {
                return Ok(0);
            }
            let what = format!(
                "there are no segments, but the log was durable up to position {known_durable}"
            );
            return Err(Error::corruption(&directory.path, 0, what));
        };
        let offset = position - segment.header.base;
        let damaged = |proof: String| {
            let what = format!("no frame verifies here, but {proof}");
            Err(Error::corruption(&segment.path, offset, what))
        };
        if position < known_durable {
            return damaged(format!(
                "the log was durable up to position {known_durable}, {} further on",
                known_durable - position
            ));
        }
        let mut torn = 0;
        if mutant("no-synced-to-check") {
            return Ok(torn);
        }
        // A header with a cut was written after the lane before it had been found good.
        if let Some(cut) = segments.iter().skip(at + 1).find(|s| s.header.cut.is_some()) {
            return damaged(format!("{} was started behind it", cut.path.display()));
        }
        let mut search = Search::new(segments.clone(), at, offset);
        while let Some(stray) = search.next().await? {
            if stray.header.synced_to() > position
                && let Some(file) = segments.get(stray.segment)
            {
                return damaged(format!(
                    "the frame in {} at offset {} was written when position {} was durable",
                    file.path.display(),
                    stray.offset,
                    stray.header.synced_to()
                ));
            }
            torn += 1;
        }
        Ok(torn)
    }
}

/// Opens the segments of a lane in order, as far as they are good, and says why not further.
pub(super) async fn open_segments(
    directory: &Directory,
    listing: &Listing,
    lane: u64,
    mode: OpenMode,
) -> (Vec<Segment>, Result<()>) {
    let mut segments: Vec<Segment> = Vec::with_capacity(listing.segments.len());
    for &number in &listing.segments {
        let segment = match directory.open_segment(lane, number, mode).await {
            Ok(segment) => segment,
            Err(e) => return (segments, Err(e)),
        };
        if let Some(before) = segments.last().map(|s| s.header) {
            let found = segment.header;
            if number != before.number + 1 {
                let missing = directory.segment_path(before.number + 1);
                let what = format!("the segment is missing, {} is there", segment.path.display());
                return (segments, Err(Error::corruption(&missing, 0, what)));
            }
            let continues = match found.cut {
                Some(cut) => found.base >= before.end() && cut.position <= before.end(),
                None => found.base == before.end(),
            };
            if !continues || found.epoch < before.epoch {
                let what = format!(
                    "the segment starts at position {} in epoch {}, the one before ends at {} in \
                     epoch {}: it is from another time",
                    found.base,
                    found.epoch,
                    before.end(),
                    before.epoch
                );
                return (segments, Err(Error::corruption(&segment.path, 32, what)));
            }
        }
        segments.push(segment);
    }
    (segments, Ok(()))
}

/// A lane that was verified and waits to be replayed and opened for writing.
pub struct Recovery {
    env: Env,
    directory: Directory,
    options: LogOptions,
    listing: Listing,
    segments: Arc<[Segment]>,
    chain: Chain,
    torn_frames: u64,
    groups: BTreeMap<GroupId, Group>,
    contents: Vec<Content>,
    reader: Reader,
}

/// Reads the live entries of a verified lane.
struct Reader {
    dir: PathBuf,
    segments: Arc<[Segment]>,
    /// Lane position behind the last frame.
    end: u64,
    /// Live copies of entries whose original is gone, by origin. Emptied by the replay.
    moved: BTreeMap<u64, (EntryId, u64)>,
    cursor: Cursor,
    assembly: Assembly,
    /// What was read last.
    last: Option<Place>,
}

/// Where an entry was found.
#[derive(Clone, Copy)]
enum Place {
    /// Among the copies: its origin, what it is and the position of its copy.
    Moved(u64, (EntryId, u64)),
    /// Where it was first appended: the position of its first frame.
    Original(u64),
}

impl Reader {
    async fn next_entry(
        &mut self,
        groups: &BTreeMap<GroupId, Group>,
    ) -> Result<Option<Replayed<'_>>> {
        if let Some((origin, (id, position))) = self.moved.pop_first() {
            self.last = Some(Place::Moved(origin, (id, position)));
            let mut cursor = Cursor::new(self.segments.clone());
            cursor.read_pieces_of(BLOCK);
            let entry = read_entry(&mut cursor, position).await?;
            let Some(entry) = entry.filter(|e| e.id == id) else { return Err(self.changed()) };
            self.assembly.payload = entry.payload;
            return Ok(Some(Replayed { id, position: origin, payload: &self.assembly.payload }));
        }
        while self.cursor.position() < self.end {
            let Some(frame) = self.cursor.next().await? else { return Err(self.changed()) };
            let header = frame.header;
            if header.kind != FrameKind::Append {
                continue;
            }
            let group = groups.get(&header.group);
            let live = group.is_some_and(|g| g.is_live(header.index, header.origin));
            if let Some(whole) = self.assembly.feed(&frame, live)
                && live
            {
                self.last = Some(Place::Original(whole.span.0));
                let payload = self.assembly.payload();
                return Ok(Some(Replayed { id: whole.id, position: whole.origin, payload }));
            }
        }
        Ok(None)
    }

    fn changed(&self) -> Error {
        changed(&self.dir, &self.segments, self.cursor.position())
    }
}

/// The live entries from one of them on, to be read once more. The files are open: they stay what they are
/// whatever becomes of their names, as long as the lane was not told to forget these entries.
pub struct Rest {
    reader: Reader,
    groups: BTreeMap<GroupId, Group>,
}

impl Rest {
    /// Returns the next live entry, as [`Recovery::next_entry`] does.
    pub async fn next_entry(&mut self) -> Result<Option<Replayed<'_>>> {
        self.reader.next_entry(&self.groups).await
    }
}

impl Recovery {
    pub(super) async fn open(
        env: &Env,
        dir: &Path,
        options: LogOptions,
        known_durable: u64,
    ) -> Result<Recovery> {
        let directory =
            Directory { disk: env.disk.clone(), path: dir.to_owned(), fill: options.fill };
        directory.disk.create_dir(dir).await.map_err(|e| Error::io("create", dir, e))?;
        let listing = directory.list().await?;
        let opened = open_segments(&directory, &listing, options.lane, OpenMode::ReadWrite).await;
        opened.1?;
        let segments: Arc<[Segment]> = opened.0.into();

        let oldest = segments.first().map_or(0, |s| s.header.base);
        let mut groups = BTreeMap::new();
        let mut contents = vec![Content::new(); segments.len()];
        let mut moved = BTreeMap::new();
        let mut assembly = Assembly::default();
        let chain = Chain::follow(&segments, |read| {
            let frame = &read.header;
            if let Some(content) = contents.get_mut(read.segment) {
                note_content(content, frame);
            }
            let indexed = (options.indexed)(frame.group);
            let group = groups.entry(frame.group).or_insert_with(|| Group::new(indexed));
            if frame.kind == FrameKind::State {
                let (state, released) = decode_state(frame, read.payload());
                group.set_state(state, released, frame.position);
                return;
            }
            let Some(Whole { id, origin, span }) = assembly.feed(read, false) else { return };
            let place = Location { position: span.0, end: span.1, term: id.term };
            if frame.kind == FrameKind::Append {
                group.append(id, place);
            } else {
                group.rewrite(id, origin, place);
                if origin < oldest {
                    moved.insert(origin, (id, place.position));
                }
            }
        })
        .await?;
        let torn_frames = chain.judge(&directory, &segments, known_durable).await?;
        sometimes!(torn_frames > 0, "a torn tail of the log is cut");
        moved.retain(|&origin, (id, _)| {
            groups.get(&id.group).is_some_and(|g| g.is_live(id.index, origin))
        });
        if let Some(oldest) = segments.first() {
            check_fronts(&groups, &moved, &oldest.path)?;
        }
        Ok(Recovery {
            env: env.clone(),
            directory,
            options,
            listing,
            reader: Reader {
                dir: dir.to_owned(),
                segments: segments.clone(),
                end: chain.end,
                moved,
                cursor: Cursor::new(segments.clone()),
                assembly: Assembly::default(),
                last: None,
            },
            segments,
            chain,
            torn_frames,
            groups,
            contents,
        })
    }

    /// Returns the next live entry, `None` at the end. Entries come in the order in which they were
    /// first appended, each once; released and overwritten ones do not come. Entries of consensus
    /// groups come whether they are committed or not.
    pub async fn next_entry(&mut self) -> Result<Option<Replayed<'_>>> {
        self.reader.next_entry(&self.groups).await
    }

    /// Returns whether all entries of a group from `index` on are where they were first appended.
    pub fn is_unbroken(&self, group: GroupId, index: u64) -> bool {
        self.groups.get(&group).is_some_and(|group| group.unbroken_from <= index)
    }

    /// Returns what there is from the entry on that [`Recovery::next_entry`] returned last.
    pub fn rest(&self) -> Rest {
        let Reader { dir, segments, end, moved, last, .. } = &self.reader;
        let (mut cursor, mut moved) = (Cursor::new(segments.clone()), moved.clone());
        match *last {
            Some(Place::Moved(origin, copy)) => {
                moved.insert(origin, copy);
            }
            Some(Place::Original(position)) => cursor.seek(position),
            None => {}
        }
        let reader = Reader {
            dir: dir.clone(),
            segments: segments.clone(),
            end: *end,
            moved,
            cursor,
            assembly: Assembly::default(),
            last: None,
        };
        Rest { reader, groups: self.groups.clone() }
    }

    /// Returns what is known of every group, by ascending id.
    pub fn groups(&self) -> impl Iterator<Item = GroupSummary> {
        self.groups.iter().map(|(&id, g)| summary(id, g))
    }

    /// Returns the lane as far as it counts, for a copy.
    pub(crate) fn cut(&self) -> LaneCut {
        LaneCut::new(&self.segments, self.chain.end, None)
    }

    /// Returns what was found.
    pub fn summary(&self) -> LaneSummary {
        LaneSummary {
            segments: self.segments.len(),
            frames: self.chain.frames,
            frame_bytes: self.chain.frame_bytes,
            end: self.chain.end,
            torn_frames: self.torn_frames,
        }
    }

    /// Opens the lane for writing: what was found is durable on return. The replay need not have
    /// been read to its end. On a full disk the lane opens, and writes answer `NoSpace`, unless it
    /// is empty.
    pub async fn finish(self) -> Result<Log> {
        let Recovery { env, directory, options, listing, segments, chain, .. } = self;
        settle_tail(&directory, &segments, &chain).await?;
        let mut spares = tidy(&directory, &listing, &segments, &options).await?;

        // Segments behind the last frame go. Where the header of one is the only memory of the
        // lane's position (no frames at all, or a jump made by a repair), it stays until the fresh
        // segment replaces it in one step.
        let kept = chain.last.map_or(0, |last| last + 1);
        let after = successor(&segments, &chain);
        let plain = chain.last.and_then(|at| segments.get(at)).map(|s| s.header.end());
        let replaced = usize::from(plain != Some(after.base));
        for segment in segments.iter().skip(kept + replaced).rev() {
            spares.retire(&directory, &options, segment).await?;
        }
        let header = SegmentHeader {
            lane: options.lane,
            salt: env.random.next_u64(),
            capacity: options.segment_capacity,
            epoch: segments.last().map_or(0, |s| s.header.epoch) + 1,
            ..after
        };
        let source = spares.source();
        let made = Preparation { directory: directory.clone(), header, source }.run().await;
        let fresh = match made {
            Ok(prepared) => {
                let path = directory.segment_path(header.number);
                directory.rename(prepared.tag, &prepared.segment.path, &path).await?;
                directory.sync(prepared.tag).await?;
                Some(Segment { path: path.into(), ..prepared.segment })
            }
            // A full disk must not keep anybody from reading: the segment stays a plan, and the
            // first write tries again.
            Err(Error::NoSpace(_)) if chain.last.is_some() => None,
            Err(e) => return Err(e),
        };
        if let Some(parent) = directory.path.parent().filter(|p| !p.as_os_str().is_empty()) {
            directory.disk.sync_dir(RECOVERY, parent).await.map_err(|e| stopped(parent, &e))?;
        }

        let kept = segments.iter().take(kept).zip(self.contents);
        let mut slots: VecDeque<Slot> = kept
            .map(|(s, content)| Slot { header: s.header, segment: Some(s.clone()), content })
            .collect();
        slots.push_back(Slot { header, segment: fresh, content: Content::new() });
        let end = if chain.last.is_some() { chain.end } else { header.base + FIRST_FRAME };
        let last_frame = (end, chain.prev.unwrap_or(0));
        let writer = Writer::new(directory, options, env.random, slots, spares, last_frame);
        Ok(Log { options, writer, groups: self.groups, copied_to: 0, copied_bytes: 0 })
    }
}

/// Returns number, base and cut of the segment that follows the chain.
pub(super) fn successor(segments: &[Segment], chain: &Chain) -> SegmentHeader {
    let (number, base, cut) = match chain.last.and_then(|at| Some((at, segments.get(at)?.header))) {
        Some((at, last)) => {
            // A segment without frames is replaced where it stands, so positions never go back.
            let base = segments.get(at + 1).map_or(last.end(), |s| s.header.base);
            let cut = Cut { position: chain.end, prev: chain.prev.unwrap_or(0) };
            (last.number + 1, base, Some(cut))
        }
        None => segments.first().map_or((1, 0, None), |s| {
            let h = s.header;
            (h.number, h.base, h.cut)
        }),
    };
    SegmentHeader { lane: 0, number, base, capacity: 0, salt: 0, epoch: 0, cut }
}

/// Makes the unproven end of the chain durable, see the module's text.
pub(super) async fn settle_tail(
    directory: &Directory,
    segments: &Arc<[Segment]>,
    chain: &Chain,
) -> Result<()> {
    let Some(at) = chain.last else { return Ok(()) };
    let Some(segment) = segments.get(at) else { return Ok(()) };
    let base = segment.header.base;
    // Rotation syncs, so all of it lies in the last segment. After a sync frames start in a new
    // block, so a block that is proven durable is not touched.
    let start = chain.proven.max(base + FIRST_FRAME) - base;
    let start = base + start.next_multiple_of(BLOCK);
    // Only verified bytes are written back: one bit that flips while they are read would otherwise
    // become permanent.
    let mut cursor = Cursor::new(segments.clone());
    cursor.seek(start);
    let (mut run, mut run_at) = (IoBuf::new(), start - base);
    while start < chain.end && cursor.position() < chain.end {
        let Some(frame) = cursor.next().await? else {
            return Err(changed(&directory.path, segments, cursor.position()));
        };
        let offset = frame.header.position - base;
        if offset != run_at + run.len() as u64 || run.len() >= MAX_FRAME {
            write_back(segment, run_at, std::mem::take(&mut run)).await?;
            run_at = offset;
        }
        run.extend_from_slice(frame.bytes);
        run.resize((run.len() as u64).next_multiple_of(ALIGN) as usize);
    }
    write_back(segment, run_at, run).await?;
    segment.file.sync(RECOVERY).await.map_err(|e| stopped(&segment.path, &e))
}

async fn write_back(segment: &Segment, offset: u64, bytes: IoBuf) -> Result<()> {
    if !bytes.is_empty() {
        let written = segment.file.write_at(RECOVERY, offset, bytes).await;
        written.map_err(|e| Error::io("write", &segment.path, e))?;
    }
    Ok(())
}

/// The error of a second reading that differs from the first.
fn changed(dir: &Path, segments: &[Segment], position: u64) -> Error {
    let at = segments.iter().rfind(|s| s.header.base <= position);
    let (path, offset) =
        at.map_or((dir, 0), |s| (&*s.path, position.saturating_sub(s.header.base)));
    Error::corruption(path, offset, "a frame verified at first and does not any more")
}

/// Removes what is neither a segment nor a usable spare, and returns the spares.
///
/// A power cut between a rename and the sync of the directory may leave both names, of one file. A
/// spare that is a segment's, or another spare's, second name must not be written: files are told
/// apart by their headers, and a spare without one goes. Nor may one be written whose name is not
/// durable, because the process died before the sync: after a power cut it is the segment again
/// that it was, with another one's header. Hence the sync.
pub(super) async fn tidy(
    directory: &Directory,
    listing: &Listing,
    segments: &[Segment],
    options: &LogOptions,
) -> Result<Spares> {
    let identity = |h: &SegmentHeader| (h.number, h.base, h.salt);
    let mut seen: BTreeSet<_> = segments.iter().map(|s| identity(&s.header)).collect();
    for path in &listing.unfinished {
        directory.remove(path).await?;
    }
    let mut spares = Spares::default();
    for &(number, len) in &listing.spares {
        spares.next = spares.next.max(number);
        let wanted = len == options.segment_capacity && spares.numbers.len() < options.spares_max;
        let header = if wanted { directory.spare_header(number).await } else { None };
        if header.is_some_and(|header| seen.insert(identity(&header))) {
            spares.numbers.push(number);
        } else {
            directory.remove(&directory.spare_path(number)).await?;
        }
    }
    if !spares.numbers.is_empty() {
        directory.sync(RECOVERY).await?;
    }
    Ok(spares)
}

/// Refuses a lane whose oldest segments are gone although entries in them are needed.
fn check_fronts(
    groups: &BTreeMap<GroupId, Group>,
    moved: &BTreeMap<u64, (EntryId, u64)>,
    oldest: &Path,
) -> Result<()> {
    for (&id, group) in groups {
        let originals = group.lowest_original.unwrap_or(group.next).max(group.first);
        let copies = moved.values().filter(|(e, _)| e.group == id && e.index < originals).count();
        if copies as u64 != originals - group.first {
            let what = format!(
                "entries of group {id} from index {} on are needed, and some below {originals} are \
                 missing: a segment before this one is gone",
                group.first
            );
            return Err(Error::corruption(oldest, 0, what));
        }
    }
    Ok(())
}

/// Decodes a `state` frame: its state, the first needed index and the term before that.
fn decode_state(frame: &FrameHeader, payload: &[u8]) -> (GroupState, (u64, u64)) {
    let mut reader = atoll_encoding::Reader::new(payload);
    let vote = reader.u64("vote").unwrap_or(0);
    let first = reader.u64("first needed index").unwrap_or(0);
    // Older frames end here.
    let term = reader.u64("term before it").unwrap_or(0);
    (GroupState { term: frame.term, vote, commit: frame.index }, (first, term))
}
