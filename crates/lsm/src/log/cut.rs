//! Cuts of a lane: its segments up to one position, for whoever copies them while the lane goes on.
//!
//! What a cut leaves is what a power cut at that moment would leave: segments whose bytes behind the
//! position mean nothing. A segment cannot be shared by a second name as a table can: the lane writes
//! more frames into it, and one day uses it again. So it is copied, and until the copy is done the
//! lane recycles neither it nor a later one ([`Holds`]).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use atoll_env::File;
use parking_lot::Mutex;

use super::segment::{FIRST_FRAME, Segment};

/// The segments of a lane up to a position.
pub(crate) struct LaneCut {
    /// Oldest first.
    pub(crate) parts: Vec<Part>,
    _hold: Option<Hold>,
}

/// What counts of one segment.
pub(crate) struct Part {
    pub(crate) path: Arc<Path>,
    pub(crate) file: Arc<dyn File>,
    /// Bytes from its beginning that count.
    pub(crate) len: u64,
    /// Length of the file.
    pub(crate) capacity: u64,
}

impl LaneCut {
    /// Cuts a lane at position `end`, up to which it is known good.
    pub(super) fn new(lane: &[Segment], end: u64, hold: Option<Hold>) -> LaneCut {
        let part = |segment: &Segment| {
            let header = segment.header;
            let within = end.saturating_sub(header.base);
            Part {
                path: segment.path.clone(),
                file: segment.file.clone(),
                len: within.clamp(FIRST_FRAME, header.capacity),
                capacity: header.capacity,
            }
        };
        // One that was only made ready is left out, unless it is the memory of where the lane goes on.
        let counts = |(at, segment): &(usize, &Segment)| {
            *at == 0 || segment.header.base < end || segment.header.cut.is_some()
        };
        let parts = lane.iter().enumerate().filter(counts).map(|(_, s)| part(s)).collect();
        LaneCut { parts, _hold: hold }
    }
}

/// Which segments somebody reads: number of the oldest one, and how many read from there.
#[derive(Clone, Default)]
pub(super) struct Holds(Arc<Mutex<BTreeMap<u64, usize>>>);

impl Holds {
    /// Holds segment `oldest` and all later ones until the result is dropped.
    pub(super) fn hold(&self, oldest: u64) -> Hold {
        *self.0.lock().entry(oldest).or_default() += 1;
        Hold { holds: self.clone(), oldest }
    }

    /// Returns the number of the oldest segment that is held.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.0.lock().keys().next().copied()
    }
}

/// Keeps segments from being recycled as long as it lives.
pub(super) struct Hold {
    holds: Holds,
    oldest: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut holds = self.holds.0.lock();
        if let Some(count) = holds.get_mut(&self.oldest) {
            *count -= 1;
            if *count == 0 {
                holds.remove(&self.oldest);
            }
        }
    }
}
