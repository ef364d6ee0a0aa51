//! I/O buffers that own aligned memory, so that direct I/O and io_uring can use them as they are.

use std::fmt;
use std::ops::{Deref, DerefMut};

/// Alignment of every [`IoBuf`]'s memory, in bytes: the page and direct-I/O block size.
pub const ALIGNMENT: usize = 4096;

/// One aligned page; a `Vec` of these gives aligned memory without an allocator of our own.
#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; ALIGNMENT]);

/// A growable byte buffer whose memory starts at a multiple of [`ALIGNMENT`].
///
/// It moves into an I/O operation and comes back with its result.
#[derive(Clone, Default)]
pub struct IoBuf {
    pages: Vec<Page>,
    len: usize,
}

impl IoBuf {
    /// Returns an empty buffer.
    pub fn new() -> IoBuf {
        IoBuf::default()
    }

    /// Returns an empty buffer with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> IoBuf {
        IoBuf { pages: Vec::with_capacity(capacity.div_ceil(ALIGNMENT)), len: 0 }
    }

    /// Returns a buffer of `len` zero bytes, as the target of a read.
    pub fn zeroed(len: usize) -> IoBuf {
        IoBuf { pages: vec![Page([0; ALIGNMENT]); len.div_ceil(ALIGNMENT)], len }
    }

    /// Appends `bytes`.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let start = self.len;
        self.resize(start + bytes.len());
        self[start..].copy_from_slice(bytes);
    }

    /// Changes the length; new bytes are zero.
    pub fn resize(&mut self, len: usize) {
        let old = self.len;
        if len > self.pages.len() * ALIGNMENT {
            self.pages.resize(len.div_ceil(ALIGNMENT), Page([0; ALIGNMENT]));
        }
        self.len = len;
        if len > old {
            self[old..].fill(0);
        }
    }

    /// Forgets the content, keeps the memory.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Returns how many bytes fit before memory is allocated again.
    pub fn capacity(&self) -> usize {
        self.pages.capacity() * ALIGNMENT
    }
}

impl From<&[u8]> for IoBuf {
    fn from(bytes: &[u8]) -> IoBuf {
        let mut buf = IoBuf::with_capacity(bytes.len());
        buf.extend_from_slice(bytes);
        buf
    }
}

impl Deref for IoBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `Page` is `repr(C)` over bytes without padding, the pages of a `Vec` are
        // contiguous, and `len <= pages.len() * ALIGNMENT` holds after every method.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast::<u8>(), self.len) }
    }
}

impl DerefMut for IoBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast::<u8>(), self.len) }
    }
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoBuf({} bytes)", self.len)
    }
}
