//! Memory of a block, and the counted handles on it. The `unsafe` half of the pool.
//!
//! ```text
//!   | holders | len | home | file | offset |  bytes of the block ...
//!   |<----------- header, 32 B ----------->|
//! ```
//!
//! A handle is one pointer, to a header that lies before the bytes: what a hit reads of a block first
//! is in the line whose counter it writes anyway, and the entry of the hash table stays short. Where the
//! memory came from decides only where it goes in the end.
//!
//! # Invariants
//! - A [`Frame`] is its memory's only holder and may write; a [`Block`] is one of many and may read.
//!   The way from one to the other is one-way.
//! - Headers are atomics and are never written otherwise, so that the owner of a region may look at the
//!   header of any frame that is taken, whatever its holders do meanwhile.
//! - A frame in a region keeps the region: the last handle may outlive the pool.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::BlockKey;
use super::pins::Pins;
use super::region::Home;
use crate::slice::Slice;

/// Bytes before those of the block.
pub(super) const HEADER: usize = size_of::<Header>();
/// File of a key that no block has: the frame is not in the cache.
const NO_FILE: u64 = u64::MAX;

/// What lies before the bytes of a block. All zeros, and any other bytes, are a valid one.
#[repr(C, align(16))]
struct Header {
    pins: Pins,
    /// Bytes of the block.
    len: AtomicU32,
    /// From [`Arc::into_raw`], of the region the frame lies in; null on the heap.
    home: AtomicPtr<Home>,
    /// The key, as a hint for who wants the frame back.
    file: AtomicU64,
    offset: AtomicU64,
}

#[cfg(not(all(test, atoll_loom)))]
const _: () = assert!(HEADER == 32);

/// A header with the bytes behind it: what frames and blocks point to.
#[derive(Clone, Copy)]
struct Memory(NonNull<Header>);

impl Memory {
    fn header(&self) -> &Header {
        // SAFETY: a `Memory` exists as long as a frame or block does that holds it, and that keeps the
        // memory alive; a header is shared atomics.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    fn len(self) -> usize {
        self.header().len.load(Relaxed) as usize
    }

    #[inline]
    fn bytes(self) -> NonNull<u8> {
        // SAFETY: behind the header lie `len` bytes of the same allocation.
        unsafe { self.0.add(1).cast() }
    }

    fn start(self, len: usize, home: *mut Home) {
        let header = self.header();
        header.len.store(len as u32, Relaxed);
        header.home.store(home, Relaxed);
        header.file.store(NO_FILE, Relaxed);
        header.pins.start();
    }

    /// Gives the memory back. Nobody holds it any more.
    fn free(self) {
        let (len, home) = (self.len(), self.header().home.load(Relaxed));
        if home.is_null() {
            // SAFETY: without a home it came from `alloc_zeroed` with this layout, and the last holder
            // is gone.
            unsafe { dealloc(self.0.as_ptr().cast(), layout(len)) };
        } else {
            // SAFETY: the pointer came from `Arc::into_raw` when the frame was taken, which happens
            // once, as does this.
            let home = unsafe { Arc::from_raw(home) };
            home.give_back(self.0.as_ptr() as usize, len);
        }
    }
}

fn layout(len: usize) -> Layout {
    let layout = Layout::from_size_align(HEADER + len, align_of::<Header>());
    layout.expect("invariant: a block is at most some MiB")
}

/// Memory of a pool that its one holder fills. What is in it at first means nothing.
pub struct Frame(Memory);

// SAFETY: a frame is the only holder of plain bytes and of a header of atomics.
unsafe impl Send for Frame {}
// SAFETY: a shared frame gives out shared bytes only.
unsafe impl Sync for Frame {}

impl Frame {
    /// Allocates `len` bytes from the heap.
    pub(super) fn on_heap(len: usize) -> Frame {
        assert!(u32::try_from(len).is_ok(), "a block is at most some MiB");
        let layout = layout(len);
        // SAFETY: the layout is at least a header long.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(memory) = NonNull::new(memory.cast::<Header>()) else {
            handle_alloc_error(layout)
        };
        let memory = Memory(memory);
        memory.start(len, null_mut());
        Frame(memory)
    }

    /// Returns the frame of `len` bytes at an address in a region.
    ///
    /// # Safety
    /// `HEADER + len` bytes from `at` lie in the region of `home`, aligned as a header, initialised,
    /// and belong to nobody until [`Home::give_back`] is told of them.
    pub(super) unsafe fn in_region(at: NonNull<u8>, len: usize, home: Arc<Home>) -> Frame {
        let memory = Memory(at.cast());
        memory.start(len, Arc::into_raw(home).cast_mut());
        Frame(memory)
    }

    pub(super) fn is_on_heap(&self) -> bool {
        self.0.header().home.load(Relaxed).is_null()
    }

    /// Writes down which block it is about to become.
    pub(super) fn tag(&self, key: BlockKey) {
        let header = self.0.header();
        header.offset.store(key.offset, Relaxed);
        header.file.store(key.file, Relaxed);
    }
}

/// Returns the key in the header of a frame, if it has one. It may be that of a moment ago.
///
/// # Safety
/// At `at` there is the header of a frame that was taken and is not given back meanwhile.
pub(super) unsafe fn tagged(at: NonNull<u8>) -> Option<BlockKey> {
    // SAFETY: any bytes are a header, this one stays by the contract, and all who use it do by atomics.
    let header = unsafe { at.cast::<Header>().as_ref() };
    let (file, offset) = (header.file.load(Relaxed), header.offset.load(Relaxed));
    (file != NO_FILE).then_some(BlockKey { file, offset })
}

impl Deref for Frame {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes are initialised, and only `&mut self` writes them.
        unsafe { NonNull::slice_from_raw_parts(self.0.bytes(), self.0.len()).as_ref() }
    }
}

impl DerefMut for Frame {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and this is the only holder, borrowed exclusively.
        unsafe { NonNull::slice_from_raw_parts(self.0.bytes(), self.0.len()).as_mut() }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        // The only holder.
        self.0.free();
    }
}

/// A filled frame: a counted handle on bytes that never change.
pub struct Block(Memory);

// SAFETY: the bytes never change while there is a block, and the count is atomic.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// Returns a part of the block that keeps it in memory. Panics outside of it.
    pub fn slice(&self, range: Range<usize>) -> Slice {
        assert!(range.start <= range.end && range.end <= self.len(), "slice out of its block");
        Slice::of_block(self.clone(), range)
    }

    pub(super) fn is_on_heap(&self) -> bool {
        self.0.header().home.load(Relaxed).is_null()
    }

    /// Returns where the block lies; no other one lies there as long as this one is held.
    pub(super) fn address(&self) -> usize {
        self.0.0.as_ptr() as usize
    }
}

impl From<Frame> for Block {
    fn from(frame: Frame) -> Block {
        // The hold passes over.
        Block(ManuallyDrop::new(frame).0)
    }
}

impl Clone for Block {
    #[inline]
    fn clone(&self) -> Block {
        self.0.header().pins.add();
        Block(self.0)
    }
}

impl Drop for Block {
    #[inline]
    fn drop(&mut self) {
        if self.0.header().pins.release() {
            self.0.free();
        }
    }
}

impl Deref for Block {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes are initialised and do not change while there is a block.
        unsafe { NonNull::slice_from_raw_parts(self.0.bytes(), self.0.len()).as_ref() }
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} bytes)", self.len())
    }
}
