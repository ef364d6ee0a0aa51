//! The start of write-back: the one call for it, which no safe crate has.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// Has the kernel begin to write what of `range` is changed in the page cache, and does not wait for the
/// disk (`sync_file_range(2)` with `SYNC_FILE_RANGE_WRITE`).
///
/// That it cannot is nobody's concern, and no failure of the disk is lost here: this mode of the call
/// asks for none, so that the next sync is told of it.
pub(super) fn start(file: &File, range: Range<u64>) {
    let (Ok(from), Ok(len)) = (range.start.try_into(), (range.end - range.start).try_into()) else {
        return;
    };
    // SAFETY: the descriptor is open as long as `file` is borrowed; the call touches no memory of ours.
    _ = unsafe { libc::sync_file_range(file.as_raw_fd(), from, len, libc::SYNC_FILE_RANGE_WRITE) };
}
