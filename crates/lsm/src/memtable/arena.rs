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

use std::alloc::{Layout, handle_alloc_error};
use std::ops::{Deref, Range};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::slice::Owner;
use crate::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use crate::sync::order;

/// Allocates a region for at most `capacity` bytes and the only handle that can fill it.
pub(super) fn bytes(capacity: usize) -> (Appender, Arc<Bytes>) {
    let bytes = Arc::new(Bytes {
        region: Region::new(capacity),
        watched: Watched::new(capacity),
        len: AtomicUsize::new(0),
    });
    (Appender { bytes: bytes.clone() }, bytes)
}

/// Append-only bytes. Everything below `len` is immutable for the life of the region.
pub(super) struct Bytes {
    region: Region,
    watched: Watched,
    /// Starts at 0 and only grows. Written by the [`Appender`] alone, after the bytes below it.
    len: AtomicUsize,
}

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
        self.watched.read(at..at + len);
        // SAFETY: `at + len <= written <= region.size` lies in the region, which lives as long as
        // `self`; bytes below `written` are initialised and never change, and the acquire load
        // above makes the appender's copy happen before this read.
        unsafe { std::slice::from_raw_parts(self.region.base.as_ptr().add(at), len) }
    }
}

impl Owner for Bytes {
    fn bytes(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end, "a range ends where it starts or behind it");
        self.get(range.start, range.end - range.start)
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
        let mut room = self.bytes.region.size - start;
        for part in parts {
            room = room.checked_sub(part.len())?;
        }
        let mut end = start;
        for part in parts {
            // SAFETY: the loop above found room for all parts, so `end + part.len() <= region.size`.
            // Nobody reads at or above `len`, and this is the only appender, exclusively borrowed.
            // `part` cannot overlap: a borrow of the region reaches only below `len`.
            unsafe {
                let to = self.bytes.region.base.as_ptr().add(end);
                std::ptr::copy_nonoverlapping(part.as_ptr(), to, part.len());
            }
            end += part.len();
        }
        self.bytes.watched.write(start..end);
        self.bytes.len.store(end, order("bytes before their length", Ordering::Release));
        Some(start)
    }
}

/// What tells the model checker of reads and writes of bytes, which it cannot see; nothing otherwise.
#[cfg(not(all(test, atoll_loom)))]
struct Watched;

#[cfg(not(all(test, atoll_loom)))]
impl Watched {
    fn new(_capacity: usize) -> Watched {
        Watched
    }

    #[inline(always)]
    fn read(&self, _range: Range<usize>) {}

    #[inline(always)]
    fn write(&self, _range: Range<usize>) {}
}

#[cfg(all(test, atoll_loom))]
struct Watched(Box<[loom::cell::UnsafeCell<()>]>);

// SAFETY: the cells hold nothing; the checker reports two threads that use one at the same time.
#[cfg(all(test, atoll_loom))]
unsafe impl Sync for Watched {}

#[cfg(all(test, atoll_loom))]
impl Watched {
    fn new(capacity: usize) -> Watched {
        Watched((0..capacity).map(|_| loom::cell::UnsafeCell::new(())).collect())
    }

    fn read(&self, range: Range<usize>) {
        self.0[range].iter().for_each(|cell| cell.with(|_| ()));
    }

    fn write(&self, range: Range<usize>) {
        self.0[range].iter().for_each(|cell| cell.with_mut(|_| ()));
    }
}

/// Atomic words, all zero at first: the model checker's have no place in a region.
#[cfg(all(test, atoll_loom))]
pub(super) struct Words(Box<[AtomicU32]>);

#[cfg(all(test, atoll_loom))]
impl Words {
    pub(super) fn new(count: usize) -> Words {
        Words((0..count).map(|_| AtomicU32::new(0)).collect())
    }
}

#[cfg(all(test, atoll_loom))]
impl Deref for Words {
    type Target = [AtomicU32];
    fn deref(&self) -> &[AtomicU32] {
        &self.0
    }
}

/// Atomic words, all zero at first.
#[cfg(not(all(test, atoll_loom)))]
pub(super) struct Words {
    region: Region,
    count: usize,
}

#[cfg(not(all(test, atoll_loom)))]
impl Words {
    pub(super) fn new(count: usize) -> Words {
        Words { region: Region::new(count * size_of::<AtomicU32>()), count }
    }
}

#[cfg(not(all(test, atoll_loom)))]
impl Deref for Words {
    type Target = [AtomicU32];
    #[inline]
    fn deref(&self) -> &[AtomicU32] {
        // SAFETY: the region holds `count` words and is aligned for them; zeroed bytes are valid
        // atomics; it lives as long as `self`, and nobody but this slice refers to it.
        unsafe { std::slice::from_raw_parts(self.region.base.as_ptr().cast(), self.count) }
    }
}

/// Zeroed memory straight from the operating system, aligned to a page (to 8 bytes if empty).
///
/// Not from the allocator: it would clear a region that it reuses, which touches every page, and
/// keep one that is given back. Large regions ask for huge pages, because a search is a chain of
/// cache misses and each would miss the TLB as well.
struct Region {
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: a region is memory and nothing else; who may touch it is the business of its owners.
unsafe impl Send for Region {}
// SAFETY: as above; a shared region gives out nothing but its address.
unsafe impl Sync for Region {}

impl Region {
    fn new(size: usize) -> Region {
        /// Below it, rounding up to 2 MiB pages would be a noticeable part of the memory.
        const HUGE_MIN: usize = 8 << 20;

        let layout = Layout::array::<u8>(size).expect("invariant: a memtable is at most 4 GiB");
        if size == 0 {
            return Region { base: NonNull::<u64>::dangling().cast(), size };
        }
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: without a fixed address, a new mapping overlaps nothing.
        let mapped = unsafe { mmap_anonymous(ptr::null_mut(), size, protection, flags) };
        let Some(base) = mapped.ok().and_then(|base| NonNull::new(base.cast::<u8>())) else {
            handle_alloc_error(layout)
        };
        #[cfg(target_os = "linux")]
        if size >= HUGE_MIN {
            use rustix::mm::{Advice, madvise};
            // SAFETY: the range is the mapping made above; the advice changes no contents.
            let advised = unsafe { madvise(base.as_ptr().cast(), size, Advice::LinuxHugepage) };
            // A kernel without huge pages answers an error, and small ones serve.
            advised.ok();
        }
        Region { base, size }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.size == 0 {
            return;
        }
        // SAFETY: `base` and `size` are those of the mapping, which is unmapped only here.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.size) };
        debug_assert!(unmapped.is_ok(), "a whole mapping can be unmapped");
    }
}

#[cfg(test)]
#[cfg(not(atoll_loom))]
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
