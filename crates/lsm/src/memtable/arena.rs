//! The memory of a memtable: append-only bytes and zeroed words, read while they are written.
//!
//! ```text
//!   Bytes    | key value | key value | key value |  zeroes, untouched ...
//!                                                ^ len: everything below is written for ever
//!   Words    | head | node | node | node |          zeroes, untouched ...
//! ```
//!
//! Two regions instead of one, because they are shared in different ways. *Bytes* never change
//! once they are below `len`, so a reader may hold plain `&[u8]` into them. *Words* (the nodes with
//! their links) change under the reader's eyes, so every one of them is an atomic. In one region a
//! range of bytes could overlap a link, and no check could make a `&[u8]` over it sound.
//!
//! Because a link is an index into a slice of atomics, a wrong link can cause a wrong answer or a
//! panic, never a read outside. All `unsafe` of the memtable is in this file: making the regions
//! and copying bytes in and out.
//!
//! Both regions are asked for zeroed, in full, at the start. A page that was never touched is
//! address space and no memory, so each region may be as large as the memtable's whole capacity;
//! who divides the capacity between them is decided by the data.

use std::alloc::{self, Layout};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::slice::Owner;

/// Allocates a region for at most `capacity` bytes and the only handle that can fill it.
pub(super) fn bytes(capacity: usize) -> (Appender, Arc<Bytes>) {
    let bytes = Arc::new(Bytes {
        base: zeroed(layout_of::<u8>(capacity)),
        capacity,
        len: AtomicUsize::new(0),
    });
    (Appender { bytes: bytes.clone() }, bytes)
}

/// Append-only bytes. Everything below `len` is immutable for the life of the region.
pub(super) struct Bytes {
    base: NonNull<u8>,
    capacity: usize,
    /// Starts at 0 and only grows. Written by the [`Appender`] alone, after the bytes below it.
    len: AtomicUsize,
}

// SAFETY: the memory below `len` is never written again, and the memory above it is touched only
// by the one `Appender` (`append` takes `&mut self`); `len` is stored with release after the bytes
// it covers and loaded with acquire before they are read, so no access races with a write.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// Returns how many bytes are written.
    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Returns `len` bytes from `at`. Panics beyond what is written.
    #[inline]
    pub(super) fn get(&self, at: usize, len: usize) -> &[u8] {
        let written = self.len.load(Ordering::Acquire);
        assert!(at <= written && len <= written - at, "range beyond the written bytes");
        // SAFETY: `at + len <= written <= capacity` lies in the allocation, which lives as long as
        // `self`; bytes below `written` are initialised and never change, and the acquire load
        // above makes the appender's copy happen before this read.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(at), len) }
    }
}

impl Owner for Bytes {
    fn bytes(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end, "a range ends where it starts or behind it");
        self.get(range.start, range.end - range.start)
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: `base` came from `zeroed` with this very layout and is freed only here.
        unsafe { alloc::dealloc(self.base.as_ptr(), layout_of::<u8>(self.capacity)) }
    }
}

/// The one handle that fills a [`Bytes`].
pub(super) struct Appender {
    bytes: Arc<Bytes>,
}

impl Appender {
    /// Appends `parts` one after the other and returns where the first byte lies, or `None`,
    /// having changed nothing, if they do not fit.
    pub(super) fn append(&mut self, parts: &[&[u8]]) -> Option<usize> {
        let start = self.bytes.len();
        let mut room = self.bytes.capacity - start;
        for part in parts {
            room = room.checked_sub(part.len())?;
        }
        let mut end = start;
        for part in parts {
            // SAFETY: the loop above found room for all parts, so `end + part.len() <= capacity`.
            // Nobody reads at or above `len`, and this is the only appender, exclusively borrowed.
            // `part` cannot overlap: a borrow of the region reaches only below `len`.
            unsafe {
                let to = self.bytes.base.as_ptr().add(end);
                std::ptr::copy_nonoverlapping(part.as_ptr(), to, part.len());
            }
            end += part.len();
        }
        self.bytes.len.store(end, Ordering::Release);
        Some(start)
    }
}

/// Allocates `count` atomic words that are all zero.
pub(super) fn words(count: usize) -> Box<[AtomicU32]> {
    let base = zeroed(layout_of::<AtomicU32>(count)).cast::<AtomicU32>();
    let slice = std::ptr::slice_from_raw_parts_mut(base.as_ptr(), count);
    // SAFETY: the allocation has the layout of `[AtomicU32; count]`, which is what the box frees;
    // all-zero bytes are a valid `AtomicU32`; nobody else has the pointer.
    unsafe { Box::from_raw(slice) }
}

fn layout_of<T>(count: usize) -> Layout {
    Layout::array::<T>(count).expect("invariant: a memtable's capacity is at most 4 GiB")
}

fn zeroed(layout: Layout) -> NonNull<u8> {
    assert!(layout.size() > 0, "a region has a size");
    // SAFETY: the size is not zero.
    let base = unsafe { alloc::alloc_zeroed(layout) };
    NonNull::new(base).unwrap_or_else(|| alloc::handle_alloc_error(layout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_readable_up_to_what_is_written_and_no_further() {
        let (mut appender, bytes) = bytes(8);
        assert_eq!(appender.append(&[b"ab", b"", b"cde"]), Some(0));
        assert_eq!(bytes.get(0, 5), b"abcde");
        assert_eq!(bytes.bytes(1..3), b"bc");
        assert_eq!(bytes.get(5, 0), b"");
        for (at, len) in [(0, 6), (5, 1), (6, 0), (1, usize::MAX)] {
            let read = std::panic::catch_unwind(|| bytes.get(at, len).len());
            assert!(read.is_err(), "{len} bytes from {at} are not written");
        }
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let (mut appender, bytes) = bytes(8);
        assert_eq!(appender.append(&[b"abcde"]), Some(0));
        assert_eq!(appender.append(&[b"12", b"34"]), None);
        assert_eq!(bytes.len(), 5);
        assert_eq!(appender.append(&[b"12", b"3"]), Some(5));
        assert_eq!(bytes.get(0, 8), b"abcde123");
        assert_eq!(appender.append(&[]), Some(8));
    }
}
