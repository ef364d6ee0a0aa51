//! Reading a lane: following the chain of frames, and searching behind its end.
//!
//! # Where the next frame is
//! After a frame that ends at `e` the next one starts at one of three places: at `e`; at the next
//! block, if a sync came between (a block that was acknowledged is never written again); at the
//! start of the next segment. The reader tries them in this order and takes the first frame that
//! verifies and whose `prev` is the checksum of the last one. That is unambiguous: in one use of a
//! segment every byte is written at most once, and one writer chose one of the three places, so
//! at most one of them ever held a frame with this salt and this `prev`.
//!
//! # What lies behind the end
//! At the first place where the chain does not go on, position `p`, the rest of the segment and all
//! later segments are searched for frames, at every offset where one could start, without the help
//! of the chain. A frame there that was written when more than `p` was known durable
//! (`synced_to > p`) proves that something durable is damaged. Otherwise what follows was never
//! acknowledged as synced: the torn tail.

use std::sync::Arc;

use atoll_env::IoBuf;

use super::frame::{self, ALIGN, BLOCK, FrameHeader, HEADER_LEN, MAX_FRAME};
use super::mutant;
use super::segment::{Cut, FIRST_FRAME, LOG_READ, Segment};
use crate::error::{Error, Result};

/// Files are read in pieces of this many bytes. At least [`MAX_FRAME`].
const WINDOW: usize = 1 << 20;
const _: () = assert!(WINDOW >= MAX_FRAME, "a frame fits into the window");

/// A piece of a segment in memory.
struct Window {
    /// Number of the segment, and offset of the first byte.
    at: (u64, u64),
    bytes: IoBuf,
    /// Least length of a read, in bytes.
    piece: usize,
}

impl Window {
    fn new() -> Window {
        Window { at: (0, 0), bytes: IoBuf::new(), piece: WINDOW }
    }

    /// Returns at least `len` bytes of `segment` from `offset`, and whatever else is in memory
    /// behind them. Both lie within the segment.
    async fn read(&mut self, segment: &Segment, offset: u64, len: usize) -> Result<&[u8]> {
        if self.covered(segment, offset).len() < len {
            let rest = segment.header.capacity.saturating_sub(offset);
            let mut buf = std::mem::take(&mut self.bytes);
            buf.clear();
            buf.resize(rest.min(self.piece.max(len) as u64) as usize);
            let read = segment.file.read_at(LOG_READ, offset, buf).await;
            self.bytes = read.map_err(|e| Error::io("read", &segment.path, e))?;
            self.at = (segment.header.number, offset);
        }
        Ok(self.covered(segment, offset))
    }

    /// Returns what is in memory of `segment` from `offset` on.
    fn covered(&self, segment: &Segment, offset: u64) -> &[u8] {
        let (number, start) = self.at;
        if number != segment.header.number || offset < start {
            return &[];
        }
        usize::try_from(offset - start).ok().and_then(|at| self.bytes.get(at..)).unwrap_or(&[])
    }

    /// Returns the header of the frame at `offset` if one is there and verifies.
    async fn frame_at(&mut self, segment: &Segment, offset: u64) -> Result<Option<FrameHeader>> {
        let header = &segment.header;
        if offset + HEADER_LEN as u64 > header.capacity {
            return Ok(None);
        }
        let bytes = self.read(segment, offset, HEADER_LEN).await?;
        let Some(found) = FrameHeader::decode(bytes) else { return Ok(None) };
        let in_place = found.position == header.base + offset && found.epoch == header.epoch;
        if !(in_place || mutant("no-salt")) || offset + found.extent() > header.capacity {
            return Ok(None);
        }
        let len = HEADER_LEN + found.len as usize;
        let bytes = self.read(segment, offset, len).await?;
        let verified = bytes.get(..len).is_some_and(|b| frame::verifies(header.place(offset), b));
        Ok(verified.then_some(found))
    }
}

/// A frame of the chain, lent by a [`Cursor`].
pub(super) struct Frame<'a> {
    pub header: FrameHeader,
    /// Header and payload as they are in the file.
    pub bytes: &'a [u8],
    /// The segment it lies in, as an index into the cursor's segments.
    pub segment: usize,
}

impl<'a> Frame<'a> {
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(HEADER_LEN..).unwrap_or(&[])
    }
}

/// Follows the chain of frames through the segments of a lane.
pub(super) struct Cursor {
    segments: Arc<[Segment]>,
    /// The segment the next frame is expected in, as an index.
    at: usize,
    /// Offset at which the last frame ended; [`FIRST_FRAME`] in a segment without one.
    offset: u64,
    /// Whether the last frame lies in this segment.
    entered: bool,
    /// Checksum of the last frame; unknown at the start of the lane.
    prev: Option<u32>,
    window: Window,
}

impl Cursor {
    /// Starts at the front of `segments`, the first of which may continue a part of the lane that
    /// is gone.
    pub fn new(segments: Arc<[Segment]>) -> Cursor {
        let prev = segments.first().and_then(|s| s.header.cut).map(|cut| cut.prev);
        let window = Window::new();
        Cursor { segments, at: 0, offset: FIRST_FRAME, entered: false, prev, window }
    }

