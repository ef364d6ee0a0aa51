//! Value bytes that keep alive whatever they lie in, so that a read copies nothing.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use atoll_env::IoBuf;

use crate::pool::Block;

/// Bytes that somebody owns: a piece of a value file, a memtable's arena, the heap.
pub trait Owner: Send + Sync {
    /// Returns bytes `range` of what is owned. Panics outside of it.
    fn bytes(&self, range: Range<usize>) -> &[u8];
}

impl Owner for Vec<u8> {
    fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self[range]
    }
}

impl Owner for IoBuf {
    fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self[range]
    }
}

/// A reference-counted byte string that points into its owner.
///
/// It is cheap to clone. It keeps a whole block (or memtable) in memory: copy the bytes
/// (`to_vec`) when you hold them for long.
#[derive(Clone)]
pub struct Slice {
    owner: Kept,
    start: usize,
    len: usize,
}

/// What a slice keeps alive. A block counts its holders itself, and most slices lie in one.
#[derive(Clone)]
enum Kept {
    Owner(Arc<dyn Owner>),
    Block(Block),
}

impl Slice {
    /// Points at `range` of `owner`.
    pub fn new(owner: Arc<dyn Owner>, range: Range<usize>) -> Slice {
        Slice { owner: Kept::Owner(owner), start: range.start, len: range.len() }
    }

    /// Points at `range` of a block.
    pub(crate) fn of_block(block: Block, range: Range<usize>) -> Slice {
        Slice { owner: Kept::Block(block), start: range.start, len: range.len() }
    }

    /// Returns what follows the first `n` bytes; nothing if there are no more.
    pub(crate) fn after(mut self, n: usize) -> Slice {
        let n = n.min(self.len);
        self.start += n;
        self.len -= n;
        self
    }

    /// Returns a part of this slice with the same owner. Panics outside of it.
    pub fn slice(&self, range: Range<usize>) -> Slice {
        assert!(range.start <= range.end && range.end <= self.len, "slice out of range");
        Slice { owner: self.owner.clone(), start: self.start + range.start, len: range.len() }
    }
}

impl Deref for Slice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let range = self.start..self.start + self.len;
        match &self.owner {
            Kept::Owner(owner) => owner.bytes(range),
            Kept::Block(block) => &block[range],
        }
    }
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Vec<u8>> for Slice {
    fn from(bytes: Vec<u8>) -> Slice {
        let len = bytes.len();
        Slice::new(Arc::new(bytes), 0..len)
    }
}

impl From<IoBuf> for Slice {
    fn from(bytes: IoBuf) -> Slice {
        let len = bytes.len();
        Slice::new(Arc::new(bytes), 0..len)
    }
}

impl From<&[u8]> for Slice {
    fn from(bytes: &[u8]) -> Slice {
        Slice::from(bytes.to_vec())
    }
}

impl PartialEq for Slice {
    fn eq(&self, other: &Slice) -> bool {
        **self == **other
    }
}

impl Eq for Slice {}

impl PartialEq<[u8]> for Slice {
    fn eq(&self, other: &[u8]) -> bool {
        **self == *other
    }
}

impl<const N: usize> PartialEq<&[u8; N]> for Slice {
    fn eq(&self, other: &&[u8; N]) -> bool {
        **self == other[..]
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.escape_ascii())
    }
}
