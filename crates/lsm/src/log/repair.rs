//! Examining a lane without changing it, and cutting one that is corrupt.
//!
//! Repair is the last resort, for a store that has no replica to copy from: it keeps the prefix
//! in front of the first frame that does not verify and says what it drops. The segment it starts
//! lies behind every position that was ever given out, so that a sequence number of a dropped
//! entry, which a table may hold already, never names another write.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_env::{Env, OpenMode};

use super::LogOptions;
use super::frame::{BLOCK, FrameHeader};
use super::lane::Search;
use super::recovery::{Chain, Recovery, open_segments, settle_tail, successor, tidy};
use super::segment::{Directory, FIRST_FRAME, Preparation, Segment, SegmentHeader};
use crate::error::{Error, Result};

/// What [`verify`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneSummary {
    /// Segments, prepared ones included.
    pub segments: usize,
    /// Frames in the chain.
    pub frames: u64,
    /// Their bytes, headers and padding included.
    pub frame_bytes: u64,
    /// Lane position behind the last one.
    pub end: u64,
    /// Frames behind the end that verify but follow a torn one: never acknowledged as synced.
    pub torn_frames: u64,
}

/// What [`repair_cut`] did.
#[derive(Clone, Debug)]
pub struct CutReport {
    /// What was wrong, `None` if nothing was and nothing was changed.
    pub problem: Option<Error>,
    /// Lane position behind the last frame that was kept.
    pub end: u64,
    /// Frames that verify and were dropped, because something before them does not.
    pub dropped_frames: u64,
    /// Their bytes, headers and padding included.
    pub dropped_bytes: u64,
}

/// Reads the lane in `dir` without changing anything and shows every frame that counts to `visit`,
/// with its file. Returns a summary, or the corruption that [`super::Log::open`] would refuse.
pub async fn verify(
    env: &Env,
    dir: &Path,
    lane: u64,
    mut visit: impl FnMut(&Path, &FrameHeader, &[u8]),
) -> Result<LaneSummary> {
    let directory = Directory { disk: env.disk.clone(), path: dir.to_owned(), fill: false };
    let listing = directory.list().await?;
    let (segments, opened) = open_segments(&directory, &listing, lane, OpenMode::Read).await;
    opened?;
    let segments: Arc<[Segment]> = segments.into();
    let chain = Chain::follow(&segments, |frame| {
        if let Some(segment) = segments.get(frame.segment) {
            visit(&segment.path, &frame.header, frame.payload());
        }
    })
    .await?;
    let torn_frames = chain.judge(&directory, &segments, 0).await?;
    Ok(LaneSummary {
        segments: segments.len(),
        frames: chain.frames,
        frame_bytes: chain.frame_bytes,
        end: chain.end,
        torn_frames,
    })
}

/// Cuts a corrupt lane at the first frame that does not verify, and reports what that drops.
/// Everything behind it is gone, acknowledged or not; the positions of what was dropped are not
/// used again. A lane that [`super::Log::open`] accepts is left as it is.
///
/// `known_durable` is what the owner would give to [`super::Log::open`], which accepts the lane
/// afterwards. The one damage that a cut does not mend is a missing oldest segment: it is returned
/// as the error it is.
pub async fn repair_cut(
    env: &Env,
    dir: &Path,
    options: LogOptions,
    known_durable: u64,
) -> Result<CutReport> {
    options.check()?;
    let directory = Directory { disk: env.disk.clone(), path: dir.to_owned(), fill: false };
    let listing = directory.list().await?;
    let (segments, opened) =
        open_segments(&directory, &listing, options.lane, OpenMode::ReadWrite).await;
    if let Err(foreign @ Error::Foreign { .. }) = opened {
        return Err(foreign);
    }
    let segments: Arc<[Segment]> = segments.into();
    let chain = Chain::follow(&segments, |_| {}).await?;
    let judged = match opened {
        Ok(()) => chain.judge(&directory, &segments, known_durable).await.map(|_| ()),
        Err(e) => Err(e),
    };
    let mut report =
        CutReport { problem: None, end: chain.end, dropped_frames: 0, dropped_bytes: 0 };
    let Err(problem) = judged else {
        // A cut does not bring back a segment that is missing at the front.
        Recovery::open(env, dir, options, known_durable).await?;
        return Ok(report);
    };
    if !problem.is_corruption() {
        return Err(problem);
    }
    report.problem = Some(problem);

    // What is dropped: frames behind the end, and in segments that cannot be put in order.
    let mut behind: Vec<Segment> = Vec::new();
    for &number in listing.segments.iter().skip(segments.len()) {
        behind.extend(directory.open_segment(options.lane, number, OpenMode::Read).await.ok());
    }
    let (at, position) = chain.expected;
    let offset = segments.get(at).map_or(FIRST_FRAME, |s| position - s.header.base);
    let all: Arc<[Segment]> = segments.iter().chain(&behind).cloned().collect();
    let mut search = Search::new(all.clone(), at, offset);
    while let Some(stray) = search.next().await? {
        report.dropped_frames += 1;
        report.dropped_bytes += stray.header.extent();
    }

    // The new segment lies behind everything that ever had a position.
    let ends = all.iter().map(|s| s.header.end()).max().unwrap_or(0);
    let unreadable = (listing.segments.len() - all.len()) as u64 * options.segment_capacity;
    let base = (ends + unreadable).max(known_durable.next_multiple_of(BLOCK));
    let after = successor(&segments, &chain);
    let number = if segments.is_empty() {
        listing.segments.first().copied().unwrap_or(1)
    } else {
        after.number
    };
    let header = SegmentHeader {
        lane: options.lane,
        number,
        base,
        capacity: options.segment_capacity,
        salt: env.random.next_u64(),
        epoch: all.iter().map(|s| s.header.epoch).max().unwrap_or(0) + 1,
        cut: after.cut,
    };
    settle_tail(&directory, &segments, &chain).await?;
    let mut spares = tidy(&directory, &listing, &all, &options).await?;
    let source = spares.source();
    let prepared = Preparation { directory: directory.clone(), header, source }.run().await?;
    for &old in listing.segments.iter().filter(|&&n| n > number).rev() {
        let path: PathBuf = directory.segment_path(old);
        directory.remove(&path).await?;
        directory.sync(prepared.tag).await?;
    }
    let path = directory.segment_path(number);
    directory.rename(prepared.tag, &prepared.segment.path, &path).await?;
    directory.sync(prepared.tag).await?;
    Ok(report)
}