    /// Reads on from lane `position`: where a frame starts, or where one ends and the next is to
    /// be found. Which frame came before is not checked.
    pub fn seek(&mut self, position: u64) {
        let after = self.segments.partition_point(|s| s.header.base <= position);
        self.at = after.saturating_sub(1);
        let base = self.segments.get(self.at).map_or(0, |s| s.header.base);
        self.offset = position.saturating_sub(base).max(FIRST_FRAME);
        self.entered = self.offset > FIRST_FRAME;
        self.prev = None;
    }

    /// Forgets what is in memory: the next frame is read from the file again.
    pub fn read_afresh(&mut self) {
        self.window = Window { piece: self.window.piece, ..Window::new() };
    }

    /// Makes reads of the file at least `len` bytes long, instead of a whole window.
    pub fn read_pieces_of(&mut self, len: u64) {
        self.window.piece = len.clamp(BLOCK, WINDOW as u64) as usize;
    }

    /// Returns the next frame, or `None` where the chain ends.
    pub async fn next(&mut self) -> Result<Option<Frame<'_>>> {
        let Some((header, offset)) = self.advance().await? else { return Ok(None) };
        let Some(segment) = self.segments.get(self.at) else { return Ok(None) };
        let bytes = self.window.covered(segment, offset);
        let bytes = bytes.get(..HEADER_LEN + header.len as usize).unwrap_or(&[]);
        Ok(Some(Frame { header, bytes, segment: self.at }))
    }

    /// Returns the lane position behind the last frame, or the start of a segment without frames.
    pub fn position(&self) -> u64 {
        self.segments.get(self.at).map_or(0, |s| s.header.base) + self.offset
    }

    /// Returns the index of the segment of [`Cursor::position`].
    pub fn segment(&self) -> usize {
        self.at
    }

    async fn advance(&mut self) -> Result<Option<(FrameHeader, u64)>> {
        while let Some(segment) = self.segments.get(self.at) {
            let next = self.segments.get(self.at + 1);
            let cut = next.and_then(|n| n.header.cut);
            if cut.is_none_or(|cut| self.position() < cut.position) {
                let block = self.offset.next_multiple_of(BLOCK);
                let offsets = [self.offset, block];
                for &offset in &offsets[..if block == self.offset { 1 } else { 2 }] {
                    let found = self.window.frame_at(segment, offset).await?;
                    if let Some(header) = found.filter(|f| follows(self.prev, f)) {
                        self.offset = offset + header.extent();
                        self.prev = Some(header.checksum);
                        self.entered = true;
                        return Ok(Some((header, offset)));
                    }
                }
            }
            let Some(next) = next else { return Ok(None) };
            let continues = match cut {
                // After `seek` the checksum of the last frame is unknown.
                Some(cut) => {
                    let prev = self.prev.unwrap_or(cut.prev);
                    cut == Cut { position: self.position(), prev }
                }
                // Only the chain can tell that nothing was lost before the next segment.
                None if self.entered => {
                    let first = self.window.frame_at(next, FIRST_FRAME).await?;
                    first.is_some_and(|f| follows(self.prev, &f))
                }
                None => false,
            };
            if !continues {
                return Ok(None);
            }
            self.at += 1;
            self.offset = FIRST_FRAME;
            self.entered = false;
        }
        Ok(None)
    }
}

fn follows(prev: Option<u32>, frame: &FrameHeader) -> bool {
    prev.is_none_or(|prev| prev == frame.prev) || mutant("no-salt")
}

/// A frame found behind the end of the chain.
pub(super) struct Stray {
    pub header: FrameHeader,
    /// The segment, as an index.
    pub segment: usize,
    /// Offset in its file.
    pub offset: u64,
}

/// Searches for frames behind the end of the chain, see the module's text.
pub(super) struct Search {
    segments: Arc<[Segment]>,
    at: usize,
    offset: u64,
    window: Window,
}

impl Search {
    /// Starts at `offset` of segment `at`.
    pub fn new(segments: Arc<[Segment]>, at: usize, offset: u64) -> Search {
        let offset = offset.max(FIRST_FRAME).next_multiple_of(ALIGN);
        Search { segments, at, offset, window: Window::new() }
    }

    /// Returns the next frame that verifies where it lies.
    pub async fn next(&mut self) -> Result<Option<Stray>> {
        while let Some(segment) = self.segments.get(self.at) {
            if self.offset + HEADER_LEN as u64 > segment.header.capacity {
                self.at += 1;
                self.offset = FIRST_FRAME;
                continue;
            }
            let bytes = self.window.read(segment, self.offset, HEADER_LEN).await?;
            let (skipped, candidate) = candidate(bytes, segment.header.base + self.offset);
            self.offset += skipped;
            if !candidate {
                continue;
            }
            let offset = self.offset;
            if let Some(header) = self.window.frame_at(segment, offset).await? {
                self.offset += header.extent();
                return Ok(Some(Stray { header, segment: self.at, offset }));
            }
            self.offset += ALIGN;
        }
        Ok(None)
    }
}

/// Looks in `bytes`, which lie at lane position `position`, for a frame header that names its own
/// place. Returns how far to go and whether a candidate is there.
fn candidate(bytes: &[u8], position: u64) -> (u64, bool) {
    let mut at = 0u64;
    for header in bytes.windows(HEADER_LEN).step_by(ALIGN as usize) {
        if header[8..16] == (position + at).to_le_bytes() {
            return (at, true);
        }
        at += ALIGN;
    }
    (at, false)
}
