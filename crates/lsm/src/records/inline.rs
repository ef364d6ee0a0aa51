//! A record in one allocation: its counts, its key, its value.
//!
//! A [`Slice`](crate::slice::Slice) keeps its owner alive, and the owner of a cached value is the record
//! alone: a reader who holds the value for long holds some hundred bytes, not a block. The sizes are
//! steps, since a trait object of an unsized type cannot be counted; they waste an eighth in the mean.

use std::ops::Range;
use std::sync::Arc;

use super::LEN_MAX;
use crate::slice::Owner;

/// A key and its value, in memory of its own.
#[derive(Clone)]
pub(super) struct Packed {
    owner: Arc<dyn Owner>,
    key_len: u16,
    len: u16,
}

struct Inline<const N: usize>([u8; N]);

impl<const N: usize> Owner for Inline<N> {
    #[inline]
    fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.0[range]
    }
}

/// Sizes of records, ascending.
const SIZES: [usize; 10] = [32, 64, 96, 128, 192, 256, 384, 512, 768, LEN_MAX];
/// The counts of an `Arc`, and what an allocator keeps beside each allocation.
const BESIDE: usize = 16 + 16;

/// Puts a key and its value together, which are at most [`LEN_MAX`] long.
pub(super) fn pack(key: &[u8], value: &[u8]) -> Packed {
    let len = key.len() + value.len();
    let step = SIZES.iter().position(|size| len <= *size);
    let owner: Arc<dyn Owner> = match step {
        Some(0) => sized::<{ SIZES[0] }>(key, value),
        Some(1) => sized::<{ SIZES[1] }>(key, value),
        Some(2) => sized::<{ SIZES[2] }>(key, value),
        Some(3) => sized::<{ SIZES[3] }>(key, value),
        Some(4) => sized::<{ SIZES[4] }>(key, value),
        Some(5) => sized::<{ SIZES[5] }>(key, value),
        Some(6) => sized::<{ SIZES[6] }>(key, value),
        Some(7) => sized::<{ SIZES[7] }>(key, value),
        Some(8) => sized::<{ SIZES[8] }>(key, value),
        _ => sized::<{ SIZES[9] }>(key, value),
    };
    Packed { owner, key_len: key.len() as u16, len: len as u16 }
}

fn sized<const N: usize>(key: &[u8], value: &[u8]) -> Arc<Inline<N>> {
    let mut bytes = [0; N];
    bytes[..key.len()].copy_from_slice(key);
    bytes[key.len()..key.len() + value.len()].copy_from_slice(value);
    Arc::new(Inline(bytes))
}

impl Packed {
    #[inline]
    pub(super) fn key(&self) -> &[u8] {
        self.owner.bytes(0..self.key_len.into())
    }

    #[inline]
    pub(super) fn value(&self) -> crate::slice::Slice {
        crate::slice::Slice::new(self.owner.clone(), self.key_len.into()..self.len.into())
    }

    /// Returns the memory it takes.
    pub(super) fn charge(&self) -> usize {
        charge(self.len.into())
    }
}

/// Returns the memory that a key and a value of `len` bytes together take.
pub(super) fn charge(len: usize) -> usize {
    SIZES.iter().find(|size| len <= **size).unwrap_or(&LEN_MAX) + BESIDE
}

#[cfg(test)]
#[cfg(not(atoll_loom))]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_packed_and_read_back() {
        for len in 0..=LEN_MAX {
            let bytes: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let (key, value) = bytes.split_at(len / 3);
            let packed = pack(key, value);
            assert_eq!((packed.key(), &*packed.value()), (key, value), "{len} bytes");
            assert!(packed.charge() >= len + BESIDE && packed.charge() <= len * 3 / 2 + 64);
        }
    }
}
