//! A cursor over bytes that may be hostile: each step checks what is left, nothing is allocated
//! by an announced length.

use std::fmt;

use crate::varint;

/// Bytes that do not decode: where, and what was expected there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Offset in the input.
    pub offset: usize,
    /// What was expected.
    pub expected: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {} at byte {}", self.expected, self.offset)
    }
}

impl std::error::Error for Malformed {}

/// A cursor over `bytes`.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    /// Returns the offset of the next byte.
    pub fn offset(&self) -> usize {
        self.at
    }

    /// Returns whether everything was read.
    pub fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// Returns an error for the current place.
    pub fn malformed(&self, expected: &'static str) -> Malformed {
        Malformed { offset: self.at, expected }
    }

    /// Reads `len` bytes.
    pub fn take(&mut self, len: usize, expected: &'static str) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(len).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or(self.malformed(expected))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// Reads `N` bytes.
    pub fn array<const N: usize>(&mut self, expected: &'static str) -> Result<[u8; N], Malformed> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N, expected)?);
        Ok(bytes)
    }

    /// Reads all that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.at..];
        self.at = self.bytes.len();
        rest
    }

    /// Reads a byte.
    pub fn u8(&mut self, expected: &'static str) -> Result<u8, Malformed> {
        Ok(self.take(1, expected)?[0])
    }

    /// Reads a little-endian `u32`.
    pub fn u32(&mut self, expected: &'static str) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array(expected)?))
    }

    /// Reads a little-endian `u64`.
    pub fn u64(&mut self, expected: &'static str) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array(expected)?))
    }

    /// Reads a varint.
    pub fn varint(&mut self, expected: &'static str) -> Result<u64, Malformed> {
        let (value, len) = varint::get(&self.bytes[self.at..]).ok_or(self.malformed(expected))?;
        self.at += len;
        Ok(value)
    }

    /// Reads a varint length and that many bytes.
    pub fn bytes(&mut self, expected: &'static str) -> Result<&'a [u8], Malformed> {
        let len = self.varint(expected)?;
        let len = usize::try_from(len).map_err(|_| self.malformed(expected))?;
        self.take(len, expected)
    }

    /// Fails unless everything was read.
    pub fn finish(&self, expected: &'static str) -> Result<(), Malformed> {
        if self.is_empty() { Ok(()) } else { Err(self.malformed(expected)) }
    }
}
